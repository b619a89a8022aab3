"""What an earlier version made loads and scores as it did: see tests/golden/make.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.audit.reference import Reference
from tests.golden import make

GOLDEN = Path(__file__).parent / "golden"
COPIES = sorted(path.parent for path in GOLDEN.glob("*/*/scores.json"))


def test_there_are_copies():
  assert {path.name for path in COPIES} >= set(make.KEPT)


@pytest.mark.parametrize("folder", COPIES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_scores_are_what_they_were(folder):
  """Of 1e-6, for machines differ in the last bits; on one machine they are the same bitwise, which
  tests/studies/compatibility.py holds."""
  found = make.scores(folder.name, folder)
  expected = json.loads((folder / "scores.json").read_text())
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    assert np.std(values) > 0.01  # or all would agree by themselves
    np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("folder", COPIES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_the_drift_reference_is_read(folder):
  reference = Reference.load(folder / "run/model")
  assert reference.scores.shape == (len(reference.pooled),)
  config = json.loads((folder / "run/config.json").read_text())
  assert reference.data == config["data"]["train"]


def test_an_export_is_exported_again(tmp_path):
  """What is read from an old export and saved by today's code scores the same."""
  for folder in COPIES:
    rows = make.rows(folder.name)
    old = RewardModel.from_pretrained(folder / "export")
    out = tmp_path / folder.name
    old.save_pretrained(out)
    np.testing.assert_array_equal(RewardModel.from_pretrained(out).score(rows), old.score(rows))
