"""What the configs for TPU pods share: HH-RLHF's pairs, bfloat16 compute, about one epoch.

This one is no experiment of its own: it names no model. Weights (unless a config sets
model.lora.base_dtype), the optimiser's moments and gradients are float32; rematerialisation is
full, so that of each layer only its input is kept for the backward pass. Each config that begins
with this one says for which chips it is planned, and the command that makes the plan.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  c = base.get_config()
  c.model.dtype = "bfloat16"
  c.model.remat = "full"
  c.model.chat_template = "hh"  # renders dialogues as they are published, with any tokenizer
  c.data.train = "Anthropic/hh-rlhf"
  c.data.heldout = "0.02"
  c.data.batch_groups = 256
  c.data.max_length = 2048  # tokens of one prompt + response
  c.data.cells = 2048  # tokens of a micro-batch on each device
  c.optimizer.learning_rate = 5e-6
  c.optimizer.weight_decay = 0.1
  c.train.steps = 628  # 160,768 pairs, about one epoch
  c.optimizer.decay_steps = 628
  c.optimizer.warmup_steps = 20
  c.mesh.data = 1
  c.mesh.fsdp = -1  # all devices
  return c
