"""Trains a reward model: python -m experiments.train --config=configs/NAME.py --workdir=DIR.

Any field of the config can be set, as in --config.optimizer.learning_rate=3e-5. The same command,
given again, resumes a run that was stopped.
"""

from absl import flags
from ml_collections import config_flags

from experiments.launch import MESH_HELP, launch, with_mesh
from rm_jax.heldout.evaluate import summary_table
from rm_jax.parallel.hosts import is_main
from rm_jax.train import loop

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run's files.")
MESH = flags.DEFINE_string("mesh", "", MESH_HELP)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
  summary = loop.train(with_mesh(CONFIG.value, MESH.value), WORKDIR.value)
  if not is_main():
    return
  if summary["heldout"]:
    print(summary_table(summary["heldout"]))
  seconds, memory = summary["train"]["wall_seconds"], summary["train"]["peak_memory_bytes"]
  print(f"{WORKDIR.value}: {seconds:.0f} s, {memory / 2**30:.2f} GiB at most; see report.png")


if __name__ == "__main__":
  launch(main, hosts=True)
