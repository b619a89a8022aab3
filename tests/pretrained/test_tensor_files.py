"""Safetensors written and read by `files`: what comes back, and what is refused."""

import errno
import json
import resource
import signal

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from rm_jax.errors import ReadError
from rm_jax.pretrained import files

ARRAYS = {
  "bf16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
  "f16": np.asarray([1.5, -2.0], np.float16),
  "f32": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
  "f64": np.asarray(2.5),
  "i64": np.asarray([[-1]]),
  "u8": np.zeros((0, 3), np.uint8),
  "bool": np.asarray([True, False]),
}


def header(file):
  data = file.read_bytes()
  return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def check(folder, arrays):
  with files.read_tensors(folder) as tensors:
    assert tensors.names() == sorted(arrays)
    for name, array in arrays.items():
      found = tensors.get(name)
      assert found.dtype == array.dtype
      assert found.shape == tensors.shape(name) == array.shape
      np.testing.assert_array_equal(found, array)


def test_written_tensors_are_read_back(tmp_path):
  files.write_tensors(tmp_path / "m", ARRAYS)
  assert [p.name for p in (tmp_path / "m").iterdir()] == ["model.safetensors"]
  assert header(tmp_path / "m" / "model.safetensors")["__metadata__"] == {"format": "pt"}
  check(tmp_path / "m", ARRAYS)


