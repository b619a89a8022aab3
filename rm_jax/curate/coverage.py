"""What a data set of pairs contains, as tables: sources, lengths and languages.

Of each pair, 'chosen' is the response that its label prefers (`rm_jax.data.verdict`); of a tie,
the first one.

It also recognises pairs of whole dialogues, which differ before the last assistant turn.
"""

import collections
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.data.dialogue import key_of, plain
from rm_jax.data.verdict import preferred_first, verdict
from rm_jax.metrics.language import guess_language
from rm_jax.metrics.surface import words
from rm_jax.types import Example, Text

# What `guess_language` says of texts that need not be of another language than any other text.
_UNKNOWN = {"unsure", "script:none", "script:mixed"}
# Edges of the buckets of (words of chosen − words of rejected); a bucket includes its lower edge.
EDGES = (-50, -10, 0, 1, 11, 51)


_TURN = re.compile(r"\n\n(?:Human|Assistant):")


def parts_early(example: Example) -> bool:
  """Whether the two sides differ before the last assistant turn, going by what follows the prompt.

  Then the label judges whole dialogues, and not two answers to the same prompt. Of a response in
  messages, what stands before the last one is compared; of a string that contains '\\n\\nHuman:',
  what stands before the last turn that such a mark, or '\\n\\nAssistant:', begins.
  """

  def before(response: Text) -> Text:
    if not isinstance(response, str):
      return tuple(response[:-1])
    if "\n\nHuman:" not in response:
      return ""
    return response[: [turn.end() for turn in _TURN.finditer(response)][-1]]

  return len({key_of(before(response)) for response in example.responses}) > 1


def length_bucket(chosen: int, rejected: int, edges: Sequence[int] = EDGES) -> str:
  """Name of the bucket that chosen − rejected lies in: '<-50', '-50..-11', ... '>=51'.

  Args:
    chosen: number of words of the chosen response.
    rejected: number of words of the rejected response.
    edges: increasing; a bucket includes its lower edge and excludes its upper one.

  Raises:
    ValueError: there is no edge, or the edges do not increase.
  """
  if not edges or any(a >= b for a, b in itertools.pairwise(edges)):
    raise ValueError(f"edges are {list(edges)}; expected at least one, increasing")
  at = int(np.searchsorted(edges, chosen - rejected, side="right"))
  if at == 0:
    return f"<{edges[0]}"
  if at == len(edges):
    return f">={edges[-1]}"
  low, high = edges[at - 1], edges[at] - 1
  return str(low) if low == high else f"{low}..{high}"


def lengths(examples: Sequence[Example]) -> np.ndarray:
  """Number of words of each pair's prompt, chosen and rejected response, int64 [N, 3]."""
  return np.asarray(
    [
      [len(words(plain(text))) for text in (e.prompt, *e.responses)]
      for e in map(preferred_first, examples)
    ],
    np.int64,
  ).reshape(-1, 3)


def coverage(examples: Sequence[Example], edges: Sequence[int] = EDGES) -> dict[str, Any]:
  """Tables of pairs by source, length and language.

  Returns:
    {sources: {source: {rows, conversations, words: mean words of prompt, chosen and rejected,
    longer_chosen: share of pairs whose chosen response has more words; equal lengths and ties
    count half}},
    words: {prompt, chosen, rejected: quantiles of the number of words},
    length_buckets: {bucket of words of chosen − words of rejected: rows},
    languages: {guessed language of the prompt: rows},
    languages_of_responses: the same of the chosen response,
    language_differs: number of rows whose two responses have different guesses, both of them a
    language or script, and not 'unsure', 'script:none' or 'script:mixed'}. The guesses are by
    `language.guess_language`, which is a heuristic.

  Raises:
    ValueError: as `length_bucket`, or an example is no comparison of two responses.
  """
  tied = np.asarray([verdict(e) == 0 for e in examples], bool)
  examples = [preferred_first(e) for e in examples]
  length_N3 = lengths(examples)
  longer = np.where(
    tied | (length_N3[:, 1] == length_N3[:, 2]),
    0.5,
    (length_N3[:, 1] > length_N3[:, 2]).astype(float),
  )
  by_source: dict[str, list[int]] = {}
  for i, example in enumerate(examples):
    by_source.setdefault(example.source, []).append(i)
  names = ("prompt", "chosen", "rejected")
  guesses = [[guess_language(plain(t)) for t in (e.prompt, *e.responses)] for e in examples]
  marks = {"min": 0, "p05": 5, "median": 50, "p95": 95, "max": 100}
  return {
    "sources": {
      source: {
        "rows": len(at),
        "conversations": len({examples[i].conversation for i in at}),
        "words": {name: round(float(length_N3[at, k].mean()), 1) for k, name in enumerate(names)},
        "longer_chosen": round(float(longer[at].mean()), 4),
      }
      for source, at in by_source.items()
    },
    "words": {
      name: {m: float(np.percentile(length_N3[:, k], q)) for m, q in marks.items()}
      for k, name in enumerate(names)
      if examples
    },
    "length_buckets": _counted(length_bucket(c, r, edges) for _, c, r in length_N3.tolist()),
    "languages": _counted(g[0] for g in guesses),
    "languages_of_responses": _counted(g[1] for g in guesses),
    "language_differs": sum(g[1] != g[2] and _UNKNOWN.isdisjoint(g[1:]) for g in guesses),
  }


def _counted(values) -> dict[str, int]:
  return dict(collections.Counter(values).most_common())
