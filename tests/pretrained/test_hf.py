"""Import and export of Hugging Face tensors; what config.json means; logical axes."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from rm_jax.models.config import HeadConfig, Rope
from rm_jax.parallel.axes import logical_axes
from rm_jax.pretrained.config import backbone_config, head_config, is_classifier
from rm_jax.pretrained.hf import WeightsError, export_params, load_params
from tests.models import oracle
from tests.models.families import SMALL
from tests.models.layouts import layout
from tests.models.oracle import ARCHITECTURES, Tensors, make_network, needs_torch, random_params


def _full(arch, **options):
  return make_network(arch, labels=3, options=options, **SMALL[arch].full)


def _load(network, tensors):
  return load_params(network, Tensors(tensors), lambda _, array: array, source="here")


def _equal(a, b):
  a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)
    assert a[path].dtype == b[path].dtype == np.float32


@pytest.fixture
def bert():
  """A BERT classifier's network and its tensors."""
  network = _full("bert")
  return network, dict(export_params(network, random_params(network)))


@pytest.fixture
def llama():
  network = _full("llama")
  return network, dict(export_params(network, random_params(network)))


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_load_of_export_is_the_same_bits(arch, frozen):
  network = _full(arch, frozen=frozen)
  params = random_params(network, seed=frozen)
  tensors = dict(export_params(network, params))
  loaded, missing = _load(network, tensors)
  assert missing == []
  _equal(loaded, params)
  # The checkpoint does not know what is frozen.
  whole = _full(arch)
  _equal(oracle.split_stack(_load(whole, tensors)[0], frozen), params)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_linear_weight_is_out_by_in_and_a_layer_by_itself(arch):
  network = _full(arch)
  params = random_params(network)
  tensors = dict(export_params(network, params))
  layers = params["backbone"]["layers"]
  prefix = "bert.encoder.layer.2.attention.self" if arch == "bert" else "model.layers.2.self_attn"
  x = np.random.default_rng(0).normal(size=32).astype(np.float32)
  for ours, name in (
    ("q", "query" if arch == "bert" else "q_proj"),
    ("v", "value" if arch == "bert" else "v_proj"),
  ):
    heads = np.einsum("d,dnh->nh", x, layers[ours]["kernel"][2])
    np.testing.assert_allclose(
      tensors[f"{prefix}.{name}.weight"] @ x, heads.reshape(-1), rtol=1e-5, atol=1e-5
    )
  assert all(tensor.flags["C_CONTIGUOUS"] for tensor in tensors.values())


def test_place_gets_each_parameter_once(bert):
  network, tensors = bert
  seen = []

  def place(path, array):
    seen.append(path)
    assert array.dtype == np.float32
    return (path, array.shape)

  loaded, _ = load_params(network, Tensors(tensors), place, source="here")
  wanted = {path: leaf.shape for path, leaf in flatten_dict(network.abstract(), sep="/").items()}
  assert sorted(seen) == sorted(wanted)
  assert flatten_dict(loaded, sep="/") == {path: (path, shape) for path, shape in wanted.items()}


def test_bfloat16_tensors_become_float32_exactly(llama):
  network, tensors = llama
  short = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
  _equal(
    _load(network, short)[0], _load(network, {n: t.astype(np.float32) for n, t in short.items()})[0]
  )


def test_one_error_lists_all_that_is_wrong(bert):
  network, tensors = bert
  del tensors["bert.encoder.layer.1.output.dense.bias"]
  tensors["bert.encoder.layer.0.attention.self.query.weight"] = np.zeros((32, 31), np.float32)
  tensors["bert.encoder.layer.3.output.dense.bias"] = np.zeros(32, np.float32)
  tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((96, 32), np.float32)
  with pytest.raises(WeightsError) as error:
    _load(network, tensors)
  head, *lines = str(error.value).splitlines()
  assert head == "here: 4 of its tensors do not fit its config.json:"
  assert sorted(line.strip() for line in lines) == [
    "missing: bert.encoder.layer.1.output.dense.bias (32,)",
    "not expected: bert.encoder.layer.3.output.dense.bias",
    "shape: bert.embeddings.word_embeddings.weight is (96, 32), config.json says (97, 32)",
    "shape: bert.encoder.layer.0.attention.self.query.weight is (32, 31), "
    "config.json says (32, 32)",
  ]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_tensor_can_be_left_out(arch):
  """An error names whichever tensor is missing; only a decoder's head, one tensor, may be."""
  network = _full(arch)
  tensors = dict(export_params(network, random_params(network)))
  for name in tensors:
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    if name == "score.weight":
      assert _load(network, rest)[1] == ["head/out/kernel"]
      continue
    with pytest.raises(WeightsError, match="1 of its tensors") as error:
      _load(network, rest)
    assert f"missing: {name} " in str(error.value)


