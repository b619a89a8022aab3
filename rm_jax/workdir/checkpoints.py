"""Orbax checkpoints of a run, checked when they are read back.

Orbax writes atomically but keeps no checksum over the data, and takes an empty step directory for
the latest. So a fingerprint of every array is saved beside it, and one of the rest; what does not
match on reading is passed over, with a warning, for the checkpoint before it. A run that goes on
from there moves what it passed over aside, since Orbax saves no step that is not the latest.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from rm_jax.errors import UserError
from rm_jax.models.lora import is_base
from rm_jax.workdir.state import TrainState
from rm_jax.workdir.stores import FromFirst, Together

log = logging.getLogger(__name__)


@jax.jit
def _fingerprint(tree: Any) -> list[jax.Array]:
  # A sum of the bits as integers is the same for any sharding, and no single flipped bit leaves it.
  def bits(x):
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(x, word), dtype=jnp.uint32)

  return [bits(x) for x in jax.tree.leaves(tree)]


def fingerprint(tree: Any) -> list[int]:
  """One integer for each leaf, in the tree's order."""
  return [int(x) for x in jax.device_get(_fingerprint(tree))]


def _digest(position: dict[str, Any]) -> str:
  return hashlib.blake2b(json.dumps(position, sort_keys=True).encode(), digest_size=16).hexdigest()


class CheckpointError(UserError, RuntimeError):
  """No checkpoint can be read, or one could not be written."""


