"""Training examples that held-out ones have been seen in: overlap of word n-grams.

After Brown et al. (2020), Language models are few-shot learners, appendix C (13-grams; those in
many documents are left out), with the overlap measured against one held-out text at a time, so that
every flag names what it repeats. Case and full stops count nothing; numbers and signs do.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from rm_jax.curate.templates import template_tokens
from rm_jax.curate.text import all_ngrams, ngrams
from rm_jax.curate.tokens import Part, Tokens
from rm_jax.errors import InputError
from rm_jax.types import Example, Text

# Part of an example -> the texts of it that are compared.
_PARTS: dict[str, Callable[[Example], list[Text]]] = {
  "prompt": lambda e: [e.prompt],
  "response": lambda e: list(e.responses),
}
# Between two texts with templates, where pieces of text are short and a changed word cuts most of
# their n-grams, half of the share asked for will do if they have this share of words in common.
_WORDS = 0.9
PARTS = ("prompt", "response", "either", "both")


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
  """Training example `index` shares `shared` n-grams with held-out example `of`.

  Attributes:
    index: of the training example.
    of: of the held-out one.
    part: 'prompt' or 'response'.
    shared: n-grams in common.
    share: of the n-grams of the shorter of the two texts (of its words, where those decided).
  """

  index: int
  of: int
  part: str
  shared: int
  share: float


def contaminated(
  train: Sequence[Example],
  heldout: Sequence[Example],
  *,
  n: int = 8,
  share: float = 0.5,
  part: str = "prompt",
  progress: bool = False,
) -> list[Overlap]:
  """Training examples of which at least `share` occurs in a held-out example.

  The share is of the shorter text's distinct n-grams: a held-out prompt inside of a longer training
  prompt counts as one. Texts of fewer than n words match where they are equal as a whole. What
  is a template's (`rm_jax.curate.templates`, over training and held-out prompts together) is left
  out, so that a question is known again in another template, and two questions are not taken for
  one for theirs. What stands in fewer than 5 held-out prompts is no template's, however often
  training has it (but for one prompt in twenty): it may be the leak.
  Where there are templates half of the share will do if 0.9 of the words are in common, too.

  Args:
    train: examples; of a pair both responses are looked at, and the larger overlap counts.
    heldout: examples.
    n: words of an n-gram.
    share: in (0, 1].
    part: 'prompt', 'response', 'either' of them, or 'both'.
    progress: show a bar.

  Returns:
    For each contaminated example the largest overlap, in order.

  Raises:
    ValueError: an argument is out of its range.
  """
  if not 0 < share <= 1:
    raise InputError(f"share is {share}; expected it in (0, 1]")
  if part not in PARTS:
    raise ValueError(f"part is {part!r}; expected one of {', '.join(PARTS)}")
  parts = ("prompt", "response") if part in ("either", "both") else (part,)
  found = [_overlaps(train, heldout, name, n, share, progress) for name in parts]
  if part == "both":
    indices = set(found[0]) & set(found[1])
  else:
    indices = set().union(*found)
  return [
    max((f[i] for f in found if i in f), key=lambda overlap: overlap.share) for i in sorted(indices)
  ]


def _overlaps(
  train: Sequence[Example], heldout: Sequence[Example], part: str, n: int, share: float, bar: bool
) -> dict[int, Overlap]:
  if not train or not heldout:
    return {}
  texts_of = _PARTS[part]
  examples = [*heldout, *train]
  prompts = Part([e.prompt for e in examples], fold=True)
  prompt_of = np.unique(prompts.tokens.whole, return_inverse=True)[1][prompts.number]
  texts = Part([text for e in examples for text in texts_of(e)], fold=True)
  owner = np.asarray([i for i, e in enumerate(examples) for _ in texts_of(e)])
  count = len(texts.tokens)
  # Read backwards, so that the first example that has a text is the one that is named.
  first = np.zeros(count, np.int64)
  first[texts.number[::-1]] = owner[::-1]
  held = first < len(heldout)
  masked = template_tokens(texts.tokens, prompt_of[first], guarded=held)
  mine = np.unique(texts.number[owner >= len(heldout)])
  best = _best_overlaps(texts.tokens, masked, n, mine, np.flatnonzero(held), share, bar and part)
  out: dict[int, Overlap] = {}
  for i, text in zip(owner.tolist(), texts.number.tolist(), strict=True):
    if i < len(heldout) or text not in best:
      continue
    value, shared, other = best[text]
    i -= len(heldout)
    if i not in out or value > out[i].share:
      out[i] = Overlap(i, int(first[other]), part, shared, value)
  return out


def _best_overlaps(
  tokens: Tokens,
  masked: np.ndarray,
  n: int,
  mine: np.ndarray,
  held: np.ndarray,
  least: float,
  bar: str | bool,
) -> dict[int, tuple[float, int, int]]:
  """Text -> (share, n-grams shared, the held-out text) of its largest overlap of at least `least`.

  Args:
    tokens: of all texts.
    masked: which of them are a template's.
    n: tokens of an n-gram.
    mine: numbers of the training texts.
    held: of the held-out ones.
    least: share from which an overlap counts.
    bar: what the texts are called on a progress bar; False: no bar.
  """
  sets = ngrams(tokens, n, masked)

  def smaller(text: int, other: int, shared: int) -> int:
    """Of the text with fewer, the n-grams that count; those that the other has in a template do not
    (in a copy of a template with a word changed some are content)."""
    sides = [set(sets[i].tolist()) for i in (text, other)]
    every = [set(all_ngrams(tokens, i, n).tolist()) for i in (text, other)]
    return min(
      len(side) - len(side & there) + shared for side, there in zip(sides, every[::-1], strict=True)
    )

  def words_shared(*texts: int) -> float:
    """Of the distinct tokens of the text with fewer, templates left out, the share in common."""
    sides = [
      set(tokens.of(i)[~masked[tokens.starts[i] : tokens.starts[i + 1]]].tolist()) for i in texts
    ]
    return len(sides[0] & sides[1]) / max(1, min(map(len, sides)))

  hidden = np.concatenate([[0], np.cumsum(masked)])
  templated = hidden[tokens.starts[1:]] > hidden[tokens.starts[:-1]]
  best: dict[int, tuple[float, int, int]] = {}
  sizes = np.diff(sets.starts)
  # n-gram -> the held-out texts that have it, as one sorted array.
  values = np.concatenate([np.zeros(0, np.uint64), *(sets[i] for i in held.tolist())])
  order = np.argsort(values, kind="stable")
  grams, owners = values[order], np.repeat(held, sizes[held])[order]
  low_V = np.searchsorted(grams, sets.values)
  high_V = np.searchsorted(grams, sets.values, side="right")
  known = np.concatenate([[0], np.cumsum(high_V > low_V)])
  for text in tqdm(mine.tolist(), desc=f"overlap of {bar}s", unit="text", disable=not bar):
    a, b = sets.starts[text], sets.starts[text + 1]
    if known[a] == known[b]:
      continue
    hits = [
      owners[low:high]
      for low, high in zip(low_V[a:b].tolist(), high_V[a:b].tolist(), strict=True)
      if low < high
    ]
    others, counts = np.unique(np.concatenate(hits), return_counts=True)
    shares = counts / np.minimum(b - a, sizes[others])
    for k in np.flatnonzero((shares < least) & (shares >= least / 4)).tolist():
      if templated[text] or templated[others[k]]:
        shares[k] = counts[k] / smaller(text, int(others[k]), int(counts[k]))
        if least / 2 <= shares[k] < least:
          shares[k] = max(shares[k], words_shared(text, int(others[k])))
          shares[k] = shares[k] if shares[k] >= _WORDS else 0
    at = int(np.argmax(shares))
    if shares[at] >= least:
      best[text] = (float(shares[at]), int(counts[at]), int(others[at]))
  return best
