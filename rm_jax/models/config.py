"""Hugging Face config.json -> the few numbers a backbone needs.

transformers' own config classes fill the defaults of each architecture, so that a key which a
config.json leaves out means here what it means there.
"""

import dataclasses
from typing import Any

from rm_jax.models.layers import activation

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert",)


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
    if len(self.mix) != count or (count and (self.outputs != count or self.ensemble)):
      raise ValueError(
        f"head: attributes {self.attributes}, mix {self.mix}, {self.outputs} outputs, ensemble "
        f"{self.ensemble}; expected a name and a weight for each output, or neither"
      )


def _rope(hf: Any) -> Rope:
  parameters = dict(hf.rope_parameters)
  kind = parameters.get("rope_type", "default")
  if kind not in ("default", "linear", "llama3"):
    raise ValueError(
      f"config.json: rope_type {kind!r} is not supported; expected 'default', 'linear' or 'llama3'"
    )
  return Rope(
    theta=float(parameters["rope_theta"]),
    kind=kind,
    factor=float(parameters.get("factor", 1.0)),
    low_freq_factor=float(parameters.get("low_freq_factor", 1.0)),
    high_freq_factor=float(parameters.get("high_freq_factor", 4.0)),
    original_length=int(
      parameters.get("original_max_position_embeddings") or hf.max_position_embeddings
    ),
  )


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
  attention_bias = kind in ("llama", "qwen3") and hf.attention_bias
  return DecoderConfig(
    model_type=kind,
    vocab=hf.vocab_size,
    width=hf.hidden_size,
    layers=hf.num_hidden_layers,
    heads=heads,
    kv_heads=getattr(hf, "num_key_value_heads", None) or heads,
    head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // heads,
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
    raise ValueError("config.json: is_decoder is true; BERT is supported as an encoder only")
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


def backbone_config(hf: dict) -> DecoderConfig | EncoderConfig:
  """The backbone of a config.json's dictionary. Raises ValueError naming what is not supported."""
  from transformers import AutoConfig

  kind = hf.get("model_type")
  if kind not in DECODERS + ENCODERS:
    raise ValueError(
      f"config.json: model_type {kind!r} is not supported; expected one of "
      f"{', '.join(DECODERS + ENCODERS)}"
    )
  full = AutoConfig.for_model(**hf)
  activation(full.hidden_act)  # an unknown one is refused now, and not when a step is compiled
  return _decoder(full) if kind in DECODERS else _encoder(full)


def tied_head(hf: dict) -> bool:
  """Whether the language-model head of a config.json's model is its embedding."""
  from transformers import AutoConfig

  return bool(AutoConfig.for_model(**hf).tie_word_embeddings)


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
