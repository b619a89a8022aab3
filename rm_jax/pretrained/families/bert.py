"""BERT (Devlin et al. 2019): an encoder, whose head is a pooler and a linear layer with bias."""

from collections.abc import Mapping
from typing import Any

from rm_jax.errors import InputError
from rm_jax.models.config import EncoderConfig, HeadConfig
from rm_jax.pretrained.families.family import Family


def _backbone(hf: Any) -> EncoderConfig:
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


def _head(hf: Mapping[str, Any], outputs: int) -> HeadConfig:
  dropout = hf.get("classifier_dropout")
  if dropout is None:
    dropout = hf.get("hidden_dropout_prob", 0.1)
  return HeadConfig(outputs=outputs, bias=True, pooler=True, dropout=float(dropout))


FAMILY = Family(
  model_type="bert",
  class_prefix="Bert",
  backbone=_backbone,
  head=_head,
  exported=lambda backbone: {},
  prefix="bert.",
  layers="encoder.layer",
  tensors={
    "embed": "embeddings.word_embeddings",
    "embed_position": "embeddings.position_embeddings",
    "embed_token_type": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
  },
  layer_tensors={
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
  },
  head_tensors={"pooler": "bert.pooler.dense", "out": "classifier"},
  # The heads of its pre-training, a buffer, and the pooler where the network's head has none.
  ignored=r"cls\.|(.*\.)?position_ids$|(bert\.)?pooler\.",
  # The first checkpoints were converted from TensorFlow's and have its names.
  renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
