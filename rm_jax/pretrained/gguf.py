"""Reads a GGUF file as Hugging Face would have it: config, weights and tokenizer, without torch.

A GGUF file is llama.cpp's format: weights (mostly quantised), hyper-parameters and the tokenizer in
one file. Its keys and tensors are converted back to those of the Hugging Face folder that it was
made from. A key of the architecture, or a rule for splitting text, that we do not know is an error:
a model whose scaling of RoPE, or whose splitting, was ignored would be silently wrong.
"""

import contextlib
import logging
import math
import os
import pathlib
from typing import Any

import gguf
import numpy as np
import transformers

from rm_jax.errors import InputError, MissingFileError
from rm_jax.pretrained import files, gguf_file, gguf_tokenizer
from rm_jax.pretrained.families import FAMILIES, tables
from rm_jax.pretrained.families.family import Gguf

_log = logging.getLogger(__name__)

# `general.architecture` of a file -> the family. For the families that we read, llama.cpp has the
# same names as `model_type` of config.json.
_READ = {name: family for name, family in FAMILIES.items() if family.gguf is not None}
# The tensor by which RoPE's frequencies are divided (Llama 3's scaling). It is not a parameter.
_DIVISORS = "rope_freqs.weight"
_YARN = {
  "rope.scaling.yarn_attn_factor": "attention_factor",
  "rope.scaling.yarn_beta_fast": "beta_fast",
  "rope.scaling.yarn_beta_slow": "beta_slow",
}


