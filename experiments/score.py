"""Adds "reward" to each row of {prompt, response}, or of {prompt, completions} in steps, in order.

python -m experiments.score --model=DIR --input=FILE.jsonl --output=FILE.jsonl
"""

import json
from pathlib import Path

from absl import flags

from experiments.launch import launch
from rm_jax.api import RewardModel
from rm_jax.data.read import read_rows
from rm_jax.data.report import Report
from rm_jax.losses.process import HOW
from rm_jax.train.writers import write_atomically

MODEL = flags.DEFINE_string("model", None, "Workdir, saved folder, Hugging Face folder or hub id.")
INPUT = flags.DEFINE_string("input", None, "Rows to score; JSON lines or parquet.")
OUTPUT = flags.DEFINE_string("output", None, "JSON lines file that gets the rows with rewards.")
AGGREGATE = flags.DEFINE_enum("aggregate", "min", HOW, "How a solution's steps become its reward.")
DTYPE = flags.DEFINE_string("dtype", "float32", "Compute dtype of the backbone.")
MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Tokens of a row; 0 = the model's own.")
CHAT_TEMPLATE = flags.DEFINE_string(
  "chat_template", "", "For messages: 'hh', Jinja text or a file of it; '' = the model's own."
)
EOS = flags.DEFINE_enum(
  "eos", "", ("", "append", "none"), "After a response; '' = as saved, or none (docs/exports.md)."
)
flags.mark_flags_as_required(["model", "input", "output"])


def main() -> None:
  # Strict: a row without a reward would shift all that come after it for who reads by line.
  rows = [row for _, row in read_rows(INPUT.value, Report(strict=True))]
  model = RewardModel.from_pretrained(
    MODEL.value,
    dtype=DTYPE.value,
    max_length=MAX_LENGTH.value,
    chat_template=CHAT_TEMPLATE.value,
    eos=EOS.value,
  )
  rewards = model.score(rows, aggregate=AGGREGATE.value, progress=True)
  lines = (
    json.dumps({**row, "reward": float(reward)}, ensure_ascii=False) + "\n"
    for row, reward in zip(rows, rewards, strict=True)
  )
  write_atomically(Path(OUTPUT.value), "".join(lines))
  print(f"{len(rows)} rows scored: {OUTPUT.value}")


if __name__ == "__main__":
  launch(main)
