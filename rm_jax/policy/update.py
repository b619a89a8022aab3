"""One policy update: log-probabilities and values of tokens, their losses, one gradient step.

The objective of a step, over all tokens t of its micro-batches, is

    Σ_t weight_t · (clipped surrogate_t + β · KL_t + value · critic's loss_t) / Σ_t share_t

with the weights and shares of `surrogate.weights`. Each micro-batch adds its part of the gradient
of the numerator and of the denominator, which is divided by once. So how groups are laid into rows
and micro-batches changes nothing beyond rounding.

Parameters are a flat dict, path -> array. A critic's are 'value/out/kernel' and 'value/out/bias': a
linear map of the last hidden state, in float32, on the policy's own backbone.

Shape letters: B rows, T columns of a row, D width.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from rm_jax.batch.group import Group
from rm_jax.batch.layout import Packing, Shape
from rm_jax.errors import InputError
from rm_jax.losses.likelihood import own_log_likelihood
from rm_jax.models.network import Network
from rm_jax.parallel.hosts import gather
from rm_jax.parallel.mesh import like_parameters, place_batch, place_whole
from rm_jax.policy import surrogate
from rm_jax.policy.experience import Rows, lay
from rm_jax.policy.kl import check_estimator, estimate
from rm_jax.train.loop import NotFiniteError
from rm_jax.train.objective import mean_gradient
from rm_jax.train.optimizer import split_frozen
from rm_jax.train.step import all_finite
from rm_jax.types import Batch
from rm_jax.workdir.state import TrainState

KERNEL, BIAS = "value/out/kernel", "value/out/bias"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
  """What an update is told about the tokens of a micro-batch: `Experience.arrays`, [B, T] each.

  A loss that needs no more than `where` and `length` is given no more.
  """

  where: jax.Array
  length: jax.Array
  old_logp: jax.Array | None = None
  advantages: jax.Array | None = None
  reference: jax.Array | None = None
  old_values: jax.Array | None = None
  targets: jax.Array | None = None


def value_params(width: int, key: jax.Array) -> dict[str, jax.Array]:
  """A fresh critic: its kernel is normal(0, 1 / (D + 1)), as a reward head's, and its bias 0."""
  kernel = jax.random.normal(key, (width, 1), jnp.float32) / (width + 1)
  return {KERNEL: kernel, BIAS: jnp.zeros(1, jnp.float32)}