class GGUF(contextlib.AbstractContextManager):
  """The config and weights of one GGUF file; weights are read when asked for.

  Attributes:
    config: as Hugging Face's config.json has it (`model_type`, `hidden_size`, `rope_theta`, ...).
  """

  def __init__(
    self, config: dict[str, Any], file: gguf_file.File, names: dict[str, str], permuted: bool
  ):
    self.config = config
    self._file = file
    self._names = names  # Hugging Face's -> GGUF's
    self._permuted = permuted

  def names(self) -> list[str]:
    """Hugging Face names of the tensors."""
    return list(self._names)

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a tensor, as Hugging Face has it (a linear layer's weight is [out, in])."""
    return self._file.tensors[self._names[name]].shape

  def get(self, name: str) -> np.ndarray:
    """A tensor, de-quantised: float32 [*shape(name)], a fresh array."""
    stored, kind = self._file.data(self._names[name]), self._file.tensors[self._names[name]].kind
    # No warnings: `read_tensor` in pretrained/hf.py raises an error for NaN and infinity.
    with np.errstate(invalid="ignore", over="ignore"):
      array = gguf.dequantize(stored, kind)
    if np.may_share_memory(array, stored):
      array = array.copy()
    if self._permuted and ".q_proj." in name:
      array = _unpermute(array, self.config["num_attention_heads"])
    if self._permuted and ".k_proj." in name:
      array = _unpermute(array, self.config["num_key_value_heads"])
    return array

  def close(self) -> None:
    """Makes the tensors unavailable; the file is unmapped when the object is deleted."""
    self._names = {}

  def __exit__(self, *unused) -> None:
    self.close()


def _unpermute(array: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's interleaving of the two RoPE halves of each head.

  Args:
    array: [heads · dim, ...].
    heads: their number.
  """
  pairs = array.reshape(heads, -1, 2, *array.shape[1:])
  return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def read(path: str | os.PathLike) -> GGUF:
  """Opens a GGUF file of a decoder.

  Args:
    path: of the file.

  Returns:
    Its config, and its tensors under their Hugging Face names, to be read as float32.

  Raises:
    FileNotFoundError: no such file.
    ReadError: it cannot be read.
    InputError: not a GGUF file, a damaged one, or one of several parts; an architecture or a
      quantisation that we do not read; keys that are missing, unknown or wrong (all of them in one
      message); or tensors that are missing, unknown or of the wrong shape (likewise).
  """
  file = _open(path)
  name = file.get("general.architecture")
  if not isinstance(name, str) or name not in _READ:
    raise InputError(
      f"{path}: general.architecture is {_short(name)}; we read {sorted(_READ)}. Use the"
      " model's Hugging Face folder (config.json and safetensors) if its model_type is supported."
    )
  stored = _READ[name].gguf
  config, sizes = _config(path, file)
  if (layers := config["num_hidden_layers"]) > len(file.tensors):
    # Refused here: a table of the names of so many layers would take all memory.
    raise InputError(
      f"{path}: key {name}.block_count is {layers} and the file has {len(file.tensors)} tensors; "
      "expected several tensors a layer. Convert the model again, or get the file again."
    )
  table = _table(stored, config)
  ours = {key: tensor for key, tensor in file.tensors.items() if key != _DIVISORS}
  problems = [f"tensor {key} is missing" for key in table.keys() - ours.keys()]
  problems += [f"tensor {key} is unknown to {name!r}" for key in ours.keys() - table.keys()]
  for key in table.keys() & ours.keys():
    expected = tuple(sizes[dim] for dim in table[key][1])
    if ours[key].shape != expected:
      problems.append(f"tensor {key} has shape {ours[key].shape}, the keys say {expected}")
  problems += _unreadable(file)
  _raise(path, problems)
  kinds = sorted({tensor.kind.name for tensor in ours.values()})
  _log.info("%s: weights stored as %s, read as float32", path, ", ".join(kinds))
  names = {theirs: key for key, (theirs, _) in table.items()}
  return GGUF(config, file, names, stored.permuted)


def _open(path: str | os.PathLike) -> gguf_file.File:
  path = pathlib.Path(path)
  try:
    with files.reading(path):
      if not path.is_file():
        raise MissingFileError(f"{path}: no such GGUF file")
      file = gguf_file.File(path)
  except InputError as error:
    raise InputError(
      f"{path}: cannot be read as GGUF ({error}). Was it cut short or changed? Compare its size and"
      " its hash with the original's."
    ) from error
  parts = file.get("split.count", 1)
  if type(parts) is not int or parts > 1:
    raise InputError(
      f"{path}: one of {_short(parts)} parts. Join them with `llama-gguf-split --merge FIRST"
      " OUTPUT`."
    )
  return file


def _short(value: Any) -> str:
  """A value for a message, shortened, since a key may hold a list of a million values."""
  said = repr(value[:9] if isinstance(value, list | str) else value)
  return f"{said[:80]} ..." if len(said) > 80 or said != repr(value) else said


def _raise(path: str | os.PathLike, problems: list[str]) -> None:
  if problems:
    listed = "\n  ".join(sorted(problems))
    raise InputError(
      f"{path}: cannot be read as Hugging Face has it:\n  {listed}\n"
      "Convert the model again with a newer llama.cpp, or use its Hugging Face folder."
    )


class _Keys:
  """The '<architecture>.*' keys of a file. Each is taken once; those left over are unknown."""

  def __init__(self, file: gguf_file.File, architecture: str):
    self.prefix = architecture + "."
    self.left = {k.removeprefix(self.prefix) for k in file.key_names() if k.startswith(self.prefix)}
    self.problems: list[str] = []
    self._file = file

  def take(self, key: str, kind: type, default: Any = None) -> Any:
    """The value of a key, or the default.

    Where there is neither, or the value is of another type than `kind`, not finite, or an int below
    1 (0 is allowed if it is the default), notes a problem and returns kind(1).
    """
    if key not in self.left:
      if default is None:
        self.problems.append(f"key {self.prefix}{key} is missing")
      return kind(1) if default is None else default
    self.left.remove(key)
    value = self._file.get(self.prefix + key)
    if kind is float and isinstance(value, float) and math.isfinite(value):
      # Stored as float32: 1e-05 and not 9.999999747378752e-06.
      return float(str(np.float32(value)))
    if type(value) is not kind or kind is float or (kind is int and value < 1 and default != 0):
      said = f"key {self.prefix}{key} is {_short(value)}, expected one {kind.__name__}"
      self.problems.append(said)
      return kind(1)
    return value


def _config(path: str | os.PathLike, file: gguf_file.File) -> tuple[dict[str, Any], dict[str, int]]:
  """(config.json's dictionary, the size of each dimension by its letter in families/tables.py).

  Raises ValueError for keys that are missing, unknown or wrong, all of them in one message.
  """
  name, tensors = file.get("general.architecture"), file.tensors
  keys = _Keys(file, name)
  hidden = keys.take("embedding_length", int)
  heads = keys.take("attention.head_count", int)
  kv_heads = keys.take("attention.head_count_kv", int, heads)
  head_dim = keys.take("attention.key_length", int, hidden // heads)
  embedding = tensors.get("token_embd.weight")
  rows = embedding.shape[0] if embedding else 0
  config = {
    "model_type": name,
    "architectures": [_READ[name].language_model],
    "hidden_act": "silu",
    "hidden_size": hidden,
    "intermediate_size": keys.take("feed_forward_length", int),
    "num_hidden_layers": keys.take("block_count", int),
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": head_dim,
    "vocab_size": keys.take("vocab_size", int, rows),
    "max_position_embeddings": keys.take("context_length", int),
    "rms_norm_eps": keys.take("attention.layer_norm_rms_epsilon", float),
    "rope_theta": keys.take("rope.freq_base", float, 10000.0),
    # llama.cpp writes an output matrix only where it is not the embedding.
    "tie_word_embeddings": "output.weight" not in tensors,
    "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
    "eos_token_id": file.get("tokenizer.ggml.eos_token_id"),
    "pad_token_id": file.get("tokenizer.ggml.padding_token_id"),
  }
  if _READ[name].gguf.optional_biases:
    config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
  divisors = file.data(_DIVISORS) if _DIVISORS in tensors else None
  config["rope_scaling"] = _rope_scaling(keys, config, divisors)
  for key in ("attention.value_length", "rope.dimension_count"):
    if (size := keys.take(key, int, head_dim)) != head_dim:
      keys.problems.append(f"key {name}.{key} is {size}; we read only head_dim, {head_dim}")
  for key in ("expert_count", "expert_used_count"):
    if keys.take(key, int, 0):
      keys.problems.append(f"key {name}.{key}: we read no mixtures of experts")
  keys.left.discard("tensor_data_layout")  # written by old converters, without effect
  _raise(path, keys.problems + [f"key {name}.{key} is unknown" for key in keys.left])
  sizes = {"V": config["vocab_size"], "D": hidden, "F": config["intermediate_size"]}
  return config, sizes | {"Q": heads * head_dim, "K": kv_heads * head_dim, "H": head_dim}


def _rope_scaling(
  keys: _Keys, config: dict[str, Any], divisors: np.ndarray | None
) -> dict[str, Any] | None:
  """config.json's rope_scaling: from the keys, or from Llama 3's tensor of divisors, or None."""
  kind = keys.take("rope.scaling.type", str, "none")
  keys.left.discard("rope.scaling.finetuned")  # says how the model was trained, without effect
  if divisors is not None and kind != "none":
    keys.problems.append(f"tensor rope_freqs.weight stands beside {kind!r} scaling")
  if kind in ("linear", "yarn"):
    scaling = {"rope_type": kind, "factor": keys.take("rope.scaling.factor", float)}
    if kind == "yarn":
      original = keys.take("rope.scaling.original_context_length", int)
      scaling["original_max_position_embeddings"] = original
      for ours, theirs in _YARN.items():
        if ours in keys.left:
          scaling[theirs] = keys.take(ours, float)
    return scaling
  if kind != "none":
    keys.problems.append(f"key {keys.prefix}rope.scaling.type is {kind!r}; we read linear and yarn")
  if divisors is None:
    return None
  # The converter keeps the divisors and drops the four numbers that they were computed from, those
  # of `scaling` below. The last three are the same in all Llama 3 models, and `factor` is the
  # largest divisor.
  if divisors.dtype != np.float32 or not divisors.size or not np.isfinite(divisors).all():
    keys.problems.append(f"tensor {_DIVISORS} is not of finite float32 numbers")
    return None
  factor = float(divisors.max())
  scaling = {
    "factor": factor,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  dim = config["head_dim"]
  turns = 8192 / (2 * np.pi) * config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
  smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
  expected = 1 / ((1 - smooth) / factor + smooth)
  if divisors.shape != expected.shape or not np.allclose(divisors, expected, 1e-4, 0):
    keys.problems.append(f"tensor rope_freqs.weight is not the Llama 3 scaling {scaling}")
  return {"rope_type": "llama3", **scaling}


def _table(stored: Gguf, config: dict[str, Any]) -> dict[str, tuple[str, str]]:
  """GGUF name -> (Hugging Face name, a letter a dimension), of each tensor the file should hold."""
  layer = dict(stored.layer)
  if config.get("attention_bias"):
    layer |= tables.GGUF_QKV_BIAS | tables.GGUF_OUT_BIAS
  if config.get("mlp_bias"):
    layer |= tables.GGUF_MLP_BIAS
  table = dict(tables.GGUF_OUTER)
  for i in range(config["num_hidden_layers"]):
    for ours, (theirs, dims) in layer.items():
      table[f"blk.{i}.{ours}"] = (f"model.layers.{i}.{theirs}", dims)
  return table if config["tie_word_embeddings"] else table | tables.GGUF_HEAD


def _unreadable(file: gguf_file.File) -> list[str]:
  """A line for an error message for each quantisation in the file that `gguf` cannot
  de-quantise."""
  firsts = {tensor.kind: tensor.name for tensor in reversed(list(file.tensors.values()))}
  problems = []
  for kind, name in firsts.items():
    try:
      gguf.dequantize(file.data(name)[:1], kind)
    except NotImplementedError:
      problems.append(f"tensor {name} is stored as {kind.name}, which we do not read")
  return problems


def tokenizer(path: str | os.PathLike) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer in a GGUF file, with its special tokens and chat template; ids as the original's.

  Args:
    path: of the file.

  Returns:
    A tokenizer that adds BOS and EOS as the file says, or, where it does not, BOS if tokenizers of
    the kind do.

  Raises:
    FileNotFoundError: no such file.
    ReadError: it cannot be read.
    ValueError: not a GGUF file, a damaged one, or one of several parts; a kind of tokenizer or a
      rule of splitting that we do not know; or keys missing, of another type or contradictory (all
      of them in one message).
  """
  return gguf_tokenizer.build(_open(path), str(path))
