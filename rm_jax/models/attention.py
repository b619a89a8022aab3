"""Attention over groups and branches: which columns see which, and how that is computed.

Two things are called windows. A *window of a row* (`Batch.windows`) is a set of columns between
which attention is computed: a row holds several groups that do not see one another, so that a
square of all T columns would mostly be masked, and the squares of a few windows take less work. A
*sliding window* is a property of a layer: how many positions a query sees, its own included.

Attention runs in *window space*: the windows of a row laid end to end, M columns in all. Where a
batch has no windows, that is the row itself, M = T.

Shape letters: B rows, T columns (tokens) of a row, D width, N query heads, K key/value heads, H
head width, M columns in window space (or those that a head reads), W windows of one size in all
rows together, L columns of a window, C copies of a column in windows, S keys, F all numbers of a
column. R is the number of windows of one size in a row, but after K (WKRLH, BKRMH) the N / K query
heads that share a key; P = R times the queries.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rm_jax.models.kernels import attend_in_windows
from rm_jax.models.numerics import drop, precision, transposed
from rm_jax.types import Batch

# The logit of a masked pair: so far below any real one that its weight is exactly 0 in float32.
# Unlike -inf it is finite: a query that saw no key would get a uniform softmax and no NaN.
_MASKED = -1e30

Map = Callable[[jax.Array], jax.Array]


def visible(batch: Batch, *, causal: bool) -> jax.Array:
  """Which columns see which: bool [B, T queries, T keys], by `types.Batch`'s rule."""
  return _visible(batch.group, batch.branch, causal=causal)


def _visible(group_BT: jax.Array, branch_BT: jax.Array, *, causal: bool) -> jax.Array:
  return _sees(group_BT, branch_BT, None, group_BT, branch_BT, causal=causal)


def visible_at(batch: Batch, at_BM: jax.Array, *, causal: bool) -> jax.Array:
  """`visible` for the queries at the columns `at_BM` alone: bool [B, M, T]."""
  group_BM, branch_BM = columns(batch.group, at_BM), columns(batch.branch, at_BM)
  return _sees(group_BM, branch_BM, at_BM, batch.group, batch.branch, causal=causal)


def _sees(
  group_BM: jax.Array,
  branch_BM: jax.Array,
  at_BM: jax.Array | None,
  group_BT: jax.Array,
  branch_BT: jax.Array,
  *,
  causal: bool,
) -> jax.Array:
  """Whether queries at columns `at_BM` (None = at all columns) see T keys, bool [B, M, T]."""
  key_branch = branch_BT[:, None, :]
  mask = group_BM[:, :, None] == group_BT[:, None, :]
  mask &= (key_branch == 0) | (branch_BM[:, :, None] == key_branch)
  if causal:
    # What is later is decided by column and not by position, as in `_blocks`, which skips keys.
    column_T = jnp.arange(group_BT.shape[1])
    queries = column_T[None, :, None] if at_BM is None else at_BM[:, :, None]
    mask &= queries >= column_T[None, None, :]
  return mask


def columns(x_BTX: jax.Array, at_BM: jax.Array) -> jax.Array:
  """The columns `at_BM` of each row, [B, M, ...]."""
  return jax.vmap(lambda x, at: x[at])(x_BTX, at_BM)


def within(
  position_BS: jax.Array, sliding_window: jax.Array, queries_BT: jax.Array | None = None
) -> jax.Array:
  """bool [B, T, S]: the key is fewer than `sliding_window` positions back; window 0 sees all.

  The distance is not taken in columns: the second response to a shared prompt stands in columns
  behind the first response, and yet it is as near to the prompt.

  Args:
    position_BS: int, of the keys.
    sliding_window: int [].
    queries_BT: positions of the queries, where they are not all the columns.
  """
  queries_BT = position_BS if queries_BT is None else queries_BT
  distance = queries_BT[:, :, None] - position_BS[:, None, :]
  return (sliding_window == 0) | (distance < sliding_window)


