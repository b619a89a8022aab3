"""Adds "reward" to each row of {prompt, response}, or of {prompt, completions} in steps.

python -m experiments.score --model=DIR --input=FILE.jsonl --output=FILE.jsonl

Rows are read twice: first all are checked, then they are scored and written in their order, some
thousands at a time, so that a file of any length takes the same memory. The output is written under
another name and renamed when it is complete, so that a run that fails leaves no incomplete file.
"""

import itertools
import json
import os
from collections.abc import Iterator

from absl import flags

from experiments.launch import (
  COLUMNS_HELP,
  DTYPES,
  QUESTION_HELP,
  VERDICT_HELP,
  launch,
  output_file,
)
from rm_jax.api import RewardModel
from rm_jax.batch.tokens import Cut, cut_message
from rm_jax.data.columns import (
  check_first,
  check_meanings,
  parse_columns,
  renamed,
  texts_of_columns,
)
from rm_jax.data.read import Row, read_rows
from rm_jax.data.report import DataError, Report, RowError, shown
from rm_jax.data.requests import COLUMNS as READS
from rm_jax.data.requests import SAME_MEANING, read_row
from rm_jax.errors import InputError
from rm_jax.losses.process import HOW

MODEL = flags.DEFINE_string("model", None, "Workdir, saved folder, Hugging Face folder or hub id.")
INPUT = flags.DEFINE_string("input", None, "Rows to score; JSON lines, CSV, TSV or parquet.")
COLUMNS = flags.DEFINE_string("columns", "", COLUMNS_HELP)
LIMIT = flags.DEFINE_integer("limit", 0, "Rows to score, from the first on; 0 = all.", 0)
OUTPUT = flags.DEFINE_string("output", None, "JSON lines file that gets the rows with rewards.")
AGGREGATE = flags.DEFINE_enum("aggregate", "min", HOW, "How a solution's steps become its reward.")
DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Compute dtype of the backbone.")
MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Tokens of a row; 0 = the model's own.")
SHAPED = flags.DEFINE_bool(
  "shaped",
  False,
  'Write the score that the model\'s chain of shaping gives as "reward", and add "raw_reward", '
  '"reasons" (rules that caught the response) and "shaping" (a hash of the chain).',
)
SHAPING = flags.DEFINE_string(
  "shaping", "", "Chain for --shaped, as in 'clip(low=-2, high=2), tanh'; '' = the model's own."
)
MARK_CUT = flags.DEFINE_bool(
  "mark_cut", False, 'Add "cut" to each row: tokens of its prompt and response that were left out.'
)
ROWS = flags.DEFINE_integer(
  "rows",
  8192,
  "Rows that are held in memory at once; the responses among them that have one prompt share its "
  "computation.",
  lower_bound=1,
)
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
flags.mark_flags_as_required(["model", "input", "output"])

# About this many characters of rows are held in memory at once, whatever --rows says, since a row
# may be as long as a book.
_CHARACTERS = 2**26


def written(origin: str, row: Row) -> str:
  """A row as a JSON line.

  Raises:
    DataError: JSON cannot hold one of its values; the message names the column.
  """
  try:
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    line.encode("utf-8")
    return line
  except (TypeError, ValueError) as error:
    for name, value in row.items():
      try:
        json.dumps({name: value}, ensure_ascii=False, allow_nan=False).encode("utf-8")
      except (TypeError, ValueError) as error:
        raise DataError(
          f"{origin}: column {name!r} is {shown(value)}, for which JSON has no word; expected "
          "text, finite numbers, true, false, null, or lists and objects of these: convert or drop "
          "the column"
        ) from error
    raise DataError(f"{origin}: {error}") from error


def read() -> Iterator[tuple[str, Row]]:
  """(origin, row) of each row of --input, up to --limit.

  Raises:
    DataError: there is nothing to read, or a row cannot be read.
  """
  # Strict, because output line n must be input line n: a dropped row would shift those after it.
  rows = read_rows(INPUT.value, Report(strict=True), texts_of_columns(mapping()))
  return itertools.islice(rows, LIMIT.value or None)


