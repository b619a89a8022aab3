"""Writes one page on what a reward model learned, before anyone optimises against it.

python -m experiments.audit --model=DIR --data=NAME_OR_FILE --output=DIR2 writes DIR2/report.html,
report.json and the pictures. --against=DIR3 (any number of times) compares with other models.

Each distinct text is scored once and its score is kept, by default in ~/.cache/rm_jax/scores, so an
interrupted audit continues where it stopped.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from experiments.launch import (
  COLUMNS_HELP,
  DTYPES,
  QUESTION_HELP,
  VERDICT_HELP,
  launch,
  output_folder,
)
from experiments.run_data import HELDOUT, check_own_format, config_of, count_learned, own_data
from rm_jax.api import RewardModel
from rm_jax.audit import page
from rm_jax.audit.benchmarks import BENCHMARKS
from rm_jax.audit.reference import Reference, make_reference
from rm_jax.audit.run import audit
from rm_jax.audit.scorer import Scorer, model_hash
from rm_jax.audit.section import Settings, sentences
from rm_jax.audit.sections import calibration, drift
from rm_jax.audit.sections import policies as policies_section
from rm_jax.data.choose import sampled, without
from rm_jax.data.report import DataError, Report
from rm_jax.errors import InputError
from rm_jax.pretrained.source import SHAPING
from rm_jax.shaping.chain import chain_of, plan
from rm_jax.storage.files import write_json
from rm_jax.train import datasets
from rm_jax.train.datasets import true_world
from rm_jax.types import Example
from rm_jax.workdir.folder import is_workdir

HELD = "what the run held out"  # name of a reference that is made of the run's held-out data

MODEL = flags.DEFINE_string("model", None, "Workdir, saved folder, Hugging Face folder or hub id.")
DATA = flags.DEFINE_string(
  "data",
  None,
  "File, folder, hub id, or world:N, of feedback; 'heldout': what the run itself held out.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder that gets the report.")
flags.DEFINE_alias("out", "output")
AGAINST = flags.DEFINE_multi_string("against", [], "Another model to compare with.")
FORMAT = flags.DEFINE_string("format", "auto", "Format of the rows; 'auto' = by their columns.")
COLUMNS = flags.DEFINE_string("columns", "", COLUMNS_HELP)
EXCLUDE = flags.DEFINE_string("exclude", None, "Data whose conversations are left out.")
LIMIT = flags.DEFINE_integer("limit", 0, "Examples to take, drawn at random; 0 = all.", 0)
EDITS = flags.DEFINE_integer("edits", 500, "Pairs whose edits and other prompts are scored.", 1)
flags.DEFINE_alias("sample", "edits")
REFERENCE = flags.DEFINE_string(
  "reference",
  None,
  "Data to compare with, for drift, kept with the model for the next audit; 'heldout', and the "
  "default: what the run held out. If that is the audited data itself or too little, the default "
  "is the training data, which the model may have memorised.",
)
CALIBRATE = flags.DEFINE_bool(
  "calibrate", False, "Keep the calibration of the scores, and --shape, in the model's folder."
)
SHAPE = flags.DEFINE_string(
  "shape",
  "",
  "Chain of shaping to fit on half of the conversations and to measure on the others, as in "
  "'normalise, clip(low=-5, high=5), filters'; --calibrate keeps it. '' = the model's own, if any.",
)
BENCHMARK = flags.DEFINE_multi_string(
  "benchmark", [], f"NAME=PATH of a published benchmark: {', '.join(BENCHMARKS)}."
)
# A best-of-n curve wants two prompts, and three values of n above 1 (`metrics.best_of_n_curve`).
PROMPTS = flags.DEFINE_integer(
  "prompts", 32, "Prompts of the generated world that get best-of-n curves.", 2
)
CANDIDATES = flags.DEFINE_integer(
  "candidates", 1024, "Responses drawn for each of these prompts.", 4
)
POLICIES = flags.DEFINE_string(
  "policies",
  "",
  "Workdir of a finished chain of experiments.rlhf, or of a study of chains, that optimised "
  "policies against --model: the page then has what became of them.",
)
CACHE = flags.DEFINE_string("cache", "", "Folder of scores; '' = with the other caches, 'none'.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of samples, edits and draws.", 0)
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first bad row.")
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Compute dtype of the backbone.")
CHAT_TEMPLATE = flags.DEFINE_string(
  "chat_template",
  "",
  "For messages: 'hh', Jinja text or a file of it; '' = the model's own. Of --against, those alone "
  "take it that have none.",
)
VERDICT = flags.DEFINE_list("verdict", [], VERDICT_HELP)
QUESTION = flags.DEFINE_string("question", "", QUESTION_HELP)
EOS = flags.DEFINE_enum(
  "eos",
  "",
  ("", "append", "none"),
  "EOS behind a response; '' = as saved with the model, else none (docs/exports.md).",
)
flags.mark_flags_as_required(["model", "data", "output"])


def _folder(name: str) -> Path | None:
  """The folder of a model's reference and calibration; None for a name that is no folder's."""
  path = Path(name)
  if not path.is_dir():
    return None
  return path / "model" if is_workdir(path) else path


def _examples(
  name: str, config: ml_collections.ConfigDict, split: str, report: Report
) -> list[Example]:
  """The examples of a file, folder, hub id or generated world; bad rows are counted in `report`."""
  config = ml_collections.ConfigDict(config.to_dict())
  config.data.limit = 0
  # --format and --columns are those of --data; --exclude and --reference have those of the run.
  if split == "heldout":
    config.data.format, config.data.columns = FORMAT.value, COLUMNS.value
  return datasets.read(name, config, report, split)


def _data(config: ml_collections.ConfigDict, report: Report) -> list[Example]:
  """The examples to audit: those of --data except excluded and undrawn ones."""
  if DATA.value == HELDOUT:
    check_own_format(FORMAT.value, COLUMNS.value)
    train, examples = own_data(config, report, MODEL.value)
    for example in train:
      report.drop("trained_on", example.origin, "the run trained on it", fault=False)
  else:
    examples = _examples(DATA.value, config, "heldout", report)
  if EXCLUDE.value:
    seen = {e.conversation for e in _examples(EXCLUDE.value, config, "train", Report())}
    examples = without(examples, seen, EXCLUDE.value, report)
  return sampled(examples, LIMIT.value, report, SEED.value)


def _readable(model: RewardModel, examples: Sequence[Example], report: Report) -> Sequence[Example]:
  """The examples that the model can read, found before anything is scored.

  Raises:
    DataError: examples of fewer than 2 conversations are left.
  """
  _, examples = model.text_model.tokenise(examples, report)
  if len({e.conversation for e in examples}) < 2:
    raise DataError(f"{DATA.value}: feedback on at least 2 conversations is needed. {report}")
  return examples


def _other(name: str) -> RewardModel:
  """A model of --against. It gets --chat_template only if it has no chat template of its own."""
  model = RewardModel.from_pretrained(name, dtype=DTYPE.value)
  if CHAT_TEMPLATE.value and not model.text_model.tokenizer.chat_template:
    options = dict(dtype=DTYPE.value, chat_template=CHAT_TEMPLATE.value)
    model = RewardModel.from_pretrained(name, **options)
  return model


def _reference(
  scorer: Scorer,
  config: ml_collections.ConfigDict,
  folder: Path | None,
  audited: Sequence[Example],
) -> Reference | None:
  """The reference for drift: made of --reference, or the kept one, or made of the run's own data.

  In order of preference: the data of --reference; a kept reference that an earlier audit was told
  to make; what the run held out, without audited conversations; the run's training data, if fewer
  than 20 such conversations are left. None if --reference is not given, none that was asked for is
  kept, and the model is not a run's workdir. A kept reference of another state of the model is
  ignored.

  A new reference of data that --reference names is written to the model's folder. One of the
  held-out data is written only if no conversation was left out, and the model's present state has
  no other reference that was asked for; one of the training data, by default, is not written.
  """
  kept = folder and Reference.load(folder)
  if kept and kept.model != scorer.name:  # perhaps it is named as earlier versions did
    kept = kept if kept.model == model_hash(scorer.model, ordered=False) else None
  own = config.data.train or ", ".join(config.data.sources)
  # What was kept under the name of the held-out data is what the default is, asked for or not. What
  # earlier versions kept under that of the training data they may have made by default.
  if kept and not REFERENCE.value and kept.data != HELD and (kept.asked or kept.data != own):
    return kept
  report = Report()

  def made(examples: Sequence[Example], name: str, known: bool, asked: bool = False) -> Reference:
    examples = [e for e in examples if e.steps is None]
    _, examples = scorer.model.text_model.tokenise(examples, report)
    return make_reference(scorer, examples, name, known=known, asked=asked, seed=SEED.value)

  if REFERENCE.value and REFERENCE.value != HELDOUT:
    examples = _examples(REFERENCE.value, config, "train", report)
    sources = [source.get("path") for source in config.data.sources.values()]
    known = REFERENCE.value in (config.data.train, *sources)
    found = made(examples, REFERENCE.value, known, asked=True)
    if folder:
      found.save(folder)
    return found
  if not REFERENCE.value and not (folder and own):
    return None
  train, heldout = own_data(config, report, MODEL.value, flag="reference")
  seen = set() if REFERENCE.value else {e.conversation for e in audited}
  fresh = [e for e in heldout if e.conversation not in seen]
  if not REFERENCE.value and len({e.conversation for e in fresh}) < drift.FEWEST:
    return kept if kept and kept.data == own else made(train, own, known=True)
  whole = len(fresh) == len(heldout)
  if kept and kept.data == HELD and whole:
    return kept
  found = made(fresh, HELD, known=False)
  # It may replace a reference of the training data, which was made by default, but none of other
  # data, which was asked for.
  if folder and whole and (kept is None or (kept.data == own and not kept.asked)):
    found.save(folder)
  return found


def _benchmarks(model: RewardModel) -> dict[str, list]:
  """{name of each --benchmark: its items}.

  They are read before anything is scored, so that a file that cannot be read stops the command at
  once.
  """
  out = {}
  chat = bool(model.text_model.tokenizer.chat_template)
  for given in BENCHMARK.value:
    name, paths = _named(given)
    report = Report(strict=STRICT.value)
    out[name] = BENCHMARKS[name].load(*paths.split(","), messages=chat, report=report)
    if report.dropped:
      print(f"{name}: {report}")
  return out


def _named(given: str) -> tuple[str, str]:
  """(name, paths) of a --benchmark=NAME=PATH.

  Raises:
    InputError: it is not of this form, or there is no benchmark of this name.
  """
  name, _, paths = given.partition("=")
  if name not in BENCHMARKS or not paths:
    raise InputError(f"--benchmark={given}: expected NAME=PATH, NAME of {', '.join(BENCHMARKS)}")
  return name, paths


def _check_kinds(examples: Sequence[Example]) -> None:
  """Raises DataError if their kinds of feedback cannot be audited, or not with --against."""
  kinds = {e.kind for e in examples}
  if "attributes" in kinds:
    raise DataError(
      f"{DATA.value} has feedback on attributes, which an audit does not read; "
      "experiments.evaluate reports on it"
    )
  if "step" in kinds and SHAPE.value:
    raise DataError(f"--shape is fitted on whole responses, and {DATA.value} has steps")
  if "step" in kinds and AGAINST.value:
    raise DataError(f"--against compares whole responses, and {DATA.value} has steps")
  if "step" in kinds and len(kinds) > 1:
    raise DataError(f"{DATA.value} has {sorted(kinds)}; expected steps alone, or whole responses")


def _keep_chain(model: RewardModel, folder: Path, found: Mapping[str, Any]) -> None:
  """Writes the chain that the section `shaping` reports to a model's folder."""
  chain = chain_of(found["chain"], "the chain")
  if chain.fitted:
    fitted = dataclasses.replace(chain.fitted, data=DATA.value, weights=model.weights)
    chain = dataclasses.replace(chain, fitted=fitted)
  write_json(folder / SHAPING, chain.record())
  print(f"{folder / SHAPING}: {chain}")


