"""DPO on pairs of the generated world: SmolLM2-135M's own likelihoods as the reward.

  python -m experiments.train --config=configs/dpo_world.py --workdir=runs/dpo_world

The data and their judges are those of configs/quickstart.py, which trains a head on the lowest 14
layers. An implicit reward needs the language-model head and so all 30 layers: the lowest 24 are
frozen and run once over the data. The reference is the model before its first step.
"""

import ml_collections

from configs import quickstart


def implicit(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with SmolLM2-135M's likelihoods in place of a head."""
  c.model.reward = "implicit"
  c.model.layers = 0  # all 30
  c.model.frozen_layers = 24
  c.optimizer.learning_rate = 1e-4
  return c


def get_config() -> ml_collections.ConfigDict:
  return implicit(quickstart.get_config())
