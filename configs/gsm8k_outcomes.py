r"""SmolLM2-135M as an outcome verifier on GSM8K's model solutions (Cobbe et al. 2021).

  python -m experiments.train --config=configs/gsm8k_outcomes.py --workdir=runs/gsm8k \
    --config.data.train=PATH

PATH is the file of example model solutions, as published: four systems' solutions of each question,
right or wrong, which are read in a random order that the question determines. The held-out report
has the accuracy of best-of-4 beside that of a random pick (over all questions 0.379), of the
oracle, which picks a right solution if there is one (0.672), and of always picking the solution of
the best system (0.563).
"""

import ml_collections

from configs import base

MEASURES = (
  "validation.best_of.pairs.accuracy",
  "validation.auroc",
  "auroc.value",
  "best_of.pairs.accuracy",
  "best_of.accuracy",
  "train.wall_seconds",
  "train.peak_memory_bytes",
)


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.layers = 20  # of 30
  c.model.frozen_layers = 14  # run once over the data; their output is kept in memory
  c.data.heldout = "0.2"
  c.data.batch_groups = 16
  c.data.max_length = 512
  c.data.cells = 8192
  c.optimizer.learning_rate = 1e-4
  c.train.epochs = 2.0
  c.train.log_every = 5
  return c


def sweep() -> dict[str, dict]:
  """{group/setting: {field: value}}; the other settings of a group are compared with its first."""
  aside = {"data.validation": 0.15, "train.best": "best_of.pairs.accuracy", "train.eval_every": 20}
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
    "loss/bce": {},
    "loss/logistic within a question": {"loss.outcome": "logistic"},
    "loss/listnet within a question": {"loss.outcome": "listnet"},
    "rate/1e-4": {},
    "rate/3e-4": {"optimizer.learning_rate": 3e-4},
    "rate/20 times for the head": {"optimizer.head_rate": 20.0},
    "epochs/2": {},
    "epochs/4": {"train.epochs": 4.0},
    "data/100 %": {},
    "data/50 %": {"data.fraction": 0.5},
    "data/25 %": {"data.fraction": 0.25},
    "backbone/SmolLM2 6 of 20 layers": {},
    "backbone/MiniLM": mini,
  }
  return {name: aside | changes for name, changes in settings.items()}
