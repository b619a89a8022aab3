"""The ledger: unchanged rows stay as read, every row is accounted for, output reads back."""

import dataclasses
import gzip
import json

import pytest

from rm_jax.curate import ledger as ledgers
from rm_jax.data.formats import load
from rm_jax.data.report import DataError, Report
from rm_jax.data.verdict import chance, swapped
from rm_jax.types import Example

ROWS = [
  {"id": 7, "prompt": "Hi\u2028 é", "chosen": "a", "rejected": "b", "extra": {"x": [1.5, None]}},
  {"prompt": "p", "chosen": "same", "rejected": "same"},
  {"rejected": "d", "chosen": "c", "prompt": "q", "score_chosen": 3, "score_rejected": 1},
  {"prompt": "r", "chosen": "e", "rejected": "f", "weight": 0.5, "margin": 2},
]


@pytest.fixture
def book(tmp_path):
  path = tmp_path / "in.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "not json\n")
  return ledgers.read(path)


def read_back(path):
  raw = path.read_bytes()
  text = gzip.decompress(raw) if path.name.endswith(".gz") else raw
  return [json.loads(line, object_pairs_hook=list) for line in text.splitlines()]


@pytest.mark.parametrize("name", ["out.jsonl", "sub/out.jsonl.gz"])
def test_rows_come_out_as_they_were(book, tmp_path, name):
  ledgers.write(tmp_path / name, book)
  kept = [ROWS[0], ROWS[2], ROWS[3]]
  pairs = [json.loads(json.dumps(row), object_pairs_hook=list) for row in kept]
  assert read_back(tmp_path / name) == pairs  # In the same order of columns.
  examples = load(tmp_path / name, report=Report(strict=True))
  assert [e.responses for e in examples] == [e.responses for e in book.examples]
  first = (tmp_path / name).read_bytes()
  ledgers.write(tmp_path / name, book)
  assert (tmp_path / name).read_bytes() == first
  assert not list(tmp_path.rglob("part.*"))


def test_what_could_not_be_read_is_listed(book, tmp_path):
  counts = book.counts()
  assert counts["rows"] == {"read": 5, "kept": 3, "dropped": 2, "changed": 0}
  assert counts["dropped"] == {"identical_sides": 1, "invalid_json": 1}
  origins = [entry["origin"] for entry in book.listed()["dropped"]]
  assert origins == [f"{tmp_path}/in.jsonl:2", f"{tmp_path}/in.jsonl:5"]


def test_files_that_are_passed_over_are_known(book, tmp_path):
  assert book.unread == []
  (tmp_path / "notes.csv").write_text("a,b\n")
  assert ledgers.read(tmp_path).unread == [f"{tmp_path}/notes.csv"]


def test_every_bad_row_is_listed_however_many(tmp_path):
  rows = [ROWS[0]] + [ROWS[1]] * 50
  path = tmp_path / "in.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert len(ledgers.read(path).dropped) == 50
  with pytest.raises(DataError, match=r"in.jsonl:2: identical_sides"):
    ledgers.read(path, strict=True)


def test_a_limit_takes_the_first_pairs(book, tmp_path):
  few = ledgers.read(tmp_path / "in.jsonl", limit=2)
  assert few.rows == book.rows[:2]
  # The row between the two was read, and cannot be used.
  assert few.counts()["rows"] == {"read": 3, "kept": 2, "dropped": 1, "changed": 0}


def test_drop_flip_reweigh(book, tmp_path):
  book.drop(0, "why", "of old age")
  book.flip(1, "suspected", "p = 0.1")
  book.reweigh(2, "light", "p = 0.2", 0.5)
  book.reweigh(2, "lighter", "again", 0.5)
  assert book.counts() == {
    "rows": {"read": 5, "kept": 2, "dropped": 3, "changed": 2},
    "dropped": {"identical_sides": 1, "invalid_json": 1, "why": 1},
    "changed": {"suspected": 1, "light": 1, "lighter": 1},
    "noted": {},
  }
  ledgers.write(tmp_path / "out.jsonl", book)
  flipped, light = [dict(row) for row in read_back(tmp_path / "out.jsonl")]
  assert flipped == {
    "rejected": "c",
    "chosen": "d",
    "prompt": "q",
    "score_chosen": 1,
    "score_rejected": 3,
  }
  assert light == {**ROWS[3], "weight": 0.125}
  details = [entry["detail"] for entry in book.listed()["changed"]]
  assert details[0] == "p = 0.1; swapped chosen, score_chosen"
  assert details[1:] == ["p = 0.2; weight 0.5 -> 0.25", "again; weight 0.25 -> 0.125"]
  assert book.rows[1] is not ROWS[2]
  # A row that is changed and then dropped counts as dropped, and is still listed as changed.
  book.drop(2, "why", "")
  assert book.counts()["rows"] == {"read": 5, "kept": 1, "dropped": 4, "changed": 1}
  assert book.counts()["changed"]["light"] == 1


def test_a_margin_stays_and_the_record_says_so(book):
  book.flip(2, "suspected", "p")
  assert book.rows[2]["margin"] == 2
  assert "its margin was left" in book.changed[0].detail


