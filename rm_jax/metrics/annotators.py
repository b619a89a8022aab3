"""How far annotators agree, how reliable each is, and logistic regression on their choices.

Krippendorff (2011), Computing Krippendorff's Alpha-Reliability. Dawid and Skene (1979), Maximum
likelihood estimation of observer error-rates using the EM algorithm. Cameron, Gelbach and Miller
(2008), Bootstrap-based improvements for inference with clustered errors.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import interval

LEVELS = ("nominal", "ordinal", "interval")
# Keeps divisors and the arguments of logarithms above 0, since 0 / 0 and 0 · -inf are NaN.
_TINY = 1e-300


def krippendorff_alpha(ratings: npt.ArrayLike, level: str = "nominal") -> float:
  """Krippendorff's alpha, 1 − observed / expected disagreement.

  It is 1 in full agreement, 0 if annotators agree as often as by chance, and negative if they
  disagree systematically. Let o_ck be the coincidences of values c and k: each unit with m ratings
  adds the number of its ordered pairs (c, k) divided by m − 1. With n_c = Σ_k o_ck and n = Σ_c n_c,

    alpha = 1 − (n − 1) Σ_ck o_ck δ²_ck / Σ_ck n_c n_k δ²_ck

  δ² is [c ≠ k] (nominal), (Σ_{g=c..k} n_g − (n_c + n_k) / 2)² (ordinal), (c − k)² (interval).

  Args:
    ratings: [N units, A annotators], numbers; NaN where missing. Units with fewer than two ratings
      have no pair and are left out, as in the paper.
    level: level of measurement, one of `LEVELS`; 'ordinal' takes the order of the numbers.

  Raises:
    ValueError: the shape or level is wrong, a rating is infinite, no unit has two ratings, or all
      ratings in such units are equal, so that alpha is 0 / 0.
  """
  units = _Units(ratings, level)
  alpha = units.alpha(units.weight_N)
  if math.isnan(alpha):
    raise ValueError(
      f"all ratings of units with two or more are {units.values_V[0]:g}: alpha is 0 / 0; expected "
      "two values or more"
    )
  return alpha


def alpha_interval(
  ratings: npt.ArrayLike,
  clusters: Sequence[Hashable],
  level: str = "nominal",
  confidence: float = 0.95,
  resamples: int = 1000,
  seed: int = 0,
) -> interval.Interval:
  """Interval of alpha over whole clusters of units, by `interval.Resampling`.

  Args:
    ratings, level: of `krippendorff_alpha`.
    clusters: N labels; units with the same label are drawn, or left out, together. Clusters without
      a unit of two ratings do not count.
    confidence: in (0, 1).
    resamples: number of bootstrap resamples; with few clusters there is a jackknife instead. A
      replicate whose ratings are all equal has no alpha; with too many of these there is no
      interval.
    seed: of the draws.

  Raises:
    ValueError: as `krippendorff_alpha`, there are not N cluster labels, or `confidence` or
      `resamples` is out of its range.
  """
  alpha = krippendorff_alpha(ratings, level)
  units = _Units(ratings, level)
  if len(clusters) != len(units.paired_N):
    raise ValueError(
      f"{len(clusters)} cluster labels for {len(units.paired_N)} units; expected as many"
    )
  # A cluster whose units all have fewer than two ratings has no part in alpha. If it counted, few
  # clusters would pass for many.
  clusters = [label for label, paired in zip(clusters, units.paired_N, strict=True) if paired]
  plan = interval.Resampling(clusters, level=confidence, resamples=resamples, seed=seed)
  alphas = [
    units.alpha(times_C[plan.cluster_N]) for times_RC in plan.times() for times_C in times_RC
  ]
  # 1 − alpha is a ratio of disagreements and so never negative, for which `plan.interval` has the
  # scale 'positive'. Alpha itself can be negative.
  found = plan.interval(1 - alpha, 1 - np.asarray(alphas), "positive")
  if found.ends is None:
    return found
  return interval.Interval((1 - found.ends[1], 1 - found.ends[0]), found.method)


class _Units:
  """The units of two ratings or more, from which alpha is computed with any weights of the units.

  No matrix of coincidences is made, which would take V² numbers for V distinct ratings. Let u be
  the ratings of a unit, m of them, and x_c the number on which δ²_ck = (x_c − x_k)²: the rating
  itself (interval), or the mean rank of the rating (ordinal). Then

    Σ_ck o_ck δ²_ck = Σ_units 2 m/(m − 1) Σ_{c in u} (x_c − x̄_u)²,
    Σ_ck n_c n_k δ²_ck = 2 n Σ_c n_c (x_c − x̄)²

  For nominal ratings the first sum is Σ_units (m² − Σ_c m_c²)/(m − 1), where m_c of the unit's
  ratings are c, and the second n² − Σ_c n_c².

  Attributes:
    paired_N: bool [N], whether a unit has two ratings; the M that have are used.
    values_V: float64 [V], their distinct ratings in increasing order.
    weight_N: ones [M], the weights of the data as they are.
  """

  def __init__(self, ratings: npt.ArrayLike, level: str):
    """Raises ValueError as `krippendorff_alpha`, but for equal ratings."""
    rating_NA = np.asarray(ratings, np.float64)
    if level not in LEVELS:
      raise ValueError(f"level is {level!r}; expected one of {', '.join(LEVELS)}")
    if rating_NA.ndim != 2:
      raise ValueError(f"ratings have shape {rating_NA.shape}; expected [units, annotators]")
    if np.isinf(rating_NA).any():
      raise ValueError("a rating is infinite; expected numbers, or NaN where missing")
    self.paired_N = (~np.isnan(rating_NA)).sum(axis=1) >= 2
    if not self.paired_N.any():
      raise ValueError("no unit has two ratings; expected some that annotators share")
    rating_NA = rating_NA[self.paired_N]
    self._level, self._there_NA = level, ~np.isnan(rating_NA)
    self._size_N = self._there_NA.sum(axis=1)
    self.weight_N = np.ones(len(rating_NA))
    self.values_V = np.unique(rating_NA[self._there_NA])
    # Where a rating is missing the index is that of any value; `_there_NA` leaves it out.
    self._index_NA = np.searchsorted(self.values_V, np.where(self._there_NA, rating_NA, np.inf))
    self._index_NA = np.minimum(self._index_NA, len(self.values_V) - 1)
    # In units of their range, so that squares neither overflow nor vanish.
    self._x_V = (self.values_V - self.values_V[0]) / (np.ptp(self.values_V) or 1.0)
    # Of ordinal ratings x depends on the weights.
    self._apart_N = None
    if level != "ordinal":
      self._apart_N = self._unlike() if level == "nominal" else self._scatter(self._x_V)

  def alpha(self, weight_N: np.ndarray) -> float:
    """Alpha if unit i is there weight_N[i] times; NaN if all ratings are equal."""
    weight_NA = np.broadcast_to(weight_N[:, None], self._index_NA.shape)
    n_V = np.bincount(self._index_NA[self._there_NA], weight_NA[self._there_NA], len(self.values_V))
    if np.count_nonzero(n_V) < 2:
      return math.nan
    n = float(n_V.sum())
    x_V, apart_N = self._x_V, self._apart_N
    if apart_N is None:
      # Σ_{g=c..k} n_g − (n_c + n_k) / 2 = middle_k − middle_c.
      x_V = np.cumsum(n_V) - n_V / 2
      apart_N = self._scatter(x_V)
    if self._level == "nominal":
      expected = n * n - float(n_V @ n_V)
    else:
      expected = 2 * n * float(n_V @ (x_V - n_V @ x_V / n) ** 2)
    return 1 - (n - 1) * float(weight_N @ apart_N) / expected

  def _scatter(self, x_V: np.ndarray) -> np.ndarray:
    """Σ (x_c − x_k)² over the ordered pairs of each unit's ratings, divided by m − 1."""
    x_NA = x_V[self._index_NA]
    mean_N1 = x_NA.mean(axis=1, where=self._there_NA, keepdims=True)
    square_N = np.square(x_NA - mean_N1).sum(axis=1, where=self._there_NA)
    return 2 * self._size_N / (self._size_N - 1) * square_N

  def _unlike(self) -> np.ndarray:
    """The number of ordered pairs of different ratings in each unit, divided by m − 1."""
    unlike_N = np.zeros(len(self._size_N))
    for index_N, there_N in zip(self._index_NA.T, self._there_NA.T, strict=True):
      other_NA = (self._index_NA != index_N[:, None]) & self._there_NA
      unlike_N += other_NA.sum(axis=1) * there_N
    return unlike_N / (self._size_N - 1)


