"""Groups -> rows of a few static shapes -> `Batch`.

A step is a number of groups, whatever the packing; it becomes one or more micro-batches, each of
one of the planned shapes. Losses and gradients are sums over micro-batches, so how groups are laid
into rows never changes a number.
"""

import bisect
import dataclasses
from collections.abc import Sequence as Seq

import numpy as np

from rm_jax.data.group import Group
from rm_jax.types import KINDS, Batch


@dataclasses.dataclass(frozen=True)
class Shape:
  """Static shape of a micro-batch: B rows of T columns, G groups a row, K marks a group."""

  rows: int
  columns: int
  groups: int
  marks: int


@dataclasses.dataclass(frozen=True)
class Packing:
  """How groups are laid into rows.

  Attributes:
    share: a group's prompt is stored once, its responses as branches (decoders only).
    pack: several groups a row; else one.
    cells: about how many tokens a micro-batch holds for each of `multiple`.
    multiple: of the row count: over how many devices rows are divided.
    row_lengths: columns of the planned rows; empty = from the data.
  """

  share: bool = True
  pack: bool = True
  cells: int = 16_384
  multiple: int = 1
  row_lengths: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Micro:
  """A planned micro-batch: `rows[b]` lists the groups of row b, as indices into the data set."""

  shape: Shape
  rows: tuple[tuple[int, ...], ...]


