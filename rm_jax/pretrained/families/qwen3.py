"""Qwen3 (Yang et al. 2025): queries and keys of each head are normalised."""

from typing import Any

from rm_jax.models.config import DecoderConfig
from rm_jax.pretrained.families import tables
from rm_jax.pretrained.families.family import Family, Gguf, no_window, read_decoder


def _backbone(hf: Any) -> DecoderConfig:
  return read_decoder(hf, qkv_bias=hf.attention_bias, out_bias=hf.attention_bias, qk_norm=True)


def _exported(backbone: DecoderConfig) -> dict[str, Any]:
  return {"attention_bias": backbone.out_bias} | no_window(backbone)


FAMILY = Family(
  model_type="qwen3",
  class_prefix="Qwen3",
  backbone=_backbone,
  exported=_exported,
  gguf=Gguf(tables.GGUF_LAYER | tables.GGUF_QK_NORM),
)
