"""The texts of a chain: prompts to optimise on and to evaluate on, texts to fine-tune on, truth."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rm_jax.data import formats
from rm_jax.data.dialogue import key_of
from rm_jax.data.feedback import prompt_of
from rm_jax.data.read import read_rows
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.data.requests import read_row
from rm_jax.policy.text import Policy
from rm_jax.rlhf.fields import asked, worlds
from rm_jax.storage.remote import local
from rm_jax.types import Text
from rm_jax.world import World

log = logging.getLogger(__name__)

# (prompts, responses to them as strings) -> their true rewards, float64 [N].
Truth = Callable[[Sequence[Text], Sequence[str]], np.ndarray]

# Which prompts of the world a seed stands for: those of the stages have none in common but by
# chance, and those of evaluations are of a seed of their own.
_STREAMS = ("sft", "preferences", "prompts", "evaluation")


@dataclasses.dataclass(frozen=True)
class Prompts:
  """The prompts of a chain.

  Attributes:
    train: those that it learns from.
    evaluation: those that policies are compared on, none of which is in `train`.
    left_out: prompts that are too long or repeated, or equal one of `evaluation`.
  """

  train: list[Text]
  evaluation: list[Text]
  left_out: int = 0


def world_of(config: Any) -> World | None:
  """The generated world, if the prompts are its own."""
  return World(**config.world) if worlds(config.data.prompts) else None


def truth_of(config: Any) -> Truth | None:
  """The true reward, where it is known: of prompts of the generated world."""
  if (world := world_of(config)) is None:
    return None

  def truth(prompts, responses):
    pairs = zip(prompts, responses, strict=True)
    return np.asarray([world.true_reward(p, _answer(p, r)) for p, r in pairs], np.float64)

  return truth


def _answer(prompt: Text, response: str) -> Text:
  return response if isinstance(prompt, str) else ({"role": "assistant", "content": response},)


def drawn(config: Any, stream: str, count: int) -> list[Text]:
  """Prompts of the generated world for one of `_STREAMS`, messages, all different."""
  seed = config.data.evaluation_seed if stream == "evaluation" else config.seed
  at = len(_STREAMS) * seed + _STREAMS.index(stream)
  return World(**config.world).prompts("train", count, at)


def read_prompts(config: Any, policy: Policy) -> Prompts:
  """The prompts that a config names.

  Args:
    config: the chain's.
    policy: by whose tokens a prompt is too long.

  Raises:
    DataError: they cannot be read, or too few are left.
  """
  name, count = config.data.prompts, config.data.evaluation
  if worlds(name):
    held = drawn(config, "evaluation", count)
    every = drawn(config, "prompts", asked(name, "data.prompts"))
    rest = fitting(every, config, policy)
    long = len(fitting(held, config, policy)) < count
    if long or not rest:
      raise DataError(
        f"{name}: {'of the evaluation prompts not all' if long else 'none of the prompts'} leave "
        f"room for sampling.tokens={config.sampling.tokens} in data.max_length="
        f"{config.data.max_length}; expected a larger --config.data.max_length"
      )
    if len(rest) < len(every):
      short = len(every) - len(rest)
      log.warning("%s: %d of %d prompts are too long: left out", name, short, len(every))
  else:
    every = _distinct(prompts_in(name))
    order = np.random.default_rng(config.data.evaluation_seed).permutation(len(every))
    every = [every[i] for i in order]
    fit = fitting(every, config, policy)
    held, rest = fit[:count], fit[count:]
    if not rest or len(held) < count:
      raise DataError(
        f"{name}: {len(every)} different prompts, of which {len(fit)} leave room for "
        f"sampling.tokens={config.sampling.tokens} in data.max_length={config.data.max_length}; "
        f"expected more than the data.evaluation={count} that are set aside"
      )
    left_out = len(every) - len(fit)
    if left_out:
      log.warning("%s: %d of %d prompts are too long: left out", name, left_out, len(every))
    return Prompts(rest, held, left_out)
  known = {key_of(prompt) for prompt in held}
  train = [prompt for prompt in rest if key_of(prompt) not in known]
  return Prompts(train, held, len(every) - len(train))


def prompts_in(name: str) -> list[Text]:
  """The prompts of a file, folder or hub id, in order.

  Rows have `prompt`, a string or messages; or they are feedback that `data.formats.load` reads, and
  their prompts are taken.

  Raises:
    DataError: not one can be read.
  """
  report, found = Report(), []
  for n, (origin, row) in enumerate(read_rows(local(name), report)):
    if "prompt" not in row:
      if n == 0:  # feedback of a form without a prompt of its own
        return [example.prompt for example in formats.load(local(name), report=Report())]
      report.drop("missing_column", origin, f"columns {sorted(row)}; expected 'prompt'")
      continue
    try:
      found.append(prompt_of(row))
    except RowError as error:
      report.drop(error.reason, origin, error.detail)
  if not found:
    raise DataError(f"{name}: no prompt in it; expected rows with 'prompt'. {report}")
  if report.dropped:
    log.warning("%s: %s", name, report)
  return found


def _distinct(prompts: Sequence[Text]) -> list[Text]:
  return list({key_of(prompt): prompt for prompt in prompts}.values())


def fitting(prompts: Sequence[Text], config: Any, policy: Policy) -> list[Text]:
  """The prompts that leave room for a response in data.max_length and the model's positions."""
  room = config.sampling.tokens
  positions = policy.text_model.network.backbone.max_positions
  most = min(config.data.max_length, positions) - room
  return [prompt for prompt in prompts if 0 < policy.length(prompt) <= most]


def texts_of(config: Any, held: Sequence[Text]) -> list[tuple[Text, Text]]:
  """The (prompt, response) texts of sft.texts, in order, without those of evaluation prompts.

  Raises:
    DataError: they cannot be read, or all are of evaluation prompts.
  """
  name, known = config.sft.texts, {key_of(prompt) for prompt in held}
  if worlds(name):
    world, rng = World(**config.world), np.random.default_rng([config.seed, 1])
    rows = [
      (prompt, world.sample(prompt, 1, rng)[0].response)
      for prompt in drawn(config, "sft", asked(name, "sft.texts"))
    ]
  else:
    report = Report(strict=True)
    read = [read_row(row, origin, "response") for origin, row in read_rows(local(name), report)]
    rows = [(one.prompt, one.response) for one in read]
  kept = [row for row in rows if key_of(row[0]) not in known]
  if not kept:
    raise DataError(
      f"sft.texts={name}: all {len(rows)} texts are answers to the {len(held)} prompts that are "
      "set aside for evaluations; expected others, too, or a smaller --config.data.evaluation"
    )
  return kept
