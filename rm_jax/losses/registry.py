"""The losses by name, with the kinds of feedback that each can learn from.

To add a loss, write the function in one of this folder's files and its line in `LOSSES`. What the
function takes is read from its signature. After scores and labels all its parameters are keywords:
`where`; arrays of the batch by their names in `types.Batch` (without a default if the loss cannot
do without the array); `params`, if the loss has parameters of its own that are trained; and its
options, Python numbers or strings, which a config sets as in 'hinge(margin=0.5)'.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax

from rm_jax.errors import InputError
from rm_jax.losses import listwise, noise, pairwise, pointwise, process, ties
from rm_jax.types import ARRAYS

REQUIRED = inspect.Parameter.empty  # stands for the default of a parameter without a default
_NOT_OPTIONS = {"scores", "params", "key", *ARRAYS}


@dataclasses.dataclass(frozen=True)
class Loss:
  """A loss and what is known of it; calling it calls the function.

  Attributes:
    name: what configs call it.
    function: (scores, labels, *, where, arrays of the batch, params, options) -> float32 [...], one
      value a list. It has those keywords that it needs (see the module).
    kinds: of `types.KINDS`, the kinds of feedback that it can learn from.
    init_params: (key, **options) -> initial values of the loss's own trained parameters; None if it
      has none.
    bounded: whether it has a lower bound whatever the scores. If not, only implicit rewards may be
      trained by it, since a likelihood has an upper bound.
    refuse: (labels, margin, **options) -> what in a group's feedback the loss cannot use, as a
      message; '' if it can use all of it. None: the loss can use any group of its kinds.
  """

  name: str
  function: Callable[..., jax.Array]
  kinds: tuple[str, ...]
  init_params: Callable[..., dict[str, jax.Array]] | None = None
  refuse: Callable[..., str] | None = None
  bounded: bool = True

  def __call__(self, scores: jax.Array, labels: jax.Array, **arguments) -> jax.Array:
    return self.function(scores, labels, **arguments)

  @property
  def _fields(self) -> dict[str, Any]:
    """Name of each array of the batch that the loss takes (see `uses`) -> the default."""
    defaults = _defaults(self.function)
    return {k: v for k, v in defaults.items() if k in ARRAYS and k not in ("labels", "where")}

  @property
  def uses(self) -> tuple[str, ...]:
    """Which arrays of the batch the loss takes, beside labels and where."""
    return tuple(self._fields)

  @property
  def needs(self) -> tuple[str, ...]:
    """Which of `uses` the loss cannot do without."""
    return tuple(name for name, default in self._fields.items() if default is REQUIRED)

  @property
  def options(self) -> dict[str, Any]:
    """Name of each option, of the function and of init_params -> its default (or `REQUIRED`)."""
    return {**_options(self.function), **_options(self.init_params)}

  def problem(self, labels: Sequence[float], margin: float | None, options: dict[str, Any]) -> str:
    """Says what the loss, with these options, cannot use of a group's labels and margin, or ''."""
    return "" if self.refuse is None else self.refuse(labels, margin, **options)

  def check(self, options: dict[str, Any]) -> None:
    """Raises InputError if a key is no option of this loss, or if a required option is missing."""
    known = self.options
    listed = ", ".join(known) or "no options"
    for key in options:
      if key not in known:
        raise InputError(f"loss {self.name!r} has no option {key!r}; it knows {listed}")
    for key, default in known.items():
      if default is REQUIRED and key not in options:
        raise InputError(f"loss {self.name!r} needs the option {key!r}; it knows {listed}")

  def bind(self, **options) -> Callable[..., jax.Array]:
    """The function with these options, after `check`; options of init_params only are left out."""
    self.check(options)
    mine = _options(self.function)
    return functools.partial(self.function, **{k: v for k, v in options.items() if k in mine})

  def init(self, key: jax.Array, **options) -> dict[str, jax.Array]:
    """The initial values of the loss's trained parameters, after `check`; {} if it has none."""
    self.check(options)
    mine = _options(self.init_params)
    if self.init_params is None:
      return {}
    return self.init_params(key, **{k: v for k, v in options.items() if k in mine})


def asks_for_baseline(options: dict[str, Any]) -> bool:
  """Whether a loss's reference point is to be estimated at each step (see `batch.mismatch`)."""
  return options.get("baseline") == "batch"


def with_baseline(options: dict[str, Any], baseline: Any) -> dict[str, Any]:
  """The options with the estimated reference point, where they ask for it."""
  return {**options, "baseline": baseline} if asks_for_baseline(options) else options


def _defaults(function: Callable | None) -> dict[str, Any]:
  if function is None:
    return {}
  return {p.name: p.default for p in inspect.signature(function).parameters.values()}


def _options(function: Callable | None) -> dict[str, Any]:
  return {k: v for k, v in _defaults(function).items() if k not in _NOT_OPTIONS}


# `_ORDER` is for losses that need no more than labels that order a list, `_COMPARED` for losses of
# observed comparisons. Outcomes and scores are none: that two responses are both good was not
# observed as a tie between them.
_ORDER = ("pair", "ranking", "outcome", "score")
_COMPARED = ("pair", "ranking")

LOSSES: dict[str, Loss] = {
  loss.name: loss
  for loss in (
    Loss("logistic", pairwise.logistic, _ORDER),
    Loss("scaled_logistic", pairwise.scaled_logistic, _COMPARED, refuse=pairwise.no_strength),
    Loss("hinge", pairwise.hinge, _ORDER),
    Loss("squared_hinge", pairwise.squared_hinge, _ORDER),
    Loss("exponential", pairwise.exponential, _ORDER),
    Loss("ipo", pairwise.ipo, _ORDER),
    Loss("noisy_logistic", noise.noisy_logistic, _ORDER),
    Loss("learned_noise", noise.learned_noise, _ORDER, noise.noise_params),
    Loss("unbiased_logistic", noise.unbiased_logistic, _ORDER),
    Loss("rao_kupper", ties.rao_kupper, _COMPARED, ties.tie_params),
    Loss("davidson", ties.davidson, _COMPARED, ties.tie_params),
    Loss("listnet", listwise.listnet, _ORDER),
    Loss("best_of_k", listwise.best_of_k, _ORDER),
    Loss("plackett_luce", listwise.plackett_luce, _ORDER),
    Loss("lambda_ndcg", listwise.lambda_ndcg, _ORDER),
    Loss("bce", pointwise.bce, ("outcome",)),
    Loss("kto", pointwise.kto, ("outcome",)),
    Loss("likelihood", pointwise.likelihood, ("pair", "outcome"), bounded=False),
    Loss("mse", pointwise.mse, ("outcome", "score")),
    Loss("huber", pointwise.huber, ("outcome", "score")),
    Loss("ordinal", pointwise.ordinal, ("score",), pointwise.ordinal_params, pointwise.no_grade),
    Loss("process", process.process, ("step",)),
    Loss("attribute_mse", pointwise.attribute_mse, ("attributes",)),
  )
}
