"""Updates and samples a second of GRPO here and by TRL's GRPOTrainer, in turns.

  python -m tests.studies.grpo_speed --trl=PYTHON --prompts=FILE --model=config.json

runs both on prompts of FILE (rows with `prompt`: strings, or conversations) with random weights of
a Hugging Face architecture, one saved folder for both. PYTHON is that of an environment with TRL
(`pip install torch 'trl==1.16.0'`). A step samples some completions to some prompts, computes the
reference's log-probabilities and takes one update. This side goes through the prompts once before
it is timed, so that all shapes are compiled; of TRL the first step is left out. The two take turns,
so that a slow minute of the machine falls on both.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from configs import base
from tests.studies.dpo_speed import ROOT, in_turns, rows_of, save_model


def letters(rows: list[dict]) -> list[float]:
  """The reward: the share of the letter e, as of the peer."""
  return [row["response"].count("e") / max(len(row["response"]), 1) for row in rows]


def ours(flags: argparse.Namespace) -> None:
  """Prints a line of JSON as grpo_speed.py of TRL does."""
  import jax

  from rm_jax.parallel.mesh import make_mesh
  from rm_jax.policy.optimise import Optimisation, grpo
  from rm_jax.policy.text import Policy
  from rm_jax.policy.update import start
  from rm_jax.reward.setup import build_model, init_params
  from rm_jax.train.optimizer import make_optimizer, make_schedule

  c = base.get_config()
  c.model.pretrained = flags.folder + "/model"
  c.model.reward, c.model.reference = "implicit", "none"
  c.model.dtype = flags.dtype
  c.optimizer.learning_rate, c.optimizer.schedule = 1e-5, "constant"
  c.optimizer.warmup_steps, c.optimizer.decay_steps = 0, flags.steps + 1
  mesh = make_mesh({"data": 1}, jax.devices()[:1])
  model = build_model(c, mesh)
  params = init_params(model, mesh, jax.random.key(0), training=True)
  optimizer = make_optimizer(c.optimizer, make_schedule(c.optimizer))
  policy = Policy(model)
  prompts = json.loads(Path(flags.folder, "prompts.json").read_text())
  one = Optimisation(
    policy,
    grpo(samples=flags.samples),
    start(params, optimizer, mesh),
    params,
    optimizer,
    policy.sampling(flags.tokens),
    mesh,
    coefficient=0.04,
    longest=max(map(len, policy.prompt_ids(prompts, flags.tokens))),
    cells=flags.cells,
  )
  for _ in range(2):
    lengths, ends = [], []
    for step in range(flags.steps + 1):
      some = prompts[step * flags.batch : (step + 1) * flags.batch]
      rollout, _ = one.turn(some, letters, jax.random.fold_in(jax.random.key(1), step))
      lengths.append(int(rollout.samples.length.sum()))
      ends.append(time.perf_counter())
  found = {
    "steps": flags.steps,
    "samples": flags.steps * flags.batch * flags.samples,
    "tokens": sum(lengths[1:]),
    "seconds": ends[-1] - ends[0],
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  }
  print("\n" + json.dumps(found))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--trl", help="Python of an environment with TRL")
  parser.add_argument("--prompts", help="a file of prompts")
  parser.add_argument("--model", help="a config.json of transformers")
  parser.add_argument("--tokenizer", default="sentence-transformers/all-MiniLM-L6-v2")
  parser.add_argument("--batch", type=int, default=8, help="prompts of a step")
  parser.add_argument("--samples", type=int, default=4, help="completions of a prompt")
  parser.add_argument("--tokens", type=int, default=64, help="of a completion")
  parser.add_argument("--longest", type=int, default=400, help="characters of a prompt, at most")
  parser.add_argument("--steps", type=int, default=5, help="timed steps")
  parser.add_argument("--cells", type=int, default=8192)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--turns", type=int, default=3)
  parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.ours:
    ours(flags)
    return
  count = (flags.steps + 1) * flags.batch
  with tempfile.TemporaryDirectory() as folder:
    save_model(flags.trl, flags.model, flags.tokenizer, folder)
    prompts = [row["prompt"] for row in rows_of(flags.prompts, 4 * count)]
    prompts = [p for p in prompts if len(p) <= flags.longest][:count]
    if len(prompts) < count:
      raise SystemExit(f"{flags.prompts}: {len(prompts)} short prompts; expected {count}")
    Path(f"{folder}/prompts.json").write_text(json.dumps(prompts))
    peer = [str(ROOT / "tests/clients/grpo_speed.py"), f"{folder}/model", f"{folder}/prompts.json"]
    peer += [str(x) for x in (flags.samples, flags.tokens, flags.batch, flags.steps, flags.dtype)]
    own = [sys.executable, "-m", "tests.studies.grpo_speed", *sys.argv[1:], "--ours"]
    commands = {"rm_jax": [*own, f"--folder={folder}"], "TRL": [flags.trl, *peer]}
    in_turns(
      commands,
      flags.turns,
      lambda found: found["steps"] / found["seconds"],
      lambda found: (
        f"{found['steps'] / found['seconds']:.3f} updates/s, "
        f"{found['samples'] / found['seconds']:.2f} samples/s; {found['steps']} steps, "
        f"{found['tokens']} tokens sampled, {found['seconds']:.1f} s"
      ),
    )


if __name__ == "__main__":
  main()
