"""Turns of optimisation: the reward rises, seeds repeat, and settings do what they say."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.policy.experience import Credit
from rm_jax.policy.generate import Sampling
from rm_jax.policy.optimise import Method, Optimisation, grpo, minibatches, ppo, rloo
from rm_jax.policy.rollout import Rules
from rm_jax.policy.update import Loss, start, value_params
from tests.policy.small import byte_policy, one_device, optimizer_of, params_of

POLICY = byte_policy(1)
PROMPTS = ["Say a. ", "b", "Longer: ", "cd"]


def reward(rows):
  """The share of a response's characters whose code is even."""
  return [float(np.mean([ord(c) % 2 == 0 for c in row["response"]])) for row in rows]


@functools.cache
def begun():
  return params_of(POLICY.text_model.network, noise=0.02)


def optimisation(method, **options):
  flat = dict(begun())
  if method.critic:
    flat |= value_params(POLICY.text_model.network.backbone.width, jax.random.key(1))
  rate = options.pop("learning_rate", 0.02)
  optimizer = optimizer_of(learning_rate=rate, eps=1e-5, weight_decay=0.0)
  options = {"coefficient": 0.01, "longest": 9} | options
  return Optimisation(
    POLICY,
    method,
    start(flat, optimizer, one_device()),
    begun(),
    optimizer,
    Sampling(6, (2,), vocab=259),
    one_device(),
    **options,
  )


def turns(one, count, seed=0, **options):
  key = jax.random.key(seed)
  return [one.turn(PROMPTS, reward, jax.random.fold_in(key, i), **options)[1] for i in range(count)]


METHODS = {
  "ppo": ppo(samples=4, epochs=2, minibatch=2),
  "grpo": grpo(samples=4, minibatch=2),
  "rloo": rloo(samples=4, epochs=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_reward_rises_and_the_policy_leaves_its_reference(name):
  one = optimisation(METHODS[name])
  said = turns(one, 12)
  first, last = said[0], said[-1]
  assert last["score"] > first["score"] + 0.15
  assert abs(first["kl"]) < 1e-4  # the first samples are the reference's own
  assert last["kl"] > 0.05
  assert all(step["skipped"] == 0 for step in said)
  assert int(one.state.step) == 12 * len(minibatches(4, METHODS[name], np.random.default_rng(0)))
  for path, x in begun().items():  # which the steps did not write into
    assert np.isfinite(x).all(), path


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_run(name):
  runs = []
  for seed in (0, 0, 1):
    one = optimisation(METHODS[name])
    runs.append((turns(one, 2, seed), jax.device_get(one.state.params)))
  assert runs[0][0] == runs[1][0]
  for path, x in runs[0][1].items():
    np.testing.assert_array_equal(x, runs[1][1][path])
  assert runs[0][0] != runs[2][0]


def test_a_large_coefficient_keeps_the_policy_near_its_reference():
  near, far = (turns(optimisation(METHODS["ppo"], coefficient=c), 8)[-1]["kl"] for c in (3.0, 0.0))
  assert abs(near) < far / 2


def test_the_coefficient_is_adapted_to_the_target():
  method = dataclasses.replace(METHODS["rloo"], target_kl=50.0)
  one = optimisation(method, coefficient=1.0)
  said = turns(one, 3)
  # Below its target the coefficient falls by two percent a turn.
  assert [step["coefficient"] for step in said] == pytest.approx([1.0, 0.98, 0.98**2])
  assert one.coefficient == pytest.approx(0.98**3)


def test_what_the_reward_is_told_and_what_is_measured():
  one = optimisation(METHODS["grpo"], rules=Rules(empty=-1.0, unfinished="leave_out"))
  rollout, said = one.turn(PROMPTS, reward, jax.random.key(5))
  made = rollout.samples
  empty = np.isnan(rollout.scores)
  assert said["score"] == pytest.approx(rollout.scores[~empty].mean(), abs=1e-6)
  assert said["reward"] == pytest.approx(rollout.rewards.mean(), abs=1e-6)
  assert said["length"] == pytest.approx(made.length.mean())
  assert said["ended"] == made.ended.mean()
  assert said["left_out"] == pytest.approx((~made.ended).mean())
  assert said["empty"] == empty.mean()
  real = np.arange(6) < made.length[..., None]
  # Of all tokens, those of responses that are left out as well.
  assert said["entropy"] == pytest.approx(-made.logp[real].mean(), abs=1e-5)


def test_rewards_of_steps_are_learned_from():
  def steps(rows):
    return [[float(len(step)) for step in row["completions"]] for row in rows]

  one = optimisation(METHODS["ppo"], learning_rate=1e-3)
  rollout, said = one.turn(PROMPTS, reward, jax.random.key(0), step_reward=steps, separator="e")
  assert rollout.process.any()
  plain, _ = optimisation(METHODS["ppo"]).turn(PROMPTS, reward, jax.random.key(0))
  np.testing.assert_array_equal(rollout.rewards, plain.rewards)
  total = rollout.rewards.mean() + rollout.process.sum(-1).mean()
  assert said["return"] == pytest.approx(total - 0.01 * said["kl"], abs=1e-4)


def test_a_longer_prompt_than_was_said_is_taken_too():
  one = optimisation(METHODS["grpo"], longest=1)
  _, said = one.turn(["z" * 150, "a"], reward, jax.random.key(0))
  assert said["skipped"] == 0


def test_each_epoch_goes_through_all_prompts_in_another_order():
  steps = minibatches(5, dataclasses.replace(METHODS["ppo"], epochs=3), np.random.default_rng(0))
  assert [len(step) for step in steps] == [2, 2, 1] * 3
  epochs = [[p for step in steps[i : i + 3] for p in step] for i in (0, 3, 6)]
  assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
  assert epochs[0] != epochs[1]


def test_methods_that_cannot_be_are_refused():
  with pytest.raises(InputError, match="a weight above 0 with 'gae'"):
    Method(Credit("gae"), Loss())
  with pytest.raises(InputError, match="a weight above 0 with 'gae'"):
    Method(Credit("group"), Loss(value=0.1))
  with pytest.raises(InputError, match="in the rewards and in the loss"):
    Method(Credit("group", "k1"), Loss(estimator="k3"))
  with pytest.raises(InputError, match="epochs 0"):
    rloo(epochs=0)
  with pytest.raises(InputError, match="there is none"):
    Optimisation(POLICY, grpo(), None, None, None, Sampling(6, (2,)), one_device(), 9)
