"""Drift: distances against SciPy, scikit-learn and every split; how often alarms are false."""

import itertools
import json
import math

import numpy as np
import pytest

from rm_jax.metrics import drift
from rm_jax.metrics.drift import (
  energy_distance,
  ks,
  ks_signed,
  ledoit_wolf,
  mahalanobis,
  permutation_p,
  psi,
)
from rm_jax.metrics.monitor import DriftMonitor


def every_split(statistic, a, b):
  """The share of all splits of the pooled sample whose statistic is no smaller."""
  pooled = np.concatenate([a, b])
  seen = []
  for chosen in itertools.combinations(range(len(pooled)), len(a)):
    mine = np.isin(np.arange(len(pooled)), chosen)
    seen.append(statistic(pooled[mine], pooled[~mine]))
  return np.mean(np.asarray(seen) >= statistic(np.asarray(a), np.asarray(b)) - 1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 3), (40, 40), (30, 200), (500, 77)])
def test_ks_against_scipy(n, m):
  stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
  rng = np.random.default_rng(n)
  for shift in (0.0, 0.3, 3.0):
    a, b = rng.normal(size=n), rng.normal(size=m) + shift
    theirs = stats.ks_2samp(a, b, method="exact")
    statistic, p = ks(a, b)
    assert statistic == pytest.approx(theirs.statistic, abs=1e-14)
    assert p == pytest.approx(theirs.pvalue, rel=1e-8)
    assert ks(b, a) == (statistic, p)


def test_ks_of_a_large_sample_is_kolmogorovs_limit(monkeypatch):
  special = pytest.importorskip("scipy.special", reason="scipy is the oracle")
  rng = np.random.default_rng(0)
  monkeypatch.setattr(drift, "_EXACT", 0)
  for shift in (0.0, 0.05, 0.2):
    a, b = rng.normal(size=3000), rng.normal(size=2000) + shift
    statistic, p = ks(a, b)
    assert p == pytest.approx(special.kolmogorov(statistic * math.sqrt(1200)), rel=1e-9)
  assert ks([0.0, 1.0], [0.0, 1.0]) == (0.0, 1.0)


def test_ks_with_ties_counts_every_split():
  a, b = [0.0, 0, 1, 1, 2], [1.0, 2, 2, 3]

  def statistic(x, y):
    at = np.unique(np.concatenate([x, y]))[:, None]
    return np.abs((x <= at).mean(axis=1) - (y <= at).mean(axis=1)).max()

  assert ks(a, b) == pytest.approx((0.55, every_split(statistic, a, b)), abs=1e-12)
  assert ks([1.0, 1.0], [1.0]) == (0.0, 1.0)


def test_ks_far_out_is_small_and_not_below_0():
  stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
  for n, m, shift in ((500, 400, 1.3), (333, 271, 0.9), (97, 410, 2.0)):
    a, b = np.random.default_rng(n).normal(size=n), np.random.default_rng(m).normal(shift, size=m)
    expected = stats.ks_2samp(a, b, method="exact").pvalue
    assert ks(a, b)[1] == pytest.approx(expected, rel=1e-6, abs=0)


def test_ks_is_exact_far_out_and_knows_its_direction():
  # Two of the C(60, 20) splits separate the values completely.
  low, high = np.arange(20.0), np.arange(100.0, 140)
  assert ks(low, high) == (1.0, pytest.approx(2 / math.comb(60, 20), rel=1e-9))
  assert ks_signed(low, high)[0] == 1
  assert ks_signed(high, low)[0] == -1
  with pytest.raises(ValueError, match="a has 0 values, b 1"):
    ks([], [1.0])
  with pytest.raises(ValueError, match=r"b\[0\] is nan"):
    ks([1.0], [math.nan])


def test_permutation_p_is_near_that_of_every_split():
  a, b = [0.1, 2.0, 0.7, 1.4], [3.0, 1.5, 2.2, 5.0, 0.9]

  def apart(x, y):
    return abs(x.mean() - y.mean())

  exact = every_split(apart, a, b)
  got = permutation_p(apart, a, b, permutations=4000)
  assert got == pytest.approx(exact, abs=4 * math.sqrt(exact / 4000))
  assert permutation_p(apart, [0.0] * 30, [9.0] * 30, permutations=99) == 1 / 100
  # No split has a smaller statistic.
  assert permutation_p(apart, [1.0, 1.0], [1.0], permutations=9) == 1
  with pytest.raises(ValueError, match="permutations is 0"):
    permutation_p(apart, a, b, permutations=0)
  with pytest.raises(ValueError, match="not finite"):
    permutation_p(lambda x, y: math.nan, a, b)


