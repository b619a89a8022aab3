r"""Llama-3.1-70B on HH-RLHF. Planned for 32 chips of v5p; it fits on 16.

  python -m experiments.plan --config=configs/llama31_70b.py --topology=v5p:2x4x4 --mesh=fsdp=32 \
    --output=plan.json

The plan (compiled by libtpu 0.0.42) needs 42.7 of a chip's 95.7 GiB of memory. By its roofline, a
lower bound of the time, a step of 524,288 tokens takes 20.07 s (MFU 74 %) and the run 3.5 hours;
the limit is compute. On 16 chips (v5p:2x2x4, fsdp=16) it needs 79.1 GiB of a chip and 40.14 s for a
step.
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "meta-llama/Llama-3.1-70B-Instruct"
  c.model.config = "configs/architectures/llama3.1_70b.json"
  c.optimizer.learning_rate = 2e-6
  return c
