"""SmolLM2-135M on QA-Feedback (Wu et al. 2023): four answers a question, compared with ties.

  python -m experiments.train --config=configs/qa_feedback.py --workdir=runs/qa \\
    --config.data.train=PATH

PATH is a folder of its files, as published. What people observed are comparisons, 13 % of them
ties, and 22 of 500 questions fit no order: so the loss is Davidson's (1970), which learns how often
people tie, on the comparisons themselves. A question's passages are stored once for its four
answers.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.layers = 16  # of 30
  c.model.frozen_layers = 12  # their output is kept
  c.data.heldout = "0.2"
  c.data.batch_groups = 16
  c.data.max_length = 1536  # tokens: none is cut, since answers whose prompts are cut share nothing
  c.data.cells = 8192
  c.loss.ranking = "davidson"
  c.optimizer.learning_rate = 1e-4
  c.train.epochs = 2.0
  c.train.log_every = 5
  return c
