"""Opening and saving a checkpoint's folder: its own code never runs, and no save is half done."""

import builtins
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from rm_jax.errors import InputError, ReadError
from rm_jax.pretrained import source
from tests.conftest import LLAMA, decoder_tokenizer

ROOT = Path(__file__).parents[2]
# A tokenizer that could be loaded, and that leaves a file beside it where it is imported.
EVIL = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
pathlib.Path({ran!r}).touch()
from transformers import PreTrainedTokenizerFast as T
from transformers import LlamaConfig as C
"""


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
  """Skips flushing, which takes most of the time: no process here ends before its files are out."""
  monkeypatch.setattr(os, "fsync", lambda handle: None)


def plant(folder, ran):
  """A folder whose tokenizer and config are said to be classes of its own Python file."""
  decoder_tokenizer().save_pretrained(folder)
  said = json.loads((folder / "tokenizer_config.json").read_text())
  said |= {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
  (folder / "tokenizer_config.json").write_text(json.dumps(said))
  config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "evil.py").write_text(EVIL.format(ran=str(ran)))


@pytest.mark.slow
def test_python_in_a_folder_does_not_run_after_a_yes(tmp_path):
  folder, ran = tmp_path / "model", tmp_path / "ran"
  folder.mkdir()
  plant(folder, ran)
  code = (
    "import sys\n"
    "from rm_jax.pretrained import source\n"
    "try:\n  source.load_tokenizer(sys.argv[1])\n"
    "except ValueError as error:\n  print(error)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(folder)],
    input="y\n" * 9,  # it is asked more than once
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "HF_HOME": str(tmp_path / "hub")},
  )
  assert not ran.exists()
  assert not list(tmp_path.rglob("*.pyc"))
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == 1, lines
  assert "by auto_map; we run none" in lines[0]
  assert "[y/N]" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_where_transformers_has_the_class_the_folder_s_own_is_not_taken(tmp_path, name):
  plant(tmp_path, tmp_path / "ran")
  other = {"config.json": "tokenizer_config.json", "tokenizer_config.json": "config.json"}[name]
  said = json.loads((tmp_path / other).read_text())
  said |= {"auto_map": None, "model_type": "llama", "tokenizer_class": "PreTrainedTokenizerFast"}
  said = {key: value for key, value in said.items() if value is not None}
  (tmp_path / other).write_text(json.dumps(said))
  if name == "tokenizer_config.json":
    with pytest.raises(ValueError, match="by auto_map; we run none"):
      source.load_tokenizer(tmp_path)
  else:
    assert source.load_tokenizer(tmp_path)("ab").input_ids == decoder_tokenizer()("ab").input_ids
  assert not (tmp_path / "ran").exists()


def test_a_tokenizer_is_saved_as_it_was(tmp_path):
  """Options of loading must not get into the saved file, whose bytes they would change."""
  decoder_tokenizer().save_pretrained(tmp_path / "a")
  for old, new in (("a", "b"), ("b", "c")):
    source.load_tokenizer(tmp_path / old).save_pretrained(tmp_path / new)
  assert "trust_remote_code" not in (tmp_path / "c" / "tokenizer_config.json").read_text()
  for file in (tmp_path / "b").iterdir():
    assert (tmp_path / "c" / file.name).read_bytes() == file.read_bytes()
  assert not json.loads((tmp_path / "c" / "tokenizer_config.json").read_text())["local_files_only"]


def contents(path):
  """All that a loader reads of a folder: (config, record, template, tensors)."""
  opened = source.open_source(str(path))
  with opened.tensors() as tensors:
    arrays = {name: tensors.get(name).tolist() for name in tensors.names()}
  tokenizer = opened.tokenizer()
  return opened.config, opened.record, tokenizer.chat_template, len(tokenizer), arrays


def model(number):
  """Arguments of `save_folder` for two models that have no file in common."""
  merges = [("a", "b")] * (number == 1)
  return {
    "config": {**LLAMA, "hidden_size": 32 * number},
    "tokenizer": decoder_tokenizer(merges, chat=f"{{{{ {number} }}}}" if number == 1 else None),
    "record": {"convention": {"max_length": number}},
    "tensors": [(f"t{i}", np.full((4,), number, np.float32)) for i in range(2 + number)],
  }


class Killed(BaseException):
  pass


class Kill:
  """Ends the process, as far as files are concerned, at the n-th call that changes any."""

  CALLS = (
    (os, "replace"),
    (os, "rename"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "mkdir"),
    (os, "fsync"),
    (builtins, "open"),
    (io, "open"),
    (safetensors.numpy, "save_file"),
    (tempfile, "mkdtemp"),
    (shutil, "rmtree"),
  )

  def __init__(self, monkeypatch, at):
    self.left = at
    for module, name in self.CALLS:
      monkeypatch.setattr(module, name, self.wrap(getattr(module, name)))

  def wrap(self, call):
    def wrapped(*args, **kwargs):
      reads = call.__name__ == "open" and "w" not in str(kwargs.get("mode", args[1:2]))
      if not reads:
        self.left -= 1
        if self.left == 0 and call.__name__ == "save_file":
          Path(args[1]).write_bytes(b"half")
        if self.left <= 0:
          raise Killed
      return call(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("weights", [True, False])
def test_a_save_killed_at_any_call_leaves_the_old_or_the_new_model(tmp_path, monkeypatch, weights):
  new = model(2)
  source.save_folder(tmp_path / "new", **new)
  after = contents(tmp_path / "new")
  if not weights:  # of a run: its weights are elsewhere, and those that are here stay
    del new["tensors"]
  seen = []
  for at in range(1, 200):
    path = tmp_path / f"m{at}"
    source.save_folder(path, **model(1))
    (path / "README.md").write_text("mine")
    (path / ".git").mkdir()
    (path / ".git" / "HEAD").write_text("ref")
    before = contents(path)
    after = after if weights else (*after[:-1], before[-1])
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
      kill = Kill(patch, at)
      source.save_folder(path, **new)
    found = contents(path)
    assert found in (before, after), f"call {at}: {found[:3]}"
    seen.append(found == after)
    assert (path / "README.md").read_text() == "mine"
    assert (path / ".git" / "HEAD").read_text() == "ref"
    if kill.left > 0:
      break
    # The next save removes what is left over.
    source.save_folder(path, **new)
    assert contents(path) == after
    assert not list(path.glob(".rm_jax*"))
  assert kill.left > 0  # the last was not killed
  # First the old model is found, and from some call on the new one.
  assert seen == sorted(seen)
  assert sum(seen) > 8
  assert seen.count(False) > 8


# Forks before JAX is started: one child saves one model over the other until it is killed, and
# another says which model is there then.
KILLS = """
import os, random, signal, sys, time
from tests.pretrained.test_source import contents, model, source
from pathlib import Path

