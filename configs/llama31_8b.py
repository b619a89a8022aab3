"""Llama-3.1-8B on HH-RLHF. Pod plan: eight chips of v5p.

  python -m experiments.plan --config=configs/llama31_8b.py --topology=v5p:2x2x2 --mesh=fsdp=8 \\
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
