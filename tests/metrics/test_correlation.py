"""Rank correlations and AUROC against hand counts and SciPy; intervals of any statistic."""

import numpy as np
import pytest

from rm_jax.metrics.correlation import auroc, bootstrap, kendall, ranks, spearman


def tied(seed, n=40):
  return np.random.default_rng(seed).integers(0, 7, n).astype(float)


def test_by_hand():
  # Of 3 pairs: (0, 1) tied in a, (0, 2) concordant, (1, 2) discordant: 0 / √(2 · 3).
  assert kendall([1, 1, 2], [1, 3, 2]) == 0
  assert kendall([1, 2, 3], [10, 20, 15]) == pytest.approx(1 / 3)
  assert ranks([5, 1, 5, 7]).tolist() == [2.5, 1, 2.5, 4]
  assert spearman([1, 2, 3], [1, 2, 30]) == pytest.approx(1)
  # Good 0.9 and 0.4, bad 0.4 and 0.1: the four pairs give (1 + 1 + 0.5 + 1) / 4.
  assert auroc([0.9, 0.4, 0.4, 0.1], [True, True, False, False]) == 3.5 / 4


@pytest.mark.parametrize("seed", range(5))
def test_against_scipy(seed):
  stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
  a, b = tied(seed), tied(seed + 100)
  assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
  assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
  good = b > 3
  u = stats.mannwhitneyu(a[good], a[~good]).statistic
  assert auroc(a, good) == pytest.approx(u / (good.sum() * (~good).sum()), abs=1e-12)


def test_what_is_not_defined_is_nan_and_never_a_number():
  assert np.isnan(kendall([1, 1], [1, 2]))
  assert np.isnan(spearman([1, 1], [1, 2]))
  assert np.isnan(auroc([1, 2], [True, True]))
  with pytest.raises(ValueError, match="not finite"):
    kendall([1, np.nan], [1, 2])
  with pytest.raises(ValueError, match="a has 2 values, b 1"):
    spearman([1, 2], [1])
  with pytest.raises(ValueError, match="good has shape"):
    auroc([1, 2], [True])


def test_bootstrap_resamples_conversations_whole():
  rng = np.random.default_rng(0)
  # In 50 conversations of 8 equal values the mean is as uncertain as that of 50 numbers, not 400.
  level = rng.normal(size=50)
  values, clusters = np.repeat(level, 8), [i // 8 for i in range(400)]
  found = bootstrap(np.mean, (values,), clusters)
  low, high = found["interval"]
  assert found["value"] == pytest.approx(level.mean())
  width = 2 * 1.96 * level.std() / 50**0.5
  assert high - low == pytest.approx(width, rel=0.1)
  alone = bootstrap(np.mean, (values,), list(range(400)))
  assert alone["interval"][1] - alone["interval"][0] == pytest.approx(width / 8**0.5, rel=0.1)


def test_bootstrap_says_where_it_has_nothing_to_say():
  found = bootstrap(auroc, (np.arange(4.0), np.ones(4, bool)), [0, 1, 2, 3], resamples=20)
  assert (found["value"], found["interval"]) == (None, None)
  assert found["why"] == "not defined for these data"
  found = bootstrap(np.mean, (np.arange(4.0),), [0] * 4)
  assert (found["value"], found["interval"]) == (1.5, None)
  assert found["why"] == "1 conversation: an interval wants 5"


@pytest.mark.parametrize("n", [201, 1000, 5000])
def test_long_lists_against_scipy(n):
  stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
  rng = np.random.default_rng(n)
  for values in (3, 50, 10**9):  # Many ties, some, none.
    a = rng.integers(0, values, n) - 0.5 * values
    b = np.where(rng.random(n) < 0.5, a, rng.integers(0, values, n))
    expected = stats.kendalltau(a, b).statistic
    assert kendall(a, b) == pytest.approx(expected, abs=1e-12)
    assert kendall(a, -b) == pytest.approx(-expected, abs=1e-12)
  assert np.isnan(kendall(np.ones(n), a))


def test_long_and_short_lists_are_counted_alike(monkeypatch):
  a, b = tied(0, 150), tied(1, 150)
  short = kendall(a, b)
  monkeypatch.setattr("rm_jax.metrics.correlation._LONG", 1)
  assert kendall(a, b) == short
  assert kendall([1, 1, 2], [1, 3, 2]) == 0
  assert kendall([1, 2, 3], [10, 20, 15]) == 1 / 3


def test_bootstrap_draws_the_members_of_each_cluster(monkeypatch):
  """Resamples of clusters of 1, 2 and 3 rows consist of whole clusters, for any label order."""
  clusters = ["b", "a", "c", "a", "c", "c"]
  monkeypatch.setattr("rm_jax.metrics.interval.LEAST", 2)
  monkeypatch.setattr("rm_jax.metrics.interval.FEW", 2)
  seen = []

  def record(labels):
    seen.append(labels.tolist())
    return 0.0

  bootstrap(record, (np.array([10, 20, 30, 21, 31, 32]),), clusters, resamples=100, least=2)
  assert seen.pop(0) == [10, 20, 30, 21, 31, 32]
  for drawn in seen:
    for member, other in ((20, 21), (30, 31), (31, 32)):
      assert drawn.count(member) == drawn.count(other)
    assert drawn.count(10) + drawn.count(20) + drawn.count(30) == 3
  assert {tuple(s) for s in seen} > {(10, 10, 10)}
