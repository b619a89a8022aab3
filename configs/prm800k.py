"""SmolLM2-135M as a process reward model on PRM800K (Lightman et al. 2023).

  python -m experiments.train --config=configs/prm800k.py --workdir=runs/prm \\
    --config.data.train=PATH

PATH is a file of {question, steps, labels}, labels positive, neutral or negative. Split by
question. The held-out report has the step labels' AUROC, and the place of the first error beside
the rules that read no text: the last step, no error, a random step.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.layers = 20  # of 30
  c.model.frozen_layers = 14  # their output is kept
  c.data.heldout = "0.2"
  c.data.deduplicate = True  # the file has solutions twice and thrice
  c.data.batch_groups = 16
  c.data.max_length = 1024
  c.data.cells = 8192
  c.optimizer.learning_rate = 1e-4
  c.train.epochs = 2.0
  c.train.log_every = 5
  return c
