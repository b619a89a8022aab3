"""Reports of rankings, outcomes, ratings and steps, on scores whose agreement is known by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from rm_jax.audit.comparisons import compared
from rm_jax.data.feedback import comparisons_of, win_rates
from rm_jax.heldout.evaluate import evaluate, judged, summary_table
from rm_jax.heldout.pointwise import best_author, best_threshold
from rm_jax.metrics.correlation import kendall
from rm_jax.reward.score import solution_scores
from rm_jax.types import Example


def example(i, responses, labels, kind, **more):
  return Example("p", responses, labels, kind, conversation=f"c{i}", **more)


def test_a_majority_decides_and_what_is_undecided_is_counted():
  ordered = example(0, ("a", "b", "c"), (2.0, 1.0, 1.0), "ranking")
  assert judged(ordered) == ([(0, 1), (0, 2)], 1)
  asked = example(
    0,
    ("a", "b", "c"),
    (0.0, 0.0, 0.0),
    "ranking",
    pairs=((0, 2, 1), (1, 0, 0), (1, 0, 0)),
    ties=((0, 0, 0), (0, 0, 1), (0, 1, 0)),
  )
  assert judged(asked) == ([(0, 1)], 2)  # a and c have equal votes, b and c a tie


def test_equal_sums_of_probabilities_are_undecided_in_any_order():
  said = [[0, 1, 0], [0, 1, 0.8], [0, 1, 0.9], [0, 1, 0.3]]
  for order in itertools.permutations(said):
    pairs, ties = comparisons_of(list(order), 2)
    one = example(0, ("a", "b"), win_rates(pairs, ties), "ranking", pairs=pairs, ties=ties)
    assert judged(one) == ([], 1)
    assert compared(one) == []
  pairs, ties = comparisons_of([*said, [0, 1, 0.51], [1, 0, 0.5]], 2)
  one = example(0, ("a", "b"), win_rates(pairs, ties), "ranking", pairs=pairs, ties=ties)
  assert judged(one) == (compared(one), 0) == ([(0, 1)], 0)


def test_rankings():
  examples = [
    example(0, ("a", "bb", "ccc"), (3.0, 2.0, 1.0), "ranking"),
    example(1, ("a", "bb", "ccc"), (1.0, 2.0, 3.0), "ranking"),
  ]
  found = evaluate([np.asarray([3.0, 1.0, 2.0]), np.asarray([0.0, 0.0, 1.0])], examples)
  report = found.report
  # Of the first list 2 of 3 are right; of the second 2 and half of the one with equal scores.
  assert report["accuracy"] == pytest.approx((2 + 2.5) / 6)
  assert (report["n"], report["ties"], report["undecided"]) == (6, 1, 0)
  assert report["baselines"]["longest"] == 0.5
  assert report["kendall"]["value"] == pytest.approx((1 / 3 + 2 / math.sqrt(2 * 3)) / 2)
  assert [name for name, _ in found.scores] == ["chosen", "rejected"]


def compared_list(count, said):
  pairs, ties = comparisons_of(said, count)
  labels = win_rates(pairs, ties)
  return example(0, tuple("abcd"[:count]), labels, "ranking", pairs=pairs, ties=ties)


def test_kendall_is_over_what_was_compared():
  alone = compared_list(3, [[0, 1, 1.0]])
  for scores, tau in (((2, 1, 1.5), 1), ((2, 1, 5), 1), ((1, 2, 5), -1), ((1, 1, 5), 0)):
    assert evaluate([np.asarray(scores, float)], [alone]).report["kendall"]["value"] == tau
  # The win rates are 1/2, 3/4 and 0. Of the two pairs that were compared the first is discordant.
  some = compared_list(3, [[0, 1, "tie"], [1, 2, 1.0]])
  assert evaluate([np.asarray([3.0, 2.0, 1.0])], [some]).report["kendall"]["value"] == (1 - 1) / 2
  # The first two scores are equal: one concordant pair of √(1 · 2).
  tau = evaluate([np.asarray([2.0, 2.0, 1.0])], [some]).report["kendall"]["value"]
  assert tau == pytest.approx(1 / math.sqrt(2))
  # A list in which nothing was decided has none.
  tied = compared_list(3, [[0, 1, "tie"]])
  found = evaluate([np.asarray([0.0, 2.0, 1.0])], [tied]).report["kendall"]
  assert (found["value"], found["undefined"]) == (None, 1)
  # Where all were compared, it is that of the whole list.
  whole = compared_list(4, [[i, j, float(i < j)] for i in range(4) for j in range(i)])
  scores = np.asarray([1.0, 1.0, 0.0, 3.0])
  found = evaluate([scores], [whole]).report["kendall"]["value"]
  assert found == kendall(scores, whole.labels)


def test_outcomes_and_best_of_n():
  examples = [
    example(0, ("a", "b"), (1.0, 0.0), "outcome"),
    example(1, ("a", "b"), (0.0, 1.0), "outcome"),
    example(2, ("a", "b"), (0.0, 0.0), "outcome"),
  ]
  scores = [np.asarray(s) for s in ([2.0, -1.0], [1.0, 1.0], [-2.0, -3.0])]
  report = evaluate(scores, examples).report
  assert report["accuracy"] == 5 / 6
  assert report["base_rate"] == pytest.approx(2 / 6)
  assert report["baselines"] == {"random": 0.5, "most_frequent": pytest.approx(4 / 6)}
  # AUROC of good 2 and 1 over bad -1, 1, -2 and -3: (4 + 3.5) / 8.
  assert report["auroc"]["value"] == pytest.approx(7.5 / 8)
  nll = [math.log1p(math.exp(x)) for x in (-2, -1, 1, -1, -2, -3)]
  assert report["loss"] == pytest.approx(sum(nll) / 6)
  best = report["best_of"]
  assert best["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
  same = dict.fromkeys(("random", "longest", "shortest"), pytest.approx(1 / 3))
  assert best["baselines"] == same | {"oracle": pytest.approx(2 / 3)}
  table = summary_table(report)
  assert "best of: held-out accuracy 0.500" in table
  assert "on 3 questions" in table


def test_good_and_bad_responses_of_one_prompt():
  examples = [
    example(0, ("aaa", "b", "cc"), (1.0, 0.0, 0.0), "outcome"),
    example(1, ("a", "bb"), (0.0, 1.0), "outcome"),
    example(2, ("a", "b"), (0.0, 0.0), "outcome"),  # no pair
  ]
  scores = [np.asarray(s) for s in ([1.0, 2.0, 1.0], [-7.0, -5.0], [9.0, 9.0])]
  report = evaluate(scores * 5, examples * 5).report
  pairs = report["best_of"]["pairs"]
  # Of the first prompt 0 and a tie, of the second 1; the longer one is good in all.
  assert (pairs["accuracy"], pairs["n"], pairs["ties"]) == (0.5, 15, 5)
  rule = pairs["best_rule"]
  assert (rule["rule"], rule["accuracy"], rule["difference"]) == ("longer", 1.0, -0.5)
  assert "right above wrong, within a question: 0.500 [" in summary_table(report)
  assert "on 15 pairs; best rule: longer 1.000, -0.500 [" in summary_table(report)
  picks = report["best_of"]["baselines"]
  assert (picks["longest"], picks["shortest"]) == (2 / 3, 0.0)
  alone = evaluate([np.zeros(2)] * 2, [examples[2], examples[2]]).report["best_of"]["pairs"]
  assert (alone["accuracy"], alone["n"]) == (None, 0)
  turned = [dataclasses.replace(e, labels=tuple(1 - y for y in e.labels)) for e in examples]
  rule = evaluate(scores, turned).report["best_of"]["pairs"]["best_rule"]
  assert (rule["rule"], rule["accuracy"]) == ("shorter", 1.0)


def test_the_best_rule_of_length_stands_beside_auroc():
  # The longer response is good but for the second question's; the model has all right.
  texts = [("long one", "x"), ("y", "longer"), ("z", "long"), ("also long", "w")]
  labels = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
  examples = [
    example(i, *both, "outcome") for i, both in enumerate(zip(texts, labels, strict=True))
  ]
  scores = [2 * np.asarray(y) - 1 for y in labels]
  report = evaluate(scores * 5, examples * 5).report
  rule = report["auroc"]["best_rule"]
  # Good lengths 8, 1, 4, 9 and bad ones 1, 6, 1, 1: 4 + 1.5 + 3 + 4 of 16.
  assert (rule["rule"], rule["auroc"]) == ("longer", 12.5 / 16)
  assert rule["difference"] == 1 - 12.5 / 16
  turned = [(y[1], y[0]) for y in labels]
  examples = [
    example(i, *both, "outcome") for i, both in enumerate(zip(texts, turned, strict=True))
  ]
  found = evaluate(scores, examples).report["auroc"]["best_rule"]
  assert (found["rule"], found["auroc"], found["difference"]) == ("shorter", 12.5 / 16, -12.5 / 16)
  assert "auroc 1.000 [" in summary_table(report)
  assert "; best rule: longer 0.781, +0.219 [" in summary_table(report)
  del report["auroc"]["best_rule"]  # as reports of earlier versions are
  assert "longer 0.781" not in summary_table(report)
  alike = evaluate([np.zeros(1)], [example(0, ("a",), (1.0,), "outcome")]).report["auroc"]
  assert (alike["value"], alike["why"]) == (None, "all labels are alike")


def test_the_best_rule_of_steps_knows_their_place():
  labels = [(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 0.0)]
  steps = [("aaa", "b", "cccc"), ("a", "bb", "cc"), ("a", "b", "c")]
  examples = [
    example(i, ("x",), y, "step", steps=(texts,))
    for i, (y, texts) in enumerate(zip(labels, steps, strict=True))
  ]
  rule = evaluate([np.zeros(3)] * 3, examples).report["auroc"]["best_rule"]
  # Right steps are at 0, 0, 1, 0, 1 and wrong ones at 1, 2, 2, 2.
  assert (rule["rule"], rule["auroc"]) == ("earlier", 19 / 20)
  assert rule["difference"] == 1 / 2 - 19 / 20


def test_best_of_n_beside_votes_and_authors():
  examples = [
    # Two of three answer 7, which is right.
    example(
      0, ("a", "b", "c"), (1.0, 0.0, 1.0), "outcome", authors=tuple("xyz"), answers=("7", "8", "7")
    ),
    # Three different answers, of which the last is right.
    example(
      1, ("a", "b", "c"), (0.0, 0.0, 1.0), "outcome", authors=tuple("zyx"), answers=("1", "2", "3")
    ),
  ]
  scores = [np.asarray([-3.0, 2.0, -3.0]), np.asarray([0.0, 0.0, 0.1])]
  best = evaluate(scores, examples).report["best_of"]
  assert best["accuracy"] == 0.5
  assert best["baselines"] == {
    "random": pytest.approx((2 / 3 + 1 / 3) / 2),
    "longest": pytest.approx((2 / 3 + 1 / 3) / 2),
    "shortest": pytest.approx((2 / 3 + 1 / 3) / 2),
    "oracle": 1.0,
    "majority": pytest.approx((1 + 1 / 3) / 2),
    "best_author": 1.0,
  }
  assert best["best_author"] == "x"
  # First: 2 σ(-3) < σ(2), so that 8 wins and is wrong. Second: the highest score is the right one.
  assert best["vote"] == 0.5
  assert set(best["paired"]) == {"random", "longest", "shortest", "majority", "best_author"}


def test_several_responses_of_an_author_count_alike():
  for labels in ((0.0, 1.0), (1.0, 0.0)):
    alone = example(0, ("a", "b"), labels, "outcome", authors=("m", "m"))
    assert best_author([alone]) == ("m", [0.5])
  examples = [
    example(0, ("a", "b", "c"), (1.0, 0.0, 0.0), "outcome", authors=("m", "m", "n")),
    example(1, ("a", "b", "c"), (0.0, 1.0, 1.0), "outcome", authors=("m", "n", "n")),
  ]
  # m is right in 1/2 and 0 of its responses, n in 0 and 1.
  assert best_author(examples) == ("n", [0.0, 1.0])
  best = evaluate([np.zeros(3)] * 2, examples).report["best_of"]
  assert best["baselines"]["best_author"] == 0.5


def test_steps_and_the_first_error():
  def solution(i, labels):
    steps = tuple(f"s{j}" for j in range(len(labels)))
    return example(i, ("x",), labels, "step", steps=(steps,))

  examples = [solution(0, (1.0, 0.0)), solution(1, (1.0, 1.0, 1.0)), solution(2, (1.0, 1.0, 0.0))]
  scores = [np.asarray(s) for s in ([1.0, -1.0], [1.0, 2.0, 3.0], [1.0, -1.0, -1.0])]
  report = evaluate(scores, examples).report
  assert report["n"] == 8
  assert report["accuracy"] == 7 / 8
  first = report["first_error"]
  assert first["accuracy"] == pytest.approx(2 / 3)
  assert (first["on_erroneous"], first["on_sound"]) == (0.5, 1.0)
  assert first["baselines"] == {
    "last_step": pytest.approx(2 / 3),
    "no_error": pytest.approx(1 / 3),
    "random_step": pytest.approx((1 / 3 + 1 / 4 + 1 / 4) / 3),
  }
  # Solutions without an error: the second. Each aggregation scores it above both others.
  assert {how: one["value"] for how, one in report["solution_auroc"].items()} == {
    "min": 1,
    "product": 1,
    "mean": 1,
    "last": 1,
  }
  table = summary_table(report)
  assert "first error: held-out accuracy 0.667" in table
  assert "on 3 solutions" in table


def test_a_score_of_zero_is_half_right():
  labels = (1.0, 1.0, 1.0, 0.0)
  examples = [example(i, ("a",), (y,), "outcome") for i, y in enumerate(labels)]
  report = evaluate([np.zeros(1)] * 4, examples).report
  assert (report["accuracy"], report["ties"], report["auroc"]["value"]) == (0.5, 4, 0.5)
  assert report["paired"]["random"]["difference"] == 0


def test_a_step_of_score_zero_is_as_likely_the_first_error_as_not():
  labels = [(1.0, 0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
  examples = [example(i, ("-",), y, "step", steps=(("-",) * len(y),)) for i, y in enumerate(labels)]
  scores = [np.asarray(s) for s in ([1.0, 0.0, -1.0], [0.0, -1.0], [0.0, -0.0], [0.0, -1.0])]
  report = evaluate(scores, examples).report
  # Of nine steps five have score 0; of the other four all are right but the last.
  assert (report["accuracy"], report["ties"]) == ((5 / 2 + 3) / 9, 5)
  first = report["first_error"]
  assert first["accuracy"] == (1 / 2 + 1 / 2 + 1 / 4 + 1 / 2) / 4
  assert (first["on_erroneous"], first["on_sound"]) == (1 / 2, 1 / 4)


def test_a_threshold_is_taken_from_the_other_half():
  # All scores are above 0: wrong steps have 1 to 2, right ones 3 to 4.
  rng = np.random.default_rng(0)
  labels = [(1.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0), (1.0, 1.0)] * 10
  examples = [example(i, ("-",), y, "step", steps=(("-",) * len(y),)) for i, y in enumerate(labels)]
  scores = [np.where(np.asarray(y) > 0.5, 3.0, 1.0) + rng.random(len(y)) for y in labels]
  first = evaluate(scores, examples).report["first_error"]
  assert (first["accuracy"], first["on_erroneous"], first["on_sound"], first["f1"]) == (
    0.5,
    0,
    1,
    0,
  )
  tuned = first["tuned"]
  assert (tuned["accuracy"], tuned["f1"], tuned["n"]) == (1, 1, 40)
  assert all(2 < threshold < 3 for threshold in tuned["thresholds"])
  assert "other half's threshold: 1.000" in summary_table(evaluate(scores, examples).report)
  # Scores that say nothing have no more than their best rule.
  blind = [rng.random(len(y)) for y in labels]
  assert evaluate(blind, examples).report["first_error"]["tuned"]["accuracy"] < 0.6
  sound = [e for e in examples if min(e.labels) > 0.5]
  found = evaluate([np.ones(len(e.labels)) for e in sound], sound).report["first_error"]
  assert found["f1"] is None
  assert (found["tuned"]["accuracy"], "half of the solutions" in found["tuned"]["why"]) == (
    None,
    True,
  )


def test_the_best_threshold_is_that_of_every_one_tried():
  rng = np.random.default_rng(1)
  scores = [rng.normal(size=rng.integers(1, 5)).round(1) for _ in range(60)]
  truth = np.asarray([rng.integers(-1, len(s)) for s in scores])
  cuts = np.arange(-4, 4, 0.01) + 0.005

  def f1(cut):
    firsts = [next((i for i, x in enumerate(s) if x < cut), -1) for s in scores]
    right = np.asarray(firsts) == truth
    a, b = right[truth >= 0].mean(), right[truth < 0].mean()
    return 2 * a * b / (a + b) if a + b else 0.0

  best = best_threshold(scores, truth)
  assert f1(best) == pytest.approx(max(map(f1, cuts)))
  assert best_threshold(scores, np.full(60, -1)) is None


def test_a_solutions_score_by_each_rule():
  # A right solution of three middling steps; one that breaks after a good start; one almost right.
  steps = [[1.0, 1.0, 1.0], [5.0, -2.0], [0.0, 3.0]]
  labels = [(1.0, 1.0, 1.0), (1.0, 0.0), (1.0, 0.0)]
  examples = [example(i, ("-",), y, "step", steps=(("-",) * len(y),)) for i, y in enumerate(labels)]
  scores = [np.asarray(s, np.float32) for s in steps]

  def log_sigmoid(x):
    return -math.log1p(math.exp(-x))

  expected = {
    "min": [1, -2, 0],
    "product": [sum(map(log_sigmoid, s)) for s in steps],
    "mean": [1, 1.5, 1.5],
    "last": [1, -2, 3],
  }
  for how, values in expected.items():
    np.testing.assert_allclose(solution_scores(scores, how), values, rtol=1e-6)
  found = evaluate(scores, examples).report["solution_auroc"]
  # How many of the two wrong solutions each aggregation scores below the right one, whose product
  # is -0.940; theirs are -2.13 and -0.742.
  assert {how: one["value"] for how, one in found.items()} == {
    "min": 1,
    "product": 0.5,
    "mean": 0,
    "last": 0.5,
  }
  table = summary_table(evaluate(scores, examples).report)
  assert "solution auroc, product 0.500" in table


def test_scores():
  examples = [example(i, ("a",), (float(y),), "score") for i, y in enumerate((1, 2, 3, 4))]
  report = evaluate([np.asarray([s]) for s in (1.0, 2.0, 4.0, 3.0)], examples).report
  assert report["spearman"]["value"] == pytest.approx(0.8)
  assert report["loss"] == 0.5
  assert report["baselines"]["mean"] == 1.25
  assert "Spearman correlation 0.800" in summary_table(report)


def test_attributes():
  ratings = [{"a": 1.0, "b": 0.0}, {"a": 2.0}, {"a": 3.0, "b": 2.0}, {"a": 4.0, "c": 1.0}]
  examples = [
    example(i, ("-",), (0.0,), "attributes", attributes=(r,)) for i, r in enumerate(ratings)
  ]
  a, b = (1.0, 2.0, 4.0, 3.0), (1.0, 9.0, 1.0, 9.0)
  scores = [np.asarray(s)[:, None] for s in zip(a, b, (0.0,) * 4, strict=True)]
  found = evaluate(scores, examples, ("a", "b", "unrated"))
  report = found.report
  assert report["n"] == 4
  assert set(report["attributes"]) == {"a", "b"}
  one, two = report["attributes"].values()
  assert one["spearman"]["value"] == pytest.approx(0.8)
  assert (one["n"], one["loss"], one["baselines"]["mean"]) == (4, 0.5, 1.25)
  assert (two["n"], two["loss"], two["baselines"]["mean"]) == (2, 1.0, 1.0)
  assert two["spearman"]["value"] is None  # the scores are all ties
  assert report["loss"] == pytest.approx((4 * 0.5 + 2 * 1.0) / 6)
  assert report["baselines"]["mean"] == pytest.approx((4 * 1.25 + 2 * 1.0) / 6)
  assert [name for name, _ in found.scores] == ["rated high", "rated low"]
  table = summary_table(report)
  assert "a: Spearman correlation 0.800 [" in table
  assert "b: mean square error 1.000, of always the mean 1.000, on 2" in table


def test_several_kinds_stand_beside_one_another():
  examples = [
    example(0, ("a", "b"), (1.0, 0.0), "pair"),
    example(1, ("a", "b"), (1.0, 0.0), "pair"),
    example(2, ("a",), (1.0,), "outcome"),
    example(3, ("a",), (0.0,), "outcome"),
  ]
  scores = [np.asarray(s) for s in ([1.0, 0.0], [1.0, 2.0], [1.0], [2.0])]
  report = evaluate(scores, examples).report
  assert report["kind"] == "comparison"
  assert report["accuracy"] == 0.5
  assert report["kinds"]["outcome"]["accuracy"] == 0.5
  assert "outcome: held-out accuracy 0.500" in summary_table(report)


def test_auroc_of_three_bad_among_forty_has_no_interval():
  rng = np.random.default_rng(0)
  outcomes = [example(i, ("a",), (float(i > 2),), "outcome") for i in range(40)]
  steps = [
    Example("p", ("ab",), (1.0, float(i > 2)), "step", steps=(("a", "b"),), conversation=f"c{i}")
    for i in range(40)
  ]
  reports = [
    evaluate([rng.normal(size=len(e.labels)) for e in some], some).report
    for some in (outcomes, steps)
  ]
  solutions = reports[1]["solution_auroc"]
  for found in (reports[0]["auroc"], reports[1]["auroc"], *solutions.values()):
    assert found["interval"] is None
    assert found["why"] == "of the rarer class, 3 conversations: an interval wants 5"
