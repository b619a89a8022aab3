"""Agreement of a model with held-out judgements.

python -m experiments.evaluate --model=DIR --data=FILE --out=DIR2 writes DIR2/report.json.
"""

from pathlib import Path

from absl import flags

from experiments.launch import launch
from rm_jax.api import RewardModel
from rm_jax.data import formats
from rm_jax.data.report import DataError, Report
from rm_jax.train.evaluate import evaluate, summary_table
from rm_jax.train.writers import write_json

MODEL = flags.DEFINE_string("model", None, "Workdir, saved folder, Hugging Face folder or hub id.")
DATA = flags.DEFINE_string("data", None, "File, folder or hub id of feedback of any kind.")
OUT = flags.DEFINE_string("out", None, "Folder that gets report.json.")
FORMAT = flags.DEFINE_string("format", "auto", "Format of the rows; 'auto' = by their columns.")
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first bad row.")
DTYPE = flags.DEFINE_string("dtype", "float32", "Compute dtype of the backbone.")
flags.mark_flags_as_required(["model", "data", "out"])


def main() -> None:
  report = Report(strict=STRICT.value)
  examples = formats.load(DATA.value, report=report, format=FORMAT.value)
  model = RewardModel.from_pretrained(MODEL.value, dtype=DTYPE.value)
  groups, examples = model.model.tokenise(examples, report)
  if len({e.conversation for e in examples}) < 2:
    raise DataError(f"{DATA.value}: feedback on at least 2 conversations is needed. {report}")
  scores = model.score_groups(groups, progress="evaluate")
  out = evaluate(scores, examples, model.attributes).report
  data = {"kept": report.kept, "dropped": dict(sorted(report.dropped.items()))}
  Path(OUT.value).mkdir(parents=True, exist_ok=True)
  write_json(Path(OUT.value) / "report.json", {"heldout": out, "data": data})
  print(summary_table(out))
  print(report)


if __name__ == "__main__":
  launch(main)
