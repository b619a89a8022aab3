"""Hugging Face config.json -> the few numbers a backbone needs.

transformers' own config classes fill the defaults of each architecture, so that a key which a
config.json leaves out means here what it means there.
"""

import dataclasses
import math
from typing import Any

from rm_jax.errors import InputError
from rm_jax.models.layers import activation

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert",)

# Key of a config.json -> the least and the most that it may be. No model comes near the upper ends;
# above them a small file would take all memory before it is held against the tensors.
_SIZES = {
  "vocab_size": (1, 2**26),
  "hidden_size": (1, 2**20),
  "intermediate_size": (1, 2**23),
  "num_hidden_layers": (1, 10_000),
  "num_attention_heads": (1, 2**16),
  "num_key_value_heads": (1, 2**16),
  "head_dim": (1, 2**16),
  "max_position_embeddings": (1, 2**31 - 1),
  "type_vocab_size": (1, 2**16),
  "num_labels": (1, 2**16),
  "sliding_window": (0, 2**31 - 1),
  "max_window_layers": (0, 2**31 - 1),
}
_NUMBERS = {
  "rms_norm_eps": (0.0, 1.0),
  "layer_norm_eps": (0.0, 1.0),
  "rope_theta": (1e-6, 1e30),
  "initializer_range": (0.0, 1e6),
  "attention_dropout": (0.0, 1.0),
  "hidden_dropout_prob": (0.0, 1.0),
  "attention_probs_dropout_prob": (0.0, 1.0),
  "classifier_dropout": (0.0, 1.0),
}
_TYPES = {
  "model_type": str,
  "hidden_act": str,
  "architectures": list,
  "layer_types": list,
  "id2label": dict,
  "rope_scaling": dict,
  "rope_parameters": dict,
  "is_decoder": bool,
  "attention_bias": bool,
  "mlp_bias": bool,
  "tie_word_embeddings": bool,
  "use_sliding_window": bool,
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary frequencies: `theta` and, where scaled, how (Llama 3's rule or plain linear)."""

  theta: float = 10_000.0
  kind: str = "default"  # 'default', 'linear' or 'llama3'
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_length: int = 8192  # tokens; the context that llama3's rule stretches


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A causal transformer of the Llama family (Llama, Mistral, Qwen2, Qwen3)."""

  model_type: str
  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  ffn: int
  activation: str
  eps: float
  rope: Rope
  qkv_bias: bool
  out_bias: bool
  mlp_bias: bool
  qk_norm: bool
  windows: tuple[int, ...] | None  # a layer's sliding window in tokens, 0 = all; None = no layer's
  max_positions: int
  attention_dropout: float
  init_std: float


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """BERT."""

  model_type: str
  vocab: int
  width: int
  layers: int
  heads: int
  ffn: int
  activation: str
  eps: float
  max_positions: int
  token_types: int
  hidden_dropout: float
  attention_dropout: float
  init_std: float


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """What stands between a hidden state and a score; a record of its own, not of an architecture.

  `pooler`: a dense layer of the model's width with `activation` before the output layer (BERT's).
  `outputs`: how many numbers; a reward has one. `ensemble`: the outputs are members, each of which
  is a reward by itself, and the reward is their mean. `attributes`: names of the outputs, each of
  which is a rating, and the reward is their sum by weights; `mix` are the weights as they begin
  (training may change them). `dropout`: before the output layer.

  Raises ValueError where names, weights and outputs are not as many.
  """

  outputs: int = 1
  ensemble: bool = False
  attributes: tuple[str, ...] = ()
  mix: tuple[float, ...] = ()
  bias: bool = False
  pooler: bool = False
  activation: str = "tanh"
  dropout: float = 0.0

  def __post_init__(self):
    for name in ("attributes", "mix"):  # JSON has no tuples
      object.__setattr__(self, name, tuple(getattr(self, name)))
    count = len(self.attributes)
    if self.outputs < 1 or not 0.0 <= self.dropout <= 1.0:
      raise InputError(
        f"head: {self.outputs} outputs, dropout {self.dropout}; expected 1 or more, and 0 to 1"
      )
    activation(self.activation)
    if len(self.mix) != count or (count and (self.outputs != count or self.ensemble)):
      raise InputError(
        f"head: attributes {self.attributes}, mix {self.mix}, {self.outputs} outputs, ensemble "
        f"{self.ensemble}; expected a name and a weight for each output, or neither"
      )


def _rope(hf: Any) -> Rope:
  parameters = dict(hf.rope_parameters)
  kind = parameters.get("rope_type", "default")
  if kind not in ("default", "linear", "llama3"):
    raise InputError(
      f"config.json: rope_type {kind!r} is not supported; expected 'default', 'linear' or 'llama3'"
    )
  for key in ("rope_theta", "factor", "low_freq_factor", "high_freq_factor"):
    _number("config.json: rope", key, parameters.get(key, 1.0), 1e-6, 1e30)
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


def _windows(hf: Any) -> tuple[int, ...] | None:
  window = getattr(hf, "sliding_window", None)
  # Llama has no window, whatever key a config.json made from another model's has kept.
  if not window or hf.model_type == "llama":
    return None
  # Mistral's config has no layer_types: every layer slides.
  types = getattr(hf, "layer_types", None) or ["sliding_attention"] * hf.num_hidden_layers
  windows = tuple(int(window) if kind == "sliding_attention" else 0 for kind in types)
  return windows if any(windows) else None


def _decoder(hf: Any) -> DecoderConfig:
  kind = hf.model_type
  heads = hf.num_attention_heads
  kv_heads = getattr(hf, "num_key_value_heads", None) or heads
  head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // heads
  if heads % kv_heads or head_dim < 1 or head_dim % 2:
    raise InputError(
      f"config.json: {heads} attention heads, {kv_heads} key/value heads, head_dim {head_dim}; "
      "expected heads to be a multiple of key/value heads, and an even head_dim"
    )
  attention_bias = kind in ("llama", "qwen3") and hf.attention_bias
  return DecoderConfig(
    model_type=kind,
    vocab=hf.vocab_size,
    width=hf.hidden_size,
    layers=hf.num_hidden_layers,
    heads=heads,
    kv_heads=kv_heads,
    head_dim=head_dim,
    ffn=hf.intermediate_size,
    activation=hf.hidden_act,
    eps=hf.rms_norm_eps,
    rope=_rope(hf),
    # Qwen2 has biases on q, k and v, and says so nowhere; Mistral has none.
    qkv_bias=kind == "qwen2" or attention_bias,
    out_bias=attention_bias,
    mlp_bias=kind == "llama" and hf.mlp_bias,
    qk_norm=kind == "qwen3",
    windows=_windows(hf),
    max_positions=hf.max_position_embeddings,
    attention_dropout=float(hf.attention_dropout or 0.0),
    init_std=hf.initializer_range,
  )


def _encoder(hf: Any) -> EncoderConfig:
  if hf.is_decoder:
    raise InputError("config.json: is_decoder is true; BERT is supported as an encoder only")
  if hf.hidden_size % hf.num_attention_heads:
    raise InputError(
      f"config.json: hidden_size is {hf.hidden_size} with {hf.num_attention_heads} attention heads;"
      " expected a multiple"
    )
  return EncoderConfig(
    model_type=hf.model_type,
    vocab=hf.vocab_size,
    width=hf.hidden_size,
    layers=hf.num_hidden_layers,
    heads=hf.num_attention_heads,
    ffn=hf.intermediate_size,
    activation=hf.hidden_act,
    eps=hf.layer_norm_eps,
    max_positions=hf.max_position_embeddings,
    token_types=hf.type_vocab_size,
    hidden_dropout=float(hf.hidden_dropout_prob),
    attention_dropout=float(hf.attention_probs_dropout_prob),
    init_std=hf.initializer_range,
  )


def is_classifier(hf: dict) -> bool:
  """Whether a config.json is of a sequence-classification checkpoint: one with a head."""
  return any("ForSequenceClassification" in name for name in hf.get("architectures") or ())


def check_config(hf: dict, where: str = "config.json") -> None:
  """Raises ValueError where a config.json's dictionary has a value that no model can have.

  Args:
    hf: the dictionary. Of an architecture that we do not know (a tokenizer's folder may have one)
      only sizes beyond all measure are refused.
    where: the file, for the message.
  """
  for key, (_, most) in _SIZES.items():
    if type(hf.get(key)) is int and hf[key] > most:
      raise InputError(f"{where}: {key} is {hf[key]:.6g}; expected at most {most}")
  if (kind := hf.get("model_type")) is not None and not isinstance(kind, str):
    raise InputError(f"{where}: model_type is {kind!r:.80}; expected a str")
  if kind not in DECODERS + ENCODERS:
    return
  for key, (least, _) in _SIZES.items():
    value = hf.get(key)
    if value is not None and (type(value) is not int or value < least):
      raise InputError(f"{where}: {key} is {value!r:.80}; expected a whole number from {least}")
  for key, (least, most) in _NUMBERS.items():
    if hf.get(key) is not None:
      _number(where, key, hf[key], least, most)
  for key, of in _TYPES.items():
    value = hf.get(key)
    if value is not None and not isinstance(value, of):
      raise InputError(f"{where}: {key} is {value!r:.80}; expected a {of.__name__}")
  for key in ("architectures", "layer_types"):
    if wrong := [one for one in hf.get(key) or () if not isinstance(one, str)]:
      raise InputError(f"{where}: {key} holds {wrong[0]!r:.80}; expected strings")


def _number(where: str, key: str, value: Any, least: float, most: float) -> None:
  # A comparison with NaN is false.
  if type(value) not in (int, float) or not least <= value <= most or not math.isfinite(value):
    raise InputError(f"{where}: {key} is {value!r:.80}; expected a number, {least:g} to {most:g}")


def _full(hf: dict) -> Any:
  """transformers' own config of a config.json's dictionary, with its defaults filled in."""
  from transformers import AutoConfig

  check_config(hf)
  try:
    return AutoConfig.for_model(**hf)
  # Its validators raise what they like, and a key may be one that its own code trips over.
  except Exception as error:
    said = " ".join(str(error).split())
    raise InputError(f"config.json: transformers does not take it: {said:.300}") from None


def backbone_config(hf: dict) -> DecoderConfig | EncoderConfig:
  """The backbone of a config.json's dictionary. Raises ValueError naming what is not supported."""
  kind = hf.get("model_type")
  if not isinstance(kind, str) or kind not in DECODERS + ENCODERS:
    raise InputError(
      f"config.json: model_type {kind!r:.80} is not supported; expected one of "
      f"{', '.join(DECODERS + ENCODERS)}"
    )
  full = _full(hf)
  activation(full.hidden_act)  # an unknown one is refused now, and not when a step is compiled
  return _decoder(full) if kind in DECODERS else _encoder(full)


def tied_head(hf: dict) -> bool:
  """Whether the language-model head of a config.json's model is its embedding."""
  return bool(_full(hf).tie_word_embeddings)


def head_config(hf: dict) -> HeadConfig:
  """The head of a checkpoint: its own where it is a classifier, else a new one of one output.

  Both are what Hugging Face's sequence classifiers have, so that what we save is one: a decoder's
  is one linear layer without bias; BERT's is a tanh pooler, dropout and a linear layer with bias.
  """
  outputs = 1
  if is_classifier(hf):
    outputs = hf.get("num_labels") or len(hf.get("id2label") or (0, 1))
  if hf["model_type"] in DECODERS:
    return HeadConfig(outputs=outputs)
  dropout = hf.get("classifier_dropout")
  if dropout is None:
    dropout = hf.get("hidden_dropout_prob", 0.1)
  return HeadConfig(outputs=outputs, bias=True, pooler=True, dropout=float(dropout))
