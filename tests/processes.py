"""The commands as people run them: in processes of their own, with their exit codes and output.

Most of a short command's time is its imports, some three to five seconds. So a command is forked
from `multiprocessing`'s fork server, which has imported what all commands need and done nothing
else: there no flag is parsed and no device of JAX is started. With `fork=False` a command is a
process without it, for tests of what happens at the very start.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
_SECONDS = 200  # a command of a test takes at most some twenty
_IMPORTS = (
  "tests.processes",
  "experiments.launch",
  "matplotlib.pyplot",
  "rm_jax.api",
  "rm_jax.audit.run",
  "rm_jax.audit.writer",
  "rm_jax.curate.pipeline",
  "rm_jax.speed.plan",
  "rm_jax.train.loop",
  "tensorboardX",
  "transformers.models.auto.tokenization_auto",
  "transformers.models.bert.configuration_bert",
  "transformers.models.llama.configuration_llama",
  "transformers.core_model_loading",  # needs torch, and is imported where that is installed
)


def environment(devices: int = 1) -> dict[str, str]:
  """The environment of a command that has this many CPU devices."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "HF_HUB_OFFLINE": "1",
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def _server():
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(list(_IMPORTS))
  # The first process that is forked starts the server, with the environment of then.
  before = dict(os.environ)
  os.environ.update(environment())
  try:
    multiprocessing.forkserver.ensure_running()
  finally:
    os.environ.clear()
    os.environ.update(before)
  return context


def _run(module, flags, folder, variables, streams):
  for path, number in zip(streams, (1, 2), strict=True):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
  os.environ.clear()
  os.environ.update(variables)
  os.chdir(folder)
  jax.config.update("jax_num_cpu_devices", int(variables["JAX_NUM_CPU_DEVICES"]))
  sys.argv = [f"{module.replace('.', '/')}.py", *flags]
  sys.path.insert(0, folder)  # as `python -m` does
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  finally:
    atexit._run_exitfuncs()  # multiprocessing ends a process without them


class Command:
  """A running `python -m MODULE FLAGS`.

  Args:
    module: as 'experiments.train'.
    flags: its arguments, which are made strings.
    devices: number of CPU devices.
    folder: the working directory.
    variables: environment variables beside those of `environment`.
    fork: whether it is forked from the server.
  """

  def __init__(self, module, flags, *, devices=1, folder=ROOT, variables=None, fork=True):
    flags = [str(flag) for flag in flags]
    variables = environment(devices) | (variables or {})
    self._said = Path(tempfile.mkdtemp(prefix="command_"))
    streams = [self._said / "out", self._said / "err"]
    for path in streams:
      path.touch()  # so that a command which is killed at its start has said nothing
    if fork:
      arguments = (module, flags, str(folder), variables, [str(path) for path in streams])
      # A daemon ends with the tests. For another process, left by a failed test, they would wait.
      self._process = _server().Process(target=_run, args=arguments, daemon=True)
      self._process.start()
      return
    with open(streams[0], "wb") as out, open(streams[1], "wb") as err:
      self._process = subprocess.Popen(
        [sys.executable, "-m", module, *flags], cwd=folder, env=variables, stdout=out, stderr=err
      )

  @property
  def pid(self):
    return self._process.pid

  def poll(self):
    """The exit code, negative after a signal; None while the command runs."""
    if isinstance(self._process, subprocess.Popen):
      return self._process.poll()
    return self._process.exitcode

  def send_signal(self, number):
    os.kill(self.pid, number)

  def finish(self):
    """Waits for the end: (exit code, stdout, stderr)."""
    if isinstance(self._process, subprocess.Popen):
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._process.wait(_SECONDS)
    else:
      self._process.join(_SECONDS)
    code = self.poll()
    if code is None:
      self.send_signal(signal.SIGKILL)
    out, err = ((self._said / name).read_text() for name in ("out", "err"))
    shutil.rmtree(self._said)
    assert code is not None, f"not finished after {_SECONDS} s\n{err}"
    return code, out, err


def command(name, *flags, **options):
  """Starts `experiments.NAME`; see `Command`."""
  return Command(f"experiments.{name}", flags, **options)


def finish(process):
  """As `Command.finish`."""
  return process.finish()


def attempts(name, cases):
  """Runs a command with several sets of flags: {case: (exit code, stdout, stderr)}.

  Args:
    name: of the command.
    cases: {case: flags}.
  """
  return {case: command(name, *flags).finish() for case, flags in cases.items()}
