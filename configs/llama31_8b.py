"""Llama-3.1-8B on HH-RLHF. Planned for eight chips of v5p.

  python -m experiments.plan --config=configs/llama31_8b.py --topology=v5p:2x2x2 --mesh=fsdp=8 \\
    --output=plan.json

The plan (libtpu 0.0.42): 17.3 of a chip's 95.7 GiB; at best 8.37 s for a step of 524,288 tokens
(MFU 74 %) and 1.5 hours for the run; bound by compute.
"""

import ml_collections

from configs import pod


def get_config() -> ml_collections.ConfigDict:
  c = pod.get_config()
  c.model.pretrained = "meta-llama/Llama-3.1-8B-Instruct"
  c.model.config = "configs/architectures/llama3.1_8b.json"
  return c
