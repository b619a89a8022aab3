"""TRL's DPOTrainer and our trainer, with an implicit reward, take the same steps."""

import gzip
import itertools
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.base import get_config
from rm_jax.batch.iterate import step_groups
from rm_jax.batch.mismatch import partners
from rm_jax.data import formats
from rm_jax.data.report import Report
from rm_jax.reward.setup import build_model
from rm_jax.storage.files import read_lines
from tests.clients.exports import SHARED, client, python_of
from tests.clients.test_trl import INSTALL
from tests.clients.test_trl_reward import RATE, SIDES, TRL, strings, write
from tests.train.runs import run
from tests.train.test_text_penalty import language_model

pytestmark = pytest.mark.slow

PAIRS, BETA = 64, 0.3


def dialogues():
  """Short pairs of HH-RLHF's harmless-base as text: one question and its two answers."""
  path = SHARED / "data/hh_rlhf/harmless-base.test.jsonl.gz"
  if not path.is_file():
    pytest.skip("HH-RLHF's test files are not here")
  found = []
  with gzip.open(path, "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
  for row in rows:
    prompts, answers = zip(*(row[side].rsplit("\n\nAssistant:", 1) for side in SIDES), strict=True)
    said = [answer.strip() for answer in answers]
    alike = prompts[0] != prompts[1] or said[0] == said[1] or not all(said)
    if alike or "Assistant:" in prompts[0] or max(map(len, row.values())) > 300:
      continue
    found.append({"prompt": prompts[0] + "\n\nAssistant:"} | dict(zip(SIDES, answers, strict=True)))
  return found


def tiny_stories(folder, _):
  """TinyStories-260k, whose language-model head is its own."""
  tiny = SHARED / "weights/tinystories-llama-260k"
  if not tiny.is_dir():
    pytest.skip("the weights of TinyStories-260k are not here")
  return shutil.copytree(tiny, folder)


def random_weights(folder, llama_folder):
  """A Llama as it is initialised, whose language-model head is its embedding."""
  return language_model(llama_folder, folder, tied=True, own=False)


# case -> (the rows, the model)
CASES = {
  "HH-RLHF, TinyStories": (dialogues, tiny_stories),
  "world, random weights": (strings, random_weights),
}


def other_weights(model, folder):
  """The same language model with noise on every weight, as a reference that is not the start."""
  shutil.copytree(model, folder)
  for path in folder.glob("*.safetensors"):
    rng = np.random.default_rng(0)
    tensors = {
      name: x.astype(np.float32) + 0.03 * rng.normal(size=x.shape).astype(np.float32)
      for name, x in sorted(load_file(path).items())
    }
    save_file(tensors, path, metadata={"format": "pt"})
  return folder


def config_of(model, file, *, steps, batch, **fields):
  c = get_config()
  c.model.pretrained, c.model.reward, c.model.beta = str(model), "implicit", BETA
  c.data.train, c.data.heldout = str(file), "0"
  c.data.batch_groups, c.data.shapes = batch, 1
  c.optimizer.learning_rate, c.optimizer.schedule, c.optimizer.warmup_steps = RATE, "constant", 0
  c.train.steps, c.train.log_every = steps, 1
  c.update_from_flattened_dict(fields)
  return c


def our_order(config, rows):
  """The order in which our run reads the rows."""
  everything, size = [np.arange(len(rows))], config.data.batch_groups
  return np.concatenate(
    [
      step_groups(step, everything, [1.0], size=size, seed=config.seed)
      for step in range(config.train.steps)
    ]
  )


def runs_of_trl(config, runs, model, reference, rows, order, tmp_path):
  """The steps of each of TRL's runs, which read the rows in this order."""
  file = tmp_path / "rows.jsonl"
  groups, _ = build_model(config).tokenise(formats.load(str(file), report=Report()), Report())
  in_order = write(tmp_path / "in_our_order.jsonl", [rows[i] for i in order])
  options = tmp_path / "options.json"
  options.write_text(json.dumps(runs))
  files = model, reference, in_order, options, tmp_path / "trl"
  theirs = client(python_of("RM_JAX_TEST_TRL", INSTALL), "dpo.py", *map(str, files))
  assert theirs["tokens"] == [[ids.tolist() for ids in groups[i].ids] for i in order]
  return theirs["runs"]


def lines_of(config, workdir):
  run(config, workdir, devices=1)
  return [line for line in read_lines(workdir / "metrics.jsonl") if "loss" in line]


def compare(case, ours, theirs, tolerance):
  print(f"\n{case}\n\n| step | loss, rm_jax | TRL | gradient norm, rm_jax | TRL |")
  print("|---|---|---|---|---|")
  names = ("loss", "gradient_norm")
  both = {what: [[line[what] for line in lines] for lines in (ours, theirs)] for what in names}
  columns = both["loss"] + both["gradient_norm"]
  for step, values in enumerate(zip(*columns, strict=True), 1):
    print("|", step, "|", " | ".join(f"{value:.7f}" for value in values), "|")
  for what, (a, b) in both.items():
    print(what, "largest relative difference", np.max(np.abs(np.subtract(a, b)) / b))
  for what, (a, b) in both.items():
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=0, err_msg=what)


