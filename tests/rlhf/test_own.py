"""A chain on prompts, policy and reward model of one's own, which skip the stages they replace."""

import numpy as np
import pytest

from rm_jax.api import RewardModel
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh
from rm_jax.rlhf import policies
from rm_jax.rlhf.chain import run
from rm_jax.storage.files import read_lines
from tests.rlhf.small import own_config, own_folder
from tests.rlhf.test_remote import serving


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  return own_folder(tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize("adapters", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_frozen_layers_and_adapters_stay_what_they_are(own, tmp_path, adapters):
  changes = {"policy__lora__rank": 2} if adapters else {"policy__frozen_layers": 1}
  config = own_config(own, reward__gold=str(own / "gold"), **changes)
  summary = run(config, tmp_path / "run")
  assert summary["preferences"] is None
  assert summary["reward_models"] == []
  assert "truth" not in summary
  assert summary["gold"]["start"]["value"] != summary["proxy"]["start"]["value"]
  mesh = make_mesh({"data": -1})
  start = policies.load(own_config(own), mesh)
  end = policies.load(own_config(own), mesh, tmp_path / "run" / "policy")
  (kernel,) = [path for path in start.params if path.endswith("q/kernel")]
  embedding = "backbone/embed/embedding"
  before, after = np.asarray(start.params[kernel]), np.asarray(end.params[kernel])
  assert not np.array_equal(before[1], after[1])
  if adapters:
    assert np.linalg.matrix_rank((after - before)[1].reshape(32, -1), tol=1e-6) <= 2
  else:
    np.testing.assert_array_equal(before[0], after[0])
  np.testing.assert_array_equal(start.params[embedding], end.params[embedding])


def test_a_server_and_a_file_are_a_chain(own, tmp_path):
  def answer(asked):
    return 200, {"rewards": [query.count("e") - 1.0 for query in asked["query"]]}

  with serving(answer) as (url, asked):
    summary = run(own_config(own, "grpo", reward__model=url), tmp_path / "run")
  assert asked
  line = read_lines(tmp_path / "run" / "metrics.jsonl")[0]
  assert line["proxy"] == pytest.approx(summary["points"][0]["proxy"])
  assert line["disagreement"] is None


def test_a_server_that_fails_stops_the_run(own, tmp_path):
  config = own_config(own, "grpo")
  with serving(lambda _: (200, {"rewards": [float("inf")] * 99})) as (url, _):
    config.reward.model = url
    with pytest.raises(InputError, match=r"answered (the reward inf|99 rewards)"):
      run(config, tmp_path / "run")


def test_a_chain_does_not_go_on_with_another_model_behind_the_same_url(own, tmp_path):
  says = {"factor": 1.0, "fails": True}

  def answer(asked):
    rewards = [says["factor"] * query.count("e") - 1.0 for query in asked["query"]]
    broken = says["fails"] and len(rewards) > 3  # not yet when the chain begins
    return 200, {"rewards": [float("inf")] if broken else rewards}

  with serving(answer) as (url, _):
    config = own_config(own, "grpo", reward__model=url)
    with pytest.raises(InputError, match="answered"):
      run(config, tmp_path / "run")
    says["factor"], says["fails"] = 2.0, False
    with pytest.raises(InputError, match=r"reward_says: .* there, .* now"):
      run(config, tmp_path / "run")
    says["factor"] = 1.001  # a server on other devices rounds otherwise
    run(config, tmp_path / "run")


@pytest.mark.slow
def test_preferences_are_judged_by_gold(own, tmp_path):
  config = own_config(own, "dpo", reward__gold=str(own / "gold"), preferences__pairs=8, rl__turns=1)
  config.dpo.data.heldout = "0"
  summary = run(config, tmp_path / "run")
  rows = read_lines(tmp_path / "run" / "preferences" / "preferences.jsonl")
  assert summary["preferences"]["pairs"] == len(rows) > 4
  gold = RewardModel.from_pretrained(own / "gold")
  for row in rows[:3]:
    both = [{"prompt": row["prompt"], "response": row[name]} for name in ("chosen", "rejected")]
    np.testing.assert_allclose(gold.score(both), row["scores"], rtol=1e-4, atol=1e-5)


def test_without_a_judge_there_are_no_preferences(own, tmp_path):
  with pytest.raises(InputError, match="nobody to judge"):
    run(own_config(own, reward__model=""), tmp_path / "run")
