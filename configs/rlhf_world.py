"""RLHF on the generated world, whose true reward is known: does the policy over-optimise its proxy?

  python -m experiments.rlhf --config=configs/rlhf_world.py --workdir=runs/rlhf

runs one chain: a decoder of two layers is fine-tuned on responses of mixed quality, writes pairs
that the world judges, a decoder of one layer learns a reward from these (the proxy), and the policy
is optimised against it by PPO without a KL term. The true reward is watched and not used.

  python -m experiments.rlhf --config=configs/rlhf_world.py --workdir=runs/rlhf_study --study

runs the settings of `sweep()` with `SEEDS` seeds each; fine-tuning, preferences and reward models
of a seed are shared among them. Gao, Schulman and Hilton (2023), "Scaling Laws for Reward Model
Overoptimization". In this world the true reward depends most on a response's layout and tone, which
so small a decoder learns to write and to judge; see configs/loss_ablation.py.
"""

from pathlib import Path

import ml_collections

from configs import rlhf

# Seeds of each setting: of a group, or of one setting.
SEEDS = {"ppo": 3, "ppo/no KL": 5, "ppo/KL 0.05": 5, "others": 3, "others/dpo": 5, "guards": 3}


def get_config() -> ml_collections.ConfigDict:
  c = rlhf.get_config()
  decoder = str(Path(__file__).with_name("world_decoder.json"))
  for model in (c.policy, c.reward.run.model):
    model.config, model.tokenizer, model.chat_template = decoder, "world", "hh"
  c.world.fact_weight = 0.5
  c.world.name_weight = 0.5
  c.world.layout_weight = 1.5
  c.world.tone_weight = 1.5
  c.data.prompts = "world:4096"
  c.data.max_length = 128  # tokens: a prompt has about 50, a response about 25
  c.sampling.tokens = 48

  c.sft.texts = "world:12000"
  c.sft.epochs = 2.0
  c.sft.optimizer.learning_rate = 2e-3

  # The proxy: half the layers of the policy, and few pairs.
  c.preferences.pairs = 1000
  run = c.reward.run
  run.model.layers = 1
  run.data.max_length = 128
  run.data.row_lengths = (128,)
  run.data.cells = 8192
  run.data.batch_groups = 32
  run.data.heldout = "0.1"
  run.optimizer.learning_rate = 1e-3
  run.train.epochs = 6.0
  run.train.eval_every = 1_000_000  # steps: only before the first step and at the end

  c.dpo.data.max_length = 128
  c.dpo.data.row_lengths = (128,)
  c.dpo.data.cells = 8192
  c.dpo.data.batch_groups = 32
  c.dpo.optimizer.learning_rate = 3e-4
  c.dpo.train.epochs = 6.0
  c.dpo.train.eval_every = 1_000_000
  c.dpo.train.checkpoint_every = 20  # steps; each checkpoint is a point of the report

  c.method = "ppo"
  c.rl.turns = 120
  c.rl.prompts = 32
  c.rl.samples = 4
  c.rl.epochs = 2
  c.rl.minibatch = 16
  c.rl.coefficient = 0.0
  c.rl.eval_every = 5  # turns
  c.rl.cells = 8192
  c.optimizer.learning_rate = 1e-4
  c.optimizer.schedule = "constant"
  c.optimizer.warmup_steps = 10
  return c


def sweep() -> dict[str, dict]:
  """{group/setting: {field: value}}; the other settings of a group are compared with its first."""
  return {
    "ppo/no KL": {},
    "ppo/KL 0.02": {"rl.coefficient": 0.02},
    "ppo/KL 0.05": {"rl.coefficient": 0.05},
    "ppo/KL 0.2": {"rl.coefficient": 0.2},
    "others/grpo": {"method": "grpo"},
    "others/rloo": {"method": "rloo"},
    "others/dpo": {"method": "dpo"},
    "others/best of n": {"method": "best_of_n", "best_of_n.samples": 256},
    # Each guard alone, on PPO without a KL term.
    "guards/none": {},
    "guards/ensemble": {"reward.members": 4, "shaping": "lower(deviations=1.0)"},
    "guards/centering": {"reward.run.loss.centering": 0.01},
    "guards/length decorrelation": {"shaping": "decorrelate"},
    "guards/clip": {"shaping": "normalise, clip(low=-1, high=1)"},
    "guards/filters": {"shaping": "filters"},
    "guards/stop rule": {"stop.acts": True},
  }
