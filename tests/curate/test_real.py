"""Known facts about real data: Anthropic's HH-RLHF and PandaLM's annotators."""

import pathlib

import pytest

from rm_jax.curate import ledger, pipeline
from rm_jax.curate.annotators import annotator_report, read_judgements

DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "hh_rlhf").is_dir(), reason="../shared/data/hh_rlhf is not here")
def test_hh():
  book = ledger.read(DATA / "hh_rlhf")
  report = pipeline.curate(book, pipeline.Options(early="drop"))
  assert report["rows"] == {"read": 8552, "kept": 8486, "dropped": 66, "changed": 0}
  assert report["dropped"] == {
    "identical_sides": 36,
    "parts_early": 17,
    "empty_response": 11,
    "malformed_dialogue": 2,
  }
  identical = [e for e in book.dropped if e.reason == "identical_sides"]
  files = [e.origin.split("/")[-1].split(".")[0] for e in identical]
  assert {f: files.count(f) for f in files} == {
    "helpful-base": 2,
    "helpful-online": 2,
    "helpful-rejection-sampled": 32,
  }


@pytest.mark.skipif(not (DATA / "pandalm").is_dir(), reason="../shared/data/pandalm is not here")
def test_pandalm():
  names = ["annotator1", "annotator2", "annotator3"]
  path = DATA / "pandalm" / "testset-v1.jsonl.gz"
  judgements = read_judgements(path, names, prompt=["instruction", "input"])
  # In six rows a response is the JSON value true, which is not text.
  assert [e.reason for e in judgements.unread] == ["wrong_type"] * 6
  report = annotator_report(judgements)
  assert report["rows"] == {"read": 999, "kept": 993, "dropped": 6}
  assert report["agreement"]["nominal"]["alpha"] == pytest.approx(0.868, abs=5e-4)
  for bias in report["biases"].values():
    low, high = bias["length"]["interval"]
    assert low > 0.5  # All three choose the longer answer more often.
    low, high = bias["position"]["interval"]
    assert low < 0.5 < high
