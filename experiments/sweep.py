"""Runs a study: each of its settings with several seeds, then a table with intervals and a plot.

  python -m experiments.sweep --config=configs/NAME.py --workdir=DIR [--seeds=10] [--only=GROUP]

A study is a config file that has, beside `get_config()`:
  sweep() -> {name: {field: value}}: the settings, each the config fields that it changes; a field
    is named by its path, such as 'loss.pair'. The part of a setting's name before the last '/' is
    its group. Each group is a table of its own, whose settings are compared with its first.
  MEASURES, optional: the figures of the held-out report that the tables have, such as
    'kendall.value'; by default accuracy, or the loss where reports have no accuracy. Other parts of
    summary.json are named too: 'validation.accuracy', 'train.wall_seconds'. The table of a group
    whose reports all lack a figure has no column for it, and neither has any table for a figure
    that no report has.
  SPLIT_BY_SEED, optional: True holds out other conversations with every seed. Otherwise, where
    data.heldout is a fraction, all runs hold out the same ones.
  pools(), optional -> {name: (setting, shifted data)}: ensembles, whose members are the runs of one
    setting, one for each seed.

Runs that are complete are not run again, so that the same command resumes a study, and seeds or
settings can be added. Several processes may share a study, such as one for each of its groups: what
another one is at work on is put off until the rest is done, and told at the end if it is still at
work then; the table is then without that setting. Settings with equal configs, in one group or
several, have one run, in the folder of the first, whichever of them are chosen. A run that cannot
be learned (its updates are not finite) is reported at the end, and the others go on. If the folder
holds a run of another config, the command stops with an error. Settings with the same frozen layers
(model.frozen_layers) and data, one after another, run these layers once: the wall time of the first
has it, that of the others does not.
Intervals are over seeds; with --seeds=1 they are those of the single run's own report.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from experiments.launch import MESH_HELP, launch, with_mesh
from experiments.study import chosen, group_of, mean_interval, run_each, settings_of
from rm_jax.api import RewardModel
from rm_jax.errors import InputError
from rm_jax.heldout import figures
from rm_jax.heldout.evaluate import evaluate, summary_table
from rm_jax.heldout.shift import separation
from rm_jax.pretrained.source import read_json
from rm_jax.reward.score import KeptFeatures
from rm_jax.reward.setup import build_model
from rm_jax.storage.files import write_atomically, write_json
from rm_jax.train import loop
from rm_jax.train.datasets import load_data, load_shifted
from rm_jax.train.fields import check_fields
from rm_jax.workdir.folder import differences, resolve

log = logging.getLogger(__name__)

CONFIG = config_flags.DEFINE_config_file("config", None, "The study's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, the table and the plot.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each setting: 0, 1, ...", lower_bound=1)
MEASURES = flags.DEFINE_list("measures", None, "Held-out figures; default the config's MEASURES.")
ONLY = flags.DEFINE_list("only", None, "Groups or settings to run; default all.")
MESH = flags.DEFINE_string("mesh", "", MESH_HELP)
flags.mark_flags_as_required(["config", "workdir"])


@dataclasses.dataclass(frozen=True)
class Study:
  """What a study's config file says beside its config.

  Attributes:
    settings: {name of a setting: {field: value}}.
    measures: figures of the held-out report, such as 'kendall.value'; () = the one that `usual`
      chooses.
    pools: {name of an ensemble: (setting, shifted data, as the config field data.shifted has it)}.
    split_by_seed: whether every seed holds out other conversations.
  """

  settings: dict[str, dict]
  measures: tuple[str, ...]
  pools: dict[str, tuple[str, str]]
  split_by_seed: bool


def study_of(path: str) -> Study:
  """Reads `sweep()`, `MEASURES`, `pools()` and `SPLIT_BY_SEED` of a config file.

  Args:
    path: of the file; what follows a ':' is the argument of its `get_config` (as --config has it).

  Raises:
    InputError: the file has no sweep(); sweep() is empty; sweep(), MEASURES or pools() is of
      another form; pools() names a setting that sweep() lacks; or there are pools() and
      SPLIT_BY_SEED is true.
  """
  path = path.partition(":")[0]
  study, settings = settings_of(path)
  pools = study.pools() if hasattr(study, "pools") else {}
  if not isinstance(pools, Mapping) or not all(
    isinstance(pool, list | tuple) and [type(part) for part in pool] == [str, str]
    for pool in pools.values()
  ):
    raise InputError(
      f"{path}: pools() returned {pools!r:.200}; expected {{name: (setting, shifted data)}}"
    )
  for name, (setting, _) in pools.items():
    if setting not in settings:
      raise InputError(f"{path}: pool {name!r} is of {setting!r}, which sweep() does not have")
  measures = getattr(study, "MEASURES", ())
  if not isinstance(measures, list | tuple):
    raise InputError(f"{path}: MEASURES is {measures!r}; expected a tuple of names")
  split_by_seed = getattr(study, "SPLIT_BY_SEED", False)
  if split_by_seed and pools:
    raise InputError(
      f"{path}: SPLIT_BY_SEED is set and there are pools(), whose members would be evaluated on "
      "one another's training data; expected one of the two"
    )
  return Study(settings, tuple(measures), dict(pools), split_by_seed)


def pool(config: ml_collections.ConfigDict, folders: Sequence[Path], shifted: str) -> dict:
  """Evaluates runs as the members of one ensemble, on the held-out data that they share.

  Args:
    config: the config of the runs, with the seed of the first.
    folders: the runs' workdirs.
    shifted: data unlike the training data, as the config field data.shifted has it.

  Returns:
    the held-out report of the members' mean score, with 'shift' (what
    `rm_jax.heldout.shift.separation` returns) and 'members', the number of members.

  Raises:
    ValueError, OSError: the data or a run cannot be read or used, or no data are held out.
  """
  config = apply(config, {"data.shifted": shifted}, config.seed)
  model = build_model(config)
  _, heldout, _, _ = load_data(config, model)
  datasets = heldout, load_shifted(config, model, heldout)
  members = [RewardModel.from_pretrained(folder) for folder in folders]
  by_member = [[m.score_groups(data.groups) for m in members] for data in datasets]
  scores = [[np.stack(group) for group in zip(*one, strict=True)] for one in by_member]
  mean = [group.mean(axis=0) for group in scores[0]]
  report = evaluate(mean, heldout.examples).report
  return report | {"shift": separation(scores, datasets), "members": len(folders)}


def apply(
  config: ml_collections.ConfigDict, changes: dict, seed: int, *, split_by_seed: bool = False
) -> ml_collections.ConfigDict:
  """A copy of a config with another seed and some of its fields changed, by their dotted names.

  Args:
    config: the study's.
    changes: field -> value.
    seed: of the run.
    split_by_seed: whether every seed holds out other conversations.

  Raises:
    InputError: there is no such field, or a value is of another type.
  """
  base = config.seed
  config = config.copy_and_resolve_references()
  try:
    config.update_from_flattened_dict({**changes, "seed": seed})
  except (KeyError, AttributeError, TypeError) as error:
    raise InputError(f"sweep(): {changes}: {error}") from error
  # If each seed had its own split, a run would train on most of what another one holds out: their
  # figures would be of different data, and an ensemble of them would be evaluated on its members'
  # training data.
  if config.data.split_seed < 0 and _is_fraction(config.data.heldout) and not split_by_seed:
    config.data.split_seed = base
  return config


def _is_fraction(heldout: str) -> bool:
  try:
    return float(heldout) > 0
  except ValueError:
    return False


def check_done(plan: Sequence[tuple[str, int, ml_collections.ConfigDict]], workdir: Path) -> None:
  """Checks that the runs that a sweep's folder holds already have the configs that it asks for.

  Args:
    plan: (setting, seed, config) of each run of the sweep.
    workdir: the sweep's folder.

  Raises:
    InputError: a run has another config, so that the table would mix figures of different configs.
  """
  for name, seed, config in plan:
    folder = workdir / name / str(seed)
    if not (folder / "config.json").exists():
      continue
    there = read_json(folder / "config.json")
    found = differences(there, config)
    if not found and (folder / "summary.json").exists():
      # In the config.json of a run, fields such as train.steps were filled in from the number of
      # groups in the data. Fill them in here for the same number, to compare them, too.
      groups = read_json(folder / "summary.json").get("data", {}).get("train")
      found = differences(there, resolve(config, groups, folder)) if groups else []
    if found:
      raise InputError(
        f"{folder} holds a run of another config, and one table would mix them:\n  "
        + "\n  ".join(found)
        + "\ngive another --workdir, or the same config"
      )


def _holder(summary: dict, measure: str) -> dict:
  """The part of summary.json that a measure is looked up in: the held-out report, or all of it."""
  heldout = summary.get("heldout") or {}
  return heldout if figures.look_up(heldout, measure) else summary


def figure_of(summary: dict, measure: str) -> float | None:
  """The number of a run's summary with a name such as 'kendall.value'; None if missing."""
  return figures.number(_holder(summary, measure), measure)


