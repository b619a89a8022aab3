"""Examples that are left out are counted, and a draw is the same every time."""

import json

import pytest

from rm_jax.data.choose import conversations_in, sampled, without
from rm_jax.data.report import DataError, Report
from rm_jax.types import Example


def examples(count):
  return [
    Example(f"p{i}", ("a", "b"), (1.0, 0.0), origin=f"f:{i}", conversation=f"c{i % 4}")
    for i in range(count)
  ]


def test_whole_conversations_are_left_out():
  report = Report(rows=8)
  kept = without(examples(8), {"c1", "c9"}, "seen.jsonl", report)
  assert [e.origin for e in kept] == [f"f:{i}" for i in (0, 2, 3, 4, 6, 7)]
  assert (report.kept, report.dropped) == (6, {"excluded": 2})
  assert report.examples["excluded"][0] == "f:1: its conversation is in seen.jsonl"


def test_a_draw_keeps_the_order_and_depends_on_the_seed_alone():
  report = Report(rows=40)
  kept = sampled(examples(40), 10, report)
  assert (
    kept
    == sampled(examples(40), 10, Report(rows=40))
    != sampled(examples(40), 10, Report(rows=40), seed=1)
  )
  places = [int(e.origin.removeprefix("f:")) for e in kept]
  assert places == sorted(set(places))
  assert (len(places), report.kept, report.dropped) == (10, 10, {"not_sampled": 30})
  for limit in (0, 40, 41):
    assert sampled(examples(40), limit, report) == examples(40)
  assert report.dropped == {"not_sampled": 30}


def test_a_strict_report_is_not_stopped_by_what_is_left_out_on_purpose():
  assert sampled(examples(3), 2, Report(strict=True, rows=3))
  assert without(examples(3), {"c0"}, "x", Report(strict=True, rows=3))


def test_what_is_excluded_is_read_as_what_it_is_left_out_of(tmp_path):
  """With other columns its conversations would have other keys, and nothing would be left out."""
  rows = [
    {"prompt": f"id {i}", "question": f"q{i}", "chosen": "a", "rejected": "b"} for i in (1, 2)
  ]
  path = tmp_path / "seen.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  named = conversations_in(str(path), columns="prompt=question")
  plain = conversations_in(str(path))
  assert len(named) == len(plain) == 2
  assert not named & plain
  # A file of our own names, beside data that have others.
  path.write_text("".join(json.dumps({k: r[k] for k in r if k != "question"}) + "\n" for r in rows))
  assert conversations_in(str(path), columns="prompt=question") == plain
  with pytest.raises(DataError):
    conversations_in(str(tmp_path / "none.jsonl"), columns="prompt=question")
