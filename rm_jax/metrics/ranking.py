"""How well scores rank the responses to a prompt, and partial correlation.

Järvelin and Kekäläinen (2002), Cumulated gain-based evaluation of IR techniques (NDCG; the
exponential gain: Burges et al., 2005). McSherry and Najork (2008), Computing information retrieval
performance measures efficiently in the presence of tied scores. Kemeny (1959), Mathematics without
numbers (the order that most comparisons agree with).
"""

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import interval
from rm_jax.metrics.correlation import bootstrap, ranks
from rm_jax.metrics.interval import vector


def partial(
  x: npt.ArrayLike, y: npt.ArrayLike, given_NC: npt.ArrayLike, *, ranked: bool = False
) -> float:
  """Partial correlation: that of x and y after a linear fit of C other variables is removed.

    Pearson's r of the residuals of x and of y, each regressed on (1, given)

  Args:
    x: [N], for example scores.
    y: [N], for example lengths.
    given_NC: [N] or [N, C], for example the true quality.
    ranked: replace all variables by their ranks first, which gives Spearman's partial ρ.

  Returns:
    r in [−1, 1]; NaN if x or y is a linear function of the given variables, or constant, but for
    rounding errors.

  Raises:
    ValueError: shapes differ, a value is not finite, or N is below C + 3. With fewer rows the
      regression leaves one dimension, in which any data gives ±1, or none.
  """
  x_N, y_N = vector(x, "x"), vector(y, "y")
  given_NC = np.asarray(given_NC, np.float64)
  given_NC = given_NC[:, None] if given_NC.ndim == 1 else given_NC
  n = len(x_N)
  if len(y_N) != n or given_NC.ndim != 2 or len(given_NC) != n or n < given_NC.shape[1] + 3:
    raise ValueError(
      f"x has {n} values, y {len(y_N)}, given_NC is {given_NC.shape}; expected as many of each, "
      "and at least C + 3"
    )
  columns = [vector(g, f"given_NC[:, {c}]") for c, g in enumerate(given_NC.T)]
  if ranked:
    x_N, y_N, *columns = (ranks(v) for v in (x_N, y_N, *columns))
  # What a constant leaves when its mean is subtracted is rounding errors, which may correlate.
  if _constant(x_N) or _constant(y_N):
    return float("nan")
  columns = [v for v in columns if not _constant(v)]
  x_N, y_N, *columns = (v - v.mean() for v in (x_N, y_N, *columns))
  # The columns are scaled to a common size, because `lstsq` ignores directions whose singular
  # values are rounding errors beside the largest: a variable of tiny values could be ignored.
  others = [v / np.abs(v).max() for v in columns]
  left = []
  for v_N in (x_N, y_N):
    residual = v_N
    if others:
      basis_NC = np.stack(others, axis=1)
      residual = v_N - basis_NC @ np.linalg.lstsq(basis_NC, v_N, rcond=None)[0]
    # A residual no larger than rounding errors means that the others explain the variable exactly.
    if residual @ residual <= 1e-20 * (v_N @ v_N):
      return float("nan")
    left.append(residual / np.sqrt(residual @ residual))
  return float(np.clip(left[0] @ left[1], -1.0, 1.0))


def _constant(v_N: np.ndarray) -> bool:
  """Whether values are equal but for rounding errors."""
  return bool(np.ptp(v_N) <= interval.TINY * np.abs(v_N).max())


def ndcg(
  scores_K: npt.ArrayLike,
  gains_K: npt.ArrayLike,
  k: int | None = None,
  *,
  exponential: bool = False,
) -> float:
  """Normalised discounted cumulative gain (NDCG) of the order that scores give to K responses.

    DCG@k = Σ_{i ≤ k} g_(i) / log₂(i + 1), divided by the DCG@k of the order by gain

  Args:
    scores_K: [K]. Responses with equal scores all get the mean of their gains, which is the
      expectation if ties are broken at random (McSherry and Najork 2008).
    gains_K: [K], 0 or more; subtract the rating scale's lowest value first.
    k: number of places that count; by default all.
    exponential: use 2^g − 1 for the gain g, as is usual in web search (Burges et al. 2005).

  Returns:
    a number in [0, 1]; NaN if every gain is 0.

  Raises:
    ValueError: lengths differ, a value is not finite, a gain is below 0, or k is below 1.
  """
  score_K, gain_K = _two(scores_K, gains_K)
  if gain_K.size and gain_K.min() < 0:
    raise ValueError(f"gains_K has {gain_K.min()}; expected 0 or more")
  if k is not None and k < 1:
    raise ValueError(f"k is {k}; expected at least 1")
  if exponential and gain_K.size:
    # Gains of 2^1024 overflow. NDCG does not depend on their unit, so large ones are in another.
    unit = max(np.floor(gain_K.max()) - 1000, 0.0)
    gain_K = np.exp2(gain_K - unit) - np.exp2(-unit)
  discount_K = 1 / np.log2(np.arange(len(gain_K)) + 2)
  discount_K[len(gain_K) if k is None else k :] = 0
  best = np.sort(gain_K)[::-1] @ discount_K
  if not best:
    return float("nan")
  _, block_K = np.unique(-score_K, return_inverse=True)
  mean_K = (np.bincount(block_K, gain_K) / np.bincount(block_K))[block_K]
  return float(mean_K[np.argsort(block_K, kind="stable")] @ discount_K / best)