def usual(runs: dict[str, list[dict]]) -> tuple[str]:
  """The figure of tables if none is named: accuracy, or the loss if no report has an accuracy."""
  some = any(figure_of(x, "accuracy") is not None for xs in runs.values() for x in xs)
  return ("accuracy",) if some else ("loss",)


Table = dict[str, dict[str, dict[str, dict]]]


def tabulate(runs: dict[str, list[dict]], measures: Sequence[str]) -> Table:
  """Figures of all runs, {group: {measure: {setting: figures}}}.

  Args:
    runs: setting -> the summary of each seed.
    measures: names of figures, as `figure_of` takes them.

  Returns:
    for each setting {mean, interval, runs: the figure of each seed}; for all but the first of its
    group also to_first: {difference, interval}, its mean minus that of the first, paired by seed.
    Intervals are Student's, 95 %. With one seed `interval` is the one in the run's own report, None
    where there is none, and a difference has none.

  Raises:
    InputError: some runs of a group have a figure that others lack, or no run has it as a number.
  """
  table: Table = {}
  for measure in measures:
    for group, settings in find(runs, measure).items():
      made = _compare(settings)
      for name, one in made.items():
        if len(runs[name]) == 1:
          found = figures.interval(_holder(runs[name][0], measure), measure)
          one["interval"] = list(found) if found else None
      table.setdefault(group, {})[measure] = made
  return table


