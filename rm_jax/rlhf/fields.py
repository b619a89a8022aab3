"""Which values the fields of a chain's config may have, checked before anything is run."""

import re
from typing import Any

from rm_jax.errors import InputError
from rm_jax.policy.kl import ESTIMATORS
from rm_jax.policy.rollout import UNFINISHED
from rm_jax.policy.surrogate import MEANS
from rm_jax.shaping.chain import plan
from rm_jax.storage.files import expanded
from rm_jax.train.fields import (
  COUNT,
  FIELDS,
  SIZE,
  SWITCH,
  TEXT,
  Rule,
  check_fields,
  one_of,
  real,
  whole,
)
from rm_jax.workdir.folder import flat
from rm_jax.world import World

TURNS = ("ppo", "grpo", "rloo")  # methods that take turns of sampling and updates
METHODS = (*TURNS, "dpo", "best_of_n")

_ANY = real(-float("inf"))
_SHARE = Rule(lambda x: real().fits(x) and x <= 1, "a number in [0, 1]")
_OVER_0 = Rule(lambda x: real().fits(x) and 0 < x <= 1, "a number in (0, 1]")

# Path -> rule, of the fields that configs/base.py does not have.
OWN: dict[str, Rule] = {
  "seed": FIELDS["seed"],
  "method": one_of(METHODS),
  "shaping": TEXT,
  "data.prompts": TEXT,
  "data.evaluation": whole(2),
  "data.evaluation_samples": SIZE,
  "data.evaluation_seed": COUNT,
  "data.max_length": whole(2),
  "sft.texts": TEXT,
  "sft.epochs": real(above=True),
  "sft.heldout": COUNT,
  **{f"sft.{name}": SIZE for name in ("batch", "log_every", "checkpoint_every")},
  "preferences.path": TEXT,
  "preferences.pairs": whole(2),
  "preferences.samples": whole(2),
  "reward.model": TEXT,
  "reward.gold": TEXT,
  "reward.members": SIZE,
  "reward.from_policy": SWITCH,
  "reward.steps": SWITCH,
  "reward.separator": Rule(lambda x: isinstance(x, str) and x != "", "text of a character or more"),
  "best_of_n.samples": whole(4),
  "sampling.tokens": SIZE,
  "sampling.temperature": real(),
  "sampling.top_p": _OVER_0,
  "rules.empty": _ANY,
  "rules.unfinished": one_of(UNFINISHED),
  "rules.penalty": _ANY,
  **{
    f"rl.{name}": SIZE
    for name in (
      "turns",
      "prompts",
      "samples",
      "epochs",
      "eval_every",
      "checkpoint_every",
      "keep",
      "cells",
      "max_skipped",
      "texts_every",
    )
  },
  "rl.minibatch": COUNT,
  "rl.texts": COUNT,
  "rl.coefficient": real(),
  "rl.target_kl": real(),
  "rl.estimator": one_of(("", *ESTIMATORS)),
  "rl.gamma": _SHARE,
  "rl.lam": _SHARE,
  "rl.clip": _OVER_0,
  "rl.value": real(above=True),
  "rl.value_clip": real(),
  "rl.scale": SWITCH,
  "rl.mean": one_of(MEANS),
  "stop.acts": SWITCH,
  "stop.patience": SIZE,
  "stop.disagreement": real(),
  "stop.drift": _SHARE,
  "stop.surprise": _SHARE,
}
# Parts of the config that are parts of configs/base.py, under another path.
_PARTS = {"policy": "model", "sft.optimizer": "optimizer", "optimizer": "optimizer", "mesh": "mesh"}


# Fields of these parts that a policy does not read, with their values in configs/base.py.
_UNUSED: dict[str, dict[str, Any]] = {
  "policy": {"dropout": False, "normalised": False, "beta": 0.1},
  "optimizer": {"head_rate": 1.0, "mix_rate": 0.0, "loss_rate": 100.0},
}


def _rules() -> dict[str, Rule]:
  rules = dict(OWN)
  for part, of in _PARTS.items():
    for path, rule in FIELDS.items():
      if path.startswith(f"{of}."):
        rules[part + path.removeprefix(of)] = rule
  return rules


