"""Gemma 2 beyond its numbers: kernels, adapters, depth, plans, text losses and GGUF files."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs.base import get_config
from rm_jax.batch.tokenise import Convention
from rm_jax.errors import InputError
from rm_jax.models.lora import Lora, merged
from rm_jax.parallel.axes import logical_axes
from rm_jax.pretrained import gguf
from rm_jax.pretrained.clients import client_config
from rm_jax.pretrained.config import backbone_config, check_config
from rm_jax.reward.architecture import build_network, planned_architecture
from rm_jax.train import text_penalty
from tests.models import oracle
from tests.models.layouts import layout
from tests.models.oracle import hf_config, make_network, random_params
from tests.pretrained.test_gguf import write

PUBLISHED = Path(__file__).parents[2] / "configs/architectures/gemma2_2b.json"


def test_the_published_config():
  hf = json.loads(PUBLISHED.read_text())
  backbone = backbone_config(hf)
  assert backbone.sliding_windows == (4096, 0) * 13
  assert (backbone.attention_cap, backbone.logit_cap) == (50.0, 30.0)
  assert (backbone.attention_scale, backbone.embed_scale) == (1 / 16, 48.0)
  # What the file leaves out means the same.
  assert backbone_config({"model_type": "gemma2"}) == backbone
  written = client_config(hf, backbone)
  assert backbone_config(written) == backbone
  # The file leaves out what every second layer does; the export says it.
  assert written["layer_types"] == ["sliding_attention", "full_attention"] * 13


def test_a_config_without_sliding_layers_is_exported_as_such():
  hf = hf_config("gemma2", layer_types=["full_attention"] * 3, query_pre_attn_scalar=144)
  backbone = backbone_config(hf)
  assert backbone.sliding_windows is None
  written = client_config(hf, backbone)
  assert backbone_config(written) == backbone
  assert written["sliding_window"] == backbone.max_positions  # 4.51 wants a number
  assert written["query_pre_attn_scalar"] == 144


@pytest.mark.parametrize("scalar", [1, 144, 144.5, 200 / 3, 0.1 + 1, 2**20 - 0.125])
def test_the_scale_of_attention_is_exported_to_the_last_digit(scalar):
  hf = hf_config("gemma2")
  # Newer versions of transformers read whole numbers only; the backbone takes any.
  backbone = dataclasses.replace(backbone_config(hf), attention_scale=scalar**-0.5)
  said = client_config(hf, backbone)["query_pre_attn_scalar"]
  assert said**-0.5 == backbone.attention_scale
  assert type(said) is type(scalar)


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"use_bidirectional_attention": True}, "supported as a decoder only"),
    ({"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0"),
    ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ({"hidden_activation": 5}, "hidden_activation is 5; expected a str"),
    ({"hidden_activation": "swish42"}, "^config.json: hidden_activation 'swish42' is not "),
  ],
)
def test_configs_that_are_refused(keys, message):
  with pytest.raises(ValueError, match=message):
    backbone_config(hf_config("gemma2") | keys)
  check_config(hf_config("gemma2"))


def _config(**fields):
  c = get_config()
  c.model.config, c.model.tokenizer = str(PUBLISHED), "world"
  c.model.update(fields)
  return c


@pytest.mark.parametrize("layers", [3, 4])
def test_the_lowest_layers_of_a_plan_keep_their_windows(layers, caplog):
  """The network of a plan, of shapes alone: on XLA, because no kernel has its attention."""
  c = _config(layers=layers, dtype="bfloat16")
  mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
  with caplog.at_level(logging.INFO):
    network = build_network(c, planned_architecture(c), mesh=mesh)
  assert network.attention == "xla"
  assert network.backbone.sliding_windows == (4096, 0, 4096, 0)[:layers]
  for path, leaf in flatten_dict(network.abstract(), sep="/").items():
    logical_axes(path, leaf.ndim)  # raises where there are none
  c.model.attention = "splash"
  with pytest.raises(ValueError, match="see a sliding window; expected a model whose layers"):
    build_network(c, planned_architecture(c), mesh=mesh)


def test_adapters_are_merged_into_the_same_function():
  network = make_network("gemma2", options={"lora": Lora(rank=2)})
  params, batch = random_params(network), layout("shared", "gemma2").batch
  plain = dataclasses.replace(network, lora=None)
  flat = flatten_dict(params, sep="/")
  assert {p.split("/")[-2] for p in flat if p.endswith("/lora_a")} == set("qkvo") | {
    "gate",
    "up",
    "down",
  }
  one = unflatten_dict(merged(flat, network.lora), sep="/")
  scores, expected = (
    jax.device_get(oracle.scores_of(n)(p, batch, None))
    for n, p in ((network, params), (plain, one))
  )
  # Relative to the norm: the scores are of order 4 here, and each CPU rounds in its own way.
  assert np.linalg.norm(scores - expected) <= 1e-5 * np.linalg.norm(expected)


def test_fresh_norms_multiply_by_one():
  network = make_network("gemma2")
  params = jax.device_get(oracle.quick_jit(network.init)(jax.random.key(0)))
  norms = {p: x for p, x in flatten_dict(params, sep="/").items() if p.endswith("norm/scale")}
  assert len(norms) == 5
  assert all((x == 0).all() for x in norms.values())


def test_text_losses_are_refused():
  """Its language-model head caps its logits, which these losses do not."""
  network = make_network("gemma2")

  class Asked:
    config = hf_config("gemma2")
    convention = Convention()

  model = Asked()
  model.network = network
  config = get_config().loss
  config.text_sft = 0.01
  with pytest.raises(InputError, match=r"text_sft is 0\.01, and the model caps .* at 3"):
    text_penalty.check(config, model)


def test_a_gguf_file_is_refused(tmp_path):
  path = write(tmp_path / "model.gguf", "gemma2", {}, {})
  with pytest.raises(ValueError, match=r"'gemma2'; we read \['llama', .*Hugging Face folder"):
    gguf.read(path)
