"""Finds duplicates among pairs: equal ones, near ones, and ones with the label reversed.

Of each pair, 'chosen' is the response that its label prefers (`rm_jax.data.verdict`), whichever
comes first. It also finds pairs whose own two responses are similar.

Equal texts are duplicates without question. Whether near ones are depends on what differs: one
digit may turn a right answer into a wrong one. So a match whose texts differ in numbers, signs,
negations, indentation or case is reported together with that difference, for people to look at.
Tokens of templates (`rm_jax.curate.templates`) count neither for nor against a similarity.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from rm_jax.curate.join import Join, overlaps
from rm_jax.curate.ngrams import Sets, all_ngrams, mixed, ngrams
from rm_jax.curate.templates import MANY, template_tokens
from rm_jax.curate.tokens import Part, difference, key
from rm_jax.data.verdict import preferred_first, verdict
from rm_jax.errors import InputError
from rm_jax.types import Example, Text

# Shingles are n-grams of tokens. Where there are templates, two texts can be near although they
# share less than the threshold of their shingles outside templates: if one text has a template with
# a word changed, the passage counts as content there and as a template in the other. So for texts
# with templates the filter of responses (`_Search._likely`) asks only for this share of the smaller
# set. Where any text has a template, the search for candidates (`Join`) asks, for all texts, for a
# Jaccard index of this share + 0.1, or of the threshold if that is smaller.
_LEAST = 0.3
# If the responses of two pairs share this many shingles, their prompts are taken to ask the same.
# Short responses show nothing of that: 'Yes.' and 'No.' answer many questions.
_TELLING = 8
_FEW = 32  # If a row has more candidates, a vectorised filter goes before the exact comparison.
_KNOWN = 20_000  # Largest number of texts whose shingles are cached as Python sets.
# If a row's first so many matches all differ in meaning, no further one is looked for.
_TRIED = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
  """A match of two examples.

  Attributes:
    index: the later example.
    of: the earlier example that it matches.
    similarity: in (0, 1]; 1.0 only if the two are equal.
    differs: the kind of difference that may change the meaning, such as 'numbers'; '' if there is
      none. If there is one, people should look at the match, and it is no reason to drop the row.
  """

  index: int
  of: int
  similarity: float
  differs: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Duplicates:
  """The result of `find_duplicates`.

  Attributes:
    exact: examples whose prompt, chosen and rejected texts all equal those of an earlier example
      after `tokens.normal`; or ties whose prompt and two responses, in either order, equal those of
      an earlier tie.
    near: examples that are near an earlier one and not in `exact`. If a match's `differs` is '',
      its earlier example is not itself in `exact`, nor in `near` with a `differs` of ''.
    reversed: examples with an earlier example's prompt and responses, equal or near, but with the
      other response chosen: the two contradict each other. Where the texts are equal either may be
      in `near` as well. Of near ones, examples in `exact`, or in `near` with a `differs` of '', are
      left out: what contradicts the example that they repeat contradicts them.
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
  """Finds duplicates among pairs; each match names one earlier example that is repeated.

  How sure a label is makes no difference: two rows with the same texts are duplicates if both
  prefer the same response, and contradict each other if they prefer different ones. A tie can only
  repeat another tie, in either order of its responses, and contradicts nothing.

  Of several, a near match names the first without a difference in meaning, or else the first.

  Two examples are near each other if their prompts, their chosen responses and their rejected
  responses each have a similarity of at least `threshold`. The smallest of the three is the
  match's. The similarity of two texts compares A and B, their sets of shingles (n-grams of tokens,
  Broder 1997) outside templates:

    |A ∩ B| / (|A ∩ B| + |A − all of B| + |B − all of A|)

  'All of B' includes the shingles inside B's templates. So a shingle of A does not count against
  the similarity if B has it in a template. Without templates this is Jaccard's index.

  One changed word destroys most shingles of a short prompt, and a template that occurs only once
  adds shingles to a prompt of any length. Therefore two prompts are also near if the shorter one
  shares `threshold` of its words outside templates with the other, provided that the responses are
  near and show that the same was asked: the pairs' responses share at least 8 shingles in all, and
  one response of the later pair answers fewer than 5 distinct prompts. If fewer shingles are shared
  a match differs in meaning as soon as each prompt has a word that the other lacks, or the prompts
  have different templates.

  A reversed match whose prompts are not equal always `differs`, in 'the wording of the prompt' if
  in nothing else. One word can turn a question round, and the two opposite labels suggest that it
  did.

  Args:
    examples: N pairs.
    threshold: in (0, 1), or 0 to look for equal examples only.
    n: number of tokens of a shingle.
    progress: show progress bars.

  Raises:
    InputError: `threshold` is out of its range.
    InputError: `n` is below 1, or an example is no comparison of two responses.
  """
  if not 0 <= threshold < 1:
    raise InputError(f"threshold is {threshold}; expected it in (0, 1), or 0 for equal texts only")
  tied = np.asarray([verdict(example) == 0 for example in examples], bool)
  examples = [preferred_first(example) for example in examples]
  exact, first = _exact(examples, tied)
  single = sorted(first.values())
  near: list[Match] = []
  against: list[Match] = []
  if threshold and single:
    search = _Search([examples[i] for i in single], tied[single], threshold, n)
    near, against = (
      [dataclasses.replace(m, index=single[m.index], of=single[m.of]) for m in found]
      for found in search.run(progress)
    )
  # Equal texts with opposite labels contradict each other whatever else either of them is near to.
  reversed_of = {}
  for (prompt, chosen, rejected, tie), i in first.items():
    j = None if tie else first.get((prompt, rejected, chosen, tie))
    if j is not None and j < i:
      reversed_of[i] = Match(i, j, 1.0)
  for match in against:
    reversed_of.setdefault(match.index, match)
  return Duplicates(exact, near, [reversed_of[i] for i in sorted(reversed_of)])


