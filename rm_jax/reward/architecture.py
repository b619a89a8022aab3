"""From an experiment's config to a network: its backbone, head and adapters; no tokenizer."""

import dataclasses
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from rm_jax.declared import parse
from rm_jax.errors import InputError
from rm_jax.models import kernels
from rm_jax.models.config import DecoderConfig, EncoderConfig, HeadConfig, LikelihoodHead
from rm_jax.models.lora import Lora
from rm_jax.models.network import Network
from rm_jax.pretrained.config import backbone_config, head_config, is_classifier, tied_head
from rm_jax.pretrained.hf import LM_HEAD
from rm_jax.pretrained.source import RECORD, Source, open_source, read_json
from rm_jax.storage.remote import local


def architecture(config: Any) -> tuple[Source | None, dict[str, Any]]:
  """(the checkpoint with a config's weights, None for random ones; config.json's dictionary).

  Raises:
    FileNotFoundError: model.pretrained is not found.
    OSError: what is at a URL cannot be read.
    InputError: neither model.pretrained nor model.config is set, or both and their sizes differ;
      what they name cannot be used; or model.layers is negative or more than the model has.
  """
  c = config.model
  if not (c.pretrained or c.config):
    raise InputError(
      "set --config.model.pretrained (folder, hub id or GGUF file) or --config.model.config (a "
      "config.json: random weights); found neither"
    )
  source = None
  if c.pretrained:
    source = dataclasses.replace(open_source(local(c.pretrained)), name=c.pretrained)
  said = read_json(Path(local(c.config))) if c.config else source.config
  if source and (found := _sizes(said)) != (expected := _sizes(source.config)):
    raise InputError(
      f"model.config {c.config} is {found} and model.pretrained {c.pretrained} is {expected}; "
      "expected the same, or only one of them"
    )
  return source, _lowest(source.config if source else said, c.layers)


def _sizes(hf_config: dict[str, Any]) -> dict[str, Any]:
  """A model's type and main sizes, in which two config.json must agree."""
  names = ("model_type", "vocab", "width", "layers", "heads", "kv_heads", "head_dim", "ffn")
  backbone = backbone_config(hf_config)
  return {name: getattr(backbone, name) for name in names if hasattr(backbone, name)}


def planned_architecture(config: Any) -> dict[str, Any]:
  """The config.json dictionary of a config's model, without opening the weights if it can.

  Where model.config is set, model.pretrained is not opened, so that a plan can be made on a machine
  that does not have the weights. Raises as `architecture`.
  """
  if not config.model.config:
    return architecture(config)[1]
  return _lowest(read_json(Path(local(config.model.config))), config.model.layers)


def build_network(
  config: Any,
  hf_config: dict[str, Any],
  source: Source | None = None,
  *,
  mesh: Mesh | None = None,
) -> Network:
  """The network that the `model` part of an experiment's config describes.

  Args:
    config: see configs/base.py.
    hf_config: config.json's dictionary.
    source: the checkpoint, whose head is used where it has one; None: the head is new.
    mesh: the devices that a training step is compiled for, which decide what attention runs on
      (see `kernels.choose`). None: attention runs on XLA.

  Raises:
    InputError: settings that contradict one another or do not fit the checkpoint.
  """
  c = config.model
  backbone = backbone_config(hf_config)
  if not c.dropout:
    backbone = _without_dropout(backbone)
  if config.optimizer.mix_rate and not c.attributes:
    raise InputError(
      f"optimizer.mix_rate is {config.optimizer.mix_rate} and model.attributes is (); name some"
    )
  if c.get("gate", False) and not config.optimizer.mix_rate:
    raise InputError("model.gate is True and optimizer.mix_rate is 0: the gate would not learn")
  if c.get("gate_trains", 0.0) and not c.get("gate", False):
    raise InputError(f"model.gate_trains is {c.gate_trains} and model.gate False; set both")
  # Configs of older runs do not have these fields.
  implicit, steps = c.get("reward", "head") == "implicit", c.get("steps", "own")
  if implicit and (rate := config.optimizer.get("head_rate", 1.0)) != 1.0:
    raise InputError(
      f"optimizer.head_rate is {rate} and model.reward 'implicit', which has no head of its own; "
      "expected optimizer.head_rate=1.0"
    )
  if implicit and steps != "own":
    raise InputError(
      f"model.steps is {steps!r} and model.reward 'implicit', which is a running sum already; "
      "expected model.steps='own'"
    )
  head = (_likelihood_head if implicit else _head)(c, hf_config, source)
  if not implicit:
    if steps == "own" and source is not None:  # the checkpoint's own reading stays
      steps = source.record.get("head", {}).get("steps", "own")
    head = dataclasses.replace(head, steps=steps)
  attention = "xla"
  if mesh is not None:
    device = mesh.devices.flat[0]
    options = dict(dtype=c.dtype, packed=config.data.pack, device=device)
    attention = kernels.choose(c.attention, backbone, **options)
  network = Network(
    backbone,
    head if c.dropout or implicit else dataclasses.replace(head, dropout=0.0),
    frozen=c.frozen_layers,
    dtype=c.dtype,
    remat=c.remat,
    lora=Lora(**c.lora) if c.lora.rank else None,
    attention=attention,
    gate_trains=c.get("gate_trains", 0.0),
  )
  _check_lora(network)
  return network