def find(runs: dict[str, list[dict]], measure: str) -> dict[str, dict[str, list[float]]]:
  """A figure of all runs, {group: {setting: values}}, of the groups that have it.

  Arguments and errors are those of `tabulate`.
  """
  found: dict[str, dict[str, list]] = {}
  for name, summaries in runs.items():
    values = [figure_of(summary, measure) for summary in summaries]
    found.setdefault(group_of(name), {})[name] = values
  out = {}
  for group, settings in found.items():
    missing = [name for name, values in settings.items() if None in values]
    if missing and any(v is not None for values in settings.values() for v in values):
      raise InputError(f"{measure!r} is not in all reports of {', '.join(missing)}")
    if not missing:
      out[group] = settings
  if not out:
    first = next(iter(runs.values()))[0]
    known = ", ".join(figures.names(first.get("heldout") or {}))
    raise InputError(
      f"{measure!r} is a number in no report; they have {known or 'none: nothing was held out'}. "
      "The runs that are done stay: the same command with other --measures=NAME,... goes on"
    )
  return out


def known_measures(
  runs: dict[str, list[dict]], measures: Sequence[str], *, asked: bool
) -> tuple[str, ...]:
  """The measures that reports have.

  Args:
    runs, measures: as `tabulate` takes them.
    asked: whether these were asked for. If not, they are those of the config file, which may be of
      parts that other data do not have, and one that no report has is left out, with a warning.

  Raises:
    InputError: as `tabulate`.
  """
  kept = []
  for measure in measures:
    if not asked and all(figure_of(x, measure) is None for xs in runs.values() for x in xs):
      log.warning("no report has the figure %s: the table has no column for it", measure)
      continue
    find(runs, measure)
    kept.append(measure)
  return tuple(kept)


