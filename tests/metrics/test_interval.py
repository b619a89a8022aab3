"""Intervals over clusters: which method is used, and that every field of a report has an interval.

tests/studies/coverage.py measures how often they cover the truth; a small part of it is run here.
"""

import math
import re

import numpy as np
import pytest

from rm_jax.audit.benchmarks.figures import published, rate
from rm_jax.audit.scorer import example_scores
from rm_jax.audit.sections import calibration, controls, drift, hacking, robustness, rules
from rm_jax.audit.sections.agreement import agreement
from rm_jax.audit.sections.compare import compare
from rm_jax.heldout.evaluate import evaluate
from rm_jax.heldout.shift import separation
from rm_jax.metrics import correlation, interval
from rm_jax.metrics.agreement import accuracy, paired_difference
from rm_jax.metrics.best_of_n import best_of_n_curve
from rm_jax.types import Example
from tests.studies import coverage

T9 = 2.2621571627409915  # The 97.5 % point of Student's t with 9 degrees of freedom.
Z95 = 1.959963984540054


def test_below_five_clusters_there_is_none_and_a_reason():
  for count in range(1, 5):
    found = interval.mean([0.3, 0.4, 0.1, 0.9][:count], range(count))
    assert found.ends is None
    assert found.report()["why"].endswith("an interval wants 5")
    assert interval.Resampling(range(count)).replicates == 0
  assert interval.mean([0.3, 0.4, 0.1, 0.9, 0.2], range(5)).ends is not None


def test_one_conversation_that_outweighs_all_others_is_not_ten():
  clusters = [0] * 91 + list(range(1, 10))
  found = interval.mean(np.arange(100.0), clusters)
  assert found.ends is None
  # 100² / (91² + 9).
  assert found.why == ("10 conversations of so unequal sizes are worth 1.2: an interval wants 5")


def test_a_quantile_of_less_than_one_degree_is_that_of_one():
  # Of one degree it is tan(π · 0.95 / 2).
  for freedom in (1.0, 0.3, 0.0):
    assert interval.student(0.95, freedom) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-9)
  assert interval.student(0.95, math.inf) == pytest.approx(1.959964, abs=1e-6)


def test_few_clusters_by_hand():
  """Ten clusters: mean ± t √(10/9 Σ (s_c − m n_c)²) / Σ n_c."""
  rng = np.random.default_rng(0)
  clusters = np.repeat(np.arange(10), [1, 2, 1, 2, 1, 2, 1, 2, 1, 2])
  clusters = np.repeat(clusters, 1)
  values = rng.normal(size=15)
  middle = values.mean()
  left = [sum(values[clusters == c] - middle) for c in range(10)]
  worth = 15**2 / sum(n * n for n in [1, 2] * 5)
  half = interval.student(0.95, worth - 1) * math.sqrt(10 / 9 * sum(x * x for x in left)) / 15
  found = interval.mean(values, clusters.tolist())
  assert found.ends == pytest.approx((middle - half, middle + half))
  assert found.method == interval.STUDENT
  equal = interval.mean(values[:10], range(10))
  half = T9 * values[:10].std(ddof=1) / math.sqrt(10)
  assert equal.ends == pytest.approx((values[:10].mean() - half, values[:10].mean() + half))


def test_thirty_that_tell_are_resampled_as_ever():
  rng = np.random.default_rng(1)
  values = (rng.random(80) < 0.6).astype(float)
  found = interval.mean(values, range(80), bounds=(0.0, 1.0), share=True, seed=4)
  assert found.method == interval.BOOTSTRAP
  assert found.ends == interval.cluster_bootstrap(values, range(80), seed=4)
  assert found.report() == {"interval": list(found.ends)}
  # Three of eighty clusters differ from the rest, so three are informative.
  values = np.ones(80)
  values[:3] = 0
  found = interval.mean(values, range(80), bounds=(0.0, 1.0), share=True)
  assert found.report()["method"] == interval.EFFECTIVE
  n, p, t = 79.0, 77 / 80, interval.student(0.95, 79)  # p (1 − p) / (p (1 − p) / 79)
  for bound in found.ends:
    assert abs(p - bound) == pytest.approx(t * math.sqrt(bound * (1 - bound) / n))


