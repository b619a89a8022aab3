"""Accuracy and its intervals: against formulas, against scipy, and by how often they cover."""

import collections
import math
import pathlib
import time

import numpy as np
import pytest

from rm_jax.data.formats import load
from rm_jax.data.report import Report
from rm_jax.metrics.agreement import (
  accuracy,
  coin,
  credit,
  longest,
  paired_difference,
  shortest,
)
from rm_jax.metrics.interval import cluster_bootstrap, wilson

HH = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "hh_rlhf"
T499 = 1.9647293909876649  # The same point of Student's t with 499 degrees of freedom.
Z95 = 1.959963984540054  # The 97.5 % point of the normal distribution.


def test_credit():
  got = credit([2.0, 1.0, 3.0, -1e308], [1.0, 2.0, 3.0, 1e308])
  assert got.dtype == np.float64
  assert got.tolist() == [1.0, 0.0, 0.5, 0.0]
  assert credit([], []).shape == (0,)


def test_credit_sees_the_smallest_difference_and_the_largest():
  one = np.float32(1.0)
  above = np.nextafter(one, np.float32(2))
  assert credit([above, one], [one, above]).tolist() == [1.0, 0.0]
  tiny = 5e-324
  assert credit([tiny, 1.7e308], [0.0, -1.7e308]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_credit_refuses_what_is_not_finite(bad):
  with pytest.raises(ValueError, match=r"scores_chosen\[1\] is .* \(2 not finite\)"):
    credit([1.0, bad, bad], [0.0, 0.0, 0.0])
  with pytest.raises(ValueError, match=r"scores_rejected\[0\]"):
    credit([1.0], [bad])


def test_credit_does_not_broadcast():
  with pytest.raises(ValueError, match=r"scores_chosen has shape \(2, 1\); expected \[N\]"):
    credit([[1.0], [2.0]], [1.0, 2.0])
  with pytest.raises(ValueError, match="scores_chosen has 1 values, scores_rejected 2"):
    credit([1.0], [1.0, 2.0])


def test_baselines():
  chosen, rejected = [3, 5, 4], [4, 5, 1]
  assert longest(chosen, rejected).tolist() == [0.0, 0.5, 1.0]
  assert shortest(chosen, rejected).tolist() == [1.0, 0.5, 0.0]
  assert coin(3).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("k", "n"), [(7, 10), (1, 3), (4260, 8503), (2.5, 4)])
def test_wilson_is_where_the_score_test_turns(k, n):
  """Wilson's bounds are the two proportions q with |k/n − q| = z √(q(1−q)/n)."""
  low, high = wilson(k, n)
  for bound in (low, high):
    assert abs(k / n - bound) == pytest.approx(Z95 * math.sqrt(bound * (1 - bound) / n), rel=1e-9)
  assert low < k / n < high


def test_wilson_at_the_ends():
  z2 = Z95 * Z95
  assert wilson(0, 20) == (0.0, pytest.approx(z2 / (20 + z2), rel=1e-12))
  assert wilson(20, 20) == (pytest.approx(20 / (20 + z2), rel=1e-12), 1.0)


def test_wilson_at_another_level():
  z = 0.6744897501960817  # The normal distribution's 75 % point.
  half = z * math.sqrt(0.25 / 10 + z * z / 400) / (1 + z * z / 10)
  assert wilson(5, 10, level=0.5) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-12)


