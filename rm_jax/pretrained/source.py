"""Checkpoints: opened from a Hugging Face folder or a GGUF file, saved as a Hugging Face folder.

A folder that we save has one file more than Hugging Face's: `rm_jax.json`, the record of what these
have no place for, such as how text becomes tokens and where the reward is read.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.declared import one_line
from rm_jax.errors import InputError
from rm_jax.pretrained import clients, files, gguf
from rm_jax.pretrained.config import check_config
from rm_jax.storage.files import expanded

CONFIG = "config.json"
RECORD = "rm_jax.json"
SHAPING = "shaping.json"  # the chain of `rm_jax/shaping` between scores and reinforcement learning
# Names of the folder, inside the one that is saved to, in which files are written, and of the same
# folder once all of them are there.
_WRITING, _WRITTEN = ".rm_jax-writing-", ".rm_jax-written"
_LIST = ".files.json"
_TEMPLATES = "additional_chat_templates"
# Files that tokenizers write beside weights. When a model is saved over an older one, the older
# one's that the new one does not have are removed. CONFIG and RECORD are written by every save.
_MODEL_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
  f"{_TEMPLATES}/*.jinja",
  "vocab.json",
  "vocab.txt",
  "merges.txt",
  "tokenizer.model",
)
# The most bytes of a config.json; of a record, in which a head of several outputs is stored as
# well; and of a tokenizer's file (Gemma's has 33 MB).
_MOST_JSON = 2**20
_MOST_RECORD = 2**24
_MOST_TOKENIZER = 2**26
# Files that loading a tokenizer reads as a whole; others, such as a trainer's state, may be of any
# size.
_READ_WHOLE = re.compile(
  r".*\.(jinja|model)|(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|tekken|"
  r"config|rm_jax|(pre)?processor_config).*\.(json|txt)"
)
_MOST_GROWTH = 64  # the most characters that the steps before tokenising may make of one


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint that has been found but not read.

  Attributes:
    name: by which it was asked for.
    path: folder or GGUF file.
    config: dictionary of its config.json (made from the metadata of a GGUF file).
    record: dictionary of its rm_jax.json; empty where it is not one that we saved.
  """

  name: str
  path: Path
  config: dict[str, Any]
  record: dict[str, Any]

  def tensors(self) -> Any:
    """A lazy reader of its tensors: names(), shape(name), get(name).

    Raises as `files.read_tensors` or `gguf.read`; and ValueError for tensors in the record that
    cannot be read.
    """
    if self._gguf:
      return self._gguf
    reader = files.read_tensors(self.path)
    packed = self.record.get("head_tensors")
    return clients.Overlaid(reader, packed) if packed else reader

  def tokenizer(self) -> Any:
    """Its tokenizer. Raises ValueError where it has none that can be loaded."""
    return gguf.tokenizer(self.path) if self._gguf else load_tokenizer(self.path)

  @functools.cached_property
  def _gguf(self) -> Any:
    return gguf.read(self.path) if self.path.suffix == ".gguf" else None


