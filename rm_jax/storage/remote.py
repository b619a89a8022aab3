"""Files and folders that are elsewhere, as gs://bucket/folder: copied here once and read here.

Weights are mapped into memory and tokens are kept by content, so a copy on this machine is wanted
anyway. It is found again while names, sizes and versions of what is there are the same.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any

from rm_jax.errors import InputError, MissingFileError, ReadError
from rm_jax.storage.files import home

log = logging.getLogger(__name__)

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://[^\s{]+")
# Seconds without a byte after which a copy's process is taken to be gone.
_LEFT = 24 * 3600
# What storages say of an object's version, each by another word.
_VERSION = ("size", "generation", "md5Hash", "etag", "ETag", "mtime", "created", "LastModified")


def is_remote(name: str | os.PathLike) -> bool:
  """Whether a name is a URL."""
  return bool(_URL.fullmatch(os.fspath(name)))


def refuse(name: str | os.PathLike, field: str) -> None:
  """Raises ValueError where a folder that is written to is a URL, which Path takes for a name."""
  # A Path has lost the second slash.
  if re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(name)):
    raise InputError(
      f"{field}={os.fspath(name)}: a run's folder must be a file system's; expected a local folder "
      "(each host may have its own; process 0's is the run's) or a mounted bucket. data.* and "
      "model.* may be URLs"
    )


def local(name: str) -> str:
  """A path on this machine: of a URL, that of its copy under $RM_JAX_CACHE; else the name itself.

  Args:
    name: of a file or folder, in any storage that fsspec knows; a name that is no URL stays.

  Raises:
    FileNotFoundError: nothing is there.
    OSError: it cannot be read, or changed while it was.
    ValueError: what reads such URLs is not installed, or an object's name leads out of its folder.
  """
  if not is_remote(name):
    return name
  import fsspec

  try:
    files, path = fsspec.core.url_to_fs(name)
  except (ImportError, ValueError) as error:
    raise InputError(f"{name}: {error}; gs:// needs pip install 'rm_jax[gcp]'") from None
  try:
    found = _listed(files, path)
    return str(_copy(files, path, name, found))
  except (FileNotFoundError, ValueError):
    raise
  # Whatever a storage's client raises: no credentials, no connection, no permission.
  except Exception as error:
    raise ReadError(f"{name}: cannot be read ({type(error).__name__}: {error})") from error


def _listed(files: Any, path: str) -> dict[str, dict[str, Any]]:
  """Name below the path ('' for the file itself) -> what the storage says of it."""
  files.invalidate_cache()
  found = files.find(path, detail=True)
  if not found:
    raise MissingFileError(f"{path}: no such file or folder in {type(files).__name__}")
  base = path.rstrip("/")
  out = {full[len(base) :].lstrip("/"): info for full, info in sorted(found.items())}
  for below in out:
    # Objects are named by others: none may be written outside its folder.
    if ".." in PurePosixPath(below).parts or "\\" in below:
      raise InputError(f"{path}: holds an object named {below!r}, which leads out of the folder")
  return out


def _sweep(folder: Path) -> None:
  """Takes away what copies that were killed left; one that still comes has written something."""
  for left in folder.glob(".tmp-*"):
    try:
      latest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
    except OSError:  # its process has just ended, and taken it away
      continue
    if time.time() - latest > _LEFT:
      shutil.rmtree(left, ignore_errors=True)


def _copy(files: Any, path: str, name: str, found: dict[str, dict[str, Any]]) -> Path:
  versions = {
    below: {key: str(info[key]) for key in _VERSION if key in info} for below, info in found.items()
  }
  text = json.dumps([name, versions], sort_keys=True)
  folder = home() / "remote" / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
  target = folder / PurePosixPath(path).name
  if target.exists():
    log.info("%s: the copy %s", name, target)
    return target
  folder.parent.mkdir(parents=True, exist_ok=True)
  _sweep(folder.parent)
  scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
  try:
    for below, info in found.items():
      to = scratch / "new" / target.name / below
      to.parent.mkdir(parents=True, exist_ok=True)
      files.get_file("/".join([path.rstrip("/"), below]).rstrip("/"), str(to))
      if to.stat().st_size != info["size"]:
        raise OSError(f"{below or path}: {to.stat().st_size} bytes came; expected {info['size']}")
    try:
      # Whole or not at all; where another process was faster, its copy is the same.
      os.rename(scratch / "new", folder)
    except OSError:
      if not target.exists():
        raise
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  log.info("%s: copied to %s", name, target)
  return target
