"""What files and flags declare, as Python values: records of JSON, and names with options."""

import ast
import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from rm_jax.errors import InputError

T = TypeVar("T")


def parse(cls: type[T], value: Any, where: str) -> T:
  """A dataclass from a record's JSON object.

  Args:
    cls: a dataclass whose fields are of plain types, unions of them, or a tuple of one of them.
    value: what was read.
    where: the file and key, for the message.

  Raises:
    InputError: it is no object, lacks a field, or has a key that is not a field or a value of
      another type or not finite; or the dataclass itself raises ValueError. The message names
      `where`.
  """
  if not isinstance(value, dict):
    raise InputError(f"{where} is {value!r:.80}; expected an object")
  declared = typing.get_type_hints(cls)
  hints = {field.name: declared[field.name] for field in dataclasses.fields(cls)}
  if unknown := sorted(value.keys() - hints.keys()):
    raise InputError(
      f"{where} has {', '.join(unknown)!r:.80}, which we do not know; expected of "
      f"{', '.join(hints)}. Was it saved by a newer version?"
    )
  for key, one in value.items():
    hint = hints[key]
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    many = origin is tuple  # tuple[of, ...]
    if many:
      parts = parts[:1]
    elif origin not in (typing.Union, types.UnionType):
      parts = (hint,)
    allowed = [typing.get_origin(of) or of for of in parts]
    found = one if many and isinstance(one, list | tuple) else [one]
    good = all(type(x) in allowed or (float in allowed and type(x) is int) for x in found)
    good = good and all(_finite(x) for x in found if type(x) in (int, float))
    if not good or many != isinstance(one, list | tuple):
      names = " or ".join(of.__name__ for of in allowed)
      expected = f"a list of {names}" if many else f"a {names}"
      raise InputError(f"{where}.{key} is {one!r:.80}; expected {expected}")
  try:
    return cls(**value)
  except (TypeError, ValueError) as error:
    raise InputError(f"{where}: {one_line(error)}") from error


def _finite(x: int | float) -> bool:
  """Whether a number is finite as a float: JSON as Python reads it has NaN, infinities, 10^400."""
  try:
    return math.isfinite(x)
  except OverflowError:
    return False


def parse_calls(text: str, expected: str) -> list[tuple[str, dict[str, Any]]]:
  """'clip(high=5), tanh' -> [(name, options)], at least one. Options are Python literals.

  Raises:
    InputError: the text is not of that form; the message is `expected`.
  """
  node = _expression(text, expected)
  found = [_call(one, expected) for one in (node.elts if isinstance(node, ast.Tuple) else [node])]
  if not found:
    raise InputError(expected)
  return found


def parse_call(text: str, expected: str) -> tuple[str, dict[str, Any]]:
  """'hinge' or 'hinge(margin=0.5)' -> (name, options). Options are Python literals.

  Raises:
    ValueError: the text is not of that form; the message is `expected`.
  """
  return _call(_expression(text, expected), expected)


def _expression(text: str, expected: str) -> ast.expr:
  try:
    return ast.parse(text, mode="eval").body
  # Python raises the last two for thousands of nested brackets.
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise InputError(expected) from error


def _call(node: ast.expr, expected: str) -> tuple[str, dict[str, Any]]:
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  try:
    options = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
  except (ValueError, TypeError, RecursionError) as error:  # TypeError for '{[]: 1}'
    raise InputError(expected) from error
  if not isinstance(call.func, ast.Name) or call.args or None in options:
    raise InputError(expected)
  return call.func.id, options


def one_line(error: BaseException) -> str:
  """The text of an error on one line, cut after 300 characters; its class if it has no text."""
  said = " ".join(str(error).split()) or type(error).__name__
  return said if len(said) <= 300 else said[:300] + " ..."
