"""A cache of tokens on disk, memory-mapped, so that the same texts are tokenised once.

An entry is a folder whose name is a hash of what its tokens depend on: the texts and whether they
are compared (of which those that are all alike are dropped), the tokenizer, the model's
`Convention` (batch/tokenise.py), our code that tokenises, and the versions of the libraries
tokenizers, transformers and Jinja. It holds flat arrays and no feedback, which comes from the
examples: if only labels or weights change, nothing is tokenised again. The arrays of all examples
stand end to end:

  tokens      int32 [tokens], token ids
  token_type  int32 [tokens], the tokenizer's token types; empty for decoders
  sequence    int64 [sequences], index in `tokens` at which each prompt + response ends
  marks       int32 [marks, 4], for each mark the values that `Group` has in `marks`, `response`,
              `length` and `starts` (-1 if it has none)
  group       int64 [examples, 4], for each example the index in `sequence` and that in `marks` at
              which it ends, and `shared` and `cut` of its `Group`

header.json has the arrays' sizes and checksums, and why examples were dropped. A process that adds
an entry first removes old ones (`clear`): each that was not read for 60 days; while all entries
together take more than 64 GiB, the least recently read one that was not read for a week; and
unfinished ones of processes that were killed, after a day.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.batch import group, templates, tokenise, tokens, turns
from rm_jax.batch.group import Group, label, unlabelled
from rm_jax.batch.tokenise import TextEncoder
from rm_jax.data.report import Report, RowError
from rm_jax.storage.files import expanded, home
from rm_jax.types import Example

log = logging.getLogger(__name__)

# What decides a text's tokens: a change of it makes new entries.
_CODE = (group, templates, tokenise, tokens, turns)
_HEADER = "header.json"
_DAY = 24 * 3600.0  # seconds
_KEPT, _FRESH, _SCRATCH = 60 * _DAY, 7 * _DAY, _DAY
_LARGEST = 64 * 2**30  # bytes of all entries
_ENTRY = re.compile(r"[0-9a-f]{32}")
# Settings of a tokenizer that are neither in its file nor among its special tokens.
_FLAGS = ("add_bos_token", "add_eos_token", "split_special_tokens")
_ARRAYS = {
  "tokens": (np.int32, ()),
  "token_type": (np.int32, ()),
  "sequence": (np.int64, ()),
  "marks": (np.int32, (4,)),
  "group": (np.int64, (4,)),
}


def cache_folder(name: str) -> Path | None:
  """The folder that the config field `data.cache` names; None for 'none', which turns caching off.

  '' is $RM_JAX_TOKENS or, if that is not set, tokens/ in the folder of all caches (`home`).

  Raises:
    InputError: the folder begins with '~name', and there is no such user.
  """
  if name == "none":
    return None
  return expanded(name or os.environ.get("RM_JAX_TOKENS") or home() / "tokens")


class DamagedError(ValueError):
  """An entry's bytes are not those that were written."""


class Groups(Sequence):
  """The groups of a cached data set; each is made from memory-mapped arrays when it is asked for.

  Args:
    arrays: of the entry, memory-mapped.
    examples: of the groups, in order.
    places: int [groups], index of each group's example in the entry, which also counts the examples
      that were dropped.
    attributes: names of the model's attributes, in order.
  """

  def __init__(
    self, arrays: dict[str, np.ndarray], examples: Sequence[Example], places, attributes
  ):
    self._arrays, self._examples = arrays, examples
    self._places, self._attributes = places, tuple(attributes)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    place, a = int(self._places[index]), self._arrays
    last, end, shared, cut = a["group"][place].tolist()
    first, begin = a["group"][place - 1, :2].tolist() if place else (0, 0)
    ends = a["sequence"][first:last].tolist()
    starts = [int(a["sequence"][first - 1]) if first else 0, *ends[:-1]]
    spans = [slice(i, j) for i, j in zip(starts, ends, strict=True)]
    marks_M4 = a["marks"][begin:end]
    tokens = Group(
      ids=tuple(a["tokens"][span] for span in spans),
      shared=shared,
      marks=marks_M4[:, 0],
      response=marks_M4[:, 1],
      labels=None,
      length=marks_M4[:, 2],
      token_type=tuple(a["token_type"][s] for s in spans) if len(a["token_type"]) else None,
      starts=marks_M4[:, 3] if marks_M4[0, 3] >= 0 else None,
      cut=cut,
    )
    return label(tokens, self._examples[index], self._attributes)


