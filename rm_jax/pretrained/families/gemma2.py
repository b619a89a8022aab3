"""Gemma 2 (Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size").

Every second layer has a sliding window; logits of attention and of the language-model head are
capped; attention and feed-forward are normalised before and after; norms store their scale minus
one; the embedding's output is multiplied by the square root of the width.
"""

import math
from typing import Any

from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig
from rm_jax.pretrained.families import tables
from rm_jax.pretrained.families.family import Family, read_decoder


def _backbone(hf: Any) -> DecoderConfig:
  if getattr(hf, "use_bidirectional_attention", None):
    raise InputError(
      "config.json: use_bidirectional_attention is true; Gemma 2 is supported as a decoder only"
    )
  return read_decoder(
    hf,
    activation=hf.hidden_activation,
    qkv_bias=hf.attention_bias,
    out_bias=hf.attention_bias,
    attention_scale=hf.query_pre_attn_scalar**-0.5,
    attention_cap=hf.attn_logit_softcapping,
    logit_cap=hf.final_logit_softcapping,
    embed_scale=hf.hidden_size**0.5,
    norm_offset=1.0,
    post_norms=True,
  )


def _exported(backbone: DecoderConfig) -> dict[str, Any]:
  windows = backbone.sliding_windows or (0,) * backbone.layers
  kinds = ["sliding_attention" if window else "full_attention" for window in windows]
  return {
    "hidden_activation": backbone.activation,
    "attention_bias": backbone.out_bias,
    "query_pre_attn_scalar": _pre_attn_scalar(backbone.attention_scale),
    "attn_logit_softcapping": backbone.attention_cap,
    "final_logit_softcapping": backbone.logit_cap,
    "layer_types": kinds,
    # transformers 4.51 does not read `layer_types`. It gives every even layer a sliding window,
    # whose length must be a number; `max_positions` is one that hides nothing.
    "sliding_window": max(windows) or backbone.max_positions,
  }


def _pre_attn_scalar(scale: float) -> float:
  """The number whose power −1/2 is `scale` to the last digit; a whole one where there is one."""
  near = scale**-2
  around = (near, math.nextafter(near, 0), math.nextafter(near, math.inf))
  shorter = (round(near), *(round(near, digits) for digits in range(1, 13)))
  return next((one for one in (*shorter, *around) if one and one**-0.5 == scale), near)


FAMILY = Family(
  model_type="gemma2",
  class_prefix="Gemma2",
  backbone=_backbone,
  exported=_exported,
  activation="hidden_activation",
  numbers={
    "query_pre_attn_scalar": (1, 2**20),
    "attn_logit_softcapping": (1e-3, 1e6),
    "final_logit_softcapping": (1e-3, 1e6),
  },
  types={"hidden_activation": str, "use_bidirectional_attention": bool},
  layer_tensors=tables.DECODER_LAYER
  | {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
  },
)
