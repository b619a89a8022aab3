"""Penalties, one value a list, to be added to a loss with a weight.

On scores: `l2`, `centering`, `spread`. On the text that the same backbone would write: `text_sft`,
`text_dpo` (likelihoods from `rm_jax.losses.likelihood`). A penalty on a whole step is in `moments`.
"""

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import (
  check_range,
  check_shape,
  item_weights,
  mean_by,
  mean_where,
  real_scores,
)


def l2(scores: jax.Array, *, where: jax.Array) -> jax.Array:
  """Mean square of a list's scores: holds the free constant of a pairwise model near zero.

  The centering of Eisenstein et al. 2023 ("Helping or Herding?", eq. 2) squares a pair's sum;
  this squares each score, so that it is defined for any K and bounds the spread too.
  """
  return mean_where(jnp.square(real_scores(scores, scores, where)), where, (-1,))


def centering(scores: jax.Array, *, where: jax.Array) -> jax.Array:
  """Square of the sum of a list's scores, (Σ s)² (Eisenstein et al. 2023, eq. 2, for K = 2)."""
  return jnp.square(jnp.sum(real_scores(scores, scores, where), axis=-1))


def spread(scores: jax.Array, *, where: jax.Array, limit: float = 10.0) -> jax.Array:
  """Mean of max(0, |s| − limit)² over a list's scores: free within ±limit, a wall beyond it.

  Args:
    scores: float [..., K].
    where: bool [..., K], which are real.
    limit: >= 0, in units of score.

  Returns:
    float32 [...], 0 for a list without items.
  """
  check_range("limit", limit, 0.0, float("inf"))
  beyond = jax.nn.relu(jnp.abs(real_scores(scores, scores, where)) - limit)
  return mean_where(jnp.square(beyond), where, (-1,))


def text_sft(
  log_likelihood: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
  tokens: jax.Array | None = None,
) -> jax.Array:
  """−log π(y | x) of the list's best response: its features stay those of a language model.

  Args:
    log_likelihood: float [..., K], Σ log π over each response's tokens.
    labels: float [..., K], gains; several best share by their weights.
    where: bool [..., K], which are real.
    weights: float [..., K], of the items.
    tokens: [..., K], how many tokens each sum has, for the mean over tokens; None for the sum.

  Returns:
    float32 [...], 0 for a list without items (Yang et al. 2024, GRM, plain likelihood).
  """
  log_likelihood = real_scores(log_likelihood, labels, where)
  if tokens is not None:
    check_shape("tokens", tokens, where.shape)
    log_likelihood /= jnp.maximum(jnp.where(where, tokens, 1), 1)
  return mean_by(-log_likelihood, best(labels, where, weights), (-1,))


def text_dpo(
  log_likelihood: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  weights: jax.Array | None = None,
  reference: jax.Array | None = None,
  beta: float = 0.1,
) -> jax.Array:
  """−log σ(β (log π(y | x) − log π_ref(y | x))) of the list's best response.

  Without a reference this is GRM's, −log σ(β Σ log π): bounded pull on likely responses. GRM's
  variant of chosen against rejected is `logistic(log π − log π_ref, labels, temperature=1 / β)`.

  Args:
    log_likelihood: float [..., K], Σ log π over each response's tokens.
    labels: float [..., K], gains; several best share by their weights.
    where: bool [..., K], which are real.
    weights: float [..., K], of the items.
    reference: float [..., K], log π_ref; None is 0.
    beta: β > 0; 0.1 in the paper.

  Returns:
    float32 [...], 0 for a list without items (Yang et al. 2024, GRM).
  """
  check_range("beta", beta, 0.0, float("inf"), open_low=True)
  ratio = real_scores(log_likelihood, labels, where)
  if reference is not None:
    ratio -= real_scores(reference, labels, where)
  return mean_by(jax.nn.softplus(-beta * ratio), best(labels, where, weights), (-1,))


def best(labels: jax.Array, where: jax.Array, weights: jax.Array | None) -> jax.Array:
  """float32 [..., K]: weights of a list's best, 0 for the others. None weighs all alike."""
  labels = jnp.where(where, labels.astype(jnp.float32), -jnp.inf)
  best = where & (labels == jnp.max(labels, axis=-1, keepdims=True))
  return best * item_weights(weights, where)
