"""URLs in data.* and model.*: copied once, completely, and again when the remote files change.

The storage is fsspec's in memory; gs:// differs from it in the client alone.
"""

import json
import os
import time

import fsspec
import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.storage import remote
from rm_jax.storage.remote import is_remote, local
from rm_jax.train import loop
from tests.train.runs import run, small_config


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  monkeypatch.setenv("RM_JAX_CACHE", str(tmp_path / "cache"))
  files = fsspec.filesystem("memory")
  files.store.clear()
  files.pseudo_dirs[:] = [""]
  yield files
  files.store.clear()


def test_what_is_a_url():
  assert is_remote("gs://bucket/a.jsonl")
  for name in ("world:30", "org/name:split", "/a/b", "a.jsonl", "{{ 'http://x' }}", "hh"):
    assert not is_remote(name)
    assert local(name) == name


def test_a_copy_is_made_once_and_again_when_it_changed(bucket, monkeypatch):
  bucket.pipe({"/b/f/one.txt": b"1", "/b/f/deep/two.txt": b"22", "/b/fig.txt": b"no"})
  there = remote.Path(local("memory://b/f"))
  assert there.name == "f"
  names = {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()}
  assert names == {"one.txt": b"1", "deep/two.txt": b"22"}
  with monkeypatch.context() as patch:
    patch.setattr(type(bucket), "get_file", None)
    assert local("memory://b/f") == str(there)
  bucket.pipe("/b/f/one.txt", b"one")
  assert (remote.Path(local("memory://b/f")) / "one.txt").read_bytes() == b"one"
  assert (
    there / "one.txt"
  ).read_bytes() == b"1"  # the old copy stays for processes that still read it
  single = remote.Path(local("memory://b/f/one.txt"))
  assert (single.name, single.read_bytes()) == ("one.txt", b"one")


def test_what_is_replaced_while_it_is_copied_is_no_copy(bucket, monkeypatch):
  """Objects of equal size: the first would be the old one and the second the new one."""
  bucket.pipe({"/b/m/a.bin": b"old-a", "/b/m/b.bin": b"old-b"})
  get = type(bucket).get_file

  def replaced(self, path, to, **options):
    get(self, path, to, **options)
    if path.endswith("a.bin"):
      time.sleep(0.01)  # versions are told by the time, which must differ
      self.pipe({"/b/m/a.bin": b"new-a", "/b/m/b.bin": b"new-b"})

  with monkeypatch.context() as patch:
    patch.setattr(type(bucket), "get_file", replaced)
    with pytest.raises(remote.ReadError, match="it was changed while it was copied"):
      local("memory://b/m")
  there = remote.Path(local("memory://b/m"))
  assert [(there / name).read_bytes() for name in ("a.bin", "b.bin")] == [b"new-a", b"new-b"]


def test_a_stale_unfinished_copy_is_deleted_and_a_live_one_is_not(bucket, tmp_path):
  bucket.pipe("/b/f", b"1")
  left, comes = (tmp_path / "cache" / "remote" / f".tmp-{name}" for name in ("left", "comes"))
  for folder in (left, comes):
    (folder / "new").mkdir(parents=True)
    (folder / "new" / "part").write_bytes(b"x")
  old = time.time() - 2 * remote._STALE
  for path in (left / "new" / "part", left / "new", left, comes / "new", comes):
    os.utime(path, (old, old))
  local("memory://b/f")
  assert not left.exists()
  assert (comes / "new" / "part").exists()


def test_what_is_refused(bucket, monkeypatch, tmp_path):
  with pytest.raises(FileNotFoundError, match="no such file or folder"):
    local("memory://b/none")
  with pytest.raises(ValueError, match=r"nosuch.*pip install 'rm_jax\[gcp\]'"):
    local("nosuch://b/x")
  bucket.pipe("/b/f/one.txt", b"1234")
  with monkeypatch.context() as patch:
    patch.setattr(type(bucket), "find", lambda *_, **__: {"/b/f/../../x": {"size": 1}})
    with pytest.raises(ValueError, match="leads out of the folder"):
      local("memory://b/f")

  def cuts(self, there, here, **unused):
    with open(here, "wb") as file:
      file.write(b"12")

  monkeypatch.setattr(type(bucket), "get_file", cuts)
  with pytest.raises(OSError, match=r"memory://b/f: cannot be read .* 2 bytes came; expected 4"):
    local("memory://b/f")
  assert not list((tmp_path / "cache" / "remote").iterdir())


@pytest.mark.slow
def test_a_run_on_urls_is_the_run_on_files(bucket, llama_folder, tmp_path):
  config = small_config(llama_folder, steps=3)
  run(config, tmp_path / "files", devices=1)
  model = RewardModel.from_pretrained(tmp_path / "files")
  model.save_pretrained(tmp_path / "saved")
  for name in ("train.jsonl", "heldout.jsonl"):
    bucket.put(str(llama_folder / name), f"/b/data/{name}")
  bucket.put(str(tmp_path / "saved"), "/b/", recursive=True)
  model_url = "memory://b/saved"
  config.model.config, config.model.tokenizer = "", ""
  config.model.pretrained = str(tmp_path / "saved")
  run(config, tmp_path / "one", devices=1)
  config.model.pretrained = model_url
  config.model.tokenizer = model_url
  config.data.train = "memory://b/data/train.jsonl"
  config.data.heldout = "memory://b/data/heldout.jsonl"
  run(config, tmp_path / "two", devices=1)
  one, two = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in ("one", "two"))
  assert one == two
  assert json.loads((tmp_path / "two" / "config.json").read_text())["data"]["train"] == (
    "memory://b/data/train.jsonl"
  )
  rows = [{"prompt": "ab", "response": "ba"}]
  np.testing.assert_array_equal(
    RewardModel.from_pretrained(model_url).score(rows), model.score(rows)
  )


@pytest.mark.parametrize("as_path", [False, True])
def test_a_workdir_elsewhere_is_refused_at_once(as_path, llama_folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  workdir = remote.Path("gs://b/run") if as_path else "gs://b/run"
  with pytest.raises(ValueError, match=r"--workdir=gs:.*expected a local folder"):
    loop.train(small_config(llama_folder, steps=1), workdir)
  assert not list(tmp_path.iterdir())
