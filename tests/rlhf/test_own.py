"""A chain on prompts, policy and reward model of one's own, which skip the stages they replace."""

import json
import shutil

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax.api import RewardModel
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh
from rm_jax.policy.optimise import Optimisation
from rm_jax.rlhf import chain, policies
from rm_jax.rlhf.chain import run
from rm_jax.rlhf.preferences import given
from rm_jax.shaping.chain import Chain, plan
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
  says, turns = {"factor": 1.0, "fails": True}, []

  def answer(asked):
    rewards = [says["factor"] * query.count("e") - 1.0 for query in asked["query"]]
    turns.extend([1] * (len(rewards) > 3))  # it is not asked whether it is the same
    broken = says["fails"] and len(turns) > 2  # once a turn is saved
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


def test_a_server_that_changes_little_by_little_is_noticed(own, tmp_path):
  says, turns = {"factor": 1.0}, []

  def answer(asked):
    rewards = [says["factor"] * (query.count("e") + 1.0) for query in asked["query"]]
    turns.extend([1] * (len(rewards) > 3))
    broken = len(rewards) > 3 and len(turns) > 2  # once a turn is saved
    return 200, {"rewards": [float("inf")] if broken else rewards}

  with serving(answer) as (url, _):
    config = own_config(own, "grpo", reward__model=url)
    for factor, expected in ((1.0, "answered"), (1.015, "answered"), (1.03, "reward_says")):
      says["factor"] = factor
      with pytest.raises(InputError, match=expected):
        run(config, tmp_path / "run")


def test_a_judge_that_is_a_server_is_known_by_what_it_says(own, tmp_path):
  says = {"factor": 1.0}

  def answer(asked):
    return 200, {"rewards": [says["factor"] * query.count("e") for query in asked["query"]]}

  with serving(answer) as (url, _):
    config = own_config(own, "dpo", reward__gold=url, preferences__pairs=8)
    config.dpo.data.heldout, config.dpo.data.format = "0", "ranking"  # ends after the judgements
    with pytest.raises(ValueError, match="ranking"):
      run(config, tmp_path / "run")
    assert (tmp_path / "run" / "preferences" / "done.json").exists()
    says["factor"] = 2.0
    with pytest.raises(InputError, match=r"judge_says: .* there, .* now"):
      run(config, tmp_path / "run")


def test_a_chain_of_shaping_that_no_optimisation_began_with_is_not_read(own, tmp_path):
  """It may be of a chain that was stopped, and whose reward model was another one."""
  config = own_config(own, "grpo", shaping="clip(low=-1, high=1)")
  folder = tmp_path / "run"
  folder.mkdir()
  record = json.dumps(chain_record("clip(low=5, high=6)"))
  (folder / "shaping.json").write_text(record)
  summary = run(config, folder)
  assert summary["shaping"] == "clip(low=-1, high=1)"
  assert (folder / "shaping.json").read_text() != record


def chain_record(text):
  made = plan(text, "here")
  return Chain(tuple(cls(**given) for cls, given in made.stages)).record()


