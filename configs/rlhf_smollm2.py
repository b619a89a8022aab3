"""RLHF of SmolLM2-135M on prompts of your own, against a reward model that is there.

  python -m experiments.rlhf --config=configs/rlhf_smollm2.py --workdir=runs/rlhf_own \
    --config.data.prompts=prompts.jsonl --config.reward.model=runs/hh

The policy is SmolLM2-135M-Instruct, of whose 30 layers the lowest 20 and the embedding are frozen,
and so is the language-model head, which is the embedding. `reward.model` may also be several
folders, separated by commas, or the URL of a server; `reward.gold` another folder that is watched
beside it. Sampling takes most of a turn on a CPU, and the first turn compiles.
"""

import ml_collections

from configs import rlhf


def get_config() -> ml_collections.ConfigDict:
  c = rlhf.get_config()
  c.policy.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
  c.policy.frozen_layers = 20
  c.data.evaluation = 24
  c.data.evaluation_samples = 1
  c.data.max_length = 384  # tokens
  c.sampling.tokens = 48
  c.rules.unfinished = "keep"  # 48 tokens are too few for many answers to end
  c.rules.empty = -5.0  # below what a reward model of answers gives to almost any text
  c.method = "grpo"
  c.rl.turns = 20
  c.rl.prompts = 8
  c.rl.samples = 4
  c.rl.coefficient = 0.05
  c.rl.eval_every = 5
  c.rl.checkpoint_every = 5
  c.rl.texts_every = 5
  c.rl.cells = 2048
  c.optimizer.learning_rate = 2e-5
  c.optimizer.schedule = "constant"
  c.optimizer.warmup_steps = 2
  return c
