"""Keeps account of what curation did to every row: kept, dropped or changed, and for what reason.

`read` makes a `Ledger` from a file, a folder or a hub id. `pipeline` and `denoise` record in it
what they find and do. `write` writes the rows that remain.
"""

import collections
import contextlib
import dataclasses
import gzip
import json
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_jax.data import formats
from rm_jax.data.columns import Given, parse_columns, texts_of_columns, value_of, with_value
from rm_jax.data.read import Row, read_rows
from rm_jax.data.report import DataError, Report, RowError, shown
from rm_jax.data.verdict import swapped, verdict
from rm_jax.types import Example


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """One finding about one row.

  Attributes:
    origin: where the row came from, 'file:line' or similar.
    reason: snake_case word that it is counted under.
    detail: what was found, in words.
  """

  origin: str
  reason: str
  detail: str


@dataclasses.dataclass
class FullReport(Report):
  """A `Report` that lists every dropped row, where a plain one keeps a few for each reason."""

  entries: list[Entry] = dataclasses.field(default_factory=list)

  def drop(self, reason: str, origin: str, detail: str, *, fault: bool = True) -> None:
    """Counts a row as dropped, as `Report.drop` does, and lists it."""
    self.entries.append(Entry(origin, reason, detail))
    super().drop(reason, origin, detail, fault=fault)


