"""GGUF files written here as llama.cpp's converter writes them, and one real file."""

import gguf as gguf_package
import numpy as np
import pytest
import transformers

from rm_jax.errors import ReadError
from rm_jax.pretrained import files, gguf

D, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB = 32, 4, 2, 16, 64, 2, 96


def hf_tensors(model_type, tied=True, bias=False):
  """Random tensors under Hugging Face's names."""
  rng = np.random.default_rng(0)
  q, k = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
  shapes = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
  if not tied:
    shapes["lm_head.weight"] = (VOCAB, D)
  for i in range(LAYERS):
    layer = {
      "input_layernorm.weight": (D,),
      "post_attention_layernorm.weight": (D,),
      "self_attn.q_proj.weight": (q, D),
      "self_attn.k_proj.weight": (k, D),
      "self_attn.v_proj.weight": (k, D),
      "self_attn.o_proj.weight": (D, q),
      "mlp.gate_proj.weight": (FFN, D),
      "mlp.up_proj.weight": (FFN, D),
      "mlp.down_proj.weight": (D, FFN),
    }
    if model_type == "qwen2" or bias:
      layer |= {f"self_attn.{x}_proj.bias": (n,) for x, n in (("q", q), ("k", k), ("v", k))}
    if model_type == "qwen3":
      layer |= {f"self_attn.{x}_norm.weight": (HEAD_DIM,) for x in "qk"}
    if bias:
      layer |= {"self_attn.o_proj.bias": (D,), "mlp.down_proj.bias": (D,)}
      layer |= {"mlp.gate_proj.bias": (FFN,), "mlp.up_proj.bias": (FFN,)}
    shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def converted(model_type, tensors):
  """The tensors as llama.cpp's converter writes them: its names, q and k of a llama permuted."""
  arch = {kind: arch for arch, kind in gguf_package.MODEL_ARCH_NAMES.items()}[model_type]
  names = gguf_package.get_tensor_name_map(arch, LAYERS)
  result = {}
  for name, array in tensors.items():
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    if model_type == "llama" and heads:
      halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
      array = halves.swapaxes(1, 2).reshape(array.shape)
    result[names.get_name(name, try_suffixes=(".weight", ".bias"))] = array
  return result


def hyper_parameters(model_type):
  keys = {
    "context_length": 128,
    "embedding_length": D,
    "block_count": LAYERS,
    "feed_forward_length": FFN,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM,
    "rope.freq_base": 100000.0,
  }
  return {f"{model_type}.{key}": value for key, value in keys.items()}