def tokenise_cached(
  examples: Sequence[Example],
  encoder: TextEncoder,
  report: Report,
  attributes: Sequence[str] = (),
  *,
  folder: Path | None,
) -> tuple[Sequence[Group], list[Example]]:
  """Does what `tokenise` in batch/group.py does, with tokens from the cache if it has an entry.

  If it has none, one is added. The cache is not used for a tokenizer that has no `key`, nor, with a
  warning, if reading or writing the folder fails.

  Args:
    examples: of any kind.
    encoder: the model's.
    report: counts what is dropped, alike whether the tokens come from the cache or not.
    attributes: names of the model's attributes, in order.
    folder: of the cache; None = no cache.

  Raises:
    DataError, ValueError: as `tokenise` in batch/group.py.
  """
  name = key(examples, encoder) if folder else None
  if name is None:
    return group.tokenise(examples, encoder, report, attributes)
  try:
    with _locked(folder, name):
      opened = _open_or_make(folder / name, examples, encoder, report)
  except OSError as error:
    log.warning("%s: tokens cannot be kept there (%s); going on without", folder, error)
    return group.tokenise(examples, encoder, report, attributes)
  arrays, dropped = opened
  found = (dropped.get(i, i) for i in range(len(examples)))
  places, kept = group.keep(examples, found, report, attributes)
  return Groups(arrays, kept, np.asarray(places, np.int64), attributes), kept


def key(examples: Sequence[Example], encoder: TextEncoder) -> str | None:
  """Name of the examples' entry, a hash (see the module).

  None for a tokenizer that cannot be written as text, so that nothing tells it from another: one
  that is not in Rust, or has a component in Python.
  """
  backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
  try:
    written = backend.to_str()
  except Exception:  # what `tokenizers` raises has no class of its own
    return None
  tokenizer = encoder.tokenizer
  digest = hashlib.blake2b(digest_size=16)

  def add(value: Any) -> None:
    digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")

  # The code as well, so that nobody has to remember to invalidate the cache when it changes.
  add([Path(module.__file__).read_text(encoding="utf-8") for module in _CODE])
  versions = map(importlib.metadata.version, ("tokenizers", "transformers", "jinja2"))
  add([Path(__file__).read_text(encoding="utf-8"), *versions])
  add([dataclasses.asdict(encoder.convention), type(tokenizer).__name__, written])
  add([tokenizer.chat_template, tokenizer.special_tokens_map, tokenizer.pad_token_id])
  add([getattr(tokenizer, name, None) for name in _FLAGS])
  for example in examples:
    add([example.prompt, example.responses, example.steps, example.kind in group.COMPARED])
  return digest.hexdigest()


def _open_or_make(
  path: Path, examples: Sequence[Example], encoder: TextEncoder, report: Report
) -> tuple[dict[str, np.ndarray], dict[int, RowError]]:
  if opened := _whole(path):
    log.info("tokens: %d examples from %s", len(examples), path)
    with contextlib.suppress(OSError):  # another user's entry may be readable only
      os.utime(path / _HEADER)
    return opened
  clear(path.parent)
  scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=".tmp-"))
  try:
    _write(scratch / "new", _strict(examples, unlabelled(examples, encoder), report))
    # On a file system without locks another process may have been faster; its tokens are the same.
    if opened := _whole(path):
      return opened
    if path.exists():
      os.rename(path, scratch / "damaged")
    os.rename(scratch / "new", path)
    return _open(path)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def clear(folder: Path) -> None:
  """Removes old entries (see the module), while other processes may use the folder.

  An entry is removed under its lock, so that no process is about to open it. A process that has it
  open keeps its pages: the file system keeps an unlinked file until it is closed.
  """
  now = time.time()
  entries = []
  for path in folder.iterdir():
    with contextlib.suppress(OSError):  # removed meanwhile, or another user's
      if path.name.startswith(".tmp-") and now - _touched(path) > _SCRATCH:
        shutil.rmtree(path, ignore_errors=True)
      elif _ENTRY.fullmatch(path.name) and (path / _HEADER).is_file():
        size = sum(file.stat().st_size for file in path.iterdir())
        entries.append(((path / _HEADER).stat().st_mtime, size, path))
      elif (
        path.suffix == ".lock"
        and _ENTRY.fullmatch(path.stem)
        and not path.with_suffix("").exists()
        and now - path.stat().st_mtime > _KEPT
      ):
        path.unlink()
  total = sum(size for _, size, _ in entries)
  for used, size, path in sorted(entries):
    age = now - used
    if age > _KEPT or (total > _LARGEST and age > _FRESH):
      with contextlib.suppress(OSError), _locked(folder, path.name, wait=False):
        if (path / _HEADER).stat().st_mtime == used:  # no process read it meanwhile
          gone = Path(tempfile.mkdtemp(dir=folder, prefix=".tmp-"))
          os.rename(path, gone / "old")
          shutil.rmtree(gone, ignore_errors=True)
          total -= size
          log.info("tokens: %s was not read for %.0f days and is gone", path, age / _DAY)


