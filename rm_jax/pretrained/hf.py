"""Hugging Face's tensors <-> our parameters, by the names in a family's record.

A linear weight is [out, in] there; ours is [in..., out...] with heads as an axis of their own. Our
layers are stacked on a leading axis, the frozen ones in a stack of their own ('lower').
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rm_jax.errors import InputError
from rm_jax.models.network import Network
from rm_jax.pretrained.families import FAMILIES, Family

# The language-model head, [V, D] (vocabulary, width), where it is not the embedding. Only reward
# models whose reward is implicit have it; text regularisation reads it too (train/text_penalty.py).
LM_HEAD = "lm_head.weight"
# The one kernel with two input axes: heads and head width.
_TWO_INPUTS = "o/kernel"


class WeightsError(InputError):
  """A checkpoint's tensors are not those that its config asks for, or cannot be used."""


def _family(network: Network) -> Family:
  return FAMILIES[network.backbone.model_type]


def _lookup(table: Mapping[str, str], path: str) -> str:
  """Hugging Face's name of a parameter, as 'q/kernel' -> 'self_attn.q_proj.weight'."""
  module, leaf = path.rsplit("/", 1)
  return table[module] + (".bias" if leaf == "bias" else ".weight")


def hf_names(network: Network, path: str) -> list[str]:
  """Names of the Hugging Face tensors that hold one of our parameters: one, or one a layer.

  Empty for head/mix, the weights of the attributes in the reward, which are in our own record, for
  the gate (head/gating), which Hugging Face's models do not have, and for adapters.
  """
  family = _family(network)
  part, _, rest = path.partition("/")
  if path.startswith(("head/mix", "head/gating/")) or path.endswith(("/lora_a", "/lora_b")):
    return []
  if part == "lm_head":
    return [LM_HEAD]
  if part == "head":
    return [_lookup(family.head_tensors, rest)]
  stack, _, inner = rest.partition("/")
  if stack not in ("lower", "layers"):
    return [family.prefix + _lookup(family.tensors, rest)]
  name = _lookup(family.layer_tensors, inner)
  layers = (
    range(network.frozen) if stack == "lower" else range(network.frozen, network.backbone.layers)
  )
  return [f"{family.prefix}{family.layers}.{i}.{name}" for i in layers]


def _hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of the Hugging Face tensor behind one (layer's) parameter."""
  if path.endswith("/kernel"):
    inputs = 2 if path.endswith(_TWO_INPUTS) else 1
    return int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs]))
  if path.endswith("/bias"):
    return (int(np.prod(shape)),)
  return shape


