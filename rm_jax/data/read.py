"""Reads rows from JSON lines, CSV and TSV (plain or gzip), parquet, a folder, or a hub data set.

What a row's columns mean is the business of `rm_jax.data.formats`; here a row is a dict.
"""

import codecs
import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

from rm_jax.data import hub
from rm_jax.data.report import DataError, Report, RowError, shown
from rm_jax.data.tables import no_constant, read_table, unique
from rm_jax.storage.files import expanded

Row = dict[str, object]

ACCEPTED = (
  "JSON lines (.jsonl, .json), CSV (.csv), TSV (.tsv), each also with .gz, parquet (.parquet), a "
  "folder of these, or a data set of the hub as 'org/name', 'org/name:split' or "
  "'org/name@config:split'"
)
_GZIP = b"\x1f\x8b"
_PARQUET_BATCH = 256  # Rows decoded at once: few enough to bound memory, enough to be fast.


@dataclasses.dataclass(frozen=True, slots=True)
class File:
  """One file to read: `name` is what error messages call it, `path` is where its bytes are."""

  name: str
  path: pathlib.Path


def files(path: str | os.PathLike, report: Report) -> list[File]:
  """Lists the files that `path` stands for, in the order in which they are read.

  A path that exists takes precedence over a hub id of the same name. A folder is read with its
  sub-folders, sorted by path, without hidden files; `report.unread` lists files of other kinds. CSV
  and TSV are of another kind where the folder has JSON lines or parquet: there they hold notes.

  Raises:
    DataError: if there is nothing at `path`, nothing readable in it, a folder holds the same file
      both plain and with .gz, or as `hub.fetch`.
    InputError: `path` begins with '~name', and there is no such user.
  """
  text = os.fspath(path)
  local = expanded(text)
  if local.is_dir():
    found, others = hub.data_files(local)
    report.unread += [str(local / other) for other in others]
    if not found:
      raise DataError(f"{text}: no file to read in this folder. Accepted: {ACCEPTED}.")
    hub.check_once(text, found)
    return [File(str(local / relative), local / relative) for relative in found]
  if local.exists():
    if not hub.kind(local):
      raise DataError(f"{text}: not a kind of file that is read here. Accepted: {ACCEPTED}.")
    return [File(text, local)]
  dataset = None if hub.kind(local) else hub.parse(text)
  if dataset is None:
    raise DataError(f"{text}: no such file or folder. Accepted: {ACCEPTED}.")
  root, found = hub.fetch(dataset)
  return [File(f"{dataset.repo}/{relative}", root / relative) for relative in found]


def read_rows(
  path: str | os.PathLike, report: Report, texts: Mapping[str, bool] | None = None
) -> Iterator[tuple[str, Row]]:
  """Yields (origin, row) of all rows at `path`, lazily; bad rows are dropped and counted.

  Args:
    path: a file, a folder, or a hub id; see `ACCEPTED`.
    report: counts the rows, and decides whether a bad one raises.
    texts: of CSV, column -> whether it holds texts, for names that the rule of `rm_jax.data.tables`
      should not decide.

  Returns:
    An iterator of ('file:line', row), lines counted from 1; ('file:row N', row) for parquet, rows
    counted from 0 as pandas does.

  Raises:
    DataError, InputError: immediately, as `files`.
    DataError: while reading: a file is a JSON array, or its columns cannot be read or two have one
      name; or, if `report` is strict, a row is bad.
  """
  found = files(path, report)
  return itertools.chain.from_iterable(read_file(file, report, texts) for file in found)


def read_file(
  file: File, report: Report, texts: Mapping[str, bool] | None = None
) -> Iterator[tuple[str, Row]]:
  """Yields (origin, row) of one file; see `read_rows`."""
  kind = hub.kind(file.path)
  if kind == "parquet":
    return _read_parquet(file, report)
  return _read_table(file, report, texts or {}) if kind == "csv" else _read_json_lines(file, report)


def _opened(path: pathlib.Path) -> IO[bytes]:
  """Opens a file, gzipped or not; its content decides, because a suffix may be wrong."""
  with open(path, "rb") as file:
    zipped = file.read(2) == _GZIP
  return gzip.open(path, "rb") if zipped else open(path, "rb")


