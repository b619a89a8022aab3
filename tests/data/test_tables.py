"""CSV and TSV: every row is read or counted, and a cell stands for what its column holds."""

import csv
import dataclasses
import gzip
import json

import pytest

from rm_jax.data.formats import load
from rm_jax.data.read import read_rows
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.data.tables import cell_of
from tests.data.layouts import LAYOUTS


def _read(path, data, **options):
  path.write_bytes(data)
  report = Report()
  return list(read_rows(path, report, **options)), report


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "A.TSV.GZ", "plain.csv.gz"])
def test_csv_and_tsv_plain_and_compressed(tmp_path, name):
  tab = "tsv" in name.lower()
  text = "\ufeffprompt,chosen,margin\r\n"
  text += '7,"a, ""b""\nc\r\nd",2.5\n'
  text += "\n"
  text += "\u2028x,true,\n"
  data = (text.replace(",", "\t") if tab else text).encode()
  if name.lower().endswith("gz") and not name.startswith("plain"):
    data = gzip.compress(data)
  rows, report = _read(tmp_path / name, data)
  comma = "\t" if tab else ","
  assert rows == [
    (
      f"{tmp_path / name}:2",
      {"prompt": "7", "chosen": f'a{comma} "b"\nc\r\nd', "margin": 2.5},
    ),
    (f"{tmp_path / name}:6", {"prompt": "\u2028x", "chosen": "true", "margin": None}),
  ]
  assert (report.rows, report.dropped.total()) == (2, 0)


def test_bad_rows_are_dropped_by_their_lines(tmp_path):
  data = b't,n\na,1\nb\nc,2,3\n\xff,4\nd\0,5\ne"f,6\n"g"h,7\ni,"{""k"":1,""k"":2}"\nj,8\n'
  rows, report = _read(tmp_path / "a.csv", data)
  assert [row for _, row in rows] == [
    {"t": "a", "n": 1},
    {"t": 'e"f', "n": 6},
    {"t": "j", "n": 8},
  ]
  assert report.rows == 9
  assert dict(report.dropped) == {
    "wrong_fields": 2,
    "invalid_utf8": 1,
    "nul_character": 1,
    "invalid_csv": 1,
    "duplicate_key": 1,
  }
  shown = {reason: found[0] for reason, found in report.examples.items()}
  assert shown["wrong_fields"].startswith(f"{tmp_path}/a.csv:3: 1 fields, from 'b' to 'b'; expec")
  assert ":5: byte 0xff in " in shown["invalid_utf8"]
  assert ":6: a NUL character" in shown["nul_character"]
  assert ":8: ',' expected after" in shown["invalid_csv"]
  with pytest.raises(DataError, match=r"a\.csv:3: wrong_fields: "):
    list(read_rows(tmp_path / "a.csv", Report(strict=True)))


def test_a_quote_that_is_not_closed_says_so(tmp_path):
  rows, report = _read(tmp_path / "a.csv", b't,n\na,1\n"b,2\nc,3\n')
  assert [row["t"] for _, row in rows] == ["a"]
  assert ":3: a quote is opened here and not closed" in report.examples["invalid_csv"][0]


def test_a_cut_archive_keeps_the_rows_before_the_cut(tmp_path):
  data = gzip.compress(b"t,n\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(9000)))
  rows, report = _read(tmp_path / "a.csv.gz", data[: len(data) // 2])
  assert 1000 < len(rows) < 9000
  assert dict(report.dropped) == {"damaged_file": 1}
  with pytest.raises(DataError, match=r"b\.csv\.gz:1: the gzip stream breaks off here"):
    _read(tmp_path / "b.csv.gz", data[:12])


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"t,t\na,b\n", "a.csv:1: the header names column 't' twice; rename one of them"),
    (b"t,\xff\na,b\n", "a.csv:1: the header: invalid_utf8: byte 0xff"),
    (b"\xff\xfet\0\n\0", "a.csv:1: the header: invalid_utf8"),
    (b"t,\0\na,b\n", "a.csv:1: the header: nul_character"),
    (b't,"n\na,b\n', "a.csv:1: a quote is opened here and not closed"),
  ],
)
def test_a_header_that_cannot_be_read_stops_at_once(tmp_path, data, message):
  with pytest.raises(DataError) as error:
    _read(tmp_path / "a.csv", data)
  assert message in str(error.value)


def test_an_empty_file_has_no_rows(tmp_path):
  assert _read(tmp_path / "a.csv", b"")[0] == []
  assert _read(tmp_path / "b.csv", b"\n\nt,n\n")[0] == []


@pytest.mark.parametrize(
  ("cell", "value"),
  [
    ("7", 7),
    ("-0.5", -0.5),
    (" 7 ", 7),
    ("true", True),
    ("True", True),
    ("FALSE", False),
    ("null", None),
    ("", None),
    ("  ", None),
    ("[1, [2]]", [1, [2]]),
    ('{"a": null}', {"a": None}),
    ("NaN", "NaN"),
    ("007", "007"),
    ("model_a", "model_a"),
    ("['a']", "['a']"),
    ("[" * 100_000, "[" * 100_000),
  ],
)
def test_a_cell_that_is_json_is_that_value(cell, value):
  found = cell_of(cell, False)
  assert (found, type(found)) == (value, type(value))


