"""Small runs for tests: a three-layer Llama on short pairs."""

import json

import jax
import numpy as np
import pytest

from configs.base import get_config
from rm_jax.parallel import mesh as meshes
from rm_jax.train import loop


def write_pairs(path, count, seed=0):
  """JSON lines of short pairs, the better response the one with more of the letter a."""
  rng = np.random.default_rng(seed)

  def word(odds):
    return "".join(rng.choice(["a", "b"], rng.integers(4, 12), p=[odds, 1 - odds]))

  with path.open("w") as file:
    for i in range(count):
      row = {"prompt": f"{seed}.{i} {word(0.5)} ", "chosen": word(0.8), "rejected": word(0.2)}
      file.write(json.dumps(row) + "\n")
  return path


def small_config(folder, *, steps):
  """A config that trains `folder`'s model from random weights within seconds."""
  c = get_config()
  c.model.config = str(folder / "config.json")
  c.model.tokenizer = str(folder)
  c.data.train = str(write_pairs(folder / "train.jsonl", 48))
  c.data.heldout = str(write_pairs(folder / "heldout.jsonl", 16, seed=1))
  c.data.batch_groups = 8
  c.data.row_lengths = (64,)
  c.optimizer.learning_rate = 3e-3
  c.optimizer.decay_steps = 20
  c.train.steps = steps
  c.train.log_every = 1
  c.train.eval_every = 10
  return c


def flip_a_byte(directory):
  """In the largest file: the array data."""
  path = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def run(config, workdir, devices=None, *, picture=False, kept=None):
  """Trains, on the first `devices` only where that is said.

  Unless `picture` is true, report.png is empty: drawing it takes a quarter of so short a run.
  """
  original = meshes.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    if devices is not None:
      patch.setattr(loop, "make_mesh", lambda sizes: original(sizes, jax.devices()[:devices]))
    if not picture:
      patch.setattr(loop, "draw_report", lambda path, *_: path.write_bytes(b""))
    return loop.train(config, workdir, kept=kept)
