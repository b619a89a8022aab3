r"""Qwen3-0.6B on HH-RLHF. Planned for four chips of v5p.

  python -m experiments.plan --config=configs/qwen3_06b.py --topology=v5p:2x2x1 --mesh=fsdp=4 \
    --output=plan.json

The plan (compiled by libtpu 0.0.42) needs 2.9 of a chip's 95.7 GiB of memory. By its roofline, a
lower bound of the time, a step of 524,288 tokens takes 1.63 s (MFU 57 %) and the run 0.3 hours; the
limit is memory bandwidth.
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "Qwen/Qwen3-0.6B"
  c.model.config = "configs/architectures/qwen3_0.6b.json"
  return c
