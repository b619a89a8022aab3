"""What tests of networks share: small ones of each family, and transformers as the oracle.

Torch and the modelling half of transformers are imported where they are used: all but the parity
tests run without.
"""

import dataclasses
import functools
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from rm_jax.models.network import Network
from rm_jax.pretrained.config import backbone_config, head_config
from rm_jax.pretrained.families import FAMILIES
from rm_jax.pretrained.hf import load_params
from tests.models.families import SMALL, Case
from tests.models.layouts import LAYOUTS, B, G, K, Layout, Sequence, T, layout

# For parity: |difference| over the root mean square of the reference, at real tokens.
TOLERANCE = 2e-5

ARCHITECTURES = tuple(SMALL)

needs_torch = pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="torch, the oracle, is not installed"
)


def hf_config(arch: str, *, labels: int = 1, **keys) -> dict:
  """A small classifier's config.json as a dictionary; made without torch."""
  return {
    "model_type": arch,
    "architectures": [FAMILIES[arch].classifier],
    "id2label": {str(i): f"LABEL_{i}" for i in range(labels)},
    **SMALL[arch].keys,
    **keys,
  }


def make_network(arch: str, *, labels: int = 1, options: dict | None = None, **keys) -> Network:
  """A small classifier; `options` are Network's, `keys` the config.json's."""
  hf = hf_config(arch, labels=labels, **keys)
  return Network(backbone_config(hf), head_config(hf), **(options or {}))


def random_params(network: Network, seed: int = 0) -> dict:
  """Every parameter random, norms and biases too; activations are of order one."""
  rng = np.random.default_rng(seed)
  flat = {}
  for path, leaf in flatten_dict(network.abstract(), sep="/").items():
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    if path.endswith("/scale"):
      noise = 1 + 0.3 * noise
    elif path.endswith("/bias"):
      noise = 0.3 * noise
    elif path.endswith("/kernel"):
      shape = leaf.shape[1:] if "layers/" in path or "lower/" in path else leaf.shape
      fan_in = np.prod(shape[:2]) if path.endswith("/o/kernel") else shape[0]
      noise = noise * (1.2 / np.sqrt(fan_in))
    flat[path] = noise.astype(np.float32)
  return unflatten_dict(flat, sep="/")


def split_stack(params: dict, frozen: int) -> dict:
  """The parameters of a network with `frozen` lower layers, from those of one without."""
  backbone = dict(params["backbone"])
  layers = backbone.pop("layers")
  depth = jax.tree.leaves(layers)[0].shape[0]
  if frozen:
    backbone["lower"] = jax.tree.map(lambda leaf: leaf[:frozen], layers)
  if frozen < depth:
    backbone["layers"] = jax.tree.map(lambda leaf: leaf[frozen:], layers)
  return {**params, "backbone": backbone}


