"""Formats of all feedback but pairs: what a row is read as, and which rows are dropped for what."""

import json
import pathlib

import numpy as np
import pytest

from rm_jax.data.formats import FORMATS, detect, load
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.data.requests import read_row

DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


def convert(row):
  return detect(row).convert(row, "f:1")


def test_rankings_by_scores_or_ranks_ties_and_all():
  by_score = convert({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 3.5, 1]})
  assert (by_score.kind, by_score.labels) == ("ranking", (1.0, 3.5, 1.0))
  by_rank = convert({"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]})
  assert by_rank.labels == (-1.0, -2.0, -2.0)
  assert by_rank.pairs is None


def test_comparisons_add_up_and_need_fit_no_order():
  row = {
    "prompt": "p",
    "responses": ["a", "b", "c"],
    "comparisons": [[0, 1, 1], [1, 2, 0.75], [2, 0, True], [0, 1, "tie"], [0, 1, 0]],
  }
  example = convert(row)
  assert example.pairs == ((0, 1, 0), (1, 0, 0.75), (1, 0.25, 0))
  assert example.ties == ((0, 1, 0), (1, 0, 0), (0, 0, 0))
  # Win rates: a has 1 win and half a tie in 4 comparisons (3 with b, 1 with c); b has 1.75 wins and
  # half a tie in 4; c has 1.25 wins in 2.
  assert example.labels == pytest.approx((1.5 / 4, 2.25 / 4, 1.25 / 2))


def test_soft_pairs_and_ties():
  row = {"prompt": "p", "chosen": "a", "rejected": "b"}
  soft = convert({**row, "preference": 0.8})
  assert soft.pairs == ((0, 0.8), (pytest.approx(0.2), 0))
  assert soft.labels == (0.8, pytest.approx(0.2))
  assert convert({**row, "preference": 1.0}).pairs is None
  tied = convert({**row, "tie": True})
  assert (tied.labels, tied.ties) == ((0, 0), ((0, 1), (1, 0)))
  assert convert({**row, "tie": False}).labels == (1, 0)


def test_outcomes_and_scores():
  one = convert({"prompt": "p", "completion": "c", "label": True})
  assert (one.kind, one.responses, one.labels) == ("outcome", ("c",), (1.0,))
  assert convert({"prompt": "p", "response": "c", "label": 0.25}).labels == (0.25,)
  assert convert({"prompt": "p", "response": "c", "score": -7}).kind == "score"
  several = convert({"prompt": "p", "responses": ["c", "d"], "labels": [True, False]})
  assert (several.kind, several.labels) == ("outcome", (1.0, 0.0))
  messages = [{"role": "user", "content": "p"}]
  chat = convert({"prompt": messages, "completion": "c", "label": False})
  assert chat.responses == (({"role": "assistant", "content": "c"},),)


def test_steps():
  example = convert({"prompt": "p", "completions": ["one", "two"], "labels": [True, False]})
  assert (example.kind, example.labels) == ("step", (1.0, 0.0))
  assert example.steps == (("one", "two"),)
  assert example.responses == ("one\ntwo",)


def test_attributes_and_those_that_nobody_rated():
  row = {"prompt": "p", "completion": "c", "attributes": {"good": 3, "long": None, "kind": 1.5}}
  example = convert(row)
  assert (example.kind, example.labels) == ("attributes", (0.0,))
  assert example.attributes == ({"good": 3.0, "kind": 1.5},)
  assert convert(row | {"response": "d", "weight": 2}).weight == 2


HELPSTEER = {
  "prompt": "p",
  "response": "r",
  "helpfulness": 4,
  "correctness": 3,
  "coherence": 2,
  "complexity": 1,
  "verbosity": 0,
}


def test_helpsteer_as_it_is_published():
  example = convert(HELPSTEER)
  assert example.kind == "attributes"
  assert example.prompt == ({"role": "user", "content": "p"},)
  assert example.responses == (({"role": "assistant", "content": "r"},),)
  assert example.attributes == (
    {"helpfulness": 4, "correctness": 3, "coherence": 2, "complexity": 1, "verbosity": 0},
  )
  turns = "one\n<extra_id_1>Assistant\ntwo\n\n<extra_id_1>User\nthree"
  several = convert(HELPSTEER | {"prompt": turns})
  assert [(m["role"], m["content"]) for m in several.prompt] == [
    ("user", "one"),
    ("assistant", "two\n"),
    ("user", "three"),
  ]
  assert several.conversation == "one"


RATED = {"prompt": "p", "completion": "c", "attributes": {"good": 3}}
RANKING = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}
COMPARED = {"prompt": "p", "responses": ["a", "b"], "comparisons": [[0, 1, 1]]}
STEPS = {"prompt": "p", "completions": ["a", "b"], "labels": [1, 0]}
BAD = [
  (RANKING | {"responses": ["a"], "scores": [1]}, "too_few_responses", "'responses' has 1"),
  (RANKING | {"scores": [1]}, "lengths_differ", "'scores' has 1 and there are 2"),
  (RANKING | {"scores": [1, [2]]}, "wrong_type", r"'scores\[1\]' is \[2\]; expected a number"),
  (RANKING | {"scores": [1, float("nan")]}, "not_finite", r"'scores\[1\]' is nan"),
  (RANKING | {"scores": [1, 1e39]}, "not_finite", r"'scores\[1\]' is 1e\+39; .* under 3.4e38"),
  (RANKING | {"scores": [1, -(10**400)]}, "not_finite", r"'scores\[1\]' is -10"),
  (RANKING | {"weight": 1e39}, "not_finite", "'weight' is 1e\\+39"),
  ({"prompt": "p", "completion": "c", "score": -3.5e38}, "not_finite", "'score' is -3.5e"),
  (RATED | {"attributes": {"good": 1e39}}, "not_finite", "'attributes.good' is 1e\\+39"),
  ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e39}, "not_finite", "'margin' is"),
  ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "NaN"}, "wrong_type", "'margin' is"),
  (RANKING | {"responses": ["a", ""]}, "empty_response", r"'responses\[1\]' ends with ''"),
  (RANKING | {"responses": ["a", None]}, "wrong_type", r"'responses\[1\]' is None"),
  (RANKING | {"prompt": " "}, "empty_prompt", "prompt is ' '"),
  (COMPARED | {"comparisons": []}, "no_comparison", "'comparisons' is empty"),
  (COMPARED | {"comparisons": [[0, 2, 1]]}, "out_of_range", "speaks of response 2"),
  (COMPARED | {"comparisons": [[1, 1, 1]]}, "out_of_range", "compares response 1 with itself"),
  (COMPARED | {"comparisons": [[0, 1, 1.5]]}, "out_of_range", "is 1.5; expected it in"),
  (COMPARED | {"comparisons": [[0, 1]]}, "wrong_type", r"expected \[i, j, p\]"),
  (COMPARED | {"comparisons": [[True, 1, 1]]}, "wrong_type", "expected a response's number"),
  (STEPS | {"labels": [1]}, "lengths_differ", "'labels' has 1 and there are 2"),
  (STEPS | {"labels": [1, 2]}, "out_of_range", r"'labels\[1\]' is 2.0; expected it in \[0, 1\]"),
  (STEPS | {"completions": []}, "wrong_type", "expected a list of the steps' texts"),
  (STEPS | {"completions": ["a", " "]}, "empty_response", "step 1 is ' '"),
  (STEPS | {"completions": ["a", "\ud800"]}, "lone_surrogate", "half a surrogate"),
  ({"prompt": "p", "completion": "c", "label": "yes"}, "wrong_type", "'label' is 'yes'"),
  (RATED | {"attributes": [3]}, "wrong_type", r"'attributes' is \[3\]; expected {name: number}"),
  (RATED | {"attributes": {"good": "3"}}, "wrong_type", "'attributes.good' is '3'"),
  (RATED | {"attributes": {"good": None}}, "no_attribute", "expected a number in it"),
  (RATED | {"attributes": {}}, "no_attribute", "expected a number in it"),
  (HELPSTEER | {"verbosity": "2"}, "wrong_type", "'attributes.verbosity' is '2'"),
  (HELPSTEER | {"prompt": " "}, "empty_prompt", "expected text"),
  (HELPSTEER | {"response": ""}, "empty_response", "'response' ends with ''"),
  (
    HELPSTEER | {"prompt": "a\n<extra_id_1>Assistant\nb"},
    "malformed_dialogue",
    "expected the user",
  ),
  ({"prompt": "p", "chosen": "a", "rejected": "b", "preference": 1.2}, "out_of_range", "1.2"),
  ({"prompt": "p", "chosen": "a", "rejected": "b", "tie": 1}, "wrong_type", "'tie' is 1"),
  (
    {"prompt": "p", "chosen": "a", "rejected": "b", "tie": True, "preference": 0.5},
    "out_of_range",
    "expected one of the two",
  ),
]


