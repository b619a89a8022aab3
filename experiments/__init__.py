"""The commands: `python -m experiments.NAME`.

A step takes and gives back large buffers, whose pages the kernel would hand out 4 KiB at a time.
glibc's malloc asks for large pages when told to before Python starts, so a command starts itself
again, once, with GLIBC_TUNABLES set; a value of the user's own for it stays.
"""

import os
import sys
from collections.abc import Mapping

_TUNABLE = "glibc.malloc.hugetlb"


def with_large_pages(environment: Mapping[str, str], libc: str) -> dict[str, str] | None:
  """The environment that asks for large pages; None where it does already, or nobody would hear.

  Args:
    environment: the process's own.
    libc: as `os.confstr("CS_GNU_LIBC_VERSION")`: 'glibc 2.36', or '' elsewhere.
  """
  name, _, version = libc.partition(" ")
  set_already = environment.get("GLIBC_TUNABLES", "")
  if name != "glibc" or _TUNABLE in set_already:
    return None
  if tuple(int(x) for x in version.split(".")[:2]) < (2, 35):  # which does not know it
    return None
  tunables = ":".join(filter(None, (set_already, f"{_TUNABLE}=1")))
  return {**environment, "GLIBC_TUNABLES": tunables}


def _libc() -> str:
  if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
    return ""
  return os.confstr("CS_GNU_LIBC_VERSION") or ""


# argv[0] is '-m' only while Python looks for the module that it was told to run: an import from a
# notebook or a test changes nothing.
if sys.argv[:1] == ["-m"] and (_environment := with_large_pages(os.environ, _libc())):
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], _environment)
