"""Chooses among several solutions of a problem by process, outcome and implicit rewards and votes.

  python -m experiments.best_of --data=FILE --prm=DIR --orm=DIR2 --implicit=DIR3 --output=FOLDER

writes FOLDER/report.json, report.html and pictures, and prints how often the chosen solution is
right: the highest score, the answer with the most votes, the choice step by step, beside a random
choice, the majority and an oracle. Each of these flags may be given several times, and name its
model: --prm=mine=DIR.

Problems that a run of --prm, --orm or --implicit has learned from are left out.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.launch import COLUMNS_HELP, DTYPES, launch, output_folder
from experiments.run_data import learned
from rm_jax.api import RewardModel
from rm_jax.audit import page
from rm_jax.audit.sections import best_of as section
from rm_jax.data import formats
from rm_jax.data.choose import conversations_in, sampled, without
from rm_jax.data.report import DataError, Report
from rm_jax.errors import InputError
from rm_jax.heldout.best_of import (
  Problem,
  Reading,
  best_of,
  by_score,
  by_steps,
  check_ks,
  problems,
  table,
)
from rm_jax.losses.process import HOW, SO_FAR
from rm_jax.types import Example

DATA = flags.DEFINE_string(
  "data", None, "File, folder or hub id: problems with several solutions, labelled right or wrong."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder that gets the report, the page and pictures.")
KINDS = {
  "prm": "process reward model, read at the end of each step",
  "orm": "outcome reward model (or any other), read at the end of the solution",
  "implicit": "model with an implicit reward, read both ways",
}
MODELS = {
  kind: flags.DEFINE_multi_string(kind, [], f"DIR or NAME=DIR of a {what}; any number of times.")
  for kind, what in KINDS.items()
}
K = flags.DEFINE_list("k", [], "Numbers of candidates, as 1,2,4; '' = 1, 2, 4 .. and all.")
HOW_FLAG = flags.DEFINE_enum(
  "aggregate", "min", HOW, "How a process reward is read in the summary; the table has all ways."
)
STEPS = flags.DEFINE_enum(
  "steps",
  "",
  ("", *SO_FAR),
  "How --prm's scores of steps are read: each by itself ('own'), or of the solution up to the step "
  "('min', 'product'); '' = as saved with the model.",
)
FORMAT = flags.DEFINE_string("format", "auto", "Format of the rows; 'auto' = by their columns.")
COLUMNS = flags.DEFINE_string("columns", "", COLUMNS_HELP)
EXCLUDE = flags.DEFINE_string("exclude", None, "Data whose conversations are left out.")
KEEP_TRAINED = flags.DEFINE_bool(
  "keep_trained", False, "Keep the problems that a run learned from, or chose its checkpoint by."
)
LIMIT = flags.DEFINE_integer("limit", 0, "Problems to take, drawn at random; 0 = all.", 0)
SEED = flags.DEFINE_integer("seed", 0, "Seed of --limit and of the intervals.", 0)
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first bad row.")
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Compute dtype of the backbone.")
CHAT_TEMPLATE = flags.DEFINE_string(
  "chat_template", "", "For messages: 'hh', Jinja text or a file of it; '' = the models' own."
)
flags.mark_flags_as_required(["data", "output"])


class Model(NamedTuple):
  """A model of a flag: its kind (the flag's name), its name in the report, and where it is."""

  kind: str
  name: str
  path: str


def models() -> list[Model]:
  """The models of --prm, --orm and --implicit, in this order.

  Raises:
    InputError: there is none, or two of the same name.
  """
  found = []
  for kind, flag in MODELS.items():
    for given in flag.value:
      name, mark, path = given.partition("=")
      # A path may have '=' itself, as in steps=100/model.
      named = mark and not os.path.exists(given) and "/" not in name
      path = path if named else given
      name = name if named else kind if len(flag.value) == 1 else f"{kind} {Path(given).name}"
      if not path:
        raise InputError(f"--{kind}={given}: expected DIR or NAME=DIR")
      if name in {one.name for one in found}:
        raise InputError(f"--{kind}={given}: two models are called {name!r}; name one: NAME=DIR")
      found.append(Model(kind, name, path))
  if not found:
    raise InputError(f"no model; expected --{', --'.join(MODELS)} or several of them")
  return found


def ks() -> list[int]:
  """The numbers of --k. Raises InputError for what is no number from 1 on."""
  wrong = [k for k in K.value if not k.strip().isdecimal() or int(k) < 1]
  if wrong:
    raise InputError(f"--k={','.join(K.value)}: {wrong[0]!r} is no number from 1; expected 1,2,4")
  return [int(k) for k in K.value]


def learned_by(model: Model) -> set[str] | None:
  """The conversations that a run learned from or chose its checkpoint by; None if not a run's.

  Raises:
    InputError: the run's data cannot be read.
  """
  try:
    return learned(model.path)
  except (ValueError, OSError) as error:
    raise InputError(
      f"--{model.kind}={model.path}: the data that it learned from cannot be read ({error}), so it "
      "is not known which problems it has seen; expected them where they were, or --keep_trained"
    ) from error


def read(
  asked: Sequence[Model], numbers: Sequence[int], report: Report
) -> tuple[list[Problem], dict[str, int | None]]:
  """The problems of --data; and how many of its examples each model has learned from, if known.

  Raises:
    DataError: no problem with several solutions is left.
    InputError: a number of --k is above the candidates of every problem.
  """
  options = dict(format=FORMAT.value, columns=COLUMNS.value)
  examples = formats.load(DATA.value, report=report, **options)
  if EXCLUDE.value:
    seen = conversations_in(EXCLUDE.value, **options)
    examples = without(examples, seen, EXCLUDE.value, report)
  counts: dict[str, int | None] = {model.name: None for model in asked}
  if not KEEP_TRAINED.value:
    seen = {model.name: learned_by(model) for model in asked}
    counts = {
      name: mine if mine is None else sum(e.conversation in mine for e in examples)
      for name, mine in seen.items()
    }
    for name, mine in seen.items():
      examples = without(examples, mine or (), f"what {name} learned from", report)
  found, left_out = problems(examples)
  for reason, count in left_out.items():
    for _ in range(count):
      report.drop(reason, DATA.value, "is no problem with several solutions", fault=False)
  drawn = {id(e) for e in sampled([p.example for p in found], LIMIT.value, report, SEED.value)}
  found = [p for p in found if id(p.example) in drawn]
  if not found:
    raise DataError(
      f"{DATA.value}: no problem with several solutions that are labelled right or wrong is left; "
      f"expected some, as in the formats outcomes and gsm8k_solutions (docs/data.md). {report}"
    )
  check_ks(found, numbers)
  return found, counts


class Scored(NamedTuple):
  """Scores by one model: index of a problem -> those of its marks, float64 [M].

  Attributes:
    whole: of whole solutions; empty for a process reward model.
    steps: of their steps; empty for an outcome reward model.
    cut: number of problems whose texts the model has read cut, as they are too long for it.
  """

  whole: dict[int, np.ndarray]
  steps: dict[int, np.ndarray]
  cut: int


def scored(
  model: RewardModel, name: str, examples: Sequence[Example], report: Report
) -> tuple[dict[int, np.ndarray], int]:
  """({index of each example that the model can read: scores}, number of those that are cut).

  The others are dropped and counted in `report`.
  """
  place = {id(example): i for i, example in enumerate(examples)}
  groups, kept = model.text_model.tokenise(examples, report)
  scores = model.score_groups(groups, progress=name)
  found = {place[id(e)]: np.asarray(s, np.float64) for e, s in zip(kept, scores, strict=True)}
  return found, sum(group.cut > 0 for group in groups)


def read_by(model: Model, asked: Sequence[Problem]) -> Scored:
  """Scores by one model of the problems that it can read; why it cannot read others is printed.

  Raises:
    InputError: the model is not what its flag says.
  """
  loaded = RewardModel.from_pretrained(
    model.path,
    dtype=DTYPE.value,
    chat_template=CHAT_TEMPLATE.value,
    steps=STEPS.value if model.kind == "prm" else "",
  )
  network = loaded.text_model.network
  given = f"--{model.kind}={model.path}"
  if network.implicit != (model.kind == "implicit") and model.kind != "orm":
    says = "has an implicit reward" if network.implicit else "has a reward head"
    wants = "--implicit" if network.implicit else "--prm or --orm"
    raise InputError(f"{given}: the model {says}; expected it as {wants}")
  whole, steps, cuts = {}, {}, [0]
  report = Report(strict=STRICT.value, rows=len(asked))
  if model.kind != "prm":
    whole, cut = scored(loaded, model.name, [p.example for p in asked], report)
    cuts.append(cut)
  if model.kind != "orm":
    if not network.causal:
      raise InputError(
        f"{given}: an encoder cannot score steps; expected a decoder, or this model as --orm"
      )
    for p in asked:
      if p.steps is None:
        report.drop("several_turns", p.example.origin, "a solution of several turns has no steps")
    mine = [i for i, p in enumerate(asked) if p.steps is not None]
    found, cut = scored(loaded, model.name, [asked[i].in_steps() for i in mine], report)
    cuts.append(cut)
    steps = {mine[n]: scores for n, scores in found.items()}
  if report.dropped:
    print(f"{model.name} cannot read all problems: {report}")
  return Scored(whole, steps, max(cuts))


def readings(
  model: Model, whole: Sequence[np.ndarray], steps: Sequence[Sequence[np.ndarray]]
) -> Iterator[tuple[str, Reading]]:
  """Yields (name, reading) of all ways to read one model."""
  if model.kind != "prm":
    yield from by_score(model.name, whole).items()
  if model.kind != "orm":
    yield from by_steps(model.name, steps).items()


def main() -> None:
  asked, numbers = models(), ks()
  output = output_folder("output", OUTPUT.value)
  report = Report(strict=STRICT.value)
  found, learned_from = read(asked, numbers, report)
  scores = {model: read_by(model, found) for model in asked}
  every = set(range(len(found)))
  for model, (whole, steps, _) in scores.items():
    every &= set(whole) if model.kind != "prm" else every
    every &= set(steps) if model.kind != "orm" else every
  for i in sorted(set(range(len(found))) - every):
    detail = "not every model can read all of its solutions"
    report.drop("unreadable", found[i].example.origin, detail, fault=False)
  kept = sorted(every)
  if not kept:
    raise DataError(f"{DATA.value}: no problem is left that all models can read. {report}")
  mine = [found[i] for i in kept]
  made: dict[str, Reading] = {}
  for model, (whole, steps, _) in scores.items():
    ends = [np.cumsum([len(s) for s in p.steps])[:-1] if p.steps else [] for p in mine]
    made |= readings(
      model,
      [whole[i] for i in kept] if whole else [],
      [np.split(steps[i], end) for i, end in zip(kept, ends, strict=True)] if steps else [],
    )
  names = [f"{m.name}, {HOW_FLAG.value}" if m.kind == "prm" else m.name for m in asked]
  result = best_of(mine, made, ks=numbers, main=names, seed=SEED.value)
  about = {
    "model": ", ".join(f"{model.name} ({model.path})" for model in asked),
    "data": DATA.value,
    "problems": len(mine),
    "dropped": sum(report.dropped.values()),
    "cut": ", ".join(f"{model.name} {one.cut}" for model, one in scores.items()),
    "left_out_as_learned": "nothing"
    if KEEP_TRAINED.value
    else ", ".join(
      f"{name} {'not known' if count is None else count}" for name, count in learned_from.items()
    ),
  }
  sections = [section.SECTION]
  failed = page.write(output, {"about": about, "best_of": result}, sections, title="Best of n")
  print(table(result))
  print(*result["says"], sep="\n")
  print(report)
  for model, one in scores.items():
    if one.cut:
      print(f"{model.name}: {one.cut} problems are cut: a text is longer than the model reads")
  for name, count in learned_from.items():
    if count is None and not KEEP_TRAINED.value:
      print(f"{name}: not known what it learned from; --exclude=FILE leaves out what it has seen")
  print(f"{OUTPUT.value}/report.html")
  if failed:
    raise InputError(f"{OUTPUT.value} is written, without what failed: {failed}")


if __name__ == "__main__":
  launch(main)
