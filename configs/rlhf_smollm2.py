r"""RLHF of SmolLM2-135M on prompts of your own, or a whole chain of it on the generated world.

  python -m experiments.rlhf --config=configs/rlhf_smollm2.py --workdir=runs/rlhf_own \
    --config.data.prompts=prompts.jsonl --config.reward.model=runs/hh

optimises the policy against a reward model that is there. `reward.model` may also be several
folders, separated by commas, or the URL of a server; `reward.gold` another folder that is watched
beside it.

  python -m experiments.rlhf --config=configs/rlhf_smollm2.py:world --workdir=runs/rlhf_smollm2

is fine-tuning on the generated world, 500 pairs of the policy's own responses, a reward model from
the lowest 14 layers of the same weights, and 60 turns of GRPO, whose truth is known.

The policy is SmolLM2-135M-Instruct, of whose 30 layers the lowest 20 and the embedding are frozen,
and so is the language-model head, which is the embedding. Sampling takes most of a turn on a CPU,
and the first turn compiles.
"""

import ml_collections

from configs import rlhf
from rm_jax.errors import InputError

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def get_config(prompts: str = "") -> ml_collections.ConfigDict:
  """The config: 'world' = the chain on the generated world; '' = prompts of your own."""
  c = rlhf.get_config()
  c.policy.pretrained = MODEL
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
  if prompts == "world":
    _world(c)
  elif prompts:
    raise InputError(
      f"configs/rlhf_smollm2.py:{prompts}: found {prompts!r} behind the ':'; expected 'world' or "
      "nothing; prompts of your own are --config.data.prompts=FILE"
    )
  return c


def _world(c: ml_collections.ConfigDict) -> None:
  """Changes the config to the whole chain on the generated world."""
  c.data.prompts = "world:1000"
  c.data.evaluation = 48
  c.data.max_length = 192
  c.sft.texts = "world:1000"
  c.sft.optimizer.learning_rate = 1e-4
  c.policy.chat_template = "hh"  # shorter than the model's own, as in configs/quickstart.py
  c.preferences.pairs = 500
  c.preferences.samples = 2  # of so large a policy two are hardly ever the same
  run = c.reward.run
  run.model.pretrained = MODEL
  run.model.chat_template = "hh"
  run.model.layers = 14
  run.model.frozen_layers = 10  # run once over the data; the four above are trained
  run.data.heldout = "0.1"
  run.data.max_length = 192
  run.data.batch_groups = 16
  run.optimizer.learning_rate = 4e-4
  run.train.epochs = 3.0
  run.train.eval_every = 1_000_000  # steps: only before the first step and at the end
  c.rl.turns = 60
  c.rl.eval_every = 10
  c.rl.checkpoint_every = 10
  c.rl.texts_every = 10
