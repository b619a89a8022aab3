"""Optimisers and learning rate schedules, from a config.

To add an optimiser, add its gradient scaling to `scalers` in `make_optimizer`. Clipping, weight
decay and the learning rate are the same for all.

Parameters are a flat dict, path -> array; those of the layers are stacked, [layers, ...].
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import FrozenConfigDict
from optax.contrib import MuonDimensionNumbers as Dimensions
from optax.contrib import scale_by_muon as orthogonalise

from rm_jax.errors import InputError
from rm_jax.parallel.axes import matrix_axes


def make_schedule(config: Any) -> optax.Schedule:
  """Linear warm-up, then 'cosine' or 'linear' decay to `final_scale` · peak, or 'constant'.

  Args:
    config: the `optimizer` part of an experiment's config.

  Returns:
    the same object for equal configs.

  Raises:
    ValueError: the schedule's name is unknown.
  """
  return _schedule(FrozenConfigDict(config))


@functools.lru_cache(maxsize=64)
def _schedule(config: FrozenConfigDict) -> optax.Schedule:
  peak, warmup, horizon = config.learning_rate, config.warmup_steps, config.decay_steps
  end = peak * config.final_scale
  rest = max(1, horizon - warmup)
  decays = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, end, rest),
    "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.final_scale),
  }
  if config.schedule not in decays:
    raise InputError(
      f"optimizer.schedule is {config.schedule!r}; expected one of {', '.join(decays)}"
    )
  decay = decays[config.schedule]()
  if not warmup:
    return decay
  # From peak / (warmup + 1), since a first step with rate 0 would be wasted.
  first = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  return optax.join_schedules([first, decay], [warmup])


def decay_towards_start(rate: float) -> optax.GradientTransformation:
  """Adds rate · (p − p₀) to the update, p₀ the initial parameters (L2-SP, Li et al. 2018).

  Like AdamW's weight decay it is not scaled by Adam's moments. Its state is a copy of p₀, which is
  as large as the trained parameters.
  """

  def init(params):
    return {"start": jax.tree.map(jnp.copy, params)}

  def update(updates, state, params):
    updates = jax.tree.map(lambda u, p, s: u + rate * (p - s), updates, params, state["start"])
    return updates, state

  return optax.GradientTransformation(init, update)


def decayed(path: str) -> bool:
  """Whether weight decay applies to a parameter: to kernels, embeddings and adapters."""
  return path.endswith(("/kernel", "/embedding", "/lora_a", "/lora_b"))


def scale_few(head_rate: float, mix_rate: float, loss_rate: float) -> optax.GradientTransformation:
  """Scales the updates of the head, of its mix or gate, and of the losses' own parameters.

  Adam moves each parameter by at most about the learning rate a step. The network's weights need to
  move little; a new head begins near 0, and the other parameters may have to move by whole units.

  Args:
    head_rate: factor for the head's output layer.
    mix_rate: factor for the mix of attributes, or for the gate in its place.
    loss_rate: factor for the losses' parameters (a tie rate, cut-points), but not for a
      language-model head.
  """

  def rate(path: str) -> float:
    if path.startswith(("head/mix", "head/gating/")):
      return mix_rate
    if path.startswith("head/out/"):
      return head_rate
    return loss_rate if path.startswith("loss/") and not decayed(path) else 1.0

  def scale(updates, params):
    del params
    return {path: rate(path) * u for path, u in updates.items()}

  return optax.stateless(scale)


def scale_by_adafactor() -> optax.GradientTransformation:
  """Adafactor (Shazeer & Stern 2018): second moments as rows and columns, no first moment.

  Each layer's kernel is reshaped to a matrix [inputs, outputs] in which heads and head width are
  one axis: optax does not factor axes under 128, as a head's width may be. Learning rates are
  absolute and not relative to the weights, so updates are about as large as Adam's. Clipping is by
  the root mean square of each parameter, a whole stack of layers for those of the layers.
  """
  inner = optax.scale_by_factored_rms()

  def matrices(tree):
    def one(path, x):
      axes = matrix_axes(path)
      if axes is None:
        return x
      inputs, outputs = (math.prod(x.shape[a] for a in part) for part in axes)
      return x.reshape(x.shape[0], inputs, outputs)

    return {path: one(path, x) for path, x in tree.items()}

  def update(updates, state, params):
    out, state = inner.update(matrices(updates), state, matrices(params))
    return {path: x.reshape(updates[path].shape) for path, x in out.items()}, state

  factored = optax.GradientTransformation(lambda params: inner.init(matrices(params)), update)
  return optax.chain(factored, optax.clip_by_block_rms(1.0))


def scale_by_muon(config: Any) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024): orthogonalised momentum for the layers' kernels, Adam for all else.

  Each layer's kernel is a matrix [inputs, outputs] in which heads and head width are one axis.
  Updates are scaled to the usual size of Adam's (Liu et al. 2025, "Muon is Scalable"), so that both
  parts use the same learning rate.

  Raises:
    InputError: when it is initialised, if no layer's kernel is trained.
  """

  def dimensions(updates):
    # `optax.partition` puts a MaskedNode in place of the parameters of the other part.
    return {
      path: x if isinstance(x, optax.MaskedNode) else Dimensions(*matrix_axes(path))
      for path, x in updates.items()
    }

  def usual_size(updates, params):
    del params

    def scale(path, x):
      inputs, outputs = (math.prod(x.shape[a] for a in axes) for axes in matrix_axes(path))
      return 0.2 * max(inputs, outputs) ** 0.5 * x

    masked = optax.MaskedNode
    return {p: x if isinstance(x, masked) else scale(p, x) for p, x in updates.items()}

  def label(params):
    labels = {path: "muon" if matrix_axes(path) else "adam" for path in params}
    if "muon" not in labels.values():
      raise InputError(
        "optimizer.name is 'muon' and no layer's kernel is trained (with model.lora.rank they are "
        "not); expected 'adamw', or kernels to train"
      )
    return labels

  muon = orthogonalise(weight_dimension_numbers=dimensions)
  return optax.partition(
    {
      "muon": optax.chain(muon, optax.stateless(usual_size)),
      "adam": optax.scale_by_adam(config.b1, config.b2, config.eps),
    },
    label,
  )