def _up(x: float, multiple: int) -> int:
  return int(-(-x // multiple)) * multiple


def _row_lengths(lengths: np.ndarray, packing: Packing) -> list[int]:
  """Columns of the rows: the longest group's length and its halves, in steps of 32 or more."""
  longest = _up(int(lengths.max()), 32)
  if packing.row_lengths:
    if max(packing.row_lengths) < lengths.max():
      raise ValueError(
        f"data.row_lengths {packing.row_lengths} has no row for a group of {lengths.max()} tokens; "
        "give a longer row or a smaller data.max_length"
      )
    return sorted(packing.row_lengths)
  if packing.pack:  # short groups go several to a row: one alone with air behind it wastes the row
    longest = max(longest, 256)
  found = [longest]
  while len(found) < 3 and found[0] > 256 and np.median(lengths) < 0.75 * found[0]:
    found.insert(0, _up(found[0] / 2, 32))
  return found


def _lay(lengths: Seq[int], columns: Seq[int], groups: Seq[int]) -> list[list[list[int]]]:
  """Best fit, longest first. Returns for each row length its rows, each a list of group indices."""
  rows: list[list[list[int]]] = [[] for _ in columns]
  free: list[tuple[int, int, int]] = []  # (columns left, which length, which row), sorted
  for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    at = bisect.bisect_left(free, (lengths[i], -1, -1))
    if at < len(free):
      left, t, row = free.pop(at)
    else:
      t = bisect.bisect_left(columns, lengths[i])
      left, row = columns[t], len(rows[t])
      rows[t].append([])
    rows[t][row].append(i)
    if len(rows[t][row]) < groups[t]:
      bisect.insort(free, (left - lengths[i], t, row))
  return rows


def plan(
  lengths: Seq[int], marks: int, step_groups: int, packing: Packing
) -> tuple[tuple[Shape, ...], ...]:
  """The few shapes that steps of a data set will need: for each row length, its row counts.

  Args:
    lengths: int [n], columns that each group of the data set takes (`Group.columns`).
    marks: the most marks a group has.
    step_groups: groups of a step.
    packing: see `Packing`.
  """
  lengths = np.asarray(lengths)
  columns = _row_lengths(lengths, packing)
  short = max(1, int(np.quantile(lengths, 0.1)))
  groups = [min(64, max(1, t // short)) if packing.pack else 1 for t in columns]
  # How many rows of each length a step takes, seen on steps drawn at random.
  rng = np.random.default_rng(0)
  size = min(step_groups, len(lengths))
  drawn = [rng.choice(lengths, size, replace=False).tolist() for _ in range(24)]
  needed = np.asarray([[len(r) for r in _lay(d, columns, groups)] for d in drawn]).max(axis=0)
  m = packing.multiple
  shapes = []
  for t, need, g in zip(columns, needed, groups, strict=True):
    budget = max(m, packing.cells * m // t // m * m)
    most = min(budget, _up(max(1, need), m))
    shapes.append(tuple(Shape(rows, t, g, marks) for rows in sorted({most, _up(most / 2, m)})))
  return tuple(shapes)


def standing(longest: int, marks: int, packing: Packing) -> tuple[tuple[Shape, ...], ...]:
  """Shapes that do not depend on the data, for scoring: calls with other texts compile nothing new.

  Row lengths are 128, 256 ... up to `longest`; row counts grow fourfold to the budget of cells.
  """
  m = packing.multiple
  shapes, t = [], 64
  while t < longest or not shapes:
    t *= 2
    budget = max(m, packing.cells * m // t // m * m)
    counts = [m]
    while counts[-1] < budget:
      counts.append(min(budget, counts[-1] * 4))
    groups = min(64, t // 8) if packing.pack else 1
    shapes.append(tuple(Shape(rows, t, groups, marks) for rows in counts))
  return tuple(shapes)


def pack(groups: Seq[int], lengths: Seq[int], shapes: tuple[tuple[Shape, ...], ...]) -> list[Micro]:
  """Lays groups into micro-batches, best fit first.

  Args:
    groups: the step's groups, as indices into the data set.
    lengths: columns that each group of the data set takes.
    shapes: from `plan` or `standing`.

  Returns:
    micro-batches whose rows hold the same indices; every group is in exactly one row.
  """
  columns = [s[0].columns for s in shapes]
  laid = _lay([int(lengths[g]) for g in groups], columns, [s[0].groups for s in shapes])
  micros = []
  for rows, sizes in zip(laid, shapes, strict=True):
    rows = [tuple(int(groups[i]) for i in row) for row in rows]
    while rows:
      shape = next((s for s in sizes if s.rows >= len(rows)), sizes[-1])
      taken, rows = rows[: shape.rows], rows[shape.rows :]
      micros.append(Micro(shape, (*taken, *[()] * (shape.rows - len(taken)))))
  return micros


def optional_fields(groups: Seq[Group]) -> frozenset[str]:
  """Those of `Batch`'s optional arrays that a data set has something for."""
  has = {
    "token_type": any(g.token_type is not None for g in groups),
    "starts": any(g.starts is not None for g in groups),
    "pair_margin": any(g.margin for g in groups),
    # Where some groups say whom they compare, the others' order is written out as well.
    "pairs": any(g.pairs is not None or g.ties is not None for g in groups),
    "attributes": any(g.kind == "attributes" for g in groups),
  }
  has["ties"] = has["pairs"]
  return frozenset(name for name, found in has.items() if found)


def assemble(
  micro: Micro,
  groups: Seq[Group],
  *,
  share: bool,
  fields: frozenset[str],
  sources: Seq[str] = (),
  features: Seq[np.ndarray] | None = None,
  members: np.ndarray | None = None,
) -> tuple[Batch, np.ndarray]:
  """Fills a micro-batch's arrays.

  Args:
    micro: from `pack`.
    groups: the data set's groups.
    share: as the packing's.
    fields: `optional_fields` of the whole data set: batches of the same arrays compile once. With
      'previous', which no data set asks for by itself, `Batch.previous` is filled too.
    sources: names that `Batch.source` counts by; none where it is not asked for.
    features: for each group float [length, D], the activations of its columns (`Batch.hidden`).
    members: float32 [groups, M], by how much each counts for each member (`Batch.members`).

  Returns:
    (batch of numpy arrays, int [B, G]: which group of the data set stands where, -1 = none).
  """
  B, T, G, K = dataclasses.astuple(micro.shape)
  tokens, group, branch, position = (np.zeros((B, T), np.int32) for _ in range(4))
  marks, response, length = (np.zeros((B, G, K), np.int32) for _ in range(3))
  where = np.zeros((B, G, K), bool)
  labels = np.zeros((B, G, K), np.float32)
  weight = np.zeros((B, G), np.float32)
  kind, source = np.zeros((B, G), np.int32), np.zeros((B, G), np.int32)
  number = {name: s for s, name in enumerate(sources)}
  counts = None if members is None else np.zeros((B, G, members.shape[1]), np.float32)
  index = np.full((B, G), -1, np.int64)
  token_type = np.zeros((B, T), np.int32) if "token_type" in fields else None
  pair_margin, pairs, ties = (
    np.zeros((B, G, K, K), np.float32) if name in fields else None
    for name in ("pair_margin", "pairs", "ties")
  )
  previous = np.full((B, T), -1, np.int32) if "previous" in fields else None
  starts = np.zeros((B, G, K), np.int32) if "starts" in fields else None
  attributes = None
  if "attributes" in fields:
    attributes = np.full((B, G, K, groups[0].attributes.shape[1]), np.nan, np.float32)
  hidden = None
  if features is not None:
    width = features[0].shape[-1]
    hidden = np.zeros((B, T, width), features[0].dtype)

  for b, row in enumerate(micro.rows):
    column = 0
    for g, i in enumerate(row):
      one = groups[i]
      shared = one.shared if share else 0
      start = column
      offset = np.zeros(len(one.ids), np.int64)  # column of a branch's position 0
      for k, ids in enumerate(one.ids):
        # The prompt goes with the first branch, as branch 0; the others begin after it.
        first = shared if k else 0
        end = column + len(ids) - first
        offset[k] = column - first
        tokens[b, column:end] = ids[first:]
        position[b, column:end] = np.arange(first, len(ids))
        branch[b, column:end] = k + 1
        if token_type is not None:
          token_type[b, column:end] = one.token_type[k][first:]
        if previous is not None:
          # A sequence that is all response has a first token that nothing predicts.
          begin = max(1, len(ids) - one.length[one.response == k][0])
          before = np.arange(begin - 1, len(ids) - 1)
          at = np.where(before < shared, start, offset[k]) + before
          previous[b, offset[k] + begin : end] = at
        column = end
      branch[b, start : start + shared] = 0
      group[b, start:column] = g + 1
      m = len(one.marks)
      marks[b, g, :m] = offset[one.response] + one.marks
      where[b, g, :m] = True
      if starts is not None:
        starts[b, g, :m] = offset[one.response] + one.starts
      response[b, g, :m] = one.response
      length[b, g, :m] = one.length
      if counts is not None:
        counts[b, g] = members[i]
      source[b, g] = number[one.source] if number else 0
      kind[b, g] = KINDS.index(one.kind)
      labels[b, g, :m] = one.labels
      weight[b, g] = one.weight
      index[b, g] = i
      if pair_margin is not None:
        pair_margin[b, g] = one.margin
      if pairs is not None:
        pairs[b, g, :m, :m], ties[b, g, :m, :m] = one.comparisons()
      if attributes is not None:
        attributes[b, g, :m] = one.attributes
      if hidden is not None:
        hidden[b, start:column] = features[i]
  batch = Batch(
    tokens=tokens,
    group=group,
    branch=branch,
    position=position,
    marks=marks,
    where=where,
    labels=labels,
    weight=weight,
    starts=starts,
    response=response,
    kind=kind,
    source=source,
    length=length,
    token_type=token_type,
    pair_margin=pair_margin,
    pairs=pairs,
    ties=ties,
    previous=previous,
    attributes=attributes,
    members=counts,
    hidden=hidden,
  )
  return batch, index
