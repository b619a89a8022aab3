"""The report on choices among several solutions: by hand, and on data with nothing to choose."""

import json

import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.heldout.best_of import (
  Reading,
  best_of,
  by_score,
  by_steps,
  default_ks,
  problems,
  rows_of,
  table,
)
from rm_jax.types import Example


def outcomes(i, responses, labels, **other):
  return Example(f"p{i}", tuple(responses), tuple(labels), "outcome", conversation=f"p{i}", **other)


def solved(answers, labels, i=0):
  """A problem whose solutions have two lines and these answers."""
  responses = [f"line {i} {n}\n\nA: {a}" for n, a in enumerate(answers)]
  return outcomes(i, responses, labels)


def test_candidates_of_a_problem_are_collected():
  alone = [
    Example("q", (text,), (label,), "outcome", source="s", conversation="q", origin=f"f:{n}")
    for n, (text, label) in enumerate([("one\nA: 4", 0.4), ("two\r\n #### 5.0 ", 0.6)])
  ]
  pair = Example("r", ("a", "b"), (1.0, 0.0))
  single = outcomes(7, ["x"], [1.0])
  other = outcomes(8, ["x\n", "x", "\\boxed{1}"], [1, 0, 1], answers=("3.", None, "30%"))
  found, left_out = problems([alone[0], pair, single, other, alone[1]])
  assert left_out == {"other_feedback": 1, "one_candidate": 1}
  first, second = found
  assert first.places == ((0, 0), (4, 0))
  assert first.example.responses == ("one\nA: 4", "two\r\n #### 5.0 ")
  assert first.example.answers == ("4", "5")
  assert first.right.tolist() == [0, 1]
  assert first.steps == (("one", "A: 4"), ("two", "#### 5.0"))
  assert second.example.answers == ("3", None, "30%")
  assert second.places == ((3, 0), (3, 1), (3, 2))
  in_steps = first.in_steps()
  assert (in_steps.kind, in_steps.steps, len(in_steps.labels)) == ("step", first.steps, 4)


def test_solutions_judged_by_steps_are_right_where_all_steps_are():
  steps = [(("a", "b"), (1.0, 0.0)), (("a", "# Answer\n\n7"), (1.0, 1.0))]
  examples = [
    Example("q", ("\n".join(texts),), labels, "step", conversation="q", steps=(texts,))
    for texts, labels in steps
  ]
  (found,), left_out = problems(examples)
  assert left_out == {}
  assert found.right.tolist() == [0, 1]
  assert found.steps == (("a", "b"), ("a", "# Answer\n\n7"))
  # The solution with an error may have stopped at it: an answer would tell the label.
  assert found.example.answers == (None, None)
  assert "majority" not in best_of([found], {})["k"]["2"]["rules"]


def test_messages_have_steps_unless_a_response_is_of_several():
  def said(text):
    return {"role": "assistant", "content": text}

  asked = ({"role": "user", "content": "q"},)
  one = Example(asked, ((said("a\nb"),), (said("c"),)), (1.0, 0.0), "outcome")
  two = Example(asked, ((said("a\nb"),), (said("c"), said("A: 2"))), (1.0, 0.0), "outcome")
  first, second = problems([one, two])[0]
  assert first.steps == (("a", "b"), ("c",))
  assert first.example.conversation == "q"
  assert second.steps is None
  assert second.example.answers == (None, "2")
  with pytest.raises(ValueError, match="no steps"):
    second.in_steps()


def planted(count=8):
  """Problems of four: two agree on a wrong answer, two right ones agree in half of the problems."""
  examples = [
    solved(["1", "1", "2", "2.0" if i % 2 else "3"], [0, 0, 1, i % 2], i) for i in range(count)
  ]
  return problems(examples)[0]


