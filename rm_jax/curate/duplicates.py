"""Duplicates: of whole examples, exact and near; with the label reversed; and of a pair's sides.

What is equal is dropped whoever looks at it; what is near is a matter of what the difference means.
So near pairs that differ in numbers, signs, negations, indentation or case are named and said to
differ, and templates (`rm_jax.curate.templates`) count neither for nor against a similarity.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from rm_jax.curate.join import Join, overlaps
from rm_jax.curate.templates import MANY, template_tokens
from rm_jax.curate.text import Sets, all_ngrams, mixed, ngrams
from rm_jax.curate.tokens import Part, difference, key
from rm_jax.errors import InputError
from rm_jax.types import Example, Text

# A candidate shares this much of the smaller one's shingles in each part; where templates are, less
# than the threshold may do (a template's broken copy is content in one text and not in the other).
_LEAST = 0.3
# Shingles that two rows' responses must share to tell what was asked: 'Yes.' over 'No.' answers
# many questions.
_TELLING = 8
_FEW = 32  # candidates that are compared one by one; more are sorted out all at once before
_KNOWN = 20_000  # texts whose shingles are kept as sets
_TRIED = 100  # near ones that differ in meaning that are looked at for one that does not


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
  """Example `index` matches the earlier example `of`; `similarity` 1.0 where they are equal.

  `differs` says in what the two differ that may change their meaning ('' = in nothing of that
  kind): such a match is for people to look at, and no reason to drop a row.
  """

  index: int
  of: int
  similarity: float
  differs: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Duplicates:
  """What `find_duplicates` found.

  Attributes:
    exact: examples whose texts an earlier one has, chosen and rejected alike (`tokens.normal`).
    near: examples that are not exact ones, and near an earlier one. Those that do not differ in
      meaning are near one that is neither.
    reversed: examples, neither exact nor near (but for those that differ in meaning), with an
      earlier example's prompt and responses (equal or near) but the other response chosen: they
      contradict each other.
  """

  exact: list[Match]
  near: list[Match]
  reversed: list[Match]


def find_duplicates(
  examples: Sequence[Example],
  *,
  threshold: float = 0.7,
  n: int = 3,
  progress: bool = False,
) -> Duplicates:
  """Duplicates among pairs; each names the earliest example that it repeats.

  Two examples are near each other when their prompts, their chosen responses and their rejected
  ones each have a Jaccard similarity of at least `threshold`; the least of the three is theirs. A
  similarity is of shingles with a token that is no template's, those in one text alone counting
  against it where the other one has them nowhere, not even in a template:

    |A ∩ B| / (|A ∩ B| + |A − all of B| + |B − all of A|)

  Without templates this is Jaccard's. Shingles of a short prompt hardly survive a changed word, nor
  those of any prompt another template that is there once. So where the responses are near and tell
  what was asked (they share 8 shingles or more, and not both stand under many prompts), prompts are
  near, too, of which the shorter one has a share of `threshold` of its words in common with the
  other, those of templates left out. Where the responses do not tell it, rows are said to differ in
  meaning if either prompt has a word that the other has not.

  What is reversed is said to differ in 'the wording of the prompt' where the prompts are not equal:
  a word is enough to turn the answer round, and two labels say that it did.

  Args:
    examples: N pairs.
    threshold: in (0, 1), or 0 to look for equal ones only.
    n: words of a shingle.
    progress: show bars.

  Raises:
    ValueError: an argument is out of its range, or an example is no pair.
  """
  if not 0 <= threshold < 1:
    raise InputError(f"threshold is {threshold}; expected it in (0, 1), or 0 for equal texts only")
  for example in examples:
    if len(example.responses) != 2:
      raise ValueError(f"{example.origin}: {len(example.responses)} responses; expected a pair")
  exact, first = _exact(examples)
  single = sorted(first.values())
  near: list[Match] = []
  against: list[Match] = []
  if threshold and single:
    search = _Search([examples[i] for i in single], threshold, n)
    near, against = (
      [dataclasses.replace(m, index=single[m.index], of=single[m.of]) for m in found]
      for found in search.run(progress)
    )
  # A near duplicate is dropped already: it contradicts no one, what it repeats may.
  gone = {m.index for m in near if not m.differs}
  reversed_of = {}
  for (prompt, chosen, rejected), i in first.items():
    j = first.get((prompt, rejected, chosen))
    if j is not None and j < i and not {i, j} & gone:
      reversed_of[i] = Match(i, j, 1.0)
  for match in against:
    reversed_of.setdefault(match.index, match)
  return Duplicates(exact, near, [reversed_of[i] for i in sorted(reversed_of)])


def _exact(examples: Sequence[Example]) -> tuple[list[Match], dict[tuple, int]]:
  """(repetitions, (prompt, chosen, rejected) -> the first example that has them)."""
  numbers: dict[tuple, int] = {}  # texts as numbers: the keys below are compared often
  known: dict[Text, int] = {}  # strings as they are: most are one of few forms

  def number(text: Text) -> int:
    if not isinstance(text, str):
      return numbers.setdefault(key(text), len(numbers))
    if text not in known:
      known[text] = numbers.setdefault(key(text), len(numbers))
    return known[text]

  matches, first = [], {}
  for i, e in enumerate(examples):
    of = first.setdefault((number(e.prompt), *map(number, e.responses)), i)
    if of != i:
      matches.append(Match(i, of, 1.0))
  return matches, first


class _Texts:
  """The distinct texts of one part: how similar two are, and in what they differ.

  Args:
    part: the texts.
    document: int64, of each distinct text (see `template_tokens`).
    n: words of a shingle.
  """

  def __init__(self, part: Part, document: np.ndarray, n: int):
    self.tokens = part.tokens
    self.masked = template_tokens(part.tokens, document)
    self.sets = ngrams(part.tokens, n, self.masked)
    self._n = n
    hidden = np.concatenate([[0], np.cumsum(self.masked)])
    self.templated = hidden[part.tokens.starts[1:]] > hidden[part.tokens.starts[:-1]]
    self._known: dict[int, tuple[set[int], set[int]]] = {}

  def shingles(self, i: int) -> tuple[set[int], set[int]]:
    """(those that count, all of them and those that count) of a text."""
    if i not in self._known:
      if len(self._known) >= _KNOWN:
        self._known.clear()
      counting = set(self.sets[i].tolist())
      every = counting
      if self.templated[i]:
        every = counting | set(all_ngrams(self.tokens, i, self._n).tolist())
      self._known[i] = counting, every
    return self._known[i]

  def similarity(self, a: int, b: int) -> float:
    """As `find_duplicates` has it."""
    if a == b:
      return 1.0
    (mine, all_mine), (other, all_other) = self.shingles(a), self.shingles(b)
    both = len(mine & other)
    return both / (both + len(mine - all_other) + len(other - all_mine)) if both else 0.0

  def shared_words(self, a: int, b: int) -> float:
    """Of the distinct tokens of the text that has fewer, those of templates left out: how many the
    other text has, as a share. Texts that are all template share nothing unless they are equal."""
    if a == b:
      return 1.0
    mine, other = (np.unique(self.tokens.of(i)[~h]) for i, h in self._hidden(a, b))
    if not min(len(mine), len(other)):
      return 0.0
    return len(np.intersect1d(mine, other, assume_unique=True)) / min(len(mine), len(other))

  def shared(self, a: int, b: int) -> int:
    """Shingles in common."""
    return len(self.shingles(a)[0] & self.shingles(b)[0])

  def difference(self, a: int, b: int, *, content: bool = False) -> str:
    """In what two texts differ that may change their meaning; `content`: outside of templates."""
    if a == b:
      return ""
    sides = [self.tokens.of(i) for i in (a, b)]
    if content:
      sides = [self.tokens.of(i)[~hidden] for i, hidden in self._hidden(a, b)]
    return difference(self.tokens, *sides)

  def substituted(self, a: int, b: int) -> bool:
    """Whether each of two texts has a token that the other has not."""
    sides = [self.tokens.of(i) for i in (a, b)]
    return bool(len(np.setdiff1d(*sides)) and len(np.setdiff1d(*sides[::-1])))

  def one_template(self, a: int, b: int) -> bool:
    """Whether the tokens of templates are the same in both."""
    if a == b or not (self.templated[a] or self.templated[b]):
      return True
    sides = [self.tokens.of(i)[hidden] for i, hidden in self._hidden(a, b)]
    return set(sides[0].tolist()) == set(sides[1].tolist())

  def _hidden(self, *texts: int) -> list[tuple[int, np.ndarray]]:
    return [(i, self.masked[self.tokens.starts[i] : self.tokens.starts[i + 1]]) for i in texts]


class _Search:
  """The near ones among N distinct pairs."""

  def __init__(self, examples: Sequence[Example], threshold: float, n: int):
    self.threshold = threshold
    prompts = Part([e.prompt for e in examples])
    responses = Part([r for e in examples for r in e.responses])
    self.prompt = prompts.number
    self.sides = responses.number.reshape(-1, 2)
    _, same = np.unique(prompts.tokens.whole, return_inverse=True)
    document = np.zeros(len(responses.tokens), np.int64)
    # A response that several prompts have is of the first one's document: read backwards.
    document[self.sides[::-1]] = same[self.prompt][::-1, None]
    self.same_prompt = same[self.prompt]
    # Under how many prompts each response stands.
    under = np.unique(np.stack([self.sides.ravel(), np.repeat(self.same_prompt, 2)], 1), axis=0)
    self.popular = np.bincount(under[:, 0], minlength=len(responses.tokens))
    self.prompts = _Texts(prompts, same, n)
    self.responses = _Texts(responses, document, n)
    tagged = Sets(mixed(self.prompts.sets.values, 3), self.prompts.sets.starts)
    sides = [(self.responses.sets, self.sides[:, k]) for k in (0, 1)]
    templates = self.prompts.masked.any() or self.responses.masked.any()
    least = min(threshold, _LEAST + 0.1) if templates else threshold
    # Chosen and rejected shingles are looked up alike, so that one search finds the reversed, too.
    self.whole = Join([(tagged, self.prompt), *sides], least)
    size = sum((s.starts[1:] - s.starts[:-1])[number] for s, number in sides)
    self.answers = Join(sides, least, size >= _TELLING)

  def run(self, progress: bool) -> tuple[list[Match], list[Match]]:
    near, against = [], []
    dropped = np.zeros(len(self.prompt), bool)
    rows = tqdm(range(len(self.prompt)), desc="near duplicates", unit="row", disable=not progress)
    for i in rows:
      others = np.union1d(self.whole.before(i), self.answers.before(i))
      others = others[~dropped[others]]
      if not len(others):
        continue
      match = self._first(i, others, self._same)
      if match:
        near.append(match)
        dropped[i] = not match.differs
      if not dropped[i]:
        match = self._first(i, others, self._reversed)
        if match:
          against.append(match)
    return near, against

  def _first(self, i: int, others: np.ndarray, compare: Callable) -> Match | None:
    """The first match that does not differ in meaning; or else the first."""
    noted, tried = None, 0
    flip = compare == self._reversed
    if len(others) > _FEW:
      others = self._likely(i, others, flip)
    for j in others.tolist():
      match = compare(i, j)
      if match and not match.differs:
        return match
      noted = noted or match
      tried += match is not None
      if tried == _TRIED:
        break
    return noted

  def _likely(self, i: int, others: np.ndarray, flip: bool) -> np.ndarray:
    """Those of which the responses share enough, all at once: there can be thousands."""
    for k in (0, 1):
      of, number = self.sides[i, k], self.sides[others, 1 - k if flip else k]
      sets = self.responses.sets
      sizes = (sets.starts[1:] - sets.starts[:-1])[number]
      both = overlaps(sets, of, number)
      size = len(sets[of])
      exact = ~(self.responses.templated[number] | self.responses.templated[of])
      enough = np.where(
        exact,
        both >= self.threshold * (size + sizes - both) - 1e-9,
        both >= _LEAST * np.minimum(size, sizes),
      )
      others = others[enough]
      if not len(others):
        break
    return others

  def _same(self, i: int, j: int) -> Match | None:
    match = self._compared(i, j, self.sides[j])
    return match if match and not self._rather_reversed(i, j) else None

  def _reversed(self, i: int, j: int) -> Match | None:
    match = self._compared(i, j, self.sides[j][::-1])
    if not match or not self._rather_reversed(i, j):
      return None
    if not match.differs and self.same_prompt[i] != self.same_prompt[j]:
      return dataclasses.replace(match, differs="the wording of the prompt")
    return match

  def _rather_reversed(self, i: int, j: int) -> bool:
    """Where a pair's own sides are near each other, what repeats it is near its reverse, too."""
    (x, y), turned = self.sides[i].tolist(), self.sides[j][::-1].tolist()
    if x != y and [x, y] == turned:
      return True  # sides that differ in what is no token, as 'x[1:]' and 'x[:1]'
    forward, back = (
      min(map(self.responses.similarity, self.sides[i].tolist(), sides.tolist()))
      for sides in (self.sides[j], self.sides[j][::-1])
    )
    return back > forward

  def _compared(self, i: int, j: int, sides: np.ndarray) -> Match | None:
    a, b = self.prompt[i], self.prompt[j]
    pairs = list(zip(self.sides[i].tolist(), sides.tolist(), strict=True))
    value = 1.0
    for x, y in pairs:
      value = min(value, self.responses.similarity(x, y))
      if value < self.threshold:
        return None
    asked = self.prompts.similarity(a, b)
    content = asked < self.threshold
    if content:
      asked = self.prompts.shared_words(a, b)
    value = min(value, asked)
    if value < self.threshold:
      return None
    telling = sum(self.responses.shared(x, y) for x, y in pairs) >= _TELLING
    if content and not (telling and self.popular[self.sides[i]].min() < MANY):
      return None
    differs = self.prompts.difference(a, b, content=content)
    for x, y in pairs:
      differs = differs or self.responses.difference(x, y)
    if not (differs or telling):
      if not self.prompts.one_template(a, b):
        differs = "the template"
      elif self.prompts.substituted(a, b):
        differs = "a word of the prompt, with responses too short to tell whether it matters"
    return Match(i, j, min(value, 1 - 1e-9), differs)


def similar_sides(examples: Sequence[Example], threshold: float, n: int = 3) -> list[Match]:
  """Pairs whose own two responses are equal (1.0, see `tokens.normal`) or near; `of` is the index.

  Args:
    examples: pairs.
    threshold: Jaccard of the responses' shingles from which they are near; 0 = equal only.
    n: words of a shingle.
  """
  found = {
    i: Match(i, i, 1.0)
    for i, e in enumerate(examples)
    if key(e.responses[0]) == key(e.responses[1])
  }
  if threshold and examples:
    part = Part([r for e in examples for r in e.responses])
    prompts = Part([e.prompt for e in examples])
    document = np.zeros(len(part.tokens), np.int64)
    document[part.number] = np.repeat(prompts.number, 2)
    texts = _Texts(part, document, n)
    for i, (a, b) in enumerate(part.number.reshape(-1, 2).tolist()):
      value = texts.similarity(a, b)
      if value >= threshold and i not in found:
        # Same shingles, other full stops: near, and 1.0 is for the equal.
        found[i] = Match(i, i, min(value, 1 - 1e-9), texts.difference(a, b))
  return [found[i] for i in sorted(found)]
