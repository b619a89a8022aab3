"""Where checkpoints are written: by all processes into one folder, or by process 0 into its own."""

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


class Together:
  """Orbax's own way: every process writes and reads its part, in a folder that all see.

  Args:
    directory: made where it does not exist.
    keep: how many of the latest stay.
    multiprocessing: Orbax's options.
  """

  def __init__(
    self,
    directory: Path,
    keep: int,
    multiprocessing: ocp.options.MultiprocessingOptions | None = None,
  ):
    # Orbax makes no folder for a part of the processes.
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
    """Steps with a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, items: dict[str, Any], position: dict[str, Any]) -> None:
    """Writes trees of arrays and what JSON can hold; returns once it is on disk.

    Raises:
      OSError, ValueError, RuntimeError: it could not be written.
    """
    saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    args = ocp.args.Composite(position=ocp.args.JsonSave(position), **saved)
    # It writes nothing, and says so by its answer alone, where a later step is there.
    if not self._manager.save(step, args=args):
      raise RuntimeError(f"Orbax did not write it; there are steps {self.steps()}")
    # Orbax writes in the background and tells of a failure only when it is waited for.
    self._manager.wait_until_finished()

  def read(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """Name -> tree like its target's (arrays, or ShapeDtypeStructs with shardings), and 'position'.

    Raises whatever a damaged folder makes Orbax raise, and OSError where it does so on another
    process.
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
    """Moves steps into another folder, and knows them no more; what a killed save left goes.

    Orbax takes any folder with a number for a step, and saves none that is not later than all.

    Args:
      steps: may have no whole folder.
      to: made where there is something to move; what has the same name there stays beside it.

    Raises:
      OSError: they cannot be moved.
    """
    problem = ""
    if is_main():
      try:
        self._move(steps, to)
      # Whatever it is, the others wait to be told.
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
    """Lets go of it."""
    self._manager.close()


class FromFirst:
  """Process 0 alone writes, what the others hand over, and hands out what it reads.

  For hosts that share no folder. What is written is what `Together` writes, but passes through the
  memory of process 0, whole.

  Args:
    directory: of process 0; that of the others is not looked at.
    keep: how many of the latest stay.
  """

  def __init__(self, directory: Path, keep: int):
    self._store = None
    if is_main():
      only = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
      self._store = Together(directory, keep, only)

  def steps(self) -> list[int]:
    """As `Together.steps`."""
    return broadcast_json(self._store and self._store.steps())

  def save(self, step: int, items: dict[str, Any], position: dict[str, Any]) -> None:
    """As `Together.save`; OSError on all where process 0 fails."""
    # Leaf by leaf, so that no process but the first holds more than one of them.
    leaves, structure = jax.tree.flatten(items)
    whole = [x if is_main() else None for x in map(gather, leaves)]
    problem = ""
    if self._store:
      try:
        self._store.save(step, jax.tree.unflatten(structure, whole), position)
      # Whatever it is, the others wait to be told.
      except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem := broadcast_json(problem):
      raise OSError(problem)

  def read(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """As `Together.read`; OSError on all where process 0 fails."""
    leaves, structure = jax.tree.flatten(targets)
    problem, out = "", {"position": None}
    if self._store:
      plain = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), targets)
      try:
        out = self._store.read(step, plain)
      except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem := broadcast_json(problem):
      raise OSError(problem)
    position = broadcast_json(out.pop("position"))
    found = jax.tree.leaves(out) or [None] * len(leaves)
    placed = [_hand_out(x, like) for x, like in zip(found, leaves, strict=True)]
    return jax.tree.unflatten(structure, placed) | {"position": position}

  def set_aside(self, steps: list[int], to: Path) -> None:
    """As `Together.set_aside`."""
    problem = ""
    if self._store:
      try:
        self._store.set_aside(steps, to)
      except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem := broadcast_json(problem):
      raise OSError(problem)

  def close(self) -> None:
    """As `Together.close`."""
    if self._store:
      self._store.close()


def _hand_out(mine: np.ndarray | None, like: jax.ShapeDtypeStruct) -> jax.Array:
  array = broadcast_array(np.zeros(like.shape, like.dtype) if mine is None else np.asarray(mine))
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