@dataclasses.dataclass(frozen=True)
class DawidSkene:
  """The fit of `dawid_skene`: N items, A annotators, K classes.

  Attributes:
    prior: float64 [K], share of each class.
    confusion: float64 [A, K, K], P(annotator says column | truth is row).
    posterior: float64 [N, K], P(truth) of each item.
    reliability: float64 [A], Σ_k prior_k confusion_kk, the probability that an annotator is right.
    log_likelihood: after each iteration, in nats; EM never lowers it.
    converged: whether EM stopped because an iteration raised the log-likelihood by less than the
      tolerance, and not because it had no iterations left.
    start: index of the start that gave this fit; 0 is the majority vote.
  """

  prior: np.ndarray
  confusion: np.ndarray
  posterior: np.ndarray
  reliability: np.ndarray
  log_likelihood: list[float]
  converged: bool
  start: int


def dawid_skene(
  labels: npt.ArrayLike,
  classes: int,
  *,
  starts: int = 5,
  iterations: int = 500,
  tolerance: float = 1e-8,
  seed: int = 0,
) -> DawidSkene:
  """Estimates the truth of each item and each annotator's confusion matrix, by EM.

  The likelihood is that of Dawid and Skene (1979):

    P(labels of item i) = Σ_k prior_k Π_a confusion[a, k, label_ia]

  The model assumes that annotators err independently given the truth. So an error that they all
  make counts as the truth, and a reliability is agreement with what the annotators share. With two
  annotators the parameters are not identified, three are needed; the caller should check that.

  Args:
    labels: int [N, A] in 0 .. classes − 1; −1 where missing.
    classes: K, at least 2.
    starts: number of starts of EM. The first is the majority vote, the others are the votes
      multiplied by random weights; the most likely result is returned, or an earlier one that is
      as likely to within the tolerance. All starts derive from the votes, so that class k of the
      fit corresponds to what annotators call k.
    iterations: largest number of EM iterations of each start.
    tolerance: EM stops when an iteration raises the log-likelihood by less, in nats per item.
    seed: of the random starts and of the choice between tied votes.

  Raises:
    ValueError: labels are not integers [N, A] in their range, an annotator or item has none, there
      are fewer than two annotators, or another argument is out of its range.
  """
  label_NA = np.asarray(labels)
  if label_NA.ndim != 2 or not np.issubdtype(label_NA.dtype, np.integer):
    raise ValueError(
      f"labels are {label_NA.dtype} {label_NA.shape}; expected integers [items, annotators]"
    )
  if classes < 2 or starts < 1 or iterations < 1 or tolerance <= 0:
    raise ValueError(
      f"classes {classes}, starts {starts}, iterations {iterations}, tolerance {tolerance}; "
      "expected at least 2, 1, 1 and above 0"
    )
  if label_NA.shape[1] < 2:
    raise ValueError(f"{label_NA.shape[1]} annotator(s); expected at least 2")
  if label_NA.size and not -1 <= label_NA.min() <= label_NA.max() < classes:
    raise ValueError(
      f"labels in {label_NA.min()} .. {label_NA.max()}; expected -1 .. {classes - 1}"
    )
  there_NA = label_NA >= 0
  for axis, name in ((1, "item"), (0, "annotator")):
    empty = np.flatnonzero(~there_NA.any(axis=axis))
    if empty.size or not label_NA.size:
      raise ValueError(f"{name} {empty[:1].tolist() or ''} has no label; leave it out")
  said_NAK = (label_NA[:, :, None] == np.arange(classes)).astype(np.float64)
  rng = np.random.default_rng(seed)
  votes_NK = said_NAK.sum(axis=1)
  majority_NK = (votes_NK == votes_NK.max(axis=1, keepdims=True)).astype(np.float64)
  # A tied vote is shifted slightly, at random: EM cannot leave a start in which classes are all
  # alike.
  majority_NK += 1e-6 * rng.random(majority_NK.shape) * majority_NK
  best = None
  for start in range(starts):
    first_NK = majority_NK if start == 0 else votes_NK * rng.gamma(1.0, size=votes_NK.shape)
    fit = _em(said_NAK, first_NK / first_NK.sum(axis=1, keepdims=True), iterations, tolerance)
    # A later start must be better by more than rounding errors, which differ between machines.
    if best is None or fit.log_likelihood[-1] > best.log_likelihood[-1] + tolerance * len(label_NA):
      best = dataclasses.replace(fit, start=start)
  return best