def test_a_flip_reverses_what_the_preference_says(tmp_path):
  """The texts change sides under the same preference; what is read back is the flipped example."""
  row = {"prompt": "p", "chosen": "a", "rejected": "b", "preference": 0.3}
  (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
  book = ledgers.read(tmp_path / "in.jsonl")
  book.flip(0, "suspected", "p")
  assert book.rows[0] == row | {"chosen": "b", "rejected": "a"}
  assert book.examples[0].labels == (0.3, 0.7)  # now of ('b', 'a')
  assert chance(swapped(book.examples[0])) == 1 - 0.3
  ledgers.write(tmp_path / "out.jsonl", book)
  (again,) = load(tmp_path / "out.jsonl", report=Report(), source="in")
  assert dataclasses.replace(again, origin="") == dataclasses.replace(book.examples[0], origin="")


def test_a_flip_takes_along_what_is_said_of_a_response():
  example = Example(
    "p",
    ("a", "b"),
    (1.0, 0.0),
    truth=(3.0, 1.0),
    authors=("x", "y"),
    judges={"one": 1.0, "two": 0.5},
  )
  book = ledgers.Ledger([{"prompt": "p", "chosen": "a", "rejected": "b"}], [example])
  book.flip(0, "suspected", "p")
  (flipped,) = book.examples
  assert (flipped.responses, flipped.labels) == (("b", "a"), (1.0, 0.0))
  assert (flipped.truth, flipped.authors) == ((1.0, 3.0), ("y", "x"))
  assert flipped.judges == {"one": 0.0, "two": 0.5}


def test_a_tie_has_no_reverse(tmp_path):
  row = {"prompt": "p", "chosen": "a", "rejected": "b", "tie": True}
  (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
  with pytest.raises(ValueError, match=r"in.jsonl:1: a tie cannot be flipped"):
    ledgers.read(tmp_path / "in.jsonl").flip(0, "suspected", "p")


@pytest.mark.parametrize(
  ("row", "columns", "changed"),
  [
    (
      {"q": "p", "best": "a", "worst": "b", "importance": 0.5},
      "prompt=q,chosen=best,rejected=worst,weight=importance",
      {"q": "p", "best": "b", "worst": "a", "importance": 0.25},
    ),
    (
      {"prompt": "p", "answers": [{"text": "a"}, {"text": "b"}], "meta": {"w": 2, "by": "x"}},
      "chosen=answers.0.text,rejected=answers.1.text,weight=meta.w",
      {"prompt": "p", "answers": [{"text": "b"}, {"text": "a"}], "meta": {"w": 1.0, "by": "x"}},
    ),
  ],
)
def test_changes_go_into_the_columns_that_are_mapped(tmp_path, row, columns, changed):
  (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
  book = ledgers.read(tmp_path / "in.jsonl", columns=columns)
  book.reweigh(0, "light", "p", 0.5)
  book.flip(0, "suspected", "p")
  assert book.rows == [changed]
  ledgers.write(tmp_path / "out.jsonl", book, columns=columns)
  (again,) = load(tmp_path / "out.jsonl", report=Report(), columns=columns)
  assert (again.responses, again.weight) == (("b", "a"), changed.get("importance", 1.0))


def test_a_row_goes_once(book):
  book.drop(0, "one", "")
  with pytest.raises(ValueError, match=r"in.jsonl:1: dropped twice"):
    book.drop(0, "two", "")
  with pytest.raises(ValueError, match="after it was dropped"):
    book.reweigh(0, "two", "", 0.5)
  with pytest.raises(ValueError, match="3 rows and 0 examples"):
    ledgers.Ledger(ROWS[:3], [])


def test_parquet_and_messages(tmp_path):
  pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  user, good = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "a"}]
  rows = [{"chosen": user + good, "rejected": [*user, {"role": "assistant", "content": "b"}]}]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
  book = ledgers.read(tmp_path / "in.parquet")
  book.flip(0, "x", "")
  ledgers.write(tmp_path / "out.jsonl", book)
  (example,) = load(tmp_path / "out.jsonl", report=Report())
  assert example.responses[1][0]["content"] == "a"


def test_write_refuses(book, tmp_path):
  with pytest.raises(DataError, match=r"out.csv: output is JSON lines"):
    ledgers.write(tmp_path / "out.csv", book)
  book.rows[0]["extra"] = float("nan")
  with pytest.raises(DataError, match=r"in.jsonl:1: .* JSON cannot hold"):
    ledgers.write(tmp_path / "out.jsonl", book)
  assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
  book.rows[0]["extra"] = "half \ud800 a pair"
  ledgers.write(tmp_path / "out.jsonl", book)
  assert dict(read_back(tmp_path / "out.jsonl")[0])["extra"] == "half \ud800 a pair"
  before = (tmp_path / "out.jsonl").read_bytes()
  for i in book.kept:
    book.drop(i, "all", "")
  with pytest.raises(DataError, match="no row is left"):
    ledgers.write(tmp_path / "out.jsonl", book)
  assert (tmp_path / "out.jsonl").read_bytes() == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_files_of_two_formats_do_not_go_into_one(tmp_path):
  folder = tmp_path / "in"
  folder.mkdir()
  (folder / "a.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
  hh = {side: f"\n\nHuman: hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}
  (folder / "b.jsonl").write_text(json.dumps(hh) + "\n")
  book = ledgers.read(folder)
  with pytest.raises(DataError, match="curate them one by one"):
    ledgers.write(tmp_path / "out.jsonl", book)
  assert not (tmp_path / "out.jsonl").exists()
