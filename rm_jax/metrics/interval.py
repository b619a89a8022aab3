"""Confidence intervals over clusters, with the choice of their method.

Items of one conversation are not independent, so `mean` and `Resampling` make intervals over whole
clusters (conversations).

- With many clusters: the percentile bootstrap of clusters. With few it covers the truth too rarely:
  in 0.55, 0.79, 0.85, 0.89, 0.92 of the cases at 2, 3, 5, 10, 20 clusters for a nominal 0.95.
- With few clusters: Student's t with a linearised or a jackknife variance, or a bootstrap's if
  there are many of very unequal sizes.
- For a proportion with few clusters, or with few that deviate from the rest: that variance is
  itself uncertain, so the interval is Wilson's with an effective sample size.
- With fewer than `LEAST` clusters: none by default, and the reason is given instead.

Of a statistic that compares two classes, such as AUROC, the clusters of the rarer class count.

`tests/studies/coverage.py` measures how often each method covers the truth.

Cameron, Gelbach and Miller (2008), Bootstrap-based improvements for inference with clustered
errors: the pairs cluster bootstrap. Wilson (1927), Probable inference. Korn and Graubard (1998),
Confidence intervals for proportions with small expected number of positive counts estimated from
survey data; Franco, Little, Louis and Slud (2019), Comparative study of confidence intervals for
proportions in complex sample surveys: the effective sample size, and t in place of z. Efron (1982),
The jackknife. Kish (1965), Survey sampling: the effective number of unequal clusters.
"""

import dataclasses
import math
import statistics
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

LEAST = 5  # With fewer clusters there is no interval, by default.
FEW = 30  # With fewer clusters the bootstrap covers the truth too rarely.
_DRAWS = 1 << 22  # Cluster draws in memory at once, 32 MiB of indices.
# Smallest correlation within clusters that is assumed if there are few clusters. A few clusters
# may show no correlation by chance, and their items would then count as independent.
_CORRELATION = 0.1
# With this many clusters or more, however unequal their sizes, the jackknife would take too long,
# and bootstrap replicates are used.
_UNEVEN = 200
# The same if two classes are compared. Resamples of a rare class often have a statistic at the end
# of its range, of which no interval can be made, so the jackknife may take longer.
_RARE = 2000
TINY = 1e-12  # Differences below this fraction of a scale are rounding errors.

BOOTSTRAP = "cluster bootstrap"
STUDENT = "Student's t over clusters"
JACKKNIFE = "Student's t, cluster jackknife"
RESAMPLED = "Student's t, cluster bootstrap"
WILSON = "Wilson's over clusters"
EFFECTIVE = "Wilson's, effective sample size"
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Interval:
  """A confidence interval, or the reason why there is none.

  Attributes:
    ends: (low, high), in units of the statistic; None if there is no interval.
    method: one of the names above, from `BOOTSTRAP` to `NONE`.
    why: the reason, if there is no interval.
  """

  ends: tuple[float, float] | None
  method: str
  why: str = ""

  @classmethod
  def none(cls, why: str) -> "Interval":
    """No interval, for the reason `why`."""
    return cls(None, NONE, why)

  def report(self) -> dict:
    """The interval for a report: {interval: [low, high]}, with `method` if it is not the bootstrap;
    or {interval: None, why}. The values are of JSON's types."""
    if self.ends is None:
      return {"interval": None, "why": self.why}
    found: dict = {"interval": [float(end) for end in self.ends]}
    return found if self.method == BOOTSTRAP else found | {"method": self.method}


def vector(values: npt.ArrayLike, name: str) -> np.ndarray:
  """`values` as float64 [N]; `name` is what error messages call them.

  Raises:
    ValueError: `values` is not one-dimensional, or a value is not finite.
  """
  array = np.asarray(values, dtype=np.float64)
  if array.ndim != 1:
    raise ValueError(f"{name} has shape {array.shape}; expected [N]")
  bad = np.flatnonzero(~np.isfinite(array))
  if bad.size:
    raise ValueError(
      f"{name}[{bad[0]}] is {array[bad[0]]} ({bad.size} not finite); expected finite"
    )
  return array


def numbered(labels: Sequence[Hashable], n: int) -> tuple[np.ndarray, int]:
  """Numbers labels 0, 1, .. in order of appearance.

  Returns:
    (int64 [n], the number of distinct labels).

  Raises:
    ValueError: there are not n labels.
  """
  if len(labels) != n:
    raise ValueError(f"{len(labels)} cluster labels for {n} values; expected as many")
  # A dict, because np.unique needs an array, in which each string takes the memory of the longest.
  number: dict[Hashable, int] = {}
  ids = np.fromiter((number.setdefault(x, len(number)) for x in labels), np.int64, n)
  return ids, len(number)


