"""The benchmark's figures, of every layout."""

import functools
import types

import jax
import numpy as np
import pytest

from configs import benchmark as config_file
from configs.base import get_config
from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.group import Group
from rm_jax.data.formats import load
from rm_jax.data.report import Report
from rm_jax.errors import InputError
from rm_jax.reward.setup import build_model
from rm_jax.speed import benchmark as measured
from rm_jax.speed.benchmark import MODES, benchmark, count_comparisons, matmul_flops, table
from tests.train.runs import write_pairs


def config_for(folder, data, **fields):
  c = config_file.get_config()
  c.model.config = str(folder / "config.json")
  c.model.tokenizer = str(folder)
  c.data.train = str(data)
  c.data.batch_groups = 32
  c.data.cells = 1024
  c.data.row_lengths = (128,)
  c.data.shapes = 2
  c.benchmark.steps, c.benchmark.turns = 1, 2
  c.update_from_flattened_dict(fields)
  return c


@pytest.mark.slow
def test_figures_of_every_layout(llama_folder, tmp_path, monkeypatch):
  write_pairs(tmp_path / "pairs.jsonl", 40)
  # On one device, as on a CPU outside of the tests: for eight every program compiles for longer.
  made = measured.make_mesh
  monkeypatch.setattr(measured, "make_mesh", lambda sizes: made(sizes, jax.devices()[:1]))
  quick = functools.partial(matmul_flops, seconds=0.05, sizes=(256, 512))
  monkeypatch.setattr(measured, "matmul_flops", quick)
  caching = jax.config.jax_compilation_cache_dir
  report = benchmark(config_for(llama_folder, tmp_path / "pairs.jsonl"))
  assert jax.config.jax_compilation_cache_dir == caching
  assert list(report["modes"]) == list(MODES)
  for mode in report["modes"].values():
    assert mode["pairs_per_second"] == pytest.approx(mode["groups_per_second"])
    low, high = mode["pairs_per_second_range"]
    assert 0 < low <= mode["pairs_per_second"] <= high
    assert 0 < mode["mfu"] < 1
    assert 0 < mode["pad_share"] < 1
    low, high = report["peak_flops_range"]
    assert low * 0.999 <= mode["flops_per_second"] / mode["mfu"] <= high * 1.001
    assert mode["compile_seconds"] > mode["compile_cached_seconds"] > 0
  padded, packed, shared = report["modes"].values()
  assert packed["pad_share"] < padded["pad_share"]
  # The same pairs have fewer tokens if their prompt is stored once.
  per_pair = [m["tokens_per_second"] / m["pairs_per_second"] for m in (packed, shared)]
  assert per_pair[1] < per_pair[0]
  # At least weights, gradients and two moments, of four bytes a number.
  numbers = sum(report["model"][name] for name in ("layer_weights", "embedding_weights"))
  assert shared["peak_memory_bytes"] > 16 * numbers
  assert "packed_shared" in table(report)


def test_a_pair_is_a_comparison_and_a_ranking_as_many_as_people_made():
  ids = tuple(np.arange(1, 4, dtype=np.int32) for _ in range(4))
  four = np.arange(4, dtype=np.int32)
  labels = np.asarray([2, 1, 1, 0], np.float32)
  group = dict(ids=ids, shared=1, marks=four, response=four, labels=labels, length=four)
  assert count_comparisons(Group(**group, kind="ranking")) == 6
  pairs = np.zeros((4, 4), np.float32)
  pairs[0, 1] = pairs[3, 2] = 1
  ties = np.zeros((4, 4), np.float32)
  ties[0, 3] = ties[3, 0] = 1
  assert count_comparisons(Group(**group, kind="ranking", pairs=pairs, ties=ties)) == 3
  assert count_comparisons(Group(**group, kind="outcome")) == 0


