"""What a skipped step leaves alone, and what a run knows its earlier part by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.base import get_config
from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.group import make_group
from rm_jax.batch.tokenise import Convention, TextEncoder
from rm_jax.storage.files import read_lines, write_json
from rm_jax.train.run import Run
from rm_jax.train.step import make_apply
from rm_jax.train.window import zero_sums, zero_window
from rm_jax.types import Example
from rm_jax.workdir import folder as workdirs
from rm_jax.workdir.state import TrainState
from tests.conftest import decoder_tokenizer
from tests.train.runs import run, small_config


def test_a_skipped_step_leaves_the_moments_as_they_were():
  params = {"w/kernel": jnp.asarray([1.0, 2.0])}
  optimizer = optax.adamw(0.5)
  state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), zero_window(1))
  sums = zero_sums(1) | {"weight": jnp.asarray([4.0]), "loss": jnp.asarray([8.0])}

  def apply(*arguments):
    return make_apply(optimizer)(*arguments)[0]

  good = {"w/kernel": jnp.asarray([4.0, 8.0])}
  before = apply(state, good, sums)
  for poison in (jnp.nan, jnp.inf):
    after = apply(before, {"w/kernel": jnp.asarray([poison, 1.0])}, sums)
    moments = [
      [np.asarray(x) for x in jax.tree.leaves(s.optimizer) if x.shape == (2,)]
      for s in (before, after)
    ]
    assert len(moments[0]) == 2
    np.testing.assert_array_equal(moments[1], moments[0])
    # So the next step is taken, too.
    assert np.isfinite(apply(after, good, sums).params["w/kernel"]).all()


def poisoned(steps):
  """`Run.step`, whose weights are not a number in some steps, counted from 1."""
  take = Run.step

  def step(self, micros):
    if int(self.state.step) + 1 in steps:
      # Nothing may come from the host here: the root of less than nothing, and of padding's 0.
      micros = [(dataclasses.replace(b, weight=jnp.sqrt(-b.weight)), key) for b, key in micros]
    return take(self, micros)

  return step


@pytest.mark.slow
def test_steps_that_are_skipped_now_and_then_stop_no_run(llama_folder, tmp_path, monkeypatch):
  config = small_config(llama_folder, steps=6)
  config.data.heldout, config.train.max_skipped = "0", 2
  monkeypatch.setattr(Run, "step", poisoned({2, 4}))
  run(config, tmp_path, devices=1)
  lines = read_lines(tmp_path / "metrics.jsonl")
  assert [x["skipped_steps"] for x in lines if x["split"] == "train"] == [0, 1, 0, 1, 0, 0]


def test_a_schedule_keeps_the_length_that_its_first_run_gave_it(tmp_path):
  config = get_config()
  config.train.steps, config.optimizer.decay_steps = 100, 0
  first = workdirs.resolve(config, 48, tmp_path)
  assert (first.optimizer.decay_steps, first.optimizer.warmup_steps) == (100, 3)
  write_json(tmp_path / workdirs.CONFIG, workdirs.plain(first))
  config.train.steps = 400
  longer = workdirs.resolve(config, 48, tmp_path)
  assert longer.train.steps == 400
  assert longer.optimizer == first.optimizer
  workdirs.check(tmp_path, longer)  # and so is no other run
  assert workdirs.resolve(config, 48, tmp_path / "new").optimizer.decay_steps == 400


@pytest.mark.parametrize(
  "other",
  [
    {"labels": np.asarray([0.0, 1.0], np.float32)},
    {"kind": "ranking"},
    {"weight": 0.5},
    {"pair_margin": 1.0},
    {"pairs": np.asarray([[0, 1], [0, 0]], np.float32)},
    {"ties": np.asarray([[0, 1], [1, 0]], np.float32)},
    {"attributes": np.asarray([[1.0], [0.0]], np.float32)},
  ],
  ids=lambda other: next(iter(other)),
)
def test_data_are_known_by_all_that_is_learned_from_them(other):
  example = Example("a", ("b", "c"), (1.0, 0.0))
  encoder = TextEncoder(decoder_tokenizer(), Convention())
  group = make_group(encoder.sequences([("a", r) for r in example.responses]), example)
  assert (
    TokenDataset([group], [example]).fingerprint() == TokenDataset([group], [example]).fingerprint()
  )
  changed = dataclasses.replace(group, **other)
  assert (
    TokenDataset([group], [example]).fingerprint()
    != TokenDataset([changed], [example]).fingerprint()
  )
