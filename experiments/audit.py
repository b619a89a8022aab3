"""What a reward model learned, on one page, before anyone optimises against it.

python -m experiments.audit --model=DIR --data=NAME_OR_FILE --output=DIR2 writes DIR2/report.html,
report.json and the pictures. --against=DIR3 (any number of times) compares with other models.

Each distinct text is scored once and kept in ~/.cache/rm_jax/scores: what was stopped goes on.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags

from configs.base import get_config
from experiments.launch import launch, output_folder
from rm_jax.api import RewardModel
from rm_jax.audit import calibration, page, sections
from rm_jax.audit.benchmarks import BENCHMARKS
from rm_jax.audit.drift import Reference
from rm_jax.audit.scorer import Scorer
from rm_jax.audit.sections import Settings
from rm_jax.data.report import DataError, Report
from rm_jax.errors import InputError
from rm_jax.train import datasets
from rm_jax.train.datasets import true_world
from rm_jax.types import Example
from rm_jax.workdir.folder import CONFIG, is_workdir

HELDOUT = "heldout"
DTYPES = ("float32", "bfloat16", "float16")
HELD = "what the run held out"  # as a reference is called

MODEL = flags.DEFINE_string("model", None, "Workdir, saved folder, Hugging Face folder or hub id.")
DATA = flags.DEFINE_string(
  "data",
  None,
  "File, folder, hub id, or world:N, of feedback; 'heldout': what the run itself held out.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder that gets the report.")
AGAINST = flags.DEFINE_multi_string("against", [], "Another model to compare with.")
FORMAT = flags.DEFINE_string("format", "auto", "Format of the rows; 'auto' = by their columns.")
EXCLUDE = flags.DEFINE_string("exclude", None, "Data whose conversations are left out.")
LIMIT = flags.DEFINE_integer("limit", 0, "Examples to take, drawn at random; 0 = all.", 0)
SAMPLE = flags.DEFINE_integer("sample", 500, "Pairs whose edits and other prompts are scored.", 1)
REFERENCE = flags.DEFINE_string(
  "reference",
  None,
  "Data to compare with, for drift, kept with the model for the next audit; default, and "
  "'heldout': what the run held out. By default its training data, which it knows by "
  "heart, where that is the data itself or too little.",
)
CALIBRATE = flags.DEFINE_bool("calibrate", False, "Keep what calibrates it with the model.")
BENCHMARK = flags.DEFINE_multi_string(
  "benchmark", [], f"NAME=PATH of a published benchmark: {', '.join(BENCHMARKS)}."
)
PROMPTS = flags.DEFINE_integer("prompts", 32, "Of the generated world, for best-of-n curves.", 1)
CANDIDATES = flags.DEFINE_integer("candidates", 1024, "Responses drawn for each of them.", 2)
CACHE = flags.DEFINE_string("cache", "", "Folder of scores; '' = with the other caches, 'none'.")
SEED = flags.DEFINE_integer("seed", 0, "Of samples, edits and draws.", 0)
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first bad row.")
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Compute dtype of the backbone.")
CHAT_TEMPLATE = flags.DEFINE_string(
  "chat_template",
  "",
  "For messages: 'hh', Jinja text or a file of it; '' = the model's own. Of --against, those alone "
  "take it that have none.",
)
EOS = flags.DEFINE_enum(
  "eos", "", ("", "append", "none"), "After a response; '' = as saved, or none (docs/exports.md)."
)
flags.DEFINE_alias("out", "output")  # its old name
flags.mark_flags_as_required(["model", "data", "output"])


def _folder(name: str) -> Path | None:
  """Where what is kept with a model is kept; None for a hub id."""
  path = Path(name)
  if not path.is_dir():
    return None
  return path / "model" if is_workdir(path) else path


def _config(name: str) -> ml_collections.ConfigDict:
  """The run's own config, which knows its data and its world; else the base."""
  path = Path(name) / CONFIG
  if is_workdir(Path(name)) and path.exists():
    return ml_collections.ConfigDict(json.loads(path.read_text()))
  return get_config()


