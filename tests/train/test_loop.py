"""A run does what its config says, twice the same, and goes on where it stopped."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from rm_jax import RewardModel
from rm_jax.data import cache
from rm_jax.train import loop
from rm_jax.train import run as run_parts
from rm_jax.train import workdir as workdirs
from rm_jax.train.checkpoints import CheckpointError
from rm_jax.train.run import Run
from rm_jax.train.writers import read_lines
from tests.train.runs import run, small_config, write_pairs


def files(workdir):
  return (workdir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(llama_folder, tmp_path_factory):
  """A run of 20 steps, and its summary."""
  workdir = tmp_path_factory.mktemp("whole")
  summary = run(small_config(llama_folder, steps=20), workdir, devices=1)
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
      monkeypatch.setattr(cache, "outcomes", None)  # what is there is not made again
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
  base = workdirs._flat(workdirs.plain(get_config()))
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


@pytest.mark.parametrize(
  ("heldout", "why"),
  [
    ("0.1", "1 conversation"),
    ({"tie": True}, "decided none of 6 comparisons"),
    ({"preference": 0.5}, "decided none of 6 comparisons"),
  ],
)
def test_held_out_data_that_say_little_do_not_end_a_run(heldout, why, llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  config.data.train = str(write_pairs(tmp_path / "ten.jsonl", 10))
  if isinstance(heldout, str):
    config.data.heldout = heldout
  else:
    config.data.heldout = str(tmp_path / "held.jsonl")
    rows = [{"prompt": f"H {i}", "chosen": "a", "rejected": "bb"} | heldout for i in range(6)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  summary = run(config, tmp_path / "run", devices=1)
  assert why in summary["heldout"]["why"]
  assert why in read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["why"]
  assert (tmp_path / "run" / "report.png").exists()


def flip_a_byte(directory):
  """In the largest file: the array data."""
  path = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.slow
def test_damaged_checkpoint_is_passed_over_for_the_one_before(llama_folder, tmp_path, caplog):
  config = small_config(llama_folder, steps=20)
  config.train.keep = 2
  run(config, tmp_path, devices=1)
  before = files(tmp_path)
  flip_a_byte(tmp_path / "checkpoints" / "20" / "params")
  (tmp_path / "checkpoints" / "30").mkdir()
  run(config, tmp_path, devices=1)
  assert "step 20" in caplog.text
  assert files(tmp_path) == before


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
  start, end = {}, {}

  class Spy(loop._Loop):
    def loop(self):
      assert self.run.features is not None
      start.update(jax.tree.map(np.asarray, {**self.run.state.params, **self.run.state.frozen}))
      out = super().loop()
      end.update(jax.tree.map(np.asarray, {**self.run.state.params, **self.run.state.frozen}))
      return out

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "_Loop", Spy)
    summary = run(config, tmp_path / "kept", devices=1)
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
      def loop(self, moved=moved):
        start = jax.tree.map(np.asarray, self.run.state.params)
        out = super().loop()
        moved["by"] = sum(
          float(np.square(np.asarray(x) - start[p]).sum()) for p, x in self.run.state.params.items()
        )
        return out

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(loop, "_Loop", Spy)
      run(config, tmp_path / str(rate), devices=1)
    distance[rate] = moved["by"]
  assert distance[50.0] < 0.7 * distance[0.0]
