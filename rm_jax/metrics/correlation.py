"""Rank correlation, the area under the ROC curve, and cluster intervals of any statistic.

Kendall (1945), The treatment of ties in ranking problems (τ-b). Spearman (1904). Hanley and McNeil
(1982), The meaning and use of the area under a ROC curve.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import interval
from rm_jax.metrics.interval import vector

_LONG = 200  # In longer lists, counting inversions is faster than comparing all pairs.


def kendall(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
  """Kendall's τ-b of two rankings [N]; NaN if all values of either are equal.

    (concordant − discordant) / √((pairs − ties in a)(pairs − ties in b))

  Short lists compare all pairs; long ones count inversions, in O(N log N).

  Raises:
    ValueError: an argument is not [N] of finite numbers, or the lengths differ.
  """
  a_N, b_N = _two(a, b)
  if len(a_N) > _LONG:
    return _kendall_sorted(a_N, b_N)
  sign_a = np.sign(a_N[:, None] - a_N[None, :])
  sign_b = np.sign(b_N[:, None] - b_N[None, :])
  below = np.sqrt(float(np.count_nonzero(sign_a)) * np.count_nonzero(sign_b))
  return float((sign_a * sign_b).sum() / below) if below else float("nan")


def _kendall_sorted(a_N: np.ndarray, b_N: np.ndarray) -> float:
  """τ-b by Knight (1966): if rows are sorted by a, then b, discordant pairs are inversions of b."""
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
  """Number of pairs i < j with x_i > x_j; x_N are whole numbers from 0.

  Any two different numbers have a highest bit in which they differ. For each bit, the numbers are
  grouped by the bits above it, in a stable order. An inversion that this bit decides is then a
  number with a 1 before one with a 0 in the same group. Each bit is vectorised over all numbers.
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
  """Ranks from 1, float64 [N]; equal values all get the mean of their ranks."""
  values = vector(values, "values")
  _, place, count = np.unique(values, return_inverse=True, return_counts=True)
  last = np.cumsum(count)
  return (last - (count - 1) / 2)[place]


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
  """Spearman's ρ, Pearson's correlation of the ranks; NaN if all values of either are equal.

  Raises:
    ValueError: an argument is not [N] of finite numbers, or the lengths differ.
  """
  a_N, b_N = _two(a, b)
  x, y = (ranks(v) - (len(v) + 1) / 2 for v in (a_N, b_N))
  below = np.sqrt((x * x).sum() * (y * y).sum())
  return float((x * y).sum() / below) if below else float("nan")


def auroc(scores: npt.ArrayLike, good: npt.ArrayLike) -> float:
  """Area under the ROC curve: the probability that a good item scores above a bad one.

  Ties count half. It is NaN if all items are good or all are bad.

  Args:
    scores: [N], finite.
    good: bool [N].

  Raises:
    ValueError: the shapes are not the same [N], or a score is not finite.
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
  classes: npt.ArrayLike | None = None,
) -> dict:
  """Any statistic with its interval over whole clusters, by `interval.Resampling`.

  Args:
    statistic: a function of as many arrays as are given; NaN where it is not defined.
    arrays: each [N, ...], with the same N.
    clusters: N labels; rows with the same label are drawn, or left out, together.
    level: confidence in (0, 1).
    resamples: number of bootstrap resamples. With few clusters (see `interval.Resampling`) the
      jackknife leaves each of them out in turn instead.
    seed: of the draws.
    scale: one of `interval.SCALES`, on which the statistic's error is about normal.
    least: smallest number of clusters that an interval needs.
    classes: [N], labels of the classes that the statistic compares, if it does, as AUROC does with
      good and bad rows. The rarer one then decides whether clusters are few.

  Returns:
    {value, interval: [low, high], undefined: replicates without a value}, and `method` if it is not
    the bootstrap. `value` is None if the statistic is not defined (all replicates then count as
    undefined); `interval` is None if there is none; both come with `why`.

  Raises:
    ValueError: lengths differ, or `level` or `resamples` is out of its range.
  """
  arrays = [np.asarray(a) for a in arrays]
  if any(len(a) != len(clusters) for a in arrays):
    raise ValueError(
      f"arrays of {[len(a) for a in arrays]} rows, {len(clusters)} cluster labels; expected as many"
    )
  value = float(statistic(*arrays))
  options = {"level": level, "resamples": resamples, "seed": seed, "least": least}
  plan = interval.Resampling(clusters, classes=classes, **options)
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