# Our fields -> TRL's options. TRL 1.16's 'sigmoid' does not read label_smoothing, so that it has no
# cDPO to compare with.
LOSSES = {
  "DPO": ({}, {"loss_type": "sigmoid"}),
  "robust DPO": (
    {"loss.pair": "unbiased_logistic(rate=0.1)"},
    {"loss_type": "robust", "label_smoothing": 0.1},
  ),
  "hinge": ({"loss.pair": "hinge"}, {"loss_type": "hinge"}),
  "IPO by the token": (
    {"loss.pair": f"ipo(tau={BETA})", "model.normalised": True},
    {"loss_type": "ipo"},
  ),
  "SimPO": (
    {"loss.pair": "logistic(margin=0.2)", "model.normalised": True, "model.reference": "none"},
    {"trainer": "cpo", "loss_type": "simpo", "simpo_gamma": 0.2, "cpo_alpha": 0.0},
  ),
}
OUTCOMES = {
  "KTO with a reference point of 0": (
    {"loss.outcome": "kto(desirable=1.5, undesirable=0.7)"},
    {
      "trainer": "kto",
      "loss_type": "apo_zero_unpaired",
      "desirable_weight": 1.5,
      "undesirable_weight": 0.7,
    },
  ),
  "KTO": (
    {"loss.outcome": "kto(baseline='batch', desirable=1.5, undesirable=0.7)"},
    {
      "trainer": "kto",
      "loss_type": "kto",
      "train_sampling_strategy": "sequential",
      "desirable_weight": 1.5,
      "undesirable_weight": 0.7,
    },
  ),
}


def one_step(case, losses, rows, llama_folder, tmp_path, order=our_order):
  """All rows in one step, relative to other weights than the model's own."""
  assert len(rows) == PAIRS
  model = CASES[case][1](tmp_path / "model", llama_folder)
  reference = other_weights(model, tmp_path / "reference")
  file = write(tmp_path / "rows.jsonl", rows)
  configs = [
    config_of(model, file, steps=1, batch=PAIRS, **{"model.reference": str(reference)} | mine)
    for mine, _ in losses.values()
  ]
  steps = {"per_device_train_batch_size": PAIRS, "max_steps": 1, "trainer": "dpo", "beta": BETA}
  runs = [TRL | steps | options for _, options in losses.values()]
  order = order(configs[0], rows)
  theirs = runs_of_trl(configs[0], runs, model, reference, rows, order, tmp_path)
  for i, (name, config, trl) in enumerate(zip(losses, configs, theirs, strict=True)):
    compare(f"{case}, {name}", lines_of(config, tmp_path / f"run{i}"), trl, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_trl(case, llama_folder, tmp_path):
  one_step(case, LOSSES, list(CASES[case][0]())[:PAIRS], llama_folder, tmp_path)


def test_unpaired_outcomes_are_those_of_trl(llama_folder, tmp_path):
  """TRL pairs each row's prompt with the completion of the row before it."""
  sides = itertools.cycle(SIDES)
  rows = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row, side in zip(dialogues()[:PAIRS], sides, strict=False)
  ]
  assert len({row["prompt"] for row in rows}) == PAIRS

  def circle(config, rows):
    order = np.random.default_rng(config.seed).permutation(len(rows))
    before = partners([row["prompt"] for row in rows], config.seed)
    np.testing.assert_array_equal(before[order], np.roll(order, 1))
    return order

  one_step("HH-RLHF, TinyStories", OUTCOMES, rows, llama_folder, tmp_path, circle)


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_trl(case, llama_folder, tmp_path):
  """DPO relative to the start."""
  make_rows, make_model = CASES[case]
  rows = list(make_rows())[: 20 * 8]
  assert len(rows) == 160
  model = make_model(tmp_path / "model", llama_folder)
  file = write(tmp_path / "rows.jsonl", rows)
  config = config_of(model, file, steps=20, batch=8)
  runs = [TRL | {"trainer": "dpo", "beta": BETA}]
  (theirs,) = runs_of_trl(config, runs, model, model, rows, our_order(config, rows), tmp_path)
  compare(case, lines_of(config, tmp_path / "run"), theirs, 1e-4)
