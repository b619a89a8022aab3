"""How a step's groups are laid into rows of a few static shapes, and what attends to what in them.

A step is a number of groups, whatever the packing; it becomes one or more micro-batches, each of
one of the planned shapes. Losses and gradients are sums over micro-batches, so how groups are laid
into rows never changes a number.

Linear maps see a row's tokens one by one and do not care how long it is, so training rows are long:
one for each device, with hardly any padding. Attention sees *windows* of it: pieces, groups or
sequences, one or more a window, gathered into squares of a few sizes; the rest of the row's square
is never computed.
"""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

from rm_jax.batch.fit import choose_windows, lay, place_windows, up
from rm_jax.batch.group import Group

# Steps drawn at random, to see what steps need: for each row length that is chosen by them.
_DRAWS = 32


@dataclasses.dataclass(frozen=True)
class Shape:
  """Static shape of a micro-batch: B rows of T columns, G groups a row, K marks a group.

  Attributes:
    windows: (length, how many a row) of attention's windows, shortest first; () = each row is one.
    copies: in how many windows of a row a column stands at most.
    alone: a window holds one piece at most.
  """

  rows: int
  columns: int
  groups: int
  marks: int
  windows: tuple[tuple[int, int], ...] = ()
  copies: int = 0
  alone: bool = False


@dataclasses.dataclass(frozen=True)
class Packing:
  """How groups are laid into rows.

  Attributes:
    share: a group's prompt is stored once, its responses as branches (decoders only).
    pack: several groups a row; else one.
    cells: about how many tokens a micro-batch holds for each of `multiple`.
    multiple: of the row count: over how many devices rows are divided.
    row_lengths: columns of the planned rows; empty = from the data.
    shapes: how many row lengths are chosen from the data, at most.
    windows: what attention's windows hold: whole 'sequences', for a kernel that knows no branches;
      one sequence each, 'alone', for one that knows none but lengths; or the 'cheapest': groups,
      but for those whose sequences are far less by themselves.
    align: columns of rows and windows are multiples of it.
  """

  share: bool = True
  pack: bool = True
  cells: int = 16_384
  multiple: int = 1
  row_lengths: tuple[int, ...] = ()
  shapes: int = 4
  windows: str = "cheapest"
  align: int = 32


@dataclasses.dataclass(frozen=True)
class Micro:
  """A planned micro-batch: `rows[b]` lists the groups of row b, as indices into the data set."""

  shape: Shape
  rows: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
  """What a group takes of a row: columns, and windows of these lengths."""

  columns: int
  windows: tuple[int, ...] = ()


def windows_of(group: Group, packing: Packing) -> list[np.ndarray]:
  """The windows of a group: of each its columns, int [length], counted from the group's first."""
  shared = group.shared if packing.share else 0
  if not packing.pack:
    return []
  total = group.columns(packing.share)
  sequences, at = [], shared
  for ids in group.ids:
    end = at + len(ids) - shared
    sequences.append(np.concatenate([np.arange(shared), np.arange(at, end)]))
    at = end
  # Twice, because the copies of a prompt cost more than their squares.
  whole = total**2 <= 2 * sum(len(s) ** 2 for s in sequences)
  return [np.arange(total)] if whole and packing.windows == "cheapest" else sequences


def need(group: Group, packing: Packing) -> Need:
  """What a group takes of a row."""
  windows = windows_of(group, packing)
  return Need(group.columns(packing.share), tuple(sorted(map(len, windows), reverse=True)))


def _marks_and_copies(groups: Sequence[Group], packing: Packing) -> tuple[int, int]:
  shared = [len(g.ids) for g in groups if packing.share and len(windows_of(g, packing)) > 1]
  return max(len(g.marks) for g in groups), max(shared, default=1)


