"""95 % intervals hold the truth in 93 to 97 % of 1,000 and more simulated data sets."""

import math

import numpy as np
import pytest

from rm_jax.metrics.agreement import accuracy, paired_difference, wilson
from rm_jax.metrics.correlation import bootstrap


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 0.65, 0.9])
@pytest.mark.parametrize("n", [100, 400, 2000])
def test_wilson_covers(n, p):
  """In 20,000 runs; and exactly, by the chance of every count."""
  held = [low <= p <= high for low, high in (wilson(k, n) for k in range(n + 1))]
  held = np.asarray(held)
  runs = np.random.default_rng(n).binomial(n, p, size=20_000)
  assert 0.93 <= held[runs].mean() <= 0.97
  chance = [
    math.exp(
      math.lgamma(n + 1)
      - math.lgamma(k + 1)
      - math.lgamma(n - k + 1)
      + k * math.log(p)
      + (n - k) * math.log(1 - p)
    )
    for k in range(n + 1)
  ]
  assert 0.93 <= held @ chance <= 0.97


def conversations(rng, prompts, mean=0.65):
  """Credits with ties of `prompts` conversations of 1 to 12 pairs, alike within a conversation.

  A conversation's chance is Beta(2 mean, 2 (1 − mean)): a correlation of 1/3 between its pairs.
  """
  size = 1 + rng.binomial(11, rng.beta(0.5, 1.5, size=prompts))
  clusters = np.repeat(np.arange(prompts), size)
  chance = rng.beta(2 * mean, 2 * (1 - mean), size=prompts)[clusters]
  credit = (rng.random(len(clusters)) < chance).astype(float)
  tied = rng.random(len(clusters)) < 0.04
  return np.where(tied, 0.5, credit), chance, clusters.tolist()


@pytest.mark.parametrize("prompts", [200, 400])
def test_clustered_bootstrap_covers(prompts):
  rng = np.random.default_rng(prompts)
  truth = 0.96 * 0.65 + 0.04 * 0.5
  covered = naive = 0
  for run in range(1000):
    credit, _, clusters = conversations(rng, prompts)
    low, high = accuracy(credit, clusters, resamples=400, seed=run)["interval"]
    covered += low <= truth <= high
    low, high = wilson(credit.sum(), len(credit))
    naive += low <= truth <= high
  assert 0.93 <= covered / 1000 <= 0.97
  assert naive / 1000 < 0.85  # what taking pairs for independent would have claimed


def test_paired_difference_covers():
  rng = np.random.default_rng(0)
  covered = 0
  for run in range(1000):
    one, chance, clusters = conversations(rng, 200)
    other = (rng.random(len(one)) < chance).astype(float)  # 0.65 on average
    truth = 0.96 * 0.65 + 0.04 * 0.5 - 0.65
    low, high = paired_difference(one, other, clusters, resamples=400, seed=run)["interval"]
    covered += low <= truth <= high
  assert 0.93 <= covered / 1000 <= 0.97


def test_bootstrap_of_a_correlation_covers():
  """Of 200 conversations whose scores and ratings share a prompt's level: r = (½ + ½·0.6)."""
  rng = np.random.default_rng(0)
  covered = 0
  for run in range(1000):
    clusters = np.repeat(np.arange(200), 1 + rng.integers(3, size=200))
    level = rng.normal(size=200)[clusters] * math.sqrt(0.5)
    x = level + rng.normal(size=len(clusters)) * math.sqrt(0.5)
    y = level + 0.6 * (x - level) + rng.normal(size=len(clusters)) * math.sqrt(0.5 * (1 - 0.36))

    def pearson(a, b):
      a, b = a - a.mean(), b - b.mean()
      return a @ b / math.sqrt((a @ a) * (b @ b))

    interval = bootstrap(pearson, (x, y), clusters.tolist(), resamples=200, seed=run)["interval"]
    covered += interval[0] <= 0.8 <= interval[1]
  assert 0.93 <= covered / 1000 <= 0.97
