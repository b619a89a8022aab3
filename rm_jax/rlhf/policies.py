"""A chain's policy: built from its config or from a folder of an earlier stage, and saved."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rm_jax.models.lora import merged
from rm_jax.parallel.fingerprint import fingerprint_of
from rm_jax.parallel.mesh import parameter_shardings
from rm_jax.policy.text import Policy
from rm_jax.pretrained.source import save_folder
from rm_jax.reward.export import export
from rm_jax.reward.setup import build_model, init_params
from rm_jax.train.optimizer import frozen_patterns

_OPTION = "--config.policy.{0}"  # how errors name a field


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A policy with its parameters.

  Attributes:
    policy: see `policy.text.Policy`.
    params: path -> array on the mesh.
    mesh: the devices.
  """

  policy: Policy
  params: dict[str, jax.Array]
  mesh: Mesh

  @property
  def fingerprint(self) -> str:
    """Of the parameters: see `parallel.fingerprint.fingerprint_of`."""
    return fingerprint_of(self.params)

  @property
  def nested(self) -> dict:
    """The parameters as the network takes them."""
    return unflatten_dict(self.params, sep="/")


def policy_of(config: Any, mesh: Mesh, folder: Path | None = None) -> Policy:
  """The policy of a chain's config without its parameters; arguments and errors as `load`."""
  return Policy(dataclasses.replace(build_model(_parts(config, folder), mesh), option=_OPTION))


def load(config: Any, mesh: Mesh, folder: Path | None = None) -> Loaded:
  """The policy of a chain's config, or one that `save` wrote.

  Args:
    config: the chain's.
    mesh: the devices.
    folder: from which tokenizer and weights are read; None = from where the config says, and random
      weights where it names none.

  Raises:
    InputError, OSError: as `build_model` and `init_params`.
  """
  policy = policy_of(config, mesh, folder)
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  params = init_params(policy.text_model, mesh, key, training=True)
  return Loaded(policy, params, mesh)


def frozen(config: Any, optimizer: Any) -> tuple[str, ...]:
  """Regular expressions of the parameters that a stage does not train.

  Args:
    config: the chain's.
    optimizer: the `optimizer` part of the stage: config.sft.optimizer or config.optimizer.
  """
  return frozen_patterns(ConfigDict({"model": config.policy, "optimizer": optimizer}))


def _parts(config: Any, folder: Path | None) -> ConfigDict:
  """The parts of a training run's config that a policy is built by."""
  model = config.policy.copy_and_resolve_references().unlock()
  if folder is not None:
    model.update(saved(folder))
  limits = {"max_length": config.data.max_length, "max_prompt_length": 0, "pack": True}
  return ConfigDict({"model": model, "data": limits, "optimizer": {"mix_rate": 0.0}})


def saved(folder: Path) -> dict[str, str]:
  """The fields of a config's `model` part by which a model is read from a folder."""
  return {"pretrained": str(folder), "config": "", "tokenizer": "", "chat_template": ""}


def save(loaded: Loaded, params: dict, path: Path) -> None:
  """Writes a language model's folder, which transformers' AutoModelForCausalLM loads.

  Adapters are merged into the weights.

  Args:
    loaded: the policy.
    params: its parameters now, nested, on the mesh.
    path: the folder, which is made, or replaced.

  Raises:
    OSError, ValueError: as `pretrained.source.save_folder`.
  """
  text_model, mesh = loaded.policy.text_model, loaded.mesh
  if lora := text_model.network.lora:
    network = dataclasses.replace(text_model.network, lora=None)
    shardings = parameter_shardings(flatten_dict(network.abstract(), sep="/"), mesh)
    whole = jax.jit(merged, static_argnums=1, out_shardings=shardings)
    params = unflatten_dict(whole(flatten_dict(params, sep="/"), lora), sep="/")
    text_model = dataclasses.replace(text_model, network=network)
  made = export(text_model, params)
  save_folder(
    path,
    config=made.config,
    tokenizer=made.tokenizer,
    record=made.record,
    tensors=made.tensors.items(),
  )
