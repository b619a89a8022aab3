"""Ranking within lists against scikit-learn and all orders; partial correlation by formula."""

import itertools
import math

import numpy as np
import pytest

from rm_jax.metrics.correlation import bootstrap, kendall, spearman
from rm_jax.metrics.interval import cluster_bootstrap, wilson
from rm_jax.metrics.ranking import best_order, ndcg, partial, pick, pick_rate, within_and_pooled


def three(seed, n=80):
  rng = np.random.default_rng(seed)
  z = rng.normal(size=n)
  return z + rng.normal(size=n), -2 * z + rng.normal(size=n), z


@pytest.mark.parametrize("ranked", [False, True])
def test_partial_of_one_by_its_formula(ranked):
  x, y, z = three(0)

  def r(a, b):
    return spearman(a, b) if ranked else np.corrcoef(a, b)[0, 1]

  below = math.sqrt((1 - r(x, z) ** 2) * (1 - r(y, z) ** 2))
  expected = (r(x, y) - r(x, z) * r(y, z)) / below
  assert partial(x, y, z, ranked=ranked) == pytest.approx(expected, abs=1e-12)
  assert r(x, y) < -0.4
  assert abs(expected) < 0.25  # The raw correlation was due to z.


def test_ndcg_of_exponential_gains_that_would_overflow():
  # The first place has 2^-2 of the largest gain, the second all of it, the third almost nothing.
  for most in (900.0, 1023.0, 1024.0, 1e5):
    found = ndcg([3, 2, 1], [most - 2, most, 0.0], exponential=True)
    expected = (0.25 + 1 / math.log2(3)) / (1 + 0.25 / math.log2(3))
    assert found == pytest.approx(expected, rel=1e-14)
  assert math.isnan(ndcg([1, 2], [0, 0], exponential=True))
  assert math.isnan(ndcg([], [], exponential=True))


def test_partial_of_a_constant_is_nan_whatever_rounding_leaves():
  rng = np.random.default_rng(0)
  given, y = rng.normal(size=(2, 6))
  level = [0.1] * 6  # Its mean is 0.1 + 1e-17.
  assert math.isnan(partial(level, level, given))
  assert math.isnan(partial(level, y, given))
  assert math.isnan(partial(y, [0.3, 0.1 + 0.2] * 3, given))
  # A constant among the given variables explains nothing.
  x = rng.normal(size=6)
  assert partial(x, y, np.stack([given, level], axis=1)) == partial(x, y, given)


def test_partial_of_several_is_in_the_inverse_covariance():
  rng = np.random.default_rng(1)
  data = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) * [1, 1, 1e6, 1e-6, 1] + 7
  p = np.linalg.inv(np.corrcoef(data.T))
  expected = -p[0, 1] / math.sqrt(p[0, 0] * p[1, 1])
  assert partial(data[:, 0], data[:, 1], data[:, 2:]) == pytest.approx(expected, abs=1e-8)
  # A repeated or a constant column changes nothing.
  given = np.concatenate([data[:, 2:], data[:, 2:3], np.ones((60, 1))], axis=1)
  assert partial(data[:, 0], data[:, 1], given) == pytest.approx(expected, abs=1e-8)


def test_partial_where_nothing_is_left():
  x, y, z = three(0)
  assert math.isnan(partial(3 * z + 1e6, y, z))
  assert math.isnan(partial(x, np.ones(80), z))
  assert partial(x, y, np.ones(80)) == pytest.approx(np.corrcoef(x, y)[0, 1])
  for arguments, message in [
    ((x[:3], y[:3], z[:3]), r"at least C \+ 3"),
    ((x, y[:3], z), "y 3"),
    ((x, y, np.append(z[1:], np.nan)), r"given_NC\[:, 0\]\[79\] is nan"),
  ]:
    with pytest.raises(ValueError, match=message):
      partial(*arguments)


