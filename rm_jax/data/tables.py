"""Reads rows from CSV and TSV: a header row, quoted fields, UTF-8; what a cell's text stands for.

A cell is text, for CSV has nothing else. One rule says what it stands for:

- In a column that holds texts (`TEXTS`, by its name), a cell stays the text that it is: a prompt
  "7" is the text "7". Only JSON messages are read as such: a list of them, or one, which is a list
  of one if it is {role, content}, and itself if it is the {from, value} that some layouts have.
- In every other column a cell that is JSON (a number, true or false, null, a list, an object, a
  string in its quotes) is that value, an empty cell is null, and any other cell stays text. True
  and TRUE are true, and False and FALSE false, since pandas and spreadsheets write them so.

A caller may say of single columns whether they hold texts (`read_table`).
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

from rm_jax.data.report import DataError, Report, RowError, shown

# The names of columns that hold texts, alone or with a number or a letter behind: response_0.
TEXTS = re.compile(
  "(?:prompt|chosen|rejected|response|completion|instruction|input|output|question|answer|system|"
  r"history|context|problem|text|src|prediction|human_ref)(?:[ _]?\d+|_[a-zA-Z])?"
)
_BOOLS = {"True": True, "TRUE": True, "False": False, "FALSE": False}
_ROLE = {"role", "content"}
_MESSAGES = (_ROLE, {"from", "value"})
_UNDECODED = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes
# What pandas writes to CSV of a list of messages.
_PYTHON = re.compile(r"\s*\[?\s*\{'(?:role|content|from|value)': ")
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
_LARGEST = 2**30  # Characters of a field. The csv module's own limit is 131,072, less than a book.


def read_table(
  lines: IO[bytes], name: str, separator: str, report: Report, texts: Mapping[str, bool]
) -> Iterator[tuple[str, dict[str, object]]]:
  """Yields (origin, row) of a CSV file; bad rows are dropped and counted.

  Args:
    lines: the file, opened for reading bytes.
    name: what error messages call the file.
    separator: between fields, ',' or a tab.
    report: counts the rows.
    texts: column -> whether it holds texts, for names that the rule should not decide.

  Returns:
    An iterator of ('file:line', {column: value}), the line being the row's first one.

  Raises:
    DataError: the header cannot be read, or names a column twice; or a bad row, if `report` is
      strict.
  """
  csv.field_size_limit(_LARGEST)
  # Undecodable bytes become lone surrogates, so that only their row is lost.
  rows = csv.reader(_decoded(lines), delimiter=separator, strict=True)
  try:
    header = _header(rows, name)
  except _DAMAGE as error:
    raise DataError(f"{name}:1: {_damage(error)}") from error
  if header is None:
    return
  text = [texts.get(column, bool(TEXTS.fullmatch(column))) for column in header]
  while True:
    origin = f"{name}:{rows.line_num + 1}"
    try:
      cells = next(rows)
      if not cells:  # An empty line.
        continue
      report.rows += 1
      _check(cells, header)
      values = [cell_of(cell, is_text) for cell, is_text in zip(cells, text, strict=True)]
    except StopIteration:
      return
    except csv.Error as error:
      report.rows += 1
      report.drop("invalid_csv", origin, _csv_error(error))
      continue
    except _DAMAGE as error:
      report.rows += 1  # The row that the damage cuts. Rows behind it cannot even be counted.
      report.drop("damaged_file", origin, _damage(error))
      return
    except RowError as error:
      report.drop(error.reason, origin, error.detail)
      continue
    yield origin, dict(zip(header, values, strict=True))


def cell_of(cell: str, text: bool) -> object:
  """What a cell stands for; `text` says whether its column holds texts. See the module.

  Raises:
    RowError: duplicate_key, in an object; wrong_type, for messages as Python prints them, which
      would be trained on as a text.
  """
  if text:
    value = _json(cell) if cell.lstrip().startswith(("[", "{")) else None
    some = value if isinstance(value, list) else [value]
    if not some or not all(map(_is_message, some)):
      if value == cell and _PYTHON.match(cell):
        raise RowError(
          "wrong_type",
          f"{shown(cell)} is messages as Python prints them; expected them as json.dumps does",
        )
      return cell
    return some if some[0].keys() >= _ROLE else value
  if not cell.strip():
    return None
  return _BOOLS[cell] if cell in _BOOLS else _json(cell)


def _is_message(value: object) -> bool:
  return isinstance(value, dict) and any(keys <= value.keys() for keys in _MESSAGES)


def _json(cell: str) -> object:
  """The value of a cell that is JSON; the cell itself if it is not."""
  try:
    return json.loads(cell, object_pairs_hook=unique, parse_constant=no_constant)
  except (ValueError, RecursionError):
    return cell


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
  """A JSON object's dict; RowError if a key occurs twice, of which `json` would keep the last."""
  made = dict(pairs)
  if len(made) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise RowError("duplicate_key", f"{shown(twice)} twice in one object; expected it once")
  return made


def no_constant(name: str) -> None:
  """Raises ValueError for NaN and Infinity, which Python's json would read."""
  raise ValueError(f"{name} is not a JSON number")


def _decoded(lines: IO[bytes]) -> Iterator[str]:
  """The lines as text. They end at \\n only, because a cell may hold any other line break."""
  first = True
  while line := lines.readline():
    line = line.removeprefix(codecs.BOM_UTF8) if first else line
    first = False
    yield line.decode("utf-8", "surrogateescape")


def _header(rows: Iterator[list[str]], name: str) -> list[str] | None:
  """The names of the columns; None if the file has no row. DataError if they cannot be used."""
  try:
    header = next((cells for cells in rows if cells), None)
    if header is not None:
      _check(header, header)
  except csv.Error as error:
    raise DataError(f"{name}:1: {_csv_error(error)}") from error
  except RowError as error:
    raise DataError(f"{name}:1: the header: {error.reason}: {error.detail}") from error
  twice = sorted({column for column in header or () if header.count(column) > 1})
  if twice:
    raise DataError(
      f"{name}:1: the header names column {twice[0]!r} twice; rename one of them. A file without a "
      "header row needs one."
    )
  return header


def _check(cells: list[str], header: list[str]) -> None:
  """Raises RowError (invalid_utf8, nul_character, wrong_fields) if a row's cells cannot be used."""
  for cell in cells:
    if cell.isascii() and "\0" not in cell:
      continue
    if bad := _UNDECODED.search(cell):
      found = f"byte {ord(bad[0]) - 0xDC00:#04x} in {shown(cell)}"
      raise RowError("invalid_utf8", f"{found}; expected UTF-8")
    if "\0" in cell:
      raise RowError("nul_character", f"a NUL character in {shown(cell)}; expected text")
  if len(cells) != len(header):
    found = f"{len(cells)} fields, from {shown(cells[0])} to {shown(cells[-1])}"
    raise RowError("wrong_fields", f"{found}; expected {len(header)}, as the header has")


def _damage(error: Exception) -> str:
  return f"the gzip stream breaks off here ({error}); expected the whole file: fetch it anew"


def _csv_error(error: csv.Error) -> str:
  """The csv module's error with what it usually means."""
  if "unexpected end of data" in str(error):
    return "a quote is opened here and not closed in the rest of the file; expected it closed"
  return f"{error}; expected fields as RFC 4180 writes them, with a quote inside quotes doubled"
