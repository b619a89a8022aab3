"""What the sections do with examples: comparisons, samples, other prompts, texts, scores."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from rm_jax.data.dialogue import plain, texts_of
from rm_jax.types import Example, Text

# Scores rows of (prompt, response): float [N].
Score = Callable[[Sequence[tuple[Text, Text]]], np.ndarray]
_Item = TypeVar("_Item")
_OTHERS = 8  # steps round the ring of a long list: each response meets twice as many others


class Comparison(NamedTuple):
  """Two responses of which people preferred one.

  Attributes:
    prompt, chosen, rejected: texts.
    conversation: what it is resampled with; the prompt's text where the example has none.
    quality: how good chosen and rejected are: true rewards, where the example knows them, else
      ratings.
  """

  prompt: Text
  chosen: Text
  rejected: Text
  conversation: str
  quality: tuple[float, float] | None


def last(text: Text) -> str:
  """The content of the last message; a string as it is."""
  return texts_of(text)[-1]


def with_last(text: Text, content: str) -> Text:
  """The text with another content in its last message."""
  return content if isinstance(text, str) else (*text[:-1], {**text[-1], "content": content})


def in_form(text: Text, like: Text, role: str) -> Text:
  """The text as a string where `like` is one, and else as messages (a string as one of `role`)."""
  if isinstance(like, str):
    return plain(text)
  return ({"role": role, "content": text},) if isinstance(text, str) else text


def conversation_of(example: Example) -> str:
  """What an example is resampled with."""
  return example.conversation or plain(example.prompt)


def compared(example: Example) -> list[tuple[int, int]]:
  """The comparisons of one example, (preferred, other), as places in its responses.

  Response i was preferred to j where the example's `pairs` say so more often than not, or, where it
  has none, where its label is higher. Ties, and what was rated in steps or attributes, give none.
  A list of K responses has up to K²/2: of one longer than 17 each response is held against 16
  others, drawn (the same ones every time), so that the cost is linear in the responses.
  """
  if example.kind in ("step", "attributes"):
    return []
  count, label, seen = len(example.responses), example.labels, example.pairs
  asked: Iterable[tuple[int, int]]
  if count <= 2 * _OTHERS + 1:
    asked = itertools.permutations(range(count), 2)
  else:
    rng = np.random.default_rng(count)
    ring = rng.permutation(count).tolist()
    steps = rng.choice(np.arange(1, (count - 1) // 2 + 1), _OTHERS, replace=False).tolist()
    both = ((ring[at], ring[(at + step) % count]) for step in sorted(steps) for at in range(count))
    asked = ((i, j) for pair in both for i, j in (pair, pair[::-1]))
  if seen is None:
    return [(i, j) for i, j in asked if label[i] > label[j]]
  return [(i, j) for i, j in asked if seen[i][j] > seen[j][i]]


def quality_of(example: Example) -> Sequence[float] | None:
  """How good the responses are: true rewards where the example knows them, else ratings."""
  return example.labels if example.truth is None and example.kind == "score" else example.truth


def each_comparison(examples: Sequence[Example]) -> Iterator[Comparison]:
  """The comparisons of the examples (`compared`), those of one standing together; maybe none."""
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
  """All of `each_comparison`.

  Raises:
    ValueError: there is not one.
  """
  found = list(each_comparison(examples))
  if not found:
    kinds = sorted({e.kind for e in examples})
    raise ValueError(f"examples: no comparison in {len(examples)} of kinds {kinds}; expected some")
  return found


def sampled(items: Sequence[_Item], sample: int, seed: int) -> list[_Item]:
  """`sample` of the items (all, where there are no more), each as likely, in their order.

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
  """For each item the place of one of another conversation, drawn with a seed.

  A derangement: the conversations stand in one random cycle, each takes from the next, so that each
  gives to exactly one other and none to itself.

  Raises:
    ValueError: there are fewer than 2 conversations.
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


def distinct_rows(
  rows: Sequence[tuple[Text, Text]],
) -> tuple[list[tuple[Text, Text]], np.ndarray]:
  """The rows that differ, in order, and for each row which of them it is: int64 [N]."""
  place: dict[str, int] = {}
  distinct = []
  at = np.empty(len(rows), np.int64)
  for i, row in enumerate(rows):
    at[i] = place.setdefault(json.dumps(row), len(distinct))
    if at[i] == len(distinct):
      distinct.append(row)
  return distinct, at


def scores_of(score: Score, rows: Sequence[tuple[Text, Text]]) -> np.ndarray:
  """Scores of rows, float64 [N], of which each distinct one is scored once, all in one call.

  Raises:
    ValueError: the scorer gave another number of scores, or one that is not finite.
  """
  distinct, at = distinct_rows(rows)
  scores = np.asarray(score(distinct), np.float64)
  if scores.shape != (len(distinct),):
    raise ValueError(f"score gave shape {scores.shape}; expected [{len(distinct)}], one a row")
  for row, value in zip(distinct, scores.tolist(), strict=True):
    if not math.isfinite(value):
      raise ValueError(f"score gave {value} for {row}; expected finite scores")
  return scores[at]
