"""Losses on the generated world, whose truth is known: a small decoder from nothing, many seeds.

  python -m experiments.sweep --config=configs/loss_ablation.py --workdir=runs/ablation --seeds=10

Three questions, each a table. `k`: do rankings of four teach more than as many prompts' pairs?
`flips`: at 30 % labels turned over, which loss does best by clean labels? `ensemble`: do members
disagree more on prompts in words that were never trained on?

The decoder has two layers of width 128 (0.4M parameters beside its embedding), too small to look a
fact up in a note within so few examples: in this world the layout and the tone count most.
"""

from pathlib import Path

import ml_collections

from configs import base

MEASURES = ("accuracy", "loss", "shift.auroc.value", "shift.auroc_centered.value")
CLEAN = "world:1000(vocabulary='train', flips=0.0)"


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.config = str(Path(__file__).with_name("world_decoder.json"))
  c.model.tokenizer = "world"
  c.model.chat_template = "hh"
  c.data.world.fact_weight = 0.5
  c.data.world.name_weight = 0.5
  c.data.world.layout_weight = 1.5
  c.data.world.tone_weight = 1.5
  c.data.train = "world:1000"
  c.data.heldout = CLEAN  # other prompts in the words of the training data
  c.data.batch_groups = 32
  c.data.row_lengths = (128,)  # tokens: a pair a row
  c.data.cells = 8192
  c.optimizer.learning_rate = 2e-3
  c.train.epochs = 3.0
  c.train.eval_every = 1_000_000  # steps: at the end alone
  return c


def sweep() -> dict[str, dict]:
  """{group/setting: changes}; each group's first is what its others are compared with."""
  flipped = {"data.train": "world:1000(flips=0.3)"}
  ensemble = {"model.members": 8, "data.shifted": "world:1000"}
  return {
    "k/pairs": {},
    "k/rankings of 4, Plackett-Luce": {
      "data.train": "world:1000:4",
      "data.row_lengths": (256,),
    },
    "flips/plain": flipped,
    "flips/smoothing 0.3": flipped | {"loss.pair": "logistic(smoothing=0.3)"},
    "flips/forward, known 0.3": flipped | {"loss.pair": "noisy_logistic(rate=0.3)"},
    "flips/forward, learned": flipped | {"loss.pair": "learned_noise"},
    "flips/unbiased, known 0.3": flipped | {"loss.pair": "unbiased_logistic(rate=0.3)"},
    "ensemble/initialisation": ensemble | {"model.bootstrap": False},
    "ensemble/bootstrap": ensemble,
  }
