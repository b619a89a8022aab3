"""Hashes of what commands write, for a change that must leave every number alone.

  python -m tests.studies.unchanged --data=DIR [--root=CHECKOUT] [--folder=DIR] [NAME ...]

runs the commands of a checkout (by default this one) in an empty folder, with empty caches, and
prints the sha256 of what each wrote. Run it once with the commit before as --root and once without,
on one machine, with the same --folder, since some files name the paths they were made from. NAME
chooses some: quickstart, qa, prm, audit (which needs quickstart), plan. Some fifteen minutes on two
cores. --data is the folder of the published data sets. plan.json is hashed without
`compile_seconds`, which is the one measurement in it.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(data: Path, folder: Path) -> dict[str, tuple[list[str], Path]]:
  """name -> (the command's module and flags, the file that it writes)."""
  few = ["--config.train.steps=20", "--config.train.log_every=1"]
  model = folder / "quickstart"
  return {
    "quickstart": (
      ["train", "--config=configs/quickstart.py", f"--workdir={model}"],
      model / "metrics.jsonl",
    ),
    "qa": (
      ["train", "--config=configs/qa_feedback.py", f"--workdir={folder / 'qa'}", *few,
       f"--config.data.train={data / 'qa_feedback_4way'}", "--config.data.limit=120"],
      folder / "qa/metrics.jsonl",
    ),
    "prm": (
      ["train", "--config=configs/prm800k.py", f"--workdir={folder / 'prm'}", *few,
       f"--config.data.train={data / 'prm800k_detok'}", "--config.data.limit=300"],
      folder / "prm/metrics.jsonl",
    ),
    "audit": (
      ["audit", f"--model={model}", f"--out={folder / 'audit'}", "--data=heldout", "--cache=none",
       "--sample=30", "--prompts=6", "--candidates=16"],
      folder / "audit/report.json",
    ),
    "plan": (
      ["plan", "--config=configs/base.py", "--topology=local", f"--output={folder / 'plan.json'}",
       "--config.model.config=configs/world_decoder.json", "--config.data.max_length=256",
       "--config.data.train=world:64"],
      folder / "plan.json",
    ),
  }  # fmt: skip


def digest(path: Path) -> str:
  """Of a file's bytes; of a plan's, without how long its compilation took."""
  raw = path.read_bytes()
  if path.name == "plan.json":

    def without(value):
      if isinstance(value, dict):
        return {k: without(v) for k, v in value.items() if k != "compile_seconds"}
      return [without(v) for v in value] if isinstance(value, list) else value

    raw = json.dumps(without(json.loads(raw)), sort_keys=True).encode()
  return hashlib.sha256(raw).hexdigest()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", type=Path, required=True, help="folder of the published data sets")
  parser.add_argument("--root", type=Path, default=ROOT, help="the checkout whose commands are run")
  parser.add_argument("--folder", type=Path, default=Path("/tmp/rm_jax_unchanged"))
  parser.add_argument("--keep", type=Path, help="a folder that the hashed files are copied into")
  parser.add_argument("names", nargs="*", metavar="NAME")
  flags = parser.parse_args()
  shutil.rmtree(flags.folder, ignore_errors=True)
  flags.folder.mkdir(parents=True)
  every = commands(flags.data.resolve(), flags.folder)
  environment = os.environ | {
    "PYTHONPATH": str(flags.root),
    "JAX_PLATFORMS": "cpu",
    "RM_JAX_TOKENS": str(flags.folder / "tokens"),
  }
  for name in flags.names or every:
    arguments, file = every[name]
    done = subprocess.run(
      [sys.executable, "-m", f"experiments.{arguments[0]}", *arguments[1:]],
      cwd=flags.root,
      env=environment,
      capture_output=True,
      text=True,
    )
    if done.returncode:
      raise SystemExit(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    print(f"{digest(file)}  {name}: {file.relative_to(flags.folder)}", flush=True)
    if flags.keep:
      flags.keep.mkdir(parents=True, exist_ok=True)
      shutil.copy(file, flags.keep / f"{name}-{file.name}")


if __name__ == "__main__":
  main()
