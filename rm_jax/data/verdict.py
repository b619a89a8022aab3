"""What a label says of two responses: which one is better, how surely, or that they are tied.

A row's first response need not be the better one: its `preference` may be below 1/2, it may be a
tie, or it may be a ranking of two. So whatever compares two rows' labels, or a label with a score,
reads them here and not by the order of the responses.
"""

import dataclasses

from rm_jax.types import Example

COMPARED = ("pair", "ranking")


def compares_two(example: Example) -> bool:
  """Whether an example is a comparison of two responses: a pair, or a ranking of two."""
  return example.kind in COMPARED and len(example.responses) == 2


def described(example: Example) -> str:
  """The number of an example's responses and its kind, in words."""
  count = len(example.responses)
  return f"{count} response{'s' * (count != 1)} ({example.kind})"


def chance(example: Example) -> float:
  """The probability, by the label, that the first of two responses is better; a tie counts half.

  Raises:
    ValueError: the example is no comparison of two responses.
  """
  if not compares_two(example):
    raise ValueError(f"{example.origin}: {described(example)}; expected a pair")
  if example.pairs is None and example.ties is None:  # then the order of the labels says it all
    first, second = example.labels
    return float(first > second) if first != second else 0.5
  first, second = (example.pairs[0][1], example.pairs[1][0]) if example.pairs else (0.0, 0.0)
  tied = example.ties[0][1] if example.ties else 0.0
  total = first + second + tied
  return (first + tied / 2) / total if total else 0.5


def verdict(example: Example) -> int:
  """1 if the first of two responses is the better one by the label, -1 if the second is, else 0.

  Raises:
    ValueError: as `chance`.
  """
  p = chance(example)
  return (p > 0.5) - (p < 0.5)


def swapped(example: Example) -> Example:
  """The same judgement of the same two responses, in exchanged order."""

  def turned(values):
    return None if values is None else values[::-1]

  def matrix(values):
    return None if values is None else tuple(row[::-1] for row in values[::-1])

  return dataclasses.replace(
    example,
    labels=example.labels[::-1],
    pairs=matrix(example.pairs),
    ties=matrix(example.ties),
    judges=example.judges and {name: 1.0 - said for name, said in example.judges.items()},
    **{
      name: turned(getattr(example, name))
      for name in ("responses", "truth", "steps", "authors", "answers", "attributes")
    },
  )


def preferred_first(example: Example) -> Example:
  """The example with the better response, by the label, in front; as it is if the two are tied.

  Raises:
    ValueError: as `chance`.
  """
  return swapped(example) if verdict(example) < 0 else example