def test_all_alike_is_no_certainty():
  most = Z95**2 / (20 + Z95**2)
  found = interval.mean([1.0] * 20, range(20), bounds=(0.0, 1.0), share=True)
  assert found.ends == pytest.approx((1 - most, 1.0))
  found = interval.mean([0.0] * 20, range(20), bounds=(-1.0, 1.0))
  assert found.ends == pytest.approx((-most, most))
  found = interval.mean([0.3] * 20, range(20))
  assert found.ends is None
  assert "how they differ is not known" in found.why
  with pytest.raises(ValueError, match=r"values in 0\.0 \.\. 2\.0; expected 0\.0 \.\. 1\.0"):
    interval.mean([0.0, 2.0] * 5, range(10), bounds=(0.0, 1.0))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("count", [20, 29, 30, 40, 400])
def test_equal_means_of_many_clusters_are_no_certainty_either(count, share):
  values, clusters = [0.0, 1.0] * count, np.repeat(range(count), 2).tolist()
  low, high = interval.mean(values, clusters, bounds=(0.0, 1.0), share=share).ends
  most = Z95**2 / (count + Z95**2)
  if share:
    wide = interval.proportion(0.5, 0.0, count, 2 * count / 1.1, 0.95)
    assert (low, high) == pytest.approx(wide.ends)
  else:
    assert (low, high) == pytest.approx((0.5 - most / 2, 0.5 + most / 2))
  unbounded = interval.mean(values, clusters)
  assert unbounded.ends is None
  assert "how they differ is not known" in unbounded.why


def test_what_rounding_leaves_beyond_a_bound_is_the_bound():
  found = interval.mean([1.0, 1.0 + 2e-16, 1.0, 1.0, 1.0], range(5), bounds=(0.0, 1.0))
  assert found.ends == pytest.approx((1 - Z95**2 / (5 + Z95**2), 1.0))


def test_near_a_bound_the_interval_reaches_further_from_it():
  """A plain t covers NDCG's mean over 10 prompts in 0.87 of the cases, t on log-odds in 0.94."""
  low, high = interval.mean([0.99] * 9 + [0.9], range(10), bounds=(0.0, 1.0)).ends
  assert low < 0.981
  assert 0 < high - 0.981 < 0.981 - low
  assert high < 1


def test_few_conversations_that_agree_within_do_not_make_their_pairs_independent():
  values = np.zeros((10, 8))
  values[0, 0] = values[1, 0] = 1.0
  low, high = interval.mean(values.ravel(), np.repeat(range(10), 8), bounds=(-1.0, 1.0)).ends
  t, p = T9, (1 + 2 / 80) / 2
  half = t * math.sqrt(values.var() * (1 + 0.1 * 7) / 80) / 2 / (p * (1 - p))
  ends = [math.log(p / (1 - p)) + way * half for way in (-1, 1)]
  assert (low, high) == pytest.approx([2 / (1 + math.exp(-end)) - 1 for end in ends])


def test_a_rival_that_was_always_right_is_no_coin():
  """a loses one of five pairs to b, which may be chance, so the interval must reach above 0."""
  found = paired_difference([1.0, 1, 1, 1, 0], [1.0] * 5, range(5))
  assert found["interval"][1] > 0
  coin = paired_difference([1.0, 1, 1, 1, 0], [0.5] * 5, range(5))
  assert coin["interval"] == pytest.approx(
    [end - 0.5 for end in accuracy([1.0, 1, 1, 1, 0], range(5))["interval"]]
  )


def test_jackknife_of_a_mean_is_students_and_scales_turn_back():
  values = np.random.default_rng(2).normal(size=10)
  plan = interval.Resampling(range(10))
  replicates = [values[at].mean() for at in plan.rows()]
  found = plan.interval(values.mean(), replicates)
  assert found.ends == pytest.approx(interval.mean(values, range(10)).ends)
  assert found.method == interval.JACKKNIFE
  for name, (there, back) in interval.SCALES.items():
    assert back(there(0.4)) == pytest.approx(0.4), name
  by_times = [block @ values / block.sum(axis=1) for block in plan.times()]
  assert np.concatenate(by_times) == pytest.approx(replicates)


@pytest.mark.parametrize(
  ("count", "values", "why"),
  [
    (10, [0.5] * 10, "the same without any conversation"),
    (10, [math.nan] + [0.5] * 9, r"not defined without some conversations \(1 of 10\)"),
    (40, [0.5] * 100, "the same in all resamples"),
    (40, [math.nan] * 3 + [0.4, 0.6] * 48 + [0.5], "not defined in 3 of 100 resamples"),
  ],
)
def test_what_tells_nothing_gives_none(count, values, why):
  found = interval.Resampling(range(count), resamples=100).interval(0.5, values)
  assert found.ends is None
  assert re.search(why, found.why)