def test_wilson_against_scipy():
  stats = pytest.importorskip("scipy.stats", reason="needs scipy, an independent oracle")
  for k, n in [(0, 1), (1, 1), (3, 7), (50, 100), (999, 1000)]:
    for level in (0.5, 0.9, 0.99):
      theirs = stats.binomtest(k, n).proportion_ci(level, method="wilson")
      assert wilson(k, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(
  "arguments", [(1, 0), (-1, 3), (4, 3), (math.nan, 3), (1, 3, 0), (1, 3, 1), (1, 3, math.nan)]
)
def test_wilson_refuses(arguments):
  with pytest.raises(ValueError, match="expected"):
    wilson(*arguments)


def test_bootstrap_of_two_clusters_by_hand():
  """With two clusters there are three resamples: AA, AB (twice as likely) and BB."""
  values, clusters = [1.0, 1.0, 1.0, 0.0], ["A", "A", "A", "B"]
  # AB is (3 + 0) / (3 + 1): a ratio of sums, not the mean 0.5 of the clusters' means.
  assert cluster_bootstrap(values, clusters, level=0.4) == (0.75, 0.75)
  assert cluster_bootstrap(values, clusters, level=0.9) == (0.0, 1.0)


def test_bootstrap_standard_error_is_the_ratio_estimators():
  """With many clusters, the variance of Σs/Σn is Σ (s_c − m n_c)² / (Σn)²."""
  rng = np.random.default_rng(0)
  clusters = rng.integers(400, size=1500)
  values = rng.normal(size=1500) + rng.normal(size=400)[clusters]
  mean = values.mean()
  sums = [values[clusters == c].sum() - mean * (clusters == c).sum() for c in set(clusters)]
  error = math.sqrt(math.fsum(s * s for s in sums)) / 1500
  low, high = cluster_bootstrap(values, clusters.tolist(), resamples=4000)
  assert (high - low) / (2 * Z95) == pytest.approx(error, rel=0.05)
  assert (high + low) / 2 == pytest.approx(mean, abs=0.1 * error)
  alone = cluster_bootstrap(values, list(range(1500)), resamples=4000)
  assert (alone[1] - alone[0]) / (2 * Z95) == pytest.approx(
    values.std() / math.sqrt(1500), rel=0.05
  )
  assert high - low > 1.3 * (alone[1] - alone[0])  # Clusters widen the interval.


def test_bootstrap_against_scipy_where_clusters_are_single():
  stats = pytest.importorskip("scipy.stats", reason="needs scipy, an independent oracle")
  values = np.random.default_rng(1).exponential(size=60)
  theirs = stats.bootstrap(
    (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(2)
  ).confidence_interval
  ours = cluster_bootstrap(values, [str(n) for n in range(60)], resamples=20000)
  assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_bootstrap_depends_on_nothing_but_its_arguments():
  values = np.random.default_rng(0).normal(size=50)
  clusters = [f"c{n % 20}" for n in range(50)]
  first = cluster_bootstrap(values, clusters)
  assert cluster_bootstrap(values.tolist(), tuple(clusters)) == first
  assert cluster_bootstrap(values, [("c", n % 20) for n in range(50)]) == first
  assert cluster_bootstrap(values, clusters, seed=1) != first
  low, high = cluster_bootstrap(values, clusters, level=0.5)
  assert first[0] < low < high < first[1]


def test_bootstrap_in_chunks_is_the_same(monkeypatch):
  values, clusters = np.random.default_rng(0).normal(size=50), list(range(50))
  whole = cluster_bootstrap(values, clusters, resamples=101)
  monkeypatch.setattr("rm_jax.metrics.interval._DRAWS", 64)
  assert cluster_bootstrap(values, clusters, resamples=101) == whole


def test_bootstrap_of_ten_thousand_is_fast():
  values = np.random.default_rng(0).integers(2, size=10_000)
  clusters = ["x" * 5000 + str(n) for n in range(10_000)]  # Long labels.
  start = time.perf_counter()
  cluster_bootstrap(values, clusters)
  assert time.perf_counter() - start < 5  # 0.3 s on an idle machine.


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"clusters": ["a", "a"]}, r"1 cluster\(s\); resampling needs at least 2"),
    ({"values": [], "clusters": []}, r"0 cluster\(s\)"),
    ({"clusters": ["a"]}, "1 cluster labels for 2 values"),
    ({"values": [1.0, math.nan]}, r"values\[1\] is nan"),
    ({"level": 1.0}, "level is 1.0"),
    ({"resamples": 0}, "resamples is 0"),
  ],
)
def test_bootstrap_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    cluster_bootstrap(**({"values": [1.0, 2.0], "clusters": ["a", "b"]} | options))