def test_other_heads_and_buffers_are_ignored(bert, llama):
  for (network, tensors), extra in (
    (llama, ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]),
    (bert, ["cls.predictions.bias", "cls.seq_relationship.weight", "bert.embeddings.position_ids"]),
  ):
    loaded, missing = _load(network, tensors | {n: np.zeros((97, 32), np.float32) for n in extra})
    assert missing == []
    _equal(loaded, _load(network, tensors)[0])
  # A name that only begins like one of these is not ignored.
  with pytest.raises(WeightsError, match="not expected: lm_header"):
    _load(llama[0], llama[1] | {"lm_header.weight": np.zeros(1, np.float32)})


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_missing_head_is_reported_and_not_raised(arch):
  network = _full(arch)
  params = random_params(network)
  tensors = dict(export_params(network, params))
  body = {n: t for n, t in tensors.items() if not n.startswith(("score.", "classifier."))}
  loaded, missing = _load(network, body)
  _equal(loaded["backbone"], params["backbone"])
  if arch == "bert":
    # A pre-trained BERT has a pooler.
    assert loaded["head"].keys() == {"pooler"}
    _equal(loaded["head"]["pooler"], params["head"]["pooler"])
    assert sorted(missing) == ["head/out/bias", "head/out/kernel"]
    body = {n: t for n, t in body.items() if "pooler" not in n}
    loaded, missing = _load(network, body)
  assert loaded.keys() == {"backbone"}
  assert set(missing) == {f"head/{path}" for path in flatten_dict(params["head"], sep="/")}


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_layers_above_the_networks_are_left_out_on_purpose_only(arch):
  whole = _full(arch)
  params = random_params(whole)
  tensors = dict(export_params(whole, params))
  low = make_network(arch, labels=3, **{**SMALL[arch].full, "num_hidden_layers": 1})
  with pytest.raises(WeightsError, match=r"not expected: \S+layers?.1."):
    _load(low, tensors)
  with pytest.raises(WeightsError, match=r"not expected: \S+layers?.2."):
    load_params(low, Tensors(tensors), lambda _, array: array, source="here", spare=1)
  loaded, missing = load_params(
    low, Tensors(tensors), lambda _, array: array, source="here", spare=2
  )
  assert missing == []
  layers = jax.tree.map(lambda leaf: leaf[:1], params["backbone"]["layers"])
  _equal(loaded, {**params, "backbone": {**params["backbone"], "layers": layers}})


@pytest.mark.parametrize("half", ["classifier.bias", "classifier.weight", "bert.pooler.dense.bias"])
def test_half_a_head_is_an_error(bert, half):
  network, tensors = bert
  del tensors[half]
  with pytest.raises(WeightsError, match=f"missing: {half}"):
    _load(network, tensors)


def test_a_head_of_other_outputs_is_an_error(llama):
  network, tensors = llama
  one = dataclasses.replace(network, head=HeadConfig())
  with pytest.raises(WeightsError, match=r"score.weight is \(3, 32\), config.json says \(1, 32\)"):
    _load(one, tensors)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_base_model_names_have_no_prefix(arch):
  network = _full(arch)
  params = random_params(network)
  prefix = "bert." if arch == "bert" else "model."
  bare = {
    name.removeprefix(prefix): tensor
    for name, tensor in export_params(network, params)
    if not name.startswith(("score.", "classifier."))
  }
  assert not any(name.startswith(prefix) for name in bare)
  loaded, missing = _load(network, bare)
  _equal(loaded["backbone"], params["backbone"])
  assert missing