def test_a_report_by_hand():
  asked = planted()
  good = [np.asarray([0.0, 0.1, 5.0, 4.0]) for _ in asked]
  bad = [-one for one in good]
  report = best_of(asked, by_score("good", good) | by_score("bad", bad), ks=[4, 1, 2])
  assert list(report["k"]) == ["1", "2", "4"]
  json.dumps(report, allow_nan=False)
  at = report["k"]["4"]
  rules = {name: one["accuracy"] for name, one in at["rules"].items()}
  assert rules == {
    "random": pytest.approx((2 / 4 + 1 / 4) / 2),
    "majority": pytest.approx((1 / 2 + 0) / 2),  # 1 ties with 2 in every other problem
    "first": 0.0,
    "longest": pytest.approx((1.0 + 1 / 4) / 2),  # '2.0' is the longest, else all are alike
    "shortest": pytest.approx((1 / 3 + 1 / 4) / 2),
    "oracle": 1.0,
  }
  assert at["rules"]["majority"]["shared"] == 0.5
  assert {name: set(one["paired"]) for name, one in at["rules"].items()} == {
    name: {"random", "majority"} - {name} for name in rules
  }
  assert at["readings"]["good"]["pick"]["accuracy"] == 1.0
  assert at["readings"]["bad"]["pick"]["accuracy"] == 0.0
  # σ(5) beats σ(0) + σ(0.1)? 0.993 < 1.025: no; with a second vote it does.
  assert at["readings"]["good"]["vote"]["accuracy"] == 0.5
  paired = at["readings"]["good"]["pick"]["paired"]
  assert paired["random"]["difference"] == pytest.approx(1 - 3 / 8)
  assert paired["majority"]["difference"] == pytest.approx(3 / 4)
  low, high = paired["majority"]["interval"]
  assert low < 3 / 4 < high
  # Of two: right unless both are of the first two, 1/6; or one right of 3 such pairs of six.
  oracle = report["k"]["2"]["rules"]["oracle"]["accuracy"]
  assert oracle == pytest.approx((5 / 6 + 3 / 6) / 2)
  assert report["k"]["2"]["readings"]["good"]["pick"]["accuracy"] == pytest.approx(oracle)
  for one in (*report["k"]["1"]["rules"].values(), report["k"]["1"]["readings"]["bad"]["pick"]):
    assert one["accuracy"] == pytest.approx(3 / 8)
  assert report["answers"] == {"none": 0, "text": 0, "problems": 8}
  assert report["says"][0].startswith("right among 4 candidates of 8 problems: random 0.375 [")
  assert report["says"][1].startswith("good: 1.000 [")
  text = table(report)
  assert len(text.splitlines()) == 1 + len(rows_of(at)) == 11
  assert "good, votes  0.500 [" in text


def test_steps_are_read_in_all_ways():
  asked = planted()
  # The least step of the third candidate is the best, the last step of the first is.
  steps = [[np.asarray(s) for s in ([-9, 8], [-2, 0], [1, 1], [-1, -1])] for _ in asked]
  readings = by_steps("prm", steps)
  assert list(readings) == [
    *(f"prm, {how}" for how in ("min", "product", "mean", "last")),
    "prm, step by step",
  ]
  report = best_of(asked, readings, main=["prm, last"])
  at = report["k"]["4"]["readings"]
  right = {name.removeprefix("prm, "): one["pick"]["accuracy"] for name, one in at.items()}
  assert right == {"min": 1.0, "product": 1.0, "mean": 1.0, "last": 0.0, "step by step": 1.0}
  assert at["prm, step by step"]["pick"]["choices"] == 1.0  # no two begin alike
  assert "vote" not in at["prm, step by step"]
  # Log-probabilities weigh as they are: 2 votes of e^-9 and e^-2.1 against e^-0.6.
  assert readings["prm, product"].log_weights is readings["prm, product"].scores
  assert report["prefixes"] == {"problems": 8, "alike": 0, "first_steps": 4.0}
  assert [line.split(":")[0] for line in report["says"]] == [
    "right among 4 candidates of 8 problems",
    "prm, last",
    "step by step",
  ]


def test_solutions_that_differ_in_white_space_alone_are_the_same():
  one = outcomes(0, ["a x\nb", "a  x \n b", "c"], [1, 1, 0])
  two = outcomes(1, ["a\nb", "a\nc", "d"], [1, 1, 0])
  report = best_of(problems([one, two])[0], {})
  assert report["prefixes"] == {"problems": 2, "alike": 1, "first_steps": 2.0}


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_all_right_or_all_wrong_is_counted(label):
  asked, _ = problems([solved(["1", "2"], [label, label], i) for i in range(6)])
  report = best_of(asked, by_score("m", [np.asarray([1.0, 2.0])] * 6))
  assert (report["all_right"], report["all_wrong"]) == (6 * label, 6 * (1 - label))
  at = report["k"]["2"]
  for one in (*at["rules"].values(), at["readings"]["m"]["pick"], at["readings"]["m"]["vote"]):
    assert one["accuracy"] == label
    assert one["interval"][1] - one["interval"][0] > 0.1  # six problems are few
  assert at["readings"]["m"]["pick"]["paired"]["random"]["difference"] == 0


