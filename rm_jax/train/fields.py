"""Which values a config's fields may have, checked before any data or weights are read.

A wrong value that is found after an hour of reading data costs that hour; some, such as
`train.keep=0`, would lose the trained model. What depends on the model or the data is checked where
these are read.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections
import numpy as np

from rm_jax.data.columns import Given
from rm_jax.data.formats import FORMATS, check_columns
from rm_jax.errors import InputError
from rm_jax.losses import asks_for_baseline
from rm_jax.losses.process import SO_FAR
from rm_jax.models.layers import REMAT
from rm_jax.models.lora import MAPS
from rm_jax.train.optimizer import make_optimizer, make_schedule
from rm_jax.train.parse import check_loss, parse_loss
from rm_jax.types import KINDS
from rm_jax.workdir.folder import flat
from rm_jax.world import World


@dataclasses.dataclass(frozen=True)
class Rule:
  """Which values a field may have: a predicate, and a description for error messages."""

  fits: Callable[[Any], bool]
  expected: str


def whole(low: int, also: str = "", high: int = 2**31 - 1) -> Rule:
  """An integer in low .. high; `also` is added to the description."""

  def fits(value):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

  return Rule(fits, f"a whole number of at least {low}{also}")


def real(low: float = 0.0, *, above: bool = False, below: float = math.inf) -> Rule:
  """A number, finite in float32 too, at least `low` (with `above`, above it) and under `below`."""

  def fits(value):
    if isinstance(value, bool) or not isinstance(value, int | float):
      return False
    with np.errstate(over="ignore"):
      finite = math.isfinite(value) and np.isfinite(np.float32(value))
    return bool(finite) and (low < value if above else low <= value) and value < below

  what = f"a finite number {'above' if above else 'of at least'} {low:g}"
  return Rule(fits, what + (f" and under {below:g}" if below < math.inf else ""))


def one_of(names: Iterable[str]) -> Rule:
  """One of some texts."""
  names = tuple(names)
  return Rule(lambda value: value in names, f"one of {', '.join(map(repr, names))}")


def each(fits: Callable[[Any], bool], expected: str) -> Rule:
  def all_fit(values):
    return isinstance(values, list | tuple) and all(map(fits, values))

  return Rule(all_fit, f"a tuple of {expected}")


def _fraction_or_name(value: Any) -> bool:
  try:
    return 0 <= float(value) < 1
  except (TypeError, ValueError):
    return isinstance(value, str)


def _pattern(value: Any) -> bool:
  try:
    return bool(re.compile(value)) or True
  except (TypeError, re.error):
    return False


SWITCH = Rule(lambda value: isinstance(value, bool), "True or False")
TEXT = Rule(lambda value: isinstance(value, str), "a text")
_WEIGHT = real()
SIZE = whole(1)
COUNT = whole(0)
# That the axes multiply to the number of devices is checked by `make_mesh` in parallel/mesh.py.
_AXIS = Rule(lambda n: isinstance(n, int) and (n == -1 or n >= 1), "at least 1, or -1 for the rest")

FIELDS: dict[str, Rule] = {
  "seed": whole(0, high=2**32 - 1),
  **dict.fromkeys(("model.pretrained", "model.config", "model.tokenizer"), TEXT),
  "model.chat_template": TEXT,
  "model.eos": one_of(("auto", "append", "none")),
  "model.pooling": one_of(("", "last", "first", "mean", "hf")),
  "model.steps": one_of(SO_FAR),
  "model.reward": one_of(("head", "implicit")),
  "model.beta": real(above=True),
  "model.reference": Rule(
    lambda value: isinstance(value, str) and bool(value),
    "'start', 'none', or a language model's folder, hub id or GGUF file",
  ),
  "model.normalised": SWITCH,
  "model.head_init": one_of(("random", "verdict")),
  "model.question": TEXT,
  "model.verdict_words": each(lambda x: isinstance(x, str) and bool(x.strip()), "two words"),
  "model.layers": COUNT,
  "model.frozen_layers": COUNT,
  "model.keep_features": SWITCH,
  "model.keep_gib": _WEIGHT,
  "model.dtype": one_of(("float32", "bfloat16", "float16")),
  "model.attention": one_of(("auto", "splash", "cudnn", "xla")),
  "model.remat": one_of(REMAT),
  "model.members": SIZE,
  "model.bootstrap": SWITCH,
  "model.attributes": each(lambda x: isinstance(x, str) and bool(x), "names"),
  "model.gate": SWITCH,
  "model.gate_trains": _WEIGHT,
  "model.mix": each(real(-math.inf).fits, "finite numbers"),
  "model.lora.rank": COUNT,
  "model.lora.alpha": real(above=True),
  "model.lora.targets": each(lambda x: x in MAPS, f"names of {', '.join(MAPS)}"),
  "model.lora.base_dtype": one_of(("float32", "bfloat16")),
  "model.dropout": SWITCH,
  "data.train": TEXT,
  "data.heldout": Rule(_fraction_or_name, "a path, 'world:N', or a fraction in [0, 1)"),
  "data.validation": real(below=1.0),
  "data.fraction": Rule(lambda x: real().fits(x) and 0 < x <= 1, "a number in (0, 1]"),
  "data.split_seed": whole(-1, ", or -1 for the run's seed", high=2**32 - 1),
  "data.shifted": TEXT,
  "data.objectives": TEXT,
  "data.format": one_of(("auto", *sorted(FORMATS))),
  "data.strict": SWITCH,
  "data.deduplicate": SWITCH,
  "data.limit": COUNT,
  "data.cache": TEXT,
  "data.batch_groups": SIZE,
  "data.max_length": SIZE,
  "data.max_prompt_length": COUNT,
  "data.share": SWITCH,
  "data.pack": SWITCH,
  "data.cells": SIZE,
  "data.row_lengths": each(SIZE.fits, "whole numbers of at least 1"),
  "data.shapes": SIZE,
  **{
    f"loss.{name}": _WEIGHT
    for name in ("l2", "centering", "spread", "decorrelation", "text_sft", "text_dpo")
  },
  "loss.text_beta": real(above=True),
  "optimizer.learning_rate": _WEIGHT,
  "optimizer.warmup_steps": whole(-1, ", or -1 for 3 % of decay_steps"),
  "optimizer.decay_steps": COUNT,
  "optimizer.final_scale": _WEIGHT,
  "optimizer.b1": real(below=1.0),
  "optimizer.b2": real(below=1.0),
  "optimizer.eps": real(above=True),
  "optimizer.clip": _WEIGHT,
  "optimizer.weight_decay": _WEIGHT,
  "optimizer.towards_pretrained": _WEIGHT,
  "optimizer.mix_rate": _WEIGHT,
  "optimizer.head_rate": _WEIGHT,
  "optimizer.loss_rate": _WEIGHT,
  "optimizer.freeze": each(_pattern, "regular expressions"),
  "train.steps": COUNT,
  "train.epochs": real(above=True),
  "train.log_every": SIZE,
  "train.eval_every": COUNT,
  "train.checkpoint_every": COUNT,
  "train.keep": SIZE,
  "train.max_skipped": SIZE,
  "train.best": TEXT,
  "train.patience": COUNT,
  **{f"mesh.{axis}": _AXIS for axis in ("data", "fsdp", "tensor")},
}


def _check_columns(data: Any) -> None:
  """Checks data.columns and those of data.sources; configs of older runs have none."""
  given: list[tuple[str, Given, str]] = [
    ("--config.data.columns", data.get("columns"), data.format),
    *(
      (f"data.sources.{name}.columns", source.get("columns"), source.get("format") or data.format)
      for name, source in data.sources.items()
      if hasattr(source, "get") and isinstance(source.get("format") or "", str)
    ),
  ]
  for where, columns, format in given:
    check_columns(columns, format, where)


def _check_baseline(config: Any, field: str) -> None:
  """Raises InputError unless the reward is a likelihood beside a reference's."""
  reward, reference = (config.model.get(name) for name in ("reward", "reference"))
  if reward != "implicit" or reference == "none":
    raise InputError(
      f"--config.{field}={config.loss[field.partition('.')[2]]!r}: baseline='batch' estimates how "
      "far the model has moved from its reference, and --config.model.reward is "
      f"{reward!r}, --config.model.reference {reference!r}; expected 'implicit' and a reference, "
      "or a number for the baseline"
    )


