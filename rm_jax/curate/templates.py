"""Finds text that many prompts share: system prompts, templates, few-shot examples, boilerplate.

Such text does not say what a row is about, so comparisons leave it out. Brown et al. (2020),
Language models are few-shot learners, appendix C, leave out n-grams that occur in many documents.
Here n-grams are counted over distinct prompts. What follows a passage shows whether it is of a
template or of a text that was copied many times: behind a template there is a slot, which each
prompt fills with something else; a passage of a copied text nearly always continues the same way.
"""

import dataclasses

import numpy as np

from rm_jax.curate.tokens import Tokens

LENGTH = 8  # Tokens of the n-grams that are counted. Shorter ones recur as phrases of any prose.
MANY = 5  # An n-gram must occur in this many distinct prompts to be part of a template.


def template_tokens(
  tokens: Tokens, document: np.ndarray, *, guarded: np.ndarray | None = None
) -> np.ndarray:
  """Finds the tokens that belong to templates.

  1. An n-gram of `LENGTH` tokens is common if it occurs in at least `MANY` documents, and in at
     least half as many as each n-gram that it overlaps. The second condition excludes an n-gram
     that reaches from a template into its slot, over a word that is frequent there.
  2. Consecutive common n-grams form a run, which also breaks between two of which one is in more
     than twice as many documents as the other. An end of a run is open if no single token stands
     next to it in at least half of the documents with the n-gram at this end: a slot begins there.
  3. A text with an uncommon token next to an open end was made from a template, and all its runs
     belong to the template. In a text without such a token only runs with an open end do: the text
     is a template without content, or a slightly changed copy of a frequent text.

  4. Shorter parts of a template at the start or end of a text are added, see `_margins`.

  Known errors: a copy whose change is the first word behind a template is taken for the template
  with other content. A template of fewer than `MANY` prompts or `LENGTH` tokens is taken for
  content. A text that occurs with `MANY` different endings is taken for a template.

  Args:
    tokens: of N texts, V tokens in all.
    document: int64 [N], the document of each text. A prompt with all its responses is one document,
      in which an n-gram counts once.
    guarded: bool [N], texts that should not be taken for templates when other texts copy them
      often: the held-out ones, in the search for contamination. An n-gram that occurs in at least
      one but fewer than `MANY` guarded documents is common only if one document in twenty, and at
      least 4 · `MANY`, have it. None = no text is guarded.

  Returns:
    bool [V], whether each token belongs to a template.
  """
  text_of = tokens.text_of()
  hash_V = tokens.hashes[tokens.ids] if len(tokens.ids) else np.zeros(0, np.uint64)
  masked = np.zeros(len(hash_V), bool)
  found = _common(hash_V, text_of, document, guarded)
  if found is None:
    return masked
  level = found.level
  # For each place (token), the largest document count of an n-gram that overlaps the n-gram that
  # begins there. No n-gram begins in the last LENGTH - 1 tokens of a text, so that none reaches
  # into the next text.
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
  first, last = inner[breaks[:-1]], inner[breaks[1:]]  # The first and last n-gram of each run.
  open_right = found.open(last, LENGTH, hash_V, text_of)
  open_left = found.open(first, -1, hash_V, text_of)
  masked = _covered(inner, len(hash_V))

  def slot(at: np.ndarray, of: np.ndarray) -> np.ndarray:
    """bool: whether each token of `at` is in no run and in the same text as that of `of`."""
    inside = (at >= 0) & (at < len(hash_V))
    at = np.where(inside, at, 0)
    return inside & (text_of[at] == text_of[of]) & ~masked[at]

  # Some words are frequent at the start of a slot, so n-grams of at least MANY documents may reach
  # beyond the end of a run. What fills the slot begins behind the last of these. If that n-gram's
  # end is open, the text was made from a template; otherwise it is a copied text with a change.
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
  """For each n-gram of `last`, the end of the series of consecutive common n-grams that it starts.

  N-grams are given by the places where they begin. If the series reaches another run, there is no
  slot between the runs, and the result is len(common), which is no place.

  Args:
    common: bool [V], whether the n-gram that begins at each token occurs in enough documents.
    last: the last n-gram of each run.
    inner: the n-grams of all runs, in order.
  """
  stop = np.where(common, len(common), np.arange(len(common)))
  stop = np.minimum.accumulate(stop[::-1])[::-1]  # The next place that is not common.
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
  """bool [V]: the tokens of margins, short parts of a template at the start or end of a text.

  A margin has fewer than LENGTH tokens, so n-grams miss it: '[/INST]' behind the question, or 'Q:'
  before it. It is found only in texts that also contain a longer part of a template (`masked`).
  Among the documents with the same first LENGTH template tokens, at least `MANY` and at least half
  must have the same margin.
  """
  out = np.zeros(len(masked), bool)
  at = np.flatnonzero(masked)
  texts, first = np.unique(text_of[at], return_index=True)
  if not len(texts):
    return out
  starts, ends = tokens.starts[texts], tokens.starts[texts + 1]
  template = np.zeros(len(texts), np.uint64)
  with np.errstate(over="ignore"):
    for j in range(LENGTH):  # Every run has at least LENGTH tokens.
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
  """The n-grams that occur in enough documents (`MANY`, or more where texts are guarded).

  None if no n-gram can be one of these.

  Arguments are as in `template_tokens`; `hash_V` and `text_of` are each token's hash and text.
  """
  count = len(hash_V) - LENGTH + 1
  if count < MANY:
    return None
  grams = np.zeros(count, np.uint64)
  with np.errstate(over="ignore"):
    for j in range(LENGTH):
      grams = grams * np.uint64(0x100000001B3) + hash_V[j : j + count]
    # After this multiplication the upper bits, which become the hash bucket below, depend on all
    # bits of the n-gram's hash.
    grams *= np.uint64(0x9E3779B97F4A7C15)
  valid = text_of[:count] == text_of[LENGTH - 1 :]
  # Most n-grams occur once, and sorting all of them would be most of the work. So those in hash
  # buckets with fewer than MANY n-grams are discarded first. The rest, the candidates, are sorted,
  # which separates different n-grams that share a bucket.
  bits = int(np.clip(np.ceil(np.log2(count)), 10, 25))
  bucket = (grams >> np.uint64(64 - bits)).astype(np.int64)
  often = np.bincount(bucket[valid], minlength=1 << bits) >= MANY
  places = np.flatnonzero(valid & often[bucket])
  if not len(places):
    return None
  # To sort the values and search for each is several times faster than np.argsort of the places.
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
  """Common n-grams among V tokens.

  The candidates are the n-grams whose hash bucket has at least `MANY` entries; the others are too
  rare to be common. P is the number of tokens at which a candidate begins.

  Attributes:
    level: int32 [V], number of documents with the n-gram that begins at each token; 0 where that
      n-gram is not common.
    places: int64 [P], the tokens at which candidates begin, in order.
    gram: int64 [P], the number of the candidate that begins at each place.
    document: int64 [P], the document of each place.
    df: int64 [number of candidates], number of documents that contain each candidate.
  """

  level: np.ndarray
  places: np.ndarray
  gram: np.ndarray
  document: np.ndarray
  df: np.ndarray

  def open(
    self, begins: np.ndarray, offset: int, hash_V: np.ndarray, text_of: np.ndarray
  ) -> np.ndarray:
    """bool: for the n-gram that begins at each of these tokens, whether the token beside it varies.

    It varies if no single token stands at `offset` from the n-gram's first token in at least half
    of the documents with this n-gram. The beginning or end of a text counts as a token.

    Args:
      begins: the first tokens of common n-grams.
      offset: `LENGTH` for the token behind the n-gram, -1 for the token before it.
      hash_V: the hash of each token.
      text_of: the text of each token.
    """
    if not len(begins):
      return np.zeros(0, bool)
    wanted = self.gram[np.searchsorted(self.places, begins)]
    asked = np.zeros(len(self.df), bool)
    asked[wanted] = True
    at = np.flatnonzero(asked[self.gram])
    order = at[np.lexsort((self.document[at], self.gram[at]))]
    gram, document, place = self.gram[order], self.document[order], self.places[order]
    once = _changes(gram, document)  # Each document counts once, with its first place.
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
  """The indices i where (a[i], b[i]) differs from (a[i - 1], b[i - 1]), and index 0."""
  return np.flatnonzero(np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])]))


def distinct(values: np.ndarray) -> np.ndarray:
  """The distinct values, sorted: `np.unique`, but faster where that one hashes (numpy >= 2.3)."""
  values = np.sort(values)
  return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _covered(begins: np.ndarray, size: int) -> np.ndarray:
  """bool [size]: whether each token is inside an n-gram that begins at one of `begins`."""
  change = np.zeros(size + 1, np.int64)
  np.add.at(change, begins, 1)
  np.add.at(change, begins + LENGTH, -1)
  return np.cumsum(change[:-1]) > 0
