"""Damages training runs: kills at random moments, flipped bits in checkpoints, poisoned rows.

  python -m tests.studies.damage [--seed=0] [--kills=15] [--flips=80] [--rows=15] [--folder=DIR]

Trains a tiny model on the generated world. It prints a line for each damage, and a table of how the
runs ended. Runs that are killed have a process of their own. Takes some twenty minutes on two
cores. The exit code is 1 if one of these expectations fails:

  kill   A run that was killed (signal 9) and resumed equals an undisturbed one bit for bit: its
         parameters, optimiser state, position in the data, and metrics.jsonl.
  flip   One bit of a checkpoint's files is flipped. The model served at once is that of the step it
         claims. The resumed run saves, and equals the undisturbed one. The model served then is the
         one that summary.json describes.
  row    A poisoned row is refused, or dropped and counted, or its step is skipped and counted; and
         the run ends with finite weights.
"""

import argparse
import collections
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# As in the tests, programs this small gain nothing from LLVM's optimisation passes.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs.base import get_config
from rm_jax import RewardModel
from rm_jax.data.report import Report
from rm_jax.heldout.evaluate import evaluate
from rm_jax.storage.files import read_lines
from rm_jax.train import loop
from rm_jax.train.datasets import read_both

TINY = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 640,
  "hidden_size": 32,
  "intermediate_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 512,
  "pad_token_id": 0,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
FIELDS = {
  "model.tokenizer": "world",
  "model.chat_template": "hh",
  "data.train": "world:64",
  "data.heldout": "world:24",
  "data.batch_groups": 8,
  "optimizer.learning_rate": 1e-3,
  "optimizer.decay_steps": 24,
  "train.log_every": 1,
  "train.eval_every": 6,
  "train.checkpoint_every": 3,
  "train.keep": 2,
}


class Heard(logging.Handler):
  """Collects the warnings of rm_jax; `take` returns those since it was last called."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.lines: list[str] = []

  def emit(self, record):
    self.lines.append(record.getMessage())

  def take(self) -> str:
    lines, self.lines = self.lines, []
    return "\n".join(lines)


def config_of(folder: Path, steps: int, **fields: Any) -> Any:
  """The study's config with some fields changed; a dot in a field's name is written `__`."""
  config = get_config()
  changes = {name.replace("__", "."): value for name, value in fields.items()}
  flat = FIELDS | {"model.config": str(folder / "tiny.json"), "train.steps": steps} | changes
  config.update_from_flattened_dict(flat)
  return config


_TREES: dict[str, Any] = {}  # 'params' and 'train' -> Orbax's metadata of their arrays


def contents(workdir: Path) -> dict[str, bytes]:
  """A run's state by name: metrics.jsonl, and the position and arrays of the latest checkpoint."""
  steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
  latest = (workdir / "checkpoints" / str(max(steps))).absolute()
  out = {"metrics.jsonl": (workdir / "metrics.jsonl").read_bytes()}
  out["position"] = (latest / "position" / "metadata").read_bytes()
  reader = ocp.PyTreeCheckpointer()
  for item in ("params", "train"):
    # Asked of the first checkpoint only, which is undamaged: all of the study have the same arrays.
    # Of one whose file of shardings is damaged, which a run does not need, Orbax knows none.
    if item not in _TREES:
      found = reader.metadata(str(latest / item))
      found = getattr(found, "item_metadata", found)
      _TREES[item] = getattr(found, "tree", found)
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _TREES[item])
    arrays = reader.restore(str(latest / item), restore_args=plain)
    for path, array in jax.tree_util.tree_flatten_with_path(arrays)[0]:
      out[item + jax.tree_util.keystr(path)] = np.asarray(array).tobytes()
  return out


def other(one: dict[str, bytes], two: dict[str, bytes]) -> str:
  """The names in which two runs' contents differ, as a message; '' if they are equal."""
  names = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
  return f"{len(names)} differ: {names[:3]}" if names else ""


def command(folder: Path, workdir: Path, steps: int) -> list[str]:
  """The command that trains with the study's config."""
  flat = FIELDS | {"model.config": str(folder / "tiny.json"), "train.steps": steps}
  flags = [f"--config.{name}={value}" for name, value in flat.items()]
  base = ["--config=configs/base.py", f"--workdir={workdir}"]
  return [sys.executable, "-m", "experiments.train", *base, *flags]


