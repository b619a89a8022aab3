"""The losses by name, with what each can learn from and what it takes."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax

from rm_jax.errors import InputError
from rm_jax.losses import listwise, noise, pairwise, pointwise, process, ties

# Optional fields of a batch that a loss may take by their names.
FIELDS = ("pairs", "ties", "pair_margin", "response")
_NOT_OPTIONS = {"scores", "labels", "where", "weights", "params", "key", *FIELDS}


@dataclasses.dataclass(frozen=True)
class Loss:
  """A loss and what is known of it; calling it calls the function.

  Attributes:
    name: what configs call it.
    function: (scores, labels, *, where, weights, fields, options) -> float32 [...].
    kinds: of `types.KINDS`, the kinds of feedback it can use.
    uses: which of 'pairs', 'ties', 'pair_margin', 'response' it takes.
    init_params: (key, **options) -> params of a loss that learns some (`function` then takes the
      keyword `params`), else None.
    needs: which of `uses` it cannot do without.
    refuse: (labels, margin, **options) -> what of a group's feedback it cannot use, for people; ''
      where it can. Without it, it takes all.
  """

  name: str
  function: Callable[..., jax.Array]
  kinds: tuple[str, ...]
  uses: tuple[str, ...] = ()
  init_params: Callable[..., dict[str, jax.Array]] | None = None
  needs: tuple[str, ...] = ()
  refuse: Callable[..., str] | None = None

  def problem(self, labels: Sequence[float], margin: float | None, options: dict[str, Any]) -> str:
    """What of a group's labels and margin it cannot use with these options; '' where it can."""
    return "" if self.refuse is None else self.refuse(labels, margin, **options)

  def __call__(self, scores: jax.Array, labels: jax.Array, **arguments) -> jax.Array:
    return self.function(scores, labels, **arguments)

  @property
  def options(self) -> dict[str, Any]:
    """Options of the function and of init_params -> default (`inspect.Parameter.empty`: none)."""
    return {**_options(self.function), **_options(self.init_params)}

  def check(self, options: dict[str, Any]) -> None:
    """ValueError if a key is not an option of this loss, or one without a default is missing."""
    known = self.options
    listed = ", ".join(known) or "no options"
    for key in options:
      if key not in known:
        raise InputError(f"loss {self.name!r} has no option {key!r}; it knows {listed}")
    for key, default in known.items():
      if default is inspect.Parameter.empty and key not in options:
        raise InputError(f"loss {self.name!r} needs the option {key!r}; it knows {listed}")

  def bind(self, **options) -> Callable[..., jax.Array]:
    """The function with these options, checked; those of init_params alone are left out."""
    self.check(options)
    mine = _options(self.function)
    return functools.partial(self.function, **{k: v for k, v in options.items() if k in mine})

  def init(self, key: jax.Array, **options) -> dict[str, jax.Array]:
    """The params at the start with these options, checked; {} for a loss that learns none."""
    self.check(options)
    mine = _options(self.init_params)
    if self.init_params is None:
      return {}
    return self.init_params(key, **{k: v for k, v in options.items() if k in mine})


def _options(function: Callable | None) -> dict[str, Any]:
  if function is None:
    return {}
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p.default for p in parameters if p.name not in _NOT_OPTIONS}


# Losses of order take any labels that order a list. Equal outcomes are no observed ties, so the
# models of ties are not for them.
_ORDER = ("pair", "ranking", "outcome", "score")
_PAIRS = ("pairs", "pair_margin")

LOSSES: dict[str, Loss] = {
  loss.name: loss
  for loss in (
    Loss("logistic", pairwise.logistic, _ORDER, _PAIRS),
    Loss(
      "scaled_logistic",
      pairwise.scaled_logistic,
      ("pair", "ranking"),
      _PAIRS,
      needs=("pair_margin",),
      refuse=pairwise.no_strength,
    ),
    Loss("hinge", pairwise.hinge, _ORDER, _PAIRS),
    Loss("squared_hinge", pairwise.squared_hinge, _ORDER, _PAIRS),
    Loss("exponential", pairwise.exponential, _ORDER, _PAIRS),
    Loss("noisy_logistic", noise.noisy_logistic, _ORDER, _PAIRS),
    Loss("learned_noise", noise.learned_noise, _ORDER, _PAIRS, noise.noise_params),
    Loss("unbiased_logistic", noise.unbiased_logistic, _ORDER, _PAIRS),
    Loss("rao_kupper", ties.rao_kupper, ("pair", "ranking"), ("pairs", "ties"), ties.tie_params),
    Loss("davidson", ties.davidson, ("pair", "ranking"), ("pairs", "ties"), ties.tie_params),
    Loss("listnet", listwise.listnet, _ORDER),
    Loss("best_of_k", listwise.best_of_k, _ORDER),
    Loss("plackett_luce", listwise.plackett_luce, _ORDER),
    Loss("lambda_ndcg", listwise.lambda_ndcg, _ORDER),
    Loss("bce", pointwise.bce, ("outcome",)),
    Loss("mse", pointwise.mse, ("outcome", "score")),
    Loss("huber", pointwise.huber, ("outcome", "score")),
    Loss(
      "ordinal",
      pointwise.ordinal,
      ("score",),
      (),
      pointwise.ordinal_params,
      refuse=pointwise.no_grade,
    ),
    Loss("process", process.process, ("step",), ("response",)),
    Loss("attribute_mse", pointwise.attribute_mse, ("attributes",)),
  )
}
