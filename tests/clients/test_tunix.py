"""Tunix 0.1.7 has our log-probabilities, advantages, losses and updates, and reads our policies.

Its Llama does not use the rope theta of its config: see policy_steps.py.
"""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from configs import rlhf
from rm_jax.batch.layout import Packing
from rm_jax.policy.advantages import gae, group_relative, leave_one_out
from rm_jax.policy.experience import lay, shapes_of
from rm_jax.policy.kl import estimate
from rm_jax.policy.update import compile_update, start, take_step
from rm_jax.rlhf import policies
from tests.clients.exports import client, python_of
from tests.policy import test_update as update
from tests.policy.small import byte_policy, nested, one_device

INSTALL = "python3.12 -m venv tunix && tunix/bin/pip install 'google-tunix==0.1.7'"
N, M, S, RATE = update.P * update.S, update.M, update.S, 0.5
WHERE = update.WHERE.reshape(N, M)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """(folder, what Tunix was given, what it found)."""
  python = python_of("RM_JAX_TEST_TUNIX", INSTALL)
  folder = tmp_path_factory.mktemp("tunix")
  params = update.start_of("grpo")
  loaded = policies.Loaded(byte_policy(2), params, one_device())
  policies.save(loaded, nested(params), folder / "policy")
  longest = update.LONGEST
  prompts = np.zeros((N, longest), np.int32)
  for n in range(N):
    ids = update.IDS[n // S]
    prompts[n, longest - len(ids) :] = ids
  reference, _ = update.evaluated(update.reference())
  ppo, grpo = (update.experience_of(name).arrays["advantages"] for name in ("ppo", "grpo"))
  rng = np.random.default_rng(1)
  given = {
    "prompts": prompts,
    "tokens": update.TOKENS,
    "where": WHERE,
    "old": update.rollout().samples.logp,
    "reference": reference,
    "advantages": ppo,
    "relative": grpo[..., 0],  # the same at each token, of which there is always one
    "token_rewards": np.where(WHERE, rng.normal(size=WHERE.shape), 0).astype(np.float32),
    "values": np.where(WHERE, rng.normal(size=WHERE.shape), 0).astype(np.float32),
    "rewards": update.REWARDS,
  }
  given = {name: x.reshape(N, *x.shape[2:]) if x.ndim > 2 else x for name, x in given.items()}
  given |= {name: given[name].reshape(N) for name in ("relative", "rewards")}
  np.savez(folder / "rollout.npz", **given, group=S, beta=update.BETA, rate=RATE)
  client(
    python, "policy_steps.py", *(str(folder / name) for name in ("policy", "rollout.npz", "."))
  )
  return folder, given, dict(np.load(folder / "found.npz"))


def test_log_probabilities_are_ours(files):
  ours, _ = update.evaluated(update.start_of("grpo"))
  np.testing.assert_allclose(files[2]["logp"][WHERE], ours.reshape(N, M)[WHERE], atol=1e-5)


def test_divergences_and_advantages_are_ours(files):
  _, given, found = files
  options = dict(where=WHERE)
  for estimator, name in (("k1", "kl"), ("k2", "mse_kl"), ("k3", "low_var_kl")):
    ours = estimate(given["old"], given["reference"], estimator=estimator, **options)
    np.testing.assert_allclose(found[name][WHERE], ours[WHERE], rtol=1e-5, atol=1e-6)
  ours = gae(given["token_rewards"], given["values"], **options)
  np.testing.assert_allclose(found["returns"][WHERE], (ours + given["values"])[WHERE], atol=1e-5)
  # Tunix's variance has the divisor n - 1.
  real, n = np.asarray(ours)[WHERE], WHERE.sum()
  white = (real - real.mean()) / real.std(ddof=1)
  np.testing.assert_allclose(found["advantages"][WHERE], white, atol=1e-5)
  assert n == update.LENGTHS.sum()
  rewards, every = update.REWARDS, np.ones_like(update.REWARDS, bool)
  ours = np.asarray(group_relative(rewards, where=every))
  # The small number beside the deviation is 1e-4 here, as in TRL, and 1e-6 there.
  deviation = rewards.std(-1, ddof=1, keepdims=True)
  ours = ours * (deviation + 1e-4) / (deviation + 1e-6)
  np.testing.assert_allclose(found["grpo_advantages"].reshape(rewards.shape), ours, rtol=1e-5)
  ours = leave_one_out(rewards, where=every)
  np.testing.assert_allclose(found["rloo_advantages"].reshape(rewards.shape), ours, rtol=1e-5)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_step_of_tunix_on_our_policy_is_read_back_as_our_own_step(files, name):
  folder, _, found = files
  loss = dataclasses.replace(update.METHODS[name].loss, value=0.0)
  optimizer, packing = optax.sgd(RATE), Packing()
  experience, mesh = update.experience_of(name), one_device()
  keys = ("where", "length", "old_logp", "advantages", "reference")
  arrays = {key: experience.arrays[key] for key in keys if key in experience.arrays}
  shapes = shapes_of(update.LONGEST, S, M, packing)
  laid = lay(experience.groups, range(update.P), shapes=shapes, packing=packing)
  state = start(update.start_of("grpo"), optimizer, mesh)
  compiled = compile_update(update.NETWORK, loss, optimizer)
  state, metrics = take_step(compiled, state, laid, arrays, mesh, coefficient=update.BETA)
  assert metrics["loss"] == pytest.approx(float(found[f"{name}_loss"]), rel=1e-4, abs=1e-6)
  theirs = policies.load(rlhf.get_config(), mesh, folder / name).params
  ours, before = jax.device_get(state.params), jax.device_get(update.start_of("grpo"))
  assert theirs.keys() == ours.keys()
  for path, x in ours.items():
    step = np.abs(x - before[path]).max()
    assert step > 1e-4, path
    np.testing.assert_allclose(theirs[path], x, atol=1e-3 * step, err_msg=path)
