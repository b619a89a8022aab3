"""How a command's process is set up for speed: three settings, and what each was measured to save.

A command does the same without them, only slower. Measured on two cores that were busy with other
work, in pairs of processes that differ in nothing else, as user + system CPU seconds: other
processes disturb these less than wall time. "A step" trains six layers of SmolLM2-135M's size on 16
pairs of the generated world and takes 3.3 s without the settings.
"""

import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping

_TUNABLE = "glibc.malloc.hugetlb"
# A single malloc arena is a lock: with 16 threads it made compilation 4 times slower.
_FEW_CORES = 8


def before_imports() -> None:
  """Asks for large pages, and stops garbage collection; to be called before any large import.

  Where large pages have not been asked for, the process starts itself again and this call does not
  return.

  Imports make many objects and hardly any garbage: without collections those of JAX, transformers
  and `rm_jax` take 2.27 instead of 2.70 s (medians of 7 pairs).
  """
  if environment := with_large_pages(os.environ, _libc()):
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
  gc.disable()


def after_imports() -> None:
  """Starts garbage collection again, and keeps freed memory on a small CPU."""
  gc.freeze()  # What was imported stays: no later collection needs to look at it.
  gc.enable()
  if on_small_cpu():
    _keep_freed_memory()


def with_large_pages(environment: Mapping[str, str], libc: str) -> dict[str, str] | None:
  """The environment in which glibc's malloc asks the kernel for large pages.

  Pages of 2 MiB instead of 4 KiB make a step's large buffers faster to address. It saves 1, 2, 4
  and 7 % of a step in four pairs, and costs about 2 s once, in which the kernel clears those pages.
  malloc reads the setting before Python starts, hence the second start.

  Args:
    environment: the process's own. A value of the user's own for the setting stays.
    libc: as `os.confstr("CS_GNU_LIBC_VERSION")` says it: 'glibc 2.36', or '' elsewhere.

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
  """Whether JAX runs on a CPU of few cores: it is told to, or no accelerator's package is there."""
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

  By default it hands every large block back to the kernel, which clears its pages again when the
  next step asks for them. What is kept is no more than the run's peak. It saves 0.60 of 3.24 and
  0.64 of 3.31 s of a step, nearly all of it the kernel's; of a short run whose lower layers are
  frozen 0 and 3 %.
  """
  try:
    libc = ctypes.CDLL("libc.so.6")
  except OSError:  # another C library, whose malloc has no such settings
    return
  for parameter, value in (
    (-4, 0),  # M_MMAP_MAX: no block gets a mapping of its own, which would be unmapped when freed
    (-8, 1),  # M_ARENA_MAX: one arena, since the others could only grow by mappings
    (-1, -1),  # M_TRIM_THRESHOLD: none, the heap never shrinks
  ):
    libc.mallopt(parameter, value)
