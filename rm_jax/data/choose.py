"""Leaves out examples that a command is not asked about, each counted under its reason."""

import logging
import random
from collections.abc import Collection, Sequence

from rm_jax.data import formats
from rm_jax.data.report import DataError, Report
from rm_jax.types import Example

log = logging.getLogger(__name__)


def conversations_in(path: str, *, format: str = "auto", columns: str = "") -> set[str]:
  """The conversations of data that are to be left out, as those that are judged are read.

  Args:
    path: file, folder or hub id.
    format, columns: as `formats.load` takes them, of the data that they are left out of. A file
      that does not have these columns is read by our own names.

  Raises:
    DataError, OSError: as `formats.load`.
  """
  report = Report()
  try:
    examples = formats.load(path, report=report, format=format, columns=columns)
  except DataError as error:
    if not columns:
      raise
    report = Report()
    try:
      examples = formats.load(path, report=report)
    except DataError:
      raise error from None
    log.warning("%s: is read by our own names, not by %r: %s", path, columns, error)
  if report.dropped:
    log.warning("%s: what cannot be read of it is not left out: %s", path, report)
  return {e.conversation for e in examples}


def without(
  examples: Sequence[Example], conversations: Collection[str], where: str, report: Report
) -> list[Example]:
  """The examples whose conversation is none of `conversations`.

  Args:
    examples: of any kind.
    conversations: keys of those that are left out.
    where: the data that have them, for the report.
    report: counts the others as 'excluded'.
  """
  kept = []
  for example in examples:
    if example.conversation in conversations:
      report.drop("excluded", example.origin, f"its conversation is in {where}", fault=False)
    else:
      kept.append(example)
  return kept


def sampled(
  examples: Sequence[Example], limit: int, report: Report, seed: int = 0
) -> list[Example]:
  """`limit` of the examples in their order, drawn at random; all where there are no more, or for 0.

  Args:
    examples: of any kind.
    limit: how many; 0 = all.
    report: counts the others as 'not_sampled'.
    seed: of the draw.
  """
  if not 0 < limit < len(examples):
    return list(examples)
  drawn = set(random.Random(seed).sample(range(len(examples)), limit))
  for i, example in enumerate(examples):
    if i not in drawn:
      report.drop("not_sampled", example.origin, f"--limit={limit}", fault=False)
  return [examples[i] for i in sorted(drawn)]
