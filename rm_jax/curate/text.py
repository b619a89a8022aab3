"""Text as curation compares it: as sets of hashed word n-grams, and by language.

Hashes are of the text alone (blake2b), so that they are the same in every process.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from rm_jax.metrics.text import normalise, words

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


class _WordHashes(dict):
  """word -> a 64-bit hash of its text, each computed once."""

  def __missing__(self, word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    self[word] = value = int.from_bytes(digest)
    return value


def mixed(hashes: np.ndarray, salt: int = 0) -> np.ndarray:
  """Another hash of each hash, uint64 (the finaliser of splitmix64; Steele et al. 2014)."""
  with np.errstate(over="ignore"):
    x = hashes + np.uint64((salt * 0x9E3779B97F4A7C15) & (2**64 - 1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ngrams(texts: Sequence[str], n: int) -> Sets:
  """The word n-grams (shingles) of each text, hashed.

  A text of fewer than n words is one n-gram, all of it, and one without a word (only signs) its
  normalised self: no set is empty, so that short texts match where they are equal and only there.

  Args:
    texts: N texts, not yet normalised.
    n: words of an n-gram, at least 1.

  Raises:
    ValueError: n is below 1.
  """
  if n < 1:
    raise ValueError(f"n is {n}; expected n-grams of at least 1 word")
  cache = _WordHashes()
  values, sizes = [], [np.zeros(1, np.int64)]
  for start in range(0, len(texts), _CHUNK):
    chunk = [_padded(text, n) for text in texts[start : start + _CHUNK]]
    hashes, text_of_word = _concatenated(chunk, cache)
    grams = np.zeros(len(hashes) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
      for j in range(n):
        grams = grams * np.uint64(0x100000001B3) + hashes[j : j + len(grams)]
    inside = text_of_word[: len(grams)] == text_of_word[n - 1 :]
    grams, owner = mixed(grams[inside]), text_of_word[: len(grams)][inside]
    order = np.lexsort((grams, owner))
    grams, owner = grams[order], owner[order]
    first = np.ones(len(grams), bool)
    first[1:] = (grams[1:] != grams[:-1]) | (owner[1:] != owner[:-1])
    values.append(grams[first])
    sizes.append(np.bincount(owner[first], minlength=len(chunk)))
  all_values = np.concatenate(values) if values else np.zeros(0, np.uint64)
  return Sets(all_values, np.cumsum(np.concatenate(sizes)))


def _padded(text: str, n: int) -> list[str]:
  found = words(text) or [normalise(text)]
  return found + [""] * (n - len(found))


def _concatenated(chunk: Sequence[list[str]], cache: _WordHashes) -> tuple[np.ndarray, np.ndarray]:
  """(hash of each word of all texts, uint64; which text it is of)."""
  lengths = [len(found) for found in chunk]
  flat: Iterable[int] = (cache[word] for found in chunk for word in found)
  return np.fromiter(flat, np.uint64, sum(lengths)), np.repeat(np.arange(len(chunk)), lengths)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """|a ∩ b| / |a ∪ b| of two sorted arrays of unique values; 1 for two empty ones."""
  if not len(a) and not len(b):
    return 1.0
  both = len(np.intersect1d(a, b, assume_unique=True))
  return both / (len(a) + len(b) - both)


# Language and script: heuristics, named as such.

# Words that English writes alike ('a', 'do', 'die', 'no', 'come') are in English's list alone.
_STOP_WORDS = {
  "English": "the of and to in is that it for you was with on are this a i do can what how my",
  "German": "der und das ist nicht ich ein zu den mit sie es auf für wie eine von im auch",
  "French": "le la les et des est un une que pour dans pas je vous qui ce il sur du avec",
  "Spanish": "el la los que y en es un una por con para se las del como más su lo",
  "Portuguese": "o os que e em um uma não para com de da é se por como mais você",
  "Italian": "il di che è la per un una non sono con del si le da gli nel anche più",
  "Dutch": "de het een en van dat ik niet je op te voor met zijn er aan wat hoe ook",
}
_LANGUAGE_OF: dict[str, list[str]] = {}
for _language, _list in _STOP_WORDS.items():
  for _word in _list.split():
    _LANGUAGE_OF.setdefault(_word, []).append(_language)


class _Scripts(dict):
  """letter -> the first word of its Unicode name ('LATIN', 'CYRILLIC', 'CJK' ...)."""

  def __missing__(self, letter: str) -> str:
    name = unicodedata.name(letter, "UNNAMED").split()[0].split("-")[0] if letter.isalpha() else ""
    self[letter] = name
    return name


_SCRIPTS = _Scripts()


def guess_script(text: str) -> str:
  """A heuristic: the script that most of the letters are named after in Unicode.

  Returns:
    'LATIN', 'CYRILLIC', 'CJK' ...; 'mixed' where none has 80 % of the letters, 'none' where there
    are no letters. Japanese is CJK or HIRAGANA or mixed, as it is written.
  """
  counts: dict[str, int] = {}
  for letter in text:
    if script := _SCRIPTS[letter]:
      counts[script] = counts.get(script, 0) + 1
  if not counts:
    return "none"
  best = max(counts, key=counts.__getitem__)
  return best if counts[best] >= 0.8 * sum(counts.values()) else "mixed"


def guess_language(text: str) -> str:
  """A heuristic for seven languages in Latin script: whose stop words (about twenty) occur most.

  Returns:
    'English', 'German', 'French', 'Spanish', 'Portuguese', 'Italian' or 'Dutch'; 'unsure' where
    fewer than one word in ten is a stop word of the best, or two are equal (short texts often);
    for other scripts 'script:' and `guess_script`. Not a language identifier: it never saw a
    corpus, and calls another Latin language 'unsure' at best.
  """
  script = guess_script(text)
  if script != "LATIN":
    return f"script:{script}"
  found = words(text)
  counts: dict[str, int] = {}
  for word in found:
    for language in _LANGUAGE_OF.get(word, ()):
      counts[language] = counts.get(language, 0) + 1
  ranked = [*sorted(counts.values(), reverse=True), 0, 0]
  if ranked[0] < 0.1 * len(found) or ranked[0] == ranked[1]:
    return "unsure"
  return max(counts, key=counts.__getitem__)
