"""Pairs a second of DPO here and by TRL's DPOTrainer, in turns.

  python -m tests.studies.dpo_speed --trl=PYTHON --pairs=FILE --model=config.json --tokenizer=NAME

runs both on rows of FILE (`prompt`, `chosen`, `rejected`: strings, or conversations in HH-RLHF's
form) with random weights of a Hugging Face architecture, one saved folder for both. PYTHON is that
of an environment with TRL (`pip install torch 'trl==1.16.0'`). Timed are the steps and the pass
over the data by the reference, which both run once beforehand; neither tokenising nor compilation,
for which this side trains once before it is timed. The kinds of run take turns, so that a slow
minute of the machine falls on all of them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from configs import base
from rm_jax.data.dialogue import plain
from rm_jax.data.formats import load
from rm_jax.data.report import Report

ROOT = Path(__file__).parents[2]
MAKE = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.manual_seed(0)
config = AutoConfig.from_pretrained(sys.argv[1])
config.architectures = None
AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[2])
"""


def config_of(model: str, pairs: str, flags: argparse.Namespace) -> ml_collections.ConfigDict:
  """The config of a DPO run of one epoch."""
  c = base.get_config()
  c.model.pretrained = model
  c.model.reward, c.model.reference = "implicit", "start"
  c.model.dtype = flags.dtype
  c.data.train, c.data.heldout = pairs, "0"
  c.data.batch_groups = flags.batch
  c.data.max_length = flags.max_length
  c.data.cells = flags.cells
  c.optimizer.learning_rate = 1e-4
  c.train.epochs = 1.0
  c.train.checkpoint_every = c.train.eval_every = c.train.log_every = 10**9
  return c


def ours(flags: argparse.Namespace) -> None:
  """Trains twice, times the second run, and prints a line of JSON as dpo_speed.py of TRL does."""
  from rm_jax.train import loop

  seconds: dict[str, float] = {}

  def timed(name: str, function: Any) -> Any:
    def run(*args, **options):
      start = time.perf_counter()
      found = function(*args, **options)
      seconds[name] = time.perf_counter() - start
      return found

    return run

  loop._Loop._keep_references = timed("reference_seconds", loop._Loop._keep_references)
  loop._Loop.run_steps = timed("seconds", loop._Loop.run_steps)
  with tempfile.TemporaryDirectory() as folder:
    for name in ("warm-up", "timed"):
      config = config_of(flags.folder + "/model", flags.folder + "/ours.jsonl", flags)
      summary = loop.train(config, Path(folder) / name)
  pairs = summary["train"]["steps"] * flags.batch
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print("\n" + json.dumps({"pairs": pairs, **seconds, "peak_bytes": peak}))


def rows_of(path: str, count: int) -> list[dict[str, str]]:
  """The first pairs of a file as strings."""
  rows = []
  for example in load(path, report=Report(), limit=count):
    prompt = example.prompt
    if not isinstance(prompt, str):
      turns = "".join(
        f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in prompt
      )
      prompt = f"{turns}\n\nAssistant:"
    chosen, rejected = (" " + plain(response) for response in example.responses)
    rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
  return rows


def save_model(python: str, model: str, tokenizer: str, folder: str) -> None:
  """Saves random weights of an architecture in folder/model, with a tokenizer that has an EOS.

  Args:
    python: of an environment with torch and transformers.
    model: a config.json of transformers.
    tokenizer: folder or name of a tokenizer.
    folder: where 'model' is made.
  """
  from rm_jax.reward.setup import _tokenizer

  subprocess.run([python, "-c", MAKE, model, f"{folder}/model"], check=True)
  found = _tokenizer(tokenizer)
  found.eos_token = found.eos_token or found.sep_token
  found.save_pretrained(f"{folder}/model")


def in_turns(
  commands: dict[str, list[str]],
  turns: int,
  speed: Callable[[dict], float],
  said: Callable[[dict], str],
) -> None:
  """Runs commands in turns and prints each one's speed, then the medians and their ratio.

  Args:
    commands: of 'rm_jax' and 'TRL', each of which prints a line of JSON last.
    turns: how often each is run.
    speed: of what such a line has.
    said: of what such a line has, for a reader.
  """
  speeds: dict[str, list[float]] = {name: [] for name in commands}
  for turn in range(turns):
    for name, command in commands.items():
      done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
      if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}\n{done.stderr[-3000:]}")
      found = json.loads(done.stdout.splitlines()[-1])
      speeds[name].append(speed(found))
      peak = found["peak_bytes"] / 2**30
      print(f"{name}, turn {turn + 1}: {said(found)}; {peak:.2f} GiB", flush=True)
  medians = {name: statistics.median(values) for name, values in speeds.items()}
  print(f"medians {medians}; ratio {medians['rm_jax'] / medians['TRL']:.2f}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--trl", help="Python of an environment with TRL")
  parser.add_argument("--pairs", help="a file of pairs")
  parser.add_argument("--model", help="a config.json of transformers")
  parser.add_argument("--tokenizer", default="sentence-transformers/all-MiniLM-L6-v2")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--max-length", type=int, default=512)
  parser.add_argument("--cells", type=int, default=8192)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--count", type=int, default=128, help="pairs here")
  parser.add_argument("--trl-count", type=int, default=64, help="pairs by TRL, which takes longer")
  parser.add_argument("--turns", type=int, default=3)
  parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.ours:
    ours(flags)
    return
  with tempfile.TemporaryDirectory() as folder:
    save_model(flags.trl, flags.model, flags.tokenizer, folder)
    rows = rows_of(flags.pairs, max(flags.count, flags.trl_count))
    for name, count in (("ours", flags.count), ("trl", flags.trl_count)):
      text = "".join(json.dumps(row) + "\n" for row in rows[:count])
      Path(f"{folder}/{name}.jsonl").write_text(text)
    same = [str(flags.batch), str(flags.max_length), flags.dtype]
    peer = [str(ROOT / "tests/clients/dpo_speed.py"), f"{folder}/model", f"{folder}/trl.jsonl"]
    commands = {
      "rm_jax": [sys.executable, "-m", "tests.studies.dpo_speed", *sys.argv[1:], "--ours"],
      "TRL": [flags.trl, *peer, *same],
    }
    commands["rm_jax"].append(f"--folder={folder}")

    def speed(found: dict) -> float:
      return found["pairs"] / (found["seconds"] + found["reference_seconds"])

    in_turns(
      commands,
      flags.turns,
      speed,
      lambda found: (
        f"{speed(found):.2f} pairs/s; {found['pairs']} pairs, {found['seconds']:.1f} s and "
        f"{found['reference_seconds']:.1f} s for the reference"
      ),
    )


if __name__ == "__main__":
  main()
