"""One turn of optimisation: sample, reward, compare with the reference, and take some steps.

    roll_out -> evaluate (reference, critic) -> make_experience -> take_step, several times

`ppo`, `grpo` and `rloo` are the methods of the papers; any other combination of a `Credit` and a
`Loss` is one too.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from rm_jax.batch.layout import Shape
from rm_jax.errors import InputError
from rm_jax.policy.experience import Credit, Experience, lay, make_experience, packing_of, shapes_of
from rm_jax.policy.generate import Sampling
from rm_jax.policy.kl import adapted
from rm_jax.policy.rollout import Reward, Rollout, Rules, StepReward, groups_of, roll_out
from rm_jax.policy.text import Policy
from rm_jax.policy.update import Loss, compile_update, evaluate, take_step
from rm_jax.types import Text
from rm_jax.workdir.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method:
  """An optimiser of policies.

  Attributes:
    credit: how rewards become advantages.
    loss: what a step minimises.
    samples: S, responses to each prompt.
    epochs: how often a rollout is gone through.
    minibatch: prompts, each with all its responses, of a step; 0 = all of the rollout's.
    target_kl: to which the coefficient of the divergence is adapted, in nats a response; None = it
      is fixed.

  Raises InputError where the parts do not go together.
  """

  credit: Credit
  loss: Loss
  samples: int = 4
  epochs: int = 1
  minibatch: int = 0
  target_kl: float | None = None

  def __post_init__(self):
    if (self.credit.advantages == "gae") != (self.loss.value > 0):
      raise InputError(
        f"advantages are {self.credit.advantages!r} and the critic's loss has weight "
        f"{self.loss.value}; expected a weight above 0 with 'gae', and else 0"
      )
    if self.credit.estimator and self.loss.estimator:
      raise InputError(
        "the divergence is in the rewards and in the loss; expected one estimator to be ''"
      )
    if self.samples < 1 or self.epochs < 1 or self.minibatch < 0:
      raise InputError(
        f"samples is {self.samples}, epochs {self.epochs}, minibatch {self.minibatch}; expected at "
        "least 1, 1 and 0"
      )

  @property
  def critic(self) -> bool:
    """Whether the policy has a critic."""
    return self.loss.value > 0

  @property
  def compares(self) -> bool:
    """Whether there is a reference that the policy is kept near to."""
    return bool(self.credit.estimator or self.loss.estimator)


def ppo(
  *,
  estimator: str = "k1",
  gamma: float = 1.0,
  lam: float = 0.95,
  clip: float = 0.2,
  value: float = 0.1,
  value_clip: float | None = 0.2,
  samples: int = 1,
  epochs: int = 4,
  minibatch: int = 0,
  target_kl: float | None = None,
) -> Method:
  """PPO with a critic, the divergence in the rewards.

  Schulman et al. 2017; Ziegler et al. 2019.
  """
  return Method(
    Credit("gae", estimator, gamma=gamma, lam=lam),
    Loss("token", clip, clip, value=value, value_clip=value_clip),
    samples,
    epochs,
    minibatch,
    target_kl,
  )


def grpo(
  *,
  estimator: str = "k3",
  clip: float = 0.2,
  scale: bool = True,
  mean: str = "token",
  samples: int = 8,
  epochs: int = 1,
  minibatch: int = 0,
) -> Method:
  """GRPO, the divergence in the loss (Shao et al. 2024, whose mean is 'response')."""
  credit = Credit("group", scale=scale)
  return Method(credit, Loss(mean, clip, clip, estimator), samples, epochs, minibatch)


def rloo(
  *,
  estimator: str = "k1",
  clip: float = 0.2,
  samples: int = 4,
  epochs: int = 1,
  minibatch: int = 0,
  target_kl: float | None = None,
) -> Method:
  """RLOO, the divergence in the rewards (Ahmadian et al. 2024).

  At the first step of a rollout the ratio is 1, and so the gradient is REINFORCE's, as in the
  paper; later steps are clipped token by token.
  """
  credit, loss = Credit("leave_one_out", estimator), Loss("sequence", clip, clip)
  return Method(credit, loss, samples, epochs, minibatch, target_kl)


@dataclasses.dataclass
class Optimisation:
  """A policy that is being optimised. `turn` is all that it does.

  Attributes:
    policy: see `text.Policy`.
    method: see `Method`.
    state: from `update.start`, of the policy's parameters and, with a critic, `value_params`.
    reference: the parameters that the policy is kept near to, path -> array; None = none.
    optimizer: from `train.optimizer.make_optimizer`.
    sampling: how responses are drawn.
    mesh: the devices.
    coefficient: β of the divergence; `turn` adapts it where the method has a target.
    rules: see `rollout.Rules`.
    longest: tokens of the longest prompt of all turns, by which the lengths of rows are chosen. A
      turn with a longer one gets longer rows, and so compiles again.
    cells: about the most tokens of a micro-batch on each device.

  Raises InputError where the method needs a reference and there is none.
  """

  policy: Policy
  method: Method
  state: TrainState
  reference: dict[str, jax.Array] | None
  optimizer: optax.GradientTransformation
  sampling: Sampling
  mesh: Mesh
  longest: int
  coefficient: float = 0.0
  rules: Rules = dataclasses.field(default_factory=Rules)
  cells: int = 16_384

  def __post_init__(self):
    if self.method.compares and self.reference is None:
      raise InputError("the method takes the divergence from a reference, and there is none")
    self.packing = packing_of(self.mesh, self.cells)
    self.compiled = compile_update(self.policy.text_model.network, self.method.loss, self.optimizer)

  def params(self) -> dict:
    """The policy's parameters now, nested, without the critic's.

    The next step donates their buffers: a copy is needed of what is to outlive it.
    """
    whole = self.state.all_params()
    whole.pop("value", None)
    return whole

  def turn(
    self,
    prompts: Sequence[Text],
    reward: Reward,
    key: jax.Array,
    *,
    step_reward: StepReward | None = None,
    separator: str = "\n",
  ) -> tuple[Rollout, dict[str, Any]]:
    """Samples responses to some prompts and takes the method's steps on them.

    Args:
      prompts: P texts.
      reward, step_reward, separator: as `roll_out` takes them.
      key: random key; of samples, and of the order of minibatches.

    Returns:
      (the rollout; metrics). Metrics are means over responses: 'score', of the reward function's
      own; 'reward', after `Rules`; 'return', with the rewards of steps and the penalty of the
      divergence; 'kl', the sum of k1 over a response's tokens (NaN without a reference); 'length';
      'ended', 'empty' and 'left_out', shares; 'coefficient', β of this turn; and 'entropy' (−log π
      of the sampled tokens, a mean over tokens); those of `update.take_step`, means over the steps.

    Raises:
      InputError, ValueError: as `roll_out`.
    """
    sample_key, order_key = jax.random.split(key)
    rollout = roll_out(
      self.policy,
      self.params(),
      prompts,
      reward,
      sample_key,
      samples=self.method.samples,
      sampling=self.sampling,
      mesh=self.mesh,
      rules=self.rules,
      step_reward=step_reward,
      separator=separator,
    )
    experience = self.experience(rollout)
    coefficient, steps = self.coefficient, []
    shapes = self._shapes(rollout)
    seed = np.asarray(jax.random.key_data(order_key)).tolist()
    for chosen in minibatches(len(prompts), self.method, np.random.default_rng(seed)):
      laid = lay(experience.groups, chosen, shapes=shapes, packing=self.packing)
      self.state, metrics = take_step(
        self.compiled,
        self.state,
        laid,
        experience.arrays,
        self.mesh,
        coefficient=coefficient,
      )
      steps.append(metrics)
    if self.method.target_kl is not None:
      kl = float(experience.kl.mean())
      self.coefficient = adapted(coefficient, kl, target=self.method.target_kl)
    means = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
    return rollout, means | rollout_metrics(rollout, experience) | {"coefficient": coefficient}

  def experience(self, rollout: Rollout) -> Experience:
    """The rollout's advantages, with the reference's and the critic's passes over it."""
    options = dict(
      tokens=self.sampling.tokens,
      shapes=self._shapes(rollout),
      packing=self.packing,
      mesh=self.mesh,
    )
    network, groups = self.policy.text_model.network, groups_of(rollout)
    reference = values = None
    if self.reference is not None:
      nested = unflatten_dict(self.reference, sep="/")
      reference, _ = evaluate(network, nested, groups, **options)
    if self.method.critic:
      _, values = evaluate(network, self.state.all_params(), groups, **options)
    return make_experience(
      rollout,
      self.method.credit,
      coefficient=self.coefficient,
      reference=reference,
      values=values,
    )

  def _shapes(self, rollout: Rollout) -> tuple[tuple[Shape, ...], ...]:
    longest = max(self.longest, *map(len, rollout.prompt_ids))
    return shapes_of(longest, self.method.samples, self.sampling.tokens, self.packing)


def minibatches(prompts: int, method: Method, rng: np.random.Generator) -> list[list[int]]:
  """Which prompts each step of a turn is about: each epoch goes through all in a new order."""
  size, out = method.minibatch or prompts, []
  for _ in range(method.epochs):
    order = rng.permutation(prompts).tolist()
    out += [order[start : start + size] for start in range(0, prompts, size)]
  return out


def rollout_metrics(rollout: Rollout, experience: Experience) -> dict[str, float]:
  """What `Optimisation.turn` says of a rollout."""
  made = rollout.samples
  asked = ~np.isnan(rollout.scores)
  tokens = np.arange(made.tokens.shape[-1]) < made.length[..., None]
  return {
    "score": float(rollout.scores[asked].mean()) if asked.any() else float("nan"),
    "reward": float(rollout.rewards.mean()),
    "return": float(experience.returns[rollout.counts].mean()) if rollout.counts.any() else 0.0,
    "kl": float(experience.kl.mean()),
    "length": float(made.length.mean()),
    "ended": float(made.ended.mean()),
    "empty": float((~asked).mean()),
    "left_out": float((~rollout.counts).mean()),
    "entropy": float(-made.logp[tokens].mean()),
  }
