"""Judgements read from a file, agreement, reliability, and each annotator's biases."""

import json

import numpy as np
import pytest

from rm_jax.curate.annotators import (
  MISSING,
  Judgements,
  annotator_report,
  biases,
  read_judgements,
  reliability,
  table,
)
from rm_jax.data.report import DataError
from tests.curate.planted import judged

ROW = {"q": "why", "response1": "a b c", "response2": "d", "x": 1, "y": 2}


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_read(tmp_path):
  rows = [
    ROW,
    {**ROW, "x": None, "y": 0},
    {**ROW, "x": "2", "y": 1.0, "response2": "- d\n- **e**"},
    {**ROW, "x": 3},  # 4: not one of the named values
    {**ROW, "x": True},  # 5: nor is true
    {**ROW, "response1": None},  # 6
    {**ROW, "x": "", "y": None},  # 7
    {k: v for k, v in ROW.items() if k != "x"},
  ]
  j = read_judgements(write(tmp_path / "j.jsonl", rows), ["x", "y"], prompt=["q"])
  assert j.labels.tolist() == [[0, 1], [MISSING, 2], [1, 0], [MISSING, 1]]
  assert j.words.tolist() == [[3, 1], [3, 1], [3, 2], [3, 1]]
  assert j.formatting.tolist() == [[0, 0], [0, 0], [0, 3], [0, 0]]
  assert len(set(j.clusters)) == 1
  assert [(e.origin.rpartition(":")[2], e.reason) for e in j.unread] == [
    ("4", "unknown_judgement"),
    ("5", "unknown_judgement"),
    ("6", "wrong_type"),
    ("7", "no_annotation"),
  ]
  assert j.rows == 8
  named = [{**ROW, "x": "A", "y": "tie"}, {**ROW, "x": "B", "y": "B"}]
  j = read_judgements(write(tmp_path / "n.jsonl", named), ["x", "y"], values=["A", "B", "tie"])
  assert j.labels.tolist() == [[0, 2], [1, 1]]
  assert len(set(j.clusters)) == 2  # Each row is a cluster of its own.


def test_read_refuses(tmp_path):
  path = write(tmp_path / "j.jsonl", [ROW, ROW])
  with pytest.raises(DataError, match=r"no row has \['z'\]; its columns are \['q'"):
    read_judgements(path, ["x", "z"])
  with pytest.raises(DataError, match=r"no row has \['left', 'p'\]"):
    read_judgements(path, ["x"], first="left", prompt=["p"])
  with pytest.raises(DataError, match="each once"):
    read_judgements(path, ["x", "x"])
  with pytest.raises(DataError, match="three that differ"):
    read_judgements(path, ["x"], values=["1", "1", "0"])
  with pytest.raises(DataError, match="not one row could be kept"):
    read_judgements(path, ["x", "y"], values=["7", "8", ""])


def test_the_biased_annotator_is_found_and_no_other():
  """The planted slope is 1.5 at skill 2. The fit does not see the quality, so its slope is smaller:
  to leave out a cause of variance 4 divides it by about sqrt(1 + 4 · 0.346) = 1.54, to 0.97."""
  j = judged(n=2000)
  found = biases(j)
  for name in ("plain1", "plain2", "plain3"):
    assert found[name]["length"]["beyond_others"]["interval"][1] < 0.02
    low, high = found[name]["logistic"]["length"]["interval"]
    assert low - 0.1 < 0 < high + 0.1  # as below
  length = found["longer"]["length"]
  assert length["interval"][0] > 0.6  # measured 0.65
  assert length["beyond_others"]["interval"][0] > 0.1
  low, high = found["longer"]["logistic"]["length"]["interval"]
  assert low < 0.97 < high
  low, high = found["longer"]["position"]["interval"]
  assert low - 0.02 < 0.5 < high + 0.02  # a 95 % interval misses once in twenty; these hold


def test_a_position_bias_and_ties():
  rng = np.random.default_rng(0)
  labels = (rng.random((1000, 2)) > [0.7, 0.5]).astype(np.int64)
  labels[:100, 0] = 2
  labels[100:150, 0] = MISSING
  n = np.full((1000, 2), 5)
  names = [f"{i}" for i in range(1000)]
  found = biases(Judgements(("a", "b"), labels, n, 0 * n, names, names, [], 1000))
  assert (found["a"]["n"], found["a"]["ties"], found["a"]["missing"]) == (850, 100, 50)
  low, high = found["a"]["position"]["interval"]
  assert low < 0.7 < high
  assert found["a"]["position"]["n"] == 850
  assert found["b"]["position"]["n"] == 1000
  low, high = found["a"]["position"]["beyond_others"]["interval"]
  assert low < 0.2 < high
  assert found["a"]["length"] == {
    "share": None,
    "interval": None,
    "n": 0,
    "clusters": 0,
    "method": "none",
    "why": "0 conversations: an interval wants 5",
    "beyond_others": None,
  }
  assert found["a"]["logistic"].startswith("not fitted: the features are collinear")


def test_an_interval_that_is_none_says_why():
  labels, n = np.array([[0, 1], [1, 1]]), np.full((2, 2), 5)
  judged = Judgements(("a", "b"), labels, n, 0 * n, ["p", "q"], ["1", "2"], [], 2)
  why = "2 conversations: an interval wants 5"
  position = biases(judged)["a"]["position"]
  assert position["why"] == why
  assert position["beyond_others"] == {"difference": 0.5, "interval": None, "n": 2, "why": why}