def test_correlations_stay_in_their_range():
  plan = interval.Resampling(range(6))
  low, high = plan.interval(0.95, [0.9, 0.97, 0.96, 0.93, 0.99, 0.94], "correlation").ends
  assert -1 < low < 0.95 < high < 1
  found = plan.interval(1.0, [1.0, 1.0, 0.9, 1.0, 1.0, 1.0], "correlation")
  assert "end of its range" in found.why


def test_the_rarer_class_decides_whether_conversations_are_few():
  def plan(bad, count=100, size=1, **options):
    good = np.arange(count * size) // size >= bad
    clusters = (np.arange(count * size) // size).tolist()
    return interval.Resampling(clusters, classes=good, **options)

  assert plan(4).why == "of the rarer class, 4 conversations: an interval wants 5"
  assert plan(97).why == "of the rarer class, 3 conversations: an interval wants 5"
  assert plan(4, least=3).why == ""
  few = plan(8, size=3)
  assert (few.worth, few.count, few.bootstraps, few.replicates) == (8, 100, False, 100)
  many = plan(30)
  assert (many.worth, many.bootstraps) == (30, True)
  # Enough of both: as without classes.
  for mine, other in zip(many.draws(), interval.Resampling(range(100)).draws(), strict=True):
    assert mine.tolist() == other.tolist()
  # Both classes in each conversation: their sizes count as those of conversations do.
  both = interval.Resampling(np.repeat(range(10), 3).tolist(), classes=[0, 1, 1] * 10)
  assert both.worth == 10
  one = interval.Resampling(range(10), classes=["good"] * 10)
  assert (one.worth, one.why) == (10, "")
  with pytest.raises(ValueError, match="9 cluster labels for 10"):
    interval.Resampling(range(10), classes=[True] * 9)


def test_auroc_of_a_rare_class_covers():
  """In 60 simulations of 5 bad of 60; 0.95 less two standard errors is 0.89. Percentiles: 0.75."""
  truth = 0.5 * (1 + math.erf(1.0))  # Φ(2 / √2) for normal scores that are 2 apart.
  held, given = 0, 0
  good = np.arange(60) >= 5
  for run in range(60):
    score = np.random.default_rng(run).normal(size=60) + 2 * good
    options = {"scale": "probability", "classes": good, "resamples": 60}
    ends = correlation.bootstrap(correlation.auroc, (score, good), range(60), **options)["interval"]
    if ends is not None:
      given += 1
      held += ends[0] <= truth <= ends[1]
  assert given >= 45
  assert held / given >= 0.89


@pytest.mark.parametrize("mean", [0.75, 0.95])
@pytest.mark.parametrize(("clusters", "size"), [(5, 8), (10, 8), (20, 8), (20, 1)])
def test_accuracy_over_few_conversations_covers(clusters, size, mean):
  """In 400 simulations; 0.90 less two standard errors is 0.87. The bootstrap: 0.55 to 0.87."""
  held = 0
  for run in range(400):
    (low, high) = coverage.accuracy(np.random.default_rng(run), clusters, size, mean, run)[
      "accuracy"
    ]
    held += low <= mean <= high
  assert held / 400 >= 0.87


# All fields of a report that have an interval.


def _walk(node, path=()):
  if isinstance(node, dict):
    if "interval" in node:
      yield "/".join(path)
    for key, value in node.items():
      yield from _walk(value, (*path, str(key)))
  elif isinstance(node, list):
    for at, value in enumerate(node):
      yield from _walk(value, (*path, str(at)))


def _reports():
  """Small reports of the sections, with every optional part."""
  rng = np.random.default_rng(0)
  judged = {"ann": 1.0, "bob": 0.0}
  pairs = [
    Example(
      f"p{i}", (f"It is {i} metres.\n- a\n- b", f"No, {i}."), (1.0, 0.0), "pair",
      source=f"s{i % 2}", conversation=f"c{i}", judges=judged, margin=1.0 + i % 3,
    )
    for i in range(24)
  ]  # fmt: skip
  beats = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
  lists = [
    Example(
      f"l{i}", (f"a{i}", f"bb{i}", f"ccc{i}"), (2.0, 1.0, 0.0), "ranking", conversation=f"l{i}",
      pairs=beats if i % 2 else None,
    )
    for i in range(24)
  ]  # fmt: skip
  outcomes = [
    Example(f"o{i}", ("x", "y", "z"), (1.0, 0.0, float(i % 2)), "outcome", conversation=f"o{i}")
    for i in range(24)
  ]
  ratings = [
    Example(f"r{i}", ("x", "y", "z"), (i % 5, 2.0, 3.0), "score", conversation=f"r{i}")
    for i in range(24)
  ]
  steps = [
    Example(
      f"q{i}", ("a b",), (1.0, float(i % 2)), "step", steps=(("a", "b"),), conversation=f"q{i}"
    )
    for i in range(24)
  ]

  def score(rows):
    return rng.normal(size=len(rows))

  def scores(examples):
    return [rng.normal(size=len(e.labels)) for e in examples]

  for examples in (pairs + lists, outcomes, ratings):
    yield agreement(example_scores(score, examples), examples)
  yield evaluate(scores(steps), steps).report
  yield compare(scores(pairs), scores(pairs), pairs)
  yield controls.controls(score, pairs)
  right = [np.array([1.0 + x, 0.0]) for x in rng.normal(size=24)]
  yield {"pairs": calibration.pairs(right, pairs)}
  label = (rng.random(96) < 0.5).astype(float)
  yield {"labels": calibration.labels(rng.normal(size=96), label, [i // 4 for i in range(96)])}
  yield robustness.robustness(score, pairs)
  members = rng.normal(size=(2, 24, 3))
  yield {"disagreement": drift.errors_by_disagreement(*members, [str(i) for i in range(24)])}
  yield hacking.hacking(score, pairs, resamples=10)
  curve = best_of_n_curve(rng.normal(size=(12, 16)), rng.normal(size=(12, 16)), [1, 2, 4, 8])
  yield {"variants": {"score": curve}}
  yield rules.flagged(score, pairs)
  terms = np.stack([label, np.ones(96)], axis=1)
  figure = published(terms, range(96), lambda s: s[..., 0] / s[..., 1])
  yield {"benchmark": figure, "subsets": {"a": rate(label, range(96))}}

  class Data:
    examples = pairs

  by_member = [[rng.normal(size=(3, 2)) for _ in pairs] for _ in range(2)]
  yield {"shift": separation(by_member, (Data, Data))}


def test_every_interval_of_a_report_is_simulated():
  patterns = {
    re.compile(re.sub(r"\\\*", "[^/]*", re.escape(name)) + "$"): what
    for name, what in coverage.COVERS.items()
  }
  found = {path for report in _reports() for path in _walk(report)}
  assert len(found) > 150
  missing = sorted(path for path in found if path and not any(p.match(path) for p in patterns))
  assert not missing
  simulated = {name for name, _ in (what.partition("/")[::2] for what in patterns.values())}
  assert simulated <= {cell["name"] for cell in coverage.cells()}


@pytest.mark.parametrize("name", sorted({cell["name"] for cell in coverage.cells()}))
def test_every_simulation_runs_on_the_code_as_it_is(name):
  accuracies = {"size": 1, "mean": 0.75} if name in ("accuracy", "paired") else {}
  cell = {"name": name, "clusters": 10, "runs": 1, **accuracies}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(coverage, "_MANY", 200)  # the truth, which takes the most time
    rows = coverage.simulate(cell, 0)
  assert rows
  assert all("passes" in row for row in rows)


def test_the_method_is_named_that_made_the_interval():
  # Very many clusters, of which a few outweigh the rest.
  labels = [*np.repeat(range(6), 200), *range(6, 300)]
  plan = interval.Resampling(labels, resamples=200)
  assert plan.bootstraps
  assert plan.worth < interval.FEW
  values = np.random.default_rng(0).normal(size=len(labels))
  found = plan.interval(values.mean(), [values[at].mean() for at in plan.rows()])
  assert found.method == "Student's t, cluster bootstrap"


@pytest.mark.parametrize(
  "draw",
  [
    lambda **options: interval.cluster_bootstrap([0.0, 1.0], ["a", "b"], **options),
    lambda **options: interval.mean([0.0, 1.0], ["a", "b"], **options),
    lambda **options: interval.Resampling(["a", "b"], **options),
  ],
)
def test_no_resample_is_refused(draw):
  with pytest.raises(ValueError, match="resamples is 0; expected at least 1"):
    draw(resamples=0)
