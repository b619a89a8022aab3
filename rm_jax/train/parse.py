"""Losses as configs write them: names with options, such as 'hinge(margin=0.5)'."""

import functools
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp

from rm_jax.declared import parse_call
from rm_jax.errors import InputError, UserError
from rm_jax.losses import LOSSES, Loss, with_baseline
from rm_jax.types import ARRAYS


def parse_loss(text: str, field: str) -> tuple[Loss, dict[str, Any]]:
  """'hinge' or 'hinge(margin=0.5)' -> (the loss, its options).

  Args:
    text: a name in `LOSSES` and, in brackets, options as Python's keyword arguments.
    field: of the config, for errors.

  Raises:
    InputError: it is not of that form; the loss or an option is not known; or an option that the
      loss needs is missing, or one is of another type than it declares.
  """
  expected = f"{field} is {text!r}; expected a loss, or a loss(option=value)"
  name, options = parse_call(text, expected)
  if name not in LOSSES:
    raise InputError(f"{field} is {text!r}; expected one of {', '.join(LOSSES)}")
  try:
    LOSSES[name].check(options)
    _check_types(LOSSES[name], options)
  except UserError as error:
    raise InputError(f"{field}: {error}") from error
  return LOSSES[name], options


def _check_types(loss: Loss, options: dict[str, Any]) -> None:
  """Raises InputError for an option of another type than the loss's signature declares."""
  hints: dict[str, Any] = {}
  for function in filter(None, (loss.function, loss.init_params)):
    hints |= typing.get_type_hints(function)
  for name, value in options.items():
    hint = hints.get(name)
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not all(isinstance(one, type) for one in allowed):
      continue  # not declared; or a Literal, which the loss itself checks
    if not (type(value) in allowed or (type(value) is int and float in allowed)):
      expected = " or ".join(one.__name__.removesuffix("Type") for one in allowed)
      raise InputError(f"{name} is {value!r}; expected it of type {expected}")


def check_loss(loss: Loss, options: dict[str, Any], field: str, kind: str) -> None:
  """Traces a loss with its options on abstract arrays, to find a fault before data are read.

  Args:
    loss: from `parse_loss`.
    options: likewise.
    field: of the config, for errors.
    kind: the kind of feedback that the loss is for.

  Raises:
    InputError: an option is out of its range, or the loss does not return one value a list. Any
      other error of the loss's own code is raised as it is, since it is a bug there.
  """
  # No two axes of the scores have the same size, so that a mean over a wrong one changes the shape.
  lead, K, attributes = (3, 5), 4, (2,) if kind == "attributes" else ()

  def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((*lead, *shape), dtype)

  scores = jax.ShapeDtypeStruct((*attributes, *lead, K), jnp.float32)
  # The first two axes of a batch's arrays are B and G, here `lead`; all others have the length K.
  fields = {name: ARRAYS[name] for name in loss.uses}
  given = {name: array(*(K for _ in a.axes[2:]), dtype=a.dtype) for name, a in fields.items()}
  try:
    params = jax.eval_shape(lambda: loss.init(jax.random.key(0), **options))
    if loss.init_params is not None:
      given["params"] = params
    where = array(K, dtype=jnp.bool_)
    options = with_baseline(options, 0.0)
    # Options are bound and not traced: losses compare them with their bounds, in Python.
    out = jax.eval_shape(
      lambda s, y, w, g: loss.bind(**options)(s, y, where=w, **g), scores, scores, where, given
    )
  except UserError as error:
    raise InputError(f"{field}: {error}") from error
  check_output(out, lead, f"{field}: loss {loss.name!r}")


def check_output(out: Any, lead: tuple[int, ...], what: str) -> None:
  """Raises InputError unless a loss returned one value a list.

  A loss that returns its mean over all lists would broadcast, and every group would train on a
  fraction of its gradient.
  """
  shape = getattr(out, "shape", type(out).__name__)
  if shape != lead:
    raise InputError(
      f"{what} returns {shape} of scores [..., K] with leading axes {lead}; expected one value a "
      "list, of just these axes: sums over lists are the step's, which weighs them"
    )


@functools.cache
def uses_ties(kind_loss: str) -> bool:
  """Whether a loss, as a config writes it, learns from ties."""
  return "ties" in parse_loss(kind_loss, "loss")[0].uses
