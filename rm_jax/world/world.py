"""`World`: prompts, candidate responses, their true reward, and judges who err at a known rate.

    true reward  r*(x, y) = w_fact fact + w_layout layout + w_name name + w_tone tone
    judge        P(y over y') = sigmoid((r*(x, y) - r*(x, y')) / temperature)        (Bradley-Terry)

fact, layout, name in {0, 1} and tone in {-1, 0, 1} are read from the text alone (see `grammar.py`),
so any text has a true reward, whoever wrote it. Length has no value in itself; `length_confound`
makes length correlate with the true reward, so that a model can learn the wrong cause.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rm_jax.errors import InputError
from rm_jax.types import Example, Text
from rm_jax.world.grammar import (
  LAYOUTS,
  Attributes,
  draw,
  read_prompt,
  read_response,
  write_prompt,
  write_response,
)
from rm_jax.world.words import SPLITS

# Each of these draws from a random stream of its own. So another judge temperature or number of
# responses leaves the prompts unchanged, and with more examples the first ones stay the same.
_STREAMS = ("prompts", "candidates", "judge", "flips", "ties")


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A response drawn for a prompt.

  Attributes:
    response: a string or messages, as the prompt is.
    attributes: those that it was written to have; `grammar.read_response` reads the same ones from
      the text.
    reward: its true reward.
  """

  response: Text
  attributes: Attributes
  reward: float


