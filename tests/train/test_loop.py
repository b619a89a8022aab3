"""A run does what its config says, twice the same, and goes on where it stopped."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from rm_jax import RewardModel
from rm_jax.batch import cache
from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.group import make_group
from rm_jax.batch.tokenise import Convention, TextEncoder
from rm_jax.reward import score
from rm_jax.reward.score import score_outputs
from rm_jax.storage.files import read_lines
from rm_jax.train import loop, progress
from rm_jax.train import run as run_parts
from rm_jax.train.run import Run
from rm_jax.types import Example
from rm_jax.workdir import folder as workdirs
from rm_jax.workdir.checkpoints import CheckpointError
from tests.conftest import decoder_tokenizer
from tests.train.runs import flip_a_byte, run, small_config, write_pairs


def files(workdir):
  return (workdir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(llama_folder, tmp_path_factory):
  """A run of 20 steps, and its summary."""
  workdir = tmp_path_factory.mktemp("whole")
  summary = run(small_config(llama_folder, steps=20), workdir, devices=1, picture=True)
  return workdir, summary


def test_leaves_what_it_promises(whole):
  workdir, summary = whole
  names = {"config.json", "metrics.jsonl", "timing.jsonl", "summary.json", "report.png"}
  assert names <= {p.name for p in workdir.iterdir()}
  assert (workdir / "report.png").read_bytes().startswith(b"\x89PNG")
  assert list((workdir / "tensorboard").iterdir())
  assert json.loads((workdir / "summary.json").read_text()) == json.loads(json.dumps(summary))
  held = summary["heldout"]
  assert held["n"] == 16
  assert held["interval"][0] <= held["accuracy"] <= held["interval"][1]
  assert held["baselines"].keys() == {"random", "longest", "shortest"}
  assert summary["data"]["kept"] == 64
  assert summary["data"]["dropped"] == {}
  assert summary["train"]["peak_memory_bytes"] > 1e6
  lines = read_lines(workdir / "metrics.jsonl")
  assert [x["step"] for x in lines if x["split"] == "train"] == list(range(1, 21))
  assert [x["step"] for x in lines if x["split"] == "heldout"] == [0, 10, 20]
  clock = {"seconds", "pairs_per_second", "tokens_per_second", "peak_memory_bytes"}
  assert not any(clock & x.keys() for x in lines)
  assert clock <= read_lines(workdir / "timing.jsonl")[0].keys()


def test_learns(whole):
  workdir, summary = whole
  lines = [x for x in read_lines(workdir / "metrics.jsonl") if x["split"] == "train"]
  # A fresh head of width D = 32 gives scores of deviation √D / (D + 1) = 0.17, so the mean loss of
  # 8 pairs is within 3 · √2 · 0.17 / 2 / √8 of a coin's.
  assert lines[0]["loss"] == pytest.approx(np.log(2), abs=3 * 2**0.5 * 0.17 / 2 / 8**0.5)
  assert lines[-1]["loss"] < 0.3
  assert summary["heldout"]["accuracy"] > 0.9


@pytest.mark.slow
def test_same_seed_same_run_another_seed_another(whole, llama_folder, tmp_path):
  run(small_config(llama_folder, steps=20), tmp_path / "same", devices=1)
  assert files(tmp_path / "same") == files(whole[0])
  config = small_config(llama_folder, steps=20)
  config.seed = 1
  run(config, tmp_path / "other", devices=1)
  assert files(tmp_path / "other") != files(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [7, 10])
def test_stopped_and_resumed_is_one_run(stop, whole, llama_folder, tmp_path):
  run(small_config(llama_folder, steps=stop), tmp_path, devices=1)
  run(small_config(llama_folder, steps=20), tmp_path, devices=1)
  mine = [x for x in read_lines(tmp_path / "metrics.jsonl") if x["step"] not in (stop,)]
  theirs = [x for x in read_lines(whole[0] / "metrics.jsonl") if x["step"] not in (stop,)]
  assert mine == theirs


@pytest.mark.slow
def test_killed_without_warning_resumes_to_the_same_file(whole, llama_folder, tmp_path):
  class Killed(BaseException):
    pass

  config = small_config(llama_folder, steps=20)
  step = Run.step

  def dies(self, micros):
    if int(self.state.step) == 14:
      raise Killed
    return step(self, micros)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Run, "step", dies)
    with pytest.raises(Killed):
      run(config, tmp_path, devices=1)
  assert read_lines(tmp_path / "metrics.jsonl")[-1]["step"] == 14  # past its checkpoint, at 10
  run(config, tmp_path, devices=1)
  assert files(tmp_path) == files(whole[0])


@pytest.mark.slow
def test_tokens_from_the_disk_or_made_are_the_same_run(whole, llama_folder, tmp_path, monkeypatch):
  reports = []
  for name in ("none", "made", "read"):
    config = small_config(llama_folder, steps=20)
    config.data.cache = "none" if name == "none" else str(tmp_path / "tokens")
    summary = run(config, tmp_path / name, devices=1)
    assert files(tmp_path / name) == files(whole[0])
    reports.append(summary["data"])
    if name == "made":
      monkeypatch.setattr(cache, "unlabelled", None)  # what is there is not made again
  assert reports[0] == reports[1] == reports[2] == whole[1]["data"]


def test_a_run_of_before_a_field_was_there_goes_on(whole, llama_folder, tmp_path, monkeypatch):
  shutil.copytree(whole[0], tmp_path / "copy")
  path = tmp_path / "copy" / "config.json"
  saved = json.loads(path.read_text())
  del saved["data"]["cache"], saved["data"]["deduplicate"]
  path.write_text(json.dumps(saved))
  config = small_config(llama_folder, steps=20)
  with pytest.raises(ValueError, match=r"another config:\n  data\.deduplicate: None there"):
    workdirs.check(tmp_path / "copy", workdirs.resolve(config, 48, tmp_path / "copy"))
  monkeypatch.setitem(workdirs._BEFORE, "data.deduplicate", False)
  workdirs.check(tmp_path / "copy", workdirs.resolve(config, 48, tmp_path / "copy"))
  base = workdirs.flat(workdirs.plain(get_config()))
  assert workdirs._BEFORE.keys() <= base.keys()


def test_finished_run_again_changes_nothing(whole, llama_folder):
  before = files(whole[0])
  summary = run(small_config(llama_folder, steps=20), whole[0], devices=1)
  assert files(whole[0]) == before
  assert summary["heldout"]["accuracy"] == whole[1]["heldout"]["accuracy"]


@pytest.mark.slow
def test_resumes_on_other_devices(whole, llama_folder, tmp_path):
  run(small_config(llama_folder, steps=10), tmp_path, devices=1)
  config = small_config(llama_folder, steps=20)
  config.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  run(config, tmp_path)
  got = [x["loss"] for x in read_lines(tmp_path / "metrics.jsonl") if x["split"] == "train"]
  want = [x["loss"] for x in read_lines(whole[0] / "metrics.jsonl") if x["split"] == "train"]
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_another_config_is_refused_and_nothing_overwritten(whole, llama_folder):
  before = {p: p.read_bytes() for p in whole[0].iterdir() if p.is_file()}
  config = small_config(llama_folder, steps=20)
  config.optimizer.learning_rate = 1e-5
  with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.003 there, 1e-05 now"):
    run(config, whole[0], devices=1)
  assert {p: p.read_bytes() for p in whole[0].iterdir() if p.is_file()} == before


def test_other_data_are_refused(whole, llama_folder, tmp_path):
  shutil.copytree(whole[0], tmp_path / "copy")
  config = small_config(llama_folder, steps=30)
  write_pairs(llama_folder / "train.jsonl", 48, seed=5)
  with pytest.raises(ValueError, match="its training data were other ones"):
    run(config, tmp_path / "copy", devices=1)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("heldout", "why"),
  [
    ({"prompt": "H"}, "1 conversation"),
    ({"tie": True}, "decided none of 6 comparisons"),
    ({"preference": 0.5}, "decided none of 6 comparisons"),
  ],
)
def test_held_out_data_that_say_little_do_not_end_a_run(heldout, why, llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  config.data.train = str(write_pairs(tmp_path / "ten.jsonl", 10))
  config.data.heldout = str(tmp_path / "held.jsonl")
  rows = [{"prompt": f"H {i}", "chosen": "a", "rejected": "bb"} | heldout for i in range(6)]
  (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  summary = run(config, tmp_path / "run", devices=1, picture=True)
  assert why in summary["heldout"]["why"]
  assert why in read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["why"]
  assert (tmp_path / "run" / "report.png").exists()


@pytest.mark.slow
def test_damaged_checkpoint_is_passed_over_and_made_again(whole, llama_folder, tmp_path, caplog):
  config = small_config(llama_folder, steps=20)  # keeps two checkpoints by default
  run(config, tmp_path, devices=1)
  before = files(tmp_path)
  flip_a_byte(tmp_path / "checkpoints" / "20" / "params")
  (tmp_path / "checkpoints" / "30").mkdir()
  with caplog.at_level("WARNING"):
    served = RewardModel.from_pretrained(tmp_path).score(ROWS)
  assert "THE SCORES ARE THOSE OF STEP 10: its latest checkpoint, of step 30" in caplog.text
  run(config, tmp_path, devices=1)
  assert "step 20" in caplog.text
  assert files(tmp_path) == before
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]
  assert sorted(p.name for p in (tmp_path / "checkpoints.damaged").iterdir()) == ["20", "30"]
  # What is served is what summary.json describes.
  caplog.clear()
  again = RewardModel.from_pretrained(tmp_path)
  assert not caplog.text
  assert not np.allclose(again.score(ROWS), served)
  np.testing.assert_allclose(again.score(ROWS), RewardModel.from_pretrained(whole[0]).score(ROWS))


ROWS = [{"prompt": "x ", "response": "aab"}, {"prompt": "y ", "response": "b"}]


@pytest.mark.slow
def test_no_checkpoint_left_to_read_is_an_error(llama_folder, tmp_path):
  run(small_config(llama_folder, steps=5), tmp_path, devices=1)
  flip_a_byte(tmp_path / "checkpoints" / "5" / "params")
  with pytest.raises(CheckpointError, match="none of its 1 checkpoints can be read"):
    run(small_config(llama_folder, steps=20), tmp_path, devices=1)
  with pytest.raises(CheckpointError, match="none of its 1 checkpoints can be read"):
    RewardModel.from_pretrained(tmp_path)


@pytest.mark.slow
def test_frozen_layers_stay_and_are_run_once(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=5)
  config.model.frozen_layers = 2
  start, end, evaluated = {}, {}, []

  def scored(*args, features, **options):
    evaluated.append(features)
    return score_outputs(*args, features=features, **options)

  class Spy(loop._Loop):
    def run_steps(self):
      assert self.run.features is not None
      start.update(jax.tree.map(np.asarray, {**self.run.state.params, **self.run.state.frozen}))
      out = super().run_steps()
      end.update(jax.tree.map(np.asarray, {**self.run.state.params, **self.run.state.frozen}))
      return out

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "_Loop", Spy)
    patch.setattr(loop, "score_outputs", scored)
    summary = run(config, tmp_path / "kept", devices=1)
  assert evaluated
  assert all(features is not None for features in evaluated)
  for path, x in start.items():
    moved = not np.array_equal(x, end[path])
    assert moved == (not path.startswith(("backbone/lower/", "backbone/embed"))), path
  assert summary["train"]["frozen_parameters"] == sum(
    x.size for p, x in start.items() if p.startswith(("backbone/lower/", "backbone/embed"))
  )
  # Kept activations are only a way to be faster.
  config.model.keep_features = False
  again = run(config, tmp_path / "anew", devices=1)
  for a, b in zip(
    read_lines(tmp_path / "kept" / "metrics.jsonl"),
    read_lines(tmp_path / "anew" / "metrics.jsonl"),
    strict=True,
  ):
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
  assert again["train"]["trained_parameters"] == summary["train"]["trained_parameters"]


@pytest.mark.slow
def test_frozen_layers_output_serves_the_next_run_that_would_compute_the_same(
  llama_folder, tmp_path, monkeypatch
):
  class StopError(Exception):
    pass

  def compute(network, params, groups, *, progress, **options):
    computed.append(progress.removeprefix("frozen layers, "))
    return [None] * len(groups)

  def stop(self):
    raise StopError

  config = small_config(llama_folder, steps=2)
  config.model.frozen_layers = 2
  kept = score.KeptFeatures()
  run(config, tmp_path / "first", devices=1, kept=kept)
  config.optimizer.learning_rate *= 2
  config.loss.pair = "hinge"
  run(config, tmp_path / "alone", devices=1)
  monkeypatch.setattr(score, "make_features", compute)
  computed = []
  run(config, tmp_path / "next", devices=1, kept=copy.copy(kept))
  assert computed == []
  lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("alone", "next")]
  assert lines[0] == lines[1]
  monkeypatch.setattr(loop._Loop, "run_steps", stop)
  everything = ["train", "validation", "heldout", "shifted"]
  for field, value, wanted in (
    ("seed", 1, everything),  # other random weights
    ("data.limit", 40, ["train"]),
    ("data.row_lengths", (128,), everything),
    ("model.frozen_layers", 1, everything),
    ("model.dtype", "bfloat16", everything),
    ("model.keep_gib", 1e-9, []),  # too little for them: computed at every step
    # Other feedback and another head on the same tokens.
    ("data.objectives", "*=helpful", []),
  ):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({field: value})
    if field == "data.objectives":
      other.model.attributes = ("helpful",)
    computed = []
    with pytest.raises(StopError):
      run(other, tmp_path / "other" / field, devices=1, kept=copy.copy(kept))
    assert computed == wanted, field


@pytest.mark.slow
def test_gradients_that_stay_infinite_stop_the_run(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=20)
  config.train.max_skipped = 3

  def explode(*args, **kwargs):
    params = original(*args, **kwargs)
    return params | {"head/out/kernel": jnp.full_like(params["head/out/kernel"], jnp.nan)}

  original = run_parts.init_params
  config.data.heldout = "0"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_parts, "init_params", explode)
    with pytest.raises(loop.NotFiniteError, match="3 steps up to"):
      run(config, tmp_path, devices=1)


@pytest.mark.slow
def test_decay_towards_the_start_holds_the_weights_back(llama_folder, tmp_path):
  distance = {}
  for rate in (0.0, 50.0):
    config = small_config(llama_folder, steps=10)
    config.optimizer.towards_pretrained = rate
    moved = {}

    class Spy(loop._Loop):
      def run_steps(self, moved=moved):
        start = jax.tree.map(np.asarray, self.run.state.params)
        out = super().run_steps()
        moved["by"] = sum(
          float(np.square(np.asarray(x) - start[p]).sum()) for p, x in self.run.state.params.items()
        )
        return out

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(loop, "_Loop", Spy)
      run(config, tmp_path / str(rate), devices=1)
    distance[rate] = moved["by"]
  assert distance[50.0] < 0.7 * distance[0.0]


def poisoned(folder, path, row, **fields):
  """Pairs of which one has fields of its own."""
  lines = write_pairs(path, 48).read_text().splitlines()
  lines[row] = json.dumps(json.loads(lines[row]) | fields)
  path.write_text("\n".join(lines) + "\n")
  config = small_config(folder, steps=12)
  config.data.train, config.data.heldout = str(path), "0"
  return config


@pytest.mark.slow
def test_a_step_whose_loss_is_not_finite_is_skipped_and_the_run_is_finished(
  llama_folder, tmp_path, caplog
):
  # Finite in float32, and so is its gradient; the square of the loss' hinge is not.
  config = poisoned(llama_folder, tmp_path / "rows.jsonl", 5, margin=1e30)
  config.loss.pair = "squared_hinge"
  config.train.log_every = 1
  summary = run(config, tmp_path / "run", devices=1)
  lines = read_lines(tmp_path / "run" / "metrics.jsonl")
  assert len(lines) == 12
  skipped = [x for x in lines if x["skipped_steps"]]
  assert summary["train"]["skipped_steps"] == len(skipped) == 2  # an epoch is six steps
  assert "2 of 12 steps were skipped" in caplog.text
  for line in skipped:
    values = {k: line[k] for k in ("loss", "accuracy", "gradient_norm", "score_mean")}
    assert set(values.values()) == {None}
    assert line["learning_rate"] is None
  # The rates are those of the updates, one after another.
  clean = run(small_config(llama_folder, steps=12), tmp_path / "clean", devices=1)
  assert clean["train"]["skipped_steps"] == 0
  lines_of_clean = read_lines(tmp_path / "clean" / "metrics.jsonl")
  rates = [x["learning_rate"] for x in lines_of_clean if x["split"] == "train"]
  assert [x["learning_rate"] for x in lines if x not in skipped] == rates[:10]


@pytest.mark.slow
def test_a_window_that_is_infinite_already_does_not_doom_the_restart(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=4)
  save = loop.Checkpoints.save

  def saves(self, state, position):
    window = state.window | {"loss": state.window["loss"] + jnp.inf}
    save(self, dataclasses.replace(state, window=window), position)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.Checkpoints, "save", saves)
    run(config, tmp_path, devices=1)
  config.train.steps = 6
  assert run(config, tmp_path, devices=1)["train"]["steps"] == 6
  assert np.isfinite(read_lines(tmp_path / "metrics.jsonl")[-2]["loss"])


@pytest.mark.slow
def test_a_run_shorter_than_max_skipped_does_not_pass_for_one(llama_folder, tmp_path):
  config = poisoned(llama_folder, tmp_path / "rows.jsonl", 5, margin=1e38)
  path = tmp_path / "rows.jsonl"
  # Each is a number of float32, and the sum of a step's losses is none.
  rows = [json.loads(x) | {"margin": 3e38} for x in path.read_text().splitlines()]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config.train.steps = 3
  for _ in range(2):  # nor when the same command is given again
    with pytest.raises(loop.NotFiniteError, match="all 3 steps were skipped"):
      run(config, tmp_path / "run", devices=1)


def test_an_update_that_overflows_is_not_kept(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=4)
  config.optimizer.name, config.optimizer.learning_rate = "sgd", 3e38
  config.optimizer.clip, config.optimizer.schedule = 0.0, "constant"
  config.optimizer.warmup_steps, config.optimizer.weight_decay = 0, 1e3
  config.train.checkpoint_every = 1
  with pytest.raises(loop.NotFiniteError, match="the update of step 1 is not finite"):
    run(config, tmp_path, devices=1)
  assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_kill_before_the_first_checkpoint_leaves_no_line_twice(whole, llama_folder, tmp_path):
  config = small_config(llama_folder, steps=20)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Run, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      run(config, tmp_path, devices=1)
  assert [x["step"] for x in read_lines(tmp_path / "metrics.jsonl")] == [0]
  run(config, tmp_path, devices=1)
  assert files(tmp_path) == files(whole[0])


@pytest.mark.slow
def test_an_error_in_the_evaluation_loses_no_checkpoint_and_no_line(whole, llama_folder, tmp_path):
  config = small_config(llama_folder, steps=20)
  judge, times = loop.score_outputs, []

  def fails(*args, **kwargs):
    times.append(1)
    if len(times) == 2:  # after steps 0 and 10
      raise MemoryError
    return judge(*args, **kwargs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "score_outputs", fails)
    with pytest.raises(MemoryError):
      run(config, tmp_path, devices=1)
  assert (tmp_path / "checkpoints" / "10").is_dir()
  run(config, tmp_path, devices=1)
  assert files(tmp_path) == files(whole[0])


def test_scores_that_are_not_finite_are_told_and_do_not_end_the_run(llama_folder, tmp_path):
  judge = loop.score_outputs
  with pytest.MonkeyPatch.context() as patch:
    infinite = lambda *a, **k: [(x * np.inf, y) for x, y in judge(*a, **k)]  # noqa: E731
    patch.setattr(loop, "score_outputs", infinite)
    summary = run(small_config(llama_folder, steps=2), tmp_path, devices=1, picture=True)
  assert summary["heldout"]["why"] == "the scores of 16 of 16 examples are not finite"
  assert (tmp_path / "report.png").exists()


def test_other_held_out_data_are_refused(whole, llama_folder, tmp_path):
  shutil.copytree(whole[0], tmp_path / "copy")
  config = small_config(llama_folder, steps=30)
  write_pairs(llama_folder / "heldout.jsonl", 16, seed=9)
  with pytest.raises(ValueError, match="its held-out data were other ones"):
    run(config, tmp_path / "copy", devices=1)


def one_group(label):
  example = Example("a", ("b",), (float(label),), "score")
  encoder = TextEncoder(decoder_tokenizer(), Convention())
  return make_group(encoder.sequences([("a", "b")]), example)


@pytest.mark.parametrize("key", ["data", "heldout", "validation"])
def test_a_resumed_runs_data_are_compared_where_its_checkpoint_has_them(key, tmp_path):
  hashed = {
    name: TokenDataset([one_group(label)], [])
    for label, name in enumerate(("data", "heldout", "validation"))
  }
  data = {name: one.fingerprint() for name, one in hashed.items()}
  state = SimpleNamespace(window={}, step=3)

  def resume(position):
    it = object.__new__(loop._Loop)
    it.run, it.workdir = SimpleNamespace(state=state), tmp_path
    it.hashed, it.data = hashed, data
    it.checkpoints = SimpleNamespace(restore=lambda _: (state, position))
    it._resume()
    return it.skipped

  assert resume({**data, "skipped": 2}) == 2
  old = {name: mark for name, mark in data.items() if name != key}
  assert resume(old) == 0  # of a version that saved none
  assert resume({**data, key: hashed[key]._unnamed()}) == 0  # of a version with another form
  name = {"data": "training", "heldout": "held-out"}.get(key, key)
  with pytest.raises(ValueError, match=rf"its {name} data were other ones \(x, now {data[key]}\)"):
    resume({**data, key: "x"})
  other = TokenDataset([one_group(7)], [])
  for mark in (other.fingerprint(), other._unnamed()):
    with pytest.raises(ValueError, match=rf"its {name} data were other ones \({mark}, now"):
      resume({**data, key: mark})


def test_hosts_with_other_validation_or_shifted_data_are_told(llama_folder, tmp_path, monkeypatch):
  class Asked(Exception):
    pass

  def ask(**values):
    raise Asked(values)

  monkeypatch.setattr(loop, "check_same", ask)
  config = small_config(llama_folder, steps=1)
  config.data.validation = 0.25
  config.model.members, config.data.shifted = 2, config.data.heldout
  with pytest.raises(Asked) as asked:
    loop.train(config, tmp_path)
  seen = asked.value.args[0]
  assert set(seen) == {
    *("config", "training data", "held-out data", "validation data", "shifted data")
  }
  assert seen["shifted data"] == seen["held-out data"] != seen["validation data"]


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_not_in_it(tmp_path):
  with workdirs.locked(tmp_path):
    for _ in range(2):  # the first is still the one that holds it
      message = f"is in use by process {os.getpid()} on "
      with pytest.raises(ValueError, match=message), workdirs.locked(tmp_path):
        pass
  with workdirs.locked(tmp_path):
    pass
  # One that was killed: its lock is gone with it.
  hold = (
    "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX);"
    "print('held', flush=True); time.sleep(60)"
  )
  lock = str(tmp_path / ".lock")
  with subprocess.Popen([sys.executable, "-c", hold, lock], stdout=subprocess.PIPE) as other:
    other.stdout.readline()
    with pytest.raises(ValueError, match="is in use by"), workdirs.locked(tmp_path):
      pass
    other.kill()
    other.wait()
    with workdirs.locked(tmp_path):
      pass


def test_what_a_bad_disk_made_of_the_metrics_is_passed_over(tmp_path, caplog):
  path = tmp_path / "metrics.jsonl"
  lines = [json.dumps({"step": i, "loss": 0.5}).encode() for i in range(6)]
  lines[1], lines[2], lines[3] = b'{"step": \xff}', bytes(20), b"5"
  path.write_bytes(b"\n".join(lines)[:-4])
  assert [x["step"] for x in read_lines(path)] == [0, 4]
  assert "lines [2, 3, 4] cannot be read" in caplog.text


def test_tokens_of_before_a_resume_are_not_in_its_speed(monkeypatch):
  """With log_every=100, resumed after step 99, the first line said a hundred times the speed."""
  now = iter([0.0, 1.0, 2.0, 5.0, 7.0])
  monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
  clock = progress.Clock(4, 99_000)
  clock.tick()
  first = clock.window(100_000)
  assert (first["tokens_per_second"], first["pairs_per_second"]) == (500.0, 2.0)
  clock.tick()
  assert clock.window(1_000)["tokens_per_second"] == 200.0
