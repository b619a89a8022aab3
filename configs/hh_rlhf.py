"""SmolLM2-135M on Anthropic's HH-RLHF (Bai et al. 2022): pairs of dialogues, chosen and rejected.

  python -m experiments.train --config=configs/hh_rlhf.py --workdir=runs/hh

takes the data from the hub; --config.data.train=PATH from a folder of its files. A fifth of the
conversations (by their first human turn) is held out.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.model.chat_template = "hh"  # the text as published, for any tokenizer
  c.data.train = "Anthropic/hh-rlhf"
  c.data.heldout = "0.2"
  c.data.batch_groups = 64
  c.data.max_length = 512
  c.optimizer.learning_rate = 5e-5
  c.train.epochs = 1.0
  c.train.log_every = 5
  return c