def _touched(path: Path) -> float:
  """When a folder, or anything in it, was last modified."""
  return max(one.stat().st_mtime for one in (path, *path.rglob("*")))


def _whole(path: Path) -> tuple[dict[str, np.ndarray], dict[int, RowError]] | None:
  """Opens an entry, see `_open`; None if there is none or, with a warning, if it is damaged."""
  if not path.exists():
    return None
  try:
    return _open(path)
  except (OSError, ValueError, KeyError, TypeError) as error:
    log.warning("%s: damaged (%s); tokenised anew", path, error)
    return None


def _strict(examples, found, report: Report) -> Iterator[Group | RowError]:
  """Passes `found` on. If the report is strict, raises DataError at the first RowError in it.

  Without this the error would come after all examples were tokenised.
  """
  for example, one in zip(examples, found, strict=True):
    if report.strict and isinstance(one, RowError):
      report.drop(one.reason, example.origin, one.detail)
    yield one


@contextlib.contextmanager
def _locked(folder: Path, name: str, *, wait: bool = True) -> Iterator[None]:
  """Holds an entry's lock: one process makes the entry, the others on its host wait for it.

  The lock is the kernel's, so that a process that dies releases it.

  Raises:
    OSError: the lock file cannot be written; or `wait` is False, and another process holds the lock
      or the file system has no locks.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / f"{name}.lock", "w") as file:
    if wait:
      with contextlib.suppress(OSError):  # no locks: each process makes the entry, one is kept
        fcntl.flock(file, fcntl.LOCK_EX)
    else:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield


def _write(path: Path, found: Iterable[Group | RowError]) -> None:
  """Writes an entry while the groups are made, so that they are never all in memory."""
  path.mkdir()
  dropped: dict[int, list[str]] = {}
  with contextlib.ExitStack() as stack:
    files = {name: stack.enter_context(open(path / name, "wb")) for name in _ARRAYS}
    digests = {name: hashlib.blake2b(digest_size=16) for name in _ARRAYS}

    def put(name: str, value: Any) -> None:
      data = np.ascontiguousarray(value, _ARRAYS[name][0]).tobytes()
      files[name].write(data)
      digests[name].update(data)

    tokens = sequences = marks = 0
    for i, one in enumerate(found):
      shared = cut = 0
      if isinstance(one, RowError):
        dropped[i] = [one.reason, one.detail]
      else:
        for ids in one.ids:
          put("tokens", ids)
          tokens += len(ids)
          put("sequence", tokens)
        for types in one.token_type or ():
          put("token_type", types)
        starts = np.full(len(one.marks), -1) if one.starts is None else one.starts
        put("marks", np.stack([one.marks, one.response, one.length, starts], axis=1))
        sequences, marks = sequences + len(one.ids), marks + len(one.marks)
        shared, cut = one.shared, one.cut
      put("group", [sequences, marks, shared, cut])
    for file in files.values():
      file.flush()
      os.fsync(file.fileno())
    sums = {name: [files[name].tell(), digests[name].hexdigest()] for name in _ARRAYS}
  (path / _HEADER).write_text(json.dumps({"arrays": sums, "dropped": dropped}), encoding="utf-8")


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[int, RowError]]:
  """(memory-mapped arrays, index in the entry -> why the example was dropped).

  Raises:
    OSError, ValueError, KeyError, TypeError: the entry is damaged.
  """
  header = json.loads((path / _HEADER).read_text(encoding="utf-8"))
  arrays = {}
  for name, (dtype, shape) in _ARRAYS.items():
    size, wanted = header["arrays"][name]
    found = (path / name).stat().st_size
    if found != size:
      raise DamagedError(f"{name} has {found} bytes; expected {size}")
    # numpy cannot map an empty file.
    mapped = np.memmap(path / name, np.uint8, mode="r") if size else np.empty(0, np.uint8)
    if hashlib.blake2b(mapped, digest_size=16).hexdigest() != wanted:
      raise DamagedError(f"{name} has not the bytes that were written")
    # A plain array over the mapped memory: slices of a memmap are memmaps, ten times as slow.
    arrays[name] = np.asarray(mapped).view(dtype).reshape(-1, *shape)
  dropped = {int(i): RowError(*what) for i, what in header["dropped"].items()}
  return arrays, dropped
