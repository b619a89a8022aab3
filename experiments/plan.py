r"""Plans a run on devices that need not be there: does it fit in memory, how long does it take?

  python -m experiments.plan --config=configs/qwen3_8b.py --topology=v5e:16x16 --mesh=fsdp=256 \
    --output=plan.json

compiles the real training step for the topology (which needs `pip install -e '.[tpu]'`) and writes
what one chip needs (memory, floating-point operations, bytes of memory traffic, collectives) and a
roofline estimate of the run, which is a lower bound of its time.
"""

import os

import jax
from absl import flags
from ml_collections import config_flags

from experiments.launch import MESH_HELP, check_devices, launch, output_file, output_folder
from rm_jax.speed.plan import plan, table
from rm_jax.storage.files import write_json
from rm_jax.types import KINDS

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
TOPOLOGY = flags.DEFINE_string(
  "topology", "local", "'v5e:16x16', 'v5p:4x4x4' ...; 'local': what is plugged in."
)
SLICES = flags.DEFINE_integer(
  "slices", 1, "Number of such slices, joined by the data centre's network.", 1
)
MESH = flags.DEFINE_string("mesh", "", MESH_HELP)
TOKENS = flags.DEFINE_integer(
  "tokens", 0, "Tokens of a group; 0 = data.max_length, or the longest of data.row_lengths.", 0
)
KIND = flags.DEFINE_enum("kind", "pair", KINDS, "Kind of the feedback.")
RESPONSES = flags.DEFINE_integer("responses", 2, "Responses of a group.", 1)
TEXTS = flags.DEFINE_string("texts", None, "Folder that gets each compiled program's text (HLO).")
OUTPUT = flags.DEFINE_string("output", None, "JSON file that gets the figures.")
flags.mark_flags_as_required(["config", "output"])


def main() -> None:
  path = output_file("output", OUTPUT.value)
  folder = output_folder("texts", TEXTS.value) if TEXTS.value else None
  if TOPOLOGY.value != "local":
    # This process needs no device of its own, but libtpu would look for one.
    jax.config.update("jax_platforms", "cpu")
    # A program compiled for devices that are not there cannot be read back from JAX's cache of
    # compiled programs.
    jax.config.update("jax_enable_compilation_cache", False)
    # Without these variables libtpu asks the cloud's metadata server for their values, and logs
    # many errors where there is none.
    for name, value in {
      "TPU_ACCELERATOR_TYPE": "v5litepod-1",
      "TPU_WORKER_HOSTNAMES": "localhost",
      "TPU_WORKER_ID": "0",
    }.items():
      os.environ.setdefault(name, value)
  else:
    check_devices()
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
  launch(main, devices=False)
