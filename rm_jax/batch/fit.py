"""Fitting pieces into bins: which windows a row needs, what goes where, rows of given lengths."""

import bisect
from collections.abc import Sequence

import numpy as np

# Sets of lengths of windows to choose from, as parts of the longest piece.
_PARTS = ((1,), (1, 2), (1, 3), (1, 1.2), (1, 2, 4), (1, 3, 6), (1, 1.2, 1.5), (1, 1.25, 2))


def up(x: float, multiple: int) -> int:
  """The least multiple that is not under x."""
  return int(-(-x // multiple)) * multiple


def choose_windows(
  rows: list[list[int]], align: int, spare: float, alone: bool
) -> tuple[tuple[int, int], ...]:
  """(length, how many a row) of windows that hold what any of some rows has to put into them.

  Of a few sets of lengths the one that makes the least of attention's squares.

  Args:
    rows: for each the lengths of its pieces.
    align: see `layout.Packing`.
    spare: what share of the rows need not fit.
    alone: see `layout.Shape`.
  """
  pieces = [w for row in rows for w in row]
  longest = up(max(pieces), align)
  best, least = (), float("inf")
  parts = (*_PARTS, (1, 1.5, 2, 3), (1, 1.5, 2, 3, 4, 6)) if alone else _PARTS
  # Longer pieces than half of the longest have a window to themselves, which as many lengths as
  # there are such pieces would fit.
  spread = [np.quantile(pieces, np.arange(1, n) / n, method="inverted_cdf") for n in (2, 3, 4, 5)]
  for found in [*([longest / part for part in few] for few in parts), *spread]:
    lengths = {max(up(length, align), min(longest, 4 * align)) for length in found}
    lengths = sorted(lengths | {longest})
    every = [1 if alone else 1 << 30] * len(lengths)
    laid = [[len(windows) for windows in lay(row, lengths, every)] for row in rows]
    counts = np.max(laid, axis=0).tolist()
    counts = _fewest(rows, lengths, counts, spare, alone)
    cost = sum(count * _cost(n) for count, n in zip(counts, lengths, strict=True))
    # Each length is compiled: one more has to save a fiftieth.
    cost *= 1 + 0.02 * sum(map(bool, counts))
    if cost < least:
      least, best = cost, tuple((n, c) for n, c in zip(lengths, counts, strict=True) if c)
  return best


def _cost(length: int) -> float:
  # A column of a window costs attention's linear maps as well; by how much is a guess that no
  # number but speed depends on.
  return length * (length + 300)


def _fewest(
  rows: list[list[int]], lengths: list[int], counts: list[int], spare: float, alone: bool
) -> list[int]:
  """Takes windows away, dearest first, while all rows but a share of `spare` still fit."""
  most = int(spare * len(rows))
  failed: set[int] = set()

  def without(size: int, count: int) -> set[int]:
    """The rows that do not fit any more where so many windows of a size are left."""
    fewer = [*counts[:size], count, *counts[size + 1 :]]
    windows = list(zip(lengths, fewer, strict=True))
    fits = (r in failed or place_windows(row, windows, alone) for r, row in enumerate(rows))
    return {r for r, fit in enumerate(fits) if not fit}

  for size in reversed(range(len(lengths))):
    low, high = 0, counts[size]  # `high` is enough
    while low < high:
      middle = (low + high) // 2
      lost = without(size, middle)
      if len(failed) + len(lost) > most:
        low = middle + 1
      else:
        high, counts = middle, [*counts[:size], middle, *counts[size + 1 :]]
        failed |= lost
  return counts


def place_windows(
  lengths: Sequence[int], windows: Sequence[tuple[int, int]], alone: bool = False
) -> list[tuple[int, int, int]] | None:
  """Lays pieces into windows, best fit, longest first.

  Args:
    lengths: of the pieces.
    windows, alone: as `layout.Shape`'s.

  Returns:
    for each piece (size, an index into `windows`; which window of it; where it begins there), or
    None where they do not fit.
  """
  # (room left, size, which, begin) of the windows that have something in them.
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
  """Best fit, longest first. Returns for each row length its rows, each a list of group indices."""
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
