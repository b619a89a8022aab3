"""Losses of comparisons: pairs, all pairs of a ranking, soft preferences.

Each returns one value a list, float32 [...]: the weighted mean over the list's comparisons.
`rm_jax.losses.compare` says what the shared keywords mean. Comparisons are those in `pairs` or, if
that is None, those of the labels' order (equal labels make none). Unless a loss says otherwise,
D = (s_i − s_j − m_ij) / T for "i was preferred to j", m_ij = margin + pair_margin[i, j]. All raise
ValueError if a shape does not fit, and InputError if an option is out of its range.

  >>> scores, labels = jnp.asarray([1.2, 0.5]), jnp.asarray([1.0, 0.0])
  >>> where = jnp.ones(2, bool)
  >>> print(f"{logistic(scores, labels, where=where):.4f}")  # log(1 + exp(-0.7))
  0.4032
  >>> print(f"{hinge(scores, labels, where=where):.4f}")  # max(0, 1 - 0.7)
  0.3000
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import (
  check_range,
  check_shape,
  compare,
  pair_weights,
  real_scores,
)


def logistic(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  smoothing: float = 0.0,
  temperature: float = 1.0,
) -> jax.Array:
  """Bradley–Terry's negative log-likelihood, with margin, label smoothing and temperature.

    (1 − ε) · −log σ(D) + ε · −log σ(−D)

  Args:
    scores: float [..., K].
    labels: float [..., K], gains; equal labels make no comparison.
    where: bool [..., K], True at items and False at padding.
    pairs: float [..., K, K], weights of observed comparisons. A soft preference is p at [i, j] and
      1 − p at [j, i]: its loss is a cross-entropy, in which each direction has its own margin.
    pair_margin: float [..., K, K], m of each pair, added to `margin`.
    margin: m of every pair, in units of score (Touvron et al. 2023, Llama 2, eq. 2).
    smoothing: ε in [0, 1/2), the share of comparisons that are assumed to be wrong:
      (1 − ε) pairs + ε pairsᵀ, with margin −m for the flipped ones.
    temperature: T > 0, divides difference and margin.

  Returns:
    float32 [...], mean over the list's comparisons (Bradley & Terry 1952; Ouyang et al. 2022, eq.
    1).
  """
  check_range("smoothing", smoothing, 0.0, 0.5)
  return compare(
    lambda d: (1 - smoothing) * jax.nn.softplus(-d) + smoothing * jax.nn.softplus(d),
    scores,
    labels,
    where=where,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
    temperature=temperature,
  )


def scaled_logistic(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pair_margin: jax.Array,
  pairs: jax.Array | None = None,
  smoothing: float = 0.0,
  temperature: float = 1.0,
) -> jax.Array:
  """Bradley–Terry times the strength of each preference.

    |m_ij| · ((1 − ε) · −log σ(D) + ε · −log σ(−D)),  D = (s_i − s_j) / T

  Args: as in `logistic` without `margin`, but pair_margin: float [..., K, K] is the strength of
  each preference and is not subtracted. It has no default: without it this would silently be
  `logistic`.

  Returns:
    float32 [...], Σ weight · strength · loss / Σ weight over the list's comparisons: the strengths
    are not in the divisor, so that stronger preferences make a larger loss (Wang et al. 2024,
    HelpSteer2-Preference; NeMo-Aligner's scaled_bt).
  """
  check_range("smoothing", smoothing, 0.0, 0.5)
  scores = real_scores(scores, labels, where)
  check_shape("pair_margin", pair_margin, (*scores.shape, scores.shape[-1]))
  counts = pair_weights(labels, where=where, pairs=pairs)
  strength = jnp.where(counts > 0, jnp.abs(pair_margin.astype(jnp.float32)), 0.0)

  def value(d):
    return strength * ((1 - smoothing) * jax.nn.softplus(-d) + smoothing * jax.nn.softplus(d))

  return compare(value, scores, labels, where=where, pairs=pairs, temperature=temperature)


def no_strength(labels: Sequence[float], margin: float | None, **options: float) -> str:
  """Why `scaled_logistic` cannot use a group, '' if it can: without a margin the strength is 0."""
  del labels, options
  return "" if margin is not None else "it has no margin, the strength of its preference"


def hinge(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 1.0,
) -> jax.Array:
  """max(0, −D): the better one should win by its margin, by default 1.

  Args: as in `logistic` without `smoothing`; T = 1. A soft preference p with the margin m in both
  directions costs p · max(0, m − Δ) + (1 − p) · max(0, m + Δ), Δ = s_i − s_j.

  Returns:
    float32 [...], mean over the list's comparisons (Herbrich et al. 1999, ranking SVM).
  """
  return compare(
    lambda d: jax.nn.relu(-d),
    scores,
    labels,
    where=where,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
  )


def squared_hinge(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 1.0,
) -> jax.Array:
  """max(0, −D)²: `hinge`, smooth where it meets zero (Chapelle & Keerthi 2010).

  Args, normalisation: as in `hinge`. Returns float32 [...].
  """
  return compare(
    lambda d: jnp.square(jax.nn.relu(-d)),
    scores,
    labels,
    where=where,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
  )


def exponential(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  temperature: float = 1.0,
  clamp: float = 5.0,
) -> jax.Array:
  """exp(−D), continued by its tangent where −D is above the clamp c.

    exp(−D) if −D ≤ c, else eᶜ (1 − D − c)

  Convex and once differentiable. In D no slope is steeper than eᶜ. Beyond the clamp it is not 0, as
  it would be if the loss were cut off there.

  Args: as in `logistic`, with this in place of `smoothing`:
    clamp: c in [0, 88.72): eᶜ is finite in float32.

  Returns:
    float32 [...], mean over the list's comparisons (Freund et al. 2003, RankBoost).
  """
  check_range("clamp", clamp, 0.0, 88.72)  # below the logarithm of the largest float32

  def value(d):
    below = jnp.where(-d > clamp, clamp, -d)  # jnp.minimum halves the slope at the clamp itself
    return jnp.exp(below) + jnp.exp(clamp) * jax.nn.relu(-d - clamp)

  return compare(
    value,
    scores,
    labels,
    where=where,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
    temperature=temperature,
  )


def ipo(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  tau: float = 0.1,
) -> jax.Array:
  """((D − 1/2) / τ)²: the better response should win by 1/2, and not by more.

  Of implicit rewards r = β · log(π / π_ref) with τ = β (`model.beta`) this is the paper's loss:
  with h = D / β, the difference of the log-ratios, it is (h − 1 / 2τ)². There τ is the weight of
  the divergence from the reference. Other trainers divide each log-likelihood by its response's
  tokens first (TRL's loss_type 'ipo'), which is this loss of rewards with `model.normalised`.

  Args: scores, labels, where and pairs as in `logistic`, with D = s_i − s_j, and
    tau: τ > 0. It only scales the loss, unless the scores depend on it as above.

  Returns:
    float32 [...], mean over the list's comparisons (Azar et al. 2023, "A General Theoretical
    Paradigm to Understand Learning from Human Preferences", IPO, eq. 17).
  """
  check_range("tau", tau, 0.0, float("inf"), open_low=True)
  return compare(lambda d: jnp.square((d - 0.5) / tau), scores, labels, where=where, pairs=pairs)
