"""Attention over groups and branches: who sees whom, windows of a row, and what computes it.

Shape letters as in layers.py; W windows, L columns of one, C copies of a column in windows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rm_jax.models.kernels import attend_in_windows
from rm_jax.models.numerics import drop, precision
from rm_jax.types import Batch

# Far below any score, yet finite: a column that sees nothing gets a uniform softmax and no NaN.
_MASKED = -1e30


def visible(batch: Batch, *, causal: bool) -> jax.Array:
  """Which columns see which: bool [B, T, S]; the one statement of the group-and-branch rule."""
  return _visible(batch.group, batch.branch, causal=causal)


def _visible(group_BT: jax.Array, branch_BT: jax.Array, *, causal: bool) -> jax.Array:
  same_group = group_BT[:, :, None] == group_BT[:, None, :]
  key_branch = branch_BT[:, None, :]
  same_branch = branch_BT[:, :, None] == key_branch
  mask = same_group & ((key_branch == 0) | same_branch)
  if causal:
    columns = jnp.arange(group_BT.shape[1])
    mask &= columns[None, :, None] >= columns[None, None, :]
  return mask


def visible_at(batch: Batch, at_BM: jax.Array, *, causal: bool) -> jax.Array:
  """Which columns those at `at_BM` see, bool [B, M, T]: some rows of `visible`."""
  group_BM, branch_BM = columns(batch.group, at_BM), columns(batch.branch, at_BM)
  key_branch = batch.branch[:, None, :]
  mask = group_BM[:, :, None] == batch.group[:, None, :]
  mask &= (key_branch == 0) | (branch_BM[:, :, None] == key_branch)
  if causal:
    mask &= at_BM[:, :, None] >= jnp.arange(batch.group.shape[1])[None, None, :]
  return mask


def columns(x_BTX: jax.Array, at_BM: jax.Array) -> jax.Array:
  """Some columns of each row, [B, M, ...]."""
  return jax.vmap(lambda x, at: x[at])(x_BTX, at_BM)


def within(
  position_BS: jax.Array, window: jax.Array, queries_BT: jax.Array | None = None
) -> jax.Array:
  """bool [B, T, S]: the key is fewer than `window` positions back; window 0 sees all.

  `queries_BT`: positions of the queries, where they are not all the columns.
  """
  queries_BT = position_BS if queries_BT is None else queries_BT
  distance = queries_BT[:, :, None] - position_BS[:, None, :]
  return (window == 0) | (distance < window)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("masks", "segments", "positions", "index", "places"),
  meta_fields=("sizes", "kernel"),
)
@dataclasses.dataclass(frozen=True)
class Sight:
  """Who sees whom in a batch, made once for all layers.

  Attention runs in *window space*: the windows of a row laid end to end, M columns in all. Where a
  batch has no windows that is the row itself.

  Attributes:
    masks: bool [B R, L, L] for each size of window; none where a kernel does without.
    segments: `Batch.segments`, where a kernel takes them; else none.
    positions: int32 [B, M].
    index: int32 [B, M], the column that stands there, -1 = none; None where there are no windows.
    places: int32 [B, T, C], where each column stands (`Batch.places`).
    sizes: (R, L) of each size of window.
    kernel: what attention runs on, a name of `kernels.PACKING`.
  """

  masks: tuple[jax.Array, ...]
  segments: tuple[jax.Array, ...]
  positions: jax.Array
  index: jax.Array | None
  places: jax.Array | None
  sizes: tuple[tuple[int, int], ...]
  kernel: str = "xla"

  @property
  def early(self) -> bool:
    """Whether windows are gathered before the linear maps of attention, and left after them.

    XLA for CPU makes anew, for each element of a gather, what its operand is made of; before the
    maps that is next to nothing. But where prompts have copies, so would the maps.
    """
    return self.index is not None and self.places.shape[-1] == 1

  def into(self, x_BTX: jax.Array) -> jax.Array:
    """Columns -> window space, [B, M, ...]."""
    if self.index is None:
      return x_BTX
    flat_BTF = x_BTX.reshape(*x_BTX.shape[:2], -1)
    return _into_windows(flat_BTF, self.index, self.places).reshape(
      x_BTX.shape[0], -1, *x_BTX.shape[2:]
    )

  def out(self, x_BMX: jax.Array) -> jax.Array:
    """Window space -> columns, [B, T, ...]."""
    if self.index is None:
      return x_BMX
    flat_BMF = x_BMX.reshape(*x_BMX.shape[:2], -1)
    out_BTF = _out_of_windows(flat_BMF, self.index, self.places[..., 0])
    return out_BTF.reshape(x_BMX.shape[0], -1, *x_BMX.shape[2:])


def look(batch: Batch, *, causal: bool, kernel: str = "xla") -> Sight:
  """Who sees whom in a batch.

  Args:
    batch: laid as `kernels.PACKING` has it for the kernel.
    causal: no column sees a later one.
    kernel: what attention is to run on. Rows without windows are XLA's, whatever it is: no kernel
      knows branches.
  """
  B, T = batch.tokens.shape
  if batch.windows is None:
    mask = visible(batch, causal=causal)
    return Sight((mask,), (), batch.position, None, None, ((1, T),))
  sizes = tuple(window.shape[1:] for window in batch.windows)
  index_BM = jnp.concatenate([w.reshape(B, -1) for w in batch.windows], axis=1)

  def there(x_BT):
    return jnp.take_along_axis(x_BT, jnp.maximum(index_BM, 0), axis=1)

  position_BM = there(batch.position)
  if kernel != "xla":
    return Sight((), batch.segments, position_BM, index_BM, batch.places, sizes, kernel)
  branch_BM, masks, start = there(batch.branch), [], 0
  for segment_BRL, (R, L) in zip(batch.segments, sizes, strict=True):
    branch = branch_BM[:, start : start + R * L].reshape(B * R, L)
    masks.append(_visible(segment_BRL.reshape(B * R, L), branch, causal=causal))
    start += R * L
  return Sight(tuple(masks), (), position_BM, index_BM, batch.places, sizes)


def _take(x_BTF: jax.Array, index_BM: jax.Array) -> jax.Array:
  """Rows' columns by index, [B, M, F]; 0 where the index is negative."""
  taken = jax.vmap(lambda x, index: x[index])(x_BTF, jnp.maximum(index_BM, 0))
  return jnp.where(index_BM[..., None] >= 0, taken, 0)


