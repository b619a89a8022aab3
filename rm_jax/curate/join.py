"""Finds pairs of sets that may be similar, without comparing all pairs; no similar pair is missed.

This is the prefix filter (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007, Scaling
up all pairs similarity search), with more than one common element required (Wang, Li and Feng 2012,
Can we beat the prefix filtering?).
"""

from collections.abc import Sequence

import numpy as np

from rm_jax.curate.ngrams import Sets

# Largest number of shared elements, over all pairs of rows of a block, that are counted at once.
_AT_ONCE = 1 << 21
# Number of elements that the prefixes of two rows must share, if the index needs so many. With 1,
# as in the plain prefix filter, rows of few elements would have far more candidates.
_COMMON = 3


class Join:
  """For each row, the earlier rows that may have a Jaccard index of at least `threshold` with it.

  Each row has one set of each part, such as the shingles of its prompt, and stands for the multiset
  union of its sets. The elements of all rows are put in one order, the rarest first. If
  |x ∩ y| >= a, then the first |x| − a + k elements of x and the first |y| − a + k elements of y,
  the prefixes, have at least min(k, |x ∩ y|) elements in common. A Jaccard index of t needs
  |x ∩ y| >= t · max(|x|, |y|). So rows whose prefixes share fewer than k elements cannot be
  similar; k is `_COMMON`, or the number of common elements that the index needs if that is smaller.
  These are left out, and so are rows of which one is too small for the other. In most data the
  prefixes of most rows have only elements that no other row has, so that such rows are compared
  with no other.

  Args:
    parts: for each part its sets, and an int64 [N] with the number of the set that each row has.
    threshold: smallest Jaccard index, in (0, 1].
    rows: bool [N], the rows to search among; None = all.
  """

  def __init__(
    self,
    parts: Sequence[tuple[Sets, np.ndarray]],
    threshold: float,
    rows: np.ndarray | None = None,
  ):
    count = len(parts[0][1])
    values, owner = [], []
    for sets, number in parts:
      chosen = np.arange(count) if rows is None else np.flatnonzero(rows)
      found, sizes = gathered(sets, number[chosen])
      values.append(found)
      owner.append(np.repeat(chosen, sizes))
    value_V, owner_V = np.concatenate(values), np.concatenate(owner)
    # How often each element occurs, counted by hash bucket. Two elements in one bucket get the sum
    # of their counts. This only changes the order of the elements, and the filter is right for any
    # order that all rows share.
    bits = int(np.clip(np.ceil(np.log2(len(value_V) + 1)) + 1, 10, 25))
    bucket = (value_V >> np.uint64(64 - bits)).astype(np.int64)
    often_V = np.bincount(bucket, minlength=1 << bits)[bucket]
    size = np.bincount(owner_V, minlength=count)
    self.size = size
    self._needed = np.minimum(_COMMON, np.ceil(threshold * size - 1e-9)).astype(np.int64)
    prefix = size - np.ceil(threshold * size - 1e-9).astype(np.int64) + _COMMON
    # Elements that only one row has come first in the order. They count as part of the prefix, but
    # as no other row can share them they are not stored.
    left = np.minimum(prefix, size) - np.bincount(owner_V[often_V == 1], minlength=count)
    kept = (often_V > 1) & (left > 0)[owner_V]
    value, own, often = value_V[kept], owner_V[kept], often_V[kept]
    order = np.lexsort((value, often, own))
    value, own = value[order], own[order]
    first = np.searchsorted(own, own)  # For each element, where the elements of its row begin.
    kept = np.arange(len(own)) - first < left[own]
    value, own = value[kept], own[kept]
    order = np.argsort(value, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    # `_starts`: where each row's prefix elements begin. `_rows`: for one element after the other,
    # the rows that have it in their prefix, in order. `_low`, `_length`: for each prefix element of
    # each row, where the element's rows begin in `_rows`, and how many of them precede this row.
    self._starts = np.searchsorted(own, np.arange(count + 1))
    self._owner, self._rows = own, own[order]
    self._low = np.searchsorted(value[order], value)
    self._length = place - self._low
    self._cost = np.concatenate([[0], np.cumsum(self._length)])[self._starts]
    self._threshold = threshold
    self._first = self._last = 0  # The candidates of rows _first .. _last - 1 have been computed.

  def before(self, i: int) -> np.ndarray:
    """int64: the earlier rows that may be similar to row i, in order.

    Candidates are computed for a block of rows at a time, so it is fast to ask for rows in order.
    """
    if not self._first <= i < self._last:
      self._look(i)
    at = i - self._first
    return self._found[self._bounds[at] : self._bounds[at + 1]]

  def _look(self, first: int) -> None:
    """Computes the candidates of row `first` and of as many next rows as `_AT_ONCE` allows."""
    last = int(np.searchsorted(self._cost, self._cost[first] + _AT_ONCE, side="right")) - 1
    last = min(max(last, first + 1), len(self.size))
    a, b = self._starts[first], self._starts[last]
    length = self._length[a:b]
    ends = np.cumsum(length)
    at = np.arange(ends[-1] if len(ends) else 0)
    at += np.repeat(self._low[a:b] - (ends - length), length)
    i, j = np.repeat(self._owner[a:b], length), self._rows[at]
    pair = np.sort((i[j < i] - first) * len(self.size) + j[j < i])
    new = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])[: len(pair)])
    times = np.diff(np.append(new, len(pair)))
    i, j = np.divmod(pair[new], len(self.size))
    size, other = self.size[i + first], self.size[j]
    t = self._threshold - 1e-9
    kept = (times >= self._needed[i + first]) & (other >= t * size) & (size >= t * other)
    self._found = j[kept]
    self._bounds = np.searchsorted(i[kept], np.arange(last - first + 1))
    self._first, self._last = first, last


def gathered(sets: Sets, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(the values of the sets with these numbers, concatenated; the size of each of the sets)."""
  sizes = (sets.starts[1:] - sets.starts[:-1])[number]
  ends = np.cumsum(sizes)
  at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
    sets.starts[:-1][number] - (ends - sizes), sizes
  )
  return sets.values[at], sizes


def overlaps(sets: Sets, of: int, others: np.ndarray) -> np.ndarray:
  """int64: the size of the intersection of set `of` with each set of `others`.

  Sets are given by their numbers in `sets`, and none of them may be empty.
  """
  if not len(others):
    return np.zeros(0, np.int64)
  mine = sets[of]
  values, sizes = gathered(sets, others)
  at = np.minimum(np.searchsorted(mine, values), len(mine) - 1)
  return np.add.reduceat((mine[at] == values).astype(np.int64), np.cumsum(sizes) - sizes)
