"""Duplicates: of whole examples, exact and near; with the label reversed; and of a pair's sides.

Near duplicates are found by MinHash (Broder 1997, On the resemblance and containment of documents)
with banding (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4), and every candidate
is verified by the exact Jaccard similarity of its word shingles.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from rm_jax.curate.text import Sets, jaccard, mixed, ngrams
from rm_jax.data.dialogue import plain
from rm_jax.metrics.text import normalise
from rm_jax.types import Example, Text

_CELLS = 1 << 16  # shingles hashed at once: their hashes stay in the processor's cache
_MOST = 1000  # candidates verified for one example: a bound on time where a data set is one text


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
  """Example `index` matches the earlier example `of`; `similarity` 1.0 where they are equal."""

  index: int
  of: int
  similarity: float


@dataclasses.dataclass(frozen=True, slots=True)
class Duplicates:
  """What `find_duplicates` found.

  Attributes:
    exact: examples whose normalised texts an earlier one has, chosen and rejected alike.
    near: examples that are not exact ones, and near an earlier one that is neither.
    reversed: examples, neither exact nor near, with an earlier example's prompt and responses
      (equal or near) but the other response chosen: they contradict each other.
    unverified: examples with so many candidates that not all were verified; 0 but for data sets
      that are much the same text.
  """

  exact: list[Match]
  near: list[Match]
  reversed: list[Match]
  unverified: int


def key(text: Text) -> tuple[tuple[str, str], ...]:
  """What two equal texts have in common: roles and normalised contents; strings have no role."""
  if isinstance(text, str):
    return (("", normalise(text)),)
  return tuple((m["role"], normalise(m["content"])) for m in text)


def find_duplicates(
  examples: Sequence[Example],
  *,
  threshold: float = 0.7,
  n: int = 3,
  permutations: int = 128,
  seed: int = 0,
  progress: bool = False,
) -> Duplicates:
  """Duplicates among pairs; each names the earliest example that it repeats.

  Two examples are near each other when the Jaccard similarity of their prompts' word shingles is at
  least `threshold`, and that of their responses' too, each response's shingles being its own (so
  that reversing a pair is no near duplicate, and two comparisons of one long prompt are none).

  Args:
    examples: N pairs.
    threshold: in (0, 1), or 0 to look for equal ones only.
    n: words of a shingle.
    permutations: hashes of a MinHash signature; the bands are chosen so that a pair at the
      threshold is missed with a probability of at most 1 %.
    seed: of the hashes.
    progress: show bars.

  Raises:
    ValueError: an argument is out of its range, or an example is no pair.
  """
  if not 0 <= threshold < 1:
    raise ValueError(f"threshold is {threshold}; expected it in (0, 1), or 0 for equal texts only")
  if permutations < 1:
    raise ValueError(f"permutations is {permutations}; expected at least 1")
  for example in examples:
    if len(example.responses) != 2:
      raise ValueError(f"{example.origin}: {len(example.responses)} responses; expected a pair")
  exact, first = _exact(examples)
  single = sorted(first.values())
  near, against, unverified = [], [], 0
  if threshold:
    near, against, unverified = _near(
      [examples[i] for i in single], threshold, n, permutations, seed, progress
    )
  near = [Match(single[m.index], single[m.of], m.similarity) for m in near]
  against = [Match(single[m.index], single[m.of], m.similarity) for m in against]
  # A near duplicate is dropped already: it contradicts no one, what it repeats may.
  gone = {m.index for m in near}
  reversed_of = {}
  for (prompt, chosen, rejected), i in first.items():
    j = first.get((prompt, rejected, chosen))
    if j is not None and j < i and not {i, j} & gone:
      reversed_of[i] = Match(i, j, 1.0)
  for match in against:
    reversed_of.setdefault(match.index, match)
  return Duplicates(exact, near, [reversed_of[i] for i in sorted(reversed_of)], unverified)


def _exact(examples: Sequence[Example]) -> tuple[list[Match], dict[tuple, int]]:
  """(repetitions, (prompt, chosen, rejected) -> the first example that has them)."""
  numbers: dict[tuple, int] = {}  # texts as numbers: the keys below are compared often

  def number(text: Text) -> int:
    return numbers.setdefault(key(text), len(numbers))

  matches, first = [], {}
  for i, e in enumerate(examples):
    of = first.setdefault((number(e.prompt), *map(number, e.responses)), i)
    if of != i:
      matches.append(Match(i, of, 1.0))
  return matches, first


def _near(
  examples: Sequence[Example], threshold: float, n: int, count: int, seed: int, progress: bool
) -> tuple[list[Match], list[Match], int]:
  """(near, reversed, unverified) of distinct examples."""
  if not examples:
    return [], [], 0
  prompts, chosen, rejected = (
    ngrams([plain(text) for text in texts], n)
    for texts in zip(*((e.prompt, *e.responses) for e in examples), strict=True)
  )
  bar = tqdm(total=5, desc="signatures", unit="part", disable=not progress)

  def signature(sets: Sets, part: int) -> np.ndarray:
    made = minhash(Sets(mixed(sets.values, part), sets.starts), count, seed)
    bar.update()
    return made

  # The union of the tagged parts: at least as similar as the least similar part, so that nothing
  # that verifies is missed by it. Its minimum is the least of the parts' minima.
  prompt = signature(prompts, 0)
  forward = np.minimum(prompt, np.minimum(signature(chosen, 1), signature(rejected, 2)))
  swapped = np.minimum(prompt, np.minimum(signature(chosen, 2), signature(rejected, 1)))
  bar.close()
  rows = rows_of_band(threshold, count)
  keys_NB, swapped_NB = band_keys(forward, rows), band_keys(swapped, rows)

  def similar(i: int, j: int, swap: bool) -> float:
    between = jaccard(prompts[i], prompts[j])
    if between < threshold:
      return between
    sides = (rejected, chosen) if swap else (chosen, rejected)
    pairs = ((chosen[i], sides[0][j]), (rejected[i], sides[1][j]))
    both = sum(len(np.intersect1d(a, b, assume_unique=True)) for a, b in pairs)
    return min(between, both / (sum(len(a) + len(b) for a, b in pairs) - both))

  index = _Buckets(keys_NB, swapped_NB)
  near, contradicting, unverified = [], [], 0
  for i in tqdm(range(len(examples)), desc="near duplicates", unit="row", disable=not progress):
    candidates = index.of(i, keys_NB)
    against = index.of(i, swapped_NB)
    unverified += max(len(candidates), len(against)) > _MOST
    found = _first(candidates, lambda j, i=i: similar(i, j, False), threshold, i)
    if found:
      near.append(found)
      continue
    found = _first(against, lambda j, i=i: similar(i, j, True), threshold, i)
    if found:
      contradicting.append(found)
    index.add(i)
  return near, contradicting, unverified


def _first(candidates: Iterable[int], similar, threshold: float, i: int) -> Match | None:
  for j in sorted(candidates)[:_MOST]:
    value = similar(j)
    if value >= threshold:
      return Match(i, j, value)
  return None


class _Buckets:
  """Bands' buckets of the examples so far; a key that occurs once in all has none."""

  def __init__(self, keys_NB: np.ndarray, others_NB: np.ndarray):
    self._keys = keys_NB
    self._buckets: list[dict[int, list[int]]] = []
    for band in range(keys_NB.shape[1]):
      values, counts = np.unique(keys_NB[:, band], return_counts=True)
      others = np.isin(values, others_NB[:, band])
      self._buckets.append({int(v): [] for v in values[(counts > 1) | others]})

  def of(self, i: int, keys_NB: np.ndarray) -> set[int]:
    found: set[int] = set()
    for bucket, value in zip(self._buckets, keys_NB[i].tolist(), strict=True):
      found.update(bucket.get(value, ()))
    return found

  def add(self, i: int) -> None:
    for bucket, value in zip(self._buckets, self._keys[i].tolist(), strict=True):
      if value in bucket:
        bucket[value].append(i)


