"""A penalty on a whole step: the squared correlation of score with length.

A correlation is not a mean over lists, so it is no sum of penalties over micro-batches. But it is a
function of moments, and these are sums. First the `moments` of all micro-batches (and devices) are
added up; then each micro-batch takes the gradient of `linearised` at the total. By the chain rule
these gradients add up to that of the whole step, dP/dθ = Σ_m dP/dM · dm/dθ, where P is the penalty,
m the moments of one micro-batch and M = Σ m.
"""

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import check_shape


def moments(
  scores: jax.Array,
  lengths: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
) -> jax.Array:
  """float32 [6]: sums of w · (1, s, l, s², l², s l) over items of score s, length l and weight w.

  Args:
    scores: float [..., K].
    lengths: [..., K], in any unit.
    where: bool [..., K], False at padding, which adds neither value nor gradient.
    weights: float [..., K] >= 0, w of each item, taken as they are; None is 1.

  Raises:
    ValueError: a shape does not fit.
  """
  check_shape("lengths", lengths, scores.shape)
  check_shape("where", where, scores.shape)
  w = where.astype(jnp.float32)
  if weights is not None:
    check_shape("weights", weights, scores.shape)
    w = jnp.where(where, weights.astype(jnp.float32), 0.0)
  s = jnp.where(where, scores.astype(jnp.float32), 0.0)
  l = jnp.where(where, lengths.astype(jnp.float32), 0.0)
  return jnp.stack([jnp.sum(w * x) for x in (jnp.ones_like(s), s, l, s * s, l * l, s * l)])


# A variance below this share of the mean square is indistinguishable from rounding in float32, and
# counts as 0.
NEGLIGIBLE = 1e-5


def penalty(total: jax.Array) -> jax.Array:
  """Squared Pearson correlation of score and length, from the moments of a whole step.

    P = cov(s, l)² / (var(s) var(l)), and 0 with zero gradient if a variance is negligible or no
    item has a weight above 0

  Args:
    total: float32 [6], sum of `moments`.

  Returns:
    float32 scalar in [0, 1] (ODIN penalises |ρ|, Chen et al. 2024; the square is smooth at 0).
  """
  count = jnp.where(total[0] > 0, total[0], 1.0)
  s, l, ss, ll, sl = total[1:] / count
  var_s, var_l, cov = ss - s * s, ll - l * l, sl - s * l
  fine = (total[0] > 0) & (var_s > NEGLIGIBLE * ss) & (var_l > NEGLIGIBLE * ll)
  product = jnp.where(fine, var_s, 1.0) * jnp.where(fine, var_l, 1.0)
  return jnp.where(fine, jnp.minimum(cov * cov / product, 1.0), 0.0)


def linearised(part: jax.Array, total: jax.Array) -> jax.Array:
  """Σ stop_gradient(dP/dM) · m, whose gradient is a micro-batch's part of the penalty's gradient.

  Args:
    part: float32 [6], this micro-batch's `moments`, with their gradient.
    total: float32 [6], those of the whole step.

  Returns:
    float32 scalar. Multiply it by the penalty's weight and add it to the micro-batch's loss; its
    value means nothing (report `penalty(total)`). If the summed gradients are divided afterwards by
    the total weight of the step, multiply it by that total weight too, so that they cancel.
  """
  return jnp.vdot(jax.lax.stop_gradient(jax.grad(penalty)(total)), part, precision="highest")
