"""A run's folder is locked for one run."""

import json
import os
from pathlib import Path

import pytest

from configs.base import get_config
from rm_jax.errors import InputError
from rm_jax.train import loop
from rm_jax.workdir.folder import _differences, check_place, flat, locked, plain, resolve


def test_a_run_that_finds_the_folder_locked_does_not_remove_it(tmp_path, monkeypatch):
  run, exists = tmp_path / "run", Path.exists
  with locked(run):
    # The second run checks for the folder just before the first one makes it.
    monkeypatch.setattr(Path, "exists", lambda path: path != run and exists(path))
    for _ in range(2):
      with pytest.raises(ValueError, match="is in use by process"), locked(run):
        pass
    monkeypatch.undo()
    assert [path.name for path in run.iterdir()] == [".lock"]
  assert not run.exists()  # a run that wrote nothing removes the folder that it made


def test_a_workdir_that_cannot_be_one_is_refused_before_a_model_is_built(tmp_path, monkeypatch):
  file, link = tmp_path / "file", tmp_path / "link"
  file.touch()
  link.symlink_to(tmp_path / "nowhere")
  for wrong, there in ((file, file), (file / "a" / "b", file), (link / "a", link)):
    with pytest.raises(InputError, match=f"--workdir={wrong}: {there} is no folder"):
      loop.train(get_config(), wrong)
  check_place(tmp_path)
  check_place(tmp_path / "a" / "b")
  monkeypatch.chdir(tmp_path)
  check_place(Path("a"))
  monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
  with pytest.raises(InputError, match=f"{tmp_path} cannot be written in"):
    check_place(tmp_path / "a" / "b")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_field_that_older_runs_do_not_have_is_as_they_ran():
  """Otherwise a run of an earlier version would be one of another config, and could not go on."""
  path = Path(__file__).parents[1] / "golden/4f9e290/llama/run/config.json"
  saved = flat(json.loads(path.read_text()))
  now = flat(plain(get_config()))
  new = {key: value for key, value in now.items() if key not in saved}
  assert new
  assert not _differences(saved, saved | new, ())


def test_values_that_follow_the_data():
  config = get_config()
  config.data.batch_groups, config.train.epochs = 32, 2.0
  config.train.steps = config.optimizer.decay_steps = config.train.eval_every = 0
  found = resolve(config, groups=1_600)
  assert (found.train.steps, found.optimizer.decay_steps) == (100, 100)
  assert found.optimizer.warmup_steps == 3
  assert (found.train.eval_every, found.train.checkpoint_every) == (20, 20)
  config.train.epochs = 2.1
  assert resolve(config, groups=1_600).train.eval_every == 21  # a fifth of 105
  assert resolve(config, groups=1).train.eval_every == 1
  config.train.eval_every, config.optimizer.warmup_steps = 7, 0
  found = resolve(config, groups=1_600)
  assert (found.train.checkpoint_every, found.optimizer.warmup_steps) == (7, 0)