def check(config: Any) -> None:
  """Checks the fields of a chain's config.

  Raises:
    InputError: a field is missing or has a value that it may not have; the message names all such.
      Or fields contradict one another.
  """
  values = flat(config)
  if missing := [path for path in OWN if path not in values]:
    raise InputError(f"the config has no {', '.join(missing)}; expected those of configs/rlhf.py")
  wrong = [
    f"--config.{path}={values[path]!r}: expected {rule.expected}"
    for path, rule in _rules().items()
    if path in values and not rule.fits(values[path])
  ]
  if wrong:
    raise InputError("\n  ".join(wrong))
  for part in ("reward.run", "dpo"):
    try:
      check_fields(config.reward.run if part == "reward.run" else config.dpo)
    except InputError as error:
      raise InputError(f"of --config.{part}: {error}") from error
  try:
    World(**config.world)
  except (TypeError, ValueError) as error:
    raise InputError(f"--config.world: {error}") from error
  _check_policy(config)
  _check_data(config)
  _check_method(config)
  _check_reward(config)
  if config.reward.steps:
    _check_steps(config)


def _check_policy(config: Any) -> None:
  policy = config.policy
  if bool(policy.pretrained) == bool(policy.config):
    raise InputError(
      f"--config.policy.pretrained={policy.pretrained!r} and --config.policy.config="
      f"{policy.config!r}; expected one of them: a language model, or a config.json for random "
      "weights"
    )
  if policy.reward != "implicit" or policy.reference != "none":
    raise InputError(
      f"--config.policy.reward={policy.reward!r} and --config.policy.reference="
      f"{policy.reference!r}; expected 'implicit' and 'none': a policy is a language model"
    )
  if not policy.pretrained and not config.sft.texts:
    raise InputError(
      "the policy has random weights and --config.sft.texts is ''; expected texts to fine-tune it "
      "on, or --config.policy.pretrained"
    )

  unused = [
    f"--config.policy.{name}={policy[name]!r}"
    for name, value in _UNUSED["policy"].items()
    if policy[name] != value
  ]
  unused += [
    f"--config.{part}.{name}={settings[name]!r}"
    for part, settings in (("optimizer", config.optimizer), ("sft.optimizer", config.sft.optimizer))
    for name, value in _UNUSED["optimizer"].items()
    if settings[name] != value
  ]
  if unused:
    raise InputError(
      f"{', '.join(unused)}: nothing in a chain uses it; expected the values of configs/rlhf.py"
    )
  if config.sft.texts and policy.eos == "none":
    raise InputError(
      "--config.policy.eos='none' and --config.sft.texts: the policy would not learn to end its "
      "responses; expected 'append' or 'auto'"
    )


def _check_data(config: Any) -> None:
  data = config.data
  if not data.prompts:
    raise InputError("--config.data.prompts is ''; expected 'world:N' or a file of prompts")
  if config.sampling.tokens >= data.max_length:
    raise InputError(
      f"--config.sampling.tokens={config.sampling.tokens} and --config.data.max_length="
      f"{data.max_length}: expected fewer tokens of a response, to leave room for a prompt"
    )
  for field, name in (("data.prompts", data.prompts), ("sft.texts", config.sft.texts)):
    if worlds(name):
      asked(name, field)
  if config.world.ties:
    raise InputError(
      f"--config.world.ties={config.world.ties}: the judge of sampled pairs calls no tie; "
      "expected 0.0"
    )


