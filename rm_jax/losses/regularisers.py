"""Penalties, one value a list, which the objective adds to a loss with a weight.

On scores: `l2`, `centering`, `spread`. On the likelihood of text under the same backbone:
`text_sft`, `text_dpo` (`rm_jax.losses.likelihood` computes the likelihood). A penalty on the scores
of a whole step is in `rm_jax.losses.moments`. All raise ValueError if a shape does not fit, and
InputError if an option is out of its range.
"""

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import (
  check_range,
  check_shape,
  mean_where,
  real_scores,
)


def l2(scores: jax.Array, *, where: jax.Array) -> jax.Array:
  """Mean square of a list's scores.

  Comparisons leave a constant of each prompt undetermined; this holds it near zero. `centering`
  (Eisenstein et al. 2023, "Helping or Herding?", eq. 2) squares the sum of a list's scores; this
  squares each score, so that it bounds the spread of the scores too.
  """
  return mean_where(jnp.square(real_scores(scores, scores, where)), where, (-1,))


def centering(scores: jax.Array, *, where: jax.Array) -> jax.Array:
  """Square of the sum of a list's scores, (Σ s)² (Eisenstein et al. 2023, eq. 2, for K = 2)."""
  return jnp.square(jnp.sum(real_scores(scores, scores, where), axis=-1))


def spread(scores: jax.Array, *, where: jax.Array, limit: float = 10.0) -> jax.Array:
  """Mean of max(0, |s| − limit)² over a list's scores: no penalty within ±limit.

  Args:
    scores: float [..., K].
    where: bool [..., K], True at items and False at padding.
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
  tokens: jax.Array | None = None,
) -> jax.Array:
  """−log π(y | x) of the best response y to prompt x, which keeps the backbone a language model.

  Args:
    log_likelihood: float [..., K], Σ log π over each response's tokens.
    labels: float [..., K], gains; if several are best, their mean counts.
    where: bool [..., K], True at items and False at padding.
    tokens: [..., K], number of tokens in each sum, to take the mean over tokens; None for the sum.

  Returns:
    float32 [...], 0 for a list without items (Yang et al. 2024, GRM, plain likelihood).
  """
  log_likelihood = real_scores(log_likelihood, labels, where)
  if tokens is not None:
    check_shape("tokens", tokens, where.shape)
    log_likelihood /= jnp.maximum(jnp.where(where, tokens, 1), 1)
  return mean_where(-log_likelihood, best(labels, where), (-1,))


def text_dpo(
  log_likelihood: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  reference: jax.Array | None = None,
  beta: float = 0.1,
) -> jax.Array:
  """−log σ(β (log π(y | x) − log π_ref(y | x))) of the list's best response.

  Without a reference this is GRM's −log σ(β Σ log π), whose gradient is bounded. GRM's variant with
  both chosen and rejected is `pairwise.logistic` of log π − log π_ref with temperature 1 / β.

  Args:
    log_likelihood: float [..., K], Σ log π over each response's tokens.
    labels: float [..., K], gains; if several are best, their mean counts.
    where: bool [..., K], True at items and False at padding.
    reference: float [..., K], log π_ref; None is log π_ref = 0.
    beta: β > 0; 0.1 in the paper.

  Returns:
    float32 [...], 0 for a list without items (Yang et al. 2024, GRM).
  """
  check_range("beta", beta, 0.0, float("inf"), open_low=True)
  ratio = real_scores(log_likelihood, labels, where)
  if reference is not None:
    ratio -= real_scores(reference, labels, where)
  return mean_where(jax.nn.softplus(-beta * ratio), best(labels, where), (-1,))


def best(labels: jax.Array, where: jax.Array) -> jax.Array:
  """bool [..., K]: which items have their list's highest label; several if labels are equal."""
  labels = jnp.where(where, labels.astype(jnp.float32), -jnp.inf)
  return where & (labels == jnp.max(labels, axis=-1, keepdims=True))
