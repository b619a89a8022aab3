"""What decoder and encoder share: linear maps, stacks of layers.

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
from rm_jax.models.numerics import precision

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
  "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
  "tanh": jnp.tanh,
}


def _of_cudnn(primitive, *_, **__) -> bool:
  """Whether it is cuDNN's attention, of whose normaliser `jax.nn` leaves nothing to be named."""
  return primitive.name == "dot_product_attention_fwd_wrapper"


_either = jax.checkpoint_policies.save_from_both_policies
REMAT = {
  "none": None,
  "minimal": _either(
    _either(
      jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
      jax.checkpoint_policies.save_only_these_names("attention"),
    ),
    _of_cudnn,
  ),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """The activation that a config.json names. Raises ValueError for one that is not known."""
  if name not in ACTIVATIONS:
    raise ValueError(f"hidden_act {name!r} is not supported; expected one of {sorted(ACTIVATIONS)}")
  return ACTIVATIONS[name]


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
    remat: 'none' keeps every activation, 'minimal' those of linear maps and attention, 'full'
      each layer's input only.
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