def _examples(
  name: str, config: ml_collections.ConfigDict, split: str, report: Report
) -> list[Example]:
  config = ml_collections.ConfigDict(config.to_dict())
  config.data.limit = 0
  if split == "heldout":  # what was trained on has the run's own format
    config.data.format = FORMAT.value
  return datasets.read(name, config, report, split)


def _own(
  config: ml_collections.ConfigDict, report: Report, flag: str = "data"
) -> tuple[list[Example], list[Example]]:
  """What a run trained on, and what it held out; `flag` asks for it."""
  if not (config.data.train or config.data.sources):
    raise InputError(
      f"--{flag}={HELDOUT} wants a run's workdir, which knows its data; found --model={MODEL.value}"
    )
  train, heldout, _ = datasets.read_both(config, report)
  return train, heldout


def _data(config: ml_collections.ConfigDict, model: RewardModel, report: Report) -> list[Example]:
  if DATA.value == HELDOUT:
    train, examples = _own(config, report)
    for example in train:
      report.drop("trained_on", example.origin, "the run trained on it", fault=False)
  else:
    examples = _examples(DATA.value, config, "heldout", report)
  if EXCLUDE.value:
    seen = {e.conversation for e in _examples(EXCLUDE.value, config, "train", Report())}
    for example in examples:
      if example.conversation in seen:
        why = f"its conversation is in {EXCLUDE.value}"
        report.drop("excluded", example.origin, why, fault=False)
    examples = [e for e in examples if e.conversation not in seen]
  if 0 < LIMIT.value < len(examples):
    drawn = set(random.Random(SEED.value).sample(range(len(examples)), LIMIT.value))
    for i, example in enumerate(examples):
      if i not in drawn:
        report.drop("not_sampled", example.origin, f"--limit={LIMIT.value}", fault=False)
    examples = [examples[i] for i in sorted(drawn)]
  # What the model cannot read is dropped, and counted, before anything is scored.
  _, examples = model.text_model.tokenise(examples, report)
  if len({e.conversation for e in examples}) < 2:
    raise DataError(f"{DATA.value}: feedback on at least 2 conversations is needed. {report}")
  return examples


def _other(name: str) -> RewardModel:
  """A model to compare with; --chat_template is for messages where it has none of its own."""
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
  """What the data is compared with: given, kept, held out by the run, or trained on by it."""
  kept = folder and Reference.load(folder)
  kept = kept if kept and kept.model == scorer.name else None
  own = config.data.train or ", ".join(config.data.sources)
  # What was kept under the training data's own name was made by default, of what is known by heart.
  if kept and not REFERENCE.value and kept.data not in (own, HELD):
    return kept
  report = Report()

  def made(examples: Sequence[Example], name: str, known: bool) -> Reference:
    examples = [e for e in examples if e.steps is None]
    _, examples = scorer.model.text_model.tokenise(examples, report)
    return sections.make_reference(scorer, examples, name, known=known, seed=SEED.value)

  if REFERENCE.value and REFERENCE.value != HELDOUT:
    examples = _examples(REFERENCE.value, config, "train", report)
    found = made(examples, REFERENCE.value, REFERENCE.value == config.data.train)
    if folder:
      found.save(folder)
    return found
  if not REFERENCE.value and not (folder and own):
    return None
  train, heldout = _own(config, report, "reference")
  seen = set() if REFERENCE.value else {e.conversation for e in audited}
  fresh = [e for e in heldout if e.conversation not in seen]
  if not REFERENCE.value and len({e.conversation for e in fresh}) < sections.FEWEST:
    return kept if kept and kept.data == own else made(train, own, known=True)
  whole = len(fresh) == len(heldout)
  if kept and kept.data == HELD and whole:
    return kept
  found = made(fresh, HELD, known=False)
  # In the place of what was made by default, and of nothing that was chosen.
  if folder and whole and (kept is None or kept.data == own):
    found.save(folder)
  return found


def _benchmarks(model: RewardModel) -> dict[str, list]:
  """--benchmark: name -> its items, read before anything is scored."""
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
  name, _, paths = given.partition("=")
  if name not in BENCHMARKS or not paths:
    raise InputError(f"--benchmark={given}: expected NAME=PATH, NAME of {', '.join(BENCHMARKS)}")
  return name, paths


