"""From a config to what a run is made of: tokenizer, network, parameters. Data: `datasets`."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from rm_jax.data.cache import tokenise_cached
from rm_jax.data.group import Group
from rm_jax.data.report import Report
from rm_jax.data.tokenise import TEMPLATES, Convention, TextEncoder
from rm_jax.models import hf
from rm_jax.models.config import (
  DECODERS,
  HeadConfig,
  backbone_config,
  head_config,
  is_classifier,
)
from rm_jax.models.lora import Lora, is_base
from rm_jax.models.network import Network
from rm_jax.models.source import Source, load_tokenizer, open_source, read_json
from rm_jax.train.mesh import parameter_shardings
from rm_jax.train.remote import local
from rm_jax.types import Example
from rm_jax.world import make_tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Model:
  """A network with all it needs to read text.

  Attributes:
    network: see `models.network.Network`.
    tokenizer: Hugging Face's, with the chat template that the model was trained with.
    convention: see `data.tokenise.Convention`.
    config: config.json's dictionary of the checkpoint it came from.
    source: where its weights are, or None for random ones.
  """

  network: Network
  tokenizer: Any
  convention: Convention
  config: dict[str, Any]
  source: Source | None

  def text_encoder(self) -> TextEncoder:
    """Text -> tokens by the model's convention."""
    return TextEncoder(self.tokenizer, self.convention)

  def tokenise(
    self, examples: Sequence[Example], report: Report, folder: Path | None = None
  ) -> tuple[Sequence[Group], list[Example]]:
    """Feedback -> groups, as `data.cache.tokenise_cached`; without a folder nothing is kept."""
    attributes = self.network.head.attributes
    return tokenise_cached(examples, self.text_encoder(), report, attributes, folder=folder)

  def exported_config(self) -> dict[str, Any]:
    """config.json of the model when saved: a Hugging Face sequence classifier's."""
    names = {
      "llama": "Llama",
      "mistral": "Mistral",
      "qwen2": "Qwen2",
      "qwen3": "Qwen3",
      "bert": "Bert",
    }
    head = self.network.head
    labels = head.attributes or tuple(f"LABEL_{i}" for i in range(head.outputs))
    config = dict(self.config)
    config.pop("num_labels", None)
    config |= {
      "architectures": [f"{names[config['model_type']]}ForSequenceClassification"],
      "id2label": {str(i): label for i, label in enumerate(labels)},
      "label2id": {label: i for i, label in enumerate(labels)},
      "torch_dtype": "float32",
    }
    return config

  def record(self) -> dict[str, Any]:
    """rm_jax.json: what config.json has no word for."""
    record = {
      "convention": dataclasses.asdict(self.convention),
      "head": dataclasses.asdict(self.network.head),
      "frozen_layers": self.network.frozen,
    }
    if self.network.lora:
      record |= {"lora": dataclasses.asdict(self.network.lora), "base": self.base}
    return record

  @property
  def base(self) -> str:
    """Whose backbone the adapters are for, where only they are saved; else ''."""
    if self.source is None or self.network.lora is None:
      return ""
    path = Path(self.source.name).expanduser()
    return str(path.resolve()) if path.exists() else self.source.name


def convention_for(
  hf_config: dict[str, Any],
  record: dict[str, Any],
  tokenizer: Any,
  *,
  eos: str,
  max_length: int,
  pooling: str = "",
) -> Convention:
  """The convention of a checkpoint: what was saved with it, else its architecture's.

  Args:
    hf_config: config.json's dictionary.
    record: rm_jax.json's, or empty.
    tokenizer: the model's.
    eos: 'append', 'none' or 'auto' (append where the tokenizer has one and the head is ours).
    max_length: tokens; 0 = what was saved, or the architecture's most. A smaller limit of the
      architecture holds.
    pooling: 'last' (decoders), 'first' (encoders) or 'mean'; '' = the architecture's own, or that
      of a head which the checkpoint has.

  Raises:
    ValueError: another `pooling`, or a head that was trained with another.
  """
  positions = backbone_config(hf_config).max_positions
  decoder = hf_config["model_type"] in DECODERS
  imported = is_classifier(hf_config)
  usual = ("hf" if imported else "last") if decoder else "first"
  if record:
    usual = record["convention"].get("pooling", usual)
  known = (usual,) if record or imported else (usual, "mean")
  if pooling not in ("", *known):
    raise ValueError(
      f"model.pooling is {pooling!r}; expected {' or '.join(map(repr, known))}, which "
      + ("the checkpoint's head was trained with" if len(known) == 1 else "its architecture can do")
    )
  if record:
    saved = Convention(**record["convention"])
    return dataclasses.replace(saved, max_length=min(max_length or saved.max_length, positions))
  if eos == "auto":
    eos = "append" if decoder and not imported and tokenizer.eos_token_id is not None else "none"
  return Convention(
    encoder=not decoder,
    eos=eos,
    pooling=pooling or usual,
    max_length=min(max_length or positions, positions),
  )


