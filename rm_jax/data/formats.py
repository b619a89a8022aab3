"""The registry of formats, and `load`, which turns the rows of a path into `Example`s.

A format says what the columns of a data set mean: it is a function of (row, origin) that returns an
`Example` or raises `RowError`, and `register` adds it. `load` detects the format of each file, if
it is not given, and counts the rows that it drops.

Reasons that a row is dropped for, besides those of `rm_jax.data.read` and `rm_jax.data.tables`:
missing_column, wrong_type, bad_role, unsupported_message, lone_surrogate, malformed_dialogue,
empty_prompt, empty_response, identical_sides, prompts_differ, not_finite, out_of_range,
too_few_responses, lengths_differ, no_comparison, no_attribute, no_annotation.

The formats themselves are in `pairs` (two responses), `feedback` (all other kinds) and the folder
`published` (data sets and libraries with columns of their own).
"""

import collections
import contextlib
import dataclasses
import difflib
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from rm_jax.data.columns import (
  Given,
  check_first,
  check_meanings,
  parse_columns,
  renamed,
  texts_of_columns,
)
from rm_jax.data.read import File, Row, files, read_file
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.types import Example

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_VOTES = 16  # rows of a file's beginning that decide its format


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
  """A format: how to recognise a row and how to convert it.

  Attributes:
    name: the value of `load`'s `format` that selects it.
    needs: columns that every row of this format has; 'a|b' means that one of these is enough.
    looks: whether the values of a row with these columns look like this format; None where the
      columns alone decide.
    convert: (row, origin) -> Example; raises RowError.
    optional: columns that it reads where a row has them and that may be mapped (`data.columns`),
      besides `weight`.
    by_name: whether it is chosen by its name alone, because another format reads the same columns
      in the more common sense.
    last: whether it is detected only where no format without this mark matches. A row that has a
      publisher's columns and also those of ours, as chosen and rejected, is read by the latter.
  """

  name: str
  needs: tuple[str, ...]
  looks: Callable[[Row], bool] | None
  convert: Callable[[Row, str], Example]
  optional: tuple[str, ...] = ()
  by_name: bool = False
  last: bool = False

  @property
  def reads(self) -> frozenset[str]:
    """Its columns in `needs` and `optional`, and `weight`."""
    needs = (column for need in self.needs for column in need.split("|"))
    return frozenset((*needs, *self.optional, "weight"))

  def missing(self, row: Row) -> list[str]:
    """Those of `needs` that a row lacks; of 'a|b' it needs one."""
    return [need for need in self.needs if not any(c in row for c in need.split("|"))]


FORMATS: dict[str, Format] = {}


def register(
  name: str,
  *,
  needs: Sequence[str],
  looks: Callable[[Row], bool] | None = None,
  optional: Sequence[str] = (),
  by_name: bool = False,
  last: bool = False,
):
  """Decorator that registers a function (row, origin) -> Example as a format; see `Format`.

  Raises:
    ValueError: a format of this name is registered already.
  """

  def add(convert: Callable[[Row, str], Example]) -> Callable[[Row, str], Example]:
    if name in FORMATS:
      raise ValueError(f"format {name!r} is registered already; known: {sorted(FORMATS)}")
    FORMATS[name] = Format(name, tuple(needs), looks, convert, tuple(optional), by_name, last)
    return convert

  return add


def detect(row: Row, mapped: Collection[str] = ()) -> Format | None:
  """The format of a row, or None: of the formats that match it, the most specific one.

  That is the one that needs most columns and, of equals, one that also looks at the values; those
  marked `last` come after all others. Those marked `by_name` are not asked and, where columns are
  `mapped` (`data.columns`), only formats that read all of them are.
  """

  def specific(fmt: Format) -> tuple[bool, int, bool]:
    return not fmt.last, len(fmt.needs), fmt.looks is not None

  for fmt in sorted(_asked(mapped), key=specific, reverse=True):
    if not fmt.missing(row) and (fmt.looks is None or fmt.looks(row)):
      return fmt
  return None


def _same_meaning() -> list[tuple[str, ...]]:
  """Columns of which a format needs one: they mean the same."""
  needs = (need for f in FORMATS.values() for need in f.needs if "|" in need)
  return [tuple(need.split("|")) for need in dict.fromkeys(needs)]


def _asked(mapped: Collection[str]) -> list[Format]:
  """The formats that may be detected in rows with these mapped columns."""
  return [f for f in FORMATS.values() if not f.by_name and f.reads.issuperset(mapped)]


