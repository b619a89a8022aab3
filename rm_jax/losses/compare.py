"""Comparisons within a list: who was preferred to whom, and the mean over them.

Losses take scores and labels [..., K] whose last axis is the list, and the keyword
  where: bool [..., K], True at items and False at padding. Padding adds neither value nor
    gradient, even if it is NaN.
Losses of comparisons also take some of
  pairs: float [..., K, K] >= 0; [i, j] is the weight with which i was seen preferred to j: 1 for a
    hard pair; p and 1 - p at [i, j] and [j, i] for a soft one; counts for several annotators. If
    None, 1 wherever label i is above label j.
  ties: float [..., K, K], symmetric; [i, j] = [j, i] is the weight with which the two were seen
    tied, counted once. If None, there are no ties where `pairs` are given, else a tie of weight 1
    wherever labels are equal.
  pair_margin: float [..., K, K], by how much i should beat j where i was preferred to j.
The diagonal is never read. A loss of comparisons is the weighted mean over the list's comparisons,
0 for a list that has none, and NaN where a weight between two items is NaN.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError


def check_shape(name: str, array: jax.Array, expected: tuple[int, ...]) -> None:
  """Raises ValueError if an array does not have the expected shape.

  Broadcasting would hide the mistake: margins [B, 1] less scores [B] are [B, B] without an error.
  """
  if array.shape != expected:
    raise ValueError(f"{name} is {array.shape}; expected {expected}")


def check_range(name: str, value, low: float, high: float, *, open_low: bool = False) -> None:
  """Raises InputError unless low <= value < high (low < value if `open_low`).

  Only Python numbers are checked: the value of a traced array is not known yet.
  """
  if isinstance(value, (int, float)) and not (
    low < value < high or (value == low and not open_low)
  ):
    raise InputError(f"{name} is {value}; expected it in {'(' if open_low else '['}{low}, {high})")


def real_scores(scores: jax.Array, labels: jax.Array, where: jax.Array) -> jax.Array:
  """float32 scores that are 0 at padding. Raises ValueError if the three shapes differ."""
  check_shape("labels", labels, scores.shape)
  check_shape("where", where, scores.shape)
  return jnp.where(where, scores.astype(jnp.float32), 0.0)


def mean_by(values: jax.Array, weights: jax.Array, axis: tuple[int, ...]) -> jax.Array:
  """Σ w v / Σ w over `axis`, or 0 if Σ w is 0. Entries of weight 0 add no value and no gradient.

  Weights of which one is NaN, or whose sum is infinite, have no mean: it is NaN.
  """
  total = jnp.sum(weights, axis=axis, keepdims=True)
  # The weights are divided by their total before the sum: for K² values near float32's largest
  # number, Σ w v would overflow, although the mean does not.
  share = weights / jnp.where(total <= 0, 1.0, total)
  return jnp.sum(jnp.where(share <= 0, 0.0, share * values), axis=axis)


def mean_where(values: jax.Array, where: jax.Array, axis: tuple[int, ...]) -> jax.Array:
  """Mean of the values at which `where` is True, or 0 if there is none; others add no gradient."""
  return mean_by(values, where.astype(jnp.float32), axis)


def real_pairs(where: jax.Array) -> jax.Array:
  """bool [..., K, K]: i and j are different items, and neither is padding."""
  itself = jnp.broadcast_to(jnp.eye(where.shape[-1], dtype=bool), (*where.shape, where.shape[-1]))
  return where[..., :, None] & where[..., None, :] & ~itself


def better_pairs(labels: jax.Array, where: jax.Array) -> jax.Array:
  """bool [..., K, K]: label i is above label j, and neither item is padding."""
  real = where[..., :, None] & where[..., None, :]
  return real & (labels[..., :, None] > labels[..., None, :])


def pair_weights(
  labels: jax.Array, *, where: jax.Array, pairs: jax.Array | None = None
) -> jax.Array:
  """float32 [..., K, K]: weight of "i was preferred to j": `pairs`, or as the module says.

  Raises ValueError if `pairs` has another shape.
  """
  if pairs is None:
    return better_pairs(labels, where).astype(jnp.float32)
  real = real_pairs(where)
  check_shape("pairs", pairs, real.shape)
  return jnp.where(real, pairs.astype(jnp.float32), 0.0)


def tie_weights(
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  ties: jax.Array | None = None,
) -> jax.Array:
  """float32 [..., K, K]: weight of each tie, half of it at [i, j] and half at [j, i].

  Raises ValueError if `ties` has another shape.
  """
  real = real_pairs(where)
  if ties is not None:
    check_shape("ties", ties, real.shape)
    seen = jnp.where(real, ties.astype(jnp.float32), 0.0)
  elif pairs is None:
    seen = (real & (labels[..., :, None] == labels[..., None, :])).astype(jnp.float32)
  else:
    seen = jnp.zeros(real.shape, jnp.float32)
  return 0.5 * seen


def compare(
  value: Callable[[jax.Array], jax.Array],
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  temperature: float = 1.0,
) -> jax.Array:
  """float32 [...]: mean of value(D) over a list's comparisons, D_ij = (s_i - s_j - m_ij) / T.

  Args:
    value: elementwise, from D [..., K, K] to the loss of "i was preferred to j".
    scores: float [..., K].
    labels: float [..., K]; if `pairs` are given, only their shape is read.
    where: bool [..., K], True at items and False at padding.
    pairs: float [..., K, K], weights of the comparisons; None = 1 where label i is above label j.
    pair_margin: float [..., K, K], added to `margin`, for the comparison [i, j] only.
    margin: m of every comparison, in units of score.
    temperature: T > 0.

  Raises:
    ValueError: a shape does not fit.
    InputError: the temperature is not positive and finite.
  """
  check_range("temperature", temperature, 0.0, float("inf"), open_low=True)
  scores = real_scores(scores, labels, where)
  counts = pair_weights(labels, where=where, pairs=pairs)
  difference = scores[..., :, None] - scores[..., None, :] - margin
  if pair_margin is not None:
    check_shape("pair_margin", pair_margin, difference.shape)
    difference -= pair_margin
  # Masked before `value` as well as after (in `mean_by`): if `value` or its slope were NaN or
  # infinite at a masked difference, so would the gradient be, since 0 · NaN is NaN.
  difference = jnp.where(counts > 0, difference / temperature, 0.0)
  return mean_by(value(difference), counts, (-2, -1))
