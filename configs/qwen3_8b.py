r"""Qwen3-8B on HH-RLHF. Planned for a whole pod of v5e, 256 chips.

  python -m experiments.plan --config=configs/qwen3_8b.py --topology=v5e:16x16 --mesh=fsdp=256 \
    --output=plan.json

The plan (compiled by libtpu 0.0.42) needs 2.5 of a chip's 15.8 GiB of memory. By its roofline, a
lower bound of the time, a step of 524,288 tokens takes 0.61 s (MFU 74 %) and the run 0.1 hours; the
limit is compute.
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "Qwen/Qwen3-8B"
  c.model.config = "configs/architectures/qwen3_8b.json"
  return c
