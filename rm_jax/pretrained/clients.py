"""Tokenizer and config of an export, for readers with transformers (4.51 or 5) but not rm_jax.

What Hugging Face's files cannot say is in `rm_jax.json`, such as the tokenizer as the model was
trained with it, and the head where it has members or attributes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig, EncoderConfig
from rm_jax.pretrained.families import FAMILIES

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Keys of a checkpoint's config.json that are not exported: its own Python code and the format of
# its numbers would be wrong, since an export is float32 and needs no code; its name is another one;
# and the number of labels follows from `id2label`.
_FOREIGN = ("auto_map", "quantization_config", "dtype", "_name_or_path", "num_labels")


def client_config(
  config: dict[str, Any], backbone: DecoderConfig | EncoderConfig
) -> dict[str, Any]:
  """config.json of an export, which transformers 4.51 and 5 read alike.

  A decoder's has all keys of its architecture, so that nothing is left to a version's defaults.

  Args:
    config: of the model (`TextModel.exported_config`).
    backbone: what `pretrained.config.backbone_config` makes of it.
  """
  config = {key: value for key, value in config.items() if key not in _FOREIGN}
  config |= {"torch_dtype": "float32", "problem_type": "regression"}
  if isinstance(backbone, EncoderConfig):
    return config
  # The keys of transformers 4, which 5 reads too.
  config.pop("rope_parameters", None)
  config |= {
    "rope_theta": backbone.rope.theta,
    "rope_scaling": _rope_scaling(backbone),
    "head_dim": backbone.head_dim,
    "num_key_value_heads": backbone.kv_heads,
    "max_position_embeddings": backbone.max_positions,
    "rms_norm_eps": backbone.eps,
    "hidden_act": backbone.activation,
  } | FAMILIES[backbone.model_type].exported(backbone)
  return config


def _rope_scaling(backbone: DecoderConfig) -> dict[str, Any] | None:
  rope = backbone.rope
  if rope.kind == "default":
    return None
  scaling = {"rope_type": rope.kind, "factor": rope.factor}
  if rope.kind == "llama3":
    scaling |= {
      "low_freq_factor": rope.low_freq_factor,
      "high_freq_factor": rope.high_freq_factor,
      "original_max_position_embeddings": rope.original_length,
    }
  return scaling


def client_tokenizer(
  tokenizer: Any,
  *,
  chat_template: str | None,
  append: Sequence[int],
  pad: str | None,
  max_length: int,
  pairs: bool,
) -> Any:
  """A copy of a tokenizer that by itself turns text into the tokens that the model was trained on.

  Args:
    tokenizer: a fast one (of the `tokenizers` library); it stays as it is.
    chat_template: of the copy.
    append: ids of the tokens that it appends to every text.
    pad: its pad token, added if it is not in the vocabulary; None for none.
    max_length: tokens, its `model_max_length`.
    pairs: whether it gives `token_type_ids` (encoders).
  """
  from transformers import PreTrainedTokenizerFast

  backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
  backend.no_truncation()
  backend.no_padding()
  if len(append):
    tokens = [backend.id_to_token(i) for i in append]
    name = tokens[0] if len(tokens) == 1 else "ending"  # a template has no place for ":" in a name
    ending = {"id": name, "ids": list(append), "tokens": tokens}
    last = processors.TemplateProcessing(
      single=["$A", name], pair=["$A", "$B:1", f"{name}:1"], special_tokens=[ending]
    )
    own = backend.post_processor
    backend.post_processor = last if own is None else processors.Sequence([own, last])
  special = {f"{n}_token": getattr(tokenizer, f"{n}_token", None) for n in _SPECIAL}
  special["pad_token"] = pad
  inputs = ["input_ids", *(["token_type_ids"] if pairs else []), "attention_mask"]

  class Client(PreTrainedTokenizerFast):
    """Saves itself under a class name that transformers 4.51 knows; 5 has renamed the class."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
      files = super().save_pretrained(save_directory, **kwargs)
      path = Path(save_directory) / "tokenizer_config.json"
      said = json.loads(path.read_text(encoding="utf-8"))
      said["tokenizer_class"] = "PreTrainedTokenizerFast"
      for key in ("backend", "is_local"):
        said.pop(key, None)
      path.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
      return files

  return Client(
    tokenizer_object=backend,
    **{name: token for name, token in special.items() if token is not None},
    chat_template=chat_template,
    model_max_length=max_length,
    model_input_names=inputs,
    padding_side="right",
    truncation_side="left",
    clean_up_tokenization_spaces=False,
    split_special_tokens=bool(getattr(tokenizer, "split_special_tokens", False)),
  )


