"""What an update minimises: clipped surrogates of tokens, the critic's loss, and how they average.

Pure functions of arrays [..., T], T tokens of a row; tokens that do not count give 0 and no
gradient.
"""

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.losses.compare import check_shape

# What each token counts, and of what the mean is taken: see `weights`.
MEANS = ("token", "response", "sequence")


def clipped(
  logp: jax.Array,
  old_logp: jax.Array,
  advantages: jax.Array,
  *,
  where: jax.Array,
  low: float = 0.2,
  high: float = 0.2,
) -> tuple[jax.Array, jax.Array]:
  """PPO's clipped surrogate as a loss, and which tokens it clips.

    L_t = max(−A_t ρ_t, −A_t clip(ρ_t, 1 − low, 1 + high)),   ρ_t = π(token) / π_old(token)

  Schulman et al. 2017, equation 7; high above low is the clip-higher of Yu et al. 2025, "DAPO". At
  ρ = 1 its gradient is −A ∇ log π, REINFORCE's.

  Args:
    logp: float [..., T], log π of each token now.
    old_logp: float [..., T], when it was sampled.
    advantages: float [..., T].
    where: bool [..., T].
    low, high: ε downwards and upwards.

  Returns:
    (float32 [..., T]; bool [..., T], tokens whose loss is that of the clipped ratio, which has no
    gradient).

  Raises:
    ValueError: the shapes differ.
  """
  for name, x in (("old_logp", old_logp), ("advantages", advantages), ("where", where)):
    check_shape(name, x, logp.shape)
  ratio = jnp.exp(jnp.where(where, logp.astype(jnp.float32) - old_logp, 0.0))
  advantages = jnp.where(where, advantages.astype(jnp.float32), 0.0)
  plain = -advantages * ratio
  bound = -advantages * jnp.clip(ratio, 1 - low, 1 + high)
  return jnp.maximum(plain, bound), where & (bound > plain)


def value_loss(
  values: jax.Array,
  old_values: jax.Array,
  targets: jax.Array,
  *,
  where: jax.Array,
  clip: float | None = 0.2,
) -> jax.Array:
  """The critic's squared error, its change since the rollout clipped.

    L_t = ½ max((V_t − R_t)², (V_old + clip(V_t − V_old, −clip, clip) − R_t)²)

  Schulman et al. 2017, section 5, with the clip of OpenAI's baselines (Huang et al. 2024, detail
  13).

  Args:
    values: float [..., T], now.
    old_values: float [..., T], at the rollout.
    targets: float [..., T], R: advantages before whitening + old values.
    where: bool [..., T].
    clip: None = the plain squared error.

  Returns:
    float32 [..., T].

  Raises:
    ValueError: the shapes differ.
  """
  for name, x in (("old_values", old_values), ("targets", targets), ("where", where)):
    check_shape(name, x, values.shape)
  values, old_values, targets = (
    jnp.where(where, x.astype(jnp.float32), 0.0) for x in (values, old_values, targets)
  )
  error = jnp.square(values - targets)
  if clip is not None:
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    error = jnp.maximum(error, jnp.square(near - targets))
  return error / 2


def check_mean(mean: str, where: str = "mean") -> None:
  """Raises InputError for a name that is not in `MEANS`."""
  if mean not in MEANS:
    raise InputError(f"{where} is {mean!r}; expected one of {', '.join(MEANS)}")


def weights(length: jax.Array, *, where: jax.Array, mean: str) -> tuple[jax.Array, jax.Array]:
  """What each token's loss counts, and its share of the number that the sum is divided by.

  The objective of a step is Σ weight · L / Σ share, each sum over all tokens of the step, so that
  it does not depend on how they are laid into micro-batches.

    'token'     the mean over all tokens (Yu et al. 2025, "DAPO", equation 8)
    'response'  the mean over responses of the mean over their tokens (GRPO: Shao et al. 2024,
                "DeepSeekMath", equation 3)
    'sequence'  the mean over responses of the sum over their tokens (REINFORCE, RLOO)

  Args:
    length: int [..., T], for each token the number of tokens of its response that count; >= 1.
    where: bool [..., T].
    mean: one of `MEANS`.

  Returns:
    float32 [..., T] twice, 0 where not `where`.

  Raises:
    InputError: there is no such mean.
    ValueError: the shapes differ.
  """
  check_mean(mean)
  check_shape("length", length, where.shape)
  one = where.astype(jnp.float32)
  part = jnp.where(where, 1.0 / jnp.maximum(length, 1), 0.0)
  return {"token": (one, one), "response": (part, part), "sequence": (one, part)}[mean]
