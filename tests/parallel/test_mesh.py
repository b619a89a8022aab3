"""One device and eight give the same run, and the state is sharded from the start."""

import jax
import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh, parameter_shardings, parse_mesh
from rm_jax.storage.files import read_lines
from tests.train.runs import run, small_config


def losses(workdir):
  lines = read_lines(workdir / "metrics.jsonl")
  return np.asarray([x["loss"] for x in lines if x["split"] == "train"])


@pytest.fixture(scope="module")
def one_device(llama_folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one")
  with jax.default_device(jax.devices()[0]):
    run(small_config(llama_folder, steps=20), workdir, devices=1)
  return losses(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_eight_devices_give_one_devices_losses(mesh, one_device, llama_folder, tmp_path):
  config = small_config(llama_folder, steps=20)
  config.mesh = {"data": 1, "fsdp": 1, "tensor": 1} | mesh
  run(config, tmp_path)
  assert len(one_device) == 20
  np.testing.assert_allclose(losses(tmp_path), one_device, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_state_is_sharded_from_the_start(llama_folder, tmp_path):
  from rm_jax.train import loop

  config = small_config(llama_folder, steps=1)
  config.mesh = {"data": 1, "fsdp": 4, "tensor": 2}
  sharded, total, here = [], 0, 0

  class Spy(loop._Loop):
    def run_steps(self):
      nonlocal sharded, total, here
      moments = jax.tree.leaves(self.run.state.optimizer)
      sharded = [x for x in moments if x.ndim == 4]
      sharded = [*sharded, self.run.state.params["backbone/layers/q/kernel"]]
      sharded = [(x.addressable_shards[0].data.size, x.size) for x in sharded]
      total = sum(x.size for x in moments)
      here = sum(x.addressable_shards[0].data.size for x in moments)
      return super().run_steps()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "_Loop", Spy)
    loop.train(config, tmp_path)
  assert len(sharded) == 9  # two moments of q, k, v and o, and q
  assert all(mine * 8 == whole for mine, whole in sharded)
  assert here / total < 1.25 / 8


def test_sizes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    make_mesh({"data": 3, "fsdp": 1, "tensor": 1})
  with pytest.raises(ValueError, match="at most one of them -1"):
    make_mesh({"data": -1, "fsdp": -1, "tensor": 1})
  mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 2})
  assert mesh.shape["data"] == 4
  shape = jax.ShapeDtypeStruct((2, 32, 3, 8), np.float32)
  with pytest.raises(ValueError, match=r"mesh\.tensor is 2, which does not divide 3, the 'heads'"):
    parameter_shardings({"backbone/layers/q/kernel": shape}, mesh)
  with pytest.raises(KeyError, match="no logical axes"):
    parameter_shardings({"backbone/layers/new/kernel": shape}, mesh)


@pytest.mark.parametrize("size", ["--1", "²", "١", "", "-", "1.0", "1_0", "+1", "9" * 5000])
def test_a_size_that_is_no_whole_number_is_named(size):
  assert parse_mesh("data=-1, fsdp = 2") == {"data": -1, "fsdp": 2, "tensor": 1}
  with pytest.raises(InputError, match=r"^--mesh=data=.*write axis=devices"):
    parse_mesh(f"data={size}")


def test_an_axis_that_is_not_there_is_one():
  devices = jax.devices()[:2]
  assert dict(make_mesh({"fsdp": 2}, devices).shape) == {"data": 1, "fsdp": 2, "tensor": 1}
  assert dict(make_mesh({"data": -1}, devices).shape) == {"data": 2, "fsdp": 1, "tensor": 1}
  for sizes, message in (
    ({"model": 2}, r"has \['model'\]; expected axes of data, fsdp, tensor"),
    ({"data": 1.5}, "expected whole numbers"),
    ({"data": "2"}, "expected whole numbers"),
    ({"data": None}, "expected whole numbers"),
    ({"data": True}, "expected whole numbers"),
  ):
    with pytest.raises(InputError, match=message):
      make_mesh(sizes, devices)