def test_ndcg_by_hand():
  gains = [3.0, 0.0, 2.0]
  best = 3 + 2 / math.log2(3)
  assert ndcg([0.1, 0.9, 0.5], gains) == pytest.approx((2 / math.log2(3) + 3 / 2) / best)
  assert ndcg([9, 1, 5], gains) == pytest.approx(1)
  assert ndcg([0.1, 0.9, 0.5], gains, 1) == 0
  assert ndcg([0.1, 0.5, 0.9], gains, 1, exponential=True) == pytest.approx(3 / 7)
  assert math.isnan(ndcg([1.0, 2.0], [0.0, 0.0]))
  with pytest.raises(ValueError, match=r"gains_K has -1\.0"):
    ndcg([1.0, 2.0], [-1.0, 2.0])
  with pytest.raises(ValueError, match="k is 0"):
    ndcg([1.0], [1.0], 0)


@pytest.mark.parametrize("k", [None, 1, 3, 20])
def test_ndcg_against_scikit_learn(k):
  metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")
  rng = np.random.default_rng(0)
  for _ in range(20):
    scores, gains = rng.integers(0, 5, 9).astype(float), rng.integers(0, 4, 9).astype(float)
    theirs = metrics.ndcg_score([gains], [scores], k=k)
    assert ndcg(scores, gains, k) == pytest.approx(theirs, abs=1e-12)


def test_ties_are_the_mean_over_all_ways_to_break_them():
  scores, gains = [1.0, 2.0, 2.0, 1.0, 1.0], [3.0, 0.0, 2.0, 1.0, 1.0]
  broken, picked = [], []
  for noise in itertools.permutations([0.0, 0.1, 0.2, 0.3, 0.4]):
    mixed = np.add(scores, noise)
    broken.append(ndcg(mixed, gains, 3))
    picked.append(gains[int(np.argmax(mixed))] == 3.0)
  assert ndcg(scores, gains, 3) == pytest.approx(np.mean(broken))
  assert pick(scores, gains) == (np.mean(picked), 1 / 5)


def test_pick():
  assert pick([1.0, 5.0, 5.0], [0.0, 2.0, 1.0]) == (0.5, pytest.approx(1 / 3))
  assert pick([1.0, 5.0, 3.0], [2.0, 2.0, 1.0]) == (1.0, pytest.approx(2 / 3))
  assert pick([1.0], [0.0]) == (1.0, 1.0)
  with pytest.raises(ValueError, match="empty"):
    pick([], [])


def test_pick_rate():
  scores = [[1.0, 2.0], [1.0, 1.0, 0.0], [3.0, 1.0], [0.0, 1.0]]
  gains = [[0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0], [2.0, 2.0]]
  names = [f"{name}{i}" for i in range(40) for name in "abcd"]
  found = pick_rate(scores * 40, gains * 40, names)
  right, chance = [1, 0.5, 0], [1 / 2, 1 / 3, 1 / 2]
  kept = [name for name in names if name[0] != "d"]
  assert found["value"] == pytest.approx(0.5)
  assert found["interval"] == list(cluster_bootstrap(right * 40, kept))
  assert (found["n"], found["undefined"]) == (120, 40)
  assert found["chance"] == pytest.approx(sum(chance) / 3)
  above = found["above_chance"]
  assert above["value"] == pytest.approx(0.5 - sum(chance) / 3)
  assert above["interval"] == list(cluster_bootstrap(np.subtract(right * 40, chance * 40), kept))
  found = pick_rate(scores[3:], gains[3:], ["d"])
  assert (found["value"], found["chance"], found["undefined"]) == (None, None, 1)
  assert found["why"] == "no prompt has a value"
  found = pick_rate(scores[:1], gains[:1], ["a"])
  assert (found["value"], found["interval"]) == (1.0, None)
  assert found["why"] == "1 conversation: an interval wants 5"
  with pytest.raises(ValueError, match="clusters 1"):
    pick_rate(scores, gains, ["a"])
  # A prompt whose gains are all equal is left out only after it was checked.
  with pytest.raises(ValueError, match="scores has 2 values, gains 1"):
    pick_rate([[1.0, 2.0]], [[1.0]], ["a"])