def test_numbers_are_those_that_float32_holds():
  largest = float(np.finfo(np.float32).max)
  row = {"prompt": "p", "completion": "c", "score": largest}
  assert np.float32(convert(row).labels[0]) == np.finfo(np.float32).max
  # Half a float32 step above the largest number rounds to infinity, any less rounds down to it.
  half = 2.0**103
  assert np.isfinite(np.float32(convert(row | {"score": largest + half * 0.999}).labels[0]))
  with pytest.raises(RowError, match="not_finite"):
    convert(row | {"score": largest + half})


def test_null_is_not_given():
  pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
  nulls = dict.fromkeys(("weight", "margin", "preference", "tie"))
  assert convert(pair | nulls) == convert(pair)
  assert convert(RANKING | {"weight": None, "comparisons": None, "ranks": None}) == convert(RANKING)
  outcome = {"prompt": "p", "response": "c", "label": True}
  assert convert(outcome | {"completion": None, "weight": None}) == convert(outcome)
  assert read_row({"prompt": "p", "response": None, "completion": "c"}, 0).response == "c"


def test_a_choice_is_no_bool_and_no_list():
  pandalm = {"instruction": "Sum", "input": "", "response1": "3", "response2": "4"}
  prm800k = {"question": "q", "steps": ["a", "b"]}
  prmbench = {"question": "q", "modified_process": ["a", "b"]}
  for row, found in (
    (pandalm | {"annotator1": [1]}, r"'annotator1' is \[1\]; expected 0 \(tie\), 1 or 2"),
    (pandalm | {"annotator1": True}, "'annotator1' is True"),
    (prm800k | {"labels": ["positive", ["negative"]]}, r"'labels\[1\]' is \['negative'\]"),
    (prmbench | {"error_steps": [True]}, "'error_steps' has True"),
  ):
    with pytest.raises(RowError, match=found) as error:
      convert(row)
    assert error.value.reason == "out_of_range"


