"""TRL's RewardTrainer and our trainer take the same steps from the same weights and pairs."""

import gzip
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from configs.base import get_config
from rm_jax import RewardModel
from rm_jax.batch.iterate import step_groups
from rm_jax.data import formats
from rm_jax.data.report import Report
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.setup import build_model, init_params
from rm_jax.storage.files import read_lines
from rm_jax.world import World
from tests.clients.exports import SHARED, client, made, python_of
from tests.clients.test_trl import INSTALL
from tests.train.runs import run

pytestmark = pytest.mark.slow

STEPS, BATCH, RATE = 20, 8, 1e-4
SIX_DIGITS = 5e-6  # relative: half a unit of a number's sixth digit at most
SIDES = ("chosen", "rejected")
TRL = {
  "per_device_train_batch_size": BATCH,
  "max_steps": STEPS,
  "learning_rate": RATE,
  "lr_scheduler_type": "constant",
  "adam_beta1": 0.9,
  "adam_beta2": 0.95,
  "adam_epsilon": 1e-8,
  "weight_decay": 0.0,
  "max_grad_norm": 1.0,
}


def strings():
  """Pairs of the generated world as plain text."""
  for e in World().pairs("train", STEPS * BATCH, seed=0):
    chosen, rejected = (answer[0]["content"] for answer in e.responses)
    prompt = f"\n\nHuman: {e.prompt[0]['content']}\n\nAssistant: "
    yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def messages():
  """The same pairs as conversations, with margins."""
  for i, e in enumerate(World().pairs("train", STEPS * BATCH, seed=0)):
    chosen, rejected = map(list, e.responses)
    margin = i % 7 / 4
    yield {"prompt": list(e.prompt), "chosen": chosen, "rejected": rejected, "margin": margin}


def dialogues():
  """Short pairs of HH-RLHF's harmless-base as published, of one question and its two answers."""
  path = SHARED / "data/hh_rlhf/harmless-base.test.jsonl.gz"
  if not path.is_file():
    pytest.skip("HH-RLHF's test files are not here")
  found = []
  with gzip.open(path, "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
  for row in rows:
    prompts, answers = zip(*(row[side].rsplit("\n\nAssistant:", 1) for side in SIDES), strict=True)
    answers = [answer.strip() for answer in answers]
    alike = prompts[0] != prompts[1] or answers[0] == answers[1] or not all(answers)
    if alike or "Assistant:" in prompts[0] or max(map(len, row.values())) > 300:
      continue
    turn = {"role": "user", "content": prompts[0].removeprefix("\n\nHuman:").strip()}
    sides = ([{"role": "assistant", "content": answer}] for answer in answers)
    found.append({"prompt": [turn]} | dict(zip(SIDES, sides, strict=True)))
  return found[: STEPS * BATCH]


def random_weights(folder):
  """A Llama as it is initialised."""
  return made("bytes, hh", folder, noise=0.0, head_scale=0.05)


def real_weights(folder):
  """TinyStories-260k with a new head."""
  tiny = SHARED / "weights/tinystories-llama-260k"
  if not tiny.is_dir():
    pytest.skip("the weights of TinyStories-260k are not here")
  c = get_config()
  c.model.pretrained, c.model.chat_template = str(tiny), "hh"
  built = build_model(c)
  mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
  params = init_params(built, mesh, jax.random.key(0), training=True)
  shutil.copytree(tiny, folder)
  return RewardModel(built, unflatten_dict(params, sep="/"), mesh)


# case -> (the rows; the model; the folder of TRL's tokenizer; the weight of centering). TRL appends
# EOS to strings itself, so that it takes the original tokenizer. For conversations the exported
# chat template appends it.
CASES = {
  "strings": (strings, random_weights, "made", 0.0),
  "conversations with margins, centering": (messages, random_weights, "saved", 0.01),
  "HH-RLHF, TinyStories": (dialogues, real_weights, "saved", 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_trl(case, tmp_path):
  python = python_of("RM_JAX_TEST_TRL", INSTALL)
  rows, model, tokenizer, centering = CASES[case]
  rows = list(rows())
  assert len(rows) == STEPS * BATCH
  model(tmp_path / "made").save_pretrained(tmp_path / "saved")
  file = write(tmp_path / "pairs.jsonl", rows)

  c = get_config()
  c.model.pretrained = str(tmp_path / "saved")
  c.data.train, c.data.heldout = str(file), "0"
  c.data.batch_groups, c.data.shapes = BATCH, 1
  c.loss.centering = centering
  c.optimizer.learning_rate, c.optimizer.schedule, c.optimizer.warmup_steps = RATE, "constant", 0
  c.train.steps, c.train.log_every = STEPS, 1
  o = c.optimizer
  assert (o.b1, o.b2, o.eps, o.clip, o.weight_decay) == (0.9, 0.95, 1e-8, 1.0, 0.0)
  groups, _ = build_model(c).tokenise(formats.load(str(file), report=Report()), Report())
  run(c, tmp_path / "run", devices=1)
  ours = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]

  everything = [np.arange(len(rows))]
  order = np.concatenate(
    [step_groups(step, everything, [1.0], size=BATCH, seed=c.seed) for step in range(STEPS)]
  )
  in_order = write(tmp_path / "in_our_order.jsonl", [rows[i] for i in order])
  options = tmp_path / "options.json"
  options.write_text(json.dumps(TRL | {"center_rewards_coefficient": centering or None}))
  files = tmp_path / "saved", tmp_path / tokenizer, in_order, options, tmp_path / "trl"
  theirs = client(python, "reward.py", *map(str, files))

  assert theirs["tokens"] == [[ids.tolist() for ids in groups[i].ids] for i in order]
  print(f"\n{case}\n\n| step | loss, rm_jax | TRL | gradient norm, rm_jax | TRL |")
  print("|---|---|---|---|---|")
  both = {}
  for what in ("loss", "gradient_norm"):
    both[what] = [[line[what] for line in lines] for lines in (ours, theirs["steps"])]
  columns = both["loss"] + both["gradient_norm"]
  for step, values in enumerate(zip(*columns, strict=True), 1):
    print("|", step, "|", " | ".join(f"{value:.7f}" for value in values), "|")
  for what, (a, b) in both.items():
    print(what, "largest relative difference", np.max(np.abs(np.subtract(a, b)) / b))
  for what, (a, b) in both.items():
    np.testing.assert_allclose(a, b, rtol=SIX_DIGITS, atol=0, err_msg=what)


def write(path: Path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return path
