"""The divergence KL(π ‖ π_ref) of a policy from its reference, and the coefficient that limits it.

Shape letters: T tokens of a response.
"""

import math

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.losses.compare import check_shape

ESTIMATORS = ("k1", "k2", "k3")


def estimate(
  logp: jax.Array, reference: jax.Array, *, where: jax.Array, estimator: str = "k1"
) -> jax.Array:
  """Estimates of KL(π ‖ π_ref) at tokens that were sampled from π.

    k1 = δ,   k2 = δ² / 2,   k3 = exp(−δ) − 1 + δ,   δ = log π − log π_ref

  k1 has no bias and may be negative; k2 has a small bias; k3 has no bias and is never negative
  (Schulman 2020, "Approximating KL Divergence"). As a term of a loss they differ in another way:
  the gradient of k1 is 0 on average, that of k2 is the gradient of KL(π ‖ π_ref), and that of k3
  is, on average, the gradient of KL(π_ref ‖ π).

  Args:
    logp: float [..., T], log π of each token.
    reference: float [..., T], log π_ref.
    where: bool [..., T], tokens that count.
    estimator: one of `ESTIMATORS`.

  Returns:
    float32 [..., T]; 0, without a gradient, where not `where`.

  Raises:
    InputError: there is no such estimator.
    ValueError: the shapes differ.
  """
  check_estimator(estimator)
  check_shape("reference", reference, logp.shape)
  check_shape("where", where, logp.shape)
  # Selected before the exponential, because the gradient of a NaN that is not selected is NaN.
  delta = jnp.where(where, logp.astype(jnp.float32) - reference.astype(jnp.float32), 0.0)
  if estimator == "k1":
    return delta
  if estimator == "k2":
    return jnp.square(delta) / 2
  return jnp.expm1(-delta) + delta


def check_estimator(estimator: str, where: str = "estimator") -> None:
  """Raises InputError for a name that is not in `ESTIMATORS`."""
  if estimator not in ESTIMATORS:
    raise InputError(f"{where} is {estimator!r}; expected one of {', '.join(ESTIMATORS)}")


def adapted(
  coefficient: float, kl: float, *, target: float, rate: float = 0.1, limit: float = 0.2
) -> float:
  """The next coefficient of the KL penalty, so that the divergence comes to a target.

    e = clip((KL − target) / target, −limit, limit),   β ← β · (1 + rate · e)

  Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2, where
  limit is 0.2 and rate 0.1.

  Args:
    coefficient: β of the last step.
    kl: the divergence that was measured: the mean over responses of the sum over their tokens.
    target: of the same unit, above 0.
    rate, limit: as in the equation.

  Raises:
    InputError: `target` is not above 0 and finite.
    ValueError: `kl` is not finite.
  """
  if not 0 < target < math.inf:
    raise InputError(f"the target of KL is {target}; expected a finite number above 0")
  if not math.isfinite(kl):
    raise ValueError(f"KL is {kl}; expected a finite number")
  error = min(max((kl - target) / target, -limit), limit)
  return coefficient * (1 + rate * error)
