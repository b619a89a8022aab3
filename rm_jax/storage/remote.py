"""Copies remote files and folders, such as gs://bucket/folder, to the local cache.

Callers read the local copy. Weights need one in any case, since their files are mapped into memory.
A copy is reused as long as the names, sizes and versions of the remote objects do not change; after
a change a new one is made beside it.
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
# Seconds without a write after which an unfinished copy is taken to be left by a dead process.
_STALE = 24 * 3600
# Keys of metadata whose values change with an object's content; each storage has some of them.
_VERSION = ("size", "generation", "md5Hash", "etag", "ETag", "mtime", "created", "LastModified")


def is_remote(name: str | os.PathLike) -> bool:
  """Whether a name is a URL."""
  return bool(_URL.fullmatch(os.fspath(name)))


def refuse(name: str | os.PathLike, field: str) -> None:
  """Raises InputError if a folder that will be written to is a URL.

  Args:
    name: of the folder.
    field: the flag or field that it was given by, for the message.
  """
  # Path("gs://bucket") is "gs:/bucket": one slash may be lost already.
  if re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(name)):
    raise InputError(
      f"{field}={os.fspath(name)}: a run's folder must be a file system's; expected a local folder "
      "(each host may have its own; process 0's is the run's) or a mounted bucket. data.* and "
      "model.* may be URLs"
    )


def local(name: str) -> str:
  """The local path of a file or folder; a URL is copied under $RM_JAX_CACHE first.

  Args:
    name: a URL of any storage that fsspec supports; any other name is returned as it is.

  Raises:
    FileNotFoundError: nothing is at the URL.
    ReadError: the URL cannot be read, or what is there changed while it was copied.
    InputError: there is no storage of that name or its package is not installed, or the name of an
      object leads out of its folder.
  """
  if not is_remote(name):
    return name
  import fsspec

  try:
    files, path = fsspec.core.url_to_fs(name)
  except (ImportError, ValueError) as error:
    raise InputError(f"{name}: {error}; gs:// needs pip install 'rm_jax[gcp]'") from error
  try:
    found = _listed(files, path)
    return str(_copy(files, path, name, found))
  except (FileNotFoundError, ValueError):
    raise
  # Storage clients raise errors of their own kinds for credentials, connection and permission.
  except Exception as error:
    raise ReadError(f"{name}: cannot be read ({type(error).__name__}: {error})") from error


def _listed(files: Any, path: str) -> dict[str, dict[str, Any]]:
  """Name of each object relative to the path ('' for a single file) -> its metadata."""
  files.invalidate_cache()
  found = files.find(path, detail=True)
  if not found:
    raise MissingFileError(f"{path}: no such file or folder in {type(files).__name__}")
  base = path.rstrip("/")
  out = {full[len(base) :].lstrip("/"): info for full, info in sorted(found.items())}
  for below in out:
    # Names of objects are untrusted: none may write outside the folder.
    if ".." in PurePosixPath(below).parts or "\\" in below:
      raise InputError(f"{path}: holds an object named {below!r}, which leads out of the folder")
  return out


def _sweep(folder: Path) -> None:
  """Deletes unfinished copies of dead processes; a live one has written something recently."""
  for left in folder.glob(".tmp-*"):
    try:
      latest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
    except OSError:  # its process has just finished, and moved or deleted it
      continue
    if time.time() - latest > _STALE:
      shutil.rmtree(left, ignore_errors=True)


def _versions(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
  """Name of each object -> what tells its version."""
  return {
    below: {key: str(info[key]) for key in _VERSION if key in info} for below, info in found.items()
  }


def _copy(files: Any, path: str, name: str, found: dict[str, dict[str, Any]]) -> Path:
  """The local copy of the objects `found` below a path, made if the cache does not have it."""
  versions = _versions(found)
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
    # Objects of equal size may have been replaced meanwhile, some before and some after their copy.
    if _versions(_listed(files, path)) != versions:
      raise OSError("it was changed while it was copied; copy it again")
    try:
      # The renaming is atomic. It fails if another process has made the same copy in the meantime;
      # that copy is then used, and this one is deleted.
      os.rename(scratch / "new", folder)
    except OSError:
      if not target.exists():
        raise
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  log.info("%s: copied to %s", name, target)
  return target
