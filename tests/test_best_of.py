"""`experiments.best_of` on models of a step each: what it writes, leaves out and refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from configs.base import get_config
from rm_jax import RewardModel
from rm_jax.data.report import Report
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.setup import build_model, init_params
from rm_jax.train import datasets
from tests.processes import attempts, command, finish
from tests.train.runs import run, small_config
from tests.train.test_text_penalty import language_model

pytestmark = pytest.mark.slow

PROBLEMS = 24


def write_problems(path, count=PROBLEMS):
  """Each problem has three solutions in lines, of which one or two are right."""
  rng = np.random.default_rng(0)
  with path.open("w") as file:
    for i in range(count):
      right = int(rng.integers(1, 3))
      labels = [True] * right + [False] * (3 - right)
      texts = [f"a {n}b\nA: {i}" if good else f"c {n}\nA: {n}.0" for n, good in enumerate(labels)]
      row = {"prompt": f"{i} and {i}? ", "responses": texts, "labels": labels}
      file.write(json.dumps(row) + "\n")
  return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_problems(tmp_path_factory.mktemp("data") / "problems.jsonl")


def config_of(folder, data):
  config = small_config(folder, steps=1)
  config.data.train, config.data.heldout = str(data), "0.5"
  config.data.row_lengths = (128,)
  return config


@pytest.fixture(scope="module")
def outcome(llama_folder, data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("outcome")
  run(config_of(llama_folder, data), workdir, devices=1)
  return workdir


@pytest.fixture(scope="module")
def implicit(llama_folder, data, tmp_path_factory):
  base = language_model(llama_folder, tmp_path_factory.mktemp("base"), tied=True)
  config = config_of(llama_folder, data)
  config.model.config, config.model.tokenizer, config.model.pretrained = "", "", str(base)
  config.model.reward = "implicit"
  workdir = tmp_path_factory.mktemp("implicit")
  run(config, workdir, devices=1)
  return workdir


@pytest.fixture(scope="module")
def encoder(bert_folder, tmp_path_factory):
  config = small_config(bert_folder, steps=1)
  built = build_model(config)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = unflatten_dict(init_params(built, mesh, jax.random.key(0), training=True), sep="/")
  path = tmp_path_factory.mktemp("encoder")
  RewardModel(built, params, mesh).save_pretrained(path)
  return path


def test_all_kinds_of_models_side_by_side(outcome, implicit, encoder, data, tmp_path):
  code, out, err = finish(
    command(
      "best_of",
      f"--data={data}",
      f"--prm=steps={outcome}",
      f"--orm={outcome}",
      f"--orm=small={encoder}",
      f"--implicit={implicit}",
      "--k=1,3",
      "--aggregate=product",
      f"--output={tmp_path}",
    )
  )
  assert code == 0, err
  report = json.loads((tmp_path / "report.json").read_text())
  found, about = report["best_of"], report["about"]
  # What the runs learned from, half of the problems, is left out.
  assert 0 < found["problems"] < PROBLEMS
  assert about["dropped"] == PROBLEMS - found["problems"]
  whole = f"orm {outcome.name}"
  assert about["left_out_as_learned"] == ", ".join(
    f"{name} {'not known' if name == 'small' else about['dropped']}"
    for name in ("steps", whole, "small", "implicit")
  )
  ways = ("min", "product", "mean", "last", "step by step")
  assert list(found["k"]["3"]["readings"]) == [
    *(f"steps, {way}" for way in ways),
    whole,
    "small",
    "implicit",
    *(f"implicit, {way}" for way in ways),
  ]
  assert found["main"] == ["steps, product", whole, "small", "implicit"]
  random = found["k"]["3"]["rules"]["random"]["accuracy"]
  for one in found["k"]["1"]["readings"].values():
    assert one["pick"]["accuracy"] == pytest.approx(random)
  # The scores are those of the models themselves, in whatever groups they are computed.
  model = RewardModel.from_pretrained(outcome)
  rows = [json.loads(line) for line in data.read_text().splitlines()]
  kept = _heldout(outcome, rows)
  assert len(kept) == found["problems"]
  asked = [{"prompt": row["prompt"], "response": r} for row in kept for r in row["responses"]]
  in_steps = [{"prompt": one["prompt"], "steps": one["response"].split("\n")} for one in asked]
  right = np.asarray([row["labels"] for row in kept])
  hits, steps = (
    np.take_along_axis(right, scores.reshape(-1, 3).argmax(1)[:, None], axis=1)
    for scores in (model.score(asked), model.score(in_steps, aggregate="last"))
  )
  readings = found["k"]["3"]["readings"]
  assert readings[whole]["pick"]["accuracy"] == pytest.approx(np.mean(hits))
  assert readings["steps, last"]["pick"]["accuracy"] == pytest.approx(np.mean(steps))
  assert "small: not known what it learned from" in out
  assert "best of 3" in out
  assert (tmp_path / "report.html").read_text().count("<img ") == 1  # a curve wants three k
  assert (tmp_path / "best_of.png").exists()


def _heldout(workdir, rows):
  """The rows that a run has held out, by its own record."""
  config = get_config()
  config.update(json.loads((workdir / "config.json").read_text()))
  _, heldout, _ = datasets.read_both(config, Report())
  prompts = {e.prompt for e in heldout}
  return [row for row in rows if row["prompt"] in prompts]


def test_mistakes_are_one_line(outcome, implicit, encoder, data, tmp_path):
  pairs = tmp_path / "pairs.jsonl"
  pairs.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
  base = [f"--data={data}", f"--output={tmp_path / 'out'}"]
  cases = {
    "no model; expected --prm, --orm, --implicit": base,
    "--k=1,x: 'x' is no number from 1": [*base, f"--orm={outcome}", "--k=1,x"],
    "k is 9 and a problem has at most 3 candidates": [*base, f"--orm={outcome}", "--k=9"],
    "an encoder cannot score steps": [*base, f"--prm={encoder}"],
    "the model has an implicit reward; expected it as --implicit": [*base, f"--prm={implicit}"],
    "the model has a reward head; expected it as --prm or --orm": [*base, f"--implicit={outcome}"],
    "two models are called 'a'": [*base, f"--orm=a={outcome}", f"--prm=a={outcome}"],
    "no problem with several solutions": [
      f"--data={pairs}",
      f"--output={tmp_path / 'out'}",
      f"--orm={outcome}",
    ],
  }
  for said, (code, _, err) in attempts("best_of", cases).items():
    assert code == 1, err
    assert f"error: {said}" in err or (said in err and "error: " in err), (said, err)
    assert "Traceback" not in err


def test_a_run_whose_data_are_gone_is_an_error_unless_it_may_keep_them(outcome, data, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(outcome, workdir)
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["train"] = str(tmp_path / "gone.jsonl")
  (workdir / "config.json").write_text(json.dumps(config))
  base = [f"--data={data}", f"--output={tmp_path / 'out'}", f"--orm={workdir}"]
  found = attempts("best_of", {"refused": base, "kept": [*base, "--keep_trained"]})
  assert found["refused"][0] == 1
  assert "the data that it learned from cannot be read" in found["refused"][2]
  assert found["kept"][0] == 0, found["kept"][2]
  assert f"right among 3 candidates of {PROBLEMS} problems" in found["kept"][1]


def test_problems_that_are_cut_or_too_long_are_counted(outcome, tmp_path):
  data = write_problems(tmp_path / "x.jsonl", 7)
  long = "y" * 600  # the model reads 512 tokens
  with data.open("a") as file:
    for prompt, responses in (("cut " * 150, ["a\nb", "c\nd"]), ("too long", [long, "c"])):
      row = {"prompt": prompt, "responses": responses, "labels": [True, False]}
      file.write(json.dumps(row) + "\n")
  models = [f"--prm={outcome}", f"--orm={outcome}", "--keep_trained"]
  code, out, err = finish(
    command("best_of", f"--data={data}", *models, f"--output={tmp_path / 'o'}", "--k=2")
  )
  assert code == 0, err
  about = json.loads((tmp_path / "o" / "report.json").read_text())["about"]
  assert (about["problems"], about["dropped"]) == (8, 1)
  assert about["cut"] == "prm 1, orm 2"
  assert "prm cannot read all problems: 8 of 9 rows kept\n  dropped 1: steps_too_long" in out
  assert "orm: 2 problems are cut" in out
