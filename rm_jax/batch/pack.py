"""Groups -> `Batch`: fills the arrays of a micro-batch that `layout` has planned."""

from collections.abc import Sequence as Seq

import numpy as np

from rm_jax.batch.fit import place_windows
from rm_jax.batch.group import Group
from rm_jax.batch.layout import Micro, Packing, windows_of
from rm_jax.types import KINDS, Batch


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
  packing: Packing,
  fields: frozenset[str],
  sources: Seq[str] = (),
  features: Seq[np.ndarray] | None = None,
  members: np.ndarray | None = None,
) -> tuple[Batch, np.ndarray]:
  """Fills a micro-batch's arrays.

  Args:
    micro: from `pack`.
    groups: the data set's groups.
    packing: as `layout.plan`'s.
    fields: `optional_fields` of the whole data set: batches of the same arrays compile once. With
      'previous', which no data set asks for by itself, `Batch.previous` is filled too.
    sources: names that `Batch.source` counts by; none where it is not asked for.
    features: for each group float [length, D], the activations of its columns (`Batch.hidden`).
    members: float32 [groups, M], by how much each counts for each member (`Batch.members`).

  Returns:
    (batch of numpy arrays, int [B, G]: which group of the data set stands where, -1 = none).
  """
  shape, share = micro.shape, packing.share
  B, T, G, K = shape.rows, shape.columns, shape.groups, shape.marks
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

  windows = segments = places = None
  if shape.windows:
    windows, segments, places = _gather_windows(micro, groups, packing)
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
    windows=windows,
    segments=segments,
    places=places,
  )
  return batch, index


def _gather_windows(
  micro: Micro, groups: Seq[Group], packing: Packing
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], np.ndarray]:
  """`Batch.windows`, `Batch.segments` and `Batch.places` of a micro-batch."""
  shape = micro.shape
  windows, segments = (
    tuple(
      np.full((shape.rows, count, length), nothing, np.int32) for length, count in shape.windows
    )
    for nothing in (-1, 0)
  )
  places = np.full((shape.rows, shape.columns, shape.copies), -1, np.int32)
  # Where each size begins, the windows of a row laid end to end.
  begins = np.cumsum([0, *(length * count for length, count in shape.windows)])
  for b, row in enumerate(micro.rows):
    pieces, start = [], 0
    for i in row:
      pieces += [start + columns for columns in windows_of(groups[i], packing)]
      start += groups[i].columns(packing.share)
    copies = np.zeros(shape.columns, np.int64)
    placed = place_windows(list(map(len, pieces)), shape.windows, shape.alone)
    for n, (columns, (size, which, first)) in enumerate(zip(pieces, placed, strict=True)):
      end = first + len(columns)
      windows[size][b, which, first:end] = columns
      segments[size][b, which, first:end] = n + 1
      at = begins[size] + which * shape.windows[size][0] + first
      places[b, columns, copies[columns]] = at + np.arange(len(columns))
      copies[columns] += 1
  return windows, segments, places
