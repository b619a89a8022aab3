"""Comparisons of two responses, taken from any feedback; samples of them, and exchanged prompts."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from rm_jax.data.dialogue import plain
from rm_jax.types import Example, Text

# Kinds of feedback in which people compared responses; in the others they judged each by itself.
PREFERENCES = ("pair", "ranking")

_Item = TypeVar("_Item")
# In a long list each response is compared with this many drawn others on either side, so with
# twice as many in all.
_OTHERS = 8


class Comparison(NamedTuple):
  """Two responses of which people preferred one.

  Attributes:
    prompt: that both answer.
    chosen: the preferred response.
    rejected: the other one.
    conversation: its cluster in a bootstrap; see `conversation_of`.
    quality: of (chosen, rejected): true rewards if the example has them, else ratings, else None.
  """

  prompt: Text
  chosen: Text
  rejected: Text
  conversation: str
  quality: tuple[float, float] | None


def conversation_of(example: Example) -> str:
  """The cluster of an example in a bootstrap: its conversation, or its prompt if it has none."""
  return example.conversation or plain(example.prompt)


def compared(example: Example) -> list[tuple[int, int]]:
  """The comparisons of one example: indices of (preferred, other) among its responses.

  Response i is preferred to j if `pairs` counts more judgements for i than for j or, without
  `pairs`, if its label is higher. Ties give no comparison, nor do steps and attributes.

  K responses have up to K (K − 1) / 2 comparisons. In a list of more than 17 each response is
  compared with 16 drawn others (the same in every call), so that the cost is linear in K.
  """
  if example.kind in ("step", "attributes"):
    return []
  count, label, seen = len(example.responses), example.labels, example.pairs
  asked: Iterable[tuple[int, int]]
  if count <= 2 * _OTHERS + 1:
    asked = itertools.permutations(range(count), 2)
  else:
    # Responses in a random circle, each compared with those at 8 drawn distances along it. Every
    # response then takes part in exactly 16 comparisons.
    rng = np.random.default_rng(count)
    ring = rng.permutation(count).tolist()
    steps = rng.choice(np.arange(1, (count - 1) // 2 + 1), _OTHERS, replace=False).tolist()
    both = ((ring[at], ring[(at + step) % count]) for step in sorted(steps) for at in range(count))
    asked = ((i, j) for pair in both for i, j in (pair, pair[::-1]))
  if seen is None:
    return [(i, j) for i, j in asked if label[i] > label[j]]
  return [(i, j) for i, j in asked if seen[i][j] > seen[j][i]]


def quality_of(example: Example) -> Sequence[float] | None:
  """How good each response is: true rewards if the example has them, else ratings, else None."""
  return example.labels if example.truth is None and example.kind == "score" else example.truth


def each_comparison(examples: Sequence[Example]) -> Iterator[Comparison]:
  """Yields the comparisons of all examples (see `compared`) in order; there may be none."""
  for example in examples:
    quality = quality_of(example)
    for i, j in compared(example):
      yield Comparison(
        example.prompt,
        example.responses[i],
        example.responses[j],
        conversation_of(example),
        None if quality is None else (quality[i], quality[j]),
      )


def comparisons(examples: Sequence[Example]) -> list[Comparison]:
  """The comparisons of all examples as a list.

  Raises:
    ValueError: there is none.
  """
  found = list(each_comparison(examples))
  if not found:
    kinds = sorted({e.kind for e in examples})
    raise ValueError(f"examples: no comparison in {len(examples)} of kinds {kinds}; expected some")
  return found


def sampled(items: Sequence[_Item], sample: int, seed: int) -> list[_Item]:
  """`sample` items drawn without replacement, in their order; all items if there are no more.

  Raises:
    ValueError: sample is below 1.
  """
  if sample < 1:
    raise ValueError(f"sample is {sample}; expected at least 1")
  if len(items) <= sample:
    return list(items)
  at = np.random.default_rng(seed).choice(len(items), sample, replace=False)
  return [items[i] for i in np.sort(at)]


def elsewhere(conversations: Sequence[str], seed: int) -> list[int]:
  """For each item the index of a drawn item of another conversation.

  The map between conversations is a derangement: they are put in a random cycle and each takes its
  items from the next, so that none takes from itself and each is taken from by exactly one.

  Args:
    conversations: of each item.
    seed: of the draw.

  Raises:
    ValueError: fewer than 2 conversations.
  """
  members: dict[str, list[int]] = {}
  for i, conversation in enumerate(conversations):
    members.setdefault(conversation, []).append(i)
  if len(members) < 2:
    raise ValueError(f"{len(members)} conversation(s); another one's text needs at least 2")
  rng = np.random.default_rng(seed)
  names = [list(members)[i] for i in rng.permutation(len(members))]
  after = dict(zip(names, [*names[1:], names[0]], strict=True))
  taken = (members[after[conversation]] for conversation in conversations)
  return [places[int(rng.integers(len(places)))] for places in taken]


def one_each(examples: Sequence[Example], limit: int, seed: int) -> list[tuple[Text, Text]]:
  """(prompt, one drawn response) of each conversation, in order: independent rows.

  Args:
    examples: of whole responses. The first example of each conversation is used.
    limit: largest number of rows; of more conversations this many are drawn.
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  first: dict[str, Example] = {}
  for example in examples:
    first.setdefault(conversation_of(example), example)
  kept = list(first.values())
  if len(kept) > limit:
    kept = [kept[i] for i in np.sort(rng.choice(len(kept), limit, replace=False))]
  return [(e.prompt, e.responses[int(rng.integers(len(e.responses)))]) for e in kept]
