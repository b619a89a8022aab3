"""Reading rows: every kind of file and of bad row, and no row is lost without being counted."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from rm_jax.data import hub
from rm_jax.data.read import read_rows
from rm_jax.data.report import DataError, Report

ROWS = [{"chosen": "a", "n": 1}, {"chosen": "b  c", "n": 2}, {"chosen": "é", "n": 3}]
ROOT = pathlib.Path(__file__).parents[2]


def _lines(rows) -> bytes:
  return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _read(path, strict=False):
  report = Report(strict=strict)
  return list(read_rows(path, report)), report


def _write(path: pathlib.Path, data: bytes) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "A.JSONL"])
def test_json_lines(tmp_path, name):
  data = _lines(ROWS)
  path = _write(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
  found, report = _read(path)
  assert found == [(f"{path}:{n}", row) for n, row in enumerate(ROWS, 1)]
  assert (report.rows, report.kept, report.dropped.total()) == (3, 3, 0)


def test_gzip_is_told_by_content(tmp_path):
  zipped = _write(tmp_path / "a.jsonl", gzip.compress(_lines(ROWS)))
  plain = _write(tmp_path / "b.jsonl.gz", _lines(ROWS))
  assert [row for _, row in _read(zipped)[0]] == [row for _, row in _read(plain)[0]] == ROWS


def test_only_newlines_end_a_line(tmp_path):
  text = "one\u2028two\u2029three\x85four"
  path = _write(tmp_path / "a.jsonl", _lines([{"t": text}, {"t": "x"}]).replace(b"\n", b"\r\n"))
  assert [row["t"] for _, row in _read(path)[0]] == [text, "x"]


def test_byte_order_mark_blank_lines_and_missing_last_newline(tmp_path):
  path = _write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b'{"t": 1}\n\n  \t\r\n{"t": 2}')
  found, report = _read(path, strict=True)
  assert [(o.rpartition(":")[2], r["t"]) for o, r in found] == [("1", 1), ("4", 2)]
  assert (report.rows, report.kept) == (2, 2)


BAD = {
  b'{"t": 1': ("invalid_json", "expected JSON"),
  b"x" * 5000: ("invalid_json", "expected JSON"),
  b'{"t": NaN}': ("invalid_json", "NaN is not a JSON number"),
  b'{"t": [-Infinity]}': ("invalid_json", "-Infinity is not a JSON number"),
  b'{"t": ' + b"1" * 5000 + b"}": ("invalid_json", "expected JSON"),
  b'{"t": ' + b"[" * 100000: ("invalid_json", "expected JSON"),
  b'{"t": "\xff"}': ("invalid_utf8", "byte 0xff at column 8; expected UTF-8"),
  b'{"t": "\xed\xa0\x80"}': ("invalid_utf8", "expected UTF-8"),
  b'"text"': ("not_an_object", "str 'text'; expected an object"),
  b"[1]": ("not_an_object", "list [1]; expected an object"),
  b"null": ("not_an_object", "NoneType None; expected an object"),
  b'{"t": 1, "t": 1}': ("duplicate_key", "'t' twice"),
  b'{"m": [{"role": 1, "role": 2}]}': ("duplicate_key", "'role' twice"),
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:24].decode("latin1"))
def test_bad_lines(tmp_path, line):
  reason, detail = BAD[line]
  path = _write(tmp_path / "a.jsonl", b'{"t": 0}\n' + line + b'\n{"t": 2}\n')
  found, report = _read(path)
  assert [row["t"] for _, row in found] == [0, 2]
  assert (report.rows, report.kept, report.dropped) == (3, 2, {reason: 1})
  (example,) = report.examples[reason]
  assert example.startswith(f"{path}:2: ")
  assert detail in example
  assert len(example) < 600
  with pytest.raises(DataError) as error:
    _read(path, strict=True)
  assert f"{path}:2: {reason}: " in str(error.value)
  assert detail in str(error.value)


def test_good_rows_before_a_bad_one_come_out_first(tmp_path):
  path = _write(tmp_path / "a.jsonl", b'{"t": 0}\n!\n')
  rows = read_rows(path, Report(strict=True))
  assert next(rows)[1] == {"t": 0}
  with pytest.raises(DataError):
    next(rows)


def test_truncated_gzip_is_counted(tmp_path):
  rows = [{"t": os.urandom(50).hex()} for _ in range(2000)]
  whole = gzip.compress(_lines(rows))
  path = _write(tmp_path / "a.jsonl.gz", whole[: len(whole) // 2])
  found, report = _read(path)
  assert 500 < len(found) < 1500
  assert [row for _, row in found] == rows[: len(found)]
  assert report.dropped == {"damaged_file": 1}
  assert report.kept == len(found)
  assert report.examples["damaged_file"][0].startswith(f"{path}:{len(found) + 1}: ")
  with pytest.raises(DataError, match="damaged_file"):
    _read(path, strict=True)


def test_flipped_byte_in_gzip_is_counted(tmp_path):
  whole = bytearray(gzip.compress(_lines(ROWS)))
  whole[-8] ^= 1  # A byte of the checksum.
  _, report = _read(_write(tmp_path / "a.jsonl.gz", bytes(whole)))
  assert report.dropped == {"damaged_file": 1}


def test_array_file_says_how_to_mend_it(tmp_path):
  for data in (b'[{"t": 1}]', b'\n[\n  {"t": 1}\n]\n'):
    with pytest.raises(DataError, match=r"a\.json:\d: a JSON array; .*jq"):
      _read(_write(tmp_path / "a.json", data))


def test_parquet(tmp_path):
  rows = [
    {"prompt": "p", "chosen": [{"role": "user", "content": "ü"}], "margin": 1.5},
    {"prompt": None, "chosen": None, "margin": None},
  ] * 400  # More rows than are decoded at once.
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  found, report = _read(path)
  assert found == [(f"{path}:row {n}", row) for n, row in enumerate(rows)]
  assert report.kept == len(rows)


def test_parquet_bad_text_costs_its_own_row(tmp_path):
  column = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"t": column}), path)
  found, report = _read(path)
  assert found == [(f"{path}:row 0", {"t": "a"}), (f"{path}:row 2", {"t": "c"})]
  assert (report.rows, report.dropped) == (3, {"invalid_utf8": 1})
  assert report.examples["invalid_utf8"][0].startswith(f"{path}:row 1: ")


def test_parquet_damage(tmp_path):
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"t": ["a"] * 100}), path)
  path.write_bytes(path.read_bytes()[:-20])
  assert _read(path)[1].dropped == {"damaged_file": 1}
  with pytest.raises(DataError, match="not readable as parquet"):
    _read(path, strict=True)


def test_parquet_whose_columns_name_cannot_be_read_is_damaged(tmp_path):
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"colname": ["a"]}), path, store_schema=False)
  path.write_bytes(path.read_bytes().replace(b"colname", b"col\xffame"))
  found, report = _read(path)
  assert (found, dict(report.dropped)) == ([], {"damaged_file": 1})


def test_parquet_same_column_twice(tmp_path):
  table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["t", "t"])
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  with pytest.raises(DataError, match="two columns of one name"):
    _read(tmp_path / "a.parquet")


def test_folder_is_sorted_and_deep_and_names_what_it_passes_over(tmp_path):
  _write(tmp_path / "b.jsonl", _lines([{"t": 2}]))
  _write(tmp_path / "c" / "d.json.gz", gzip.compress(_lines([{"t": 3}])))
  _write(tmp_path / "a.jsonl", _lines([{"t": 1}]))
  _write(tmp_path / ".cache" / "x.jsonl", _lines([{"t": 9}]))
  _write(tmp_path / "dataset_infos.json", b"{}")
  _write(tmp_path / "shard.csv", b"t\n5\n")
  found, report = _read(tmp_path)
  assert [row["t"] for _, row in found] == [1, 2, 3]
  assert found[2][0] == f"{tmp_path}/c/d.json.gz:1"
  assert report.unread == [f"{tmp_path}/dataset_infos.json", f"{tmp_path}/shard.csv"]
  assert "shard.csv" in str(report)


def test_folder_with_a_file_twice(tmp_path):
  _write(tmp_path / "a.jsonl", _lines(ROWS))
  _write(tmp_path / "a.jsonl.gz", gzip.compress(_lines(ROWS)))
  with pytest.raises(DataError, match=r"a\.jsonl is there both plain and with \.gz"):
    _read(tmp_path)


@pytest.mark.parametrize("name", ["none.jsonl", "none/none.jsonl.gz", "../x/y", "nowhere"])
def test_missing_path_raises_at_once(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(DataError) as error:
    read_rows(name, Report())  # It raises before the first row is asked for.
  assert f"{name}: no such file or folder" in str(error.value)
  assert ".parquet" in str(error.value)
  assert "org/name" in str(error.value)


def test_unreadable_kinds(tmp_path):
  with pytest.raises(DataError, match=r"a\.txt: not a kind of file.*\.jsonl.*\.tsv"):
    _read(_write(tmp_path / "a.txt", b"t\n1\n"))
  (tmp_path / "empty").mkdir()
  with pytest.raises(DataError, match="empty: no file to read in this folder"):
    _read(tmp_path / "empty")


# The hub.


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A local cache of the hub with `add(repo, {path: bytes})`; nothing goes to the network."""
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.chdir(tmp_path)

  def add(repo: str, contents: dict[str, bytes]) -> pathlib.Path:
    home = tmp_path / "hub" / f"datasets--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    _write(home / "refs" / "main", commit.encode())
    for path, data in contents.items():
      blob = _write(home / "blobs" / path.replace("/", "_"), data)
      link = home / "snapshots" / commit / path
      link.parent.mkdir(parents=True, exist_ok=True)
      link.symlink_to(blob)
    return tmp_path / "hub"

  return add


