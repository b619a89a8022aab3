"""What a run minimises; the optimiser adds its decays.

The objective of a step with groups g of weight w_g is

    Σ_g w_g · L_g / Σ_g w_g  +  decorrelation · corr(score, length)²

    L_g =   loss of g's kind of feedback (scores, labels)       loss.pair, loss.ranking, ...
          + Σ weight · penalty(scores)                          loss.l2, loss.centering, loss.spread
          + Σ weight · text loss(best response)                 loss.text_sft, loss.text_dpo
          − log weight(objective | prompt)                      model.gate

Scores are the reward's, or those of the one attribute that the judgement is about
(`Example.objective`); ratings on attributes train the scores of all that are rated. In an ensemble,
loss and penalties on scores are the mean over the members, each with its own scores and weights
(`Batch.members`). The config's `loss` part has the losses and the weights.

`Objective.numerator` is the sum over one micro-batch; the step adds up its gradient over
micro-batches (gradient accumulation, see `step`) and divides once by the weight of all groups,
`mean_gradient`. Two things have to be known of the whole step before any gradient, and take a
forward pass of their own (`Objective.ahead`): the moments that corr(score, length) is made of, and
KTO's reference point. So but for rounding and dropout the numbers do not depend on how a step's
groups are laid into micro-batches, rows and devices.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.losses import LOSSES, REGULARISERS, asks_for_baseline, with_baseline
from rm_jax.losses.compare import mean_where
from rm_jax.losses.likelihood import response_log_likelihood
from rm_jax.losses.moments import linearised, moments
from rm_jax.models.network import Network
from rm_jax.train.parse import check_output, parse_loss
from rm_jax.train.text_penalty import TextPenalty, head_of
from rm_jax.train.window import sum_by_source
from rm_jax.types import KINDS, Batch


class Scored(NamedTuple):
  """What the metrics are made of, beside the numerator.

  Attributes:
    judged: float32 [B, G, K], what each group's feedback is about: rewards, or one attribute's
      scores.
    loss: float32 [S], Σ w_g · L_g over the groups of each source.
    text: (log-likelihood a token of the best response float32 [B, G]; bool [B, G], which groups
      have a best response); None without a text penalty.
  """

  judged: jax.Array
  loss: jax.Array
  text: tuple[jax.Array, jax.Array] | None


class Objective:
  """The objective of a run: a loss for each kind of feedback, and penalties.

  Args:
    config: the `loss` part of an experiment's config.
    kinds: the kinds of feedback in the data. Losses of other kinds are not even parsed.

  Raises:
    ValueError: a loss cannot learn from the kind it is named for, or as `parse_loss` and
      `TextPenalty` say.

  Attributes:
    text: the penalty on text; false where the config asks for none.
    decorrelation: weight of the squared correlation of score with length.
    mismatched: whether the reference point of outcomes is estimated at each step, from responses to
      other prompts (`batch.mismatch`).
    looks_ahead: whether a step needs `ahead`.
  """

  def __init__(self, config: Any, kinds: Iterable[str]):
    self._losses = {}
    kinds = set(kinds)
    for kind in sorted(kinds, key=KINDS.index):
      loss, options = parse_loss(config[kind], f"loss.{kind}")
      if kind not in loss.kinds:
        fitting = [other.name for other in LOSSES.values() if kind in other.kinds]
        raise InputError(
          f"loss.{kind} is {config[kind]!r}, which learns from {', '.join(loss.kinds)}; the data "
          f"has feedback of kind {kind!r}: choose one of {', '.join(fitting)}"
        )
      self._losses[kind] = loss, options
    self._penalties = [
      (config[name], REGULARISERS[name]) for name in REGULARISERS if config.get(name)
    ]
    self.text = TextPenalty(config, kinds)
    self.decorrelation = float(config.decorrelation)
    self.mismatched = any(asks_for_baseline(options) for _, options in self._losses.values())
    self.looks_ahead = bool(self.decorrelation) or self.mismatched

  @functools.cached_property
  def _key(self) -> tuple:
    """All that the objective is made of. Options of losses can be lists, which have no hash."""
    losses = ((kind, loss, repr(options)) for kind, (loss, options) in self._losses.items())
    text = *self.text.weights.items(), self.text.beta
    return *losses, *self._penalties, text, self.decorrelation

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Objective) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)

  def numerator(
    self,
    network: Network,
    params: dict[str, Any],
    batch: Batch,
    *,
    sources: int,
    key: jax.Array | None = None,
    ahead: dict[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, Scored]:
    """A micro-batch's part of the numerator Σ_g w_g · L_g, and of decorrelation (see the module).

    Args:
      network: the model's.
      params: its parameters and, under 'loss', those of the losses; nested.
      batch: the micro-batch.
      sources: S, the number of data sources, whose metrics are kept apart.
      key: random key of dropout; None turns dropout off.
      ahead: the sum of `ahead` over the whole step; None where it is not needed.

    Returns:
      (float32 [] to take the gradient of; its value is Σ_g w_g · L_g only without decorrelation,
      what was scored).
    """
    params = dict(params)
    loss_params = params.pop("loss", None)
    likelihood = None
    if not self.text:  # then `apply` need not compute hidden states that no mark reads
      scores = network.apply(params, batch, key)
    elif network.implicit:
      scores, *every = network.apply_with_likelihood(params, batch, key)
      likelihood = lambda _: every  # noqa: E731
    else:
      scores, h_BTD = network.apply_with_hidden(params, batch, key)
      head_VD = head_of(params, loss_params)
      likelihood = functools.partial(response_log_likelihood, h_BTD, head_VD, batch)
    batch, ahead = batch.with_feedback(), ahead or {}
    rewards_BGK = network.reward(params, scores)
    judged_BGK = network.judged(params, scores, batch)
    baseline = baseline_of(ahead["mismatched"]) if "mismatched" in ahead else None

    if network.head.ensemble:  # each member learns by itself, from a bootstrap sample if it has one
      loss_MBG = jax.vmap(lambda s: self(s, batch, loss_params, baseline=baseline))(scores)
      if batch.members is not None:
        loss_MBG *= jnp.moveaxis(batch.members, -1, 0)
      loss_BG = jnp.mean(loss_MBG, axis=0)
    else:
      attributes_ABGK = scores[: len(network.head.attributes)]
      loss_BG = self(judged_BGK, batch, loss_params, attributes_ABGK, baseline=baseline)
    if network.head.gate and batch.objective is not None:
      loss_BG += gate_loss(scores, batch)

    text = None
    if self.text:
      penalty_BG, *text = self.text(batch, likelihood)
      loss_BG += penalty_BG

    # Σ_g w_g · L_g, summed within each source first, since the log tells sources apart.
    loss_S = sum_by_source(batch.weight * loss_BG, batch.source, sources)
    value = jnp.sum(loss_S)
    if "length" in ahead:
      value += self.decorrelate(rewards_BGK, batch, ahead["length"])
    return value, Scored(judged_BGK, loss_S, text)

  def __call__(
    self,
    scores_BGK: jax.Array,
    batch: Batch,
    params: dict[str, dict] | None = None,
    attributes_ABGK: jax.Array | None = None,
    *,
    baseline: jax.Array | None = None,
  ) -> jax.Array:
    """The loss of each group's kind, and the penalties on its scores: L_g without text and gate.

    Args:
      scores_BGK: what the feedback is about (of kind 'attributes' it is about `attributes_ABGK`).
      batch: the labels.
      params: kind -> the parameters that its loss learns.
      attributes_ABGK: scores of each attribute, where the data have feedback on attributes.
      baseline: float32 [], the reference point of a loss that asks for one of the step.

    Returns:
      float32 [B, G].

    Raises:
      ValueError: a loss or a penalty does not return one value a group.
    """
    value_BG = jnp.zeros(scores_BGK.shape[:-1], jnp.float32)
    for kind, (loss, options) in self._losses.items():
      mine_BG = batch.kind == KINDS.index(kind)
      function = loss.bind(**with_baseline(options, baseline))
      given = {name: getattr(batch, name) for name in loss.uses}
      if loss.init_params is not None:
        given["params"] = params[kind]
      values, labels = scores_BGK, batch.labels
      if kind == "attributes":
        values, labels = attributes_ABGK, jnp.moveaxis(batch.attributes, -1, 0)
      here = function(values, labels, where=batch.where & mine_BG[..., None], **given)
      check_output(here, mine_BG.shape, f"loss.{kind}: loss {loss.name!r}")
      value_BG += jnp.where(mine_BG, here, 0.0)
    for weight, penalty in self._penalties:
      here = penalty(scores_BGK, where=batch.where)
      check_output(here, value_BG.shape, f"penalty {getattr(penalty, '__name__', penalty)!r}")
      value_BG += weight * here
    return value_BG

  def ahead(self, rewards_BGK: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """A micro-batch's part of the sums that a step needs before its gradient.

    Returns:
      {'length': `moments`, 'mismatched': float32 [2], Σ_g w_g r_g over responses to other prompts
      and Σ_g w_g}; of the two those that the objective needs.
    """
    sums = {}
    if self.decorrelation:
      sums["length"] = self.moments(rewards_BGK, batch.with_feedback())
    if self.mismatched:
      where_BGK = batch.where & batch.mismatched
      weight_BGK = jnp.where(where_BGK, batch.weight[..., None], 0.0)
      reward_BGK = jnp.where(where_BGK, rewards_BGK, 0.0)
      sums["mismatched"] = jnp.stack([jnp.sum(weight_BGK * reward_BGK), jnp.sum(weight_BGK)])
    return sums

  def moments(self, scores_BGK: jax.Array, batch: Batch) -> jax.Array:
    """A micro-batch's part of the sums that make the correlation with length, float32 [6].

    Every group counts by its weight, which its marks share equally.
    """
    count = jnp.maximum(jnp.sum(batch.where, axis=-1, keepdims=True), 1)
    weights = jnp.broadcast_to(batch.weight[..., None] / count, scores_BGK.shape)
    # In hundreds of tokens, so that squares of lengths are about as large as those of scores.
    return moments(scores_BGK, batch.length / 100.0, where=batch.where, weights=weights)

  def decorrelate(self, scores_BGK: jax.Array, batch: Batch, step_moments: jax.Array) -> jax.Array:
    """What a micro-batch adds to the numerator for the penalty on the correlation with length.

    The correlation is not a sum over groups, so the penalty is linearised at the whole step's
    moments (`losses.moments`): this term has the right gradient and a value that means nothing. It
    is multiplied by the step's weight, the first moment, because `mean_gradient` divides by that.
    """
    part = linearised(self.moments(scores_BGK, batch), step_moments)
    return self.decorrelation * step_moments[0] * part

  @property
  def needs(self) -> set[str]:
    """Optional arrays of a batch that the objective cannot do without."""
    needs = {name for loss, _ in self._losses.values() for name in loss.needs}
    needs |= {"mismatched"} if self.mismatched else set()
    return needs | {"previous"} if self.text else needs

  def init_params(self, key: jax.Array) -> dict[str, jax.Array]:
    """Initial parameters of the losses that learn some, 'loss/KIND/NAME' -> float32."""
    return {
      f"loss/{kind}/{name}": value
      for kind, (loss, options) in self._losses.items()
      for name, value in loss.init(key, **options).items()
    }


def baseline_of(total: jax.Array) -> jax.Array:
  """KTO's z₀ of a step, from its sum of `Objective.ahead`: a divergence, so never below 0."""
  reward, weight = total
  return jnp.maximum(reward / jnp.where(weight > 0, weight, 1.0), 0.0)


