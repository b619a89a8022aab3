"""How every command starts and ends: its flags are parsed, and a user's mistake is one message.

RM_JAX_TRACEBACK=1 in the environment shows the traceback as well.
"""

import errno
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging

from experiments import startup
from rm_jax.errors import InputError, UserError
from rm_jax.parallel.mesh import parse_mesh
from rm_jax.train.loop import Stopped

MULTIHOST = flags.DEFINE_bool(
  "multihost",
  False,
  "This is one of several processes of a run, which a TPU pod or a cluster manager numbers.",
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where no cluster manager says it."
)
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, likewise.")
PROCESS = flags.DEFINE_integer("process", None, "This process's number, from 0, likewise.")

MESH_HELP = (
  "Devices along each axis: 'fsdp=8', 'data=2,fsdp=128'; an axis that is not named is 1, -1 is "
  "what is left. In place of the config's mesh; '' = the config's."
)
COLUMNS_HELP = (
  "Where columns have other names: ours=theirs, as 'prompt=question,chosen=answers.0.text'."
)
DTYPES = ("float32", "bfloat16", "float16")  # of --dtype

_FLAG_PARSERS = {"absl", "ml_collections"}


def _is_mistake(error: BaseException) -> bool:
  """Whether the error is about the user's input or surroundings, and its message says it all.

  Of the operating system's errors these are the ones that name a path, and a full disk. All else
  is our bug.
  """
  if isinstance(error, OSError):
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, UserError) or error.filename is not None or full
  return isinstance(error, UserError)


def _is_about_flags(error: BaseException) -> bool:
  """Whether an error was raised by the flags' own parsers, and not by code of a config file."""
  _, *frames = traceback.walk_tb(error.__traceback__)  # the first is of who caught it
  packages = {frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames}
  return bool(packages) and packages <= _FLAG_PARSERS


def _fail(error: BaseException, code: int) -> None:
  if os.environ.get("RM_JAX_TRACEBACK"):
    traceback.print_exc()
  text = error.args[0] if isinstance(error, KeyError) and error.args else error
  print(f"error: {text}", file=sys.stderr)
  sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    # A config of a file that could not be opened raises when it is first used: use it now.
    for value in flags.FLAGS.flag_values_dict().values():
      getattr(value, "is_locked", None)
  # ml_collections raises KeyError, AttributeError and others where a config has no such field.
  except Exception as error:
    if not _is_about_flags(error):
      raise
    _fail(error, 2)
  if len(rest) > 1:
    _fail(InputError(f"{rest[1]!r} is no flag; flags begin with --"), 2)
  return rest


def _log_ours() -> None:
  """Our own messages go to stderr, of the libraries' only warnings: Orbax logs 50 lines a save."""
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

  Small ones too: JAX leaves out what compiles in less than a second, and a run has many of those.
  """
  if not jax.config.jax_compilation_cache_dir:
    home = os.environ.get("RM_JAX_CACHE") or Path.home() / ".cache" / "rm_jax"
    jax.config.update("jax_compilation_cache_dir", str(Path(home) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _join(hosts: bool) -> None:
  """Makes this process one of several, where a flag says so."""
  given = [x is not None for x in (COORDINATOR.value, PROCESSES.value, PROCESS.value)]
  if not (MULTIHOST.value or any(given)):
    return
  if not hosts:
    raise InputError("this command is one process; only experiments.train is several")
  if any(given) and not all(given):
    raise InputError(
      f"--coordinator={COORDINATOR.value} --processes={PROCESSES.value} --process={PROCESS.value}: "
      "expected all three, or --multihost alone where the cluster says them"
    )
  try:
    jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
  except (ValueError, RuntimeError) as error:
    raise InputError(f"this process cannot join the others: {error}") from error


def with_mesh(config: Any, text: str) -> Any:
  """The config with the mesh that --mesh says.

  Args:
    config: of an experiment; changed in place.
    text: as `parse_mesh` takes it; '' leaves the config's own.

  Raises:
    InputError: it is not of that form.
  """
  if text:
    config.mesh.update(parse_mesh(text))
  return config


def output_folder(flag: str, path: str | Path) -> Path:
  """Makes the folder that a flag names, before any work whose results it gets.

  Raises:
    InputError: it is a file, or cannot be written in.
  """
  path = Path(path)
  if path.exists() and not path.is_dir():
    raise InputError(f"--{flag}={path} is a file; expected a folder, or a new name for one")
  try:
    path.mkdir(parents=True, exist_ok=True)
    # Permissions do not say all: a file system may be full, or read-only.
    tempfile.TemporaryFile(dir=path).close()
  except OSError as error:
    raise InputError(f"--{flag}={path} cannot be written in: {error.strerror}") from None
  return path


def output_file(flag: str, path: str | Path) -> Path:
  """As `output_folder`, for the folder of a file that a flag names. Returns the file's path."""
  path = Path(path)
  if path.is_dir():
    raise InputError(f"--{flag}={path} is a folder; expected the path of a file")
  output_folder(flag, path.parent)
  return path


def launch(main: Callable[[], None], *, hosts: bool = False) -> None:
  """Runs a command's `main` after its flags are parsed.

  Args:
    main: of the command.
    hosts: whether the command can be one of several processes.
  """

  def run(_argv):
    _log_ours()
    try:
      _join(hosts)
      main()
    except Exception as error:
      if not _is_mistake(error):
        raise
      _fail(error, 128 + error.signum if isinstance(error, Stopped) else 1)

  jax.config.config_with_absl()
  _keep_compiled()
  startup.after_imports()
  app.run(run, flags_parser=_parse)
