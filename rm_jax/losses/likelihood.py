"""Log-likelihood of tokens from hidden states, without the logits of all tokens in memory.

It is summed over the tokens of each response (`response_log_likelihood`), or up to each mark
(`mark_log_likelihood`), which is what an implicit reward is read from (`models.network`). A policy
is trained on that of each token (`own_log_likelihood`).

Shape letters: N tokens, D model width, V vocabulary, B rows, T columns, G groups a row, K branches
or marks of a group.
"""

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import check_shape
from rm_jax.types import Batch


def token_log_likelihood(
  hidden: jax.Array,
  head_VD: jax.Array,
  targets: jax.Array,
  *,
  where: jax.Array | None = None,
  chunk: int = 256,
  cap: float | None = None,
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
    cap: logits become cap · tanh(logit / cap), as those of Gemma 2; None = they stay.

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
    if cap is not None:
      logits = cap * jnp.tanh(logits / cap)
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
  """Sums the values of each branch's tokens; group and branch as in `rm_jax.types.Batch`.

  Args:
    values_BT: float [B, T], such as the result of `token_log_likelihood`.
    group_BT: int [B, T], 1 .. G; tokens of group 0, padding, are not counted.
    branch_BT: int [B, T], 1 .. K; tokens of branch 0, the shared prompt, are not counted.
    groups: G, a Python int.
    branches: K, a Python int.

  Returns:
    float32 [B, G, K], 0 where there is no such branch. Values of 1 count tokens.

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


def response_log_likelihood(
  h_BTD: jax.Array, head_VD: jax.Array, batch: Batch, wanted_BGK: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Σ log π over the tokens of each wanted response, EOS included, and the number of tokens.

  Args:
    h_BTD: the backbone's last hidden states, [B, T, D].
    head_VD: float [V, D], the language-model head.
    batch: with `previous`.
    wanted_BGK: bool, by response (and not by mark).

  Returns:
    float32 [B, G, K] twice, by response; 0 where it is not wanted. If there is no prompt, the first
    token of the response is not counted, since nothing predicts it.

  Raises:
    ValueError: the widths of `h_BTD` and `head_VD` differ.
  """
  B, G, K = wanted_BGK.shape
  own_BT = batch.previous >= 0
  index_BT = jnp.where(own_BT, (batch.group - 1) * K + batch.branch - 1, 0)
  wanted_BT = own_BT & jnp.take_along_axis(wanted_BGK.reshape(B, G * K), index_BT, axis=1)
  place_BT = jnp.where(wanted_BT, batch.branch, 0)
  return _sums(h_BTD, head_VD, batch, place_BT, groups=G, places=K)


def mark_log_likelihood(
  h_BTD: jax.Array, head_VD: jax.Array, batch: Batch, *, cap: float | None = None
) -> tuple[jax.Array, jax.Array]:
  """Σ log π over a response's own tokens up to each mark, the mark included, and their number.

  A mark at the last token of a response has the sum over all of it. Of several marks in a response,
  as those of a solution's steps, each has the sum of all tokens up to it: a running sum.

  Args:
    h_BTD: the backbone's last hidden states, [B, T, D].
    head_VD: float [V, D], the language-model head.
    batch: with `previous` and `response`.
    cap: as in `token_log_likelihood`.

  Returns:
    float32 [B, G, K] twice; 0 where not `batch.where`. If there is no prompt, the first token of
    the response is not counted, since nothing predicts it.

  Raises:
    ValueError: the widths of `h_BTD` and `head_VD` differ.
  """
  _, G, K = batch.marks.shape
  sums = _sums(h_BTD, head_VD, batch, _first_mark(batch), groups=G, places=K, cap=cap)
  # `sums` has for each mark the tokens after the previous mark of its response, up to its own.
  same_BGKK = batch.response[..., :, None] == batch.response[..., None, :]
  same_BGKK &= batch.where[..., :, None] & batch.where[..., None, :]
  before_KK = jnp.tril(jnp.ones((K, K), bool))
  return tuple(
    # Selected and not multiplied by zeros: what is not finite stays in its own response.
    jnp.sum(jnp.where(same_BGKK & before_KK[None, None], part_BGK[..., None, :], 0.0), axis=-1)
    for part_BGK in sums
  )


def own_log_likelihood(
  h_BTD: jax.Array, head_VD: jax.Array, batch: Batch, *, cap: float | None = None
) -> jax.Array:
  """log π of each token of a response, at the token's own column.

  Args:
    h_BTD: the backbone's last hidden states, [B, T, D].
    head_VD: float [V, D], the language-model head.
    batch: with `previous`.
    cap: as in `token_log_likelihood`.

  Returns:
    float32 [B, T]; 0 at prompts, at padding, and, if there is no prompt, at the response's first
    token.

  Raises:
    ValueError: the widths of `h_BTD` and `head_VD` differ.
  """
  token_BT, order_BT = _in_order(h_BTD, head_VD, batch, batch.previous >= 0, cap=cap)
  return jnp.take_along_axis(token_BT, jnp.argsort(order_BT, axis=1), axis=1)


def _first_mark(batch: Batch) -> jax.Array:
  """int32 [B, T]: for each token the first mark of its response that is not before it, 1 .. K.

  0 for tokens of prompts, for the first token of a response without a prompt, for tokens after
  their response's last mark, and for padding.
  """
  _, T = batch.tokens.shape
  _, G, K = batch.marks.shape

  def row(own_T, group_T, branch_T, marks_GK, where_GK, response_GK):
    marks_M, where_M = marks_GK.reshape(-1), where_GK.reshape(-1)
    # Marks are in the order of their columns. So the first one that is not before a token is the
    # n-th of the real ones, if n are before the token.
    order_M = jnp.argsort(~where_M, stable=True)
    behind_T = jnp.zeros(T + 1, jnp.int32).at[marks_M + 1].add(where_M.astype(jnp.int32))
    before_T = jnp.cumsum(behind_T)[:T]
    at_T = order_M[jnp.minimum(before_T, G * K - 1)]
    mine_T = own_T & (before_T < jnp.sum(where_M))
    mine_T &= (group_T == at_T // K + 1) & (branch_T == response_GK.reshape(-1)[at_T] + 1)
    return jnp.where(mine_T, at_T % K + 1, 0)

  return jax.vmap(row)(
    batch.previous >= 0, batch.group, batch.branch, batch.marks, batch.where, batch.response
  )


def _sums(
  h_BTD: jax.Array,
  head_VD: jax.Array,
  batch: Batch,
  place_BT: jax.Array,
  *,
  groups: int,
  places: int,
  cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Σ log π, and the number, of the tokens of each place of a group; float32 [B, G, places].

  Args:
    h_BTD, head_VD, cap: as in `mark_log_likelihood`.
    batch: with `previous`.
    place_BT: int, 1 .. places; tokens of place 0 do not count.
    groups: G.
    places: their number.
  """
  token_BT, order_BT = _in_order(h_BTD, head_VD, batch, place_BT > 0, cap=cap)
  counts_BT, group_BT, place_BT = (
    jnp.take_along_axis(x_BT, order_BT, axis=1) for x_BT in (place_BT > 0, batch.group, place_BT)
  )

  def total(values_BT):
    return sum_by_response(values_BT, group_BT, place_BT, groups=groups, branches=places)

  return total(token_BT), total(counts_BT)


def _in_order(
  h_BTD: jax.Array, head_VD: jax.Array, batch: Batch, counts_BT: jax.Array, *, cap: float | None
) -> tuple[jax.Array, jax.Array]:
  """log π of the tokens that count, float32 [B, T], and the order in which they stand, int [B, T].

  Tokens that count come first, so that `token_log_likelihood` can skip the chunks after them.
  """
  order_BT = jnp.argsort(~counts_BT, axis=1, stable=True)

  def ordered(values_BT):
    return jnp.take_along_axis(values_BT, order_BT, axis=1)

  counts_BT = ordered(counts_BT)
  before_BT = jnp.where(counts_BT, ordered(batch.previous), 0)
  token_BT = token_log_likelihood(
    jnp.take_along_axis(h_BTD, before_BT[..., None], axis=1),
    head_VD,
    ordered(batch.tokens),
    where=counts_BT,
    # A sixteenth of a row: each device has the logits of about 1/16 of its tokens in memory at a
    # time.
    chunk=-(-h_BTD.shape[1] // 16),
    cap=cap,
  )
  return token_BT, order_BT
