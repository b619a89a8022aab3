"""Numerical choices that all parts of a network share: precision of products, dropout."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def precision(dtype: Any) -> jax.lax.Precision:
  """Precision of products in a dtype: the highest for float32.

  By default a float32 product rounds its inputs, to bfloat16 on TPU and to TF32 on NVIDIA.
  """
  highest = jnp.dtype(dtype) == jnp.float32
  return jax.lax.Precision.HIGHEST if highest else jax.lax.Precision.DEFAULT


def product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int, **options) -> jax.Array:
  """`lax.dot_general` of two matrices of one dtype, over an axis of each. Returns that dtype.

  XLA for CPU has a kernel for bfloat16 only where the result is float32, which is then rounded.
  With a result in bfloat16 it multiplies in float32, which takes twice as long where the CPU has
  instructions for bfloat16.
  """
  plain = functools.partial(
    jax.lax.dot_general, dimension_numbers=(((x_axis,), (y_axis,)), ((), ())), **options
  )
  if x.dtype != jnp.bfloat16:
    return plain(x, y)

  def rounded(x, y):
    return plain(x, y, preferred_element_type=jnp.float32).astype(x.dtype)

  return jax.lax.platform_dependent(x, y, cpu=rounded, default=plain)


def transposed(x: jax.Array) -> jax.Array:
  """The last two axes exchanged, [..., D, N] of [..., N, D], for a product with another array.

  In bfloat16, XLA for CPU would merge the transpose into the product, for which it has no kernel
  then, and would multiply in float32. The two halves together are an array of their own.
  """
  if x.dtype != jnp.bfloat16:
    return x.swapaxes(-1, -2)

  def in_halves(x):
    halves = jnp.split(x, [x.shape[-1] // 2], axis=-1)
    return jnp.concatenate([half.swapaxes(-1, -2) for half in halves], axis=-2)

  return jax.lax.platform_dependent(x, cpu=in_halves, default=lambda x: x.swapaxes(-1, -2))


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Inverted dropout: kept elements are divided by 1 - rate. Without key or rate, x itself."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