@dataclasses.dataclass(frozen=True)
class World:
  """A world of short notes and questions about them, whose true reward is known.

  Attributes:
    judge_temperature: in units of true reward, >= 0. At 0 the judge never errs, and of two equally
      good candidates it prefers the one drawn later.
    length_confound: a response has up to two filler sentences, which make it longer and leave its
      true reward as it is. One standard deviation of true reward raises the log-odds of each filler
      by this number; a negative one makes good responses short.
    skill: probability in (0, 1) of each of three independent events: a candidate gives the right
      value of the item asked about, has the layout asked for, and names the person who asks. A low
      skill makes good candidates rare, which leaves best-of-n selection something to find.
    confusion: probability in [0, 1] that a wrong fact is the value of another entry of the note;
      otherwise it is a value that the note does not contain.
    fact_weight, layout_weight, name_weight, tone_weight: true reward of each attribute.
    flips: probability that a pair's label is reversed, whatever the responses. A ranking is gone
      through once from the best place to the worst, and with this probability each place is swapped
      with the next worse one.
    ties: nu >= 0 of Davidson (1970). With p = 1 - q the probability that the judge prefers the
      first of a pair, it calls a tie with probability nu sqrt(p q) / (1 + nu sqrt(p q)); 0 = never.
      Rankings have no ties.
    vocabulary: 'train' or 'heldout', the vocabulary to write in; '' = that of the split.

  Raises:
    InputError: a number is out of its range, or there is no such vocabulary.
  """

  judge_temperature: float = 0.4
  length_confound: float = 0.5
  skill: float = 0.5
  confusion: float = 0.25
  fact_weight: float = 2.0
  layout_weight: float = 0.5
  name_weight: float = 1.5
  tone_weight: float = 0.5
  flips: float = 0.0
  ties: float = 0.0
  vocabulary: str = ""

  def __post_init__(self):
    if self.vocabulary and self.vocabulary not in SPLITS:
      raise InputError(f"vocabulary: {self.vocabulary!r}; expected one of {list(SPLITS)}, or ''")
    for field in dataclasses.fields(self):
      if field.name == "vocabulary":
        continue
      if not math.isfinite(getattr(self, field.name)):
        raise InputError(f"{field.name}: {getattr(self, field.name)}; expected a finite number")
    if self.judge_temperature < 0:
      raise InputError(f"judge_temperature: {self.judge_temperature}; expected >= 0")
    if self.ties < 0:
      raise InputError(f"ties: {self.ties}; expected >= 0")
    if not 0 < self.skill < 1:
      raise InputError(f"skill: {self.skill}; expected a probability in (0, 1)")
    for name in ("confusion", "flips"):
      if not 0 <= getattr(self, name) <= 1:
        raise InputError(f"{name}: {getattr(self, name)}; expected a probability in [0, 1]")

  def prompts(self, split: str, n: int, seed: int, messages: bool = True) -> list[Text]:
    """Draws n distinct prompts; a larger n keeps the prompts of a smaller one and appends to them.

    Args:
      split: 'train' or 'heldout', which share no prompt and no response unless `vocabulary` is set.
      n: how many.
      seed: >= 0. `pairs` and `rankings` of the same split and seed have the same prompts.
      messages: whether a prompt is a list of messages or a string.

    Raises:
      ValueError: the split is not one of the two, or the seed is negative.
    """
    rng = _generator(split, seed, "prompts")
    found = {}
    while len(found) < n:  # Each split has over 10^9 prompts, so distinct ones are quickly found.
      found[write_prompt(SPLITS[self.vocabulary or split], rng)] = None
    return [_as_text("user", prompt, messages) for prompt in found]

  def sample(self, prompt: Text, n: int, rng: np.random.Generator) -> list[Candidate]:
    """Draws n candidates independently given the prompt, so two may have the same text.

    Raises:
      ValueError: the prompt is not one of this world's.
    """
    task = read_prompt(_content(prompt))
    right = task.facts[task.item]
    confused = [value for value in task.facts.values() if value != right]
    invented = [value for value in task.scene.values if value not in task.facts.values()]
    others = [layout for layout in LAYOUTS if layout != task.layout]
    strangers = [name for name in task.words.names if name != task.name]
    mean, std = self._reward_moments()
    candidates = []
    for _ in range(n):
      fact, layout, name = (int(good) for good in rng.random(3) < self.skill)
      attributes = Attributes(fact, layout, name, tone=int(rng.integers(-1, 2)))
      reward = self._reward(attributes)
      wrong = confused if rng.random() < self.confusion else invented
      log_odds = self.length_confound * (reward - mean) / std
      text = write_response(
        task,
        value=right if fact else draw(wrong, rng),
        layout=task.layout if layout else draw(others, rng),
        name=task.name if name else draw(strangers, rng),
        tone=attributes.tone,
        fillers=int((rng.random(2) < _sigmoid(log_odds)).sum()),
        rng=rng,
      )
      response = _as_text("assistant", text, not isinstance(prompt, str))
      candidates.append(Candidate(response, attributes, reward))
    return candidates

  def true_reward(self, prompt: Text, response: Text) -> float:
    """The true reward of any text as a response to a prompt of this world.

    Raises:
      ValueError: the prompt is not one of this world's.
    """
    return self._reward(read_response(read_prompt(_content(prompt)), _content(response)))

  def pairs(self, split: str, n: int, seed: int, messages: bool = True) -> list[Example]:
    """Draws n examples of two different candidates; the one that is labelled better comes first.

    That is the one that the judge prefers, unless the label is reversed (`flips`). The candidates
    of a tie keep the order in which they were drawn. Their labels are equal, and `Example.ties`
    records the tie. Arguments and errors are those of `prompts`.
    """
    pairs, tie_rng = [], _generator(split, seed, "ties")
    for example in self.rankings(split, n, 2, seed, messages):
      if tie_rng.random() < self._tied(*example.truth):
        tied = ((0.0, 1.0), (1.0, 0.0))
        pairs.append(dataclasses.replace(example, kind="pair", labels=(0.0, 0.0), ties=tied))
        continue
      best, worst = np.argsort(example.labels)[::-1]
      pairs.append(
        dataclasses.replace(
          example,
          kind="pair",
          responses=(example.responses[best], example.responses[worst]),
          labels=(1.0, 0.0),
          truth=(example.truth[best], example.truth[worst]),
        )
      )
    return pairs

  def rankings(self, split: str, n: int, k: int, seed: int, messages: bool = True) -> list[Example]:
    """Draws n examples of k different candidates, labelled 0 (worst) .. k - 1 (best).

    Responses keep the order in which they were drawn. The judge adds Gumbel noise of scale
    `judge_temperature` to each true reward and sorts by the sum: this is the Plackett-Luce model of
    rankings, and the Bradley-Terry model for any two of them (Yellott 1977). Then come the swaps of
    `flips`. The other arguments are those of `prompts`.

    Raises:
      ValueError: as `prompts`.
      InputError: k is below 2.
    """
    if k < 2:
      raise InputError(f"k: {k}; expected at least 2 responses")
    candidate_rng, judge_rng, flip_rng = (
      _generator(split, seed, stream) for stream in _STREAMS[1:4]
    )
    examples = []
    for i, prompt in enumerate(self.prompts(split, n, seed, messages)):
      found = {}
      while len(found) < k:
        (candidate,) = self.sample(prompt, 1, candidate_rng)
        found.setdefault(_content(candidate.response), candidate)
      truth = tuple(candidate.reward for candidate in found.values())
      utility = np.array(truth) + self.judge_temperature * judge_rng.gumbel(size=k)
      order = np.argsort(utility, kind="stable")  # worst first
      for place in np.flatnonzero(flip_rng.random(k - 1) < self.flips)[::-1]:
        order[[place, place + 1]] = order[[place + 1, place]]
      examples.append(
        Example(
          prompt=prompt,
          responses=tuple(candidate.response for candidate in found.values()),
          labels=tuple(float(rank) for rank in np.argsort(order)),
          kind="ranking",
          source="world",
          origin=f"world:{split}:{i}",
          conversation=_content(prompt),
          truth=truth,
        )
      )
    return examples

  def _tied(self, first: float, second: float) -> float:
    """Probability that the judge calls a tie between candidates of these two true rewards."""
    if not self.judge_temperature:
      return self.ties / (self.ties + 2) if first == second else 0.0
    p = _sigmoid((first - second) / self.judge_temperature)
    weight = self.ties * math.sqrt(p * (1 - p))
    return weight / (1 + weight)

  def _reward(self, attributes: Attributes) -> float:
    return (
      self.fact_weight * attributes.fact
      + self.layout_weight * attributes.layout
      + self.name_weight * attributes.name
      + self.tone_weight * attributes.tone
    )

  def _reward_moments(self) -> tuple[float, float]:
    """Mean and standard deviation of a candidate's true reward; a deviation of 0 is given as 1.

    `sample` divides (reward - mean) by the deviation, and where all rewards are equal it needs 0.
    """
    weights = (self.fact_weight, self.layout_weight, self.name_weight)
    variance = self.skill * (1 - self.skill) * sum(w * w for w in weights)
    return self.skill * sum(weights), math.sqrt(variance + 2 / 3 * self.tone_weight**2) or 1.0


