"""Finds training examples that share text with held-out ones, by the overlap of token n-grams.

The method follows Brown et al. (2020), Language models are few-shot learners, appendix C: 13-grams,
without those that occur in many documents. Here the overlap is measured against one held-out text
at a time, so that each finding names the held-out text that is repeated, and the length of the
n-grams is an option. Case and the punctuation of prose are ignored; numbers and signs are not.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from rm_jax.curate.ngrams import all_ngrams, ngrams
from rm_jax.curate.templates import template_tokens
from rm_jax.curate.tokens import Part, Tokens
from rm_jax.errors import InputError
from rm_jax.types import Example, Text

# Part of an example -> function that gives the texts of this part, which are compared.
_PARTS: dict[str, Callable[[Example], list[Text]]] = {
  "prompt": lambda e: [e.prompt],
  "response": lambda e: list(e.responses),
}
# In texts made from templates the pieces of content are short, and one changed word destroys most
# of their n-grams. Of such texts half of the required share of n-grams can be enough, if the
# shorter text also has this share of its words, or the required one if that is larger, in common
# with the other.
_WORDS = 0.9
PARTS = ("prompt", "response", "either", "both")


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
  """Training example `index` shares `shared` n-grams with held-out example `of`.

  Attributes:
    index: index of the training example.
    of: index of the held-out example.
    part: the part that overlaps, 'prompt' or 'response'.
    shared: number of n-grams in common.
    share: share of the shorter text's n-grams; or, where this share was too small and that of
      common words decided (`_WORDS`), the latter.
    of_words: whether `share` is of the shorter text's words.
  """

  index: int
  of: int
  part: str
  shared: int
  share: float
  of_words: bool = False


def contaminated(
  train: Sequence[Example],
  heldout: Sequence[Example],
  *,
  n: int = 8,
  share: float = 0.5,
  part: str = "prompt",
  progress: bool = False,
) -> list[Overlap]:
  """Finds training examples that share many n-grams with a held-out example.

  The share is of the shorter text's distinct n-grams, so a held-out prompt that is quoted inside a
  longer training prompt has share 1. Texts of fewer than n tokens match only if their tokens are
  equal.

  Tokens of templates are left out (`rm_jax.curate.templates`, computed over the training and the
  held-out texts together). Thus a question is recognised in another template, and two questions in
  the same template do not match because of it. But a held-out text that training repeats many times
  is a leak and not a template. So an n-gram that occurs in held-out text, but in fewer than 5
  held-out prompts, is taken for a template only if one prompt in twenty, and at least 20, have it.
  If one of two texts has a template, n-grams of either that are in the other's template can be left
  out of the share, and half of `share` can be enough if the shorter text also has 0.9 of its words
  (or `share` of them, if that is more) in common with the other.

  Args:
    train: training examples; all responses of one are compared, and the largest overlap counts.
    heldout: held-out examples.
    n: number of tokens of an n-gram.
    share: smallest share that counts as contamination, in (0, 1].
    part: 'prompt', 'response', 'either' of them, or 'both'.
    progress: show a bar.

  Returns:
    The largest overlap of each contaminated example, in the order of `train`.

  Raises:
    InputError: `share` is out of its range.
    ValueError: `n` is below 1, or `part` is unknown.
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
  """Index of a training example -> its largest overlap in one part.

  Each distinct text is compared once. A text that is both in the training and in the held-out data
  counts as held-out text in the search for templates (`guarded` of `template_tokens`).
  """
  if not train or not heldout:
    return {}
  texts_of = _PARTS[part]
  examples = [*heldout, *train]
  prompts = Part([e.prompt for e in examples], fold=True)
  prompt_of = np.unique(prompts.tokens.whole, return_inverse=True)[1][prompts.number]
  texts = Part([text for e in examples for text in texts_of(e)], fold=True)
  owner = np.asarray([i for i, e in enumerate(examples) for _ in texts_of(e)])
  count = len(texts.tokens)
  # For each distinct text, the first example that has it. Assigned in reverse order, so that the
  # first example is written last and stays.
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
    value, shared, other, of_words = best[text]
    i -= len(heldout)
    if i not in out or value > out[i].share:
      out[i] = Overlap(i, int(first[other]), part, shared, value, of_words)
  return out


def _best_overlaps(
  tokens: Tokens,
  masked: np.ndarray,
  n: int,
  mine: np.ndarray,
  held: np.ndarray,
  least: float,
  bar: str | bool,
) -> dict[int, tuple[float, int, int, bool]]:
  """Training text -> (share, shared n-grams, held-out text, of words?) of its largest overlap.

  Args:
    tokens: of all texts.
    masked: bool [V], which tokens belong to a template.
    n: tokens of an n-gram.
    mine: numbers of the training texts.
    held: numbers of the held-out texts.
    least: smallest share that counts; texts whose overlaps are all smaller are left out.
    bar: word for the texts in the progress bar's label; False = no bar.
  """
  sets = ngrams(tokens, n, masked)

  def smaller(text: int, other: int, shared: int) -> int:
    """The smaller of the two texts' numbers of n-grams, without those in the other's template.

    If one text has a template with a word changed, the passage counts as content there and as a
    template in the other text. Its n-grams would count as unshared content, though both texts
    contain them.
    """
    sides = [set(sets[i].tolist()) for i in (text, other)]
    every = [set(all_ngrams(tokens, i, n).tolist()) for i in (text, other)]
    return min(
      len(side) - len(side & there) + shared for side, there in zip(sides, every[::-1], strict=True)
    )

  def words_shared(*texts: int) -> float:
    """Share of the distinct tokens, outside templates, of the shorter text that the other has."""
    sides = [
      set(tokens.of(i)[~masked[tokens.starts[i] : tokens.starts[i + 1]]].tolist()) for i in texts
    ]
    return len(sides[0] & sides[1]) / max(1, min(map(len, sides)))

  hidden = np.concatenate([[0], np.cumsum(masked)])
  templated = hidden[tokens.starts[1:]] > hidden[tokens.starts[:-1]]
  best: dict[int, tuple[float, int, int, bool]] = {}
  sizes = np.diff(sets.starts)
  # An inverted index: the n-grams of all held-out texts, sorted, and the text that each is from.
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
    of_words = np.zeros(len(shares), bool)
    for k in np.flatnonzero((shares < least) & (shares >= least / 4)).tolist():
      if templated[text] or templated[others[k]]:
        shares[k] = counts[k] / smaller(text, int(others[k]), int(counts[k]))
        if least / 2 <= shares[k] < least:
          of_grams = shares[k]
          shares[k] = max(of_grams, words_shared(text, int(others[k])))
          of_words[k] = shares[k] > of_grams
          shares[k] = shares[k] if shares[k] >= _WORDS else 0
    at = int(np.argmax(shares))
    if shares[at] >= least:
      best[text] = (float(shares[at]), int(counts[at]), int(others[at]), bool(of_words[at]))
  return best