def test_shards(tmp_path):
  arrays = {f"t{i}": np.full(4, i, np.float32) for i in range(5)}
  files.write_tensors(tmp_path, arrays, max_shard_bytes=32)
  shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
  assert sorted(p.name for p in tmp_path.iterdir()) == [*shards, "model.safetensors.index.json"]
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert index["metadata"] == {"total_size": 80}
  assert index["weight_map"] == {f"t{i}": shards[i // 2] for i in range(5)}
  check(tmp_path, arrays)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path):
  arrays = {"a": np.zeros(100), "b": np.zeros(2), "c": np.zeros(100), "d": np.zeros(2)}
  files.write_tensors(tmp_path, arrays, max_shard_bytes=64)
  assert len(list(tmp_path.glob("*.safetensors"))) == 4
  check(tmp_path, arrays)


@pytest.mark.parametrize(("first", "second"), [(32, 10**9), (10**9, 32), (16, 32), (32, 32)])
def test_what_was_there_is_replaced(tmp_path, first, second):
  (tmp_path / "config.json").write_text("{}")
  files.write_tensors(tmp_path, {f"old{i}": np.zeros(4, np.float32) for i in range(5)}, first)
  arrays = {f"new{i}": np.ones(4, np.float32) for i in range(5)}
  files.write_tensors(tmp_path, arrays, second)
  check(tmp_path, arrays)
  count = 1 if second > 80 else 4  # the file, or three shards and their index
  assert len(list(tmp_path.iterdir())) == 1 + count


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
  old = {f"t{i}": np.zeros(4, np.float32) for i in range(4)}
  files.write_tensors(tmp_path, old, 32)
  with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors.*complex128"):
    files.write_tensors(tmp_path, {"a": np.zeros(4), "b": np.zeros(4, complex)}, 32)
  with pytest.raises(ValueError, match="no tensors"):
    files.write_tensors(tmp_path, {})
  assert len(list(tmp_path.iterdir())) == 3
  check(tmp_path, old)


def test_a_crash_between_two_shards_leaves_no_mixture(tmp_path, monkeypatch):
  arrays = {f"t{i}": np.zeros(4, np.float32) for i in range(4)}
  files.write_tensors(tmp_path, arrays, 32)
  replace, moved = files.os.replace, []

  def crash(source, target):
    if moved:
      raise KeyboardInterrupt
    moved.append(target)
    replace(source, target)

  monkeypatch.setattr(files.os, "replace", crash)
  with pytest.raises(KeyboardInterrupt):
    files.write_tensors(tmp_path, {name: array + 1 for name, array in arrays.items()}, 32)
  with pytest.raises(FileNotFoundError, match="holds neither"):
    files.read_tensors(tmp_path)


def test_the_single_file_is_read_where_both_are_there(tmp_path):
  files.write_tensors(tmp_path, {"a": np.zeros(1)})
  (tmp_path / "model.safetensors.index.json").write_text("{}")
  check(tmp_path, {"a": np.zeros(1)})


def test_all_that_is_wrong_with_shards_is_one_error(tmp_path):
  files.write_tensors(tmp_path, {f"t{i}": np.zeros(4, np.float32) for i in range(4)}, 16)
  index = tmp_path / "model.safetensors.index.json"
  shards = [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
  (tmp_path / shards[2]).unlink()
  (tmp_path / shards[3]).write_bytes((tmp_path / shards[3]).read_bytes()[:-1])
  where = {"t0": shards[0], "t1": shards[0], "t2": shards[2], "t3": shards[3], "x": shards[1]}
  escapes = [
    "../model.safetensors",
    "/etc/m.safetensors",
    "a/b.safetensors",
    "..",
    "a\\b.safetensors",
  ]
  where |= {f"e{i}": name for i, name in enumerate(escapes)}
  index.write_text(json.dumps({"weight_map": where}))
  with pytest.raises(ValueError, match="cannot be read") as error:
    files.read_tensors(tmp_path)
  for part in (
    f"{shards[0]}: lacks t1, which the index lists",
    f"{shards[1]}: lacks x, which the index lists",
    f"{shards[1]}: t1 is not in the index",
    f"{shards[2]}: No such file",
    f"{shards[3]}: Error while deserializing header",
    *(f"e{i} is said to be in {name!r}, no plain file name" for i, name in enumerate(escapes)),
  ):
    assert part in str(error.value)


def test_keys_that_stand_twice(tmp_path):
  one = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
  text = f"{{{one}, {one}}}".encode()
  (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
  with pytest.raises(ValueError, match=r"model\.safetensors: a JSON key stands twice: \['a'\]"):
    files.read_tensors(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  index = tmp_path / "model.safetensors.index.json"
  index.write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
  with pytest.raises(ValueError, match=r"index\.json: not an index.*stands twice: \['a'\]"):
    files.read_tensors(tmp_path)
  for text in ('{"weight_map": ["a"]}', '{"metadata": {}}', '{"weight_map": {"a": 1}}', "{"):
    index.write_text(text)
    with pytest.raises(ValueError, match="not an index of shards"):
      files.read_tensors(tmp_path)
  index.unlink()
  with pytest.raises(FileNotFoundError, match="holds neither"):
    files.read_tensors(tmp_path)


def test_closed_files_are_let_go(tmp_path):
  files.write_tensors(tmp_path, {"a": np.ones(2)})
  with files.read_tensors(tmp_path) as tensors:
    kept = tensors.get("a")
  assert tensors.names() == []
  np.testing.assert_array_equal(kept, np.ones(2))


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
  def full(*_, **__):
    raise safetensors.SafetensorError(
      "Error while serializing: I/O error: No space left on device (os error 28)"
    )

  monkeypatch.setattr(safetensors.numpy, "save_file", full)
  with pytest.raises(OSError, match=r"No space left on device.*model\.safetensors") as error:
    files.write_tensors(tmp_path, {"a": np.zeros(3)})
  assert error.value.errno == errno.ENOSPC
  assert not list(tmp_path.iterdir())


def test_the_library_names_an_error_of_the_system_by_its_number(tmp_path):
  """A real one: no file of a process may have more bytes than its limit."""
  kept = resource.getrlimit(resource.RLIMIT_FSIZE)
  old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, kept[1]))
  try:
    with pytest.raises(OSError, match="File too large") as error:
      files.write_tensors(tmp_path, {"a": np.zeros(10_000)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    signal.signal(signal.SIGXFSZ, old)
  assert error.value.errno == errno.EFBIG


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch):
  def refuse(self):
    raise PermissionError(errno.EACCES, "Permission denied", str(self))

  monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
  with pytest.raises(ReadError, match=rf"^{tmp_path}: cannot be read \(Permission denied\)"):
    files.read_tensors(tmp_path)
