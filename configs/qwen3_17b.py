r"""Qwen3-1.7B on HH-RLHF. Planned for four chips of v5p.

  python -m experiments.plan --config=configs/qwen3_17b.py --topology=v5p:2x2x1 --mesh=fsdp=4 \
    --output=plan.json

The plan (compiled by libtpu 0.0.42) needs 7.9 of a chip's 95.7 GiB of memory. By its roofline, a
lower bound of the time, a step of 524,288 tokens takes 3.56 s (MFU 73 %) and the run 0.6 hours; the
limit is compute.
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "Qwen/Qwen3-1.7B"
  c.model.config = "configs/architectures/qwen3_1.7b.json"
  return c