def test_berts_first_checkpoints_call_a_norms_parameters_gamma_and_beta(bert):
  """As the file of bert-base-uncased has them."""
  network, tensors = bert
  old = {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): t
    for name, t in tensors.items()
  }
  assert old.keys() != tensors.keys()
  _equal(_load(network, old)[0], _load(network, tensors)[0])


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_transformers_reads_what_we_export(arch, tmp_path):
  import torch
  import transformers

  network = _full(arch, frozen=1)
  params = random_params(network, seed=3)
  save_file(dict(export_params(network, params)), tmp_path / "model.safetensors", {"format": "pt"})
  hf = oracle.hf_config(arch, labels=3, **SMALL[arch].full)
  (tmp_path / "config.json").write_text(json.dumps(hf))
  model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
  )
  assert {key: list(value) for key, value in info.items() if value} == {}
  rows = layout("right", arch)
  _, scores = oracle.oracle(model.eval(), rows, position=False)
  ours_ABGK = jax.device_get(oracle.scores_of(network)(params, rows.batch))
  assert oracle.relative([ours_ABGK[:, :, 0, 0].T], [np.stack(scores)]) <= oracle.TOLERANCE


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_has_axes_of_its_own_sizes(arch, frozen):
  network = _full(arch, frozen=frozen)
  c = network.backbone
  sizes = {
    "vocab": {97},
    "embed": {32},
    "heads": {4},
    "kv_heads": {getattr(c, "kv_heads", 4)},
    "head_dim": {getattr(c, "head_dim", 8)},
    "mlp": {48},
    "layers": {frozen, 3 - frozen},
    None: {1, 2, 3, 12, 8, 32},
  }
  for path, leaf in flatten_dict(network.abstract(), sep="/").items():
    axes = logical_axes(path, leaf.ndim)
    assert len(axes) == leaf.ndim, path
    for axis, size in zip(axes, leaf.shape, strict=True):
      assert size in sizes[axis], (path, axes, leaf.shape)
    assert ("layers" in axes) == ("/layers/" in path or "/lower/" in path)
    # What is worth sharding is sharded: only small vectors and heads have no named axis.
    assert any(axes) or leaf.size <= 32 * 3, path


@pytest.mark.parametrize(
  ("path", "ndim"),
  [
    ("backbone/layers/router/kernel", 3),  # no such module
    ("backbone/layers/q/kernel", 3),  # of another rank
    ("backbone/embed/bias", 1),
    ("loss/tie", 0),
  ],
)
def test_a_parameter_without_axes_raises(path, ndim):
  with pytest.raises(KeyError, match=path):
    logical_axes(path, ndim)


def test_config_keys_left_out_mean_what_transformers_means():
  c = backbone_config({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4})
  assert (c.vocab, c.layers, c.ffn, c.kv_heads, c.head_dim) == (32000, 32, 11008, 4, 16)
  assert (c.activation, c.eps, c.sliding_windows) == ("silu", 1e-6, None)
  assert c.rope == Rope(theta=1e4, original_length=2048)
  assert (c.qkv_bias, c.out_bias, c.mlp_bias, c.qk_norm) == (False, False, False, False)
  assert backbone_config({"model_type": "qwen3"}).head_dim == 128
  assert backbone_config({"model_type": "qwen2"}).sliding_windows is None
  assert backbone_config({"model_type": "mistral"}).sliding_windows == (4096,) * 32
  assert backbone_config({"model_type": "mistral", "sliding_window": None}).sliding_windows is None
  slides = {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 4}
  c = backbone_config({**slides, "sliding_window": 16, "max_window_layers": 3})
  assert c.sliding_windows == (0, 0, 0, 16)


def test_biases_are_the_architectures():
  def biases(arch, **keys):
    c = backbone_config(oracle.hf_config(arch, **keys))
    return c.qkv_bias, c.out_bias, c.mlp_bias

  assert biases("llama", attention_bias=True) == (True, True, False)
  assert biases("llama", mlp_bias=True) == (False, False, True)
  assert biases("qwen2") == (True, False, False)
  assert biases("qwen3", attention_bias=True) == (True, True, False)
  # Keys that transformers does not read for these.
  for arch in ("mistral", "qwen2"):
    assert biases(arch, attention_bias=True, mlp_bias=True) == biases(arch)


