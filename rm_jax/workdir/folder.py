"""The folder of a run: its lock, config.json, and model/, from which a model is built again."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import ml_collections

from rm_jax.data.columns import parse_columns
from rm_jax.errors import InputError, InUseError
from rm_jax.parallel.hosts import broadcast_json, is_main
from rm_jax.pretrained.source import RECORD, read_json, recover, save_folder
from rm_jax.reward.setup import TextModel
from rm_jax.storage.files import write_json

log = logging.getLogger(__name__)

CONFIG = "config.json"
BEST = "best"  # the folder of the best checkpoint, where one is chosen
_LOCK = ".lock"
# Fields that may differ when a run is resumed: its length, its devices, how many checkpoints it
# keeps and where tokens are cached. An entry stands for all fields that begin with it.
_MAY_CHANGE = ("train.steps", "train.epochs", "train.keep", "mesh.", "data.cache")
# Values of fields that are missing in the config.json of older runs: what those runs did. A field
# whose value was None, as data.columns, needs no line.
_BEFORE: dict[str, Any] = {
  "data.cache": "",
  "data.shapes": 4,
  "data.split_seed": -1,
  "data.fraction": 1.0,
  "data.max_prompt_length": 0,
  "data.objectives": "",
  "data.validation": 0.0,
  "model.attention": "auto",
  "model.beta": 0.1,
  "model.gate": False,
  "model.gate_trains": 0.0,
  "model.head_init": "random",
  "model.normalised": False,
  "model.question": "",
  "model.reference": "start",
  "model.reward": "head",
  "model.steps": "own",
  "model.verdict_words": ["Yes", "No"],
  "optimizer.head_rate": 1.0,
  "train.best": "",
  "train.patience": 0,
}
# Fields that `resolve` fills in -> the value that asks for it.
_AUTOMATIC = {
  "train.steps": 0,
  "train.eval_every": 0,
  "train.checkpoint_every": 0,
  "optimizer.decay_steps": 0,
  "optimizer.warmup_steps": -1,
}
_LENGTH = ("train.steps", "train.epochs")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
  """A ConfigDict or nested dicts -> {'part.field': value}."""
  out = {}
  for key, value in config.items():
    if hasattr(value, "items"):
      out |= flat(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as dicts and lists, as it is read back from config.json.

  `data.columns` is a text there, however it was given, since the two forms mean the same; None if
  it is empty.
  """
  out = json.loads(json.dumps(config.to_dict()))
  data = out.get("data", {})
  if "columns" in data:
    columns = parse_columns(data["columns"])
    data["columns"] = ",".join(f"{ours}={columns[ours]}" for ours in sorted(columns)) or None
  return out


def _saved(workdir: Path, name: str = CONFIG) -> dict[str, Any] | None:
  """The object in a JSON file of process 0's workdir, on every process; None without that file."""
  path = workdir / name
  return broadcast_json(read_json(path) if path.exists() else None)


def earlier_record(workdir: Path) -> dict[str, Any] | None:
  """The record (rm_jax.json: how text becomes tokens) of the workdir's run; None if it is new."""
  return _saved(workdir, f"model/{RECORD}")


