"""Numerical choices that all parts of a network share: precision of products, dropout."""

from typing import Any

import jax
import jax.numpy as jnp


def precision(dtype: Any) -> jax.lax.Precision:
  """Precision of products in a dtype: the highest for float32.

  By default a float32 product rounds its inputs, to bfloat16 on TPU and to TF32 on NVIDIA.
  """
  highest = jnp.dtype(dtype) == jnp.float32
  return jax.lax.Precision.HIGHEST if highest else jax.lax.Precision.DEFAULT


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Inverted dropout: kept elements are divided by 1 - rate. Without key or rate, x itself."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
