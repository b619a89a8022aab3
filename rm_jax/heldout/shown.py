"""Pairs as text, some that a model gets right and some that it gets wrong, for people to read."""

import random
import re
from collections.abc import Sequence

import numpy as np

from rm_jax.heldout.evaluate import judged
from rm_jax.types import Example, Text


def drawn(
  scores: Sequence[np.ndarray], examples: Sequence[Example], count: int, seed: int = 0
) -> dict[str, list[tuple[int, int, int]]]:
  """Comparisons that the scores get right and wrong, drawn at random.

  Args:
    scores: for each example float [K], of its responses.
    examples: those that are pairs or rankings are used.
    count: of each, at most.
    seed: of the draws.

  Returns:
    {'right', 'wrong'}: [(index of the example, of the response that people preferred, of the
    other)], in the order of the examples. Equal scores are neither.
  """
  found: dict[str, list[tuple[int, int, int]]] = {"right": [], "wrong": []}
  for e, (one, example) in enumerate(zip(scores, examples, strict=True)):
    if example.kind not in ("pair", "ranking"):
      continue
    for i, j in judged(example)[0]:
      if one[i] != one[j]:
        found["right" if one[i] > one[j] else "wrong"].append((e, i, j))
  random_state = random.Random(seed)
  return {
    name: sorted(random_state.sample(some, min(count, len(some)))) for name, some in found.items()
  }


def as_text(
  scores: Sequence[np.ndarray], examples: Sequence[Example], count: int, seed: int = 0
) -> str:
  """Markdown with the pairs of `drawn`: their texts and the model's scores.

  Arguments are those of `drawn`.
  """
  lines = [
    f"# {count} pairs that the model gets right and {count} that it gets wrong",
    "",
    "Drawn at random from the held-out comparisons. The first response of each is the one that "
    "people preferred.",
  ]
  for name, some in drawn(scores, examples, count, seed).items():
    lines += ["", f"## {name.capitalize()} ({len(some)})"]
    for e, i, j in some:
      example = examples[e]
      lines += ["", f"### {example.origin or example.conversation}", "", _quoted(example.prompt)]
      for which, k in (("preferred", i), ("other", j)):
        lines += ["", f"**{which}, score {scores[e][k]:+.3f}**", "", _quoted(example.responses[k])]
  return "\n".join(lines) + "\n"


def _quoted(text: Text) -> str:
  """A text as a Markdown block that nothing in it can end; messages with their roles."""
  if not isinstance(text, str):
    text = "\n\n".join(f"{message['role']}: {message['content']}" for message in text)
  fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
  return f"{fence}text\n{text.strip(chr(10))}\n{fence}"
