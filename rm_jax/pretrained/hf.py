"""The table between Hugging Face's tensors and ours, read in both directions.

A linear weight there is [out, in]; ours is [in..., out...], heads split; layers are stacked on a
leading axis, the frozen ones in a stack of their own ('lower').
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig
from rm_jax.models.network import Network

_DECODER = {
  "embed/embedding": "embed_tokens.weight",
  "norm/scale": "norm.weight",
}
_DECODER_LAYER = {
  "attention_norm/scale": "input_layernorm.weight",
  "q": "self_attn.q_proj",
  "k": "self_attn.k_proj",
  "v": "self_attn.v_proj",
  "o": "self_attn.o_proj",
  "q_norm/scale": "self_attn.q_norm.weight",
  "k_norm/scale": "self_attn.k_norm.weight",
  "mlp_norm/scale": "post_attention_layernorm.weight",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}
_ENCODER = {
  "embed/embedding": "embeddings.word_embeddings.weight",
  "embed_position/embedding": "embeddings.position_embeddings.weight",
  "embed_token_type/embedding": "embeddings.token_type_embeddings.weight",
  "embed_norm": "embeddings.LayerNorm",
}
_ENCODER_LAYER = {
  "q": "attention.self.query",
  "k": "attention.self.key",
  "v": "attention.self.value",
  "o": "attention.output.dense",
  "attention_norm": "attention.output.LayerNorm",
  "up": "intermediate.dense",
  "down": "output.dense",
  "mlp_norm": "output.LayerNorm",
}
# [V, D], where it is not the embedding; `train.text_penalty` reads it.
LM_HEAD = "lm_head.weight"
# Tensors of language-model and pre-training heads, and buffers: a reward model has no use for them.
_IGNORED = re.compile(
  r"lm_head\.|cls\.|(.*\.)?rotary_emb\.inv_freq$|(.*\.)?position_ids$|(bert\.)?pooler\."
)
# The one map that reads two axes (heads, head width) and writes one.
_TWO_INPUTS = "o/kernel"


class WeightsError(InputError):
  """A checkpoint's tensors do not fit its config; the message lists all that is wrong."""


def _lookup(table: dict[str, str], path: str) -> str:
  """'q/kernel' -> 'self_attn.q_proj.weight', by the whole path or by its module."""
  if path in table:
    return table[path]
  module, leaf = path.rsplit("/", 1)
  return table[module] + {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}[leaf]


def hf_names(network: Network, path: str) -> list[str]:
  """The Hugging Face tensors that one of our parameters is made of, one a layer, with prefix.

  None for the weights of attributes, which stand in our own record, and for adapters.
  """
  decoder = isinstance(network.backbone, DecoderConfig)
  room, _, rest = path.partition("/")
  if path == "head/mix" or path.endswith(("/lora_a", "/lora_b")):
    return []
  if room == "head":
    if rest.startswith("pooler/"):
      return [_lookup({"pooler": "bert.pooler.dense"}, rest)]
    return [_lookup({"out": "score" if decoder else "classifier"}, rest)]
  prefix = "model." if decoder else "bert."
  stack, _, inner = rest.partition("/")
  if stack not in ("lower", "layers"):
    return [prefix + _lookup(_DECODER if decoder else _ENCODER, rest)]
  name = _lookup(_DECODER_LAYER if decoder else _ENCODER_LAYER, inner)
  layers = (
    range(network.frozen) if stack == "lower" else range(network.frozen, network.backbone.layers)
  )
  return [f"{prefix}{'layers' if decoder else 'encoder.layer'}.{i}.{name}" for i in layers]


def _hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of the Hugging Face tensor behind one (layer's) parameter."""
  if path.endswith("/kernel"):
    inputs = 2 if path.endswith(_TWO_INPUTS) else 1
    return int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs]))
  if path.endswith("/bias"):
    return (int(np.prod(shape)),)
  return shape


