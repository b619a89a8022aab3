"""Runs each command on degenerate data: it must give a result or one line that says why not.

  python -m tests.studies.degenerate [--commands=train,score] [--data=empty,one] [--jobs=2] \\
      [--folder=DIR]

Commands run as processes on a tiny model with random weights. Prints a Markdown table of commands
by data, whose cells are "result" or the line of the error. The exit status is 1 if there is a
fault: a traceback, an error without exactly one line, no end within ten minutes, NaN or Infinity in
what a successful command wrote or printed, or a folder left in a state in which the same command on
good data is refused. Takes some 20 minutes on two cores.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from tests.conftest import LLAMA, decoder_tokenizer

ROOT = Path(__file__).parents[2]
SECONDS = 600
TINY = {"num_hidden_layers": 2}
SHORT = {
  "data.batch_groups": 4,
  "data.max_length": 128,
  "optimizer.learning_rate": 1e-3,
  "train.steps": 2,
}
STUDY = '''"""Two settings of the base config."""
from configs import base


def get_config():
  return base.get_config()


def sweep():
  rate = "optimizer.learning_rate"
  return {"rate/low": {rate: 1e-4}, "rate/high": {rate: 1e-3}}
'''


def pair(i: int, **more) -> dict:
  """A row of feedback: a pair, each its own conversation."""
  row = {"prompt": f"Question {i}: ", "chosen": f"good answer {i}", "rejected": f"bad {i}"}
  return row | more


def request(i: int, **more) -> dict:
  """A row for experiments.score."""
  return {"prompt": f"Question {i}: ", "response": f"good answer {i}"} | more


def write(path: Path, rows: Iterable[dict]) -> Path:
  """Writes rows as parquet if the path's suffix says so, else as JSON lines."""
  rows = list(rows)
  if path.suffix == ".parquet":
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return path


def make_data(folder: Path) -> dict[str, dict[str, Path]]:
  """Name of a case -> {feedback: file to learn from or report on, rows: file to score}."""
  rng = np.random.default_rng(0)
  long = "word " * 20_000
  lists = [
    {
      "prompt": f"Question {i}: ",
      "responses": [f"answer {i} {k}" for k in range(64)],
      "scores": rng.normal(size=64).tolist(),
    }
    for i in range(6)
  ]
  nan = [float("nan"), 1.0, 2.0, None] * 10
  cases = {
    "good": ([pair(i) for i in range(40)], [request(i) for i in range(40)]),
    "empty": ([], []),
    "one": ([pair(0)], [request(0)]),
    "two": ([pair(i) for i in range(2)], [request(i) for i in range(2)]),
    "tied": (
      [pair(i, tie=True) for i in range(40)],
      [request(0, response="the same") for _ in range(40)],
    ),
    "constant": (
      [request(i, score=3) for i in range(40)],
      [request(i, score=3) for i in range(40)],
    ),
    "nan": (
      [pair(i, margin=x) for i, x in enumerate(nan)],
      [request(i, extra=x) for i, x in enumerate(nan)],
    ),
    "lists": (lists, [request(i % 6, response=f"answer {i}") for i in range(384)]),
    "long": (
      [pair(i, prompt=f"Question {i}: {long}") for i in range(12)],
      [request(i, prompt=f"Question {i}: {long}") for i in range(12)],
    ),
  }
  made = {}
  for name, (feedback, rows) in cases.items():
    # This file is not called nan, because commands print names and output is searched for it.
    stem, kind = ("holes", "parquet") if name == "nan" else (name, "jsonl")
    made[name] = {
      "feedback": write(folder / f"{stem}.{kind}", feedback),
      "rows": write(folder / f"{stem}_rows.{kind}", rows),
    }
  return made


def settings(base: Path, **fields) -> list[str]:
  """The --config flags of a short run of the tiny model."""
  model = {"model.config": base / "config.json", "model.tokenizer": base}
  return [f"--config.{key}={value}" for key, value in (model | SHORT | fields).items()]


def flags_of(command: str, case: str, files: dict[str, Path], base: Path, out: Path) -> list[str]:
  """The flags of a command for a case; all that it writes goes under `out`."""
  feedback, rows = files["feedback"], files["rows"]
  model = f"--model={base / 'run'}"
  config = "--config=configs/base.py"
  train = settings(base, **{"data.train": feedback})
  if command == "train":
    return [config, f"--workdir={out / 'run'}", *train]
  if command == "sweep":
    study = base / "study.py"
    return [f"--config={study}", f"--workdir={out / 'sweep'}", "--seeds=2", *train]
  if command == "benchmark":
    few = {"data.train": feedback, "benchmark.steps": 1, "benchmark.turns": 2}
    flags = settings(base, **few)
    return ["--config=configs/benchmark.py", f"--output={out / 'bench.json'}", *flags]
  if command == "plan":  # reads no data, so it gets the shapes that the data would have
    shape = {"lists": ["--kind=ranking", "--responses=64"], "long": ["--tokens=100000"]}
    flags = ["--topology=local", f"--output={out / 'plan.json'}", *settings(base)]
    return [config, *flags, *shape.get(case, [])]
  if command == "evaluate":
    return [model, f"--data={feedback}", f"--out={out / 'report'}"]
  if command == "audit":
    few = ["--cache=none", "--edits=20", "--prompts=4", "--candidates=8"]
    return [model, f"--data={feedback}", f"--output={out / 'page'}", *few]
  if command == "curate":
    return [f"--input={feedback}", f"--output={out / 'kept.jsonl'}", f"--report={out / 'c.json'}"]
  return [model, f"--input={rows}", f"--output={out / 'scored.jsonl'}"]