def _em(said_NAK, posterior_NK, iterations: int, tolerance: float) -> DawidSkene:
  """One run of EM. `said_NAK` is 1 where annotator a gave item n label k, else 0."""
  history: list[float] = []
  converged = False
  for _ in range(iterations):
    prior_K = posterior_NK.mean(axis=0)
    count_AKK = np.einsum("nk,nal->akl", posterior_NK, said_NAK)
    total_AK1 = count_AKK.sum(axis=2, keepdims=True)
    # If none of an annotator's items has a class (its posterior is 0), that row of their confusion
    # matrix is 0 / 0. It is set to the uniform distribution, which favours no label.
    uniform = 1 / said_NAK.shape[2]
    confusion_AKK = np.where(total_AK1 > 0, count_AKK / np.maximum(total_AK1, _TINY), uniform)
    log_NK = np.einsum("nal,akl->nk", said_NAK, np.log(np.maximum(confusion_AKK, _TINY)))
    log_NK += np.log(np.maximum(prior_K, _TINY))
    top_N1 = log_NK.max(axis=1, keepdims=True)
    log_N1 = top_N1 + np.log(np.exp(log_NK - top_N1).sum(axis=1, keepdims=True))
    posterior_NK = np.exp(log_NK - log_N1)
    history.append(float(log_N1.sum()))
    if len(history) > 1 and history[-1] - history[-2] < tolerance * len(said_NAK):
      converged = True
      break
  reliability_A = np.einsum("k,akk->a", prior_K, confusion_AKK)
  return DawidSkene(prior_K, confusion_AKK, posterior_NK, reliability_A, history, converged, 0)