def main() -> None:
  for given in BENCHMARK.value:
    _named(given)
  planned = plan(SHAPE.value, "--shape") if SHAPE.value else None
  if REFERENCE.value == DATA.value == HELDOUT:
    raise InputError(f"--reference={HELDOUT} is --data itself; expected other data of one of them")
  output, folder = output_folder("output", OUTPUT.value), _folder(MODEL.value)
  if CALIBRATE.value:
    if folder is None:
      raise InputError(f"--calibrate: {MODEL.value} is no folder; expected a model in one")
    output_folder("model", folder)
  config = config_of(MODEL.value)
  report = Report(strict=STRICT.value)
  examples = _data(config, report)
  _check_kinds(examples)
  model = RewardModel.from_pretrained(
    MODEL.value,
    dtype=DTYPE.value,
    chat_template=CHAT_TEMPLATE.value,
    eos=EOS.value,
    verdict=VERDICT.value,
    question=QUESTION.value,
  )
  optimised = None
  if POLICIES.value:
    optimised = policies_section.read(POLICIES.value, model.weights, MODEL.value)
  examples = _readable(model, examples, report)
  benchmarks = _benchmarks(model)
  others = {name: _other(name) for name in AGAINST.value}
  cache = None if CACHE.value == "none" else CACHE.value
  scorer = Scorer(model, folder=cache)
  about = {
    "model": MODEL.value,
    "data": DATA.value,
    "examples": len(examples),
    "conversations": len({e.conversation for e in examples}),
    "dropped": sum(report.dropped.values()),
  }
  if DATA.value != HELDOUT and (trained := count_learned(MODEL.value, examples)) is not None:
    about["trained_on"] = trained
  in_steps = all(e.kind == "step" for e in examples)
  names = datasets.heldout_names(config) if DATA.value == HELDOUT else [DATA.value]
  found = audit(
    scorer,
    examples,
    reference=None if in_steps else _reference(scorer, config, folder, examples),
    against={name: Scorer(other, folder=cache) for name, other in others.items()},
    benchmarks=benchmarks,
    settings=Settings(
      edited_pairs=EDITS.value,
      shaping=planned or model.shaping,
      world=None if in_steps else true_world(names, config),
      prompts=PROMPTS.value,
      candidates=CANDIDATES.value,
      policies=optimised,
      seed=SEED.value,
    ),
  )
  counts = vars(scorer.counts)
  failed = found.get("failed", {}) | page.write(output, {"about": about, **found, "scorer": counts})
  for name, items in benchmarks.items():
    if name not in found.get("failed", {}):
      value = found["benchmarks"][name]["score"]
      print(f"{name}: {'not defined' if value is None else f'{value:.4f}'} on {len(items)} items")
  print(report)
  print(
    f"{counts['asked']} texts asked for, {counts['distinct']} distinct: {counts['scored']} scored, "
    f"{counts['hits']} kept from before"
  )
  for name, section in found.items():
    for line in sentences(section):
      print(f"{name}: {line}")
  print(f"{OUTPUT.value}/report.html")
  unshaped = planned and found["shaping"].get("why")
  if CALIBRATE.value and planned and not unshaped:
    _keep_chain(model, folder, found["shaping"])
  if CALIBRATE.value:
    try:
      calibration.store(folder, found["calibration"], DATA.value)
    except InputError as error:
      kept = planned and not unshaped
      failed["calibrate"] = f"{error}{'; the chain of shaping is kept' if kept else ''}"
  if failed:
    said = "; ".join(f"{name}: {why}" for name, why in failed.items())
    raise InputError(f"{OUTPUT.value}/report.html is written, without what failed: {said}")
  if unshaped:
    raise InputError(f"--shape={SHAPE.value}: {unshaped}. {OUTPUT.value}/report.html is written")


if __name__ == "__main__":
  launch(main)
