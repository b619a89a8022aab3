"""Candidates for over-optimisation curves: many responses a prompt, with proxy and true reward.

Best-of-n picks by the score, and what it gains is measured by the truth. This file draws and
scores; the estimator over n and the fits are statistics of the two arrays (`rm_jax.metrics`).

Gao, Schulman and Hilton (2023), Scaling laws for reward model overoptimization. Coste et al.
(2024), Reward model ensembles help mitigate overoptimization (the conservative score). Shen et al.
(2023), Loose lips sink ships: mitigating length bias in RLHF.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rm_jax.audit.texts import Score, conversation_of, distinct_rows, scores_of
from rm_jax.data.dialogue import plain
from rm_jax.metrics.surface import characters
from rm_jax.types import Example, Text
from rm_jax.world import World

_MANY = 8  # responses a prompt from which best-of-n has something to choose


@dataclasses.dataclass(frozen=True)
class Candidates:
  """P prompts of N candidates each.

  Attributes:
    true: float64 [P, N], true reward or human rating.
    proxies: variant -> float64 [P, N], what picks:
      score: the model's.
      centred: less the prompt's mean. Within a prompt it picks what `score` picks, and its curve is
        that curve shifted; it matters where prompts are pooled, as by PPO.
      decorrelated: less what length explains of it: the residual of a least-squares line on
        characters, fitted on these candidates, within prompts (one slope, a mean for each).
      conservative: the members' mean less their standard deviation, where members were given.
    clusters: P labels, what is resampled together.
    distinct: distinct (prompt, response) among the P · N, as many as were scored.
    left_out: examples that had too few responses, or no rating.
    unused: responses of the others that were left out to make N equal.
  """

  true: np.ndarray
  proxies: dict[str, np.ndarray]
  clusters: list[str]
  distinct: int
  left_out: int = 0
  unused: int = 0


def overoptimisation(
  score: Score,
  world: World,
  prompts: Sequence[Text],
  *,
  candidates: int = 1024,
  members: Callable[[Sequence[tuple[Text, Text]]], np.ndarray] | None = None,
  seed: int = 0,
) -> Candidates:
  """Candidates of the generated world, whose true reward is known.

  Drawn independently given the prompt, so equal texts occur and are scored once; a prompt's are the
  same whatever prompts stand beside it.

  Args:
    score: rows of (prompt, response) -> float [N].
    world: that the prompts are of. With a low `skill` good candidates are rare.
    prompts: P of `World.prompts`.
    candidates: N a prompt. Best-of-n is estimated for n up to N, and well for n far below it.
    members: rows -> float [N, M], each of an ensemble's scores, M at least 2.
    seed: of the candidates.

  Raises:
    ValueError: no prompt, or one not of the world; fewer than 2 candidates; scores not finite.
  """
  if not prompts or candidates < 2:
    raise ValueError(
      f"{len(prompts)} prompts of {candidates} candidates; expected some prompts, of at least 2"
    )
  drawn = []
  for prompt in prompts:
    # By the prompt's own text, so that more prompts leave the others' candidates as they were.
    own = list(plain(prompt).encode())
    drawn.append(world.sample(prompt, candidates, np.random.default_rng([seed, *own])))
  responses = [[candidate.response for candidate in row] for row in drawn]
  true_PN = np.array([[candidate.reward for candidate in row] for row in drawn], np.float64)
  return _scored(score, members, prompts, responses, true_PN, [plain(p) for p in prompts])


def rated(
  score: Score,
  examples: Sequence[Example],
  *,
  at_least: int = _MANY,
  members: Callable[[Sequence[tuple[Text, Text]]], np.ndarray] | None = None,
  seed: int = 0,
) -> Candidates:
  """Candidates that people rated: examples with many responses.

  Their labels stand for the truth (`Example.truth`, where all used have one). All prompts need as
  many: N is the least number of responses of those used, and of the others' N are drawn.

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: those of kinds 'score', 'ranking' or 'outcome' with enough responses are used.
    at_least: responses, at least 2. Choose it so that a few short lists do not cost the long ones.
    members: as in `overoptimisation`.
    seed: of which responses are drawn.

  Raises:
    ValueError: no example has as many responses; scores not finite.
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


def _scored(score, members, prompts, responses, true_PN: np.ndarray, clusters) -> Candidates:
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
  inside_PN = length_PN - length_PN.mean(axis=1, keepdims=True)
  below = (inside_PN**2).sum()
  slope = (inside_PN * score_PN).sum() / below if below else 0.0  # all alike: nothing to take out
  return score_PN - slope * inside_PN


def _conservative(members, rows) -> np.ndarray:
  distinct, at = distinct_rows(rows)
  member_DM = np.asarray(members(distinct), np.float64)
  if member_DM.ndim != 2 or len(member_DM) != len(distinct) or member_DM.shape[1] < 2:
    raise ValueError(
      f"members gave shape {member_DM.shape}; expected [{len(distinct)}, M], M at least 2"
    )
  if not np.isfinite(member_DM).all():
    raise ValueError(f"members gave {np.sum(~np.isfinite(member_DM))} scores that are not finite")
  return (member_DM.mean(axis=1) - member_DM.std(axis=1))[at]
