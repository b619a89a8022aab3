"""Texts as sets of hashed token n-grams (shingles), by which curation compares them."""

import dataclasses

import numpy as np

from rm_jax.curate.tokens import Tokens

_PRIME = np.uint64(0x100000001B3)
_CHUNK = 4096  # Texts hashed at a time: few enough to bound memory, enough for numpy to be fast.


@dataclasses.dataclass(frozen=True, slots=True)
class Sets:
  """N sets of hashes in one array.

  Attributes:
    values: uint64 [V]; the values of each set are sorted and unique.
    starts: int64 [N + 1]; set i is values[starts[i] : starts[i + 1]].
  """

  values: np.ndarray
  starts: np.ndarray

  def __len__(self) -> int:
    return len(self.starts) - 1

  def __getitem__(self, i: int) -> np.ndarray:
    return self.values[self.starts[i] : self.starts[i + 1]]


def mixed(hashes: np.ndarray, salt: int = 0) -> np.ndarray:
  """Hashes each hash again, uint64: the finaliser of splitmix64 (Steele et al. 2014).

  Different salts give independent hashes, so that equal hashes of different kinds of things, such
  as a whole text and an n-gram, become different ones.
  """
  with np.errstate(over="ignore"):
    x = hashes + np.uint64((salt * 0x9E3779B97F4A7C15) & (2**64 - 1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ngrams(tokens: Tokens, n: int, masked: np.ndarray | None = None) -> Sets:
  """The set of hashed token n-grams (shingles) of each text.

  Masked tokens, those of templates, divide a text into pieces of content. An n-gram counts if it
  lies inside one piece, or if it consists of masked tokens and one or more whole pieces. One that
  has masked tokens and begins or ends inside a piece does not count. Thus a question has the same
  n-grams inside it with and without a template, a piece shorter than n can still count as a whole,
  and two questions that merely start alike do not share n-grams that lead from the template into
  them.

  A text of fewer than n tokens is one n-gram. A text in which no n-gram counts, as where it has no
  token or only template tokens, gets the hash of the whole text instead. So no set is empty, and
  such texts match only if they are equal.

  Args:
    tokens: of N texts, V tokens in all.
    n: tokens of an n-gram, at least 1.
    masked: bool [V], tokens that belong to a template; None: no token does.

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
  """The n-grams of a chunk of texts that count; see `ngrams`.

  Args:
    hashes: uint64 [V], hashes of the texts' tokens, one text after the other.
    masked: bool [V], which tokens belong to a template.
    sizes: int64 [N], number of tokens of each text.
    n: tokens of an n-gram.

  Returns:
    (uint64 hashes of n-grams; for each the number of its text in the chunk).
  """
  owner = np.repeat(np.arange(len(sizes)), sizes)
  count = max(0, len(hashes) - n + 1)
  grams = _rolled(hashes, n) if count else np.zeros(0, np.uint64)
  inside = owner[:count] == owner[len(owner) - count :]
  hidden = np.concatenate([[0], np.cumsum(masked)])  # hidden[b] - hidden[a] counts those in a .. b
  # Whether a token is in the same piece of content as the token before it. An n-gram begins inside
  # a piece if this holds for its first token, and ends inside one if it holds for the next token
  # after the n-gram.
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
  """A polynomial hash of each n consecutive hashes, uint64 [V - n + 1]."""
  grams = np.zeros(len(hashes) - n + 1, np.uint64)
  with np.errstate(over="ignore"):
    for j in range(n):
      grams = grams * _PRIME + hashes[j : j + len(grams)]
  return grams


def all_ngrams(tokens: Tokens, i: int, n: int) -> np.ndarray:
  """All n-grams of one text, masked tokens included, hashed as in `ngrams`, in the text's order."""
  hashes = tokens.hashes[tokens.of(i)]
  size = min(n, len(hashes))
  if not size:
    return mixed(tokens.whole[i : i + 1], 2)
  return mixed(_rolled(hashes, size), int(size < n))