def _check_method(config: Any) -> None:
  method, rl = config.method, config.rl
  if config.shaping:
    plan(config.shaping, "--config.shaping")
  if method in TURNS and rl.target_kl and not rl.coefficient:
    raise InputError(
      f"--config.rl.target_kl={rl.target_kl} and --config.rl.coefficient=0: the coefficient is "
      "adapted by factors, so that 0 stays 0; expected a coefficient above 0 to begin with"
    )
  if method == "dpo" and config.dpo.model.reward != "implicit":
    raise InputError(
      f"--config.dpo.model.reward={config.dpo.model.reward!r} and --config.method='dpo', which "
      "trains the policy's implicit reward; expected 'implicit'"
    )
  if method == "best_of_n" and config.rules.unfinished == "leave_out":
    raise InputError(
      "--config.rules.unfinished='leave_out' and --config.method='best_of_n', which compares all "
      "samples; expected 'keep', 'subtract' or 'replace'"
    )
  if method in TURNS and method != "ppo" and not config.sampling.temperature:
    raise InputError(
      f"--config.sampling.temperature=0 and --config.method={method!r}: all responses to a prompt "
      "would be the same, and there would be nothing to compare; expected a number above 0"
    )
  if method == "ppo":
    return
  if method in TURNS and rl.samples < 2:
    raise InputError(
      f"--config.method={method!r} and --config.rl.samples={rl.samples}: expected 2 or more "
      "responses to each prompt, which are compared with one another"
    )
  if method == "grpo":
    if rl.estimator == "k1":
      raise InputError(
        "--config.rl.estimator='k1' and --config.method='grpo', which has the divergence in its "
        "loss, where k1 has no gradient on average; expected 'k2', 'k3' or ''"
      )
    if rl.target_kl:
      raise InputError(
        f"--config.rl.target_kl={rl.target_kl} and --config.method='grpo', whose coefficient is "
        "fixed; expected 0"
      )


def _check_reward(config: Any) -> None:
  """Raises InputError where a reward model, or whoever judges the preferences, cannot be had."""
  reward, missing = config.reward, False
  for field in ("reward.model", "reward.gold"):
    for name in names_of(config.reward[field.removeprefix("reward.")]):
      # Another name may be the hub's.
      if name.startswith(("/", ".", "~")) and not expanded(name).exists():
        raise InputError(
          f"--config.{field}: {name}: no such folder; expected a reward model's, or a hub id"
        )
  if config.shaping:
    made = plan(config.shaping, "--config.shaping")
    missing = bool(made.missing)
    alone = not reward.model and reward.members == 1 and reward.run.model.members == 1
    if alone and any(cls.name == "lower" for cls, _ in made.stages):
      raise InputError(
        f"--config.shaping={config.shaping!r} and --config.reward.members=1: 'lower' is of an "
        "ensemble; expected members of 2 or more"
      )
  path = config.preferences.path
  if path and not expanded(path).is_file():
    raise InputError(f"--config.preferences.path={path}: no such file; expected one of preferences")
  needed = not path and (not reward.model or config.method == "dpo" or missing)
  if needed and not (worlds(config.data.prompts) or reward.gold or reward.model):
    raise InputError(
      "there is nobody to judge pairs of the policy's responses; expected --config.data.prompts="
      "world:N, a reward model as --config.reward.gold or --config.reward.model, or a file of "
      "preferences as --config.preferences.path"
    )


def names_of(models: str) -> list[str]:
  """The folders or the URL of a field such as reward.model."""
  return [name.strip() for name in models.split(",") if name.strip()]


def _check_steps(config: Any) -> None:
  """Raises InputError where rewards of steps cannot be had, or not be used."""
  given, where = config.reward.model, "--config.reward.steps=True"
  if config.method not in ("ppo", "rloo"):
    raise InputError(
      f"{where} and --config.method={config.method!r}, which takes one reward a response; expected "
      "'ppo' or 'rloo'"
    )
  if not given or given.startswith(("http://", "https://")):
    raise InputError(
      f"{where} and --config.reward.model={given!r}; expected folders of models that score steps: "
      "a model of the chain's own preferences scores whole responses, and so does a server"
    )
  if config.shaping:
    raise InputError(
      f"{where} and --config.shaping={config.shaping!r}: a chain of shaping is for scores of whole "
      "responses; expected ''"
    )
  if config.rules.unfinished == "replace":
    raise InputError(
      f"{where} and --config.rules.unfinished='replace': the rewards of the steps would remain; "
      "expected 'keep', 'subtract' or 'leave_out'"
    )


def worlds(name: str) -> bool:
  """Whether a name of data is the generated world's."""
  return name.partition(":")[0] == "world"


def asked(name: str, field: str) -> int:
  """N of 'world:N'.

  Raises:
    InputError: the name is not of that form.
  """

  if not (found := re.fullmatch(r"world:([1-9]\d*)", name)):
    raise InputError(
      f"--config.{field}={name!r}: expected 'world:N', N the number of prompts; the world's "
      "options are --config.world.*"
    )
  return int(found[1])
