"""The data of a finished run, for the commands that take --data=heldout."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from configs.base import get_config
from rm_jax.data.report import Report
from rm_jax.errors import InputError
from rm_jax.train import datasets
from rm_jax.types import Example
from rm_jax.workdir.folder import CONFIG, is_workdir

log = logging.getLogger(__name__)

HELDOUT = "heldout"  # the value of --data that means what the run itself held out


def config_of(name: str) -> ml_collections.ConfigDict:
  """The config of a run, which names its data and its generated world.

  For a model that is not a run's workdir it is the base config.

  Args:
    name: the value of --model.
  """
  path = Path(name) / CONFIG
  if is_workdir(Path(name)) and path.exists():
    return ml_collections.ConfigDict(json.loads(path.read_text()))
  return get_config()


def check_own_format(format: str, columns: str) -> None:
  """Refuses a format for data whose format the run's config has.

  Args:
    format, columns: the values of --format and --columns.

  Raises:
    InputError: one of them is set.
  """
  if format != "auto" or columns:
    found = f"--format={format}" if format != "auto" else f"--columns={columns}"
    raise InputError(
      f"{found} and --data={HELDOUT}, whose format the run's config has; leave --format and "
      "--columns out"
    )


def own_data(
  config: ml_collections.ConfigDict, report: Report, model: str, *, flag: str = "data"
) -> tuple[list[Example], list[Example]]:
  """(what a run trained on, what it held out); neither has its validation data.

  Args:
    config: of the run.
    report: counts bad rows, validation data, and what the run left out.
    model: the value of --model, for the error.
    flag: name of the flag that asks for these data, for the error.

  Raises:
    InputError: the config names no data, because the model is not a run's workdir.
    ValueError, OSError: as `datasets.read_both` and `datasets.divided`.
  """
  if not (config.data.train or config.data.sources):
    raise InputError(
      f"--{flag}={HELDOUT} wants a run's workdir, which knows its data; found --model={model}"
    )
  train, heldout, _ = datasets.read_both(config, report)
  train, aside = datasets.divided(config, train, report)
  for example in aside:
    report.drop("validated_on", example.origin, "the run evaluated it as it trained", fault=False)
  return train, heldout


def learned(name: str) -> set[str] | None:
  """The conversations that a run learned from or chose its checkpoint by; None if not a run's.

  Args:
    name: the model, as flags name it.

  Raises:
    ValueError, OSError: the run's data cannot be read.
  """
  config = config_of(name)
  if not (config.data.train or config.data.sources):
    return None
  train, _, _ = datasets.read_both(config, Report())
  return {e.conversation for e in train}


def count_learned(name: str, examples: Sequence[Example]) -> int | None:
  """How many examples share a conversation with what a run learned from, with a warning of them.

  None where it is not known: the model is not a run's workdir, or the run's data cannot be read any
  more, which a warning says.

  Args:
    name: the model, as flags name it.
    examples: those that it is judged by.
  """
  try:
    seen = learned(name)
  except (ValueError, OSError) as error:
    log.warning("it is not known whether %s has learned from these data: %s", name, error)
    return None
  if seen is None:
    return None
  count = sum(e.conversation in seen for e in examples)
  if count:
    log.warning(
      "%s has learned from the conversations of %d of these %d examples, so that the figures are "
      "not those of new data: give --data=heldout, or --exclude with the training data",
      name,
      count,
      len(examples),
    )
  return count
