"""The objective of a run: a loss for each kind of feedback, and penalties, by the config."""

import ast
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.losses import LOSSES, REGULARISERS, Loss
from rm_jax.losses.moments import linearised, moments
from rm_jax.train.text import TextPenalty
from rm_jax.types import KINDS, Batch


def parse_call(text: str, expected: str) -> tuple[str, dict[str, Any]]:
  """'hinge' or 'hinge(margin=0.5)' -> (name, options), which are literals.

  Raises:
    ValueError: with the message `expected`, it is not of that form.
  """
  try:
    node = ast.parse(text, mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or call.args:
      raise InputError(expected)
    return call.func.id, {k.arg: ast.literal_eval(k.value) for k in call.keywords}
  except (SyntaxError, ValueError):
    raise InputError(expected) from None


def parse_loss(text: str, field: str) -> tuple[Loss, dict[str, Any]]:
  """'hinge' or 'hinge(margin=0.5)' -> (the loss, its options).

  Args:
    text: a name in `LOSSES` and, in brackets, options as Python writes keywords.
    field: of the config, for errors.

  Raises:
    ValueError: it is not of that form, or the loss or an option is not known.
  """
  expected = f"{field} is {text!r}; expected a loss, or a loss(option=value)"
  name, options = parse_call(text, expected)
  if name not in LOSSES:
    raise InputError(f"{field} is {text!r}; expected one of {', '.join(LOSSES)}")
  try:
    LOSSES[name].check(options)
  except InputError as error:
    raise InputError(f"{field}: {error}") from None
  return LOSSES[name], options


def check_loss(loss: Loss, options: dict[str, Any], field: str, kind: str) -> None:
  """Traces a loss with its options, on shapes alone.

  Args:
    loss: of `parse_loss`.
    options: likewise.
    field: of the config, for errors.
    kind: of the feedback that it is for.

  Raises:
    ValueError: an option out of its range, or what it returns is not one value a list.
  """
  # No two axes alike, so that a mean over a wrong one shows.
  lead, K, attributes = (3, 5), 4, (2,) if kind == "attributes" else ()

  def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((*lead, *shape), dtype)

  scores = jax.ShapeDtypeStruct((*attributes, *lead, K), jnp.float32)
  given = {name: array(K, K) for name in loss.uses}
  if "response" in given:
    given["response"] = array(K, dtype=jnp.int32)
  try:
    params = jax.eval_shape(lambda: loss.init(jax.random.key(0), **options))
    if loss.init_params is not None:
      given["params"] = params
    where = array(K, dtype=jnp.bool_)
    # Options are Python's numbers, which a loss looks at when it is traced.
    out = jax.eval_shape(
      lambda s, y, w, g: loss.bind(**options)(s, y, where=w, **g), scores, scores, where, given
    )
  except (ValueError, TypeError) as error:
    raise InputError(f"{field}: {error}") from None
  _check_output(out, lead, f"{field}: loss {loss.name!r}")


def _check_output(out: Any, lead: tuple[int, ...], what: str) -> None:
  shape = getattr(out, "shape", type(out).__name__)
  if shape != lead:
    raise InputError(
      f"{what} returns {shape} of scores [..., K] with leading axes {lead}; expected one value a "
      "list, of just these axes: sums over lists are the step's, which weighs them"
    )


class Objective:
  """Loss of each group, by its kind, with the penalties of a config.

  Args:
    config: the `loss` part of an experiment's config: for each kind of feedback a loss, and weights
      of penalties.
    kinds: of the data; a loss is looked at only where there is something for it.

  Raises:
    ValueError: a loss that is not known, or that cannot use the kind it is named for; or as of
      `TextPenalty`.

  `text` is a penalty of another sort, on hidden states: true where the config asks for one.
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
    self.decorrelation = float(config.decorrelation)
    self.text = TextPenalty(config, kinds)

  @property
  def needs(self) -> set[str]:
    """Optional fields of a batch that its losses cannot do without."""
    return {name for loss, _ in self._losses.values() for name in loss.needs}

  def init_params(self, key: jax.Array) -> dict[str, jax.Array]:
    """Parameters of the losses that have some, 'loss/KIND/NAME' -> float32."""
    return {
      f"loss/{kind}/{name}": value
      for kind, (loss, options) in self._losses.items()
      for name, value in loss.init(key, **options).items()
    }

  def __call__(
    self,
    scores_BGK: jax.Array,
    batch: Batch,
    params: dict[str, dict] | None = None,
    attributes_ABGK: jax.Array | None = None,
  ) -> jax.Array:
    """The loss of each group, float32 [B, G].

    Args:
      scores_BGK: rewards, which all kinds of feedback but attributes speak of.
      batch: labels of each kind.
      params: {kind: those of its loss}.
      attributes_ABGK: scores of each attribute, where the data have feedback on them.
    """
    value_BG = jnp.zeros(scores_BGK.shape[:-1], jnp.float32)
    for kind, (loss, options) in self._losses.items():
      mine_BG = batch.kind == KINDS.index(kind)
      function = loss.bind(**options)
      given = {name: getattr(batch, name) for name in loss.uses}
      if loss.init_params is not None:
        given["params"] = params[kind]
      values, labels = scores_BGK, batch.labels
      if kind == "attributes":
        values, labels = attributes_ABGK, jnp.moveaxis(batch.attributes, -1, 0)
      here = function(values, labels, where=batch.where & mine_BG[..., None], **given)
      # A scalar mean would spread over all groups, and train at a part of its gradient.
      _check_output(here, mine_BG.shape, f"loss.{kind}: loss {loss.name!r}")
      value_BG += jnp.where(mine_BG, here, 0.0)
    for weight, penalty in self._penalties:
      here = penalty(scores_BGK, where=batch.where)
      _check_output(here, value_BG.shape, f"penalty {getattr(penalty, '__name__', penalty)!r}")
      value_BG += weight * here
    return value_BG

  def moments(self, scores_BGK: jax.Array, batch: Batch) -> jax.Array:
    """A micro-batch's part of the sums that the correlation with length is made of, float32 [6].

    Every group counts by its weight, shared by its marks.
    """
    count = jnp.maximum(jnp.sum(batch.where, axis=-1, keepdims=True), 1)
    weights = jnp.broadcast_to(batch.weight[..., None] / count, scores_BGK.shape)
    # Lengths in hundreds of tokens: their squares then are as large as those of scores.
    return moments(scores_BGK, batch.length / 100.0, where=batch.where, weights=weights)

  def decorrelate(self, scores_BGK: jax.Array, batch: Batch, total: jax.Array) -> jax.Array:
    """What a micro-batch adds to the sum of losses, for the gradient of the whole step's penalty.

    Args:
      total: float32 [6], the step's moments; its first entry is the step's weight, by which the
        gradients are divided later.
    """
    part = linearised(self.moments(scores_BGK, batch), total)
    return self.decorrelation * total[0] * part


@functools.cache
def uses_ties(kind_loss: str) -> bool:
  """Whether a loss, as a config writes it, learns from ties."""
  return "ties" in parse_loss(kind_loss, "loss")[0].uses