def _chat_template(name: str) -> str:
  if name in TEMPLATES:
    return TEMPLATES[name]
  if "{" in name:
    return name
  if Path(local(name)).is_file():
    return Path(local(name)).read_text(encoding="utf-8")
  raise ValueError(
    f"model.chat_template {name!r} is neither Jinja text, nor a file, nor one of {list(TEMPLATES)}"
  )


def build_model(config: Any) -> Model:
  """The model that the `model` part of an experiment's config describes; no weights are read."""
  c = config.model
  if bool(c.pretrained) == bool(c.config):
    raise ValueError(
      "set one of --config.model.pretrained (folder, hub id or GGUF file) and "
      "--config.model.config (a config.json: random weights); "
      f"found {c.pretrained!r} and {c.config!r}"
    )
  source = None
  if c.pretrained:
    source = dataclasses.replace(open_source(local(c.pretrained)), name=c.pretrained)
  hf_config = _lowest(source.config if source else read_json(Path(local(c.config))), c.layers)
  if not c.tokenizer and source is None:
    raise ValueError("--config.model.config needs --config.model.tokenizer beside it")
  tokenizer = _tokenizer(c.tokenizer) if c.tokenizer else source.tokenizer()
  if c.chat_template:
    tokenizer.chat_template = _chat_template(c.chat_template)
  backbone = backbone_config(hf_config)
  if not c.dropout:
    backbone = _without_dropout(backbone)
  if config.optimizer.mix_rate and not c.attributes:
    raise ValueError(
      f"optimizer.mix_rate is {config.optimizer.mix_rate} and model.attributes is (); name some"
    )
  head = _head(c, hf_config, source)
  network = Network(
    backbone,
    head if c.dropout else dataclasses.replace(head, dropout=0.0),
    frozen=c.frozen_layers,
    dtype=c.dtype,
    remat=c.remat,
    lora=Lora(**c.lora) if c.lora.rank else None,
  )
  _check_lora(network)
  record = source.record if source else {}
  convention = convention_for(
    hf_config,
    record,
    tokenizer,
    eos=c.eos,
    max_length=config.data.max_length,
    pooling=c.pooling,
  )
  if convention.pooling == "last":
    hf_config = hf_config | {"pad_token_id": _distinct_pad(tokenizer)}
  return Model(
    network=network,
    tokenizer=tokenizer,
    convention=convention,
    config=hf_config,
    source=source,
  )


def _check_lora(network: Network) -> None:
  """ValueError where a target of the adapters is not in the network."""
  if network.lora is None:
    return
  paths = flatten_dict(network.abstract(), sep="/")
  adapted = {path.split("/")[-2] for path in paths if path.endswith("/lora_a")}
  if missing := [name for name in network.lora.targets if name not in adapted] or not adapted:
    found = f"model.lora.targets has {missing}" if adapted else "model.lora.rank is set"
    raise ValueError(
      f"{found}, and of the layers that are not frozen (model.frozen_layers={network.frozen}) "
      f"there is nothing of that name to adapt; expected of {', '.join(sorted(adapted)) or 'none'}"
    )


def _tokenizer(name: str) -> Any:
  return make_tokenizer() if name == "world" else load_tokenizer(local(name))


def _head(c: Any, hf_config: dict[str, Any], source: Source | None) -> HeadConfig:
  """The head that the `model` part of a config asks for.

  Raises:
    ValueError: it makes no sense, or the checkpoint has a head that is another one.
  """
  head = head_config(hf_config)
  own = source is not None and is_classifier(hf_config)
  names = tuple(c.attributes)
  if c.members < 1:
    raise ValueError(f"model.members is {c.members}; expected at least 1")
  if not all(isinstance(n, str) and n for n in names) or len(set(names)) < len(names):
    raise ValueError(f"model.attributes is {names}; expected names, each once")
  if len(c.mix) not in (0, len(names)):
    raise ValueError(
      f"model.mix is {tuple(c.mix)}; expected none, or as many as model.attributes {names}"
    )
  if c.members > 1 and (own or names):
    found = "model.attributes is set" if names else f"{c.pretrained} has a head of its own"
    raise ValueError(
      f"model.members is {c.members} and {found}; expected model.members=1, or a checkpoint of the "
      "language model and no attributes"
    )
  mix = tuple(map(float, c.mix)) or (1 / len(names),) * len(names) if names else ()
  if not own:
    outputs = len(names) or c.members
    return dataclasses.replace(
      head, outputs=outputs, ensemble=c.members > 1, attributes=names, mix=mix
    )
  if not names:
    if head.outputs != 1:
      raise ValueError(
        f"{c.pretrained}: its head has {head.outputs} outputs; a reward has one. Start from a "
        "checkpoint of the language model, or of a classifier with num_labels 1; or name the "
        "outputs in model.attributes"
      )
    return head
  labels = hf_config.get("id2label") or {}
  labels = tuple(labels[i] for i in sorted(labels, key=int))
  if labels != names:
    raise ValueError(
      f"model.attributes is {names} and {c.pretrained} has a head of {labels}; expected these "
      "names in this order, or a checkpoint of the language model"
    )
  saved = source.record.get("head", {}).get("mix")
  return dataclasses.replace(head, attributes=names, mix=mix if c.mix or not saved else saved)


