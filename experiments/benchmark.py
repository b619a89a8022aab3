"""Measures the speed of training and scoring.

  python -m experiments.benchmark --config=configs/benchmark.py --output=bench.json \\
    --config.model.config=FILE --config.model.tokenizer=DIR --config.data.train=FILE

times the training step in several layouts, in turns, and scoring. See configs/benchmark.py.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments.launch import launch
from rm_jax.speed.benchmark import benchmark, table
from rm_jax.storage.files import write_json

CONFIG = config_flags.DEFINE_config_file("config", None, "The benchmark's config file.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file that gets the figures.")
flags.mark_flags_as_required(["config", "output"])


def main() -> None:
  path = Path(OUTPUT.value)
  if not path.parent.is_dir():
    raise ValueError(f"--output={path}: there is no folder {path.parent}")
  report = benchmark(CONFIG.value)
  write_json(path, report)
  print(table(report))


if __name__ == "__main__":
  launch(main)
