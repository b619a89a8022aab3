"""Qwen3-8B on HH-RLHF. Pod plan: a whole pod of v5e.

  python -m experiments.plan --config=configs/qwen3_8b.py --topology=v5e:16x16 --mesh=fsdp=256 \\
    --output=plan.json

Its figures (libtpu 0.0.42): 2.5 GiB of a chip's 15.8; at best 0.61 s a
step of 524,288 tokens, MFU 74%, 0.1 hours; bound by compute.
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "Qwen/Qwen3-8B"
  c.model.config = "configs/architectures/qwen3_8b.json"
  return c
