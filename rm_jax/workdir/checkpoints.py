"""Checkpoints of a run: written by Orbax, verified when they are read.

Orbax writes atomically but has no checksum over the data, and takes an empty step directory for the
latest step. So a checkpoint also has a fingerprint of every array and a digest of the rest. A
checkpoint that does not match them is skipped, with a warning, and the one before it is read. A run
that resumes from there moves the skipped ones to another folder, since Orbax saves no step that is
not later than all others.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from rm_jax.errors import UserError
from rm_jax.models.lora import is_base
from rm_jax.parallel.fingerprint import fingerprint
from rm_jax.workdir.state import TrainState
from rm_jax.workdir.stores import FirstProcessStore, SharedStore

log = logging.getLogger(__name__)


def _digest(position: dict[str, Any]) -> str:
  return hashlib.blake2b(json.dumps(position, sort_keys=True).encode(), digest_size=16).hexdigest()


class CheckpointError(UserError, RuntimeError):
  """A checkpoint could not be written or moved, or none can be read or fits the backbone."""


class Checkpoints:
  """The checkpoints of a workdir.

  Args:
    directory: made if it does not exist.
    keep: number of checkpoints, the latest, that are kept.
    adapters: whether to leave out the frozen backbone of LoRA adapters, which can be read again
      from where it came. Its fingerprint is saved, to tell whether it is the same.
    shared: whether all processes see the directory; if not, process 0 writes for all.
  """

  def __init__(
    self, directory: Path, keep: int = 2, *, adapters: bool = False, shared: bool = True
  ):
    self.directory = directory
    self._adapters = adapters
    self._at: int | None = None  # the step that was read or saved last
    self._store = (SharedStore if shared else FirstProcessStore)(directory, keep)

  def replace(self, state: TrainState, position: dict[str, Any]) -> None:
    """Writes a checkpoint of the parameters alone, from which no run resumes.

    Where its step is there already nothing is done: a resumed run comes to the same step again.
    Else later steps are first moved to the folder '<directory>.damaged'.

    Args: as `save`'s.

    Raises:
      CheckpointError: as `save`, or steps cannot be moved.
    """
    step = int(state.step)
    if step not in self.steps():
      self._set_aside_after(step)
      self.save(state, position, whole=False)

  def save(self, state: TrainState, position: dict[str, Any], *, whole: bool = True) -> None:
    """Writes a checkpoint, unless its step was read or saved last; returns once it is on disk.

    Args:
      state: saved as two pytrees, 'params' (the network's parameters, nested) and 'train' (the
        optimiser's state, the window of metrics, the step and the parameters of losses).
      whole: False leaves 'train' out, which only a run that resumes needs.
      position: a dictionary that JSON can hold: seed, fingerprint of the data and the like.

    Raises:
      CheckpointError: it could not be written; the earlier ones are untouched.
    """
    step = int(state.step)
    if step == self._at:
      return
    saved, base = self._divide(flatten_dict(state.all_params(), sep="/"))
    items = {"params": unflatten_dict(saved, sep="/")}
    if whole:
      items["train"] = _train_items(state)
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
    """(parameters that are saved, those of a frozen base that are not), both by path."""
    base = {p: x for p, x in params.items() if self._adapters and is_base(p)}
    return {p: x for p, x in params.items() if p not in base}, base

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return self._store.steps()

  def _read(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    out = self._store.read(step, targets)
    position = dict(out["position"])
    # Checkpoints of versions before the digest have none.
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

  def _latest(
    self, targets: dict[str, Any], only: int | None = None
  ) -> tuple[int, dict[str, Any]] | None:
    steps = [step for step in self.steps() if only in (None, step)]
    problems = []
    for step in reversed(steps):
      try:
        return step, self._read(step, targets)
      # Damaged files make Orbax raise all kinds of errors; an older checkpoint may be intact.
      except Exception as error:
        problems.append(f"step {step}: {type(error).__name__}: {str(error)[:300]}")
        # The error may also be a bug of ours, which only its traceback shows.
        traceback = bool(os.environ.get("RM_JAX_TRACEBACK"))
        log.warning(
          "%s: checkpoint passed over: %s", self.directory, problems[-1], exc_info=traceback
        )
    if problems:
      raise CheckpointError(
        f"{self.directory}: none of its {len(steps)} checkpoints can be read:\n  "
        + "\n  ".join(problems)
        + "\nput a copy of one there, or move the folder away to begin anew"
      )
    return None

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Restores the latest checkpoint that is intact, for a run that resumes from it.

    Later steps, which could not be read, are moved to the folder '<directory>.damaged'.

    Args:
      state: gives shapes, dtypes and shardings.

    Returns:
      (the restored state; the position saved with it), or None if there is no checkpoint.

    Raises:
      CheckpointError: there are checkpoints and none can be read, or the base of the adapters is
        another one, and nothing was moved; or steps cannot be moved.
    """
    saved, base = self._divide(flatten_dict(state.all_params(), sep="/"))
    targets = {
      "params": _abstract(unflatten_dict(saved, sep="/")),
      "train": _abstract(_train_items(state)),
    }
    found = self._latest(targets)
    if found is None:
      self._set_aside_after(0)  # deletes what an interrupted first save may have left
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

  def set_aside(self) -> None:
    """Moves all checkpoints to the folder '<directory>.damaged'.

    Raises:
      CheckpointError: they cannot be moved.
    """
    self._set_aside_after(-1)

  def _set_aside_after(self, step: int) -> None:
    """Moves the steps after `step` to the folder of damaged ones."""
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
    """Raises CheckpointError if adapters were trained on another base than `base`."""
    if fingerprint(base) != position["fingerprint"].get("base", []):
      raise CheckpointError(
        f"{self.directory}: its adapters are of another backbone than the one that was read; "
        "expected the checkpoint that the run began with, unchanged"
      )

  def restore_params(
    self,
    abstract: dict[str, Any],
    base: dict[str, jax.Array] | None = None,
    *,
    step: int | None = None,
  ) -> dict[str, jax.Array]:
    """The parameters of the latest intact checkpoint, by path, without the optimiser's state.

    Args:
      abstract: path -> ShapeDtypeStruct with a sharding, of the parameters that were saved.
      base: path -> array, of the adapters' base, which was not saved.
      step: the checkpoint of this step is read, and no other one; None = the latest intact one.

    Raises:
      CheckpointError: there is no checkpoint, none can be read, or the adapters were trained on
        another base.
    """
    found = self._latest({"params": unflatten_dict(abstract, sep="/")}, step)
    if found is None:
      which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
      raise CheckpointError(f"{self.directory}: {which}; has the run saved one yet?")
    self._at, found = found
    self._check_base(base or {}, found["position"])
    return flatten_dict(found["params"], sep="/") | (base or {})

  def restore_model(self, state: TrainState) -> dict[str, Any]:
    """The network's parameters, nested, of the latest intact checkpoint, placed as in `state`.

    Raises:
      CheckpointError: as `restore_params`.
    """
    saved, base = self._divide(flatten_dict(state.all_params(), sep="/"))
    return unflatten_dict(self.restore_params(_abstract(saved), base), sep="/")

  @property
  def step(self) -> int | None:
    """The step that was read or saved last; None if there was none."""
    return self._at

  def close(self) -> None:
    """Closes the files of the checkpoints."""
    self._store.close()


def _train_items(state: TrainState) -> dict[str, Any]:
  items = {"optimizer": state.optimizer, "window": state.window, "step": state.step}
  # Orbax cannot write an empty pytree, and most losses have no parameters.
  own = state.loss_params()
  return items | ({"loss": own} if own else {})


def _abstract(tree: Any) -> Any:
  """The pytree's shapes, dtypes and shardings."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
