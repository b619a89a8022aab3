"""SmolLM2-135M on Anthropic's HH-RLHF (Bai et al. 2022): pairs of dialogues, chosen and rejected.

  python -m experiments.train --config=configs/hh_rlhf.py --workdir=runs/hh

takes the data from the hub; --config.data.train=PATH takes them from a folder of its files. A fifth
of the conversations (identified by their first human turn) is held out, and a tenth of the others
chooses the checkpoint.

What people judge by helpfulness and what by harmlessness contradict one another, so that each has a
head of its own, and a gate reads from the prompt how much each of them counts.

With the test files as the data, seed 0: held-out accuracy 0.626 [0.603, 0.649] on 1,689 pairs,
where the rule "the longer response" has 0.523; 0.654 [0.610, 0.698] on harmless-base; 84 minutes on
one core that has bfloat16 instructions, beside other runs on a second core.

The sizes are chosen for the 8,552 pairs of the test files on two cores: the lowest 20 of SmolLM2's
30 layers, of which the lowest 14 are frozen and run only once, and 256 tokens. On an accelerator
train all layers, on all of the data, of their full length:

  --config.model.layers=0 --config.model.frozen_layers=0 --config.data.max_length=1024
"""

import ml_collections

from configs import base


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
  c.train.best = "loss"
  return c


SPLIT_BY_SEED = True  # each seed holds out other conversations


def sweep() -> dict[str, dict]:
  """The recipe itself, for --seeds=3."""
  return {"two heads and a gate": {}}
