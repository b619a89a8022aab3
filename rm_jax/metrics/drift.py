"""Drift of scores or features from a reference: distances between two samples, with p-values.

All p-values assume that rows are exchangeable if nothing has drifted. Take one row of each
conversation: rows that come in clusters make p-values too small.

Massey (1951) and Hodges (1958), The significance probability of the Smirnov two-sample test.
Yurdakul and Naranjo (2020), Statistical properties of the population stability index. Ledoit and
Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices. Székely and
Rizzo (2013), Energy statistics. Phipson and Smyth (2010), Permutation p-values should never be
zero.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rm_jax.metrics.interval import vector

_EXACT = 30_000_000  # Largest number of steps for an exact KS p-value, about a second.
# Rows of the pooled sample times permutations that are handled at a time: 32 MiB as float64.
_CELLS = 1 << 22


def ks(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[float, float]:
  """Two-sample Kolmogorov-Smirnov test: the largest |F_a − F_b| and its two-sided p-value.

  Args:
    a: [N], at least one.
    b: [M], at least one.

  Returns:
    (statistic, p). If (N + M) min(N, M) <= 3e7, p is exact: the share of all splits of the pooled
    sample into N and M that are at least as far apart, with the sample's ties. (To ignore ties, as
    is common, gives a larger p.) For larger samples p is Kolmogorov's limit, which is conservative
    if there are ties.

  Raises:
    ValueError: a sample is empty or has a value that is not finite.
  """
  difference, p = ks_signed(a, b)
  return abs(difference), p


def ks_signed(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[float, float]:
  """As `ks`, with the sign of F_a − F_b where it is farthest from 0: positive if b is larger."""
  a_N, b_M = vector(a, "a"), vector(b, "b")
  n, m = len(a_N), len(b_M)
  if not n or not m:
    raise ValueError(f"a has {n} values, b {m}; expected at least one of each")
  pooled = np.concatenate([a_N, b_M])
  order = np.argsort(pooled, kind="stable")
  last = np.append(np.diff(pooled[order]) > 0, True)  # Whether a value is the last of equal ones.
  from_a = np.cumsum(order < n)
  # (F_a − F_b) n m is a whole number, so splits are compared without rounding errors.
  apart = (from_a * (n + m) - np.arange(1, n + m + 1) * n)[last]
  most = apart[np.argmax(np.abs(apart))]
  reach = abs(int(most))
  if (n + m) * min(n, m) <= _EXACT:
    p = _untied(min(n, m), max(n, m), reach) if last.all() else _tail(n, m, reach, last)
  else:
    x = reach / math.sqrt(n * m * (n + m))
    k = np.arange(1, 101)
    p = 1.0 if x < 0.2 else float(2 * ((-1.0) ** (k - 1) * np.exp(-2 * (k * x) ** 2)).sum())
  return int(most) / (n * m), min(p, 1.0)


@functools.lru_cache(maxsize=4096)  # The windows of one stream often have the same distances.
def _untied(n: int, m: int, reach: int) -> float:
  return _tail(n, m, reach, np.ones(n + m, bool))


def _tail(n: int, m: int, reach: int, last: np.ndarray) -> float:
  """Probability that a random split of n + m values has |F_a − F_b| n m >= reach somewhere.

  The recursion of Hodges (1958) goes through the values in order. Each goes to a with the
  probability (places left in a) / (values left). p[i] is the probability that a has i values so far
  and that the distance has never reached `reach`. The result sums the probabilities that reach it,
  rather than subtract the rest from 1, so that small p-values keep their digits.

  Args:
    n, m: sizes of the two samples.
    reach: distance times n m, a whole number.
    last: bool [n + m], whether each sorted value is the last of a block of equal ones. Distances
      count only there.
  """
  if n > m:
    n, m = m, n
  i = np.arange(n + 1)
  p = np.zeros(n + 1)
  p[0] = 1.0
  total = 0.0
  for dealt in range(n + m):
    left = n + m - dealt
    # The quotient is computed first: it is exactly 1 where all values left are a's.
    to_a = p * ((n - i) / left)
    p = p - to_a
    p[1:] += to_a[:-1]
    if last[dealt]:
      out = np.abs(i * (n + m) - (dealt + 1) * n) >= reach
      total += p[out].sum()
      p[out] = 0.0
  return float(total)


def permutation_p(
  statistic: Callable[[np.ndarray, np.ndarray], float],
  a: npt.ArrayLike,
  b: npt.ArrayLike,
  *,
  permutations: int = 999,
  seed: int = 0,
) -> float:
  """Permutation p-value of any two-sample statistic that is large if the samples differ.

  Args:
    statistic: a function of (a, b), arrays as given; its values must be finite.
    a: [N, ...].
    b: [M, ...].
    permutations: number of random splits of the pooled sample.
    seed: of the splits.

  Returns:
    (1 + splits whose statistic is no smaller) / (1 + permutations), a valid p-value for any number
    of permutations (Phipson and Smyth 2010).

  Raises:
    ValueError: permutations is below 1, or the statistic of some split is not finite.
  """
  _check_permutations(permutations)
  a, b = np.asarray(a), np.asarray(b)
  pooled = np.concatenate([a, b])
  rng = np.random.default_rng(seed)
  values = [float(statistic(a, b))]
  for _ in range(permutations):
    mixed = pooled[rng.permutation(len(pooled))]
    values.append(float(statistic(mixed[: len(a)], mixed[len(a) :])))
  return _no_smaller(np.asarray(values[1:]), values[0])


def psi(
  reference: npt.ArrayLike,
  now: npt.ArrayLike,
  *,
  bins: int = 10,
  permutations: int = 999,
  seed: int = 0,
) -> dict:
  """Population stability index: Σ_b (q_b − p_b) log(q_b / p_b) over quantile bins of the reference.

  A value that 1/bins of the reference or more share, and that is one of its quantiles, has a bin of
  its own: in a bin with the values below it, it could move there unseen. Bins that are empty in
  both samples are left out.

  A half is added to every count, so that an empty bin gives a finite number. The usual thresholds
  0.1 and 0.25 ignore the sample sizes. Without any drift the index is (bins − 1)(1/N + 1/M) on
  average (returned as `expected`; Yurdakul and Naranjo 2020). p says how often it is at least as
  large as here if nothing has drifted.

  Args:
    reference: [N], at least `bins`.
    now: [M], at least one.
    bins: number of bins, at least 2. Equal quantiles are merged and shared values have their own
      bins, so another number may be used.
    permutations, seed: of `permutation_p`. Each split has quantiles of its own.

  Returns:
    {value, p, expected, n: [N, M], bins: number of bins that have a value of the
    reference}.

  Raises:
    ValueError: too few values, a value is not finite, bins is below 2, or permutations below 1.
  """
  a_N, b_M = vector(reference, "reference"), vector(now, "now")
  if bins < 2 or len(a_N) < bins or not len(b_M):
    raise ValueError(
      f"bins is {bins} for {len(a_N)} reference values and {len(b_M)} now; expected 2 or more "
      "bins, as many reference values and at least one now"
    )
  inner = np.linspace(0, 1, bins + 1)[1:-1]

  def counts(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    edges = np.unique(np.quantile(a, inner))
    equal = (a == edges[:, None]).sum(axis=1)
    atoms = edges[(equal > 1) & (equal * bins >= len(a))]
    # A bin is (the edge before, edge]; one that ends at an atom is divided into its inside and it.
    place = (np.searchsorted(edges, x) + np.searchsorted(atoms, x, "right") for x in (a, b))
    most = len(edges) + len(atoms) + 1
    return tuple(np.bincount(at, minlength=most) for at in place)

  def index(a: np.ndarray, b: np.ndarray) -> float:
    count_a, count_b = counts(a, b)
    some = (count_a > 0) | (count_b > 0)
    p, q = ((count[some] + 0.5) / (count[some] + 0.5).sum() for count in (count_a, count_b))
    return float(((q - p) * np.log(q / p)).sum())

  used = int(np.count_nonzero(counts(a_N, b_M)[0]))
  return {
    "value": index(a_N, b_M),
    "p": permutation_p(index, a_N, b_M, permutations=permutations, seed=seed),
    "expected": (used - 1) * (1 / len(a_N) + 1 / len(b_M)),
    "n": [len(a_N), len(b_M)],
    "bins": used,
  }


def ledoit_wolf(x_ND: npt.ArrayLike) -> tuple[np.ndarray, float]:
  """Covariance matrix, shrunk towards the multiple of the identity with the same trace.

    (1 − s) S + s (tr S / D) I,   s = min(Σ‖x‖⁴/N − ‖S‖², N d²) / (N d²),   d² = ‖S‖² − (tr S)²/D

  S is the covariance with the divisor N, x a centred row, ‖·‖ the Frobenius norm. If s > 0, the
  shrunk matrix can be inverted even with fewer rows than columns (Ledoit and Wolf 2004).

  Args:
    x_ND: [N, D], at least two rows; they need not be centred.

  Returns:
    (covariance [D, D], s in [0, 1]).

  Raises:
    ValueError: another shape, no column, or a value is not finite.
  """
  x_ND = _matrix(x_ND, "x_ND")
  n, d = x_ND.shape
  if n < 2:
    raise ValueError(f"x_ND has {n} row(s); expected at least 2")
  x_ND = x_ND - x_ND.mean(axis=0)
  s_DD = x_ND.T @ x_ND / n
  square, mean = float((s_DD * s_DD).sum()), float(np.trace(s_DD)) / d
  far = square - d * mean * mean
  noise = (float(((x_ND * x_ND).sum(axis=1) ** 2).mean()) - square) / n
  shrinkage = min(max(noise, 0.0) / far, 1.0) if far > 0 else 0.0
  return (1 - shrinkage) * s_DD + shrinkage * mean * np.eye(d), shrinkage


def mahalanobis(reference_ND: npt.ArrayLike, now_MD: npt.ArrayLike) -> np.ndarray:
  """Mahalanobis distance of each row from the reference's mean, float64 [M].

    √((x − μ)ᵀ Σ⁻¹ (x − μ)), with μ the mean and Σ the covariance (`ledoit_wolf`) of the reference

  The rows of the reference itself are closer than new rows of the same distribution, because Σ was
  estimated from them. So take a limit from the distances of held-out rows.

  Args:
    reference_ND: [N, D], at least two rows.
    now_MD: [M, D].

  Raises:
    ValueError: other shapes, no column, a value is not finite, or the shrunk covariance is
      singular.
  """
  reference_ND, now_MD = _matrix(reference_ND, "reference_ND"), _matrix(now_MD, "now_MD")
  if reference_ND.shape[1] != now_MD.shape[1]:
    raise ValueError(f"reference_ND is {reference_ND.shape}, now_MD {now_MD.shape}; expected one D")
  covariance_DD, _ = ledoit_wolf(reference_ND)
  value_D, vector_DD = np.linalg.eigh(covariance_DD)
  if value_D[0] <= 1e-12 * value_D[-1]:
    raise ValueError(
      f"the covariance of reference_ND {reference_ND.shape} has eigenvalues from {value_D[0]:.3g} "
      f"to {value_D[-1]:.3g}; expected rows that vary in every direction"
    )
  turned_MD = (now_MD - reference_ND.mean(axis=0)) @ vector_DD
  return np.sqrt((turned_MD**2 / value_D).sum(axis=1))


def energy_distance(
  a: npt.ArrayLike,
  b: npt.ArrayLike,
  *,
  permutations: int = 999,
  seed: int = 0,
  limit: int = 1000,
) -> dict:
  """Energy distance √(2 E|X − Y| − E|X − X'| − E|Y − Y'|) of two samples, with a permutation p.

  It is 0 only if the distributions are equal (Székely and Rizzo 2013). In one dimension it is
  computed by sorting. In more dimensions it needs the matrix of all distances between pooled rows,
  of which each permutation computes a quadratic form. The distance depends on the features' units,
  so scale them to comparable ones first.

  Args:
    a: [N] or [N, D], at least one row.
    b: [M] or [M, D], as a.
    permutations, seed: as in `permutation_p`; the seed is also of the rows drawn.
    limit: if D > 1, at most this many rows of each sample are used, drawn without replacement. The
      matrix takes 8 (2 limit)² bytes, 32 MB at 1000.

  Returns:
    {value, p, n: numbers of rows used}.

  Raises:
    ValueError: other shapes, no rows or columns, a value is not finite, or permutations or limit
      below 1.
  """
  _check_permutations(permutations)
  flat = np.ndim(a) == np.ndim(b) == 1
  a_ND, b_MD = (_matrix(np.reshape(x, (-1, 1)) if flat else x, n) for x, n in ((a, "a"), (b, "b")))
  if not len(a_ND) or not len(b_MD) or a_ND.shape[1] != b_MD.shape[1] or limit < 1:
    raise ValueError(f"a is {a_ND.shape}, b {b_MD.shape}, limit {limit}; expected rows of one D")
  rng = np.random.default_rng(seed)
  if a_ND.shape[1] > 1:
    a_ND, b_MD = (x[rng.permutation(len(x))[:limit]] for x in (a_ND, b_MD))
  n, m = len(a_ND), len(b_MD)
  pooled = np.concatenate([a_ND, b_MD])
  mine = np.arange(n + m) < n
  if pooled.shape[1] == 1:
    order = np.argsort(pooled[:, 0], kind="stable")
    mine, gaps = mine[order], np.diff(pooled[order, 0])

    def squares(mine_RN: np.ndarray) -> np.ndarray:
      share_RN = np.cumsum(mine_RN, axis=1)[:, :-1]
      other_RN = np.arange(1, n + m) - share_RN
      return 2 * (share_RN / n - other_RN / m) ** 2 @ gaps
  else:
    pooled = pooled - pooled.mean(axis=0)
    norm = (pooled * pooled).sum(axis=1)
    far = np.sqrt(np.maximum(norm[:, None] + norm - 2 * pooled @ pooled.T, 0))
    np.fill_diagonal(far, 0)
    row, total = far.sum(axis=1), far.sum()

    def squares(mine_RN: np.ndarray) -> np.ndarray:
      weight_RN = mine_RN.astype(np.float64)
      within_a = (weight_RN @ far * weight_RN).sum(axis=1)
      between = weight_RN @ row - within_a
      within_b = total - 2 * between - within_a
      return 2 * between / (n * m) - within_a / n**2 - within_b / m**2

  (observed,) = squares(mine[None])
  values = []
  chunk = max(1, _CELLS // (n + m))
  for start in range(0, permutations, chunk):
    rows = min(chunk, permutations - start)
    values.append(squares(rng.permuted(np.tile(mine, (rows, 1)), axis=1)))
  return {
    "value": math.sqrt(max(float(observed), 0.0)),
    "p": _no_smaller(np.concatenate(values), float(observed)),
    "n": [n, m],
  }


def _matrix(x: npt.ArrayLike, name: str) -> np.ndarray:
  array = np.asarray(x, np.float64)
  if array.ndim != 2 or not array.shape[1]:
    raise ValueError(f"{name} has shape {array.shape}; expected [N, D], D at least 1")
  if not np.isfinite(array).all():
    raise ValueError(f"{name} has {(~np.isfinite(array)).sum()} values not finite; expected none")
  return array


def _no_smaller(values: np.ndarray, observed: float) -> float:
  """Permutation p-value. A value below the observed one by a rounding error counts as equal."""
  if not np.isfinite(observed) or not np.isfinite(values).all():
    raise ValueError("the statistic is not finite for some split; expected it finite for all")
  slack = 1e-9 * abs(observed)
  return float((1 + np.count_nonzero(values >= observed - slack)) / (1 + len(values)))


def _check_permutations(permutations: int) -> None:
  if permutations < 1:
    raise ValueError(f"permutations is {permutations}; expected at least 1")
