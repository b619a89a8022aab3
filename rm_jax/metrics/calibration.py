"""Calibration of scores by temperature, Platt scaling and isotonic regression; calibration errors.

Guo et al. (2017), On calibration of modern neural networks (temperature, ECE). Platt (1999),
Probabilistic outputs for support vector machines. Zadrozny and Elkan (2002), Transforming
classifier scores into accurate multiclass probability estimates (isotonic). Kumar, Liang and Ma
(2019), Verified uncertainty calibration (the debiased error). Brier (1950).
"""

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import interval
from rm_jax.metrics.interval import numbered, vector, wilson


def sigmoid(x: npt.ArrayLike) -> np.ndarray:
  """1 / (1 + exp(−x)) in float64, for any shape, without overflow at either end."""
  return np.exp(-np.logaddexp(0.0, -np.asarray(x, np.float64)))


def halves(clusters: Sequence[Hashable], seed: int = 0) -> np.ndarray:
  """Splits whole conversations at random into two halves, one to fit on and one to report on.

  Args:
    clusters: N labels; items with the same label are in the same half.
    seed: of the split.

  Returns:
    bool [N], True for the first half, which has ⌊C/2⌋ of the C conversations.

  Raises:
    ValueError: fewer than 2 conversations.
  """
  cluster_N, count = numbered(clusters, len(clusters))
  if count < 2:
    raise ValueError(f"{count} cluster(s); a split needs at least 2")
  first_C = np.zeros(count, bool)
  first_C[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
  return first_C[cluster_N]


def fit_temperature(difference_N: npt.ArrayLike) -> float:
  """The temperature T > 0 that maximises the likelihood Π σ(Δ/T) of observed pairs.

  Args:
    difference_N: [N], Δ, the score of the chosen response minus that of the rejected one.

  Returns:
    T, in units of score; σ(Δ/T) is the calibrated probability. The log-likelihood is concave in
    1/T, so it has one maximum, which is found to machine precision by bisection of its slope.

  Raises:
    ValueError: there is no pair, or a difference is not finite; or no T in (0, ∞) maximises the
      likelihood. Either the mean difference is not above 0 (by more than rounding errors), so that
      the best 1/T is not positive: on average the model does not prefer the chosen responses. Or
      no difference is below 0, so that the likelihood grows as T goes to 0: perhaps there are too
      few pairs, or the model was trained on them.
  """
  d_N = vector(difference_N, "difference_N")
  scale = np.abs(d_N).max() if d_N.any() else 1.0
  unit_N = d_N / scale
  # A sum that is 0 but for rounding errors has a sign that depends on the scale.
  if unit_N.sum() <= interval.TINY * np.abs(unit_N).sum():
    mean = d_N.mean() if d_N.size else float("nan")
    raise ValueError(
      f"difference_N has mean {mean} over {d_N.size} pairs; expected it above 0 (by more than "
      "rounding errors): no temperature makes scores that prefer the rejected responses right"
    )
  if d_N.min() >= 0:
    raise ValueError(
      f"difference_N is never below 0 in {d_N.size} pairs: the likelihood has no maximum, it grows "
      "as T goes to 0; expected at least one pair that the scores get wrong"
    )

  def slope(beta: float) -> float:
    return float((unit_N * sigmoid(-beta * unit_N)).sum())

  low = high = 1.0
  while slope(high) > 0:
    low, high = high, 2 * high
  while slope(low) < 0:
    low, high = low / 2, low
  while low < (middle := (low + high) / 2) < high:
    low, high = (middle, high) if slope(middle) > 0 else (low, middle)
  return float(scale / middle)


def fit_platt(
  score_N: npt.ArrayLike, label_N: npt.ArrayLike, *, smooth: bool = False
) -> tuple[float, float]:
  """Platt scaling: the slope a and bias b of p = σ(a s + b) that maximise the likelihood of labels.

  Args:
    score_N: [N].
    label_N: [N] in [0, 1]: wrong or right, or the probability of right.
    smooth: replaces the labels 1 and 0 by Platt's targets (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2),
      with which a finite fit exists even if a threshold on the scores separates the labels. n₊ and
      n₋ are the numbers of labels 1 and 0; no other label is allowed.

  Returns:
    (a, b). a is negative if higher scores go with lower labels, which the caller should report.

  Raises:
    ValueError: there is not one maximum at a finite (a, b), because all scores are equal, or,
      without `smooth`, all labels are 0, all are 1, or a threshold separates them; it is not found
      in 200 steps; lengths differ, or an argument is out of its range.
  """
  s_N, y_N = _pair(score_N, label_N, "score_N", "label_N")
  if smooth:
    if not np.isin(y_N, (0.0, 1.0)).all():
      raise ValueError("label_N has values between 0 and 1; expected 0 or 1 where smooth is True")
    good = y_N.sum()
    y_N = np.where(y_N == 1, (good + 1) / (good + 2), 1 / (len(y_N) - good + 2))
  if not len(s_N) or s_N.min() == s_N.max():
    raise ValueError(f"score_N has {len(s_N)} values, all equal; expected at least two different")
  # A label y between 0 and 1 counts for both sides: its loss is that of two rows with the labels 1
  # and 0 and the weights y and 1 − y.
  up, down = s_N[y_N > 0], s_N[y_N < 1]
  if not up.size or not down.size:
    raise ValueError(f"label_N is all {y_N[0]:g}; expected both kinds")
  if up.min() >= down.max() or down.min() >= up.max():
    raise ValueError(
      "a threshold on score_N separates label_N: the likelihood grows with |a| for ever; expected "
      "labels that overlap, or smooth=True"
    )
  mean, spread = s_N.mean(), s_N.std()
  x_N2 = np.stack([(s_N - mean) / spread, np.ones_like(s_N)], axis=1)

  def loss(w_2: np.ndarray) -> float:
    z_N = x_N2 @ w_2
    return float((np.logaddexp(0.0, z_N) - y_N * z_N).mean())

  w_2 = np.zeros(2)
  for _ in range(200):
    p_N = sigmoid(x_N2 @ w_2)
    slope_2 = x_N2.T @ (p_N - y_N) / len(y_N)
    curve_22 = (x_N2 * (p_N * (1 - p_N))[:, None]).T @ x_N2 / len(y_N)
    step_2 = np.linalg.solve(curve_22, slope_2)
    gain = float(slope_2 @ step_2)  # For a quadratic loss, twice the decrease of a full step.
    if gain < 1e-22:
      break
    # Armijo's rule: Newton's step overshoots if labels are nearly separated. The last term allows
    # for rounding errors, which are larger than the decrease near the minimum.
    size, before = 1.0, loss(w_2)
    while loss(w_2 - size * step_2) > before - 1e-4 * size * gain + 1e-13 * before:
      size /= 2
    w_2 = w_2 - size * step_2
  else:
    raise ValueError(f"no maximum found in 200 steps (slope {slope_2}); are labels all but split?")
  return float(w_2[0] / spread), float(w_2[1] - w_2[0] * mean / spread)


def isotonic(
  score_N: npt.ArrayLike, label_N: npt.ArrayLike, weight_N: npt.ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Isotonic regression: the non-decreasing function of score with the least squared error.

  It is computed by the pool-adjacent-violators algorithm, after labels of equal scores are
  averaged. It can follow any monotone curve and therefore needs many labels. Use it to judge the
  fits of `fit_platt` and `fit_temperature`, and not as the calibration of a released model.

  Args:
    score_N: [N], at least one.
    label_N: [N], finite; in [0, 1] if the result is to be a probability.
    weight_N: [N], above 0; ones by default.

  Returns:
    (knots_K, values_K), float64, knots increasing and values non-decreasing. Predict with
    `np.interp(scores, knots_K, values_K)`: linear between knots and constant beyond the ends.

  Raises:
    ValueError: lengths differ or are 0, a value is not finite, or a weight is not above 0.
  """
  s_N, y_N = vector(score_N, "score_N"), vector(label_N, "label_N")
  w_N = np.ones_like(s_N) if weight_N is None else vector(weight_N, "weight_N")
  if not len(s_N) or not len(s_N) == len(y_N) == len(w_N):
    raise ValueError(
      f"score_N has {len(s_N)} values, label_N {len(y_N)}, weight_N {len(w_N)}; expected as many, "
      "at least one"
    )
  if w_N.min() <= 0:
    raise ValueError(f"weight_N has {w_N.min()}; expected all above 0")
  knot_U, place_N = np.unique(s_N, return_inverse=True)
  weight_U = np.bincount(place_N, weights=w_N)
  mean_U = np.bincount(place_N, weights=w_N * y_N) / weight_U
  blocks: list[list[float]] = []  # [value, weight, number of knots] of each pooled block
  for value, weight in zip(mean_U.tolist(), weight_U.tolist(), strict=True):
    blocks.append([value, weight, 1])
    while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
      b, c = blocks[-2], blocks.pop()
      b[0] = (b[0] * b[1] + c[0] * c[1]) / (b[1] + c[1])
      b[1] += c[1]
      b[2] += c[2]
  value_U = np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])
  # Inside a constant stretch only the two end knots are needed to interpolate.
  keep = np.ones(len(knot_U), bool)
  keep[1:-1] = (value_U[1:-1] != value_U[:-2]) | (value_U[1:-1] != value_U[2:])
  return knot_U[keep], value_U[keep]


def both_orders(difference_N: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Turns each pair into two predictions, one for each order of its responses.

  In the order (chosen, rejected) the model predicts p = σ(Δ) that the first one wins, and it does;
  in the other order it predicts 1 − p, and the first one loses. With the first order alone, every
  outcome would be 1 and no frequency could be compared with a probability.

  Args:
    difference_N: [N], Δ, the chosen response's score minus the rejected one's, divided by the
      temperature.

  Returns:
    (p_2N, y_2N), float64: first all pairs as (chosen, rejected) with y = 1, then all reversed with
    y = 0. Use an even number of bins: with an odd one, the middle bin holds both orders of its
    pairs, so its frequency is 0.5 for any model. Pass the clusters twice (`[*c, *c]`) to `ece`.
  """
  d_N = vector(difference_N, "difference_N")
  ones_N = np.ones_like(d_N)
  return sigmoid(np.concatenate([d_N, -d_N])), np.concatenate([ones_N, 0 * ones_N])


def reliability(
  p_N: npt.ArrayLike,
  y_N: npt.ArrayLike,
  *,
  bins: int = 10,
  mass: bool = False,
  clusters: Sequence[Hashable] | None = None,
  level: float = 0.95,
  seed: int = 0,
) -> list[dict]:
  """Reliability diagram: predicted probability against observed frequency, by bin.

  Args:
    p_N: [N] in [0, 1], predictions, at least one.
    y_N: [N] in [0, 1], outcomes.
    bins: number of bins.
    mass: whether bins have equal numbers of predictions instead of equal widths. Their edges are
      quantiles of p; equal edges are merged, so there may be fewer bins.
    clusters: N labels of the clusters that each bin's interval is over (`interval.mean`). Without
      them the interval is Wilson's, which takes the predictions for independent.
    level, seed: of the intervals.

  Returns:
    For each bin {low, high, n, confidence, frequency, interval}. It has the predictions in
    (low, high]; the first bin includes its low end. `confidence` is the mean of p and `frequency`
    that of y. `interval` is the frequency's; with clusters it has `method` unless it is by the
    bootstrap, and is None, with `why`, if the bin has too few conversations. In an empty bin the
    last three are None.

  Raises:
    ValueError: an argument is out of its range, or there are not N cluster labels.
  """
  p_N, y_N = _pair(p_N, y_N, "p_N", "y_N", unit=True)
  if clusters is not None and len(clusters) != len(p_N):
    raise ValueError(f"{len(clusters)} cluster labels for {len(p_N)} values; expected as many")
  edges, bin_N = _binned(p_N, bins, mass)
  found = []
  for b, (low, high) in enumerate(itertools.pairwise(edges)):
    here = bin_N == b
    n, total = int(here.sum()), float(y_N[here].sum())
    if not n or clusters is None:
      shown = {"interval": list(wilson(total, n, level)) if n else None}
    else:
      mine = [clusters[i] for i in np.flatnonzero(here)]
      options = {"bounds": (0.0, 1.0), "share": True, "level": level, "seed": seed}
      shown = interval.mean(y_N[here], mine, **options).report()
    found.append(
      {
        "low": float(low),
        "high": float(high),
        "n": n,
        "confidence": float(p_N[here].mean()) if n else None,
        "frequency": total / n if n else None,
        **shown,
      }
    )
  return found


def ece(
  p_N: npt.ArrayLike,
  y_N: npt.ArrayLike,
  *,
  bins: int = 10,
  mass: bool = False,
  clusters: Sequence[Hashable] | None = None,
  level: float = 0.95,
  resamples: int = 1000,
  seed: int = 0,
) -> dict:
  """Expected calibration error: the plain one in the L1 norm, and a debiased one in the L2 norm.

    plain = Σ_b n_b/N |r̄_b|,   r = y − p;   debiased² = Σ_b n_b/N u_b,
    u_b = mean of r_i r_j over i, j in bin b of different conversations

  n_b is the number of predictions in bin b, and r̄_b their mean r. The plain error of a perfectly
  calibrated model is above 0 by chance, of the order √(bins/N). The debiased one has no such bias:
  the expectation of u_b is (E r)². Kumar et al.'s estimator of this square is
  r̄² − ȳ(1−ȳ)/(n−1). Without clusters, u_b is the same with the variance of r in place of that of
  y, which is also right if p varies within a bin. Neither error sees miscalibration that cancels
  within a bin.

  Args:
    p_N, y_N, bins, mass: of `reliability`.
    clusters: N labels; by default each prediction is a cluster of its own.
    level, resamples, seed: of the interval, over conversations. A conversation that is drawn twice
      is not paired with itself, because that would bring the bias back. In simulations the 95 %
      interval covered the truth in 98 % of the cases or more.

  Returns:
    {value: √max(debiased², 0), interval: [low, high] of value, n, squared: debiased², which may be
    negative, plain, alone: number of predictions in bins with a single conversation, which have no
    u_b and are left out of value}. If all are left out, value, interval and squared are None, with
    `why`. If only the interval does not exist, it is None, with `why`; others may have `method`.

  Raises:
    ValueError: an argument is out of its range.
  """
  p_N, y_N = _pair(p_N, y_N, "p_N", "y_N", unit=True)
  if not 0 < level < 1 or resamples < 1:
    raise ValueError(f"level is {level}, resamples {resamples}; expected (0, 1) and at least 1")
  edges, bin_N = _binned(p_N, bins, mass)
  n_bins = len(edges) - 1
  n = len(p_N)
  cluster_N, count = numbered(range(n) if clusters is None else clusters, n)
  cell_N = cluster_N * n_bins + bin_N
  size_CB = np.bincount(cell_N, minlength=count * n_bins).reshape(count, n_bins).astype(float)
  sum_CB = np.bincount(cell_N, y_N - p_N, count * n_bins).reshape(count, n_bins)
  squared, alone = _between(np.ones((1, count)), sum_CB, size_CB)
  report = {"value": None, "interval": None, "n": n, "squared": None}
  report |= {"plain": float(np.abs(sum_CB.sum(axis=0)).sum() / n), "alone": int(alone[0])}
  if not np.isfinite(squared[0]):
    return report | {"why": "no bin has predictions of two conversations"}
  plan = interval.Resampling(
    range(n) if clusters is None else clusters, level=level, resamples=resamples, seed=seed
  )
  drawn = [_between(times_RC, sum_CB, size_CB)[0] for times_RC in plan.times()]
  found = plan.interval(float(squared[0]), np.concatenate(drawn) if drawn else [])
  shown = found.report()
  if found.ends is not None:
    shown["interval"] = [float(np.sqrt(max(end, 0.0))) for end in found.ends]
  return report | {
    "value": float(np.sqrt(max(squared[0], 0.0))),
    "squared": float(squared[0]),
    **shown,
  }


def _between(times_RC, sum_CB, size_CB) -> tuple[np.ndarray, np.ndarray]:
  """The debiased square of each resample, and the number of predictions left out of it.

  The sum of r_i r_j over different conversations is the square of the bin's sum minus the squares
  of the conversations' sums. times_RC says how often resample r has conversation c.
  """
  all_RB, self_RB = times_RC @ size_CB, times_RC**2 @ size_CB**2
  above_RB = (times_RC @ sum_CB) ** 2 - times_RC**2 @ sum_CB**2
  below_RB = all_RB**2 - self_RB
  fine_RB = below_RB > 0
  mean_RB = np.divide(above_RB, below_RB, out=np.zeros_like(above_RB), where=fine_RB)
  used_R = (all_RB * fine_RB).sum(axis=1)
  total_R = (all_RB * mean_RB).sum(axis=1)
  square_R = np.divide(total_R, used_R, out=np.full_like(total_R, np.nan), where=used_R > 0)
  return square_R, all_RB.sum(axis=1) - used_R


def brier(p_N: npt.ArrayLike, y_N: npt.ArrayLike) -> float:
  """Brier score: the mean of (p − y)². Raises ValueError unless both are [N] in [0, 1], N > 0."""
  p_N, y_N = _pair(p_N, y_N, "p_N", "y_N", unit=True)
  return float(np.square(p_N - y_N).mean())


def nll(p_N: npt.ArrayLike, y_N: npt.ArrayLike) -> float:
  """Negative log-likelihood: the mean of −y log p − (1 − y) log(1 − p), in nats.

  Args:
    p_N, y_N: [N] in [0, 1], at least one.

  Raises:
    ValueError: an argument is out of its range, or the result is infinite (use `nll_logits`).
  """
  p_N, y_N = _pair(p_N, y_N, "p_N", "y_N", unit=True)
  wrong = np.flatnonzero(((p_N == 0) & (y_N > 0)) | ((p_N == 1) & (y_N < 1)))
  if wrong.size:
    raise ValueError(f"p_N[{wrong[0]}] is {p_N[wrong[0]]}, y_N {y_N[wrong[0]]}: infinitely wrong")
  up, down = y_N > 0, y_N < 1
  total = y_N[up] @ np.log(p_N[up]) + (1 - y_N[down]) @ np.log1p(-p_N[down])
  return float(-total / len(p_N))


def nll_logits(logit_N: npt.ArrayLike, y_N: npt.ArrayLike) -> float:
  """`nll` at p = σ(logit), finite even where σ rounds to 1 or 0 (in float64, above 37, below −745).

  Args:
    logit_N: [N], at least one: Δ/T of a pair (with y = 1), or a s + b of `fit_platt`.
    y_N: [N] in [0, 1].

  Raises:
    ValueError: lengths differ or are 0, or a value is not finite or out of its range.
  """
  z_N, y_N = _pair(logit_N, y_N, "logit_N", "y_N")
  if not len(z_N):
    raise ValueError("logit_N is empty; expected at least one")
  return float((y_N * np.logaddexp(0.0, -z_N) + (1 - y_N) * np.logaddexp(0.0, z_N)).mean())


def _pair(x, y, x_name: str, y_name: str, unit: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """Checks two float64 [N]: y must lie in [0, 1]; with `unit` x must too, and N must not be 0."""
  x_N, y_N = vector(x, x_name), vector(y, y_name)
  if len(x_N) != len(y_N):
    raise ValueError(f"{x_name} has {len(x_N)} values, {y_name} {len(y_N)}; expected as many")
  if unit and not len(x_N):
    raise ValueError(f"{x_name} is empty; expected at least one")
  for array, name in ((x_N, x_name), (y_N, y_name)) if unit else ((y_N, y_name),):
    wrong = np.flatnonzero((array < 0) | (array > 1))
    if wrong.size:
      raise ValueError(f"{name}[{wrong[0]}] is {array[wrong[0]]}; expected it in [0, 1]")
  return x_N, y_N


def _binned(p_N: np.ndarray, bins: int, mass: bool) -> tuple[np.ndarray, np.ndarray]:
  """(edges of the bins, which are (low, high]; the bin of each prediction)."""
  if bins < 1:
    raise ValueError(f"bins is {bins}; expected at least 1")
  edges = np.linspace(0.0, 1.0, bins + 1)
  if mass:
    edges = np.unique(np.quantile(p_N, edges))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
  return edges, np.searchsorted(edges[1:-1], p_N)
