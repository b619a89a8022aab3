"""Qwen3-8B on HH-RLHF. Pod plan: a whole pod of v5e.

  python -m experiments.plan --config=configs/qwen3_8b.py --topology=v5e:16x16 --mesh=fsdp=256 \\
    --output=plan.json

FIGURES
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "Qwen/Qwen3-8B"
  c.model.config = "configs/architectures/qwen3_8b.json"
  return c
