"""The data of a finished run, for the commands that take --data=heldout."""

import json
from pathlib import Path

import ml_collections

from configs.base import get_config
from rm_jax.data.report import Report
from rm_jax.errors import InputError
from rm_jax.train import datasets
from rm_jax.types import Example
from rm_jax.workdir.folder import CONFIG, is_workdir

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