def check_level(level: float) -> None:
  """Raises ValueError if a confidence level is not in (0, 1)."""
  if not 0 < level < 1:
    raise ValueError(f"level is {level}; expected it in (0, 1)")


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
  """Wilson's score interval of a proportion of n independent trials.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = successes / n

  z is the (1 + level)/2 quantile of the normal distribution.

  Args:
    successes: in [0, n]; a tie counts half.
    n: number of trials, at least 1.
    level: confidence in (0, 1).

  Returns:
    (low, high) in [0, 1].

  Raises:
    ValueError: an argument is out of its range.
  """
  check_level(level)
  if not n >= 1 or not 0 <= successes <= n:
    raise ValueError(f"{successes} successes of {n}; expected 0 <= successes <= n and n >= 1")
  z = statistics.NormalDist().inv_cdf((1 + level) / 2)
  low, high = _score(successes / n, n, z)
  # At 0 and n successes the bound is exactly 0 or 1, but the formula's rounding errors change it.
  return 0.0 if successes == 0 else low, 1.0 if successes == n else high


def _score(p: float, n: float, z: float) -> tuple[float, float]:
  """Wilson's formula for a share p of n trials, which need not be a whole number."""
  middle = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  return (middle - half) / scale, (middle + half) / scale


def student(level: float, freedom: float) -> float:
  """The (1 + level)/2 quantile of Student's t with `freedom` degrees (at least 1; ∞ = normal)."""
  if math.isinf(freedom):
    return statistics.NormalDist().inv_cdf((1 + level) / 2)
  return float(stdtrit(max(freedom, 1.0), (1 + level) / 2))


def proportion(p: float, variance: float, clusters: float, most: float, level: float) -> Interval:
  """Wilson's score interval of a proportion whose variance was estimated from few clusters.

  The formula uses the effective sample size n = p (1 − p) / variance, limited to 1 .. `most`, and
  replaces the normal quantile by that of Student's t with clusters − 1 degrees of freedom (Korn and
  Graubard 1998; Franco et al. 2019).

  Args:
    p: in (0, 1).
    variance: estimated variance of p; 0 gives the effective sample size `most`.
    clusters: effective number of clusters that the variance is estimated from.
    most: largest effective sample size.
    level: confidence in (0, 1).
  """
  n = most if variance <= 0 else p * (1 - p) / variance
  return Interval(_score(p, min(max(n, 1.0), most), student(level, clusters - 1)), EFFECTIVE)


def effective(size_C: np.ndarray) -> float:
  """Kish's effective number of clusters, (Σ n_c)² / Σ n_c² for clusters of n_c rows.

  As many clusters of equal size would estimate a mean as well.

  It is C for C clusters of equal size. If one cluster outweighs the rest, the number is small
  however many the rest are: 4.0 for a cluster of 600 beside 300 clusters of 2. Half of the mean
  then comes from the large cluster, and so does nearly all of the estimated variance. Whether that
  cluster is an outlier cannot be told from one observation of it, so no number of small clusters
  can give an honest interval of such a mean.
  """
  size_C = np.asarray(size_C, np.float64)
  return float(size_C.sum() ** 2 / (size_C**2).sum()) if size_C.any() else 0.0


def too_few(count: int, worth: float, least: int = LEAST) -> str:
  """The reason why there is no interval over so few clusters; '' if there are enough.

  Args:
    count: number of clusters.
    worth: their effective number, see `effective`.
    least: smallest value of either number with which there is an interval.
  """
  if count < least:
    return f"{count} conversation{'s' * (count != 1)}: an interval wants {least}"
  if worth < least:
    return (
      f"{count} conversations of so unequal sizes are worth {worth:.1f}: an interval wants {least}"
    )
  return ""