class Attention(abc.ABC):
  """How layers attend within one batch.

  A layer is written against these methods, so that it is the same code whether it computes all
  columns (`RowAttention`) or only those that a head reads (`ColumnAttention`):

      own_BMD = attention.of_queries(x_BTD)
      q, k, v = attention.project(own_BMD, x_BTD, self.q, self.k, self.v)
      x_BMNH = attention.attend(q, k, v, ...)
      h_BTD = attention.of_queries(h_BTD) + attention.output(x_BMNH, self.o)

  Attributes:
    positions: int32 [B, M or T], the position in its sequence of each key that `attend` is given.
  """

  positions: jax.Array

  @abc.abstractmethod
  def of_queries(self, x_BTX: jax.Array) -> jax.Array:
    """Selects, of all columns (or all keys), those that the layer computes its output for."""

  @abc.abstractmethod
  def project(
    self, own_BMD: jax.Array, x_BTD: jax.Array, q: Map, k: Map, v: Map
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values by their linear maps, as `attend` takes them.

    Args:
      own_BMD: `of_queries(x_BTD)`.
      x_BTD: what the linear maps read, at all columns of the row.
      q, k, v: the linear maps.
    """

  @abc.abstractmethod
  def output(self, x_BMNH: jax.Array, o: Map) -> jax.Array:
    """What `attend` returned, through the output map, at `of_queries`' columns, [B, T or M, D]."""

  def attend(
    self,
    q_BMNH: jax.Array,
    k_BMKH: jax.Array,
    v_BMKH: jax.Array,
    *,
    scale: float | None = None,
    cap: float | None = None,
    sliding_window: jax.Array | None = None,
    dropout: float = 0.0,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Softmax attention with grouped key/value heads; softmax in float32. Returns [B, M, N, H].

    Args:
      q_BMNH, k_BMKH, v_BMKH: from `project`; N is a multiple of K.
      scale: of the logits q · k; None is 1 / sqrt(H).
      cap: logits become cap · tanh(logit / cap) before they are masked (Gemma 2's soft cap,
        Gemma Team 2024, section 2); None = they stay.
      sliding_window: int [], how many positions a query sees, its own included; 0 or None = all.
      dropout, key: of the attention's weights; no key = none.
    """
    scale = q_BMNH.shape[-1] ** -0.5 if scale is None else scale
    # Queries are scaled and not logits, because queries are fewer numbers.
    q_BMNH *= jnp.asarray(scale, q_BMNH.dtype)
    options = dict(cap=cap, sliding_window=sliding_window, dropout=dropout, key=key)
    return self._attend_scaled(q_BMNH, k_BMKH, v_BMKH, **options)

  @abc.abstractmethod
  def _attend_scaled(
    self, q_BMNH, k_BMKH, v_BMKH, *, cap, sliding_window, dropout, key
  ) -> jax.Array:
    """`attend`, given queries that are already scaled."""


@dataclasses.dataclass(frozen=True, eq=False)
class RowAttention(Attention):
  """Attention of all columns of each row to one another.

  Attributes:
    causal: no query sees a key of a later column, so that a block of queries skips the blocks of
      keys after it.
    masks: bool [B R, L, L] for each size of window, which columns see which; () for a fused kernel.
    segments: `Batch.segments` for a fused kernel, which masks by them; else ().
    positions: int32 [B, M], of the token at each place of window space.
    index: int32 [B, M], the row's column at each place of window space, -1 = none; None where the
      batch has no windows.
    places: int32 [B, T, C], the places of each column (`Batch.places`); None where the batch has no
      windows.
    sizes: (R windows of a row, L columns of each) for each size of window.
    kernel: what computes attention, a name of `kernels.PACKING`; 'xla' is no fused kernel.
  """

  causal: bool
  masks: tuple[jax.Array, ...]
  segments: tuple[jax.Array, ...]
  positions: jax.Array
  index: jax.Array | None
  places: jax.Array | None
  sizes: tuple[tuple[int, int], ...]
  kernel: str = "xla"

  @property
  def _gathers_first(self) -> bool:
    """Whether columns are gathered into windows before attention's linear maps, and not after.

    XLA for CPU fuses a gather with what makes its operand, and so computes the operand anew for
    each element that is read. Before the maps the operand is a norm, which is cheap; after them it
    would be queries, keys and values. Where prompts have several copies in window space, gathering
    first would compute the maps once for each copy, which costs more.
    """
    return self.index is not None and self.places.shape[-1] == 1

  def of_queries(self, x_BTX):
    return x_BTX

  def project(self, own_BMD, x_BTD, q, k, v):
    del own_BMD  # all columns: the same as x_BTD
    if self._gathers_first:
      x_BMD = self._into_windows(x_BTD)
      return q(x_BMD), k(x_BMD), v(x_BMD)
    return tuple(map(self._into_windows, (q(x_BTD), k(x_BTD), v(x_BTD))))

  def output(self, x_BMNH, o):
    if self._gathers_first:
      return self._out_of_windows(o(x_BMNH))
    return o(self._out_of_windows(x_BMNH))

  def _into_windows(self, x_BTX: jax.Array) -> jax.Array:
    """Columns -> window space, [B, M, ...]."""
    if self.index is None:
      return x_BTX
    flat_BTF = x_BTX.reshape(*x_BTX.shape[:2], -1)
    return _into_windows(flat_BTF, self.index, self.places).reshape(
      x_BTX.shape[0], -1, *x_BTX.shape[2:]
    )

  def _out_of_windows(self, x_BMX: jax.Array) -> jax.Array:
    """Window space -> columns, [B, T, ...]."""
    if self.index is None:
      return x_BMX
    flat_BMF = x_BMX.reshape(*x_BMX.shape[:2], -1)
    out_BTF = _out_of_windows(flat_BMF, self.index, self.places[..., 0])
    return out_BTF.reshape(x_BMX.shape[0], -1, *x_BMX.shape[2:])

  def _attend_scaled(self, q_BMNH, k_BMKH, v_BMKH, *, cap, sliding_window, dropout, key):
    if self.kernel != "xla":
      # `kernels.choose` chooses no fused kernel for a network that breaks a condition below.
      assert self.causal, self.kernel
      assert cap is None, self.kernel
      assert sliding_window is None, self.kernel
      assert key is None or dropout == 0.0, self.kernel
      return attend_in_windows(self.kernel, q_BMNH, k_BMKH, v_BMKH, self.segments)
    B = q_BMNH.shape[0]
    keys = [None] * len(self.sizes) if key is None else jax.random.split(key, len(self.sizes))
    out, start = [], 0
    for (R, L), mask, size_key in zip(self.sizes, self.masks, keys, strict=True):

      def of_size(x_BMX, start=start, R=R, L=L):
        # [B, M, ...] -> [W = B R, L, ...]: the windows of all rows form one batch.
        return x_BMX[:, start : start + R * L].reshape(B * R, L, *x_BMX.shape[2:])

      near = True if sliding_window is None else within(of_size(self.positions), sliding_window)
      parts = [of_size(x) for x in (q_BMNH, k_BMKH, v_BMKH)]
      options = dict(causal=self.causal, cap=cap, dropout=dropout, key=size_key)
      x_WLNH = _square(*parts, mask & near, **options)
      out.append(x_WLNH.reshape(B, R * L, *q_BMNH.shape[2:]))
      start += R * L
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def row_attention(batch: Batch, *, causal: bool, kernel: str = "xla") -> RowAttention:
  """Attention of all columns of a batch.

  Args:
    batch: packed as `kernels.PACKING` says for the kernel.
    causal: no column sees a later one.
    kernel: what attention is to run on. Rows without windows always run on XLA, because no fused
      kernel knows branches.
  """
  B, T = batch.tokens.shape
  if batch.windows is None:
    mask = visible(batch, causal=causal)
    return RowAttention(causal, (mask,), (), batch.position, None, None, ((1, T),))
  sizes = tuple(window.shape[1:] for window in batch.windows)
  index_BM = jnp.concatenate([w.reshape(B, -1) for w in batch.windows], axis=1)

  def in_windows(x_BT):
    # An empty place of a window gets the value of column 0; its segment, 0, hides it from others.
    return jnp.take_along_axis(x_BT, jnp.maximum(index_BM, 0), axis=1)

  position_BM = in_windows(batch.position)
  of_batch = index_BM, batch.places, sizes
  if kernel != "xla":
    return RowAttention(causal, (), batch.segments, position_BM, *of_batch, kernel)
  branch_BM, masks, start = in_windows(batch.branch), [], 0
  for segment_BRL, (R, L) in zip(batch.segments, sizes, strict=True):
    branch = branch_BM[:, start : start + R * L].reshape(B * R, L)
    masks.append(_visible(segment_BRL.reshape(B * R, L), branch, causal=causal))
    start += R * L
  return RowAttention(causal, tuple(masks), (), position_BM, *of_batch)


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnAttention(Attention):
  """Attention of a few columns of each row to the whole row.

  For a last layer whose output is read at a few columns alone (`at_BM` of decoder and encoder). It
  needs no windows: M queries are so few that their products with all T keys cost little.

  Attributes:
    at: int32 [B, M], the columns.
    mask: bool [B, M, T], which columns they see.
    positions: int32 [B, T], of all columns.
  """

  at: jax.Array
  mask: jax.Array
  positions: jax.Array

  def of_queries(self, x_BTX):
    return columns(x_BTX, self.at)

  def project(self, own_BMD, x_BTD, q, k, v):
    return q(own_BMD), k(x_BTD), v(x_BTD)

  def output(self, x_BMNH, o):
    return o(x_BMNH)

  def _attend_scaled(self, q_BMNH, k_BTKH, v_BTKH, *, cap, sliding_window, dropout, key):
    B, M, N, H = q_BMNH.shape
    K = k_BTKH.shape[2]
    mask_BMT = self.mask
    if sliding_window is not None:
      mask_BMT &= within(self.positions, sliding_window, columns(self.positions, self.at))
    q_BKRMH = q_BMNH.reshape(B, M, K, N // K, H).transpose(0, 2, 3, 1, 4)
    parts = q_BKRMH, k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    out_BKRMH = _kept_attention(*parts, mask_BMT, cap, dropout, key)
    return out_BKRMH.transpose(0, 3, 1, 2, 4).reshape(B, M, N, H).astype(v_BTKH.dtype)


def column_attention(batch: Batch, at_BM: jax.Array, *, causal: bool) -> ColumnAttention:
  """Attention of the columns `at_BM`, int32 [B, M], alone."""
  return ColumnAttention(at_BM, visible_at(batch, at_BM, causal=causal), batch.position)


def _take(x_BTF: jax.Array, index_BM: jax.Array) -> jax.Array:
  """Rows' columns by index, [B, M, F]; 0 where the index is negative."""
  taken = jax.vmap(lambda x, index: x[index])(x_BTF, jnp.maximum(index_BM, 0))
  return jnp.where(index_BM[..., None] >= 0, taken, 0)


# JAX's gradient of a gather is a scatter-add, which is slow on CPU and TPU. Here the inverse of the
# index is known (`Batch.places` is that of `Batch.windows`), so the gradient of a gather in either
# direction is a gather by the index of the other direction.


@jax.custom_vjp
def _into_windows(x_BTF, index_BM, places_BTC):
  """Columns -> windows laid end to end, [B, M, F]."""
  return _take(x_BTF, index_BM)


def _into_windows_fwd(x_BTF, index_BM, places_BTC):
  return _take(x_BTF, index_BM), places_BTC


def _into_windows_bwd(places_BTC, g_BMF):
  # A column of a shared prompt has copies in several windows: its gradient is the sum of theirs.
  copies = [_take(g_BMF, places_BTC[..., c]) for c in range(places_BTC.shape[-1])]
  return functools.reduce(jnp.add, copies), None, None


_into_windows.defvjp(_into_windows_fwd, _into_windows_bwd)


@jax.custom_vjp
def _out_of_windows(x_BMF, index_BM, first_BT):
  """Windows laid end to end -> columns, [B, T, F]; each is read from its first place there."""
  return _take(x_BMF, first_BT)


def _out_of_windows_fwd(x_BMF, index_BM, first_BT):
  return _take(x_BMF, first_BT), (index_BM, first_BT)


def _out_of_windows_bwd(saved, g_BTF):
  # Only the place that was read has a gradient; a column's other copies have none.
  index_BM, first_BT = saved
  column_BM = jnp.maximum(index_BM, 0)
  back_BM = jnp.take_along_axis(first_BT, column_BM, axis=1)
  is_first = (index_BM >= 0) & (back_BM == jnp.arange(index_BM.shape[1])[None, :])
  return _take(g_BTF, jnp.where(is_first, index_BM, -1)), None, None


_out_of_windows.defvjp(_out_of_windows_fwd, _out_of_windows_bwd)


def _square(
  q_WLNH,
  k_WLKH,
  v_WLKH,
  mask_WLL,
  *,
  causal: bool,
  cap: float | None,
  dropout: float,
  key,
) -> jax.Array:
  """Attention within windows, [W, L, N, H], given queries that are already scaled."""
  K = k_WLKH.shape[2]
  W, L, N, H = q_WLNH.shape
  # The R heads that share a key are laid one below the other, [K, R L, H], so that all their
  # products with it are one matrix product: XLA for CPU takes four times as long over an einsum.
  q_WLKRH = q_WLNH.reshape(W, L, K, N // K, H)
  parts = q_WLKRH.transpose(0, 2, 3, 1, 4), k_WLKH.swapaxes(1, 2), v_WLKH.swapaxes(1, 2)
  if key is None or dropout == 0.0:
    out_WKRLH = _softmax_attention(*parts, mask_WLL, causal, cap)
  else:
    out_WKRLH = _kept_attention(*parts, mask_WLL, cap, dropout, key)
  return out_WKRLH.transpose(0, 3, 1, 2, 4).reshape(W, L, N, H).astype(v_WLKH.dtype)


def _blocks(L: int, causal: bool) -> list[tuple[int, int, int]]:
  """(first query, end of queries, end of the keys that they may see) of each block of queries.

  Without `causal` there is one block. Causal attention needs half of the square; four equal blocks
  compute 5/8 of it. More blocks would save little more, and their products would be too small to
  run at full speed; for the same reason short windows have fewer than four.
  """
  size = L if not causal else max(64, -(-L // 4 // 32) * 32)
  return [(a, min(a + size, L), min(a + size, L) if causal else L) for a in range(0, L, size)]


def _logits(q_WKRLH, k_WKLH, mask_WLL, block, cap: float | None) -> jax.Array:
  """float32 [W, K, R, t, last] of a block's t queries with the keys before `last`; masked."""
  start, end, last = block
  logits_WKPS = _dot(_rows(q_WKRLH, block), k_WKLH[:, :, :last].swapaxes(-1, -2))
  logits = logits_WKPS.reshape(*q_WKRLH.shape[:3], end - start, last)
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  return jnp.where(mask_WLL[:, None, None, start:end, :last], logits, _MASKED)


def _rows(x_WKRLH: jax.Array, block) -> jax.Array:
  """A block's queries, the heads that share a key one below the other: [W, K, R t, H]."""
  start, end, _ = block
  W, K, R, _, H = x_WKRLH.shape
  return x_WKRLH[:, :, :, start:end].reshape(W, K, R * (end - start), H)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """A batched matrix product, summed in float32 whatever the operands are."""
  return jnp.matmul(x, y, precision=precision(x.dtype), preferred_element_type=jnp.float32)


# `jax.grad` of a plain softmax would keep the weights, [L, L] of every head, for the backward pass.
# As in FlashAttention (Dao et al. 2022, section 3.1), the output and the normaliser
# log Σ exp(logit) of each query are kept instead, and the backward pass computes the weights again
# from q, k and the normaliser.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _softmax_attention(q_WKRLH, k_WKLH, v_WKLH, mask_WLL, causal, cap) -> jax.Array:
  """Attention within windows, float32 [W, K, R, L, H], given queries that are already scaled."""
  return _softmax_attention_fwd(q_WKRLH, k_WKLH, v_WKLH, mask_WLL, causal, cap)[0]


def _softmax_attention_fwd(q_WKRLH, k_WKLH, v_WKLH, mask_WLL, causal, cap):
  outs, normalisers = [], []
  for block in _blocks(q_WKRLH.shape[3], causal):
    logits = _logits(q_WKRLH, k_WKLH, mask_WLL, block, cap)
    most = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    rows = weights.astype(v_WKLH.dtype).reshape(*logits.shape[:2], -1, logits.shape[-1])
    sums = _dot(rows, v_WKLH[:, :, : block[2]])
    # The product is divided and not the weights: H numbers a query and not L.
    outs.append(sums.reshape(*logits.shape[:4], -1) / total)
    normalisers.append((most + jnp.log(total))[..., 0])
  # Rematerialisation 'minimal' keeps arrays of this name (`layers.REMAT`).
  out_WKRLH = checkpoint_name(jnp.concatenate(outs, axis=3), "attention")
  normaliser_WKRL = checkpoint_name(jnp.concatenate(normalisers, axis=3), "attention")
  return out_WKRLH, (q_WKRLH, k_WKLH, v_WKLH, mask_WLL, out_WKRLH, normaliser_WKRL)


def _softmax_attention_bwd(causal, cap, saved, g_WKRLH):
  q_WKRLH, k_WKLH, v_WKLH, mask_WLL, out_WKRLH, normaliser_WKRL = saved
  dtype = q_WKRLH.dtype
  # With weights P and dP = g v^T, the logits' gradient is P (dP - Σ_keys P dP), and that sum is
  # g · out, so that it needs no sum over keys.
  inner_WKRL = jnp.sum(g_WKRLH * out_WKRLH, axis=-1)
  g_WKRLH = g_WKRLH.astype(dtype)
  gq, (gk, gv) = [], (jnp.zeros(x.shape, jnp.float32) for x in (k_WKLH, v_WKLH))
  for block in _blocks(q_WKRLH.shape[3], causal):
    start, end, last = block
    logits = _logits(q_WKRLH, k_WKLH, mask_WLL, block, cap)
    weights = jnp.exp(logits - normaliser_WKRL[:, :, :, start:end, None])
    g_rows = _rows(g_WKRLH, block)
    flat = (*logits.shape[:2], -1, last)
    g_weights = _dot(g_rows, v_WKLH[:, :, :last].swapaxes(-1, -2)).reshape(logits.shape)
    g_logits = weights * (g_weights - inner_WKRL[:, :, :, start:end, None])
    if cap is not None:
      # d/dx cap tanh(x / cap) = 1 - tanh². A masked logit, -1e30, is first raised to -cap: its
      # square would overflow, and infinity times its weight of 0 is NaN.
      g_logits *= 1 - jnp.square(jnp.maximum(logits, -cap) / cap)
    g_logits = g_logits.astype(dtype)
    g_logits, weights = g_logits.reshape(flat), weights.astype(dtype).reshape(flat)
    gq.append(_dot(g_logits, k_WKLH[:, :, :last]).reshape(*logits.shape[:4], -1))
    gk = gk.at[:, :, :last].add(_dot(transposed(g_logits), _rows(q_WKRLH, block)))
    gv = gv.at[:, :, :last].add(_dot(transposed(weights), g_rows))
  gq = jnp.concatenate(gq, axis=3)
  return gq.astype(dtype), gk.astype(k_WKLH.dtype), gv.astype(v_WKLH.dtype), None


_softmax_attention.defvjp(_softmax_attention_fwd, _softmax_attention_bwd)


def _kept_attention(
  q_WKRLH, k_WKSH, v_WKSH, mask_WLS, cap: float | None, rate: float, key
) -> jax.Array:
  """As `_softmax_attention`, but JAX differentiates it, and the weights may have dropout.

  So the weights are kept for the backward pass. This is for few queries, and for dropout, whose
  mask a backward pass that computed the weights again would have to draw again.
  """
  block = 0, q_WKRLH.shape[3], k_WKSH.shape[2]
  logits = _logits(q_WKRLH, k_WKSH, mask_WLS, block, cap)
  weights = jax.nn.softmax(logits, axis=-1).astype(v_WKSH.dtype)
  if key is not None:
    weights = drop(weights, rate, key)
  rows = weights.reshape(*logits.shape[:2], -1, block[2])
  return _dot(rows, v_WKSH).reshape(q_WKRLH.shape)