def pick(scores_K: npt.ArrayLike, gains_K: npt.ArrayLike) -> tuple[float, float]:
  """The probability that the response with the highest score is one with the highest gain.

  Args:
    scores_K: [K], at least one. If k responses tie for the highest score, each is picked with
      probability 1/k.
    gains_K: [K]. If several responses tie for the highest gain, each of them is right.

  Returns:
    (probability for the pick by score, probability for a uniformly random pick), each in [0, 1].

  Raises:
    ValueError: lengths differ or are 0, or a value is not finite.
  """
  score_K, gain_K = _two(scores_K, gains_K)
  if not len(score_K):
    raise ValueError("scores_K is empty; expected at least one")
  right_K = gain_K == gain_K.max()
  return float(right_K[score_K == score_K.max()].mean()), float(right_K.mean())


def pick_rate(
  scores: Sequence[npt.ArrayLike],
  gains: Sequence[npt.ArrayLike],
  clusters: Sequence[Hashable],
  *,
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> dict:
  """Mean of `pick` over prompts, with that of a random pick for comparison.

  Args:
    scores: for each prompt [K]; K may differ between prompts.
    gains: for each prompt [K].
    clusters: the cluster of each prompt.
    level, resamples, seed: of `interval.mean`.

  Returns:
    {value, interval, n: prompts, chance: mean of a random pick, above_chance: {value, interval, n},
    undefined: number of prompts whose gains are all equal, which are left out because any pick is
    right}. If no prompt is left, values and intervals are None; if too few conversations are left,
    intervals are; with `why`. Intervals come as `interval.Interval.report` gives them.

  Raises:
    ValueError: lengths differ, a list is empty, a value is not finite, or `level` or `resamples` is
      out of its range.
  """
  lists = _lists(scores, gains, clusters)
  found = [(*pick(s, g), c) for (s, g), c in zip(lists, clusters, strict=True) if np.ptp(g) > 0]
  right, chance, kept = zip(*found, strict=True) if found else ((), (), ())
  right, chance = np.asarray(right), np.asarray(chance)
  options = {"level": level, "resamples": resamples, "seed": seed}
  return _mean(right, kept, bounds=(0.0, 1.0), share=True, **options) | {
    "chance": float(chance.mean()) if found else None,
    "above_chance": _mean(right - chance, kept, bounds=(-1.0, 1.0), **options),
    "undefined": len(scores) - len(found),
  }


def list_correlation(
  statistic: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, gains: np.ndarray
) -> float:
  """The rank correlation of one list; 0 and not NaN if all scores are equal but the gains are not.

  Equal scores rank nothing, so such a list must count against the model and not be left out.
  """
  value = statistic(scores, gains)
  return 0.0 if np.isnan(value) and np.ptp(scores) == 0 and np.ptp(gains) > 0 else value


def within_and_pooled(
  statistic: Callable[[np.ndarray, np.ndarray], float],
  scores: Sequence[npt.ArrayLike],
  gains: Sequence[npt.ArrayLike],
  clusters: Sequence[Hashable],
  *,
  level: float = 0.95,
  resamples: int = 1000,
  seed: int = 0,
) -> dict:
  """A rank correlation within prompts, and one pooled over the responses of all prompts.

  The one within prompts says whether the better responses to a prompt score higher, which is what
  best-of-n selection needs. The pooled one also compares responses to different prompts, so it
  depends on how a model scores whole prompts, which selection among responses never uses.

  Args:
    statistic: a function of (scores, gains), NaN where not defined: `kendall`, `spearman`, `ndcg`.
    scores: for each prompt [K]; K may differ between prompts.
    gains: for each prompt [K].
    clusters: the cluster of each prompt.
    level, resamples, seed: of the intervals, over clusters.

  Returns:
    {within: {value: mean of `list_correlation` over prompts, interval, n: prompts with a value,
    undefined: number of prompts without one, such as those whose gains are all equal; they are left
    out}, pooled: {value, interval, n: responses, undefined: replicates without a value}}. A value
    or interval that does not exist is None, with `why`; other intervals may have `method`.

  Raises:
    ValueError: lengths differ, a list is empty, a value is not finite, or `level` or `resamples` is
      out of its range.
  """
  lists = _lists(scores, gains, clusters)
  value_P = np.asarray([list_correlation(statistic, *both) for both in lists], np.float64)
  fine_P = np.isfinite(value_P)
  kept = [c for c, fine in zip(clusters, fine_P, strict=True) if fine]
  options = {"level": level, "resamples": resamples, "seed": seed}
  within = _mean(value_P[fine_P], kept, bounds=(-1.0, 1.0), **options) | {
    "undefined": int((~fine_P).sum())
  }
  flat = [np.concatenate(side) if lists else np.zeros(0) for side in zip(*lists, strict=True)]
  owners = [c for c, (s, _) in zip(clusters, lists, strict=True) for _ in s]
  if not owners:
    pooled = {"value": None, "interval": None, "undefined": 0, "why": "there is no list"}
  else:
    pooled = bootstrap(statistic, flat, owners, **options, scale="correlation")
    if pooled["value"] is None:
      pooled["why"] = "not defined: all scores or all gains are equal"
  return {"within": within, "pooled": pooled | {"n": len(owners)}}


def best_order(better: Iterable[tuple[int, int]], count: int) -> int:
  """The largest number of comparisons that one order of a list agrees with (Kemeny's order).

  Scores put a list into one order, so they cannot agree with all comparisons if some of these form
  a cycle. No scores can agree with more comparisons than this. The number is exact, by dynamic
  programming over the 2^K sets of items that may come first, in 2^K K steps.

  Args:
    better: each comparison once, as (i, j) with i preferred to j; indices from 0 to K - 1.
    count: K, at most 16.

  Raises:
    ValueError: K is larger than 16.
  """
  if count > 16:
    raise ValueError(
      f"a list of {count} items; expected at most 16, whose subsets are gone through"
    )
  beaten = [0] * count  # For each item, the set of items that it is preferred to, as bits.
  for i, j in better:
    beaten[i] |= 1 << j
  # For each set of items, as bits: the most comparisons that its items win if they come first.
  most = [0] * (1 << count)
  for first in range(1, 1 << count):
    most[first] = max(
      most[first ^ 1 << last] + (beaten[last] & ~first).bit_count()
      for last in range(count)
      if first >> last & 1
    )
  return most[-1]


def _mean(values: np.ndarray, clusters: Sequence[Hashable], **options) -> dict:
  """{value: mean, interval, n}, as reports have it; without values both are None, with `why`."""
  figure = {"value": None, "interval": None, "n": len(values)}
  if not len(values):
    return figure | {"why": "no prompt has a value"}
  figure["value"] = float(values.mean())
  return figure | interval.mean(values, clusters, **options).report()


def _two(scores: npt.ArrayLike, gains: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  score_K, gain_K = vector(scores, "scores"), vector(gains, "gains")
  if len(score_K) != len(gain_K):
    raise ValueError(f"scores has {len(score_K)} values, gains {len(gain_K)}; expected as many")
  return score_K, gain_K


def _lists(
  scores: Sequence, gains: Sequence, clusters: Sequence
) -> list[tuple[np.ndarray, np.ndarray]]:
  """The (scores [K], gains [K]) of each prompt.

  Raises ValueError unless there are as many lists as clusters, and both of a prompt are finite and
  of one length, at least 1.
  """
  if not len(scores) == len(gains) == len(clusters):
    raise ValueError(
      f"scores has {len(scores)} lists, gains {len(gains)}, clusters {len(clusters)}; expected as "
      "many"
    )
  found = [_two(s, g) for s, g in zip(scores, gains, strict=True)]
  for p, (score_K, _) in enumerate(found):
    if not len(score_K):
      raise ValueError(f"scores[{p}] is empty; expected at least one")
  return found
