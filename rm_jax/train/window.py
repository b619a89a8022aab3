"""Metrics of the steps between two log points: sums on the device, divided on the host.

A metric is a sum and what it is divided by, so that it is right over micro-batches, steps and
devices of any size, and the log waits for the device only when it writes a line.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import better_pairs, mean_by, mean_where
from rm_jax.types import KINDS, Batch

# Sums over groups, each float32 [S], by source.
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
# Sums over steps, each float32 [].
STEP = ("gradient_norm", "skipped", "steps", "length_correlation_square")


def zero_sums(sources: int) -> dict[str, jax.Array]:
  """A step's sums before its first micro-batch."""
  sums = {name: jnp.zeros(sources, jnp.float32) for name in WINDOW}
  return sums | {"tokens": jnp.zeros((), jnp.float32)}


def zero_window(sources: int) -> dict[str, jax.Array]:
  """A window's sums before its first step."""
  return zero_sums(sources) | {name: jnp.zeros((), jnp.float32) for name in STEP}


def batch_sums(
  scores_BGK: jax.Array,
  loss_S: jax.Array,
  batch: Batch,
  sources: int,
  text: tuple[jax.Array, jax.Array] | None = None,
) -> dict[str, jax.Array]:
  """A micro-batch's sums over groups, each of which counts by its weight.

  That weight is shared by a group's marks equally, and by its comparisons equally or, where they
  were observed, by the weights in `batch.pairs`. 'pairs' and 'tokens' are plain counts: of the
  comparisons, and of all tokens.

  'accuracy' is over the comparisons of pairs and rankings (equal scores count half) and over the
  marks of outcomes and steps (right if the score is on the same side of 0 as the label is of 1/2; a
  score of exactly 0 counts half, as in the held-out report).
  'judged' is the weight of the groups that have either, 'compared' of those with comparisons, and
  'text_weight' of those whose best response has a likelihood.

  Args:
    scores_BGK: what each group's feedback is about (see `objective.Scored`).
    loss_S: Σ weight · loss over the groups of each source.
    batch: the labels.
    sources: S, the number of data sources, whose sums are kept apart.
    text: see `objective.Scored`.
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
  right = jnp.where(scores_BGK == 0, 0.5, (scores_BGK > 0) == (batch.labels > 0.5))
  accuracy = jnp.where(pointwise, mean_where(right, batch.where, (-1,)), accuracy)
  weight = batch.weight
  text_BG, has_text_BG = (0.0, jnp.zeros_like(compared)) if text is None else text
  values = {
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
  sums = {name: sum_by_source(values[name], batch.source, sources) for name in sorted(values)}
  return sums | {"loss": loss_S, "tokens": jnp.sum(batch.group > 0, dtype=jnp.float32)}


def sum_by_source(value_BG: jax.Array, source_BG: jax.Array, sources: int) -> jax.Array:
  """float32 [S]: sums over the groups of each source."""
  source_BGS = jax.nn.one_hot(source_BG, sources, dtype=bool)
  # Selected and summed, not a product with zeros and ones: 0 · NaN is NaN, and one group's NaN
  # would be in the sums of every source.
  return jnp.sum(jnp.where(source_BGS, value_BG[..., None], 0.0), axis=(0, 1))


def _is(batch: Batch, *kinds: str) -> jax.Array:
  """bool [B, G]: the group's feedback is of one of the kinds."""
  return jnp.isin(batch.kind, jnp.asarray([KINDS.index(kind) for kind in kinds]))


def window_metrics(window: dict[str, Any], sources: Sequence[str]) -> dict[str, Any]:
  """The metrics of a window; None for a mean of nothing.

  'text_log_likelihood' and 'length_correlation_square' are left out where there are none.

  Args:
    window: the sums, on the host.
    sources: names of the sources. If there are several, each that was seen in the window has its
      own metrics under 'sources'.
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