def template_of(tokenizer: Any) -> str | None:
  """The chat template of messages; None where there is none, or several and no default."""
  templates = tokenizer.chat_template
  if not templates or (isinstance(templates, Mapping) and "default" not in templates):
    return None
  return tokenizer.get_chat_template()


def tokenizer_record(tokenizer: Any, client: Any) -> dict[str, Any]:
  """The settings of a tokenizer that its `client_tokenizer` changed; `as_trained` restores them."""
  return {
    "chat_template": template_of(tokenizer) or tokenizer.chat_template,
    "client_template": _hash(client.chat_template),
    "post_processor": json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"],
    "pad_token": tokenizer.pad_token,
  }


def _hash(text: str | None) -> str:
  return hashlib.sha256((text or "").encode()).hexdigest()[:16]


def as_trained(tokenizer: Any, record: Mapping[str, Any]) -> Any:
  """The tokenizer of a folder that we exported, made to give the tokens of training again.

  A chat template that somebody changed in the folder since is kept.

  Args:
    tokenizer: as transformers reads it there.
    record: the folder's rm_jax.json; without a "tokenizer" nothing is done.

  Raises:
    InputError: the record is not one that we wrote.
  """
  saved = record.get("tokenizer")
  if saved is None:
    return tokenizer
  try:
    if _hash(tokenizer.chat_template) == saved["client_template"]:
      tokenizer.chat_template = saved["chat_template"]
    tokenizer.backend_tokenizer.post_processor = _post_processor(saved["post_processor"])
    tokenizer.pad_token = saved["pad_token"]
  except Exception as error:  # what `tokenizers` raises has no class of its own
    raise InputError(f"rm_jax.json: its tokenizer is not one that we wrote: {error}") from error
  return tokenizer


def _post_processor(said: dict[str, Any] | None) -> Any:
  """A post-processor from its JSON, which `tokenizers` reads only as part of a whole tokenizer."""
  if said is None:
    return None
  empty = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
  return tokenizers.Tokenizer.from_str(json.dumps(empty | {"post_processor": said})).post_processor


def packed_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Small arrays for a JSON file: {name: {shape, float32: base64 of little-endian bytes}}."""
  return {
    name: {
      "shape": list(array.shape),
      "float32": base64.b64encode(np.asarray(array, "<f4").tobytes()).decode(),
    }
    for name, array in tensors.items()
  }


class Overlaid:
  """A reader of a checkpoint's tensors, some of which are replaced by those in its rm_jax.json.

  Args:
    reader: has names(), shape(name), get(name).
    packed: from `packed_tensors`.

  Raises InputError where the record is not one that we wrote.
  """

  def __init__(self, reader: Any, packed: Mapping[str, Any]):
    self._reader = reader
    try:
      self._own = {
        name: np.frombuffer(base64.b64decode(one["float32"], validate=True), "<f4")
        .astype(np.float32)
        .reshape(one["shape"])
        for name, one in packed.items()
      }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise InputError(f"rm_jax.json: its head is not one that we wrote: {error}") from error

  def names(self) -> Any:
    return self._reader.names()

  def shape(self, name: str) -> tuple[int, ...]:
    return self._own[name].shape if name in self._own else self._reader.shape(name)

  def get(self, name: str) -> np.ndarray:
    return self._own[name] if name in self._own else self._reader.get(name)