def _distinct_pad(tokenizer: Any) -> int | None:
  """A pad token that no response ends in, for who loads what we save in transformers.

  Its classifiers read the last token that is not the pad token: with pad == eos, as many decoders
  have it, they would read the token before the mark.
  """
  if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
    others = (tokenizer.bos_token, tokenizer.unk_token)
    fitting = [token for token in others if token not in (None, tokenizer.eos_token)]
    if not fitting:
      log.warning(
        "the tokenizer has no pad token beside its EOS: transformers will read our saved "
        "model one token before the mark"
      )
      return tokenizer.pad_token_id
    tokenizer.pad_token = fitting[0]
  return tokenizer.pad_token_id


def _lowest(hf_config: dict[str, Any], layers: int) -> dict[str, Any]:
  """The config of the lowest `layers` layers; 0 = all of them."""
  if not layers:
    return hf_config
  all_layers = backbone_config(hf_config).layers
  if not 0 < layers <= all_layers:
    raise ValueError(f"model.layers is {layers}; expected 1 to {all_layers}, or 0 for all")
  out = hf_config | {"num_hidden_layers": layers}
  if out.get("layer_types"):
    out["layer_types"] = out["layer_types"][:layers]
  return out


def _without_dropout(backbone):
  rates = [f.name for f in dataclasses.fields(backbone) if f.name.endswith("_dropout")]
  return dataclasses.replace(backbone, **dict.fromkeys(rates, 0.0))


def kept_dtype(network: Network, path: str) -> np.dtype:
  """In which a parameter is kept: float32, but for the base of adapters that says otherwise."""
  base = network.lora is not None and is_base(path)
  return jnp.dtype(network.lora.base_dtype if base else jnp.float32)


def read_params(model: Model, mesh: Mesh) -> tuple[dict[str, jax.Array], list[str]]:
  """(path -> parameter on the mesh, born sharded; paths of a missing head), from the source.

  Raises:
    WeightsError: tensors that do not fit.
  """
  network = model.network
  shardings = parameter_shardings(flatten_dict(network.abstract(), sep="/"), mesh)

  def place(path: str, array: np.ndarray) -> jax.Array:
    dtype = kept_dtype(network, path)
    return jax.make_array_from_callback(
      array.shape, shardings[path], lambda index: array[index].astype(dtype, copy=False)
    )

  spare = backbone_config(model.source.config).layers - network.backbone.layers
  loaded, missing = hf.load_params(
    network, model.source.tensors(), place, source=str(model.source.path), spare=spare
  )
  return _flat(loaded), missing


def init_params(
  model: Model, mesh: Mesh, key: jax.Array, *, training: bool
) -> dict[str, jax.Array]:
  """Parameters on the mesh, path -> array: read from the source, or random; born sharded.

  Args:
    model: from `build_model`.
    mesh: the devices.
    key: for what is not read: all, or a missing head and adapters.
    training: a missing head is made and warned of; else it is an error.

  Raises:
    WeightsError: tensors that do not fit, or a missing head when not training.
  """
  network = model.network
  abstract = flatten_dict(network.abstract(), sep="/")
  shardings = parameter_shardings(abstract, mesh)

  def random(paths):
    def make(key):
      flat = _flat(network.init(key))
      return {path: flat[path].astype(kept_dtype(network, path)) for path in paths}

    return jax.jit(make, out_shardings={path: shardings[path] for path in paths})(key)

  if model.source is None:
    return random(list(abstract))
  flat, missing = read_params(model, mesh)
  if missing:
    names = [name for path in missing for name in hf.hf_names(network, path)]
    if not training:
      raise hf.WeightsError(
        f"{model.source.path}: has no reward head ({', '.join(names)}), so it has no scores to "
        "give; train one first"
      )
    log.warning("%s: no reward head (%s): a new one is made", model.source.path, ", ".join(names))
  if rest := [path for path in abstract if path not in flat]:
    flat |= random(rest)
  return {path: flat[path] for path in abstract}


def _flat(tree: dict) -> dict[str, Any]:
  return flatten_dict(tree, sep="/")
