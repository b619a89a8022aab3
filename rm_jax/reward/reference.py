"""The reference of an implicit reward: the language model that log π_ref is of.

    r(x, y) = β · (log π(y | x) − log π_ref(y | x))

Before the first step of training the reference is run once over the data, and its log-likelihoods
are kept (`score.likelihoods_of`), so that steps need no second model in memory. A model that was
saved names its reference, and has its fingerprint; to score, the reference is read again from where
it came.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from rm_jax.batch.group import Group, check_vocabulary
from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig, LikelihoodHead
from rm_jax.models.lora import is_base
from rm_jax.models.network import Network
from rm_jax.parallel.fingerprint import fingerprint_of
from rm_jax.pretrained.config import backbone_config, is_classifier, tied_head
from rm_jax.pretrained.source import CONFIG, Source, open_source
from rm_jax.reward.architecture import check_language_head
from rm_jax.reward.score import default_packing, likelihoods_of
from rm_jax.reward.setup import Reference, TextModel, lasting_name, read_params
from rm_jax.storage.files import expanded
from rm_jax.storage.remote import local


@dataclasses.dataclass(frozen=True)
class LoadedReference:
  """A reference that can be run.

  Attributes:
    record: what a saved model says of it.
    network: with a `LikelihoodHead`.
    params: nested dict of arrays on the mesh.
  """

  record: Reference
  network: Network
  params: dict

  def likelihoods(self, groups: list[Group], mesh: Mesh, **options) -> list[np.ndarray]:
    """For each group the log-likelihoods up to its marks, float32 [marks].

    Args:
      groups: tokenised by the model whose reference it is.
      mesh: the devices.
      options: as `score.run_groups` takes them.

    Raises:
      ValueError: a token id is not in the reference's vocabulary.
    """
    check_vocabulary(groups, self.network.backbone.vocab)
    packing = default_packing(mesh, causal=True)
    options = dict(mesh=mesh, packing=packing) | options
    return likelihoods_of(self.network, self.params, groups, **options)


_SAVED = "the model's reference"  # in errors, of one that a saved model names


def start_record(model: TextModel, params: dict, saved: str = "") -> Reference:
  """What is recorded of a model's own start, where that is the reference.

  Args:
    model: with a source.
    params: nested dict, before the first step. Adapters, which add nothing then, are left out.
    saved: a fingerprint to compare with, as in `fingerprint_of`.
  """
  flat = {p: x for p, x in flatten_dict(params, sep="/").items() if is_base(p)}
  dtype = model.network.lora.base_dtype if model.network.lora else "float32"
  return Reference(lasting_name(model.source), fingerprint_of(flat, saved), dtype)


def load_reference(
  model: TextModel, mesh: Mesh, name: str, record: Reference | None = None, *, saved: str = ""
) -> LoadedReference:
  """Reads a reference from where it is.

  Args:
    model: whose reference it is; it computes in the same dtype.
    mesh: the devices.
    name: folder, hub id or GGUF file of a language model.
    record: what a saved model says of its reference; None: it is new.
    saved: where it is new, a fingerprint to compare with, as in `fingerprint_of`.

  Raises:
    InputError: it is not there or cannot be read, is no language model, has a tokenizer of other
      ids than the model's, reads shorter texts than it, or is not the one that the record is of.
    OSError: `name` is a URL that cannot be read.
  """
  whose = _SAVED if record else "model.reference"
  source, backbone = _language_model(name, whose)
  _check_fit(model, source, backbone, whose)
  head = LikelihoodHead(reference=False, tied=tied_head(source.config))
  network = Network(backbone, head, dtype=model.network.dtype)
  one = TextModel(network, model.tokenizer, model.convention, source.config, source)
  flat, _ = read_params(one, mesh)
  dtype = record.dtype if record else "float32"
  flat = {path: x.astype(jnp.dtype(dtype)) for path, x in flat.items()}
  saved = record.fingerprint if record else saved
  found = Reference(lasting_name(source), fingerprint_of(flat, saved), dtype)
  if record and record.fingerprint != found.fingerprint:
    raise InputError(
      f"{name}: its weights have the fingerprint {found.fingerprint}, and the model was trained "
      f"with the reference {record.name} of {record.fingerprint}; expected those weights, unchanged"
    )
  return LoadedReference(found, network, unflatten_dict(flat, sep="/"))


def saved_reference(model: TextModel, mesh: Mesh, where: str | Path = "") -> LoadedReference | None:
  """The reference that a saved model names; None where its reward is not relative to one.

  Args:
    model, mesh: as `load_reference` takes them.
    where: it is now; '' = where the model says.

  Raises:
    InputError, OSError: as `load_reference`; or `where` is given and there is none.
  """
  record = model.reference
  if record:
    return load_reference(model, mesh, str(where or record.name), record)
  if where:
    name = model.source.name if model.source else "this model"
    raise InputError(
      f"reference is {where}, and the reward of {name} is not relative to one; expected ''"
    )
  return None


def check_not_reference(path: str | Path, reference: Reference | None) -> None:
  """Raises InputError if a model would be written over the one that its reward is relative to."""
  if reference and expanded(path).resolve() == expanded(reference.name).resolve():
    raise InputError(
      f"{path} is the language model that this model's reward is relative to, and would be written "
      "over; expected another folder"
    )


def check_reference(config: Any, model: TextModel) -> None:
  """Checks the reference that a config asks for, before any weights are read.

  Args:
    config: the `model` part of an experiment's config.
    model: from `setup.build_model`.

  Raises:
    InputError, OSError: as `load_reference`, for what is seen without its weights; or it is the
      start of random weights.
  """
  if "reference" not in model.network.needs:
    return
  whose, source, backbone = "model.reference", model.source, model.network.backbone
  if config.reference != "start":
    source, backbone = _language_model(config.reference, whose)
  elif source is None:
    raise InputError(
      "model.reward is 'implicit', model.reference 'start', and the weights are random "
      "(model.config), which nobody could read again to score with the model; expected "
      "model.pretrained, a folder in model.reference, or model.reference='none'"
    )
  if config.reference != "start" or config.tokenizer:
    _check_fit(model, source, backbone, whose)


def _language_model(name: str, whose: str) -> tuple[Source, DecoderConfig]:
  """A language model's checkpoint, found but not read, and its config.

  Raises InputError where it cannot be read or is none, and OSError for a URL that cannot be read.
  """
  path = expanded(local(name))
  if (path / "model" / CONFIG).is_file():
    raise InputError(
      f"{whose} is {name}, the workdir of a run; expected a language model's folder, as "
      "RewardModel.save_pretrained writes it of a run with an implicit reward"
    )
  try:
    source = dataclasses.replace(open_source(local(name)), name=str(name))
    backbone = backbone_config(source.config)
  except (ValueError, OSError) as error:
    moved = "; if it has moved, from_pretrained(.., reference=FOLDER) says where it is now"
    moved = moved if whose == _SAVED else ""
    raise InputError(f"{whose} is {name}, which cannot be read: {error}{moved}") from error
  if not isinstance(backbone, DecoderConfig) or is_classifier(source.config):
    kind = source.config.get("architectures") or source.config["model_type"]
    raise InputError(f"{whose} is {name}, of {kind}; expected a language model, a decoder")
  if not tied_head(source.config):
    check_language_head(source, backbone, f"{whose} is {name}", "name another")
  return source, backbone


def _check_fit(model: TextModel, source: Source, backbone: DecoderConfig, whose: str) -> None:
  """Raises InputError where a reference cannot read the model's tokens.

  Its tokenizer has other ids than the model's, or it has fewer positions than the model's texts
  may have.
  """
  if model.convention.max_length > backbone.max_positions:
    raise InputError(
      f"{whose} is {source.name}, which reads {backbone.max_positions} tokens, and the model's "
      f"texts have up to {model.convention.max_length}; expected a smaller max_length, or another "
      "reference"
    )
  ours, theirs = model.tokenizer.get_vocab(), source.tokenizer().get_vocab()
  other = [token for token, i in ours.items() if theirs.get(token) != i]
  if other:
    token = min(other, key=ours.__getitem__)
    raise InputError(
      f"{whose} is {source.name}, whose tokenizer has other ids than the model's for {len(other)} "
      f"of {len(ours)} tokens: {token!r} is {theirs.get(token)} there and {ours[token]} here; "
      "expected a language model of the same tokenizer"
    )
