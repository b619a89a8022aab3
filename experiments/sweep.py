"""Runs a config's `sweep()` over seeds: a table with intervals, and a plot.

python -m experiments.sweep --config=configs/NAME.py --workdir=DIR [--seeds=10]

`sweep()` beside `get_config()` yields settings: {name: {field: value}}, fields as 'loss.pair'. Runs
that are done are not run again, so that the same command goes on where it stopped, and more seeds
or settings can be added.
"""

import importlib.util
import json
import math
import statistics
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from experiments.launch import launch
from rm_jax.train import loop
from rm_jax.train.writers import write_atomically, write_json

CONFIG = config_flags.DEFINE_config_file("config", None, "The study's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, the table and the plot.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each setting: 0, 1, ...", lower_bound=2)
MEASURE = flags.DEFINE_string("measure", "accuracy", "Which held-out figure, as 'kendall.value'.")
flags.mark_flags_as_required(["config", "workdir"])


def settings_of(path: str) -> dict[str, dict]:
  """What the config file's `sweep()` says.

  Raises:
    ValueError: the file has none, or it is empty.
  """
  spec = importlib.util.spec_from_file_location("study", path)
  study = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(study)
  if not hasattr(study, "sweep"):
    raise ValueError(f"{path}: has no sweep(); write one that returns {{name: {{field: value}}}}")
  settings = dict(study.sweep())
  if not settings:
    raise ValueError(f"{path}: its sweep() is empty")
  return settings


def apply(config: ml_collections.ConfigDict, changes: dict, seed: int) -> ml_collections.ConfigDict:
  """A copy of a config with some of its fields changed, by their dotted names.

  Raises:
    ValueError: there is no such field, or a value is of another type.
  """
  config = config.copy_and_resolve_references()
  try:
    config.update_from_flattened_dict({**changes, "seed": seed})
  except (KeyError, AttributeError, TypeError) as error:
    raise ValueError(f"sweep(): {changes}: {error}") from None
  return config


def figure_of(summary: dict, measure: str) -> float:
  """A figure of a run's held-out report, as 'accuracy' or 'kendall.value'.

  Raises:
    ValueError: it has none of that name.
  """
  value = summary["heldout"]
  for part in measure.split("."):
    if not isinstance(value, dict) or part not in value:
      raise ValueError(f"--measure={measure}: not in the report, which has {sorted(value or ())}")
    value = value[part]
  return float(value)


def mean_interval(values: list[float]) -> tuple[float, float, float]:
  """(mean, low, high): Student's 95 % interval of the mean of two or more runs."""
  from scipy.stats import t  # jax needs scipy; here, since it takes a second to import

  mean, n = statistics.fmean(values), len(values)
  half = t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
  return mean, mean - half, mean + half


def tabulate(figures: dict[str, list[float]]) -> dict[str, dict]:
  """Each setting's mean with its interval, and its difference to the first, seed by seed."""
  base = next(iter(figures.values()))
  table = {}
  for name, values in figures.items():
    mean, low, high = mean_interval(values)
    table[name] = {"mean": mean, "interval": [low, high], "runs": values}
    if values is not base:
      pairs = [v - b for v, b in zip(values, base, strict=True)]
      difference, low, high = mean_interval(pairs)
      table[name]["to_first"] = {"difference": difference, "interval": [low, high]}
  return table


def as_text(table: dict[str, dict], measure: str, seeds: int) -> str:
  """The table in Markdown."""
  lines = [
    f"Held-out {measure}, mean of {seeds} seeds with its 95 % interval; difference to the first "
    "setting, seed by seed.",
    "",
    "| setting | mean | difference |",
    "|---|---|---|",
  ]
  for name, row in table.items():
    low, high = row["interval"]
    difference = ""
    if "to_first" in row:
      a, b = row["to_first"]["interval"]
      difference = f"{row['to_first']['difference']:+.4f} [{a:+.4f}, {b:+.4f}]"
    lines.append(f"| {name} | {row['mean']:.4f} [{low:.4f}, {high:.4f}] | {difference} |")
  return "\n".join(lines) + "\n"


def draw(path: Path, table: dict[str, dict], measure: str) -> None:
  """Each setting's runs, mean and interval."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 1.2 + 0.45 * len(table)), layout="constrained")
  FigureCanvasAgg(figure)
  axis = figure.subplots()
  names = list(table)
  for y, row in enumerate(table.values()):
    axis.plot(row["runs"], [y] * len(row["runs"]), ".", color="#999999", markersize=4)
    low, high = row["interval"]
    axis.plot([low, high], [y, y], color="#2563a8", lw=2)
    axis.plot([row["mean"]], [y], "o", color="#2563a8")
  axis.set(yticks=range(len(names)), yticklabels=names, xlabel=f"held-out {measure}")
  axis.invert_yaxis()
  axis.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, dpi=110)


def main() -> None:
  settings = settings_of(config_flags.get_config_filename(flags.FLAGS["config"]))
  workdir = Path(WORKDIR.value)
  # All configs are made before the first run: a wrong name should not be found after an hour.
  runs = [
    (name, seed, apply(CONFIG.value, changes, seed))
    for seed in range(SEEDS.value)
    for name, changes in settings.items()
  ]
  figures: dict[str, list[float]] = {name: [] for name in settings}
  for name, seed, config in tqdm(runs, desc="sweep", unit="run"):
    folder = workdir / name.replace("/", "_") / str(seed)
    done = folder / "summary.json"
    summary = (
      json.loads(done.read_text(encoding="utf-8")) if done.exists() else loop.train(config, folder)
    )
    figures[name].append(figure_of(summary, MEASURE.value))
  table = tabulate(figures)
  write_json(workdir / "table.json", table)
  text = as_text(table, MEASURE.value, SEEDS.value)
  write_atomically(workdir / "table.md", text)
  draw(workdir / "table.png", table, MEASURE.value)
  print(text)


if __name__ == "__main__":
  launch(main)
