"""Fine-tunes a policy, trains a reward model on its samples, and optimises it against that.

  python -m experiments.rlhf --config=configs/rlhf_world.py --workdir=DIR

One chain: see docs/policies.md. The same command, given again, goes on with a chain that was
stopped; stages that are done are not run again. Any field of the config can be set, as in
--config.rl.coefficient=0.1.

  python -m experiments.rlhf --config=configs/rlhf_world.py --workdir=DIR --study [--only=GROUP]

A study: the settings of the config file's `sweep()`, each with several seeds (--seeds, or the
file's SEEDS), which share fine-tuning, preferences and reward models; then DIR/table.md, table.json
and table.png of all of them that are done.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import rlhf_study
from experiments.launch import MESH_HELP, launch, with_mesh
from experiments.study import chosen, settings_of
from rm_jax.rlhf import chain, report

CONFIG = config_flags.DEFINE_config_file("config", None, "The chain's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the chain's, or the study's, files.")
STUDY = flags.DEFINE_bool("study", False, "Run the settings of the config file's sweep().")
ONLY = flags.DEFINE_list("only", None, "Of a study: groups or settings to run; default all.")
SEEDS = flags.DEFINE_integer(
  "seeds",
  0,
  "Of a study: seeds of each setting: 0, 1, ...; 0 = the config file's SEEDS, else 3.",
  0,
)
MESH = flags.DEFINE_string("mesh", "", MESH_HELP)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
  config, workdir = with_mesh(CONFIG.value, MESH.value), Path(WORKDIR.value)
  if not (STUDY.value or ONLY.value or SEEDS.value):
    summary = chain.run(config, workdir)
    print(report.sentence(summary))
    print(f"{workdir}: {sum(summary['seconds'].values()):.0f} s; see report.png")
    return
  path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
  module, settings = settings_of(path)
  counts = rlhf_study.seeds_of(settings, getattr(module, "SEEDS", {}), SEEDS.value)
  rlhf_study.run(config, workdir, settings, chosen(settings, ONLY.value), counts)
  print((workdir / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
  launch(main)