def _check_lora(network: Network) -> None:
  """Raises InputError where a target of the adapters, or any, is in no layer that is trained."""
  if network.lora is None:
    return
  paths = flatten_dict(network.abstract(), sep="/")
  adapted = {path.split("/")[-2] for path in paths if path.endswith("/lora_a")}
  if missing := [name for name in network.lora.targets if name not in adapted] or not adapted:
    found = f"model.lora.targets has {missing}" if adapted else "model.lora.rank is set"
    raise InputError(
      f"{found}, and of the layers that are not frozen (model.frozen_layers={network.frozen}) "
      f"there is nothing of that name to adapt; expected of {', '.join(sorted(adapted)) or 'none'}"
    )


def _head(c: Any, hf_config: dict[str, Any], source: Source | None) -> HeadConfig:
  """The head that the `model` part of a config asks for.

  Raises:
    InputError: the settings contradict one another, or the checkpoint has a head of its own and it
      is not the one that they ask for.
  """
  head = head_config(hf_config)
  own = source is not None and is_classifier(hf_config)
  saved = None
  if own and "head" in source.record:  # its config.json says one output: see reward/export.py
    saved = parse(HeadConfig, source.record["head"], f"{source.path / RECORD}: head")
    head = dataclasses.replace(head, outputs=saved.outputs)
  names = tuple(c.attributes)
  if c.members < 1:
    raise InputError(f"model.members is {c.members}; expected at least 1")
  if not all(isinstance(n, str) and n for n in names) or len(set(names)) < len(names):
    raise InputError(f"model.attributes is {names}; expected names, each once")
  if len(c.mix) not in (0, len(names)) or (c.mix and not any(c.mix)):
    raise InputError(
      f"model.mix is {tuple(c.mix)}; expected none, or as many as model.attributes {names} and not "
      "all 0"
    )
  gate = c.get("gate", False)  # configs of older runs do not have the field
  if gate and (len(names) < 2 or own):
    found = f"{c.pretrained} has a head of its own" if own else f"model.attributes is {names}"
    raise InputError(
      f"model.gate is True and {found}; expected two or more attributes, and a checkpoint without "
      "a head"
    )
  if c.members > 1 and (own or names):
    found = "model.attributes is set" if names else f"{c.pretrained} has a head of its own"
    raise InputError(
      f"model.members is {c.members} and {found}; expected model.members=1, or a checkpoint of the "
      "language model and no attributes"
    )
  mix = tuple(map(float, c.mix)) or (1 / len(names),) * len(names) if names else ()
  if not own:
    outputs = len(names) or c.members
    return dataclasses.replace(
      head, outputs=outputs, ensemble=c.members > 1, attributes=names, mix=mix, gate=gate
    )
  if not names:
    if head.outputs != 1:
      raise InputError(
        f"{c.pretrained}: its head has {head.outputs} outputs; a reward has one. Start from a "
        "checkpoint of the language model, or of a classifier with num_labels 1; or name the "
        "outputs in model.attributes"
      )
    if saved and tuple(saved.mix) not in ((), (1.0,)):
      (name,), (weight,) = saved.attributes, saved.mix
      raise InputError(
        f"{c.pretrained}: its head has the attribute {name!r}, with the weight {weight} in the "
        f"reward, and without it training would begin at another; expected model.attributes="
        f"({name!r},), which keeps the weight unless model.mix has one"
      )
    return head
  labels = hf_config.get("id2label") or {}
  labels = (saved.attributes if saved else ()) or tuple(labels[i] for i in sorted(labels, key=int))
  if labels != names:
    raise InputError(
      f"model.attributes is {names} and {c.pretrained} has a head of {labels}; expected these "
      "names in this order, or a checkpoint of the language model"
    )
  weights = mix if c.mix or not (saved and saved.mix) else saved.mix
  return dataclasses.replace(head, attributes=names, mix=weights)


