"""Speed of training and scoring on this machine, in steps of 16 groups, such as pairs.

A prompt with one response has at most 512 tokens.
The command is in experiments/benchmark.py. Any model and any data can be given; the weights are
random where model.config is given without model.pretrained.
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
    # Layouts to measure: 'padded' (one pair in a row), 'packed' (several pairs), 'packed_shared'
    # (several pairs, and each prompt is computed once for all its responses; decoders only).
    c.benchmark.modes = ("padded", "packed", "packed_shared")
    # The layouts take turns: one turn of each, then the next turn of each, and so on.
    c.benchmark.steps = 8  # training steps in a turn
    c.benchmark.turns = 5  # of each layout
  return c