def check_columns(given: Given, format: str = "auto", where: str = "columns") -> dict[str, str]:
  """Reads and checks a mapping of columns, `data.columns`, before any data are read.

  Args:
    given: our column -> the file's; see `rm_jax.data.columns.parse_columns`.
    format: a name in `FORMATS`, or 'auto'.
    where: the option's name in error messages.

  Returns:
    the mapping as a dict.

  Raises:
    DataError: as `parse_columns`; or a column of ours is read by no format (or not by `format`),
      two of them mean the same, or no format reads all of them.
  """
  columns = parse_columns(given, where)
  fmt = FORMATS.get(format)
  known = fmt.reads if fmt else frozenset().union(*(f.reads for f in FORMATS.values()))
  for name in columns:
    if name not in known:
      near = difflib.get_close_matches(name, sorted(known), 3, 0.5)
      who = f"format {format!r} reads no column" if fmt else "no format reads a column"
      hint = f"; near are {', '.join(near)}" if near else ""
      raise DataError(
        f"{where}: {who} {name!r}{hint}. Expected our column = the file's, ours being "
        + (f"of {', '.join(sorted(known))}" if fmt else "one of those in docs/data.md, as prompt")
      )
  check_meanings(columns, _same_meaning(), where)
  if not fmt and not _asked(columns):
    raise DataError(
      f"{where}: no format reads {', '.join(columns)} together; expected the columns of one format "
      "(docs/data.md)"
    )
  return columns


def load(
  path: str | os.PathLike,
  *,
  report: Report,
  format: str = "auto",
  source: str | None = None,
  limit: int | None = None,
  columns: Given = None,
) -> list[Example]:
  """Reads all rows at `path` into examples, in the order of the files and their rows.

  Args:
    path: a file, a folder or a hub id; see `rm_jax.data.read.ACCEPTED`.
    report: counts rows and drops; `Report(strict=True)` raises at the first bad row.
    format: a name in `FORMATS`, or 'auto', which gives each file the format of most of its first
      16 rows.
    source: the examples' `source`; by default the hub id, or each file's name without suffixes
      and shard number. Where files in several folders below `path` have one name, these folders are
      part of it, as in 'harmless-base/test'.
    limit: the reading stops after this many examples.
    columns: our column -> the file's, where the file has other names; see `check_columns`.

  Raises:
    DataError: `format` or `limit` cannot be used, or `columns` as `check_columns` says; as
      `read_rows`; a file's first row lacks a mapped column or one that the format needs (with
      'auto': is of no format by its columns); or no row could be kept.
  """
  if format != "auto" and format not in FORMATS:
    raise DataError(f"no format {format!r}; known: auto, {_known()}")
  if limit is not None and limit < 1:
    raise DataError(f"limit is {limit}; expected at least 1, or None for all")
  mapping = check_columns(columns, format)
  found = files(path, report)
  examples: list[Example] = []
  names = _sources(path, found)
  for file, name in zip(found, names, strict=True):
    name = source or name
    for example in _examples(file, FORMATS.get(format), report, mapping):
      examples.append(dataclasses.replace(example, source=name))
      if len(examples) == limit:
        return examples
  if not examples:
    raise DataError(f"{os.fspath(path)}: not one row could be kept. {report}")
  return examples


def _examples(
  file: File, fmt: Format | None, report: Report, columns: Mapping[str, str]
) -> Iterator[Example]:
  """Yields the examples of one file; `fmt` None means that the format is detected."""
  instead = check_meanings(columns, _same_meaning())
  first = True
  for origin, row in read_file(file, report, texts_of_columns(columns)):
    if first:
      check_first(row, columns, origin)
      _check_needs(origin, renamed(row, columns, instead), fmt, columns)
      fmt, first = fmt or _voted(file, columns, instead), False
    # The file's format stays undecided until a row converts: a bad row might look like another
    # format, and all good rows would then be dropped.
    candidate = fmt
    try:
      row = renamed(row, columns, instead)
      candidate = fmt or detect(row, columns)
      example = _convert(candidate, row, origin, columns)
    except RowError as error:
      report.drop(error.reason, origin, error.detail)
      continue
    fmt = candidate
    yield example


def check_mapped(path: str | os.PathLike, columns: Given) -> None:
  """Checks that the first row of every file at a path has the columns that a mapping names.

  Raises:
    DataError: one has not; or as `read_rows`.
  """
  mapping = parse_columns(columns)
  for file in files(path, Report()) if mapping else ():
    for origin, row in itertools.islice(read_file(file, Report(), texts_of_columns(mapping)), 1):
      check_first(row, mapping, origin)


def _voted(file: File, columns: Mapping[str, str], instead: Collection[str]) -> Format | None:
  """The format that most of a file's first rows are detected as and convert by; None if none does.

  A single row may look like another format: an answer that begins with the words of its question
  looks like a whole conversation. Of formats with as many rows it is the earlier one.
  """
  votes: collections.Counter[str] = collections.Counter()
  # The rows are read for themselves, so that the report counts each once, and in order.
  rows = read_file(file, Report(), texts_of_columns(columns))
  for origin, row in itertools.islice(rows, _VOTES):
    with contextlib.suppress(RowError):
      row = renamed(row, columns, instead)
      if fmt := detect(row, columns):
        fmt.convert(row, origin)
        votes[fmt.name] += 1
  return FORMATS[votes.most_common(1)[0][0]] if votes else None


def _convert(fmt: Format | None, row: Row, origin: str, columns: Collection[str]) -> Example:
  missing = fmt.missing(row) if fmt else []
  if missing:
    raise RowError("missing_column", f"has columns {sorted(row)}; expected {missing} too")
  if fmt is None:
    found = f"has columns {sorted(row)}, of no known format by their names and values"
    raise RowError("missing_column", f"{found}; nearest: {_nearest(row, columns)}")
  return fmt.convert(row, origin)


