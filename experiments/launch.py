"""How every command starts: flags are parsed, and a user's mistake is one message, not a traceback.

RM_JAX_TRACEBACK=1 shows the traceback as well.
"""

# ruff: noqa: E402
import gc

# Imports make hardly any garbage; to look for it is a fifth of their time.
gc.disable()

import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags
from absl import logging as absl_logging

from rm_jax.train.loop import NotFiniteError, Stopped
from rm_jax.workdir.checkpoints import CheckpointError

gc.enable()

MULTIHOST = flags.DEFINE_bool(
  "multihost", False, "One of several processes, of a TPU pod or a cluster that tells JAX which."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where none tells.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, where none tells.")
PROCESS = flags.DEFINE_integer("process", None, "Which this one is, from 0, where none tells.")

# Memory that all threads share is waited for where they are many: of sixteen, beside a GPU, the
# compiler took four times as long.
_FEW_CORES = 8
# What wrong input, files or flags raise. Anything else is our bug, and keeps its traceback.
_MISTAKES = (ValueError, KeyError, AttributeError, TypeError, OSError, flags.Error, NotFiniteError)


def _fail(error: BaseException, code: int) -> None:
  if os.environ.get("RM_JAX_TRACEBACK"):
    traceback.print_exc()
  text = error.args[0] if isinstance(error, KeyError) and error.args else error
  print(f"error: {text}", file=sys.stderr)
  sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
  except _MISTAKES as error:
    _fail(error, 2)
  if len(rest) > 1:
    _fail(ValueError(f"{rest[1]!r} is no flag; flags begin with --"), 2)
  return rest


def _log_ours() -> None:
  """Our own messages on stderr; of the libraries' only warnings (Orbax has 50 lines a save)."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  logging.getLogger().setLevel(logging.WARNING)
  ours = logging.getLogger("rm_jax")
  ours.setLevel(logging.INFO)
  ours.propagate = False
  if not ours.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname).1s %(message)s"))
    ours.addHandler(handler)


def _keep_compiled() -> None:
  """Keeps compiled programs for the next process, by default beside the other caches.

  Small ones, too: JAX leaves out what takes less than a second, and a run has many of those.
  """
  if not jax.config.jax_compilation_cache_dir:
    home = os.environ.get("RM_JAX_CACHE") or Path.home() / ".cache" / "rm_jax"
    jax.config.update("jax_compilation_cache_dir", str(Path(home) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _on_small_cpu() -> bool:
  """Whether JAX can only take a CPU, for it is told so or has no other's package, of few cores."""
  if (os.cpu_count() or 1) > _FEW_CORES:
    return False
  if jax.config.jax_platforms:
    return jax.config.jax_platforms == "cpu"
  if importlib.metadata.entry_points(group="jax_plugins"):
    return False
  return not importlib.util.find_spec("libtpu")


def _keep_memory() -> None:
  """Has the C library keep freed memory for the next step.

  Left alone, glibc hands every large block back, and the kernel clears its pages anew: on a CPU a
  fifth to a quarter of a training step. What is kept is no more than the run's peak.
  """
  try:
    libc = ctypes.CDLL("libc.so.6")
  except OSError:  # another C library has other habits
    return
  for parameter, value in (
    (-4, 0),  # M_MMAP_MAX: no block is mapped by itself, to be unmapped when freed
    (-8, 1),  # M_ARENA_MAX: other arenas could only map theirs
    (-1, -1),  # M_TRIM_THRESHOLD, none: the heap never shrinks, not even from over 2 GiB
  ):
    libc.mallopt(parameter, value)


def _join(hosts: bool) -> None:
  """Makes this process one of several, where a flag says so."""
  given = [x is not None for x in (COORDINATOR.value, PROCESSES.value, PROCESS.value)]
  if not (MULTIHOST.value or any(given)):
    return
  if not hosts:
    raise ValueError("this command is one process; only experiments.train is several")
  if any(given) and not all(given):
    raise ValueError(
      f"--coordinator={COORDINATOR.value} --processes={PROCESSES.value} --process={PROCESS.value}: "
      "expected all three, or --multihost alone where the cluster says them"
    )
  jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)


def output_folder(flag: str, path: str | Path) -> Path:
  """Makes the folder that a flag names, before any work that it is to hold.

  Raises:
    ValueError: it is a file, or cannot be written in.
  """
  path = Path(path)
  if path.exists() and not path.is_dir():
    raise ValueError(f"--{flag}={path} is a file; expected a folder, or a new name for one")
  try:
    path.mkdir(parents=True, exist_ok=True)
    # Rights are not all: a file system may be full, or read-only.
    tempfile.TemporaryFile(dir=path).close()
  except OSError as error:
    raise ValueError(f"--{flag}={path} cannot be written in: {error.strerror}") from None
  return path


def output_file(flag: str, path: str | Path) -> Path:
  """As `output_folder`, of a file that a flag names: the folder it is to stand in."""
  path = Path(path)
  if path.is_dir():
    raise ValueError(f"--{flag}={path} is a folder; expected the path of a file")
  output_folder(flag, path.parent)
  return path


def launch(main: Callable[[], None], *, hosts: bool = False) -> None:
  """Runs a command's `main` after its flags are parsed.

  Args:
    main: of the command.
    hosts: it can be one of several processes.
  """

  def run(_argv):
    gc.freeze()  # what was imported stays
    _log_ours()
    try:
      _join(hosts)
      main()
    except Stopped as stopped:
      _fail(stopped, 128 + stopped.signum)
    except (ValueError, OSError, NotFiniteError, CheckpointError) as error:
      _fail(error, 1)

  jax.config.config_with_absl()
  _keep_compiled()
  if _on_small_cpu():
    _keep_memory()
  app.run(run, flags_parser=_parse)
