"""Process supervision: rewards at the steps of a solution.

The marks of a group [..., K] are the steps of its responses; `response` [..., K] says whose each
is, and those of one response stand in the order of its steps. `where` and `weights` as
`rm_jax.losses.compare` says.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.losses.compare import check_shape, item_weights, mean_by, real_scores
from rm_jax.losses.pointwise import cross_entropy, real_labels

STEPS = ("all", "last", "first_error")
HOW = ("min", "product", "mean", "last")


def process(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  response: jax.Array | None = None,
  weights: jax.Array | None = None,
  steps: Literal["all", "last", "first_error"] = "all",
) -> jax.Array:
  """Cross-entropy of each step's correctness from σ(s), over the steps chosen.

    y · −log σ(s) + (1 − y) · −log σ(−s)

  Args:
    scores: float [..., K], log-odds that the solution is right so far.
    labels: float [..., K] in [0, 1], clipped to it; soft ones are probabilities (OpenRLHF's targets
      [p, 1 − p]), and one under 1/2 is an error.
    where: bool [..., K], which marks are real.
    response: int [..., K], whose step it is; needed unless steps = 'all'.
    weights: float [..., K], of the steps.
    steps: 'all'; 'last', the last of each response (an outcome label); 'first_error', each up to
      and including its first error, as labels after it say nothing clear (Lightman et al. 2023).

  Returns:
    float32 [...], mean over the chosen steps of all the list's responses (Uesato et al. 2022).

  Raises:
    ValueError: at an unknown `steps`, a missing `response`, or a shape that does not fit.
  """
  if steps not in STEPS:
    raise InputError(f"steps is {steps!r}; expected one of {', '.join(STEPS)}")
  scores = real_scores(scores, labels, where)
  labels = jnp.clip(real_labels(labels, where), 0.0, 1.0)
  chosen = where
  if steps != "all":
    if response is None:
      raise ValueError(f"steps = {steps!r} needs response, whose step each mark is")
    check_shape("response", response, where.shape)
    earlier = _earlier(response, where)
    if steps == "last":
      chosen = where & ~jnp.any(earlier, axis=-2)
    else:
      chosen = where & ~jnp.any(earlier & (labels < 0.5)[..., None, :], axis=-1)
  counts = item_weights(weights, where) * chosen
  return mean_by(cross_entropy(scores, labels), counts, (-1,))


def aggregate(
  scores: jax.Array,
  *,
  where: jax.Array,
  response: jax.Array,
  num_responses: int,
  how: Literal["min", "product", "mean", "last"] = "min",
) -> tuple[jax.Array, jax.Array]:
  """One score a solution from those of its steps.

    min: min s;  product: Σ log σ(s), the log of Π σ(s);  mean: Σ s / n;  last: s of the last step

  Args:
    scores: float [..., K], log-odds.
    where: bool [..., K], which marks are real.
    response: int [..., K] in 0 .. R − 1, whose step it is; anything where not real.
    num_responses: R, static.
    how: min, product (Lightman et al. 2023), mean or last (Snell et al. 2024). All but product are
      log-odds themselves, product a log-probability.

  Returns:
    float32 [..., R], 0 for a response without a step; and bool [..., R], which have one.

  Raises:
    ValueError: at an unknown `how` or a shape that does not fit.
  """
  if how not in HOW:
    raise ValueError(f"how is {how!r}; expected one of {', '.join(HOW)}")
  scores = real_scores(scores, scores, where)
  check_shape("response", response, where.shape)
  whose = jnp.moveaxis(jax.nn.one_hot(response, num_responses, dtype=bool), -1, -2)
  mine_RK = whose & where[..., None, :]
  if how == "last":
    mine_RK &= ~jnp.any(_earlier(response, where), axis=-2)[..., None, :]
  some_R = jnp.any(mine_RK, axis=-1)
  steps_RK = jnp.broadcast_to(scores[..., None, :], mine_RK.shape)
  if how == "min":
    # Not at infinity where there is none: the gradient of a minimum of nothing is not zero.
    least = jnp.min(steps_RK, axis=-1, where=mine_RK, initial=jnp.inf)
    return jnp.where(some_R, least, 0.0), some_R
  if how == "product":
    return jnp.sum(jnp.where(mine_RK, jax.nn.log_sigmoid(steps_RK), 0.0), axis=-1), some_R
  return mean_by(steps_RK, mine_RK.astype(jnp.float32), (-1,)), some_R


def _earlier(response: jax.Array, where: jax.Array) -> jax.Array:
  """bool [..., K, K]: mark j is an earlier step of mark i's response."""
  same = response[..., :, None] == response[..., None, :]
  real = where[..., :, None] & where[..., None, :]
  return same & real & jnp.broadcast_to(jnp.tri(where.shape[-1], k=-1, dtype=bool), same.shape)