class Checkpoints:
  """The checkpoints of a workdir.

  Args:
    directory: made where it does not exist.
    keep: how many of the latest stay.
    adapters: the backbone that adapters stand beside is not saved, as it can be read again; only
      whether it is the same.
    shared: all processes see the directory; else process 0's is the run's.
  """

  def __init__(
    self, directory: Path, keep: int = 2, *, adapters: bool = False, shared: bool = True
  ):
    self.directory = directory
    self._adapters = adapters
    self._at: int | None = None  # the step that was read or saved last, which is whole
    self._store = Together(directory, keep) if shared else FromFirst(directory, keep)

  def save(self, state: TrainState, position: dict[str, Any]) -> None:
    """Writes a checkpoint, and returns once it is on disk.

    Args:
      state: saved as 'params' (the network's, nested), and 'train' (optimiser, metrics' window, and
        what the losses learn).
      position: what JSON can hold: seed, data position, the random key.

    Raises:
      CheckpointError: it could not be written; the ones before it are untouched.
    """
    step = int(state.step)
    if step == self._at:
      return
    saved, base = self._divide(flatten_dict(state.all_params(), sep="/"))
    items = {
      "params": unflatten_dict(saved, sep="/"),
      "train": _train_items(state),
    }
    marks = {name: fingerprint(tree) for name, tree in items.items()} | {"base": fingerprint(base)}
    position = {**position, "fingerprint": marks}
    try:
      self._store.save(step, items, {**position, "digest": _digest(position)})
    except (OSError, ValueError, RuntimeError) as error:
      raise CheckpointError(
        f"{self.directory}: step {step} could not be saved ({error}); is the disk full?"
      ) from error
    self._at = step

  def _divide(self, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is saved, what is read again) of parameters by path."""
    base = {p: x for p, x in params.items() if self._adapters and is_base(p)}
    return {p: x for p, x in params.items() if p not in base}, base

  def steps(self) -> list[int]:
    """Steps with a checkpoint, oldest first."""
    return self._store.steps()

  def _read(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    out = self._store.read(step, targets)
    position = dict(out["position"])
    # What was saved before there was a digest has none.
    if "digest" in position and position.pop("digest") != _digest(position):
      raise CheckpointError("its position is not what was saved")
    for name in targets:
      found, saved = fingerprint(out[name]), position["fingerprint"][name]
      if found != saved:
        paths = list(flatten_dict(out["params"], sep="/")) if name == "params" else None
        where = [i for i, (a, b) in enumerate(zip(found, saved, strict=True)) if a != b]
        what = [paths[i] for i in where] if paths else f"{len(where)} arrays of {name!r}"
        raise CheckpointError(f"its arrays are not what was saved: {what}")
    return out

  def _latest(self, targets: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    steps = self.steps()
    problems = []
    for step in reversed(steps):
      try:
        return step, self._read(step, targets)
      # Whatever a damaged directory makes Orbax raise, an older checkpoint may be whole.
      except Exception as error:
        problems.append(f"step {step}: {type(error).__name__}: {str(error)[:300]}")
        log.warning("%s: checkpoint passed over: %s", self.directory, problems[-1])
    if problems:
      raise CheckpointError(
        f"{self.directory}: none of its {len(steps)} checkpoints can be read:\n  "
        + "\n  ".join(problems)
        + "\nput a copy of one there, or move the folder away to begin anew"
      )
    return None

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """The latest whole checkpoint as a state like `state`, in its shardings, and its position.

    For a run that goes on from there: later steps, which could not be read, are moved to a folder
    beside, '<directory>.damaged'. Returns None where there is no checkpoint at all.

    Raises:
      CheckpointError: there are some and none can be read; nothing was moved.
    """
    saved, base = self._divide(flatten_dict(state.all_params(), sep="/"))
    targets = {
      "params": _abstract(unflatten_dict(saved, sep="/")),
      "train": _abstract(_train_items(state)),
    }
    found = self._latest(targets)
    if found is None:
      self._set_aside_after(0)  # there is none; but a save that was killed may have left something
      return None
    self._at, found = found
    self._check_base(base, found["position"])
    self._set_aside_after(self._at)
    flat = flatten_dict(found["params"], sep="/") | base | found["train"].get("loss", {})
    restored = TrainState(
      step=found["train"]["step"],
      params={path: flat[path] for path in state.params},
      frozen={path: flat[path] for path in state.frozen},
      optimizer=found["train"]["optimizer"],
      window=found["train"]["window"],
    )
    return restored, found["position"]

  def _set_aside_after(self, step: int) -> None:
    later = [s for s in self.steps() if s > step]
    aside = self.directory.with_name(self.directory.name + ".damaged")
    try:
      self._store.set_aside(later, aside)
    except OSError as error:
      raise CheckpointError(
        f"{self.directory}: steps {later} cannot be read and cannot be moved to {aside} ({error}), "
        "and no later step can be saved beside them; move them away"
      ) from error
    if later:
      log.warning("%s: steps %s were moved to %s", self.directory, later, aside)

  def _check_base(self, base: dict[str, Any], position: dict[str, Any]) -> None:
    if fingerprint(base) != position["fingerprint"].get("base", []):
      raise CheckpointError(
        f"{self.directory}: its adapters are of another backbone than the one that was read; "
        "expected the checkpoint that the run began with, unchanged"
      )

  def restore_params(
    self, abstract: dict[str, Any], base: dict[str, jax.Array] | None = None
  ) -> dict[str, jax.Array]:
    """Parameters alone, by path, of the latest whole checkpoint.

    Args:
      abstract: path -> ShapeDtypeStruct with a sharding, of what was saved.
      base: path -> array, of what was not.

    Raises:
      CheckpointError: there is none, or it is of another base.
    """
    found = self._latest({"params": unflatten_dict(abstract, sep="/")})
    if found is None:
      raise CheckpointError(f"{self.directory}: no checkpoint; has the run saved one yet?")
    self._at, found = found
    self._check_base(base or {}, found["position"])
    return flatten_dict(found["params"], sep="/") | (base or {})

  @property
  def step(self) -> int | None:
    """The step that was read or saved last; None where none was."""
    return self._at

  def close(self) -> None:
    """Waits for what is being written."""
    self._store.close()


def _train_items(state: TrainState) -> dict[str, Any]:
  items = {"optimizer": state.optimizer, "window": state.window, "step": state.step}
  # Orbax writes no empty tree: most losses have nothing to learn.
  own = state.loss_params()
  return items | ({"loss": own} if own else {})


def _abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
