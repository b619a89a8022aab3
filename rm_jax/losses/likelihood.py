"""Log-likelihood of tokens from hidden states, without the logits of all tokens in memory.

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

  Only the logits of `chunk` tokens are in memory at a time: chunk · V numbers for each leading
  index and not N · V. The backward pass computes them again (rematerialisation). A chunk is skipped
  if `where` is False for it at all leading indices, so it pays to put the tokens that count first.

  Args:
    hidden: float [..., N, D], the states that predict the targets.
    head_VD: float [V, D], the language model's head (if it is tied, the embedding itself).
    targets: int [..., N], in 0 .. V − 1.
    where: bool [..., N], tokens that count; the others give 0 and no gradient. None is all.
    chunk: tokens at a time, for each leading index. Leading axes are not merged with others, so
      that they may be sharded.

  Returns:
    float32 [..., N]; logits in float32 at the highest precision whatever the dtype of `hidden`.

  Raises:
    ValueError: a shape does not fit, or `chunk` is below 1.
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
  # A hidden state that does not count is set to 0, because a NaN in it would reach the head's
  # gradient: 0 · NaN is NaN.
  hidden = jnp.where(where[..., None], hidden, 0)
  targets = jnp.where(where, targets, 0)
  # The head is cast here and not in each chunk, so that the head's gradient is summed over chunks
  # in float32: bfloat16 would round the later terms away.
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

  # Whether a chunk has a token that counts, at any leading index. One reduction before the loop
  # finds it for all chunks. If leading axes are sharded, all devices then take the same branch of
  # the cond.
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
  """Sums the values of each response's tokens; group and branch as in `rm_jax.types.Batch`.

  Args:
    values_BT: float [B, T], such as the result of `token_log_likelihood`.
    group_BT: int [B, T], 1 .. G; tokens of group 0, padding, are not counted.
    branch_BT: int [B, T], 1 .. K; tokens of branch 0, the shared prompt, are not counted.
    groups: G, a Python int.
    branches: K, a Python int.

  Returns:
    float32 [B, G, K], 0 where there is no such response. Values of 1 count tokens.

  Raises:
    ValueError: a shape does not fit.
  """
  check_shape("group_BT", group_BT, values_BT.shape)
  check_shape("branch_BT", branch_BT, values_BT.shape)
  real = (group_BT > 0) & (branch_BT > 0) & (group_BT <= groups) & (branch_BT <= branches)
  index = jnp.where(real, (group_BT - 1) * branches + branch_BT - 1, 0)
  values = jnp.where(real, values_BT.astype(jnp.float32), 0.0)

  def row(v, i):
    return jax.ops.segment_sum(v, i, num_segments=groups * branches)

  return jax.vmap(row)(values, index).reshape(-1, groups, branches)
