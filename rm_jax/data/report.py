"""What became of every row: `Report` counts it, `RowError` is one row's fault, `DataError` stops.

A row is read, and then kept or dropped for a reason that is counted: no stage loses one silently.
The one `Report` of a run goes from stage to stage, so `kept` is right after the last of them.
"""

import collections
import dataclasses

from rm_jax.errors import InputError

_SHOWN = 3  # rows remembered for each reason: enough to go and look, however many were dropped
_WIDTH = 160  # characters of found text in a message: a reward model's rows can be books


class DataError(InputError):
  """The data cannot be used as they are; the message says where, what was found, and the mend."""


class RowError(Exception):
  """One row is bad. `reason` is a snake_case word to count by; `detail`: found; expected."""

  def __init__(self, reason: str, detail: str):
    super().__init__(f"{reason}: {detail}")
    self.reason = reason
    self.detail = detail


@dataclasses.dataclass
class Report:
  """Counts of rows read and dropped, shared by all stages from the file to the packed batch.

  Attributes:
    strict: whether the first bad row raises instead of being counted.
    rows: rows read so far, good and bad; whoever reads a row adds it, before it can be dropped.
    dropped: rows dropped, by reason.
    examples: for each reason the first few as 'origin: detail'.
    unread: files of a folder that were passed over because their name is of no accepted kind.
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
      reason: snake_case word that it is counted by.
      origin: where the row came from, 'file:line'.
      detail: what was found and what was expected.
      fault: False where nothing is wrong with the row, and it is left out on purpose.

    Raises:
      DataError: if `strict` and a fault, naming origin, reason and detail.
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
  """`value` for a message: its repr, which escapes what cannot be printed, cut to a line."""
  text = repr(value)
  return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
