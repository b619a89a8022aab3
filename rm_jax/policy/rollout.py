"""Prompts -> sampled responses -> texts -> rewards, and the responses as groups to train on.

Shape letters: P prompts, S samples of each, M tokens of a sample, N texts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rm_jax.batch.group import Group
from rm_jax.errors import InputError
from rm_jax.parallel.hosts import gather
from rm_jax.parallel.mesh import place_batch, rows_multiple
from rm_jax.policy.advantages import check_finite
from rm_jax.policy.generate import Samples, Sampling, generate
from rm_jax.policy.text import Policy
from rm_jax.types import Text

# Rows as `RewardModel.score` takes them -> their N rewards.
Reward = Callable[[list[dict[str, Any]]], Any]
# Rows as `RewardModel.score_steps` takes them -> for each the rewards of its steps.
StepReward = Callable[[list[dict[str, Any]]], Sequence[Any]]

# What is done with a response that was cut off before it ended.
UNFINISHED = ("keep", "subtract", "replace", "leave_out")


@dataclasses.dataclass(frozen=True)
class Rules:
  """What responses earn that the reward model is not asked about, or not alone.

  Attributes:
    empty: the reward of a response without any text but white space, of which the reward model is
      not asked.
    unfinished: of a response without EOS: 'keep' its reward; 'subtract' `penalty` from it;
      'replace' it by `penalty`; or 'leave_out' the response, so that it trains nothing and is not
      compared with others.
    penalty: see `unfinished`.

  Raises InputError for another name, or a number that is not finite.
  """

  empty: float = 0.0
  unfinished: str = "keep"
  penalty: float = 0.0

  def __post_init__(self):
    if self.unfinished not in UNFINISHED:
      raise InputError(
        f"unfinished is {self.unfinished!r}; expected one of {', '.join(UNFINISHED)}"
      )
    for name in ("empty", "penalty"):
      if not np.isfinite(getattr(self, name)):
        raise InputError(f"{name} is {getattr(self, name)}; expected a finite number")


@dataclasses.dataclass(frozen=True)
class Rollout:
  """S responses to each of P prompts, on the host.

  Attributes:
    prompts: P texts.
    prompt_ids: P arrays int32, their tokens.
    texts: P lists of S texts: strings, or, of prompts that are messages, the contents of answers.
    samples: tokens, lengths and log-probabilities (numpy arrays), see `generate.Samples`.
    scores: float32 [P, S], what the reward function gave; NaN where it was not asked.
    rewards: float32 [P, S], scores after `Rules`.
    process: float32 [P, S, M], rewards of steps at the tokens that end them; None = none.
    counts: bool [P, S], responses that take part in the update.
  """

  prompts: list[Text]
  prompt_ids: list[np.ndarray]
  texts: list[list[str]]
  samples: Samples
  scores: np.ndarray
  rewards: np.ndarray
  process: np.ndarray | None
  counts: np.ndarray

  @property
  def where(self) -> np.ndarray:
    """bool [P, S, M]: tokens that an update is about."""
    M = self.samples.tokens.shape[-1]
    return (np.arange(M) < self.samples.length[..., None]) & self.counts[..., None]


def sample(
  policy: Policy,
  params: dict,
  prompt_ids: Sequence[np.ndarray],
  key: jax.Array,
  *,
  samples: int,
  sampling: Sampling,
  mesh: Mesh,
  at_once: int = 32,
) -> Samples:
  """Samples S responses to each of P prompts; numpy arrays.

  Prompts of about the same length are run together, so that little of what is computed is padding,
  in a few static shapes. Which prompts run together does not change the samples, since each prompt
  has a key of its own, that of its number.

  Args:
    policy: see `Policy`.
    params: its parameters on the mesh, nested.
    prompt_ids: P arrays int32.
    key: random key.
    samples: S.
    sampling: see `generate.Sampling`.
    mesh: the devices.
    at_once: prompts that are run together, at most.
  """
  P, many = len(prompt_ids), rows_multiple(mesh)
  size = -(-min(at_once, P) // many) * many
  order = np.argsort([len(ids) for ids in prompt_ids], kind="stable")
  keys_P = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(P))
  parts = []
  for start in range(0, P, size):
    chosen = order[start : start + size]
    rows = np.append(chosen, np.repeat(chosen[-1:], size - len(chosen)))
    width = _width(max(len(prompt_ids[i]) for i in rows))
    tokens_PT = np.zeros((size, width), np.int32)
    for row, i in enumerate(rows):
      tokens_PT[row, : len(prompt_ids[i])] = prompt_ids[i]
    length_P = np.asarray([len(prompt_ids[i]) for i in rows], np.int32)
    with jax.set_mesh(mesh):
      made = generate(
        policy.text_model.network,
        params,
        *place_batch((tokens_PT, length_P), mesh),
        keys_P[rows],
        samples=samples,
        sampling=sampling,
      )
    made = gather(made)
    parts.append(jax.tree.map(lambda x, rows=chosen: x[: len(rows)], made))
  back = np.argsort(order, kind="stable")
  return jax.tree.map(lambda *x: np.concatenate(x)[back], *parts)


def _width(longest: int) -> int:
  """The first of 32, 48, 64, 96, 128, ... that is no less than `longest`."""
  width = 32
  while width < longest:
    width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
  return width


def roll_out(
  policy: Policy,
  params: dict,
  prompts: Sequence[Text],
  reward: Reward,
  key: jax.Array,
  *,
  samples: int,
  sampling: Sampling,
  mesh: Mesh,
  rules: Rules = Rules(),
  step_reward: StepReward | None = None,
  separator: str = "\n",
  at_once: int = 32,
) -> Rollout:
  """Samples responses and has them rewarded as text.

  The reward function is given texts, so that its model may have another tokenizer.

  Args:
    policy, params, key, samples, sampling, mesh, at_once: as `sample` takes them.
    prompts: P strings or messages.
    reward: rows with `prompt` and `response` -> their rewards, such as `RewardModel.score`. It is
      asked once, about all responses that are not empty.
    rules: what other responses earn.
    step_reward: rows with `prompt` and `completions`, the texts of steps -> the rewards of each
      row's steps, such as `RewardModel.score_steps`.
    separator: text that ends a step; the last step ends with the response.

  Raises:
    InputError: a prompt does not fit (`Policy.prompt_ids`); or a reward is not finite: the message
      names its prompt and sample.
    ValueError: a reward function returns another number of rewards.
  """
  prompts = list(prompts)
  prompt_ids = policy.prompt_ids(prompts, sampling.tokens)
  options = dict(samples=samples, sampling=sampling, mesh=mesh, at_once=at_once)
  made = sample(policy, params, prompt_ids, key, **options)
  written, texts = [], []
  for p, prompt in enumerate(prompts):
    lead = policy.lead(prompt)
    own = [_own_ids(made, p, s) for s in range(samples)]
    written.append([policy.text(prompt_ids[p], ids) for ids in own])
    texts.append([text.removeprefix(lead) for text in written[-1]])

  asked = [(p, s) for p in range(len(prompts)) for s in range(samples) if texts[p][s].strip()]
  names = [f"prompt {p}, sample {s} ({texts[p][s]!r:.60})" for p, s in asked]
  at = tuple(np.asarray(asked, int).reshape(-1, 2).T)
  scores = np.full(made.length.shape, np.nan, np.float32)
  rows = [{"prompt": prompts[p], "response": texts[p][s]} for p, s in asked]
  scores[at] = _numbers(reward(rows) if rows else (), len(rows), names)
  rewards = np.where(np.isnan(scores), np.float32(rules.empty), scores)
  cut_off = ~made.ended
  if rules.unfinished == "subtract":
    rewards = np.where(cut_off, rewards - rules.penalty, rewards)
  elif rules.unfinished == "replace":
    rewards = np.where(cut_off, rules.penalty, rewards)
  process = None
  if step_reward is not None:
    process = np.zeros(made.tokens.shape, np.float32)
    steps = []
    for p, s in asked:
      before = len(written[p][s]) - len(texts[p][s])
      steps.append(split_steps(texts[p][s], separator, before))
    rows = [
      {"prompt": prompts[p], "completions": [text for text, _ in mine]}
      for (p, s), mine in zip(asked, steps, strict=True)
    ]
    found = step_reward(rows) if rows else ()
    if len(found) != len(rows):
      raise ValueError(f"step_reward returned {len(found)} items; expected {len(rows)}")
    for (p, s), mine, numbers, name in zip(asked, steps, found, names, strict=True):
      numbers = _numbers(numbers, len(mine), [name] * len(mine))
      marks = _marks(policy, prompt_ids[p], _own_ids(made, p, s), [end for _, end in mine])
      # Two steps end at one token where a token holds two separators.
      np.add.at(process[p, s], marks, numbers)
  counts = ~cut_off if rules.unfinished == "leave_out" else np.ones_like(cut_off)
  rewards = rewards.astype(np.float32)
  return Rollout(prompts, prompt_ids, texts, made, scores, rewards, process, counts)


def _own_ids(made: Samples, p: int, s: int) -> np.ndarray:
  """A sample's tokens, without the one that ended it."""
  return made.tokens[p, s, : made.length[p, s] - made.ended[p, s]]