def _parquet(tmp_path, rows) -> bytes:
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "made.parquet")
  return (tmp_path / "made.parquet").read_bytes()


def test_hub_json_lines_by_folder_and_split(cache):
  cache(
    "Anthropic/hh-rlhf",
    {
      "harmless-base/test.jsonl.gz": gzip.compress(_lines([{"t": 1}])),
      "harmless-base/train.jsonl.gz": gzip.compress(_lines([{"t": 2}])),
      "helpful-base/test.jsonl.gz": gzip.compress(_lines([{"t": 3}])),
      "red-team-attempts/red_team_attempts.jsonl.gz": gzip.compress(_lines([{"t": 4}])),
      "README.md": b"---\nlicense: mit\n---\nText.\n",
    },
  )

  def read(name):
    return [(origin, row["t"]) for origin, row in _read(name)[0]]

  test = [
    ("Anthropic/hh-rlhf/harmless-base/test.jsonl.gz:1", 1),
    ("Anthropic/hh-rlhf/helpful-base/test.jsonl.gz:1", 3),
  ]
  assert read("Anthropic/hh-rlhf:test") == test
  assert read("Anthropic/hh-rlhf@helpful-base:test") == test[1:]
  assert [t for _, t in read("Anthropic/hh-rlhf")] == [2]  # An id without a split means train.
  with pytest.raises(DataError, match=r"no file of a split 'validation'"):
    read("Anthropic/hh-rlhf:validation")
  with pytest.raises(DataError, match=r"no config 'helpful'; folders: .*'helpful-base'"):
    read("Anthropic/hh-rlhf@helpful:test")