class Program:
  """A jitted function that records which programs are compiled of it."""

  def __init__(self, name, compiled):
    self.name, self.compiled = name, compiled

  def __call__(self, *_):
    return {"sum": jax.numpy.zeros(6)}

  def lower(self, *_):
    return self

  def compile(self):
    self.compiled.append(self.name)
    return self

  def memory_analysis(self):
    return types.SimpleNamespace(temp_size_in_bytes=1)


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_every_program_of_a_step_is_compiled(looks_ahead):
  compiled = []
  names = ("accumulate", "apply", "ahead")
  step = types.SimpleNamespace(
    zeros=lambda: ({}, {}), **{name: Program(name, compiled) for name in names}
  )
  batch = jax.numpy.zeros(3)
  mode = object.__new__(measured._Mode)
  mode.steps = [0]
  mode.run = types.SimpleNamespace(
    micros=lambda step: [types.SimpleNamespace(shape=n) for n in (1, 2)],
    prepare=lambda step: [(batch, 0)] * 2,
    objective=types.SimpleNamespace(looks_ahead=looks_ahead),
    compiled=step,
    state={},
  )
  found = mode._compile()
  once = ["apply", *(["accumulate", "ahead"] if looks_ahead else ["accumulate"]) * 2]
  assert compiled == once * 2  # anew, and from the cache
  assert found["programs"] == len(once)


@pytest.mark.parametrize(
  ("text", "implicit", "training", "scoring"),
  [(None, False, True, True), (object(), False, False, True), (None, True, False, False)],
)
def test_a_text_penalty_is_of_training_alone(text, implicit, training, scoring, monkeypatch):
  """With loss.text_sft training needs all columns of the last layer; scoring does not."""
  monkeypatch.setattr(measured, "reads_marks_alone", lambda spans, trained: trained and not spans)
  backbone = types.SimpleNamespace(layers=3)
  run = types.SimpleNamespace(
    model=types.SimpleNamespace(
      network=types.SimpleNamespace(implicit=implicit, frozen=0, backbone=backbone)
    ),
    objective=types.SimpleNamespace(text=text),
    fields=set(),
    mesh=jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]),
  )
  assert measured._alone(run, training=True) is training
  assert measured._alone(run, training=False) is scoring


def test_a_matrix_product_is_timed():
  assert 1e8 < matmul_flops("float32", seconds=0.05, sizes=(512,)) < 1e16


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"benchmark.modes": ("padded", "sparse")},
      r"benchmark.modes=\('padded', 'sparse'\): expected a tuple of names of padded, packed",
    ),
    ({"benchmark.turns": 0}, "benchmark.turns=0: expected a whole number of at least 1"),
    ({"benchmark.steps": 0}, "benchmark.steps=0: expected a whole number of at least 1"),
    ({"model.dtype": "float99"}, "model.dtype='float99': expected one of"),
    ({"data.cells": 0}, "data.cells=0: expected a whole number of at least 1"),
    ({"data.batch_groups": 64}, "40 groups are left, and a step takes data.batch_groups=64"),
  ],
)
def test_what_cannot_be_measured_is_refused(fields, message, llama_folder, tmp_path):
  write_pairs(tmp_path / "pairs.jsonl", 40)
  with pytest.raises(ValueError, match=message):
    benchmark(config_for(llama_folder, tmp_path / "pairs.jsonl", **fields))


def test_a_config_without_the_benchmarks_fields_is_refused():
  config = get_config()
  with pytest.raises(InputError, match=r"no benchmark\.modes, benchmark\.steps, benchmark.turns"):
    benchmark(config)


@pytest.mark.slow
def test_steps_of_frozen_layers_are_those_of_training(llama_folder, tmp_path, monkeypatch):
  """Training keeps the frozen layers' output and runs them once."""
  write_pairs(tmp_path / "pairs.jsonl", 40)
  monkeypatch.setattr(measured._Mode, "_compile", lambda self: {})
  config = config_for(llama_folder, tmp_path / "pairs.jsonl", **{"model.frozen_layers": 1})
  config.train.steps, config.optimizer.decay_steps, config.optimizer.warmup_steps = 1, 1, 0
  model = build_model(config)
  data = TokenDataset(*model.tokenise(load(config.data.train, report=Report()), Report()))
  mesh = measured.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  mode = measured._Mode(config, mesh, model, data, 1)
  batch, _ = mode.run.prepare(0)[0]
  assert batch.hidden.shape == (*batch.tokens.shape, model.network.backbone.width)
