"""Qwen3-8B with adapters of rank 16 on HH-RLHF. Pod plan: sixteen chips of v5e.

  python -m experiments.plan --config=configs/qwen3_8b_lora.py --topology=v5e:4x4 --mesh=fsdp=16 \\
    --output=plan.json

Its figures (libtpu 0.0.42): 3.9 GiB of a chip's 15.8; at best 7.44 s a
step of 524,288 tokens, MFU 66%, 1.3 hours; bound by compute.
"""

import ml_collections

from configs import qwen3_8b


def get_config() -> ml_collections.ConfigDict:
  c = qwen3_8b.get_config()
  c.model.lora.rank = 16
  c.model.lora.base_dtype = "bfloat16"  # the backbone, which stays as it is
  c.optimizer.learning_rate = 1e-4
  c.optimizer.weight_decay = 0.0
  return c