def _likelihood_head(c: Any, hf_config: dict[str, Any], source: Source | None) -> LikelihoodHead:
  """The language-model head as the `model` part of a config wants it read.

  Raises:
    InputError: the settings contradict an implicit reward, or the checkpoint has no language-model
      head of the right shape.
  """
  said, mend = "model.reward is 'implicit'", "or set model.reward='head'"
  if not isinstance(backbone_config(hf_config), DecoderConfig):
    raise InputError(
      f"{said}, and a model of type {hf_config['model_type']!r} is an encoder, which predicts no "
      f"next token; set model.pretrained to a decoder, {mend}"
    )
  if source is not None and is_classifier(hf_config):
    raise InputError(
      f"{said}, and {c.pretrained} is a classifier, which has a head of its own in place of the "
      f"language model's; set model.pretrained to a language model, {mend}"
    )
  if c.layers:
    raise InputError(
      f"{said} and model.layers {c.layers}: the language-model head was trained on the output of "
      f"all layers, and would read another's; expected model.layers=0, {mend}"
    )
  for name, plain in (("members", 1), ("attributes", ()), ("mix", ()), ("gate", False)):
    if (found := c.get(name, plain)) != plain:
      raise InputError(
        f"{said} and model.{name} {found!r}, which is about heads: an implicit reward has one "
        f"score and no head; expected model.{name}={plain!r}, {mend}"
      )
  if c.pooling not in ("", "last"):
    raise InputError(
      f"{said} and model.pooling {c.pooling!r}: a likelihood is summed over the response up to its "
      f"last token; expected model.pooling='' (and model.normalised=True for a mean), {mend}"
    )
  head = LikelihoodHead(c.beta, c.normalised, c.reference != "none", tied_head(hf_config))
  if source is not None and not head.tied:
    mend = f"set model.pretrained to one, {mend}"
    check_language_head(source, backbone_config(hf_config), said, mend)
  return head


def check_language_head(source: Source, backbone: DecoderConfig, said: str, mend: str) -> None:
  """Checks that a checkpoint has a language-model head of its own, in the right shape.

  Args:
    source: the checkpoint, whose config.json does not tie the head to the embedding.
    backbone: its config.
    said: what asks for the head, for the message.
    mend: what to do instead, for the message.

  Raises:
    InputError: it has none, or one of another shape.
  """
  reader = source.tensors()
  if LM_HEAD not in reader.names():
    raise InputError(
      f"{said}, and {source.path} has no {LM_HEAD}, though its config.json does not tie it to the "
      f"embedding; expected a language model's checkpoint, which a classifier's is not: {mend}"
    )
  if (found := tuple(reader.shape(LM_HEAD))) != (backbone.vocab, backbone.width):
    raise InputError(
      f"{source.path}: {LM_HEAD} is {found}, config.json says {(backbone.vocab, backbone.width)}"
    )


def _lowest(hf_config: dict[str, Any], layers: int) -> dict[str, Any]:
  """The config of the lowest `layers` layers; 0 = all of them."""
  if not layers:
    return hf_config
  all_layers = backbone_config(hf_config).layers
  if not 0 < layers <= all_layers:
    raise InputError(f"model.layers is {layers}; expected 1 to {all_layers}, or 0 for all")
  out = hf_config | {"num_hidden_layers": layers}
  if out.get("layer_types"):
    out["layer_types"] = out["layer_types"][:layers]
  return out


def _without_dropout(backbone: DecoderConfig | EncoderConfig) -> DecoderConfig | EncoderConfig:
  rates = [f.name for f in dataclasses.fields(backbone) if f.name.endswith("_dropout")]
  return dataclasses.replace(backbone, **dict.fromkeys(rates, 0.0))
