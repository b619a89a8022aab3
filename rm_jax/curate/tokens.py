"""The tokens by which curation compares texts: words with their case, numbers, signs, indentation.

The measures of `rm_jax.metrics.surface` fold case and drop signs. These tokens keep both (case if
`fold` is false), because two texts that differ only in a sign or in a word's case may be different
answers.
"""

import dataclasses
import hashlib
import re
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np

from rm_jax.data.dialogue import plain
from rm_jax.metrics.surface import ALONE, MARKED
from rm_jax.types import Text

# Kinds of tokens. If two texts differ in their tokens of a kind other than WORD, they may differ in
# meaning.
WORD, NUMBER, SIGN, NEGATION, INDENTATION = range(5)
KINDS = ("words", "numbers", "signs", "a negation", "indentation")

# Mathematical and currency symbols, the ASCII characters that stand for them, dashes and brackets
# are tokens. Other punctuation (. , ? : ! # and quotation marks) is not, because texts vary in it
# without a change of meaning. But such a character is a token where it does not punctuate: an
# exclamation mark after a digit (5!) or before an equals sign (!=), a # behind a word (C#), and a
# colon between digits (3:15) or at a square bracket (x[1:]).
_SYMBOLS = "".join(
  chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in ("Sm", "Sc")
)
_SIGNS = re.escape(_SYMBOLS + "-\u2010\u2011\u2012\u2013\u2014*/%&^@\\()[]{}")
_TOKEN = re.compile(
  r"<\|[^|<>\s]{1,40}\|>"  # A chat template's special token, such as <|im_start|>.
  r"|(?<=\n)[ \t]+(?=\S)"  # The indentation of a line.
  r"|(?<![\w.])\.\d+|\d+(?:[.,]\d+)+"  # Numbers with a point or commas: .5, 1,000.5.
  rf"|[{ALONE}]"  # One letter of a script without spaces.
  # A word or number, with contractions.
  rf"|[^\W{ALONE}]++{MARKED}(?:['\u2019][^\W\d_{ALONE}]++{MARKED})*"
  rf"|[{_SIGNS}]|(?<=\d)!|!(?==)|(?<=\w)#|(?<=\d):(?=\d)|(?<=\[):|:(?=\])"  # A sign.
)
# English words of negation, and some frequent ones of the other languages that
# `language.guess_language` knows. `kind_of` recognises contractions ("isn't") by their ending.
_NEGATION_WORDS = (
  "not no never none nor neither nothing nobody nowhere without cannot unless except hardly "
  "nicht kein keine keinen nie ne pas jamais sin nunca ningún não sem non senza mai niet geen"
)
_NEGATIONS = frozenset(_NEGATION_WORDS.split(" "))
_KEPT_FORMS = ("<super>", "<sub>", "<fraction>")


def normal(text: str) -> str:
  """The normal form of a text: Unicode NFKC, \\n for \\r\\n, no white space at its ends.

  Curation calls two texts equal if their normal forms are equal. Plain NFKC turns '10²' into '102'.
  Superscripts, subscripts and fractions are therefore rewritten first, so that they keep their
  meaning: '10²' becomes '10^2', 'x₁' 'x_1' and '½' '(1⁄2)'.
  """
  if not text.isascii():
    if any(unicodedata.decomposition(c).startswith(_KEPT_FORMS) for c in set(text)):
      text = "".join(map(_kept, text))
    text = unicodedata.normalize("NFKC", text)
  return text.replace("\r\n", "\n").strip()


def _kept(character: str) -> str:
  """Rewrites a superscript, subscript or fraction with ^, _ or brackets; no other character."""
  form = unicodedata.decomposition(character)
  if not form.startswith(_KEPT_FORMS):
    return character
  inside = unicodedata.normalize("NFKC", character)
  if form.startswith("<fraction>"):
    return f"({inside})"
  return ("^" if form.startswith("<super>") else "_") + inside


def key(text: Text) -> tuple[tuple[str, str], ...]:
  """A hashable key of a text: roles and normal forms; texts that count as equal have equal keys."""
  if isinstance(text, str):
    return (("", normal(text)),)
  return tuple((m["role"], normal(m["content"])) for m in text)


