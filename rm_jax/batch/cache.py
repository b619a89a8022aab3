"""Tokens on the disk, so that the same texts are tokenised once: a data set's, memory-mapped.

An entry is a folder named by a hash of all that its tokens depend on: the texts, the tokenizer, the
convention, the code that tokenises. It holds flat arrays and no labels: those are the examples', so
that what is labelled or weighted anew is not tokenised anew.

  tokens    int32 [tokens], all sequences end to end; token_type likewise (encoders)
  sequence  int64 [sequences], where each ends in `tokens`
  marks     int32 [marks, 4]: index in its sequence, its sequence, tokens of the response, start
  group     int64 [examples, 4]: ends in `sequence` and `marks`, shared ids, ids cut

Who adds an entry clears away what nobody needs: entries that were not read for 60 days; while all
take more than 64 GiB together, those that were not read for longest, though none of the last week;
and what processes that were killed left half made, once it lay untouched for a day.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
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

from rm_jax.batch import group, templates, tokenise
from rm_jax.batch.group import Group, label, unlabelled
from rm_jax.batch.tokenise import TextEncoder
from rm_jax.data.report import Report, RowError
from rm_jax.storage.files import home
from rm_jax.types import Example

log = logging.getLogger(__name__)

_HEADER = "header.json"
_DAY = 24 * 3600.0  # seconds
_KEPT, _FRESH, _SCRATCH = 60 * _DAY, 7 * _DAY, _DAY
_LARGEST = 64 * 2**30  # bytes of all entries
_ENTRY = re.compile(r"[0-9a-f]{32}")
# What a tokenizer goes by that neither its file nor its special tokens show.
_FLAGS = ("add_bos_token", "add_eos_token", "split_special_tokens")
_ARRAYS = {
  "tokens": (np.int32, ()),
  "token_type": (np.int32, ()),
  "sequence": (np.int64, ()),
  "marks": (np.int32, (4,)),
  "group": (np.int64, (4,)),
}


def cache_folder(name: str) -> Path | None:
  """The folder of `data.cache`: '' = $RM_JAX_TOKENS, or tokens/ beside the other caches; 'none'."""
  if name == "none":
    return None
  return Path(name or os.environ.get("RM_JAX_TOKENS") or home() / "tokens").expanduser()


class DamagedError(ValueError):
  """An entry is not as it was written."""


class Groups(Sequence):
  """The groups of a cached data set, each made from the disk's pages when it is asked for.

  Args:
    arrays: of the entry, memory-mapped.
    examples: those that the groups are of, in order.
    places: int [groups], which of the entry's examples each is.
    attributes: the model's, in order.
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
  """As `group.tokenise`, and from the disk where the same texts were tokenised before.

  A folder that cannot be written to is warned of, and nothing is kept.

  Args:
    examples: of any kind.
    encoder: the model's.
    report: counts what is dropped: the same, wherever the tokens come from.
    attributes: the model's, in order.
    folder: of the entries; None = none is read or written.
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
  """A hash of all that the tokens depend on; None where the tokenizer cannot be written down."""
  backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
  if not hasattr(backend, "to_str"):
    return None
  import tokenizers
  import transformers

  tokenizer = encoder.tokenizer
  digest = hashlib.blake2b(digest_size=16)

  def add(value: Any) -> None:
    digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")

  # The code too: nobody has to remember that a change of it makes old tokens wrong.
  add(
    [Path(module.__file__).read_text(encoding="utf-8") for module in (group, tokenise, templates)]
  )
  add(
    [Path(__file__).read_text(encoding="utf-8"), tokenizers.__version__, transformers.__version__]
  )
  add([dataclasses.asdict(encoder.convention), type(tokenizer).__name__, backend.to_str()])
  add([tokenizer.chat_template, tokenizer.special_tokens_map, tokenizer.pad_token_id])
  add([getattr(tokenizer, name, None) for name in _FLAGS])
  for example in examples:
    add([example.prompt, example.responses, example.steps])
  return digest.hexdigest()


def _open_or_make(
  path: Path, examples: Sequence[Example], encoder: TextEncoder, report: Report
) -> tuple[dict[str, np.ndarray], dict[int, RowError]]:
  if opened := _whole(path):
    log.info("tokens: %d examples from %s", len(examples), path)
    with contextlib.suppress(OSError):  # another's folder may be read and not be touched
      os.utime(path / _HEADER)
    return opened
  clear(path.parent)
  scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=".tmp-"))
  try:
    _write(scratch / "new", _strict(examples, unlabelled(examples, encoder), report))
    # Where there are no locks another may have been faster; its tokens are the same.
    if opened := _whole(path):
      return opened
    if path.exists():
      os.rename(path, scratch / "damaged")
    os.rename(scratch / "new", path)
    return _open(path)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def clear(folder: Path) -> None:
  """Takes away what nobody needs any more: see the module. Others may use the folder meanwhile.

  An entry goes under its lock, so that nobody is about to open it; who has it open keeps its pages,
  for the disk does so until they are let go.
  """
  now = time.time()
  entries = []
  for path in folder.iterdir():
    with contextlib.suppress(OSError):  # gone meanwhile, or not ours to touch
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
        if (path / _HEADER).stat().st_mtime == used:  # nobody read it meanwhile
          gone = Path(tempfile.mkdtemp(dir=folder, prefix=".tmp-"))
          os.rename(path, gone / "old")
          shutil.rmtree(gone, ignore_errors=True)
          total -= size
          log.info("tokens: %s was not read for %.0f days and is gone", path, age / _DAY)


def _touched(path: Path) -> float:
  """When anything in a folder was last written."""
  return max(one.stat().st_mtime for one in (path, *path.rglob("*")))


def _whole(path: Path) -> tuple[dict[str, np.ndarray], dict[int, RowError]] | None:
  """The entry; None, with a warning, where it is damaged, and where there is none."""
  if not path.exists():
    return None
  try:
    return _open(path)
  except (OSError, ValueError, KeyError, TypeError) as error:
    log.warning("%s: damaged (%s); tokenised anew", path, error)
    return None


def _strict(examples, found, report: Report) -> Iterator[Group | RowError]:
  """Where the first fault stops, it stops here, and not when all is tokenised."""
  for example, one in zip(examples, found, strict=True):
    if report.strict and isinstance(one, RowError):
      report.drop(one.reason, example.origin, one.detail)
    yield one


@contextlib.contextmanager
def _locked(folder: Path, name: str, *, wait: bool = True) -> Iterator[None]:
  """One process makes an entry and the others of its host wait for it; a dead one holds nothing.

  Raises:
    OSError: not to wait, and another holds it or the file system has no locks.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / f"{name}.lock", "w") as file:
    if wait:
      with contextlib.suppress(OSError):  # a file system without locks: each makes it, one is kept
        fcntl.flock(file, fcntl.LOCK_EX)
    else:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield


def _write(path: Path, found: Iterable[Group | RowError]) -> None:
  """Writes an entry as the groups come."""
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
  """(arrays, what was dropped by its place) of an entry.

  Raises:
    OSError, ValueError, KeyError, TypeError: it is damaged.
  """
  header = json.loads((path / _HEADER).read_text(encoding="utf-8"))
  arrays = {}
  for name, (dtype, shape) in _ARRAYS.items():
    size, wanted = header["arrays"][name]
    found = (path / name).stat().st_size
    if found != size:
      raise DamagedError(f"{name} has {found} bytes; expected {size}")
    # numpy maps no empty file.
    mapped = np.memmap(path / name, np.uint8, mode="r") if size else np.empty(0, np.uint8)
    if hashlib.blake2b(mapped, digest_size=16).hexdigest() != wanted:
      raise DamagedError(f"{name} has not the bytes that were written")
    # As a plain array: each slice of a memmap is one too, at ten times the cost.
    arrays[name] = np.asarray(mapped).view(dtype).reshape(-1, *shape)
  dropped = {int(i): RowError(*what) for i, what in header["dropped"].items()}
  return arrays, dropped
