"""A run's folder: whose it is, and how a model is found in it again."""

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

from rm_jax.errors import InputError
from rm_jax.parallel.hosts import agree, is_main
from rm_jax.pretrained.source import RECORD, read_json, recover, save_folder
from rm_jax.reward.setup import Model
from rm_jax.storage.files import write_json

log = logging.getLogger(__name__)

CONFIG = "config.json"
_LOCK = ".lock"
# What may differ when a run goes on: how long it is, on what devices, and what is kept of it.
_MAY_CHANGE = ("train.steps", "train.epochs", "train.keep", "mesh.", "data.cache")
# What runs did before a field was there, so that they can still go on.
_BEFORE: dict[str, Any] = {
  "data.cache": "",
  "data.shapes": 4,
  "data.split_seed": -1,
  "model.attention": "auto",
}
# What `resolve` fills in, and the values that ask it to.
_AUTOMATIC = {
  "train.steps": 0,
  "train.eval_every": 0,
  "train.checkpoint_every": 0,
  "optimizer.decay_steps": 0,
  "optimizer.warmup_steps": -1,
}
_LENGTH = ("train.steps", "train.epochs")


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
  out = {}
  for key, value in config.items():
    if isinstance(value, dict):
      out |= _flat(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = list(value) if isinstance(value, tuple) else value
  return out


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as JSON has it."""
  return json.loads(json.dumps(config.to_dict()))


def _saved(workdir: Path, name: str = CONFIG) -> dict[str, Any] | None:
  """config.json of the run that the folder (of the first process) holds; None where it is new."""
  path = workdir / name
  return agree(read_json(path) if path.exists() else None)


def earlier_record(workdir: Path) -> dict[str, Any] | None:
  """rm_jax.json of the run that the folder holds: how its texts become tokens; None: it is new."""
  return _saved(workdir, f"model/{RECORD}")


def resolve(config: Any, groups: int, workdir: Path | None = None) -> ml_collections.ConfigDict:
  """A copy of the config with its automatic values filled in, an earlier run's where it has them.

  Args:
    config: train.steps 0 = train.epochs of the data; optimizer.decay_steps 0 = train.steps;
      optimizer.warmup_steps -1 = 3 % of decay_steps; train.eval_every 0 = a fifth of them;
      train.checkpoint_every 0 = eval_every.
    groups: of the training data.
    workdir: where an earlier run may have resolved them already: a schedule does not move when
      train.steps grows. None = nowhere.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  saved = _flat((workdir and _saved(workdir)) or {})
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


def differences(there: dict[str, Any], config: ml_collections.ConfigDict) -> list[str]:
  """Fields in which a run that is done differs from the one that a config asks for, for people.

  Args:
    there: its config.json.
    config: of before `resolve`. A field that it leaves to be filled in fits whatever was, as the
      rest of both is the same; where it leaves the steps, the epochs have to be.
  """
  saved, wanted = _BEFORE | _flat(there), _flat(plain(config))
  given = wanted.get("train.steps") != _AUTOMATIC["train.steps"]
  same = [path for path, value in _AUTOMATIC.items() if wanted.get(path) == value]
  same += ["train.epochs"] if given else []
  free = tuple(prefix for prefix in _MAY_CHANGE if prefix not in _LENGTH)
  return [
    f"{key}: {saved.get(key)!r} there, {wanted.get(key)!r} now"
    for key in sorted(saved.keys() | wanted.keys())
    if saved.get(key) != wanted.get(key) and key not in same and not key.startswith(free)
  ]


def check(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Whether the folder is new, or this config's already.

  Raises:
    ValueError: it holds a run of another config; nothing is overwritten.
  """
  there = _saved(workdir)
  if there is not None:
    saved, wanted = _BEFORE | _flat(there), _flat(plain(config))
    different = [
      f"{key}: {saved.get(key)!r} there, {wanted.get(key)!r} now"
      for key in sorted(saved.keys() | wanted.keys())
      if saved.get(key) != wanted.get(key) and not key.startswith(_MAY_CHANGE)
    ]
    if different:
      raise InputError(
        f"{workdir} holds a run of another config:\n  "
        + "\n  ".join(different)
        + "\ngive another --workdir, or the same config (train.steps and mesh may change)"
      )
  elif agree(any((workdir / "checkpoints").glob("*"))):
    raise InputError(f"{workdir} has checkpoints but no {CONFIG}; give another --workdir")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Holds a run's folder for this run alone, of several processes for all of them.

  What it holds by dies with the process, however it ends. Where a file system has no locks, a
  warning says so.

  Raises:
    ValueError: another run is in it.
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
        # A read-only folder says what it is when the run writes to it.
        log.warning("%s: cannot be locked (%s): start no other run in it", workdir, error)
  new &= not problem  # in the moment between, another has made it: it is that one's
  try:
    if problem := agree(problem):
      raise InputError(problem)
    yield
  finally:
    if file:
      # A run that could not begin leaves nothing behind.
      with contextlib.suppress(OSError):
        if new and [path.name for path in workdir.iterdir()] == [_LOCK]:
          (workdir / _LOCK).unlink()
          workdir.rmdir()
      file.close()


def claim(
  workdir: Path, config: ml_collections.ConfigDict, model: Model, kinds: Collection[str] = ()
) -> None:
  """Makes the folder this config's: config.json, and model/, a Hugging Face folder without weights.

  Those are in the checkpoints. The record names the `kinds` of feedback that are trained on.
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
  """Whether it is the folder of a training run."""
  recover(path / "model")
  return (path / "model" / CONFIG).is_file() and (path / "checkpoints").is_dir()
