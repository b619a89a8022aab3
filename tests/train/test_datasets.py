"""The data sets of a config: what they are checked for, and what is counted of them."""

import dataclasses

import pytest

from rm_jax.data.report import Report
from rm_jax.errors import InputError
from rm_jax.reward.setup import build_model
from rm_jax.train.datasets import _distinct, data_summary, load_data, load_shifted
from rm_jax.types import Example
from tests.train.runs import small_config


def test_shifted_data_of_another_tokenizer_are_refused(llama_folder):
  config = small_config(llama_folder, steps=1)
  config.model.members, config.data.shifted = 2, config.data.heldout
  model = build_model(config)
  heldout = load_data(config, model).heldout
  assert load_shifted(config, model, heldout).fingerprint() == heldout.fingerprint()
  backbone = dataclasses.replace(model.network.backbone, vocab=5)
  small = dataclasses.replace(model, network=dataclasses.replace(model.network, backbone=backbone))
  with pytest.raises(InputError, match=r"gives id \d+ and the model has a vocabulary of 5"):
    load_shifted(config, small, heldout)


def test_cut_prompts_of_every_set_are_counted(llama_folder):
  config = small_config(llama_folder, steps=1)
  config.data.validation, config.data.max_length = 0.25, 20
  data = load_data(config, build_model(config))
  cut = [sum(g.cut > 0 for g in one.groups) for one in data[:3]]
  assert min(cut) > 0
  assert data_summary(data, ())["prompts_cut"] == sum(cut)


def test_judgements_of_two_objectives_on_the_same_texts_are_no_repeats():
  helpful = Example("p", ("a", "b"), (1.0, 0.0), objective="helpful")
  harmless = dataclasses.replace(helpful, objective="harmless")
  again = dataclasses.replace(helpful, origin="f:3")
  assert _distinct([helpful, harmless, again], Report()) == [helpful, harmless]
