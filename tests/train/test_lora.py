"""Adapters: the backbone stays, they alone are saved; merged they score as they were trained."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from rm_jax import RewardModel
from rm_jax.models.config import HeadConfig
from rm_jax.models.lora import Lora, is_base, merged
from rm_jax.models.network import Network
from rm_jax.pretrained.config import backbone_config
from rm_jax.pretrained.hf import export_params
from rm_jax.pretrained.source import save_folder
from rm_jax.reward.setup import build_model
from rm_jax.storage.files import read_lines
from rm_jax.train import loop
from rm_jax.workdir.checkpoints import CheckpointError
from tests.conftest import BERT, LLAMA, decoder_tokenizer, encoder_tokenizer
from tests.models.layouts import layout
from tests.models.oracle import scores_of
from tests.train.runs import run, small_config


def random_params(network, seed=0):
  """All of them random, adapters too."""
  flat = flatten_dict(network.init(jax.random.key(seed)), sep="/")
  rng = np.random.default_rng(seed + 1)
  for path in flat:
    if path.endswith(("/lora_b", "/kernel")):
      flat[path] = 0.2 * rng.normal(size=flat[path].shape).astype(np.float32)
  return flat


@pytest.mark.slow
@pytest.mark.parametrize(
  ("config", "frozen"), [(LLAMA, 0), (LLAMA, 1), (BERT, 1)], ids=["llama-0", "llama-1", "bert-1"]
)
def test_merged_is_the_same_function(config, frozen):
  backbone, lora = backbone_config(config), Lora(rank=3, alpha=6.0)
  network = Network(backbone, HeadConfig(), frozen=frozen, lora=lora)
  flat = random_params(network)
  some = layout("packed", "llama" if config is LLAMA else "bert").batch
  with_adapters = scores_of(network)(unflatten_dict(flat, sep="/"), some)
  plain = Network(backbone, HeadConfig(), frozen=frozen)
  one = merged(flat, lora)
  assert one.keys() == flatten_dict(plain.abstract(), sep="/").keys()
  np.testing.assert_allclose(
    scores_of(plain)(unflatten_dict(one, sep="/"), some), with_adapters, rtol=0, atol=2e-5
  )
  without = {p: x for p, x in flat.items() if is_base(p) or p.startswith("head/")}
  base = scores_of(plain)(unflatten_dict(without, sep="/"), some)
  assert np.abs(np.asarray(base) - with_adapters).max() > 1e-2
  adapted = {p.split("/")[-2] for p in flat if p.endswith("lora_a")}
  assert adapted == {"q", "k", "v", "o", "up", "down"} | ({"gate"} if config is LLAMA else set())
  assert not any("/lower/" in p for p in flat if not is_base(p))


@pytest.mark.slow
def test_before_the_first_step_nothing_has_changed():
  backbone = backbone_config(LLAMA)
  some = layout("shared", "llama").batch
  network = Network(backbone, HeadConfig(), lora=Lora(rank=4, targets=("q", "v")))
  flat = flatten_dict(network.init(jax.random.key(0)), sep="/")
  adapters = [p for p in flat if p.endswith("/lora_a")]
  assert sorted(p.split("/")[-2] for p in adapters) == ["q", "v"]
  scores = scores_of(network)(unflatten_dict(flat, sep="/"), some)
  base = {p: x for p, x in flat.items() if "/lora_" not in p}
  plain = scores_of(Network(backbone, HeadConfig()))(unflatten_dict(base, sep="/"), some)
  np.testing.assert_array_equal(scores, plain)


@pytest.fixture(scope="module", params=["llama", "bert"])
def base(request, tmp_path_factory):
  """A folder of a backbone without a head, as a language model's is."""
  config, tokenizer = {
    "llama": (LLAMA, decoder_tokenizer()),
    "bert": (BERT, encoder_tokenizer()),
  }[request.param]
  path = tmp_path_factory.mktemp("base") / request.param
  return write_base(path, config, tokenizer, seed=3)


def write_base(path, config, tokenizer, seed):
  network = Network(backbone_config(config), HeadConfig())
  params = network.init(jax.random.key(seed))
  params.pop("head")
  tensors = export_params(network, params)
  save_folder(path, config=dict(config), tokenizer=tokenizer, record={}, tensors=tensors)
  (path / "rm_jax.json").unlink()
  return path


# For tests of what is the same for an encoder.
DECODER = pytest.mark.parametrize("base", ["llama"], indirect=True)


def config_of(base, **fields):
  config = small_config(base, steps=12)
  config.model.config = ""
  config.model.pretrained = str(base)
  config.model.lora.rank = 4
  config.optimizer.decay_steps = 12
  config.train.eval_every = 6
  config.update_from_flattened_dict(fields)
  return config


ROWS = [{"prompt": f"{i} ", "response": "ab" * (i + 1)} for i in range(9)]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
  """A run's folder, its summary, and its parameters at start and end."""
  workdir, seen = tmp_path_factory.mktemp("whole"), {}

  class Spy(loop._Loop):
    def run_steps(self):
      seen["start"] = jax.tree.map(np.asarray, {**self.run.state.params, **self.run.state.frozen})
      out = super().run_steps()
      seen["end"] = jax.tree.map(np.asarray, {**self.run.state.params, **self.run.state.frozen})
      return out

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "_Loop", Spy)
    summary = run(config_of(base), workdir, devices=1)
  return workdir, summary, seen


