"""The one place where intervals are made: which method, over what, and when there is none.

What shares a conversation is not independent, so everything is over whole clusters. With many of
them the percentile bootstrap of clusters does. With few it covers too little (0.55, 0.79, 0.85,
0.89, 0.92 at 2, 3, 5, 10, 20 clusters for a nominal 0.95), and Student's t of a linearised or
jackknife variance takes its place; where all but a few clusters say the same, that variance is
itself a guess, and of a proportion the interval is Wilson's with an effective sample size. Below
`LEAST` clusters no interval is given, and the reason is. `tests/studies/coverage.py` measures how
often each of them holds the truth.

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

LEAST = 5  # clusters below which there is no interval
FEW = 30  # clusters below which the bootstrap covers too little
_DRAWS = 1 << 22  # cluster draws held at once (32 MiB of indices)
# Few clusters that happen to agree within would make their pairs look independent.
_CORRELATION = 0.1  # within clusters that is assumed at least, where few clusters tell
_UNEVEN = 200  # clusters, however unequal, of which leaving out each in turn takes too long
_TINY = 1e-12  # of a scale, below which a difference is rounding

BOOTSTRAP = "cluster bootstrap"
STUDENT = "Student's t over clusters"
JACKKNIFE = "Student's t, cluster jackknife"
RESAMPLED = "Student's t, cluster bootstrap"
WILSON = "Wilson's over clusters"
EFFECTIVE = "Wilson's, effective sample size"
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Interval:
  """An interval, or why there is none.

  Attributes:
    ends: (low, high), in units of the statistic; None where there is none.
    method: one of the module's names.
    why: the reason, where there is none.
  """

  ends: tuple[float, float] | None
  method: str
  why: str = ""

  @classmethod
  def none(cls, why: str) -> "Interval":
    return cls(None, NONE, why)

  def report(self) -> dict:
    """{interval: [low, high]} of JSON's types, with `method` where it is not the bootstrap, or
    {interval: None, why}."""
    if self.ends is None:
      return {"interval": None, "why": self.why}
    found: dict = {"interval": [float(end) for end in self.ends]}
    return found if self.method == BOOTSTRAP else found | {"method": self.method}


def vector(values: npt.ArrayLike, name: str) -> np.ndarray:
  """float64 [N]; ValueError if it is not of one dimension, or has what is not finite."""
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
  """Labels as 0, 1, .. in order of appearance, and how many there are."""
  if len(labels) != n:
    raise ValueError(f"{len(labels)} cluster labels for {n} values; expected as many")
  # By dict and not np.unique: an array of strings takes the longest one's room for each.
  number: dict[Hashable, int] = {}
  ids = np.fromiter((number.setdefault(x, len(number)) for x in labels), np.int64, n)
  return ids, len(number)


def check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ValueError(f"level is {level}; expected it in (0, 1)")


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
  """Wilson's score interval of a proportion of n independent trials.

  (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), with p = successes / n.

  Args:
    successes: in [0, n]; a tie counts half.
    n: trials, at least 1.
    level: confidence in (0, 1).

  Returns:
    (low, high) in [0, 1].

  Raises:
    ValueError: if an argument is out of its range.
  """
  check_level(level)
  if not n >= 1 or not 0 <= successes <= n:
    raise ValueError(f"{successes} successes of {n}; expected 0 <= successes <= n and n >= 1")
  z = statistics.NormalDist().inv_cdf((1 + level) / 2)
  low, high = _score(successes / n, n, z)
  # At 0 and n the formula gives the bound exactly, and its rounding does not.
  return 0.0 if successes == 0 else low, 1.0 if successes == n else high


def _score(p: float, n: float, z: float) -> tuple[float, float]:
  middle = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  return (middle - half) / scale, (middle + half) / scale


def student(level: float, freedom: float) -> float:
  """The quantile of Student's t that leaves (1 − level)/2 above it; the normal's where it is ∞."""
  if math.isinf(freedom):
    return statistics.NormalDist().inv_cdf((1 + level) / 2)
  return float(stdtrit(max(freedom, 1.0), (1 + level) / 2))


def proportion(p: float, variance: float, clusters: float, most: float, level: float) -> Interval:
  """Wilson's score interval of a proportion known with a variance that few clusters gave.

  Wilson's formula with n = p (1 − p) / variance, at most `most`, and Student's quantile of
  clusters − 1 degrees of freedom for the normal one.

  Args:
    p: in (0, 1).
    variance: of p, estimated; 0 counts as `most` trials.
    clusters: effective number that it rests on.
    most: trials that p can be worth.
    level: confidence in (0, 1).
  """
  n = most if variance <= 0 else p * (1 - p) / variance
  return Interval(_score(p, min(max(n, 1.0), most), student(level, clusters - 1)), EFFECTIVE)


def effective(size_C: np.ndarray) -> float:
  """How many clusters of equal size are worth as much: (Σ n_c)² / Σ n_c² (Kish)."""
  size_C = np.asarray(size_C, np.float64)
  return float(size_C.sum() ** 2 / (size_C**2).sum()) if size_C.any() else 0.0


def too_few(count: int, worth: float, least: int = LEAST) -> str:
  """Why there is no interval over so many clusters; '' where there may be one."""
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
  """Percentile interval of the mean of `values`, resampling whole clusters: for many of them.

  Each resample draws as many clusters as there are, with replacement, and takes the sum of their
  values over the sum of their sizes. What is reported goes through `mean`, which knows when this
  covers too little.

  Args:
    values: [N], finite.
    clusters: N labels, any hashables; values with the same label are drawn together.
    level: confidence in (0, 1).
    resamples: how many, at least 1; 2000 leave the bounds uncertain by a few hundredths of the
      interval's width.
    seed: of the draws; the same arguments give the same interval.

  Returns:
    (low, high), in units of `values`.

  Raises:
    ValueError: if an argument is out of its range, or there are fewer than 2 clusters: then nothing
      is known of how clusters differ.
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

  Clusters *tell* where not all their values are the commonest one. With 30 that tell it is
  `cluster_bootstrap`'s. With fewer it is t of the linearised variance of the ratio Σ sums / Σ
  sizes, or, of a share, `proportion`. Between bounds it is on the scale of log-odds, and the
  variance is at least that of values with a correlation of 0.1 within clusters. Where all values
  are equal, at most a share w of the clusters (Wilson's upper bound of 0 of them) may be at the
  other end of the bounds: of a share of 0 or of 1 that is Wilson's interval over the clusters.

  Args:
    values: [N], finite.
    clusters: N labels, any hashables.
    bounds: that no value can be outside of; None = it has none.
    share: the values are credits between the bounds, and their mean a proportion.
    level: confidence in (0, 1).
    resamples, seed: of `cluster_bootstrap`.

  Raises:
    ValueError: an argument out of its range, or a value out of the bounds.
  """
  value_N = vector(values, "values")
  check_level(level)
  _check_resamples(resamples)
  cluster_N, count = numbered(clusters, len(value_N))
  if bounds is not None and len(value_N):
    low, high = bounds
    slack = 1e-9 * (high - low)  # what rounding may leave beyond them
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
  tells_C = np.bincount(cluster_N, weights=other_N, minlength=count) > 0
  # Unequal sizes cost as many of those that tell as of all.
  if tells_C.sum() * worth / count >= FEW:
    return Interval(cluster_bootstrap(value_N, clusters, level, resamples, seed), BOOTSTRAP)
  middle = float(value_N.mean())
  if bounds is not None:
    middle = min(max(middle, bounds[0]), bounds[1])
  left_C = np.bincount(cluster_N, weights=value_N - middle, minlength=count)
  variance = count / (count - 1) * float(left_C @ left_C) / len(value_N) ** 2
  reach = np.ptp(value_N) if bounds is None else bounds[1] - bounds[0]
  flat = variance <= (_TINY * max(reach, abs(middle))) ** 2
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
  # On the scale of log-odds between the bounds: nearer to one of them, the error is skewed.
  there, back = SCALES["probability"]
  variance = max(variance, float(value_N.var()) * design / len(value_N))
  half = student(level, worth - 1) * math.sqrt(variance) / (reach * p * (1 - p))
  ends = (float(low + reach * back(there(p) + way * half)) for way in (-1, 1))
  return Interval(tuple(ends), STUDENT)


# Name -> (to where the statistic's error is about normal, and back).
SCALES = {
  "plain": (lambda x: x, lambda x: x),
  "correlation": (np.arctanh, np.tanh),
  "probability": (lambda x: np.log(x) - np.log1p(-x), lambda x: 1 / (1 + np.exp(-x))),
  "positive": (np.log, np.exp),
}


class Resampling:
  """How any statistic is computed anew for its interval, and the interval of what that gave.

  With `FEW` clusters (their effective number) resamples draw as many as there are, with
  replacement, and the interval is between percentiles. With fewer each replicate leaves one cluster
  out, and the interval is Student's t with the jackknife's standard error (of very many clusters
  that a few outweigh: the bootstrap's), on a scale on which the statistic's error is about normal.
  Below the least there are no replicates.

  Attributes:
    count: clusters.
    worth: their effective number.
    why: why there is no interval; '' where there may be one.
    replicates: how many; 0 where there is none.
    cluster_N: int64 [N], the cluster of each row.
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
  ):
    """Args:
    clusters: N labels; rows that share one are drawn or left out together.
    level: confidence in (0, 1).
    resamples: of the bootstrap.
    seed: of its draws.
    least: clusters that an interval of this statistic wants.
    bootstrap: whatever their number, for what needs the replicates' joint distribution.
    """
    check_level(level)
    _check_resamples(resamples)
    self.cluster_N, self.count = numbered(clusters, len(clusters))
    self.worth = effective(np.bincount(self.cluster_N, minlength=self.count))
    self.why = too_few(self.count, self.worth, least)
    self._level, self._seed = level, seed
    many = self.worth >= FEW or self.count >= _UNEVEN
    self.bootstraps = not self.why and (many or bootstrap)
    self.replicates = 0 if self.why else resamples if self.bootstraps else self.count

  def draws(self) -> Iterator[np.ndarray]:
    """The clusters of each replicate, int64 [count], or [count − 1] of the jackknife."""
    if self.bootstraps:
      rng = np.random.default_rng(self._seed)
      for _ in range(self.replicates):
        yield rng.integers(self.count, size=self.count)
    else:
      for left_out in range(self.replicates):
        yield np.delete(np.arange(self.count), left_out)

  def times(self) -> Iterator[np.ndarray]:
    """How often each replicate has each cluster: blocks of float64 [R, count], in order."""
    drawn = self.draws()
    chunk = max(1, _DRAWS // max(1, self.count))
    for start in range(0, self.replicates, chunk):
      block = [next(drawn) for _ in range(min(chunk, self.replicates - start))]
      yield np.stack([np.bincount(d, minlength=self.count) for d in block]).astype(np.float64)

  def rows(self) -> Iterator[np.ndarray]:
    """The rows of each replicate, int64: those of its clusters, one cluster after another."""
    order = np.argsort(self.cluster_N, kind="stable")
    size_C = np.bincount(self.cluster_N, minlength=self.count)
    start_C = np.cumsum(size_C) - size_C
    for drawn_C in self.draws():
      size = size_C[drawn_C]
      # Members one after another: each has its cluster's start, and counts on.
      shift = np.repeat(start_C[drawn_C] - (np.cumsum(size) - size), size)
      yield order[shift + np.arange(len(shift))]

  def variance(self, values: npt.ArrayLike) -> float:
    """Of a statistic, from its values [R] in the replicates."""
    value_R = np.asarray(values, np.float64)
    off_R = value_R - value_R.mean()
    return float(off_R @ off_R) * (
      1 / len(off_R) if self.bootstraps else (self.count - 1) / self.count
    )

  def interval(self, value: float, values: npt.ArrayLike, scale: str = "plain") -> Interval:
    """The interval of a statistic.

    Args:
      value: of all rows.
      values: [replicates], of each; NaN where it is not defined.
      scale: one of `SCALES`; of the jackknife, as percentiles are the same on any.
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
      if high - low <= _TINY * max(abs(value), 1e-300):
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
    if error <= _TINY * max(abs(middle), 1e-300):
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
