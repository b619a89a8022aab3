"""Fields of a chain's config: every config file is right, and each mistake names its field."""

import pytest

from configs import rlhf, rlhf_smollm2, rlhf_world
from experiments.rlhf_study import config_of as setting_of
from experiments.rlhf_study import seeds_of
from rm_jax.errors import InputError
from rm_jax.rlhf.fields import OWN, check
from rm_jax.workdir.folder import flat
from tests.rlhf.small import config_of


def test_every_field_has_a_rule_and_every_rule_a_field():
  values = flat(rlhf.get_config())
  parts = ("policy.", "sft.optimizer.", "optimizer.", "mesh.", "world.", "reward.run.", "dpo.")
  own = {path for path in values if not path.startswith(parts)}
  assert own == OWN.keys()


def test_the_configs_are_right():
  check(rlhf_world.get_config())
  own = rlhf_smollm2.get_config()
  own.data.prompts, own.reward.model = "prompts.jsonl", "runs/mine"
  check(own)
  check(rlhf_smollm2.get_config("world"))
  with pytest.raises(InputError, match="found 'words' behind the ':'; expected 'world'"):
    rlhf_smollm2.get_config("words")
  settings = rlhf_world.sweep()
  for name, changes in settings.items():
    assert setting_of(rlhf_world.get_config(), name, changes, 1).seed == 1
  counts = seeds_of(settings, rlhf_world.SEEDS, 0)
  assert counts["ppo/no KL"] == counts["ppo/KL 0.05"] == counts["others/dpo"] == 5
  assert counts["guards/clip"] == counts["ppo/KL 0.2"] == counts["others/best of n"] == 3


WRONG = {
  "method": ("reinforce", "--config.method='reinforce': expected one of 'ppo'"),
  "sampling.top_p": (0.0, r"top_p=0\.0: expected a number in \(0, 1\]"),
  "rules.unfinished": ("drop", "rules.unfinished='drop'"),
  "rl.turns": (0, "rl.turns=0: expected a whole number of at least 1"),
  "optimizer.learning_rate": (-1.0, r"optimizer\.learning_rate=-1\.0"),
  "sft.optimizer.b2": (1.0, r"sft\.optimizer\.b2=1\.0"),
  "policy.dtype": ("int8", "policy.dtype='int8'"),
  "policy.pretrained": ("x", "expected one of them"),
  "policy.reward": ("head", "a policy is a language model"),
  "reward.run.loss.pair": ("hing", "of --config.reward.run: .*hing"),
  "dpo.train.keep": (0, r"of --config.dpo: --config\.train\.keep=0"),
  "data.prompts": ("world:5:2", "expected 'world:N'"),
  "sft.texts": ("", "policy has random weights"),
  "sampling.tokens": (128, "to leave room for a prompt"),
  "world.ties": (0.5, "calls no tie"),
  "world.skill": (1.5, "--config.world: skill"),
  "rl.samples": (1, "expected 2 or more"),
  "rl.target_kl": (3.0, "whose coefficient is fixed"),
  "rl.estimator": ("k1", "no gradient on average"),
  "shaping": ("squash", "squash"),
  "policy.dropout": (True, "policy.dropout=True: nothing in a chain uses it"),
  "policy.beta": (0.5, "policy.beta=0.5: nothing in a chain uses it"),
  "sft.optimizer.head_rate": (20.0, "sft.optimizer.head_rate=20.0: nothing"),
  "policy.eos": ("none", "would not learn to end"),
  "sampling.temperature": (0.0, "all responses to a prompt would be the same"),
  "preferences.path": ("none.jsonl", "no such file"),
  "reward.model": ("/none", "reward.model: /none: no such folder"),
  "reward.gold": ("~/none, ./other", "reward.gold: ~/none: no such folder"),
}


@pytest.mark.parametrize(
  ("method", "changes", "message"),
  [
    ("dpo", {"dpo__model__reward": "head"}, "trains the policy's implicit reward"),
    ("best_of_n", {"rules__unfinished": "leave_out"}, "which compares all samples"),
    ("ppo", {"shaping": "lower(deviations=1.0)"}, "'lower' is of an ensemble"),
    ("ppo", {"data__prompts": "prompts.jsonl"}, "nobody to judge"),
  ],
)
def test_fields_that_contradict_one_another_are_refused(method, changes, message, tmp_path):
  check(config_of(tmp_path, method))
  with pytest.raises(InputError, match=message):
    check(config_of(tmp_path, method, **changes))


def test_an_ensemble_may_be_named_in_three_ways(tmp_path):
  for changes in (
    {"reward__members": 2},
    {"reward__run__model__members": 2},
    {"reward__model": "runs/ensemble"},
  ):
    check(config_of(tmp_path, shaping="lower(deviations=1.0)", **changes))


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_value_is_refused(path, tmp_path):
  value, message = WRONG[path]
  config = config_of(tmp_path)
  check(config)
  config.update_from_flattened_dict({path: value})
  with pytest.raises(InputError, match=message):
    check(config)


def test_a_target_needs_a_coefficient_to_begin_with(tmp_path):
  for method in ("ppo", "rloo"):
    config = config_of(tmp_path, method, rl__target_kl=3.0)
    check(config)
    config.rl.coefficient = 0.0
    with pytest.raises(InputError, match=r"target_kl=3\.0 and --config\.rl\.coefficient=0"):
      check(config)


STEPS = {
  "method": ("grpo", "method='grpo', which takes one reward a response"),
  "reward.model": ("", "expected folders of models that score steps"),
  "reward.separator": ("", r"reward.separator='': expected text of a character or more"),
  "shaping": ("clip(low=-1, high=1)", "is for scores of whole responses"),
  "rules.unfinished": ("replace", "the rewards of the steps would remain"),
}


@pytest.mark.parametrize("path", STEPS)
def test_where_steps_earn_nothing_they_are_refused(path, tmp_path):
  value, message = STEPS[path]
  config = config_of(tmp_path, "ppo", reward__steps=True, reward__model="runs/prm")
  check(config)
  config.update_from_flattened_dict({path: value})
  with pytest.raises(InputError, match=message):
    check(config)
  for other in ("best_of_n", "dpo"):
    with pytest.raises(InputError, match=f"method='{other}'"):
      check(config_of(tmp_path, other, reward__steps=True, reward__model="runs/prm"))
  with pytest.raises(InputError, match="so does a server"):
    check(config_of(tmp_path, "ppo", reward__steps=True, reward__model="http://localhost:1/x"))


def test_a_field_that_is_missing_is_named(tmp_path):
  config = config_of(tmp_path)
  with config.unlocked():
    del config.rl.lam
  with pytest.raises(InputError, match=r"has no rl\.lam"):
    check(config)