@pytest.mark.slow
def test_the_backbone_stays_and_is_not_saved(whole):
  workdir, summary, seen = whole
  for path, x in seen["start"].items():
    # The bias of an encoder's head moves no difference of scores, and so is not moved.
    stays = is_base(path) or path == "head/out/bias"
    assert np.array_equal(x, seen["end"][path]) == stays, path
  losses = [x["loss"] for x in read_lines(workdir / "metrics.jsonl") if x["split"] == "train"]
  assert losses[-1] < losses[0] - 0.01
  sizes = {p: x.size for p, x in seen["end"].items()}
  assert summary["train"]["trained_parameters"] == sum(
    n for p, n in sizes.items() if not is_base(p)
  )
  saved = {p.name for p in (workdir / "checkpoints").rglob("*") if "params" in p.name}
  assert saved
  metadata = next((workdir / "checkpoints").rglob("params/_METADATA")).read_text()
  assert "lora_a" in metadata
  assert "'q', 'kernel'" not in metadata
  assert "embedding" not in metadata


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_run(base, whole, tmp_path):
  for steps in (6, 12):
    config = config_of(base)
    config.train.steps = steps
    run(config, tmp_path, devices=1)
  assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_workdir_and_what_is_saved_of_it_score_alike(base, whole, tmp_path):
  workdir, _, seen = whole
  model = RewardModel.from_pretrained(workdir)
  assert not any("lora" in p for p in flatten_dict(model.params, sep="/"))
  scores = model.score(ROWS)
  trained = build_model(config_of(base)).network
  adapted = RewardModel(
    build_model(config_of(base)), unflatten_dict(seen["end"], sep="/"), model.mesh
  )
  assert trained.lora is not None
  np.testing.assert_allclose(scores, adapted.score(ROWS), rtol=0, atol=1e-5)
  adapted.save_pretrained(tmp_path / "adapted")
  np.testing.assert_allclose(
    RewardModel.from_pretrained(tmp_path / "adapted").score(ROWS), scores, rtol=0, atol=1e-5
  )
  model.save_pretrained(tmp_path)
  np.testing.assert_allclose(
    RewardModel.from_pretrained(tmp_path).score(ROWS), scores, rtol=0, atol=1e-6
  )
  start = unflatten_dict(merged(seen["start"], trained.lora), sep="/")
  untrained = RewardModel(model.text_model, start, model.mesh).score(ROWS)
  assert np.abs(untrained - scores).max() > 1e-2


@pytest.mark.slow
def test_another_backbone_is_refused(base, whole, tmp_path):
  workdir = shutil.copytree(whole[0], tmp_path / "run")
  record = json.loads((workdir / "model" / "rm_jax.json").read_text())
  assert record["base"] == str(base)
  if "bert" in str(base):
    other = write_base(tmp_path / "other", BERT, encoder_tokenizer(), seed=4)
  else:
    other = write_base(tmp_path / "other", LLAMA, decoder_tokenizer(), seed=4)
  (workdir / "model" / "rm_jax.json").write_text(json.dumps(record | {"base": str(other)}))
  with pytest.raises(CheckpointError, match="adapters are of another backbone"):
    RewardModel.from_pretrained(workdir)
  (workdir / "model" / "rm_jax.json").write_text(json.dumps(record | {"base": str(other / "no")}))
  with pytest.raises(ValueError, match=r"holds adapters of .*/no, which is not there any more"):
    RewardModel.from_pretrained(workdir)


@pytest.mark.slow
@DECODER
def test_eight_devices_give_one_devices_run(base, whole, tmp_path):
  config = config_of(base)
  config.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  run(config, tmp_path)
  got, want = (
    [x["loss"] for x in read_lines(d / "metrics.jsonl") if x["split"] == "train"]
    for d in (tmp_path, whole[0])
  )
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.slow
@DECODER
def test_a_base_in_bfloat16_is_half_and_scores_as_it_was_trained(base, tmp_path):
  config = config_of(base, **{"model.lora.base_dtype": "bfloat16"})
  seen = {}

  class Spy(loop._Loop):
    def run_steps(self):
      out = super().run_steps()
      seen.update(self.run.state.params | self.run.state.frozen)
      return out

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "_Loop", Spy)
    run(config, tmp_path / "run", devices=1)
  for path, x in seen.items():
    assert x.dtype == (jnp.bfloat16 if is_base(path) else jnp.float32), path
  model = RewardModel.from_pretrained(tmp_path / "run")
  trained = jax.tree.map(np.asarray, seen)
  adapted = RewardModel(build_model(config), unflatten_dict(trained, sep="/"), model.mesh)
  np.testing.assert_allclose(model.score(ROWS), adapted.score(ROWS), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_random_backbone_is_saved_with_its_adapters(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=2)
  config.model.lora.rank = 2
  run(config, tmp_path, devices=1)
  scores = RewardModel.from_pretrained(tmp_path).score(ROWS)
  assert np.isfinite(scores).all()
  assert np.unique(scores).size > 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model.lora.rank": -1}, "model.lora.rank is -1; expected at least 1, or 0"),
    ({"model.lora.targets": ("q", "w")}, r"model.lora.targets has \['w'\]; expected of q, k"),
    ({"model.lora.base_dtype": "int8"}, "model.lora.base_dtype is 'int8'; expected 'float32'"),
    ({"model.frozen_layers": 3}, "there is nothing of that name to adapt; expected of none"),
  ],
)
def test_what_cannot_be_adapted_is_refused(fields, message, llama_folder):
  config = small_config(llama_folder, steps=1)
  config.model.lora.rank = 2
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    build_model(config)


def test_an_encoder_has_no_gate(bert_folder):
  config = small_config(bert_folder, steps=1)
  config.model.lora.rank = 2
  config.model.lora.targets = ("q", "gate")
  with pytest.raises(ValueError, match=r"targets has \['gate'\].*expected of q"):
    build_model(config)
