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

from rm_jax.batch.cache import tokenise_cached
from rm_jax.batch.group import Group
from rm_jax.batch.tokenise import TEMPLATES, Convention, TextEncoder
from rm_jax.data.report import Report
from rm_jax.models.config import DecoderConfig
from rm_jax.models.lora import is_base
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import parameter_shardings
from rm_jax.pretrained import hf
from rm_jax.pretrained.config import backbone_config, family_of, is_classifier
from rm_jax.pretrained.source import RECORD, Source, load_tokenizer, parse
from rm_jax.reward.architecture import architecture, build_network
from rm_jax.storage.remote import local
from rm_jax.types import Example
from rm_jax.world import make_tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Model:
  """A network with all it needs to read text.

  Attributes:
    network: see `models.network.Network`.
    tokenizer: Hugging Face's, with the chat template that the model was trained with.
    convention: see `batch.tokenise.Convention`.
    config: config.json's dictionary of the checkpoint it came from.
    source: where its weights are, or None for random ones.
    option: how who made it sets what it lacks, for errors; {0} is the option's name.
  """

  network: Network
  tokenizer: Any
  convention: Convention
  config: dict[str, Any]
  source: Source | None
  option: str = "--config.model.{0}"

  def text_encoder(self) -> TextEncoder:
    """Text -> tokens by the model's convention."""
    return TextEncoder(self.tokenizer, self.convention, option=self.option)

  def tokenise(
    self, examples: Sequence[Example], report: Report, folder: Path | None = None
  ) -> tuple[Sequence[Group], list[Example]]:
    """Feedback -> groups, as `batch.cache.tokenise_cached`; without a folder nothing is kept."""
    attributes = self.network.head.attributes
    return tokenise_cached(examples, self.text_encoder(), report, attributes, folder=folder)

  def exported_config(self) -> dict[str, Any]:
    """config.json of the model when saved: a Hugging Face sequence classifier's."""
    head = self.network.head
    labels = head.attributes or tuple(f"LABEL_{i}" for i in range(head.outputs))
    config = dict(self.config)
    config.pop("num_labels", None)
    config |= {
      "architectures": [family_of(config).classifier],
      "id2label": {str(i): label for i, label in enumerate(labels)},
      "label2id": {label: i for i, label in enumerate(labels)},
      "torch_dtype": "float32",
    }
    return config

  def record(self) -> dict[str, Any]:
    """rm_jax.json: what config.json has no word for."""
    convention = dataclasses.asdict(self.convention)
    if convention["bos"] == "template":
      del convention["bos"]  # as the records have it that were written before the field was there
    record = {
      "convention": convention,
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
  backbone = backbone_config(hf_config)
  positions, decoder = backbone.max_positions, isinstance(backbone, DecoderConfig)
  imported = is_classifier(hf_config)
  usual = ("hf" if imported else "last") if decoder else "first"
  if record:
    found = record.get("convention")
    # Models made before the field was there have no BOS but the template's.
    found = {"bos": "template"} | found if isinstance(found, dict) else found
    saved = parse(Convention, found, f"{RECORD}: convention")
    usual = record["convention"].get("pooling", usual)
    if saved.encoder == decoder:
      raise ValueError(
        f"{RECORD}: convention.encoder is {saved.encoder} and config.json's model_type is "
        f"{hf_config['model_type']!r}; expected {not decoder}"
      )
  known = (usual,) if record or imported else (usual, "mean")
  if pooling not in ("", *known):
    raise ValueError(
      f"model.pooling is {pooling!r}; expected {' or '.join(map(repr, known))}, which "
      + ("the checkpoint's head was trained with" if len(known) == 1 else "its architecture can do")
    )
  if record:
    return dataclasses.replace(saved, max_length=min(max_length or saved.max_length, positions))
  if eos == "auto":
    eos = "append" if decoder and not imported and tokenizer.eos_token_id is not None else "none"
  return Convention(
    encoder=not decoder,
    eos=eos,
    pooling=pooling or usual,
    max_length=min(max_length or positions, positions),
    # Who trained a head on a template of their own read what it renders, and no BOS beside it.
    bos="template" if imported and tokenizer.chat_template else "add",
  )


def chat_template(name: str) -> str:
  """A chat template: by its name in `TEMPLATES`, Jinja text, or a file of it.

  Raises:
    ValueError: it is none of them.
  """
  if name in TEMPLATES:
    return TEMPLATES[name]
  if "{" in name:
    return name
  if Path(local(name)).is_file():
    return Path(local(name)).read_text(encoding="utf-8")
  raise ValueError(
    f"chat_template {name!r} is neither Jinja text, nor a file, nor one of {list(TEMPLATES)}"
  )


def build_model(
  config: Any, mesh: Mesh | None = None, *, earlier: dict[str, Any] | None = None
) -> Model:
  """The model that the `model` part of an experiment's config describes; no weights are read.

  Args:
    config: see configs/base.py.
    mesh: as `architecture.build_network` has it.
    earlier: rm_jax.json of the run that goes on, whose texts keep the BOS that they had.
  """
  c = config.model
  source, hf_config = architecture(config)
  if not c.tokenizer and source is None:
    raise ValueError("--config.model.config needs --config.model.tokenizer beside it")
  tokenizer = _tokenizer(c.tokenizer) if c.tokenizer else source.tokenizer()
  network = build_network(config, hf_config, source, mesh=mesh)
  record = source.record if source else {}
  convention = convention_for(
    hf_config,
    record,
    tokenizer,
    eos=c.eos,
    max_length=config.data.max_length,
    pooling=c.pooling,
  )
  if c.chat_template:
    tokenizer.chat_template = chat_template(c.chat_template)
  if earlier:
    bos = earlier.get("convention", {}).get("bos", "template")
    convention = dataclasses.replace(convention, bos=bos)
  return Model(
    network=network,
    tokenizer=tokenizer,
    convention=convention,
    config=hf_config,
    source=source,
  )


def _tokenizer(name: str) -> Any:
  return make_tokenizer() if name == "world" else load_tokenizer(local(name))


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
