"""Packing loses nothing: every sequence can be read back from the rows, by what its mark sees."""

import dataclasses

import numpy as np
import pytest

from rm_jax.batch.fit import choose_windows, place_windows
from rm_jax.batch.group import Group
from rm_jax.batch.layout import Packing, Shape, need, pack, plan, standing
from rm_jax.batch.pack import assemble, optional_fields
from rm_jax.types import ARRAYS


def random_groups(count, seed=0, longest=60, responses=(1, 2, 3)):
  rng = np.random.default_rng(seed)
  groups = []
  for _ in range(count):
    shared = int(rng.integers(0, longest // 2))
    k = int(rng.choice(responses))
    prompt = rng.integers(3, 300, shared)
    ids = tuple(
      np.concatenate([prompt, [3 + j], rng.integers(3, 300, rng.integers(0, longest // 2))])
      for j in range(k)
    )
    groups.append(
      Group(
        ids=tuple(i.astype(np.int32) for i in ids),
        shared=shared,
        marks=np.asarray([len(i) - 1 for i in ids], np.int32),
        response=np.arange(k, dtype=np.int32),
        labels=rng.normal(size=k).astype(np.float32),
        length=np.asarray([len(i) - shared for i in ids], np.int32),
        weight=float(rng.integers(1, 3)),
        pair_margin=float(rng.integers(0, 2)),
      )
    )
  return groups


def seen_from(batch, b, column):
  """Columns that a causal query at (b, column) sees, by the rule as types.Batch states it."""
  group, branch = np.asarray(batch.group[b]), np.asarray(batch.branch[b])
  same = group == group[column]
  return [c for c in range(column + 1) if same[c] and branch[c] in (0, branch[column])]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_every_sequence_can_be_read_back(share, packed):
  groups = random_groups(40)
  packing = Packing(share=share, pack=packed, cells=512, multiple=2)
  needs = [need(g, packing) for g in groups]
  shapes = plan(groups, 16, packing)
  found = []
  for micro in pack(range(40), needs, shapes):
    assert micro.shape.rows % 2 == 0
    batch, index = assemble(micro, groups, packing=packing, fields=optional_fields(groups))
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      i = int(index[b, g])
      found.append(i)
      one = groups[i]
      m = len(one.ids)
      assert batch.where[b, g].tolist() == [True] * m + [False] * (3 - m)
      np.testing.assert_array_equal(batch.labels[b, g, :m], one.labels)
      assert batch.weight[b, g] == one.weight
      assert (batch.pair_margin[b, g] == one.pair_margin).all()
      for k, ids in enumerate(one.ids):
        columns = seen_from(batch, b, batch.marks[b, g, k])
        np.testing.assert_array_equal(batch.tokens[b, columns], ids)
        np.testing.assert_array_equal(batch.position[b, columns], np.arange(len(ids)))
    assert (batch.weight[index < 0] == 0).all()
    if not packed:
      assert ((index >= 0).sum(axis=1) <= 1).all()
  assert sorted(found) == list(range(40))


@pytest.mark.parametrize("share", [True, False])
def test_each_response_token_knows_the_column_that_predicts_it(share):
  groups = random_groups(40)
  # Two prompts that go on behind what the group shares: a response's own tokens begin later.
  groups = [
    dataclasses.replace(g, length=np.maximum(0, g.length - i % 3)) for i, g in enumerate(groups)
  ]
  packing = Packing(share=share, cells=512)
  needs = [need(g, packing) for g in groups]
  seen = 0
  for micro in pack(range(40), needs, plan(groups, 16, packing)):
    asked = optional_fields(groups) | {"previous"}
    batch, index = assemble(micro, groups, packing=packing, fields=asked)
    expected = np.full_like(batch.previous, -1)
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      one = groups[index[b, g]]
      for k, ids in enumerate(one.ids):
        columns = seen_from(batch, b, batch.marks[b, g, k])
        for i in range(max(1, len(ids) - one.length[k]), len(ids)):
          expected[b, columns[i]] = columns[i - 1]
          seen += 1
    np.testing.assert_array_equal(batch.previous, expected)
    assert assemble(micro, groups, packing=packing, fields=frozenset())[0].previous is None
  assert seen > 1000


def test_arrays_are_as_they_are_declared():
  groups = random_groups(6)
  groups = [
    dataclasses.replace(g, attributes=np.ones((len(g.ids), 2), np.float32), starts=g.marks)
    for g in groups
  ]
  packing = Packing()
  (shapes,) = plan(groups, 6, packing)
  (micro,) = pack(range(6), [need(g, packing) for g in groups], (shapes,))
  features = [np.ones((g.columns(True), 5), np.float32) for g in groups]
  asked = ARRAYS.keys() - {"token_type", "hidden", "members"}
  batch, _ = assemble(
    micro,
    groups,
    packing=packing,
    fields=frozenset(asked),
    features=features,
    members=np.ones((6, 3), np.float32),
    references=[np.full(len(g.marks), -3.0, np.float32) for g in groups],
  )
  shape = micro.shape
  sizes = {"B": shape.rows, "T": shape.columns, "G": shape.groups, "K": 3, "A": 2, "D": 5, "M": 3}
  for name in ARRAYS.keys() - {"token_type"}:
    found = getattr(batch, name)
    assert found.shape == ARRAYS[name].shape(sizes), name
    assert found.dtype == ARRAYS[name].dtype, name
  assert batch.token_type is None
  assert np.isnan(batch.attributes[~batch.where]).all()
  assert (batch.attributes[batch.where] == 1).all()
  np.testing.assert_array_equal(batch.reference, np.where(batch.where, -3.0, 0.0))


def test_a_data_set_has_the_arrays_that_some_group_fills():
  plain = dataclasses.replace(random_groups(1, responses=(2,))[0], pair_margin=None)
  assert optional_fields([plain]) == frozenset()
  tied = dataclasses.replace(plain, ties=np.zeros((2, 2), np.float32))
  assert optional_fields([plain, tied]) == {"pairs", "ties"}
  assert optional_fields([dataclasses.replace(plain, pair_margin=0.5)]) == {"pair_margin"}
  # Of a model with attributes every group has ratings; they are packed if some are not missing.
  none = dataclasses.replace(plain, attributes=np.full((2, 1), np.nan, np.float32))
  assert optional_fields([none]) == frozenset()
  rated = dataclasses.replace(none, kind="attributes")
  assert optional_fields([none, rated]) == {"attributes"}


def test_shared_prompts_are_stored_once():
  group = random_groups(1, responses=(3,))[0]
  saved = 2 * group.shared
  assert group.columns(share=False) - group.columns(share=True) == saved


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("windows", ["cheapest", "sequences", "alone"])
def test_few_shapes_hold_any_step(windows, multiple):
  groups = random_groups(300, longest=900)
  packing = Packing(cells=4096, multiple=multiple, windows=windows)
  needs = [need(g, packing) for g in groups]
  (shapes,) = plan(groups, 32, packing)
  assert len(shapes) <= 4
  rng = np.random.default_rng(1)
  cells = tokens = 0
  for size in [32] * 20 + [1, 3, 300]:
    step = rng.choice(300, size, replace=False)
    micros = pack(step, needs, (shapes,))
    assert {m.shape for m in micros} <= set(shapes)
    laid = sorted(i for m in micros for row in m.rows for i in row)
    assert laid == sorted(step.tolist())
    for micro in micros:
      assert len(micro.rows) == micro.shape.rows == multiple
      for row in micro.rows:
        assert sum(needs[i].columns for i in row) <= micro.shape.columns
        assert len(row) <= micro.shape.groups
        pieces = [w for i in row for w in needs[i].windows]
        assert not row or place_windows(pieces, micro.shape.windows, windows == "alone")
    if size == 32:
      cells += sum(m.shape.rows * m.shape.columns for m in micros)
      tokens += sum(needs[i].columns for i in step)
  assert tokens / cells > 0.8


def test_windows_hold_pieces_without_overlap_or_say_that_they_do_not_fit():
  windows = ((4, 1), (10, 2))
  assert place_windows([11], windows) is None
  assert place_windows([10, 10, 5], windows) is None
  assert place_windows([4, 10, 10], windows) == [(0, 0, 0), (1, 0, 0), (1, 1, 0)]
  assert place_windows([5, 6, 3, 4, 2], windows) is not None
  assert place_windows([5, 6, 3, 4, 2], windows, alone=True) is None
  assert place_windows([5, 3, 4], windows, alone=True) == [(1, 0, 0), (1, 1, 0), (0, 0, 0)]
  rng = np.random.default_rng(0)
  fitted = 0
  for _ in range(200):
    lengths = rng.integers(1, 9, rng.integers(1, 7)).tolist()
    placed = place_windows(lengths, windows)
    if placed is None:
      assert sum(lengths) > 10  # any that are so few fit into the first two windows
      continue
    fitted += 1
    taken = set()
    for length, (size, which, first) in zip(lengths, placed, strict=True):
      assert which < windows[size][1]
      assert first + length <= windows[size][0]
      cells = {(size, which, first + i) for i in range(length)}
      assert not cells & taken
      taken |= cells
  assert fitted > 50


def test_a_row_without_pieces_fits_any_windows():
  rows = [[300, 100], [300, 40, 40, 40], [200, 200], [310, 90, 30, 30]]
  assert place_windows([], ((32, 0),)) == []
  found = choose_windows(rows, 32, 0.0, False)
  assert found == ((224, 1), (320, 1))
  assert choose_windows([*rows, []], 32, 0.0, False) == found


@pytest.mark.parametrize("how", ["cheapest", "sequences", "alone"])
@pytest.mark.parametrize("share", [True, False])
def test_windows_show_each_column_what_the_rule_shows_it(share, how):
  groups = random_groups(40)
  packing = Packing(share=share, cells=512, windows=how, align=8)
  needs = [need(g, packing) for g in groups]
  for micro in pack(range(40), needs, plan(groups, 16, packing)):
    batch, _ = assemble(micro, groups, packing=packing, fields=frozenset())
    if how != "cheapest":
      assert (batch.places[..., 1:] >= 0).any() == share
    if how == "alone":
      for segments in batch.segments:
        length = (segments > 0).sum(axis=-1, keepdims=True)
        own = segments.max(axis=-1, keepdims=True)
        np.testing.assert_array_equal(segments, own * (np.arange(segments.shape[-1]) < length))
    for b in range(micro.shape.rows):
      space = np.concatenate([w[b].ravel() for w in batch.windows])
      of_window = np.concatenate(
        [np.arange(w[b].size) // w.shape[-1] + 1000 * n for n, w in enumerate(batch.windows)]
      )
      segment = np.concatenate([s[b].ravel() for s in batch.segments])
      assert ((space >= 0) == (segment > 0)).all()
      branch = batch.branch[b]
      for column in np.flatnonzero(batch.group[b]):
        places = batch.places[b, column]
        assert places[0] >= 0
        for place in places[places >= 0]:
          assert space[place] == column
          behind = np.arange(len(space)) <= place
          same = (of_window == of_window[place]) & (segment == segment[place]) & behind
          seen = space[same & np.isin(branch[space], (0, branch[column]))]
          assert seen.tolist() == seen_from(batch, b, column)
    assert (batch.places[batch.group == 0] == -1).all()


def test_standing_shapes_do_not_depend_on_the_data():
  packing = Packing(cells=1024)
  assert standing(100, 1, packing) == standing(65, 1, packing)
  assert standing(300, 1, packing)[:1] == standing(100, 1, packing)
  assert standing(100, 1, packing)[0][0] == Shape(1, 128, 16, 1)
  lengths = [sizes[0].columns for sizes in standing(3073, 1, packing)]
  assert lengths == [128, 256, 512, 1024, 1536, 2048, 3072, 4096]


def group_of(tokens):
  one = np.arange(3, 3 + tokens, dtype=np.int32)
  last = np.asarray([tokens - 1], np.int32)
  return Group((one,), 0, last, np.zeros(1, np.int32), np.zeros(1, np.float32), last)


def test_row_lengths_too_short_for_the_data_name_the_mend():
  with pytest.raises(ValueError, match=r"data\.row_lengths .* a group of 70 tokens"):
    plan([group_of(70)], 1, Packing(row_lengths=(64,)))


def test_more_shapes_are_less_padding():
  rng = np.random.default_rng(0)
  groups = [group_of(int(n)) for n in np.exp(rng.normal(4.5, 0.7, 300)).clip(10, 400)]
  needs = [need(g, Packing()) for g in groups]
  steps = [rng.choice(len(groups), 16, replace=False) for _ in range(100)]
  share = {}
  for count in (1, 4, 8):
    (sizes,) = shapes = plan(groups, 16, Packing(shapes=count))
    assert len(sizes) <= count
    laid = [micro for step in steps for micro in pack(step, needs, shapes)]
    cells = sum(m.shape.rows * m.shape.columns for m in laid)
    share[count] = 1 - sum(needs[i].columns for step in steps for i in step) / cells
  assert share[8] < 0.08 < share[4] < 0.15 < share[1], share


def test_no_shape_is_refused():
  with pytest.raises(ValueError, match=r"data\.shapes: 0; expected at least 1"):
    plan([group_of(70)], 1, Packing(shapes=0))


def test_features_land_on_their_own_columns():
  groups = random_groups(10)
  features = [
    np.repeat(np.arange(g.columns(True), dtype=np.float32)[:, None] + 100 * i, 2, axis=1)
    for i, g in enumerate(groups)
  ]
  packing = Packing()
  needs = [need(g, packing) for g in groups]
  for micro in pack(range(10), needs, plan(groups, 10, packing)):
    batch, index = assemble(micro, groups, packing=packing, fields=frozenset(), features=features)
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      mine = batch.hidden[b][batch.group[b] == g + 1]
      np.testing.assert_array_equal(mine, features[index[b, g]])


def test_windows_fit_pieces_that_have_one_to_themselves():
  # No part of the longest is near these, and no two of them fit in a window of the longest.
  rows = [[1376, 1248, 1184, 928]] * 3
  assert choose_windows(rows, 32, 0.0, False) == ((928, 1), (1184, 1), (1248, 1), (1376, 1))
  # Each length is compiled: lengths that are nearly the same are one.
  assert choose_windows([[1376, 1376, 1376, 1344]], 32, 0.0, False) == ((1376, 4),)
