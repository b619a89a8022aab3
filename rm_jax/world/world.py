"""`World`: prompts, candidates, their true reward, and judges who err at a known rate."""

import dataclasses
import math

import numpy as np

from rm_jax.types import Example, Text
from rm_jax.world.text import (
  LAYOUTS,
  Attributes,
  draw,
  read_prompt,
  read_response,
  write_prompt,
  write_response,
)
from rm_jax.world.words import SPLITS


@dataclasses.dataclass(frozen=True)
class Candidate:
  text: str
  attributes: Attributes


@dataclasses.dataclass(frozen=True)
class World:
  judge_temperature: float = 0.5
  length_confound: float = 0.5
  skill: float = 0.5
  fact_weight: float = 2.0
  layout_weight: float = 1.0
  name_weight: float = 1.0
  tone_weight: float = 0.5

  def _rng(self, seed, split):
    return np.random.Generator(np.random.PCG64([list(SPLITS).index(split), seed]))

  def prompts(self, split, n, seed):
    return self._prompts(split, n, self._rng(seed, split))

  def _prompts(self, split, n, rng):
    found = {}
    while len(found) < n:
      found[write_prompt(SPLITS[split], rng)] = None
    return list(found)

  def reward_of(self, a: Attributes) -> float:
    return (
      self.fact_weight * a.fact
      + self.layout_weight * a.layout
      + self.name_weight * a.name
      + self.tone_weight * a.tone
    )

  def moments(self):
    s = self.skill
    mean = s * (self.fact_weight + self.layout_weight + self.name_weight)
    var = s * (1 - s) * (self.fact_weight**2 + self.layout_weight**2 + self.name_weight**2)
    return mean, math.sqrt(var + 2 / 3 * self.tone_weight**2)

  def sample(self, prompt, n, rng):
    task = read_prompt(_content(prompt))
    mean, std = self.moments()
    right = task.facts[task.item]
    mixed = [v for v in task.facts.values() if v != right]
    invented = [v for v in task.scene.values if v not in task.facts.values()]
    layouts = [x for x in LAYOUTS if x != task.layout]
    names = [x for x in task.words.names if x != task.name]
    out = []
    for _ in range(n):
      good = rng.random(3) < self.skill
      value = right if good[0] else draw(mixed if rng.random() < 0.5 else invented, rng)
      layout = task.layout if good[1] else draw(layouts, rng)
      name = task.name if good[2] else draw(names, rng)
      a = Attributes(*(int(g) for g in good), tone=int(rng.integers(-1, 2)))
      z = (self.reward_of(a) - mean) / std
      p = 1 / (1 + math.exp(-self.length_confound * z))
      fillers = int((rng.random(2) < p).sum())
      out.append(Candidate(write_response(task, value, layout, name, a.tone, fillers, rng), a))
    return out

  def true_reward(self, prompt, response):
    return self.reward_of(read_response(read_prompt(_content(prompt)), _content(response)))

  def pairs(self, split, n, seed, messages=True):
    rng = self._rng(seed, split)
    out = []
    for i, p in enumerate(self._prompts(split, n, rng)):
      c = self.sample(p, 2, rng)
      while c[0].text == c[1].text:
        c = self.sample(p, 2, rng)
      r = np.array([self.true_reward(p, x.text) for x in c])
      noisy = r / self.judge_temperature + rng.gumbel(size=2)
      order = np.argsort(-noisy)
      wrap = (lambda role, t: ({"role": role, "content": t},)) if messages else (lambda _, t: t)
      out.append(
        Example(
          prompt=wrap("user", p),
          responses=tuple(wrap("assistant", c[j].text) for j in order),
          labels=(1.0, 0.0),
          source="world",
          origin=f"world:{split}:{i}",
          conversation=p,
          truth=tuple(float(r[j]) for j in order),
        )
      )
    return out


def _content(text: Text) -> str:
  return text if isinstance(text, str) else text[-1]["content"]
