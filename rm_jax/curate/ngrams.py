"""Texts as sets of hashed n-grams of tokens, by which curation compares them."""

import dataclasses

import numpy as np

from rm_jax.curate.tokens import Tokens

_PRIME = np.uint64(0x100000001B3)
_CHUNK = 4096  # texts hashed at once: bounds memory, long enough for numpy to pay


@dataclasses.dataclass(frozen=True, slots=True)
class Sets:
  """N sets of hashes.

  Attributes:
    values: uint64 [V]; those of a set are sorted and unique.
    starts: int64 [N + 1]; set i is values[starts[i] : starts[i + 1]].
  """

  values: np.ndarray
  starts: np.ndarray

  def __len__(self) -> int:
    return len(self.starts) - 1

  def __getitem__(self, i: int) -> np.ndarray:
    return self.values[self.starts[i] : self.starts[i + 1]]


def mixed(hashes: np.ndarray, salt: int = 0) -> np.ndarray:
  """Another hash of each hash, uint64 (the finaliser of splitmix64; Steele et al. 2014)."""
  with np.errstate(over="ignore"):
    x = hashes + np.uint64((salt * 0x9E3779B97F4A7C15) & (2**64 - 1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ngrams(tokens: Tokens, n: int, masked: np.ndarray | None = None) -> Sets:
  """The n-grams (shingles) of the tokens of each text, hashed.

  Of tokens that are masked, and of pieces of text between those: an n-gram counts that is all of
  one piece, or has whole pieces and what is masked around them, but not a piece cut by its end. So
  a question has the same n-grams in a template and without one, a piece that is too short for that
  counts as a whole, and two questions that begin alike do not share what leads up to them.

  A text of fewer than n tokens is one n-gram, all of it. One without an n-gram that counts (nothing
  but full stops; or nothing but a template) is the text itself: no set is empty, and such texts
  match where they are equal and only there.

  Args:
    tokens: of N texts.
    n: tokens of an n-gram, at least 1.
    masked: bool [V], tokens that say nothing, a template's; None: all say something.

  Raises:
    ValueError: n is below 1.
  """
  if n < 1:
    raise ValueError(f"n is {n}; expected n-grams of at least 1 word")
  if masked is None:
    masked = np.zeros(len(tokens.ids), bool)
  out, counts = [], [np.zeros(1, np.int64)]
  for first in range(0, len(tokens), _CHUNK):
    last = min(first + _CHUNK, len(tokens))
    begin, end = tokens.starts[first], tokens.starts[last]
    grams, owner = _counting(
      tokens.hashes[tokens.ids[begin:end]] if end > begin else np.zeros(0, np.uint64),
      masked[begin:end],
      np.diff(tokens.starts[first : last + 1]),
      n,
    )
    none = np.flatnonzero(np.bincount(owner, minlength=last - first) == 0)
    grams = np.concatenate([grams, mixed(tokens.whole[first:last][none], 2)])
    owner = np.concatenate([owner, none])
    order = np.lexsort((grams, owner))
    grams, owner = grams[order], owner[order]
    new = np.ones(len(grams), bool)
    new[1:] = (grams[1:] != grams[:-1]) | (owner[1:] != owner[:-1])
    out.append(grams[new])
    counts.append(np.bincount(owner[new], minlength=last - first))
  return Sets(np.concatenate([np.zeros(0, np.uint64), *out]), np.cumsum(np.concatenate(counts)))


def _counting(
  hashes: np.ndarray, masked: np.ndarray, sizes: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
  """(the n-grams that count of texts of these sizes; which text each is of)."""
  owner = np.repeat(np.arange(len(sizes)), sizes)
  count = max(0, len(hashes) - n + 1)
  grams = _rolled(hashes, n) if count else np.zeros(0, np.uint64)
  inside = owner[:count] == owner[len(owner) - count :]
  hidden = np.concatenate([[0], np.cumsum(masked)])
  # Whether a token goes on with the piece of text that the one before it is of.
  goes_on = np.zeros(len(hashes) + 1, bool)
  goes_on[1:-1] = ~masked[1:] & ~masked[:-1] & (owner[1:] == owner[:-1])
  at = np.flatnonzero(inside)
  inside_hidden = hidden[at + n] - hidden[at]
  counting = inside_hidden == 0
  counting |= (inside_hidden < n) & ~goes_on[at] & ~goes_on[at + n]
  at = at[counting]
  grams, owner = mixed(grams[at]), owner[at]
  starts = np.cumsum(sizes) - sizes
  short = np.flatnonzero((sizes > 0) & (sizes < n))
  short = short[hidden[starts[short] + sizes[short]] - hidden[starts[short]] < sizes[short]]
  whole = np.zeros(len(short), np.uint64)
  with np.errstate(over="ignore"):
    for j in range(int(sizes[short].max(initial=0))):
      more = j < sizes[short]
      whole[more] = whole[more] * _PRIME + hashes[starts[short[more]] + j]
  return np.concatenate([grams, mixed(whole, 1)]), np.concatenate([owner, short])


def _rolled(hashes: np.ndarray, n: int) -> np.ndarray:
  """A hash of each n hashes in a row."""
  grams = np.zeros(len(hashes) - n + 1, np.uint64)
  with np.errstate(over="ignore"):
    for j in range(n):
      grams = grams * _PRIME + hashes[j : j + len(grams)]
  return grams


def all_ngrams(tokens: Tokens, i: int, n: int) -> np.ndarray:
  """Every n-gram of one text, hashed as `ngrams` does, in the order of the text."""
  hashes = tokens.hashes[tokens.of(i)]
  size = min(n, len(hashes))
  if not size:
    return mixed(tokens.whole[i : i + 1], 2)
  return mixed(_rolled(hashes, size), int(size < n))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """|a ∩ b| / |a ∪ b| of two sorted arrays of unique values; 1 for two empty ones."""
  if not len(a) and not len(b):
    return 1.0
  both = len(np.intersect1d(a, b, assume_unique=True))
  return both / (len(a) + len(b) - both)
