"""Whole chains at toy size: each stage runs once, goes on where it stopped, and refuses others."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax.api import RewardModel
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh
from rm_jax.policy.optimise import Optimisation
from rm_jax.reward.setup import init_params
from rm_jax.rlhf import chain, finetune, policies, preferences, runs
from rm_jax.rlhf.chain import run
from rm_jax.rlhf.prompts import drawn
from rm_jax.storage.files import read_lines
from rm_jax.train.loop import Stopped
from rm_jax.types import Batch
from rm_jax.workdir.checkpoints import Checkpoints
from tests.models.oracle import needs_torch
from tests.rlhf.small import config_of

SAME = ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "policy/model.safetensors")


class Interrupted(Exception):
  """Stands for whatever ends a process."""


def failing(function, at):
  """The function, which at its call number `at` raises `Interrupted` instead."""
  calls = []

  def wrapped(*args, **options):
    calls.append(None)
    if len(calls) == at:
      raise Interrupted
    return function(*args, **options)

  return wrapped


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return tmp_path_factory.mktemp("chains")


@pytest.fixture(scope="module")
def whole(place):
  """(folder, summary) of a chain that was never interrupted; its stages are in place/shared."""
  folder = place / "whole"
  return folder, run(config_of(place), folder, shared=place / "shared")


def test_a_chain_writes_what_it_says(place, whole):
  folder, summary = whole
  lines = read_lines(folder / "metrics.jsonl")
  turns = [line for line in lines if line["split"] == "train"]
  evaluated = [line for line in lines if line["split"] == "evaluation"]
  assert [line["step"] for line in turns] == [1, 2, 3, 4]
  assert [line["step"] for line in evaluated] == [0, 2, 4]
  for name in ("proxy", "truth", "kl", "length", "entropy", "ended", "empty", "filtered"):
    assert all(isinstance(line[name], float) for line in [*turns, *evaluated]), name
  assert evaluated[0]["kl"] == pytest.approx(0, abs=1e-4)
  assert evaluated[0]["disagreement"] is None
  assert [point["turn"] for point in summary["points"]] == [0, 2, 4]
  assert summary["truth"]["start"]["value"] == pytest.approx(evaluated[0]["truth"])
  low, high = summary["truth"]["end"]["interval"]
  assert low < summary["truth"]["end"]["value"] < high
  samples = read_lines(folder / "samples.jsonl")
  assert {line["step"] for line in samples} == {0, 2, 4}
  assert len(samples) == 3 * 4
  assert (folder / "report.png").stat().st_size > 1000
  assert list((folder / "tensorboard").iterdir())
  # The judge agrees with the truth more often than a coin.
  assert summary["preferences"]["pairs"] == 24


def test_the_policy_is_saved_as_it_was_optimised(place, whole):
  folder, _ = whole
  config = config_of(place)
  mesh = make_mesh(config.mesh)
  start, end = (policies.load(config, mesh, path) for path in (sft_of(place), folder / "policy"))
  assert end.policy.text_model.tokenizer.eos_token == "<eos>"
  changed = [p for p, x in start.params.items() if not np.array_equal(x, end.params[p])]
  assert changed
  # Text comes back as the world reads it, from the saved tokenizer, too.
  text = "- Mia, look in the shed.\n- Happy to help!"
  ids = np.asarray(end.policy.text_model.tokenizer(text).input_ids)
  assert end.policy.text(ids[:0], ids) == text


def optimised(folder, loaded):
  """The policy's parameters in a chain's last checkpoint, path -> array."""
  checkpoints = Checkpoints(folder / "checkpoints", 2)
  abstract = {
    path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    for path, x in loaded.params.items()
  }
  params = checkpoints.restore_params(abstract, {}, step=checkpoints.steps()[-1])
  checkpoints.close()
  return params


def logits_of(network, params, ids):
  """[T, V], of our own network after each token of a text."""
  tokens = jnp.asarray(ids, jnp.int32)[None]
  one = jnp.zeros((1, 1, 1), jnp.int32)
  batch = Batch(
    tokens=tokens,
    group=jnp.ones_like(tokens),
    branch=jnp.zeros_like(tokens),
    position=jnp.arange(len(ids))[None],
    marks=one,
    where=one > 0,
    labels=one,
    weight=one[..., 0],
  )
  nested = unflatten_dict(jax.device_get(params), sep="/")
  h_TD = network.hidden(nested, batch)[0]
  return np.asarray(jnp.matmul(h_TD, network.bind(nested).language_head.T, precision="highest"))


def test_our_own_loader_reads_the_policy_that_was_optimised(place, whole):
  folder, _ = whole
  config = config_of(place)
  end = policies.load(config, make_mesh(config.mesh), folder / "policy")
  trained = optimised(folder, end)
  assert trained.keys() == end.params.keys()
  for path, x in end.params.items():
    np.testing.assert_array_equal(x, trained[path], err_msg=path)


@needs_torch
def test_the_policy_has_equal_logits_in_transformers(place, whole):
  import torch
  import transformers

  folder, _ = whole
  config = config_of(place)
  end = policies.load(config, make_mesh(config.mesh), folder / "policy")
  ours = optimised(folder, end)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "policy").eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "policy")
  for line in read_lines(folder / "samples.jsonl")[:4]:
    ids = tokenizer(line["prompt"] + line["response"]).input_ids
    with torch.no_grad():
      expected = theirs(torch.tensor([ids])).logits[0].float().numpy()
    got = logits_of(end.policy.text_model.network, ours, ids)
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def sft_of(place):
  (found,) = (place / "shared").glob("sft-*/model")
  return found


def test_what_is_done_is_not_run_again(place, whole, monkeypatch):
  folder, summary = whole
  for module, name in ((finetune, "_train"), (preferences, "sample"), (runs.loop, "train")):
    monkeypatch.setattr(module, name, failing(None, 1))
  assert run(config_of(place), folder, shared=place / "shared") == json.loads(json.dumps(summary))
  # Another method has the same stages before it.
  monkeypatch.setattr(chain, "reinforce", failing(None, 1))
  with pytest.raises(Interrupted):
    run(config_of(place, "rloo"), place / "rloo", shared=place / "shared")


def test_an_interrupted_chain_ends_with_the_same_numbers(place, whole, monkeypatch):
  folder, config = place / "parts", config_of(place)
  with monkeypatch.context() as patch:  # within fine-tuning, after its first checkpoint
    patch.setattr(finetune, "take_step", failing(finetune.take_step, 4))
    with pytest.raises(Interrupted):
      run(config, folder)
  assert not (folder / "sft" / "done.json").exists()
  with monkeypatch.context() as patch:  # between the stages
    steps = []
    step = finetune.take_step
    patch.setattr(finetune, "take_step", lambda *args: steps.append(None) or step(*args))
    patch.setattr(preferences, "sample", failing(None, 1))
    with pytest.raises(Interrupted):
      run(config, folder)
  assert len(steps) == 3  # of 5, of which two were saved
  monkeypatch.setattr(finetune, "_train", failing(None, 1))
  with monkeypatch.context() as patch:  # between two checkpoints
    patch.setattr(Optimisation, "turn", failing(Optimisation.turn, 4))
    with pytest.raises(Interrupted):
      run(config, folder)
  resumed = run(config, folder)
  for name in SAME:
    assert (folder / name).read_bytes() == (whole[0] / name).read_bytes(), name
  clocks = ("seconds", "peak_memory_bytes")
  paths = ("preferences",)
  expected = {k: x for k, x in whole[1].items() if k not in clocks + paths}
  assert {k: x for k, x in resumed.items() if k not in clocks + paths} == expected


def test_an_interrupted_ppo_ends_with_the_same_numbers(place, whole, monkeypatch):
  """Its critic, the coefficient that adapts, and turns after the last checkpoint, too."""
  settings = {"rl__target_kl": 0.05, "rl__coefficient": 0.2, "rl__checkpoint_every": 2}
  config = config_of(place, "ppo", rl__epochs=2, rl__minibatch=2, **settings)
  straight, parts = place / "ppo_straight", place / "ppo_parts"
  expected = run(config, straight, shared=place / "shared")
  with monkeypatch.context() as patch:  # in turn 4, after turn 2 was saved and turn 3 was not
    patch.setattr(Optimisation, "turn", failing(Optimisation.turn, 4))
    with pytest.raises(Interrupted):
      run(config, parts, shared=place / "shared")
  taken, turn = [], Optimisation.turn
  monkeypatch.setattr(
    Optimisation,
    "turn",
    lambda self, *args, **options: taken.append(self.coefficient) or turn(self, *args, **options),
  )
  resumed = run(config, parts, shared=place / "shared")
  lines = [x for x in read_lines(straight / "metrics.jsonl") if x["split"] == "train"]
  coefficients = [line["coefficient"] for line in lines]
  assert len(set(coefficients)) == 4
  assert taken == coefficients[2:]
  assert all(line["value_loss"] > 0 for line in lines)
  for name in SAME:
    assert (parts / name).read_bytes() == (straight / name).read_bytes(), name
  clocks = ("seconds", "peak_memory_bytes")
  both = ({k: x for k, x in one.items() if k not in clocks} for one in (resumed, expected))
  assert next(both) == next(both)


def test_a_signal_saves_and_the_same_command_goes_on(place, whole, monkeypatch):
  folder, turn = place / "signal", Optimisation.turn

  def told(self, *args, **options):
    signal.raise_signal(signal.SIGTERM)
    return turn(self, *args, **options)

  with monkeypatch.context() as patch:
    patch.setattr(Optimisation, "turn", told)
    with pytest.raises(Stopped, match="after turn 1, which is saved"):
      run(config_of(place), folder, shared=place / "shared")
  run(config_of(place), folder, shared=place / "shared")
  for name in SAME:
    assert (folder / name).read_bytes() == (whole[0] / name).read_bytes(), name


def test_another_config_is_refused(place, whole):
  with pytest.raises(InputError, match=r"rl\.clip: 0\.2 there, 0\.3 now"):
    run(config_of(place, rl__clip=0.3), whole[0], shared=place / "shared")


@pytest.mark.slow
def test_another_seed_is_another_run(place, whole):
  other = run(config_of(place, seed=1, rl__turns=2), place / "seed", shared=place / "shared")
  assert other["points"][0]["proxy"] != whole[1]["points"][0]["proxy"]


def saved_reward(place, name, seed):
  """A reward model's folder, with random weights."""
  trained = min((place / "shared" / "reward").glob("0-*/run"))
  model = RewardModel.from_pretrained(trained)
  text_model = dataclasses.replace(model.text_model, source=None)
  params = init_params(text_model, model.mesh, jax.random.key(seed), training=True)
  nested = unflatten_dict(params, sep="/")
  RewardModel(text_model, nested, model.mesh).save_pretrained(place / name)
  return place / name


