"""Two ways to write checkpoints with Orbax, for hosts that share a folder and hosts that do not."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rm_jax.parallel.hosts import (
  barrier,
  broadcast_array,
  broadcast_json,
  first_problem,
  gather,
  is_main,
)


class SharedStore:
  """Every process writes and reads its own shards, in a folder that all processes see.

  Args:
    directory: of the checkpoints; made if it does not exist.
    keep: number of checkpoints, the latest, that are kept.
    multiprocessing: Orbax's options; by default all processes take part.
  """

  def __init__(
    self,
    directory: Path,
    keep: int,
    multiprocessing: ocp.options.MultiprocessingOptions | None = None,
  ):
    # Orbax does not create the folder if only some of the processes take part.
    create = multiprocessing is None
    if not create:
      directory.mkdir(parents=True, exist_ok=True)
    self._directory, self._all = directory, create
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      create=create,
      multiprocessing_options=multiprocessing or ocp.options.MultiprocessingOptions(),
    )
    self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, items: dict[str, Any], position: dict[str, Any]) -> None:
    """Writes a checkpoint; returns once it is on disk.

    Args:
      step: of the run.
      items: name -> pytree of arrays.
      position: a dictionary that JSON can hold.

    Raises:
      OSError, ValueError, RuntimeError: it could not be written.
    """
    saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    args = ocp.args.Composite(position=ocp.args.JsonSave(position), **saved)
    # If a later step exists, Orbax writes nothing and returns False.
    if not self._manager.save(step, args=args):
      raise RuntimeError(f"Orbax did not write it; there are steps {self.steps()}")
    # Orbax writes in a background thread, whose errors only this call raises.
    self._manager.wait_until_finished()

  def read(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """Reads a checkpoint.

    Args:
      step: of the checkpoint.
      targets: name -> pytree of arrays, or of ShapeDtypeStructs with shardings, to restore to.

    Returns:
      name -> pytree as its target, and 'position'.

    Raises:
      Exception: whatever Orbax raises on a damaged folder; OSError on a process that could read its
        part while another could not.
    """
    args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    failed, out = None, None
    try:
      out = self._manager.restore(
        step, args=ocp.args.Composite(position=ocp.args.JsonRestore(), **args)
      )
    except Exception as error:
      failed = error
    if self._all:
      problem = first_problem(f"{type(failed).__name__}: {failed}" if failed else "")
      if problem and not failed:
        raise OSError(problem)
    if failed:
      raise failed
    return {name: out[name] for name in [*targets, "position"]}

  def set_aside(self, steps: list[int], to: Path) -> None:
    """Moves steps to another folder, and deletes what an interrupted save left.

    Orbax takes any folder whose name is a number for a step and saves no step that is not later
    than all of them, so that a damaged last step would keep the run from saving.

    Args:
      steps: to be moved; their folders may be incomplete or missing.
      to: the other folder, made if there is something to move. A step that is there already stays,
        and the new one gets a name with a number behind it.

    Raises:
      OSError: they cannot be moved, or what was left cannot be deleted.
    """
    problem = ""
    if is_main():
      try:
        self._move(steps, to)
      # Not raised here: the other processes wait for the outcome below.
      except OSError as error:
        problem = f"{error}"
    if self._all:
      problem = broadcast_json(problem)
    if problem:
      raise OSError(problem)
    if self._all:
      barrier("steps set aside")
    self._manager.reload()

  def _move(self, steps: list[int], to: Path) -> None:
    for path in sorted(self._directory.iterdir()):
      if ".orbax-checkpoint-tmp" in path.name:
        shutil.rmtree(path)
      elif path.name.isdigit() and int(path.name) in steps:
        to.mkdir(exist_ok=True)
        target, again = to / path.name, 0
        while target.exists():
          again += 1
          target = to / f"{path.name}.{again}"
        os.rename(path, target)

  def close(self) -> None:
    """Closes Orbax's manager."""
    self._manager.close()


class FirstProcessStore:
  """Process 0 writes the arrays of all processes, and broadcasts what it reads.

  For hosts that do not share a folder. The files are the same as `SharedStore`'s, but whole arrays
  pass through the memory of the processes: in process 0 all of them at once, in others one by one.

  Args:
    directory: of the checkpoints on process 0; the other processes ignore theirs.
    keep: number of checkpoints, the latest, that are kept.
  """

  def __init__(self, directory: Path, keep: int):
    self._store = None
    if is_main():
      only = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
      self._store = SharedStore(directory, keep, only)

  def steps(self) -> list[int]:
    """See `SharedStore.steps`."""
    return broadcast_json(self._store and self._store.steps())

  def save(self, step: int, items: dict[str, Any], position: dict[str, Any]) -> None:
    """See `SharedStore.save`; if process 0 fails, all processes raise OSError."""
    # One leaf at a time, so that only process 0 holds more than one whole array.
    leaves, structure = jax.tree.flatten(items)
    whole = [x if is_main() else None for x in map(gather, leaves)]
    problem, failed = "", None
    if self._store:
      try:
        self._store.save(step, jax.tree.unflatten(structure, whole), position)
      # Not raised here: the other processes wait for the outcome below.
      except Exception as error:
        problem, failed = f"{type(error).__name__}: {error}", error
    if problem := broadcast_json(problem):
      raise OSError(problem) from failed

  def read(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """See `SharedStore.read`; if process 0 fails, all processes raise OSError."""
    leaves, structure = jax.tree.flatten(targets)
    problem, failed, out = "", None, {"position": None}
    if self._store:
      plain = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), targets)
      try:
        out = self._store.read(step, plain)
      except Exception as error:
        problem, failed = f"{type(error).__name__}: {error}", error
    if problem := broadcast_json(problem):
      raise OSError(problem) from failed
    position = broadcast_json(out.pop("position"))
    found = jax.tree.leaves(out) or [None] * len(leaves)
    placed = [_scatter(x, like) for x, like in zip(found, leaves, strict=True)]
    return jax.tree.unflatten(structure, placed) | {"position": position}

  def set_aside(self, steps: list[int], to: Path) -> None:
    """See `SharedStore.set_aside`; if process 0 fails, all processes raise OSError."""
    problem, failed = "", None
    if self._store:
      try:
        self._store.set_aside(steps, to)
      except Exception as error:
        problem, failed = f"{type(error).__name__}: {error}", error
    if problem := broadcast_json(problem):
      raise OSError(problem) from failed

  def close(self) -> None:
    """See `SharedStore.close`."""
    if self._store:
      self._store.close()


def _scatter(mine: np.ndarray | None, like: jax.ShapeDtypeStruct) -> jax.Array:
  """Process 0's array, sharded as `like`; the other processes give None."""
  array = broadcast_array(np.zeros(like.shape, like.dtype) if mine is None else np.asarray(mine))
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