def test_an_empty_response_has_the_length_of_one_word():
  rng = np.random.default_rng(0)
  words = rng.integers(0, 4, (400, 2))
  labels = (rng.random((400, 1)) > 1 / (1 + np.exp(words[:, 1:] - words[:, :1]))).astype(np.int64)
  names = [f"{i}" for i in range(400)]
  options = (0 * words, names, names, [], 400)
  found = biases(Judgements(("a",), labels, words, *options))["a"]["logistic"]
  assert np.isfinite(found["length"]["interval"]).all()
  assert (
    found == biases(Judgements(("a",), labels, np.maximum(words, 1), *options))["a"]["logistic"]
  )


def test_reliability_has_intervals_that_hold_the_truth():
  # A skill is the slope on a standard normal quality; the truth is the quality's sign.
  j = judged(n=1500, length=0.0, accuracy=(8.0, 4.0, 4.0, 1.0))
  found = reliability(j, resamples=50)
  values = [a["reliability"] for a in found["annotators"].values()]
  assert values[0] > values[1] > values[3]
  for entry in found["annotators"].values():
    low, high = entry["interval"]
    assert low <= entry["reliability"] <= high
    assert 0 < high - low < 0.1
  assert found["converged"]


@pytest.mark.parametrize("resamples", [0, 20])
def test_annotators_who_share_too_little_have_a_reason_and_no_numbers(resamples):
  rng = np.random.default_rng(0)

  def judged_by(labels):
    n, rows = np.full((len(labels), 2), 5), [f"{i}" for i in range(len(labels))]
    names = tuple("abcde"[: labels.shape[1]])
    return reliability(
      Judgements(names, labels, n, 0 * n, rows, rows, [], len(rows)), resamples=resamples
    )

  coins = np.full((300, 3), MISSING)  # Each row is judged by one of three, at random.
  coins[np.arange(300), rng.integers(3, size=300)] = rng.integers(2, size=300)
  assert judged_by(coins).startswith("none: there are no three annotators")
  two = rng.integers(2, size=(300, 2))
  assert judged_by(two).startswith("none: there are no three annotators")
  truth = rng.integers(2, size=400)
  four = np.where(rng.random((400, 5)) < 0.8, truth[:, None], 1 - truth[:, None])
  chain = four[:, :3].copy()  # a shares rows with b, b with c, but a none with c.
  chain[:200, 0] = chain[200:, 2] = MISSING
  assert judged_by(chain).startswith("none: there are no three annotators")
  four[:200, 3] = MISSING  # d shares rows with all three, e only with a.
  four[:, 4] = np.where(np.arange(400) < 29, four[:, 4], MISSING)
  found = judged_by(four)["annotators"]
  assert [isinstance(found[name], dict) for name in "abcde"] == [True, True, True, True, False]
  assert found["e"].startswith("none: not one of three annotators of whom each two judged 30 rows")
  for name in "abcd":
    assert found[name]["reliability"] == pytest.approx(0.8, abs=0.08)
  # The fourth annotator's few rows do not change the others' results.
  again = judged_by(four[:, :4])["annotators"]
  assert all(again[name] == found[name] for name in "abcd")


def test_a_class_that_no_one_used_is_left_out():
  labels = np.array([[0, 0, 0], [2, 2, 2], [0, 2, 0], [2, 2, MISSING]] * 20)
  n, names = np.full((80, 2), 5), [f"{i}" for i in range(80)]
  found = reliability(Judgements(("a", "b", "c"), labels, n, n, names, names, [], 80), resamples=0)
  assert found["classes"] == ["first", "tie"]
  assert found["prior"]["tie"] == pytest.approx(0.5, abs=0.05)
  assert found["annotators"]["c"]["interval"] is None


def test_report_of_every_kind_of_file_is_json(tmp_path):
  rows = [{**ROW, "x": i % 3, "y": (i + i // 9) % 3, "q": f"{i // 3}"} for i in range(30)]
  path = write(tmp_path / "j.jsonl", rows)
  for columns in (["x", "y"], ["x"]):
    report = annotator_report(read_judgements(path, columns, prompt=["q"]))
    json.dumps(report, allow_nan=False)
    assert report["rows"] == {"read": 30, "kept": 30, "dropped": 0}
    assert "first chosen" in table(report)
  assert report["reliability"].startswith("none: there are no three annotators")
  assert report["agreement"]["nominal"].startswith("none: no unit has two ratings")
  same = read_judgements(write(path, [{**ROW, "y": 1}] * 4), ["x", "y"])
  with pytest.raises(DataError, match="all judgements are 'first'"):
    annotator_report(same)


def test_no_judgement_is_refused():
  nothing = np.full((3, 2), MISSING)
  sides = np.ones((3, 2), np.int64)
  j = Judgements(("x", "y"), nothing, sides, sides, list("abc"), list("abc"), [], 3)
  with pytest.raises(DataError, match="there is no judgement"):
    reliability(j)


@pytest.mark.parametrize(("prompts", "given"), [(2, False), (4, False), (8, True)])
def test_reliability_over_few_prompts_has_an_honest_interval_or_none(prompts, given):
  """Percentiles over two prompts once said 0.598 [0.604, 0.702], without the estimate in it."""
  rng = np.random.default_rng(0)
  truth = rng.integers(2, size=120)
  labels = np.where(rng.random((120, 3)) < 0.75, truth[:, None], 1 - truth[:, None])
  n, clusters = np.full((120, 2), 5), [f"{i % prompts}" for i in range(120)]
  rows = [f"{i}" for i in range(120)]
  judgements = Judgements(("a", "b", "c"), labels, n, 0 * n, clusters, rows, [], 120)
  for one in reliability(judgements, resamples=40)["annotators"].values():
    if given:
      low, high = one["interval"]
      assert low <= one["reliability"] <= high
      assert one["method"] == "Student's t, cluster bootstrap"
    else:
      assert one["interval"] is None
      assert f"{prompts} conversations" in one["why"]