def test_without_answers_there_are_no_votes():
  asked, _ = problems([outcomes(i, ["x", "y"], [1, 0]) for i in range(6)])
  report = best_of(asked, by_score("m", [np.asarray([1.0, 0.0])] * 6))
  assert report["answers"] == {"none": 12, "text": 0, "problems": 0}
  at = report["k"]["2"]
  assert "majority" not in at["rules"]
  assert set(at["readings"]["m"]) == {"pick"}
  assert set(at["readings"]["m"]["pick"]["paired"]) == {"random"}
  assert "majority" not in report["says"][0]


def test_fewer_than_five_conversations_give_no_interval():
  asked = planted(4)
  report = best_of(asked, {})
  one = report["k"]["4"]["rules"]["majority"]
  assert one["interval"] is None
  assert "conversations" in one["why"]
  assert report["says"] == [
    "right among 4 candidates of 4 problems: random 0.375, majority 0.250, oracle 1.000"
  ]


def test_all_k_are_of_the_same_problems():
  asked, _ = problems([solved("12345"[: 2 + i], [1] + [0] * (1 + i), i) for i in range(4)])
  assert default_ks([2, 3, 4, 5]) == [1, 2]
  assert default_ks([2, *[8] * 20]) == [1, 2, 4, 8]
  assert default_ks([7, 7]) == [1, 2, 4, 7]
  # Nine in ten have four, in ten problems as in twenty; of eleven with two of two they do not.
  assert default_ks([2, *[4] * 9]) == [1, 2, 4]
  assert default_ks([2, 2, *[4] * 18]) == [1, 2, 4]
  assert default_ks([2, 2, *[4] * 9]) == [1, 2]
  report = best_of(asked, by_score("m", [np.arange(len(p.right)) for p in asked]), ks=[2, 4])
  assert (report["problems"], report["fewer"]) == (2, 2)
  assert report["k"]["2"]["rules"]["random"]["n"] == 2
  assert report["k"]["2"]["rules"]["random"]["accuracy"] == pytest.approx((1 / 4 + 1 / 5) / 2)
  assert report["candidates"] == {"all": 9, "fewest": 4, "most": 5}
  with pytest.raises(InputError, match="k is 6 and a problem has at most 5 candidates"):
    best_of(asked, {}, ks=[1, 6])
  with pytest.raises(InputError, match="k is \\[0\\] of 4 problems; expected 1 or more"):
    best_of(asked, {}, ks=[0])
  with pytest.raises(InputError, match="of 0 problems"):
    best_of([], {})


def test_the_best_author_is_named_where_all_have_the_same():
  examples = [
    outcomes(i, ["A: 1", "A: 2"], [i % 2, 1], authors=("x", "y")[:: 1 if i % 2 else -1])
    for i in range(6)
  ]
  report = best_of(problems(examples)[0], {}, ks=[1, 2])
  best = report["k"]["2"]["rules"]["best_author"]
  assert (best["author"], best["accuracy"]) == ("x", 1.0)
  assert "best_author" not in report["k"]["1"]["rules"]
  alike = [outcomes(i, ["A: 1", "A: 2"], [i % 2, 1], authors=("x", "x")) for i in range(6)]
  best = best_of(problems(alike)[0], {}, ks=[2])["k"]["2"]["rules"]["best_author"]
  assert best["accuracy"] == (1 / 2 + 1) / 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_an_error(value):
  asked = planted(6)
  scores = [np.zeros(4) for _ in asked]
  scores[3] = np.asarray([0.0, value, 0.0, 0.0])
  with pytest.raises(InputError, match=r"p3: m scores it .*; expected finite"):
    best_of(asked, by_score("m", scores))
  steps = [[one] * 4 for one in scores]
  with pytest.raises(InputError, match="p3: m, step by step scores it"):
    best_of(asked, {"m, step by step": Reading(steps=steps)})
