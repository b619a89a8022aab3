r"""Qwen3-8B with LoRA adapters of rank 16 on HH-RLHF. Planned for 16 chips of v5e.

  python -m experiments.plan --config=configs/qwen3_8b_lora.py --topology=v5e:4x4 --mesh=fsdp=16 \
    --output=plan.json

The plan (compiled by libtpu 0.0.42) needs 3.8 of a chip's 15.8 GiB of memory. By its roofline, a
lower bound of the time, a step of 524,288 tokens takes 7.44 s (MFU 66 %) and the run 1.3 hours; the
limit is compute.
"""

import ml_collections

from configs import qwen3_8b


def get_config() -> ml_collections.ConfigDict:
  c = qwen3_8b.get_config()
  c.model.lora.rank = 16
  c.model.lora.base_dtype = "bfloat16"  # of the backbone, which is not trained
  c.optimizer.learning_rate = 1e-4
  c.optimizer.weight_decay = 0.0
  return c
