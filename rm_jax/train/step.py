"""The training step: sums of loss and gradients over micro-batches, divided once, applied once."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from rm_jax.losses.compare import better_pairs, mean_by, mean_where
from rm_jax.losses.moments import penalty
from rm_jax.models.network import Network
from rm_jax.train.objective import Objective
from rm_jax.train.text import head_of
from rm_jax.types import KINDS, Batch
from rm_jax.workdir.state import TrainState

# Sums over groups, each float32 [S]: by source.
WINDOW = (
  "loss",
  "weight",
  "accuracy",
  "judged",
  "margin",
  "compared",
  "score",
  "score_square",
  "pairs",
  "text_log_likelihood",
  "text_weight",
)
# Sums over steps.
STEP = ("gradient_norm", "skipped", "steps", "length_correlation_square")


def zero_sums(sources: int) -> dict[str, jax.Array]:
  """A step's sums before its first micro-batch."""
  sums = {name: jnp.zeros(sources, jnp.float32) for name in WINDOW}
  return sums | {"tokens": jnp.zeros((), jnp.float32)}


def zero_window(sources: int) -> dict[str, jax.Array]:
  """The metrics' sums at a log point."""
  return zero_sums(sources) | {name: jnp.zeros((), jnp.float32) for name in STEP}


def batch_sums(
  scores_BGK: jax.Array,
  loss_BG: jax.Array,
  batch: Batch,
  sources: int,
  text: tuple[jax.Array, jax.Array] | None = None,
) -> dict[str, jax.Array]:
  """Sums for the metrics; a group counts by its weight, what it holds by equal shares.

  'accuracy' is over the comparisons of pairs and rankings, ties in score as half, and over the
  marks of outcomes and steps, which are right where score and label are on the same side of 0 and
  1/2; 'judged' is the weight of the groups that have either, 'compared' of those with comparisons.
  `text` is what a `TextPenalty` found beside its penalty: 'text_weight' is of the groups that have
  a best response.
  """
  difference = scores_BGK[..., :, None] - scores_BGK[..., None, :]
  ordered = _is(batch, "pair", "ranking")
  pairs = better_pairs(batch.labels, batch.where)
  if batch.pairs is not None:
    pairs = jnp.where(batch.where[..., :, None] & batch.where[..., None, :], batch.pairs, 0.0)
  pairs = jnp.where(ordered[..., None, None], pairs, 0.0)
  compared = jnp.any(pairs > 0, axis=(-2, -1))
  good = (difference > 0) + 0.5 * (difference == 0)
  accuracy = mean_by(good, pairs, (-2, -1))
  pointwise = _is(batch, "outcome", "step")
  right = (scores_BGK > 0) == (batch.labels > 0.5)
  accuracy = jnp.where(pointwise, mean_where(right, batch.where, (-1,)), accuracy)
  weight = batch.weight
  text_BG, has_text_BG = (0.0, jnp.zeros_like(compared)) if text is None else text
  values = {
    "loss": weight * loss_BG,
    "weight": weight,
    "accuracy": weight * accuracy,
    "judged": weight * (compared | pointwise),
    "margin": weight * mean_by(difference, pairs, (-2, -1)),
    "compared": weight * compared,
    "score": weight * mean_where(scores_BGK, batch.where, (-1,)),
    "score_square": weight * mean_where(scores_BGK**2, batch.where, (-1,)),
    "pairs": jnp.sum(pairs > 0, axis=(-2, -1), dtype=jnp.float32),
    "text_log_likelihood": weight * text_BG,
    "text_weight": weight * has_text_BG,
  }
  source_BGS = jax.nn.one_hot(batch.source, sources, dtype=bool)

  def by_source(value_BG):
    # A sum of selected values, not a product with zeros: one group's NaN is not every source's.
    return jnp.sum(jnp.where(source_BGS, value_BG[..., None], 0.0), axis=(0, 1))

  return jax.tree.map(by_source, values) | {"tokens": jnp.sum(batch.group > 0, dtype=jnp.float32)}


def _is(batch: Batch, *kinds: str) -> jax.Array:
  """bool [B, G]: the group's feedback is of one of the kinds."""
  return jnp.isin(batch.kind, jnp.asarray([KINDS.index(kind) for kind in kinds]))


