"""Local files: the folder of the caches, and paths that begin with a user's name."""

import subprocess
import sys
from pathlib import Path

import pytest

from rm_jax.batch.cache import cache_folder
from rm_jax.data import read
from rm_jax.data.report import Report
from rm_jax.errors import InputError
from rm_jax.pretrained.source import open_source
from rm_jax.storage.files import expanded, home

ROOT = Path(__file__).parents[2]
STRANGER = "~nosuchuser/x"


def test_a_tilde_is_the_folder_of_the_user(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert expanded("~/x") == Path("/home/me/x")
  assert expanded("a/~/x") == Path("a/~/x")
  monkeypatch.setenv("RM_JAX_CACHE", "~/caches")
  assert home() == Path("/home/me/caches")
  monkeypatch.delenv("RM_JAX_CACHE")
  assert home() == Path("/home/me/.cache/rm_jax")


@pytest.mark.parametrize(
  "opened", [expanded, cache_folder, open_source, lambda path: read.files(path, Report())]
)
def test_a_user_that_there_is_none_of_is_a_mistake_of_the_input(opened):
  with pytest.raises(InputError, match=r"~nosuchuser/x: .*expected a user of this machine"):
    opened(STRANGER)


def test_processes_may_write_the_same_file(tmp_path):
  code = (
    "import sys, pathlib; from rm_jax.storage.files import write_json\n"
    "for i in range(1000): write_json(pathlib.Path(sys.argv[1]), {'i': i})"
  )
  both = [
    subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "table.json")], cwd=ROOT)
    for _ in range(2)
  ]
  assert [process.wait() for process in both] == [0, 0]
  assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
