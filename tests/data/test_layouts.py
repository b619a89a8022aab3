"""Published layouts: each row is read as its card says, and a flipped label flips the feedback."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from rm_jax.data.formats import FORMATS, detect, load
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.train import loop
from tests.data.layouts import BAD, FORMS, GOOD, LAYOUTS, TIED, bot, feedback, user
from tests.train.runs import small_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_row_is_read_as_its_card_says(name):
  layout = LAYOUTS[name]
  assert FORMATS[name].convert(layout.row, "f:1") == layout.expected
  found = detect(layout.row).name
  assert found == (name if not layout.by_name else name.rpartition("_")[0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_flipped_label_flips_the_feedback(name):
  layout = LAYOUTS[name]
  flipped = FORMATS[name].convert(layout.row | layout.flip, "f:1")
  assert feedback(flipped) == layout.flipped
  assert feedback(layout.expected) != layout.flipped


@pytest.mark.parametrize(("name", "row", "expected"), FORMS)
def test_other_forms_of_a_layout(name, row, expected):
  assert detect(row).name == name
  example = FORMATS[name].convert(row, "f:1")
  if expected is None:  # A tie, in the order of the row, and without a margin.
    expected = LAYOUTS[name].expected
    judges = expected.judges and {n: 1 - x for n, x in expected.judges.items()}
    expected = dataclasses.replace(
      expected, responses=(BAD, GOOD), labels=(0.0, 0.0), ties=TIED, margin=None, judges=judges
    )
  assert example == expected


def test_every_format_of_the_folder_has_a_row_here():
  published = {
    name for name, f in FORMATS.items() if f.convert.__module__.startswith("rm_jax.data.published")
  }
  assert published == set(LAYOUTS)


def changed(name, **columns):
  return name, LAYOUTS[name].row | columns


def _answers(**columns):
  answers = [dict(a) for a in LAYOUTS["nectar"].row["answers"]]
  answers[0] |= columns
  return answers


_COMPLETIONS = LAYOUTS["ultrafeedback"].row["completions"]
_RATING = {"annotations": _COMPLETIONS[0]["annotations"] | {"honesty": {"Rating": "6"}}}
_IMAGE = {"role": "user", "content": [{"type": "image", "image": "x"}]}
WRONG = [
  (changed("helpsteer2_preference", preference_strength=5), "'preference_strength' is 5; .*-3 .*3"),
  (changed("helpsteer2_preference", preference_strength=None), "'preference_strength' is None"),
  (changed("helpsteer2_preference", preference_strength=True), "'preference_strength' is True"),
  (
    changed("helpsteer2_preference", all_preferences_unprocessed=[{"strength": 4}]),
    r"'all_preferences_unprocessed\[0\]' is 4",
  ),
  (changed("helpsteer3", overall_preference="x"), "'overall_preference' is 'x'; .*response 1"),
  (changed("helpsteer3", individual_preference=[{"reasoning": "so"}]), "expected a list of {score"),
  (changed("safe_rlhf", better_response_id=2), "'better_response_id' is 2; expected 0 or 1"),
  (changed("safe_rlhf_safety", safer_response_id="0"), "'safer_response_id' is '0'"),
  (changed("beavertails", is_safe=None), "'is_safe' is None; expected true or false"),
  (changed("beavertails", is_safe=1), "'is_safe' is 1; expected true or false"),
  (changed("summarize_comparisons", choice=2), "'choice' is 2; expected 0 or 1"),
  (changed("summarize_comparisons", summaries=[{"text": " a"}]), "'summaries' has 1; expected at"),
  (changed("summarize_comparisons", info={"id": "x"}), "'info.article' is None; expected text"),
  (changed("summarize_axes", summary={"text": "a", "axes": {"overall": 8}}), r"8; .*in \[1, 7\]"),
  (changed("summarize_axes", summary={"text": "a", "axes": {}}), "expected a number in it"),
  (changed("webgpt", score_0=0.5), r"'score_0' is 0.5 and 'score_1' 0.5; .*sum is 0"),
  (changed("webgpt", score_0=2, score_1=-2), r"'score_0' is 2.0 .*in \[-1, 1\]"),
  (changed("webgpt", question="Q"), "'question' is 'Q'; expected {full_text}"),
  (changed("webgpt", question={"id": "x"}), "'question.full_text' is None; expected text"),
  (changed("shp", labels=2), r"'labels' is 2; expected 1 \(A is preferred\) or 0"),
  (changed("shp", labels=None), "'labels' is None"),
  (changed("nectar", answers=_answers(rank=0)), r"'answers\[0\].rank' is 0.0; expected 1 or more"),
  (changed("nectar", answers=_answers(rank="1")), r"'answers\[0\].rank' is '1'; expected a number"),
  (changed("nectar", prompt="\n\nHuman: a\n\nAssistant: b"), "'prompt' ends with an answer"),
  (changed("arena", winner="model_c"), "'winner' is 'model_c'; expected one of model_a, model_b"),
  (changed("arena", winner=None), "'winner' is None"),
  (changed("arena", turn=2), "'turn' is 2 and 'conversation_a' has 1 turns"),
  (changed("arena", turn=0), "'turn' is 0; expected 1 or more"),
  (changed("arena", conversation_a=[_IMAGE]), r"conversation_a\[0\].content\[0\] is .*'text'"),
  (changed("arena", conversation_b=[user("Q")]), "'conversation_b' ends with .*an assistant's"),
  (changed("arena", conversation_b=[user("Q"), bot("bad")]), "both conversations are the same"),
  (changed("arena_55k", winner_tie=1), "winner_model_a 1, winner_model_b 0, winner_tie 1; .*one"),
  (changed("arena_55k", winner_model_a=0), "winner_tie 0; expected one of them to be 1"),
  (changed("arena_55k", winner_model_a=0.5), "'winner_model_a' is 0.5; expected 0 or 1"),
  (changed("arena_55k", prompt="Q"), "'prompt' is 'Q'; expected a JSON list of the turns"),
  (changed("arena_55k", response_a='["a"]'), "'response_a' has 1 turns and 'prompt' 2"),
  (changed("arena_55k", response_a='["a", null]'), r"'response_a\[1\]' is None; expected text"),
  (
    changed("ultrafeedback", completions=_COMPLETIONS[:1]),
    "'completions' has 1; expected at least",
  ),
  (
    changed("ultrafeedback", completions=[_COMPLETIONS[0] | {"overall_score": None}] * 2),
    r"'completions\[0\].overall_score' is None; expected a number",
  ),
  (
    changed("ultrafeedback", completions=[_COMPLETIONS[0] | {"overall_score": 11}] * 2),
    r"'completions\[0\].overall_score' is 11.0; expected it in \[0, 10\]",
  ),
  (
    changed("ultrafeedback_ratings", completions=[_COMPLETIONS[0] | _RATING]),
    r"completions\[0\].annotations.honesty.Rating' is '6'; expected 1 to 5, or 'N/A'",
  ),
  (changed("rewardbench2", rejected=[]), "expected lists of texts, neither empty"),
  (changed("math_shepherd", label="Q Step 1: 2 + 2 = 4. ки"), "expected the text of 'input', and"),
  (
    changed("math_shepherd", input="Q 4 ки", label="Q 4 +"),
    "'input' has no 'Step 1:'; expected a problem and steps",
  ),
  (
    changed("math_shepherd", input="Q Step 1: a ки b", label="Q Step 1: a + b"),
    "'input' has text behind its last step",
  ),
  (changed("processbench", label=3), "'label' is 3; expected -1 .none. or 0 to 2"),
  (changed("processbench", label=True), "'label' is True; expected -1"),
  (changed("prm800k_published", label={"steps": []}), "'label.steps' has 0; expected at least 1"),
  (
    changed(
      "prm800k_published",
      label={"steps": [{"completions": [{"text": "a", "rating": 2}], "chosen_completion": 0}]},
    ),
    r"'label.steps\[0\].completions\[0\].rating' is 2; expected one of 1, 0, -1",
  ),
  (
    changed(
      "prm800k_published",
      label={"steps": [{"completions": [{"text": "a", "rating": 1}], "chosen_completion": 1}]},
    ),
    "chosen_completion' is 1; expected null or 0 to 0",
  ),
  (changed("alpaca", instruction=" ", input=None), "'instruction' and 'input' are without text"),
  (changed("alpaca", history=[["a"]]), r"history\[0\] is \['a'\]; expected \[question, answer\]"),
  (changed("alpaca_outputs", output=["a"]), r"'output' is \['a'\]; expected \[better answer"),
  (changed("alpaca_kto", kto_tag=None), "'kto_tag' is None; expected true"),
  (changed("orca_dpo", question=" "), "'question' is ' '; expected text"),
  (changed("orca_dpo", rejected="good"), "both responses are .*'good'"),
  (changed("sharegpt", chosen={"from": "dog", "value": "a"}), "chosen is from 'dog'; .*human"),
  (changed("sharegpt", chosen={"from": "human", "value": "a"}), "expected the assistant's message"),
  (changed("sharegpt", chosen={"from": "function_call", "value": "f()"}), "a function call"),
  (changed("sharegpt_kto", conversations=[]), "has no user's text before what is judged"),
  (changed("ultrainteract", trajectory=[{"value": "x"}]), r"trajectory\[0\] is .*{from, value}"),
  (changed("nemo_rl", completions=[{"rank": 0}]), "expected a list of {rank, completion}"),
  (changed("distilabel", ratings=[1]), "expected lists of one length"),
  (changed("distilabel", ratings=[1, None]), r"'ratings\[1\]' is None; expected a number"),
  *(
    (changed("qa_feedback", passages=passages), "'passages' is .*expected lists of sent")
    for passages in ("T", None, ["T: a."], [["T", "T: a."], "b"])
  ),
  (changed("qa_feedback", preference=[0, 1, 2]), "expected six of 0"),
  (changed("qa_feedback", preference=[0, 1, 2, 1, 1, 3]), "'preference'.* is 3"),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_a_value_that_the_card_does_not_explain_is_refused_by_its_column(row, message):
  name, columns = row
  with pytest.raises(RowError, match=message):
    FORMATS[name].convert(columns, "f:1")


def test_a_row_that_has_our_columns_too_is_read_by_them():
  ours = {"prompt": "Q", "chosen": "a", "rejected": "b"}
  for name in ("helpsteer2_preference", "safe_rlhf", "shp", "arena", "webgpt", "nectar"):
    assert detect(LAYOUTS[name].row | ours).name == "pair", name
  for name in ("question", "input", "instruction", "conversations", "trajectory"):
    assert detect(ours | {name: "x?"}).name == "pair", name
    assert detect(ours | {name: [{"from": "human", "value": "x?"}]}).name == "pair", name
  whole = {"chosen": "Q: x? A: yes", "rejected": "Q: x? A: no", "instruction": "x?"}
  assert detect(whole).name == "implicit"
  # Both answers name what was asked for, and do not begin with it.
  named = {"chosen": "A good cat", "rejected": "A bad cat", "instruction": "cat"}
  assert detect(named).name == "alpaca"
  turns = {"chosen": [user("Q"), bot("a")], "rejected": [user("Q"), bot("b")]}
  for name in ("instruction", "question", "input", "conversations", "trajectory"):
    assert detect(turns | {name: "Q"}).name == "implicit", name
  dialogues = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
  assert detect(dialogues | {"input": "x"}).name == "hh"
  ranked = {"prompt": "Q", "responses": ["a", "b"], "scores": [1, 2]}
  assert detect(LAYOUTS["distilabel"].row | ranked).name == "ranking"


def test_data_sets_in_our_columns_are_read_by_them_whatever_else_they_have():
  sides = {"chosen": [user("Q"), bot("good")], "rejected": [user("Q"), bot("bad")]}
  texts = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
  models = {"chosen_model": "m1", "rejected_model": "m2"}
  rows = {
    "Skywork": ("implicit", sides | {"source": "magpie"}),
    "dpo-mix": ("implicit", sides | {"dataset": "x", "chosen_rating": 5, "rejected_rating": 1}),
    "tulu 3": ("pair", sides | {"prompt": "Q", "id": "1", "chosen_rating": 4.5} | models),
    "argilla": ("pair", sides | {"prompt": "Q", "source": "x", "chosen-rating": 5.0}),
    "H4": ("pair", sides | {"prompt": "Q", "messages": sides["chosen"], "score_chosen": 8.0}),
    "RewardBench": ("pair", texts | models | {"subset": "xstest", "id": 1}),
  }
  for name, (fmt, row) in rows.items():
    assert detect(row).name == fmt, name
    example = FORMATS[fmt].convert(row, "f:1")
    plain = name == "RewardBench"
    assert example.responses == (("good", "bad") if plain else (GOOD, BAD)), name
    assert example.prompt == ("Q" if plain else (user("Q"),)), name


def test_the_same_columns_with_other_values_are_of_no_layout(tmp_path):
  # What tells Math-Shepherd is its mark, and PRM800K's label is an object.
  for row in ({"input": "a", "label": "b", "task": "c"}, {"question": "a", "label": 1}):
    assert detect(row) is None
    path = tmp_path / "a.csv"
    path.write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    with pytest.raises(DataError, match=r"(?s)not one row.*of no known format by their names and"):
      load(path, report=Report())


def test_a_format_by_name_alone_is_pointed_to(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("prompt,response_0,response_1,safer_response_id\nQ,good,bad,0\n")
  with pytest.raises(DataError, match=r"chosen by its name alone: .*safe_rlhf_safety"):
    load(path, report=Report())
  (example,) = load(path, report=Report(), format="safe_rlhf_safety")
  assert example.responses == (GOOD, BAD)


def test_the_table_of_the_docs_names_every_format_and_its_columns():
  text = (ROOT / "docs" / "data.md").read_text()
  table = text.partition("## All layouts")[2].partition("\n## ")[0]
  rows = re.findall(r"^\| `(\w+)`([^|]*)\| (.*?) \|", table, re.M)
  assert [name for name, _, _ in rows] == sorted(FORMATS)
  for name, _, columns in rows:
    found = re.findall(r"`([^`]+)`", columns)
    needs = [column for need in FORMATS[name].needs for column in need.split("|")]
    assert found == needs, name
  named = {name for name, note, _ in rows if "by name" in note}
  assert named == {name for name, f in FORMATS.items() if f.by_name}


@pytest.mark.slow
def test_every_layout_is_trained_on_in_each_of_two_steps(llama_folder, tmp_path):
  c = small_config(llama_folder, steps=2)
  c.data.train, c.data.heldout = "", "0"
  sources = {}
  for name, layout in LAYOUTS.items():
    path = tmp_path / f"{name}.jsonl"
    rows = (layout.row, layout.row | layout.flip)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources[name] = {"path": str(path), "format": name if layout.by_name else "auto"}
  c.data.sources = sources
  rated = [x.expected for x in LAYOUTS.values() if x.expected.attributes]
  c.model.attributes = tuple(sorted({n for e in rated for one in e.attributes for n in one}))
  c.loss.ranking = "plackett_luce"
  c.data.strict = True
  c.data.batch_groups = 2 * len(LAYOUTS)  # each step has every row
  c.data.row_lengths = (512,)
  loop.train(c, tmp_path / "run")
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["data"]["train"] == 2 * len(LAYOUTS)
  assert summary["data"]["dropped"] == {}
  metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
  steps = [m for m in metrics if m["split"] == "train"]
  assert [m["step"] for m in steps] == [1, 2]
  for step in steps:
    assert step["skipped_steps"] == 0
    assert {n for n, m in step["sources"].items() if math.isfinite(m["loss"])} == set(LAYOUTS)


@pytest.mark.parametrize("name", ["gsm8k_solutions", "prm800k", "bigbench_mistake", "prmbench"])
def test_a_question_as_messages_is_refused_where_solutions_are_text(name):
  """Formatted into a text, the messages would be part of the prompt as Python writes them."""
  column = "input" if name == "bigbench_mistake" else "question"
  question = [{"role": "user", "content": "q"}]
  with pytest.raises(RowError, match=f"wrong_type: {column!r} is"):
    FORMATS[name].convert(LAYOUTS[name].row | {column: question}, "rows:1")
