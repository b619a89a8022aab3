"""Several processes as one run, one on each host of a pod: what they agree on, and who writes.

Each runs the same program on the same data; arrays are divided over the devices of all. The first
process's workdir is the run's. Alone, a process agrees with itself at once.
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
  """Whether this is the process that writes and speaks."""
  return jax.process_index() == 0


def agree(value: Any) -> Any:
  """What JSON can hold, the first process's on all."""
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = multihost_utils.broadcast_one_to_all(np.asarray(len(text), np.int32))
  padded = np.zeros(int(size), np.uint8)
  padded[: len(text)] = text[: int(size)]
  return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


def gather(tree: Any) -> Any:
  """Arrays as numpy's, whole, on every process."""
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def broadcast(array: np.ndarray) -> np.ndarray:
  """The first process's array on all; of the others shape and dtype count."""
  if jax.process_count() == 1 or not array.size:
    return array
  # As bytes: JAX adds the others' zeros to it, and -0.0 + 0.0 is another number.
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  data = np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)
  return data.view(array.dtype).reshape(array.shape)


_LONGEST = 2000  # bytes of a problem that are told to the other processes


def first_problem(problem: str) -> str:
  """The first of the processes' problems that is not '', the same answer to all; '' = no problem.

  Unlike `agree`, which hands out what process 0 found, this asks every process.
  """
  if jax.process_count() == 1:
    return problem
  padded = np.zeros(_LONGEST, np.uint8)
  mine = np.frombuffer(problem.encode()[:_LONGEST], np.uint8)
  padded[: len(mine)] = mine
  found = multihost_utils.process_allgather(padded)
  told = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in np.asarray(found, np.uint8)]
  return next(filter(None, told), "")


def meet(what: str) -> None:
  """Waits until all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def is_shared(folder: Path) -> bool:
  """Whether all processes see process 0's folder, by the same name; it is made where missing."""
  if is_main():
    folder.mkdir(parents=True, exist_ok=True)
  if jax.process_count() == 1:
    return True
  token = agree(str(folder.absolute() / f".shared-{secrets.token_hex(8)}"))
  if is_main():
    Path(token).touch()
  multihost_utils.sync_global_devices("the token is there")
  here = (folder.absolute() / Path(token).name).exists() and str(folder.absolute()) in token
  seen = multihost_utils.process_allgather(np.asarray(here))
  if is_main():
    Path(token).unlink()
  return bool(seen.all())


def check_same(**values: Any) -> None:
  """Whether all processes were given the same.

  Args:
    values: what each has, by name: what JSON can hold.

  Raises:
    ValueError: on all, where one has another value; rows cut out of different batches would be no
      batch at all, or the processes would wait for one another for ever.
  """
  if jax.process_count() == 1:
    return
  first = agree(values)
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
  """The signal that asks the run to stop after a step: the same answer to all processes.

  Args:
    asked: the signal that this process was sent, or None. Of several processes JAX listens for
      SIGTERM alone.
    step: the same for all; every step must ask.
  """
  if jax.process_count() == 1:
    return asked
  return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