def _numbers(rewards: Any, count: int, names: Sequence[str]) -> np.ndarray:
  """A reward function's answer as float64 [count]; raises as `roll_out`."""
  rewards = np.asarray(rewards, np.float64)
  if rewards.shape != (count,):
    raise ValueError(f"the reward function returned shape {rewards.shape}; expected ({count},)")
  check_finite(rewards, names)
  return rewards


def split_steps(text: str, separator: str, before: int = 0) -> list[tuple[str, int]]:
  """(a step's text, where it ends) of each step of a response.

  Where it ends is the number of characters up to the end of the separators that follow it, of all
  that the policy wrote, `before` more than the response has; the last step ends with the text.
  White space between two separators is no step.
  """
  steps: list[tuple[str, int]] = []
  end = before
  for part in text.split(separator):
    end += len(part) + len(separator)
    if part.strip() or not steps:
      steps.append((part, end))
    else:
      steps[-1] = steps[-1][0], end
  if len(steps) > 1 and not steps[0][0].strip():  # the text begins with separators
    steps = steps[1:]
  steps[-1] = steps[-1][0], before + len(text)
  return steps


def _marks(policy: Policy, prompt: np.ndarray, ids: np.ndarray, ends: Sequence[int]) -> np.ndarray:
  """int64, for each end of a step the token by which it is written.

  The last step's is the last token of the text, before EOS.
  """
  written = [len(policy.text(prompt, ids[: n + 1])) for n in range(len(ids))]
  marks = np.searchsorted(np.maximum.accumulate(written), ends)
  marks[-1] = len(ids) - 1
  return marks


def groups_of(rollout: Rollout) -> list[Group]:
  """The rollout as P groups: each prompt, and its S responses as branches that share it.

  They are made of the very tokens that were sampled. Texts that are tokenised again may have
  others.
  """
  made, groups = rollout.samples, []
  for p, prompt in enumerate(rollout.prompt_ids):
    length = made.length[p].astype(np.int32)
    ids = tuple(
      np.concatenate([prompt, tokens[:n]]).astype(np.int32)
      for tokens, n in zip(made.tokens[p], length, strict=True)
    )
    groups.append(
      Group(
        ids=ids,
        shared=len(prompt),
        marks=len(prompt) + length - 1,
        response=np.arange(len(ids), dtype=np.int32),
        labels=None,
        length=length,
        kind="score",
      )
    )
  return groups
