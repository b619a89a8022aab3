"""Losses, advantages and one step of Tunix 0.1.7 on our weights; run by another environment.

python policy_steps.py POLICY ROLLOUT.npz FOLDER

POLICY: a Llama's folder, as `rlhf.policies.save` writes it. ROLLOUT.npz: `prompts` [N, L], padded
with 0 on the left; `tokens`, `where`, `old`, `reference`, `advantages` (PPO's), `token_rewards` and
`values` [N, M]; `rewards` and `relative` (GRPO's advantages) [N]; `group`, responses to a prompt;
`beta`; `rate`, of the step. FOLDER gets found.npz, and ppo/ and grpo/: the policy after one step of
gradient descent, in POLICY's layout.
"""

import functools
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as loader
from tunix.rl import algo_core, common

PAD, EOS = 0, 1
rope = llama.apply_rope
PPO = SimpleNamespace(epsilon_low=0.2, epsilon_high=0.2, entropy_coef=None, kl_coef=0.0)


def use_theta(theta):
  """Makes Tunix's Llama use a rope theta: 0.1.7 passes none on, and always has 1,000,000."""
  llama.apply_rope = functools.partial(rope, rope_theta=theta)


def config_of(folder):
  said = json.loads((folder / "config.json").read_text())
  rope = said.get("rope_parameters") or said
  return llama.ModelConfig(
    num_layers=said["num_hidden_layers"],
    vocab_size=said["vocab_size"],
    embed_dim=said["hidden_size"],
    hidden_dim=said["intermediate_size"],
    num_heads=said["num_attention_heads"],
    head_dim=said["hidden_size"] // said["num_attention_heads"],
    num_kv_heads=said["num_key_value_heads"],
    rope_theta=rope["rope_theta"],
    norm_eps=said["rms_norm_eps"],
    weight_tying=said["tie_word_embeddings"],
  )


def save(model, policy, folder):
  """Writes the model's weights as `policy` names them, beside its other files."""
  shutil.copytree(policy, folder)
  config, tensors = config_of(policy), {}
  state = nnx.to_flat_state(nnx.state(model))
  flat = {".".join(map(str, path)): np.asarray(x[...]) for path, x in state}
  for name, before in safetensors.numpy.load_file(policy / "model.safetensors").items():
    for pattern, (place, change) in loader._get_key_and_transform_mapping(config).items():
      if re.fullmatch(pattern, name):
        x = flat[re.sub(pattern, place, name)]
        if change:  # an axis order and a shape, which are undone
          order, shape = change
          x = x.reshape([before.shape[axis] for axis in order]) if shape else x
          x = x.transpose(np.argsort(order))
        tensors[name] = np.ascontiguousarray(x)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main():
  policy, rollout, folder = map(Path, sys.argv[1:])
  given = dict(np.load(rollout))
  use_theta(config_of(policy).rope_theta)
  group, beta, rate = int(given["group"]), float(given["beta"]), float(given["rate"])

  def fresh():
    return loader.create_model_from_safe_tensors(str(policy), config_of(policy), dtype=jnp.float32)

  example = common.TrainExample(
    prompt_ids=jnp.asarray(given["prompts"]),
    prompt_mask=jnp.asarray(given["prompts"] != PAD),
    completion_ids=jnp.asarray(given["tokens"]),
    completion_mask=jnp.asarray(given["where"]),
    advantages=jnp.asarray(given["advantages"]),
    ref_per_token_logps=jnp.asarray(given["reference"]),
    old_per_token_logps=jnp.asarray(given["old"]),
  )
  graph, state = nnx.split(fresh())
  texts = example.prompt_ids, example.completion_ids
  logp = common.compute_per_token_logps(graph, state, *texts, PAD, EOS)
  advantages, returns = algo_core.compute_gae_advantages(
    given["token_rewards"], given["values"], example.completion_mask, 1.0, 0.95
  )
  found = {"logp": logp, "advantages": advantages, "returns": returns}
  two = example.old_per_token_logps, example.ref_per_token_logps
  for name in ("kl", "mse_kl", "low_var_kl"):
    found[name] = common.compute_kl_divergence(*two, name)
  rewards = given["rewards"]
  found["grpo_advantages"] = algo_core.compute_advantages(rewards, group)
  found["rloo_advantages"] = algo_core.compute_rloo_advantages(jnp.asarray(rewards), group)
  grpo = SimpleNamespace(
    beta=beta,
    epsilon=0.2,
    loss_algo="grpo",
    loss_agg_mode="sequence-mean-token-mean",
    temperature=1.0,
    kl_loss_mode="low_var_kl",
    kl_clamp_value=None,
  )
  relative = example.replace(advantages=jnp.asarray(given["relative"]))
  losses = {
    "ppo": lambda model: algo_core.ppo_policy_loss_fn(model, example, PPO, PAD, EOS)[0],
    "grpo": lambda model: algo_core.grpo_loss_fn(model, relative, grpo, PAD, EOS)[0],
  }
  for name, loss in losses.items():
    model = fresh()
    found[f"{name}_loss"], gradient = nnx.value_and_grad(loss)(model)
    new = jax.tree.map(lambda p, g: p - rate * g, nnx.state(model, nnx.Param), gradient)
    nnx.update(model, new)
    save(model, policy, folder / name)
  np.savez(folder / "found.npz", **found)
  print("\n" + json.dumps(sorted(found)))


if __name__ == "__main__":
  main()
