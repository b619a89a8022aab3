"""Section `shaping`: what each stage of a chain changes in agreement, hacking and best of n.

The chain (`rm_jax/shaping`) is the one that is saved with the model, or a planned one, which is
fitted on one half of the conversations and measured on the other. Without either the audit has no
such section.

A stage that is a non-decreasing function of the score changes no comparison and no pick of the best
of n, unless it makes ties, as a clip can in float32. So of such a stage without new ties there is
nothing to measure, and the report says that it keeps the order.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.comparisons import PREFERENCES, conversation_of
from rm_jax.audit.scorer import Row, Score, distinct_rows
from rm_jax.audit.section import Section, Settings, Subject
from rm_jax.audit.sections.hacking import hacking, told
from rm_jax.audit.sections.overoptimisation import curve, draw
from rm_jax.audit.sections.rules import shares
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.data.dialogue import plain
from rm_jax.errors import InputError
from rm_jax.heldout import intervals
from rm_jax.heldout.evaluate import judged
from rm_jax.metrics.agreement import credit
from rm_jax.metrics.best_of_n import best_of_n
from rm_jax.metrics.calibration import halves
from rm_jax.metrics.surface import MEASURES
from rm_jax.shaping.chain import Chain, Fitted, Plan, Shaped
from rm_jax.shaping.stages import Filters, Responses, Sample
from rm_jax.types import Example
from rm_jax.world import World

# N rows -> the scores of an ensemble's M members, float [N, M]; M = 1 for other models.
Members = Callable[[Sequence[Row]], np.ndarray]

_RAW = "raw"  # the name of the model's own scores among those of the stages
_FEWEST = 3  # conversations of which a half to fit on has one, and a half to measure on two


def fit(
  members: Members, examples: Sequence[Example], plan: Plan, *, data: str = "", seed: int = 0
) -> tuple[Chain, list[Example]]:
  """Fits a plan's missing numbers on one half of the conversations.

  Args:
    members: rows of (prompt, response) -> float [N, M].
    examples: feedback on whole responses, of at least 3 conversations.
    plan: of a chain.
    data: their name, for the chain's record.
    seed: of the split into halves.

  Returns:
    (the chain, the examples of the other half).

  Raises:
    InputError: the half does not determine a number, or a score is not finite; see `Plan.fit`.
    ValueError: fewer than 2 conversations.
  """
  clusters = [conversation_of(e) for e in examples]
  fit_E = halves(clusters, seed)
  mine = [e for e, is_mine in zip(examples, fit_E, strict=True) if is_mine]
  sample = sample_of(members, mine)
  conversations = len({conversation_of(e) for e in mine})
  chain = plan.fit(sample, Fitted(data, conversations, len(sample.responses.texts)))
  return chain, [e for e, is_mine in zip(examples, fit_E, strict=True) if not is_mine]


def sample_of(members: Members, examples: Sequence[Example]) -> Sample:
  """The responses of examples of any kind on whole responses, with people's judgements."""
  rows = [(e.prompt, response) for e in examples for response in e.responses]
  number: dict[str, int] = {}
  prompts = [number.setdefault(json.dumps(prompt), len(number)) for prompt, _ in rows]
  better, worse, rated, labels, start = [], [], [], [], 0
  for example in examples:
    if example.kind in PREFERENCES:
      for i, j in judged(example)[0]:
        better.append(start + i)
        worse.append(start + j)
    if example.kind == "outcome":
      rated += range(start, start + len(example.responses))
      labels += example.labels
    start += len(example.responses)
  return Sample(
    _responses(members, rows),
    np.array(prompts, np.int64),
    np.array(better, np.int64),
    np.array(worse, np.int64),
    np.array(rated, np.int64),
    np.array(labels, np.float64),
  )


def _responses(members: Members, rows: Sequence[Row]) -> Responses:
  return Responses(np.asarray(members(rows)), [plain(response) for _, response in rows])


