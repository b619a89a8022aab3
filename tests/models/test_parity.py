"""Float32 parity with transformers on torch, architecture by peculiarity by layout.

`python -m tests.models.test_parity` prints the table in markdown.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rm_jax.models.decoder import rope_frequencies
from rm_jax.pretrained.config import backbone_config
from rm_jax.pretrained.hf import export_params
from rm_jax.types import Batch
from tests.models import oracle
from tests.models.families import CASES, LINEAR, LLAMA3, SMALL
from tests.models.layouts import LAYOUTS, layout
from tests.models.oracle import TOLERANCE, needs_torch

_GRADIENTS = [
  next(case for case in CASES if case.arch == arch) for arch in SMALL if SMALL[arch].gradients
]
_GRID = [(case, name) for case in CASES for name in oracle.layouts_of(case)]
_TINYSTORIES = Path(__file__).parents[3] / "shared/weights/tinystories-llama-260k"


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize(("case", "name"), _GRID, ids=str)
def test_hidden_states_and_scores_equal_torch(case, name):
  hidden, scores = oracle.errors(case, name, quick=True)
  assert hidden <= TOLERANCE
  assert scores is None or scores <= TOLERANCE
  assert (scores is None) == (case.saved != "classifier")


@needs_torch
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_missing_head_is_reported(case):
  missing = oracle.loaded(case)[3]
  # A pre-trained BERT's checkpoint has a pooler.
  out = ["head/out/bias", "head/out/kernel"] if case.arch == "bert" else ["head/out/kernel"]
  assert sorted(missing) == ([] if case.saved == "classifier" else out)


@needs_torch
@pytest.mark.parametrize(
  ("case", "name"),
  [(case, "copies" if case.arch == "bert" else "shared") for case in _GRADIENTS],
  ids=str,
)
@pytest.mark.slow
def test_gradients_of_every_parameter_equal_torch(case, name):
  """The loss is the sum of the scores; the oracle runs each sequence by itself."""
  model, network, params, _ = oracle.loaded(case)
  rows = layout(name, case.arch)
  _, grads = jax.device_get(oracle.gradient_of(network)(params, rows.batch))
  ours = dict(export_params(network, grads))

  model.zero_grad()
  for sequence in rows.sequences:
    model(**oracle.oracle_inputs(rows, sequence)).logits.sum().backward()
  reference = {key: p.grad.numpy() for key, p in model.named_parameters()}
  model.zero_grad()

  assert ours.keys() == reference.keys()
  for key, grad in reference.items():
    if key.endswith("key.bias"):
      # A softmax does not see what is added to all of its logits: both are rounding about zero.
      assert np.abs(ours[key]).max() < 1e-4 * np.abs(ours[key.replace("bias", "weight")]).max()
    else:
      assert oracle.relative([ours[key]], [grad]) <= 1e-4, key


@needs_torch
@pytest.mark.parametrize("head_dim", [12, 20, 64, 80, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize(
  "rope",
  [{"rope_type": "default"}, LINEAR, LLAMA3],
  ids=lambda rope: rope["rope_type"],
)
def test_rope_frequencies_equal_torch_to_the_last_place(rope, theta, head_dim):
  """A frequency of 0.9 that is 1e-6 off turns a head by 0.03 radians over 32,768 positions."""
  from transformers import LlamaConfig
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

  keys = {"head_dim": head_dim, "rope_parameters": {**rope, "rope_theta": theta}}
  reference = LlamaRotaryEmbedding(LlamaConfig(**keys)).inv_freq.numpy()
  config = backbone_config(oracle.hf_config("llama", **keys))
  ours = jax.jit(lambda: rope_frequencies(config.rope, head_dim))()
  # torch's power may be one unit in the last place off, and llama3's rule subtracts numbers that
  # are nearly equal. High frequencies, whose error far positions multiply, are held to one unit.
  units = 4 if rope["rope_type"] == "llama3" else 2
  np.testing.assert_array_max_ulp(np.asarray(ours)[reference > 0.05], reference[reference > 0.05])
  np.testing.assert_array_max_ulp(np.asarray(ours), reference, maxulp=units)


@pytest.mark.skipif(
  not (_TINYSTORIES / "reference.npz").exists(),
  reason="../shared/weights/tinystories-llama-260k/reference.npz is not here",
)
def test_a_trained_checkpoint_gives_its_reference():
  network, params, missing = oracle.read_checkpoint(_TINYSTORIES)
  reference = np.load(_TINYSTORIES / "reference.npz")
  tokens = reference["input_ids"].astype(np.int32)
  ones, position = np.ones_like(tokens), np.arange(tokens.shape[1], dtype=np.int32)[None]
  batch = Batch(
    tokens=tokens,
    group=ones,
    branch=ones,
    position=position,
    marks=position[:, -1:, None],
    where=np.ones((1, 1, 1), bool),
    labels=np.zeros((1, 1, 1), np.float32),
    weight=np.ones((1, 1), np.float32),
  )
  hidden_BTD, _ = jax.device_get(oracle.forward(network, quick=False)(params, batch))
  assert missing == ["head/out/kernel"]
  assert oracle.relative([hidden_BTD], [reference["last_hidden"]]) <= TOLERANCE

  # Our networks have no language-model head; its matrix is in the file.
  lm_head = load_file(_TINYSTORIES / "model.safetensors")["lm_head.weight"]
  logits = hidden_BTD[:, -1] @ lm_head.T
  assert oracle.relative([logits], [reference["logits_last"]]) <= TOLERANCE


def table() -> str:
  """Markdown: for every case and layout, the errors of hidden states / scores, in units of 1e-6."""
  names = (*LAYOUTS, "copies")
  lines = [
    "| architecture | peculiarity | " + " | ".join(names) + " |",
    "|" + "---|" * (2 + len(names)),
  ]
  for case in CASES:
    cells = []
    for name in names:
      if name not in oracle.layouts_of(case):
        cells.append("")
        continue
      hidden, scores = oracle.errors(case, name, quick=False)
      cells.append(f"{hidden * 1e6:.2f}" + ("" if scores is None else f" / {scores * 1e6:.2f}"))
    lines.append(f"| {case.arch} | {case.what} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


if __name__ == "__main__":
  print(table())
