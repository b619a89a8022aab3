"""What a run has learned from, as commands that judge it say."""

import json

import pytest

from configs.base import get_config
from experiments.run_data import count_learned, learned
from rm_jax.data import formats
from rm_jax.data.report import Report
from tests.train.runs import write_pairs


@pytest.fixture
def workdir(tmp_path):
  """A run's workdir without weights: trained on 20 pairs, of which a fifth were held out."""
  config = get_config()
  config.data.train = str(write_pairs(tmp_path / "train.jsonl", 20))
  config.data.heldout = "0.2"
  for folder in ("model", "checkpoints"):
    (tmp_path / "run" / folder).mkdir(parents=True)
  (tmp_path / "run/model/config.json").write_text("{}")
  (tmp_path / "run/config.json").write_text(json.dumps(config.to_dict()))
  return tmp_path / "run"


def test_what_a_run_learned_from_is_counted_and_warned_of(workdir, tmp_path, caplog):
  examples = formats.load(str(tmp_path / "train.jsonl"), report=Report())
  count = sum(e.conversation in learned(str(workdir)) for e in examples)
  assert 0 < count < len(examples)
  assert count_learned(str(workdir), examples) == count
  assert f"the conversations of {count} of these {len(examples)} examples" in caplog.text


def test_other_data_are_not_warned_of(workdir, tmp_path, caplog):
  other = formats.load(str(write_pairs(tmp_path / "other.jsonl", 5, seed=3)), report=Report())
  assert count_learned(str(workdir), other) == 0
  assert not caplog.text


def test_where_it_is_not_known_nothing_is_counted(workdir, tmp_path, caplog):
  examples = formats.load(str(tmp_path / "train.jsonl"), report=Report())
  assert count_learned(str(tmp_path), examples) is None
  assert not caplog.text
  (tmp_path / "train.jsonl").unlink()
  assert count_learned(str(workdir), examples) is None
  assert "it is not known whether" in caplog.text