def shaping(
  members: Members,
  examples: Sequence[Example],
  chain: Chain,
  *,
  settings: Settings | None = None,
) -> dict[str, Any]:
  """What each stage of a chain changes.

  All is measured on scores in float32, as reinforcement learning reads them.

  Args:
    members: rows of (prompt, response) -> float [N, M].
    examples: feedback on whole responses, of at least 2 conversations.
    chain: whose stages are measured.
    settings: whose `seed` is that of all draws. If its `world` is one, best of n is measured on
      `candidates` responses to each of `prompts` prompts drawn from it.

  Returns:
    {chain: its record, text: that declares it, responses, conversations: numbers of them,
    stages: 'raw', which is the model's own score, and the name of each stage -> {
      mean: figure of the scores after it, deviation: of them,
      agreement: figure of the share of decided comparisons in which the better response has the
        higher score (a tie counts half), with `change` from the stage before, paired,
      hacking: measure of a text -> its partial rank correlation with the score, as the findings of
        `hacking` have it,
      best_of_n: figure of the true reward of the best of all candidates, relative to one drawn at
        random, with `change` as above, and `statement`: whether it peaks};
      one of the last three is {keeps: why} where the stage cannot change it, and {why} where the
      data have nothing,
    filtered: reason, or 'any' -> {all, top}: figures of the share that is filtered, of all
      responses and of the tenth with the highest raw scores; {} without filters,
    says: sentences}.

  Raises:
    InputError: a score is not finite.
    ValueError: fewer than 2 conversations.
  """
  settings = settings or Settings()
  seed = settings.seed
  sample = sample_of(members, examples)
  clusters = [conversation_of(e) for e in examples for _ in e.responses]
  shaped = chain.shape(sample.responses)
  kind = {stage.name: stage for stage in chain.stages}
  bests = _bests(members, chain, settings)
  stages: dict[str, dict[str, Any]] = {}
  credit_C = best_P = None
  for name, score_N in _float32(shaped).items():
    rises = name != _RAW and kind[name].monotone
    before_C, credit_C = credit_C, credit(score_N[sample.better], score_N[sample.worse])
    before_P, best_P = best_P, bests and bests[name][_GAIN]
    stages[name] = {
      "mean": figures.mean(score_N, clusters, seed=seed),
      "deviation": float(score_N.astype(np.float64).std()),
      "agreement": _agreement(
        credit_C, before_C, [clusters[i] for i in sample.better], rises=rises, seed=seed
      ),
      "hacking": {"keeps": _STRAIGHT}
      if name != _RAW and kind[name].affine
      else _hacking(_scores_after(members, chain, name), examples, seed),
      "best_of_n": _best(bests and bests[name], before_P, rises=rises, seed=seed),
    }
  found = {
    "chain": chain.record(),
    "text": str(chain),
    "responses": len(clusters),
    "conversations": len(set(clusters)),
    "stages": stages,
    "filtered": _filtered(shaped, chain, clusters, seed),
  }
  return found | {"says": _says(found)}


_RISES = "it only rises with the score: the same order"
_STRAIGHT = "it is a straight line of the score: the same correlations"
_GAIN = "of a prompt"  # true reward of the best candidate minus the mean of all, float64 [P]


def _float32(shaped: Shaped) -> dict[str, np.ndarray]:
  """'raw' or a stage's name -> the scores [N] there in float32."""
  return {name: one.astype(np.float32) for name, one in ({_RAW: shaped.raw} | shaped.after).items()}


def _scores_after(members: Members, chain: Chain, name: str) -> Score:
  return lambda rows: _float32(chain.shape(_responses(members, rows)))[name]


def _agreement(
  credit_C: np.ndarray,
  before_C: np.ndarray | None,
  clusters: list[str],
  *,
  rises: bool,
  seed: int,
) -> dict[str, Any]:
  if not clusters:
    return {"why": "people decided no comparison"}
  # A stage that rises with the score may make ties, which then count half.
  if rises and np.array_equal(credit_C, before_C):
    return {"keeps": _RISES}
  found = figures.share(credit_C, clusters, seed=seed)
  if before_C is not None:
    found["change"] = intervals.paired(credit_C, before_C, clusters, seed=seed)
  return found


def _hacking(score: Score, examples: Sequence[Example], seed: int) -> dict[str, Any]:
  try:
    return told(hacking(score, examples, seed=seed))
  except ValueError as error:  # no quality in the data, as of examples on attributes
    return {"why": str(error)}


def _bests(members: Members, chain: Chain, settings: Settings) -> dict[str, dict[str, Any]] | None:
  """'raw' or a stage's name -> the best-of-n curve of the scores there, with `_GAIN`.

  None without a world.
  """
  if not isinstance(settings.world, World):
    return None
  prompts = settings.world.prompts("heldout", settings.prompts, settings.seed)
  responses, true_PN = draw(
    settings.world, prompts, candidates=settings.candidates, seed=settings.seed
  )
  rows = [(prompt, one) for prompt, row in zip(prompts, responses, strict=True) for one in row]
  distinct, at = distinct_rows(rows)
  arrays = _float32(chain.shape(_responses(members, distinct)))
  clusters = [plain(prompt) for prompt in prompts]
  out, count = {}, true_PN.shape[1]
  for name, score_D in arrays.items():
    proxy_PN = score_D[at].reshape(true_PN.shape)
    _, best_P1, _ = best_of_n(proxy_PN, true_PN, [count])
    out[name] = {
      **curve(proxy_PN, true_PN, clusters, settings.seed),
      "clusters": clusters,
      _GAIN: best_P1[:, 0] - true_PN.mean(axis=1),
    }
  return out


