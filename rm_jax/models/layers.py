"""What decoder and encoder share: attention over groups and branches, maps, stacks of layers.

Shape letters: B rows, T query columns, S key columns, D width, N heads, K key/value heads,
R = N / K query heads that share a key, P = R T, H head width, F feed-forward width, L layers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rm_jax.models.axes import by_rows, gathered
from rm_jax.models.lora import Adapted, Lora
from rm_jax.types import Batch

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
  "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
  "tanh": jnp.tanh,
}

REMAT = {
  "none": None,
  "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}

# Far below any score, yet finite: a column that sees nothing gets a uniform softmax and no NaN.
_MASKED = -1e30


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """The activation that a config.json names. Raises ValueError for one that is not known."""
  if name not in ACTIVATIONS:
    raise ValueError(f"hidden_act {name!r} is not supported; expected one of {sorted(ACTIVATIONS)}")
  return ACTIVATIONS[name]


def precision(dtype: Any) -> jax.lax.Precision:
  """Float32 compute means float32: by default TPUs and NVIDIA's tensor cores would round inputs."""
  highest = jnp.dtype(dtype) == jnp.float32
  return jax.lax.Precision.HIGHEST if highest else jax.lax.Precision.DEFAULT


def _flat_dot(x, kernel, dimensions, **options) -> jax.Array:
  """`lax.dot_general` of a linear map as one plain product of two matrices.

  Left to itself, XLA for CPU picks layouts for [B, T, D] by which the backward pass of a scanned
  layer takes nearly twice as long.
  """
  (axes, _), _ = dimensions
  inputs = kernel.shape[: len(axes)]
  x_ND = x.reshape(-1, math.prod(inputs))
  kernel_DF = kernel.reshape(x_ND.shape[1], -1)
  y_NF = jax.lax.dot_general(x_ND, kernel_DF, (((1,), (0,)), ((), ())), **options)
  return y_NF.reshape(*x.shape[: x.ndim - len(axes)], *kernel.shape[len(axes) :])


def linear(
  name: str,
  inputs,
  outputs,
  *,
  axis=-1,
  bias: bool,
  std: float,
  dtype,
  rngs: nnx.Rngs,
  lora: Lora | None = None,
) -> nnx.LinearGeneral:
  """A linear map of the last axes, normal(0, std) kernel in float32, computed in `dtype`.

  `name` is what `lora` may adapt it by.
  """
  adapted = lora is not None and lora.adapts(name)
  make = functools.partial(Adapted, lora=lora) if adapted else nnx.LinearGeneral
  return make(
    inputs,
    outputs,
    axis=axis,
    use_bias=bias,
    kernel_init=nnx.initializers.normal(std),
    dtype=dtype,
    param_dtype=jnp.float32,
    precision=precision(dtype),
    dot_general=_flat_dot,
    rngs=rngs,
  )


def visible(batch: Batch, *, causal: bool) -> jax.Array:
  """Which columns see which: bool [B, T, S]; the one statement of the group-and-branch rule."""
  same_group = batch.group[:, :, None] == batch.group[:, None, :]
  key_branch = batch.branch[:, None, :]
  same_branch = batch.branch[:, :, None] == key_branch
  mask = same_group & ((key_branch == 0) | same_branch)
  if causal:
    columns = jnp.arange(batch.tokens.shape[1])
    mask &= columns[None, :, None] >= columns[None, None, :]
  return mask


def within(position: jax.Array, window: jax.Array) -> jax.Array:
  """bool [B, T, S]: the key is fewer than `window` positions back; window 0 sees all."""
  distance = position[:, :, None] - position[:, None, :]
  return (window == 0) | (distance < window)


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask_BTS: jax.Array,
  *,
  causal: bool,
  dropout: float = 0.0,
  key: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention with grouped key/value heads; softmax in float32. Returns [B, T, N, H].

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys and values, S = T.
    mask_BTS: bool, which key each query sees.
    causal: no query sees a key of a later column, so those are not even multiplied.
    dropout, key: of the attention's weights.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  R = N // K
  options = dict(precision=precision(q_BTNH.dtype), preferred_element_type=jnp.float32)
  # Heads that share a key stand under one another, so that each product is one plain matrix product
  # for each key head: XLA for CPU takes four times as long over the same einsum.
  q_BTKRH = q_BTNH.reshape(B, T, K, R, H) * jnp.asarray(H**-0.5, q_BTNH.dtype)
  q_BKRTH = q_BTKRH.transpose(0, 2, 3, 1, 4)
  k_BKHS, v_BKSH = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3)

  def block(start: int, end: int, last: int, block_key) -> jax.Array:
    """Queries start .. end over keys 0 .. last: [B, K, R, t, H]."""
    t = end - start
    logits_BKPS = jnp.matmul(
      q_BKRTH[:, :, :, start:end].reshape(B, K, R * t, H), k_BKHS[..., :last], **options
    )
    mask = mask_BTS[:, None, None, start:end, :last]
    logits = jnp.where(mask, logits_BKPS.reshape(B, K, R, t, last), _MASKED)
    weights = drop(jax.nn.softmax(logits, axis=-1).astype(v_BKSH.dtype), dropout, block_key)
    out = jnp.matmul(weights.reshape(B, K, R * t, last), v_BKSH[:, :, :last], **options)
    return out.reshape(B, K, R, t, H)

  # Eight blocks leave 9/16 of the square, and three times less time in all: smaller ones stay in
  # cache. Under 64 columns a block is no longer worth a matrix product of its own.
  size = max(64, -(-T // 8 // 64) * 64) if causal else T
  starts = range(0, T, size)
  keys = [None] * len(starts) if key is None else jax.random.split(key, len(starts))
  blocks = [
    block(start, min(start + size, T), min(start + size, T) if causal else T, block_key)
    for start, block_key in zip(starts, keys, strict=True)
  ]
  out_BTKRH = jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4)
  return out_BTKRH.reshape(B, T, N, H).astype(v_BSKH.dtype)


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Inverted dropout; none where there is no key (evaluation) or no rate."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module | None:
  """`layers` copies of a module, differently initialised, each parameter with a leading axis L."""
  if layers == 0:
    return None
  return nnx.vmap(make, in_axes=0, axis_size=layers)(rngs.split(layers))


def run_stack(
  layers: nnx.Module | None,
  body: Callable[..., jax.Array],
  h_BTD: jax.Array,
  *,
  per_layer: Any = None,
  key: jax.Array | None = None,
  remat: str = "none",
) -> jax.Array:
  """Scans `body(layer, h, extra, key) -> h` over a stack: compile time does not grow with depth.

  Args:
    layers: from `stack`, or None for no layer at all.
    per_layer: pytree of arrays with leading axis L, a slice of which each layer gets as `extra`.
    key: for dropout; each layer gets its own.
    remat: 'none' keeps every activation, 'minimal' those of the linear maps, 'full' each layer's
      input only.
  """
  if layers is None:
    return h_BTD
  graph, state = nnx.split(layers)
  depth = jax.tree.leaves(state)[0].shape[0]
  keys = None if key is None else jax.random.split(key, depth)

  def step(h, xs):
    layer_state, extra, layer_key = xs
    layer = nnx.merge(graph, gathered(layer_state, h.dtype))
    return by_rows(body(layer, h, extra, layer_key)), None

  if remat != "none":
    step = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=False)
  h_BTD, _ = jax.lax.scan(step, h_BTD, (state, per_layer, keys))
  return h_BTD
