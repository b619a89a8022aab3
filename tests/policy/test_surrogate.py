"""The clipped surrogate, the critic's loss and the three means, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.policy import surrogate

R = np.random.default_rng(0)
SHAPE = (3, 8)
WHERE = R.uniform(size=SHAPE) < 0.7
LOGP, ADVANTAGES, VALUES, TARGETS = (R.normal(size=SHAPE).astype(np.float32) for _ in range(4))
OLD = LOGP + R.uniform(-0.6, 0.6, size=SHAPE).astype(np.float32)
OLD_VALUES = VALUES + R.uniform(-0.6, 0.6, size=SHAPE).astype(np.float32)


def close(got, expected):
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.4)])
def test_the_surrogate_is_clipped_where_the_ratio_has_gone_the_good_way_too_far(low, high):
  loss, clipped = surrogate.clipped(LOGP, OLD, ADVANTAGES, where=WHERE, low=low, high=high)
  for at in np.ndindex(SHAPE):
    ratio, a = np.exp(float(LOGP[at]) - OLD[at]), float(ADVANTAGES[at])
    over = (a > 0 and ratio > 1 + high) or (a < 0 and ratio < 1 - low)
    expected = -a * (np.clip(ratio, 1 - low, 1 + high) if over else ratio)
    close(loss[at], expected if WHERE[at] else 0.0)
    assert clipped[at] == (over and WHERE[at])
  assert np.asarray(clipped).any()


def test_at_the_old_policy_its_gradient_is_reinforces():
  def total(logp):
    return surrogate.clipped(logp, LOGP, ADVANTAGES, where=WHERE)[0].sum()

  close(jax.grad(total)(jnp.asarray(LOGP)), np.where(WHERE, -ADVANTAGES, 0))


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_critics_loss_is_the_worse_of_two_squares(clip):
  got = surrogate.value_loss(VALUES, OLD_VALUES, TARGETS, where=WHERE, clip=clip)
  v, old, target = (x.astype(float) for x in (VALUES, OLD_VALUES, TARGETS))
  expected = (v - target) ** 2
  if clip:
    expected = np.maximum(expected, (old + np.clip(v - old, -clip, clip) - target) ** 2)
  close(got, np.where(WHERE, expected / 2, 0))


def test_what_does_not_count_adds_no_gradient():
  def hidden(x):
    return jnp.where(WHERE, x, jnp.nan)

  def total(logp, values):
    policy, _ = surrogate.clipped(logp, hidden(OLD), hidden(ADVANTAGES), where=WHERE)
    critic = surrogate.value_loss(values, hidden(OLD_VALUES), hidden(TARGETS), where=WHERE)
    return (policy + critic).sum()

  for gradient in jax.grad(total, (0, 1))(hidden(LOGP), hidden(VALUES)):
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~WHERE] == 0).all()


@pytest.mark.parametrize(
  ("mean", "formula"),
  [
    ("token", lambda parts: np.concatenate(parts).mean()),
    ("response", lambda parts: np.mean([p.mean() for p in parts])),
    ("sequence", lambda parts: np.mean([p.sum() for p in parts])),
  ],
)
def test_means_are_over_tokens_or_responses_whatever_the_row(mean, formula):
  # Two rows: responses of 3 and 2 tokens with a hole between them, and one of 4.
  where = np.array([[1, 1, 1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]], bool)
  length = np.array([[3, 3, 3, 0, 2, 2, 0, 0], [0, 0, 4, 4, 4, 4, 0, 0]])
  loss = R.normal(size=where.shape)
  weight, share = surrogate.weights(length, where=where, mean=mean)
  got = float((weight * loss).sum() / share.sum())
  assert got == pytest.approx(formula([loss[0, :3], loss[0, 4:6], loss[1, 2:6]]), abs=1e-6)


def test_what_does_not_fit_is_refused():
  with pytest.raises(InputError, match="'all'; expected one of token, response, sequence"):
    surrogate.weights(np.ones(SHAPE, int), where=WHERE, mean="all")
  with pytest.raises(ValueError, match="length"):
    surrogate.weights(np.ones(3, int), where=WHERE, mean="token")
  with pytest.raises(ValueError, match="advantages"):
    surrogate.clipped(LOGP, OLD, ADVANTAGES[0], where=WHERE)
  with pytest.raises(ValueError, match="targets"):
    surrogate.value_loss(VALUES, OLD_VALUES, TARGETS[0], where=WHERE)
