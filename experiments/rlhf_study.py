"""A study of RLHF chains: its runs, and their table over seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments.study import group_of, mean_interval, run_each
from rm_jax.audit.plots import COLOURS, GREY
from rm_jax.errors import InputError
from rm_jax.pretrained.source import read_json
from rm_jax.rlhf import chain, fields
from rm_jax.storage import pictures
from rm_jax.storage.files import write_atomically, write_json
from rm_jax.train.loop import NotFiniteError

# Columns of the table: title -> keys of a summary. The truth of a chain on prompts of one's own is
# not known, and the gold model's figures stand in its place.
COLUMNS = {
  "proxy, start": ("proxy", "start", "value"),
  "proxy, end": ("proxy", "end", "value"),
  "{truth}, start": ("{truth}", "start", "value"),
  "{truth}, peak": ("{truth}", "peak", "value"),
  "{truth}, end": ("{truth}", "end", "value"),
  "fall from the peak": ("{truth}", "fall", "value"),
  "KL, end": ("kl", "value"),
  "Gao's α": ("{truth}", "fit", "alpha", "value"),
  "Gao's β": ("{truth}", "fit", "beta", "value"),
}
POINTER = "same_as.json"  # in the folder of a run that is another setting's too: where it is
_LEFT = 3  # seeds of a setting, where nothing says how many


def seeds_of(
  settings: Mapping[str, Any], declared: Mapping[str, int], asked: int
) -> dict[str, int]:
  """Setting -> number of its seeds.

  Args:
    settings: of the study.
    declared: the config file's SEEDS: {setting or group: seeds}; a setting's own number comes
      before its group's.
    asked: for all of them; 0 = as declared.

  Raises:
    InputError: `declared` names no setting or group, or a number is not a whole one above 0.
  """
  known = {group_of(name) for name in settings} | settings.keys()
  for name, count in declared.items():
    if name not in known or not isinstance(count, int) or count < 1:
      raise InputError(
        f"SEEDS has {name!r}: {count!r}; expected a setting or group of sweep(), and a whole "
        "number of at least 1"
      )
  return {
    name: asked or declared.get(name, declared.get(group_of(name), _LEFT)) for name in settings
  }


def config_of(
  base: ml_collections.ConfigDict, name: str, changes: Mapping[str, Any], seed: int
) -> ml_collections.ConfigDict:
  """The config of a run.

  Raises:
    InputError: the setting changes a field that does not exist, or to a value that it may not have.
  """
  config = base.copy_and_resolve_references()
  try:
    config.update_from_flattened_dict({**changes, "seed": seed})
    fields.check(config)
  except (KeyError, AttributeError, TypeError, InputError) as error:
    raise InputError(f"sweep(), {name}: {error}") from error
  return config


def run(
  base: ml_collections.ConfigDict,
  workdir: Path,
  settings: Mapping[str, dict],
  chosen: Mapping[str, dict],
  counts: Mapping[str, int],
) -> None:
  """Runs the chosen settings, a seed of all of them after the other; writes the table.

  A run at which another process is at work is put off until the others are done, so that several
  processes may share a study.

  Args:
    base: the study's config.
    workdir: its folder: SETTING/SEED/ of each run, shared/ of the stages that they share.
    settings: all of the study; the table has those of them that have run.
    chosen: those that are run.
    counts: setting -> seeds.

  Raises:
    InputError: updates of a run were not finite, or another process is still at work on one; the
      others have run and are in the table. As `chain.run`.
  """
  failed, done = {}, set()
  plan = [
    (name, seed, config_of(base, name, changes, seed))
    for seed in range(max(counts[name] for name in chosen))
    for name, changes in chosen.items()
    if seed < counts[name]
  ]
  # A setting that changes nothing against an earlier one has no run of its own, whichever of them
  # are chosen: its folder says where the run is.
  first: dict[str, Path] = {}
  for name, changes in settings.items():
    for seed in range(counts.get(name, 0)):
      folder = workdir / name / str(seed)
      same = config_of(base, name, changes, seed).to_json(sort_keys=True)
      if first.setdefault(same, folder) == folder:
        (folder / POINTER).unlink(missing_ok=True)
  bar = tqdm(total=len(plan), desc="study", unit="run")

  def run_one(one: tuple[str, int, ml_collections.ConfigDict]) -> None:
    name, seed, config = one
    bar.set_postfix_str(f"{name}, seed {seed}")
    folder = workdir / name / str(seed)
    own = first[config.to_json(sort_keys=True)]
    if own != folder:
      folder.mkdir(parents=True, exist_ok=True)
      write_json(folder / POINTER, {"run": str(own.relative_to(workdir))})
    if own not in done:
      try:
        chain.run(config, own, shared=workdir / "shared")
      except NotFiniteError as error:  # a setting may be one at which nothing can be learned
        failed[own] = str(error)
      done.add(own)
    bar.update()
    write_table(workdir, settings)

  in_use = run_each(plan, run_one)
  failed |= {workdir / name / str(seed): str(error) for (name, seed, _), error in in_use}
  bar.close()
  if failed:
    raise InputError(
      f"{workdir}/table.md is written, without {len(failed)} of {len(plan)} runs:\n  "
      + "\n  ".join(dict.fromkeys(failed.values()))
    )


def summaries(workdir: Path, settings: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
  """{setting: {seed: summary}} of all runs of a study that are done."""
  found: dict[str, dict[int, dict[str, Any]]] = {}
  for name in settings:
    for folder in sorted((workdir / name).glob("*"), key=lambda path: path.name.zfill(9)):
      if not folder.name.isdecimal():
        continue
      pointer = folder / POINTER
      at = workdir / read_json(pointer)["run"] if pointer.exists() else folder
      if (at / chain.SUMMARY).exists():
        found.setdefault(name, {})[int(folder.name)] = read_json(at / chain.SUMMARY)
  return found


def tabulate(
  found: Mapping[str, Mapping[int, dict]], settings: Iterable[str]
) -> dict[str, dict[str, dict[str, Any]]]:
  """Figures of all runs.

  Args:
    found: setting -> seed -> summary.
    settings: all of the study, in order.

  Returns:
    {setting: {column: {mean, interval, runs: seed -> value}}}. All but the first setting of a group
    also have to_first, {mean, interval} of the difference, over the seeds that both have. Intervals
    are Student's over seeds, 95 %; None of one seed. And {runs: {count, fell: how many of them fell
    from their peak with the whole interval over prompts, told: of how many it is known, stop: seed
    -> {turn, saved}}}.
  """
  table: dict[str, dict[str, dict[str, Any]]] = {}
  firsts: dict[str, str] = {}
  for name in settings:
    firsts.setdefault(group_of(name), name)
  for name, runs in found.items():
    first = firsts[group_of(name)]
    known = "truth" if all("truth" in summary for summary in runs.values()) else "gold"
    table[name] = {}
    for title, keys in COLUMNS.items():
      keys, title = [key.format(truth=known) for key in keys], title.format(truth=known)
      values = {seed: _value(summary, keys) for seed, summary in runs.items()}
      values = {seed: value for seed, value in values.items() if value is not None}
      if not values:
        continue
      mean, interval = mean_interval(list(values.values()))
      table[name][title] = {"mean": mean, "interval": interval, "runs": values}
      other = table.get(first, {}).get(title, {}).get("runs", {}) if name != first else {}
      if both := [values[seed] - other[seed] for seed in values if seed in other]:
        mean, interval = mean_interval(both)
        table[name][title]["to_first"] = {"mean": mean, "interval": interval}
    falls = [_value(summary, (known, "fall", "falls")) for summary in runs.values()]
    stops = {seed: summary["stop"] for seed, summary in runs.items() if summary.get("stop")}
    table[name]["runs"] = {
      "count": len(runs),
      "fell": sum(bool(fell) for fell in falls),
      "told": sum(fell is not None for fell in falls),
      "stop": {
        seed: {"turn": stop["turn"], "saved": _value(stop, ("saved", "value"))}
        for seed, stop in stops.items()
      },
    }
  return table


def _value(summary: Mapping[str, Any], keys: Sequence[str]) -> Any:
  found: Any = summary
  for key in keys:
    found = found.get(key) if isinstance(found, Mapping) else None
  return found


def as_text(table: Mapping[str, Mapping[str, Any]]) -> str:
  """The table in Markdown, a part for each group."""
  lines = [
    "Means over seeds with 95 % intervals (Student's); of one seed there is none. Fell: runs whose "
    "truth fell from its peak to the end with the whole interval over prompts above 0; the fall "
    "itself is from the highest of many evaluations, and so above 0 by chance, too. Gao's α and "
    "β: d (α − β d) of best-of-n, d (α − β log d) of the others, d = √KL, of each run's truth. "
    "Stop rule: of each seed the turn at which it said stop, and the truth there less that at the "
    "end. Difference: of the truth at the end to the first setting of the group, seed by seed.",
  ]
  groups: dict[str, list[str]] = {}
  for name in table:
    groups.setdefault(group_of(name), []).append(name)
  for group, names in groups.items():
    titles = list(dict.fromkeys(t for name in names for t in table[name] if t != "runs"))
    last = next((t for t in titles if t.endswith("end") and not t.startswith(("proxy", "KL"))), "")
    heads = ["setting", "seeds", *titles, "fell", "stop rule", "difference"]
    lines += ["", f"**{group or 'settings'}**", "", _row(heads), _row(["---"] * len(heads))]
    for name in names:
      one = table[name]
      stops = "; ".join(
        f"{seed}: {stop['turn']}" + ("" if stop["saved"] is None else f" ({stop['saved']:+.3f})")
        for seed, stop in one["runs"]["stop"].items()
      )
      cells = [name.rpartition("/")[2], str(one["runs"]["count"])]
      cells += [_cell(one.get(title), ".3f") for title in titles]
      cells += [f"{one['runs']['fell']} of {one['runs']['told']}", stops]
      cells.append(_cell(one.get(last, {}).get("to_first"), "+.3f"))
      lines.append(_row(cells))
  return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
  return "| " + " | ".join(cells) + " |"


def _cell(figure: Mapping[str, Any] | None, form: str) -> str:
  if not figure:
    return ""
  if figure["interval"] is None:
    return f"{figure['mean']:{form}}"
  low, high = figure["interval"]
  return f"{figure['mean']:{form}} [{low:{form}}, {high:{form}}]"


def write_table(workdir: Path, settings: Mapping[str, Any]) -> None:
  """Writes table.md, table.json and table.png of a study's runs that are done."""
  found = summaries(workdir, settings)
  table = tabulate(found, settings)
  write_atomically(workdir / "table.json", json.dumps(table, indent=2, allow_nan=False) + "\n")
  write_atomically(workdir / "table.md", as_text(table))
  if found:  # until the first run is done there is nothing to draw
    draw(workdir / "table.png", found)


