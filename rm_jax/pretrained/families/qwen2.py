"""Qwen2 and Qwen2.5 (Yang et al. 2024): biases on queries, keys and values."""

from typing import Any

from rm_jax.models.config import DecoderConfig
from rm_jax.pretrained.families import tables
from rm_jax.pretrained.families.family import Family, Gguf, read_decoder


def _backbone(hf: Any) -> DecoderConfig:
  return read_decoder(hf, qkv_bias=True)  # all Qwen2 have these biases; config.json has no key


FAMILY = Family(
  model_type="qwen2",
  class_prefix="Qwen2",
  backbone=_backbone,
  gguf=Gguf(tables.GGUF_LAYER | tables.GGUF_QKV_BIAS),
)
