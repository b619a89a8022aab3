"""data.columns: a file's own names are read as ours; what cannot be meant is refused at once."""

import json

import ml_collections
import pytest

from configs.base import get_config
from rm_jax.data.columns import parse_columns, value_of, with_value
from rm_jax.data.formats import check_columns, load
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.train import datasets, loop
from rm_jax.train.fields import check_fields
from rm_jax.workdir import folder

PAIR = "prompt=question,chosen=answers.0.text,rejected=answers.1.text"
ROW = {
  "question": "Q",
  "answers": [{"text": "good", "votes": 3}, {"text": "bad", "votes": 1}],
  "margin": 2,
  "prompt": "of the page",
}


def _file(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_names_are_mapped_and_other_columns_stay(tmp_path):
  path = _file(tmp_path / "a.jsonl", ROW)
  (example,) = load(path, report=Report(), columns=PAIR)
  assert (example.prompt, example.responses, example.margin) == ("Q", ("good", "bad"), 2)
  # A row's own prompt is not ours if another column is mapped to it.
  mapping = {"prompt": "question", "chosen": "answers.0.text", "rejected": "answers.1.text"}
  assert load(path, report=Report(), columns=mapping) == [example]
  assert load(path, report=Report(), columns=ml_collections.ConfigDict({"x": mapping}).x) == [
    example
  ]


def test_a_mapped_column_is_not_read_under_its_own_name_too(tmp_path):
  # The file's preference is a strength, which is no probability.
  path = _file(
    tmp_path / "a.jsonl", {"prompt": "Q", "chosen": "a", "rejected": "b", "preference": 3}
  )
  (example,) = load(path, report=Report(), columns="margin=preference")
  assert (example.margin, example.pairs) == (3.0, None)


def test_a_name_with_dots_is_a_column_first(tmp_path):
  row = {"a.0": "Q", "a": ["no"], "b": "good", "c": "bad"}
  path = _file(tmp_path / "a.jsonl", row)
  (example,) = load(path, report=Report(), columns="prompt=a.0,chosen=b,rejected=c")
  assert example.prompt == "Q"


def test_csv_cells_are_texts_where_they_are_mapped_to_texts(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('q,a,n\n7,"[{""t"": ""4""}, {""t"": ""5""}]",3\n')
  columns = "prompt=q,chosen=a.0.t,rejected=a.1.t,margin=n"
  (example,) = load(path, report=Report(), columns=columns)
  assert (example.prompt, example.responses, example.margin) == ("7", ("4", "5"), 3.0)


def test_a_published_format_may_be_meant(tmp_path):
  path = _file(tmp_path / "a.jsonl", {"title": "Q", "a": "good", "b": "bad", "which": 0})
  columns = "history=title,human_ref_A=a,human_ref_B=b,labels=which"
  (example,) = load(path, report=Report(), columns=columns)
  assert example.responses[0][0]["content"] == "bad"


def test_only_formats_that_read_all_mapped_columns_are_asked(tmp_path):
  # The row also looks like Stanford's, which has no place for what is mapped.
  row = {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "q": "P", "s": 3}
  path = _file(tmp_path / "a.jsonl", row)
  columns = "prompt=q,response=human_ref_A,score=s"
  assert load(path, report=Report(), columns=columns)[0].kind == "score"


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ("prompt", "columns is 'prompt'; expected 'ours=theirs"),
    ("prompt=,chosen=a", "expected 'ours=theirs"),
    (["prompt"], "expected 'ours=theirs"),
    ({"prompt": 3}, "expected 'ours=theirs"),
    ("prompt=a,prompt=b", "names our column 'prompt' twice"),
    ("chosen=a,rejected=a", "names the file's column 'a' twice"),
    ("promt=a", "no format reads a column 'promt'; near are .*prompt"),
    ("prompt=a,completion=b,response=c,label=d", "completion and response, which mean the same"),
    ("prompt=a,responses=b,scores=c,ranks=d", "scores and ranks, which mean the same"),
    ("prompt=a,winner=b", "no format reads prompt, winner together"),
  ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(given, message):
  with pytest.raises(DataError, match=message):
    load("nowhere.jsonl", report=Report(), columns=given)


def test_a_named_format_reads_its_own_columns_only():
  assert check_columns("prompt=a,margin=b,weight=c", "pair")
  with pytest.raises(
    DataError, match=r"format 'pair' reads no column 'scores'.*ours being of chosen"
  ):
    check_columns("prompt=a,scores=b", "pair")


def test_all_annotators_of_pandalm_may_be_mapped(tmp_path):
  row = {"instruction": "Sum", "input": "1", "response1": "3", "response2": "4"}
  path = _file(tmp_path / "a.jsonl", row | {"a1": 1, "a2": 2, "a9": 0})
  columns = "annotator1=a1,annotator2=a2,annotator9=a9"
  for format in ("auto", "pandalm"):
    (example,) = load(path, report=Report(), format=format, columns=columns)
    assert example.judges == {"annotator1": 1.0, "annotator2": 0.0, "annotator9": 0.5}


def test_a_mapped_column_that_the_first_row_lacks_stops_at_once(tmp_path):
  path = _file(tmp_path / "a.jsonl", ROW)
  for columns, message in (
    (
      "prompt=title",
      r"a.jsonl:1: columns maps 'prompt' to 'title', and the row has columns \['ans",
    ),
    ("prompt=answers.2.text", r"'answers' is \[.*; expected '2' in it"),
    ("prompt=answers.0.title", r"'answers.0' is {.*; expected 'title' in it"),
    ("prompt=question.x", "'question' is 'Q'; expected 'x' in it"),
  ):
    with pytest.raises(DataError, match=message):
      load(path, report=Report(), columns=columns)


def test_without_a_sign_the_first_row_says_what_is_lacking(tmp_path):
  path = _file(tmp_path / "a.jsonl", {"q": "Q", "a": ["x", "y"]})
  message = (
    r"Nearest: ranking {.*}, which lacks scores\|ranks\|comparisons; outcomes .* lacks labels"
  )
  with pytest.raises(DataError, match=message):
    load(path, report=Report(), columns="prompt=q,responses=a")


def test_later_rows_without_a_mapped_column_are_counted(tmp_path):
  path = _file(tmp_path / "a.jsonl", ROW, ROW | {"answers": []}, {"question": "Q"})
  report = Report()
  assert len(load(path, report=report, columns=PAIR)) == 1
  assert dict(report.dropped) == {"missing_column": 2}


def test_the_config_takes_a_text_or_a_dict_and_so_does_a_source(tmp_path):
  path = str(_file(tmp_path / "a.jsonl", ROW))
  c = get_config()
  c.data.train, c.data.columns = path, PAIR
  check_fields(c)
  (example,) = datasets.read(path, c, Report(), "train")
  as_dict = get_config()
  as_dict.data.train, as_dict.data.columns = path, parse_columns(PAIR)
  check_fields(as_dict)
  assert datasets.read(path, as_dict, Report(), "train") == [example]
  # A workdir of the one may be resumed with the other.
  assert folder.plain(c) == folder.plain(as_dict)
  s = get_config()
  s.data.sources = {"one": {"path": path, "columns": {"prompt": "question", "chosen": "margin"}}}
  s.data.heldout = "0"
  check_fields(s)
  with pytest.raises(DataError, match="of no known format"):
    datasets.read_both(s, Report())
  s.data.sources.one.columns = ml_collections.ConfigDict(parse_columns(PAIR))
  train, _, _ = datasets.read_both(s, Report())
  assert [e.responses for e in train] == [("good", "bad")]


@pytest.mark.parametrize("where", ["--config.data.columns", "data.sources.one.columns"])
def test_a_mapping_of_the_config_is_checked_before_the_run(where):
  c = get_config()
  if where.startswith("--"):
    c.data.columns = "promt=a"
  else:
    c.data.sources = {"one": {"path": "x", "columns": "promt=a"}}
  with pytest.raises(DataError, match=f"^{where}: no format reads a column 'promt'"):
    check_fields(c)


def test_a_workdir_of_before_the_field_may_be_resumed(tmp_path):
  c = get_config()
  older = folder.plain(c)
  del older["data"]["columns"]
  assert folder.differences(older, c) == []
  c.data.columns = ""  # as --config.data.columns= gives it
  assert folder.differences(older, c) == []
  c.data.columns = PAIR
  (line,) = folder.differences(older, c)
  assert line.startswith("data.columns: None there, 'chosen=answers.0.text,prompt=question,rej")
  read = ml_collections.ConfigDict(older)
  path = _file(tmp_path / "a.jsonl", {"prompt": "Q", "chosen": "a", "rejected": "b"})
  assert len(datasets.read(str(path), read, Report(), "train")) == 1


def test_a_value_is_set_where_its_column_is():
  row = {"a.b": 1, "c": {"d": [1, 2], "e": 3}}
  assert with_value(row, "a.b", 5) == row | {"a.b": 5}
  assert with_value(row, "c.d.1", 5) == {"a.b": 1, "c": {"d": [1, 5], "e": 3}}
  assert with_value(row, "new", 5) == row | {"new": 5}
  assert value_of(row, "c.d.1") == 2  # the row itself is unchanged
  with pytest.raises(RowError, match="expected '2' in it"):
    with_value(row, "c.d.2", 5)


@pytest.mark.parametrize(
  ("row", "columns", "labels", "response"),
  [
    ({"completion": "OLD", "answer": "NEW", "label": True}, "response=answer", (1.0,), "NEW"),
    ({"response": "OLD", "answer": "NEW", "label": True}, "completion=answer", (1.0,), "NEW"),
    (
      {"responses": ["a", "b"], "scores": [0, 9], "place": [1, 2]},
      "ranks=place",
      (-1.0, -2.0),
      "a",
    ),
    (
      {"responses": ["a", "b"], "comparisons": [[0, 1, 0]], "s": [2, 1]},
      "scores=s",
      (2.0, 1.0),
      "a",
    ),
  ],
)
def test_a_mapped_column_stands_in_place_of_what_means_the_same(
  row, columns, labels, response, tmp_path
):
  path = _file(tmp_path / "a.jsonl", {"prompt": "Q"} | row)
  (example,) = load(path, report=Report(), columns=columns)
  assert (example.labels, example.responses[0]) == (labels, response)


def test_every_file_is_looked_at_before_anything_is_read(tmp_path):
  c = get_config()
  good, bad = _file(tmp_path / "a.jsonl", ROW), _file(tmp_path / "b.jsonl", {"prompt": "Q"})
  c.data.sources = {
    "one": {"path": str(good), "columns": PAIR},
    "two": {"path": str(bad), "columns": PAIR},
  }
  message = r"b\.jsonl:1: columns maps 'prompt' to 'question'"
  with pytest.raises(DataError, match=message):
    datasets.check_mapped(c)
  c.model.pretrained = "/nowhere"  # it is not even looked for
  with pytest.raises(DataError, match=message):
    loop.train(c, tmp_path / "run")
  c.data.sources = {"one": {"path": str(good), "columns": PAIR}}
  datasets.check_mapped(c)
