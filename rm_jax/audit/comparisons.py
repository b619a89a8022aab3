"""Comparisons of two responses, from feedback of several kinds, and random draws from lists."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from rm_jax.data.dialogue import plain
from rm_jax.data.feedback import outweighs
from rm_jax.types import Example, Text

# Kinds of feedback in which people compared responses; in the others they judged each by itself.
PREFERENCES = ("pair", "ranking")

_Item = TypeVar("_Item")
# In a list of more than 2 * _OTHERS + 1 responses `compared` does not compare all pairs: it draws
# 2 * _OTHERS others for each response.
_OTHERS = 8


class Comparison(NamedTuple):
  """Two responses of which people preferred one.

  Attributes:
    prompt: the prompt that both responses answer.
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

  Response i is preferred to j if `example.pairs` has more weight for i over j than for j over i, by
  more than rounding, or, where it is None, if i has the higher label. A tie gives no comparison,
  and neither does an example of kind 'step' or 'attributes'.

  K responses have up to K (K − 1) / 2 comparisons. If K is above 17, each response is compared with
  16 others, drawn at random but the same in every call, so that the cost is linear in K.
  """
  if example.kind in ("step", "attributes"):
    return []
  count, label, seen = len(example.responses), example.labels, example.pairs
  asked: Iterable[tuple[int, int]]
  if count <= 2 * _OTHERS + 1:
    asked = itertools.permutations(range(count), 2)
  else:
    # The responses stand in a random circle, and each is compared with the 8 responses that stand
    # at 8 randomly drawn distances further along it. So each takes part in exactly 16 comparisons.
    rng = np.random.default_rng(count)
    ring = rng.permutation(count).tolist()
    steps = rng.choice(np.arange(1, (count - 1) // 2 + 1), _OTHERS, replace=False).tolist()
    both = ((ring[at], ring[(at + step) % count]) for step in sorted(steps) for at in range(count))
    asked = ((i, j) for pair in both for i, j in (pair, pair[::-1]))
  if seen is None:
    return [(i, j) for i, j in asked if label[i] > label[j]]
  return [(i, j) for i, j in asked if outweighs(seen[i][j], seen[j][i])]


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
  """`sample` items drawn without replacement, in their old order; all if there are no more items.

  Raises:
    ValueError: sample is below 1.
  """
  if sample < 1:
    raise ValueError(f"sample is {sample}; expected at least 1")
  if len(items) <= sample:
    return list(items)
  at = np.random.default_rng(seed).choice(len(items), sample, replace=False)
  return [items[i] for i in np.sort(at)]


def of_others(
  few: Sequence[Comparison], every: Sequence[Comparison], seed: int
) -> list[Comparison]:
  """For each of a sample of comparisons one of another conversation; of the sample, if it has any.

  Raises:
    ValueError: all comparisons are of one conversation.
  """
  if len({p.conversation for p in few}) > 1:
    return [few[j] for j in elsewhere([p.conversation for p in few], seed)]
  others = [p for p in every if p.conversation != few[0].conversation]
  if not others:
    raise ValueError("1 conversation(s); another one's text needs at least 2")
  return [others[j] for j in np.random.default_rng(seed).integers(len(others), size=len(few))]


def elsewhere(conversations: Sequence[str], seed: int) -> list[int]:
  """For each item the index of another item, drawn from a different conversation.

  The conversations are put in a random cycle, and all items of one conversation are given items of
  the next. So no conversation is given its own items, and each gives its items to one other.

  Args:
    conversations: the conversation of each item.
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
  """(prompt, one drawn response) of each conversation, in order of first occurrence.

  No two rows are of one conversation, since tests for drift assume independent rows.

  Args:
    examples: feedback on whole responses. The first example of each conversation is used.
    limit: largest number of rows; if there are more conversations, this many are drawn.
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
