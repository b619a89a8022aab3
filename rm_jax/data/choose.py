"""Leaves out examples that a command is not asked about, each counted under its reason."""

import random
from collections.abc import Collection, Sequence

from rm_jax.data.report import Report
from rm_jax.types import Example


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
