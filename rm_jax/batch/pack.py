"""Groups -> `Batch`: fills the arrays of a micro-batch that `layout` has planned.

A row is filled from left to right, group by group. Within a group the shared prompt comes first, if
`Packing.share` is on, then the responses as branches, each without its copy of the prompt:

    ids of the sequences    p p p a a      p p p b b b
    shared = 3              -> columns     p p p a a b b b
    branch                                 0 0 0 1 1 2 2 2
    position                               0 1 2 3 4 3 4 5
    offset of a branch                     0, 2   (column - position, the same for all its tokens)

The offset is what translates an index within a sequence (a mark, the first token of a mean) into a
column of the row.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rm_jax.batch.fit import place_windows
from rm_jax.batch.group import Group
from rm_jax.batch.layout import Micro, Packing, windows_of
from rm_jax.types import ARRAYS, KINDS, Batch

# Names of the arrays that every batch has.
ALWAYS = frozenset(name for name, spec in ARRAYS.items() if not spec.optional)
# Optional arrays whose values are fields of a `Group`. A field that is declared optional in `Batch`
# and has the same name in `Group` is packed without further code.
FROM_GROUPS = frozenset(
  field.name for field in dataclasses.fields(Group) if field.name in ARRAYS.keys() - ALWAYS
)


def optional_fields(groups: Iterable[Group]) -> frozenset[str]:
  """The optional arrays of `Batch` that the groups of a data set have values for.

  Asked once of the whole data set, and not of each micro-batch: whether an array is there is part
  of the compiled program's signature, so that all micro-batches must agree.
  """
  found, rated = set(), False
  for group in groups:
    found.update(name for name in FROM_GROUPS if getattr(group, name) is not None)
    rated |= group.kind == "attributes"
  # With attributes in the model, groups that nobody rated have ratings too: all of them NaN.
  if not rated:
    found.discard("attributes")
  # Losses take observed comparisons or the labels' order, one of them for the whole batch. Where
  # some groups have observed ones, the order of the others is written out in the same form.
  if found & {"pairs", "ties"}:
    found |= {"pairs", "ties"}
  return frozenset(found)


def assemble(
  micro: Micro,
  groups: Sequence[Group],
  *,
  packing: Packing,
  fields: frozenset[str],
  sources: Sequence[str] = (),
  features: Sequence[np.ndarray] | None = None,
  members: np.ndarray | None = None,
  references: Sequence[np.ndarray] | None = None,
) -> tuple[Batch, np.ndarray]:
  """Fills a micro-batch's arrays.

  Args:
    micro: from `layout.pack`.
    groups: the data set's groups.
    packing: the one that `micro` was planned with.
    fields: optional arrays to fill: `optional_fields` of the whole data set, and those that the
      objective and the network need beside them. One for which the groups have no values, such as
      margins, keeps its values for padding.
    sources: names that `Batch.source` counts by; empty if the metrics do not tell sources apart.
    features: for each group float [columns, D], the activations of its columns (`Batch.hidden`).
    members: float32 [groups, M], the weight of each group for each member (`Batch.members`).
    references: for each group float32 [marks], the reference's log-likelihoods (`Batch.reference`).

  Returns:
    (batch of numpy arrays, int64 [B, G]: index of the group in the data set, -1 = none).

  Raises:
    ValueError: 'reference' is among the fields, and there are no `references` to fill it with.
  """
  if "reference" in fields and references is None:
    raise ValueError("references is None; expected the log-likelihoods of the model's reference")
  shape, names = micro.shape, ALWAYS | fields
  sizes = {"B": shape.rows, "T": shape.columns, "G": shape.groups, "K": shape.marks}
  dtypes = {}
  if "attributes" in fields:
    sizes["A"] = groups[0].attributes.shape[1]
  if members is not None:
    names |= {"members"}
    sizes["M"] = members.shape[1]
  if features is not None:
    names |= {"hidden"}
    sizes["D"], dtypes["hidden"] = features[0].shape[-1], features[0].dtype
  arrays = {name: _empty(name, sizes, dtypes.get(name)) for name in names}

  number = {name: s for s, name in enumerate(sources)}
  index_BG = np.full((shape.rows, shape.groups), -1, np.int64)
  for b, row in enumerate(micro.rows):
    column = 0
    for g, i in enumerate(row):
      start, group = column, groups[i]
      column, offsets = _write_tokens(arrays, b, start, group, share=packing.share)
      arrays["group"][b, start:column] = g + 1
      index_BG[b, g] = i
      values = _values(group, start, offsets, fields, share=packing.share) | {
        "source": number[group.source] if number else 0
      }
      if members is not None:
        values["members"] = members[i]
      if "reference" in fields:
        values["reference"] = references[i]
      for name, value in values.items():
        if value is not None:
          arrays[name][(b, g, *_where(name, value, len(group.marks)))] = value
      if features is not None:
        arrays["hidden"][b, start:column] = features[i]
  if shape.windows:
    windows = _gather_windows(micro, groups, packing)
    arrays |= dict(zip(("windows", "segments", "places"), windows, strict=True))
  return Batch(**arrays), index_BG


def _empty(name: str, sizes: dict[str, int], dtype: Any = None) -> np.ndarray:
  spec = ARRAYS[name]
  array = np.zeros(spec.shape(sizes), dtype or spec.dtype)
  if spec.empty:  # np.zeros has zeros already, without writing to memory
    array.fill(spec.empty)
  return array


def _write_tokens(
  arrays: dict[str, np.ndarray], b: int, start: int, group: Group, *, share: bool
) -> tuple[int, np.ndarray]:
  """Writes a group's tokens into row b from column `start` on; with `share`, the prompt once.

  Returns:
    (the first column after the group; int64 [K], the offset of each branch, see the module).
  """
  shared = group.shared if share else 0
  offsets, column = np.zeros(len(group.ids), np.int64), start
  for k, ids in enumerate(group.ids):
    # The first branch is written with the prompt in front of it, whose columns become branch 0
    # below; the others begin after the prompt, at position `shared`.
    first = shared if k else 0
    end = column + len(ids) - first
    offsets[k] = column - first
    arrays["tokens"][b, column:end] = ids[first:]
    arrays["position"][b, column:end] = np.arange(first, len(ids))
    arrays["branch"][b, column:end] = k + 1
    if "token_type" in arrays:
      arrays["token_type"][b, column:end] = group.token_type[k][first:]
    if "previous" in arrays:
      # Filled for the response's own tokens, from index `begin` on; the first token of a sequence
      # without a prompt is left out, since nothing predicts it. The token before is in the group's
      # first columns if it is in the shared prompt, else one column to the left.
      begin = max(1, len(ids) - group.length[group.response == k][0])
      before = np.arange(begin - 1, len(ids) - 1)
      at = np.where(before < shared, start, offsets[k]) + before
      arrays["previous"][b, offsets[k] + begin : end] = at
    column = end
  arrays["branch"][b, start : start + shared] = 0
  return column, offsets


def _prompt_end(group: Group, start: int, offsets: np.ndarray, shared: int) -> np.ndarray:
  """int64 [M], for each mark the column of its prompt's last token; if it has none, the first."""
  tokens = np.asarray([len(ids) for ids in group.ids])[group.response]
  last = np.maximum(tokens - group.length - 1, 0)
  return np.where(last < shared, start, offsets[group.response]) + last


