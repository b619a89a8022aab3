"""Local files: JSON written whole or not at all, lines that a crash cut, the caches' folder."""

import json
import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def home() -> Path:
  """Where all that is kept for the next run is: $RM_JAX_CACHE, by default ~/.cache/rm_jax."""
  return Path(os.environ.get("RM_JAX_CACHE") or "~/.cache/rm_jax").expanduser()


def read_lines(path: Path) -> list[dict[str, Any]]:
  """The objects of a JSON lines file that we wrote; what a crash or a bad disk left is passed over.

  A last line that was cut off is usual; others are warned of.
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
  """All of it or nothing, whenever the process dies."""
  part = path.with_name(path.name + ".part")
  part.write_text(text, encoding="utf-8")
  os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
  """Indented JSON; not-a-number is an error, since JSON has no word for it."""
  write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