def best_reachable(examples: Sequence[Example]) -> float:
  """Share of the labelled comparisons that the true reward agrees with.

  A comparison of two equal true rewards counts half. With `flips` up to 1/2 this is the ceiling of
  accuracy on labels by these judges: a scorer that sees only the texts cannot be expected to agree
  with them more often.

  Raises:
    ValueError: an example has no truth, or none has two labels that differ.
  """
  agreed = total = 0.0
  for example in examples:
    if example.truth is None:
      raise ValueError(f"examples: {example.origin or 'one'} has no truth; expected this world's")
    labels, truth = np.array(example.labels), np.array(example.truth)
    better = labels[:, None] > labels[None, :]
    agreed += np.sum(better * (1 + np.sign(truth[:, None] - truth[None, :])) / 2)
    total += np.sum(better)
  if not total:
    raise ValueError(f"examples: no comparison among {len(examples)}; expected labels that differ")
  return float(agreed / total)


def _generator(split: str, seed: int, stream: str) -> np.random.Generator:
  """The random stream of one of `_STREAMS`, independent for each split and seed."""
  if split not in SPLITS:
    raise ValueError(f"split: {split!r}; expected one of {list(SPLITS)}")
  if seed < 0:
    raise ValueError(f"seed: {seed}; expected >= 0")
  # PCG64 is named, because numpy may change the generator that `default_rng` stands for.
  key = [seed, list(SPLITS).index(split), _STREAMS.index(stream)]
  return np.random.Generator(np.random.PCG64(key))


def _as_text(role: str, content: str, messages: bool) -> Text:
  return ({"role": role, "content": content},) if messages else content


def _content(text: Text) -> str:
  return text if isinstance(text, str) else text[-1]["content"]


def _sigmoid(x: float) -> float:
  return 0.5 * (1 + math.tanh(x / 2))  # 1 / (1 + exp(-x)) overflows where x is very negative.
