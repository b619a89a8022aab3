"""Packing: a step's groups into rows of a few static shapes, and rows into attention windows.

Why static shapes: XLA compiles a program for each shape, which takes from seconds to minutes. So
`plan` fixes a few shapes that any step's micro-batches fit into, those of steps that it draws at
random with little padding; `pack` then lays each step into these.

A step is a number of groups, whatever the packing. It becomes one or more micro-batches. Losses and
gradients are sums over micro-batches, so the packing changes nothing but the order in which floats
are added and, with dropout, which activations are dropped.

Why long rows: linear maps work token by token, so a row's length does not matter to them, and one
long row a device has almost no padding. Attention costs the square of its length, though, and
tokens of different groups do not attend to one another. So attention works in *windows*: the
columns of a row are gathered into squares of a few lengths, each holding one or more whole pieces
(a piece is a group, or one of its sequences), and only these squares are computed:

    row        g1 g1 g1 g2 g2 g2 g2 g2 g3 g3 .
    windows    [g1 g1 g1 g3 g3] [g2 g2 g2 g2 g2]       2 · 5² scores and not 11²

The shapes for scoring (`standing`) and those of one group a row have no windows: each row is one.
"""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

from rm_jax.batch.fit import choose_windows, lay, place_windows, up
from rm_jax.batch.group import Group
from rm_jax.errors import InputError

# `plan` draws this many steps at random, times `Packing.shapes`, to see what steps need (fewer if a
# step has many groups).
_DRAWS = 32


@dataclasses.dataclass(frozen=True)
class Shape:
  """The static shape of a micro-batch.

  Attributes:
    rows: B; a multiple of the number of devices that rows are sharded over.
    columns: T, tokens of a row.
    groups: G, places for groups in a row.
    marks: K, places for marks in a group.
    windows: (length, number in a row) of attention's windows, shortest first; () = each row is one.
    copies: how many places a column has in the windows at most: 1 or, if shared prompts are copied
      for each response, the largest number of responses of such a group; 0 without windows.
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
  """How groups are to be laid into rows.

  Attributes:
    share: a group's shared prompt is stored once, its responses as branches (decoders only).
    pack: several groups a row; else one.
    cells: about the most tokens (padding included) that a micro-batch has on each device; more if a
      single group or `row_lengths` needs more.
    multiple: number of devices that rows are sharded over; row counts are multiples of it.
    row_lengths: columns of the planned rows (without `pack`, the longest of these is used); () =
      chosen from the data.
    shapes: how many row lengths are chosen from the data, at most.
    windows: what the pieces in attention's windows are. 'sequences': prompt + response, for kernels
      that have segment ids and no branches (splash). 'alone': the same, one a window, for kernels
      that only have lengths (cuDNN). 'cheapest', for XLA with a mask: a whole group, or its
      sequences if their squares are much smaller.
    align: columns of windows, and of rows where `plan` chooses them, are multiples of it.
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
  """What a group needs of a row: columns, and room in windows for pieces of these lengths."""

  columns: int
  windows: tuple[int, ...] = ()


def windows_of(group: Group, packing: Packing) -> list[np.ndarray]:
  """The pieces of a group: for each its columns, int [length], counted from the group's first.

  [] if rows are not packed, because each row is then one window.
  """
  shared = group.shared if packing.share else 0
  if not packing.pack:
    return []
  total = group.columns(packing.share)
  sequences, at = [], shared
  for ids in group.ids:
    end = at + len(ids) - shared
    sequences.append(np.concatenate([np.arange(shared), np.arange(at, end)]))
    at = end
  # The choice is between one square that has the prompt once, and a square for each response that
  # has a copy of the prompt. Copies cost more than their squares: they are gathered, and where
  # columns are gathered before attention's linear maps, mapped again. The factor 2 stands for that.
  whole = total**2 <= 2 * sum(len(s) ** 2 for s in sequences)
  return [np.arange(total)] if whole and packing.windows == "cheapest" else sequences


def need(group: Group, packing: Packing) -> Need:
  """What a group needs of a row."""
  windows = windows_of(group, packing)
  return Need(group.columns(packing.share), tuple(sorted(map(len, windows), reverse=True)))


def _marks_and_copies(groups: Sequence[Group], packing: Packing) -> tuple[int, int]:
  """The fields (marks, copies) of a `Shape` that can hold any of the groups."""
  shared = [len(g.ids) for g in groups if packing.share and len(windows_of(g, packing)) > 1]
  return max(len(g.marks) for g in groups), max(shared, default=1)