def test_within_and_pooled_are_different_questions():
  """Scores rank the responses of each prompt correctly, but the prompts in reverse."""
  rng = np.random.default_rng(0)
  gains = [rng.permutation(6) + 10.0 * p for p in range(30)]
  scores = [g - 20.0 * p for p, g in enumerate(gains)]
  clusters = list(range(30))
  found = within_and_pooled(kendall, scores, gains, clusters, resamples=200)
  within = found["within"]
  assert (within["value"], within["n"], within["undefined"]) == (1.0, 30, 0)
  # All 30 conversations have equal values, so Wilson's bound limits the share of those at −1.
  assert within["interval"] == pytest.approx([1 - 2 * (1 - wilson(30, 30)[0]), 1.0])
  flat = np.concatenate(scores), np.concatenate(gains)
  owners = np.repeat(clusters, 6).tolist()
  expected = bootstrap(kendall, flat, owners, resamples=200, scale="correlation")
  assert found["pooled"] == expected | {"n": 180}
  assert found["pooled"]["interval"][1] < -0.8


def test_within_and_pooled_count_what_is_not_defined():
  scores, gains = [[1.0, 2.0], [1.0, 1.0], [3.0, 1.0]], [[0.0, 1.0], [0.0, 1.0], [0.0, 2.0]]
  found = within_and_pooled(spearman, scores, gains, ["a", "b", "c"], resamples=50)
  assert found["within"]["value"] == 0
  # Equal scores rank nothing. They count as 0, like one right and one wrong pair; not left out.
  assert (found["within"]["n"], found["within"]["undefined"]) == (3, 0)
  unrated = within_and_pooled(spearman, scores, [[0.0, 1.0], [0.0, 1.0], [2.0, 2.0]], list("abc"))
  assert unrated["within"]["value"] == 0.5
  assert (unrated["within"]["n"], unrated["within"]["undefined"]) == (2, 1)
  flat = np.concatenate(scores), np.concatenate(gains)
  assert found["pooled"]["value"] == pytest.approx(spearman(*flat))
  found = within_and_pooled(spearman, [[0.0, 1.0]], [[1.0, 1.0]], ["a"])
  assert found["within"] == {
    "value": None,
    "interval": None,
    "n": 0,
    "why": "no prompt has a value",
    "undefined": 1,
  }
  assert found["pooled"]["value"] is None
  assert found["pooled"]["n"] == 2
  equal = within_and_pooled(spearman, [[1.0, 1.0]] * 2, [[0.0, 1.0]] * 2, ["a", "b"], resamples=5)
  assert "all scores or all gains" in equal["pooled"]["why"]
  with pytest.raises(ValueError, match="scores has 2 values, gains 1"):
    within_and_pooled(spearman, [[1.0, 2.0]], [[1.0]], ["a"])
  none = within_and_pooled(spearman, [], [], [])
  assert none["within"]["undefined"] == none["pooled"]["undefined"] == 0
  assert none["within"].keys() == none["pooled"].keys()


def test_a_list_without_responses_is_refused_by_its_index():
  for rate in (pick_rate, lambda *lists: within_and_pooled(kendall, *lists)):
    with pytest.raises(ValueError, match=r"scores\[1\] is empty; expected at least one"):
      rate([[1.0], []], [[1.0], []], [0, 1])


def test_of_a_circle_an_order_misses_one():
  assert best_order([(0, 1), (1, 2), (2, 0)], 3) == 2
  assert best_order([(2, 1), (1, 0), (2, 0)], 3) == 3
  assert best_order([], 4) == 0
  with pytest.raises(ValueError, match="17 items"):
    best_order([], 17)


def test_the_best_order_is_that_of_all():
  rng = np.random.default_rng(0)
  for _ in range(40):
    count = int(rng.integers(2, 7))
    pairs = itertools.combinations(range(count), 2)
    better = [(i, j) if rng.random() < 0.5 else (j, i) for i, j in pairs if rng.random() < 0.8]
    want = max(
      sum(order.index(i) < order.index(j) for i, j in better)
      for order in itertools.permutations(range(count))
    )
    assert best_order(better, count) == want
