"""Section `robustness`: how the score changes when a response is edited.

Edits that should not matter ought to leave the score, and with it the order of a pair; edits that
make a good answer worse ought to lower it.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.audit import figures, plots
from rm_jax.audit.comparisons import (
  PREFERENCES,
  Comparison,
  comparisons,
  conversation_of,
  of_others,
  sampled,
)
from rm_jax.audit.edits import EDITS, Edit
from rm_jax.audit.scorer import Score, scores_of
from rm_jax.audit.section import Draw, Section, Subject
from rm_jax.audit.writer import View, Writer, escaped, number
from rm_jax.data.dialogue import plain
from rm_jax.heldout.evaluate import evaluate
from rm_jax.metrics import agreement, interval
from rm_jax.types import Example

_SHOWN = 600  # characters shown of a text of a worst case; the middle of longer texts is left out
_FLIPS = 0.1  # share of flipped pairs above which `says` names an edit
_LOWER = 0.9  # share of worsened answers that score lower, below which `says` names an edit
_ENOUGH = 30  # texts or pairs below which `says` draws no conclusion from a share
# If a source has one of these words in its name, its pairs are taken to be written to mislead, or
# to have a refusal as the better response.
_RED_TEAM = ("adversarial", "harmless")


def robustness(
  score: Score,
  examples: Sequence[Example],
  *,
  edits: Sequence[str] = tuple(EDITS),
  sample: int = 500,
  seed: int = 0,
  worst: int = 3,
) -> dict:
  """Score changes under edits, flipped pairs, and the worst cases as text.

  Edits of kind 'same' are applied to the chosen and, separately, to the rejected response; edits of
  kind 'worse' to the chosen one alone, because a bad response need not get worse. Every distinct
  text is scored once, all in one call of `score`.

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: those with comparisons are used; see `comparisons.compared`.
    edits: names in `EDITS`.
    sample: largest number of comparisons whose responses are edited.
    seed: of the sample, the edits and the intervals. Each edit has its own random numbers, which do
      not depend on the other edits.
    worst: largest number of worst cases of each edit in the report.

  Returns:
    {pairs, seed, unit: standard deviation of the scores of the pairs' responses, the unit of all
    changes; edits: name -> {kind, what, n: edited responses, not_applicable: responses that the
      edit does not apply to or leaves as they are,
      change: mean of (edited − original),
      moved: mean of |edited − original|,
      flips: of 'same' only, {chosen, rejected}: share of pairs whose order changes when only this
        response is edited. A change to a tie counts half; pairs that tied before are left out,
      lower: of 'worse' only, share of edited responses that score lower; ties count half,
      worst: [{prompt, response, edited, score, score_edited, change}]: of 'same' the largest
        changes, of 'worse' the largest increases};
    says: a sentence}. change, moved, flips and lower are figures (`audit.figures`).

  Raises:
    ValueError: no comparison, or all of one conversation; a sample below 1, an unknown edit,
      or a score that is not finite.
  """
  unknown = sorted(set(edits) - set(EDITS))
  if unknown:
    raise ValueError(f"edits: {unknown}; expected some of {list(EDITS)}")
  every = comparisons(examples)
  pairs = sampled(every, sample, seed)
  others = of_others(pairs, every, seed)
  rows = [(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
  made = {}
  for name in edits:
    made[name] = _edited(EDITS[name], pairs, others, seed)
    rows += [(pairs[i].prompt, text) for i, _, text in made[name]]
  scores = scores_of(score, rows)
  old_N2, new_M = np.split(scores, [2 * len(pairs)])
  old_N2 = old_N2.reshape(-1, 2)
  unit = float(old_N2.std(ddof=1))
  found, start = {}, 0
  for name in edits:
    mine_M = new_M[start : start + len(made[name])]
    start += len(made[name])
    found[name] = _of_edit(EDITS[name], pairs, made[name], old_N2, mine_M, unit, worst, seed)
  return {"pairs": len(pairs), "seed": seed, "unit": unit, "edits": found, "says": _says(found)}


def _edited(
  edit: Edit, pairs: Sequence[Comparison], others: Sequence[Comparison], seed: int
) -> list[tuple]:
  """(index of the pair, 0 for chosen or 1 for rejected, edited response) where the edit applies."""
  made = []
  for i, pair in enumerate(pairs):
    for side, response in enumerate((pair.chosen, pair.rejected)):
      if side and edit.kind == "worse":
        continue
      rng = np.random.default_rng([seed, zlib.crc32(edit.name.encode()), i, side])
      new = edit(pair.prompt, response, rng, [others[i].chosen])
      if new is not None:
        made.append((i, side, new))
  return made


def _of_edit(
  edit: Edit,
  pairs: Sequence[Comparison],
  made: list[tuple],
  old_N2: np.ndarray,
  new_M: np.ndarray,
  unit: float,
  worst: int,
  seed: int,
) -> dict:
  """The report of one edit; see `robustness`.

  Args:
    edit: the edit.
    pairs: all comparisons of the sample.
    made: M edited responses, as `_edited` returns them.
    old_N2: [N, 2] scores of the pairs' chosen and rejected responses before the edit.
    new_M: scores of the M edited responses.
    unit: the unit of changes: standard deviation of `old_N2`; 0 if all responses score the same.
    worst: number of worst cases.
    seed: of the intervals.
  """
  sides = 2 if edit.kind == "same" else 1
  entry = {
    "kind": edit.kind,
    "what": edit.what,
    "n": len(made),
    "not_applicable": sides * len(pairs) - len(made),
  }
  if not made:
    why = figures.none("the edit applies to no response")
    flips = {"flips": {"chosen": why, "rejected": why}} if sides == 2 else {"lower": why}
    return {**entry, "change": why, "moved": why, **flips, "worst": []}
  pair_M, side_M = (np.array([m[j] for m in made]) for j in (0, 1))
  clusters = [pairs[i].conversation for i in pair_M]
  old_M = old_N2[pair_M, side_M]
  change_M = new_M - old_M
  if unit:
    entry["change"] = figures.mean(change_M / unit, clusters, seed=seed)
    entry["moved"] = figures.mean(np.abs(change_M) / unit, clusters, seed=seed)
  else:
    why = figures.none("all responses score the same: there is no unit", len(made))
    entry |= {"change": why, "moved": why}
  if sides == 2:
    entry["flips"] = {
      name: _flips(pairs, pair_M[side_M == side], new_M[side_M == side], old_N2, side, seed)
      for side, name in enumerate(("chosen", "rejected"))
    }
    badness_M = np.abs(change_M)
  else:
    entry["lower"] = figures.share(agreement.credit(old_M, new_M), clusters, seed=seed)
    badness_M = change_M
  entry["worst"] = [
    {
      "prompt": _short(plain(pairs[pair_M[m]].prompt)),
      "response": _short(plain((pairs[pair_M[m]].chosen, pairs[pair_M[m]].rejected)[side_M[m]])),
      "edited": _short(plain(made[m][2])),
      "score": float(old_M[m]),
      "score_edited": float(new_M[m]),
      "change": float(change_M[m] / unit) if unit else None,
    }
    for m in np.argsort(-badness_M, kind="stable")[:worst]
  ]
  return entry


def _flips(pairs, pair_M, new_M, old_N2, side: int, seed: int) -> dict:
  """Share of pairs whose order changes when the response on one side gets its new score."""
  before_M = np.sign(old_N2[pair_M, 0] - old_N2[pair_M, 1])
  now_M2 = old_N2[pair_M].copy()
  now_M2[:, side] = new_M
  flip_M = (1 - before_M * np.sign(now_M2[:, 0] - now_M2[:, 1])) / 2
  apart = before_M != 0
  if not apart.any():
    return figures.none("no pair to turn round: none is edited, or all of them tied before")
  clusters = [pairs[i].conversation for i in pair_M[apart]]
  return figures.share(flip_M[apart], clusters, seed=seed)


def _short(text: str) -> str:
  """The text, without its middle if it is longer than `_SHOWN`."""
  if len(text) <= _SHOWN:
    return text
  return f"{text[: _SHOWN // 2]} […] {text[-_SHOWN // 2 :]}"


def _says(found: dict[str, dict]) -> str:
  """The findings in words, from the report of each edit: flipped pairs, and worse answers' scores.

  The shares are estimates from this sample, so where they are good the sentence also gives the
  unfavourable end of their intervals.
  """
  flips, lower, few = {}, {}, []
  most, least = [], []  # upper ends of the intervals of flips, lower ends of those of lower
  for name, entry in found.items():
    same = entry["kind"] == "same"
    parts = entry["flips"].values() if same else [entry["lower"]]
    # Pairs of a few conversations are not independent; without an interval there is no conclusion.
    told = [f for f in parts if f["interval"] is not None and f["n"] >= _ENOUGH]
    if told:
      (flips if same else lower)[name] = max(f["value"] for f in told)
      most += [f["interval"][1] for f in told] if same else []
      least += [] if same else [f["interval"][0] for f in told]
    else:
      few.append(name)
  said = []
  if flips:
    many = [n for n in sorted(flips, key=flips.__getitem__, reverse=True) if flips[n] > _FLIPS]
    said.append(
      "edits that should not matter turn pairs round: "
      + ", ".join(f"{name} {flips[name]:.0%}" for name in many)
      if many
      else f"edits that should not matter turned at most {max(flips.values()):.0%} of these pairs "
      f"round, and may turn up to {max(most):.0%} (by the intervals)"
    )
  if lower:
    poor = [name for name in sorted(lower, key=lower.__getitem__) if lower[name] < _LOWER]
    said.append(
      "worse answers are not always scored lower: "
      + ", ".join(f"{name} {lower[name]:.0%}" for name in poor)
      if poor
      else f"answers made worse were scored lower in {min(lower.values()):.0%} and more, and may "
      f"be in {min(least):.0%} (by the intervals)"
    )
  if not said:
    return f"no edit had {_ENOUGH} texts or pairs of {interval.LEAST} conversations to tell by"
  if few:
    said.append(
      f"with fewer than {_ENOUGH} texts or pairs, or {interval.LEAST} conversations, to tell by: "
      f"{', '.join(few)}"
    )
  return "; ".join(said)


def _red_team(subject: Subject) -> dict[str, Any]:
  """{word of `_RED_TEAM`: accuracy on the comparisons of sources that have it in their names}.

  A word is left out if these sources have comparisons of fewer than 2 conversations.
  """
  found = {}
  for name in _RED_TEAM:
    at = [
      i
      for i, e in enumerate(subject.examples)
      if name in e.source.lower() and e.kind in PREFERENCES
    ]
    if len({conversation_of(subject.examples[i]) for i in at}) > 1:
      mine = [subject.scores[i] for i in at], [subject.examples[i] for i in at]
      report = evaluate(*mine, seed=subject.settings.seed).report
      kept = ("accuracy", "interval", "n", "method", "why", "baselines")
      found[name] = {k: report[k] for k in kept if k in report}
  return found


def _measure(subject: Subject) -> dict[str, Any]:
  if why := subject.lacks_comparisons(conversations=2):
    return {"why": why}
  settings = subject.settings
  found = robustness(
    subject.scorer, subject.examples, sample=settings.edited_pairs, seed=settings.seed
  )
  return found | {"red_team": _red_team(subject)}


def _draw(found: Mapping[str, Any]) -> dict[str, Draw]:
  rows = [
    plots.Point(
      name.replace("_", " "),
      one["change"]["value"],
      one["change"]["interval"],
      plots.BLUE if one["kind"] == "same" else plots.ORANGE,
    )
    for name, one in found["edits"].items()
    if one["change"]["value"] is not None
  ]
  label = "standard deviations; orange should fall"
  return {"robustness": lambda: plots.points("Score change", rows, 0.0, label)}


def _render(page: Writer, found: View) -> None:
  page.picture("robustness", "score changes under edits")
  page.table(
    ("edit", "kind", "n", "mean change", "flips, chosen edited", "flips, rejected", "lower"),
    (
      (
        escaped(f"{name}: {one.value['what']}"),
        escaped(one.value["kind"]),
        page.value(one["n"]),
        page.figure(one["change"]),
        page.figure(one.get("flips").get("chosen")),
        page.figure(one.get("flips").get("rejected")),
        page.figure(one.get("lower")),
      )
      for name, one in found["edits"].items()
    ),
  )
  for name, one in found["red_team"].items():
    page.add(
      f"<p>Red team, {escaped(name)}: accuracy {page.figure(one, key='accuracy')} on "
      f"{page.value(one['n'])}.</p>"
    )
  page.add("<details><summary>Worst cases, as text</summary>")
  for name, one in found.value["edits"].items():
    for case in one["worst"][:1]:
      page.add(
        f"<h3>{escaped(name)}: {number(case['change'])}</h3>"
        f"<pre>{escaped(plain(case['prompt'])[-600:])}</pre>"
        f"<pre>{escaped(plain(case['response'])[:900])}</pre>"
        f"<pre>{escaped(plain(case['edited'])[:900])}</pre>"
      )
  page.add("</details>")


SECTION = Section("robustness", "Robustness", _measure, _render, draw=_draw)
