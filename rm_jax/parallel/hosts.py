"""Communication between the processes of one run, of which each host of a pod has one.

Every process runs the same program on the same data, and arrays are sharded over the devices of
all. Process 0 writes the workdir; if all share its folder each process writes its own shards of
checkpoints. All these functions but `is_main` are collective: every process has to call them, in
the same order, or the others wait forever. In a run of one process they return at once.
"""

import json
import secrets
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rm_jax.errors import InputError


def is_main() -> bool:
  """Whether this is process 0, which writes files and shows progress."""
  return jax.process_index() == 0


def broadcast_json(value: Any) -> Any:
  """Process 0's value, on every process; those of the others are ignored.

  Args:
    value: anything that JSON can hold.
  """
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = multihost_utils.broadcast_one_to_all(np.asarray(len(text), np.int32))
  padded = np.zeros(int(size), np.uint8)
  padded[: len(text)] = text[: int(size)]
  return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


def gather(tree: Any) -> Any:
  """All-gathers a pytree of sharded arrays: whole numpy arrays on every process."""
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def broadcast_array(array: np.ndarray) -> np.ndarray:
  """Process 0's array, on every process; the others give one of the same shape and dtype."""
  if jax.process_count() == 1 or not array.size:
    return array
  # Sent as bytes, because JAX broadcasts by adding up process 0's array and zeros of the others,
  # and -0.0 + 0.0 is +0.0.
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  data = np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)
  return data.view(array.dtype).reshape(array.shape)


_LONGEST = 2000  # most bytes of an error message that are sent to other processes


def first_problem(problem: str) -> str:
  """The first error message of any process, on every process; '' if no process has one.

  Unlike `broadcast_json`, which sends what process 0 has, this asks every process.

  Args:
    problem: this process's error message; '' = none.
  """
  if jax.process_count() == 1:
    return problem
  padded = np.zeros(_LONGEST, np.uint8)
  mine = np.frombuffer(problem.encode()[:_LONGEST], np.uint8)
  padded[: len(mine)] = mine
  found = multihost_utils.process_allgather(padded)
  told = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in np.asarray(found, np.uint8)]
  return next(filter(None, told), "")


def barrier(name: str) -> None:
  """Waits until all processes have called it with the same name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def is_shared(folder: Path) -> bool:
  """Whether `folder` is the same path and the same folder for all processes.

  Process 0 makes the folder if it is missing and puts a file with a random name there, for which
  the others look.
  """
  if is_main():
    folder.mkdir(parents=True, exist_ok=True)
  if jax.process_count() == 1:
    return True
  token = broadcast_json(str(folder.absolute() / f".shared-{secrets.token_hex(8)}"))
  if is_main():
    Path(token).touch()
  barrier("the token is there")
  here = (folder.absolute() / Path(token).name).exists() and str(folder.absolute()) in token
  seen = multihost_utils.process_allgather(np.asarray(here))
  if is_main():
    Path(token).unlink()
  return bool(seen.all())


def check_same(**values: Any) -> None:
  """Checks that all processes have equal values (of the config, of the data's fingerprint).

  Otherwise their rows would be parts of different batches, or the processes would run different
  programs and wait for one another forever.

  Args:
    values: by name, anything that JSON can hold.

  Raises:
    InputError: on all processes, if one has another value than process 0.
  """
  if jax.process_count() == 1:
    return
  first = broadcast_json(values)
  mine = json.loads(json.dumps(values))
  same = multihost_utils.process_allgather(np.asarray([mine[n] == first[n] for n in values]))
  if not same.all():
    wrong = [name for n, name in enumerate(values) if not same[:, n].all()]
    others = np.flatnonzero(~same.all(axis=1)).tolist()
    raise InputError(
      f"processes {others} have another {' and '.join(wrong)} than process 0; expected the same "
      "command and the same files on every host"
    )


def asked_to_stop(asked: int | None, step: int) -> int | None:
  """The signal by which a run is to stop after this step, or None: the same on all processes.

  Args:
    asked: the signal that this process received, or None. It is used only in a run of one process.
      With several, JAX's preemption service is asked, which listens on every host for SIGTERM only.
    step: number of this step, the same on all processes; they must all ask after every step.
  """
  if jax.process_count() == 1:
    return asked
  return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
