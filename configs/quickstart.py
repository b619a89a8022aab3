"""A reward model within minutes on two cores: SmolLM2-135M on pairs of the generated world."""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.chat_template = "hh"  # a third of the tokens that the model's own template adds
  c.model.layers = 14
  c.model.frozen_layers = 11
  c.data.train = "world:1000"
  c.data.heldout = "world:500"
  c.data.world.confusion = 0.25
  c.data.world.name_weight = 1.5
  c.data.world.layout_weight = 0.5
  c.data.batch_groups = 16
  c.optimizer.learning_rate = 3e-4
  c.train.epochs = 1.5
  c.train.eval_every = 47
  return c
