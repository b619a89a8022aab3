"""A study of losses on the generated world, whose true reward is known, with many seeds.

  python -m experiments.sweep --config=configs/loss_ablation.py --workdir=runs/ablation --seeds=10

It asks three questions, one in each group of settings:
  k: do 250 rankings of four responses teach more than 250 pairs?
  flips: where 30 % of the labels are flipped, which loss agrees best with clean labels?
  ensemble: do members disagree more on prompts whose words were never trained on? Members are heads
    on one backbone, or whole runs.

The decoder has two layers of width 128 (0.4M parameters without its embedding) and random weights
at the start. It is too small to learn to look up a fact in a note from so few examples: so in this
world the true reward depends most on a response's layout and tone.
"""

from pathlib import Path

import ml_collections

from configs import base

MEASURES = ("accuracy", "loss", "shift.auroc.value", "shift.auroc_centered.value")


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.config = str(Path(__file__).with_name("world_decoder.json"))
  c.model.tokenizer = "world"
  c.model.chat_template = "hh"
  c.data.world.fact_weight = 0.5
  c.data.world.name_weight = 0.5
  c.data.world.layout_weight = 1.5
  c.data.world.tone_weight = 1.5
  c.data.train = "world:2000"
  # Other prompts, in the vocabulary of the training data, whose labels are not flipped.
  c.data.heldout = "world:1000(vocabulary='train')"
  c.data.batch_groups = 32
  c.data.row_lengths = (128,)  # tokens: one pair in a row
  c.data.cells = 8192
  c.optimizer.learning_rate = 1e-3
  c.train.epochs = 1.5
  c.train.eval_every = 1_000_000  # steps: only before the first step and at the end
  return c


def sweep() -> dict[str, dict]:
  """{group/setting: {field: value}}; the other settings of a group are compared with its first."""
  few = {"optimizer.learning_rate": 2e-3, "train.epochs": 6.0}
  flipped = {"data.train": "world:2000(flips=0.3)"}
  heads = {"model.members": 8, "data.shifted": "world:1000"}
  return {
    "k/250 pairs": few | {"data.train": "world:250"},
    "k/250 rankings of 4": few | {"data.train": "world:250:4", "data.row_lengths": (256,)},
    "flips/plain": flipped,
    "flips/smoothing 0.3": flipped | {"loss.pair": "logistic(smoothing=0.3)"},
    "flips/forward, rate known": flipped | {"loss.pair": "noisy_logistic(rate=0.3)"},
    "flips/forward, rate learned": flipped | {"loss.pair": "learned_noise"},
    "flips/unbiased, rate known": flipped | {"loss.pair": "unbiased_logistic(rate=0.3)"},
    "flips/no flips": {},
    "ensemble/8 heads": heads | {"model.bootstrap": False},
    "ensemble/8 heads, bootstrap": heads,
  }


def pools() -> dict[str, tuple[str, str]]:
  """{ensemble: (setting whose runs are its members, data unlike their training data)}."""
  return {"ensemble/whole runs": ("flips/no flips", "world:1000")}
