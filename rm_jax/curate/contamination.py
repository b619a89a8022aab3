"""Training examples that held-out ones have been seen in: overlap of word n-grams.

After Brown et al. (2020), Language models are few-shot learners, appendix C (13-grams), with the
overlap measured against one held-out text at a time, so that every flag names what it repeats.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from rm_jax.curate.text import ngrams
from rm_jax.data.dialogue import plain
from rm_jax.types import Example

# Part of an example -> the texts of it that are compared.
_PARTS: dict[str, Callable[[Example], list[str]]] = {
  "prompt": lambda e: [plain(e.prompt)],
  "response": lambda e: [plain(r) for r in e.responses],
}
PARTS = ("prompt", "response", "either", "both")


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
  """Training example `index` shares `shared` n-grams with held-out example `of`.

  Attributes:
    index: of the training example.
    of: of the held-out one.
    part: 'prompt' or 'response'.
    shared: n-grams in common.
    share: of the n-grams of the shorter of the two texts.
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
  prompt counts as one. Texts of fewer than n words match where they are equal as a whole.

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
    raise ValueError(f"share is {share}; expected it in (0, 1]")
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
  texts_of = _PARTS[part]
  held_owner = [j for j, e in enumerate(heldout) for _ in texts_of(e)]
  held = ngrams([text for e in heldout for text in texts_of(e)], n)
  held_sizes = np.diff(held.starts)
  # n-gram -> the held-out texts that have it, as one sorted array.
  order = np.argsort(held.values, kind="stable")
  grams, owners = held.values[order], np.repeat(np.arange(len(held)), held_sizes)[order]
  owner = [i for i, e in enumerate(train) for _ in texts_of(e)]
  mine = ngrams([text for e in train for text in texts_of(e)], n)
  out: dict[int, Overlap] = {}
  for text in tqdm(range(len(mine)), desc=f"overlap of {part}s", unit="text", disable=not bar):
    wanted = mine[text]
    low = np.searchsorted(grams, wanted)
    high = np.searchsorted(grams, wanted, side="right")
    hits = [owners[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True) if a < b]
    if not hits:
      continue
    others, counts = np.unique(np.concatenate(hits), return_counts=True)
    shares = counts / np.minimum(len(wanted), held_sizes[others])
    best = int(np.argmax(shares))
    i = owner[text]
    if shares[best] >= share and (i not in out or shares[best] > out[i].share):
      out[i] = Overlap(i, held_owner[others[best]], part, int(counts[best]), float(shares[best]))
  return out