def _compare(settings: dict[str, list[float]]) -> dict[str, dict]:
  base = next(iter(settings.values()))
  out = {}
  for name, values in settings.items():
    mean, interval = mean_interval(values)
    out[name] = {"mean": mean, "interval": interval, "runs": values}
    if values is not base:
      difference, interval = mean_interval([v - b for v, b in zip(values, base, strict=True)])
      out[name]["to_first"] = {"difference": difference, "interval": interval}
  return out


def as_text(table: Table, seeds: int) -> str:
  """The tables in Markdown."""
  over = (
    f"mean of {seeds} seeds with its 95 % interval (Student's)"
    if seeds > 1
    else "one seed; an interval is that of the run's own report, over conversations"
  )
  lines = [f"Held-out figures, {over}; differences are to the first of the table, seed by seed."]
  for group, measures in table.items():
    lines += ["", f"**{group}**" if group else "**settings**", ""]
    lines.append("| setting |" + "".join(f" {m} | difference |" for m in measures))
    lines.append("|---|" + "---|---|" * len(measures))
    for name in next(iter(measures.values())):
      cells = [name.rpartition("/")[2]]
      for settings in measures.values():
        one = settings[name]
        cells.append(_cell(one["mean"], one["interval"], ".4f"))
        to_first = one.get("to_first")
        cells.append(_cell(*to_first.values(), "+.4f") if to_first else "")
      lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _cell(value: float, interval: Sequence[float] | None, form: str) -> str:
  if abs(value) >= 1000:  # bytes, tokens, seconds
    form = form.replace(".4f", ",.0f")
  if interval is None:
    return f"{value:{form}}"
  low, high = interval
  return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def draw(path: Path, table: Table) -> None:
  """Writes a PNG of each setting's runs, mean and interval: a row a group, a plot a measure."""
  from rm_jax.storage import pictures as drawing

  columns = max(len(measures) for measures in table.values())
  heights = [0.8 + 0.35 * len(next(iter(measures.values()))) for measures in table.values()]
  figure = drawing.figure(3.5 + 3.2 * columns, 0.4 + sum(heights))
  axes = figure.subplots(len(table), columns, squeeze=False, height_ratios=heights)
  for row, (group, measures) in zip(axes, table.items(), strict=True):
    for axis in row[len(measures) :]:
      axis.set_axis_off()
    for column, (axis, (measure, settings)) in enumerate(zip(row, measures.items(), strict=False)):
      for y, one in enumerate(settings.values()):
        axis.plot(one["runs"], [y] * len(one["runs"]), ".", color="#999999", markersize=4)
        if one["interval"]:
          axis.plot(one["interval"], [y, y], color="#2563a8", lw=2)
        axis.plot([one["mean"]], [y], "o", color="#2563a8")
      names = [name.rpartition("/")[2] for name in settings] if column == 0 else []
      axis.set(yticks=range(len(settings)) if names else [], xlabel=f"held-out {measure}")
      axis.set_yticklabels(names)
      axis.set_title(group if column == 0 else "", loc="left", fontsize=10)
      axis.set_ylim(len(settings) - 0.5, -0.5)
  path.write_bytes(drawing.png(figure, dpi=110))


