"""README.md and docs/: links lead somewhere, fields and flags exist, and the commands run.

Of the lines in the pages' bash blocks these tests look at `python -m experiments.NAME`. Installing
the package and running the tests is left to CI.
"""

import doctest
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from absl import flags

from configs import rlhf
from configs.base import get_config
from rm_jax.data import formats
from rm_jax.world import World
from tests.processes import Command
from tests.test_house import MAY_IMPORT

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path: path.read_text(encoding="utf-8") for path in FILES}
COMMANDS = sorted(
  path.stem
  for path in (ROOT / "experiments").glob("*.py")
  if "DEFINE" in path.read_text() and path.stem != "launch"
)


def fenced(text, *languages):
  """The contents of fenced blocks of some languages."""
  return [
    body
    for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    if kind in languages
  ]


def inline(text):
  """What stands in backticks outside fenced blocks, on one line."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
  return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def commands(text):
  """Each command of a page, in a bash block or in backticks, as the words after `python -m`."""
  lines = []
  for block in fenced(text, "bash"):
    lines += block.replace("\\\n", " ").splitlines()
  found = [
    shlex.split(line, comments=True) for line in [*lines, *inline(text)] if "experiments." in line
  ]
  return [words[2:] for words in found if words[:2] == ["python", "-m"]]


OF_PAGES = [
  pytest.param(words, id=f"{path.name}: {' '.join(words)}")
  for path, text in PAGES.items()
  for words in commands(text)
]


@pytest.fixture(scope="module")
def shared():
  """Names of the flags that all commands have: absl's, and those of experiments/launch.py."""
  code = "from absl import flags; import experiments.launch; print(*flags.FLAGS)"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  return set(done.stdout.split())


@pytest.fixture
def parse(monkeypatch, shared):
  """A function (command, flags) that parses the flags as the command does, and loads its config.

  It raises `flags.Error` or what the config raises. All commands define flags of the same names in
  one global registry, so those of other commands, which earlier tests may have imported, are
  removed first, and come back in the end.
  """
  monkeypatch.chdir(ROOT)
  importlib.import_module("experiments.launch")
  before = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - shared}

  def forget():
    for name in set(flags.FLAGS) - shared:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()

  def parse(name, given):
    forget()
    argv = [f"experiments/{name}.py", *given]
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks there for the config's fields
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # absl: a required flag has a default
      runpy.run_module(f"experiments.{name}", run_name="docs")
    rest = flags.FLAGS(argv)
    assert rest == argv[:1], f"not a flag: {rest[1:]}"

  yield parse
  forget()
  for name, flag in before.items():
    flags.FLAGS[name] = flag


def test_readme_is_short():
  assert len(PAGES[ROOT / "README.md"].splitlines()) <= 250


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
  text = re.sub(r"^```.*?^```", "", PAGES[path], flags=re.M | re.S)
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if "://" in target:
      continue
    file, _, anchor = target.partition("#")
    found = (path.parent / file).resolve() if file else path
    assert found.exists(), f"{path.name} links to {target}"
    if anchor:
      headings = re.findall(r"^#+ (.*)", PAGES[found], re.M)
      slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
      assert anchor in slugs, f"{path.name} links to {target}; there are {slugs}"


def test_every_page_is_linked_from_the_readme():
  readme = PAGES[ROOT / "README.md"]
  for path in FILES[1:]:
    assert f"(docs/{path.name}" in readme, path.name


@pytest.mark.parametrize("words", OF_PAGES)
def test_flags_of_commands_parse_and_configs_load(words, parse):
  name = words[0].removeprefix("experiments.")
  assert name in COMMANDS
  parse(name, words[1:])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_fields_flags_and_files_exist(path, parse):
  """Those that a sentence or a table names in backticks."""
  configs = get_config(), rlhf.get_config()
  known = set()
  for name in COMMANDS:
    with pytest.raises(flags.Error):  # required flags are missing: these are not run
      parse(name, [])
    known |= set(flags.FLAGS)
  for code in inline(PAGES[path]):
    for flag, value in re.findall(r"(?:^|\s)--([\w.]+)(=\S+)?", code):
      if flag.startswith("config."):
        field = flag.removeprefix("config.")
        assert any(has_field(config, field) for config in configs), f"{path.name}: --{flag}"
      else:
        assert flag in known, f"{path.name}: --{flag}{value}"
    if code.endswith((".json", ".jsonl", ".safetensors")):
      continue  # of a file, and no dotted name
    parts = "|".join({part for config in configs for part in config})
    if re.fullmatch(rf"({parts})\.[a-z_.]+", code):
      assert any(has_field(config, code) for config in configs), f"{path.name}: {code}"
    if re.fullmatch(r"(rm_jax|tests|configs|experiments|docs)/[\w/.]*", code):
      assert (ROOT / code).exists(), f"{path.name}: {code}"
    if re.fullmatch(r"rm_jax(\.\w+)+", code):
      assert is_there(code), f"{path.name}: {code}"