def mapping() -> dict[str, str]:
  """--columns, our column -> the file's.

  Raises:
    DataError: it has another form, names a column twice or one that scoring does not read, or has
      two that mean the same.
  """
  columns = parse_columns(COLUMNS.value, "--columns")
  if unknown := [name for name in columns if name not in READS]:
    raise DataError(f"--columns has {unknown[0]!r}; expected of {', '.join(READS)}")
  check_meanings(columns, SAME_MEANING, "--columns")
  return columns


def asked(row: Row, origin: str) -> Row:
  """A row under our names, as --columns has them; the output keeps the file's.

  Raises:
    DataError: the row lacks a column that --columns names.
  """
  try:
    columns = mapping()
    return renamed(row, columns, check_meanings(columns, SAME_MEANING))
  except RowError as error:
    raise DataError(f"{origin}: {error.reason}: {error.detail}") from error


def parts(rows: Iterator[tuple[str, Row]]) -> Iterator[list[tuple[str, Row]]]:
  """Yields the rows in lists of at most --rows rows and about `_CHARACTERS` characters."""
  part, size = [], 0
  for origin, row in rows:
    part.append((origin, row))
    size += sum(len(str(value)) for value in row.values())
    if len(part) == ROWS.value or size >= _CHARACTERS:
      yield part
      part, size = [], 0
  if part:
    yield part


def check_rows() -> int:
  """Checks all rows before the model is loaded, and returns their number.

  Raises:
    DataError: a row cannot be read, has not the form of a row to score, or cannot be written.
  """
  count = 0
  for origin, row in read():
    if not count:
      check_first(row, mapping(), origin)
    read_row(asked(row, origin), origin)
    written(origin, row)
    count += 1
  return count


def rewards_of(model: RewardModel, rows: list[Row], **options) -> list[Row]:
  """The columns that are added to each row: its reward, and with --shaped how it came about."""
  if not SHAPED.value:
    return [{"reward": float(reward)} for reward in model.score(rows, **options)]
  return [
    {
      "reward": one["shaped"],
      "raw_reward": one["raw"],
      "reasons": one["reasons"],
      "shaping": model.shaping.digest,
    }
    for one in model.explain(rows, **options)
  ]


def _unshaped(row: Row) -> Row:
  """A row without what an earlier call with --shaped said of another reward."""
  if SHAPED.value or not {"raw_reward", "shaping"} <= row.keys():
    return row
  return {name: x for name, x in row.items() if name not in ("raw_reward", "reasons", "shaping")}


def main() -> None:
  if SHAPING.value and not SHAPED.value:
    raise InputError(f"--shaping={SHAPING.value} is for --shaped, which is not set")
  output = output_file("output", OUTPUT.value)
  count = check_rows()
  part_of_it = output.with_name(f".{output.name}.{os.getpid()}.part")
  with open(part_of_it, "w", encoding="utf-8") as file:
    try:
      model = RewardModel.from_pretrained(
        MODEL.value,
        dtype=DTYPE.value,
        max_length=MAX_LENGTH.value,
        chat_template=CHAT_TEMPLATE.value,
        eos=EOS.value,
        verdict=VERDICT.value,
        question=QUESTION.value,
        shaping=SHAPING.value,
      )
      if SHAPED.value and model.shaping:
        print(f"shaped by {model.shaping.digest}: {model.shaping}")
      cuts: list[Cut] = []
      for rows in parts(read()):
        done, own = len(cuts), []
        rewards = rewards_of(
          model,
          [asked(row, origin) for origin, row in rows],
          aggregate=AGGREGATE.value,
          progress=f"rows {done + 1} to {done + len(rows)} of {count}",
          origins=[origin for origin, _ in rows],
          cuts=own,
        )
        for (origin, row), reward, cut in zip(rows, rewards, own, strict=True):
          mark = {"cut": int(cut)} if MARK_CUT.value else {}
          file.write(written(origin, {**_unshaped(row), **reward, **mark}))
        cuts += own
      if len(cuts) != count:
        raise DataError(f"{INPUT.value}: {count} rows when checked and {len(cuts)} when scored")
      file.flush()
      os.fsync(file.fileno())
      os.replace(part_of_it, output)
    except BaseException:
      part_of_it.unlink(missing_ok=True)
      raise
  if any(cuts):
    print(
      f"{cut_message(cuts, model.text_model.convention.limits)} (--mark_cut says of which rows)"
    )
  print(f"{count} rows scored: {output}")


if __name__ == "__main__":
  launch(main)
