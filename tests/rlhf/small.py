"""Toy chains: a one-layer policy on the world's words, that takes seconds."""

import json
from pathlib import Path

from flax.traverse_util import unflatten_dict

from configs import rlhf
from rm_jax.api import RewardModel
from rm_jax.models.config import HeadConfig, LikelihoodHead
from rm_jax.rlhf import policies
from rm_jax.storage.files import write_json
from tests.conftest import CHAT, LLAMA, decoder_tokenizer
from tests.policy.small import one_device, params_of, text_model

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


def own_folder(folder: Path) -> Path:
  """Fills a folder: a language model on bytes, two reward models, and prompts of both forms."""
  tokenizer = decoder_tokenizer()
  tokenizer.chat_template = CHAT
  model = text_model(tokenizer, LikelihoodHead(reference=False), num_hidden_layers=2)
  policy = policies.Policy(model)
  params = params_of(model.network, noise=0.02)
  loaded = policies.Loaded(policy, params, one_device())
  policies.save(loaded, unflatten_dict(params, sep="/"), folder / "lm")
  for name, seed in (("rm", 0), ("gold", 1)):
    reward = text_model(decoder_tokenizer(), HeadConfig(), num_hidden_layers=1)
    reward.tokenizer.chat_template = CHAT
    nested = unflatten_dict(params_of(reward.network, seed), sep="/")
    RewardModel(reward, nested, one_device()).save_pretrained(folder / name)
  prompts: list = [f"Say {c}." for c in "abcdefgh"]
  prompts += [[{"role": "user", "content": f"Say {c}."}] for c in "abcdefgh"]
  lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
  (folder / "prompts.jsonl").write_text("".join(lines))
  return folder


def own_config(own: Path, method: str = "ppo", **changes):
  """The config of a chain on what `own_folder` has made; `changes` as `config_of` takes them."""
  fields = {
    "policy__pretrained": str(own / "lm"),
    "policy__config": "",
    "policy__tokenizer": "",
    "policy__chat_template": "",
    "sft__texts": "",
    "data__prompts": str(own / "prompts.jsonl"),
    "data__evaluation": 6,
    "reward__model": str(own / "rm"),
    "rl__turns": 2,
    "rules__empty": -1.0,
  }
  return config_of(own, method, **{**fields, **changes})
