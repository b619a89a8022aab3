"""Plans a run on devices that need not be there: does it fit, and how long does it take at best?

  python -m experiments.plan --config=configs/qwen3_8b.py --topology=v5e:16x16 --mesh=fsdp=256 \\
    --output=plan.json

compiles the real training step for the topology (`pip install -e '.[tpu]'`) and writes memory,
operations, bytes and collectives of a chip, and a roofline estimate of the run.
"""

import os
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from experiments.launch import launch
from rm_jax.speed.plan import plan, table
from rm_jax.storage.files import write_json

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
TOPOLOGY = flags.DEFINE_string(
  "topology", "local", "'v5e:16x16', 'v5p:4x4x4' ...; 'local': what is plugged in."
)
SLICES = flags.DEFINE_integer("slices", 1, "So many of it, joined by the data centre's network.")
MESH = flags.DEFINE_string("mesh", "", "'fsdp=256', 'data=2,fsdp=128'; default: the config's.")
TOKENS = flags.DEFINE_integer("tokens", 0, "Tokens that a group takes; default: data.max_length.")
KIND = flags.DEFINE_string("kind", "pair", "Kind of the feedback.")
RESPONSES = flags.DEFINE_integer("responses", 2, "Responses of a group.")
TEXTS = flags.DEFINE_string("texts", None, "Folder that gets the programs' compiled text.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file that gets the figures.")
flags.mark_flags_as_required(["config", "output"])


def main() -> None:
  path, folder = Path(OUTPUT.value), Path(TEXTS.value) if TEXTS.value else None
  if not path.parent.is_dir():
    raise ValueError(f"--output={path}: there is no folder {path.parent}")
  if folder and not folder.is_dir():
    raise ValueError(f"--texts={folder}: there is no such folder")
  if TOPOLOGY.value != "local":
    # This process needs no device of its own, and libtpu would look for one.
    jax.config.update("jax_platforms", "cpu")
    # What is compiled for devices that are not there cannot be read back from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    # It would look for its machine's name as well, and complain at length where there is none.
    for name, value in {
      "TPU_ACCELERATOR_TYPE": "v5litepod-1",
      "TPU_WORKER_HOSTNAMES": "localhost",
      "TPU_WORKER_ID": "0",
    }.items():
      os.environ.setdefault(name, value)
  report = plan(
    CONFIG.value,
    topology=TOPOLOGY.value,
    mesh=MESH.value,
    slices=SLICES.value,
    tokens=TOKENS.value,
    kind=KIND.value,
    responses=RESPONSES.value,
    folder=folder,
  )
  write_json(path, report)
  print(table(report))


if __name__ == "__main__":
  launch(main)
