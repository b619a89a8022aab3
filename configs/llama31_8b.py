r"""Llama-3.1-8B on HH-RLHF. Planned for eight chips of v5p.

  python -m experiments.plan --config=configs/llama31_8b.py --topology=v5p:2x2x2 --mesh=fsdp=8 \
    --output=plan.json

The plan (compiled by libtpu 0.0.42) needs 17.3 of a chip's 95.7 GiB of memory. By its roofline, a
lower bound of the time, a step of 524,288 tokens takes 8.37 s (MFU 74 %) and the run 1.5 hours; the
limit is compute.
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "meta-llama/Llama-3.1-8B-Instruct"
  c.model.config = "configs/architectures/llama3.1_8b.json"
  return c
