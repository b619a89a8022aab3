"""Sets that may be similar, found without comparing all of them; and none that is similar missed.

The prefix filter (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007, Scaling up all
pairs similarity search) with more than one common element asked for (Wang, Li and Feng 2012, Can we
beat the prefix filtering?).
"""

from collections.abc import Sequence

import numpy as np

from rm_jax.curate.ngrams import Sets

_AT_ONCE = 1 << 21  # common elements that are counted at once: bounds memory
_COMMON = 3  # elements that two prefixes must share: one is too weak where elements are few


class Join:
  """Rows that may have a Jaccard similarity of at least `threshold` with a row.

  A row is the union of its parts, an element of two parts being two. Elements are ordered by how
  few rows have them. If |x ∩ y| ≥ a then the first |x| − a + k elements of x and the first
  |y| − a + k of y share min(k, |x ∩ y|), and a Jaccard of t or more needs a ≥ t · max(|x|, |y|): so
  that rows with few common prefix elements are left out, and no other. Most rows of most data have
  so many elements of their own that they are compared with none.

  Args:
    parts: for each part its sets and, int64 [N], which of them each row has.
    threshold: in (0, 1].
    rows: bool [N], rows to look at; None: all.
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
    # How many rows have an element: by buckets, where two elements may be counted as one. Any order
    # of the elements is a right one; this only has to be the same for all rows.
    bits = int(np.clip(np.ceil(np.log2(len(value_V) + 1)) + 1, 10, 25))
    bucket = (value_V >> np.uint64(64 - bits)).astype(np.int64)
    often_V = np.bincount(bucket, minlength=1 << bits)[bucket]
    size = np.bincount(owner_V, minlength=count)
    self.size = size
    self._needed = np.minimum(_COMMON, np.ceil(threshold * size - 1e-9)).astype(np.int64)
    prefix = size - np.ceil(threshold * size - 1e-9).astype(np.int64) + _COMMON
    # An element that one row has comes before all others, and finds no one.
    left = np.minimum(prefix, size) - np.bincount(owner_V[often_V == 1], minlength=count)
    kept = (often_V > 1) & (left > 0)[owner_V]
    value, own, often = value_V[kept], owner_V[kept], often_V[kept]
    order = np.lexsort((value, often, own))
    value, own = value[order], own[order]
    first = np.searchsorted(own, own)  # where its row begins
    kept = np.arange(len(own)) - first < left[own]
    value, own = value[kept], own[kept]
    order = np.argsort(value, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    # Elements of each row; rows that have each element, in order; where among those the row stands.
    self._starts = np.searchsorted(own, np.arange(count + 1))
    self._owner, self._rows = own, own[order]
    self._low = np.searchsorted(value[order], value)
    self._length = place - self._low
    self._cost = np.concatenate([[0], np.cumsum(self._length)])[self._starts]
    self._threshold = threshold
    self._first = self._last = 0  # rows whose candidates are known

  def before(self, i: int) -> np.ndarray:
    """int64: the earlier rows that may be similar to row i, in order. Ask for rows in order."""
    if not self._first <= i < self._last:
      self._look(i)
    at = i - self._first
    return self._found[self._bounds[at] : self._bounds[at + 1]]

  def _look(self, first: int) -> None:
    """Candidates of as many rows as have at most `_AT_ONCE` common elements in all."""
    last = int(np.searchsorted(self._cost, self._cost[first] + _AT_ONCE, side="right")) - 1
    last = min(max(last, first + 1), len(self.size))
    a, b = self._starts[first], self._starts[last]
    length = self._length[a:b]
    ends = np.cumsum(length)
    at = np.arange(ends[-1] if len(ends) else 0)
    at += np.repeat(self._low[a:b] - (ends - length), length)
    i, j = np.repeat(self._owner[a:b], length), self._rows[at]
    pair = np.sort((i[j < i] - first) * len(self.size) + j[j < i])
    new = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else at
    times = np.diff(np.append(new, len(pair)))
    i, j = np.divmod(pair[new], len(self.size))
    size, other = self.size[i + first], self.size[j]
    t = self._threshold - 1e-9
    kept = (times >= self._needed[i + first]) & (other >= t * size) & (size >= t * other)
    self._found = j[kept]
    self._bounds = np.searchsorted(i[kept], np.arange(last - first + 1))
    self._first, self._last = first, last


def gathered(sets: Sets, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(the values of these sets, one after the other; the size of each)."""
  sizes = (sets.starts[1:] - sets.starts[:-1])[number]
  ends = np.cumsum(sizes)
  at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
    sets.starts[:-1][number] - (ends - sizes), sizes
  )
  return sets.values[at], sizes


def overlaps(sets: Sets, of: int, others: np.ndarray) -> np.ndarray:
  """int64: how many values of one set each of the others has; no set is empty."""
  if not len(others):
    return np.zeros(0, np.int64)
  mine = sets[of]
  values, sizes = gathered(sets, others)
  at = np.minimum(np.searchsorted(mine, values), len(mine) - 1)
  return np.add.reduceat((mine[at] == values).astype(np.int64), np.cumsum(sizes) - sizes)