# A gather's own gradient is a scatter, which few machines do well. Here the other way round is
# known, so that each is a gather by the other's index.


@jax.custom_vjp
def _into_windows(x_BTF, index_BM, places_BTC):
  """Columns -> windows laid end to end, [B, M, F]."""
  return _take(x_BTF, index_BM)


def _into_windows_fwd(x_BTF, index_BM, places_BTC):
  return _take(x_BTF, index_BM), places_BTC


def _into_windows_bwd(places_BTC, g_BMF):
  copies = [_take(g_BMF, places_BTC[..., c]) for c in range(places_BTC.shape[-1])]
  return functools.reduce(jnp.add, copies), None, None


_into_windows.defvjp(_into_windows_fwd, _into_windows_bwd)


@jax.custom_vjp
def _out_of_windows(x_BMF, index_BM, first_BT):
  """Windows laid end to end -> columns, each from the first place where it stands, [B, T, F]."""
  return _take(x_BMF, first_BT)


def _out_of_windows_fwd(x_BMF, index_BM, first_BT):
  return _take(x_BMF, first_BT), (index_BM, first_BT)


def _out_of_windows_bwd(saved, g_BTF):
  index_BM, first_BT = saved
  column_BM = jnp.maximum(index_BM, 0)
  back_BM = jnp.take_along_axis(first_BT, column_BM, axis=1)
  is_first = (index_BM >= 0) & (back_BM == jnp.arange(index_BM.shape[1])[None, :])
  return _take(g_BTF, jnp.where(is_first, index_BM, -1)), None, None


_out_of_windows.defvjp(_out_of_windows_fwd, _out_of_windows_bwd)