def gate_loss(scores: jax.Array, batch: Batch) -> jax.Array:
  """-log of the weight that the gate gives to the attribute that a judgement is about.

  With it the gate learns to tell from the prompt which objective a person would judge by. Groups
  whose judgement is about the reward as a whole have 0.

  Args:
    scores: float32 [2 A, B, G, K], a gated head's (see `Network.apply`).
    batch: with `objective`.

  Returns:
    float32 [B, G].
  """
  _, log_weights_ABGK = jnp.split(scores, 2)
  # A prompt has as many copies of its weights as marks; they are averaged.
  where_ABGK = jnp.broadcast_to(batch.where, log_weights_ABGK.shape)
  log_weights_ABG = mean_where(log_weights_ABGK, where_ABGK, (-1,))
  loss_BG = jnp.zeros(batch.objective.shape, jnp.float32)
  for a, log_weights_BG in enumerate(log_weights_ABG):
    loss_BG -= jnp.where(batch.objective == a, log_weights_BG, 0.0)
  return loss_BG


def mean_gradient(gradients: Any, weight: jax.Array) -> Any:
  """The step's gradient: sums over all its micro-batches, divided by the weight of all its groups.

  No gradient is divided by a weight elsewhere: a micro-batch does not know what the step weighs.

  Args:
    gradients: of the numerators, added up.
    weight: float32 [S], of the groups by source.
  """
  total = jnp.maximum(jnp.sum(weight), 1e-30)  # a step without weight has gradient 0, and not NaN
  return jax.tree.map(lambda g: g / total, gradients)
