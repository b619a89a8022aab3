"""Small models with random weights, whose exports other software reads, and texts to score."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs.base import get_config
from rm_jax import RewardModel
from rm_jax.parallel.mesh import make_mesh
from rm_jax.pretrained.source import load_tokenizer
from rm_jax.reward.setup import build_model
from rm_jax.world import make_tokenizer
from tests.conftest import BERT, LLAMA, decoder_tokenizer, encoder_tokenizer

SHARED = Path(__file__).parents[3] / "shared"
CHATML = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Llama 3.1's: it contains the date and its own BOS, and does not end in EOS.
DATED = (
  "{{- bos_token }}\n"
  "{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
  "{% endif %}\n"
  "{{- 'Today ' + date_string + ' ' + strftime_now('%Y') }}\n"
  "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
  "{% if add_generation_prompt %}assistant:{% endif %}  \n"
)
LLAMA3_ROPE = {
  "rope_type": "llama3",
  "rope_theta": 500000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 128,
}


def published(name):
  """The tokenizer of a published model; skips where it cannot be had without a network."""
  before = {key: os.environ.get(key) for key in ("HF_HUB_OFFLINE", "PIP_NO_INDEX")}
  os.environ |= dict.fromkeys(before, "1")
  try:
    return load_tokenizer(name)
  except (FileNotFoundError, ValueError) as error:
    pytest.skip(f"{name} is not here: {error}")
  finally:
    for key, value in before.items():
      os.environ.pop(key) if value is None else os.environ.update({key: value})


# name -> (the tokenizer; keys of config.json that differ from LLAMA's, or BERT's; fields of
# `config.model`).
MODELS = {
  "bytes": (decoder_tokenizer, {"rope_parameters": LLAMA3_ROPE}, {}),
  "bytes, hh": (decoder_tokenizer, {}, {"chat_template": "hh"}),
  "pad is eos": (lambda: decoder_tokenizer(pad="</s>"), {}, {"chat_template": DATED}),
  "no eos": (decoder_tokenizer, {}, {"chat_template": "hh", "eos": "none"}),
  "ensemble": (decoder_tokenizer, {"dtype": "bfloat16"}, {"chat_template": "hh", "members": 3}),
  "attributes": (
    decoder_tokenizer,
    {"model_type": "qwen3", "head_dim": 8},
    {"chat_template": "hh", "attributes": ("help", "truth"), "mix": (0.25, -0.5)},
  ),
  "world": (make_tokenizer, {"vocab_size": 700, "model_type": "mistral"}, {"chat_template": "hh"}),
  "Gemma 2": (
    decoder_tokenizer,
    {
      "model_type": "gemma2",
      "head_dim": 8,
      "sliding_window": 24,
      "query_pre_attn_scalar": 16,
      "attn_logit_softcapping": 2.0,
    },
    {"chat_template": "hh"},
  ),
  "TinyStories": (
    lambda: published(str(SHARED / "weights/tinystories-llama-260k")),
    {"vocab_size": 512},
    {"chat_template": "hh"},
  ),
  "SmolLM2": (
    lambda: published("HuggingFaceTB/SmolLM2-135M-Instruct"),
    {"vocab_size": 49152, "rope_theta": 100000.0},
    {"chat_template": "hh"},
  ),
  "SmolLM2, its own template": (
    lambda: published("HuggingFaceTB/SmolLM2-135M-Instruct"),
    {"vocab_size": 49152, "model_type": "qwen2", "sliding_window": 8},
    {},
  ),
  "BERT": (encoder_tokenizer, BERT, {"chat_template": "hh"}),
  "MiniLM": (
    lambda: published("sentence-transformers/all-MiniLM-L6-v2"),
    BERT | {"vocab_size": 30522},
    {},
  ),
}


def one_device():
  """The mesh that a client's machine has; programs for eight devices compile for longer."""
  return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def made(name, folder, noise=0.2, head_scale=0.25):
  """A `RewardModel` of MODELS with random weights, by default with scores of size one.

  Args:
    name: in MODELS.
    folder: gets config.json and the tokenizer.
    noise: standard deviation of the weights, which is 0.02 at least; and of biases around zero and
      of norms' scales around one.
    head_scale: standard deviation of the head's kernel.
  """
  tokenizer, beside, fields = MODELS[name]
  config = LLAMA | beside if beside.get("model_type") != "bert" else beside
  tokenizer().save_pretrained(folder)
  (folder / "config.json").write_text(json.dumps(config))
  c = get_config()
  c.model.config, c.model.tokenizer = str(folder / "config.json"), str(folder)
  for key, value in fields.items():
    c.model[key] = value
  c.data.max_length = 256
  built = build_model(c)
  rng = np.random.default_rng(1)

  def drawn(path, x):
    if path == "head/mix":
      return jnp.asarray(fields["mix"], jnp.float32)
    std = head_scale if path == "head/out/kernel" else noise
    if not path.endswith(("/scale", "/bias")):
      std = max(std, 0.02)
    return jnp.asarray(path.endswith("/scale") + std * rng.normal(size=x.shape), jnp.float32)

  # Drawn by NumPy, since `init_params` would compile a program for each model.
  flat = flatten_dict(built.network.abstract(), sep="/")
  params = unflatten_dict({path: drawn(path, x) for path, x in flat.items()}, sep="/")
  return RewardModel(built, params, one_device())


def conversations(count, seed=0):
  """(earlier turns, the answer): short words, signs and digits; some answers are empty or blank."""
  rng = np.random.default_rng(seed)
  words = ["the", "3", "<", "5?", "Über\n\nnew", "", "two\tFärbe", "日本", "don't", "(a+b)=7.5"]
  words += ["Assistant:", "oat", "beans", "😀"]

  def text(most):
    return " ".join(rng.choice(words, rng.integers(0, most)).tolist())

  out = []
  for i in range(count):
    turns = [{"role": "user", "content": f"{i} {text(9)}"}]
    for _ in range(int(rng.integers(0, 2))):
      turns += [
        {"role": "assistant", "content": text(5)},
        {"role": "user", "content": text(5) + rng.choice(["", " ", "\n"])},
      ]
    out.append((turns, text(9) + rng.choice(["", "", " ", "\n", "."])))
  return out


def client(python, script, *args, stdin=""):
  """Runs a script of this folder in another environment; returns its last line, as JSON."""
  env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "JAX", "XLA"))}
  env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
  command = [python, str(Path(__file__).parent / script), *args]
  done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=env)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.strip().splitlines()[-1])


def python_of(variable, install):
  """The Python of a client's environment, which an environment variable names.

  Without the variable's name it is this Python, if it has torch. Skips where there is none, and
  says how to install it.
  """
  if variable is None:
    pytest.importorskip("torch", reason="torch is the oracle")
    return sys.executable
  if not (python := os.environ.get(variable)):
    pytest.skip(f"set {variable} to the Python of an environment made by: {install}")
  return python
