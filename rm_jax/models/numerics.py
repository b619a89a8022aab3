"""Small numerical choices that all of a model's parts share."""

from typing import Any

import jax
import jax.numpy as jnp


def precision(dtype: Any) -> jax.lax.Precision:
  """Float32 compute means float32: by default TPUs and NVIDIA's tensor cores would round inputs."""
  highest = jnp.dtype(dtype) == jnp.float32
  return jax.lax.Precision.HIGHEST if highest else jax.lax.Precision.DEFAULT


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Inverted dropout; none where there is no key (evaluation) or no rate."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
