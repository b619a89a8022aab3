"""Text that many prompts have in common: system prompts, templates, fixed examples, boilerplate.

It says nothing of what a row is about. Brown et al. (2020), Language models are few-shot learners,
appendix C, leave out n-grams that stand in many documents; here they are counted over distinct
prompts, and a text that is merely copied often is told from a template by what stands beside it:
after a template comes something else in every prompt (its slot), after a passage of a copied text
comes nearly always the same.
"""

import dataclasses

import numpy as np

from rm_jax.curate.tokens import Tokens

LENGTH = 8  # tokens of the n-grams that are counted: shorter ones are phrases of any prose
MANY = 5  # distinct prompts from which an n-gram may be a template's


def template_tokens(
  tokens: Tokens, document: np.ndarray, *, guarded: np.ndarray | None = None
) -> np.ndarray:
  """Which tokens are a template's.

  An n-gram of `LENGTH` tokens is common where it stands in `MANY` documents or more, and in no less
  than half as many as any n-gram that it overlaps (one that reaches out of a template into a slot,
  over a word that often comes first there, does not). Common n-grams in a row make a run. The end
  of a run is open where its most frequent neighbour follows in less than half of its documents: a
  slot. A text in which something uncommon stands at an open end is made by a template, and all of
  its runs are the template's; in any other text (a template without content, or a copy with small
  changes of a text that is there often) only runs with an open end are.

  What this misses: a copy whose change is the first word behind a template; a template of fewer
  than `MANY` prompts or `LENGTH` tokens, which is content like any other; and a text to which
  `MANY` different endings were added is a template with these as content.

  Args:
    tokens: of N texts.
    document: int64 [N]: texts of one document (a prompt with all of its responses) count once.
    guarded: bool [N], of texts that must not be hidden by being copied (held-out ones): an n-gram
      that fewer than `MANY` documents among them have is a template's only if it stands in one
      document of twenty, and 4 · `MANY` at least. None: no text is.

  Returns:
    bool [V], of each token.
  """
  text_of = tokens.text_of()
  hash_V = tokens.hashes[tokens.ids] if len(tokens.ids) else np.zeros(0, np.uint64)
  masked = np.zeros(len(hash_V), bool)
  found = _common(hash_V, text_of, document, guarded)
  if found is None:
    return masked
  level = found.level
  # The most frequent n-gram among those that overlap each. An n-gram never begins in the last
  # LENGTH - 1 tokens of a text, so that no window reaches from one text into the next.
  highest = level.copy()
  for shift in range(1, LENGTH):
    highest[shift:] = np.maximum(highest[shift:], level[:-shift])
    highest[:-shift] = np.maximum(highest[:-shift], level[shift:])
  inner = np.flatnonzero((level > 0) & (2 * level >= highest))
  if not len(inner):
    return masked
  breaks = np.ones(len(inner) + 1, bool)
  breaks[1:-1] = (
    (np.diff(inner) != 1)
    | (2 * level[inner[1:]] < level[inner[:-1]])
    | (2 * level[inner[:-1]] < level[inner[1:]])
  )
  first, last = inner[breaks[:-1]], inner[breaks[1:]]  # n-grams that begin and end each run
  open_right = found.open(last, LENGTH, hash_V, text_of)
  open_left = found.open(first, -1, hash_V, text_of)
  masked = _covered(inner, len(hash_V))

  def slot(at: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Whether an uncommon token of the same text stands at these places."""
    inside = (at >= 0) & (at < len(hash_V))
    at = np.where(inside, at, 0)
    return inside & (text_of[at] == text_of[of]) & ~masked[at]

  # Behind an open end some words come often. What stands there begins where the last common n-gram
  # ends, and says something if that one's end is open: else it is a change in a copy.
  common = level > 0
  behind, ahead = (
    _ends(common, last, inner),
    len(common) - 1 - _ends(common[::-1], len(common) - 1 - first, len(common) - 1 - inner[::-1]),
  )
  made = np.zeros(len(tokens), bool)
  for ends, offset in ((behind, LENGTH), (ahead, -1)):
    ends = ends[(ends >= 0) & (ends < len(common))]
    ends = ends[slot(ends + offset, ends)]
    made[text_of[ends[found.open(ends, offset, hash_V, text_of)]]] = True
  run_of = np.cumsum(breaks[:-1]) - 1
  of_template = made[text_of[inner]] | (open_right | open_left)[run_of]
  masked = _covered(inner[of_template], len(hash_V))
  return masked | _margins(tokens, hash_V, text_of, document, masked)


def _ends(common: np.ndarray, last: np.ndarray, inner: np.ndarray) -> np.ndarray:
  """The last of the common n-grams in a row that begin behind each of these; past the end of all
  (and so no place) where another run is among them."""
  stop = np.where(common, len(common), np.arange(len(common)))
  stop = np.minimum.accumulate(stop[::-1])[::-1]  # the next that is not common
  ends = stop[last] - 1
  following = np.searchsorted(inner, last, side="right")
  none = np.append(inner, len(common))[following] <= ends
  return np.where(none, len(common), ends)


def _margins(
  tokens: Tokens,
  hash_V: np.ndarray,
  text_of: np.ndarray,
  document: np.ndarray,
  masked: np.ndarray,
) -> np.ndarray:
  """bool [V]: the ends and beginnings, of fewer than LENGTH tokens, that a template has besides.

  Of the texts whose first masked tokens are the same, `MANY` documents and half of all must have
  one: '[/INST]' behind the question, or 'Q:' before it, where the template is longer elsewhere.
  """
  out = np.zeros(len(masked), bool)
  at = np.flatnonzero(masked)
  texts, first = np.unique(text_of[at], return_index=True)
  if not len(texts):
    return out
  starts, ends = tokens.starts[texts], tokens.starts[texts + 1]
  template = np.zeros(len(texts), np.uint64)
  with np.errstate(over="ignore"):
    for j in range(LENGTH):  # a run has LENGTH tokens at least
      template = template * np.uint64(0x100000001B3) + hash_V[at[first] + j]
  template = np.unique(template, return_inverse=True)[1]
  documents = int(document.max()) + 1
  doc = document[texts]
  all_of = np.bincount(distinct(template * documents + doc) // documents)
  for edge, step in ((ends - 1, -1), (starts, 1)):
    margin = np.zeros(len(texts), np.uint64)
    fitting = np.ones(len(texts), bool)
    for k in range(LENGTH - 1):
      place = edge + k * step
      fitting &= (place >= starts) & (place < ends)
      fitting[fitting] &= ~masked[place[fitting]]
      if not fitting.any():
        break
      with np.errstate(over="ignore"):
        margin[fitting] = margin[fitting] * np.uint64(0x100000001B3) + hash_V[place[fitting]]
      _, kind = np.unique(
        np.stack([template[fitting].astype(np.uint64), margin[fitting]], 1),
        axis=0,
        return_inverse=True,
      )
      kind = kind.ravel()
      of_kind = np.bincount(distinct(kind * documents + doc[fitting]) // documents)
      enough = (of_kind[kind] >= MANY) & (2 * of_kind[kind] >= all_of[template[fitting]])
      fitting[fitting] = enough
      out[place[fitting]] = True
  return out


def _common(
  hash_V: np.ndarray, text_of: np.ndarray, document: np.ndarray, guarded: np.ndarray | None
) -> "_Common | None":
  """The n-grams that stand in many documents; None where none may."""
  count = len(hash_V) - LENGTH + 1
  if count < MANY:
    return None
  grams = np.zeros(count, np.uint64)
  with np.errstate(over="ignore"):
    for j in range(LENGTH):
      grams = grams * np.uint64(0x100000001B3) + hash_V[j : j + count]
    # Multiplied, the upper bits depend on all: they are the bucket.
    grams *= np.uint64(0x9E3779B97F4A7C15)
  valid = text_of[:count] == text_of[LENGTH - 1 :]
  # Most n-grams stand in one place. They are sorted out by a table of counts, since sorting them
  # all would be most of the work; two in one bucket are told apart below.
  bits = int(np.clip(np.ceil(np.log2(count)), 10, 25))
  bucket = (grams >> np.uint64(64 - bits)).astype(np.int64)
  often = np.bincount(bucket[valid], minlength=1 << bits) >= MANY
  places = np.flatnonzero(valid & often[bucket])
  if not len(places):
    return None
  # Sorting values is several times as fast as sorting places by them, hence no argsort.
  values = distinct(grams[places])
  gram = np.searchsorted(values, grams[places])
  documents = int(document.max()) + 1
  document_of = document[text_of[places]]
  pairs = distinct(gram * documents + document_of)
  df = np.bincount(pairs // documents, minlength=len(values))
  common = df >= MANY
  if guarded is not None:
    held = distinct((gram * documents + document_of)[guarded[text_of[places]]])
    held = np.bincount(held // documents, minlength=len(values))
    common &= (held == 0) | (held >= MANY) | (df >= max(4 * MANY, len(distinct(document)) / 20))
  level = np.zeros(len(hash_V), np.int32)
  level[places] = np.where(common, df, 0)[gram]
  return _Common(level, places, gram, document_of, df)


@dataclasses.dataclass(frozen=True)
class _Common:
  """Common n-grams of V tokens; P places of n-grams that may be common.

  Attributes:
    level: int32 [V], documents of the n-gram that begins at each token; 0 where it is not common.
    places: int64 [P], tokens at which one begins, in order.
    gram: int64 [P], its number.
    document: int64 [P], of its text.
    df: int64 [grams], documents of each.
  """

  level: np.ndarray
  places: np.ndarray
  gram: np.ndarray
  document: np.ndarray
  df: np.ndarray

  def open(
    self, begins: np.ndarray, offset: int, hash_V: np.ndarray, text_of: np.ndarray
  ) -> np.ndarray:
    """bool, of the n-gram that begins at each of these tokens: whether no one token stands at the
    offset in half of its documents (or more). The text's end or beginning counts as a token."""
    if not len(begins):
      return np.zeros(0, bool)
    wanted = self.gram[np.searchsorted(self.places, begins)]
    asked = np.zeros(len(self.df), bool)
    asked[wanted] = True
    at = np.flatnonzero(asked[self.gram])
    order = at[np.lexsort((self.document[at], self.gram[at]))]
    gram, document, place = self.gram[order], self.document[order], self.places[order]
    once = _changes(gram, document)  # a document counts with its first place
    gram, place = gram[once], place[once]
    side = place + offset
    inside = (side >= 0) & (side < len(hash_V))
    side = np.where(inside, side, 0)
    inside &= text_of[side] == text_of[place]
    beside = np.where(inside, hash_V[side], np.uint64(0))
    order = np.lexsort((beside, gram))
    gram, beside = gram[order], beside[order]
    starts = _changes(gram, beside)
    top = np.zeros(len(self.df), np.int64)
    np.maximum.at(top, gram[starts], np.diff(np.append(starts, len(gram))))
    return 2 * top[wanted] < self.df[wanted]


def _changes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Where (a, b) differs from what is before it; the first place is one."""
  return np.flatnonzero(np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])]))


def distinct(values: np.ndarray) -> np.ndarray:
  """The distinct values, sorted: as `np.unique`, which is five times as slow (it hashes)."""
  values = np.sort(values)
  return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _covered(begins: np.ndarray, size: int) -> np.ndarray:
  """bool [size]: the tokens of the n-grams that begin at these places."""
  change = np.zeros(size + 1, np.int64)
  np.add.at(change, begins, 1)
  np.add.at(change, begins + LENGTH, -1)
  return np.cumsum(change[:-1]) > 0
