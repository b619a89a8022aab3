"""Llama (Touvron et al. 2023), and what has its architecture: SmolLM2, TinyLlama."""

from typing import Any

from rm_jax.models.config import DecoderConfig
from rm_jax.pretrained.families import tables
from rm_jax.pretrained.families.family import Family, Gguf, no_window, read_decoder


def _backbone(hf: Any) -> DecoderConfig:
  bias = hf.attention_bias
  # Llama has no sliding window, even if its config.json was made from another model's and has kept
  # the key.
  biases = dict(qkv_bias=bias, out_bias=bias, mlp_bias=hf.mlp_bias)
  return read_decoder(hf, sliding_windows=None, **biases)


def _exported(backbone: DecoderConfig) -> dict[str, Any]:
  biases = {"attention_bias": backbone.out_bias, "mlp_bias": backbone.mlp_bias}
  return biases | no_window(backbone)


FAMILY = Family(
  model_type="llama",
  class_prefix="Llama",
  backbone=_backbone,
  exported=_exported,
  # GGUF files of Mistral 7B have the architecture 'llama' too, and do not say whether the model had
  # a sliding window.
  gguf=Gguf(tables.GGUF_LAYER, permuted=True, optional_biases=True),
)