def test_psi_by_hand():
  # The reference's quartiles divide 1 .. 8 into pairs; all five new values are in the last bin.
  found = psi(np.arange(1.0, 9), [8.0, 9, 10, 11, 12], bins=4)
  p, q = 1 / 4, [0.5 / 7] * 3 + [5.5 / 7]
  assert found["value"] == pytest.approx(sum((x - p) * math.log(x / p) for x in q))
  assert found["expected"] == pytest.approx(3 * (1 / 8 + 1 / 5))
  assert (found["n"], found["bins"]) == ([8, 5], 4)
  assert found["p"] < 0.05
  # Equal quantiles are merged. 0 has its own bin, and above it is one that the reference does not
  # fill.
  found = psi([0.0] * 9, [0.0, 1.0], bins=4, permutations=9)
  p, q = (9.5 / 10, 0.5 / 10), (1.5 / 3, 1.5 / 3)
  assert (found["bins"], found["expected"]) == (1, 0)
  assert found["value"] == pytest.approx(
    sum((x - y) * math.log(x / y) for x, y in zip(p, q, strict=True))
  )
  with pytest.raises(ValueError, match="bins is 10 for 3 reference values and 1 now"):
    psi([1.0, 2.0, 3.0], [1.0])


def test_psi_sees_what_leaves_a_value_that_many_share():
  found = psi([5.0] * 100, [1.0] * 100, permutations=99)
  assert found["value"] == pytest.approx(2 * 100 / 101 * math.log(201))
  assert found["p"] == 1 / 100
  rest = np.tile(np.arange(1.0, 6), 8)
  then, now = (np.append(np.full(60, low), rest) for low in (0.0, -3.0))
  for bins in (2, 10):
    assert psi(then, now, bins=bins, permutations=99)["p"] == 1 / 100
  same = psi(then, then, permutations=9)
  assert (same["value"], same["p"]) == (0, 1)


def test_psi_of_ratings_has_a_bin_for_each():
  """As many rows in each sample: without drift the mean is that of the reference's five bins."""
  rng = np.random.default_rng(0)
  found = [psi(*rng.integers(1, 6, (2, 500)).astype(float), permutations=1) for _ in range(300)]
  assert {one["bins"] for one in found} == {5}
  assert np.mean([one["value"] for one in found]) == pytest.approx(4 * 2 / 500, rel=0.15)


def test_psi_expected_is_its_mean_where_nothing_moved():
  rng = np.random.default_rng(0)
  found = [
    psi(rng.normal(size=1000), rng.normal(size=400), permutations=1)["value"] for _ in range(300)
  ]
  # The standard error is 0.03.
  assert np.mean(found) == pytest.approx(9 * (1 / 1000 + 1 / 400), rel=0.1)


@pytest.mark.parametrize(("n", "d"), [(50, 1), (50, 8), (40, 100), (2000, 20)])
def test_ledoit_wolf_against_scikit_learn(n, d):
  sk = pytest.importorskip("sklearn.covariance", reason="scikit-learn is the oracle")
  rng = np.random.default_rng(d)
  x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 5
  theirs = sk.LedoitWolf().fit(x)
  covariance, shrinkage = ledoit_wolf(x)
  assert shrinkage == pytest.approx(theirs.shrinkage_, rel=1e-9, abs=1e-12)
  assert covariance == pytest.approx(theirs.covariance_, rel=1e-9, abs=1e-9)
  now = rng.normal(size=(30, d))
  assert mahalanobis(x, now) ** 2 == pytest.approx(theirs.mahalanobis(now), rel=1e-6)


def test_mahalanobis_in_standard_deviations_and_refusals():
  x = np.random.default_rng(0).normal(size=(20_000, 3)) * [1, 10, 0.1]
  assert mahalanobis(x, [[0, 30, 0]]) > 3 * 0.9  # Shrinkage makes the wide axis narrower.
  assert mahalanobis([[0.0], [2.0]], [[5.0]]) == pytest.approx(4.0)
  with pytest.raises(ValueError, match="vary in every direction"):
    mahalanobis(np.ones((4, 2)), np.ones((1, 2)))
  with pytest.raises(ValueError, match=r"now_MD has shape \(2,\)"):
    mahalanobis(x, [1.0, 2.0])
  with pytest.raises(ValueError, match="expected one D"):
    mahalanobis(x, [[1.0, 2.0]])
  with pytest.raises(ValueError, match="1 values not finite"):
    mahalanobis([[0.0], [math.inf]], [[5.0]])
  with pytest.raises(ValueError, match=r"1 row\(s\)"):
    ledoit_wolf([[1.0]])
  for without in (ledoit_wolf, lambda x: mahalanobis(x, x), lambda x: energy_distance(x, x)):
    with pytest.raises(ValueError, match=r"has shape \(3, 0\); expected \[N, D\], D at least 1"):
      without(np.zeros((3, 0)))


