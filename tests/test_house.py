"""The rooms of rm_jax (its folders, and api.py): which room may import which.

Imports run one way: a room imports rooms below it, and rooms of one floor do not know one another.

  commands                                  every command, for `rm-jax NAME` (next)
  rlhf
  curate   speed   policy
  audit    train   serve   integrations     serve and integrations are next
  api
  heldout  workdir
  reward
  pretrained
  models   batch
  data     shaping
  losses   metrics   parallel   storage   world
  types    declared    errors

A room that is declared here does not have to exist. What comes next will live in:

- A generative judge: its arrays in `models`, as a head that reads log-probabilities at marks (the
  implicit reward is one); its text (what is asked, which tokens are the answer) in `reward`.
  `train` and `api` see scores at marks, as of any head.
- A family of models: one record in `pretrained/families/`, with its fields in `models/config.py`.
- An on-disk store of tokens: in `batch/`, on the files of `storage`.
- An optimiser of policies: in `policy/`, which is given rewards as a function of text, such as
  `api`'s scores, and takes its steps with `train`'s optimiser. The reward model never imports a
  policy. What runs one stage after another, from texts to an optimised policy, is in `rlhf/`.
- A server: one module a wire protocol in `serve/`, above `api`, with no access to training.
- What other libraries call (TRL, verl, Tunix): one module a library in `integrations/`, above
  `api`. It imports the library inside its functions, and does not import `serve`.
- The installed command `rm-jax NAME`: what a command does moves from experiments/ to
  `rm_jax/commands/`, one module a command, with the default config that it needs; the files of
  experiments/ then only call it. Nothing imports `commands`.
"""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERYWHERE = {"declared", "errors"}  # what any room may import

# Room -> the other rooms that it may import.
FUNCTIONS = {"types", "losses", "metrics", "parallel", "storage", "world"}
TEXT = FUNCTIONS | {"data", "batch"}
MODEL = TEXT | {"models", "pretrained", "reward"}
SCORING = MODEL | {"workdir", "shaping", "api"}
TRAINING = MODEL | {"workdir", "heldout", "train"}
MAY_IMPORT = {
  "declared": set(),
  "errors": set(),
  "types": set(),
  **{room: {"types"} for room in FUNCTIONS - {"types"}},
  "shaping": {"types", "metrics"},
  "data": {"types", "storage"},
  "models": {"types", "parallel", "losses"},
  "batch": {"types", "data", "storage"},
  "pretrained": {"types", "models", "storage"},
  "reward": MODEL - {"reward"},
  "heldout": MODEL,
  "workdir": MODEL,
  "api": SCORING - {"api"},
  "audit": SCORING | {"heldout"},
  "train": TRAINING - {"train"},
  "serve": {"types", "data", "parallel", "storage", "shaping", "api"},
  "integrations": {"types", "data", "shaping", "api"},
  "curate": SCORING | TRAINING,
  "speed": TRAINING,
  "policy": SCORING | TRAINING,
  "rlhf": SCORING | TRAINING | {"audit", "policy"},
}
MAY_IMPORT["commands"] = set(MAY_IMPORT)

# Files of a folder beside __init__.py: more than one look takes in is more than one room.
MOST_FILES = 14
MORE_FILES = {
  "rm_jax/pretrained/families": 99,  # one file a family
}
MOST_LINES = 600
# What the repository holds at its top, beside what tools need.
TOP = {"rm_jax", "experiments", "configs", "tests", "docs", "setup.py", "README.md"}
TOP_FOR_TOOLS = {"pyproject.toml", "LICENSE", ".ci", ".gitignore"}


def rooms_imported(path, root=ROOT):
  """(line, room) of each import of rm_jax in a file, also inside functions.

  `experiments` and `configs` count as rooms, which none of rm_jax may import.
  """
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      module = node.module or ""
      if node.level:
        package = path.relative_to(root).parts[: -node.level]
        module = ".".join([*package, *filter(None, [module])])
      names = [module]
      if module == "rm_jax":
        names = [f"rm_jax.{alias.name}" for alias in node.names]
    for name in names:
      top, *rest = name.split(".")
      if top == "rm_jax":  # whose own attribute is api's RewardModel
        yield node.lineno, "api" if not rest or rest[0] == "RewardModel" else rest[0]
      elif top in ("experiments", "configs"):
        yield node.lineno, top


FILES = sorted(p for p in (ROOT / "rm_jax").rglob("*.py") if p != ROOT / "rm_jax/__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
  room = path.relative_to(ROOT / "rm_jax").parts[0].removesuffix(".py")
  assert room in MAY_IMPORT, f"room {room!r} is not declared: say in MAY_IMPORT what it may import"
  allowed = MAY_IMPORT[room] | EVERYWHERE | {room}
  wrong = [(line, other) for line, other in rooms_imported(path) if other not in allowed]
  assert not wrong, f"{path.name} of room {room!r} imports {wrong}; it may import {sorted(allowed)}"


def test_the_declared_order_has_no_cycle():
  below = {room: rooms - {room} for room, rooms in MAY_IMPORT.items()}
  while below:
    lowest = {room for room, rooms in below.items() if not rooms}
    assert lowest, f"these rooms may import one another in a circle: {sorted(below)}"
    below = {room: rooms - lowest for room, rooms in below.items() if room not in lowest}


def test_every_import_is_seen(tmp_path):
  file = tmp_path / "rm_jax" / "data" / "x.py"
  file.parent.mkdir(parents=True)
  file.write_text(
    "from rm_jax import api, RewardModel\n"
    "def f():\n"
    "  import rm_jax.train.loop\n"
    "import rm_jax\n"
    "from . import read\n"
    "from ..speed import plan\n"
    "from .. import audit\n"
    "import configs.base, json\n"
    "from experiments.launch import launch\n"
  )
  assert sorted(rooms_imported(file, tmp_path)) == [
    (1, "api"),
    (1, "api"),
    (3, "train"),
    (4, "api"),
    (5, "data"),
    (6, "speed"),
    (7, "audit"),
    (8, "configs"),
    (9, "experiments"),
  ]


def test_no_torch_and_no_tensorflow_in_the_core():
  for path in [*FILES, *(ROOT / "experiments").rglob("*.py")]:
    for node in ast.walk(ast.parse(path.read_text())):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
      assert not any(n.split(".")[0] in ("torch", "tensorflow") for n in names), path


def test_no_file_is_too_long():
  for folder in ("rm_jax", "experiments", "configs"):
    for path in (ROOT / folder).rglob("*.py"):
      lines = len(path.read_text().splitlines())
      assert lines <= MOST_LINES, f"{path} has {lines} lines; at most {MOST_LINES}"


def test_no_folder_has_too_many_files():
  for folder in sorted({path.parent for path in FILES}):
    name = str(folder.relative_to(ROOT))
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    most = MORE_FILES.get(name, MOST_FILES)
    assert len(files) <= most, f"{name} has {len(files)} files; at most {most}: is it one room?"


def test_nothing_else_is_kept_at_the_top():
  if not (ROOT / ".git").exists() or not shutil.which("git"):
    pytest.skip("no git checkout, or no git")
  # The checkout may belong to another user than the one who runs the tests.
  command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files"]
  listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
  assert {name.split("/")[0] for name in listed} == TOP | TOP_FOR_TOOLS