def resolve(config: Any, groups: int, workdir: Path | None = None) -> ml_collections.ConfigDict:
  """A copy of the config with its automatic values filled in.

  train.steps 0 becomes the number of steps in train.epochs epochs; optimizer.decay_steps 0 becomes
  train.steps; optimizer.warmup_steps -1 becomes 3 % of decay_steps; train.eval_every 0 becomes a
  fifth of decay_steps; train.checkpoint_every 0 becomes eval_every.

  Args:
    config: an experiment's, see configs/base.py.
    groups: number of groups of the training data.
    workdir: of a run that may be resumed: its decay_steps are kept, so that the learning-rate
      schedule stays the same when train.steps grows. None = no run is resumed.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  saved = flat((workdir and _saved(workdir)) or {})
  train, optimizer = config.train, config.optimizer
  if train.steps == 0:
    train.steps = max(1, round(train.epochs * groups / config.data.batch_groups))
  if optimizer.decay_steps == 0:
    optimizer.decay_steps = saved.get("optimizer.decay_steps", train.steps)
  if optimizer.warmup_steps < 0:
    optimizer.warmup_steps = round(0.03 * optimizer.decay_steps)
  if train.eval_every == 0:
    train.eval_every = max(1, -(-optimizer.decay_steps // 5))
  if train.checkpoint_every == 0:
    train.checkpoint_every = train.eval_every
  return config


def _differences(
  saved: dict[str, Any], wanted: dict[str, Any], may_change: tuple[str, ...]
) -> list[str]:
  """Lines for an error message: the fields in which two flat configs differ.

  Args:
    saved: of config.json; fields that it lacks have their value in `_BEFORE`.
    wanted: of the config.
    may_change: prefixes of fields that are left out.
  """
  saved = _BEFORE | saved
  return [
    f"{key}: {saved.get(key)!r} there, {wanted.get(key)!r} now"
    for key in sorted(saved.keys() | wanted.keys())
    if saved.get(key) != wanted.get(key) and not key.startswith(may_change)
  ]


def differences(there: dict[str, Any], config: ml_collections.ConfigDict) -> list[str]:
  """Lines for an error message: the fields in which a finished run differs from a config.

  Args:
    there: the finished run's config.json.
    config: before or after `resolve`. A field that it leaves automatic is not compared, because
      config.json has its value filled in and does not say whether that was automatic or set. To
      compare such fields too, pass the config resolved for the same number of groups. The run's
      length is compared by train.steps if the config sets it, else by train.epochs. The mesh,
      train.keep and data.cache are not compared.
  """
  saved, wanted = flat(there), flat(plain(config))
  may_change = [prefix for prefix in _MAY_CHANGE if prefix not in _LENGTH]
  automatic = {path for path, value in _AUTOMATIC.items() if wanted.get(path) == value}
  if "train.steps" not in automatic:
    automatic.add("train.epochs")
  kept = [{k: v for k, v in one.items() if k not in automatic} for one in (saved, wanted)]
  return _differences(*kept, tuple(may_change))


def check_place(workdir: Path) -> None:
  """Checks, before any work, that process 0 can write in a workdir; nothing is made.

  Raises:
    InputError: it, or what it lies in, is no folder or cannot be written in.
  """
  problem = ""
  if is_main():
    there = next(path for path in (workdir, *workdir.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
      problem = f"--workdir={workdir}: {there} is no folder; expected one, or a new name for one"
    elif not os.access(there, os.W_OK | os.X_OK):
      problem = f"--workdir={workdir}: {there} cannot be written in"
  if problem := broadcast_json(problem):
    raise InputError(problem)


def check(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Checks that a workdir is new or holds a run of this config, which then may be resumed.

  Fields of `_MAY_CHANGE` are not compared. Nothing is written.

  Raises:
    InputError: it holds a run of another config, a damaged config.json, or checkpoints and no
      config.json.
  """
  there = _saved(workdir)
  if there is not None:
    if different := _differences(flat(there), flat(plain(config)), _MAY_CHANGE):
      raise InputError(
        f"{workdir} holds a run of another config:\n  "
        + "\n  ".join(different)
        + "\ngive another --workdir, or the same config (train.steps and mesh may change)"
      )
  elif broadcast_json(any((workdir / "checkpoints").glob("*"))):
    raise InputError(f"{workdir} has checkpoints but no {CONFIG}; give another --workdir")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Locks a workdir for one run, whose process 0 holds the lock for all of its processes.

  The folder is made if it does not exist. The operating system releases the lock when the process
  ends, however it ends. On a file system without locks a warning is logged.

  Raises:
    InUseError: another run has locked it.
    OSError: the folder cannot be made.
  """
  problem, file, new = "", None, False
  if is_main():
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    try:
      file = (workdir / _LOCK).open("a+", encoding="utf-8")
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}")
      file.flush()
    except OSError as error:
      if error.errno in (errno.EWOULDBLOCK, errno.EACCES) and file:
        file.seek(0)
        problem = (
          f"{workdir} is in use by {file.read() or 'another process'}; wait until it has ended, or "
          "give another --workdir"
        )
      else:
        # A read-only folder raises later, when the run writes to it.
        log.warning("%s: cannot be locked (%s): start no other run in it", workdir, error)
  # Where there is a problem, another run has made the folder since `exists` was asked.
  new &= not problem
  try:
    if problem := broadcast_json(problem):
      raise InUseError(problem)
    yield
  finally:
    if file:
      # A run that failed before it wrote anything does not leave an empty folder.
      with contextlib.suppress(OSError):
        if new and [path.name for path in workdir.iterdir()] == [_LOCK]:
          (workdir / _LOCK).unlink()
          workdir.rmdir()
      file.close()


def claim(
  workdir: Path, config: ml_collections.ConfigDict, model: TextModel, kinds: Collection[str] = ()
) -> None:
  """Writes config.json, and model/, a Hugging Face folder without weights (checkpoints have them).

  Args:
    workdir: made if it does not exist.
    config: the run's, see `resolve`.
    model: the run's.
    kinds: of feedback that the run trains on, for the record.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / CONFIG, plain(config))
  save_folder(
    workdir / "model",
    config=model.exported_config(),
    tokenizer=model.tokenizer,
    record=model.record() | ({"kinds": sorted(kinds)} if kinds else {}),
  )


def is_workdir(path: Path) -> bool:
  """Whether a path is the workdir of a run.

  First completes a save of its model/ that was cut short after all files were written. Raises
  ValueError as `recover`.
  """
  recover(path / "model")
  return (path / "model" / CONFIG).is_file() and (path / "checkpoints").is_dir()
