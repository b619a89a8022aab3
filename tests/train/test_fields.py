"""What a config may not say is refused before anything is read, by the name of its flag."""

import importlib
import math
from pathlib import Path

import pytest

from configs.base import get_config
from rm_jax.train import loop
from rm_jax.train.fields import FIELDS, check_fields
from rm_jax.workdir.folder import flat

WRONG = {
  "seed": -1,
  "model.eos": "always",
  "model.pooling": "median",
  "model.layers": -1,
  "model.frozen_layers": -2,
  "model.keep_gib": math.nan,
  "model.dtype": "float64",
  "model.attention": "flash",
  "model.remat": "some",
  "model.members": 0,
  "model.attributes": ("",),
  "model.mix": (math.inf,),
  "model.lora.rank": -4,
  "model.lora.alpha": 0.0,
  "model.lora.targets": ("query",),
  "model.lora.base_dtype": "int8",
  "data.heldout": "1.5",
  "data.split_seed": -2,
  "data.format": "pears",
  "data.limit": -1,
  "data.batch_groups": 0,
  "data.max_length": 0,
  "data.max_prompt_length": -1,
  "data.cells": 0,
  "data.row_lengths": (0,),
  "data.shapes": 0,
  "loss.l2": -1.0,
  "loss.spread": math.inf,
  "loss.text_beta": 0.0,
  "optimizer.learning_rate": -1e-5,
  "optimizer.warmup_steps": -2,
  "optimizer.decay_steps": -1,
  "optimizer.final_scale": -0.1,
  "optimizer.b1": 1.0,
  "optimizer.b2": -0.5,
  "optimizer.eps": 0.0,
  "optimizer.clip": math.nan,
  "optimizer.weight_decay": 1e39,  # infinite in float32
  "optimizer.freeze": ("(",),
  "train.steps": -3,
  "train.epochs": 0.0,
  "train.log_every": 0,
  "train.eval_every": -1,
  "train.checkpoint_every": -1,
  "train.keep": 0,
  "train.max_skipped": 0,
  "mesh.data": 0,
  "mesh.tensor": -2,
}


@pytest.mark.parametrize("field", WRONG)
def test_a_value_that_cannot_be_meant_is_refused_by_its_name(field, tmp_path):
  config = get_config()
  config.update_from_flattened_dict({field: WRONG[field]})
  with pytest.raises(ValueError, match=f"^--config.{field}=.*: expected "):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("optimizer.name", "adam", "optimizer.name is 'adam'; expected one of adamw"),
    ("optimizer.schedule", "step", "optimizer.schedule is 'step'; expected one of"),
    ("loss.pair", "logistic(smoothing=0.7)", r"loss.pair: smoothing is 0.7"),
    ("loss.pair", "logistic(temperature=-1)", r"loss.pair: temperature is -1"),
    ("loss.pair", "nothing", "loss.pair is 'nothing'; expected one of"),
    ("loss.score", "ordinal(classes=1)", "loss.score: classes is 1"),
    ("data.world.flips", 2.0, "--config.data.world: "),
  ],
)
def test_what_others_know_is_asked_of_them(field, value, message):
  config = get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    check_fields(config)


def test_all_that_is_wrong_is_named_at_once():
  config = get_config()
  config.train.keep, config.train.log_every = 0, -1
  with pytest.raises(ValueError, match=r"(?s)train.log_every=-1.*train.keep=0"):
    check_fields(config)


def test_every_field_has_a_rule_and_every_rule_a_field():
  # Losses, optimisers and the world check their own options, formats the columns; sources are
  # checked when they are read.
  elsewhere = ("loss.", "optimizer.", "data.world.", "data.sources.", "data.columns")
  there = flat(get_config())
  assert [x for x in there if x not in FIELDS and not x.startswith(elsewhere)] == []
  assert FIELDS.keys() <= there.keys()


# Configs of chains have fields of their own: see tests/rlhf/test_fields.py.
OWN = [p.stem for p in Path("configs").glob("*.py") if not p.stem.startswith(("__", "rlhf"))]


@pytest.mark.parametrize("name", sorted(OWN))
def test_our_own_configs_pass(name):
  check_fields(importlib.import_module(f"configs.{name}").get_config())
