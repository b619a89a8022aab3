"""Several heads in one pass: they differ, their mean is the reward, and all of it is saved."""

import dataclasses

import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.reward.setup import build_model
from tests.train.runs import run, small_config

pytestmark = pytest.mark.slow  # processes, or whole runs

ROWS = [{"prompt": f"{i} ", "response": "ab" * (i + 1)} for i in range(9)]


@pytest.fixture(scope="module")
def trained(llama_folder, tmp_path_factory):
  config = small_config(llama_folder, steps=20)
  config.model.members = 3
  workdir = tmp_path_factory.mktemp("ensemble")
  return workdir, run(config, workdir, devices=1)


def test_learns_and_reports_the_mean(trained):
  workdir, summary = trained
  assert summary["heldout"]["accuracy"] > 0.9
  model = RewardModel.from_pretrained(workdir)
  members = model.score_members(ROWS)
  assert members.shape == (9, 3)
  assert members.std(axis=1).min() > 1e-3
  np.testing.assert_allclose(model.score(ROWS), members.mean(axis=1), rtol=1e-6)
  lower = members.mean(axis=1) - 2 * members.std(axis=1)
  np.testing.assert_allclose(model.score(ROWS, lower=2.0), lower, rtol=1e-5)


def test_saved_whole(trained, tmp_path):
  model = RewardModel.from_pretrained(trained[0])
  model.save_pretrained(tmp_path / "saved")
  again = RewardModel.from_pretrained(tmp_path / "saved")
  np.testing.assert_array_equal(again.score_members(ROWS), model.score_members(ROWS))
  assert again.text_model.network.head.ensemble


def test_members_see_the_data_by_draws_of_their_own(trained, llama_folder, tmp_path):
  config = small_config(llama_folder, steps=20)
  config.model.members, config.model.bootstrap = 3, False
  run(config, tmp_path, devices=1)
  ours, same = (
    RewardModel.from_pretrained(w).params["head"]["out"]["kernel"] for w in (trained[0], tmp_path)
  )
  assert np.abs(np.asarray(ours) - np.asarray(same)).max() > 1e-3


def test_one_member_has_no_spread(llama_folder, tmp_path):
  run(small_config(llama_folder, steps=1), tmp_path, devices=1)
  model = RewardModel.from_pretrained(tmp_path)
  assert model.score_members(ROWS).shape == (9, 1)
  assert model.score([]).shape == (0,)
  with pytest.raises(ValueError, match=r"lower is 1\.0 and the model has one member"):
    model.score(ROWS, lower=1.0)


def test_members_of_nothing_and_of_a_trained_head_are_refused(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  config.model.members = 0
  with pytest.raises(ValueError, match=r"model\.members is 0"):
    build_model(config)
  one = tmp_path / "one"
  run(small_config(llama_folder, steps=1), tmp_path / "run", devices=1)
  RewardModel.from_pretrained(tmp_path / "run").save_pretrained(one)
  config.model.config, config.model.tokenizer, config.model.pretrained = "", "", str(one)
  config.model.members = 2
  with pytest.raises(ValueError, match="has a head of its own"):
    build_model(config)
  assert not dataclasses.asdict(build_model(small_config(llama_folder, steps=1)).network.head)[
    "ensemble"
  ]