def check_fields(config: ml_collections.ConfigDict, own: Mapping[str, Rule] | None = None) -> None:
  """Checks the fields of a config; of data.sources only the columns.

  Args:
    config: an experiment's.
    own: path -> rule of the fields that only one command has, which the config must have.

  Raises:
    InputError: a field of `own` is missing or a value is wrong. The message lists all fields whose
      rule is broken; if none is, the first that is wrong of columns, optimiser, losses and world.
  """
  own, values = own or {}, flat(config)
  if missing := [path for path in own if path not in values]:
    raise InputError(f"the config has no {', '.join(missing)}; expected {' and '.join(own)}")
  wrong = [
    f"--config.{path}={values[path]!r}: expected {rule.expected}"
    for path, rule in {**FIELDS, **own}.items()
    if path in values and not rule.fits(values[path])
  ]
  if values.get("train.best") and not values["data.validation"]:
    wrong.append(
      f"--config.train.best={values['train.best']!r} and --config.data.validation=0: expected a "
      "fraction of the training conversations to choose by, such as 0.1"
    )
  if values.get("train.patience") and not values["train.best"]:
    wrong.append("--config.train.patience is set and --config.train.best is not: expected both")
  longest, prompt = values["data.max_length"], values.get("data.max_prompt_length", 0)
  if not wrong and prompt >= longest:
    wrong.append(
      f"--config.data.max_prompt_length={prompt} and --config.data.max_length={longest}: expected "
      "fewer tokens of a prompt than of a prompt with its response, or 0 for no limit of its own"
    )
  if wrong:
    raise InputError("\n  ".join(wrong))
  _check_columns(config.data)
  optimizer = config.optimizer.copy_and_resolve_references()
  # -1 and 0 mean that these follow the data, which are not known yet; any valid value will do.
  optimizer.warmup_steps = max(0, optimizer.warmup_steps)
  optimizer.decay_steps = max(1, optimizer.decay_steps)
  make_optimizer(optimizer, make_schedule(optimizer))
  for kind in KINDS:
    if kind in config.loss:
      loss, options = parse_loss(config.loss[kind], f"loss.{kind}")
      check_loss(loss, options, f"loss.{kind}", kind)
      if asks_for_baseline(options):
        _check_baseline(config, f"loss.{kind}")
      if not loss.bounded and config.model.get("reward") != "implicit":
        raise InputError(
          f"--config.loss.{kind}={config.loss[kind]!r} has no lower bound for a head's scores; "
          "expected another loss, or --config.model.reward=implicit"
        )
  try:
    World(**config.data.world)
  except (TypeError, ValueError) as error:
    raise InputError(f"--config.data.world: {error}") from error
