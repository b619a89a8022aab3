"""How every command starts and ends: its flags are parsed, and an error of the user is one message.

RM_JAX_TRACEBACK=1 in the environment shows the traceback of such an error as well.
"""

import errno
import logging
import os
import re
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
from rm_jax.storage.files import home
from rm_jax.train.loop import Stopped

MULTIHOST = flags.DEFINE_bool(
  "multihost",
  False,
  "This is one of several processes of a run, which a TPU pod or a cluster manager numbers.",
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where no cluster manager says it."
)
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
PROCESS = flags.DEFINE_integer(
  "process", None, "This process's number, from 0, with --coordinator."
)

MESH_HELP = (
  "Devices along each axis: 'fsdp=8', 'data=2,fsdp=128'; an axis that is not named is 1, -1 is "
  "what is left. In place of the config's mesh; '' = the config's."
)
COLUMNS_HELP = (
  "Where columns have other names: ours=theirs, as 'prompt=question,chosen=answers.0.text'."
)
VERDICT_HELP = (
  "Two words, as 'Yes,No', by which a language model without a reward head judges each response: "
  "its reward is the difference of their logits as the answer to --question."
)
QUESTION_HELP = "What --verdict answers; '' = whether the response is a good one."
DTYPES = ("float32", "bfloat16", "float16")  # values of --dtype of score, evaluate and audit

_FLAG_PARSERS = {"absl", "ml_collections"}


def _is_mistake(error: BaseException) -> bool:
  """Whether an error is about the user's input or machine, so that its message alone is enough.

  These are `UserError`s, and of the operating system's errors those that name a path and those of a
  full disk or quota. Any other error is taken to be a bug of rm_jax, unless it is `_out_of_memory`.
  """
  if isinstance(error, OSError):
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, UserError) or error.filename is not None or full
  return isinstance(error, UserError)


def _is_about_flags(error: BaseException) -> bool:
  """Whether an error was raised by the flags' own parsers, and not by code of a config file."""
  _, *frames = traceback.walk_tb(error.__traceback__)  # the first is of the function with `except`
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
    # If a config file could not be opened, its flag's value raises an error at the first access:
    # access each value now.
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
  """Logs rm_jax's own messages to stderr, but of other libraries only warnings and errors.

  Orbax alone logs 50 lines for each checkpoint.
  """
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
  """Has JAX keep compiled programs on disk for the next process, beside rm_jax's other caches.

  By default JAX keeps only programs that take a second or more to compile, but a run has many
  smaller ones. A cache folder that JAX's own settings name is left as it is.
  """
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(home() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _join(hosts: bool) -> None:
  """Joins this process with the others of the run, if a flag says that it is one of several.

  Args:
    hosts: whether the command can be one of several processes.

  Raises:
    InputError: the command cannot, the flags are incomplete or have wrong values, or the other
      processes are not reached.
  """
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
  if any(given):
    if not re.fullmatch(r".+:[1-9]\d{0,4}", COORDINATOR.value):
      raise InputError(
        f"--coordinator={COORDINATOR.value}: expected HOST:PORT, as in 10.0.0.1:8476"
      )
    if not 0 <= PROCESS.value < PROCESSES.value:
      raise InputError(
        f"--process={PROCESS.value} of --processes={PROCESSES.value}: expected a number from 0, "
        "under that of the processes"
      )
  try:
    jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
  except (ValueError, RuntimeError) as error:
    raise InputError(f"this process cannot join the others: {error}") from error


def check_devices() -> None:
  """Makes JAX look for its devices, so that a lack of them is an error of the user's.

  Raises:
    InputError: JAX_PLATFORMS asks for devices that are not there or that JAX does not know.
  """
  try:
    jax.devices()
  # JAX raises the second, without a message, where it finds no GPU.
  except (RuntimeError, AssertionError) as error:
    asked = jax.config.jax_platforms
    why = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".") or "there is none"
    raise InputError(
      f"no device, with JAX_PLATFORMS={asked or ''}: {why}; expected 'cpu', or the devices and "
      "JAX's plugin for them (docs/pods.md), or '' for what is there"
    ) from error


def _out_of_memory(error: BaseException) -> InputError | None:
  """A message for an array or a program that no device has the memory for; None: another error."""
  said = str(error)
  if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in said:
    return None
  line = said[said.index("RESOURCE_EXHAUSTED") :].splitlines()[0]
  return InputError(
    f"the device's memory is too small: {line[:300]}. In training, a smaller --config.data.cells, "
    "--config.model.remat=full or more devices mend it (experiments.plan says what a step takes); "
    "in other commands --dtype=bfloat16"
  )


def with_mesh(config: Any, text: str) -> Any:
  """The config with the mesh that --mesh says.

  Args:
    config: an experiment's config, which is changed in place.
    text: the flag's value, as `parse_mesh` in parallel/mesh.py takes it, such as 'data=2,fsdp=4';
      '' leaves the config's own mesh.

  Raises:
    InputError: the text is not of that form.
  """
  if text:
    config.mesh.update(parse_mesh(text))
  return config


def output_folder(flag: str, path: str | Path) -> Path:
  """Makes the folder that a flag names; to be called before the work whose results go there.

  Args:
    flag: name of the flag, for the error.
    path: the flag's value.

  Raises:
    InputError: the path is a file, or no file can be written in the folder.
  """
  path = Path(path)
  if path.exists() and not path.is_dir():
    raise InputError(f"--{flag}={path} is a file; expected a folder, or a new name for one")
  try:
    path.mkdir(parents=True, exist_ok=True)
    # Permissions do not say all: a file system may be full, or read-only.
    tempfile.TemporaryFile(dir=path).close()
  except OSError as error:
    raise InputError(f"--{flag}={path} cannot be written in: {error.strerror}") from error
  return path


def output_file(flag: str, path: str | Path) -> Path:
  """Makes the folder of a file that a flag names, as `output_folder`; returns the file's path.

  Raises:
    InputError: the path is a folder, or as `output_folder`.
  """
  path = Path(path)
  if path.is_dir():
    raise InputError(f"--{flag}={path} is a folder; expected the path of a file")
  output_folder(flag, path.parent)
  return path


def launch(main: Callable[[], None], *, hosts: bool = False, devices: bool = True) -> None:
  """Parses a command's flags and runs its `main`; an error of the user ends it with one message.

  The exit status is then 2 for the flags, 128 + the signal's number for a run that a signal
  stopped, and else 1.

  Args:
    main: the command's function.
    hosts: whether the command can be one of several processes of a run.
    devices: whether it always computes on JAX's devices, which are then checked first.
  """

  def run(_argv):
    _log_ours()
    try:
      _keep_compiled()
      _join(hosts)
      if devices:
        check_devices()
      main()
    except Exception as error:
      if not _is_mistake(error):
        if not (full := _out_of_memory(error)):
          raise
        error = full
      _fail(error, 128 + error.signum if isinstance(error, Stopped) else 1)

  jax.config.config_with_absl()
  startup.after_imports()
  app.run(run, flags_parser=_parse)