def test_energy_distance_against_scipy_and_by_pairs():
  stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
  distance = pytest.importorskip("scipy.spatial.distance", reason="scipy is the oracle")
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=70), np.round(rng.normal(size=90) + 0.4, 1)
  value = energy_distance(a, b, permutations=1)["value"]
  assert value == pytest.approx(stats.energy_distance(a, b), rel=1e-12)
  for d in (1, 2, 5):
    x, y = rng.normal(size=(60, d)) + 100, rng.normal(size=(80, d)) + 100.3
    square = 2 * distance.cdist(x, y).mean() - distance.cdist(x, x).mean()
    square -= distance.cdist(y, y).mean()
    found = energy_distance(x, y, permutations=1)
    assert found["value"] == pytest.approx(math.sqrt(square), rel=1e-9)
    assert found["n"] == [60, 80]


@pytest.mark.parametrize("d", [1, 2])
def test_energy_permutations_are_those_of_every_split(d):
  rng = np.random.default_rng(d)
  a, b = rng.normal(size=(5, d)), rng.normal(size=(5, d)) + 1
  exact = every_split(lambda x, y: energy_distance(x, y, permutations=1)["value"], a, b)
  got = energy_distance(a, b, permutations=20_000)["p"]
  assert 0.01 < exact < 0.5
  assert got == pytest.approx(exact, abs=0.012)


def test_energy_distance_sees_a_shift_and_is_right_where_there_is_none():
  rng = np.random.default_rng(0)
  small = [
    energy_distance(rng.normal(size=(40, 3)), rng.normal(size=(30, 3)), permutations=99)["p"]
    for _ in range(400)
  ]
  assert np.mean(np.asarray(small) <= 0.05) == pytest.approx(0.05, abs=0.033)  # 3 standard errors.
  x, y = rng.normal(size=(3000, 6)), rng.normal(size=(5000, 6)) + 0.3
  found = energy_distance(x, y, limit=300)
  assert found["p"] == 1 / 1000
  assert found["n"] == [300, 300]
  assert found == energy_distance(x, y, limit=300)
  with pytest.raises(ValueError, match="expected rows of one D"):
    energy_distance(x, y[:, :2])
  with pytest.raises(ValueError, match=r"b has shape \(6,\)"):
    energy_distance(x, y[0])
  with pytest.raises(ValueError, match=r"a has shape \(6,\)"):
    energy_distance(x[0], y)


@pytest.mark.slow
def test_monitor_raises_ever_a_false_alarm_no_more_often_than_its_level():
  """1,000 streams of 12 windows like their reference, then of 5 windows shifted by one sd."""
  level, ever, found = 0.2, 0, 0
  rng = np.random.default_rng(1)
  for _ in range(1000):
    monitor = DriftMonitor(rng.normal(size=200), level=level, window=40)
    ever += bool(monitor.update(rng.normal(size=480)))
    found += bool(monitor.update(rng.normal(size=200) + 1))
    assert monitor.spent < level
  assert ever / 1000 <= level + 2 * math.sqrt(level / 1000)
  assert ever / 1000 > level / 5  # It does use its level.
  assert found / 1000 > 0.95


def test_monitor_alarms_are_records_that_do_not_depend_on_the_calls():
  rng = np.random.default_rng(0)
  reference = rng.normal(size=2000)
  stream = np.concatenate([rng.normal(size=1000), rng.normal(size=510) - 0.8])
  monitor = DriftMonitor(reference, level=0.01, window=100)
  alarms = monitor.update(stream)
  assert [a["step"] for a in alarms] == [1100, 1200, 1300, 1400, 1500]
  first = alarms[0]
  statistic, p = ks(reference, stream[1000:1100])
  assert first == {
    "step": 1100,
    "test": 11,
    "statistic": statistic,
    "p": p,
    "level": pytest.approx(0.01 * 6 / (math.pi * 11) ** 2),
    "direction": "down",
  }
  assert (monitor.seen, monitor.tests) == (1510, 15)
  pieces = DriftMonitor(reference, level=0.01, window=100)
  again = [a for part in np.split(stream, [1, 99, 350, 351, 1234]) for a in pieces.update(part)]
  assert again == alarms
  first, second = (DriftMonitor(reference, level=0.01, window=100) for _ in range(2))
  begun = first.update(stream[:1234])
  second.resume(json.loads(json.dumps(first.state())))
  assert begun + second.update(stream[1234:]) == alarms
  assert second.spent == pieces.spent
  assert DriftMonitor(reference, window=100).update(reference[:100] + 5)[0]["direction"] == "up"


def test_monitor_refuses_what_is_not_finite_and_stays_as_it_was():
  monitor = DriftMonitor(np.arange(50.0), window=20)
  monitor.update(np.arange(15.0))
  with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
    monitor.update([1.0, math.nan] * 10)
  assert (monitor.seen, monitor.tests, monitor.spent) == (15, 0, 0.0)
  assert monitor.update([]) == []
  with pytest.raises(ValueError, match="window is 19"):
    DriftMonitor(np.arange(50.0), window=19)
  with pytest.raises(ValueError, match="reference's 50 scores"):
    DriftMonitor(np.arange(50.0), window=51)
  with pytest.raises(ValueError, match="level is 0"):
    DriftMonitor(np.arange(50.0), window=20, level=0)
