"""How fast training and scoring are here: python -m experiments.benchmark (see there).

Any model and data will do; weights are random where only model.config is given. Steps of 16 pairs
of at most 512 tokens.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.data.heldout = "0"
  c.data.batch_groups = 16
  c.data.max_length = 512  # tokens
  c.data.cells = 8192
  c.data.shapes = 8
  c.optimizer.learning_rate = 1e-4
  with c.unlocked():
    c.benchmark = ml_collections.ConfigDict()
    # Layouts: 'padded' (a pair a row), 'packed', 'packed_shared' (prompts once; decoders only).
    c.benchmark.modes = ("padded", "packed", "packed_shared")
    c.benchmark.steps = 8  # training steps of a turn
    c.benchmark.turns = 5  # of each layout, one after another
  return c