def kind_of(token: str) -> int:
  """The kind of a token: WORD, NUMBER (any token with a digit), SIGN, NEGATION or INDENTATION."""
  if token.isspace():
    return INDENTATION
  if any(c.isdigit() for c in token):
    return NUMBER
  if token.startswith("<|"):
    return WORD
  if len(token) == 1 and not token.isalnum() and token != "_":
    return SIGN
  folded = token.casefold().replace("\u2019", "'")
  if folded in _NEGATIONS or folded.endswith("n't"):
    return NEGATION
  return WORD


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
  """The tokens of N texts in one array.

  Attributes:
    ids: int32 [V], index of each token in the vocabulary.
    starts: int64 [N + 1]; the tokens of text i are ids[starts[i] : starts[i + 1]].
    vocabulary: the W distinct tokens.
    hashes: uint64 [W], a hash of each distinct token, the same in every process.
    kinds: uint8 [W], the kind of each distinct token.
    whole: uint64 [N], a hash of the normal form of each text, with its case folded if the tokens'
      is.
  """

  ids: np.ndarray
  starts: np.ndarray
  vocabulary: list[str]
  hashes: np.ndarray
  kinds: np.ndarray
  whole: np.ndarray

  def __len__(self) -> int:
    return len(self.starts) - 1

  def of(self, i: int) -> np.ndarray:
    """int32: the token ids of text i."""
    return self.ids[self.starts[i] : self.starts[i + 1]]

  def text_of(self) -> np.ndarray:
    """int64 [V]: the text that each token belongs to."""
    return np.repeat(np.arange(len(self)), np.diff(self.starts))


class _Numbers(dict):
  """A dict that numbers its keys 0, 1, .. in the order in which they are first looked up."""

  def __missing__(self, token: str) -> int:
    self[token] = number = len(self)
    return number


def hashed(text: str) -> int:
  """A 64-bit hash of a text by blake2b, the same in every process, unlike Python's `hash`."""
  digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
  return int.from_bytes(digest)


def tokenise(texts: Sequence[str], *, fold: bool = False) -> Tokens:
  """Splits the normal forms of texts into tokens; `fold` folds their case first."""
  numbers = _Numbers()
  ids, sizes, whole = [], [0], []
  for text in texts:
    found = normal(text)
    if fold:
      found = found.casefold()
    tokens = _TOKEN.findall(found)
    ids.append(np.fromiter(map(numbers.__getitem__, tokens), np.int32, len(tokens)))
    sizes.append(len(tokens))
    whole.append(hashed(found))
  vocabulary = list(numbers)
  return Tokens(
    np.concatenate([np.zeros(0, np.int32), *ids]),
    np.cumsum(sizes),
    vocabulary,
    np.fromiter(map(hashed, vocabulary), np.uint64, len(vocabulary)),
    np.fromiter(map(kind_of, vocabulary), np.uint8, len(vocabulary)),
    np.asarray(whole, np.uint64),
  )


class Part:
  """One part of N examples, such as their prompts, with each distinct text tokenised once.

  Attributes:
    number: int64 [number of texts], the index of each text among the distinct texts.
    tokens: the tokens of the distinct texts.
  """

  def __init__(self, texts: Sequence[Text], *, fold: bool = False):
    numbers = _Numbers()
    strings = [plain(text) for text in texts]
    self.number = np.fromiter(map(numbers.__getitem__, strings), np.int64, len(strings))
    self.tokens = tokenise(list(numbers), fold=fold)


def difference(tokens: Tokens, a: np.ndarray, b: np.ndarray) -> str:
  """The kind of difference between two texts that can change their meaning.

  Numbers, signs, negations and indentation must be equal and in the same order. Words may differ,
  as near duplicates do, but not in case alone.

  Args:
    tokens: the tokens whose vocabulary both texts use.
    a: int32, token ids of one text.
    b: int32, token ids of the other.

  Returns:
    One of `KINDS` other than 'words', 'the order of numbers, signs and negations' or 'case'; '' if
    there is none.
  """
  marked = [ids[tokens.kinds[ids] != WORD] for ids in (a, b)]
  if not np.array_equal(*marked):
    for kind in (NUMBER, SIGN, NEGATION, INDENTATION):
      if not np.array_equal(*(ids[tokens.kinds[ids] == kind] for ids in marked)):
        return KINDS[kind]
    return "the order of numbers, signs and negations"

  def folded(ids: np.ndarray) -> list[str]:
    return [tokens.vocabulary[i].casefold() for i in ids.tolist()]

  if set(folded(np.setdiff1d(a, b))) & set(folded(np.setdiff1d(b, a))):
    return "case"
  # Both texts may contain both spellings of a word in different places, so compare place by place.
  if len(a) == len(b):
    at = np.flatnonzero(a != b)
    if any(x == y for x, y in zip(folded(a[at]), folded(b[at]), strict=True)):
      return "case"
  return ""
