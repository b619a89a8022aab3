"""The report of comparisons, on scores whose agreement is known by hand."""

import json
import math

import numpy as np
import pytest

from rm_jax.heldout.evaluate import evaluate, pair_report, summary_line, summary_table
from rm_jax.heldout.pointwise import characters
from rm_jax.train.writers import draw_report
from rm_jax.types import Example


def example(i, chosen, rejected, truth=None, source="a"):
  return Example(
    "p", (chosen, rejected), (1.0, 0.0), conversation=f"c{i}", source=source, truth=truth
  )


EXAMPLES = [
  example(0, "long one", "x", (2.0, 1.0)),
  example(1, "y", "longer", (1.0, 3.0)),
  example(2, "same", "size", (1.0, 1.0), "b"),
  example(3, "longest of all", "short", (5.0, 0.0), "b"),
]
SCORES = [np.asarray(s, np.float32) for s in ([1, 0], [2, 1], [0, 0], [0, 3])]


def test_accuracy_baselines_and_best_reachable():
  report = pair_report(SCORES, EXAMPLES)
  assert report["accuracy"] == (1 + 1 + 0.5 + 0) / 4
  assert report["ties"] == 1
  assert report["n"] == 4
  assert report["baselines"] == {"random": 0.5, "longest": 2.5 / 4, "shortest": 1.5 / 4}
  assert report["best_reachable"] == (1 + 0 + 0.5 + 1) / 4
  assert report["paired"]["longest"]["difference"] == report["accuracy"] - 2.5 / 4
  nll = [math.log1p(math.exp(-d)) for d in (1, 1, 0, -3)]
  assert report["loss"] == pytest.approx(sum(nll) / 4)
  assert report["sources"]["b"]["n"] == 2
  rule = report["sources"]["b"]["best_length_rule"]
  assert (rule["rule"], rule["accuracy"], rule["difference"]) == ("longest", 0.75, 0.25 - 0.75)
  assert rule["interval"] is None  # of two conversations
  assert "best reachable 0.625" in summary_line(report)


def test_the_table_has_every_baseline_and_every_source_with_its_length_rule():
  examples = [*EXAMPLES, example(4, "a", "bb", source="alone")]
  table = summary_table(pair_report([*SCORES, np.asarray([1.0, 0.0])], examples)).splitlines()
  # Accuracy (1 + 1 + 0.5 + 0 + 1) / 5, against (1 + 0 + 0.5 + 1 + 0) / 5 of the longest.
  assert "+0.200 [" in next(line for line in table if "to longest, paired" in line)
  assert "0.700 [" in table[0]
  # Source b: credits 0.5 and 0, against 0.5 and 1 of the longest; a single pair has no interval.
  few = "0.250 [no interval: 2 conversations: an interval wants 5] on 2 pairs"
  assert few in next(line for line in table if line.startswith("  b "))
  assert "best length rule: longest 0.750" in next(
    line for line in table if line.startswith("  b ")
  )
  none = "1.000 [no interval: 1 conversation: an interval wants 5] on 1 pairs"
  assert none in next(line for line in table if line.startswith("  alone"))


def test_the_difference_to_a_sources_length_rule_is_paired():
  many = [example(i, "long one", "x", source=s) for i, s in enumerate("ab" * 10)]
  scores = [np.asarray([1.0, 0.0]) if i % 4 else np.asarray([0.0, 1.0]) for i in range(20)]
  report = pair_report(scores, many)
  rule = report["sources"]["a"]["best_length_rule"]
  assert (rule["rule"], rule["accuracy"], rule["difference"]) == ("longest", 1.0, -0.5)
  assert rule["interval"][0] < -0.5 < rule["interval"][1] < 0
  line = next(x for x in summary_table(report).splitlines() if x.startswith("  a "))
  assert "best length rule: longest 1.000, -0.500 [" in line
  del rule["interval"], rule["difference"]  # as reports of earlier versions are
  assert summary_table(report).count("to it") == 1


def test_without_truth_nothing_is_said_of_the_best():
  report = pair_report(SCORES, [*EXAMPLES[:3], example(3, "a", "b")])
  assert "best_reachable" not in report


def test_length_is_what_people_see():
  assert characters("abc") == 3
  assert characters(({"role": "assistant", "content": "ab"}, {"role": "user", "content": "c"})) == 3


def of(kind, labels, count=3, conversation=None, **more):
  """`count` examples of responses 'a', 'bb' ..., each a conversation of its own unless named."""
  responses = tuple("abc"[k] * (k + 1) for k in range(1 if kind == "step" else len(labels)))
  return [
    Example("p", responses, labels, kind, conversation=conversation or f"c{i}", **more)
    for i in range(count)
  ]


