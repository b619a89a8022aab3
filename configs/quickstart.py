"""A reward model within minutes on two cores: SmolLM2-135M on pairs of the generated world."""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.layers = 16
  c.model.frozen_layers = 12
  c.data.train = "world:1000"
  c.data.heldout = "world:500"
  c.data.batch_groups = 16
  c.optimizer.learning_rate = 3e-4
  c.train.epochs = 3.0
  return c
