"""What decoder and encoder share: activations, linear maps, RMSNorm, stacks of layers.

Shape letters: B rows, T columns (tokens) of a row, N all leading axes as one, D width (inputs of a
linear map), F outputs of a linear map, L layers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rm_jax.errors import InputError
from rm_jax.models.lora import Adapted, Lora
from rm_jax.models.numerics import precision, product, transposed
from rm_jax.parallel.axes import gather_layer, shard_rows

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
  "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
  "tanh": jnp.tanh,
}


def _of_cudnn(primitive, *_, **__) -> bool:
  """A rematerialisation policy: whether the primitive is cuDNN's attention.

  Its outputs, the normaliser among them, are kept as a whole, because `jax.nn` does not return the
  normaliser, which therefore cannot be given a name.
  """
  return primitive.name == "dot_product_attention_fwd_wrapper"


# Value of the config field model.remat -> the policy that says which values of a layer are kept for
# the backward pass; all others are computed again there (rematerialisation). None: none is.
# attention.py and kernels.py name the output and normaliser of attention 'attention'.
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


def activation(name: str, where: str = "activation") -> Callable[[jax.Array], jax.Array]:
  """The activation of a name. Raises InputError, which says `where`, for one that is not known."""
  if name not in ACTIVATIONS:
    raise InputError(f"{where} {name!r} is not supported; expected one of {sorted(ACTIVATIONS)}")
  return ACTIVATIONS[name]


def _flat_dot(x, kernel, dimensions, **options) -> jax.Array:
  """`lax.dot_general` of a linear map, as one product of two matrices.

  For products of [B, T, D], XLA for CPU chooses memory layouts with which the backward pass of a
  scanned layer takes nearly twice as long.
  """
  (axes, _), _ = dimensions
  inputs = kernel.shape[: len(axes)]
  x_ND = x.reshape(-1, math.prod(inputs))
  kernel_DF = kernel.reshape(x_ND.shape[1], -1)
  y_NF = _product(x_ND, kernel_DF, tuple(sorted(options.items())))
  return y_NF.reshape(*x.shape[: x.ndim - len(axes)], *kernel.shape[len(axes) :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x_ND: jax.Array, kernel_DF: jax.Array, options: tuple) -> jax.Array:
  """The product of two matrices, with a gradient of the kernel that is fast on CPU."""
  return _dot(x_ND, kernel_DF, 1, 0, options)


def _dot(x, y, x_axis: int, y_axis: int, options: tuple) -> jax.Array:
  return product(x, y, x_axis, y_axis, **dict(options))


def _product_fwd(x_ND, kernel_DF, options):
  return _dot(x_ND, kernel_DF, 1, 0, options), (x_ND, kernel_DF)


def _product_bwd(options, saved, g_NF):
  x_ND, kernel_DF = saved
  g_ND = _dot(g_NF, kernel_DF, 1, 1, options)
  turned = functools.partial(_turned_product, options=options)
  plain = functools.partial(_dot, x_axis=0, y_axis=0, options=options)
  g_DF = jax.lax.platform_dependent(x_ND, g_NF, cpu=turned, default=plain)
  return g_ND.astype(x_ND.dtype), g_DF.astype(kernel_DF.dtype)


_product.defvjp(_product_fwd, _product_bwd)


def _turned_product(x_ND: jax.Array, g_NF: jax.Array, *, options: tuple) -> jax.Array:
  """xᵀ g, [D, F], for CPU; twice as fast as the plain product.

  XLA for CPU has a fast kernel only for [m, k] times [k, n]. So the narrower matrix is transposed
  beforehand; without the barrier XLA would merge the transpose into the product again. In bfloat16
  it does so in spite of the barrier, and `transposed` takes another way.
  """
  if x_ND.dtype == jnp.bfloat16:
    return _dot(transposed(x_ND), g_NF, 1, 0, options)
  if x_ND.shape[1] <= g_NF.shape[1]:
    return _dot(jax.lax.optimization_barrier(x_ND.T), g_NF, 1, 0, options)
  turned_FD = _dot(jax.lax.optimization_barrier(g_NF.T), x_ND, 1, 0, options)
  return jax.lax.optimization_barrier(turned_FD).T


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x²) + epsilon) · (offset + scale) over the last axis.

  In float32 whatever the input's dtype is and that in which the scale is stored.

  Zhang & Sennrich 2019, equation 4. On CPU its means are matrix products with a constant vector:
  XLA takes six to fifteen times as long there over reductions of these shapes, which flax's RMSNorm
  uses.

  Args:
    width: of the last axis.
    epsilon: added to the mean square.
    dtype: of the output.
    rngs: not used; a fresh norm multiplies by one.
    offset: 1 where a checkpoint stores each scale minus one (Gemma); else 0.
  """

  def __init__(self, width: int, *, epsilon: float, dtype, rngs: nnx.Rngs, offset: float = 0.0):
    del rngs
    self.scale = nnx.Param(jnp.full(width, 1.0 - offset, jnp.float32))
    self.offset = offset
    self.epsilon = epsilon
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    x_ND = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    scale_D = self.scale[...]
    if self.offset:  # a scale that is stored in bfloat16 (LoRA's base) is not rounded to it again
      scale_D = scale_D.astype(jnp.float32) + self.offset
    return _rms_norm(x_ND, scale_D, self.epsilon).astype(self.dtype).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rms_norm(x_ND: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
  return _rms_norm_fwd(x_ND, scale_D, epsilon)[0]


def _mean(x_ND: jax.Array) -> jax.Array:
  def product(x_ND):
    D = x_ND.shape[1]
    ones_D1 = jnp.full((D, 1), 1 / D, jnp.float32)
    return jnp.matmul(x_ND, ones_D1, precision=jax.lax.Precision.HIGHEST)

  def plain(x_ND):
    return jnp.mean(x_ND, axis=1, keepdims=True)

  return jax.lax.platform_dependent(x_ND, cpu=product, default=plain)


def _rms_norm_fwd(x_ND, scale_D, epsilon):
  inverse_N1 = jax.lax.rsqrt(_mean(x_ND**2) + epsilon)
  return x_ND * inverse_N1 * scale_D[None], (x_ND, scale_D, inverse_N1)


def _rms_norm_bwd(epsilon, saved, g_ND):
  del epsilon
  x_ND, scale_D, inverse_N1 = saved
  unit_ND = x_ND * inverse_N1
  scaled_ND = g_ND * scale_D[None]
  g_x_ND = inverse_N1 * (scaled_ND - unit_ND * _mean(scaled_ND * unit_ND))
  return g_x_ND, jnp.sum(g_ND * unit_ND, axis=0)


_rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


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
  """A linear map, with a fresh kernel normal(0, std) and bias 0.

  Args:
    name: by which `lora` targets it.
    inputs, outputs: size or sizes of the axes that it reads and writes.
    axis: the axes that it reads.
    bias: whether the map has a bias.
    std: standard deviation of a fresh kernel.
    dtype: of the compute; fresh parameters are float32.
    rngs: for fresh parameters.
    lora: which maps have adapters; None = none.
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
  """`layers` modules as one: each parameter has a leading axis L. None for no layers.

  Each layer's parameters are drawn with a key of their own.
  """
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
  last: Callable[..., jax.Array] | None = None,
) -> jax.Array:
  """Scans `body(layer, h, extra, key) -> h` over a stack.

  By `lax.scan`, so that compile time does not grow with depth.

  Args:
    layers: from `stack`; None leaves h as it is.
    body: a layer's function; its output has the shape of h_BTD.
    h_BTD: what enters the first layer.
    per_layer: pytree of arrays with leading axis L, a slice of which each layer gets as `extra`.
    key: for dropout; each layer gets its own.
    remat: rematerialisation: 'minimal' keeps for the backward pass the outputs of linear maps and
      attention, 'full' each layer's input only; 'none' turns it off.
    last: what the last layer does instead of `body`, without rematerialisation; its output may have
      fewer columns.
  """
  if layers is None:
    return h_BTD
  graph, state = nnx.split(layers)
  depth = jax.tree.leaves(state)[0].shape[0]
  keys = None if key is None else jax.random.split(key, depth)

  xs = state, per_layer, keys
  if last is None:
    of, count = (lambda x: x), depth
  else:
    # The loop slices the whole stack by index, so that each layer's gradient is written into the
    # stack's gradient in place. Scanning over x[:-1] would give a second array of almost the
    # stack's size, until it is joined with the last layer's gradient.
    of, count, xs = functools.partial(_at, xs), depth - 1, jnp.arange(depth - 1)

  def step(h, x):
    layer_state, extra, layer_key = of(x)
    layer = nnx.merge(graph, gather_layer(layer_state, h.dtype))
    return shard_rows(body(layer, h, extra, layer_key)), None

  if remat != "none":
    step = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=False)
  h_BTD, _ = jax.lax.scan(step, h_BTD, xs, length=count)
  if last is None:
    return h_BTD
  layer_state, extra, layer_key = of(depth - 1)
  return last(nnx.merge(graph, layer_state), h_BTD, extra, layer_key)


def _at(tree: Any, index) -> Any:
  """The slices of a tree of arrays at an index of their leading axis."""
  return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)
