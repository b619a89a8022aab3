"""Pairwise losses: pure functions of scores and labels [..., K]; the last axis is the list.

Each returns one value a list, [...]: the mean over the list's pairs in which i is better than j.
"""

import jax
import jax.numpy as jnp


def better_pairs(labels: jax.Array, where: jax.Array) -> jax.Array:
  """bool [..., K, K]: both real, and label i above label j."""
  real = where[..., :, None] & where[..., None, :]
  return real & (labels[..., :, None] > labels[..., None, :])


def mean_where(values: jax.Array, where: jax.Array, axis: tuple[int, ...]) -> jax.Array:
  """Mean of those `where`, 0 where there is none; the masked add neither value nor gradient."""
  count = jnp.sum(where, axis=axis)
  return jnp.sum(jnp.where(where, values, 0.0), axis=axis) / jnp.maximum(count, 1)


def logistic(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  smoothing: float = 0.0,
) -> jax.Array:
  """Bradley–Terry's negative log-likelihood, with margin and label smoothing.

  For each pair with label i above label j and Δ = s_i − s_j − m:
    (1 − ε) · −log σ(Δ) + ε · −log σ(−Δ)

  Args:
    scores: float [..., K].
    labels: float [..., K], gains; equal labels make no pair.
    where: bool [..., K], which are real.
    pair_margin: float [..., K, K], m of each pair, added to `margin`.
    margin: m of every pair, in units of score (Touvron et al. 2023, Llama 2, eq. 2).
    smoothing: ε in [0, 1/2), the share of labels taken to be wrong.

  Returns:
    float32 [...], mean over the list's pairs (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).
  """
  scores = scores.astype(jnp.float32)
  difference = scores[..., :, None] - scores[..., None, :] - margin
  if pair_margin is not None:
    if pair_margin.shape != difference.shape:
      raise ValueError(f"pair_margin is {pair_margin.shape}; expected {difference.shape}, a pair's")
    difference -= pair_margin
  pairs = better_pairs(labels, where)
  difference = jnp.where(pairs, difference, 0.0)
  loss = (1 - smoothing) * jax.nn.softplus(-difference)
  if smoothing:
    loss += smoothing * jax.nn.softplus(difference)
  return mean_where(loss, pairs, (-2, -1))