def share(
  credits: npt.ArrayLike, clusters: Sequence[Hashable], level: float = 0.95, seed: int = 0
) -> dict:
  """Mean of credits in [0, 1] with its interval over whole clusters, by `interval.mean`.

  Returns:
    {share, interval, n, clusters, method}. If there is no interval, it is None, `method` is 'none'
    and `why` gives the reason; without credits `share` is None too.

  Raises:
    ValueError: as `interval.mean`.
  """
  credit_N = np.asarray(credits, np.float64)
  options = {"bounds": (0.0, 1.0), "share": True, "level": level, "seed": seed}
  found = interval.mean(credit_N, clusters, **options)
  return {
    "share": float(credit_N.mean()) if len(credit_N) else None,
    "interval": None,
    "n": len(credit_N),
    "clusters": len(set(clusters)),
    "method": found.method,
  } | found.report()


def logistic(
  features: npt.ArrayLike,
  outcomes: npt.ArrayLike,
  clusters: Sequence[Hashable],
  level: float = 0.95,
) -> list[dict[str, float | list[float]]]:
  """Logistic regression, P(outcome = 1) = sigmoid(features · β), with Wald intervals over clusters.

  With 30 clusters or more, the variance of β is the cluster-robust one of Liang and Zeger (1986),
  H⁻¹ (Σ_g s_g s_gᵀ) H⁻¹ G / (G − 1). H is the Hessian, G the number of clusters and s_g the sum of
  the score (the gradient of the log-likelihood) over cluster g. With fewer clusters it is the
  jackknife variance (G − 1)/G Σ_g d_g d_gᵀ, in which d_g = (H − H_g)⁻¹ s_g is the change of β when
  cluster g, whose part of H is H_g, is left out, by one Newton step (Bell and McCaffrey 2002); and
  the quantile is that of Student's t, with one degree of freedom less than clusters. With fewer
  than 5 clusters there is no interval. These limits and the degrees of freedom are by the effective
  number of clusters, see `interval.effective`.

  Args:
    features: [N, F]; a column of ones is the intercept.
    outcomes: [N] of 0 and 1.
    clusters: N labels.
    level: confidence in (0, 1).

  Returns:
    For each feature {slope, interval, standard_error}. The last two are None, with `why`, if there
    are too few clusters to estimate them, or, with few, the slopes are not defined without one.

  Raises:
    ValueError: shapes differ, a feature is not finite, an outcome is neither 0 nor 1, `level` is
      out of its range, there are not more clusters than features, the features are collinear, or
      they separate the outcomes (or all but, so that 50 Newton steps find no maximum of the
      likelihood at finite slopes).
  """
  interval.check_level(level)
  x_NF, y_N = np.asarray(features, np.float64), np.asarray(outcomes, np.float64)
  if x_NF.ndim != 2 or y_N.shape != x_NF.shape[:1]:
    raise ValueError(f"features {x_NF.shape} and outcomes {y_N.shape}; expected [N, F] and [N]")
  if not np.isfinite(x_NF).all() or not np.isin(y_N, (0.0, 1.0)).all():
    raise ValueError("expected finite features, and outcomes of 0 and 1")
  numbers, count = interval.numbered(clusters, len(y_N))
  if count <= x_NF.shape[1]:
    raise ValueError(f"{count} clusters for {x_NF.shape[1]} slopes; expected more clusters")
  size_F = np.abs(x_NF).max(axis=0)
  if not size_F.all() or np.linalg.matrix_rank(x_NF / size_F) < x_NF.shape[1]:
    raise ValueError("the features are collinear (or one is constant); leave one out")
  # Slopes are fitted to orthogonal combinations of the features, and turned back. Of features that
  # are far from 0 compared with their spread, such as times in seconds, the Hessian itself is too
  # near to singular.
  x_NF, turn_FF = np.linalg.qr(x_NF / size_F)
  turn_FF = turn_FF * size_F

  def loss(beta_F: np.ndarray) -> float:
    z_N = x_NF @ beta_F
    return float((np.logaddexp(0.0, z_N) - y_N * z_N).sum())

  beta_F = np.zeros(x_NF.shape[1])
  for _ in range(50):
    p_N = 0.5 * (1 + np.tanh(x_NF @ beta_F / 2))
    hessian_FF = (x_NF * (p_N * (1 - p_N))[:, None]).T @ x_NF
    size_F = np.sqrt(np.diag(hessian_FF))
    if not size_F.all() or np.linalg.cond(_unitless(hessian_FF, size_F)) > 1e12:
      break
    step_F = np.linalg.solve(hessian_FF, x_NF.T @ (y_N - p_N))
    # Newton's step is halved until it is no worse; the last term allows for rounding errors.
    size, before = 1.0, loss(beta_F)
    while loss(beta_F + size * step_F) > before * (1 + 1e-13):
      size /= 2
    beta_F = beta_F + size * step_F
    if np.abs(x_NF @ step_F).max() < 1e-10:
      return _wald(beta_F, hessian_FF, x_NF, p_N, y_N, numbers, level, turn_FF)
  raise ValueError("the features separate the outcomes: no finite slope is most likely")