@pytest.mark.parametrize("what", ["lm", "texts"])
def test_another_policy_or_other_texts_in_the_same_place_are_refused(
  own, tmp_path, what, monkeypatch
):
  shutil.copytree(own / "lm", tmp_path / "lm")
  (tmp_path / "texts").mkdir()
  row = '{"prompt": "Say x.", "response": "x"}\n'
  (tmp_path / "texts" / "a.jsonl").write_text(row * 4)
  config = own_config(own, policy__pretrained=str(tmp_path / "lm"))
  config.sft.texts = str(tmp_path / "texts")
  config.sft.epochs, config.sft.heldout = 1.0, 0
  with monkeypatch.context() as patch:
    patch.setattr(chain, "open_proxy", lambda *_, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # after fine-tuning
      run(config, tmp_path / "run")
  if what == "lm":
    saved = json.loads((tmp_path / "lm" / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps(saved | {"rope_theta": 5e4}))
  else:
    (tmp_path / "texts" / "b.jsonl").write_text(row)
  expected = {"lm": "pretrained", "texts": "texts_folder"}[what]
  with pytest.raises(InputError, match=rf"inputs\.{expected}: .* there, .* now"):
    run(config, tmp_path / "run")


def test_preferences_of_evaluation_prompts_are_counted(own, tmp_path, caplog):
  rows = [{"prompt": f"Say {c}.", "chosen": c, "rejected": "no"} for c in "abcdefghxyz"]
  path = tmp_path / "pairs.jsonl"
  path.write_text("".join(json.dumps(one) + "\n" for one in rows))
  config = own_config(own, "dpo", preferences__path=str(path))
  evaluation = [f"Say {c}." for c in "abcq"]
  found = given(config, evaluation)
  assert found["in_evaluation"] == 3
  assert "preferences of 3 of the 4 evaluation prompts" in caplog.text
  assert given(config, evaluation[3:])["in_evaluation"] == 0


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


def stopped_in_turn(at, config, folder, monkeypatch):
  """A chain that something ends in a turn; the turns before it are saved."""
  turn, calls = Optimisation.turn, []

  def failing(*args, **options):
    calls.append(None)
    return 1 / 0 if len(calls) == at else turn(*args, **options)

  with monkeypatch.context() as patch:
    patch.setattr(Optimisation, "turn", failing)
    with pytest.raises(ZeroDivisionError):
      run(config, folder)


def test_a_reward_model_that_reads_otherwise_is_another_one(own, tmp_path, monkeypatch):
  model = shutil.copytree(own / "rm", tmp_path / "rm")
  config = own_config(own, "grpo", reward__model=str(model))
  stopped_in_turn(2, config, tmp_path / "run", monkeypatch)
  (model / "calibration.json").write_text("{}")  # which no score depends on
  saved = json.loads((model / "config.json").read_text())
  (model / "config.json").write_text(json.dumps(saved | {"rope_theta": 50.0}))
  with pytest.raises(InputError, match=r"inputs\.reward\.files: .* there, .* now"):
    run(config, tmp_path / "run")
  (model / "config.json").write_text(json.dumps(saved))
  with pytest.raises(InputError, match=r"inputs\.reward\.files: .* there, .* now"):
    run(config, tmp_path / "run")  # the same values, written otherwise
  shutil.copy(own / "rm" / "config.json", model)
  run(config, tmp_path / "run")


def test_a_policy_that_was_changed_after_its_stage_is_refused(own, tmp_path, monkeypatch):
  config = own_config(own, "grpo")
  stopped_in_turn(2, config, tmp_path / "run", monkeypatch)
  start = tmp_path / "run" / "sft" / "model"
  loaded = policies.load(config, make_mesh({"data": -1}), start)
  other = {path: 1.5 * x for path, x in loaded.params.items()}
  policies.save(loaded, unflatten_dict(other, sep="/"), start)
  with pytest.raises(InputError, match="its weights are not those that fine-tuning saved"):
    run(config, tmp_path / "run")


def test_a_policy_is_known_by_its_files_however_it_is_named(own, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  shutil.copytree(own / "lm", tmp_path / "lm")
  config = own_config(own, "grpo", policy__pretrained="~/lm")
  stopped_in_turn(2, config, tmp_path / "run", monkeypatch)
  saved = json.loads((tmp_path / "lm" / "config.json").read_text())
  (tmp_path / "lm" / "config.json").write_text(json.dumps(saved | {"rope_theta": 5e4}))
  with pytest.raises(InputError, match=r"inputs\.pretrained: .* there, .* now"):
    run(config, tmp_path / "run")


def test_without_a_judge_there_are_no_preferences(own, tmp_path):
  with pytest.raises(InputError, match="nobody to judge"):
    run(own_config(own, reward__model=""), tmp_path / "run")
