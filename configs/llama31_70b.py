"""Llama-3.1-70B on HH-RLHF. Pod plan: 32 chips of v5p; 16 are the least that hold it.

  python -m experiments.plan --config=configs/llama31_70b.py --topology=v5p:2x4x4 --mesh=fsdp=32 \\
    --output=plan.json

Its figures (libtpu 0.0.42): 42.7 GiB of a chip's 95.7; at best 20.07 s a
step of 524,288 tokens, MFU 74%, 3.5 hours; bound by compute. Of 16 chips
(v5p:2x2x4, fsdp=16): 79.1 GiB, 40.14 s.
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "meta-llama/Llama-3.1-70B-Instruct"
  c.model.config = "configs/architectures/llama3.1_70b.json"
  c.optimizer.learning_rate = 2e-6
  return c
