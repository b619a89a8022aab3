"""A reward model within minutes on two cores: SmolLM2-135M on pairs of the generated world.

  python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

On two cores, with seed 0, it takes two to five minutes. Held-out accuracy is 0.777 [0.738, 0.818]
on 400 pairs; the true reward has 0.880, and the rule "the longer response" 0.578. Prompts of the
world (rm_jax/world) ask short questions about a note; responses differ in the fact they state, in
layout, in the name they address and in tone; judges choose by Bradley-Terry with a temperature, so
they err at times.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.chat_template = "hh"  # adds a third as many tokens as the model's own template would
  c.model.layers = 14  # of 30
  c.model.frozen_layers = 10  # run once over the data; the four above are trained
  c.data.train = "world:1000"
  c.data.heldout = "world:400"
  c.data.batch_groups = 16
  c.data.row_lengths = (192,)  # tokens: two pairs a row
  c.optimizer.learning_rate = 4e-4
  c.train.epochs = 1.5
  c.train.eval_every = 32
  return c
