"""Comparisons: who was preferred to whom in a list, how much it counts, and the mean over them.

Every loss takes scores and labels [..., K] whose last axis is the list, and these keywords:
  where: bool [..., K], which are real; the others, NaN or not, add neither value nor gradient.
  weights: float [..., K] >= 0, of each item; only their ratios within the list matter.
Losses of comparisons also take:
  pairs: float [..., K, K] >= 0; [i, j] is the weight with which i was seen preferred to j: 1 for a
    hard pair; p and 1 - p at [i, j] and [j, i] for a soft one; counts for several annotators. None:
    1 wherever label i is above label j.
  ties: float [..., K, K], symmetric; [i, j] = [j, i] is the weight with which the two were seen
    tied, counted once. None: none where `pairs` are given, else 1 wherever labels are equal.
  pair_margin: float [..., K, K], by how much i should beat j.
The diagonal is never read. A comparison of i over j counts pairs[i, j] times the weight of i, the
preferred one (as in Rax), so item weights shift a soft preference: weigh those in `pairs`. A tie
counts by the mean weight of the two.
A loss is the mean over a list's comparisons by what they count; 0 where there is none.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError


def check_shape(name: str, array: jax.Array, expected: tuple[int, ...]) -> None:
  """ValueError if `array` is not of the shape expected: a broadcast here would be a silent bug."""
  if array.shape != expected:
    raise ValueError(f"{name} is {array.shape}; expected {expected}")


def check_range(name: str, value, low: float, high: float, *, open_low: bool = False) -> None:
  """ValueError unless low <= value < high (low < value if open); traced values are taken as is."""
  if isinstance(value, (int, float)) and not (
    low < value < high or (value == low and not open_low)
  ):
    raise InputError(f"{name} is {value}; expected it in {'(' if open_low else '['}{low}, {high})")


def real_scores(scores: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
  """float32 scores, 0 where not real, after a check of the shapes."""
  check_shape("labels", labels, scores.shape)
  check_shape("where", where, scores.shape)
  return jnp.where(where, scores.astype(jnp.float32), 0.0)


def item_weights(weights: jax.Array | None, where: jax.Array) -> jax.Array:
  """float32 [..., K]: weights with mean 1 over a list's real items, 0 where not real."""
  if weights is None:
    return where.astype(jnp.float32)
  check_shape("weights", weights, where.shape)
  weights = jnp.where(where, weights.astype(jnp.float32), 0.0)
  count = jnp.sum(where, axis=-1, keepdims=True)
  mean = jnp.sum(weights / jnp.maximum(count, 1), axis=-1, keepdims=True)
  return weights / jnp.where(mean > 0, mean, 1.0)


def mean_by(values: jax.Array, weights: jax.Array, axis: tuple[int, ...]) -> jax.Array:
  """Σ w v / Σ w, 0 where Σ w is; entries of weight 0 add neither value nor gradient."""
  total = jnp.sum(weights, axis=axis, keepdims=True)
  # Shares first: a sum of K² values near float32's limit would overflow, their mean does not.
  share = weights / jnp.where(total > 0, total, 1.0)
  return jnp.sum(jnp.where(share > 0, share * values, 0.0), axis=axis)


def mean_where(values: jax.Array, where: jax.Array, axis: tuple[int, ...]) -> jax.Array:
  """Mean of those `where`, 0 where there is none; the masked add neither value nor gradient."""
  return mean_by(values, where.astype(jnp.float32), axis)


def real_pairs(where: jax.Array) -> jax.Array:
  """bool [..., K, K]: both real, and not an item with itself."""
  itself = jnp.broadcast_to(jnp.eye(where.shape[-1], dtype=bool), (*where.shape, where.shape[-1]))
  return where[..., :, None] & where[..., None, :] & ~itself


def better_pairs(labels: jax.Array, where: jax.Array) -> jax.Array:
  """bool [..., K, K]: both real, and label i above label j."""
  real = where[..., :, None] & where[..., None, :]
  return real & (labels[..., :, None] > labels[..., None, :])


def pair_weights(
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
  pairs: jax.Array | None = None,
) -> jax.Array:
  """float32 [..., K, K]: how much each comparison of i over j counts; see the module."""
  real = real_pairs(where)
  if pairs is None:
    seen = better_pairs(labels, where).astype(jnp.float32)
  else:
    check_shape("pairs", pairs, real.shape)
    seen = jnp.where(real, pairs.astype(jnp.float32), 0.0)
  return seen * item_weights(weights, where)[..., :, None]


def tie_weights(
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
  pairs: jax.Array | None = None,
  ties: jax.Array | None = None,
) -> jax.Array:
  """float32 [..., K, K]: how much each tie counts, half of it at [i, j] and half at [j, i]."""
  real = real_pairs(where)
  if ties is not None:
    check_shape("ties", ties, real.shape)
    seen = jnp.where(real, ties.astype(jnp.float32), 0.0)
  elif pairs is None:
    seen = (real & (labels[..., :, None] == labels[..., None, :])).astype(jnp.float32)
  else:
    seen = jnp.zeros(real.shape, jnp.float32)
  return 0.5 * seen * item_weights(weights, where)[..., :, None]


def compare(
  value: Callable[[jax.Array], jax.Array],
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  temperature: float = 1.0,
) -> jax.Array:
  """float32 [...]: mean of value(D) over a list's comparisons, D_ij = (s_i - s_j - m_ij) / T.

  Args:
    value: elementwise, from D [..., K, K] to the loss of "i was preferred to j".
    scores: float [..., K].
    labels: float [..., K]; not read where `pairs` are given.
    where: bool [..., K].
    weights: float [..., K].
    pairs: float [..., K, K].
    pair_margin: float [..., K, K], added to `margin`; of the pair [i, j] alone.
    margin: m of every comparison, in units of score.
    temperature: T > 0.

  Raises:
    ValueError: at a shape that does not fit, or a temperature that is not positive.
  """
  check_range("temperature", temperature, 0.0, float("inf"), open_low=True)
  scores = real_scores(scores, labels, where)
  counts = pair_weights(labels, where=where, weights=weights, pairs=pairs)
  difference = scores[..., :, None] - scores[..., None, :] - margin
  if pair_margin is not None:
    check_shape("pair_margin", pair_margin, difference.shape)
    difference -= pair_margin
  # Zero before `value` as well as after: a NaN or an infinite slope there would reach the gradient.
  difference = jnp.where(counts > 0, difference / temperature, 0.0)
  return mean_by(value(difference), counts, (-2, -1))