class Ledger:
  """Rows, the examples read from them, and what was decided about each.

  Args:
    rows: N rows as they were read.
    examples: the N examples of these rows.
    unreadable: rows that were dropped when read, because no example could be made of them.
    columns: our column -> the rows' own, where they have other names (`data.columns`).

  Attributes:
    rows: as given; `change` replaces a row by a changed copy.
    examples: as given; `change` replaces the example of a changed row.
    kept: indices of the rows that are not dropped, in order.
    dropped, changed, noted: entries in the order in which they were made; `dropped` begins with
      `unreadable`. A note is a finding that leaves the row as it is.
    unread: names of files in the folder that were not read, as in `Report.unread`.

  Raises:
    ValueError: the numbers of rows and examples differ.
  """

  def __init__(
    self,
    rows: list[Row],
    examples: list[Example],
    unreadable: tuple[Entry, ...] = (),
    columns: Mapping[str, str] | None = None,
  ):
    if len(rows) != len(examples):
      raise ValueError(f"{len(rows)} rows and {len(examples)} examples; expected as many")
    self.rows, self.examples = list(rows), list(examples)
    self.dropped: list[Entry] = list(unreadable)
    self.changed: list[Entry] = []
    self.noted: list[Entry] = []
    self.unread: list[str] = []
    self._columns = dict(columns or {})
    self._read = len(rows) + len(unreadable)
    self._kept = [True] * len(rows)
    self._changed: set[int] = set()

  @property
  def kept(self) -> list[int]:
    """Indices of the rows that are not dropped, in order."""
    return [i for i, kept in enumerate(self._kept) if kept]

  def drop(self, index: int, reason: str, detail: str) -> None:
    """Drops a row.

    Raises:
      ValueError: the row was dropped before. Each row is dropped for one reason only, so that the
        counts of all reasons add up to the number of dropped rows.
    """
    if not self._kept[index]:
      raise ValueError(f"{self.examples[index].origin}: dropped twice, the second for {reason!r}")
    self._kept[index] = False
    self.dropped.append(Entry(self.examples[index].origin, reason, detail))

  def change(self, index: int, reason: str, detail: str, row: Row, example: Example) -> None:
    """Replaces a kept row and its example by others.

    Raises:
      ValueError: the row was dropped before.
    """
    if not self._kept[index]:
      raise ValueError(
        f"{self.examples[index].origin}: changed for {reason!r} after it was dropped"
      )
    self.rows[index], self.examples[index] = row, example
    self._changed.add(index)
    self.changed.append(Entry(example.origin, reason, detail))

  def flip(self, index: int, reason: str, detail: str) -> None:
    """Reverses a row's label: the other response is now the better one, as surely as before.

    The columns chosen and rejected (or those that `columns` maps to these) swap their values, and
    so do pairs of columns such as `score_chosen` and `score_rejected`. The label stays, a
    `preference` too: it now speaks of the response that took the other's place. What was said of a
    response, such as its author, goes with it.

    Raises:
      DataError: the row has no columns of these two names.
      ValueError: the row was dropped before, or is a tie, which has no reverse.
    """
    row, example = self.rows[index], self.examples[index]
    if not verdict(example):
      raise ValueError(f"{example.origin}: a tie cannot be flipped")
    sides = self._column("chosen"), self._column("rejected")
    pairs = {}
    for one in dict.fromkeys((*row, sides[0])):
      other = sides[1] if one == sides[0] else one.replace("chosen", "rejected")
      if one == sides[0] or ("chosen" in one and other in row and not {one, other} & {*sides}):
        pairs[one] = other
    turned = row
    try:
      for one, other in pairs.items():
        turned = with_value(turned, one, value_of(row, other))
        turned = with_value(turned, other, value_of(row, one))
    except RowError as error:
      raise DataError(
        f"{example.origin}: columns {sorted(row)}; a flip needs {sides[0]!r} and {sides[1]!r}. "
        "Choose the policy 'drop' or 'downweight'."
      ) from error
    if example.margin is not None or row.get("margin") is not None:
      detail += "; its margin was left as it is"
    flipped = dataclasses.replace(
      swapped(example), labels=example.labels, pairs=example.pairs, ties=example.ties
    )
    self.change(index, reason, f"{detail}; swapped {', '.join(pairs)}", turned, flipped)

  def reweigh(self, index: int, reason: str, detail: str, factor: float) -> None:
    """Multiplies a row's weight by `factor`; a row without a weight has weight 1.

    The column is `weight`, or the one that `columns` maps to it.

    Raises:
      ValueError: the row was dropped before.
    """
    example = self.examples[index]
    weight = example.weight * factor
    self.change(
      index,
      reason,
      f"{detail}; weight {example.weight:g} -> {weight:g}",
      with_value(self.rows[index], self._column("weight"), weight),
      dataclasses.replace(example, weight=weight),
    )

  def _column(self, name: str) -> str:
    """The rows' own name of one of our columns."""
    return self._columns.get(name, name)

  def note(self, index: int, reason: str, detail: str) -> None:
    """Lists a finding about a row that is left unchanged."""
    self.noted.append(Entry(self.examples[index].origin, reason, detail))

  def counts(self) -> dict[str, Any]:
    """Counts, as {rows: {read, kept, dropped, changed}, dropped, changed, noted: {reason: count}}.

    `rows.changed` is the number of kept rows that had at least one change. `changed` counts all
    changes, also of rows that were dropped later.
    """
    kept = self.kept
    rows = {
      "read": self._read,
      "kept": len(kept),
      "dropped": len(self.dropped),
      "changed": sum(i in self._changed for i in kept),
    }
    assert rows["read"] == rows["kept"] + rows["dropped"], rows
    by_reason = {
      name: dict(collections.Counter(entry.reason for entry in entries).most_common())
      for name, entries in self._lists().items()
    }
    return {"rows": rows, **by_reason}

  def listed(self) -> dict[str, list[dict[str, str]]]:
    """All entries as plain values: {dropped, changed, noted: [{origin, reason, detail}]}."""
    return {
      name: [dataclasses.asdict(entry) for entry in entries]
      for name, entries in self._lists().items()
    }

  def _lists(self) -> dict[str, list[Entry]]:
    return {"dropped": self.dropped, "changed": self.changed, "noted": self.noted}


