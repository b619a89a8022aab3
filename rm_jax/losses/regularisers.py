"""Penalties on scores, one value a list, to be added to a loss with a weight."""

import jax
import jax.numpy as jnp

from rm_jax.losses.pairwise import mean_where


def l2(scores: jax.Array, *, where: jax.Array) -> jax.Array:
  """Mean square of a list's scores: holds the free constant of a pairwise model near zero.

  The centering of Eisenstein et al. 2023 ("Helping or Herding?", eq. 2) squares a pair's sum;
  this squares each score, so that it is defined for any K and bounds the spread too.
  """
  return mean_where(jnp.square(scores.astype(jnp.float32)), where, (-1,))


def centering(scores: jax.Array, *, where: jax.Array) -> jax.Array:
  """Square of the sum of a list's scores, (Σ s)² (Eisenstein et al. 2023, eq. 2, for K = 2)."""
  return jnp.square(jnp.sum(jnp.where(where, scores.astype(jnp.float32), 0.0), axis=-1))