def write(path, model_type, keys=None, tensors=None, raw=None):
  """Writes a GGUF file. `raw`: name -> (ggml type) for tensors to be quantised."""
  writer = gguf_package.GGUFWriter(path, model_type)
  for key, value in (keys or {}).items():
    match value:
      case bool():
        writer.add_bool(key, value)
      case int():
        writer.add_uint32(key, value)
      case float():
        writer.add_float32(key, value)
      case str():
        writer.add_string(key, value)
      case list():
        writer.add_array(key, value)
  for name, array in (tensors or {}).items():
    kind = (raw or {}).get(name)
    if kind is None:
      writer.add_tensor(name, array)
    else:
      writer.add_tensor(name, gguf_package.quants.quantize(array, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def write_model(path, model_type, more=None, drop=(), tensors=None, **kwargs):
  keys = hyper_parameters(model_type) | (more or {})
  keys = {key: value for key, value in keys.items() if key not in drop}
  if tensors is None:
    tensors = converted(model_type, hf_tensors(model_type))
  return write(path / "model.gguf", model_type, keys, tensors, **kwargs)


@pytest.mark.parametrize(
  ("model_type", "tied", "bias"),
  [
    ("llama", True, False),
    ("llama", False, True),
    ("qwen2", True, False),
    ("qwen2", False, False),
    ("qwen3", True, False),
  ],
)
def test_tensors_are_those_that_were_converted(tmp_path, model_type, tied, bias):
  wanted = hf_tensors(model_type, tied, bias)
  path = write_model(tmp_path, model_type, tensors=converted(model_type, wanted))
  with gguf.read(path) as model:
    assert set(model.names()) == wanted.keys()
    for name, array in wanted.items():
      assert model.shape(name) == array.shape
      assert model.get(name).dtype == np.float32
      np.testing.assert_array_equal(model.get(name), array, err_msg=name)
    assert model.config["tie_word_embeddings"] == tied
    assert model.config.get("attention_bias", False) == bias


def test_config_is_a_config_json(tmp_path):
  ids = {"bos": 1, "eos": 2, "padding": 2}
  more = {f"tokenizer.ggml.{key}_token_id": value for key, value in ids.items()}
  config = gguf.read(write_model(tmp_path, "llama", more)).config
  assert config == {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": D,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,  # not float32's 9.999999747378752e-06
    "rope_theta": 100000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
  }
  full = transformers.AutoConfig.for_model(**config)
  assert full.rope_parameters == {"rope_theta": 100000.0, "rope_type": "default"}


def test_what_a_file_leaves_out_is_as_llama_cpp_takes_it(tmp_path):
  drop = [f"llama.{key}" for key in ("attention.head_count_kv", "rope.freq_base")]
  drop += [f"llama.attention.{key}_length" for key in ("key", "value")]
  keys = {key: v for key, v in hyper_parameters("llama").items() if key not in drop}
  # Then there are as many key heads as query heads, each of width / heads.
  wide = {"attn_k": (D, D), "attn_v": (D, D), "attn_q": (D, D), "attn_output": (D, D)}
  tensors = converted("llama", hf_tensors("llama"))
  tensors |= {
    name: np.zeros(wide[name.split(".")[2]], np.float32)
    for name in tensors
    if name.startswith("blk") and name.split(".")[2] in wide
  }
  config = gguf.read(write(tmp_path / "m.gguf", "llama", keys, tensors)).config
  assert (config["num_key_value_heads"], config["head_dim"]) == (HEADS, D // HEADS)
  assert config["rope_theta"] == 10000.0


def test_quantised_blocks_are_multiplied_out(tmp_path):
  kinds = {
    "token_embd.weight": gguf_package.GGMLQuantizationType.Q8_0,
    "blk.0.ffn_up.weight": gguf_package.GGMLQuantizationType.Q4_1,
    "blk.0.ffn_gate.weight": gguf_package.GGMLQuantizationType.BF16,
  }
  tensors = converted("llama", hf_tensors("llama"))
  model = gguf.read(write_model(tmp_path, "llama", tensors=tensors, raw=kinds))
  # Q8_0: a block of 32 is a half d and 32 signed bytes q; a weight is d q.
  blocks = gguf_package.quants.quantize(tensors["token_embd.weight"], kinds["token_embd.weight"])
  d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
  np.testing.assert_array_equal(
    model.get("model.embed_tokens.weight"), d * blocks[:, 2:].view(np.int8)
  )
  # Q4_1: halves d and m, then 16 bytes, the low nibbles first; a weight is d q + m.
  blocks = gguf_package.quants.quantize(
    tensors["blk.0.ffn_up.weight"], kinds["blk.0.ffn_up.weight"]
  )
  d, m = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[..., None]
  q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
  np.testing.assert_array_equal(model.get("model.layers.0.mlp.up_proj.weight"), d * q + m)
  np.testing.assert_allclose(
    model.get("model.layers.0.mlp.gate_proj.weight"), tensors["blk.0.ffn_gate.weight"], rtol=2**-8
  )


def llama3_divisors(theta, dim, factor, low=1.0, high=4.0, length=8192):
  """As llama.cpp's converter writes them, by wave lengths."""
  result = []
  for i in range(0, dim, 2):
    wave = 2 * np.pi * theta ** (i / dim)
    if wave < length / high:
      result.append(1.0)
    elif wave > length / low:
      result.append(factor)
    else:
      smooth = (length / wave - low) / (high - low)
      result.append(1 / ((1 - smooth) / factor + smooth))
  return np.asarray(result, np.float32)


def test_rope_scaling(tmp_path):
  def scaling(keys=None, divisors=None):
    tensors = converted("llama", hf_tensors("llama"))
    if divisors is not None:
      tensors["rope_freqs.weight"] = divisors
    keys = {f"llama.rope.{key}": value for key, value in (keys or {}).items()}
    model = gguf.read(write_model(tmp_path, "llama", keys, tensors=tensors))
    assert "rope_freqs.weight" not in model.names()
    return model.config["rope_scaling"]

  linear = {"scaling.type": "linear", "scaling.factor": 2.5}
  assert scaling(linear) == {"rope_type": "linear", "factor": 2.5}
  yarn = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64}
  assert scaling({**yarn, "scaling.yarn_beta_fast": 16.0}) == {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 16.0,
  }
  theta = {"freq_base": 10000.0}
  divisors = llama3_divisors(10000.0, HEAD_DIM, 32.0)
  assert {1.0, 32.0} < set(divisors.tolist())  # and one in between
  assert scaling(theta, divisors) == {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  other = llama3_divisors(10000.0, HEAD_DIM, 32.0, length=4096)
  near = np.where((divisors > 1) & (divisors < 32), 1.001 * divisors, divisors).astype(np.float32)
  for wrong in (other, near):
    with pytest.raises(ValueError, match=r"rope_freqs\.weight is not the Llama 3 scaling"):
      scaling(theta, wrong)
  with pytest.raises(ValueError, match=r"rope_freqs\.weight stands beside 'linear'"):
    scaling(linear, divisors)
  with pytest.raises(ValueError, match="'longrope'; we read linear and yarn"):
    scaling({"scaling.type": "longrope"})


def test_all_that_is_wrong_with_the_keys_is_one_error(tmp_path):
  more = {
    "llama.attention.sliding_window": 64,
    "llama.logit_scale": 0.5,
    "llama.rope.dimension_count": 8,
    "llama.expert_count": 8,
    "llama.attention.head_count_kv": [2, 1],
    "llama.block_count": 0,
  }
  drop = ("llama.context_length", "llama.attention.layer_norm_rms_epsilon")
  with pytest.raises(ValueError, match=r"model\.gguf") as error:
    gguf.read(write_model(tmp_path, "llama", more, drop))
  for part in (
    "key llama.attention.sliding_window is unknown",
    "key llama.logit_scale is unknown",
    "key llama.rope.dimension_count is 8; we read only head_dim, 16",
    "key llama.expert_count: we read no mixtures of experts",
    "key llama.attention.head_count_kv is [2, 1], expected one int",
    "key llama.block_count is 0, expected one int",
    "key llama.context_length is missing",
    "key llama.attention.layer_norm_rms_epsilon is missing",
    "Convert the model again",
  ):
    assert part in str(error.value)


def test_all_that_is_wrong_with_the_tensors_is_one_error(tmp_path):
  tensors = converted("llama", hf_tensors("llama"))
  del tensors["blk.1.attn_v.weight"]
  tensors["blk.0.attn_q_norm.weight"] = np.zeros(HEAD_DIM, np.float32)
  tensors["blk.0.attn_output.weight"] = tensors["blk.0.attn_output.weight"].T.copy()
  tensors["output_norm.weight"] = np.zeros(D, np.int32)
  with pytest.raises(ValueError, match=r"model\.gguf") as error:
    gguf.read(write_model(tmp_path, "llama", tensors=tensors))
  for part in (
    "tensor blk.1.attn_v.weight is missing",
    "tensor blk.0.attn_q_norm.weight is unknown to 'llama'",
    "tensor blk.0.attn_output.weight has shape (64, 32), the keys say (32, 64)",
    "tensor output_norm.weight is stored as I32",
  ):
    assert part in str(error.value)


def test_what_is_not_a_file_that_we_read(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
    gguf.read(tmp_path / "none.gguf")
  path = tmp_path / "text.gguf"
  path.write_text("these are not weights")
  with pytest.raises(ValueError, match=r"text\.gguf: cannot be read as GGUF"):
    gguf.read(path)
  path = write_model(tmp_path, "llama")
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match="Was it cut short"):
    gguf.read(path)
  with pytest.raises(ValueError, match=r"general\.architecture is 'mamba'; we read .*'llama'"):
    gguf.read(write(tmp_path / "mamba.gguf", "mamba"))
  with pytest.raises(ValueError, match="one of 3 parts"):
    gguf.read(write_model(tmp_path, "llama", {"split.count": 3}))


@pytest.mark.parametrize("use", [gguf.read, gguf.tokenizer])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, use):
  path = write_model(tmp_path, "llama")

  def refuse(self, **_):
    raise PermissionError(13, "Permission denied", str(self))

  monkeypatch.setattr(type(path), "stat", refuse)
  with pytest.raises(ReadError, match=rf"^{path}: cannot be read \(Permission denied\)"):
    use(path)


# sum(weight * (its flat index mod 101)), by transformers 5.23 with torch (its own GGUF loading),
# for the file that `files.resolve` gets where there is no hub.
SMOLLM2 = {
  "model.embed_tokens.weight": -768195.2438521385,
  "model.layers.0.self_attn.q_proj.weight": 11285.480255126953,
  "model.layers.29.self_attn.k_proj.weight": 2555.751792907715,
  "model.layers.7.mlp.down_proj.weight": -9524.575859069824,
  "model.norm.weight": 50241.4296875,
}


def smollm2(monkeypatch):
  """The real file, if this machine has it already; nothing is downloaded for a test."""
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  try:
    path = files.resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
  except FileNotFoundError as error:
    pytest.skip(f"SmolLM2 is not on this machine: {str(error).splitlines()[0]}")
  if path.is_dir():
    pytest.skip(f"{path} has the published weights, not the GGUF file's")
  return path


@pytest.mark.slow
def test_real_file(monkeypatch):
  with gguf.read(smollm2(monkeypatch)) as model:
    assert len(model.names()) == 2 + 30 * 9
    config = model.config
    assert config["hidden_size"] // config["num_attention_heads"] == config["head_dim"] == 64
    assert (config["num_key_value_heads"], config["rope_theta"]) == (3, 100000.0)
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (49152, True)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    for name, expected in SMOLLM2.items():
      weights = model.get(name).astype(np.float64).ravel()
      found = weights @ (np.arange(weights.size) % 101)
      np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)
