"""Damaged checkpoints are skipped, moved aside and written again, in both stores."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.train.window import zero_window
from rm_jax.workdir.checkpoints import CheckpointError, Checkpoints
from rm_jax.workdir.state import TrainState
from rm_jax.workdir.stores import FirstProcessStore, SharedStore
from tests.train.runs import flip_a_byte


def state_at(step):
  # Random numbers do not compress, so that the largest file holds them.
  params = {"head/kernel": jax.random.normal(jax.random.key(step), (64, 64))}
  return TrainState(
    jnp.int32(step), params, {}, {"trace": params["head/kernel"] / 2}, zero_window(1)
  )


def saved(folder, steps=(1, 2, 3), shared=True):
  checkpoints = Checkpoints(folder, keep=len(steps), shared=shared)
  for step in steps:
    checkpoints.save(state_at(step), {"seed": 0, "data": "abc"})
  checkpoints.close()


def empty(folder):
  (folder / "100").mkdir()


def flip(folder):
  flip_a_byte(folder / "3" / "params")


def flip_the_optimiser(folder):
  flip_a_byte(folder / "3" / "train")


def another_position(folder):
  path = folder / "3" / "position" / "metadata"
  position = json.loads(path.read_text())
  path.write_text(json.dumps(position | {"data": "abd"}))


def no_manifest(folder):
  for path in (folder / "3").rglob("manifest.ocdbt"):
    path.unlink()


def position_cut(folder):
  path = folder / "3" / "position" / "metadata"
  path.write_bytes(path.read_bytes()[:40])


def only_the_folder(folder):
  for path in sorted((folder / "3").rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
  "damage",
  [
    empty,
    flip,
    flip_the_optimiser,
    another_position,
    no_manifest,
    position_cut,
    only_the_folder,
  ],
)
def test_after_damage_the_run_goes_on_from_the_one_before_and_saves(
  damage, shared, tmp_path, caplog
):
  folder = tmp_path / "checkpoints"
  saved(folder, shared=shared)
  damage(folder)
  whole = 3 if damage is empty else 2
  checkpoints = Checkpoints(folder, keep=2, shared=shared)
  found, position = checkpoints.restore(state_at(0))
  assert (int(found.step), position["data"]) == (whole, "abc")
  assert "passed over" in caplog.text
  assert "Traceback" not in caplog.text
  assert "checkpoints.damaged" in caplog.text
  newer = 100 if damage is empty else 3
  assert newer not in checkpoints.steps()
  assert (tmp_path / "checkpoints.damaged" / str(newer)).is_dir()
  # The same step again, and one more.
  for step in (whole + 1, whole + 2):
    checkpoints.save(state_at(step), {"data": "abc"})
  checkpoints.close()
  again = Checkpoints(folder, keep=2, shared=shared)
  assert again.steps() == [whole + 1, whole + 2]
  found, _ = again.restore(state_at(0))
  again.close()
  np.testing.assert_array_equal(
    found.params["head/kernel"], state_at(whole + 2).params["head/kernel"]
  )


def test_what_is_moved_aside_twice_replaces_nothing(tmp_path):
  folder = tmp_path / "checkpoints"
  saved(folder)
  for _ in range(2):
    flip(folder)
    checkpoints = Checkpoints(folder, keep=3)
    checkpoints.restore(state_at(0))
    checkpoints.save(state_at(3), {})
    checkpoints.close()
  assert {p.name for p in (tmp_path / "checkpoints.damaged").iterdir()} == {"3", "3.1"}


def test_reading_parameters_moves_nothing(tmp_path, caplog, monkeypatch):
  monkeypatch.setenv("RM_JAX_TRACEBACK", "1")
  folder = tmp_path / "checkpoints"
  saved(folder)
  flip(folder)
  checkpoints = Checkpoints(folder, keep=3)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = {"head/kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharding)}
  found = checkpoints.restore_params(abstract)
  checkpoints.close()
  assert checkpoints.step == 2
  assert "Traceback" in caplog.text  # what is taken for damage may be a bug
  np.testing.assert_array_equal(found["head/kernel"], state_at(2).params["head/kernel"])
  assert (folder / "3").is_dir()
  assert not (tmp_path / "checkpoints.damaged").exists()


def test_where_none_can_be_read_nothing_is_moved(tmp_path):
  folder = tmp_path / "checkpoints"
  saved(folder, steps=(3,))
  flip(folder)
  with pytest.raises(CheckpointError, match="none of its 1 checkpoints can be read"):
    Checkpoints(folder).restore(state_at(0))
  assert (folder / "3").is_dir()


def test_a_position_of_a_version_without_digests_is_read(tmp_path):
  folder = tmp_path / "checkpoints"
  saved(folder)
  path = folder / "3" / "position" / "metadata"
  position = json.loads(path.read_text())
  del position["digest"]
  path.write_text(json.dumps(position))
  found, _ = Checkpoints(folder).restore(state_at(0))
  assert int(found.step) == 3


@pytest.mark.parametrize("store", [SharedStore, FirstProcessStore])
def test_a_save_that_orbax_does_not_make_is_an_error(store, tmp_path):
  (tmp_path / "100").mkdir()
  one = store(tmp_path, 2)
  with pytest.raises((RuntimeError, OSError), match=r"Orbax did not write it.*\[100\]"):
    one.save(7, {"params": {"a": jnp.ones(2)}}, {})
  one.close()


def test_what_an_interrupted_save_left_is_deleted(tmp_path):
  folder = tmp_path / "checkpoints"
  saved(folder)
  left = folder / "4.orbax-checkpoint-tmp"
  left.mkdir()
  (left / "part").write_bytes(b"x")
  Checkpoints(folder, keep=3).restore(state_at(0))
  assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]


def test_parameters_of_a_run_without_a_checkpoint_are_an_error(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=1, shared=True)
  with pytest.raises(CheckpointError, match=r"no checkpoint; has the run saved one yet\?"):
    checkpoints.restore_params({"head/kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)})
  checkpoints.close()