TIED = {"pairs": ((0, 0), (0, 0)), "ties": ((0, 1), (1, 0))}
# name: (examples, the scores of each, what the summary line has to say)
DEGENERATE = {
  "nothing": ([], [], "no figure"),
  "all tied": (of("pair", (0.0, 0.0), **TIED), [1, 0], "decided none of 3 comparisons"),
  "even": (of("pair", (0.0, 0.0), pairs=((0, 0.5), (0.5, 0))), [1, 0], "decided none of 3"),
  "rankings that tie": (of("ranking", (1.0, 1.0, 1.0)), [1, 2, 3], "decided none of 9"),
  "one pair": (of("pair", (1.0, 0.0), 1), [1, 0], "1 conversation:"),
  "one conversation": (of("pair", (1.0, 0.0), 9, "c"), [1, 0], "1 conversation:"),
  "one ranking": (of("ranking", (2.0, 1.0, 0.0), 1), [1, 2, 3], "1 conversation:"),
  "equal scores": (of("pair", (1.0, 0.0)), [1, 1], "0.500"),
  "equal scores of rankings": (of("ranking", (2.0, 1.0, 0.0)), [1, 1, 1], "0.500"),
  "one outcome": (of("outcome", (1.0,), 1), [1], "1 conversation:"),
  "outcomes alike": (of("outcome", (1.0,)), [1], "1.000"),
  "one list of outcomes": (of("outcome", (1.0, 0.0), 1), [1, 2], "1 conversation:"),
  "equal ratings": (of("score", (3.0,)), [1], "ratings are alike"),
  "equal ratings of several": (of("score", (3.0, 3.0)), [1, 2], "all ratings are alike"),
  "one rating": (of("score", (3.0,), 1), [1], "alike"),
  "ratings of one conversation": (of("score", (3.0, 4.0), 1), [1, 2], "1 conversation:"),
  "equal scores of ratings": (of("score", (3.0, 4.0)), [1, 1], "all scores are alike"),
  "one solution": (of("step", (1.0, 0.0), 1, steps=(("a", "b"),)), [1, 2], "1 conversation:"),
  "all right": (of("step", (1.0, 1.0), steps=(("a", "b"),)), [1, 2], "1.000"),
  "attributes alike": (
    of("attributes", (0.0,), attributes=({"kind": 1.0},)),
    [[1], [1]],
    "of always the mean 0.000",
  ),
  "no attribute that it knows": (
    of("attributes", (0.0,), attributes=({"other": 1.0},)),
    [[1], [1]],
    "no response is rated on kind, true",
  ),
  "one rated response": (
    of("attributes", (0.0,), 1, attributes=({"kind": 1.0},)),
    [[1], [1]],
    "of always the mean",
  ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_figure_that_the_data_do_not_have_is_none_and_says_why(name, tmp_path):
  examples, one, expected = DEGENERATE[name]
  found = evaluate([np.asarray(one, np.float32)] * len(examples), examples, ("kind", "true"))
  json.dumps(found.report, allow_nan=False)
  table = summary_table(found.report)
  assert expected in table
  assert "nan" not in table
  assert "None" not in table

  def look(value):
    if isinstance(value, dict):
      for none in ("value", "interval"):
        assert value.get(none, 0) is not None or value["why"]
      for inner in value.values():
        look(inner)

  look(found.report)
  line = {"split": "heldout", "step": 1, "loss": found.report["loss"]}
  line |= {k: found.report[k] for k in ("accuracy", "interval") if k in found.report}
  draw_report(tmp_path / "report.png", [line], found.report, found.scores)


def test_what_other_kinds_know_is_the_report_where_no_comparison_is_decided():
  examples = [*of("pair", (0.0, 0.0), **TIED), *of("score", (3.0, 4.0))]
  report = evaluate([np.asarray([1.0, 2.0])] * 6, examples).report
  assert report["kind"] == "score"
  assert report["kinds"]["comparison"]["undecided"] == 3


def test_a_score_that_is_not_finite_is_an_error_that_names_its_example():
  scores = [np.asarray([1.0, 0.0]), np.asarray([1.0, np.inf]), np.asarray([1.0, 0.0])]
  with pytest.raises(ValueError, match=r"c1: its scores are \[1.0, inf\]"):
    evaluate(scores, of("pair", (1.0, 0.0)))


def ranked(i, truth, responses="abc"):
  labels = tuple(float(len(responses) - k) for k in range(len(responses)))
  return Example("p", tuple(responses), labels, "ranking", conversation=f"c{i}", truth=truth)


def test_what_a_choice_gains_in_truth_is_above_a_random_one():
  examples = [ranked(0, (4.0, 1.0, 1.0)), ranked(1, (0.0, 3.0, 6.0)), ranked(2, (2.0, 8.0, 5.0))]
  scores = [np.array([2.0, 1, 0]), np.array([2.0, 1, 0]), np.array([1.0, 1, 0])]  # the last ties
  gain = evaluate(scores, examples).report["gain"]
  assert gain["value"] == pytest.approx((2 - 3 + 0) / 3)
  assert gain["oracle"] == pytest.approx((2 + 3 + 3) / 3)
  assert gain["n"] == 3
  assert "above a random choice: -0.333" in summary_table(evaluate(scores, examples).report)


def test_equal_truths_gain_nothing_whatever_their_mean_is_rounded_to():
  examples = [ranked(i, (0.1, 0.1, 0.1)) for i in range(8)]
  gain = evaluate([np.array([1.0, 1, 1])] * 8, examples).report["gain"]
  assert gain["value"] == pytest.approx(0, abs=1e-15)
  assert "gain" not in evaluate([np.array([1.0, 0, 2])], [ranked(0, None)]).report
  assert "gain" not in evaluate([np.array([1.0, 0])], [example(0, "a", "b", (1.0, 0.0))]).report
