"""Cleans preference data, and reports what became of every row.

  python -m experiments.curate --input=FILE_OR_FOLDER --output=OUT.jsonl.gz --report=REPORT.json

leaves out rows that cannot be read, and finds duplicates, contradictions, pairs of two equal or
near responses, and pairs whose conversations differ before the last turn. Flags such as
--duplicates=keep|drop say which of these are dropped. Where asked to, the command also
  with --heldout=FILE drops rows that repeat held-out data;
  with --denoise_scorer=content or --denoise_config=configs/NAME.py finds labels that are likely
    wrong, and does what --denoise=drop|flip|downweight|none says;
  with --resample_by changes the proportions of sources, lengths or values of a column.
Rows that are kept are written in their order, and unchanged unless a label is flipped or a weight
is changed.

  python -m experiments.curate --input=FILE --annotators=COLUMN,COLUMN,... --report=REPORT.json

reports how far annotators agree, how reliable each is, and how far the length, position and
formatting of responses sway each of them. It writes no rows.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments.launch import (
  COLUMNS_HELP,
  MESH_HELP,
  check_devices,
  launch,
  output_file,
  with_mesh,
)
from rm_jax.curate import annotators, ledger, pipeline
from rm_jax.curate.scorers import ConfigScorer, ContentModel
from rm_jax.data import formats
from rm_jax.data.report import DataError, Report
from rm_jax.storage.files import expanded, write_json

DEFAULT = pipeline.Options()
INPUT = flags.DEFINE_string("input", None, "File, folder or hub id of pairs.")
OUTPUT = flags.DEFINE_string("output", None, "File of the kept rows: .jsonl or .jsonl.gz.")
REPORT = flags.DEFINE_string("report", None, "JSON file that lists what became of every row.")
FORMAT = flags.DEFINE_string("format", "auto", "Format of the rows; 'auto' = by their columns.")
COLUMNS = flags.DEFINE_string("columns", "", COLUMNS_HELP)
LIMIT = flags.DEFINE_integer("limit", 0, "Pairs to read, from the first on; 0 = all.", 0)
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first bad row.")
HELDOUT = flags.DEFINE_string("heldout", None, "Pairs that must not be in the output.")

_POLICIES = {
  "early": "Pairs that differ before their last assistant turn.",
  "sides": "Pairs whose own two responses are equal, or near: drop_near drops both kinds.",
  "duplicates": "Exact and near duplicates: drop all but the first.",
  "reversed": "Pairs that repeat an earlier one with the label reversed.",
  "contamination_part": "What must not overlap with --heldout.",
  "denoise": "What to do with labels that are probably wrong; none = list them.",
  "denoise_by": "Suspect labels below --denoise_threshold, or as many as are estimated.",
  "resample_how": "Drop rows, or multiply their weights.",
}
for _name, _known in pipeline.POLICIES.items():
  flags.DEFINE_enum(_name, getattr(DEFAULT, _name), _known, _POLICIES[_name])
flags.DEFINE_float(
  "near",
  DEFAULT.near,
  "Jaccard similarity from which two rows are duplicates; 0 = only equal ones.",
)
flags.DEFINE_integer("shingle", DEFAULT.shingle, "Words of a shingle.", lower_bound=1)
flags.DEFINE_float(
  "sides_similarity",
  DEFAULT.sides_similarity,
  "Jaccard similarity from which two responses are near; 0 = only equal ones.",
)
flags.DEFINE_integer(
  "contamination_n", DEFAULT.contamination_n, "Words of an n-gram.", lower_bound=1
)
flags.DEFINE_float(
  "contamination_share",
  DEFAULT.contamination_share,
  "Share of a text's n-grams in held-out data from which its row is contaminated.",
)
flags.DEFINE_float(
  "denoise_threshold",
  DEFAULT.denoise_threshold,
  "P(the chosen response is better) below which a flipped label is suspected.",
)
flags.DEFINE_float(
  "denoise_weight", DEFAULT.denoise_weight, "Factor of the weight in 'downweight'."
)
flags.DEFINE_integer("folds", DEFAULT.folds, "Folds of the scorer's cross-fitting.", lower_bound=2)
flags.DEFINE_string("resample_by", DEFAULT.resample_by, "'source', 'length' or a column.")
flags.DEFINE_string("resample_to", DEFAULT.resample_to, "KEY=SHARE,... or 'equal'.")
flags.DEFINE_integer("seed", DEFAULT.seed, "Seed of all that is drawn.", lower_bound=0)
flags.DEFINE_bool(
  "allow_large_drop", DEFAULT.allow_large_drop, "Let one rule drop more than half of the rows."
)
SCORER = flags.DEFINE_enum(
  "denoise_scorer", "none", ["none", "content"], "'content': a logistic regression on words."
)
CONFIG = config_flags.DEFINE_config_file(
  "denoise_config", None, "Config of the reward model that scores each fold."
)
MESH = flags.DEFINE_string("mesh", "", f"Of --denoise_config. {MESH_HELP}")
WORKDIR = flags.DEFINE_string(
  "denoise_workdir", None, "Folder of the folds' runs; default REPORT.folds."
)

ANNOTATORS = flags.DEFINE_list("annotators", [], "Columns of annotators: makes their report.")
FIRST = flags.DEFINE_string("first", "response1", "Column of the first response.")
SECOND = flags.DEFINE_string("second", "response2", "Column of the second response.")
PROMPT = flags.DEFINE_list(
  "prompt", [], "Columns of the prompt, whose rows are resampled together."
)
VALUES = flags.DEFINE_list(
  "annotator_values", ["1", "2", "0"], "Values for: first better, second better, tie."
)
flags.mark_flags_as_required(["input", "report"])


def _options() -> pipeline.Options:
  return pipeline.Options(**{name: flags.FLAGS[name].value for name in DEFAULT.__dict__})


def _scorer(report: Path):
  if CONFIG.value is not None and SCORER.value != "none":
    raise DataError("give --denoise_scorer or --denoise_config, not both")
  if CONFIG.value is not None:
    check_devices()
    return ConfigScorer(with_mesh(CONFIG.value, MESH.value), WORKDIR.value or f"{report}.folds")
  return ContentModel(progress=True) if SCORER.value == "content" else None


def _check_output(flag: str, output: Path) -> None:
  """Raises DataError if a file to write is one to read, or in its folder: it would be read next."""
  read = {"input": INPUT.value, "heldout": HELDOUT.value}
  output = output.resolve()
  for name, given in read.items():
    if given and (output == (path := expanded(Path(given)).resolve()) or path in output.parents):
      raise DataError(f"--{flag}={output} is --{name}, or lies in it; write somewhere else")


# Flags that only cleaning reads, and those that only the report on annotators does.
_CLEANS = (
  *("output", "format", "columns", "limit", "strict", "heldout", "mesh"),
  *("denoise_scorer", "denoise_config", "denoise_workdir"),
  *(name for name in DEFAULT.__dict__ if name != "seed"),
)
_ANNOTATES = ("first", "second", "prompt", "annotator_values")


def _check_flags() -> None:
  """Raises DataError if a flag is given that only the other of the two jobs reads."""
  unread = _CLEANS if ANNOTATORS.value else _ANNOTATES
  given = [f"--{name}" for name in unread if flags.FLAGS[name].present]
  if given and ANNOTATORS.value:
    raise DataError(f"--annotators makes a report and no rows; leave out {', '.join(given)}")
  if given:
    raise DataError(f"{', '.join(given)}: only a report on --annotators reads it")


def main() -> None:
  _check_flags()
  report_path = output_file("report", REPORT.value)
  _check_output("report", report_path)
  if ANNOTATORS.value:
    judgements = annotators.read_judgements(
      INPUT.value,
      ANNOTATORS.value,
      first=FIRST.value,
      second=SECOND.value,
      prompt=PROMPT.value,
      values=VALUES.value,
    )
    report = annotators.annotator_report(judgements, seed=flags.FLAGS["seed"].value)
    _save(report_path, {"input": INPUT.value} | report)
    print(annotators.table(report))
    return
  if not OUTPUT.value:
    raise DataError("set --output to a .jsonl or .jsonl.gz file (or --annotators for their report)")
  options, scorer = _options(), _scorer(report_path)
  if options.denoise != "none" and scorer is None:
    raise DataError(
      f"--denoise={options.denoise} needs --denoise_scorer=content or --denoise_config=FILE"
    )
  output = Path(OUTPUT.value)
  _check_output("output", output)
  if output.resolve() == report_path.resolve():
    raise DataError(f"--output and --report are both {output}; write one of them somewhere else")
  ledger.check_output(output)
  how = dict(format=FORMAT.value, columns=COLUMNS.value)
  heldout, heldout_report = None, Report(strict=STRICT.value)
  if HELDOUT.value:
    heldout = formats.load(HELDOUT.value, report=heldout_report, **how)
  rows = ledger.read(INPUT.value, strict=STRICT.value, limit=LIMIT.value or None, **how)
  files = {"input": INPUT.value, "output": OUTPUT.value, "files_not_read": rows.unread}
  if heldout is not None:
    files["heldout"] = {
      "path": HELDOUT.value,
      "kept": heldout_report.kept,
      "dropped": dict(heldout_report.dropped),
    }
  try:
    report = pipeline.curate(rows, options, heldout=heldout, scorer=scorer, progress=True)
  except pipeline.LargeDropError as stopped:
    _save(report_path, files | {"output": None} | stopped.report)
    old = f"{output}, which was there before, is as it was" if output.exists() else "no output"
    raise DataError(f"{stopped}. Written: {report_path}, and {old}") from stopped
  ledger.write(output, rows, **how)
  _save(report_path, files | report)
  print(pipeline.table(report))


def _save(path: Path, report: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  write_json(path, report)


if __name__ == "__main__":
  launch(main, devices=False)