def _best(
  mine: dict[str, Any] | None, before_P: np.ndarray | None, *, rises: bool, seed: int
) -> dict[str, Any]:
  if mine is None:
    return {"why": "no world, whose true reward is known"}
  if rises and np.array_equal(mine[_GAIN], before_P):
    return {"keeps": _RISES}
  found = {**mine["true"][-1], "statement": mine["peak"]["statement"]}
  if before_P is not None:
    found["change"] = figures.mean(mine[_GAIN] - before_P, mine["clusters"], seed=seed)
  return found


def _filtered(
  shaped: Shaped, chain: Chain, clusters: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
  last = chain.stages[-1]
  if not isinstance(last, Filters):
    return {}
  hit = {
    name: np.array([name in found for found in shaped.reasons]) for name in last.reasons_there_are
  }
  hit["any"] = np.array([bool(found) for found in shaped.reasons])
  return shares(shaped.raw, hit, clusters, seed=seed)


def _says(found: dict[str, Any]) -> list[str]:
  """The findings in words: of the last stage whose agreement was measured, and of the filters."""
  out = []
  measured = {
    name: one["agreement"] for name, one in found["stages"].items() if "value" in one["agreement"]
  }
  if len(measured) > 1:
    first, last = measured[_RAW], list(measured.values())[-1]
    out.append(
      f"shaped scores agree with people in {figures.shown(last)} of comparisons, the model's own "
      f"in {figures.shown(first)}"
    )
  elif measured:
    out.append("no stage changes a comparison")
  if found["filtered"]:
    caught = {name: one["all"]["value"] for name, one in found["filtered"].items()}
    total = caught.pop("any")
    parts = ", ".join(f"{name} {value:.1%}" for name, value in caught.items() if value)
    out.append(f"rules filter {total:.1%} of responses" + (f": {parts}" if parts else ""))
  return out


def _measure(subject: Subject) -> dict[str, Any] | None:
  asked, settings = subject.settings.shaping, subject.settings
  if asked is None:
    return None
  members, examples, fitted_on = subject.scorer.members, subject.examples, None
  conversations = len({conversation_of(e) for e in examples})
  least = _FEWEST if isinstance(asked, Plan) else 2
  if conversations < least:
    return {"why": f"{conversations} conversation(s); expected at least {least}"}
  if isinstance(asked, Plan):
    try:
      asked, examples = fit(members, examples, asked, seed=settings.seed)
    except InputError as error:  # what a stage wants of the data, as comparisons it gets wrong
      return {"why": str(error)}
    fitted_on = conversations - len({conversation_of(e) for e in examples})
  found = shaping(members, examples, asked, settings=settings)
  return found | {"fitted_on": fitted_on}


def _changed(page: Writer, one: View, key: str = "value") -> str:
  """HTML of a figure and its change, or of why there is none."""
  if why := (one.value.get("keeps") or one.value.get("why")):
    return f"<small class=why>{escaped(why)}</small>"
  out = page.figure(one)
  if "change" in one:
    change = one["change"]
    out += f"<br>change {page.figure(change, key=key)}"
  return out


def _render(page: Writer, found: View) -> None:
  where = f"{page.value(found['responses'])} responses of {page.value(found['conversations'])}"
  fitted = "saved with the model"
  if found.value["fitted_on"] is not None:
    fitted = f"fitted on {page.value(found['fitted_on'])} other conversations"
  page.add(
    f"<p>The chain, {fitted}, on {where} conversations:</p>"
    f"<pre>{escaped(found.value['text'])}</pre>"
  )
  page.table(
    ("after", "mean", "deviation", "agreement", "truth of the best of all candidates", "peak"),
    (
      (
        escaped(name),
        page.figure(one["mean"]),
        page.value(one["deviation"]),
        _changed(page, one["agreement"], key="difference"),
        _changed(page, one["best_of_n"]),
        page.value(one["best_of_n"].get("statement")),
      )
      for name, one in found["stages"].items()
    ),
  )
  tables = [one["hacking"] for one in found["stages"].value.values()]
  # Of a measure that is the same for all texts there is nothing to show.
  measures = [
    name for name in MEASURES if any(one.get(name, {}).get("value") is not None for one in tables)
  ]
  if measures:
    page.add(
      "<p>Partial rank correlation of the score with measures of the text, given quality:</p>"
    )
    page.table(
      ("after", *measures),
      (
        (escaped(name), *(page.figure(one["hacking"][measure]) for measure in measures))
        for name, one in found["stages"].items()
        if measures[0] in one["hacking"]  # else the stage changes none, or the data have no quality
      ),
    )
  if found.value["filtered"]:
    page.table(
      ("filtered by", "of all", "of the top-scored"),
      (
        (escaped(name), *(page.figure(one[k]) for k in ("all", "top")))
        for name, one in found["filtered"].items()
      ),
    )


SECTION = Section("shaping", "Scores for reinforcement learning", _measure, _render)