@pytest.mark.parametrize(
  "rope",
  [
    {"type": "linear", "factor": 2.0},
    {
      "rope_type": "llama3",
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 512,
    },
  ],
)
def test_rope_scaling_of_older_configs_is_read(rope):
  old = backbone_config(oracle.hf_config("llama", rope_theta=5e5, rope_scaling=rope)).rope
  kind = rope.get("rope_type", rope.get("type"))
  new = {**rope, "rope_type": kind, "rope_theta": 5e5}
  assert old == backbone_config(oracle.hf_config("llama", rope_parameters=new)).rope
  assert (old.kind, old.theta, old.factor) == (kind, 5e5, rope["factor"])
  assert kind != "llama3" or old.original_length == 512


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; expected one of llama"),
    ({"model_type": None}, "model_type None"),
    (
      oracle.hf_config(
        "llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
      ),
      "rope_type 'dynamic' is not supported",
    ),
    (oracle.hf_config("bert", is_decoder=True), "is_decoder"),
  ],
)
def test_configs_that_are_not_supported(keys, message):
  with pytest.raises(ValueError, match=message):
    backbone_config(keys)


def test_an_activation_that_is_not_supported():
  with pytest.raises(ValueError, match="hidden_act 'swish42' is not supported"):
    make_network("bert", hidden_act="swish42")


def test_the_head_is_the_checkpoints_or_fresh():
  assert head_config({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}) == HeadConfig()
  assert not is_classifier({"model_type": "bert"})
  assert head_config(oracle.hf_config("qwen3", labels=3)) == HeadConfig(outputs=3)
  # transformers leaves out id2label where there are two.
  two = oracle.hf_config("llama")
  del two["id2label"]
  assert head_config(two).outputs == 2
  bert = HeadConfig(outputs=1, bias=True, pooler=True, dropout=0.1)
  assert head_config(oracle.hf_config("bert")) == bert
  for keys, dropout in (
    ({"hidden_dropout_prob": 0.3}, 0.3),
    ({"hidden_dropout_prob": 0.3, "classifier_dropout": None}, 0.3),
    ({"hidden_dropout_prob": 0.3, "classifier_dropout": 0.0}, 0.0),
  ):
    assert head_config(oracle.hf_config("bert", **keys)).dropout == dropout


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda a: np.where(a == a.flat[5], np.nan, a), "has 1 of 1536 numbers that are NaN or inf"),
    (lambda a: np.where(a == a.flat[5], np.inf, a), "has 1 of 1536 numbers that are NaN or inf"),
    (lambda a: np.full(a.shape, np.nan, ml_dtypes.bfloat16), "has 1536 of 1536"),
    (lambda a: np.full(a.shape, np.float16("-inf")), "has 1536 of 1536"),
    (lambda a: np.full(a.shape, 1e39), "has 1536 of 1536"),  # float64; in float32 infinite
    (lambda a: np.ones(a.shape, np.int32), "is stored as int32; expected floating-point"),
    (lambda a: np.ones(a.shape, np.uint8), "is stored as uint8"),
    (lambda a: np.ones(a.shape, bool), "is stored as bool"),
  ],
)
def test_weights_that_are_no_finite_numbers(llama, change, message):
  network, tensors = llama
  name = "model.layers.1.mlp.up_proj.weight"
  tensors[name] = change(np.array(tensors[name]))
  with pytest.raises(WeightsError, match=f"^here: {name.replace('.', '[.]')} {message}"):
    _load(network, tensors)


def test_buffers_may_hold_whole_numbers(bert):
  network, tensors = bert
  more = tensors | {"bert.embeddings.position_ids": np.arange(32)[None]}
  _equal(_load(network, more)[0], _load(network, tensors)[0])


def test_more_layers_than_tensors_are_refused_before_their_names_are_made():
  network = make_network("llama", num_hidden_layers=10_000)
  with pytest.raises(WeightsError, match=r"num_hidden_layers 10000, and there are 1 tensors"):
    _load(network, {"model.norm.weight": np.ones(32, np.float32)})
