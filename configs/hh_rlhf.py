"""SmolLM2-135M on Anthropic's HH-RLHF (Bai et al. 2022): pairs of dialogues, chosen and rejected.

  python -m experiments.train --config=configs/hh_rlhf.py --workdir=runs/hh

takes the data from the hub; --config.data.train=PATH takes them from a folder of its files. A fifth
of the conversations (identified by their first human turn) is held out, and a tenth of the others
is validation data.

What people judge by helpfulness and what by harmlessness contradict one another, so that each has a
head of its own, and a gate reads from the prompt how much each of them counts.

With the test files as the data, seeds 0, 1 and 2, each with a split of its own: held-out accuracy
0.626, 0.622 and 0.628, mean 0.625 [0.619, 0.632], on about 1,700 pairs, of which the rule "the
longer response" has 0.523 to 0.530; harmless-base 0.652 [0.646, 0.658], helpful-base 0.644 [0.602,
0.686], helpful-online 0.557 [0.439, 0.674], helpful-rejection-sampled 0.617 [0.591, 0.643]. 84 to
87 minutes on one core that has bfloat16 instructions, beside other runs; 5.5 to 5.6 GiB.

The last checkpoint is the one that counts. The scores become more certain than they are right: the
validation loss of seed 1 is least after 64 of 380 steps (0.653; 0.659 at the end), where the
accuracy is 0.602 (0.635 at the end). A temperature fitted afterwards lowers the loss and leaves the
accuracy as it is.

The sizes are chosen for the 8,552 pairs of the test files on two cores: the lowest 20 of SmolLM2's
30 layers, of which the lowest 14 are frozen and run only once, and 256 tokens. On an accelerator
train all layers, on all of the data, of their full length:

  --config.model.layers=0 --config.model.frozen_layers=0 --config.data.max_length=1024
"""

import ml_collections

from configs import base

_PARTS = [
  f"sources.{part}.test"  # of a folder with files such as harmless-base.test.jsonl.gz
  for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
]
MEASURES = (
  "accuracy",
  "validation.accuracy",
  "validation.loss",
  *(f"{part}.accuracy" for part in _PARTS),
  *(f"{part}.best_length_rule.difference" for part in _PARTS),
  "train.wall_seconds",
  "train.peak_memory_bytes",
)


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.chat_template = "hh"  # renders dialogues as they are published, with any tokenizer
  c.model.layers = 20  # of 30
  # Run once over the data; their output is kept in memory.
  c.model.frozen_layers = 14
  c.model.attributes = ("helpful", "harmless")
  c.model.gate = True
  # 27 % of the pairs are about harmlessness: as if half of them were.
  c.model.mix = (0.27, 0.73)
  c.model.gate_trains = 0.2
  c.model.dtype = "bfloat16"
  c.data.train = "Anthropic/hh-rlhf"
  c.data.objectives = "*harmless*=harmless,*=helpful"
  c.data.heldout = "0.2"
  c.data.validation = 0.1
  c.data.batch_groups = 32
  c.data.max_length = 256
  c.data.cells = 2048  # tokens of a micro-batch: smaller ones stay in a CPU's cache
  c.optimizer.learning_rate = 1e-4
  # Multiples of the learning rate: of the new head's output layer, and of the gate.
  c.optimizer.head_rate = 20.0
  c.optimizer.mix_rate = 50.0
  c.train.epochs = 2.0
  c.train.log_every = 8
  c.train.eval_every = 64
  return c


SPLIT_BY_SEED = True  # each seed holds out other conversations


def sweep() -> dict[str, dict]:
  """The recipe itself, for --seeds=3."""
  return {"two heads and a gate": {}}
