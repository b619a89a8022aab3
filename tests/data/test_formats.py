"""Formats of pairs: what rows are read as, all reasons to drop one, detection, and HH-RLHF."""

import collections
import dataclasses
import gzip
import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from rm_jax.data import formats
from rm_jax.data.dialogue import parse_dialogue
from rm_jax.data.formats import FORMATS, detect, load, register
from rm_jax.data.pairs import pair_example
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.types import Example

HH = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "hh_rlhf"
needs_hh = pytest.mark.skipif(not HH.is_dir(), reason=f"needs {HH} (8,552 rows of HH-RLHF)")


def user(text):
  return {"role": "user", "content": text}


def bot(text):
  return {"role": "assistant", "content": text}


def _convert(row):
  return detect(row).convert(row, "f:1")


def _file(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def _load(path, **options):
  report = Report(strict=options.pop("strict", False))
  return load(path, report=report, **options), report


# pair


def test_pair_of_strings():
  row = {"prompt": "Q", "chosen": " yes", "rejected": " no", "margin": 2, "weight": 0.5, "id": 7}
  assert _convert(row) == Example(
    prompt="Q",
    responses=(" yes", " no"),
    labels=(1.0, 0.0),
    margin=2.0,
    weight=0.5,
    origin="f:1",
    conversation="Q",
  )


def test_pair_of_messages_with_and_without_the_prompt_in_front():
  prompt = [{"role": "system", "content": "s"}, user("Q")]
  bare = {"prompt": prompt, "chosen": [bot("yes")], "rejected": [bot("no")]}
  full = {"prompt": prompt, "chosen": [*prompt, bot("yes")], "rejected": [*prompt, bot("no")]}
  expected = (tuple(prompt), ((bot("yes"),), (bot("no"),)), "Q")
  for row in (bare, full, bare | {"chosen": full["chosen"]}):
    example = _convert(row)
    assert (example.prompt, example.responses, example.conversation) == expected


def test_pair_of_messages_after_a_string_prompt():
  """The layout of ultrafeedback_binarized: the prompt as text, and again as first message."""
  for front in ([], [user("Q")]):
    row = {"prompt": "Q", "chosen": [*front, bot("yes")], "rejected": [*front, bot("no")]}
    example = _convert(row)
    assert example.prompt == (user("Q"),)
    assert example.responses == ((bot("yes"),), (bot("no"),))


def test_pair_of_bare_answers_after_messages():
  prompt = [user("q")]
  whole = _convert({"prompt": prompt, "chosen": [bot("a")], "rejected": [bot("b")]})
  assert _convert({"prompt": prompt, "chosen": "a", "rejected": "b"}) == whole
  assert _convert({"prompt": prompt, "chosen": "a", "rejected": [bot("b")]}) == whole


def test_sides_that_begin_with_a_system_turn():
  system = {"role": "system", "content": "s"}
  sides = {"chosen": [system, user("q"), bot("a")], "rejected": [system, user("q"), bot("b")]}
  implicit = _convert(sides)
  assert implicit.prompt == (system, user("q"))
  assert _convert(sides | {"prompt": "q"}) == implicit
  assert _convert(sides | {"prompt": [user("q")]}) == implicit
  assert _convert(sides | {"prompt": [system, user("q")]}) == implicit
  # A different system message on the other side makes the prompts differ.
  other = [{"role": "system", "content": "t"}, user("q"), bot("b")]
  with pytest.raises(RowError, match="prompts_differ"):
    _convert(sides | {"prompt": "q", "rejected": other})


def test_a_developers_turn_is_a_systems():
  sides = {"chosen": [bot("a")], "rejected": [bot("b")]}
  prompts = ([{"role": role, "content": "s"}, user("q")] for role in ("developer", "system"))
  one, other = (_convert(sides | {"prompt": prompt}) for prompt in prompts)
  assert one == other


def test_message_keys_beyond_role_and_content_are_left_out():
  row = {"prompt": [user("Q") | {"id": 3}], "chosen": [bot("a")], "rejected": [bot("b")]}
  row["chosen"][0]["tool_calls"] = None  # Parquet stores an absent field as null.
  assert _convert(row).prompt == (user("Q"),)
  assert _convert(row).responses[0] == (bot("a"),)


# implicit


def test_implicit_messages():
  front = [user("1"), bot("2"), user("3")]
  row = {"chosen": [*front, bot("yes")], "rejected": [*front, bot("no")]}
  example = _convert(row)
  assert example.prompt == tuple(front)
  assert example.responses == ((bot("yes"),), (bot("no"),))
  assert example.conversation == "1"


@pytest.mark.parametrize(
  ("chosen", "rejected", "front"),
  [
    # They first differ in a human turn, so the prompt ends before the last shared assistant turn.
    ([user("1"), bot("2"), user("3"), bot("4")], [user("1"), bot("2"), user("5"), bot("4")], 1),
    # One conversation is a prefix of the other.
    ([user("1"), bot("2")], [user("1"), bot("2"), user("3"), bot("4")], 1),
    # The assistant speaks twice in a row, so the prompt may end with an assistant turn.
    ([user("1"), bot("2"), bot("3")], [user("1"), bot("2"), bot("4")], 2),
    # The assistant starts the conversation.
    ([bot("0"), user("1"), bot("2")], [bot("0"), user("1"), bot("3")], 2),
  ],
)
def test_implicit_messages_part_where_the_assistant_speaks(chosen, rejected, front):
  example = _convert({"chosen": chosen, "rejected": rejected})
  assert example.prompt == tuple(chosen[:front])
  assert example.responses == (tuple(chosen[front:]), tuple(rejected[front:]))


@pytest.mark.parametrize(
  ("chosen", "rejected", "prompt"),
  [
    ("Q: why?\nA: so", "Q: why?\nA: no", "Q: why?\nA:"),
    ("Q sand", "Q sea", "Q"),  # Not 'Q s', which ends inside a word.
    ("Q the sand", "Q thesis", "Q"),  # 'the' is a whole word on one side only.
    ("Q a  b", "Q a c", "Q a"),
    ("Q one", "Q one two", "Q"),  # One is a prefix of the other: each keeps a word.
    ("Q\none", "Q\none\n", "Q"),
    ("日本 語", "日本 国", "日本"),
  ],
)
def test_implicit_strings(chosen, rejected, prompt):
  example = _convert({"chosen": chosen, "rejected": rejected})
  assert example.prompt == prompt
  assert tuple(prompt + response for response in example.responses) == (chosen, rejected)


# hh


def test_hh():
  front = "\n\nHuman: Hi  there \n\nAssistant: \n\nAssistant: Yes?\n\nHuman: Q"
  row = {"chosen": front + "\n\nAssistant: a\n\nHuman:x", "rejected": front + "\n\nAssistant: b"}
  row["chosen"] = row["chosen"].replace("\n\nHuman:x", "\nHuman: x")  # No marker.
  example = _convert(row)
  assert example.prompt == (user("Hi  there "), bot(""), bot("Yes?"), user("Q"))
  assert example.responses == ((bot("a\nHuman: x"),), (bot("b"),))
  assert example.conversation == "Hi there"


def test_hh_that_parts_early_keeps_the_later_turns():
  row = {
    "chosen": "\n\nHuman: 1\n\nAssistant: 2\n\nHuman: 3\n\nAssistant: 4",
    "rejected": "\n\nHuman: 1\n\nAssistant: 5\n\nHuman: 3\n\nAssistant: 4",
  }
  example = _convert(row)
  assert example.prompt == (user("1"),)
  assert example.responses[1] == (bot("5"), user("3"), bot("4"))


def _rendered(messages):
  mark = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
  return "".join(mark[message["role"]] + message["content"] for message in messages)


@needs_hh
def test_hh_every_row_comes_back_byte_for_byte():
  seen = malformed = 0
  for path in sorted(HH.glob("*.gz")):
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
      for line in lines:
        row = json.loads(line)
        for side in (row["chosen"], row["rejected"]):
          seen += 1
          try:
            messages = parse_dialogue(side)
          except RowError:
            malformed += 1
          else:
            assert _rendered(messages) == side
  assert (seen, malformed) == (2 * 8552, 2)  # Two 'rejected' end with a Human turn.


@needs_hh
def test_hh_every_row_is_kept_or_counted():
  examples, report = _load(HH)
  assert report.rows == 8552
  assert report.dropped == {"identical_sides": 36, "empty_response": 11, "malformed_dialogue": 2}
  assert report.kept == len(examples) == 8503
  assert collections.Counter(e.source for e in examples) == {
    "harmless-base.test": 2312 - 4,
    "helpful-base.test": 2354 - 2 - 4,
    "helpful-online.test": 1137 - 2 - 3 - 2,
    "helpful-rejection-sampled.test": 2749 - 32,
  }
  assert sum(any(len(side) > 1 for side in e.responses) for e in examples) == 17
  for example in examples:
    for side in example.responses:
      assert side[0]["role"] == side[-1]["role"] == "assistant"
  texts = {_rendered(e.prompt + side) for e in examples for side in e.responses}
  with gzip.open(HH / "helpful-base.test.jsonl.gz", "rb") as lines:
    assert json.loads(next(lines))["rejected"] in texts


# reasons to drop

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
CHAT = {"prompt": [user("Q")], "chosen": [bot("a")], "rejected": [bot("b")]}
H, A = "\n\nHuman: ", "\n\nAssistant: "
BAD = [
  ("wrong_type", PAIR | {"prompt": None}, "'prompt' is None; expected text"),
  ("wrong_type", PAIR | {"chosen": None}, "'chosen' is None; expected a list of {role, content}"),
  ("wrong_type", PAIR | {"rejected": 3}, "'chosen' is 'a'; expected a list"),
  ("wrong_type", CHAT | {"prompt": "Q", "chosen": "a"}, "'chosen' is 'a'; expected a list"),
  ("wrong_type", CHAT | {"prompt": None}, "'prompt' is None"),
  ("wrong_type", CHAT | {"chosen": ["a"]}, "chosen[0] is 'a'; expected {role, content}"),
  ("wrong_type", CHAT | {"chosen": [{"from": "gpt", "value": "a"}]}, "chosen[0] is {'from'"),
  ("wrong_type", CHAT | {"chosen": [bot(None)]}, "chosen[0].content' is None; expected text"),
  ("wrong_type", CHAT | {"chosen": [bot([{"type": "text"}])]}, "expected text"),
  ("wrong_type", PAIR | {"margin": "1"}, "'margin' is '1'; expected a number"),
  ("wrong_type", PAIR | {"margin": True}, "'margin' is True; expected a number"),
  ("not_finite", PAIR | {"margin": float("nan")}, "'margin' is nan; expected a finite number"),
  ("not_finite", PAIR | {"weight": float("inf")}, "'weight' is inf"),
  ("not_finite", PAIR | {"margin": 10**400}, "'margin' is 1000"),
  ("out_of_range", PAIR | {"weight": -0.5}, "'weight' is -0.5; expected at least 0"),
  ("empty_prompt", PAIR | {"prompt": " \n"}, "prompt is ' \\n'; expected text"),
  ("empty_prompt", CHAT | {"prompt": []}, "prompt is ()"),
  ("empty_prompt", CHAT | {"prompt": [], "chosen": [user("Q"), bot("a")]}, "prompt is ()"),
  ("empty_prompt", {"chosen": "yes", "rejected": "no"}, "no column of a prompt among"),
  ("empty_prompt", {"chosen": [bot("a")], "rejected": [bot("b")]}, "both sides start with the a"),
  ("empty_response", PAIR | {"chosen": ""}, "'chosen' ends with ''"),
  ("empty_response", PAIR | {"rejected": " \t"}, "'rejected' ends with ' \\t'"),
  ("empty_response", CHAT | {"rejected": []}, "'rejected' ends with ''"),
  ("empty_response", CHAT | {"rejected": [user("Q")]}, "'rejected' ends with ''"),
  ("empty_response", CHAT | {"rejected": [bot("x"), user("y"), bot("")]}, "ends with ''"),
  ("empty_response", {"chosen": [], "rejected": [user("Q"), bot("b")]}, "without messages"),
  ("empty_response", {"chosen": H + "Q" + A, "rejected": H + "Q" + A + "b"}, "'chosen' ends"),
  ("identical_sides", PAIR | {"rejected": "a"}, "are both 'a'; expected two responses"),
  ("identical_sides", CHAT | {"rejected": [user("Q"), bot("a")]}, "are both"),
  ("identical_sides", {"chosen": H + "Q", "rejected": H + "Q"}, "are both"),
  ("identical_sides", {"chosen": "x y", "rejected": "x y"}, "are both"),
  ("identical_sides", {"chosen": [bot("a")], "rejected": [bot("a")]}, "are both"),
  ("bad_role", CHAT | {"prompt": [{"role": "human", "content": "Q"}]}, "role 'human'; expected"),
  ("bad_role", CHAT | {"chosen": [{"role": None, "content": "a"}]}, "chosen[0] has role None"),
  ("unsupported_message", CHAT | {"chosen": [bot("a") | {"tool_calls": [{}]}]}, "has tool_calls"),
  ("prompts_differ", CHAT | {"chosen": [user("other"), bot("a")]}, "'chosen' starts with {'role'"),
  (
    "prompts_differ",
    {"chosen": [user("1"), bot("a")], "rejected": [user("2"), bot("b")]},
    "expected the same turns on both sides up to an assistant's",
  ),
  ("prompts_differ", {"chosen": H + "1" + A + "a", "rejected": H + "2" + A + "b"}, "same turns"),
  ("malformed_dialogue", CHAT | {"chosen": [bot("a"), user("b")]}, "expected the assistant's"),
  ("malformed_dialogue", {"chosen": A + "a", "rejected": H + "Q" + A + "b"}, "starts '\\n\\nAss"),
  ("malformed_dialogue", {"chosen": H + "Q" + A + "a", "rejected": "b"}, "starts 'b'"),
  (
    "malformed_dialogue",
    {"chosen": "Human: Q" + A + "a", "rejected": "Human: Q" + A + "b"},
    "starts 'Human: Q",
  ),
  (
    "malformed_dialogue",
    {"chosen": H + "Q" + A + "a" + H + "x", "rejected": H + "Q" + A + "b"},
    "last turn is Human's 'x'; expected an Assistant turn",
  ),
  (
    "malformed_dialogue",
    {"chosen": H + "Q" + A + "a\n\nHuman:x", "rejected": H + "Q" + A + "b"},
    "a turn's marker without a space after it",
  ),
  ("lone_surrogate", PAIR | {"chosen": "a\ud800"}, "'chosen' has half a surrogate pair at char"),
  ("lone_surrogate", CHAT | {"prompt": [user("\udfff")]}, "'prompt[0].content' has half"),
  ("lone_surrogate", {"chosen": H + "\ud800", "rejected": H}, "half a surrogate"),
]


@pytest.mark.parametrize(("reason", "row", "detail"), BAD)
def test_bad_rows(reason, row, detail):
  with pytest.raises(RowError) as error:
    _convert(row)
  assert error.value.reason == reason
  assert detail in error.value.detail
  error.value.detail.encode()  # It can be printed.


def test_bad_rows_are_counted_and_strict_raises(tmp_path):
  path = _file(tmp_path / "a.jsonl", PAIR, PAIR | {"chosen": "b"}, {"prompt": "Q"}, PAIR)
  examples, report = _load(path)
  assert [e.origin for e in examples] == [f"{path}:1", f"{path}:4"]
  assert report.dropped == {"identical_sides": 1, "missing_column": 1}
  missing = "has columns ['prompt']; expected ['chosen', 'rejected'] too"
  assert report.examples["missing_column"] == [f"{path}:3: {missing}"]
  with pytest.raises(DataError, match=r"a\.jsonl:2: identical_sides: "):
    _load(path, strict=True)


def test_null_margin_is_no_margin():
  assert _convert(PAIR | {"margin": None}).margin is None


def test_a_ties_margin_is_kept_by_pair_and_by_formats_like_it():
  row = PAIR | {"tie": True, "margin": 2.0}
  found = _convert(row)
  sides = row["chosen"], row["rejected"]
  assert found.margin == 2.0
  assert found == pair_example(row, "f:1", row["prompt"], sides, 0.0, margin=2.0)


def test_parquet_comes_out_as_json_does(tmp_path):
  rows = [CHAT, CHAT | {"chosen": [bot("c")]}]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
  made, _ = _load(tmp_path / "train.parquet")
  same, _ = _load(_file(tmp_path / "train.jsonl", *rows))
  for one, other in zip(made, same, strict=True):
    assert dataclasses.replace(one, origin="") == dataclasses.replace(other, origin="")


# detection


def test_detect():
  assert detect(PAIR).name == "pair"
  assert detect({"chosen": "a b", "rejected": "a c"}).name == "implicit"
  assert detect({"chosen": [bot("a")], "rejected": [bot("b")]}).name == "implicit"
  assert detect({"chosen": H + "Q" + A + "a", "rejected": H + "Q" + A + "b"}).name == "hh"
  assert detect({"prompt": "Q", "chosen": "a"}) is None


def test_a_bad_first_row_does_not_choose_the_format(tmp_path):
  good = {"chosen": H + "Q" + A + "a", "rejected": H + "Q" + A + "b"}
  examples, report = _load(_file(tmp_path / "a.jsonl", good | {"chosen": None}, good))
  assert examples[0].prompt == (user("Q"),)
  assert report.dropped == {"wrong_type": 1}


def test_the_first_good_row_chooses_for_its_file(tmp_path):
  hh = {"chosen": H + "Q" + A + "a", "rejected": H + "Q" + A + "b"}
  _file(tmp_path / "a.jsonl", hh, {"chosen": "plain a", "rejected": "plain b"})
  _file(tmp_path / "b-00000-of-00001.jsonl", PAIR)
  examples, report = _load(tmp_path)
  assert [(e.source, type(e.prompt)) for e in examples] == [("a", tuple), ("b", str)]
  assert report.dropped == {"malformed_dialogue": 1}
  assert {e.source for e in _load(tmp_path, source="mine")[0]} == {"mine"}
  for name in ("c.json", "c.jsonl", "c.jsonl.gz", "c.json.gz"):
    path = tmp_path / name
    text = (json.dumps(PAIR) + "\n").encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert [e.source for e in _load(path)[0]] == ["c"], name


def test_a_file_without_the_columns_stops_at_once(tmp_path):
  path = _file(tmp_path / "a.jsonl", {"question": "Q", "answer": "a"})
  with pytest.raises(DataError) as error:
    _load(path)
  assert f"{path}:1: columns ['answer', 'question'] are of no known format" in str(error.value)
  # The nearest formats and what they lack, and how to say which columns these are.
  assert "Nearest: prm800k_published {question, label}, which lacks label; " in str(error.value)
  assert "data.columns" in str(error.value)
  path = _file(tmp_path / "a.jsonl", {"messages": []})
  with pytest.raises(DataError, match=r"Nearest: pair {prompt, chosen, rejected}; ranking {"):
    _load(path)
  path = _file(tmp_path / "a.jsonl", {"chosen": "x a", "rejected": "x b"})
  with pytest.raises(DataError, match=r":1: columns .* format 'pair' needs \['prompt', "):
    _load(path, format="pair")


def test_no_row_kept_is_an_error(tmp_path):
  with pytest.raises(DataError, match=r"(?s)not one row could be kept.*dropped 1: wrong_type"):
    _load(_file(tmp_path / "a.jsonl", PAIR | {"chosen": None}))
  with pytest.raises(DataError, match=r"not one row could be kept\. 0 of 0 rows kept"):
    _load(_file(tmp_path / "a.jsonl"))


def test_options_are_checked(tmp_path):
  path = _file(tmp_path / "a.jsonl", PAIR, PAIR, PAIR)
  examples, report = _load(path, limit=2)
  assert (len(examples), report.rows) == (2, 2)
  with pytest.raises(DataError, match="limit is 0"):
    _load(path, limit=0)
  with pytest.raises(DataError, match=r"no format 'pairs'; known: auto, .*pair, "):
    _load(path, format="pairs")


def test_a_new_format_plugs_in(tmp_path, monkeypatch):
  monkeypatch.setattr(formats, "FORMATS", dict(FORMATS))

  @register("labelled", needs=("input", "output_1", "output_2", "label"))
  def _labelled(row, origin):
    best = row["label"] == 1
    sides = row["output_1"], row["output_2"]
    return Example(row["input"], sides, (float(best), float(not best)), origin=origin)

  row = {"input": "Q", "output_1": "a", "output_2": "b", "label": 2}
  examples, _ = _load(_file(tmp_path / "a.jsonl", row))
  assert examples[0].labels == (0.0, 1.0)
  with pytest.raises(ValueError, match="'labelled' is registered already"):
    register("labelled", needs=())(_labelled)


def test_most_rows_choose_and_not_one_that_echoes_its_question(tmp_path):
  echo = {"question": "France", "chosen": "France is in Europe.", "rejected": "France is in Asia."}
  plain = {"system": "S", "question": "Q", "chosen": "good", "rejected": "bad"}
  path = _file(tmp_path / "a.jsonl", echo, *[plain | {"question": f"Q{i}"} for i in range(9)])
  report = Report()
  found = load(path, report=report)
  assert len(found) == 10
  assert found[0].prompt == (user("France"),)
  assert found[1].prompt[0]["content"] == "S"
  assert len(load(path, report=Report(), limit=3)) == 3


def test_a_margin_that_says_who_is_better_by_its_sign_is_refused():
  row = {"prompt": "Q", "chosen": "a", "rejected": "b", "margin": -3}
  with pytest.raises(RowError, match=r"'margin' is -3.0; expected .* not negative"):
    FORMATS["pair"].convert(row, "f:1")


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
  for part in ("harmless", "helpful"):
    for split in ("train", "test"):
      (tmp_path / "hh" / part).mkdir(parents=True, exist_ok=True)
      row = {"prompt": part, "chosen": "a", "rejected": "b"}
      _file(tmp_path / "hh" / part / f"{split}.jsonl", row)
  _file(tmp_path / "hh" / "more.jsonl", {"prompt": "P", "chosen": "a", "rejected": "b"})
  assert [e.source for e in load(tmp_path / "hh", report=Report())] == [
    *("harmless/test", "harmless/train", "helpful/test", "helpful/train", "more")
  ]
  (only,) = {e.source for e in load(tmp_path / "hh" / "helpful" / "test.jsonl", report=Report())}
  assert only == "test"
