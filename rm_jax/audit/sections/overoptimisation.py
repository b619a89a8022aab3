"""Section `overoptimisation`: best-of-n curves of the score and of the true reward.

Best-of-n picks the candidate with the highest score, the proxy, and its gain is measured by the
true reward. This module draws and scores the candidates; `metrics.best_of_n` computes the curves
from the two arrays.

Gao, Schulman and Hilton (2023), Scaling laws for reward model overoptimization. Coste et al.
(2024), Reward model ensembles help mitigate overoptimization (the conservative score). Shen et al.
(2023), Loose lips sink ships: mitigating length bias in RLHF.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.audit import plots
from rm_jax.audit.comparisons import conversation_of
from rm_jax.audit.scorer import Row, Score, distinct_rows, scores_of
from rm_jax.audit.section import Draw, Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.data.dialogue import plain
from rm_jax.metrics.best_of_n import best_of_n_curve
from rm_jax.metrics.surface import characters
from rm_jax.storage import pictures
from rm_jax.types import Example, Text
from rm_jax.world import World

# N rows -> the scores of an ensemble's M members, float [N, M].
Members = Callable[[Sequence[Row]], np.ndarray]

_MANY = 8  # fewest rated responses to a prompt for which a best-of-n curve is made
# The values of n of a curve: those below the number of candidates, and this number itself.
_NS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)


@dataclasses.dataclass(frozen=True)
class Candidates:
  """N candidates for each of P prompts.

  Attributes:
    true: float64 [P, N], true reward or the label that people gave.
    proxies: variant -> float64 [P, N], the scores by which a candidate is picked:
      score: the model's score.
      centred: `score` minus its mean over the prompt's candidates. Within a prompt it picks what
        `score` picks, so its curve, which is relative to n = 1, is that of `score`. Centring
        matters if prompts are pooled, as in PPO.
      decorrelated: `score` minus what length explains of it within a prompt: slope · (characters −
        their mean over the prompt's candidates), with one least-squares slope for all prompts.
      conservative: mean minus standard deviation over the ensemble's members; only of an ensemble.
    clusters: P labels; prompts with the same label are resampled together.
    distinct: number of distinct (prompt, response) among the P · N, each of which was scored once.
    left_out: number of examples that were not used: too few responses, or no rating or ranking.
    unused: number of responses of used examples left out because all prompts need the same N.
  """

  true: np.ndarray
  proxies: dict[str, np.ndarray]
  clusters: list[str]
  distinct: int
  left_out: int = 0
  unused: int = 0


def world_candidates(
  score: Score,
  world: World,
  prompts: Sequence[Text],
  *,
  candidates: int = 1024,
  members: Members | None = None,
  seed: int = 0,
) -> Candidates:
  """Candidates drawn from the generated world, whose true reward is known.

  Candidates are independent given the prompt, so equal texts occur; they are scored once. Those of
  a prompt do not depend on the other prompts.

  Args:
    score: rows of (prompt, response) -> float [N].
    world: the world that the prompts are from. With a low `World.skill` good candidates are rare.
    prompts: P prompts that `World.prompts` made.
    candidates: N, number for each prompt. Best-of-n is estimated for n up to N, and precisely for n
      far below N.
    members: scores of an ensemble's members, M at least 2; None if the model is no ensemble.
    seed: of the candidates.

  Raises:
    ValueError: no prompt, or one that is not from the world; fewer than 2 candidates; scores that
      are not finite or of another shape.
  """
  responses, true_PN = draw(world, prompts, candidates=candidates, seed=seed)
  return _scored(score, members, prompts, responses, true_PN, [plain(p) for p in prompts])


def draw(
  world: World, prompts: Sequence[Text], *, candidates: int, seed: int = 0
) -> tuple[list[list[Text]], np.ndarray]:
  """(candidates of each prompt, [P] lists of N; their true rewards, float64 [P, N]).

  Arguments and errors are those of `world_candidates`.
  """
  if not prompts or candidates < 2:
    raise ValueError(
      f"{len(prompts)} prompts of {candidates} candidates; expected some prompts, of at least 2"
    )
  drawn = []
  for prompt in prompts:
    # Seeded by the prompt's text, so that further prompts do not change its candidates.
    own = list(plain(prompt).encode())
    drawn.append(world.sample(prompt, candidates, np.random.default_rng([seed, *own])))
  responses = [[candidate.response for candidate in row] for row in drawn]
  true_PN = np.array([[candidate.reward for candidate in row] for row in drawn], np.float64)
  return responses, true_PN


def rated_candidates(
  score: Score,
  examples: Sequence[Example],
  *,
  at_least: int = _MANY,
  members: Members | None = None,
  seed: int = 0,
) -> Candidates:
  """Candidates that people rated: the responses of examples that have many.

  The true rewards are `Example.truth` if all used examples have it, else their labels. All prompts
  need the same number N of candidates: the length of the shortest used list. Of longer ones N are
  drawn.

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: those of kinds 'score', 'ranking' or 'outcome' with enough responses are used.
    at_least: number of responses, at least 2, below which an example is left out. If it is low, a
      few short lists make N small for all prompts.
    members: as in `world_candidates`.
    seed: of the drawn responses.

  Raises:
    ValueError: at_least is below 2; no example of these kinds has that many responses; scores that
      are not finite or of another shape.
  """
  if at_least < 2:
    raise ValueError(f"at_least is {at_least}; expected at least 2 responses")
  used = [
    e
    for e in examples
    if e.kind in ("score", "ranking", "outcome") and len(e.responses) >= at_least
  ]
  if not used:
    most = max((len(e.responses) for e in examples), default=0)
    raise ValueError(
      f"examples: none of {len(examples)} has {at_least} rated responses (the most are {most})"
    )
  n = min(len(e.responses) for e in used)
  rng = np.random.default_rng(seed)
  at = [np.sort(rng.choice(len(e.responses), n, replace=False)) for e in used]
  known = all(e.truth is not None for e in used)
  quality = [e.truth if known else e.labels for e in used]
  found = _scored(
    score,
    members,
    [e.prompt for e in used],
    [[e.responses[i] for i in places] for e, places in zip(used, at, strict=True)],
    np.array([[q[i] for i in places] for q, places in zip(quality, at, strict=True)], np.float64),
    [conversation_of(e) for e in used],
  )
  unused = sum(len(e.responses) - n for e in used)
  return dataclasses.replace(found, left_out=len(examples) - len(used), unused=unused)


def _scored(
  score: Score,
  members: Members | None,
  prompts: Sequence[Text],
  responses: Sequence[Sequence[Text]],
  true_PN: np.ndarray,
  clusters: list[str],
) -> Candidates:
  """Scores N responses to each of P prompts and derives the proxies; see `Candidates`."""
  rows = [
    (prompt, response) for prompt, row in zip(prompts, responses, strict=True) for response in row
  ]
  score_PN = scores_of(score, rows).reshape(true_PN.shape)
  length_PN = np.array([characters(plain(text)) for _, text in rows], np.float64)
  length_PN = length_PN.reshape(true_PN.shape)
  proxies = {
    "score": score_PN,
    "centred": score_PN - score_PN.mean(axis=1, keepdims=True),
    "decorrelated": _decorrelated(score_PN, length_PN),
  }
  if members is not None:
    proxies["conservative"] = _conservative(members, rows).reshape(true_PN.shape)
  return Candidates(true_PN, proxies, clusters, distinct=len(distinct_rows(rows)[0]))


def _decorrelated(score_PN: np.ndarray, length_PN: np.ndarray) -> np.ndarray:
  """The scores minus what length explains of them within prompts; see `Candidates.proxies`."""
  inside_PN = length_PN - length_PN.mean(axis=1, keepdims=True)
  below = (inside_PN**2).sum()
  slope = (inside_PN * score_PN).sum() / below if below else 0.0  # 0 if all lengths are equal
  return score_PN - slope * inside_PN


def _conservative(members: Members, rows: Sequence[Row]) -> np.ndarray:
  """Mean minus standard deviation over the members, [N]; each distinct row is scored once."""
  distinct, at = distinct_rows(rows)
  member_DM = np.asarray(members(distinct), np.float64)
  if member_DM.ndim != 2 or len(member_DM) != len(distinct) or member_DM.shape[1] < 2:
    raise ValueError(
      f"members gave shape {member_DM.shape}; expected [{len(distinct)}, M], M at least 2"
    )
  if not np.isfinite(member_DM).all():
    raise ValueError(f"members gave {np.sum(~np.isfinite(member_DM))} scores that are not finite")
  return (member_DM.mean(axis=1) - member_DM.std(axis=1))[at]


def _measure(subject: Subject) -> dict[str, Any]:
  """Curves on candidates of the generated world, and on sources with long lists by `_MANY`."""
  scorer, settings = subject.scorer, subject.settings
  out: dict[str, Any] = {}
  members = scorer.members if scorer.outputs > 1 else None
  if isinstance(settings.world, World):
    prompts = settings.world.prompts("heldout", settings.prompts, settings.seed)
    drawn = world_candidates(
      scorer,
      settings.world,
      prompts,
      candidates=settings.candidates,
      members=members,
      seed=settings.seed,
    )
    out["world"] = _curve(drawn, settings.seed)
  # One curve for each source, because their ratings need not be on a common scale.
  for source in sorted({e.source for e in subject.examples}):
    mine = [
      e
      for e in subject.examples
      if e.source == source
      and e.kind in ("ranking", "score", "outcome")
      and len(e.responses) >= _MANY
    ]
    if len({conversation_of(e) for e in mine}) > 1:
      drawn = rated_candidates(scorer, mine, at_least=_MANY, members=members, seed=settings.seed)
      # The key 'world' is the curve above, and a report whose only key is 'why' counts as one that
      # measured nothing (`section.silent`).
      name = f"{source}, rated" if source in ("world", "why") else source
      out[name] = _curve(drawn, settings.seed)
  lacks = settings.world if isinstance(settings.world, str) else ""
  lacks = lacks or "neither a generated world nor lists of 8 and more rated responses"
  return out or {"why": f"{lacks}: no curve"}


def _curve(drawn: Candidates, seed: int) -> dict[str, Any]:
  """{prompts, candidates, distinct: numbers of them, variants: {name of a proxy: its curve}}."""
  return {
    "prompts": len(drawn.true),
    "candidates": drawn.true.shape[1],
    "distinct": drawn.distinct,
    "variants": {
      name: curve(proxy, drawn.true, drawn.clusters, seed) for name, proxy in drawn.proxies.items()
    },
  }


def curve(
  proxy_PN: np.ndarray, true_PN: np.ndarray, clusters: Sequence[str], seed: int
) -> dict[str, Any]:
  """`metrics.best_of_n_curve` for n from 1 to all N candidates of each of P prompts."""
  count = true_PN.shape[1]
  ns = [n for n in _NS if n < count] + [count]
  return best_of_n_curve(proxy_PN, true_PN, ns, clusters=clusters, seed=seed)


def _picture_of(name: str) -> str:
  return plots.stem("best_of_n_", name)


def _draw(found: Mapping[str, Any]) -> dict[str, Draw]:
  return {
    _picture_of(name): lambda name=name, curve=curve: _chart(name, curve)
    for name, curve in found.items()
  }


def _chart(name: str, curve: Mapping[str, Any]) -> bytes:
  """A PNG: proxy and true reward of each variant against the square root of the KL divergence."""
  figure = pictures.figure(4.8, 6.6)
  left, right = figure.subplots(2, 1)
  for (variant, one), colour in zip(curve["variants"].items(), plots.COLOURS, strict=False):
    d = np.sqrt(one["kl"])
    for axis, what in ((left, "proxy"), (right, "true")):
      value = [x["value"] for x in one[what]]
      # Centring within a prompt changes no pick, so 'centred' has the curves of 'score'. It is
      # drawn later and dashed, so that both lines are seen.
      line = "--" if variant == "centred" else "-"
      axis.plot(d, value, line, marker="o", ms=3, color=colour, label=variant)
      bounds = [x["interval"] or (x["value"],) * 2 for x in one[what]]
      axis.fill_between(d, *zip(*bounds, strict=True), color=colour, alpha=0.12, lw=0)
  left.set(title=f"{plots.one_line(name)[:34]}: the proxy", ylabel="reward, relative to n = 1")
  right.set(title="the truth")
  for axis in (left, right):
    axis.axhline(0, color=plots.GREY, lw=0.8, ls=":")
    axis.set_xlabel("√KL of the best of n")
  right.legend(frameon=False, fontsize=8)
  return plots.png(figure)


def _summary(page: Writer, found: View) -> list[str]:
  return [
    f"best of n on {escaped(name)}: "
    f"{page.value(one.get('variants').get('score').get('peak').get('statement'))}"
    for name, one in found.items()
  ]


def _render(page: Writer, found: View) -> None:
  for name, curve in found.items():
    page.add(
      f"<h3>{escaped(name)}: {curve.value['candidates']:,} candidates for each of "
      f"{curve.value['prompts']:,} prompts</h3>"
    )
    page.picture(_picture_of(name), f"best-of-n curves on {name}")
    rows = []
    for variant, one in curve["variants"].items():
      fit = one["fits"]["true"]["bon"]
      rows.append(
        (
          escaped(variant),
          page.figure(one["proxy"][-1]),
          page.figure(one["true"][-1]),
          page.value(one["peak"]["statement"]),
          *(page.figure(fit.get(k)) for k in ("alpha", "beta")),
          page.value(one["kl_is"]),
        )
      )
    head = ("picked by", "proxy at the largest n", "truth there", "does the truth peak?")
    page.table((*head, "α", "β of d (α − β d)", "KL"), rows)


SECTION = Section(
  "overoptimisation",
  "Over-optimisation: the best of n",
  _measure,
  _render,
  draw=_draw,
  summary=_summary,
)
