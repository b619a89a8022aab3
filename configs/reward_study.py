r"""Where a reward is read from: a new head, the likelihood of the response, or a judge's verdict.

  python -m experiments.sweep --config=configs/reward_study.py --workdir=runs/reward_study --seeds=5

It asks two questions on the generated world, by groups of settings on the same backbone, data and
steps:
  pairs, rankings of 4: does a head or an implicit reward (DPO, and its listwise form) agree better
    with people? 500 rankings of four have as many responses as 1,000 pairs.
  50 pairs, 200 pairs, 1000 pairs: what does a head gain that begins as the model's own verdict?

  python -m experiments.sweep --config=configs/reward_study.py:PATH --workdir=runs/reward_study_hh \
    --only="pairs,50 pairs,200 pairs,1000 pairs" --config.data.shifted=OTHER \
    --measures=accuracy,loss,shift.report.accuracy

asks them of the first 2,000 pairs in a file, half of which are held out. OTHER is a second file.

Held out are lists of six responses in the words of the training data, whose 15 comparisons each are
pairs; `shift.report` is of such lists in words that occur in no training data. `gain` is what
choosing the response with the highest score gains in true reward over a random one.
"""

import ml_collections

from configs import base
from rm_jax.reward.verdict import WORDS, question_of

MEASURES = (
  "accuracy",
  "loss",
  "gain.value",
  "shift.report.accuracy",
  "shift.report.gain.value",
  "train.wall_seconds",
  "train.peak_memory_bytes",
)


def get_config(path: str = "") -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.frozen_layers = 24  # of 30, run once over the data
  c.data.train = path or "world:1000"
  c.data.limit = 2000 if path else 0
  c.data.heldout = "0.5" if path else "world:150:6(vocabulary='train')"
  c.data.shifted = "" if path else "world:150:6"
  c.data.batch_groups = 16
  c.data.max_length = 384
  c.data.cells = 8192
  c.optimizer.learning_rate = 2e-4
  c.train.epochs = 1.5
  return c


def sweep() -> dict[str, dict]:
  """{group/setting: {field: value}}; the other settings of a group are compared with its first."""
  implicit = {"model.reward": "implicit", "optimizer.learning_rate": 1e-4}
  lists = {"data.train": "world:500:4", "loss.ranking": "plackett_luce"}
  settings = {
    "pairs/head": {},
    "pairs/implicit": implicit,
    "rankings of 4/head": lists,
    "rankings of 4/implicit": lists | implicit,
  }
  starts = {
    "a new head": {},
    "the verdict": {"model.head_init": "verdict"},
    "a new head, asked": {"model.question": question_of("", WORDS)},
  }
  # Settings that read the same texts stand together: the frozen layers are run once for them.
  for start, changes in starts.items():
    for pairs in (50, 200, 1000):
      # The fewer the pairs, the more often each is seen.
      some = {"data.fraction": pairs / 1000, "train.epochs": min(1.5 * 1000 / pairs, 6.0)}
      settings[f"{pairs} pairs/{start}"] = some | changes
  return settings