def plan(
  groups: Sequence[Group], step_groups: int, packing: Packing
) -> tuple[tuple[Shape, ...], ...]:
  """The few shapes that steps of a data set will need: the sizes of each row length.

  Args:
    groups: the data set's; not empty.
    step_groups: groups of a step.
    packing: see `Packing`.

  Raises:
    ValueError: `packing.row_lengths` are too short for the data, or `packing.shapes` is below 1.
  """
  if packing.shapes < 1:
    raise ValueError(f"data.shapes: {packing.shapes}; expected at least 1 row length")
  needs = [need(g, packing) for g in groups]
  marks, copies = _marks_and_copies(groups, packing)
  longest = max(n.columns for n in needs)
  if packing.row_lengths and max(packing.row_lengths) < longest:
    raise ValueError(
      f"data.row_lengths {packing.row_lengths} has no row for a group of {longest} tokens; "
      "give a longer row or a smaller data.max_length"
    )
  m = packing.multiple
  size = min(step_groups, len(needs))
  if not packing.pack:
    t = max(packing.row_lengths, default=up(longest, packing.align))
    most = min(max(m, packing.cells * m // t // m * m), up(size, m))
    return (tuple(Shape(rows, t, 1, marks) for rows in sorted({most, up(most / 2, m)})),)

  rng = np.random.default_rng(0)
  cap = max(packing.row_lengths, default=max(up(longest, packing.align), packing.cells))
  seen = []  # the rows of each micro-batch of the drawn steps
  for _ in range(max(4, min(_DRAWS * packing.shapes, 20_000 // size))):
    drawn = rng.choice(len(needs), size, replace=False).tolist()
    columns = [needs[i].columns for i in drawn]
    parts = -(-sum(columns) // (cap * m))
    while (rows := _balance(columns, parts * m, cap)) is None:
      parts += 1
    laid = [[drawn[i] for i in row] for row in rows]
    seen += [laid[start : start + m] for start in range(0, len(laid), m)]
  filled = np.asarray([max(sum(needs[i].columns for i in row) for row in micro) for micro in seen])
  sizes = sorted(packing.row_lengths or _sizes(filled, longest, packing))
  alone = [[[i]] for i in range(len(needs))]  # any group must fit by itself
  shapes, waiting = [], list(zip(seen, filled.tolist(), strict=True))
  for t in sizes:
    last = t == sizes[-1]
    fitting = [micro for micro, fill in waiting if fill <= t] + (alone if last else [])
    rows = [row for micro in fitting for row in micro] or [[0]]
    pieces = [[w for i in row for w in needs[i].windows] for row in rows]
    single = packing.windows == "alone"
    windows = choose_windows(pieces, packing.align, 0.0 if last else 0.06, single)
    most = up(1.25 * max(map(len, rows)), 4)
    shape = Shape(m, t, most, marks, windows, copies if windows else 0, single)
    # What does not fit takes the next larger shape, whose windows are made for it, too.
    waiting = [
      (micro, fill)
      for micro, fill in waiting
      if fill > t or not all(_fits(row, needs, shape) for row in micro)
    ]
    shapes.append(shape)
  return (tuple(shapes),)


def _sizes(filled: np.ndarray, longest: int, packing: Packing) -> list[int]:
  """A few row lengths, each chosen to save the most padding of rows filled like these."""
  align = packing.align
  filled = np.asarray([up(f, align) for f in filled])
  sizes = [max(int(filled.max()), up(longest, align))]

  def padding(sizes: list[int]) -> int:
    ends = np.sort(sizes)
    return int((ends[np.searchsorted(ends, filled)] - filled).sum())

  while len(sizes) < packing.shapes:
    best = min(np.unique(filled).tolist(), key=lambda size: padding([*sizes, size]))
    if padding([*sizes, best]) > padding(sizes) - 0.005 * filled.sum():
      break
    sizes.append(best)
  # For what is left at the end of the data.
  if len(sizes) < packing.shapes and sizes[0] > 8 * align:
    sizes.append(up(sizes[0] / 2, align))
  return sizes


def _balance(columns: Sequence[int], rows: int, cap: int) -> list[list[int]] | None:
  """Lays groups into rows evenly, longest first; None where a row would be over `cap`."""
  out: list[list[int]] = [[] for _ in range(rows)]
  heap = [(0, row) for row in range(rows)]
  for i in sorted(range(len(columns)), key=lambda i: (-columns[i], i)):
    filled, row = heap[0]
    if filled + columns[i] > cap:
      return None
    heapq.heapreplace(heap, (filled + columns[i], row))
    out[row].append(i)
  return out


def standing(longest: int, marks: int, packing: Packing) -> tuple[tuple[Shape, ...], ...]:
  """Shapes that do not depend on the data, for scoring: calls with other texts compile nothing new.

  Row lengths are 128, 256, 512, 1024, 1536, 2048, 3072 ... up to `longest`: of the long ones, whose
  squares are dear, half steps as well. Row counts grow fourfold to the budget of cells.
  """
  m = packing.multiple
  lengths = [128]
  while lengths[-1] < longest:
    t = lengths[-1]
    half_step = 3 * t // 2 if t >= 1024 else 2 * t
    lengths.append(half_step if t & (t - 1) == 0 else 4 * t // 3)
  shapes = []
  for t in lengths:
    budget = max(m, packing.cells * m // t // m * m)
    counts = [m]
    while counts[-1] < budget:
      counts.append(min(budget, counts[-1] * 4))
    groups = min(64, t // 8) if packing.pack else 1
    shapes.append(tuple(Shape(rows, t, groups, marks) for rows in counts))
  return tuple(shapes)


def pack(
  groups: Sequence[int], needs: Sequence[Need], shapes: tuple[tuple[Shape, ...], ...]
) -> list[Micro]:
  """Lays groups into micro-batches.

  Args:
    groups: the step's groups, as indices into the data set.
    needs: what each group of the data set takes.
    shapes: from `plan` or `standing`.

  Returns:
    micro-batches whose rows hold the same indices; every group is in exactly one row.
  """
  if shapes[0][0].windows:
    return _pack_long(groups, needs, shapes[0])
  columns = [int(needs[g].columns) for g in groups]
  laid = lay(columns, [s[0].columns for s in shapes], [s[0].groups for s in shapes])
  micros = []
  for rows, sizes in zip(laid, shapes, strict=True):
    rows = [tuple(int(groups[i]) for i in row) for row in rows]
    while rows:
      shape = next((s for s in sizes if s.rows >= len(rows)), sizes[-1])
      taken, rows = rows[: shape.rows], rows[shape.rows :]
      micros.append(Micro(shape, (*taken, *[()] * (shape.rows - len(taken)))))
  return micros


def _fits(row: Sequence[int], needs: Sequence[Need], shape: Shape) -> bool:
  return (
    len(row) <= shape.groups
    and sum(needs[i].columns for i in row) <= shape.columns
    and place_windows([w for i in row for w in needs[i].windows], shape.windows, shape.alone)
    is not None
  )


def _pack_long(
  groups: Sequence[int], needs: Sequence[Need], sizes: tuple[Shape, ...]
) -> list[Micro]:
  """Rows that are all about as full, in as few micro-batches as hold them."""
  groups = [int(g) for g in groups]
  columns = [needs[g].columns for g in groups]
  m, cap = sizes[-1].rows, sizes[-1].columns
  parts = max(1, -(-sum(columns) // (cap * m)))
  while True:
    rows = _balance(columns, parts * m, cap)
    micros = []
    for start in range(0, parts * m, m) if rows is not None else ():
      taken = tuple(tuple(groups[i] for i in row) for row in rows[start : start + m])
      if not any(taken):
        continue
      shape = next((s for s in sizes if all(_fits(row, needs, s) for row in taken)), None)
      if shape is None:
        break
      micros.append(Micro(shape, taken))
    else:
      if rows is not None:
        return micros
    parts += 1