def main() -> None:
  study = study_of(config_flags.get_config_filename(flags.FLAGS["config"]))
  settings = chosen(study.settings, ONLY.value)
  workdir = Path(WORKDIR.value)
  base = with_mesh(CONFIG.value, MESH.value)
  # All configs are made and checked before the first run, so that a mistake is found at once.
  plan = [
    (name, seed, apply(base, changes, seed, split_by_seed=study.split_by_seed))
    for seed in range(SEEDS.value)
    for name, changes in settings.items()
  ]
  for name, _, config in plan[: len(settings)]:  # of one seed: the checks do not depend on it
    try:
      check_fields(config)
    except InputError as error:
      raise InputError(f"sweep(), {name}: {error}") from error
  check_done(plan, workdir)
  measures = MEASURES.value or study.measures
  runs: dict[str, dict[int, dict]] = {name: {} for name in settings}  # summaries by seed
  bar = tqdm(total=len(plan), desc="sweep", unit="run")
  # A setting that changes nothing against another one, whichever of them are chosen, is not run a
  # second time: its figures are those of the first.
  first: dict[str, Path] = {}
  for seed in range(SEEDS.value):
    for name, changes in study.settings.items():
      config = apply(base, changes, seed, split_by_seed=study.split_by_seed)
      first.setdefault(config.to_json(sort_keys=True), workdir / name / str(seed))
  kept = KeptFeatures()
  failed: dict[str, str] = {}
  places: dict[str, dict[int, Path]] = {name: {} for name in settings}  # of runs, by seed

  def run_one(one: tuple[str, int, ml_collections.ConfigDict]) -> None:
    nonlocal measures
    name, seed, config = one
    bar.set_postfix_str(f"{name}, seed {seed}")
    folder, own = first[config.to_json(sort_keys=True)], workdir / name / str(seed)
    if not (folder / "config.json").exists() and (own / "config.json").exists():
      folder = own  # begun by an earlier version, which looked at the chosen settings alone
    places[name][seed] = folder
    done = folder / "summary.json"
    try:
      runs[name][seed] = read_json(done) if done.exists() else loop.train(config, folder, kept=kept)
    except loop.NotFiniteError as error:  # a setting may be one at which nothing can be learned
      failed[f"{name}, seed {seed}"] = str(error)
    bar.update()
    some = {name: list(summaries.values()) for name, summaries in runs.items() if summaries}
    if some and bar.n == len(settings):
      # Once there are as many runs as settings, and not only at the end.
      measures = known_measures(some, measures, asked=bool(MEASURES.value))

  for (name, seed, _), error in run_each(plan, run_one):
    failed[f"{name}, seed {seed}"] = str(error)
  bar.close()
  ended = {
    name: [summaries[seed] for seed in range(SEEDS.value)]
    for name, summaries in runs.items()
    if len(summaries) == SEEDS.value
  }
  if not ended:
    raise InputError(
      "no setting has all its runs: " + "; ".join(f"{at}: {why}" for at, why in failed.items())
    )
  measures = known_measures(ended, measures, asked=bool(MEASURES.value))
  table = tabulate(ended, measures or usual(ended))
  write_json(workdir / "table.json", table)
  text = as_text(table, SEEDS.value)
  pools = {}
  for name, (setting, shifted) in study.pools.items():
    if setting in ended:
      folders = [places[setting][seed] for seed in range(SEEDS.value)]
      config = apply(base, settings[setting], 0)
      pools[name] = pool(config, folders, shifted)
      text += f"\n**{name}**: {len(folders)} runs of {setting}\n\n{summary_table(pools[name])}\n"
  if pools:
    write_json(workdir / "pools.json", pools)
  write_atomically(workdir / "table.md", text)
  draw(workdir / "table.png", table)
  print(text)
  if failed:
    raise InputError(
      f"{workdir}/table.md is written, without the settings of which a run is missing:\n  "
      + "\n  ".join(f"{at}: {why}" for at, why in failed.items())
    )


if __name__ == "__main__":
  launch(main)