def _check_needs(origin: str, row: Row, fmt: Format | None, columns: Collection[str]) -> None:
  """Raises DataError where a file's first row lacks the columns that its format needs.

  The other rows most likely lack them as well, and one error is clearer than all rows dropped.
  """
  if fmt is None and all(f.missing(row) for f in _asked(columns)):
    named = [f.name for f in FORMATS.values() if f.by_name and not f.missing(row)]
    if named:
      raise DataError(
        f"{origin}: columns {sorted(row)} are read by a format that is chosen by its name alone: "
        f"set the format (data.format, --format) to {' or '.join(named)}."
      )
    raise DataError(
      f"{origin}: columns {sorted(row)} are of no known format. Nearest: {_nearest(row, columns)}. "
      "Say which columns these are (data.columns, --columns), as 'prompt=question,chosen=best', or "
      "register a format (rm_jax.data.formats.register). docs/data.md has all formats."
    )
  if fmt is not None and fmt.missing(row):
    raise DataError(
      f"{origin}: columns {sorted(row)}; format {fmt.name!r} needs {list(fmt.needs)}. Say which "
      "columns these are (data.columns, --columns), or choose another format (docs/data.md)."
    )


def _nearest(row: Row, columns: Collection[str]) -> str:
  """Up to 3 formats nearest to a row, and what it lacks of each; some of ours if it fits none."""
  asked = _asked(columns)
  near = [f for f in asked if len(f.missing(row)) < len(f.needs)]
  near = near or [FORMATS[name] for name in ("pair", "ranking", "outcome")]
  lacking = [f for f in near if 0 < len(f.missing(row)) < len(f.needs)]
  near.sort(key=lambda f: (len(f.missing(row)) / len(f.needs), len(f.needs)))
  return "; ".join(
    f"{f.name} {{{', '.join(f.needs)}}}"
    + (f", which lacks {' and '.join(f.missing(row))}" if f in lacking else "")
    for f in near[:3]
  )


def _known() -> str:
  return ", ".join(FORMATS)


def _sources(path: str | os.PathLike, found: Sequence[File]) -> list[str]:
  """The default source of each file's examples: see `load`."""
  text = os.fspath(path)
  if not os.path.exists(os.path.expanduser(text)):
    return [text] * len(found)  # a hub id
  names, folders = [], [file.path.parent for file in found]
  for file in found:
    name = file.path.name
    for suffix in (".gz", ".jsonl", ".json", ".csv", ".tsv", ".parquet"):
      name = name.removesuffix(suffix)
    names.append(_SHARD.sub("", name))
  homes: dict[str, set] = {}
  for name, folder in zip(names, folders, strict=True):
    homes.setdefault(name, set()).add(folder)
  if all(len(home) == 1 for home in homes.values()):
    return names
  top = os.path.commonpath(folders)
  return [
    (folder.relative_to(top) / name).as_posix() if len(homes[name]) > 1 else name
    for name, folder in zip(names, folders, strict=True)
  ]


def split(
  examples: Sequence[Example], fraction: float, seed: int = 0
) -> tuple[list[Example], list[Example]]:
  """Splits examples into (train, held out) by conversation, so that no conversation is on both.

  A conversation's side depends on its text, the fraction and the seed, and not on the other rows
  unless a side would be empty. So it stays the same when rows are added, dropped, reordered or cut
  by a limit: with the same fraction and seed no later run trains on what an earlier one held out.
  Each side keeps the order of `examples`.

  Args:
    examples: with their `conversation` set.
    fraction: expected share of the conversations that is held out, in [0, 1). 0 holds out nothing;
      otherwise each side gets at least one conversation.
    seed: each seed gives another split.

  Raises:
    DataError: if the fraction is out of range, an example has no conversation, or there are fewer
      than 2 conversations to split.
  """
  if not 0 <= fraction < 1:
    raise DataError(f"held-out fraction is {fraction}; expected it in [0, 1)")
  for example in examples:
    if not example.conversation:
      raise DataError(f"{example.origin or 'an example'}: no conversation to split by; set it")
  if fraction == 0:
    return list(examples), []
  place = {e.conversation: _place(e.conversation, seed) for e in examples}
  if len(place) < 2:
    raise DataError(
      f"{len(place)} conversation(s) cannot be split in two by a fraction of {fraction}; expected "
      "at least 2: give more data, or do not split them (a fraction of 0)"
    )
  order = sorted(place, key=place.__getitem__)
  held = {c for c in order[:-1] if place[c] < fraction} or {order[0]}
  train = [e for e in examples if e.conversation not in held]
  return train, [e for e in examples if e.conversation in held]


def _place(conversation: str, seed: int) -> float:
  """A number in [0, 1), uniform over conversations, from a hash of the text and the seed.

  Python's own `hash` of a string differs from process to process, so blake2b is used.
  """
  text = f"{seed}:{conversation}".encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48
