"""Losses of comparisons: pairs, rankings by all their pairs, soft preferences.

Each returns one value a list, float32 [...]: the mean over the list's comparisons by what they
count. `rm_jax.losses.compare` says what the shared keywords mean and how comparisons are found from
`pairs` or, where None, from the order of labels (equal labels make none). Throughout
D = (s_i − s_j − m_ij) / T for "i was preferred to j", m_ij = margin + pair_margin[i, j]. All raise
ValueError at a shape that does not fit or an option out of its range.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import (
  better_pairs,
  check_range,
  check_shape,
  compare,
  mean_where,
  pair_weights,
  real_scores,
)

__all__ = [  # better_pairs and mean_where for the training step's metrics
  "better_pairs",
  "exponential",
  "hinge",
  "logistic",
  "mean_where",
  "scaled_logistic",
  "squared_hinge",
]


def logistic(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
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
    where: bool [..., K], which are real.
    weights: float [..., K], of the items.
    pairs: float [..., K, K], observed comparisons. A soft preference is p at [i, j] and 1 − p at
      [j, i]: cross-entropy, each direction with its own margin.
    pair_margin: float [..., K, K], m of each pair, added to `margin`.
    margin: m of every pair, in units of score (Touvron et al. 2023, Llama 2, eq. 2).
    smoothing: ε in [0, 1/2), the share of comparisons taken to be wrong: (1 − ε) pairs + ε pairsᵀ,
      a flipped one having the margin −m.
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
    weights=weights,
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
  weights: jax.Array | None = None,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  smoothing: float = 0.0,
  temperature: float = 1.0,
) -> jax.Array:
  """Bradley–Terry times the strength of each preference.

    |m_ij| · ((1 − ε) · −log σ(D) + ε · −log σ(−D)),  D = (s_i − s_j) / T

  Args: as in `logistic`, but pair_margin: float [..., K, K] is the strength, required and not
  subtracted.

  Returns:
    float32 [...], Σ count · strength · loss / Σ count: strengths are not normalised away (Wang et
    al. 2024, HelpSteer2-Preference; NeMo-Aligner's scaled_bt).

  Raises:
    ValueError: without `pair_margin`, as it would silently be `logistic`; else as the others.
  """
  check_range("smoothing", smoothing, 0.0, 0.5)
  if pair_margin is None:
    raise ValueError("scaled_logistic needs pair_margin, the strength of each preference")
  scores = real_scores(scores, labels, where)
  check_shape("pair_margin", pair_margin, (*scores.shape, scores.shape[-1]))
  counts = pair_weights(labels, where=where, weights=weights, pairs=pairs)
  strength = jnp.where(counts > 0, jnp.abs(pair_margin.astype(jnp.float32)), 0.0)

  def value(d):
    return strength * ((1 - smoothing) * jax.nn.softplus(-d) + smoothing * jax.nn.softplus(d))

  return compare(
    value, scores, labels, where=where, weights=weights, pairs=pairs, temperature=temperature
  )


def no_strength(labels: Sequence[float], margin: float | None, **options: float) -> str:
  """What `scaled_logistic` lacks of a group: without a margin its strength would be 0."""
  del labels, options
  return "" if margin is not None else "it has no margin, the strength of its preference"


def hinge(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 1.0,
) -> jax.Array:
  """max(0, −D): the better should win by its margin, 1 if nothing else is said.

  Args: as in `logistic`; T = 1. A flipped comparison keeps its margin, so that a soft preference p
  gives p · max(0, m − Δ) + (1 − p) · max(0, m + Δ).

  Returns:
    float32 [...], mean over the list's comparisons (Herbrich et al. 1999, ranking SVM).
  """
  return compare(
    lambda d: jax.nn.relu(-d),
    scores,
    labels,
    where=where,
    weights=weights,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
  )


def squared_hinge(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
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
    weights=weights,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
  )


def exponential(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  temperature: float = 1.0,
  clamp: float = 5.0,
) -> jax.Array:
  """exp(−D), continued by its tangent where −D passes the clamp c.

    exp(−D) if −D ≤ c, else eᶜ (1 − D − c)

  Convex and once differentiable; no comparison's slope passes eᶜ, and none loses its slope, as one
  cut flat would.

  Args: as in `logistic`, and
    clamp: c >= 0.

  Returns:
    float32 [...], mean over the list's comparisons (Freund et al. 2003, RankBoost).
  """
  check_range("clamp", clamp, 0.0, float("inf"))

  def value(d):
    below = jnp.minimum(-d, clamp)
    return jnp.exp(below) + jnp.exp(clamp) * jax.nn.relu(-d - clamp)

  return compare(
    value,
    scores,
    labels,
    where=where,
    weights=weights,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
    temperature=temperature,
  )
