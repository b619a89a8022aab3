r"""SmolLM2-135M as a process reward model on PRM800K (Lightman et al. 2023).

  python -m experiments.train --config=configs/prm800k.py --workdir=runs/prm \
    --config.data.train=PATH

PATH is a file of rows {question, steps, labels}, whose labels are positive, neutral or negative.
The split is by question. The held-out report has the AUROC of the step labels, and how often the
first error is found, beside three rules that read no text: the last step, no error, a random step.
"""

import ml_collections

from configs import base

MEASURES = (
  "validation.auroc",
  "auroc.value",
  "first_error.accuracy",
  "train.wall_seconds",
  "train.peak_memory_bytes",
)


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.layers = 16  # of 30
  c.model.frozen_layers = 12  # run once over the data; their output is kept in memory
  c.data.heldout = "0.2"
  c.data.deduplicate = True  # some solutions are two or three times in the file
  c.data.batch_groups = 16
  c.data.max_length = 1024
  c.data.cells = 8192
  c.optimizer.learning_rate = 1e-4
  c.train.epochs = 2.0
  c.train.log_every = 5
  return c


def sweep() -> dict[str, dict]:
  """{group/setting: {field: value}}; the other settings of a group are compared with its first."""
  aside = {"data.validation": 0.15, "train.best": "auroc", "train.eval_every": 15}
  # On a CPU with bfloat16 instructions a step takes less time so.
  aside |= {"model.dtype": "bfloat16", "data.cells": 2048}
  settings = {
    # Settings with the same frozen layers stand together: these are run once for all of them.
    "rate/1e-4": {},
    "rate/3e-4": {"optimizer.learning_rate": 3e-4},
    "rate/20 times for the head": {"optimizer.head_rate": 20.0},
    "pooling/last token": {},
    "pooling/mean of the step": {"model.pooling": "mean"},
    "epochs/2": {},
    "epochs/4": {"train.epochs": 4.0},
    "data/100 %": {},
    "data/50 %": {"data.fraction": 0.5},
    "data/25 %": {"data.fraction": 0.25},
    "backbone/SmolLM2 4 of 16 layers": {},
    "backbone/SmolLM2 6 of 20 layers": {"model.layers": 20, "model.frozen_layers": 14},
  }
  return {name: aside | changes for name, changes in settings.items()}