def test_hub_parquet_by_the_card(cache, tmp_path):
  card = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: [data/test-*]
- config_name: raw
  data_files: raw/**/*.jsonl
- config_name: flat
  data_files: raw/*.jsonl
---
"""
  cache(
    "org/name",
    {
      "README.md": card,
      "data/train-00000-of-00002.parquet": _parquet(tmp_path, [{"t": 0}]),
      "data/train-00001-of-00002.parquet": _parquet(tmp_path, [{"t": 1}]),
      "data/train_gen-00000-of-00001.parquet": _parquet(tmp_path, [{"t": 8}]),
      "data/test-00000-of-00001.parquet": _parquet(tmp_path, [{"t": 2}]),
      "raw/a.jsonl": _lines([{"t": 3}]),
      "raw/deep/b.jsonl": _lines([{"t": 4}]),
    },
  )

  def read(name):
    return [row["t"] for _, row in _read(name)[0]]

  assert read("org/name") == read("org/name@default:train") == [0, 1]
  assert read("org/name:test") == [2]
  assert read("org/name@raw") == [3, 4]
  assert read("org/name@flat") == [3]  # * does not match across folders.
  with pytest.raises(DataError, match=r"no split 'valid'; its card lists \['test', 'train'\]"):
    read("org/name:valid")
  with pytest.raises(
    DataError, match=r"has configs \['default', 'flat', 'raw'\], and other was named"
  ):
    read("org/name@other")


def test_hub_shard_names_are_exact_and_complete(cache, tmp_path):
  made = {
    f"data/{split}-{index:05}-of-00002.parquet": _parquet(tmp_path, [{"t": split}])
    for split, index in [("train", 0), ("train", 1), ("train_prefs", 0)]
  }
  cache("org/name", made)
  assert [row["t"] for _, row in _read("org/name:train")[0]] == ["train", "train"]
  with pytest.raises(DataError, match=r"train_prefs has 2 shards, and \[1\] are missing"):
    _read("org/name:train_prefs")


def test_hub_without_split_names_is_read_whole(cache):
  cache("org/name", {"evol.jsonl": _lines([{"t": 1}]), "flan.jsonl": _lines([{"t": 2}])})
  assert [row["t"] for _, row in _read("org/name")[0]] == [1, 2]


def test_hub_shards_of_one_name_that_says_no_split_are_read_whole(cache, tmp_path):
  both = {f"data-0000{i}-of-00002.parquet": _parquet(tmp_path, [{"t": i}]) for i in range(2)}
  cache("org/name", both)
  for name in ("org/name", "org/name:data"):
    assert [row["t"] for _, row in _read(name)[0]] == [0, 1]
  with pytest.raises(DataError, match="no file of a split 'train' among data-00000-of-00002"):
    _read("org/name:train")
  # Of two names one has to be chosen, and a word of a split in a name is one.
  cache("org/two", both | {"more-00000-of-00001.parquet": both["data-00000-of-00002.parquet"]})
  cache("org/test", {"test-00000-of-00001.parquet": both["data-00000-of-00002.parquet"]})
  for name in ("org/two", "org/test"):
    with pytest.raises(DataError, match="no file of a split 'train'"):
      _read(name)


def test_hub_csv_where_there_is_nothing_else(cache):
  rows = {"train.csv": b"t\n1\n", "test.tsv.gz": gzip.compress(b"t\n2\n")}
  cache("org/name", rows)
  assert [row["t"] for _, row in _read("org/name")[0]] == [1]
  assert [row["t"] for _, row in _read("org/name:test")[0]] == [2]
  more = {"one/train.csv": b"t\n3\n", "two/train.csv": b"t\n4\n", "two/train.jsonl": b'{"t": 5}'}
  cache("org/mixed", more)
  assert [row["t"] for _, row in _read("org/mixed@one")[0]] == [3]
  assert [row["t"] for _, row in _read("org/mixed@two")[0]] == [5]
  card = b"---\nconfigs:\n- config_name: default\n  data_files: notes.csv\n---\n"
  cache("org/card", {"README.md": card, "notes.csv": b"t\n6\n", "train.jsonl": b'{"t": 7}'})
  assert [row["t"] for _, row in _read("org/card")[0]] == [6]


def test_hub_split_in_two_kinds(cache, tmp_path):
  parquet = _parquet(tmp_path, [{"t": 1}])
  cache("org/name", {"train.jsonl": _lines([{"t": 1}]), "train.parquet": parquet})
  with pytest.raises(DataError, match="both as parquet and as JSON lines"):
    _read("org/name")


def test_hub_data_set_that_is_not_there(cache):
  cache("org/name", {"train.jsonl": b""})
  with pytest.raises(DataError, match="org/none: no such file or folder here, and as a data set"):
    read_rows("org/none:train", Report())


def test_local_folder_wins_over_the_hub(cache, tmp_path):
  cache("org/name", {"train.jsonl": _lines([{"t": "hub"}])})
  _write(tmp_path / "org" / "name" / "x.jsonl", _lines([{"t": "here"}]))
  assert [row["t"] for _, row in _read("org/name")[0]] == ["here"]


def test_hub_by_environment_alone(cache):
  home = cache("org/name", {"train.jsonl": _lines([{"t": 1}])})
  code = "from rm_jax.data.read import *; print(*read_rows('org/name', Report()))"
  environment = {"HF_HUB_CACHE": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
  )
  assert done.stdout == "('org/name/train.jsonl:1', {'t': 1})\n", done.stderr


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("org/name", hub.HubId("org/name")),
    ("org/na.me-1:te_st", hub.HubId("org/na.me-1", split="te_st")),
    ("org/name@con.fig:test", hub.HubId("org/name", "con.fig", "test")),
    ("org/name@config", hub.HubId("org/name", "config")),
    ("name", None),
    ("./name", None),
    ("a/b/c", None),
    ("/a/b", None),
    ("org/name:a:b", None),
    ("org/name ", None),
  ],
)
def test_hub_ids(text, expected):
  assert hub.parse(text) == expected


# How later stages use the report.


def test_report_keeps_count_over_stages():
  report = Report(rows=10)
  for line in range(5):
    report.drop("identical_after_tokenising", f"f:{line}", "both [1, 2]; expected two")
  report.drop("too_long", "f:9", "900 tokens; expected at most 512")
  assert report.kept == 4
  assert report.examples["identical_after_tokenising"] == [
    f"f:{line}: both [1, 2]; expected two" for line in range(3)
  ]
  assert str(report).splitlines()[:2] == [
    "4 of 10 rows kept",
    "  dropped 5: identical_after_tokenising",
  ]


def test_strict_report_raises_with_everything():
  with pytest.raises(DataError, match="f:3: too_long: 900; expected 512"):
    Report(strict=True).drop("too_long", "f:3", "900; expected 512")
