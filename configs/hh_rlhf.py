"""SmolLM2-135M on Anthropic's HH-RLHF (Bai et al. 2022): pairs of dialogues, chosen and rejected.

  python -m experiments.train --config=configs/hh_rlhf.py --workdir=runs/hh

takes the data from the hub; --config.data.train=PATH takes them from a folder of its files. A fifth
of the conversations (identified by their first human turn) is held out.

With the test files as the data, on two cores, seed 0: held-out accuracy 0.571 [0.548, 0.595] on
1,689 pairs, where the rule "the longer response" has 0.523; 52 minutes of wall time, 83 minutes of
CPU time.

The size of the model is chosen for the 8,552 pairs of the test files on two cores: the lowest 20 of
SmolLM2's 30 layers, of which the lowest 14 are frozen and run only once. On an accelerator train
all layers, on all of the data:

  --config.model.layers=0 --config.model.frozen_layers=0 --config.model.dtype=bfloat16
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.chat_template = "hh"  # renders dialogues as they are published, with any tokenizer
  c.model.layers = 20  # of 30
  # Run once over the data; their output, 5.6 GiB for the test files, is kept in memory.
  c.model.frozen_layers = 14
  c.data.train = "Anthropic/hh-rlhf"
  c.data.heldout = "0.2"
  c.data.batch_groups = 32
  c.data.max_length = 512
  c.data.cells = 8192  # tokens of a micro-batch: smaller ones stay in a CPU's cache
  c.optimizer.learning_rate = 1e-4
  c.train.epochs = 1.0
  c.train.log_every = 5
  return c
