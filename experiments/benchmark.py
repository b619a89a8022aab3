r"""Measures the speed of training and scoring.

  python -m experiments.benchmark --config=configs/benchmark.py --output=bench.json \
    --config.model.config=FILE --config.model.tokenizer=DIR --config.data.train=FILE

times scoring, and the training step in several layouts (padded, packed, packed with shared
prompts). The layouts take turns, several each, so that other load on the machine affects all alike.
See configs/benchmark.py.
"""

from absl import flags
from ml_collections import config_flags

from experiments.launch import MESH_HELP, launch, output_file, with_mesh
from rm_jax.speed.benchmark import benchmark, table
from rm_jax.storage.files import write_json

CONFIG = config_flags.DEFINE_config_file("config", None, "The benchmark's config file.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file that gets the figures.")
MESH = flags.DEFINE_string("mesh", "", MESH_HELP)
flags.mark_flags_as_required(["config", "output"])


def main() -> None:
  path = output_file("output", OUTPUT.value)
  report = benchmark(with_mesh(CONFIG.value, MESH.value))
  write_json(path, report)
  print(table(report))


if __name__ == "__main__":
  launch(main)