path = Path(sys.argv[1])
rng = random.Random(0)
for number in (1, 2):
  source.save_folder(path / str(number), **model(number))
expected = [contents(path / str(number)) for number in (1, 2)]
source.save_folder(path / "m", **model(1))
seen = set()
for kill in range(40):
  child = os.fork()
  if not child:
    while True:
      for number in (2, 1):
        source.save_folder(path / "m", **model(number))
  time.sleep(rng.uniform(0.0, 0.2))
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  among = [p.name for p in (path / "m").glob(".rm_jax*")]
  found = contents(path / "m")
  assert found in expected, (kill, found[:3])
  seen.add((expected.index(found), bool(among)))
print(sorted(seen))
"""


@pytest.mark.slow
def test_forty_kills_leave_one_of_the_two_models(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", KILLS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  # Both were found, and some kills fell into the midst of a save.
  assert "(0, True)" in done.stdout
  assert "(1, " in done.stdout


def test_what_a_new_model_does_not_have_goes(tmp_path):
  source.save_folder(tmp_path, **model(1))
  (tmp_path / "calibration.json").write_text("{}")
  (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
  source.save_folder(tmp_path, **model(2))
  # Else the template would be the old model's.
  assert source.load_tokenizer(tmp_path).chat_template is None
  assert {p.name for p in tmp_path.iterdir()} == {
    *("config.json", "rm_jax.json", "model.safetensors", "calibration.json"),
    *("tokenizer.json", "tokenizer_config.json"),
  }


def test_a_save_that_fails_leaves_the_old_model(tmp_path):
  source.save_folder(tmp_path, **model(1))
  before, names = contents(tmp_path), {p.name for p in tmp_path.iterdir()}
  bad = model(2) | {"tensors": [("t0", np.zeros(3, complex))]}
  with pytest.raises(ValueError, match="complex128"):
    source.save_folder(tmp_path, **bad)
  assert contents(tmp_path) == before
  assert {p.name for p in tmp_path.iterdir()} == names


def test_all_that_a_save_writes_is_read_back(tmp_path):
  big = {"i": 1, "head_tensors_of": "A" * 2**21}
  source.save_folder(tmp_path, **model(1) | {"record": big})
  assert source.open_source(str(tmp_path)).record == big
  assert len(source.load_tokenizer(tmp_path)) > 0
  before = contents(tmp_path)
  for key, size, most in (("record", 2**24, 2**24), ("config", 2**20, 2**20)):
    with pytest.raises(InputError, match=rf"json would have \d+ bytes, and at most {most} are"):
      source.save_folder(tmp_path, **model(2) | {key: {"x": "A" * size}})
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
  ("call", "use"),
  [
    ("is_dir", source.open_source),
    ("is_file", source.open_source),
    ("iterdir", source.load_tokenizer),
  ],
)
def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch, call, use):
  source.save_folder(tmp_path, **model(1))

  def refuse(self):
    raise PermissionError(13, "Permission denied", str(self))

  monkeypatch.setattr(Path, call, refuse)
  with pytest.raises(ReadError, match=rf"^{tmp_path}: cannot be read \(Permission denied\)"):
    use(str(tmp_path))


@pytest.mark.parametrize(
  "name", ["../stolen", "/etc/passwd", "a/b", "additional_chat_templates/../../x", ".", 5, None]
)
def test_a_folder_cannot_have_files_moved_out_of_it(tmp_path, name):
  path = tmp_path / "model"
  source.save_folder(path, **model(1))
  written = path / ".rm_jax-written"
  written.mkdir()
  (written / ".files.json").write_text(json.dumps({"files": [name], "weights": True}))
  (tmp_path / "stolen").write_text("")
  with pytest.raises(ValueError, match=r"not what a save leaves \(.*\); remove it"):
    source.open_source(str(path))
  assert (path / "config.json").exists()
  assert (tmp_path / "stolen").exists()


@pytest.mark.parametrize("link", [".rm_jax-written", "additional_chat_templates"])
def test_links_are_not_followed_where_files_are_moved(tmp_path, link):
  path, other = tmp_path / "model", tmp_path / "other"
  source.save_folder(path, **model(1))
  other.mkdir()
  (other / "config.json").write_text("{}")
  (other / "x.jinja").write_text("mine")
  (path / link).symlink_to(other)
  written = path / ".rm_jax-written"
  written.mkdir(exist_ok=True)
  (written / ".files.json").write_text(json.dumps({"files": ["config.json"], "weights": False}))
  with pytest.raises(ValueError, match=r"not what a save leaves \(.*\); remove it"):
    source.open_source(str(path))
  assert (other / "config.json").exists()
  assert (other / "x.jinja").exists()


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("tokenizer.json", lambda v: v["model"].update(vocab=[]), "no tokenizer could be loaded"),
    ("tokenizer.json", lambda v: v.update(added_tokens=[{"id": -5}]), "no tokenizer could be"),
    (
      "tokenizer.json",  # a panic of Rust at the first use
      lambda v: v.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}),
      "PanicException",
    ),
    (
      "tokenizer.json",
      lambda v: v.update(
        normalizer={
          "type": "Sequence",
          "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 1000} for _ in range(3)
          ],
        }
      ),
      r"replaces a piece of text by up to 1e\+09 characters; expected at most 64",
    ),
    (
      "tokenizer.json",
      lambda v: v["model"].update(vocab={f"w{i}": i for i in range(200_000)}),
      r"tokenizer\.json: cannot be a tokenizer's file: it has \d+ bytes; expected at most 2250752",
    ),
    ("tokenizer_config.json", lambda v: v.update(eos_token={"x": 1}), "no tokenizer could be"),
  ],
)
def test_tokenizers_that_cannot_be_loaded(tmp_path, name, change, message):
  source.save_folder(tmp_path, **model(1))
  value = json.loads((tmp_path / name).read_text())
  change(value)
  (tmp_path / name).write_text(json.dumps(value))
  with pytest.raises(ValueError, match=message) as error:
    source.load_tokenizer(tmp_path)
  assert str(tmp_path) in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "rm_jax.json", "tokenizer.json", "x.jinja"])
def test_what_is_no_plain_file_is_not_read(tmp_path, name):
  source.save_folder(tmp_path, **model(1))
  (tmp_path / name).unlink(missing_ok=True)
  os.mkfifo(tmp_path / name)
  with pytest.raises(ValueError, match=r"not a plain file|has no config\.json"):
    source.open_source(str(tmp_path)).tokenizer()
  (tmp_path / name).unlink()
  (tmp_path / name).write_text("[" * 100_000)
  if name == "x.jinja":  # of no meaning to a tokenizer
    return
  with pytest.raises(ValueError, match=rf"{name}: not a readable JSON|no tokenizer could be"):
    source.open_source(str(tmp_path)).tokenizer()


def test_weights_that_are_no_plain_files(tmp_path):
  source.save_folder(tmp_path, **model(1))
  file = tmp_path / "model.safetensors"
  data = file.read_bytes()
  file.unlink()
  os.mkfifo(file)
  with pytest.raises(ValueError, match=r"model\.safetensors: it is not a plain file"):
    source.open_source(str(tmp_path)).tensors()
  file.unlink()
  length = int.from_bytes(data[:8], "little")
  spaces = b" " * 2**24
  file.write_bytes((length + len(spaces)).to_bytes(8, "little") + data[8 : 8 + length] + spaces)
  with pytest.raises(ValueError, match=r"its header is of \d+ bytes; expected at most 16777216"):
    source.open_source(str(tmp_path)).tensors()
  file.unlink()
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(FileNotFoundError, match=r"holds neither.*pickles \(pytorch_model\.bin\)"):
    source.open_source(str(tmp_path)).tensors()


def test_many_processes_may_end_a_save_at_once(tmp_path):
  """Each process finds the whole new model, whichever of them moves which file."""
  for attempt in range(8):
    path = tmp_path / str(attempt)
    source.save_folder(path, **model(1))
    source.save_folder(tmp_path / "new", **model(2))
    names = sorted(p.name for p in (tmp_path / "new").iterdir())
    shutil.copytree(tmp_path / "new", path / ".rm_jax-written")
    said = json.dumps({"files": names, "weights": True})
    (path / ".rm_jax-written" / ".files.json").write_text(said)
    barrier, found = threading.Barrier(4), []

    def end(path=path, barrier=barrier, found=found):
      barrier.wait()
      source.recover(path)
      found.append(sorted(p.name for p in path.iterdir() if not p.name.startswith(".rm_jax")))

    threads = [threading.Thread(target=end) for _ in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert found == [names] * 4
    assert contents(path) == contents(tmp_path / "new")


def test_a_record_that_leads_nowhere(tmp_path):
  source.save_folder(tmp_path, **model(1))
  (tmp_path / "rm_jax.json").unlink()
  (tmp_path / "rm_jax.json").symlink_to("gone")
  with pytest.raises(ValueError, match=r"rm_jax\.json: not a readable JSON file") as error:
    source.open_source(str(tmp_path))
  assert isinstance(error.value.__cause__, FileNotFoundError)


def test_what_lies_beside_a_tokenizer_is_nothing_to_it(tmp_path):
  source.save_folder(tmp_path, **model(1))
  (tmp_path / "trainer_state.json").write_bytes(b" " * 20_000_000)
  (tmp_path / "notes.txt").symlink_to(tmp_path / "gone.txt")
  assert source.load_tokenizer(tmp_path)("a").input_ids


def test_a_template_may_have_any_name(tmp_path):
  one = model(1)
  one["tokenizer"].chat_template = {"default": "{{ 1 }}", "tool use (v2)": "{{ 2 }}"}
  source.save_folder(tmp_path, **one)
  assert source.load_tokenizer(tmp_path).chat_template == one["tokenizer"].chat_template


def test_a_run_s_workdir_is_no_model_s_folder(tmp_path):
  for folder in ("model", "checkpoints"):
    (tmp_path / folder).mkdir()
  for file in ("config.json", "model/config.json"):
    (tmp_path / file).write_text("{}")
  with pytest.raises(ValueError, match=r"is a run's workdir; expected a model's folder, which Rew"):
    source.open_source(str(tmp_path))