def _values(
  group: Group, start: int, offsets: np.ndarray, fields: frozenset[str], *, share: bool
) -> dict[str, Any]:
  """{name: value} of the arrays of `Batch` with axes B and G; None = the group has none.

  `assemble` adds source, members and reference, which are not the group's own.
  """
  shared = group.shared if share else 0
  values = {name: getattr(group, name) for name in FROM_GROUPS & fields if name != "token_type"}
  if "starts" in fields:
    values["starts"] = offsets[group.response] + group.starts
  if "prompt_end" in fields:
    values["prompt_end"] = _prompt_end(group, start, offsets, shared)
  if "pairs" in fields:
    values["pairs"], values["ties"] = group.comparisons()
  return values | {
    "marks": offsets[group.response] + group.marks,
    "where": np.ones(len(group.marks), bool),
    "labels": group.labels,
    "weight": group.weight,
    "response": group.response,
    "length": group.length,
    "kind": KINDS.index(group.kind),
  }


def _where(name: str, value: Any, marks: int) -> tuple[slice, ...]:
  """The index, after [b, g], at which a group's value is written into an array.

  On each K axis it is the first `marks` places, one for each mark of the group; on any other axis
  all of it. A value may lack the array's last axes, as the one margin of a group does: it then
  fills these wholly, places of padding included.
  """
  axes = ARRAYS[name].axes[2 : 2 + np.ndim(value)]
  return tuple(slice(marks) if axis == "K" else slice(None) for axis in axes)


def _gather_windows(
  micro: Micro, groups: Sequence[Group], packing: Packing
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], np.ndarray]:
  """`Batch.windows`, `Batch.segments` and `Batch.places` of a micro-batch.

  The model gathers the columns of a row into its windows (`windows`), attends within each window
  between columns of one segment, and gathers the results back (`places`). Where the sequences of a
  group are pieces of their own, each has a copy of the shared prompt.
  """
  shape = micro.shape
  windows, segments = (
    tuple(np.full((shape.rows, count, length), empty, np.int32) for length, count in shape.windows)
    for empty in (-1, 0)
  )
  places = np.full((shape.rows, shape.columns, shape.copies), -1, np.int32)
  # `places` has indices into all windows of a row laid end to end, the shortest first. `begins` has
  # the index at which the windows of each length begin.
  begins = np.cumsum([0, *(length * count for length, count in shape.windows)])
  for b, row in enumerate(micro.rows):
    pieces, start = [], 0
    for i in row:
      pieces += [start + columns for columns in windows_of(groups[i], packing)]
      start += groups[i].columns(packing.share)
    copies = np.zeros(shape.columns, np.int64)  # how many places each column has so far
    placed = place_windows(list(map(len, pieces)), shape.windows, shape.alone)
    for n, (columns, (size, which, first)) in enumerate(zip(pieces, placed, strict=True)):
      end = first + len(columns)
      windows[size][b, which, first:end] = columns
      segments[size][b, which, first:end] = n + 1
      at = begins[size] + which * shape.windows[size][0] + first
      places[b, columns, copies[columns]] = at + np.arange(len(columns))
      copies[columns] += 1
  return windows, segments, places
