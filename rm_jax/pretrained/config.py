"""Hugging Face's config.json -> the configs of a backbone and of a head, checked.

transformers' own config classes fill in the defaults of each family, so that a key which a
config.json leaves out means here what it means there.
"""

from typing import Any

from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig
from rm_jax.models.layers import activation
from rm_jax.pretrained.families import FAMILIES, Family
from rm_jax.pretrained.families.family import check_number

# Key of a config.json -> the least and the most that it may be. No model comes near the upper ends.
# With larger numbers a small config.json would make us allocate all memory before the shapes of the
# checkpoint's tensors are compared with it.
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
# Of these 1 is refused too: all would be dropped, and what is kept is divided by 1 - rate.
_RATES = tuple(key for key in _NUMBERS if "dropout" in key)
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


def check_config(hf: dict[str, Any], where: str = "config.json") -> None:
  """Raises InputError where a config.json's dictionary has a value that no model can have.

  Args:
    hf: the dictionary. If its family is one that we do not know, as in a folder that is read for
      its tokenizer only, no more is checked than the upper ends of sizes and the type of
      `model_type`.
    where: the file, for the message.
  """
  for key, (_, most) in _SIZES.items():
    if type(hf.get(key)) is int and hf[key] > most:
      raise InputError(f"{where}: {key} is {hf[key]:.6g}; expected at most {most}")
  if (kind := hf.get("model_type")) is not None and not isinstance(kind, str):
    raise InputError(f"{where}: model_type is {kind!r:.80}; expected a str")
  if (family := FAMILIES.get(kind)) is None:
    return
  for key, (least, _) in _SIZES.items():
    value = hf.get(key)
    if value is not None and (type(value) is not int or value < least):
      raise InputError(f"{where}: {key} is {value!r:.80}; expected a whole number from {least}")
  for key, (least, most) in (_NUMBERS | dict(family.numbers)).items():
    if hf.get(key) is not None:
      check_number(where, key, hf[key], least, most)
  for key in _RATES:
    if hf.get(key) == 1:
      raise InputError(f"{where}: {key} is {hf[key]}; expected a rate from 0 and below 1")
  for key, of in (_TYPES | dict(family.types)).items():
    value = hf.get(key)
    if value is not None and not isinstance(value, of):
      raise InputError(f"{where}: {key} is {value!r:.80}; expected a {of.__name__}")
  for key in ("architectures", "layer_types"):
    if wrong := [one for one in hf.get(key) or () if not isinstance(one, str)]:
      raise InputError(f"{where}: {key} holds {wrong[0]!r:.80}; expected strings")


def _with_defaults(hf: dict[str, Any]) -> Any:
  """transformers' own config object of a config.json's dictionary. Raises InputError."""
  from transformers import AutoConfig

  check_config(hf)
  try:
    return AutoConfig.for_model(**hf)
  # transformers' validators raise errors of many classes, and its own code may fail on a value.
  except Exception as error:
    said = " ".join(str(error).split())
    raise InputError(f"config.json: transformers does not take it: {said:.300}") from error


def family_of(hf: dict[str, Any]) -> Family:
  """The family of a config.json's dictionary. Raises InputError for one that is not supported."""
  kind = hf.get("model_type")
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise InputError(
      f"config.json: model_type {kind!r:.80} is not supported; expected one of "
      f"{', '.join(FAMILIES)}"
    )
  return FAMILIES[kind]


def backbone_config(hf: dict[str, Any]) -> DecoderConfig | EncoderConfig:
  """The backbone's config, from a config.json's dictionary.

  Raises ValueError, which says what is not supported or not possible.
  """
  family = family_of(hf)
  backbone = family.backbone(_with_defaults(hf))
  # An unknown one is refused now, and not when a step is compiled.
  activation(backbone.activation, f"config.json: {family.activation}")
  return backbone


def is_classifier(hf: dict[str, Any]) -> bool:
  """Whether a config.json is of a sequence-classification checkpoint: one with a head."""
  return any("ForSequenceClassification" in name for name in hf.get("architectures") or ())


def tied_head(hf: dict[str, Any]) -> bool:
  """Whether a config.json's model has its embedding as language-model head. Raises ValueError."""
  return bool(_with_defaults(hf).tie_word_embeddings)


def skipped_token(hf: dict[str, Any]) -> int:
  """Id of the token that transformers' sequence classifiers pass over at the end of a text.

  It is the pad token of config.json, whatever the tokenizer's is; -1 where it has none, and the
  last token is read (`GenericForSequenceClassification` in transformers' modeling_layers.py).

  Raises InputError for what is no id.
  """
  found = _with_defaults(hf).pad_token_id
  if found is not None and type(found) is not int:
    raise InputError(f"config.json: pad_token_id is {found!r:.80}; expected a whole number or null")
  return -1 if found is None else found


def head_config(hf: dict[str, Any]) -> HeadConfig:
  """The config of a checkpoint's own head if it is a classifier, else of a new one of one output.

  Both have the form that transformers' sequence classifiers of the family have, so that it can load
  what we save as one.

  Raises ValueError for a family that is not supported, or a value that no head can have.
  """
  outputs = 1
  if is_classifier(hf):
    # transformers leaves `id2label` out where there are two labels.
    outputs = hf.get("num_labels") or len(hf.get("id2label") or (0, 1))
  return family_of(hf).head(hf, outputs)