def minhash(sets: Sets, count: int, seed: int = 0) -> np.ndarray:
  """MinHash signatures: of two sets, the share of equal columns estimates their Jaccard.

  Column k is min over x of (a_k x + b_k mod 2^64) >> 32, a_k odd; x are hashes already.

  Args:
    sets: N sets, none empty.
    count: columns.
    seed: of a and b.

  Returns:
    uint32 [N, count].
  """
  rng = np.random.Generator(np.random.PCG64(seed))
  a = rng.integers(0, 2**64, count, np.uint64) | np.uint64(1)
  b = rng.integers(0, 2**64, count, np.uint64)
  out = np.empty((len(sets), count), np.uint32)
  sizes = np.diff(sets.starts)
  if (sizes == 0).any():
    raise ValueError(f"set {int(np.argmin(sizes))} is empty; expected at least one hash in each")
  begin = 0
  while begin < len(sets):
    end = max(
      begin + 1, int(np.searchsorted(sets.starts, sets.starts[begin] + _CELLS, side="right")) - 1
    )
    values = sets.values[sets.starts[begin] : sets.starts[end]]
    starts = sets.starts[begin:end] - sets.starts[begin]
    with np.errstate(over="ignore"):
      for k in range(count):
        hashed = (values * a[k] + b[k]) >> np.uint64(32)
        out[begin:end, k] = np.minimum.reduceat(hashed, starts)
    begin = end
  return out


def rows_of_band(threshold: float, count: int, missed: float = 0.01) -> int:
  """Most rows r a band such that a pair at the threshold is missed with at most this probability.

  It is missed in all count // r bands with (1 - threshold^r)^(count // r).
  """
  fitting = [r for r in range(1, count + 1) if (1 - threshold**r) ** (count // r) <= missed]
  return max(fitting, default=1)


def band_keys(signatures: np.ndarray, rows: int) -> np.ndarray:
  """One hash of each band's rows, uint64 [N, bands]; a remainder of the columns is left out."""
  bands = signatures.shape[1] // rows
  keys = np.zeros((len(signatures), bands), np.uint64)
  for row in range(rows):
    keys = mixed(keys ^ signatures[:, row : bands * rows : rows].astype(np.uint64), row + 1)
  return keys


def similar_sides(examples: Sequence[Example], threshold: float, n: int = 3) -> list[Match]:
  """Pairs whose own two responses are equal once normalised (1.0) or near; `of` is the index.

  Args:
    examples: pairs.
    threshold: Jaccard of the responses' word shingles from which they are near; 0 = equal only.
    n: words of a shingle.
  """
  equal = [i for i, e in enumerate(examples) if key(e.responses[0]) == key(e.responses[1])]
  found = {i: 1.0 for i in equal}
  if threshold and examples:
    sides = [ngrams([plain(e.responses[k]) for e in examples], n) for k in (0, 1)]
    for i in range(len(examples)):
      value = jaccard(sides[0][i], sides[1][i])
      if value >= threshold and i not in found:
        # Same shingles in another order or punctuation: near, and 1.0 is for the equal.
        found[i] = min(value, 1 - 1e-9)
  return [Match(i, i, found[i]) for i in sorted(found)]
