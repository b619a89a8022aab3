"""What became of every row: kept, dropped or changed, each for a reason, none unlisted.

`read` makes a `Ledger` of a file; the parts of this room find things, and `drop`, `change` and
`note` write down what was done about them; `write` writes the rows that are left.
"""

import collections
import contextlib
import dataclasses
import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_jax.data import formats
from rm_jax.data.read import Row, read_rows
from rm_jax.data.report import DataError, Report, shown
from rm_jax.types import Example


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """One thing that was found of one row: where it came from, the reason, and what was found."""

  origin: str
  reason: str
  detail: str


@dataclasses.dataclass
class FullReport(Report):
  """A `Report` that keeps every dropped row and not the first few of each reason."""

  entries: list[Entry] = dataclasses.field(default_factory=list)

  def drop(self, reason: str, origin: str, detail: str, *, fault: bool = True) -> None:
    """As `Report.drop`, and lists it."""
    self.entries.append(Entry(origin, reason, detail))
    super().drop(reason, origin, detail, fault=fault)


class Ledger:
  """Rows with the examples read from them, and what was decided of each.

  Args:
    rows: N rows as they were read.
    examples: N examples, of those rows.
    unreadable: rows that are no example, dropped when read.

  Attributes:
    rows: as given; `change` replaces one by a changed copy.
    examples: as given; `change` replaces one too.
    kept: indices of rows not dropped, in order.
    dropped, changed, noted: what was done, in order; `noted` rows were left as they are.
    unread: files of a folder that were passed over, as `Report.unread`.

  Raises:
    ValueError: there are not as many rows as examples.
  """

  def __init__(self, rows: list[Row], examples: list[Example], unreadable: tuple[Entry, ...] = ()):
    if len(rows) != len(examples):
      raise ValueError(f"{len(rows)} rows and {len(examples)} examples; expected as many")
    self.rows, self.examples = list(rows), list(examples)
    self.dropped: list[Entry] = list(unreadable)
    self.changed: list[Entry] = []
    self.noted: list[Entry] = []
    self.unread: list[str] = []
    self._read = len(rows) + len(unreadable)
    self._kept = [True] * len(rows)
    self._changed: set[int] = set()

  @property
  def kept(self) -> list[int]:
    """Indices of the rows not dropped, in order."""
    return [i for i, kept in enumerate(self._kept) if kept]

  def drop(self, index: int, reason: str, detail: str) -> None:
    """Drops a row.

    Raises:
      ValueError: it was dropped before; a row goes for one reason, so that counts add up.
    """
    if not self._kept[index]:
      raise ValueError(f"{self.examples[index].origin}: dropped twice, the second for {reason!r}")
    self._kept[index] = False
    self.dropped.append(Entry(self.examples[index].origin, reason, detail))

  def change(self, index: int, reason: str, detail: str, row: Row, example: Example) -> None:
    """Puts another row and its example in the place of one that is kept."""
    if not self._kept[index]:
      raise ValueError(
        f"{self.examples[index].origin}: changed for {reason!r} after it was dropped"
      )
    self.rows[index], self.examples[index] = row, example
    self._changed.add(index)
    self.changed.append(Entry(example.origin, reason, detail))

  def flip(self, index: int, reason: str, detail: str) -> None:
    """Swaps chosen and rejected, and columns named after them (`score_chosen` ...).

    Raises:
      DataError: the row does not keep its sides in columns of these names.
    """
    row, example = self.rows[index], self.examples[index]
    columns = [c for c in row if "chosen" in c and c.replace("chosen", "rejected") in row]
    if "chosen" not in columns:
      raise DataError(
        f"{example.origin}: columns {sorted(row)}; a flip needs 'chosen' and 'rejected'. "
        "Choose the policy 'drop' or 'downweight'."
      )
    swapped = dict(row)
    for column in columns:
      other = column.replace("chosen", "rejected")
      swapped[column], swapped[other] = row[other], row[column]
    if row.get("margin") is not None:
      detail += "; its margin was left as it is"
    flipped = dataclasses.replace(
      example,
      responses=example.responses[::-1],
      truth=None if example.truth is None else example.truth[::-1],
    )
    self.change(index, reason, f"{detail}; swapped {', '.join(columns)}", swapped, flipped)

  def reweigh(self, index: int, reason: str, detail: str, factor: float) -> None:
    """Multiplies a row's weight, 1 where it has none."""
    example = self.examples[index]
    weight = example.weight * factor
    self.change(
      index,
      reason,
      f"{detail}; weight {example.weight:g} -> {weight:g}",
      {**self.rows[index], "weight": weight},
      dataclasses.replace(example, weight=weight),
    )

  def note(self, index: int, reason: str, detail: str) -> None:
    """Lists a row that is left as it is."""
    self.noted.append(Entry(self.examples[index].origin, reason, detail))

  def counts(self) -> dict[str, Any]:
    """{rows: {read, kept, dropped, changed}, dropped, changed, noted: counts by reason}.

    `rows.changed` counts kept rows that differ from what was read, whatever the number of changes.
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
    """Every row that was dropped, changed or noted, as plain values."""
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
) -> Ledger:
  """Reads pairs and the rows that they came from.

  Args:
    path: a file, a folder or a hub id; see `rm_jax.data.read.ACCEPTED`.
    format: of `rm_jax.data.formats`; 'auto' = by each file's columns.
    strict: whether the first bad row raises.
    source: of the examples; by default each file's name.
    limit: stop after this many pairs.

  Raises:
    DataError: as `formats.load`; or two files were given one origin.
  """
  report = FullReport(strict=strict)
  examples = formats.load(path, report=report, format=format, source=source, limit=limit)
  row_at = dict(read_rows(path, Report()))
  if len({e.origin for e in examples}) < len(examples):
    raise DataError(f"{os.fspath(path)}: two rows have one origin; rename a file")
  ledger = Ledger([row_at[e.origin] for e in examples], examples, tuple(report.entries))
  ledger.unread = report.unread
  assert report.rows == ledger.counts()["rows"]["read"]
  return ledger


def check_output(path: Path) -> None:
  """Raises DataError where `write` would, for the name alone: before work is done for nothing."""
  if not path.name.endswith((".jsonl", ".jsonl.gz")):
    raise DataError(f"{path}: output is JSON lines; expected a name with .jsonl or .jsonl.gz")


def write(path: str | os.PathLike, ledger: Ledger, *, format: str = "auto") -> None:
  """Writes the rows that are kept as JSON lines (.gz: compressed), all or nothing, and reads them.

  A row that was not changed has the values that were read, in the same order of columns.

  Raises:
    DataError: the name is no .jsonl or .jsonl.gz, nothing is kept, a value has no form in JSON
      (dates, NaN), or the file would not be read back as the examples that are kept (files of
      several formats do not go into one).
  """
  path = Path(path)
  check_output(path)
  kept = ledger.kept
  if not kept:
    raise DataError(f"{path}: no row is left to write; see why in {ledger.counts()['dropped']}")
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name("part." + path.name)  # keeps the suffix, by which it is read
  try:
    with contextlib.ExitStack() as stack:
      file = stack.enter_context(open(part, "wb"))
      if path.suffix == ".gz":
        # No time stamp and no name in the header: the same rows make the same bytes.
        file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
      for i in kept:
        file.write(_line(ledger.rows[i], ledger.examples[i].origin))
    _check_written(part, [ledger.examples[i] for i in kept], format)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def _line(row: Mapping[str, Any], origin: str) -> bytes:
  try:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise DataError(
      f"{origin}: {shown(row)} has a value that JSON cannot hold ({error}); leave its column out"
    ) from error
  try:
    return text.encode() + b"\n"
  except UnicodeEncodeError:  # half a surrogate pair, in a column that is not read
    return json.dumps(row).encode() + b"\n"


def _check_written(path: Path, examples: list[Example], format: str) -> None:
  report = Report()
  again = formats.load(path, report=report, format=format)
  fields = [(e.prompt, e.responses, e.weight, e.margin) for e in examples]
  if [(e.prompt, e.responses, e.weight, e.margin) for e in again] != fields:
    raise DataError(
      f"{path}: {len(examples)} rows written would be read back otherwise ({report}). Files of "
      "several formats cannot go into one: curate them one by one, or name their --format."
    )
