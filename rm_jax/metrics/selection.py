"""Choosing one of several candidate solutions of a problem: by score, by vote, step by step.

`highest`, `vote` and `step_by_step` take one problem's N candidates and give the probability that
the choice among k of them is right, and the probability that it is shared. Both are expectations
over all subsets of k candidates, which are unbiased estimates for k fresh ones; where there are
more than `MOST` subsets, `vote` and `step_by_step` take as many random ones (`highest` has a closed
form, that of `metrics.best_of_n`). A choice is shared where several candidates have the highest
score, several answers the most votes, several of a step's options the highest score, or no
candidate has an answer: each is then chosen with the same probability.

  >>> right = [0.0, 1.0, 1.0]
  >>> highest([0.9, 0.2, 0.1], right, 2)  # (0 + 0 + 1) / 3, over the subsets 01, 02, 12
  Choice(right=0.333..., shared=0.0)
  >>> vote(["4", "5", "5"], right, 3)
  Choice(right=1.0, shared=0.0)

Cobbe et al. (2021), Training verifiers to solve math word problems (the highest score). Wang et al.
(2023), Self-consistency improves chain of thought reasoning (the majority). Li et al. (2023),
Making language models better reasoners with step-aware verifier, and Wang et al. (2024),
Math-Shepherd (votes weighted by a verifier). Snell et al. (2024), Scaling LLM test-time compute
optimally (choice step by step).
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rm_jax.metrics.best_of_n import best_of_n
from rm_jax.metrics.interval import vector

MOST = 1000  # If k of N candidates are more subsets than this, so many are drawn at random instead.
_TINY = 1e-12  # Weights of votes that differ by less than this share are rounding errors.


class Choice(NamedTuple):
  """What a rule chooses among k of a problem's candidates, on average over the subsets.

  Attributes:
    right: probability that the chosen candidate is right.
    shared: share of the subsets in which several alike would be chosen, one of them at random.
  """

  right: float
  shared: float


class Path(NamedTuple):
  """A choice step by step.

  Attributes:
    right, shared: as of a `Choice`.
    choices: mean number of steps at which there was a choice between different next steps.
  """

  right: float
  shared: float
  choices: float


def exact(n: int, k: int) -> bool:
  """Whether `subsets` are all subsets, and not random ones."""
  return math.comb(n, k) <= MOST


@functools.lru_cache(maxsize=64)
def subsets(n: int, k: int, seed: int = 0) -> np.ndarray:
  """All subsets of k of n candidates, or `MOST` random ones if there are more.

  Returns:
    bool [S, n], which candidates each subset has; with one seed the same in every call.

  Raises:
    ValueError: k is not in 1 .. n.
  """
  if not 1 <= k <= n:
    raise ValueError(f"k is {k}; expected 1 to {n}, the number of candidates")
  if exact(n, k):
    chosen_Sk = np.asarray(list(itertools.combinations(range(n), k)))
  else:
    rng = np.random.default_rng([seed, n, k])
    chosen_Sk = np.argsort(rng.random((MOST, n)), axis=1)[:, :k]
  mask_SN = np.zeros((len(chosen_Sk), n), bool)
  np.put_along_axis(mask_SN, chosen_Sk, True, axis=1)
  mask_SN.flags.writeable = False  # it is kept for the next call
  return mask_SN


@functools.lru_cache(maxsize=64)
def _bits(n: int, k: int, seed: int) -> tuple[int, ...]:
  """`subsets` as integers: bit i is 1 where candidate i is in the subset."""
  return tuple(
    sum(1 << i for i, one in enumerate(row) if one) for row in subsets(n, k, seed).tolist()
  )


def highest(scores: npt.ArrayLike, right: npt.ArrayLike, k: int) -> Choice:
  """The candidate with the highest score among k; exact for any N.

  Args:
    scores: [N], finite; in any unit.
    right: [N], 1 if the candidate is right, else 0.
    k: 1 .. N.

  Raises:
    ValueError: shapes differ, a value is not finite, or k is out of its range.
  """
  score_N, right_N = vector(scores, "scores"), vector(right, "right")
  _, found_11, _ = best_of_n(score_N[None], right_N[None], [k])
  # One candidate alone has the highest score if the k - 1 others are of those below it.
  values, count = np.unique(score_N, return_counts=True)
  below = np.cumsum(count) - count
  alone = sum(int(c) * math.comb(int(b), k - 1) for b, c in zip(below, count, strict=True))
  shared = 1 - alone / math.comb(len(score_N), k) if len(values) < len(score_N) else 0.0
  return Choice(float(found_11[0, 0]), shared)


def vote(
  answers: Sequence[str | None],
  right: npt.ArrayLike,
  k: int,
  *,
  log_weights: npt.ArrayLike | None = None,
  seed: int = 0,
) -> Choice:
  """The final answer with the most votes among k candidates; of its candidates any.

  A candidate without an answer has no vote; if none of the k has one, any of them is chosen. Over
  all subsets, or `MOST` random ones.

  Args:
    answers: N answers, equal ones as equal strings; None = the candidate has none.
    right: [N], 1 if the candidate is right, else 0.
    k: 1 .. N.
    log_weights: [N], finite, logarithms of the weights of the votes; None = each counts 1.
    seed: of random subsets.

  Raises:
    ValueError: lengths differ, a value is not finite, or k is out of its range.
  """
  right_N = vector(right, "right")
  log_N = np.zeros(len(right_N)) if log_weights is None else vector(log_weights, "log_weights")
  if not len(answers) == len(right_N) == len(log_N):
    raise ValueError(
      f"{len(answers)} answers, {len(right_N)} right, {len(log_N)} log_weights; expected as many"
    )
  mask_SN = subsets(len(answers), k, seed)
  known = list(dict.fromkeys(answer for answer in answers if answer is not None))
  any_S = (mask_SN * right_N).sum(axis=1) / k
  if not known:
    return Choice(float(any_S.mean()), float(k > 1))
  mine_NA = np.asarray([[answer == one for one in known] for answer in answers], np.float64)
  # Relative to the subset's largest weight, since weights may be too small for a float.
  asked_SN = mask_SN & mine_NA.any(axis=1)
  log_SN = np.where(asked_SN, log_N, -np.inf)
  most_S1 = log_SN.max(axis=1, keepdims=True)
  weight_SN = np.exp(log_SN - np.where(np.isfinite(most_S1), most_S1, 0.0))
  count_SA, votes_SA = mask_SN @ mine_NA, weight_SN @ mine_NA
  good_SA = (mask_SN * right_N) @ mine_NA / np.maximum(count_SA, 1)
  top_S1 = votes_SA.max(axis=1, keepdims=True)
  first_SA = (count_SA > 0) & (votes_SA >= top_S1 * (1 - _TINY))
  wins_S = first_SA.sum(axis=1)
  some_S = wins_S > 0
  right_S = np.where(some_S, (first_SA * good_SA).sum(axis=1) / np.maximum(wins_S, 1), any_S)
  shared_S = (wins_S > 1) | (~some_S & (k > 1))
  return Choice(float(right_S.mean()), float(shared_S.mean()))


class _Node(NamedTuple):
  """Candidates that are alike so far. `blocks` holds the options there are now, best score first;
  those of a block are tied. An option is (its candidates as bits, its node). No blocks: a leaf."""

  blocks: tuple[tuple[tuple[int, "_Node"], ...], ...]


_LEAF = _Node(())


def step_by_step(
  steps: Sequence[Sequence[str]],
  scores: Sequence[npt.ArrayLike],
  right: npt.ArrayLike,
  k: int,
  *,
  seed: int = 0,
) -> Path:
  """Greedy choice step by step among k fixed candidates.

  At first all k are in. At each step those that are in have all earlier steps in common. Their
  different next steps are compared, and those with the best one stay in. A solution that has ended
  stands with the score of its last step beside those that go on. It ends when all that are in are
  the same to their end.

  Nothing is sampled: this is what a search that draws k next steps at a time would do only as far
  as candidates begin alike. Where no two do, it is the choice by the first step alone.

  Args:
    steps: for each of N candidates the texts of its steps, at least one; texts that differ in
      white space alone are the same step.
    scores: for each the scores of its steps. Of candidates that are alike so far the mean is taken,
      because their scores may differ by rounding.
    right: [N], 1 if the candidate is right, else 0.
    k: 1 .. N.
    seed: of random subsets, as in `vote`.

  Raises:
    ValueError: lengths differ, a candidate has no step, a score is not finite, `right` has other
      values, or k is out of its range.
  """
  right_N = vector(right, "right")
  score_N = [vector(one, f"scores[{i}]") for i, one in enumerate(scores)]
  if not len(steps) == len(score_N) == len(right_N):
    raise ValueError(
      f"{len(steps)} steps, {len(score_N)} scores, {len(right_N)} right; expected as many"
    )
  if not np.isin(right_N, (0.0, 1.0)).all():
    raise ValueError(f"right is {right_N.tolist()}; expected 0 and 1")
  for i, (texts, one) in enumerate(zip(steps, score_N, strict=True)):
    if len(texts) != len(one) or not len(texts):
      raise ValueError(f"candidate {i}: {len(texts)} steps, {len(one)} scores; expected as many")
  tree = _tree([one_line(texts) for texts in steps], score_N, list(range(len(steps))))
  right = sum(1 << i for i in np.flatnonzero(right_N).tolist())
  known: dict = {}
  found = [_walk(tree, mask, right, known) for mask in _bits(len(steps), k, seed)]
  return Path(*map(float, np.mean(found, axis=0)))


def one_line(steps: Sequence[str]) -> tuple[str, ...]:
  """The texts of steps with their white space collapsed, by which steps are compared."""
  return tuple(" ".join(step.split()) for step in steps)


def _tree(steps: list, scores: list, mine: list[int], done: int = 0) -> _Node:
  """The node of the candidates `mine`, which have their first `done` steps in common."""
  while True:
    options: dict[str | None, list[int]] = {}
    for i in mine:
      options.setdefault(steps[i][done] if done < len(steps[i]) else None, []).append(i)
    if len(options) > 1:
      break
    if None in options or len(mine) == 1:
      return _LEAF
    done += 1  # All go on alike, so that there is no choice.
  blocks: dict[float, list] = {}
  for text, same in options.items():
    at = done - 1 if text is None else done
    child = _LEAF if text is None else _tree(steps, scores, same, done + 1)
    score = float(np.mean([scores[i][at] for i in same]))
    blocks.setdefault(score, []).append((sum(1 << i for i in same), child))
  return _Node(tuple(tuple(blocks[score]) for score in sorted(blocks, reverse=True)))


def _walk(node: _Node, mask: int, right: int, known: dict) -> tuple[float, float, float]:
  """(right, shared, choices) of the candidates in `mask` from a node on.

  Args:
    node: of the tree.
    mask: candidates that are in, as bits; not 0.
    right: the right candidates, as bits.
    known: results by (node, mask), since many subsets come down to the same few candidates.
  """
  if not node.blocks:
    return (mask & right).bit_count() / mask.bit_count(), 0.0, 0.0
  key = id(node), mask
  if key in known:
    return known[key]
  best, options = [], 0
  for block in node.blocks:
    there = [(bits & mask, child) for bits, child in block if bits & mask]
    best, options = best or there, options + len(there)
    if options > 1:
      break
  parts = [_walk(child, bits, right, known) for bits, child in best]
  means = [sum(column) / len(parts) for column in zip(*parts, strict=True)]
  shared = 1.0 if len(best) > 1 else means[1]
  known[key] = means[0], shared, means[2] + (options > 1)
  return known[key]