def _unitless(matrix: np.ndarray, size_F: np.ndarray) -> np.ndarray:
  """A Hessian [..., F, F] of features divided by their sizes: their units do not change it."""
  return matrix / size_F[:, None] / size_F


def _wald(beta_F, hessian_FF, x_NF, p_N, y_N, numbers, level: float, turn_FF) -> list[dict]:
  """The intervals of `logistic` at its solution.

  Args:
    beta_F, hessian_FF, x_NF, p_N, y_N: of the solution, for orthogonal features x.
    numbers: [N], the cluster of each row.
    level: confidence.
    turn_FF: x @ turn_FF are the caller's features.
  """
  slope_F = np.linalg.solve(turn_FF, beta_F)
  count = int(numbers.max()) + 1
  size_C = np.bincount(numbers)
  worth = interval.effective(size_C)

  def none(why: str) -> list[dict]:
    return [
      {"slope": float(b), "interval": None, "standard_error": None, "why": why} for b in slope_F
    ]

  if why := interval.too_few(count, worth):
    return none(why)
  score_CF = np.zeros((count, x_NF.shape[1]))
  np.add.at(score_CF, numbers, x_NF * (y_N - p_N)[:, None])
  few = worth < interval.FEW
  if few:
    own_CFF = np.zeros((count, *hessian_FF.shape))
    np.add.at(own_CFF, numbers, np.einsum("nf,ng,n->nfg", x_NF, x_NF, p_N * (1 - p_N)))
    left_CFF = hessian_FF - own_CFF
    # The matrix H⁻¹ (H − H_g) is near the identity if cluster g has a small part in H.
    size_F = np.sqrt(np.diag(hessian_FF))
    both = (_unitless(matrix, size_F) for matrix in (hessian_FF, left_CFF))
    if (np.linalg.cond(np.linalg.solve(*both)) > 1e8).any():
      return none("the slopes are not defined without some conversation")
    off_CF = np.linalg.solve(left_CFF, score_CF[:, :, None])[:, :, 0]
    variance_FF = (count - 1) / count * (off_CF.T @ off_CF)
  else:
    inverse_FF = np.linalg.inv(hessian_FF)
    variance_FF = inverse_FF @ (score_CF.T @ score_CF) @ inverse_FF * count / (count - 1)
  reach = interval.student(level, worth - 1 if few else math.inf)
  turned_FF = np.linalg.solve(turn_FF, np.linalg.solve(turn_FF, variance_FF).T)
  error_F = np.sqrt(np.diag(turned_FF))
  return [
    {"slope": float(b), "interval": [float(b - reach * e), float(b + reach * e)],
     "standard_error": float(e)}
    for b, e in zip(slope_F, error_F, strict=True)
  ]  # fmt: skip