def make_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
  """The optax chain: clipping, gradient scaling, decays, `scale_few`, learning rate.

  Args:
    config: the `optimizer` part of an experiment's config.
    schedule: from `make_schedule`.

  Returns:
    the same object for an equal config and schedule, by which `step.compile_step` knows it again.

  Raises:
    ValueError: the optimiser's name is unknown.
  """
  return _optimizer(FrozenConfigDict(config), schedule)


@functools.lru_cache(maxsize=64)
def _optimizer(config: FrozenConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
  scalers = {
    "adamw": lambda: optax.scale_by_adam(config.b1, config.b2, config.eps),
    "adafactor": scale_by_adafactor,
    "muon": lambda: scale_by_muon(config),
    "sgd": lambda: optax.trace(config.b1),
  }
  if config.name not in scalers:
    raise InputError(f"optimizer.name is {config.name!r}; expected one of {', '.join(scalers)}")
  parts = []
  if config.clip:
    parts.append(optax.clip_by_global_norm(config.clip))
  parts.append(scalers[config.name]())
  if config.weight_decay:
    parts.append(
      optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: {path: decayed(path) for path in params}
      )
    )
  if config.towards_pretrained:
    parts.append(decay_towards_start(config.towards_pretrained))
  parts.append(scale_few(config.head_rate, config.mix_rate, config.loss_rate))
  parts.append(optax.scale_by_learning_rate(schedule))
  return optax.chain(*parts)


def applied(state: Any) -> jax.Array:
  """int32 []: the number of updates in an optimiser's state, which its schedule is a function of.

  Skipped steps are not counted.
  """

  def is_schedule(x):
    return isinstance(x, optax.ScaleByScheduleState)

  found = [x for x in jax.tree.leaves(state, is_leaf=is_schedule) if is_schedule(x)]
  return found[-1].count


def frozen_patterns(config: Any) -> tuple[str, ...]:
  """Regular expressions that match the paths of the parameters that are not trained."""
  patterns = tuple(config.optimizer.freeze)
  if config.model.frozen_layers and not config.model.lora.rank:
    patterns += (r"^backbone/embed", r"^backbone/lower/")
  if config.model.lora.rank:
    patterns += (r"^(backbone|lm_head)/.*(?<!/lora_a)(?<!/lora_b)$",)
  # With a gate the mix has no part in the reward.
  if config.model.attributes and (config.model.get("gate") or not config.optimizer.mix_rate):
    patterns += (r"^head/mix$",)
  return patterns


def split_frozen(params: dict[str, Any], patterns: tuple[str, ...]) -> tuple[dict, dict]:
  """(trained, frozen) parts of a flat dict of parameters, by `re.search` of patterns in paths.

  Raises:
    InputError: a pattern that freezes nothing, or nothing left to train.
  """
  for pattern in patterns:
    if not any(re.search(pattern, path) for path in params):
      raise InputError(
        f"optimizer.freeze: {pattern!r} is found in no parameter's path; paths are like "
        f"{next(iter(params))!r}"
      )
  frozen = {p: v for p, v in params.items() if any(re.search(x, p) for x in patterns)}
  trained = {p: v for p, v in params.items() if p not in frozen}
  if not trained:
    raise InputError(f"optimizer.freeze {patterns} leaves no parameter to train")
  return trained, frozen
