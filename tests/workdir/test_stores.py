"""Both stores write the same files, and each reads what the other wrote, bit for bit.

Several real processes are in tests/test_hosts.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rm_jax.parallel.mesh import make_mesh
from rm_jax.workdir import stores
from rm_jax.workdir.checkpoints import fingerprint
from rm_jax.workdir.stores import FirstProcessStore, SharedStore


def trees():
  mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1}, jax.devices())
  divided = NamedSharding(mesh, PartitionSpec("fsdp"))
  whole = NamedSharding(mesh, PartitionSpec())
  kernel = jnp.where(jnp.arange(64) % 3 == 0, -0.0, jnp.linspace(-1, 1, 64)).reshape(16, 4)
  return {
    "params": {
      "a": {"kernel": jax.device_put(kernel, divided)},
      "b": jax.device_put(jnp.linspace(-3, 3, 8, dtype=jnp.bfloat16), divided),
    },
    "train": {"step": jax.device_put(jnp.asarray(7, jnp.int32), whole)},
  }


def like(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.mark.parametrize("writer", [SharedStore, FirstProcessStore])
@pytest.mark.parametrize("reader", [SharedStore, FirstProcessStore])
def test_either_reads_what_either_writes(writer, reader, tmp_path):
  items, position = trees(), {"seed": 3, "fingerprint": {"params": [1]}}
  store = writer(tmp_path, 2)
  for step in (1, 2, 3):
    store.save(step, items, position)
  assert store.steps() == [2, 3]
  store.close()
  store = reader(tmp_path, 2)
  found = store.read(3, like(items))
  store.close()
  assert found.pop("position") == position
  assert jax.tree.structure(found) == jax.tree.structure(items)
  for one, other in zip(jax.tree.leaves(items), jax.tree.leaves(found), strict=True):
    assert (other.dtype, other.sharding) == (one.dtype, one.sharding)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
  assert fingerprint(found) == fingerprint(items)  # the fingerprint tells -0.0 from 0.0


def test_what_cannot_be_read_or_written_is_an_error_for_all(tmp_path):
  items = trees()
  store = FirstProcessStore(tmp_path, 2)
  store.save(1, items, {})
  (tmp_path / "2").mkdir()
  with pytest.raises(OSError, match="Error: "):
    store.read(2, like(items))
  with pytest.raises(OSError, match="TypeError: ") as error:
    store.save(3, items, {"not JSON": object()})
  assert isinstance(error.value.__cause__, TypeError)
  assert store.read(1, like(items))["position"] == {}
  store.close()


@pytest.mark.parametrize("store", [SharedStore, FirstProcessStore])
def test_the_folder_is_made(store, tmp_path):
  made = store(tmp_path / "new" / "checkpoints", 2)
  assert (tmp_path / "new" / "checkpoints").is_dir()
  assert made.steps() == []
  made.save(1, trees(), {"n": 1})
  assert made.read(1, like(trees()))["position"] == {"n": 1}
  made.close()


def test_what_only_process_0_cannot_move_is_an_error_for_all(tmp_path, monkeypatch):
  store = SharedStore(tmp_path / "checkpoints", 2)
  store.save(1, {"state": {"x": jnp.ones(3)}}, {})
  (tmp_path / "damaged").write_text("a file where the folder should be")
  with pytest.raises(OSError, match="damaged"):
    store.set_aside([1], tmp_path / "damaged")
  assert store.steps() == [1]
  # Another process moves nothing and has no error of its own.
  monkeypatch.setattr(stores, "is_main", lambda: False)
  monkeypatch.setattr(stores, "broadcast_json", lambda own: own or "process 0 cannot move it")
  with pytest.raises(OSError, match="process 0 cannot move it"):
    store.set_aside([1], tmp_path / "damaged")
  store.close()


def test_another_process_reads_and_writes_nothing_itself(tmp_path, monkeypatch):
  monkeypatch.setattr(stores, "is_main", lambda: False)
  store = FirstProcessStore(tmp_path / "checkpoints", 2)
  store.save(1, trees(), {"n": 1})
  store.set_aside([1], tmp_path / "damaged")
  monkeypatch.setattr(stores, "broadcast_json", lambda own: own or [7])
  assert store.steps() == [7]  # what process 0 says
  store.close()
  assert not list(tmp_path.iterdir())
