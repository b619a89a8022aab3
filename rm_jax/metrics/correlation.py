"""Rank correlation, the area under the ROC curve, and intervals of any statistic by conversation.

Kendall (1945), The treatment of ties in ranking problems (τ-b). Spearman (1904). Hanley and McNeil
(1982), The meaning and use of the area under a ROC curve.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import interval
from rm_jax.metrics.interval import vector

_LONG = 200  # from here on counting inversions is faster than all pairs


def kendall(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
  """Kendall's τ-b of two rankings [N]; NaN where either is all ties.

    (concordant − discordant) / √((pairs − ties in a)(pairs − ties in b))

  Pairs are counted as such in short lists, and in long ones by inversions, in O(N log N).

  Raises:
    ValueError: not two [N] of finite numbers.
  """
  a_N, b_N = _two(a, b)
  if len(a_N) > _LONG:
    return _kendall_sorted(a_N, b_N)
  sign_a = np.sign(a_N[:, None] - a_N[None, :])
  sign_b = np.sign(b_N[:, None] - b_N[None, :])
  below = np.sqrt(float(np.count_nonzero(sign_a)) * np.count_nonzero(sign_b))
  return float((sign_a * sign_b).sum() / below) if below else float("nan")


def _kendall_sorted(a_N: np.ndarray, b_N: np.ndarray) -> float:
  """Knight (1966): sorted by a, then b, the discordant pairs are the inversions left in b."""
  n = len(a_N)
  a_N = np.unique(a_N, return_inverse=True)[1]
  b_N = np.unique(b_N, return_inverse=True)[1]
  both_N = np.sort(a_N * n + b_N)

  def tied(values: np.ndarray) -> int:
    count = np.unique(values, return_counts=True)[1]
    return int((count * (count - 1)).sum()) // 2

  pairs, in_a, in_b = n * (n - 1) // 2, tied(a_N), tied(b_N)
  concordant_less = pairs - in_a - in_b + tied(both_N) - 2 * _inversions(both_N % n)
  below = np.sqrt(float(pairs - in_a) * (pairs - in_b))
  return float(concordant_less / below) if below else float("nan")


def _inversions(x_N: np.ndarray) -> int:
  """Pairs i < j with x_i > x_j, whole numbers from 0, bit by bit from the highest.

  Two numbers first differ at one bit. Grouped by the bits above it, in their first order, the pairs
  out of order there are a 1 before a 0.
  """
  found = 0
  for bit in reversed(range(int(x_N.max()).bit_length())):
    x_N = x_N[np.argsort(x_N >> (bit + 1), kind="stable")]
    group_N = x_N >> (bit + 1)
    one_N = (x_N >> bit) & 1
    ones_before = np.cumsum(one_N) - one_N
    first = np.flatnonzero(np.diff(group_N, prepend=-1))
    in_group = ones_before - np.repeat(ones_before[first], np.diff(first, append=len(x_N)))
    found += int(in_group[one_N == 0].sum())
  return found


def ranks(values: npt.ArrayLike) -> np.ndarray:
  """Ranks from 1, equal values sharing their mean rank, float64 [N]."""
  values = vector(values, "values")
  _, place, count = np.unique(values, return_inverse=True, return_counts=True)
  last = np.cumsum(count)
  return (last - (count - 1) / 2)[place]


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
  """Spearman's ρ: Pearson's of the ranks; NaN where either is all ties.

  Raises:
    ValueError: not two [N] of finite numbers.
  """
  a_N, b_N = _two(a, b)
  x, y = (ranks(v) - (len(v) + 1) / 2 for v in (a_N, b_N))
  below = np.sqrt((x * x).sum() * (y * y).sum())
  return float((x * y).sum() / below) if below else float("nan")


def auroc(scores: npt.ArrayLike, good: npt.ArrayLike) -> float:
  """Probability that a good one's score is above a bad one's, ties half; NaN where all are alike.

  Args:
    scores: [N], finite.
    good: bool [N].
  """
  score_N = vector(scores, "scores")
  good_N = np.asarray(good, bool)
  if good_N.shape != score_N.shape:
    raise ValueError(f"good has shape {good_N.shape}; expected {score_N.shape}")
  n, m = int(good_N.sum()), int((~good_N).sum())
  if not n or not m:
    return float("nan")
  return float((ranks(score_N)[good_N].sum() - n * (n + 1) / 2) / (n * m))


def bootstrap(
  statistic: Callable[..., float],
  arrays: Sequence[npt.ArrayLike],
  clusters: Sequence[Hashable],
  level: float = 0.95,
  resamples: int = 1000,
  seed: int = 0,
  *,
  scale: str = "plain",
  least: int = interval.LEAST,
) -> dict:
  """A statistic with its interval over whole clusters, by `interval.Resampling`.

  Args:
    statistic: of as many arrays as are given; NaN where it is not defined.
    arrays: each [N, ...], of the same N.
    clusters: N labels; what shares one is drawn or left out together.
    level: confidence in (0, 1).
    resamples: how many, of 30 clusters and more; of fewer each is left out in turn.
    seed: of the draws.
    scale: of `interval.SCALES`, on which the statistic's error is about normal.
    least: clusters that an interval of it wants.

  Returns:
    {value, interval: [low, high], undefined: replicates without a value}, with `method` where it is
    not the bootstrap's. The value is None where the statistic is not defined, and the interval
    where there is none, with `why`.

  Raises:
    ValueError: lengths that differ.
  """
  arrays = [np.asarray(a) for a in arrays]
  if any(len(a) != len(clusters) for a in arrays):
    raise ValueError(
      f"arrays of {[len(a) for a in arrays]} rows, {len(clusters)} cluster labels; expected as many"
    )
  value = float(statistic(*arrays))
  plan = interval.Resampling(clusters, level=level, resamples=resamples, seed=seed, least=least)
  if not np.isfinite(value):
    why = "not defined for these data"
    return {"value": None, "interval": None, "undefined": plan.replicates, "why": why}
  values = np.asarray([statistic(*(a[at] for a in arrays)) for at in plan.rows()], np.float64)
  found = plan.interval(value, values, scale).report()
  return {
    "value": value,
    "interval": found.pop("interval"),
    "undefined": int((~np.isfinite(values)).sum()),
    **found,
  }


def _two(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  a_N, b_N = vector(a, "a"), vector(b, "b")
  if len(a_N) != len(b_N):
    raise ValueError(f"a has {len(a_N)} values, b {len(b_N)}; expected as many")
  return a_N, b_N
