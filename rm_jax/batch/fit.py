"""Bin packing of groups into rows, and of the pieces of a row into attention windows.

A window is a square of attention scores; a piece, which must not be split, is a group or one of its
sequences. batch/layout.py says why there are windows. Lengths are in columns, one for each token.
"""

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

# Sets of window lengths to choose from: each tuple is a set, and a length is that of the longest
# piece divided by a number in the tuple.
_PARTS = ((1,), (1, 2), (1, 3), (1, 1.2), (1, 2, 4), (1, 3, 6), (1, 1.2, 1.5), (1, 1.25, 2))


def up(x: float, multiple: int) -> int:
  """x rounded up to a multiple of `multiple`."""
  return int(-(-x // multiple)) * multiple


def choose_windows(
  rows: list[list[int]], align: int, spare: float, alone: bool
) -> tuple[tuple[int, int], ...]:
  """Chooses attention's windows for rows like these, so that attention costs little.

  Shapes are static, so all rows of a shape have the same windows, which must hold the pieces of any
  row but those that `spare` allows for. A window's cost grows with the square of its length
  (`_cost`). Long windows waste their squares on short pieces, and each different length must be
  compiled. So a few sets of lengths are tried, the number of windows of each length is reduced to
  what the rows need, and the cheapest set is taken.

  Args:
    rows: for each row the lengths of its pieces (groups or sequences).
    align: lengths are multiples of it.
    spare: largest share of the rows that need not fit (they take a larger shape).
    alone: a window holds one piece at most.

  Returns:
    (length, number of windows a row), shortest first.
  """
  pieces = [w for row in rows for w in row]
  # Rows with pieces of equal lengths need equal windows: each kind of row is laid once.
  kinds = Counter(tuple(sorted(row)) for row in rows)
  longest = up(max(pieces), align)
  best, least = (), float("inf")
  parts = (*_PARTS, (1, 1.5, 2, 3), (1, 1.5, 2, 3, 4, 6)) if alone else _PARTS
  # Tried besides fractions of the longest piece: quantiles of the pieces' lengths. Two pieces
  # longer than half a window cannot share it. Where most pieces are that long, a window should be
  # about as long as one piece.
  spread = [np.quantile(pieces, np.arange(1, n) / n, method="inverted_cdf") for n in (2, 3, 4, 5)]
  sets = {}  # as a dict, to keep their order: of equally cheap sets the first one is taken
  for found in [*([longest / part for part in few] for few in parts), *spread]:
    lengths = {max(up(length, align), min(longest, 4 * align)) for length in found}
    sets[tuple(sorted(lengths | {longest}))] = None
  for lengths in sets:
    every = [1 if alone else 1 << 30] * len(lengths)
    laid = [[len(windows) for windows in lay(row, lengths, every)] for row in kinds]
    counts = np.max(laid, axis=0).tolist()
    counts = _fewest(kinds, lengths, counts, spare, alone)
    cost = sum(count * _cost(n) for count, n in zip(counts, lengths, strict=True))
    # Each length is compiled, so that one more must save about 2 %.
    cost *= 1 + 0.02 * sum(map(bool, counts))
    if cost < least:
      least, best = cost, tuple((n, c) for n, c in zip(lengths, counts, strict=True) if c)
  return best


def _cost(length: int) -> float:
  # L² for the attention scores, and 300 L for what is done once for each column, such as gathering
  # it. The factor 300 is a guess; only speed depends on it.
  return length * (length + 300)


def _fewest(
  rows: Mapping[tuple[int, ...], int],
  lengths: Sequence[int],
  counts: list[int],
  spare: float,
  alone: bool,
) -> list[int]:
  """Reduces the numbers of windows, the longest first, as far as the rows still fit.

  At most a share `spare` of the rows need not fit. `rows` says how many there are of each kind.
  `lengths`, `counts` and the result have an entry for each length of windows.
  """
  most = int(spare * sum(rows.values()))
  failed: set[tuple[int, ...]] = set()

  def without(size: int, count: int) -> set[tuple[int, ...]]:
    """The rows, beside those in `failed`, that do not fit with `count` windows of lengths[size]."""
    fewer = [*counts[:size], count, *counts[size + 1 :]]
    windows = list(zip(lengths, fewer, strict=True))
    others = (row for row in rows if row not in failed)
    return {row for row in others if place_windows(row, windows, alone) is None}

  for size in reversed(range(len(lengths))):
    low, high = 0, counts[size]  # bisection; `high` windows are known to be enough
    while low < high:
      middle = (low + high) // 2
      lost = without(size, middle)
      if sum(rows[row] for row in failed | lost) > most:
        low = middle + 1
      else:
        high, counts = middle, [*counts[:size], middle, *counts[size + 1 :]]
        failed |= lost
  return counts


def place_windows(
  lengths: Sequence[int], windows: Sequence[tuple[int, int]], alone: bool = False
) -> list[tuple[int, int, int]] | None:
  """Assigns pieces to windows: best fit, longest piece first.

  Args:
    lengths: of the pieces.
    windows: (length, number in a row), shortest first.
    alone: a window holds one piece at most.

  Returns:
    for each piece (index into `windows`, which window of that length, where the piece begins in
    it), or None if they do not fit.
  """
  # The windows in use, sorted: (columns left, index into `windows`, which window of that length,
  # first free column). Bisection finds the fullest window that still has room.
  begun: list[tuple[int, int, int, int]] = []
  used = [0] * len(windows)
  out = [(0, 0, 0)] * len(lengths)
  for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
    at = bisect.bisect_left(begun, (lengths[i],))
    if at < len(begun):
      room, size, which, start = begun.pop(at)
    else:
      size = next(
        (s for s, (n, count) in enumerate(windows) if n >= lengths[i] and used[s] < count),
        None,
      )
      if size is None:
        return None
      room, which, start = windows[size][0], used[size], 0
      used[size] += 1
    out[i] = size, which, start
    if not alone:
      bisect.insort(begun, (room - lengths[i], size, which, start + lengths[i]))
  return out


def lay(
  columns: Sequence[int], lengths: Sequence[int], groups: Sequence[int]
) -> list[list[list[int]]]:
  """Assigns groups to rows of several lengths: best fit, longest group first.

  A group goes into the fullest row that has room, else opens a row of the shortest length that
  holds it.

  Args:
    columns: number of columns that each group takes.
    lengths: of rows, ascending.
    groups: for each row length, how many groups a row holds at most.

  Returns:
    for each row length its rows, each a list of indices into `columns`.
  """
  rows: list[list[list[int]]] = [[] for _ in lengths]
  free: list[tuple[int, int, int]] = []  # (columns left, which length, which row), sorted
  for i in sorted(range(len(columns)), key=columns.__getitem__, reverse=True):
    at = bisect.bisect_left(free, (columns[i], -1, -1))
    if at < len(free):
      left, t, row = free.pop(at)
    else:
      t = bisect.bisect_left(lengths, columns[i])
      left, row = lengths[t], len(rows[t])
      rows[t].append([])
    rows[t][row].append(i)
    if len(rows[t][row]) < groups[t]:
      bisect.insort(free, (left - columns[i], t, row))
  return rows
