"""What a family of models is: a record of how its files are read and written."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, Rope
from rm_jax.pretrained.families import tables


@dataclasses.dataclass(frozen=True)
class Gguf:
  """How llama.cpp's GGUF files store a family.

  Attributes:
    layer: name of a layer's tensor there -> (Hugging Face name, a letter for each dimension); see
      tables.py.
    permuted: whether llama.cpp interleaves the two halves of each query and key head for its RoPE.
    optional_biases: whether some GGUF files have biases that others lack. It is known from the
      tensors that a file holds, as it has no `attention_bias` and `mlp_bias` of config.json.
  """

  layer: Mapping[str, tuple[str, str]]
  permuted: bool = False
  optional_biases: bool = False


def _linear_head(hf: Mapping[str, Any], outputs: int) -> HeadConfig:
  """One linear layer without bias: the head of transformers' decoders."""
  return HeadConfig(outputs=outputs)


def no_window(backbone: DecoderConfig) -> dict[str, Any]:
  """Keys of config.json that say that no layer has a sliding window.

  {} where some layer has one, so that the checkpoint's own keys stay. `sliding_window` has to be
  None too, since attention masks in transformers 4.51 apply it even where `use_sliding_window` is
  False.
  """
  return {} if backbone.sliding_windows else {"sliding_window": None, "use_sliding_window": False}


@dataclasses.dataclass(frozen=True)
class Family:
  """All that is peculiar to the files of one family of models.

  The defaults of tensors' names are Llama's, whose layout most decoders have taken over.

  Tensor names map a module of ours ('attention_norm', 'q') to Hugging Face's name of it, to which
  `hf.py` adds '.weight' or '.bias'.

  Attributes:
    model_type: as config.json says it; the key of `FAMILIES`, and `model_type` of the backbone.
    class_prefix: what transformers' classes of the family begin with, such as 'Qwen2'.
    backbone: (transformers' config object, whose defaults are filled in) -> the network's config.
      Raises ValueError for what the network cannot do.
    head: (config.json's dictionary, number of outputs) -> the head of a sequence classifier.
    exported: backbone -> keys of an exported config.json, beside those that all decoders have, that
      leave nothing to the defaults of a reader's version.
    activation: key of config.json that names the activation of the feed-forward.
    numbers: further numeric keys of config.json -> the least and the most that they may be.
    types: further keys of config.json -> the type of their values.
    prefix: of the backbone's tensors; a base model's file has none.
    layers: what precedes the number of a layer.
    tensors: names outside the layers.
    layer_tensors: names within a layer.
    head_tensors: names of the head, which have no prefix.
    ignored: regular expression of tensors that a reward model has no use for, such as a
      language-model head and buffers.
    renamed: parts of tensor names in old checkpoints -> what they are called today.
    gguf: how GGUF files store the family; None where they are not read.
  """

  model_type: str
  class_prefix: str
  backbone: Callable[[Any], DecoderConfig | EncoderConfig]
  head: Callable[[Mapping[str, Any], int], HeadConfig] = _linear_head
  exported: Callable[[Any], dict[str, Any]] = no_window
  activation: str = "hidden_act"
  numbers: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  types: Mapping[str, type] = dataclasses.field(default_factory=dict)
  prefix: str = "model."
  layers: str = "layers"
  tensors: Mapping[str, str] = dataclasses.field(default_factory=lambda: tables.DECODER)
  layer_tensors: Mapping[str, str] = dataclasses.field(default_factory=lambda: tables.DECODER_LAYER)
  head_tensors: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"out": "score"})
  ignored: str = tables.IGNORED
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  gguf: Gguf | None = None

  @property
  def classifier(self) -> str:
    """transformers' class of a model with a reward head."""
    return f"{self.class_prefix}ForSequenceClassification"

  @property
  def language_model(self) -> str:
    """transformers' class of a decoder with a language-model head."""
    return f"{self.class_prefix}ForCausalLM"


def read_decoder(hf: Any, **peculiar: Any) -> DecoderConfig:
  """A decoder's config from transformers' own.

  Args:
    hf: transformers' config object, whose defaults are filled in.
    peculiar: fields of `DecoderConfig` in which the family differs from Mistral, which has neither
      biases nor norms of queries and keys.

  Raises:
    InputError: heads that do not fit one another, or a RoPE that is not supported.
  """
  heads = hf.num_attention_heads
  kv_heads = getattr(hf, "num_key_value_heads", None) or heads
  head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // heads
  if heads % kv_heads or head_dim < 1 or head_dim % 2:
    raise InputError(
      f"config.json: {heads} attention heads, {kv_heads} key/value heads, head_dim {head_dim}; "
      "expected heads to be a multiple of key/value heads, and an even head_dim"
    )
  fields = dict(
    model_type=hf.model_type,
    vocab=hf.vocab_size,
    width=hf.hidden_size,
    layers=hf.num_hidden_layers,
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    ffn=hf.intermediate_size,
    activation=getattr(hf, "hidden_act", None),
    eps=hf.rms_norm_eps,
    rope=_rope(hf),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    sliding_windows=_windows(hf),
    max_positions=hf.max_position_embeddings,
    attention_dropout=float(hf.attention_dropout or 0.0),
    init_std=hf.initializer_range,
  )
  return DecoderConfig(**(fields | peculiar))


def _windows(hf: Any) -> tuple[int, ...] | None:
  """Each layer's sliding window in tokens, 0 where it sees all; None where no layer slides."""
  window = getattr(hf, "sliding_window", None)
  if not window:
    return None
  # Mistral's config has no layer_types: every layer slides.
  types = getattr(hf, "layer_types", None) or ["sliding_attention"] * hf.num_hidden_layers
  windows = tuple(int(window) if kind == "sliding_attention" else 0 for kind in types)
  return windows if any(windows) else None


def _rope(hf: Any) -> Rope:
  parameters = dict(hf.rope_parameters)
  kind = parameters.get("rope_type", "default")
  if kind not in ("default", "linear", "llama3"):
    raise InputError(
      f"config.json: rope_type {kind!r} is not supported; expected 'default', 'linear' or 'llama3'"
    )
  for key in ("rope_theta", "factor", "low_freq_factor", "high_freq_factor"):
    check_number("config.json: rope", key, parameters.get(key, 1.0), 1e-6, 1e30)
  original = parameters.get("original_max_position_embeddings")
  if original is not None and (type(original) is not int or not 1 <= original < 2**31):
    raise InputError(
      f"config.json: rope original_max_position_embeddings is {original!r:.80}; expected tokens"
    )
  rope = Rope(
    theta=float(parameters["rope_theta"]),
    kind=kind,
    factor=float(parameters.get("factor", 1.0)),
    low_freq_factor=float(parameters.get("low_freq_factor", 1.0)),
    high_freq_factor=float(parameters.get("high_freq_factor", 4.0)),
    original_length=int(original or hf.max_position_embeddings),
  )
  if kind == "llama3" and not rope.low_freq_factor < rope.high_freq_factor:
    raise InputError(
      f"config.json: rope low_freq_factor is {rope.low_freq_factor} and high_freq_factor "
      f"{rope.high_freq_factor}; expected the first to be smaller"
    )
  return rope


def check_number(where: str, key: str, value: Any, least: float, most: float) -> None:
  """Raises InputError where a value is no finite number in a range."""
  # `not least <= value <= most` refuses NaN too, for which all comparisons are false.
  if type(value) not in (int, float) or not least <= value <= most or not math.isfinite(value):
    raise InputError(f"{where}: {key} is {value!r:.80}; expected a number, {least:g} to {most:g}")
