"""A small model of each family, and what the tests compare of it: one entry a family."""

import dataclasses
from typing import Any

from tests.models.layouts import VOCAB, WINDOW


@dataclasses.dataclass(frozen=True)
class Case:
  """A small checkpoint that transformers writes, for parity: a family and what is peculiar to it.

  Attributes:
    arch: `model_type` of the family.
    what: is peculiar, in words.
    keys: of config.json, beside the family's small ones.
    labels: outputs of the head.
    saved: 'classifier', 'causal' (a language model, whose head we do not read) or 'base' (no head,
      and names without the model's prefix).
  """

  arch: str
  what: str
  keys: dict = dataclasses.field(default_factory=dict, hash=False)
  labels: int = 1
  saved: str = "classifier"

  def __str__(self) -> str:
    return f"{self.arch}-{self.what}".replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Small:
  """A family's small model.

  Attributes:
    keys: of its config.json.
    full: keys beside them by which the model has every tensor that the family can have.
    cases: (what, keys, options of `Case`) that are compared with transformers, the plainest first.
    gradients: whether the first case's gradients are compared too; once for each kind of layer.
  """

  keys: dict[str, Any]
  full: dict[str, Any] = dataclasses.field(default_factory=dict)
  cases: tuple[tuple[str, dict, dict], ...] = ()
  gradients: bool = False


_DECODER = dict(
  vocab_size=VOCAB,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=16384,
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=2,
)
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 10_000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  # Of a head's 6 wavelengths, 6 to 13,500 tokens, this keeps some, blends some and stretches some.
  "original_max_position_embeddings": 512,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 3.0}
_CAUSAL, _BASE, _THREE = dict(saved="causal"), dict(saved="base"), dict(labels=3)
_UNCAPPED = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
_SLIDES = {"use_sliding_window": True, "sliding_window": WINDOW}

SMALL = {
  "llama": Small(
    _DECODER,
    full={"attention_bias": True, "mlp_bias": True, "head_dim": 12},
    cases=(
      ("GQA 4/2", {}, {}),
      ("MHA, 3 labels", {"num_key_value_heads": 4}, _THREE),
      ("MQA, tanh GELU", {"num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"}, {}),
      ("llama3 RoPE", {"rope_parameters": LLAMA3, "head_dim": 12}, {}),
      ("linear RoPE", {"rope_parameters": LINEAR}, {}),
      ("head_dim 20", {"head_dim": 20}, {}),
      ("attention_bias, mlp_bias", {"attention_bias": True, "mlp_bias": True}, {}),
      ("tied causal LM", {"tie_word_embeddings": True}, _CAUSAL),
      ("untied causal LM", {"tie_word_embeddings": False}, _CAUSAL),
      ("stray sliding_window", {"sliding_window": WINDOW}, {}),
    ),
    gradients=True,
  ),
  "mistral": Small(
    dict(_DECODER, sliding_window=None),
    full={"head_dim": 12},
    cases=(
      ("windowless, 3 labels", {}, _THREE),
      ("window 5, head_dim 12", {"sliding_window": WINDOW, "head_dim": 12}, {}),
    ),
  ),
  "qwen2": Small(
    _DECODER,
    cases=(
      ("qkv bias, 3 labels", {}, _THREE),
      ("window 5 from layer 1", {**_SLIDES, "max_window_layers": 1}, {}),
      ("base model", {}, _BASE),
    ),
  ),
  "qwen3": Small(
    dict(_DECODER, head_dim=12),
    full={"attention_bias": True},
    cases=(
      ("q/k norm, head_dim 12", {}, {}),
      (
        "bias, window 5 from layer 2, 3 labels",
        {"attention_bias": True, **_SLIDES, "max_window_layers": 2},
        _THREE,
      ),
    ),
  ),
  "gemma2": Small(
    # Caps of the size of the logits, and a scale that is not that of the head's width.
    dict(
      _DECODER,
      head_dim=12,
      sliding_window=WINDOW,
      query_pre_attn_scalar=24,
      attn_logit_softcapping=2.0,
      final_logit_softcapping=3.0,
    ),
    full={"attention_bias": True},
    cases=(
      ("full and sliding layers, both caps", {}, {}),
      ("bias, no caps, 3 labels", {"attention_bias": True, **_UNCAPPED}, _THREE),
      ("full layers", {"layer_types": ["full_attention"] * 3, "hidden_activation": "gelu"}, {}),
      ("causal LM", {}, _CAUSAL),
    ),
    gradients=True,
  ),
  "bert": Small(
    dict(
      vocab_size=VOCAB,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=3,
      num_attention_heads=4,
      max_position_embeddings=32,
      type_vocab_size=2,
      pad_token_id=0,
    ),
    cases=(
      ("GELU", {}, {}),
      ("tanh GELU, 3 labels", {"hidden_act": "gelu_new"}, _THREE),
      ("base model", {}, _BASE),
    ),
    gradients=True,
  ),
}
CASES = [
  Case(arch, what, keys, **options)
  for arch, small in SMALL.items()
  for what, keys, options in small.cases
]