def read(
  path: str | os.PathLike,
  *,
  format: str = "auto",
  strict: bool = False,
  source: str | None = None,
  limit: int | None = None,
  columns: Given = None,
) -> Ledger:
  """Reads examples together with the rows that they came from.

  Args:
    path: a file, a folder or a hub id; see `rm_jax.data.read.ACCEPTED`.
    format: of `rm_jax.data.formats`; 'auto' = by each file's columns.
    strict: whether the first bad row raises.
    source: name of the examples' source; by default as `formats.load` names it.
    limit: reading stops after this many examples; None = all are read.
    columns: our column -> the file's; see `formats.load`. The rows keep the file's names.

  Raises:
    DataError: as `formats.load`, or two rows have the same origin.
  """
  report = FullReport(strict=strict)
  options = dict(format=format, source=source, limit=limit, columns=columns)
  examples = formats.load(path, report=report, **options)
  mapping = parse_columns(columns)
  row_at = dict(read_rows(path, Report(), texts_of_columns(mapping)))
  if len({e.origin for e in examples}) < len(examples):
    raise DataError(f"{os.fspath(path)}: two rows have one origin; rename a file")
  rows = [row_at[e.origin] for e in examples]
  ledger = Ledger(rows, examples, tuple(report.entries), mapping)
  ledger.unread = report.unread
  assert report.rows == ledger.counts()["rows"]["read"]
  return ledger


def check_output(path: Path) -> None:
  """Raises DataError if a name does not end as `write` needs it, in .jsonl or .jsonl.gz.

  A command calls it before it begins, so that a wrong name is not found only after hours of work.
  """
  if not path.name.endswith((".jsonl", ".jsonl.gz")):
    raise DataError(f"{path}: output is JSON lines; expected a name with .jsonl or .jsonl.gz")


def write(
  path: str | os.PathLike, ledger: Ledger, *, format: str = "auto", columns: Given = None
) -> None:
  """Writes the kept rows as JSON lines (compressed if the name ends in .gz), all or none of them.

  The file is first written under another name and read back. It is renamed only if its examples
  have the prompts, responses, labels, weights and margins of the kept ones. An unchanged row has
  the values that were read, in the same order of columns.

  Raises:
    DataError: the name does not end in .jsonl or .jsonl.gz, no row is kept, JSON cannot hold a
      value (a date, NaN), or the file would be read back otherwise, as when rows of several formats
      are written into one file.
  """
  path = Path(path)
  check_output(path)
  kept = ledger.kept
  if not kept:
    raise DataError(f"{path}: no row is left to write; see why in {ledger.counts()['dropped']}")
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name("part." + path.name)  # The suffix stays: it says how to read the file back.
  try:
    with contextlib.ExitStack() as stack:
      file = stack.enter_context(open(part, "wb"))
      if path.suffix == ".gz":
        # The header gets no time stamp and no name, so that the same rows give the same bytes.
        file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
      for i in kept:
        file.write(_line(ledger.rows[i], ledger.examples[i].origin))
    _check_written(part, [ledger.examples[i] for i in kept], format, columns)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def _line(row: Mapping[str, Any], origin: str) -> bytes:
  """A row as a line of JSON; DataError if JSON cannot hold a value of it."""
  try:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise DataError(
      f"{origin}: {shown(row)} has a value that JSON cannot hold ({error}); leave its column out"
    ) from error
  try:
    return text.encode() + b"\n"
  except UnicodeEncodeError:
    # A column that no format reads has half of a surrogate pair, which UTF-8 cannot encode but a
    # JSON escape can.
    return json.dumps(row).encode() + b"\n"


def _check_written(path: Path, examples: list[Example], format: str, columns: Given) -> None:
  """Reads a written file back.

  Raises:
    DataError: prompts, responses, labels, weights or margins are others.
  """
  names = ("prompt", "responses", "kind", "labels", "pairs", "ties", "weight", "margin")
  fields = operator.attrgetter(*names)
  report = Report()
  again = formats.load(path, report=report, format=format, columns=columns)
  if list(map(fields, again)) != list(map(fields, examples)):
    raise DataError(
      f"{path}: {len(examples)} rows written would be read back otherwise ({report}). Files of "
      "several formats cannot go into one: curate them one by one, or name their --format."
    )