def test_a_cell_of_a_column_of_texts_stays_text_unless_it_is_messages():
  for cell in ("7", "", "true", "null", "[1]", "[]", '["a"]', '{"a": 1}', '[{"role": "user"}]'):
    assert cell_of(cell, True) == cell
  messages = [{"role": "user", "content": "Q"}]
  assert cell_of(json.dumps(messages), True) == messages
  assert cell_of(json.dumps({"from": "gpt", "value": "a"}), True) == {"from": "gpt", "value": "a"}


def test_one_message_is_a_list_of_one(tmp_path):
  asked = {"role": "user", "content": "Q"}
  one, other = ({"role": "assistant", "content": text} for text in "ab")
  assert cell_of(json.dumps(asked), True) == [asked]
  assert cell_of(json.dumps(asked), False) == asked
  path = tmp_path / "x.csv"
  rows = [("prompt", "chosen", "rejected"), tuple(map(json.dumps, (asked, one, other)))]
  rows.append((json.dumps(asked | {"content": "P"}), "a", json.dumps([other])))
  with path.open("w", newline="") as file:
    csv.writer(file).writerows(rows)
  first, second = load(path, report=Report())
  assert (first.prompt, first.responses) == ((asked,), ((one,), (other,)))
  assert second.responses == first.responses


def test_which_columns_hold_texts(tmp_path):
  names = ("response_0", "response1", "response_a", "human_ref_A", "prediction 1", "input")
  others = ("answers", "responses", "labels", "completions", "prompt_id", "chosen_rating", "n")
  header = ",".join((*names, *others))
  rows, _ = _read(
    tmp_path / "a.csv", f"{header}\n{','.join('1' * len((*names, *others)))}\n".encode()
  )
  assert rows[0][1] == dict.fromkeys(names, "1") | dict.fromkeys(others, 1)
  rows, _ = _read(tmp_path / "b.csv", b"n,input\n1,1\n", texts={"n": True, "input": False})
  assert rows[0][1] == {"n": "1", "input": 1}


def test_a_field_may_be_as_long_as_a_book(tmp_path):
  rows, _ = _read(tmp_path / "a.csv", b"t,n\n" + b"x" * 300_000 + b",1\n")
  assert len(rows[0][1]["t"]) == 300_000


def test_each_kind_of_feedback_from_csv(tmp_path):
  texts = {
    "pair": "prompt,chosen,rejected,preference,weight\n7,8,9,0.75,\n",
    "ranking": 'prompt,responses,scores\nQ,"[""a"",""b""]","[1, 2]"\n',
    "outcome": "prompt,response,label\nQ,a,True\n",
    "score": "prompt,response,score\nQ,a,-2\n",
    "step": 'prompt,completions,labels\nQ,"[""a"",""b""]","[true, false]"\n',
    "attributes": 'prompt,response,attributes\nQ,a,"{""good"": 3}"\n',
    "arena_55k": "prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
    '"[""Q""]","[""a""]","[""b""]",0,1,0\n',
  }
  kinds = {}
  for name, text in texts.items():
    (tmp_path / f"{name}.csv").write_text(text)
    (example,) = load(tmp_path / f"{name}.csv", report=Report())
    assert example.source == name
    kinds[name] = example.kind
  assert kinds == {name: name for name in texts} | {"arena_55k": "pair"}
  (example,) = load(tmp_path / "pair.csv", report=Report())
  assert (example.prompt, example.responses, example.labels) == ("7", ("8", "9"), (0.75, 0.25))


def test_csv_beside_other_data_is_not_read(tmp_path):
  (tmp_path / "a.csv").write_text("t\n1\n")
  (tmp_path / "b.tsv").write_text("t\n2\n")
  assert [row["t"] for _, row in read_rows(tmp_path, Report())] == [1, 2]
  (tmp_path / "c.jsonl").write_text('{"t": 3}\n')
  report = Report()
  assert [row["t"] for _, row in read_rows(tmp_path, report)] == [3]
  assert report.unread == [f"{tmp_path}/a.csv", f"{tmp_path}/b.tsv"]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_every_layout_is_read_from_tables_as_from_json(name, ending, tmp_path):
  layout, path = LAYOUTS[name], tmp_path / f"a.{ending}"
  cells = [
    "" if value is None else value if isinstance(value, str) else json.dumps(value)
    for value in layout.row.values()
  ]
  with path.open("w", newline="") as file:
    rows = csv.writer(file, delimiter="\t" if ending == "tsv" else ",")
    rows.writerow(layout.row)
    rows.writerow(cells)
  (found,) = load(path, report=Report(), format=name if layout.by_name else "auto")
  assert dataclasses.replace(found, source="", origin="f:1") == layout.expected


def test_no_history_and_no_outputs_in_a_table(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text('instruction,input,chosen,rejected,history\nQ,,a,b,\nR,,a,b,"[[""x"",""y""]]"\n')
  found = load(path, report=Report())
  assert [len(e.prompt) for e in found] == [1, 3]


@pytest.mark.parametrize(
  "cell",
  [
    "[{'role': 'user', 'content': 'Q'}]",
    "[{'content': 'Q', 'role': 'user'}\n {'content': 'a', 'role': 'assistant'}]",
    "{'from': 'gpt', 'value': 'a'}",
  ],
)
def test_messages_as_python_prints_them_are_no_text(cell):
  with pytest.raises(RowError, match="messages as Python prints them"):
    cell_of(cell, True)
  assert cell_of("{'a': 1} is a dict", True) == "{'a': 1} is a dict"
