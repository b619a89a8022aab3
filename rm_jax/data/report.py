"""Counts what became of every row: `Report`, and the errors `RowError` and `DataError`.

Every row that is read is either kept, or dropped for a reason that is counted; no stage may lose a
row silently. All stages that a row passes share one `Report`, so `kept` is right after the last.
"""

import collections
import dataclasses

from rm_jax.errors import InputError

_SHOWN = 3  # Dropped rows that are remembered for each reason, as examples to look at.
_WIDTH = 160  # Characters of a value in a message. A row's text may be as long as a book.


class DataError(InputError):
  """The data cannot be used. The message says where, what was found, and how to mend it."""


class RowError(Exception):
  """One row is bad.

  Attributes:
    reason: snake_case word that the row is counted under.
    detail: what was found and what was expected.
  """

  def __init__(self, reason: str, detail: str):
    super().__init__(f"{reason}: {detail}")
    self.reason = reason
    self.detail = detail


@dataclasses.dataclass
class Report:
  """Counts of rows read and dropped, shared by all stages from the file to the packed batch.

  Attributes:
    strict: whether the first bad row raises DataError, besides being counted.
    rows: rows read so far, good and bad. The reader counts a row here before any stage may drop it.
    dropped: reason -> number of rows dropped.
    examples: reason -> the first few dropped rows as 'origin: detail'.
    unread: files that were found and not read, such as those of a folder that are of no accepted
      kind.
  """

  strict: bool = False
  rows: int = 0
  dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  unread: list[str] = dataclasses.field(default_factory=list)

  @property
  def kept(self) -> int:
    """Rows read and not dropped by any stage so far."""
    return self.rows - self.dropped.total()

  def drop(self, reason: str, origin: str, detail: str, *, fault: bool = True) -> None:
    """Counts a row as dropped.

    Args:
      reason: snake_case word that the row is counted under.
      origin: where the row came from, 'file:line'.
      detail: what was found and what was expected.
      fault: False if nothing is wrong with the row and it is left out on purpose; it then does not
        raise even if `strict`.

    Raises:
      DataError: if `strict` and `fault`; the message has the origin, reason and detail.
    """
    self.dropped[reason] += 1
    seen = self.examples.setdefault(reason, [])
    if len(seen) < _SHOWN:
      seen.append(f"{origin}: {detail}")
    if self.strict and fault:
      raise DataError(
        f"{origin}: {reason}: {detail}. Mend the row, or read with strict off to drop and count it."
      )

  def __str__(self) -> str:
    lines = [f"{self.kept} of {self.rows} rows kept"]
    for reason, count in self.dropped.most_common():
      lines.append(f"  dropped {count}: {reason}")
      lines += [f"    {example}" for example in self.examples[reason]]
    if self.unread:
      lines.append(f"  files not read: {', '.join(self.unread)}")
    return "\n".join(lines)


def shown(value: object) -> str:
  """Formats `value` for a message: its repr, which escapes control characters, cut to 160."""
  text = repr(value)
  return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
