"""Packing loses nothing: every sequence can be read back from the rows, by what its mark sees."""

import dataclasses

import numpy as np
import pytest

from rm_jax.data.group import Group
from rm_jax.data.pack import Packing, Shape, assemble, optional_fields, pack, plan, standing


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
        margin=float(rng.integers(0, 2)),
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
  lengths = [g.columns(share) for g in groups]
  packing = Packing(share=share, pack=packed, cells=512, multiple=2)
  shapes = plan(lengths, 3, 16, packing)
  found = []
  for micro in pack(range(40), lengths, shapes):
    assert micro.shape.rows % 2 == 0
    batch, index = assemble(micro, groups, share=share, fields=optional_fields(groups))
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      i = int(index[b, g])
      found.append(i)
      one = groups[i]
      m = len(one.ids)
      assert batch.where[b, g].tolist() == [True] * m + [False] * (3 - m)
      np.testing.assert_array_equal(batch.labels[b, g, :m], one.labels)
      assert batch.weight[b, g] == one.weight
      assert (batch.pair_margin[b, g] == one.margin).all()
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
  lengths = [g.columns(share) for g in groups]
  seen = 0
  for micro in pack(range(40), lengths, plan(lengths, 3, 16, Packing(share=share, cells=512))):
    asked = optional_fields(groups) | {"previous"}
    batch, index = assemble(micro, groups, share=share, fields=asked)
    expected = np.full_like(batch.previous, -1)
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      one = groups[index[b, g]]
      for k, ids in enumerate(one.ids):
        columns = seen_from(batch, b, batch.marks[b, g, k])
        for i in range(max(1, len(ids) - one.length[k]), len(ids)):
          expected[b, columns[i]] = columns[i - 1]
          seen += 1
    np.testing.assert_array_equal(batch.previous, expected)
    assert assemble(micro, groups, share=share, fields=frozenset())[0].previous is None
  assert seen > 1000


def test_shared_prompts_are_stored_once():
  group = random_groups(1, responses=(3,))[0]
  saved = 2 * group.shared
  assert group.columns(share=False) - group.columns(share=True) == saved


def test_few_shapes_hold_any_step():
  groups = random_groups(300, longest=900)
  lengths = [g.columns(True) for g in groups]
  shapes = plan(lengths, 3, 32, Packing(cells=4096))
  known = {s for sizes in shapes for s in sizes}
  assert len(known) <= 6
  rng = np.random.default_rng(1)
  for _ in range(20):
    step = rng.choice(300, 32, replace=False)
    micros = pack(step, lengths, shapes)
    assert {m.shape for m in micros} <= known
    laid = sorted(i for m in micros for row in m.rows for i in row)
    assert laid == sorted(step.tolist())
    for micro in micros:
      assert all(sum(lengths[i] for i in row) <= micro.shape.columns for row in micro.rows)
      assert all(len(row) <= micro.shape.groups for row in micro.rows)


def test_standing_shapes_do_not_depend_on_the_data():
  packing = Packing(cells=1024)
  assert standing(100, 1, packing) == standing(65, 1, packing)
  assert standing(300, 1, packing)[:1] == standing(100, 1, packing)
  assert standing(100, 1, packing)[0][0] == Shape(1, 128, 16, 1)


def test_row_lengths_too_short_for_the_data_name_the_mend():
  with pytest.raises(ValueError, match=r"data\.row_lengths .* a group of 70 tokens"):
    plan([70], 1, 1, Packing(row_lengths=(64,)))


def test_features_land_on_their_own_columns():
  groups = random_groups(10)
  features = [
    np.repeat(np.arange(g.columns(True), dtype=np.float32)[:, None] + 100 * i, 2, axis=1)
    for i, g in enumerate(groups)
  ]
  lengths = [g.columns(True) for g in groups]
  for micro in pack(range(10), lengths, plan(lengths, 3, 10, Packing())):
    batch, index = assemble(micro, groups, share=True, fields=frozenset(), features=features)
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      mine = batch.hidden[b][batch.group[b] == g + 1]
      np.testing.assert_array_equal(mine, features[index[b, g]])