def _to_ours(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return (tensor.T if path.endswith("/kernel") else tensor).reshape(shape)


def _to_hf(path: str, array: np.ndarray) -> np.ndarray:
  out, *rest = _hf_shape(path, array.shape)
  if path.endswith("/kernel"):
    return np.ascontiguousarray(array.reshape(rest[0], out).T)
  return array.reshape(out, *rest)


def _current(name: str, family: Family) -> str:
  """A tensor's name as checkpoints have it today."""
  for old, new in family.renamed.items():
    name = name.replace(old, new)
  return name


def _stacked(path: str) -> bool:
  return "/layers/" in path or "/lower/" in path


def read_tensor(reader: Any, name: str, source: str) -> np.ndarray:
  """Reads a tensor as float32 and checks that every number of it is finite.

  Args:
    reader: has get(name) -> array.
    name: of the tensor.
    source: name of the checkpoint, for errors.

  Raises:
    WeightsError: its dtype is not of floating-point numbers, or it holds NaN or infinity (in
      float32).
  """
  stored = reader.get(name)
  # Quantised formats store packed integers; read as numbers they would be noise.
  if not jnp.issubdtype(stored.dtype, jnp.floating):
    raise WeightsError(
      f"{source}: {name} is stored as {stored.dtype}; expected floating-point numbers. Was it "
      "quantised in a way of its own? Use the model's unquantised folder, or a GGUF file"
    )
  with np.errstate(over="ignore", invalid="ignore"):
    array = stored.astype(np.float32, copy=False)
  # min and max are NaN where any element is, and need no temporary array as isfinite does.
  if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
    count = array.size - int(np.isfinite(array).sum())
    raise WeightsError(
      f"{source}: {name} has {count} of {array.size} numbers that are NaN or infinite in float32; "
      "the training that wrote it had failed, or the file is damaged. Use another checkpoint"
    )
  return array


def load_params(
  network: Network,
  reader: Any,
  place: Callable[[str, np.ndarray], Any],
  *,
  source: str,
  spare: int = 0,
) -> tuple[dict, list[str]]:
  """Reads a checkpoint's tensors into our parameters.

  Args:
    network: whose parameters to fill.
    reader: has names(), shape(name) and get(name) -> array.
    place: (path, float32 array) -> the result's leaf. It puts the array onto devices; called
      for one parameter after another, so that the host never holds a second copy of the model.
    source: name of the checkpoint, for errors.
    spare: how many layers the checkpoint has above the network's, left out on purpose.

  Returns:
    (parameters as a nested dict, without those of a missing head and those that `hf_names` knows no
    tensor of; paths of the missing head).

  Raises:
    WeightsError: fewer tensors than layers; tensors that are missing, not expected, or of another
      shape, all of them listed; or the first that `read_tensor` refuses.
  """
  family = _family(network)
  names = {_current(name, family): name for name in reader.names()}
  layers = network.backbone.layers + spare
  if layers > len(names):
    # Refused here: a table of the names of so many layers would take all memory.
    raise WeightsError(
      f"{source}: config.json says num_hidden_layers {layers}, and there are {len(names)} tensors; "
      "expected several tensors a layer"
    )
  bare = not any(name.startswith(family.prefix) for name in names)

  def actual(name: str) -> str:
    return name.removeprefix(family.prefix) if bare else name

  flat = flatten_dict(network.abstract(), sep="/")
  wanted = {path: [actual(n) for n in hf_names(network, path)] for path in flat}
  flat = {path: leaf for path, leaf in flat.items() if wanted[path]}
  head = [path for path in flat if path.startswith("head/")]
  # A checkpoint without the output layer has no head. It may still have a pooler, as a pre-trained
  # BERT has, and then that is read. With the output layer all tensors of the head must be there.
  missing = []
  if not any(name in names for path in head if "/out/" in path for name in wanted[path]):
    missing = [path for path in head if not names.keys() >= set(wanted[path])]
    flat = {path: leaf for path, leaf in flat.items() if path not in missing}

  problems = []
  for path, leaf in flat.items():
    shape = _hf_shape(path, leaf.shape[1:] if _stacked(path) else leaf.shape)
    for name in wanted[path]:
      if name not in names:
        problems.append(f"missing: {name} {shape}")
      elif (found := tuple(reader.shape(names[name]))) != shape:
        problems.append(f"shape: {name} is {found}, config.json says {shape}")
  used = {name for path in flat for name in wanted[path]}
  above = range(network.backbone.layers, network.backbone.layers + spare)
  used |= {n for i in above for n in names if f"{family.layers}.{i}." in n}
  unknown = sorted(names.keys() - used)
  problems += [f"not expected: {n}" for n in unknown if not re.match(family.ignored, n)]
  if problems:
    raise WeightsError(
      f"{source}: {len(problems)} of its tensors do not fit its config.json:\n  "
      + "\n  ".join(problems)
    )

  loaded = {}
  for path, leaf in flat.items():
    shape = leaf.shape[1:] if _stacked(path) else leaf.shape
    array = np.empty(leaf.shape, np.float32)
    for i, name in enumerate(wanted[path]):
      array[i if _stacked(path) else ...] = _to_ours(
        path, read_tensor(reader, names[name], source), shape
      )
    loaded[path] = place(path, array)
  return unflatten_dict(loaded, sep="/"), missing


def export_params(network: Network, params: dict) -> Iterator[tuple[str, np.ndarray]]:
  """Our parameters as (Hugging Face name, array), the inverse of `load_params`.

  Those for which `hf_names` has no name are left out.
  """
  for path, leaf in flatten_dict(params, sep="/").items():
    array = np.asarray(leaf)
    names = hf_names(network, path)
    for i, name in enumerate(names):
      yield name, _to_hf(path, array[i] if _stacked(path) else array)
