"""SmolLM2-135M as an outcome verifier on GSM8K's model solutions (Cobbe et al. 2021).

  python -m experiments.train --config=configs/gsm8k_outcomes.py --workdir=runs/gsm8k \\
    --config.data.train=PATH

PATH is the file of example model solutions, as published: four solutions of each question, right or
wrong, which are read in an order drawn from the question. The held-out report has best-of-4 beside
a random pick (right in 0.379 of all questions) and the oracle (0.672); always the best of the four
systems is right in 0.563.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.layers = 20  # of 30
  c.model.frozen_layers = 14  # run once; their output is kept in memory
  c.data.heldout = "0.2"
  c.data.batch_groups = 16
  c.data.max_length = 512
  c.data.cells = 8192
  c.optimizer.learning_rate = 1e-4
  c.train.epochs = 2.0
  c.train.log_every = 5
  return c
