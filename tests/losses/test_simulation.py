"""Our losses as likelihoods: their estimates and 95 % intervals cover the truth 95 times in 100.

Data are drawn in numpy by the papers' probabilities. Each of 1000 runs is estimated by Newton's
method on the sum of one of our losses, and its Wald interval is the estimate ± 1.96 / √(second
derivative there). A loss of another model, or off by a factor, moves the estimate or the width of
the interval: the share of intervals that hold the truth then leaves its binomial bounds.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.losses import LOSSES

RUNS, PAIRS = 1000, 200
BOUND = 3 * math.sqrt(0.95 * 0.05 / RUNS)  # three binomial standard deviations
TEMPERATURE, TIE_RATE, NOISE = 1.7, 0.25, 0.15
LOG_TIE = math.log(2 * TIE_RATE / (1 - TIE_RATE))

# True rewards, which the raters' choices are drawn from and the estimates are given.
REWARDS = 1.5 * np.random.default_rng(0).normal(size=(PAIRS, 2))
DELTA = REWARDS[:, 0] - REWARDS[:, 1]


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def draw(first, second, seed):
  """Labels [RUNS, PAIRS, 2]: who won, by the probabilities [PAIRS] of either; equal in a tie."""
  u = np.random.default_rng(seed).uniform(size=(RUNS, PAIRS))
  return jnp.asarray(np.stack([u < first, u > 1 - second], -1), jnp.float32)


def bradley_terry(seed):
  p = sigmoid(DELTA / TEMPERATURE)
  return draw(p, 1 - p, seed)


def davidson(seed):
  nu = math.exp(LOG_TIE)
  z = np.exp(DELTA / 2) + np.exp(-DELTA / 2) + nu
  return draw(np.exp(DELTA / 2) / z, np.exp(-DELTA / 2) / z, seed)


def rao_kupper(seed):
  theta = 1 + math.exp(LOG_TIE)
  return draw(*(np.exp(d) / (np.exp(d) + theta) for d in (DELTA, -DELTA)), seed)


def noisy(seed):
  # Clear differences: a flip is only seen where the scores are sure.
  p = (1 - NOISE) * sigmoid(3 * DELTA) + NOISE * sigmoid(-3 * DELTA)
  return draw(p, 1 - p, seed)


def coverage(loss, labels, truth, scores=REWARDS):
  """Share of the runs whose interval holds the truth, and mean of (estimate - truth) / deviation.

  Args:
    loss: (parameter, scores, labels) -> value of each list.
    labels: float [RUNS, PAIRS, 2].
    truth: of the parameter.
    scores: [PAIRS, 2].
  """
  scores = jnp.asarray(scores, jnp.float32)

  def total(parameter, y):
    return loss(parameter, scores, y).sum()

  def derivatives(x, y):
    """The first, and the second: of one number, its derivative along one."""
    return jax.jvp(lambda x: jax.grad(total)(x, y), (x,), (jnp.ones_like(x),))

  def newton(y):
    def step(_, x):
      slope, curvature = derivatives(x, y)
      return x - jnp.clip(slope / jnp.maximum(curvature, 1.0), -0.5, 0.5)

    x = jax.lax.fori_loop(0, 5, step, jnp.float32(truth + 0.3))  # not from the truth
    return x, *derivatives(x, y)

  # A hundred runs at a time: all pairs of all runs at once would not stay in the cache.
  estimate, slope, curvature = jax.jit(lambda y: jax.lax.map(newton, y, batch_size=100))(labels)
  assert (curvature > 0).all()
  # Converged: what Newton would still add is nothing beside the deviation.
  assert float(jnp.abs(slope / jnp.sqrt(curvature)).max()) < 0.01
  z = (np.asarray(estimate, np.float64) - truth) * np.sqrt(np.asarray(curvature, np.float64))
  return (np.abs(z) < 1.959964).mean(), z.mean()


def with_temperature(log_t, scores, labels, power=1.0, times=1.0):
  where = jnp.ones(scores.shape, bool)
  t = jnp.exp(power * log_t)
  return times * LOSSES["logistic"](scores, labels, where=where, temperature=t)


def with_ties(log_tie, scores, labels, name):
  where = jnp.ones(scores.shape, bool)
  params = {"log_tie": log_tie}
  return LOSSES[name](scores, labels, where=where, params=params)


def with_noise(noise_logit, scores, labels):
  where = jnp.ones(scores.shape, bool)
  params = {"noise_logit": noise_logit}
  return LOSSES["learned_noise"](scores, labels, where=where, params=params, temperature=1 / 3)


MODELS = {
  "temperature": (with_temperature, bradley_terry, math.log(TEMPERATURE)),
  "davidson": (functools.partial(with_ties, name="davidson"), davidson, LOG_TIE),
  "rao_kupper": (functools.partial(with_ties, name="rao_kupper"), rao_kupper, LOG_TIE),
  "noise": (with_noise, noisy, math.log(2 * NOISE / (1 - 2 * NOISE))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_intervals_cover_the_truth(name):
  loss, make, truth = MODELS[name]
  share, bias = coverage(loss, make(seed=1), truth)
  print(f"{name}: {share:.3f} of intervals, mean of z {bias:+.3f}")
  assert abs(share - 0.95) < BOUND
  # The mean of z is 0 up to its own noise and a skewness of order 1 / √n.
  assert abs(bias) < 3 / math.sqrt(RUNS) + 1 / math.sqrt(PAIRS)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("loss", "make", "truth"),
  [
    # The temperature applied twice; ties of the other model; each comparison counted twice.
    (functools.partial(with_temperature, power=2.0), bradley_terry, math.log(TEMPERATURE)),
    (functools.partial(with_ties, name="rao_kupper"), davidson, LOG_TIE),
    (functools.partial(with_temperature, times=2.0), bradley_terry, math.log(TEMPERATURE)),
  ],
  ids=["twice the temperature", "another model of ties", "counted twice"],
)
def test_intervals_of_a_wrong_likelihood_do_not(loss, make, truth):
  share, _ = coverage(loss, make(seed=1), truth)
  print(f"{share:.3f} of intervals")
  assert share < 0.95 - BOUND
