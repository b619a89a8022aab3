"""Looks a figure up in a report by its name, as tables and the choice of a checkpoint name it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

# Whose an interval is that stands beside several numbers, the first of these that is there.
_OWNERS = ("difference", "value", "accuracy")


def look_up(report: Mapping[str, Any], name: str) -> list[tuple[Any, Mapping[str, Any]]]:
  """The parts of a report that a name stands for, each with the dict that holds it.

  Args:
    report: nested dicts, such as `evaluate.evaluate` returns.
    name: keys joined by dots, as 'kendall.value'. A key may have dots itself: 'sources.a.test.n' is
      `n` of the source 'a.test'. '*' stands for every key, as in 'sources.*.accuracy'.

  Returns:
    one part, or with '*' one for every key; [] if the report, or one of these, does not have it.
  """
  keys = name.split(".")

  def walk(part: Any, start: int, holder: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    if start == len(keys):
      return [(part, holder)]
    if not isinstance(part, Mapping):
      return []
    if keys[start] == "*":
      found = [walk(value, start + 1, part) for value in part.values()]
      return [one for some in found for one in some] if all(found) else []
    for end in range(start + 1, len(keys) + 1):
      key = ".".join(keys[start:end])
      if key in part and (found := walk(part[key], end, part)):
        return found
    return []

  return walk(report, 0, report)


def number(report: Mapping[str, Any], name: str) -> float | None:
  """The figure with a name, as in `look_up`; with '*' the mean.

  None if the report does not have it, or it (with '*' one of the parts) is no number.
  """
  values = [_value(part) for part, _ in look_up(report, name)]
  if not values or any(value is None for value in values):
    return None
  return math.fsum(values) / len(values)


def interval(report: Mapping[str, Any], name: str) -> tuple[float, float] | None:
  """The interval of a figure; None if it has none of its own, or the name is of several."""
  found = look_up(report, name)
  if len(found) != 1:
    return None
  part, holder = found[0]
  if not isinstance(part, Mapping):
    # Of the numbers that stand beside an interval, such as an accuracy, a loss and a count, it is
    # one's alone.
    owner = next((key for key in _OWNERS if key in holder), None)
    part = holder if name.rpartition(".")[2] == owner else {}
  beside = part.get("interval")
  return tuple(beside) if beside else None


def names(report: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
  """The names of all numbers of a report."""
  for key, value in report.items():
    if isinstance(value, Mapping):
      yield from names(value, f"{prefix}{key}.")
    elif _value(value) is not None:
      yield prefix + key


def _value(part: Any) -> float | None:
  """A number, or the value of a figure {value, interval, ..}; None for anything else."""
  if isinstance(part, Mapping):
    part = part.get("value")
  return float(part) if isinstance(part, int | float) and not isinstance(part, bool) else None
