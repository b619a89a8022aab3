"""The order of a run depends on its seed and step alone."""

import numpy as np
import pytest

from rm_jax.data.iterate import ahead, step_groups


def test_epochs_are_permutations_end_to_end():
  order = np.concatenate([step_groups(s, count=10, size=4, seed=3) for s in range(5)])
  assert sorted(order[:10]) == list(range(10))
  assert sorted(order[10:]) == list(range(10))
  assert order[:10].tolist() != order[10:].tolist()
  other = np.concatenate([step_groups(s, count=10, size=4, seed=4) for s in range(5)])
  assert other.tolist() != order.tolist()


def test_a_step_may_be_larger_than_the_data():
  assert np.bincount(step_groups(0, count=3, size=9, seed=0)).tolist() == [3, 3, 3]


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
