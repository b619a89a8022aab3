"""TRL's GRPOTrainer with an export's folder as its reward function gets our rewards."""

import json

import numpy as np
import pytest

from tests.clients.exports import CHATML, client, conversations, made, python_of
from tests.conftest import LLAMA, decoder_tokenizer

pytestmark = pytest.mark.slow

INSTALL = "python -m venv trl && trl/bin/pip install torch 'trl==1.16.0' 'transformers==5.24.0'"


def policy(folder):
  """A small Llama with random weights that answers with bytes."""
  torch = pytest.importorskip("torch", reason="torch makes the policy")
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.manual_seed(0)
  config = LlamaConfig(**LLAMA | {"vocab_size": 259, "num_hidden_layers": 1})
  LlamaForCausalLM(config).save_pretrained(folder)
  decoder_tokenizer(chat=CHATML).save_pretrained(folder)
  return folder


@pytest.mark.parametrize("name", ["bytes, hh", "pad is eos", "SmolLM2"])
def test_grpo_optimises_our_rewards(name, tmp_path):
  python = python_of("RM_JAX_TEST_TRL", INSTALL)
  model = made(name, tmp_path / "made")
  model.save_pretrained(tmp_path / "saved")
  prompts = tmp_path / "prompts.json"
  prompts.write_text(json.dumps([turns for turns, _ in conversations(8)]))
  folders = tmp_path / "saved", policy(tmp_path / "policy"), prompts, tmp_path / "run"
  rows = client(python, "grpo.py", *map(str, folders))["rows"]
  assert len(rows) == 8  # two steps of four
  ours = model.score([{"prompt": r["prompt"], "response": r["completion"]} for r in rows])
  assert ours.std() > 0.05
  np.testing.assert_allclose([r["reward"] for r in rows], ours, rtol=0, atol=1e-5)


def test_grpo_on_strings_leaves_out_what_the_tokenizer_adds(tmp_path):
  """docs/exports.md says so; if these rewards become ours, that line of it is to go."""
  python = python_of("RM_JAX_TEST_TRL", INSTALL)
  model = made("bytes, hh", tmp_path / "made")
  model.save_pretrained(tmp_path / "saved")
  prompts = tmp_path / "prompts.json"
  prompts.write_text(json.dumps([turns[0]["content"] for turns, _ in conversations(8)]))
  folders = tmp_path / "saved", policy(tmp_path / "policy"), prompts, tmp_path / "run"
  rows = client(python, "grpo.py", *map(str, folders))["rows"]
  ours = model.score([{"prompt": r["prompt"], "response": r["completion"]} for r in rows])
  assert np.abs(ours - [r["reward"] for r in rows]).max() > 0.1