@pytest.mark.parametrize(("row", "reason", "found"), BAD)
def test_bad_rows(row, reason, found):
  with pytest.raises(RowError, match=found) as error:
    convert(row)
  assert error.value.reason == reason


def test_strict_names_file_line_and_column(tmp_path):
  path = tmp_path / "steps.jsonl"
  path.write_text("\n".join(json.dumps(row) for row in (STEPS, STEPS | {"labels": [1]})))
  with pytest.raises(DataError, match=r"steps.jsonl:2: lengths_differ: 'labels' has 1"):
    load(path, report=Report(strict=True))
  report = Report()
  assert len(load(path, report=report)) == 1
  assert report.dropped == {"lengths_differ": 1}


def read_one(tmp_path, row):
  (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n")
  report = Report()
  return load(tmp_path / "one.jsonl", report=report)[0]


def test_annotators_of_pandalm(tmp_path):
  row = {"instruction": "Sum", "input": "1 2", "response1": "3", "response2": "4"}
  row |= {"annotator1": 1, "annotator2": 0, "annotator3": 1, "idx": 0}
  one = read_one(tmp_path, row)
  assert (one.prompt, one.responses) == ("Sum\n\n1 2\n\n", ("3", "4"))
  assert one.judges == {"annotator1": 1.0, "annotator2": 0.5, "annotator3": 1.0}
  assert one.pairs == ((0.0, 2.0), (0.0, 0.0))
  assert one.ties == ((0.0, 1.0), (1.0, 0.0))
  assert one.labels[0] > one.labels[1]
  assert read_one(tmp_path, row | {"input": ""}).prompt == "Sum\n\n"
  with pytest.raises(DataError, match=r"'annotator2' is 3; expected 0 \(tie\), 1 or 2"):
    read_one(tmp_path, row | {"annotator2": 3})
  assert read_one(tmp_path, row | {"annotator1": None}).judges.keys() == {
    "annotator2",
    "annotator3",
  }
  with pytest.raises(DataError, match="no annotator says anything; expected at least one"):
    read_one(tmp_path, row | dict.fromkeys(("annotator1", "annotator2", "annotator3")))


def test_llmbar_says_which_of_two_follows_the_instruction(tmp_path):
  row = {"input": "Sum 1 2", "output_1": "3", "output_2": "4", "label": 2}
  one = read_one(tmp_path, row)
  assert (one.prompt, one.responses, one.labels) == ("Sum 1 2\n\n", ("3", "4"), (0.0, 1.0))
  with pytest.raises(DataError, match=r"prompt is .*; expected text"):
    read_one(tmp_path, row | {"input": " "})
  for label in (0, True, "1", 1.5):
    with pytest.raises(DataError, match=r"'label' is .*; expected 1 or 2"):
      read_one(tmp_path, row | {"label": label})


def test_ratings_of_summaries(tmp_path):
  made = [
    {"system": name, "text": text, "scores": {"fluency": a, "relevance": b}}
    for name, text, a, b in (("M1", "one", 1, 4), ("M2", "two", 3, 3))
  ]
  row = {"doc_id": "d", "src": "A document .", "ref_summ": "r", "responses": made}
  one = read_one(tmp_path, row)
  assert one.prompt == "A document .\n\nSummary:"
  assert (one.responses, one.labels, one.authors) == ((" one", " two"), (2.5, 3.0), ("M1", "M2"))
  with pytest.raises(DataError, match=r"responses\[0\]\.scores is None; expected ratings"):
    read_one(tmp_path, row | {"responses": [{"text": "a"}, made[1]]})


@pytest.mark.skipif(not DATA.exists(), reason="wants the folder shared/data beside the clone")
@pytest.mark.parametrize(
  ("folder", "kind", "kept", "rows"),
  [
    ("qa_feedback_4way", "ranking", 500, 500),
    ("prm800k_detok", "step", 1818, 1818),
    ("gsm8k_model_solutions", "outcome", 1319, 1319),
    ("bigbench_mistake", "step", 2185, 2186),
    ("prmbench", "step", 6113, 6216),
    ("pandalm", "ranking", 939, 999),  # 54 answers are empty, 6 are not text
    ("summ_human", "ranking", 200, 200),
    ("llmbar", "ranking", 419, 419),
  ],
)
def test_published_data_sets(folder, kind, kept, rows):
  report = Report()
  examples = load(DATA / folder, report=report)
  assert {e.kind for e in examples} == {kind}
  assert (len(examples), report.rows) == (kept, rows)
  if folder == "qa_feedback_4way":
    # Counted by hand in the file: 384 of 3,000 comparisons tie.
    assert sum(sum(map(sum, e.ties)) for e in examples) / 2 == 384
    assert sum(sum(map(sum, e.pairs)) for e in examples) == 3000 - 384
  if folder == "gsm8k_model_solutions":
    # Right: 37.9 % of all solutions, 56.3 % of the best system's; 67.2 % of questions have one.
    labels = [e.labels for e in examples]
    assert sum(map(sum, labels)) / (4 * len(labels)) == pytest.approx(0.379, abs=5e-4)
    assert sum(map(max, labels)) / len(labels) == pytest.approx(0.672, abs=5e-4)
    mine = [e.labels[e.authors.index("175b_verification")] for e in examples]
    assert sum(mine) / len(mine) == pytest.approx(0.563, abs=5e-4)
    # Solutions with the same answer are all right or all wrong, but for a few errors in the data.
    split = sum(
      len({y for a, y in zip(e.answers, e.labels, strict=True) if a == answer}) > 1
      for e in examples
      for answer in set(e.answers)
    )
    assert split <= 0.02 * len(examples)
    # Each place has the same share of right solutions, so it does not tell whose solution it is.
    places = [sum(column) / len(labels) for column in zip(*labels, strict=True)]
    assert max(places) - min(places) < 4 * (0.25 * 2 / len(labels)) ** 0.5
  if folder == "prm800k_detok":
    assert sum(len(e.labels) - sum(e.labels) for e in examples) == 1566


def test_one_may_register_ones_own():
  import rm_jax.data

  @rm_jax.data.register("mine_of_feedback", needs=("question", "stars"))
  def mine(row, origin):
    return origin, row["stars"]

  try:
    assert detect({"question": "q", "stars": 3}).name == "mine_of_feedback"
  finally:
    del FORMATS["mine_of_feedback"]