def make_accumulate(network: Network, objective: Objective, *, sources: int, dropout: bool):
  """(state, gradients, sums, batch, key, total) -> (gradients, sums), this micro-batch's added.

  Nothing is divided here: a micro-batch does not know the step's weight. `total` is the step's sum
  of `make_moments`, or None where nothing is asked of the whole step.
  """

  def loss_sum(params, frozen, batch, key, total):
    whole = unflatten_dict({**params, **frozen}, sep="/")
    loss_params = whole.pop("loss", None)
    key = key if dropout else None
    if objective.text:
      scores, h_BTD = network.apply_with_hidden(whole, batch, key)
    else:  # no more than its marks need (see `models.network.reads_marks_alone`)
      scores, h_BTD = network.apply(whole, batch, key), None
    scores_BGK = network.reward(whole, scores)
    if network.head.ensemble:
      loss_MBG = jax.vmap(lambda s: objective(s, batch, loss_params))(scores)
      if batch.members is not None:
        loss_MBG *= jnp.moveaxis(batch.members, -1, 0)
      loss_BG = jnp.mean(loss_MBG, axis=0)
    else:
      loss_BG = objective(scores_BGK, batch, loss_params, scores)
    text = None
    if objective.text:
      penalty_BG, *text = objective.text(h_BTD, head_of(whole, loss_params), batch)
      loss_BG += penalty_BG
    sums = batch_sums(scores_BGK, loss_BG, batch, sources, text)
    # What is linearised has a gradient and no meaning of its own: the metrics are without it.
    more = 0.0 if total is None else objective.decorrelate(scores_BGK, batch, total)
    return jnp.sum(sums["loss"]) + more, sums

  def accumulate(state: TrainState, gradients, sums, batch: Batch, key, total=None):
    # Written into as they are found: a sum of two trees would hold a second one, whole.
    buffers = jax.tree.map(jax.new_ref, gradients)

    def of(params):
      return loss_sum(params, state.frozen, batch, key, total)

    value, backward, new = jax.vjp(of, state.params, has_aux=True)
    backward.with_refs(buffers)(jnp.ones_like(value))
    return jax.tree.map(jax.freeze, buffers), jax.tree.map(jnp.add, sums, new)

  return accumulate


def make_moments(network: Network, objective: Objective, *, dropout: bool):
  """(state, batch, key) -> float32 [6], of `Objective.moments`: a forward pass of its own."""

  def part(state: TrainState, batch: Batch, key) -> jax.Array:
    params = state.all_params()
    scores = network.apply(params, batch, key if dropout else None)
    return objective.moments(network.reward(params, scores), batch)

  return part


def all_finite(tree: Any) -> jax.Array:
  """bool []: no floating-point number of a tree's leaves is infinite or NaN."""
  floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def checked(window: dict[str, jax.Array], sums: dict[str, jax.Array], total=None):
  """A step's sums, which weigh NaN where they, or the window's with them, are not all finite.

  By that weight no gradient is finite, so that `make_apply` skips the step: a gradient may be
  finite by itself where its loss is not, as that of a margin of 1e39. `total` is as in
  `make_accumulate`. A program of its own, since inside `make_apply`'s XLA rounds that another way.
  """
  added = {name: window[name] + value for name, value in sums.items()}
  fine = all_finite((added, () if total is None else (total, penalty(total))))
  return sums | {"weight": jnp.where(fine, sums["weight"], jnp.nan)}


def make_apply(optimizer: optax.GradientTransformation):
  """(state, gradients, sums, total) -> state: divides by the step's weight and updates.

  `total` is as in `make_accumulate`. A step whose gradient is not finite is skipped: it changes
  nothing but the counts `step` and `skipped`. What is left to overflow then is the update, by a
  learning rate that could not have worked; `run.Run.step` asks the new parameters whether it did:
  here that would hold a second copy of them.
  """

  def apply(state: TrainState, gradients, sums, total=None) -> TrainState:
    weight = jnp.maximum(jnp.sum(sums["weight"]), 1e-30)
    mean = jax.tree.map(lambda g: g / weight, gradients)
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
      "length_correlation_square": jnp.float32(0) if total is None else penalty(total),
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


def window_metrics(window: dict[str, Any], sources: Sequence[str]) -> dict[str, Any]:
  """The sums of a window as means: one log point; None where there was nothing to count.

  A window of skipped steps alone has nothing but their count.

  Args:
    window: as `zero_window`, on the host.
    sources: their names. Where there are several, each has an entry of its own under 'sources'.
  """
  total = {name: float(value.sum()) for name, value in window.items()}
  done = total["steps"] - total["skipped"]
  metrics = _means(total) | {
    "gradient_norm": total["gradient_norm"] / done if done else None,
    "skipped_steps": int(total["skipped"]),
    "pairs": int(total["pairs"]),
    "tokens": int(total["tokens"]),
  }
  if total["length_correlation_square"]:
    metrics["length_correlation_square"] = total["length_correlation_square"] / done
  if len(sources) > 1:
    metrics["sources"] = {
      name: _means({key: float(window[key][s]) for key in WINDOW})
      for s, name in enumerate(sources)
      if window["weight"][s]
    }
  return metrics


def _means(sums: dict[str, float]) -> dict[str, float | None]:
  def mean(name: str, by: str) -> float | None:
    return sums[name] / sums[by] if sums[by] else None

  center, square = mean("score", "weight"), mean("score_square", "weight")
  text = mean("text_log_likelihood", "text_weight")
  return ({} if text is None else {"text_log_likelihood": text}) | {
    "loss": mean("loss", "weight"),
    "accuracy": mean("accuracy", "judged"),
    "margin": mean("margin", "compared"),
    "score_mean": center,
    "score_std": None if center is None else max(0.0, square - center**2) ** 0.5,
  }
