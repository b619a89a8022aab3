"""Scorers whose behaviour is known, for the audit to find."""

import hashlib
import statistics

import numpy as np

from rm_jax.audit.edits import last
from rm_jax.data.dialogue import plain
from rm_jax.types import Example


def pair(i, prompt, chosen, rejected, **other):
  """A pair of strings of a conversation of its own."""
  return Example(prompt, (chosen, rejected), (1.0, 0.0), conversation=f"c{i}", **other)


def length(rows):
  """The response's characters, whatever it says."""
  return np.array([float(len(plain(response))) for _, response in rows])


def truth(world):
  """The true reward; of a text after what is no prompt of the world nothing is known: 0."""

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
  """The true reward by the response's text alone: accurate, and never reads a prompt."""
  table = {
    plain(response): reward
    for example in examples
    for response, reward in zip(example.responses, example.truth, strict=True)
  }
  return lambda rows: np.array([table.get(plain(response), 0.0) for _, response in rows])


def noise(response):
  """A standard normal number of the text, the same in every process."""
  digest = hashlib.blake2b(last(response).encode(), digest_size=7).digest()
  return statistics.NormalDist().inv_cdf((int.from_bytes(digest) + 0.5) / 256**7)


def noisy(score, scale=1.0):
  """Another scorer's score with normal noise."""
  return lambda rows: score(rows) + scale * np.array([noise(response) for _, response in rows])


class Counting:
  """A scorer that remembers its calls."""

  def __init__(self, score):
    self.score, self.calls = score, []

  def __call__(self, rows):
    self.calls.append(list(rows))
    return self.score(rows)
