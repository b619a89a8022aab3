"""Local files: atomic writes, JSON lines that survive a crash, the folder of the caches."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from rm_jax.errors import InputError

log = logging.getLogger(__name__)


def expanded(path: str | os.PathLike) -> Path:
  """The path with the folder of the user in place of '~' or '~name' at its beginning.

  Raises:
    InputError: there is no such user.
  """
  try:
    return Path(path).expanduser()
  except RuntimeError as error:
    raise InputError(
      f"{os.fspath(path)}: {str(error).rstrip('.')}; expected a user of this machine behind '~', "
      "or a path from '/'"
    ) from error


def home() -> Path:
  """The folder of all caches: $RM_JAX_CACHE, by default ~/.cache/rm_jax. Raises as `expanded`."""
  return expanded(os.environ.get("RM_JAX_CACHE") or "~/.cache/rm_jax")


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Reads a JSON lines file that we wrote, and skips lines that are not JSON objects.

  A crash usually cuts off the last line, so a last line without a line break is skipped silently if
  it is bad. Any other bad line is a sign of a damaged disk; a warning gives the first ten numbers.

  Returns:
    the objects in order; [] if there is no file.
  """
  if not path.exists():
    return []
  out, bad = [], []
  lines = path.read_bytes().split(b"\n")
  for number, line in enumerate(lines, 1):
    try:
      value = json.loads(line)
    except ValueError:
      value = None
    if isinstance(value, dict):
      out.append(value)
    elif line and number < len(lines):
      bad.append(number)
  if bad:
    log.warning("%s: lines %s cannot be read, and are left out", path, bad[:10])
  return out


def write_atomically(path: Path, text: str) -> None:
  """Writes a file by renaming a complete temporary one: a crash leaves no part under its name.

  The temporary file is the process's own, because others may write the same file.
  """
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  part.write_text(text, encoding="utf-8")
  os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON, atomically.

  Raises:
    ValueError: a number is NaN or infinite, which JSON cannot express.
  """
  write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
