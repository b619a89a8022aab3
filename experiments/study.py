"""What commands that run several settings over seeds have in common: `sweep` and `rlhf`."""

import collections
import importlib.util
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TypeVar

from rm_jax.errors import InputError, InUseError

Run = TypeVar("Run")


def settings_of(path: str) -> tuple[ModuleType, dict[str, dict]]:
  """(the module of a study's config file, what its `sweep()` returns).

  Args:
    path: of the file.

  Raises:
    InputError: it has no sweep(), or sweep() returns something else than {name: {field: value}}, or
      nothing.
  """
  spec = importlib.util.spec_from_file_location("study", path)
  study = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(study)
  if not hasattr(study, "sweep"):
    raise InputError(f"{path}: has no sweep(); write one that returns {{name: {{field: value}}}}")
  settings = study.sweep()
  if not isinstance(settings, Mapping) or not all(
    isinstance(name, str) and isinstance(changes, Mapping) for name, changes in settings.items()
  ):
    raise InputError(
      f"{path}: sweep() returned {settings!r:.200}; expected {{name: {{field: value}}}}"
    )
  if not settings:
    raise InputError(f"{path}: its sweep() is empty")
  return study, dict(settings)


def chosen(settings: dict[str, dict], only: Sequence[str] | None) -> dict[str, dict]:
  """The settings that --only names, by themselves or by their groups; None = all.

  Raises:
    InputError: it names another one.
  """
  if only is None:
    return settings
  known = {group_of(name) for name in settings} | settings.keys()
  if unknown := set(only) - known:
    raise InputError(f"--only has {sorted(unknown)}; expected some of {', '.join(sorted(known))}")
  return {
    name: changes for name, changes in settings.items() if group_of(name) in only or name in only
  }


def group_of(name: str) -> str:
  """'noise' of 'noise/smoothed'; '' of a name without a group."""
  return name.rpartition("/")[0]


def run_each(plan: Sequence[Run], run: Callable[[Run], None]) -> list[tuple[Run, InUseError]]:
  """Calls `run` with each item, so that several processes may share a study.

  An item at which another process is at work is put off until the others are done.

  Args:
    plan: the items, in their order.
    run: raises InUseError where another process is at work on the item.

  Returns:
    (item, its error) of those at which other processes are still at work once the rest is done.
  """
  waiting, in_use = collections.deque(plan), []
  while len(in_use) < len(waiting):
    one = waiting.popleft()
    try:
      run(one)
      in_use.clear()
    except InUseError as error:
      waiting.append(one)
      in_use.append((one, error))
  return in_use


def mean_interval(values: list[float]) -> tuple[float, list[float] | None]:
  """(mean, Student's 95 % interval of the mean); one run has no interval."""
  from scipy.stats import t  # Here, since it takes a second to import.

  mean, n = statistics.fmean(values), len(values)
  if n == 1:
    return mean, None
  half = t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
  return mean, [mean - half, mean + half]