def draw(path: Path, found: Mapping[str, Mapping[int, dict]]) -> None:
  """Writes a PNG: proxy and truth against √KL, a row a group, a thin line a seed."""
  groups: dict[str, list[str]] = {}
  for name in found:
    groups.setdefault(group_of(name), []).append(name)
  figure = pictures.figure(9.6, 3.6 * len(groups))
  grid = figure.subplots(len(groups), 2, squeeze=False)
  colours = (*COLOURS, "#4d9a9a", "#b8860b")
  for row, (group, names) in zip(grid, groups.items(), strict=True):
    for axis, known in zip(row, (("proxy",), ("truth", "gold")), strict=True):
      for i, name in enumerate(names):
        for n, summary in enumerate(found[name].values()):
          points = summary["points"]
          if not (curve := next((k for k in known if k in points[0]), "")):
            continue
          change = np.asarray([point[curve] for point in points]) - points[0][curve]
          label = name.rpartition("/")[2] if n == 0 else None
          axis.plot(
            [point["d"] for point in points],
            change,
            "-",
            lw=1,
            alpha=0.7,
            color=colours[i % len(colours)],
            label=label,
          )
      axis.axhline(0, color=GREY, lw=0.8, ls=":")
      axis.set(xlabel="√KL", ylabel=f"{known[0]}, change", title=group)
    row[1].legend(frameon=False, fontsize=7)
  path.write_bytes(pictures.png(figure, dpi=110))