def _on_benchmark(name: str, items: list, scorer: Scorer) -> dict:
  one = BENCHMARKS[name]
  score = scorer if one.scores == "responses" else _steps(scorer.model)
  found = one.evaluate(score, items)
  value = found["score"]
  print(f"{name}: {'not defined' if value is None else f'{value:.4f}'} on {len(items)} items")
  return found


def _steps(model: RewardModel):
  return lambda rows: model.score_steps(rows, progress=True)


def main() -> None:
  for given in BENCHMARK.value:
    _named(given)
  if REFERENCE.value == DATA.value == HELDOUT:
    raise InputError(f"--reference={HELDOUT} is --data itself; expected other data of one of them")
  out = output_folder("output", OUTPUT.value)
  config = _config(MODEL.value)
  model = RewardModel.from_pretrained(
    MODEL.value, dtype=DTYPE.value, chat_template=CHAT_TEMPLATE.value, eos=EOS.value
  )
  report = Report(strict=STRICT.value)
  examples = _data(config, model, report)
  benchmarks = _benchmarks(model)
  cache = None if CACHE.value == "none" else CACHE.value
  scorer = Scorer(model, folder=cache)
  about = {
    "model": MODEL.value,
    "data": DATA.value,
    "examples": len(examples),
    "conversations": len({e.conversation for e in examples}),
    "dropped": sum(report.dropped.values()),
  }
  kinds = {e.kind for e in examples}
  if "attributes" in kinds:
    raise DataError(
      f"{DATA.value} has feedback on attributes, which an audit does not read; "
      "experiments.evaluate reports on it"
    )
  if "step" in kinds and AGAINST.value:
    raise DataError(f"--against compares whole responses, and {DATA.value} has steps")
  if "step" in kinds:
    if len(kinds) > 1:
      raise DataError(f"{DATA.value} has {sorted(kinds)}; expected steps alone, or whole responses")
    found = sections.audit_steps(model, examples, seed=SEED.value)
  else:
    against = {name: Scorer(_other(name), folder=cache) for name in AGAINST.value}
    names = datasets.heldout_names(config) if DATA.value == HELDOUT else [DATA.value]
    found = sections.audit(
      scorer,
      examples,
      reference=_reference(scorer, config, _folder(MODEL.value), examples),
      against=against,
      settings=Settings(
        sample=SAMPLE.value,
        world=true_world(names, config),
        prompts=PROMPTS.value,
        candidates=CANDIDATES.value,
        seed=SEED.value,
      ),
    )
  failed = found.pop("failed", {})
  more = sections.Sections()
  for name, items in benchmarks.items():
    made = more.guarded(name, lambda name=name, items=items: _on_benchmark(name, items, scorer))
    found.setdefault("benchmarks", {})[name] = {"score": None, **made}
  if failed := failed | more.failed:
    found["failed"] = failed
  counts = scorer.counts
  found["scorer"] = {**vars(counts)}
  failed = failed | page.write(out, {"about": about, **found})
  print(report)
  print(
    f"{counts.asked} texts asked for, {counts.distinct} distinct: {counts.scored} scored, "
    f"{counts.hits} kept from before"
  )
  for name, section in found.items():
    for line in _said(section):
      print(f"{name}: {line}")
  print(f"{OUTPUT.value}/report.html")
  if CALIBRATE.value:
    folder = _folder(MODEL.value)
    if folder is None:
      raise InputError(f"--calibrate: {MODEL.value} is no folder; expected a model in one")
    calibration.store(folder, found["calibration"], DATA.value)
  if failed:
    said = "; ".join(f"{name}: {why}" for name, why in failed.items())
    raise InputError(f"{OUTPUT.value}/report.html is written, without what failed: {said}")


def _said(section: dict) -> list[str]:
  said = section.get("says", []) if isinstance(section, dict) else []
  return [said] if isinstance(said, str) else list(said)


if __name__ == "__main__":
  launch(main)