def _most(name: str) -> int:
  """The most bytes of a JSON file of this name that `read_json` reads."""
  return _MOST_RECORD if name == RECORD else _MOST_JSON


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file of at most 2^20 bytes, or 2^24 of a record.

  Raises InputError naming the file.
  """
  try:
    files.check_file(path, _most(path.name))
    value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=files.unique)
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"{path}: not a readable JSON file: {error}") from error
  if not isinstance(value, dict):
    raise InputError(f"{path}: holds a {type(value).__name__}; expected an object")
  return value


def _find(name: str) -> Path:
  # Not `files.resolve`, which wants weights: a tokenizer's folder has none, and a run's weights are
  # in its checkpoints.
  folder = expanded(name)
  with files.reading(folder):
    there = folder.is_dir()
  if not there:
    return files.resolve(name)
  recover(folder)
  return folder


def open_source(name: str) -> Source:
  """Finds a folder, GGUF file or hub id (see `files.resolve`) and reads its config.

  Raises:
    FileNotFoundError, ReadError: as `files.resolve`.
    InputError: it has no config.json; that, its rm_jax.json or the GGUF file cannot be used; or as
      `files.resolve` and `recover`.
  """
  path = _find(name)
  if path.suffix == ".gguf":
    return Source(name, path, gguf.read(path).config, {})
  with files.reading(path):
    there = (path / CONFIG).is_file()
  if not there:
    raise InputError(f"{path}: has no config.json; expected a Hugging Face model folder")
  if (path / "model" / CONFIG).is_file() and (path / "checkpoints").is_dir():
    raise InputError(
      f"{path}: is a run's workdir; expected a model's folder, which "
      f'RewardModel.from_pretrained("{path}").save_pretrained(FOLDER) writes'
    )
  record = path / RECORD
  # A dangling link is read too, which raises: without its record the model would give other scores.
  saved = read_json(record) if record.exists() or record.is_symlink() else {}
  config = read_json(path / CONFIG)
  check_config(config, str(path / CONFIG))
  return Source(name, path, config, saved)


def load_tokenizer(name: str | Path) -> Any:
  """A tokenizer from a folder, GGUF file or hub id.

  Raises:
    FileNotFoundError: there is no such folder or file, and it is no hub id or cannot be had.
    ReadError: the file or folder is there and may not be looked at.
    ValueError: there is no tokenizer in it that can be loaded; or as `files.resolve` and `recover`.
  """
  path = _find(str(name))
  if path.suffix == ".gguf":
    return gguf.tokenizer(path)
  with files.reading(path):
    _check_tokenizer_files(path)
  from transformers import AutoTokenizer

  try:
    # If `trust_remote_code` is not set, transformers asks on stdin whether to run a checkpoint's
    # own Python code (`auto_map`), and a "y" that is piped in for something else would run it.
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    tokenizer("Some tables are read by the first use.")
  # For damaged files transformers and `tokenizers` raise errors of any class. PanicException, which
  # stands for a panic in Rust, is not even an Exception.
  except BaseException as error:
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    why, mend = one_line(error), ""
    if "trust_remote_code" in str(error):
      why = "tokenizer_config.json or config.json has it made by Python of its own, by auto_map"
      mend = "; we run none: where you trust it, save it as a tokenizer.json with transformers"
    raise InputError(
      f"{path}: no tokenizer could be loaded ({type(error).__name__}: {why}{mend}); set "
      "--config.model.tokenizer to a folder, GGUF file or hub id that has one"
    ) from error
  record = path / RECORD
  return clients.as_trained(tokenizer, read_json(record)) if record.exists() else tokenizer


def _check_tokenizer_files(path: Path) -> None:
  """Raises InputError where a tokenizer's files would take too much memory to read or to use.

  A vocabulary takes about twenty times as many bytes of memory as of its file, so the files but
  for our record are limited by the `vocab_size` of config.json, if it has one. Normalizers that
  replace a piece of text by a longer one, one after another, multiply its length. Raises InputError
  too where config.json or a tokenizer's file cannot be used.
  """
  most = _MOST_TOKENIZER
  if (path / CONFIG).is_file():
    config = read_json(path / CONFIG)
    check_config(config, str(path / CONFIG))
    if type(vocab := config.get("vocab_size")) is int:
      most = min(most, 2**21 + 512 * vocab)
  for child in [*path.iterdir(), *path.glob(f"{_TEMPLATES}/*")]:
    if child.is_dir() or not _READ_WHOLE.fullmatch(child.name):
      continue
    try:
      files.check_file(child, _MOST_RECORD if child.name == RECORD else most)
    except (OSError, ValueError) as error:
      raise InputError(f"{child}: cannot be a tokenizer's file: {error}") from error
  if not (path / "tokenizer.json").is_file():
    return
  try:
    said = json.loads((path / "tokenizer.json").read_bytes())
    steps = [said.get("normalizer"), said.get("pre_tokenizer")]
  except (ValueError, RecursionError, AttributeError):
    return  # the tokenizer's own loading says what is wrong with it
  longest = 1
  while steps:
    step = steps.pop()
    if isinstance(step, dict):
      steps += step.values()
      if isinstance(text := step.get("content"), str):
        longest *= max(1, len(text))
    elif isinstance(step, list):
      steps += step
  if longest > _MOST_GROWTH:
    raise InputError(
      f"{path / 'tokenizer.json'}: its normalizer replaces a piece of text by up to {longest:.3g} "
      f"characters; expected at most {_MOST_GROWTH}"
    )


def save_folder(
  path: Path,
  *,
  config: dict[str, Any],
  tokenizer: Any,
  record: dict[str, Any],
  tensors: Iterable[tuple[str, np.ndarray]] | None = None,
  shaping: dict[str, Any] | None = None,
) -> None:
  """Writes a Hugging Face folder with our record; without `tensors`, all but the weights.

  A model that was there is replaced as a whole, even if the process is killed: all files are
  written and flushed to the disk in a folder inside, one rename of that folder commits them, and
  then they are moved to their places. `recover` completes a move that was interrupted. Files that
  are no part of a model (a README, a calibration) stay as they are, and without `tensors` the
  weights and a chain of shaping, which was fitted on them.

  Raises OSError where it cannot be written, and ValueError as `files.write_tensors`, for a file of
  the tokenizer whose name `recover` would refuse, or for a config or record of more bytes than
  `read_json` reads; what was there is unchanged then. Raises
  ValueError as `recover` where files, of this save or an earlier one, could not all be moved.
  """
  path.mkdir(parents=True, exist_ok=True)
  recover(path)
  for stale in path.glob(f"{_WRITING}*"):  # of a process that was killed
    shutil.rmtree(stale, ignore_errors=True)
  scratch = Path(tempfile.mkdtemp(dir=path, prefix=_WRITING))
  try:
    tokenizer.save_pretrained(scratch)
    _write(scratch / RECORD, record)
    _write(scratch / CONFIG, config)
    if shaping is not None:
      _write(scratch / SHAPING, shaping)
    if tensors is not None:
      files.write_tensors(scratch, dict(tensors))
    names = sorted(str(p.relative_to(scratch)) for p in scratch.rglob("*") if p.is_file())
    _write(scratch / _LIST, {"files": names, "weights": tensors is not None})
    _listed(scratch)
    for file in scratch.rglob("*"):
      _flush(file)
    _flush(scratch)
    os.rename(scratch, path / _WRITTEN)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  _flush(path)
  recover(path)


def _write(path: Path, value: Any) -> None:
  """Writes JSON. Raises InputError where it has more bytes than `read_json` reads."""
  said = (json.dumps(value, indent=2) + "\n").encode()
  if len(said) > (most := _most(path.name)):
    raise InputError(
      f"{path.name} would have {len(said)} bytes, and at most {most} are read back; expected fewer "
      "outputs of the head (members or attributes), whose weights are in it, or a shorter config"
    )
  path.write_bytes(said)


def recover(path: Path) -> None:
  """Completes a `save_folder` that was interrupted after its files were committed.

  While files are moved there is no config.json, so that nobody reads old files beside new ones.
  Several processes may call this at once.

  Raises:
    ReadError: the folder may not be looked into.
    InputError: the folder cannot be written to, or what is in it was not left by `save_folder`.
  """
  written = path / _WRITTEN
  with files.reading(path):
    if not written.is_dir():
      return
  try:
    while written.is_dir():
      # One process at a time. Those that waited find nothing left to move.
      with contextlib.suppress(FileNotFoundError), _alone(written):
        if (written / _LIST).exists():
          _move(written, path, **_listed(written))
        _flush(path)
        shutil.rmtree(written)
  except OSError as error:
    raise InputError(
      f"{path}: a model was saved here and the process ended before its files were at their places "
      f"(they are in {_WRITTEN}); to move them failed: {error}. Make the folder writable"
    ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
  """Locks a folder against other processes in this block, and waits for them.

  Raises FileNotFoundError where the folder is gone once the lock is had, or is another of that
  name.
  """
  handle = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # some network file systems have no locks
      fcntl.flock(handle, fcntl.LOCK_EX)
    if not os.path.samestat(os.fstat(handle), os.stat(folder)):
      raise FileNotFoundError(f"{folder} was another's meanwhile")
    yield
  finally:
    os.close(handle)


def _listed(written: Path) -> dict[str, Any]:
  """The list that `save_folder` wrote: a model's files, and whether weights are among them.

  Raises InputError where it is not such a list.
  """
  said = read_json(written / _LIST)
  names, weights = said.get("files"), said.get("weights")
  # A folder is data from elsewhere: its list must not make us move files from or to outside of it.
  # Chat templates may have any name.
  plain = re.compile(rf"[\w-][\w.-]*|{_TEMPLATES}/[^./\\\0][^/\\\0]*")
  if (
    not isinstance(names, list)
    or not all(isinstance(name, str) and plain.fullmatch(name) for name in names)
    or any((written.parent / link).is_symlink() for link in (_WRITTEN, _TEMPLATES))
    or (written / _TEMPLATES).is_symlink()
  ):
    raise InputError(f"{written}: not what a save leaves ({names!r:.200}); remove it")
  return {"names": names, "weights": weights is True}


def _move(written: Path, path: Path, names: list[str], weights: bool) -> None:
  """Moves a saved model's files to their places, if not moved yet, and removes an older model's."""
  if (written / CONFIG).exists():
    (path / CONFIG).unlink(missing_ok=True)
  for stale in _model_files(path, weights) - set(names):
    (path / stale).unlink(missing_ok=True)
  for name in sorted(names, key=CONFIG.__eq__):  # config.json is the last
    if (written / name).exists():
      (path / name).parent.mkdir(exist_ok=True)
      os.replace(written / name, path / name)


def _model_files(path: Path, weights: bool) -> set[str]:
  """Names of the files in a folder that are part of a saved model.

  Its weights, and the chain of shaping that was fitted on them, if asked for.
  """
  patterns = _MODEL_FILES + ((*files.WEIGHTS, SHAPING) if weights else ())
  return {str(file.relative_to(path)) for pattern in patterns for file in path.glob(pattern)}


def _flush(path: Path) -> None:
  """Flushes a file or folder to the disk, or a power cut could leave a name without its content."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