def test_a_resume_with_another_reward_model_is_refused(place, whole, monkeypatch):
  model = saved_reward(place, "reward", 0)
  config = config_of(place, reward__model=str(model))
  folder = place / "changed"
  with monkeypatch.context() as patch:
    patch.setattr(Optimisation, "turn", failing(Optimisation.turn, 3))
    with pytest.raises(Interrupted):
      run(config, folder, shared=place / "shared")
  shutil.rmtree(model)
  saved_reward(place, "reward", 1)
  with pytest.raises(InputError, match=r"inputs\.reward\.weights: .* there, .* now"):
    run(config, folder, shared=place / "shared")


def test_what_was_at_fault_in_a_stage_may_be_changed(place, whole):
  config = config_of(place, reward__run__data__heldout="0.001")
  folder = place / "mended"
  shutil.copytree(place / "shared", folder / "shared")
  with pytest.raises(InputError, match=r"of --config\.reward\.run: data\.heldout"):
    run(config, folder / "run", shared=folder / "shared")
  with pytest.raises(InputError, match=r"of --config\.reward\.run: data\.heldout"):
    run(config, folder / "run")  # with stages of its own
  config.reward.run.data.heldout = "0.25"
  summary = run(config, folder / "run")
  assert summary["points"] == whole[1]["points"]