def test_accuracy():
  credits = [1.0, 1.0, 0.5, 0.0, 1.0, 0.5] * 20
  clusters = [f"{name}{i}" for i in range(20) for name in "aabcdd"]
  got = accuracy(credits, clusters, level=0.8, resamples=500, seed=7)
  assert got == {
    "accuracy": pytest.approx(4 / 6, rel=1e-15),
    "interval": list(cluster_bootstrap(credits, clusters, level=0.8, resamples=500, seed=7)),
    "n": 120,
    "ties": 40,
    "conversations": 80,
  }
  few = accuracy(credits[:6], clusters[:6])
  assert (few["interval"], few["why"]) == (None, "4 conversations: an interval wants 5")
  with pytest.raises(ValueError, match=r"credits\[1\] is 0.7; expected 0, 0.5 or 1"):
    accuracy([1.0, 0.7], ["a", "b"])


@pytest.mark.parametrize("side", [0.0, 1.0])
def test_accuracy_claims_no_certainty_where_all_agree(side):
  got = accuracy([side] * 16, [i // 2 for i in range(16)])
  # The sample size is 8 conversations, not 16 pairs.
  assert got["interval"] == pytest.approx(list(wilson(8 * side, 8)))


def test_accuracy_interval_covers():
  """Intervals over conversations cover the truth in about 95 %, Wilson's over pairs in fewer."""
  rng = np.random.default_rng(5)
  trials, covered, naive = 300, 0, 0
  for trial in range(trials):
    clusters = np.repeat(np.arange(80), 4)
    chance = rng.beta(1.2, 0.8, size=80)[clusters]  # mean 0.6
    credits = (rng.random(320) < chance).astype(float)
    low, high = accuracy(credits, clusters.tolist(), resamples=400, seed=trial)["interval"]
    covered += low <= 0.6 <= high
    low, high = wilson(credits.sum(), 320)
    naive += low <= 0.6 <= high
  assert 0.91 < covered / trials < 0.98  # The standard error is 0.0126.
  assert naive / trials < 0.88


def test_paired_difference():
  rng = np.random.default_rng(0)
  hard = rng.random(500)  # The same pairs are hard for both models.
  a, b = (hard < 0.72).astype(float), (hard < 0.70).astype(float)
  clusters = list(range(500))
  got = paired_difference(a, b, clusters, seed=3)
  assert got["difference"] == pytest.approx(a.mean() - b.mean(), rel=1e-12)
  # The models differ in 14 pairs, too few for the bootstrap: t on log-odds of (1 + difference) / 2.
  p = (1 + got["difference"]) / 2
  half = T499 * (a - b).std(ddof=1) / math.sqrt(500) / 2 / (p * (1 - p))
  ends = [math.log(p / (1 - p)) + way * half for way in (-1, 1)]
  assert got["interval"] == pytest.approx([2 / (1 + math.exp(-end)) - 1 for end in ends])
  much = paired_difference(a, 1 - b, clusters, seed=3)
  assert much["interval"] == list(cluster_bootstrap(a + b - 1, clusters, seed=3))
  assert got["interval"][0] > 0  # Paired, they differ; unpaired intervals overlap.
  assert accuracy(b, clusters)["interval"][1] > accuracy(a, clusters)["interval"][0]
  same = paired_difference(a, a, clusters)
  # Agreement in all 500 conversations does not prove that they always agree.
  assert same["difference"] == 0
  most = Z95**2 / (500 + Z95**2)
  assert same["interval"] == pytest.approx([-most, most])
  with pytest.raises(ValueError, match="a has 500 values, b 499"):
    paired_difference(a, b[1:], clusters)


@pytest.mark.skipif(not HH.is_dir(), reason=f"needs {HH} (8,552 rows of HH-RLHF)")
def test_length_rule_on_hh():
  """The shared README's figures: the longer response was chosen for 44 / 59 / 43 / 56 %."""
  by_source = collections.defaultdict(list)
  for example in load(HH, report=Report()):
    by_source[example.source].append(example)
  found = {}
  for source, examples in by_source.items():
    lengths = [[sum(len(m["content"]) for m in r) for r in e.responses] for e in examples]
    chosen, rejected = zip(*lengths, strict=True)
    credits = longest(chosen, rejected)
    got = accuracy(credits, [e.conversation for e in examples], resamples=200)
    assert got["ties"] == sum(c == r for c, r in lengths)
    found[source] = round(100 * np.mean(credits == 1.0))
  assert found == {
    "harmless-base.test": 44,
    "helpful-base.test": 59,
    "helpful-online.test": 43,
    "helpful-rejection-sampled.test": 56,
  }
