"""The rooms and who may import whom: imports run one way, and siblings do not know one another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Room -> rooms of the house that it may import.
FUNCTIONS = {"types", "losses", "metrics", "parallel", "storage", "world"}  # each knows types alone
TEXT = FUNCTIONS | {"data", "batch"}
MODEL = TEXT | {"models", "pretrained", "reward"}
MAY_IMPORT = {
  "types": set(),
  "errors": set(),
  **{room: {"types"} for room in FUNCTIONS - {"types"}},
  "data": {"types"},
  "models": {"types", "parallel"},
  "batch": {"types", "data", "storage"},
  "pretrained": {"types", "models", "storage"},
  "reward": MODEL,
  "shaping": {"types", "metrics"},  # of scores and texts alone: RL reads it without a model
  "heldout": MODEL,
  "workdir": MODEL,
  "api": MODEL | {"workdir", "shaping"},
  "audit": MODEL | {"workdir", "heldout", "api", "shaping"},
  "train": MODEL | {"workdir", "heldout"},
  "curate": MODEL | {"workdir", "heldout", "api", "train"},
  "speed": MODEL | {"workdir", "heldout", "train"},
}


def rooms_imported(path):
  """(line, room) of each import of rm_jax in a file, those inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [node.module]
      if node.module == "rm_jax":
        names = [f"rm_jax.{alias.name}" for alias in node.names]
    for name in names:
      parts = name.split(".")
      if parts[0] == "rm_jax" and len(parts) > 1:
        yield node.lineno, parts[1]
      elif parts[0] in ("experiments", "configs"):
        yield node.lineno, parts[0]


FILES = sorted(p for p in (ROOT / "rm_jax").rglob("*.py") if p != ROOT / "rm_jax/__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
  room = path.relative_to(ROOT / "rm_jax").parts[0].removesuffix(".py")
  allowed = MAY_IMPORT[room] | {room, "errors"}  # whose every room may raise
  wrong = [(line, other) for line, other in rooms_imported(path) if other not in allowed]
  assert not wrong, f"{path.name} of room {room!r} imports {wrong}; it may import {sorted(allowed)}"


def test_the_check_sees_what_it_should(tmp_path):
  file = tmp_path / "x.py"
  file.write_text("from rm_jax import api\ndef f():\n  import rm_jax.train.loop\n")
  assert list(rooms_imported(file)) == [(1, "api"), (3, "train")]


def test_no_torch_and_no_tensorflow_in_the_core():
  for path in [*FILES, *(ROOT / "experiments").rglob("*.py")]:
    for node in ast.walk(ast.parse(path.read_text())):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      assert not any(n.split(".")[0] in ("torch", "tensorflow") for n in names), path


def test_no_room_is_a_god_file():
  for folder in ("rm_jax", "experiments", "configs"):
    for path in (ROOT / folder).rglob("*.py"):
      assert len(path.read_text().splitlines()) <= 600, path
