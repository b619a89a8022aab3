"""Variance over the members of an ensemble, on held-out against shifted prompts."""

import numpy as np
import pytest

from rm_jax.api import RewardModel
from rm_jax.batch.dataset import TokenDataset
from rm_jax.data import formats
from rm_jax.data.report import Report
from rm_jax.heldout.evaluate import evaluate, summary_table
from rm_jax.heldout.shift import member_variance, separation
from rm_jax.train import loop
from rm_jax.types import Example
from tests.train.runs import small_config, write_pairs


def dataset(name, n):
  examples = [Example("p", ("a", "b"), (1.0, 0.0), conversation=f"{name}{i}") for i in range(n)]
  return TokenDataset([], examples)


def test_a_constant_of_the_prompt_is_no_centered_variance():
  # Two members that differ by 2 in both scores; two that differ in the second score only.
  raw, centered = member_variance([np.asarray([[0, 1], [2, 3.0]]), np.asarray([[0, 1], [0, 3.0]])])
  np.testing.assert_allclose(raw, [1.0, 0.5])
  # (0, 1) -> (-1/2, 1/2) and (0, 3) -> (-3/2, 3/2): variance 1/4 at each mark, times 2 / (2 - 1).
  np.testing.assert_allclose(centered, [0.0, 0.5])
  raw, centered = member_variance([np.asarray([[1.0], [5.0]])])
  assert raw == 4
  assert np.isnan(centered)


def test_separation():
  rng = np.random.default_rng(0)
  held = [rng.normal(0, 1, (4, 2)) for _ in range(200)]
  same = [rng.normal(0, 1, (4, 2)) for _ in range(200)]
  wide = [rng.normal(0, 3, (4, 2)) for _ in range(200)]
  sets = dataset("h", 200), dataset("s", 200)
  found = separation((held, wide), sets)
  assert found["auroc"]["interval"][0] > 0.8
  assert found["auroc_centered"]["interval"][0] > 0.7
  assert found["shifted"]["variance"] > 4 * found["heldout"]["variance"]
  low, high = separation((held, same), sets)["auroc"]["interval"]
  assert low < 0.5 < high


def test_the_number_of_marks_is_no_disagreement():
  rng = np.random.default_rng(0)
  pairs = [rng.normal(0, 1, (8, 2)) for _ in range(300)]
  lists = [rng.normal(0, 1, (8, 8)) for _ in range(300)]
  sets = dataset("h", 300), dataset("s", 300)
  found = separation((pairs, lists), sets)
  # The variance is 7/8. What is left of 1/2 is from the smaller spread of the lists' variances.
  assert found["heldout"]["variance_centered"] == pytest.approx(7 / 8, abs=0.08)
  assert found["shifted"]["variance_centered"] == pytest.approx(7 / 8, abs=0.08)
  assert 0.5 < found["auroc_centered"]["value"] < 0.6
  assert "one_mark" not in found["shifted"]


def test_groups_of_one_mark_are_counted_and_left_out():
  rng = np.random.default_rng(0)
  held = [rng.normal(0, 1, (4, 2)) for _ in range(20)]
  alone = [rng.normal(0, 3, (4, 1)) for _ in range(20)]
  sets = dataset("h", 20), dataset("s", 20)
  found = separation((held, alone), sets)
  assert found["auroc"]["value"] > 0.7
  centered = found["auroc_centered"]
  assert (centered["value"], centered["interval"]) == (None, None)
  assert "in groups of several marks" in centered["why"]
  assert found["shifted"]["one_mark"] == found["shifted"]["n"] == 20
  assert found["shifted"]["variance_centered"] is None
  found = separation((held, [*alone[:10], *held[:10]]), sets)
  assert 0.3 < found["auroc_centered"]["value"] < 0.7
  assert found["shifted"]["one_mark"] == 10


def test_few_shifted_prompts_are_few_however_many_are_held_out():
  rng = np.random.default_rng(0)
  held, wide = ([rng.normal(0, 1, (4, 2)) for _ in range(n)] for n in (60, 4))
  found = separation((held, wide), (dataset("h", 60), dataset("s", 4)))
  for name in ("auroc", "auroc_centered"):
    assert found[name]["why"] == "of the rarer class, 4 conversations: an interval wants 5"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_told(bad):
  good = [np.ones((2, 2)), np.zeros((2, 2))]
  found = separation((good, [*good, np.asarray([[0.0, 1.0], [bad, 2.0]])]), (None, None))
  why = "the scores of 0 held-out and 1 shifted examples are not finite"
  for name in ("auroc", "auroc_centered"):
    assert found[name] == {"value": None, "interval": None, "why": why}
  assert found["heldout"] == {"n": 2, "variance": None, "variance_centered": None}
  assert found["shifted"]["n"] == 3


@pytest.mark.slow
def test_a_run_reports_on_shifted_data_and_an_ensemble_on_its_disagreement(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=2)
  config.data.train = str(write_pairs(tmp_path / "train.jsonl", 24))
  config.data.heldout = "0.3"
  config.data.shifted = str(write_pairs(tmp_path / "other.jsonl", 12, seed=5))
  config.model.frozen_layers = 1
  shift = loop.train(config, tmp_path / "one")["heldout"]["shift"]
  assert set(shift) == {"report"}
  examples = formats.load(config.data.shifted, report=Report())
  rows = [{"prompt": e.prompt, "response": r} for e in examples for r in e.responses]
  scores_NK = RewardModel.from_pretrained(tmp_path / "one").score(rows).reshape(12, 2)
  again = evaluate(list(scores_NK), examples).report
  assert shift["report"]["loss"] == pytest.approx(again["loss"], abs=1e-5)
  assert shift["report"]["accuracy"] == again["accuracy"]
  assert "on data.shifted: accuracy" in summary_table(again | {"shift": shift})
  config.model.members, config.model.frozen_layers = 3, 0
  shift = loop.train(config, tmp_path / "many")["heldout"]["shift"]
  assert (shift["report"]["n"], shift["shifted"]["n"]) == (12, 12)
  assert shift["heldout"]["variance"] > 0
  low, high = shift["auroc"]["interval"]
  assert 0 <= low <= shift["auroc"]["value"] <= high <= 1
  config.data.heldout = "0.00"
  with pytest.raises(ValueError, match=r"compared with data\.heldout"):
    loop.train(config, tmp_path / "nothing")
