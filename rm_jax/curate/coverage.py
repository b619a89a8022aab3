"""What a data set covers: sources, lengths, scripts and languages; and pairs that part early."""

import collections
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.curate.languages import guess_language
from rm_jax.data.dialogue import plain
from rm_jax.metrics.surface import words
from rm_jax.types import Example, Text

# Words chosen − words rejected: bounds of the buckets (low inclusive), named by `length_bucket`.
EDGES = (-50, -10, 0, 1, 11, 51)


def parts_early(example: Example) -> bool:
  """Whether the two sides differ before the last assistant turn, so that more than it is judged.

  Of messages: a side has more than one after the common prompt. Of strings: a 'Human:' turn in
  Anthropic's form stands in a response.
  """

  def more(response: Text) -> bool:
    if isinstance(response, str):
      return "\n\nHuman:" in response
    return len(response) > 1

  return any(more(response) for response in example.responses)


def length_bucket(chosen: int, rejected: int, edges: Sequence[int] = EDGES) -> str:
  """Name of the bucket that chosen − rejected lies in: '<-50', '-50..-11', ... '>=51'.

  Args:
    chosen: words of the chosen response.
    rejected: words of the rejected one.
    edges: increasing; a bucket holds its lower edge and not its upper one.

  Raises:
    ValueError: the edges do not increase.
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
  """Words of the prompt, of the chosen and of the rejected response, int64 [N, 3]."""
  return np.asarray(
    [[len(words(plain(text))) for text in (e.prompt, *e.responses)] for e in examples], np.int64
  ).reshape(-1, 3)


def coverage(examples: Sequence[Example], edges: Sequence[int] = EDGES) -> dict[str, Any]:
  """Tables of pairs by source, length and language.

  Returns:
    {sources: {source: {rows, conversations, words: means of prompt, chosen and rejected,
    longer_chosen: share of pairs whose chosen response has more words, equal ones half}},
    words: {part: quantiles}, length_buckets: {words chosen − rejected: rows},
    languages: {guess of the prompt: rows}, languages_of_responses: likewise of the chosen one,
    language_differs: rows whose two responses are guessed to be of two languages, neither
    'unsure'}. The guesses are `text.guess_language`'s, a heuristic.
  """
  length_N3 = lengths(examples)
  longer = np.where(
    length_N3[:, 1] == length_N3[:, 2], 0.5, (length_N3[:, 1] > length_N3[:, 2]).astype(float)
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
    "language_differs": sum(g[1] != g[2] and "unsure" not in g[1:] for g in guesses),
  }


def _counted(values) -> dict[str, int]:
  return dict(collections.Counter(values).most_common())