def kills(folder: Path, count: int, draw: random.Random) -> list[tuple[str, str]]:
  """Kills runs: (what was done; what is wrong, or '') for each kill and each finished run."""
  steps = 24
  whole, workdir = folder / "whole", folder / "killed"
  began = time.monotonic()
  subprocess.run(command(folder, whole, steps), capture_output=True, check=True)
  seconds = time.monotonic() - began
  expected = contents(whole)
  out = []

  def finish(what: str) -> None:
    done = subprocess.run(command(folder, workdir, steps), capture_output=True, text=True)
    problem = done.stderr[-300:] if done.returncode else other(expected, contents(workdir))
    out.append((what, problem))
    shutil.rmtree(workdir)

  for n in range(count):
    # One kill in three is at any moment, start-up included. The others are shortly after the run
    # has written a line of metrics, so that they hit a step, a save or an evaluation.
    path = workdir / "metrics.jsonl"
    size = path.stat().st_size if path.exists() else 0
    process = subprocess.Popen(
      command(folder, workdir, steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if n % 3 == 0:
      time.sleep(draw.uniform(0, seconds))
      moment = "at any moment"
    else:
      more = draw.randint(1, 2000)
      while process.poll() is None and not (path.exists() and path.stat().st_size > size + more):
        time.sleep(0.002)
      time.sleep(draw.uniform(0, 0.1))
      moment = "while it ran"
    ended = process.poll()
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = read_lines(path)
    at = f"after {lines[-1]['step']} steps" if lines else "before its first line"
    wrong = f"exit {ended}" if ended else ""
    out.append((f"kill {n} {moment}, {at}{', done' if ended == 0 else ''}", wrong))
    if ended is not None or n % 4 == 3 or n == count - 1:
      finish(f"  run again after kill {n}")
  return out


def served(workdir: Path, examples: list) -> tuple[dict[str, np.ndarray], float]:
  """(parameters by path, held-out loss) of the model that is loaded from a workdir."""
  model = RewardModel.from_pretrained(workdir)
  groups, kept = model.text_model.tokenise(examples, Report())
  report = evaluate(model.score_groups(groups), kept).report
  flat = jax.tree_util.tree_flatten_with_path(jax.device_get(model.params))[0]
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in flat}, report["loss"]


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
  """Whether two sets of parameters are equal bit for bit."""
  return one.keys() == two.keys() and all(one[p].tobytes() == two[p].tobytes() for p in one)


def flips(folder: Path, count: int, draw: random.Random, heard: Heard) -> list[tuple[str, str]]:
  """Flips bits: (what was flipped and how it ended; what is wrong, or '') for each."""
  examples = read_both(config_of(folder, 12), Report())[1]
  whole, models = {}, {}
  for steps in (9, 12, 15):
    loop.train(config_of(folder, steps), folder / f"whole{steps}")
    whole[steps] = contents(folder / f"whole{steps}")
    models[steps], _ = served(folder / f"whole{steps}", examples)
  out = []
  for n in range(count):
    workdir = folder / "flipped"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(folder / "whole12", workdir)
    paths = [p for p in (workdir / "checkpoints").rglob("*") if p.is_file() and p.stat().st_size]
    # In turn, a byte is drawn from all bytes, which are nearly all weights, or from a file drawn
    # from all files, few of which hold weights.
    sizes = [p.stat().st_size if n % 2 else 1 for p in sorted(paths)]
    path = draw.choices(sorted(paths), sizes)[0]
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    steps = draw.choice((12, 15))
    what = f"flip {n} in {path.relative_to(workdir / 'checkpoints')}, byte {at}, on to {steps}"
    wrong = []
    heard.take()
    try:
      found, _ = served(workdir, examples)
      said = heard.take()
      if not same(found, models[12]) and not (same(found, models[9]) and "OF STEP 9" in said):
        wrong.append(f"serves neither step 12, nor 9 with a warning: {said[:200]}")
      summary = loop.train(config_of(folder, steps), workdir)
      passed = "passed over" in heard.take()
      what += ": passed over" if passed else ": harmless"
      if summary["train"]["steps"] != steps or not (workdir / f"checkpoints/{steps}").is_dir():
        wrong.append(f"is at {summary['train']['steps']} and not {steps}, or has not saved it")
      # The resumed run has evaluated at step 12, where it ended before, and has that line in its
      # metrics; a run that went to 15 at once does not.
      names = {"metrics.jsonl", "position"} if steps == 15 and not passed else {"position"}
      mine = contents(workdir)
      if problem := other(
        *({k: v for k, v in x.items() if k not in names} for x in (mine, whole[steps]))
      ):
        wrong.append(problem)
      found, loss = served(workdir, examples)
      if not same(found, models[steps]) or heard.take():
        wrong.append("what is served is not the last step, or is warned of")
      told = json.loads((workdir / "summary.json").read_text())["heldout"]["loss"]
      if abs(told - loss) > 1e-6:
        wrong.append(f"summary.json tells of loss {told}, what is served has {loss}")
    except Exception as error:
      wrong.append(f"{type(error).__name__}: {str(error)[:300]}")
    out.append((what, "; ".join(wrong)))
  return out


def _pair(i: int) -> dict[str, Any]:
  return {"prompt": f"q {i} ", "chosen": "the cat sat", "rejected": f"a dog ran {i}"}


def _rating(i: int) -> dict[str, Any]:
  return {"prompt": f"q {i} ", "response": f"the cat sat {i}", "score": i % 5}


def _outcome(i: int) -> dict[str, Any]:
  return {"prompt": f"q {i} ", "response": f"the cat sat {i}", "label": bool(i % 2)}


NAN, INF = float("nan"), float("inf")
# (function that makes a row, fields that poison it, fields of the config)
POISON = (
  (_pair, {"margin": 1e39}, {}),
  (_pair, {"margin": -1e39}, {}),
  (_pair, {"margin": NAN}, {}),
  (_pair, {"margin": INF}, {}),
  (_pair, {"margin": 1e30}, {"loss__pair": "squared_hinge"}),
  (_pair, {"margin": 3e38}, {"loss__pair": "exponential"}),
  (_pair, {"margin": 1e39}, {"loss__pair": "hinge", "optimizer__name": "sgd"}),
  (_pair, {"margin": 1e39}, {"loss__decorrelation": 0.1}),
  (_pair, {"margin": 1e39}, {"model__members": 2}),
  (_pair, {"weight": 1e39}, {}),
  (_pair, {"weight": 1e38}, {}),
  (_pair, {"weight": NAN}, {}),
  (_pair, {"weight": -1.0}, {}),
  (_pair, {"preference": NAN}, {}),
  (_pair, {"preference": 7.0}, {}),
  (_rating, {"score": 1e39}, {}),
  (_rating, {"score": 1e30}, {}),
  (_rating, {"score": NAN}, {}),
  (_rating, {"score": -INF}, {"loss__score": "huber"}),
  (_rating, {"score": 9}, {"loss__score": "ordinal(classes=5)"}),
  (_outcome, {"label": NAN}, {}),
  (_outcome, {"label": 1e39}, {}),
)


def rows(folder: Path, count: int, draw: random.Random) -> list[tuple[str, str]]:
  """Poisons rows: (what was wrong with a row and how it ended; what is wrong with that, or '')."""
  chosen = [POISON[0], *draw.sample(POISON[1:], min(count, len(POISON)) - 1)][:count]
  out = []
  for make, fields, losses in chosen:
    made = [make(i) for i in range(48)]
    made[draw.randrange(48)] |= fields
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    workdir = folder / "poisoned"
    shutil.rmtree(workdir, ignore_errors=True)
    what, wrong = f"row {fields} {losses or ''}", ""
    config = config_of(folder, 12, data__train=str(path), data__heldout="0", **losses)
    config.train.checkpoint_every = 3
    try:
      summary = loop.train(config, workdir)
      # The run is resumed once: a metrics window with skipped steps must not make that fail.
      config.train.steps = 15
      summary = loop.train(config, workdir)
      skipped, dropped = summary["train"]["skipped_steps"], summary["data"]["dropped"]
      what += f": finished, {skipped} skipped, dropped {dropped or 'none'}"
      found = RewardModel.from_pretrained(workdir)
      if not all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(found.params))):
        wrong = "the weights are not finite"
      if len(read_lines(workdir / "metrics.jsonl")) != 15:
        wrong = "metrics.jsonl lacks lines"
      # A huge weight that float32 can hold is used as given, with a warning.
      if not skipped and not dropped and fields != {"weight": 1e38}:
        wrong = "neither skipped nor dropped"
    except (ValueError, OSError) as error:
      what += f": refused, {str(error)[:100]!r}"
      if workdir.exists():
        wrong = "refused after the folder was claimed"
    except Exception as error:
      wrong = f"{type(error).__name__}: {str(error)[:300]}"
    out.append((what, wrong))
  return out


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kills", type=int, default=15)
  parser.add_argument("--flips", type=int, default=80)
  parser.add_argument("--rows", type=int, default=15)
  parser.add_argument("--folder", type=Path, help="for what it makes; default one that goes again")
  given = parser.parse_args()
  folder = given.folder or Path(tempfile.mkdtemp(prefix="rm_jax_damage_"))
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "tiny.json").write_text(json.dumps(TINY))
  cache = os.environ.setdefault("RM_JAX_CACHE", str(folder / "cache"))
  jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  heard = Heard()
  logging.getLogger("rm_jax").addHandler(heard)
  draw = random.Random(given.seed)
  parts = {
    "kill": (given.kills, lambda: kills(folder, given.kills, draw)),
    "flip": (given.flips, lambda: flips(folder, given.flips, draw, heard)),
    "row": (given.rows, lambda: rows(folder, given.rows, draw)),
  }
  table, failed = [], 0
  for name, (count, run) in parts.items():
    if not count:
      continue
    began = time.monotonic()
    found = run()
    for what, wrong in found:
      print(f"{'FAILED ' if wrong else 'ok     '}{what}{': ' + wrong if wrong else ''}", flush=True)
    bad = sum(bool(wrong) for _, wrong in found)
    ends = collections.Counter(
      next((e for e in ("passed over", "harmless", "refused", "finished") if e in what), "as one")
      for what, wrong in found
      if not wrong
    )
    table.append((name, len(found), bad, dict(ends), time.monotonic() - began))
    failed += bad
  print("\n| damage | tried | failed | ended | s |\n|---|---|---|---|---|")
  for name, tried, bad, ends, seconds in table:
    text = ", ".join(f"{key} {n}" for key, n in sorted(ends.items()))
    print(f"| {name} | {tried} | {bad} | {text} | {seconds:.0f} |")
  if given.folder is None:
    shutil.rmtree(folder, ignore_errors=True)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
