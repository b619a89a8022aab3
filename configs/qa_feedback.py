"""SmolLM2-135M on QA-Feedback (Wu et al. 2023): four answers a question, compared with ties.

  python -m experiments.train --config=configs/qa_feedback.py --workdir=runs/qa \\
    --config.data.train=PATH

PATH is a folder of the data set's files, as published. People compared the answers in pairs: 13 %
of the comparisons are ties, and the comparisons of 22 of 500 questions fit no order of the answers.
So the loss is Davidson's (1970), which works on single comparisons and learns how often people call
a tie. The passages that belong to a question are part of the prompt, which is computed once for its
four answers.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.layers = 16  # of 30
  c.model.frozen_layers = 12  # run once over the data; their output is kept in memory
  c.data.heldout = "0.2"
  c.data.batch_groups = 16
  # Tokens; no prompt with an answer is longer. A prompt that is cut is not shared by its answers.
  c.data.max_length = 1536
  c.data.cells = 8192
  c.loss.ranking = "davidson"
  c.optimizer.learning_rate = 1e-4
  c.train.epochs = 2.0
  c.train.log_every = 5
  return c