def test_preferences_that_were_changed_after_their_stage_are_refused(place, whole, monkeypatch):
  folder = place / "swapped"
  shared = shutil.copytree(place / "shared", folder / "shared")
  file = shared / Path(whole[1]["preferences"]["path"]).relative_to(place / "shared")
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
  file.write_text("".join(json.dumps(row) + "\n" for row in swapped))
  with pytest.raises(
    InputError, match=r"preferences\.jsonl: is not the file that this stage wrote"
  ):
    run(config_of(place), folder / "run", shared=shared)


@pytest.mark.parametrize(
  "method", ["ppo", "best_of_n", pytest.param("dpo", marks=pytest.mark.slow)]
)
def test_every_method_has_a_report(place, whole, method):
  changes = {"shaping": "normalise, clip(low=-1, high=1), filters"} if method == "ppo" else {}
  config = config_of(place, method, rl__turns=2, **changes)
  summary = run(config, place / method, shared=place / "shared")
  points = summary["points"]
  assert points[0]["truth"] == pytest.approx(summary["truth"]["start"]["value"])
  assert points[-1]["truth"] == pytest.approx(summary["truth"]["end"]["value"])
  assert (place / method / "report.png").exists()
  if method == "best_of_n":
    assert [point["turn"] for point in points] == [1, 2, 3, 4, 6, 8]
    assert points[3]["kl"] == pytest.approx(np.log(4) - 3 / 4)
    assert points[-1]["proxy"] > points[0]["proxy"]
  if method == "dpo":
    assert [point["turn"] for point in points] == [0, 1, 2, 3]
    assert points[-1]["kl"] != 0
  if method == "ppo":
    assert summary["shaping"].startswith("normalise(")
    line = read_lines(place / method / "metrics.jsonl")[-1]
    assert -1 - 1e-6 <= line["reward"] <= 1 + 1e-6


def test_prompts_of_evaluations_are_not_trained_on(place):
  config = config_of(place, data__prompts="world:200", data__evaluation=50)
  streams = {name: drawn(config, name, 50) for name in ("sft", "prompts", "evaluation")}
  texts = {name: {p[0]["content"] for p in found} for name, found in streams.items()}
  assert not texts["evaluation"] & (texts["sft"] | texts["prompts"])
  other = config_of(place, seed=3)
  assert drawn(other, "evaluation", 50) == streams["evaluation"]
  assert drawn(other, "prompts", 50) != streams["prompts"]
