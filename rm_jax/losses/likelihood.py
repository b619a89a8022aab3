"""Log-likelihood of text from hidden states, without ever holding the logits of all tokens.

Shape letters: N tokens, D model width, V vocabulary, B rows, T columns, G groups a row, K branches.
"""

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import check_shape


def token_log_likelihood(
  hidden: jax.Array,
  head_VD: jax.Array,
  targets: jax.Array,
  *,
  where: jax.Array | None = None,
  chunk: int = 256,
) -> jax.Array:
  """log softmax(head · h)[target] of each token.

  The logits of `chunk` tokens exist at a time, forward and backward (computed again in the latter):
  memory is chunk · V a row and not N · V. A chunk of which nothing counts is passed over, so that
  it pays to put the tokens that count first.

  Args:
    hidden: float [..., N, D], the states that predict the targets.
    head_VD: float [V, D], the language model's head (a tied embedding as it is).
    targets: int [..., N], in 0 .. V − 1.
    where: bool [..., N], tokens that count; the others give 0 and no gradient. None is all.
    chunk: tokens a time, of each leading index: leading axes are never mixed, so that they may be
      divided over devices.

  Returns:
    float32 [..., N]; logits in float32 at the highest precision whatever the dtype of `hidden`.

  Raises:
    ValueError: at a shape that does not fit.
  """
  *lead, n, width = hidden.shape
  check_shape("targets", targets, (*lead, n))
  check_shape("head_VD", head_VD, (head_VD.shape[0], width))
  if chunk < 1:
    raise ValueError(f"chunk is {chunk}; expected at least 1")
  every = where is None
  if every:
    where = jnp.ones((*lead, n), bool)
  check_shape("where", where, (*lead, n))
  # A NaN in a state that does not count would reach the head's gradient.
  hidden = jnp.where(where[..., None], hidden, 0)
  targets = jnp.where(where, targets, 0)
  # Here and not in each chunk: its gradient is summed over them, which bfloat16 would round away.
  head_VD = head_VD.astype(jnp.float32)

  chunk = max(1, min(chunk, n))
  count = -(-n // chunk)

  def split(array):  # [..., N, *rest] -> [count, ..., chunk, *rest]
    axis = len(lead)
    fill = [(0, 0)] * array.ndim
    fill[axis] = (0, count * chunk - n)
    array = jnp.pad(array, fill)
    array = array.reshape(*lead, count, chunk, *array.shape[axis + 1 :])
    return jnp.moveaxis(array, axis, 0)

  @jax.checkpoint
  def values_of(h, y):
    logits = jnp.einsum(
      "...nd,vd->...nv",
      h.astype(jnp.float32),
      head_VD,
      precision=jax.lax.Precision.HIGHEST,
    )
    chosen = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)

  # Of all leading indices at once, and before the loop: over devices that is one reduction.
  busy = jnp.any(split(where), axis=tuple(range(1, len(lead) + 2)))

  def one(part):
    h, y, here = part
    if every:
      return values_of(h, y)
    return jax.lax.cond(here, values_of, lambda h, y: jnp.zeros(y.shape, jnp.float32), h, y)

  values = jax.lax.map(one, (split(hidden), split(targets), busy))
  values = jnp.moveaxis(values, 0, len(lead)).reshape(*lead, count * chunk)[..., :n]
  return jnp.where(where, values, 0.0)


def sum_by_response(
  values_BT: jax.Array,
  group_BT: jax.Array,
  branch_BT: jax.Array,
  *,
  groups: int,
  branches: int,
) -> jax.Array:
  """Sum of the values of each response's tokens; ids as in `rm_jax.types.Batch`.

  Args:
    values_BT: float [B, T], such as `token_log_likelihood`.
    group_BT: int [B, T], 1 .. G, of the token; 0 = padding, not counted.
    branch_BT: int [B, T], 1 .. K; 0 = shared prompt, not counted.
    groups: G, static.
    branches: K, static.

  Returns:
    float32 [B, G, K], 0 where there is no such response. With ones for values it counts tokens.

  Raises:
    ValueError: at a shape that does not fit.
  """
  check_shape("group_BT", group_BT, values_BT.shape)
  check_shape("branch_BT", branch_BT, values_BT.shape)
  real = (group_BT > 0) & (branch_BT > 0) & (group_BT <= groups) & (branch_BT <= branches)
  index = jnp.where(real, (group_BT - 1) * branches + branch_BT - 1, 0)
  values = jnp.where(real, values_BT.astype(jnp.float32), 0.0)

  def row(v, i):
    return jax.ops.segment_sum(v, i, num_segments=groups * branches)

  return jax.vmap(row)(values, index).reshape(-1, groups, branches)