def _exact(examples: Sequence[Example], tied: np.ndarray) -> tuple[list[Match], dict[tuple, int]]:
  """(matches of equal examples, (prompt, chosen, rejected, tie) -> the first that has them).

  The two responses of a tie are in an order that depends on their texts alone.
  """
  numbers: dict[tuple, int] = {}  # Texts get numbers, because numbers are compared faster.
  known: dict[Text, int] = {}  # A string that was seen before need not be normalised again.

  def number(text: Text) -> int:
    if not isinstance(text, str):
      return numbers.setdefault(key(text), len(numbers))
    if text not in known:
      known[text] = numbers.setdefault(key(text), len(numbers))
    return known[text]

  matches, first = [], {}
  for i, (e, tie) in enumerate(zip(examples, tied.tolist(), strict=True)):
    prompt, *sides = map(number, (e.prompt, *e.responses))
    of = first.setdefault((prompt, *(sorted(sides) if tie else sides), tie), i)
    if of != i:
      matches.append(Match(i, of, 1.0))
  return matches, first


class _Texts:
  """The distinct texts of one part of the examples, with measures of how any two of them compare.

  Args:
    part: the texts.
    document: int64, the document of each distinct text: a prompt with all its responses is one (see
      `template_tokens`).
    n: number of tokens of a shingle.
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
    """The hashed shingles of a text: (those outside templates, all of them)."""
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
    """The similarity of two texts that `find_duplicates` defines."""
    if a == b:
      return 1.0
    (mine, all_mine), (other, all_other) = self.shingles(a), self.shingles(b)
    both = len(mine & other)
    return both / (both + len(mine - all_other) + len(other - all_mine)) if both else 0.0

  def shared_words(self, a: int, b: int) -> float:
    """Share of the shorter text's distinct tokens outside templates that the other text has, too.

    Texts of nothing but template tokens share nothing unless they are equal.
    """
    if a == b:
      return 1.0
    mine, other = (np.unique(self.tokens.of(i)[~h]) for i, h in self._hidden(a, b))
    if not min(len(mine), len(other)):
      return 0.0
    return len(np.intersect1d(mine, other, assume_unique=True)) / min(len(mine), len(other))

  def shared(self, a: int, b: int) -> int:
    """Number of shingles outside templates that two texts have in common."""
    return len(self.shingles(a)[0] & self.shingles(b)[0])

  def difference(self, a: int, b: int, *, content: bool = False) -> str:
    """The kind of difference that may change the meaning, '' for none; see `tokens.difference`.

    With `content`, only tokens outside templates are compared.
    """
    if a == b:
      return ""
    sides = [self.tokens.of(i) for i in (a, b)]
    if content:
      sides = [self.tokens.of(i)[~hidden] for i, hidden in self._hidden(a, b)]
    return difference(self.tokens, *sides)

  def substituted(self, a: int, b: int) -> bool:
    """Whether each of two texts has a token that the other lacks."""
    sides = [self.tokens.of(i) for i in (a, b)]
    return bool(len(np.setdiff1d(*sides)) and len(np.setdiff1d(*sides[::-1])))

  def one_template(self, a: int, b: int) -> bool:
    """Whether two texts have the same set of template tokens."""
    if a == b or not (self.templated[a] or self.templated[b]):
      return True
    sides = [self.tokens.of(i)[hidden] for i, hidden in self._hidden(a, b)]
    return set(sides[0].tolist()) == set(sides[1].tolist())

  def _hidden(self, *texts: int) -> list[tuple[int, np.ndarray]]:
    return [(i, self.masked[self.tokens.starts[i] : self.tokens.starts[i + 1]]) for i in texts]


class _Search:
  """Searches N distinct pairs for near ones, with the same label or with the label reversed.

  Args:
    examples: the pairs, the chosen response first.
    tied: bool [N], which of them are ties; the order of their responses says nothing.
    threshold, n: as `find_duplicates` takes them.
  """

  def __init__(self, examples: Sequence[Example], tied: np.ndarray, threshold: float, n: int):
    self.threshold = threshold
    self.tied = tied
    prompts = Part([e.prompt for e in examples])
    responses = Part([r for e in examples for r in e.responses])
    self.prompt = prompts.number
    self.sides = responses.number.reshape(-1, 2)
    _, same = np.unique(prompts.tokens.whole, return_inverse=True)
    document = np.zeros(len(responses.tokens), np.int64)
    # A response under several prompts belongs to the document of the first one. Assigned in reverse
    # order, so that the first one is written last and stays.
    document[self.sides[::-1]] = same[self.prompt][::-1, None]
    self.same_prompt = same[self.prompt]
    # The number of distinct prompts that each response answers.
    under = np.unique(np.stack([self.sides.ravel(), np.repeat(self.same_prompt, 2)], 1), axis=0)
    self.popular = np.bincount(under[:, 0], minlength=len(responses.tokens))
    self.prompts = _Texts(prompts, same, n)
    self.responses = _Texts(responses, document, n)
    tagged = Sets(mixed(self.prompts.sets.values, 3), self.prompts.sets.starts)
    sides = [(self.responses.sets, self.sides[:, k]) for k in (0, 1)]
    templates = self.prompts.masked.any() or self.responses.masked.any()
    least = min(threshold, _LEAST + 0.1) if templates else threshold
    # Shingles of prompts are hashed anew, so that they match no response. Those of chosen and
    # rejected are hashed alike, so that one search finds the reversed pairs as well.
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
    """The first match without a difference in meaning; if there is none, the first match, or None.

    The search ends after `_TRIED` matches with a difference.
    """
    noted, tried = None, 0
    if len(others) > _FEW:
      flips = (False, True) if self.tied[i] else (compare == self._reversed,)
      likely = [self._likely(i, others, flip) for flip in flips]
      others = np.unique(np.concatenate(likely))
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
    """The candidates `others` whose responses share enough shingles with those of pair i.

    This filter is vectorised over all candidates, because a row can have thousands of them. Where a
    text has template tokens, it only asks for the share `_LEAST`; `_compared` then compares the
    remaining candidates exactly. With `flip`, the responses of `others` are swapped.
    """
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
    """The match of two pairs; None if they are not near, or nearer with the label reversed.

    None also if one of the two is a tie; if both are, they are compared in the nearer order.
    """
    if self.tied[i] != self.tied[j]:
      return None
    if self.tied[i]:
      return self._compared(i, j, self.sides[j][:: -1 if self._rather_reversed(i, j) else 1])
    match = self._compared(i, j, self.sides[j])
    return match if match and not self._rather_reversed(i, j) else None

  def _reversed(self, i: int, j: int) -> Match | None:
    """The match of pair i with the reverse of j; None if not near, or not `_rather_reversed`.

    A tie has no reverse.
    """
    if self.tied[i] or self.tied[j]:
      return None
    match = self._compared(i, j, self.sides[j][::-1])
    if not match or not self._rather_reversed(i, j):
      return None
    if not match.differs and self.same_prompt[i] != self.same_prompt[j]:
      return dataclasses.replace(match, differs="the wording of the prompt")
    return match

  def _rather_reversed(self, i: int, j: int) -> bool:
    """Whether pair i is nearer to the reverse of pair j than to j.

    If the two responses of a pair are near each other, another pair can be near to both.
    """
    (x, y), turned = self.sides[i].tolist(), self.sides[j][::-1].tolist()
    if x != y and [x, y] == turned:
      return True  # 'Yes.' and 'Yes?' have equal tokens, so similarity cannot tell them apart.
    forward, back = (
      min(map(self.responses.similarity, self.sides[i].tolist(), sides.tolist()))
      for sides in (self.sides[j], self.sides[j][::-1])
    )
    return back > forward

  def _compared(self, i: int, j: int, sides: np.ndarray) -> Match | None:
    """The match of pair i with pair j's prompt and the responses `sides`; None if not near.

    The responses are compared first: candidates often share their prompt and little else.
    """
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
  """Finds pairs whose own two responses are equal or near each other.

  Args:
    examples: pairs.
    threshold: smallest similarity, as `find_duplicates` defines it, of near responses; 0 = find
      only those that are equal after `tokens.normal`.
    n: number of tokens of a shingle.

  Returns:
    A match for each pair found, in order; its `of` equals its `index`, and its `similarity` is 1.0
    only for equal responses.

  Raises:
    ValueError: `n` is below 1.
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
        # Texts that differ only in full stops have the same shingles, but 1.0 means equal.
        found[i] = Match(i, i, min(value, 1 - 1e-9), texts.difference(a, b))
  return [found[i] for i in sorted(found)]
