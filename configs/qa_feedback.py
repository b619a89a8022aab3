r"""SmolLM2-135M on QA-Feedback (Wu et al. 2023): four answers a question, compared with ties.

  python -m experiments.train --config=configs/qa_feedback.py --workdir=runs/qa \
    --config.data.train=PATH

PATH is a folder of the data set's files, as published. People compared the answers in pairs: 13 %
of the comparisons are ties, and the comparisons of 22 of 500 questions fit no order of the answers.
So the loss is Davidson's (1970), which works on single comparisons and learns how often people call
a tie. The passages that belong to a question are part of the prompt, which is computed once for its
four answers.
"""

import ml_collections

from configs import base

MEASURES = (
  "validation.accuracy",
  "validation.loss",
  "accuracy",
  "kendall.value",
  "train.wall_seconds",
  "train.peak_memory_bytes",
)


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


def sweep() -> dict[str, dict]:
  """{group/setting: {field: value}}; the other settings of a group are compared with its first."""
  aside = {"data.validation": 0.15, "train.best": "loss", "train.eval_every": 10}
  # On a CPU with bfloat16 instructions a step takes less time so.
  aside |= {"model.dtype": "bfloat16", "data.cells": 2048}
  mini = {
    "model.pretrained": "sentence-transformers/all-MiniLM-L6-v2",
    "model.layers": 0,
    "model.frozen_layers": 0,
    "model.pooling": "mean",
    "data.max_length": 512,
    "optimizer.learning_rate": 2e-4,
  }
  settings = {
    # Settings with the same frozen layers stand together: these are run once for all of them.
    "rate/1e-4": {},
    "rate/3e-4": {"optimizer.learning_rate": 3e-4},
    "rate/20 times for the head": {"optimizer.head_rate": 20.0},
    "pooling/last token": {},
    "pooling/mean of the response": {"model.pooling": "mean"},
    "loss/davidson": {},
    "loss/logistic": {"loss.ranking": "logistic"},
    "epochs/2": {},
    "epochs/4": {"train.epochs": 4.0},
    "data/100 %": {},
    "data/50 %": {"data.fraction": 0.5},
    "data/25 %": {"data.fraction": 0.25},
    "backbone/SmolLM2 4 of 16 layers": {},
    "backbone/SmolLM2 6 of 20 layers": {"model.layers": 20, "model.frozen_layers": 14},
    "backbone/MiniLM": mini,
  }
  return {name: aside | changes for name, changes in settings.items()}