def plan(
  groups: Sequence[Group], step_groups: int, packing: Packing
) -> tuple[tuple[Shape, ...], ...]:
  """Chooses the few shapes that the steps of a data set will be packed into.

  Without `packing.pack` there is one row length with at most two row counts. With it, a shape has
  one row a device: steps are drawn at random and their groups are laid evenly into rows. Then, if
  `packing.row_lengths` does not give them, row lengths are chosen that leave little padding in
  these rows, and for each length windows for the pieces of its rows.

  Args:
    groups: the data set's; not empty.
    step_groups: groups of a step.
    packing: see `Packing`.

  Returns:
    for each row length its shapes, ascending. Packed rows are a single tuple of shapes of all
    lengths, the largest of which holds any group by itself.

  Raises:
    InputError: `packing.row_lengths` are too short for the data, or `packing.shapes` is below 1.
  """
  if packing.shapes < 1:
    raise InputError(f"data.shapes: {packing.shapes}; expected at least 1 row length")
  needs = [need(g, packing) for g in groups]
  marks, copies = _marks_and_copies(groups, packing)
  longest = max(n.columns for n in needs)
  if packing.row_lengths and max(packing.row_lengths) < longest:
    raise InputError(
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
  seen = []  # of each micro-batch of the drawn steps: its m rows, lists of groups
  for _ in range(max(4, min(_DRAWS * packing.shapes, 20_000 // size))):
    drawn = rng.choice(len(needs), size, replace=False).tolist()
    columns = [needs[i].columns for i in drawn]
    parts = -(-sum(columns) // (cap * m))
    while (rows := _balance(columns, parts * m, cap)) is None:
      parts += 1
    # As `_pack_long` packs: the fewest micro-batches, all rows about equally full.
    laid = [[drawn[i] for i in row] for row in rows]
    seen += [laid[start : start + m] for start in range(0, len(laid), m)]
  filled = np.asarray([max(sum(needs[i].columns for i in row) for row in micro) for micro in seen])
  sizes = sorted(packing.row_lengths or _sizes(filled, longest, packing))
  alone = [[[i]] for i in range(len(needs))]  # any group must fit by itself into the last shape
  shapes, waiting = [], list(zip(seen, filled.tolist(), strict=True))
  for t in sizes:
    last = t == sizes[-1]
    fitting = [micro for micro, fill in waiting if fill <= t] + (alone if last else [])
    rows = [row for micro in fitting for row in micro] or [[0]]
    pieces = [[w for i in row for w in needs[i].windows] for row in rows]
    single = packing.windows == "alone"
    # 6 % of the rows may go on to the next shape, so that a few unusual ones do not enlarge all.
    windows = choose_windows(pieces, packing.align, 0.0 if last else 0.06, single)
    most = up(1.25 * max(map(len, rows)), 4)  # steps that were not drawn may have more groups a row
    shape = Shape(m, t, most, marks, windows, copies if windows else 0, single)
    # Micro-batches that do not fit take the next larger shape, whose windows are then chosen for
    # them as well.
    waiting = [
      (micro, fill)
      for micro, fill in waiting
      if fill > t or not all(_fits(row, needs, shape) for row in micro)
    ]
    shapes.append(shape)
  return (tuple(shapes),)


def _sizes(filled: np.ndarray, longest: int, packing: Packing) -> list[int]:
  """Chooses row lengths greedily, each to save the most padding of rows filled like these.

  Args:
    filled: int [N], tokens of the fullest row of each drawn micro-batch.
    longest: columns of the largest group.
    packing: see `Packing`.
  """
  align = packing.align
  filled = np.asarray([up(f, align) for f in filled])
  sizes = [max(int(filled.max()), up(longest, align))]

  def padding(sizes: list[int]) -> int:
    ends = np.sort(sizes)
    return int((ends[np.searchsorted(ends, filled)] - filled).sum())

  while len(sizes) < packing.shapes:
    best = min(np.unique(filled).tolist(), key=lambda size: padding([*sizes, size]))
    if padding([*sizes, best]) > padding(sizes) - 0.005 * filled.sum():
      break  # the new length would save padding of less than half a percent of the tokens
    sizes.append(best)
  # A row length of half the longest, for micro-batches that are smaller than those drawn.
  if len(sizes) < packing.shapes and sizes[0] > 8 * align:
    sizes.append(up(sizes[0] / 2, align))
  return sizes


def _balance(columns: Sequence[int], rows: int, cap: int) -> list[list[int]] | None:
  """Lays groups into rows evenly: longest first, each into the row that is filled the least.

  Args:
    columns: of each group.
    rows: their number.
    cap: columns that a row has at most.

  Returns:
    for each row indices into `columns`; None if some row would exceed `cap`.
  """
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
  """Shapes for scoring, from a fixed list: other texts mostly need no new compilation.

  Row lengths are 128, 256, 512, 1024, 1536, 2048, 3072 ... up to the first that holds `longest`:
  powers of two and, from 1024 on, where attention's squares are expensive, half steps between them.
  For each length there are one or more row counts, each at most four times the one before, up to
  `packing.cells` tokens, or one row, a device.

  Args:
    longest: columns of the largest group.
    marks: places for marks in a group.
    packing: see `Packing`.

  Returns:
    for each row length its shapes, ascending.
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
  """Packs a step's groups into micro-batches.

  Args:
    groups: the step's groups, as indices into the data set.
    needs: what each group of the data set needs.
    shapes: from `plan` or `standing`.

  Returns:
    micro-batches whose rows hold these indices; every group is in exactly one row.
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
  """Whether groups fit into a row of a shape: their number, columns, and pieces in its windows."""
  return (
    len(row) <= shape.groups
    and sum(needs[i].columns for i in row) <= shape.columns
    and place_windows([w for i in row for w in needs[i].windows], shape.windows, shape.alone)
    is not None
  )


def _pack_long(
  groups: Sequence[int], needs: Sequence[Need], sizes: tuple[Shape, ...]
) -> list[Micro]:
  """Packs into long rows: as few micro-batches as possible, all rows about equally full.

  Equally full, because a step takes as long as its fullest device. The number of micro-batches is
  raised until there is, for each of them, a shape that all of its rows fit into.
  """
  groups = [int(g) for g in groups]
  columns = [needs[g].columns for g in groups]
  m, cap = sizes[-1].rows, sizes[-1].columns
  parts = max(1, -(-sum(columns) // (cap * m)))
  while True:
    rows = _balance(columns, parts * m, cap)
    micros = []
    for start in range(0, parts * m, m) if rows is not None else ():  # None: a row is too long
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
