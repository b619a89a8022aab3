"""DPO on Anthropic's HH-RLHF: SmolLM2-135M's own likelihoods as the reward.

  python -m experiments.train --config=configs/dpo_hh.py --workdir=runs/dpo_hh

The data, the split and the template are those of configs/hh_rlhf.py, which trains two heads and a
gate; here there is one reward. An implicit reward needs the language-model head and so all 30
layers: the lowest 24 are frozen and run once over the data. The reference is the model before its
first step. On an accelerator train all layers:

  --config.model.frozen_layers=0 --config.model.dtype=bfloat16
"""

import ml_collections

from configs import dpo_world, hh_rlhf


def get_config() -> ml_collections.ConfigDict:
  c = dpo_world.implicit(hh_rlhf.get_config())
  c.model.attributes, c.model.gate, c.model.mix = (), False, ()
  c.model.dtype = "float32"  # log-likelihoods are sums over many tokens
  c.model.gate_trains, c.optimizer.head_rate = 0.0, 1.0
  c.data.objectives, c.optimizer.mix_rate = "", 0.0
  return c
