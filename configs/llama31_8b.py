"""Llama-3.1-8B on HH-RLHF. Pod plan: 64 chips of v5e.

  python -m experiments.plan --config=configs/llama31_8b.py --topology=v5e:8x8 --mesh=fsdp=64 \\
    --output=plan.json

FIGURES
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "meta-llama/Llama-3.1-8B-Instruct"
  c.model.config = "configs/architectures/llama3.1_8b.json"
  return c
