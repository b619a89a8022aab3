"""How a command's process is set up for speed: three settings, and what each was measured to save.

The settings are large pages, no garbage collection during imports, and freed memory that the
process keeps. A command does the same without them, only slower. What each saves was measured on
two cores that were busy with other work, in pairs of processes that differ in this setting alone,
as user + system CPU seconds, which other processes disturb less than wall time. "A step" is a
training step of six layers of SmolLM2-135M's size on 16 pairs of the generated world, which takes
3.3 s without the settings.
"""

import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping

_TUNABLE = "glibc.malloc.hugetlb"
# Freed memory is kept only on CPUs of at most this many cores: the setting leaves malloc a single
# arena, which one thread at a time can use; with 16 threads it made compilation 4 times slower.
_FEW_CORES = 8


def before_imports() -> None:
  """Asks for large pages, and stops garbage collection; to be called before any large import.

  If the process's environment does not ask for large pages yet, and its C library can, the process
  starts itself again with one that does, and this call does not return.

  Imports make many objects and hardly any garbage: without garbage collection the imports of JAX,
  transformers and `rm_jax` take 2.27 instead of 2.70 s (medians of 7 pairs of processes).
  """
  if environment := with_large_pages(os.environ, _libc()):
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
  gc.disable()


def after_imports() -> None:
  """Starts garbage collection again and, on a CPU of few cores, has malloc keep freed memory."""
  gc.freeze()  # What was imported stays: no later collection needs to look at it.
  gc.enable()
  if on_small_cpu():
    _keep_freed_memory()


def with_large_pages(environment: Mapping[str, str], libc: str) -> dict[str, str] | None:
  """The environment in which glibc's malloc asks the kernel for large pages.

  Pages of 2 MiB instead of 4 KiB make a step's large buffers faster to address. This saved 1, 2, 4
  and 7 % of a step in four pairs of processes, and costs about 2 s once in a process, in which the
  kernel clears those pages. malloc reads the setting before Python starts, so the process has to
  start again.

  Args:
    environment: the process's environment. If the user has set the same tunable, it stays.
    libc: what `os.confstr("CS_GNU_LIBC_VERSION")` returns, such as 'glibc 2.36'; '' for other C
      libraries.

  Returns:
    The new environment; None where it has the setting already, or the C library does not know it.
  """
  name, _, version = libc.partition(" ")
  set_already = environment.get("GLIBC_TUNABLES", "")
  if name != "glibc" or _TUNABLE in set_already:
    return None
  if tuple(int(x) for x in version.split(".")[:2]) < (2, 35):
    return None
  tunables = ":".join(filter(None, (set_already, f"{_TUNABLE}=1")))
  return {**environment, "GLIBC_TUNABLES": tunables}


def _libc() -> str:
  if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
    return ""
  return os.confstr("CS_GNU_LIBC_VERSION") or ""


def on_small_cpu() -> bool:
  """Whether JAX runs on a CPU of few cores: it is told to, or no accelerator's package is found."""
  import jax  # Here, since this file is imported before anything large.

  if (os.cpu_count() or 1) > _FEW_CORES:
    return False
  if jax.config.jax_platforms:
    return jax.config.jax_platforms == "cpu"
  if importlib.metadata.entry_points(group="jax_plugins"):
    return False
  return not importlib.util.find_spec("libtpu")


def _keep_freed_memory() -> None:
  """Has glibc's malloc keep freed memory for the next step.

  By default malloc hands every large block back to the kernel, which clears the block's pages again
  when the next step asks for them. A process that keeps them has its peak memory until it ends. In
  two pairs of processes each this saved 0.60 of 3.24 s and 0.64 of 3.31 s of a step, nearly all of
  it time in the kernel, and 0 and 3 % of a short run whose lower layers are frozen.
  """
  try:
    libc = ctypes.CDLL("libc.so.6")
  except OSError:  # not glibc: the C library's malloc has no such settings
    return
  for parameter, value in (
    (-4, 0),  # M_MMAP_MAX: no block gets a mapping of its own, which would be unmapped when freed
    (-8, 1),  # M_ARENA_MAX: one arena, since further arenas could only grow by mappings
    (-1, -1),  # M_TRIM_THRESHOLD: no threshold, so that the heap never shrinks
  ):
    libc.mallopt(parameter, value)
