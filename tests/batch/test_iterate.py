"""The order of a run depends on its seed and step alone."""

import numpy as np
import pytest

from rm_jax.batch.iterate import ahead, step_groups

TEN = [np.arange(10)], [1.0]


def test_epochs_are_permutations_end_to_end():
  order = np.concatenate([step_groups(s, *TEN, size=4, seed=3) for s in range(5)])
  assert sorted(order[:10]) == list(range(10))
  assert sorted(order[10:]) == list(range(10))
  assert order[:10].tolist() != order[10:].tolist()
  other = np.concatenate([step_groups(s, *TEN, size=4, seed=4) for s in range(5)])
  assert other.tolist() != order.tolist()


def test_a_step_may_be_larger_than_the_data():
  assert np.bincount(step_groups(0, [np.arange(3)], [1.0], size=9, seed=0)).tolist() == [3, 3, 3]


def test_sources_have_their_share_of_every_step_and_epochs_of_their_own():
  parts = [np.arange(5), np.arange(5, 105), np.arange(105, 135)]
  steps = [step_groups(s, parts, [0.3, 0.6, 0.1], size=16, seed=2) for s in range(50)]
  counts = np.asarray([[np.isin(g, part).sum() for part in parts] for g in steps])
  assert (counts.sum(axis=1) == 16).all()
  # To less than a group of those that are not the largest, and what these leave for the largest.
  assert np.abs(counts - [4.8, 9.6, 1.6]).max(axis=0).tolist() <= [1, 2, 1]
  np.testing.assert_allclose(counts.sum(axis=0), [240, 480, 80], atol=1)
  order = np.concatenate(steps)
  for part in parts:
    mine = order[np.isin(order, part)]
    for epoch in range(len(mine) // len(part)):
      found = mine[epoch * len(part) : (epoch + 1) * len(part)]
      assert sorted(found) == list(part)


def test_ahead_keeps_order_and_raises_where_the_function_did():
  assert list(ahead(lambda x: x * x, range(7), depth=3)) == [x * x for x in range(7)]

  def fails(x):
    if x == 2:
      raise ValueError("two")
    return x

  results = ahead(fails, range(5))
  assert [next(results), next(results)] == [0, 1]
  with pytest.raises(ValueError, match="two"):
    next(results)