def forward(network: Network, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
  """log π of each response token, and the critic's value of the state before it.

  Args:
    network: a decoder with a `LikelihoodHead`.
    params: its parameters, nested, with the critic's under 'value' where there is one.
    batch: with `previous`.

  Returns:
    float32 [B, T] twice, 0 where there is no response token; None for the values without a critic.
  """
  params = dict(params)
  critic = params.pop("value", None)
  modules = network.bind(params)
  h_BTD = modules.backbone(batch)
  cap = network.backbone.logit_cap
  logp_BT = own_log_likelihood(h_BTD, modules.whole_head(), batch, cap=cap)
  if critic is None:
    return logp_BT, None
  # In float32 whatever the backbone's dtype is, as a reward head.
  kernel_D = critic["out"]["kernel"][:, 0]
  exact = jax.lax.Precision.HIGHEST
  value_BT = jnp.einsum("btd,d->bt", h_BTD.astype(jnp.float32), kernel_D, precision=exact)
  value_BT += critic["out"]["bias"][0]
  before_BT = jnp.take_along_axis(value_BT, jnp.maximum(batch.previous, 0), axis=1)
  return logp_BT, jnp.where(batch.previous >= 0, before_BT, 0.0)


@dataclasses.dataclass(frozen=True)
class Loss:
  """What an update minimises. Hashable: a static argument of the compiled functions.

  Attributes:
    mean: what is averaged, one of `surrogate.MEANS`.
    low, high: by how much a ratio of probabilities is clipped, see `surrogate.clipped`.
    estimator: of the divergence in the loss: 'k2' or 'k3'; '' = it is not in the loss. k1 has no
      gradient on average (`kl.estimate`).
    value: weight of the critic's loss; 0 = there is no critic.
    value_clip: see `surrogate.value_loss`; None = no clip.

  Raises InputError for a name or number that is not possible.
  """

  mean: str = "token"
  low: float = 0.2
  high: float = 0.2
  estimator: str = ""
  value: float = 0.0
  value_clip: float | None = 0.2

  def __post_init__(self):
    surrogate.check_mean(self.mean)
    if self.estimator:
      check_estimator(self.estimator)
    if self.estimator == "k1":
      raise InputError(
        "the loss's estimator is 'k1', whose gradient is 0 on average; expected 'k2' or 'k3', or "
        "'k1' in the rewards"
      )
    if not (0 < self.low <= 1 and self.high > 0 and self.value >= 0):
      raise InputError(
        f"low is {self.low}, high {self.high}, value {self.value}; expected low in (0, 1], high "
        "above 0, value 0 or above"
      )

  def numerator(
    self,
    network: Network,
    params: dict,
    batch: Batch,
    targets: Targets,
    coefficient: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A micro-batch's part of the numerator (see the module), and its sums for the metrics.

    Args:
      network, params, batch: as `forward` takes them.
      targets: of the batch's tokens.
      coefficient: float32 [], β, of the divergence in the loss.

    Returns:
      (float32 []; float32 [] each: 'weight', the part of the denominator; 'tokens'; and over tokens
      the sums of 'loss' (by its weights), 'policy_loss', 'value_loss', 'kl_loss', 'entropy'
      (−log π), 'clipped' and 'old_kl', k3 of the divergence from the policy that sampled).
    """
    logp_BT, values_BT = forward(network, params, batch)
    where = targets.where
    weight_BT, share_BT = surrogate.weights(targets.length, where=where, mean=self.mean)
    policy_BT, clipped_BT = surrogate.clipped(
      logp_BT, targets.old_logp, targets.advantages, where=where, low=self.low, high=self.high
    )
    whole_BT, parts = policy_BT, {"policy_loss": policy_BT, "clipped": clipped_BT}
    if self.estimator:
      kl_BT = estimate(logp_BT, targets.reference, where=where, estimator=self.estimator)
      whole_BT += coefficient * kl_BT
      parts["kl_loss"] = kl_BT
    if self.value:
      critic_BT = surrogate.value_loss(
        values_BT, targets.old_values, targets.targets, where=where, clip=self.value_clip
      )
      whole_BT += self.value * critic_BT
      parts["value_loss"] = critic_BT
    # KL(π_old ‖ π), because the tokens were drawn from the old policy.
    parts["old_kl"] = estimate(targets.old_logp, logp_BT, where=where, estimator="k3")
    parts["entropy"] = jnp.where(where, -logp_BT, 0.0)
    total = jnp.sum(weight_BT * whole_BT)
    sums = {name: jnp.sum(x_BT, dtype=jnp.float32) for name, x_BT in parts.items()}
    sums |= {
      "weight": jnp.sum(share_BT),
      "tokens": jnp.sum(where, dtype=jnp.float32),
      "loss": total,
    }
    return total, jax.lax.stop_gradient(sums)

  def zero_sums(self) -> dict[str, jax.Array]:
    """The sums of `numerator` before the first micro-batch."""
    names = ["weight", "tokens", "loss", "policy_loss", "clipped", "old_kl", "entropy"]
    names += ["kl_loss"] * bool(self.estimator) + ["value_loss"] * bool(self.value)
    return {name: jnp.zeros((), jnp.float32) for name in names}


_BROKEN = "broken"  # metric of a step whose new parameters are not finite


@dataclasses.dataclass(frozen=True)
class Compiled:
  """An update's functions under `jax.jit`.

  Attributes:
    zeros: (state) -> (gradients, sums).
    accumulate: (state, gradients, sums, batch, targets, coefficient) -> (gradients, sums), with a
      micro-batch's added; donates the buffers of both.
    apply: (state without its frozen parameters, gradients, sums) -> (state, metrics); donates the
      state.
  """

  zeros: Callable
  accumulate: Callable
  apply: Callable


@functools.lru_cache(maxsize=8)
def compile_update(
  network: Network, loss: Loss, optimizer: optax.GradientTransformation
) -> Compiled:
  """The functions of an update; the last few are kept for other runs of the process.

  Args:
    network: the policy's.
    loss: `Loss`, or another one with its methods, as `sft.Likelihood`.
    optimizer: from `train.optimizer.make_optimizer`.
  """

  def zeros(state):
    return jax.tree.map(jnp.zeros_like, state.params), loss.zero_sums()

  def accumulate(state, gradients, sums, batch, targets, coefficient):
    def part(params):
      whole = unflatten_dict({**params, **state.frozen}, sep="/")
      return loss.numerator(network, whole, batch, targets, coefficient)

    # As in `train.step`: the backward pass adds each gradient to its buffer.
    buffers = jax.tree.map(jax.new_ref, gradients)
    value, backward, new = jax.vjp(part, state.params, has_aux=True)
    backward.with_refs(buffers)(jnp.ones_like(value))
    return jax.tree.map(jax.freeze, buffers), jax.tree.map(jnp.add, sums, new)

  def apply(state, gradients, sums):
    mean = mean_gradient(gradients, sums["weight"])
    norm = optax.tree.norm(mean)
    # A step of which something is not finite changes no parameter, nor does one without a token
    # that counts, whose gradient is 0: the optimizer's momentum would move the parameters.
    finite = jnp.isfinite(norm) & all_finite(sums)
    fine = finite & (sums["weight"] > 0)
    updates, new_optimizer = optimizer.update(mean, state.optimizer, state.params)
    new_params = optax.apply_updates(state.params, updates)

    def keep(new, old):
      return jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)

    new = dataclasses.replace(
      state,
      step=state.step + 1,
      params=keep(new_params, state.params),
      optimizer=keep(new_optimizer, state.optimizer),
    )
    tokens = jnp.maximum(sums["tokens"], 1)
    metrics = {name: x / tokens for name, x in sums.items() if name not in ("weight", "tokens")}
    metrics["loss"] = sums["loss"] / jnp.maximum(sums["weight"], 1e-30)
    skipped, uncounted = 1.0 - finite, 1.0 * (finite & ~fine)
    metrics |= {"gradient_norm": norm, "skipped": skipped, "uncounted": uncounted}
    return new, metrics | {_BROKEN: 1.0 - all_finite(new.params)}

  return Compiled(
    jax.jit(zeros),
    jax.jit(accumulate, donate_argnums=(1, 2)),
    jax.jit(apply, donate_argnums=0),
  )


def start(
  params: dict[str, jax.Array],
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  freeze: tuple[str, ...] = (),
) -> TrainState:
  """The state before the first update. It takes copies of what is trained: those given stay.

  Args:
    params: on the mesh, path -> array, with `value_params` where there is to be a critic.
    optimizer: from `train.optimizer.make_optimizer`.
    mesh: the devices.
    freeze: regular expressions of paths that are not trained.

  Raises:
    InputError: as `split_frozen`.
  """
  trained, frozen = split_frozen(params, freeze)
  # A step donates them, and the reference's parameters may be these very arrays.
  trained = jax.tree.map(jnp.copy, trained)
  shardings = like_parameters(jax.eval_shape(optimizer.init, trained), trained, mesh)
  moments = jax.jit(optimizer.init, out_shardings=shardings)(trained)
  step = place_whole(np.zeros((), np.int32), mesh)
  return TrainState(step, trained, frozen, moments, {})


def take_step(
  compiled: Compiled,
  state: TrainState,
  micros: Iterable[Rows],
  arrays: dict[str, np.ndarray],
  mesh: Mesh,
  *,
  coefficient: float = 0.0,
) -> tuple[TrainState, dict[str, float]]:
  """One gradient step.

  Args:
    compiled: from `compile_update`.
    state: the buffers of what is trained are donated.
    micros: the step's groups, from `experience.lay`.
    arrays: of the `Experience` that the groups are of.
    mesh: the devices.
    coefficient: β of the divergence in the loss.

  Returns:
    (the new state; metrics: means over tokens of what `Loss.numerator` sums; 'loss', the objective;
    'gradient_norm' before clipping; 'skipped', 1 if something was not finite, else 0; 'uncounted',
    1 if no token counts, else 0). Of these two steps the parameters and the optimizer stay.

  Raises:
    NotFiniteError: the step has made parameters that are not finite, though its gradient was.
  """
  with jax.set_mesh(mesh):
    gradients, sums = compiled.zeros(state)
    beta = place_whole(np.float32(coefficient), mesh)
    for rows in micros:
      targets = Targets(**{name: rows.spread(x) for name, x in arrays.items()})
      batch, targets = place_batch((rows.batch, targets), mesh)
      gradients, sums = compiled.accumulate(state, gradients, sums, batch, targets, beta)
    # Frozen parameters are kept out of what is donated, because the reference may share them.
    frozen, state = state.frozen, dataclasses.replace(state, frozen={})
    state, metrics = compiled.apply(state, gradients, sums)
    state = dataclasses.replace(state, frozen=frozen)
  found = {name: float(x) for name, x in jax.device_get(metrics).items()}
  if found.pop(_BROKEN):
    raise NotFiniteError(
      "a step has made parameters that are not finite; its state is not saved. Lower the learning "
      "rate of the step's optimizer, in another workdir where this one has checkpoints"
    )
  return state, found


@functools.lru_cache(maxsize=8)
def _jitted(network: Network) -> Callable:
  return jax.jit(functools.partial(forward, network))


def evaluate(
  network: Network,
  params: dict,
  groups: Sequence[Group],
  *,
  tokens: int,
  shapes: tuple[tuple[Shape, ...], ...],
  packing: Packing,
  mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray | None]:
  """log π of the responses' tokens under some parameters, such as the reference's; and values.

  Args:
    network, params: as `forward` takes them.
    groups: P groups of S responses.
    tokens: M.
    shapes, packing: as `experience.lay` takes them.
    mesh: the devices.

  Returns:
    float32 [P, S, M] twice, 0 after a response's end; None for the values without a critic.
  """
  shape = len(groups), len(groups[0].ids), tokens
  logp_PSM, values_PSM = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
  with jax.set_mesh(mesh):
    for rows in lay(groups, range(len(groups)), shapes=shapes, packing=packing):
      logp_BT, values_BT = gather(_jitted(network)(params, place_batch(rows.batch, mesh)))
      rows.collect(logp_BT, logp_PSM)
      if values_BT is not None:
        rows.collect(values_BT, values_PSM)
  return logp_PSM, values_PSM if "value" in params else None