def _to_ours(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return (tensor.T if path.endswith("/kernel") else tensor).reshape(shape)


def _to_hf(path: str, array: np.ndarray) -> np.ndarray:
  out, *rest = _hf_shape(path, array.shape)
  if path.endswith("/kernel"):
    return np.ascontiguousarray(array.reshape(rest[0], out).T)
  return array.reshape(out, *rest)


def _modern(name: str) -> str:
  """BERT's first checkpoints, made from TensorFlow's, call a norm's weight gamma and bias beta."""
  name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
  return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _stacked(path: str) -> bool:
  return "/layers/" in path or "/lower/" in path


def read_tensor(reader: Any, name: str, source: str) -> np.ndarray:
  """A tensor as float32, of which every number is finite.

  Args:
    reader: has get(name) -> array.
    name: of the tensor.
    source: name of the checkpoint, for errors.

  Raises:
    WeightsError: it is stored as whole numbers, or holds NaN or infinity (in float32).
  """
  stored = reader.get(name)
  # What packs or scales weights stores them as integers; read as numbers they are noise.
  if not jnp.issubdtype(stored.dtype, jnp.floating):
    raise WeightsError(
      f"{source}: {name} is stored as {stored.dtype}; expected floating-point numbers. Was it "
      "quantised in a way of its own? Use the model's unquantised folder, or a GGUF file"
    )
  with np.errstate(over="ignore", invalid="ignore"):
    array = stored.astype(np.float32, copy=False)
  # The least and the most are NaN where any is, and take no array of their own.
  if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
    count = array.size - int(np.isfinite(array).sum())
    raise WeightsError(
      f"{source}: {name} has {count} of {array.size} numbers that are NaN or infinite in float32; "
      "the training that wrote it had failed, or the file is damaged. Use another checkpoint"
    )
  return array


def load_params(
  network: Network,
  reader: Any,
  place: Callable[[str, np.ndarray], Any],
  *,
  source: str,
  spare: int = 0,
) -> tuple[dict, list[str]]:
  """Reads a checkpoint's tensors into our parameters.

  Args:
    network: whose parameters to fill.
    reader: has names(), shape(name) and get(name) -> array.
    place: (path, float32 array) -> what stands in the result; puts the array onto devices, one
      parameter at a time, so that the host never holds the whole model twice.
    source: name of the checkpoint, for errors.
    spare: how many layers the checkpoint has above the network's, left out on purpose.

  Returns:
    (parameters as a nested dict, without those of a missing head and those that `hf_names` knows no
    tensor of; paths of the missing head).

  Raises:
    WeightsError: tensors that are missing, not expected, or of another shape, all of them listed;
      or the first that `read_tensor` refuses.
  """
  names = {_modern(name): name for name in reader.names()}
  layers = network.backbone.layers + spare
  if layers > len(names):
    # Before a table of so many names is made.
    raise WeightsError(
      f"{source}: config.json says num_hidden_layers {layers}, and there are {len(names)} tensors; "
      "expected several tensors a layer"
    )
  prefix = "model." if isinstance(network.backbone, DecoderConfig) else "bert."
  bare = not any(name.startswith(prefix) for name in names)

  def actual(name: str) -> str:
    return name.removeprefix(prefix) if bare else name

  flat = flatten_dict(network.abstract(), sep="/")
  wanted = {path: [actual(n) for n in hf_names(network, path)] for path in flat}
  flat = {path: leaf for path, leaf in flat.items() if wanted[path]}
  head = [path for path in flat if path.startswith("head/")]
  # A head without its output layer is missing; the pooler is a pre-trained BERT's all the same.
  # Otherwise it is whole, or an error.
  missing = []
  if not any(name in names for path in head if "/out/" in path for name in wanted[path]):
    missing = [path for path in head if not names.keys() >= set(wanted[path])]
    flat = {path: leaf for path, leaf in flat.items() if path not in missing}

  problems = []
  for path, leaf in flat.items():
    shape = _hf_shape(path, leaf.shape[1:] if _stacked(path) else leaf.shape)
    for name in wanted[path]:
      if name not in names:
        problems.append(f"missing: {name} {shape}")
      elif (found := tuple(reader.shape(names[name]))) != shape:
        problems.append(f"shape: {name} is {found}, config.json says {shape}")
  used = {name for path in flat for name in wanted[path]}
  above = range(network.backbone.layers, network.backbone.layers + spare)
  used |= {n for i in above for n in names if f"layers.{i}." in n or f"encoder.layer.{i}." in n}
  problems += [f"not expected: {n}" for n in sorted(names.keys() - used) if not _IGNORED.match(n)]
  if problems:
    raise WeightsError(
      f"{source}: {len(problems)} of its tensors do not fit its config.json:\n  "
      + "\n  ".join(problems)
    )

  loaded = {}
  for path, leaf in flat.items():
    shape = leaf.shape[1:] if _stacked(path) else leaf.shape
    array = np.empty(leaf.shape, np.float32)
    for i, name in enumerate(wanted[path]):
      array[i if _stacked(path) else ...] = _to_ours(
        path, read_tensor(reader, names[name], source), shape
      )
    loaded[path] = place(path, array)
  return unflatten_dict(loaded, sep="/"), missing


def export_params(network: Network, params: dict) -> Iterator[tuple[str, np.ndarray]]:
  """Our parameters as (Hugging Face name, float32 array), `load_params` reversed."""
  for path, leaf in flatten_dict(params, sep="/").items():
    array = np.asarray(leaf)
    names = hf_names(network, path)
    for i, name in enumerate(names):
      yield name, _to_hf(path, array[i] if _stacked(path) else array)