def _read_table(file: File, report: Report, texts: Mapping[str, bool]) -> Iterator[tuple[str, Row]]:
  """Yields (origin, row) of a file of CSV or TSV, gzipped or not."""
  separator = "\t" if ".tsv" in file.path.name.lower()[-7:] else ","
  with _opened(file.path) as lines:
    yield from read_table(lines, file.name, separator, report, texts)


def _read_json_lines(file: File, report: Report) -> Iterator[tuple[str, Row]]:
  """Yields (origin, row) of a file of JSON lines, gzipped or not.

  A damaged gzip stream ends the reading and counts as one dropped row.
  """
  with _opened(file.path) as lines:
    first = True
    for number in itertools.count(1):
      origin = f"{file.name}:{number}"
      try:
        # Lines are read as bytes and end at \n only. `str.splitlines` would also split at U+2028
        # and the like, which JSON strings may contain unescaped.
        line = lines.readline()
      except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        report.rows += 1  # The row that the damage cuts. Rows behind it cannot even be counted.
        found = f"the gzip stream breaks off here ({error}); expected the whole file: fetch it anew"
        report.drop("damaged_file", origin, found)
        return
      if not line:
        return
      line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
      if not line.strip():
        continue
      if first and line.lstrip().startswith(b"["):
        raise DataError(
          f"{origin}: a JSON array; expected one object a line. Mend: jq -c '.[]' FILE > FILE.jsonl"
        )
      first = False
      report.rows += 1
      try:
        row = parse_line(line)
      except RowError as error:
        report.drop(error.reason, origin, error.detail)
        continue
      yield origin, row


def parse_line(line: bytes) -> Row:
  """Parses one line as one JSON object.

  Raises:
    RowError: invalid_utf8, invalid_json (NaN and Infinity are not JSON either), not_an_object, or
      duplicate_key: JSON does not say which of the two values holds.
  """
  try:
    text = line.decode("utf-8")
  except UnicodeDecodeError as error:
    found = f"byte {line[error.start]:#04x} at column {error.start + 1}; expected UTF-8"
    raise RowError("invalid_utf8", found) from error
  try:
    row = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
  except (ValueError, RecursionError) as error:
    raise RowError("invalid_json", f"{error} in {shown(text.strip())}; expected JSON") from error
  if not isinstance(row, dict):
    found = f"{type(row).__name__} {shown(row)}; expected an object {{column: value}}"
    raise RowError("not_an_object", found)
  return row


def _read_parquet(file: File, report: Report) -> Iterator[tuple[str, Row]]:
  """Yields (origin, row) of a parquet file; damage ends the reading, as one dropped row."""
  import pyarrow  # Imported here: it is slow, and many runs read no parquet.
  import pyarrow.parquet

  number = 0
  try:
    with pyarrow.parquet.ParquetFile(file.path) as table:
      columns = table.schema_arrow.names
      if len(set(columns)) < len(columns):
        raise DataError(f"{file.name}: two columns of one name in {columns}; rename one of them.")
      for batch in table.iter_batches(batch_size=_PARQUET_BATCH):
        for row in _rows_of(batch):
          origin = f"{file.name}:row {number}"
          number += 1
          report.rows += 1
          if isinstance(row, UnicodeDecodeError):
            report.drop("invalid_utf8", origin, f"{row}; expected UTF-8 text")
            continue
          yield origin, row
  # UnicodeDecodeError is for the names of columns; `_rows_of` handles those of values.
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
    report.rows += 1
    found = (
      f"not readable as parquet from here on ({error}); expected the whole file: fetch it anew"
    )
    report.drop("damaged_file", f"{file.name}:row {number}", found)


def _rows_of(batch) -> list[Row | UnicodeDecodeError]:
  """The rows of a pyarrow RecordBatch; an undecodable row is replaced by its error."""
  try:
    return batch.to_pylist()
  except UnicodeDecodeError:
    pass  # Decode row by row below, so that only the undecodable rows are lost.
  rows = []
  for index in range(batch.num_rows):
    try:
      rows += batch.slice(index, 1).to_pylist()
    except UnicodeDecodeError as error:
      rows.append(error)
  return rows
