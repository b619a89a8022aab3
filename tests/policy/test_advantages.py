"""Rewards of tokens, GAE, whitening and advantages among a prompt's responses, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.policy import advantages as adv

R = np.random.default_rng(0)
LENGTHS = (5, 3, 1, 0)
WHERE = np.arange(6) < np.asarray(LENGTHS)[:, None]
REWARDS, VALUES, KL = (R.normal(size=WHERE.shape).astype(np.float32) for _ in range(3))


def close(got, expected):
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def numpy_gae(rewards, values, where, gamma, lam):
  """The definition: sums of (gamma lam)^l delta_{t+l}, of the tokens that count alone."""
  out = np.zeros(rewards.shape)
  for n in np.ndindex(rewards.shape[:-1]):
    at = np.flatnonzero(where[n])
    r, v = rewards[n][at].astype(float), np.append(values[n][at].astype(float), 0.0)
    delta = r + gamma * v[1:] - v[:-1]
    for t in range(len(at)):
      out[n][at[t]] = sum((gamma * lam) ** i * d for i, d in enumerate(delta[t:]))
  return out


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.9, 0.0)])
def test_gae_is_the_sum_of_its_definition(gamma, lam):
  got = jax.jit(lambda *a: adv.gae(*a, where=WHERE, gamma=gamma, lam=lam))(REWARDS, VALUES)
  close(got, numpy_gae(REWARDS, VALUES, WHERE, gamma, lam))


def test_tokens_that_do_not_count_are_passed_over_even_in_the_middle():
  where = WHERE.copy()
  where[0, 2] = False
  nan = np.where(where, REWARDS, np.nan), np.where(where, VALUES, np.nan)
  got = adv.gae(*nan, where=where, gamma=0.9, lam=0.8)
  close(got, numpy_gae(REWARDS, VALUES, where, 0.9, 0.8))


def test_with_lambda_one_advantages_are_returns_less_values():
  expected = np.zeros(WHERE.shape)
  for n, length in enumerate(LENGTHS):
    for t in range(length):
      expected[n, t] = sum(0.9**i * r for i, r in enumerate(REWARDS[n, t:length]))
  got = adv.returns(REWARDS, where=WHERE, gamma=0.9)
  close(got, expected)
  close(
    adv.gae(REWARDS, VALUES, where=WHERE, gamma=0.9, lam=1.0),
    np.where(WHERE, expected - VALUES, 0),
  )


def test_the_reward_stands_at_the_last_token_and_the_divergence_at_each():
  final = np.float32([0.7, -0.3, 2.0, 9.0])
  got = adv.token_rewards(final, KL, where=WHERE, coefficient=0.1)
  expected = np.where(WHERE, -0.1 * KL, 0)
  for n, length in enumerate(LENGTHS[:3]):
    expected[n, length - 1] += final[n]
  close(got, expected)
  assert np.asarray(got).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fractions_and_rewards_of_two_steps_reach_their_tokens_and_the_advantages(dtype):
  # Two responses of five and four tokens, steps that end at tokens 1 and 3; and at 0 and 2.
  where = np.arange(5) < np.array([[5], [4]])
  process = np.zeros((2, 5), dtype)
  process[0, [1, 3]], process[1, [0, 2]] = (0.25, -0.5), (-1.5, 0.125)
  rewards = adv.token_rewards(
    np.asarray([0.7, -0.3], dtype), np.zeros((2, 5)), where=where, coefficient=0.0, process=process
  )
  close(rewards, [[0, 0.25, 0, -0.5, 0.7], [-1.5, 0, 0.125, -0.3, 0]])
  # With values 0 and lambda 1: the sum of what is still to come.
  nothing = np.zeros((2, 5), np.float32)
  got = adv.gae(rewards, nothing, where=where, gamma=1.0, lam=1.0)
  close(got, [[0.45, 0.45, 0.2, 0.2, 0.7], [-1.675, -0.175, -0.175, -0.3, 0]])
  # With lambda 1/2 a reward reaches back halved at each token.
  got = adv.gae(rewards, nothing, where=where, gamma=1.0, lam=0.5)
  first = [0.25 / 2 - 0.5 / 8 + 0.7 / 16, 0.25 - 0.5 / 4 + 0.7 / 8]
  close(got[0], [*first, -0.5 / 2 + 0.7 / 4, -0.5 + 0.7 / 2, 0.7])


def test_whitening_is_over_all_that_counts():
  x = np.where(WHERE, REWARDS, np.nan)
  real = REWARDS[WHERE].astype(float)
  for shift in (True, False):
    got = np.asarray(adv.whiten(x, where=WHERE, shift=shift))
    expected = (real - real.mean()) / np.sqrt(real.var() + 1e-8)
    if not shift:
      expected += real.mean() / np.sqrt(real.var() + 1e-8)
    close(got[WHERE], expected)
    assert (got[~WHERE] == 0).all()


def test_whitening_of_equal_or_no_entries_is_finite():
  assert not np.asarray(adv.whiten(jnp.ones((2, 3)), where=jnp.ones((2, 3), bool))).any()
  assert not np.asarray(adv.whiten(jnp.ones((2, 3)), where=jnp.zeros((2, 3), bool))).any()


@pytest.mark.parametrize("scale", [True, False])
def test_grpo_compares_with_the_prompts_other_responses(scale):
  got = np.asarray(adv.group_relative(np.where(WHERE, REWARDS, np.nan), where=WHERE, scale=scale))
  for n, count in enumerate(LENGTHS[:2]):
    own = REWARDS[n, :count].astype(float)
    divisor = own.std(ddof=1) + 1e-4 if scale else 1.0
    close(got[n, :count], (own - own.mean()) / divisor)
  # A response that is alone, and a prompt without one.
  assert not got[2:].any()
  assert not got[~WHERE].any()


def test_rloo_leaves_the_response_itself_out():
  got = np.asarray(adv.leave_one_out(np.where(WHERE, REWARDS, np.nan), where=WHERE))
  for n, count in enumerate(LENGTHS[:2]):
    own = REWARDS[n, :count].astype(float)
    for i in range(count):
      assert got[n, i] == pytest.approx(own[i] - np.delete(own, i).mean(), abs=1e-5)
  assert not got[2:].any()
  assert not got[~WHERE].any()


def test_equal_rewards_give_no_advantage():
  equal, where = jnp.full((2, 4), 0.3), jnp.ones((2, 4), bool)
  assert not np.asarray(adv.group_relative(equal, where=where)).any()
  np.testing.assert_allclose(adv.leave_one_out(equal, where=where), 0, atol=1e-7)


def test_a_reward_that_is_not_finite_names_its_sample():
  names = ["prompt 0, sample 0", "prompt 0, sample 1"]
  adv.check_finite(np.float64([0.7, -0.3]), names)
  for bad in (np.nan, np.inf, -np.inf, 1e300, -2e19):
    with pytest.raises(InputError, match="prompt 0, sample 1: its reward is"):
      adv.check_finite(np.float64([0.7, bad]), names)
  with pytest.raises(InputError, match=r"prompt 0, sample 0: .*1 of 2 samples"):
    adv.check_finite(np.float64([[0.7, np.nan], [0.0, 0.0]]), names)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="values"):
    adv.gae(REWARDS, VALUES[0], where=WHERE)
  with pytest.raises(ValueError, match="final"):
    adv.token_rewards(REWARDS, KL, where=WHERE, coefficient=0.1)
  with pytest.raises(ValueError, match="process"):
    adv.token_rewards(REWARDS[:, 0], KL, where=WHERE, coefficient=0.1, process=KL[0])
  with pytest.raises(InputError, match=r"lam is 1\.5"):
    adv.gae(REWARDS, VALUES, where=WHERE, lam=1.5)
  for function in (adv.whiten, adv.group_relative, adv.leave_one_out):
    with pytest.raises(ValueError, match="where"):
      function(REWARDS, where=WHERE[0])
