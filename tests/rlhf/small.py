"""Toy chains: a one-layer policy on the world's words, that takes seconds."""

from pathlib import Path

from configs import rlhf
from rm_jax.storage.files import write_json
from tests.conftest import LLAMA

TINY = LLAMA | {
  "vocab_size": 640,
  "num_hidden_layers": 1,
  "tie_word_embeddings": True,
  "architectures": ["LlamaForCausalLM"],
}


def config_of(folder: Path, method: str = "grpo", **changes):
  """A chain's config at toy size; `changes` are fields by their paths, with '__' for '.'."""
  path = folder / "tiny.json"
  if not path.exists():
    write_json(path, TINY)
  c = rlhf.get_config()
  c.method = method
  for model in (c.policy, c.reward.run.model, c.dpo.model):
    model.config, model.tokenizer, model.chat_template = str(path), "world", "hh"
  c.data.prompts, c.data.evaluation, c.data.evaluation_samples = "world:16", 12, 2
  c.data.max_length = 128
  c.sft.texts, c.sft.epochs, c.sft.heldout, c.sft.checkpoint_every = "world:48", 2.0, 8, 2
  c.sft.batch, c.sft.log_every = 16, 2
  c.sft.optimizer.learning_rate = 3e-3
  c.preferences.pairs = 24
  c.sampling.tokens = 8
  for run in (c.reward.run, c.dpo):
    run.data.cache, run.data.max_length, run.data.cells, run.data.shapes = "none", 128, 1024, 1
    run.data.batch_groups, run.data.heldout = 8, "0.25"
    run.train.steps, run.optimizer.learning_rate = 3, 1e-3
  c.reward.run.train.log_every = 1
  c.dpo.train.checkpoint_every = 1
  c.best_of_n.samples = 8
  c.rl.turns, c.rl.prompts, c.rl.samples = 4, 4, 4
  c.rl.eval_every, c.rl.checkpoint_every, c.rl.cells = 2, 1, 2048
  c.rl.texts_every = 2
  c.optimizer.learning_rate, c.optimizer.schedule = 3e-3, "constant"
  c.update_from_flattened_dict({name.replace("__", "."): x for name, x in changes.items()})
  return c
