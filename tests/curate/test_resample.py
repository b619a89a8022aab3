"""Resampling: as many rows as the targets allow, and each key's count within one of its share."""

import numpy as np
import pytest

from rm_jax.curate.resample import parse_targets, subsample, weights
from rm_jax.data.report import DataError

KEYS = ["a"] * 60 + ["b"] * 30 + ["c"] * 10


def counts(keep):
  return {
    k: int(sum(kept for kept, key in zip(keep, KEYS, strict=True) if key == k)) for k in "abc"
  }


@pytest.mark.parametrize(
  ("targets", "expected"),
  [
    ({"a": 0.6, "b": 0.3, "c": 0.1}, {"a": 60, "b": 30, "c": 10}),
    ({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, {"a": 10, "b": 10, "c": 10}),
    ({"a": 0.5, "b": 0.5, "c": 0}, {"a": 30, "b": 30, "c": 0}),
    ({"a": 0.8, "b": 0.0, "c": 0.2}, {"a": 40, "b": 0, "c": 10}),
  ],
)
def test_subsample(targets, expected):
  keep = subsample(KEYS, targets)
  assert counts(keep) == expected
  assert (subsample(KEYS, targets) == keep).all()


def test_subsample_is_within_one_and_largest():
  rng = np.random.default_rng(0)
  for _ in range(200):
    share = rng.dirichlet([1, 1, 1])
    targets = dict(zip("abc", share.tolist(), strict=True))
    if min(KEYS.count(k) / targets[k] for k in "abc") < 2:
      continue  # No row would be left.
    got = counts(subsample(KEYS, targets))
    total = sum(got.values())
    for k in "abc":
      assert abs(got[k] - targets[k] * total) < 1
    # A total of two more would need more rows of a key than exist.
    assert any((total + 2) * targets[k] > KEYS.count(k) - 1 for k in "abc")


def test_subsample_draws_by_seed_and_evenly():
  targets = {"a": 0.25, "b": 0.5, "c": 0.25}
  drawn = np.stack([subsample(KEYS, targets, seed) for seed in range(400)])
  assert drawn.sum(axis=1).tolist() == [40] * 400
  # Each of 60 rows is drawn with probability 1/6; five standard errors of a share of 400.
  assert np.abs(drawn[:, :60].mean(axis=0) - 1 / 6).max() < 5 * np.sqrt(1 / 6 * 5 / 6 / 400)


def test_weights():
  targets = {"a": 0.2, "b": 0.8, "c": 0.0}
  factor = weights(KEYS, targets)
  assert factor.mean() == pytest.approx(1)
  for k in "abc":
    mine = sum(f for f, key in zip(factor, KEYS, strict=True) if key == k)
    assert mine == pytest.approx(100 * targets[k])


def test_targets():
  assert parse_targets("a=0.5,b=.25,c=0.25", KEYS) == {"a": 0.5, "b": 0.25, "c": 0.25}
  assert parse_targets("x=y=1", KEYS) == {"x=y": 1.0}
  assert parse_targets("equal", KEYS) == dict.fromkeys("abc", 1 / 3)
  for wrong in ("a", "a=x", "a=0.5,a=0.5", "=1", "a=nan", "a=2", ""):
    with pytest.raises(DataError, match="expected 'equal' or KEY=SHARE"):
      parse_targets(wrong, KEYS)


def test_targets_that_do_not_fit():
  for function in (subsample, weights):
    with pytest.raises(DataError, match=r"without a target \['c'\]; targets without rows \['d'\]"):
      function(KEYS, {"a": 0.5, "b": 0.25, "d": 0.25})
    with pytest.raises(DataError, match=r"sum to 0\.9; expected shares, sum 1"):
      function(KEYS, {"a": 0.5, "b": 0.2, "c": 0.2})
    with pytest.raises(DataError, match="no row to resample"):
      function([], {"a": 1.0})


def test_the_cost_does_not_grow_with_the_keys():
  """Keys are compared once for all, and the same rows are drawn as by a scan for each key."""

  class Counted(str):
    compared = 0

    def __eq__(self, other):
      Counted.compared += 1
      return str.__eq__(self, other)

    __hash__ = str.__hash__

  rng = np.random.default_rng(0)
  keys = [Counted(f"k{i}") for i in rng.integers(0, 500, 5000)]
  targets = parse_targets("equal", [str(k) for k in keys])
  keep = subsample(keys, targets, seed=3)
  assert Counted.compared <= 8 * len(keys)  # A scan for each key: 2.5 million.
  draw = np.random.Generator(np.random.PCG64(3))
  quota = min(np.unique(keys, return_counts=True)[1])
  expected = np.zeros(len(keys), bool)
  for key in sorted(targets):
    at = np.flatnonzero([str(k) == key for k in keys])
    expected[draw.permutation(at)[:quota]] = True
  assert (keep == expected).all()
