"""The training step: sums of loss and gradients over micro-batches, divided once, applied once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from rm_jax.losses import LOSSES, REGULARISERS
from rm_jax.losses.pairwise import better_pairs, mean_where
from rm_jax.models.network import Network
from rm_jax.types import Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a run is, between two steps.

  Attributes:
    step: int32, steps done.
    params: trained parameters, path -> float32.
    frozen: the others.
    optimizer: optax's state.
    window: sums of the metrics since the last log point.
  """

  step: jax.Array
  params: dict[str, jax.Array]
  frozen: dict[str, jax.Array]
  optimizer: Any
  window: dict[str, jax.Array]

  def all_params(self) -> dict:
    """Trained and frozen parameters as the nested dict that a `Network` takes."""
    return unflatten_dict({**self.params, **self.frozen}, sep="/")


WINDOW = ("loss", "accuracy", "margin", "score", "score_square", "weight", "pairs", "tokens")
STEP = ("gradient_norm", "skipped", "steps")


def zero_window() -> dict[str, jax.Array]:
  """The metrics' sums at a log point."""
  return {name: jnp.zeros((), jnp.float32) for name in WINDOW + STEP}


def make_objective(config: Any) -> Callable[[jax.Array, Batch], jax.Array]:
  """The loss of each group, float32 [B, G], as the `loss` part of a config says."""
  if config.name not in LOSSES:
    raise ValueError(f"loss.name is {config.name!r}; expected one of {', '.join(LOSSES)}")
  loss = functools.partial(LOSSES[config.name], margin=config.margin, smoothing=config.smoothing)
  penalties = {name: getattr(config, name) for name in REGULARISERS if getattr(config, name)}

  def objective(scores_BGK: jax.Array, batch: Batch) -> jax.Array:
    value = loss(scores_BGK, batch.labels, where=batch.where, pair_margin=batch.pair_margin)
    for name, rate in penalties.items():
      value += rate * REGULARISERS[name](scores_BGK, where=batch.where)
    return value

  return objective


def batch_sums(scores_BGK: jax.Array, loss_BG: jax.Array, batch: Batch) -> dict[str, jax.Array]:
  """Sums for the metrics; a group counts by its weight, its pairs by equal shares."""
  difference = scores_BGK[..., :, None] - scores_BGK[..., None, :]
  pairs = better_pairs(batch.labels, batch.where)
  right = (difference > 0) + 0.5 * (difference == 0)
  weight = batch.weight
  return {
    "loss": jnp.sum(weight * loss_BG),
    "accuracy": jnp.sum(weight * mean_where(right, pairs, (-2, -1))),
    "margin": jnp.sum(weight * mean_where(difference, pairs, (-2, -1))),
    "score": jnp.sum(weight * mean_where(scores_BGK, batch.where, (-1,))),
    "score_square": jnp.sum(weight * mean_where(scores_BGK**2, batch.where, (-1,))),
    "weight": jnp.sum(weight),
    "pairs": jnp.sum(pairs, dtype=jnp.float32),
    "tokens": jnp.sum(batch.group > 0, dtype=jnp.float32),
  }


def make_accumulate(network: Network, objective, *, dropout: bool):
  """(state, gradients, sums, batch, key) -> (gradients, sums) with this micro-batch's added.

  Nothing is divided here: a micro-batch does not know the step's weight.
  """

  def loss_sum(params, frozen, batch, key):
    whole = unflatten_dict({**params, **frozen}, sep="/")
    scores_BGK = network.apply(whole, batch, key if dropout else None)
    loss_BG = objective(scores_BGK, batch)
    sums = batch_sums(scores_BGK, loss_BG, batch)
    return sums["loss"], sums

  def accumulate(state: TrainState, gradients, sums, batch: Batch, key):
    more, new = jax.grad(loss_sum, has_aux=True)(state.params, state.frozen, batch, key)
    return jax.tree.map(jnp.add, gradients, more), jax.tree.map(jnp.add, sums, new)

  return accumulate


def make_apply(optimizer: optax.GradientTransformation):
  """(state, gradients, sums) -> state: divides by the step's weight and updates.

  A step whose gradient is not finite changes nothing but the counts `step` and `skipped`.
  """

  def apply(state: TrainState, gradients, sums) -> TrainState:
    mean = jax.tree.map(lambda g: g / jnp.maximum(sums["weight"], 1e-30), gradients)
    norm = optax.tree.norm(mean)
    fine = jnp.isfinite(norm)
    updates, new_optimizer = optimizer.update(mean, state.optimizer, state.params)
    new_params = optax.apply_updates(state.params, updates)

    def keep(new, old):
      return jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)

    here = sums | {
      "gradient_norm": jnp.where(fine, norm, 0.0),
      "skipped": 1.0 - fine,
      "steps": jnp.float32(1),
    }
    # A loss that is not finite would hide the window's others; it is counted as skipped.
    here = jax.tree.map(lambda x: jnp.where(fine, x, 0.0), here) | {
      "skipped": here["skipped"],
      "steps": here["steps"],
    }
    return TrainState(
      step=state.step + 1,
      params=keep(new_params, state.params),
      frozen=state.frozen,
      optimizer=keep(new_optimizer, state.optimizer),
      window=jax.tree.map(jnp.add, state.window, here),
    )

  return apply


def window_metrics(window: dict[str, float]) -> dict[str, float]:
  """The sums of a window as means; the numbers of one log point."""
  weight = max(window["weight"], 1e-30)
  mean = {name: window[name] / weight for name in ("loss", "accuracy", "margin")}
  center = window["score"] / weight
  spread = max(0.0, window["score_square"] / weight - center**2) ** 0.5
  done = max(1.0, window["steps"] - window["skipped"])
  return {
    **mean,
    "score_mean": center,
    "score_std": spread,
    "gradient_norm": window["gradient_norm"] / done,
    "skipped_steps": int(window["skipped"]),
    "pairs": int(window["pairs"]),
    "tokens": int(window["tokens"]),
  }