def cluster_bootstrap(
  values: npt.ArrayLike,
  clusters: Sequence[Hashable],
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile interval of the mean of `values` by the pairs cluster bootstrap, for many clusters.

  Each resample draws as many clusters as there are, with replacement, and divides the sum of their
  values by the sum of their sizes. Reports call `mean`, which uses this only if there are enough
  clusters.

  Args:
    values: [N], finite.
    clusters: N labels, any hashables; values with the same label are drawn together.
    level: confidence in (0, 1).
    resamples: number of resamples, at least 1. With 2000 the ends are uncertain by a few hundredths
      of the interval's width.
    seed: of the draws; the same arguments give the same interval.

  Returns:
    (low, high), in units of `values`.

  Raises:
    ValueError: an argument is out of its range, or there are fewer than 2 clusters, which say
      nothing of how clusters differ.
  """
  value_N = vector(values, "values")
  check_level(level)
  _check_resamples(resamples)
  cluster_N, n_clusters = numbered(clusters, len(value_N))
  if n_clusters < 2:
    raise ValueError(f"{n_clusters} cluster(s); resampling needs at least 2")
  sum_C = np.bincount(cluster_N, weights=value_N)
  size_C = np.bincount(cluster_N)
  rng = np.random.default_rng(seed)
  means = []
  chunk = max(1, _DRAWS // n_clusters)
  for start in range(0, resamples, chunk):
    rows = min(chunk, resamples - start)
    drawn_RC = rng.integers(n_clusters, size=(rows, n_clusters))
    means.append(sum_C[drawn_RC].sum(axis=1) / size_C[drawn_RC].sum(axis=1))
  low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def mean(
  values: npt.ArrayLike,
  clusters: Sequence[Hashable],
  *,
  bounds: tuple[float, float] | None = None,
  share: bool = False,
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> Interval:
  """Interval of the mean of values over whole clusters.

  A cluster is called *informative* here if one of its values is not the most frequent value.

  - With 30 informative clusters or more (their effective number) whose means are not all equal:
    `cluster_bootstrap`.
  - With fewer: Student's t with the linearised variance of the ratio Σ sums / Σ sizes; for a
    share, `proportion` with that variance. If there are bounds, t is on the scale of log-odds
    between them, and the variance is at least that of values with a correlation of 0.1 within
    clusters.
  - If the means of all clusters are equal, however many there are, no variance can be estimated.
    With bounds, Wilson's upper bound for 0 of the clusters (their effective number) then limits the
    share of unseen clusters whose values are at the far end of the bounds; for a share of 0 or 1
    this is Wilson's interval over the clusters, and another share has `proportion` with a variance
    of 0. Without bounds: none.
  - With fewer than 5 clusters, or fewer than 5 effective ones (`effective`): none.

  Args:
    values: [N], finite.
    clusters: N labels, any hashables.
    bounds: (low, high) that no value can be outside of; None = the values have no bounds.
    share: whether the values are credits between the bounds, so that their mean is a proportion.
    level: confidence in (0, 1).
    resamples, seed: of `cluster_bootstrap`.

  Raises:
    ValueError: an argument is out of its range, there are not N labels, a value is outside the
      bounds, or there are no bounds for a share.
  """
  value_N = vector(values, "values")
  check_level(level)
  _check_resamples(resamples)
  cluster_N, count = numbered(clusters, len(value_N))
  if bounds is not None and len(value_N):
    low, high = bounds
    slack = 1e-9 * (high - low)  # Rounding errors may put a value outside by this much.
    if value_N.min() < low - slack or value_N.max() > high + slack:
      raise ValueError(f"values in {value_N.min()} .. {value_N.max()}; expected {low} .. {high}")
    value_N = np.clip(value_N, low, high)
  if share and bounds is None:
    raise ValueError("bounds is None for a share; expected the values of its two sides")
  size_C = np.bincount(cluster_N, minlength=count).astype(np.float64)
  worth = effective(size_C)
  if why := too_few(count, worth):
    return Interval.none(why)
  kinds, number_N, many = np.unique(value_N, return_inverse=True, return_counts=True)
  other_N = number_N != np.argmax(many)
  informative_C = np.bincount(cluster_N, weights=other_N, minlength=count) > 0
  middle = float(value_N.mean())
  if bounds is not None:
    middle = min(max(middle, bounds[0]), bounds[1])
  left_C = np.bincount(cluster_N, weights=value_N - middle, minlength=count)
  variance = count / (count - 1) * float(left_C @ left_C) / len(value_N) ** 2
  reach = np.ptp(value_N) if bounds is None else bounds[1] - bounds[0]
  flat = variance <= (TINY * max(reach, abs(middle))) ** 2
  # Unequal sizes are taken to reduce the effective number of informative clusters in the same
  # proportion as that of all clusters. Resamples of clusters with one mean would all be equal.
  if informative_C.sum() * worth / count >= FEW and not flat:
    return Interval(cluster_bootstrap(value_N, clusters, level, resamples, seed), BOOTSTRAP)
  if bounds is None:
    if flat:
      return Interval.none("all conversations have the same mean: how they differ is not known")
    half = student(level, worth - 1) * math.sqrt(variance)
    return Interval((middle - half, middle + half), STUDENT)
  low, high = bounds
  if len(kinds) == 1 or (flat and not share):
    most = wilson(0, worth, level)[1]
    return Interval((middle - most * (middle - low), middle + most * (high - middle)), WILSON)
  design = 1 + _CORRELATION * (float(size_C @ size_C / size_C.sum()) - 1)
  p = (middle - low) / reach
  if share:
    most = len(value_N) / design
    found = proportion(p, 0.0 if flat else variance / reach**2, worth, most, level)
    return Interval(tuple(low + reach * end for end in found.ends), found.method)
  # Near a bound the error of the mean is skewed, and on the scale of log-odds it is less so.
  there, back = SCALES["probability"]
  variance = max(variance, float(value_N.var()) * design / len(value_N))
  half = student(level, worth - 1) * math.sqrt(variance) / (reach * p * (1 - p))
  ends = (float(low + reach * back(there(p) + way * half)) for way in (-1, 1))
  return Interval(tuple(ends), STUDENT)


# Kind of statistic -> (function to a scale on which its error is about normal, its inverse).
SCALES = {
  "plain": (lambda x: x, lambda x: x),
  "correlation": (np.arctanh, np.tanh),
  "probability": (lambda x: np.log(x) - np.log1p(-x), lambda x: 1 / (1 + np.exp(-x))),
  "positive": (np.log, np.exp),
}


class Resampling:
  """A plan for the interval of any statistic: which replicates of the rows to compute it on.

  The caller computes the statistic on each replicate and passes the values to `interval`.

  - With an effective number of `FEW` clusters or more: bootstrap replicates, which draw as many
    clusters as there are, with replacement. The interval is between percentiles.
  - With fewer: jackknife replicates, which leave one cluster out each. The interval is Student's t
    with the jackknife's standard error, on a scale on which the statistic's error is about normal.
  - With fewer effective ones but `_UNEVEN` clusters or more (`_RARE` if there are classes):
    bootstrap replicates, as there would be too many of the jackknife, and Student's t with the
    bootstrap's standard error. So it is with few clusters if the caller asks for bootstrap
    replicates.
  - With fewer than the least number: no replicates and no interval.

  A statistic that compares two classes of rows, such as AUROC, knows no more than the rarer class
  tells it: of 5 bad responses among 10,000 it is as uncertain as of 5 numbers. Such a caller passes
  `classes`, and these limits and Student's degrees of freedom are by the effective number of
  clusters of the rarer class.

  Attributes:
    count: number of clusters.
    worth: their effective number, or that of the rarer class.
    why: the reason why there is no interval; '' if there may be one.
    replicates: number of replicates.
    cluster_N: int64 [N], the cluster of each row.
    bootstraps: whether the replicates are bootstrap resamples.
  """

  def __init__(
    self,
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    least: int = LEAST,
    bootstrap: bool = False,
    classes: npt.ArrayLike | None = None,
  ):
    """Makes the plan.

    Args:
      clusters: N labels; rows with the same label are drawn, or left out, together.
      level: confidence in (0, 1).
      resamples: number of bootstrap replicates.
      seed: of their draws.
      least: smallest number of clusters that an interval of this statistic needs.
      bootstrap: bootstrap even with few clusters, for callers that need the joint distribution of
        several statistics over the replicates.
      classes: [N], labels of what the statistic compares, such as right and wrong; or None.

    Raises:
      ValueError: `level` or `resamples` is out of its range, or there are not N classes.
    """
    check_level(level)
    _check_resamples(resamples)
    self.cluster_N, self.count = numbered(clusters, len(clusters))
    size_C = np.bincount(self.cluster_N, minlength=self.count)
    self.worth = effective(size_C)
    self.why = too_few(self.count, self.worth, least)
    if classes is not None:
      class_N, number = numbered(np.asarray(classes).tolist(), len(self.cluster_N))
      for one in range(number):
        own_C = np.bincount(self.cluster_N[class_N == one], minlength=self.count)
        worth = effective(own_C)
        if worth < self.worth:
          self.worth = worth
          why = too_few(int(np.count_nonzero(own_C)), worth, least)
          self.why = self.why or (why and f"of the rarer class, {why}")
    self._level, self._seed = level, seed
    many = self.worth >= FEW or self.count >= (_UNEVEN if classes is None else _RARE)
    self.bootstraps = not self.why and (many or bootstrap)
    self.replicates = 0 if self.why else resamples if self.bootstraps else self.count

  def draws(self) -> Iterator[np.ndarray]:
    """Yields the clusters of each replicate, int64 [count], or [count − 1] for the jackknife."""
    if self.bootstraps:
      rng = np.random.default_rng(self._seed)
      for _ in range(self.replicates):
        yield rng.integers(self.count, size=self.count)
    else:
      for left_out in range(self.replicates):
        yield np.delete(np.arange(self.count), left_out)

  def times(self) -> Iterator[np.ndarray]:
    """Yields how often each replicate has each cluster, in blocks of float64 [R, count]."""
    drawn = self.draws()
    chunk = max(1, _DRAWS // max(1, self.count))
    for start in range(0, self.replicates, chunk):
      block = [next(drawn) for _ in range(min(chunk, self.replicates - start))]
      yield np.stack([np.bincount(d, minlength=self.count) for d in block]).astype(np.float64)

  def rows(self) -> Iterator[np.ndarray]:
    """Yields the row indices of each replicate, int64, one cluster after the other."""
    order = np.argsort(self.cluster_N, kind="stable")
    size_C = np.bincount(self.cluster_N, minlength=self.count)
    start_C = np.cumsum(size_C) - size_C
    for drawn_C in self.draws():
      size = size_C[drawn_C]
      # Row k of a drawn cluster is at the cluster's start + k in `order`.
      shift = np.repeat(start_C[drawn_C] - (np.cumsum(size) - size), size)
      yield order[shift + np.arange(len(shift))]

  def variance(self, values: npt.ArrayLike) -> float:
    """The estimated variance of a statistic, from its values [R] in the replicates."""
    value_R = np.asarray(values, np.float64)
    off_R = value_R - value_R.mean()
    return float(off_R @ off_R) * (
      1 / len(off_R) if self.bootstraps else (self.count - 1) / self.count
    )

  def interval(self, value: float, values: npt.ArrayLike, scale: str = "plain") -> Interval:
    """The interval of a statistic.

    Args:
      value: the statistic of all rows.
      values: [replicates], the statistic of each replicate; NaN where it is not defined.
      scale: one of `SCALES`, for Student's t. It has no effect on percentiles, which are the same
        on every scale.

    Raises:
      ValueError: there are replicates, and not one value for each.
    """
    if self.why:
      return Interval.none(self.why)
    value_R = np.asarray(values, np.float64)
    if value_R.shape != (self.replicates,):
      raise ValueError(f"values have shape {value_R.shape}; expected [{self.replicates}]")
    fine_R = value_R[np.isfinite(value_R)]
    lost = self.replicates - len(fine_R)
    if not np.isfinite(value):
      return Interval.none("it is not defined for these data")
    if self.bootstraps and lost >= (1 - self._level) / 2 * self.replicates:
      return Interval.none(f"it is not defined in {lost} of {self.replicates} resamples")
    if self.bootstraps and self.worth >= FEW:
      low, high = np.quantile(fine_R, [(1 - self._level) / 2, (1 + self._level) / 2])
      if high - low <= TINY * max(abs(value), 1e-300):
        return Interval.none("it is the same in all resamples: how conversations differ is unknown")
      return Interval((float(low), float(high)), BOOTSTRAP)
    if lost and not self.bootstraps:
      return Interval.none(f"it is not defined without some conversations ({lost} of {self.count})")
    there, back = SCALES[scale]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
      middle, away_R = float(there(value)), np.asarray(there(fine_R), np.float64)
    if not math.isfinite(middle) or not np.isfinite(away_R).all():
      return Interval.none("it is at the end of its range, with or without some conversation")
    error = math.sqrt(self.variance(away_R))
    if error <= TINY * max(abs(middle), 1e-300):
      return Interval.none("it is the same without any conversation: how they differ is unknown")
    half = student(self._level, self.worth - 1) * error
    with np.errstate(over="ignore"):
      ends = float(back(middle - half)), float(back(middle + half))
    if not all(map(math.isfinite, ends)):
      return Interval.none("so few conversations leave it without bounds")
    return Interval(ends, RESAMPLED if self.bootstraps else JACKKNIFE)


def _check_resamples(resamples: int) -> None:
  if resamples < 1:
    raise ValueError(f"resamples is {resamples}; expected at least 1")