def attend(
  q_BMNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKH: jax.Array,
  sight: Sight,
  *,
  causal: bool,
  window: jax.Array | None = None,
  dropout: float = 0.0,
  key: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention with grouped key/value heads; softmax in float32. Returns [B, M, N, H].

  Args:
    q_BMNH, k_BMKH, v_BMKH: queries, keys and values, in window space.
    sight: from `look`, with the same `causal`.
    causal: no query sees a key of a later column, so those are not even multiplied.
      Always so on a kernel, which knows neither `window` nor dropout.
    window: int [], how many positions back a query sees; 0 or None = all.
    dropout, key: of the attention's weights.
  """
  q_BMNH *= jnp.asarray(q_BMNH.shape[-1] ** -0.5, q_BMNH.dtype)
  if sight.kernel != "xla":
    assert causal, sight.kernel
    assert window is None, sight.kernel
    assert key is None or dropout == 0.0, sight.kernel
    return attend_in_windows(sight.kernel, q_BMNH, k_BMKH, v_BMKH, sight.segments)
  B = q_BMNH.shape[0]
  keys = [None] * len(sight.sizes) if key is None else jax.random.split(key, len(sight.sizes))
  out, start = [], 0
  for (R, L), mask, size_key in zip(sight.sizes, sight.masks, keys, strict=True):

    def mine(x_BMX, start=start, R=R, L=L):
      # The windows of all rows together are rows of their own.
      return x_BMX[:, start : start + R * L].reshape(B * R, L, *x_BMX.shape[2:])

    near = True if window is None else within(mine(sight.positions), window)
    parts = [mine(x) for x in (q_BMNH, k_BMKH, v_BMKH)]
    x_WLNH = _square(*parts, mask & near, causal=causal, dropout=dropout, key=size_key)
    out.append(x_WLNH.reshape(B, R * L, *q_BMNH.shape[2:]))
    start += R * L
  return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def attend_at(
  q_BMNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  mask_BMT: jax.Array,
  *,
  dropout: float = 0.0,
  key: jax.Array | None = None,
) -> jax.Array:
  """`attend` of a few columns alone, M of a row, to all of it. Returns [B, M, N, H].

  Args:
    q_BMNH: queries of those columns.
    k_BTKH, v_BTKH: of all columns, which need no windows: so few queries make no squares.
    mask_BMT: what they see (`visible_at`).
    dropout, key: of the attention's weights.
  """
  B, M, N, H = q_BMNH.shape
  K = k_BTKH.shape[2]
  q_BMNH *= jnp.asarray(H**-0.5, q_BMNH.dtype)
  q_BKRMH = q_BMNH.reshape(B, M, K, N // K, H).transpose(0, 2, 3, 1, 4)
  parts = q_BKRMH, k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
  out_BKRMH = _kept_attention(*parts, mask_BMT, dropout, key)
  return out_BKRMH.transpose(0, 3, 1, 2, 4).reshape(B, M, N, H).astype(v_BTKH.dtype)


def _square(q_WLNH, k_WLKH, v_WLKH, mask_WLL, *, causal: bool, dropout: float, key) -> jax.Array:
  """Attention within windows, [W, L, N, H]; queries come scaled."""
  K = k_WLKH.shape[2]
  W, L, N, H = q_WLNH.shape
  # Heads that share a key stand under one another, so that each product is one plain matrix product
  # for each key head: XLA for CPU takes four times as long over the same einsum.
  q_WLKRH = q_WLNH.reshape(W, L, K, N // K, H)
  parts = q_WLKRH.transpose(0, 2, 3, 1, 4), k_WLKH.swapaxes(1, 2), v_WLKH.swapaxes(1, 2)
  if key is None or dropout == 0.0:
    out_WKRLH = _softmax_attention(*parts, mask_WLL, causal)
  else:
    out_WKRLH = _kept_attention(*parts, mask_WLL, dropout, key)
  return out_WKRLH.transpose(0, 3, 1, 2, 4).reshape(W, L, N, H).astype(v_WLKH.dtype)


def _blocks(L: int, causal: bool) -> list[tuple[int, int, int]]:
  """(first query, end of queries, end of the keys that they may see) of each block.

  Where later keys are hidden, four blocks leave 5/8 of the square; more of them are smaller than is
  worth a matrix product of its own.
  """
  size = L if not causal else max(64, -(-L // 4 // 32) * 32)
  return [(a, min(a + size, L), min(a + size, L) if causal else L) for a in range(0, L, size)]


def _logits(q_WKRLH, k_WKLH, mask_WLL, block) -> jax.Array:
  """float32 [W, K, R, t, last] of a block's queries and keys, masked."""
  start, end, last = block
  logits_WKPS = _dot(_rows(q_WKRLH, block), k_WKLH[:, :, :last].swapaxes(-1, -2))
  logits = logits_WKPS.reshape(*q_WKRLH.shape[:3], end - start, last)
  return jnp.where(mask_WLL[:, None, None, start:end, :last], logits, _MASKED)


def _rows(x_WKRLH: jax.Array, block) -> jax.Array:
  """A block's queries, the heads that share a key under one another: [W, K, R t, H]."""
  start, end, _ = block
  W, K, R, _, H = x_WKRLH.shape
  return x_WKRLH[:, :, :, start:end].reshape(W, K, R * (end - start), H)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.matmul(x, y, precision=precision(x.dtype), preferred_element_type=jnp.float32)


# With the gradient left to `jax.grad`, all weights would be kept for the backward pass, or their
# products made three times; of output and normaliser they are made anew once (Dao et al. 2022).


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _softmax_attention(q_WKRLH, k_WKLH, v_WKLH, mask_WLL, causal) -> jax.Array:
  """float32 [W, K, R, L, H]; queries come scaled."""
  return _softmax_attention_fwd(q_WKRLH, k_WKLH, v_WKLH, mask_WLL, causal)[0]


def _softmax_attention_fwd(q_WKRLH, k_WKLH, v_WKLH, mask_WLL, causal):
  outs, normalisers = [], []
  for block in _blocks(q_WKRLH.shape[3], causal):
    logits = _logits(q_WKRLH, k_WKLH, mask_WLL, block)
    most = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    rows = weights.astype(v_WKLH.dtype).reshape(*logits.shape[:2], -1, logits.shape[-1])
    sums = _dot(rows, v_WKLH[:, :, : block[2]])
    outs.append(sums.reshape(*logits.shape[:4], -1) / total)
    normalisers.append((most + jnp.log(total))[..., 0])
  out_WKRLH = checkpoint_name(jnp.concatenate(outs, axis=3), "attention")
  normaliser_WKRL = checkpoint_name(jnp.concatenate(normalisers, axis=3), "attention")
  return out_WKRLH, (q_WKRLH, k_WKLH, v_WKLH, mask_WLL, out_WKRLH, normaliser_WKRL)


def _softmax_attention_bwd(causal, saved, g_WKRLH):
  q_WKRLH, k_WKLH, v_WKLH, mask_WLL, out_WKRLH, normaliser_WKRL = saved
  dtype = q_WKRLH.dtype
  inner_WKRL = jnp.sum(g_WKRLH * out_WKRLH, axis=-1)
  g_WKRLH = g_WKRLH.astype(dtype)
  gq, (gk, gv) = [], (jnp.zeros(x.shape, jnp.float32) for x in (k_WKLH, v_WKLH))
  for block in _blocks(q_WKRLH.shape[3], causal):
    start, end, last = block
    logits = _logits(q_WKRLH, k_WKLH, mask_WLL, block)
    weights = jnp.exp(logits - normaliser_WKRL[:, :, :, start:end, None])
    g_rows = _rows(g_WKRLH, block)
    flat = (*logits.shape[:2], -1, last)
    g_weights = _dot(g_rows, v_WKLH[:, :, :last].swapaxes(-1, -2)).reshape(logits.shape)
    g_logits = (weights * (g_weights - inner_WKRL[:, :, :, start:end, None])).astype(dtype)
    g_logits, weights = g_logits.reshape(flat), weights.astype(dtype).reshape(flat)
    gq.append(_dot(g_logits, k_WKLH[:, :, :last]).reshape(*logits.shape[:4], -1))
    gk = gk.at[:, :, :last].add(_dot(g_logits.swapaxes(-1, -2), _rows(q_WKRLH, block)))
    gv = gv.at[:, :, :last].add(_dot(weights.swapaxes(-1, -2), g_rows))
  gq = jnp.concatenate(gq, axis=3)
  return gq.astype(dtype), gk.astype(k_WKLH.dtype), gv.astype(v_WKLH.dtype), None


_softmax_attention.defvjp(_softmax_attention_fwd, _softmax_attention_bwd)


def _kept_attention(q_WKRLH, k_WKSH, v_WKSH, mask_WLS, rate: float, key) -> jax.Array:
  """As `_softmax_attention`, whose weights are kept for the backward pass, or dropped out."""
  block = 0, q_WKRLH.shape[3], k_WKSH.shape[2]
  logits = _logits(q_WKRLH, k_WKSH, mask_WLS, block)
  weights = jax.nn.softmax(logits, axis=-1).astype(v_WKSH.dtype)
  if key is not None:
    weights = drop(weights, rate, key)
  rows = weights.reshape(*logits.shape[:2], -1, block[2])
  return _dot(rows, v_WKSH).reshape(q_WKRLH.shape)
