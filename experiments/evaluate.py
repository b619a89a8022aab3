"""Agreement of a model with held-out judgements.

python -m experiments.evaluate --model=DIR --data=FILE --output=DIR2 writes DIR2/report.json. With
--data=heldout the data are what the run in the workdir DIR held out.

--exclude=FILE leaves out the examples whose conversation (of solutions: whose question) is in FILE;
give the model's training data here. A warning says of how many examples a run has learned from
their conversations, and so does `data.trained_on` of the report. --limit=N takes N of the rest,
drawn at random and the same every time.
"""

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
from rm_jax.data import formats
from rm_jax.data.choose import conversations_in, sampled, without
from rm_jax.data.report import DataError, Report
from rm_jax.heldout.evaluate import evaluate, summary_table
from rm_jax.heldout.shown import as_text
from rm_jax.losses.process import SO_FAR
from rm_jax.storage.files import write_atomically, write_json

MODEL = flags.DEFINE_string("model", None, "Workdir, saved folder, Hugging Face folder or hub id.")
DATA = flags.DEFINE_string(
  "data",
  None,
  "File, folder or hub id of feedback of any kind; 'heldout': what the run itself held out.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder that gets report.json.")
FORMAT = flags.DEFINE_string("format", "auto", "Format of the rows; 'auto' = by their columns.")
COLUMNS = flags.DEFINE_string("columns", "", COLUMNS_HELP)
EXCLUDE = flags.DEFINE_string("exclude", None, "Data whose conversations are left out.")
LIMIT = flags.DEFINE_integer("limit", 0, "Examples to take, drawn at random; 0 = all.", 0)
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first bad row.")
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Compute dtype of the backbone.")
CHAT_TEMPLATE = flags.DEFINE_string(
  "chat_template", "", "For messages: 'hh', Jinja text or a file of it; '' = the model's own."
)
VERDICT = flags.DEFINE_list("verdict", [], VERDICT_HELP)
QUESTION = flags.DEFINE_string("question", "", QUESTION_HELP)
EOS = flags.DEFINE_enum(
  "eos",
  "",
  ("", "append", "none"),
  "EOS behind a response; '' = as saved with the model, else none (docs/exports.md).",
)
STEPS = flags.DEFINE_enum(
  "steps",
  "",
  ("", *SO_FAR),
  "How scores of steps are read: each by itself ('own'), or of the solution up to the step, by the "
  "least score so far ('min') or the product of the probabilities; '' = as saved with the model.",
)
EXAMPLES = flags.DEFINE_integer(
  "examples", 0, "Pairs to write as text to examples.md: so many that the model gets right, and so "
  "many wrong, drawn at random; 0 = none.", 0
)  # fmt: skip
# Earlier versions called --output --out, and --limit --sample.
flags.DEFINE_alias("out", "output")
flags.DEFINE_alias("sample", "limit")
flags.mark_flags_as_required(["model", "data", "output"])


def main() -> None:
  folder = output_folder("output", OUTPUT.value)
  report = Report(strict=STRICT.value)
  options = dict(format=FORMAT.value, columns=COLUMNS.value)
  if DATA.value == HELDOUT:
    if not EXCLUDE.value:  # whose format it would be
      check_own_format(FORMAT.value, COLUMNS.value)
    examples = own_data(config_of(MODEL.value), report, MODEL.value)[1]
  else:
    examples = formats.load(DATA.value, report=report, **options)
  if EXCLUDE.value:
    seen = conversations_in(EXCLUDE.value, **options)
    examples = without(examples, seen, EXCLUDE.value, report)
  examples = sampled(examples, LIMIT.value, report)
  trained = None if DATA.value == HELDOUT else count_learned(MODEL.value, examples)
  model = RewardModel.from_pretrained(
    MODEL.value,
    dtype=DTYPE.value,
    chat_template=CHAT_TEMPLATE.value,
    eos=EOS.value,
    steps=STEPS.value,
    verdict=VERDICT.value,
    question=QUESTION.value,
  )
  groups, examples = model.text_model.tokenise(examples, report)
  if len({e.conversation for e in examples}) < 2:
    raise DataError(f"{DATA.value}: feedback on at least 2 conversations is needed. {report}")
  both = model.score_outputs(groups, progress="evaluate")
  scores = [
    outputs if e.kind == "attributes" else rewards
    for e, (rewards, outputs) in zip(examples, both, strict=True)
  ]
  out = evaluate(scores, examples, model.attributes, [outputs for _, outputs in both]).report
  cut = sum(g.cut > 0 for g in groups)
  data = {"kept": report.kept, "dropped": dict(sorted(report.dropped.items())), "prompts_cut": cut}
  if trained is not None:
    data["trained_on"] = trained
  write_json(folder / "report.json", {"heldout": out, "data": data})
  if EXAMPLES.value:
    write_atomically(folder / "examples.md", as_text(scores, examples, EXAMPLES.value))
  print(summary_table(out))
  print(report)
  if cut:
    limits = model.text_model.convention.limits
    print(f"{cut} examples are cut: prompts with their responses are longer than {limits}")


if __name__ == "__main__":
  launch(main)
