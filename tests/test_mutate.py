"""The tool that mutates: what it draws, what a mutation is, and what becomes of it."""

import dataclasses
import json

import pytest

from tests import mutate
from tests.mutations import is_real, mutations_of

TOY = '''"""A docstring with 3 < 4."""

import logging

log = logging.getLogger(__name__)


def clip(x: int, low: int = 0, *, high: int = 9) -> int:
  """From 0 to 9."""
  if not x > low:  # 1 < 2
    log.info("low, by %d", low - x + 1)
    return low
  if x > 1000:
    raise ValueError("over 1,000: " + str(x + 1))
  return min(x, high)


def count(x):
  while x > 0:
    x -= 1
  return x


def label(x):
  return f"{x + 1}", [x, 2 * x]
'''
TESTS = """
from rm_jax.data.toy import clip, count, label


def test_clip():
  assert (clip(-5), clip(5), clip(50), count(3)) == (0, 5, 9, 0)


def test_label():
  assert label(3) == ("4", [3, 6])
"""


@pytest.fixture
def tree(tmp_path):
  root = tmp_path / "root"
  for folder in ("rm_jax/data", "tests/data"):
    (root / folder).mkdir(parents=True)
  (root / "rm_jax/data/toy.py").write_text(TOY)
  (root / "tests/data/test_toy.py").write_text(TESTS)
  (root / "tests/data/test_other.py").write_text("def test_nothing():\n  pass\n")
  (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["slow: long"]\n')
  return root


def mutations():
  return [m for m in mutations_of(TOY, "rm_jax/data/toy.py") if is_real(m, TOY)]


def test_a_mutation_is_one_line_of_code():
  lines = TOY.split("\n")
  found = {(m.before.strip(), m.after.strip()) for m in mutations()}
  for one in mutations():
    changed = one.apply(TOY).split("\n")
    assert [i for i, (a, b) in enumerate(zip(lines, changed, strict=True), 1) if a != b] == [
      one.line
    ]
  expected = {
    ("if not x > low:  # 1 < 2", "if x > low:  # 1 < 2"),
    ("if not x > low:  # 1 < 2", "if not x >= low:  # 1 < 2"),
    ("return min(x, high)", "return max(x, high)"),
    ("x -= 1", "pass"),
    ("x -= 1", "x -= 2"),
    ("while x > 0:", "while x >= 0:"),
    ('return f"{x + 1}", [x, 2 * x]', 'return f"{x + 1}", [2 * x]'),
    ('return f"{x + 1}", [x, 2 * x]', 'return f"{x + 1}", [x, 2 / x]'),
    ('raise ValueError("over 1,000: " + str(x + 1))', "pass"),
    (
      "def clip(x: int, low: int = 0, *, high: int = 9) -> int:",
      "def clip(x: int, low: int = 0, *, high: int = 10) -> int:",
    ),
  }
  assert expected <= found, expected - found
  # Words for people stay as they are.
  for word in ("docstring", "log", "From 0 to 9", "import"):
    assert not any(word in before for before, _ in found)
  assert not any("ValueError" in after for _, after in found)


def test_a_draw_is_the_seeds_and_a_larger_one_begins_as_a_smaller_one(tree):
  drawn = mutate.draw(tree, "seed", 6)
  assert drawn == mutate.draw(tree, "seed", 6)
  assert drawn[:3] == mutate.draw(tree, "seed", 3)
  assert drawn != mutate.draw(tree, "another", 6)
  every = mutate.draw(tree, "seed", 100)
  assert len({one.line for one in every}) == len(every) < 100


def test_an_earlier_draw_is_found_again_where_its_lines_have_moved(tree, tmp_path):
  file = "rm_jax/data/toy.py"
  drawn = [m for m in mutations() if m.after.strip() in ("return max(x, high)", "x -= 2")]
  path = tmp_path / "results.jsonl"
  rows = [
    {"seed": seed, **dataclasses.asdict(one), "outcome": "killed", "by": "hangs: a.py::test"}
    for seed in ("a", "b")
    for one in drawn
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  # The first line moves down by two, the second is changed.
  text = TOY.replace("def clip", "# A comment.\n# And another.\ndef clip").replace(
    "x -= 1", "x -= 5"
  )
  (tree / file).write_text(text)
  found, gone = mutate.drawn_before(path, "a", tree)
  clip = next(one for one in drawn if "max" in one.after)
  moved = dataclasses.replace(clip, line=clip.line + 2)
  assert found == {moved: "a.py::test"}
  assert gone == [one for one in drawn if one != clip]
  assert "return max(x, high)" in moved.apply(text)
  # Of several lines with the text, the nearest is meant.
  (tree / file).write_text(TOY + "\n" * 3 + clip.before + "\n")
  found, _ = mutate.drawn_before(path, "a", tree)
  assert clip in found
  (tree / file).unlink()
  assert mutate.drawn_before(path, "a", tree) == ({}, drawn)


def test_an_earlier_draw_that_is_not_there_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit) as ended:
    mutate.main(["--seed=a", f"--draw={tmp_path / 'results.jsonl'}"])
  assert ended.value.code == 2
  assert "results.jsonl has no mutation of --seed=a" in capsys.readouterr().err


def test_a_draw_is_even_over_the_rooms():
  rooms = [
    one.file.split("/")[1] for one in mutate.draw(mutate.ROOT, "seed", 2 * len(mutate.ROOMS))
  ]
  assert {room: rooms.count(room) for room in rooms} == dict.fromkeys(mutate.ROOMS, 2)


def test_tests_that_mirror_a_file_come_before_those_that_import_it(tree):
  file = tree / "tests/data/test_other.py"
  assert mutate.tests_of(tree, "rm_jax/data/toy.py") == ["tests/data/test_toy.py"]
  file.write_text("def test():\n  from rm_jax.data import toy\n")
  assert mutate.tests_of(tree, "rm_jax/data/toy.py") == [
    "tests/data/test_toy.py",
    "tests/data/test_other.py",
  ]


@pytest.mark.slow
def test_what_becomes_of_a_mutation(tree, tmp_path, monkeypatch):
  monkeypatch.setenv(
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"
  )  # or each start of pytest loads all of them
  (tmp_path / "copy").mkdir()
  copy = mutate.Copy(tree, tmp_path / "copy", limit=3)
  by = {m.after.strip(): m for m in mutations()}
  # The test that is to be tried first is no more: the others are run as ever.
  killed = copy.try_out(by["return max(x, high)"], known="tests/data/test_toy.py::test_gone")
  assert (killed["outcome"], killed["stage"]) == ("killed", "near")
  assert killed["by"] == "tests/data/test_toy.py::test_clip"
  known = copy.try_out(by["return max(x, high)"], known="tests/data/test_toy.py::test_clip")
  assert (known["outcome"], known["stage"]) == ("killed", "known")
  hangs = copy.try_out(next(m for m in mutations() if m.before.strip() == "x -= 1"
                            and m.after.strip() == "pass"))  # fmt: skip
  assert (hangs["outcome"], hangs["by"]) == ("killed", "hangs: tests/data/test_toy.py::test_clip")
  assert copy.try_out(by["if x > 1001:"])["outcome"] == "survived"
  # The slow tests of elsewhere are the last to be asked.
  other = tree / "tests/data/test_other.py"
  other.write_text(
    "import importlib\nimport pytest\n\n\n@pytest.mark.slow\ndef test_far():\n"
    "  with pytest.raises(ValueError):\n"
    "    importlib.import_module('rm_jax.data.toy').clip(1001)\n"
  )
  (tmp_path / "second").mkdir()
  found = mutate.Copy(tree, tmp_path / "second").try_out(by["if x > 1001:"])
  assert (found["outcome"], found["stage"]) == ("killed", "slow")
  (tmp_path / "fast").mkdir()
  found = mutate.Copy(tree, tmp_path / "fast").try_out(by["if x > 1001:"], fast=True)
  assert (found["outcome"], found["stage"]) == ("survived", "fast")
  assert (tree / "rm_jax/data/toy.py").read_text() == TOY
  # A test that fails by itself kills nothing.
  other.write_text("def test_far():\n  assert False\n")
  (tmp_path / "third").mkdir()
  with pytest.raises(RuntimeError, match="fails without a mutation too"):
    mutate.Copy(tree, tmp_path / "third").try_out(by["if x > 1001:"])


@pytest.mark.parametrize(
  ("outcome", "stage", "fast", "again", "waits"),
  [
    ("survived", "fast", True, False, False),
    ("survived", "fast", False, False, True),
    ("survived", "slow", False, False, False),
    ("survived", "slow", True, True, True),
    ("killed", "fast", False, True, False),
  ],
)
def test_what_the_same_command_tries_again(outcome, stage, fast, again, waits):
  assert mutate.is_waiting({"outcome": outcome, "stage": stage}, fast, again) == waits
  assert mutate.is_waiting(None, fast, again)


def test_what_is_told_in_the_end(tmp_path, monkeypatch):
  one, two, three, four = mutations()[:4]
  equal = tmp_path / "equal.json"
  known = {"file": one.file, "before": one.before, "after": one.after, "reason": "nobody looks"}
  equal.write_text(json.dumps([known]))
  monkeypatch.setattr(mutate, "known_equal", lambda known=mutate.known_equal: known(equal))
  results = {
    two.key: {"outcome": "killed", "by": "hangs: x"},
    three.key: {"outcome": "survived", "by": ""},
  }
  text = mutate.summary([one, two, three, four], results)
  assert "1 of 2 killed = 50.0% (1 by a hang), 1 survived; 1 without consequence; 1 not" in text
  assert f"-{three.before}\n+{three.after}" in text
  assert "not counted: nobody looks" in text
  assert two.after not in text
  row = {"seed": "a", **dataclasses.asdict(two), "outcome": "killed"}
  path = tmp_path / "results.jsonl"
  path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"outcome": "survived"}) + '\n{"cut')
  assert mutate.read_results(path, "a")[two.key]["outcome"] == "survived"
  assert mutate.read_results(path, "b") == {}


def test_mutations_that_change_nothing_are_of_lines_that_there_are():
  listed = json.loads(mutate.EQUAL.read_text())
  assert len(mutate.known_equal()) == len(listed) > 0
  for one in listed:
    lines = (mutate.ROOT / one["file"]).read_text().splitlines()
    assert one["before"] in lines, one["file"]
