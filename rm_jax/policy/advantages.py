"""From rewards to advantages: of tokens (PPO), and of responses among their prompt's (GRPO, RLOO).

Pure functions whose last axis is the list: the tokens of a response, or the K responses to a
prompt. `where` says which entries are real. What is not real has no effect, even if it is NaN, and
comes out as 0.

Shape letters: T tokens of a response, K responses to a prompt.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rm_jax.errors import InputError
from rm_jax.losses.compare import check_range, check_shape

LARGEST = 1e18  # absolute value of a reward: float32 has no squares above 1e38


def check_finite(rewards: np.ndarray, names: Sequence[str]) -> None:
  """Checks rewards on the host, before anything is computed from them.

  Args:
    rewards: float [N, ...], of N samples.
    names: of the samples, for the message.

  Raises:
    InputError: a sample's reward is not finite, or so large that its square is not finite in
      float32, so that advantages would be 0; the message names the first such sample.
  """
  finite = np.abs(np.asarray(rewards, np.float64)) <= LARGEST
  bad = np.flatnonzero(~finite.all(axis=tuple(range(1, finite.ndim))))
  if len(bad):
    found = np.asarray(rewards)[bad[0]]
    raise InputError(
      f"{names[bad[0]]}: its reward is {found}; expected a number between "
      f"{-LARGEST:.0e} and {LARGEST:.0e} ({len(bad)} of {len(finite)} samples have another)"
    )


def last_token(where: jax.Array) -> jax.Array:
  """bool [..., T]: which token is the last that counts; none where no token does."""
  later = jnp.flip(jnp.cumsum(jnp.flip(where, -1), axis=-1), -1)
  return where & (later == 1)


def token_rewards(
  final: jax.Array,
  kl: jax.Array,
  *,
  where: jax.Array,
  coefficient: jax.Array | float,
  process: jax.Array | None = None,
) -> jax.Array:
  """The reward of each token.

    r_t = process_t + [t is the last token] · final − β · KL_t

  Ziegler et al. 2019, equation 2, with the KL term at each token as in Stiennon et al. 2020 and
  Ouyang et al. 2022; rewards of steps stand at the tokens that end them (Lightman et al. 2023).

  Args:
    final: float [...], the reward of the whole response.
    kl: float [..., T], from `kl.estimate`.
    where: bool [..., T], the response's tokens. A response without any has no token for `final`.
    coefficient: β >= 0.
    process: float [..., T], rewards of steps at their marks and 0 elsewhere; None = there are none.

  Returns:
    float32 [..., T], 0 where not `where`.

  Raises:
    ValueError: a shape does not fit.
  """
  check_shape("kl", kl, where.shape)
  check_shape("final", final, where.shape[:-1])
  # Float from the start: a reward of 0.7 that was scattered into integers would be 0.
  rewards = jnp.where(last_token(where), final.astype(jnp.float32)[..., None], 0.0)
  if process is not None:
    check_shape("process", process, where.shape)
    rewards += process.astype(jnp.float32)
  return jnp.where(where, rewards - coefficient * kl.astype(jnp.float32), 0.0)


def gae(
  rewards: jax.Array,
  values: jax.Array,
  *,
  where: jax.Array,
  gamma: float = 1.0,
  lam: float = 0.95,
) -> jax.Array:
  """Generalised advantage estimates (Schulman et al. 2016, equations 11 and 16).

    A_t = δ_t + γ λ A_{t+1},   δ_t = r_t + γ V_{t+1} − V_t

  After the last token both A and V are 0: a response that was cut off is taken as finished. Tokens
  that do not count are passed over, so that t + 1 is the next one that does.

  Args:
    rewards: float [..., T].
    values: float [..., T]; V_t is of the state before token t, so that it does not know the token.
    where: bool [..., T].
    gamma: the discount γ.
    lam: λ; 1 gives `returns` less the values, 0 the one-step error.

  Returns:
    float32 [..., T], 0 where not `where`. Their sum with the values is the critic's target.

  Raises:
    InputError: γ or λ is not in [0, 1].
    ValueError: a shape does not fit.
  """
  check_shape("values", values, rewards.shape)
  check_shape("where", where, rewards.shape)
  for name, number in (("gamma", gamma), ("lam", lam)):
    check_range(name, number, 0.0, 1.0 + 1e-9)

  def back(after, token):
    advantage, value = after
    r, v, counts = token
    here = r + gamma * value - v + gamma * lam * advantage
    return (jnp.where(counts, here, advantage), jnp.where(counts, v, value)), here

  # The scan runs over the leading axis.
  parts = (rewards.astype(jnp.float32), values.astype(jnp.float32), where)
  parts = tuple(jnp.moveaxis(x, -1, 0) for x in parts)
  nothing = jnp.zeros(rewards.shape[:-1], jnp.float32)
  _, advantages = jax.lax.scan(back, (nothing, nothing), parts, reverse=True)
  return jnp.where(where, jnp.moveaxis(advantages, 0, -1), 0.0)


def returns(rewards: jax.Array, *, where: jax.Array, gamma: float = 1.0) -> jax.Array:
  """The discounted sum of the rewards from each token on: G_t = r_t + γ G_{t+1}.

  Sutton and Barto (2018), equation 3.9. Arguments, result and errors are as `gae`'s.
  """
  return gae(rewards, jnp.zeros(rewards.shape, jnp.float32), where=where, gamma=gamma, lam=1.0)


def whiten(x: jax.Array, *, where: jax.Array, shift: bool = True) -> jax.Array:
  """(x − mean) / √(variance + 1e-8), mean and variance being of all entries that count.

  Advantages are whitened over the whole batch of a rollout (Ouyang et al. 2022; Huang et al. 2024,
  "The N+ Implementation Details of RLHF with PPO", detail 10), and not over a minibatch.

  Args:
    x: float [...].
    where: bool [...].
    shift: whether the mean is subtracted.

  Returns:
    float32 [...], 0 where not `where`.

  Raises:
    ValueError: the shapes differ.
  """
  check_shape("where", where, x.shape)
  x = jnp.where(where, x.astype(jnp.float32), 0.0)
  count = jnp.maximum(jnp.sum(where), 1)
  mean = jnp.sum(x) / count
  variance = jnp.sum(jnp.where(where, jnp.square(x - mean), 0.0)) / count
  white = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
  return jnp.where(where, white if shift else white + mean * jax.lax.rsqrt(variance + 1e-8), 0.0)


def group_relative(rewards: jax.Array, *, where: jax.Array, scale: bool = True) -> jax.Array:
  """GRPO's advantage of each response over the others to its prompt.

    A_i = (r_i − mean r) / (std r + 1e-4)

  Shao et al. 2024, "DeepSeekMath", section 4.1.2. The deviation has the divisor K − 1, and the
  small number is 1e-4, as in TRL. Without `scale` only the mean is subtracted (Liu et al. 2025,
  "Understanding R1-Zero-Like Training": the division weighs prompts by how equal their rewards
  are). Where all rewards are equal, or there is one response, A is 0.

  Args:
    rewards: float [..., K], of the responses to one prompt.
    where: bool [..., K].
    scale: whether A is divided by the standard deviation.

  Returns:
    float32 [..., K], 0 where not `where`.

  Raises:
    ValueError: the shapes differ.
  """
  check_shape("where", where, rewards.shape)
  rewards = jnp.where(where, rewards.astype(jnp.float32), 0.0)
  count = jnp.sum(where, axis=-1, keepdims=True)
  mean = jnp.sum(rewards, axis=-1, keepdims=True) / jnp.maximum(count, 1)
  apart = jnp.where(where, rewards - mean, 0.0)
  if not scale:
    return apart
  square = jnp.sum(jnp.square(apart), axis=-1, keepdims=True)
  return apart / (jnp.sqrt(square / jnp.maximum(count - 1, 1)) + 1e-4)


def leave_one_out(rewards: jax.Array, *, where: jax.Array) -> jax.Array:
  """RLOO's advantage: the reward less the mean of the prompt's other responses.

    A_i = r_i − 1 / (K − 1) Σ_{j ≠ i} r_j

  Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics", equation 8. Arguments and errors are as
  `group_relative`'s. A response that is alone has nothing to compare with: its advantage is 0.

  Returns:
    float32 [..., K], 0 where not `where`.
  """
  check_shape("where", where, rewards.shape)
  rewards = jnp.where(where, rewards.astype(jnp.float32), 0.0)
  count = jnp.sum(where, axis=-1, keepdims=True)
  others = jnp.sum(rewards, axis=-1, keepdims=True) - rewards
  return jnp.where(where & (count > 1), rewards - others / jnp.maximum(count - 1, 1), 0.0)