def has_field(config, name):
  for part in name.split("."):
    if part not in config:
      return False
    config = config[part]
  return True


def is_there(name):
  """Whether a dotted name can be imported, or is an attribute of a module that can."""
  for end in range(len(parts := name.split(".")), 0, -1):
    try:
      found = importlib.import_module(".".join(parts[:end]))
    except ModuleNotFoundError:
      continue
    for part in parts[end:]:
      if not hasattr(found, part):
        return False
      found = getattr(found, part)
    return True
  return False


def test_the_map_has_every_room():
  rows = re.findall(r"^\| `rm_jax/([\w]+)(?:/|\.py)` \|", PAGES[ROOT / "README.md"], re.M)
  there = {
    path.stem
    for path in (ROOT / "rm_jax").iterdir()
    if path.stem not in ("__init__", "__pycache__") and (path.is_dir() or path.suffix == ".py")
  }
  assert set(rows) == there
  assert len(rows) == len(there)


def test_the_picture_runs_the_way_imports_do():
  """An arrow from room to room brings something to a room that may import the other."""
  (picture,) = fenced(PAGES[ROOT / "README.md"], "mermaid")
  arrows = re.findall(r"^ *(\w+)(?:\W*\[.*?\]\)?)? +--(?:.*?--)?> +(\w+)", picture, re.M)
  assert len(arrows) > 12
  between = [(a, b) for a, b in arrows if a in MAY_IMPORT and b in MAY_IMPORT]
  assert len(between) > 8
  for a, b in between:
    assert a in MAY_IMPORT[b], f"{a} --> {b}, and {b} may not import {a}"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_python_sessions(path, monkeypatch):
  """The `>>>` lines of a page, as one session, print what the page says."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))  # a page registers one
  text = "".join(fenced(PAGES[path], "python"))
  test = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
  if not test.examples:
    pytest.skip("the page has no session")
  said = []
  doctest.DocTestRunner().run(test, out=said.append)
  assert not said, "".join(said)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_diffs_are_of_the_code_as_it_is(path):
  """What a diff keeps or takes away stands so in the file; what it adds is not there yet."""
  for block in fenced(PAGES[path], "diff"):
    for part in re.split(r"^--- ", block, flags=re.M)[1:]:
      name = re.search(r"^\+\+\+ b/(\S+)", part, re.M)[1]
      if part.startswith("/dev/null"):
        assert not (ROOT / name).exists(), name
        continue
      code = (ROOT / name).read_text(encoding="utf-8")
      for hunk in re.split(r"^@@.*\n", part, flags=re.M)[1:]:
        lines = hunk.splitlines()
        before = [line[1:] for line in lines if line[:1] != "+"]
        after = [line[1:] for line in lines if line[:1] != "-"]
        assert "\n".join(before) in code, f"{name}: " + "\n".join(before)
        assert "\n".join(after) not in code, name


# Flags that make a run small: a decoder of two layers from random weights, and the world's tokens.
TINY = [
  "--config.model.pretrained=",
  "--config.model.config=configs/world_decoder.json",
  "--config.model.tokenizer=world",
  "--config.model.chat_template=hh",
  "--config.model.layers=0",
  "--config.model.frozen_layers=0",
  "--config.data.cache=none",
  "--config.data.max_length=256",
  "--config.data.cells=1024",
  "--config.data.shapes=1",
]
TRAIN = [*TINY, "--config.data.batch_groups=8", "--config.train.steps=1"]
WORLD = ["--config.data.train=world:48", "--config.data.heldout=world:32"]
# How a command of the pages begins -> flags that cut it short. They are run in this order, because
# later ones read what earlier ones wrote.
SHORT = {
  "experiments.train --config=configs/quickstart.py": [*TRAIN, *WORLD],
  "experiments.train --config=configs/base.py --workdir=runs/mine": [
    *TRAIN,
    "--config.data.heldout=0.25",
  ],
  "experiments.train --config=configs/base.py --workdir=runs/two": [
    *TRAIN,
    "--config.data.heldout=0.25",
  ],
  "experiments.train --config=configs/base.py --workdir=runs/dpo": [
    *TRAIN,
    "--config.data.heldout=0.25",
    "--config.model.reference=none",  # random weights are no start that could be read again
  ],
  "experiments.train --config=configs/base.py --workdir=runs/loss": [
    *TRAIN,
    "--config.data.heldout=0.25",
  ],
  "experiments.evaluate --model=runs/mine": ["--limit=64"],
  "experiments.audit --model=runs/mine": ["--limit=24", "--edits=8"],
  "experiments.score --model=runs/mine": [],
  "experiments.curate": [],
  "experiments.benchmark --config=configs/benchmark.py": [
    *TINY,
    "--config.data.batch_groups=8",
    "--config.benchmark.steps=1",
    "--config.benchmark.turns=1",
    "--config.benchmark.modes=('packed_shared',)",
    "--config.model.dtype=float32",
  ],
}
# Part of a command that is not run -> why.
NOT_RUN = {
  "experiments.train --config=configs/hh_rlhf.py --workdir=runs/hh": "HH-RLHF from the hub",
  "--config.data.train=PATH": "published data that one has to have",
  "--exclude=PATH": "likewise",
  "--config.model.head_init=verdict": "weights from the hub; tests/reward/test_verdict.py has some",
  "--multihost": "several hosts, of a pod",
  "--topology=v5e": "TPU's compiler, of jax[tpu]: tests/speed/test_plan.py runs it where it is",
  "experiments.best_of": "several models; tests/test_best_of.py runs it",
  "experiments.sweep": "100 runs; tests/test_sweep.py runs a small one",
  "experiments.rlhf": "a chain takes long; tests/test_rlhf.py runs a small one",
}


def how(words):
  """The flags that cut a command of a page short, or the reason why it is not run."""
  line = " ".join(words)
  starts = [start for start in SHORT if line.startswith(start)]
  reasons = [why for part, why in NOT_RUN.items() if part in line]
  if starts:
    return SHORT[max(starts, key=len)]
  assert reasons, f"{line}: neither in SHORT nor in NOT_RUN"
  return reasons[0]


@pytest.mark.parametrize("words", OF_PAGES)
def test_commands_are_run_or_have_a_reason(words):
  assert how(words) is not None


def write_rows(path, columns, rows):
  lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows]
  path.write_text("".join(lines))


@pytest.mark.slow
def test_commands_run_cut_short(tmp_path):
  """In a folder with the clone's files, and the data that the pages call pairs.jsonl and so on."""
  for name in ("configs", "experiments", "rm_jax", "docs"):
    (tmp_path / name).symlink_to(ROOT / name)
  for name, split in (("pairs", "train"), ("other", "heldout"), ("heldout", "heldout")):
    pairs = [(e.prompt, *e.responses) for e in World().pairs(split, 300, seed=0)]
    write_rows(tmp_path / f"{name}.jsonl", ("prompt", "chosen", "rejected"), pairs)
    write_rows(tmp_path / "rows.jsonl", ("prompt", "response"), [pair[:2] for pair in pairs])
  (tmp_path / "feedback").mkdir()
  for name in ("harmless", "helpful"):
    write_rows(
      tmp_path / "feedback" / f"{name}.jsonl", ("prompt", "chosen", "rejected"), pairs[:40]
    )
  variables = {"RM_JAX_CACHE": str(tmp_path / "cache")}
  every = [param.values[0] for param in OF_PAGES]
  for start, short in SHORT.items():
    # Of several that begin alike the one with most flags.
    words = max((w for w in every if " ".join(w).startswith(start)), key=len)
    module, *flags = words
    options = dict(folder=tmp_path, variables=variables)
    code, out, err = Command(module, [*flags, *short], **options).finish()
    assert code == 0, f"{words}\n{out[-2000:]}{err[-2000:]}"
  sessions = [body for text in PAGES.values() for body in fenced(text, "python")]
  # In one process; each has names of its own.
  bodies = [body for body in sessions if 'from_pretrained("runs/' in body]
  if importlib.util.find_spec("torch") is None:
    bodies = [body for body in bodies if "import torch" not in body]
  assert len(bodies) > 1
  (tmp_path / "sessions.py").write_text("".join(f"exec({body!r}, {{}})\n" for body in bodies))
  code, out, err = Command("sessions", [], **options).finish()
  assert code == 0, f"{out[-2000:]}{err[-2000:]}"
  for made in ("runs/mine/report.png", "runs/eval/report.json", "runs/audit/report.html"):
    assert (tmp_path / made).is_file()
  for made in ("scored.jsonl", "clean.jsonl", "report.json", "bench.json"):
    assert (tmp_path / made).is_file()
