"""Scorers whose behaviour is known, so that a test can check what the audit says of them."""

import hashlib
import statistics

import numpy as np

from rm_jax.audit.edits import last
from rm_jax.data.dialogue import plain
from rm_jax.types import Example


def pair(i, prompt, chosen, rejected, **other):
  """A pair of strings, each pair its own conversation."""
  return Example(prompt, (chosen, rejected), (1.0, 0.0), conversation=f"c{i}", **other)


def length(rows):
  """Scores a response by its number of characters."""
  return np.array([float(len(plain(response))) for _, response in rows])


def truth(world):
  """Scores by the true reward of a world; 0 after a prompt that is not from the world."""

  def score(rows):
    out = []
    for prompt, response in rows:
      try:
        out.append(world.true_reward(prompt, response))
      except ValueError:
        out.append(0.0)
    return np.array(out)

  return score


def remembered(examples):
  """Scores a response by its true reward under its own prompt, whatever prompt is given."""
  table = {
    plain(response): reward
    for example in examples
    for response, reward in zip(example.responses, example.truth, strict=True)
  }
  return lambda rows: np.array([table.get(plain(response), 0.0) for _, response in rows])


def noise(response):
  """A standard normal number that depends on the text alone, the same in every process."""
  digest = hashlib.blake2b(last(response).encode(), digest_size=7).digest()
  return statistics.NormalDist().inv_cdf((int.from_bytes(digest) + 0.5) / 256**7)


def noisy(score, scale=1.0):
  """Adds normal noise to the scores of another scorer."""
  return lambda rows: score(rows) + scale * np.array([noise(response) for _, response in rows])


class Counting:
  """A scorer that remembers its calls."""

  def __init__(self, score):
    self.score, self.calls = score, []

  def __call__(self, rows):
    self.calls.append(list(rows))
    return self.score(rows)
