"""Text as curation compares it: words with their case, numbers, signs, negations, indentation.

What audits measure of a text (`rm_jax.metrics.surface`) leaves case and signs out. Here they stay:
two texts that differ in them may be each other's opposite.
"""

import dataclasses
import hashlib
import re
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np

from rm_jax.data.dialogue import plain
from rm_jax.types import Text

# What a token is. A pair of texts whose tokens differ in anything but words differs in meaning.
WORD, NUMBER, SIGN, NEGATION, INDENTATION = range(5)
KINDS = ("words", "numbers", "signs", "a negation", "indentation")

# Scripts written without spaces: each letter is a token, as in `rm_jax.metrics.surface`.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# Mathematical and currency symbols, and what ASCII writes for them. Prose is full of full stops,
# commas and quotation marks, which are no tokens; an exclamation mark is one after a digit (5!) or
# before an equals sign.
_SYMBOLS = "".join(
  chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in ("Sm", "Sc")
)
_SIGNS = re.escape(_SYMBOLS + "-\u2010\u2011\u2012\u2013\u2014*/%&^@\\()[]{}")
_TOKEN = re.compile(
  r"<\|[^|<>\s]{1,40}\|>"  # a chat template's mark, such as <|im_start|>
  r"|(?<=\n)[ \t]+(?=\S)"
  r"|(?<![\w.])\.\d+|\d+(?:[.,]\d+)+"
  rf"|[{_ALONE}]"
  rf"|[^\W{_ALONE}]+(?:['\u2019][^\W\d_{_ALONE}]+)*"
  rf"|[{_SIGNS}]|(?<=\d)!|!(?==)"
)
# English, and the commonest of the languages that `text.guess_language` knows. A contraction
# ("isn't") is known by its end.
_NEGATION_WORDS = (
  "not no never none nor neither nothing nobody nowhere without cannot unless except hardly "
  "nicht kein keine keinen nie ne pas jamais sin nunca ningún não sem non senza mai niet geen"
)
_NEGATIONS = frozenset(_NEGATION_WORDS.split(" "))
_KEPT_FORMS = ("<super>", "<sub>", "<fraction>")


def normal(text: str) -> str:
  """Unicode NFKC, trimmed: what two equal texts have in common.

  NFKC writes '10²' as '102'. A raised or lowered character and a fraction keep what they say:
  '10²' becomes '10^2', 'x₁' 'x_1' and '½' '(1⁄2)'.
  """
  if not text.isascii():
    if any(unicodedata.decomposition(c).startswith(_KEPT_FORMS) for c in set(text)):
      text = "".join(map(_kept, text))
    text = unicodedata.normalize("NFKC", text)
  return text.replace("\r\n", "\n").strip()


def _kept(character: str) -> str:
  form = unicodedata.decomposition(character)
  if not form.startswith(_KEPT_FORMS):
    return character
  inside = unicodedata.normalize("NFKC", character)
  if form.startswith("<fraction>"):
    return f"({inside})"
  return ("^" if form.startswith("<super>") else "_") + inside


def key(text: Text) -> tuple[tuple[str, str], ...]:
  """What two equal texts have in common: roles and normal contents; strings have no role."""
  if isinstance(text, str):
    return (("", normal(text)),)
  return tuple((m["role"], normal(m["content"])) for m in text)


def words_of(text: str, *, fold: bool = False) -> list[str]:
  """The tokens of a text as strings; `fold`: without case. Indentation is its white space."""
  found = normal(text)
  return _TOKEN.findall(found.casefold() if fold else found)


def kind_of(token: str) -> int:
  """WORD, NUMBER (any token with a digit), SIGN, NEGATION or INDENTATION."""
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
  """N texts as tokens, those of all texts in one array.

  Attributes:
    ids: int32 [V], of each token in the vocabulary.
    starts: int64 [N + 1]; text i is ids[starts[i] : starts[i + 1]].
    vocabulary: W distinct tokens.
    hashes: uint64 [W], of each; the same in every process.
    kinds: uint8 [W].
    whole: uint64 [N], a hash of each text, in normal form.
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
    """int32: the ids of text i."""
    return self.ids[self.starts[i] : self.starts[i + 1]]

  def text_of(self) -> np.ndarray:
    """int64 [V]: which text each token is of."""
    return np.repeat(np.arange(len(self)), np.diff(self.starts))


class _Numbers(dict):
  """token -> its number, in the order of their first places."""

  def __missing__(self, token: str) -> int:
    self[token] = number = len(self)
    return number


def hashed(text: str) -> int:
  """A 64-bit hash of a text, the same in every process (blake2b)."""
  digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
  return int.from_bytes(digest)


def tokenise(texts: Sequence[str], *, fold: bool = False) -> Tokens:
  """Tokens of texts that are not yet in normal form; `fold`: without case."""
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
  """One part of all examples (their prompts, say), each distinct text read once.

  Attributes:
    number: int64 [N], which distinct text each example has.
    tokens: of the distinct texts.
  """

  def __init__(self, texts: Sequence[Text], *, fold: bool = False):
    numbers = _Numbers()
    strings = [plain(text) for text in texts]
    self.number = np.fromiter(map(numbers.__getitem__, strings), np.int64, len(strings))
    self.tokens = tokenise(list(numbers), fold=fold)


def difference(tokens: Tokens, a: np.ndarray, b: np.ndarray) -> str:
  """In what two texts differ that can change what is meant; '' = in other words at most.

  Numbers, signs, negations and indentation are compared in their order, words by their case.

  Args:
    tokens: whose vocabulary the two have.
    a: int32, ids of the tokens of one text.
    b: of the other.
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
  # Both may have both spellings, each in another place.
  if len(a) == len(b):
    at = np.flatnonzero(a != b)
    if any(x == y for x, y in zip(folded(a[at]), folded(b[at]), strict=True)):
      return "case"
  return ""
