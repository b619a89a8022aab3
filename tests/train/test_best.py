"""The best checkpoint by validation data: chosen, served, kept over resumes; stopping early."""

import json
import shutil

import jax
import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.data.report import DataError
from rm_jax.errors import InputError
from rm_jax.reward.setup import build_model
from rm_jax.storage.files import read_lines
from rm_jax.train import loop
from rm_jax.train.best import Best, measured
from rm_jax.train.datasets import load_data
from rm_jax.train.fields import check_fields
from tests.train.runs import flip_a_byte, run, small_config

ROWS = [{"prompt": f"{i} ", "response": "ab" * (i + 1)} for i in range(6)]


def configured(folder, *, steps=24, measure="loss", **changes):
  config = small_config(folder, steps=steps)
  config.data.validation, config.train.best = 0.25, measure
  config.train.eval_every = config.train.checkpoint_every = 4
  # So large that the model gets worse again: the best is neither the first nor the last.
  config.optimizer.learning_rate = 3e-2
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope="module")
def finished(llama_folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("best") / "run"
  return workdir, run(configured(llama_folder), workdir, devices=1)


def lines_of(workdir, split):
  return [x for x in read_lines(workdir / "metrics.jsonl") if x["split"] == split]


@pytest.mark.slow
def test_the_best_is_kept_reported_and_served(llama_folder, finished, tmp_path):
  workdir, summary = finished
  losses = {x["step"]: x["loss"] for x in lines_of(workdir, "validation")}
  assert list(losses) == [0, 4, 8, 12, 16, 20, 24]
  step = min(losses, key=losses.get)
  assert 0 < step < 24
  assert summary["best"]["step"] == step
  assert summary["best"]["value"] == -losses[step]
  assert summary["validation"]["loss"] == losses[step]
  assert not lines_of(workdir, "heldout")  # They are looked at once, at the end.
  assert summary["train"]["steps"] == 24
  # What is served is the model of a run that ends there.
  short = configured(llama_folder)
  short.train.steps, short.train.best, short.optimizer.decay_steps = step, "", 20
  short.data.validation = 0.25
  latest = run(short, tmp_path / "short", devices=1)
  assert summary["heldout"] == latest["heldout"]
  assert "best" not in latest
  ours, theirs = (RewardModel.from_pretrained(p) for p in (workdir, tmp_path / "short"))
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.slow
def test_an_interrupted_run_chooses_the_same(llama_folder, finished, tmp_path):
  workdir, summary = finished
  stopped = configured(llama_folder)
  stopped.train.steps = 14
  run(stopped, tmp_path / "run", devices=1)
  again = run(configured(llama_folder), tmp_path / "run", devices=1)
  assert again["best"] == summary["best"]
  assert again["heldout"] == summary["heldout"]
  lines = lines_of(tmp_path / "run", "validation")
  assert [x for x in lines if x["step"] != 14] == lines_of(workdir, "validation")
  # A finished run, given again, changes nothing.
  before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
  assert run(configured(llama_folder), tmp_path / "run", devices=1)["best"] == summary["best"]
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_best_that_is_ahead_of_the_latest_checkpoint_stays(
  llama_folder, finished, tmp_path, monkeypatch
):
  """Killed between keeping a best and the next checkpoint, the run makes the same best again."""
  _, summary = finished
  config = configured(llama_folder)
  config.train.checkpoint_every = 10**6

  class Killed(Exception):
    pass

  kept = Best.keep

  def keep(self, state, report, lines):
    found = kept(self, state, report, lines)
    if int(state.step) == summary["best"]["step"]:
      raise Killed
    return found

  with monkeypatch.context() as patch:
    patch.setattr(Best, "keep", keep)
    with pytest.raises(Killed):
      run(config, tmp_path / "run", devices=1)
  assert run(config, tmp_path / "run", devices=1)["best"] == summary["best"]


@pytest.mark.slow
def test_patience_ends_the_run(llama_folder, tmp_path):
  # Accuracy is 1 from the start, so that nothing is better than step 0.
  config = configured(llama_folder, measure="accuracy")
  config.train.patience, config.train.checkpoint_every = 2, 5
  summary = run(config, tmp_path / "run", devices=1)
  assert [x["accuracy"] for x in lines_of(tmp_path / "run", "validation")] == [1.0] * 3
  assert summary["train"]["steps"] == 8
  assert summary["best"]["step"] == 0
  # Given again it goes no further.
  before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
  again = run(config, tmp_path / "run", devices=1)
  assert (again["train"]["steps"], again["best"]) == (8, summary["best"])
  assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_without_a_best_serves_its_latest(finished, tmp_path):
  """Where no evaluation had the measure, the folder of the best is empty."""
  shutil.copytree(finished[0], tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "best")
  latest = RewardModel.from_pretrained(tmp_path / "run").score(ROWS)
  (tmp_path / "run" / "best").mkdir()
  np.testing.assert_array_equal(RewardModel.from_pretrained(tmp_path / "run").score(ROWS), latest)
  assert (RewardModel.from_pretrained(finished[0]).score(ROWS) != latest).any()


@pytest.mark.slow
def test_a_damaged_best_leaves_the_latest(llama_folder, finished, tmp_path):
  """The run still ends with a summary, and what is served is what that describes."""
  shutil.copytree(finished[0], tmp_path / "run")
  flip_a_byte(tmp_path / "run" / "best" / str(finished[1]["best"]["step"]))
  summary = run(configured(llama_folder), tmp_path / "run", devices=1)
  assert "best" not in summary
  served = RewardModel.from_pretrained(tmp_path / "run").score(ROWS)
  shutil.rmtree(tmp_path / "run" / "best")
  np.testing.assert_array_equal(served, RewardModel.from_pretrained(tmp_path / "run").score(ROWS))
  last = lines_of(tmp_path / "run", "validation")[-1]
  assert summary["validation"]["loss"] == last["loss"] != finished[1]["validation"]["loss"]


@pytest.mark.slow
def test_a_best_of_another_step_than_its_line_is_moved_away(llama_folder, finished, tmp_path):
  """As where a run was killed after a new best and then ended before it."""
  shutil.copytree(finished[0], tmp_path / "run")
  step = finished[1]["best"]["step"]
  best = tmp_path / "run" / "best"
  (best / f"{step}").rename(best / f"{step + 1}")
  summary = run(configured(llama_folder), tmp_path / "run", devices=1)
  assert "best" not in summary
  assert not list(best.glob("[0-9]*"))
  assert (tmp_path / "run" / "best.damaged" / f"{step + 1}").is_dir()
  last = lines_of(tmp_path / "run", "validation")[-1]
  assert summary["validation"]["loss"] == last["loss"] != finished[1]["validation"]["loss"]
  assert (
    RewardModel.from_pretrained(tmp_path / "run").score(ROWS)
    != RewardModel.from_pretrained(finished[0]).score(ROWS)
  ).any()


@pytest.mark.slow
def test_other_validation_labels_are_refused(llama_folder, finished, tmp_path):
  """Also of the same texts: the best would be chosen by two measures."""
  shutil.copytree(finished[0], tmp_path / "run")
  config = configured(llama_folder, steps=28)
  aside = {e.prompt for e in load_data(config, build_model(config)).validation.examples}
  path = llama_folder / "train.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  row = next(row for row in rows if row["prompt"] in aside)
  row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  with pytest.raises(InputError, match="its validation data were other ones"):
    run(config, tmp_path / "run", devices=1)


def test_validation_conversations_are_set_aside_from_training(llama_folder):
  config = configured(llama_folder, **{"data.heldout": "0.25"})
  data = load_data(config, build_model(config))
  parts = [{e.conversation for e in one.examples} for one in data[:3]]
  assert all(len(part) > 3 for part in parts)
  assert len(parts[0] | parts[1] | parts[2]) == sum(map(len, parts))
  # The held-out part is what it is without them.
  config.data.validation = 0.0
  without = load_data(config, build_model(config))
  assert [e.conversation for e in without.heldout.examples] == [
    e.conversation for e in data.heldout.examples
  ]
  assert {e.conversation for e in without.train.examples} == parts[0] | parts[2]
  assert not without.validation.groups
  config.data.validation = 0.001
  config.data.limit, config.data.heldout = 4, str(llama_folder / "heldout.jsonl")
  with pytest.raises(DataError, match=r"data.validation is 0.001, which sets aside 1 conversation"):
    load_data(config, build_model(config))


def test_a_fraction_of_the_training_data_is_part_of_a_larger_one(llama_folder):
  config = configured(llama_folder, **{"data.heldout": "0.25"})
  whole = load_data(config, build_model(config))
  kept = [{e.conversation for e in whole.train.examples}]
  for share in (0.6, 0.3):
    config.data.fraction = share
    data = load_data(config, build_model(config))
    kept.append({e.conversation for e in data.train.examples})
    assert data.report.dropped["not_in_fraction"] == len(kept[0]) - len(kept[-1])
    for one, other in ((data.heldout, whole.heldout), (data.validation, whole.validation)):
      assert one.fingerprint() == other.fingerprint()
  assert kept[0] > kept[1] > kept[2]
  with pytest.raises(InputError, match=r"data.fraction=0.0: expected a number in \(0, 1\]"):
    check_fields(configured(llama_folder, **{"data.fraction": 0.0}))


def test_a_measure_is_larger_where_it_is_better():
  report = {
    "accuracy": 0.7,
    "loss": 0.4,
    "sources": {"a": {"loss": 0.5}},
    "kendall": {"value": None},
  }
  assert measured(report, "accuracy") == 0.7
  assert measured(report, "loss") == -0.4
  assert measured(report, "sources.a.loss") == -0.5
  assert measured(report, "kendall") is None
  with pytest.raises(InputError, match=r"'acuracy'.* has accuracy, loss, sources.a.loss"):
    measured(report, "acuracy")
  with pytest.raises(InputError, match=r"'sources.a'.* has accuracy, loss, sources.a.loss"):
    measured(report, "sources.a")


def test_scores_that_are_not_finite_have_no_measure(tmp_path):
  none = {"split": "validation", "n": 0, "why": "..", "not_finite": 2}
  assert measured(none, "accuracy") is None
  best = Best(tmp_path, "accuracy", 2)
  assert best.chosen([none]) is None
  assert not best.keep(None, none, [none])
  lines = [none, {"split": "validation", "accuracy": 0.5}, none]
  assert best.chosen(lines) == lines[1]
  assert not best.exhausted(lines)
  assert best.exhausted([*lines, none])


@pytest.mark.slow
def test_an_evaluation_whose_scores_are_not_finite_does_not_end_the_run(
  llama_folder, tmp_path, monkeypatch
):
  judge, times = loop.score_outputs, []

  def infinite_once(*args, **kwargs):
    times.append(1)
    return [(x * np.inf if len(times) == 1 else x, y) for x, y in judge(*args, **kwargs)]

  monkeypatch.setattr(loop, "score_outputs", infinite_once)
  summary = run(configured(llama_folder, steps=4), tmp_path / "run", devices=1)
  assert [line.get("not_finite") for line in lines_of(tmp_path / "run", "validation")] == [8, None]
  assert summary["best"]["step"] == 4


def test_a_wrong_measure_is_named_before_the_first_step(llama_folder, tmp_path):
  with pytest.raises(InputError, match=r"'acuracy'; the validation data's report has .*accuracy"):
    loop.train(configured(llama_folder, measure="acuracy"), tmp_path / "run")
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert not [line for line in lines if json.loads(line)["split"] == "train"]


def test_what_cannot_choose_is_refused(llama_folder):
  for changes, message in (
    ({"data.validation": 0.0}, r"train.best='loss' and --config.data.validation=0"),
    ({"data.validation": 1.0}, r"data.validation=1.0: expected"),
    ({"train.best": "", "train.patience": 2}, "patience is set and"),
  ):
    with pytest.raises(InputError, match=message):
      check_fields(configured(llama_folder, **changes))
