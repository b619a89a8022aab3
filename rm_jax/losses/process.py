"""Process supervision: rewards at the steps of a solution.

The marks of a group [..., K] are the steps of its responses; `response` [..., K] says to which
response a step belongs. The steps of one response are in their order. `where` is True at marks and
False at padding.

  >>> scores, right = jnp.asarray([2.0, 1.0, -1.0]), jnp.asarray([1.0, 1.0, 0.0])
  >>> whose = dict(where=jnp.ones(3, bool), response=jnp.zeros(3, int))
  >>> print(f"{process(scores, right, **whose):.4f}")  # mean of log(1 + e^-2), log(1 + e^-1) twice
  0.2512
  >>> least, _ = aggregate(scores, num_responses=1, how="min", **whose)
  >>> print(least)
  [-1.]
"""

from typing import Literal

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.losses.compare import check_shape, mean_by, mean_where, real_scores
from rm_jax.losses.pointwise import cross_entropy, real_labels

STEPS = ("all", "last", "first_error")
HOW = ("min", "product", "mean", "last")
SO_FAR = ("own", "min", "product")


def process(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  response: jax.Array | None = None,
  steps: Literal["all", "last", "first_error"] = "all",
) -> jax.Array:
  """Cross-entropy of each step's correctness from σ(s), over the steps chosen.

    y · −log σ(s) + (1 − y) · −log σ(−s)

  Args:
    scores: float [..., K], log-odds that the step is right, in the sense of the labels.
    labels: float [..., K], clipped to [0, 1]; values between are probabilities (OpenRLHF's targets
      [p, 1 − p]). A label below 1/2 is an error.
    where: bool [..., K], True at marks and False at padding.
    response: int [..., K], the response that the step belongs to; not needed if steps = 'all'.
    steps: 'all'; 'last', only each response's last step (an outcome label); 'first_error', the
      steps up to and including each response's first error, since it is not clear what labels after
      an error mean (Lightman et al. 2023).

  Returns:
    float32 [...], mean over the chosen steps of all the list's responses, 0 if there are none
    (Uesato et al. 2022).

  Raises:
    ValueError: `response` is missing though `steps` needs it, or a shape does not fit.
    InputError: `steps` is unknown.
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
  return mean_where(cross_entropy(scores, labels), chosen, (-1,))


def aggregate(
  scores: jax.Array,
  *,
  where: jax.Array,
  response: jax.Array,
  num_responses: int,
  how: Literal["min", "product", "mean", "last"] = "min",
) -> tuple[jax.Array, jax.Array]:
  """One score a solution, from the scores of its steps.

    min: min s;  product: Σ log σ(s), the log of Π σ(s);  mean: Σ s / n;  last: s of the last step

  Args:
    scores: float [..., K], log-odds.
    where: bool [..., K], True at marks and False at padding.
    response: int [..., K] in 0 .. R − 1, the response that the step belongs to; ignored at padding.
    num_responses: R, a Python int.
    how: min, product (Lightman et al. 2023), mean or last (Snell et al. 2024). Product gives a
      log-probability, the others log-odds.

  Returns:
    float32 [..., R], 0 for a response without steps; and bool [..., R], which responses have steps.

  Raises:
    ValueError: `how` is unknown, or a shape does not fit.
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
    # `least` is infinite for a response without steps, which gets 0.
    least = jnp.min(steps_RK, axis=-1, where=mine_RK, initial=jnp.inf)
    return jnp.where(some_R, least, 0.0), some_R
  if how == "product":
    return jnp.sum(jnp.where(mine_RK, jax.nn.log_sigmoid(steps_RK), 0.0), axis=-1), some_R
  return mean_by(steps_RK, mine_RK.astype(jnp.float32), (-1,)), some_R


def so_far(
  scores: jax.Array,
  *,
  where: jax.Array,
  response: jax.Array,
  how: Literal["own", "min", "product"] = "product",
) -> jax.Array:
  """The score of each solution up to and including each of its steps.

    own: s_t;  min: min s_i over i ≤ t;  product: logit of Π σ(s_i) over i ≤ t

  Labels that stop at the first error, as those of PRM800K do, teach whether a step is right where
  all before it are: P(right up to t) is then the product of the steps' probabilities (Lightman et
  al. 2023, appendix F, score whole solutions by it). Labels that go on after an error teach either
  the step itself (PRMBench) or the solution up to it (BIG-Bench Mistake).

  Args:
    scores: float [..., K], log-odds.
    where: bool [..., K], True at marks and False at padding.
    response: int [..., K], the response that the step belongs to; its steps are in order.
    how: see above.

  Returns:
    float32 [..., K], log-odds; 0 at padding. At a response's first mark it is the score itself, in
    "product" to within rounding. "product" is limited to about −80 .. 16.

  Raises:
    ValueError: `how` is unknown, or a shape does not fit.
  """
  if how not in SO_FAR:
    raise ValueError(f"how is {how!r}; expected one of {', '.join(SO_FAR)}")
  scores = real_scores(scores, scores, where)
  if how == "own":
    return scores
  check_shape("response", response, where.shape)
  itself = jnp.broadcast_to(jnp.eye(where.shape[-1], dtype=bool), (*where.shape, where.shape[-1]))
  until_KK = (_earlier(response, where) | itself) & where[..., None, :]
  steps_KK = jnp.broadcast_to(scores[..., None, :], until_KK.shape)
  if how == "min":
    least = jnp.min(steps_KK, axis=-1, where=until_KK, initial=jnp.inf)
    return jnp.where(where, least, 0.0)
  log_p = jnp.sum(jnp.where(until_KK, jax.nn.log_sigmoid(steps_KK), 0.0), axis=-1)
  # Limits the log-odds to about -80 .. 16; at log p = 0 they would be infinite.
  log_p = jnp.clip(log_p, -80.0, -1e-7)
  return jnp.where(where, log_p - jnp.log(-jnp.expm1(log_p)), 0.0)


def _earlier(response: jax.Array, where: jax.Array) -> jax.Array:
  """bool [..., K, K]: mark j is an earlier step of mark i's response."""
  same = response[..., :, None] == response[..., None, :]
  real = where[..., :, None] & where[..., None, :]
  return same & real & jnp.broadcast_to(jnp.tri(where.shape[-1], k=-1, dtype=bool), same.shape)