class Tensors:
  """A dictionary of tensors as `hf.load_params` reads a checkpoint."""

  def __init__(self, tensors: dict[str, np.ndarray]):
    self.tensors = tensors

  def names(self) -> list[str]:
    return list(self.tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    return self.tensors[name].shape

  def get(self, name: str) -> np.ndarray:
    return self.tensors[name]


def _torch():
  """torch on one core: the tests' networks are too small for more."""
  import torch

  torch.set_num_threads(1)
  return torch


def layouts_of(case: Case) -> tuple[str, ...]:
  """The layouts in which a case can be compared.

  BERT's positions are a table and not far from 0; its branches are copies of the prompt.
  transformers measures a window in columns, so that it must find no gap between positions.
  """
  if case.arch == "bert":
    return ("none", "right", "left", "packed", "copies")
  slides = backbone_config(hf_config(case.arch, **case.keys)).sliding_windows is not None
  return tuple(name for name in LAYOUTS if not (slides and name == "apart"))


def build(case: Case) -> Any:
  """The torch model of a case, every parameter random."""
  import transformers

  torch = _torch()
  transformers.logging.set_verbosity_error()
  config = transformers.AutoConfig.for_model(
    case.arch, num_labels=case.labels, **{**SMALL[case.arch].keys, **case.keys}
  )
  kind = {
    "classifier": transformers.AutoModelForSequenceClassification,
    "causal": transformers.AutoModelForCausalLM,
    "base": transformers.AutoModel,
  }[case.saved]
  model = kind.from_config(config, attn_implementation="eager").eval()
  # A seed whose scores do not cancel: the tolerance is relative, and where a layout's four scores
  # happen to be 0.06, the rounding of float32 alone, torch's too, is half of it.
  noise = torch.Generator().manual_seed(4)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(generator=noise)
      if "norm" in name.lower() and name.endswith("weight"):
        parameter.mul_(0.3).add_(1)
      elif name.endswith("bias"):
        parameter.mul_(0.3)
      elif "embed" not in name:
        parameter.mul_(1.2 / parameter.shape[1] ** 0.5)
  return model


def read_checkpoint(folder: str | Path, **options) -> tuple[Network, dict, list[str]]:
  """(network, parameters, paths of the missing head) of a folder that transformers wrote."""
  hf = json.loads(Path(folder, "config.json").read_text())
  network = Network(backbone_config(hf), head_config(hf), **options)
  tensors = {}
  for file in sorted(Path(folder).glob("*.safetensors")):
    tensors |= load_file(file)
  params, missing = load_params(
    network, Tensors(tensors), lambda _, array: array, source=str(folder)
  )
  fresh = flatten_dict(random_params(network), sep="/")
  flat = flatten_dict(params, sep="/") | {path: fresh[path] for path in missing}
  return network, unflatten_dict(flat, sep="/"), missing


@functools.cache
def loaded(case: Case) -> tuple[Any, Network, dict, list[str]]:
  """(torch model, our network, its parameters, paths of the missing head), through the disk."""
  model = build(case)
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return model, *read_checkpoint(folder)


# XLA's options by which a gradient compiles in a sixth of the time; the operations are the same. An
# XLA without the second option (jax 0.12's) needs half the time.
_QUICK = (
  {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False},
  {"xla_backend_optimization_level": 0},
)


@functools.cache
def _quick_options() -> dict:
  for options in _QUICK:
    try:
      jax.jit(lambda x: x, compiler_options=options)(0.0)
      return options
    except jax.errors.JaxRuntimeError:
      pass
  return {}


def quick_jit(function: Any) -> Any:
  """`jax.jit` for functions that a test compiles and hardly runs."""
  return jax.jit(function, compiler_options=_quick_options())


@functools.cache
def scores_of(network: Network) -> Any:
  """(params, batch, key) -> scores, quickly compiled."""
  return quick_jit(network.apply)


@functools.cache
def gradient_of(network: Network, *, hidden: bool = False) -> Any:
  """(params, batch) -> (scores, gradient of their sum): compiled quickly, once for all tests.

  `hidden`: whether the batch brings its activations.
  """

  def loss(params, batch):
    scores = network.apply(params, batch)
    return scores.sum(), scores

  def run(params, batch):
    (_, scores), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
    return scores, grads

  batch = layout("right", network.backbone.model_type).batch
  if hidden:
    width = np.zeros((B, T, network.backbone.width), np.float32)
    batch = dataclasses.replace(batch, hidden=width)
  return quick_jit(run).lower(network.abstract(), batch).compile()


@functools.cache
def forward(network: Network, *, quick: bool) -> Any:
  """(params, batch) -> (hidden states, scores), compiled quickly or as users compile it."""

  def both(params, batch):
    return network.hidden(params, batch), network.apply(params, batch)

  return quick_jit(both) if quick else jax.jit(both)


def oracle_inputs(
  rows: Layout, sequence: Sequence | None = None, *, position: bool = False
) -> dict:
  """torch arguments for all rows, or for one sequence alone."""
  torch, batch = _torch(), rows.batch
  if sequence is None:
    at = np.s_[:, :]
    inputs = {"attention_mask": torch.tensor(batch.group > 0).long()}
  else:
    at = np.s_[sequence.row : sequence.row + 1, list(sequence.columns)]
    inputs = {}
  inputs["input_ids"] = torch.tensor(batch.tokens[at]).long()
  if batch.token_type is not None:
    inputs["token_type_ids"] = torch.tensor(batch.token_type[at]).long()
  if position:
    inputs["position_ids"] = torch.tensor(batch.position[at]).long()
  return inputs


def oracle(model: Any, rows: Layout, *, position: bool) -> tuple[list, list | None]:
  """The oracle's (hidden states [tokens, D], scores [labels]) of every sequence of a layout."""
  torch = _torch()
  classifier = "SequenceClassification" in type(model).__name__
  base = getattr(model, model.base_model_prefix, model)

  def run(inputs):
    with torch.no_grad():
      scores = model(**inputs).logits.numpy() if classifier else None
      return base(**inputs).last_hidden_state.numpy(), scores

  # BERT's pooler reads column 0, which is padding where padding is on the left.
  unpooled = rows.batch.token_type is not None and any(s.columns[0] for s in rows.sequences)
  if rows.together:
    hidden_BTD, scores = run(oracle_inputs(rows, position=position))
    hidden = [hidden_BTD[s.row, list(s.columns)] for s in rows.sequences]
  if not rows.together or unpooled:
    alone = [run(oracle_inputs(rows, s)) for s in rows.sequences]
    scores = [score[0] for _, score in alone] if classifier else None
    hidden = hidden if rows.together else [h[0] for h, _ in alone]
  return hidden, scores


def relative(ours: list, reference: list) -> float:
  """max |difference| / rms(reference)."""
  ours, reference = np.concatenate(ours), np.concatenate(reference)
  assert ours.shape == reference.shape
  assert np.isfinite(ours).all()
  return float(np.abs(ours - reference).max() / np.sqrt(np.mean(np.square(reference))))


def errors(case: Case, name: str, *, quick: bool) -> tuple[float, float | None]:
  """Relative error of the hidden states and of the scores (None where there is no head)."""
  model, network, params, _ = loaded(case)
  rows = layout(name, case.arch)
  hidden_BTD, scores = jax.device_get(forward(network, quick=quick)(params, rows.batch))
  scores_ABGK = scores.reshape(-1, B, G, K)
  assert (scores_ABGK[:, ~rows.batch.where] == 0).all()
  ref_hidden, ref_scores = oracle(model, rows, position=name in ("left", "far", "apart"))
  hidden = [hidden_BTD[s.row, list(s.columns)] for s in rows.sequences]
  scores = [scores_ABGK[:, s.row, s.slot[0], s.slot[1]] for s in rows.sequences]
  if ref_scores is None:
    return relative(hidden, ref_hidden), None
  assert np.sqrt(np.mean(np.square(np.concatenate(ref_scores)))) > 0.5, "the draw's scores cancel"
  return relative(hidden, ref_hidden), relative(scores, ref_scores)