COMMANDS = ("train", "evaluate", "score", "audit", "curate", "sweep", "benchmark", "plan")


def run(command: str, flags: list[str], cache: Path) -> tuple[int | None, str, str]:
  """(exit status, stdout, stderr) of a command; a status of None if it did not end in time."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "RM_JAX_CACHE": str(cache),
    "PYTHONPATH": str(ROOT),
  }
  line = [sys.executable, "-m", f"experiments.{command}", *map(str, flags)]
  try:
    done = subprocess.run(
      line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
  except subprocess.TimeoutExpired:
    return None, "", ""
  return done.returncode, done.stdout, done.stderr


def not_numbers(out: Path, printed: str) -> list[str]:
  """The lines with NaN or Infinity among those that a command wrote or printed."""
  word = re.compile(r"(?<![\w.])-?(?:NaN|nan|Infinity|inf)(?![\w.])")
  # A message about a dropped row quotes what was found in it, which may be NaN.
  said = [line.strip() for line in printed.splitlines() if "; expected" not in line]
  found = [f"printed: {line}" for line in said if word.search(line)]
  for path in sorted(out.rglob("*")):
    if path.suffix in (".json", ".jsonl") and word.search(path.read_text(encoding="utf-8")):
      # The word may be part of a text; outside of strings it is not valid JSON.
      for line in path.read_text(encoding="utf-8").splitlines():
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)
        if word.search(bare):
          found.append(f"{path.name}: {line.strip()[:120]}")
  return found


def cell(
  command: str, case: str, data: dict[str, dict[str, Path]], base: Path, out: Path
) -> tuple[str, list[str]]:
  """Runs a command on a case: (text for the table, faults)."""
  out.mkdir(parents=True)
  cache = base / "cache"
  code, printed, err = run(command, flags_of(command, case, data[case], base, out), cache)
  err = err.replace("\r", "\n")
  lines = [line for line in err.splitlines() if line.startswith("error: ")]
  if code is None:
    return f"no end within {SECONDS} s", ["hangs"]
  faults = []
  if "Traceback (most recent call last)" in err:
    faults.append("traceback: " + err.strip().splitlines()[-1][:200])
  if code == 0:
    faults += [f"exit 0 with a number that is none: {found}" for found in not_numbers(out, printed)]
    return "result", faults
  if len(lines) != 1:
    faults.append(f"exit {code} and {len(lines)} lines of error")
  for name in ("run", "sweep"):  # a folder left by a failure must not be in the way
    if (out / name).exists():
      again, _, said = run(command, flags_of(command, "good", data["good"], base, out), cache)
      if again != 0:
        faults.append(f"lost work: good data are refused there: {said.strip().splitlines()[-1]}")
  return (lines[0] if lines else f"exit {code}"), faults


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--commands", default=",".join(COMMANDS))
  parser.add_argument("--data", default="")
  parser.add_argument("--jobs", type=int, default=2)
  parser.add_argument("--folder", default="")
  options = parser.parse_args()
  root = Path(options.folder or tempfile.mkdtemp(prefix="degenerate_")).resolve()
  base = root / "base"
  base.mkdir(parents=True, exist_ok=True)
  decoder_tokenizer().save_pretrained(base)
  (base / "config.json").write_text(json.dumps(LLAMA | TINY))
  (base / "study.py").write_text(STUDY)
  data = make_data(base)
  flags = flags_of("train", "good", data["good"], base, base)
  code, _, err = run("train", flags, base / "cache")
  if code != 0:
    print(err, file=sys.stderr)
    return 1
  cases = options.data.split(",") if options.data else [name for name in data if name != "good"]
  cells = [(command, case) for command in options.commands.split(",") for case in cases]
  shutil.rmtree(root / "cells", ignore_errors=True)

  def measured(one: tuple[str, str]) -> tuple[str, list[str]]:
    said, faults = cell(*one, data, base, root / "cells" / "_".join(one))
    print(*one, said[:200], *faults, sep=" | ", file=sys.stderr, flush=True)
    return said, faults

  with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
    found = dict(zip(cells, pool.map(measured, cells), strict=True))
  print("| command | data | |\n|---|---|---|")
  for (command, case), (said, faults) in found.items():
    said = said.replace(str(root), "").replace("|", "\\|")
    marks = "".join(f"; **fault** {fault}" for fault in faults)
    print(f"| {command} | {case} | {said[:300]}{marks.replace('|', '/')} |")
  bad = sum(bool(faults) for _, faults in found.values())
  print(f"\n{len(found)} cells, {bad} with a fault")
  return int(bad > 0)


if __name__ == "__main__":
  sys.exit(main())
