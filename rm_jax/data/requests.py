"""Reads rows that are to be scored: a prompt with a response or with steps, without feedback."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rm_jax.data.dialogue import messages_of, text_of
from rm_jax.data.feedback import steps_of
from rm_jax.data.report import DataError, RowError, shown
from rm_jax.types import Text


class Asked(NamedTuple):
  """A prompt with either a response or the steps of a solution; the other of these is None."""

  prompt: Text
  response: Text | None
  steps: tuple[str, ...] | None


_COLUMNS = {
  "response": ("response", "completion"),
  "steps": ("completions", "steps"),
}
# Columns that say what is judged, of which a row has one.
SAME_MEANING = (tuple(name for names in _COLUMNS.values() for name in names),)
# All columns that `read_row` reads.
COLUMNS = ("prompt", *(name for names in _COLUMNS.values() for name in names))
_EXPECTED = {
  "response": "response (or completion)",
  "steps": "completions (or steps), the texts of its steps",
}


def read_row(row: Mapping[str, Any], i: int | str, *forms: str) -> Asked:
  """Reads a row's prompt with its `response` (or `completion`) or its `completions` (or `steps`).

  Args:
    row: {column: value}; a prompt or response is a string or messages, steps are a list of strings.
    i: the row's number, or another name for it in error messages.
    forms: which of 'response' and 'steps' are looked for in the row; by default both.

  Raises:
    DataError: the row is no mapping, a column is missing, or its value cannot be read.
  """
  where = f"row {i}" if isinstance(i, int) else i
  if not isinstance(row, Mapping):
    raise DataError(f"{where}: is {shown(row)}; expected {{column: value}}")
  forms = forms or tuple(_COLUMNS)
  found = [name for form in forms for name in _COLUMNS[form] if name in row]
  # A column that is null counts as absent if another one has a value.
  found.sort(key=lambda name: row[name] is None)
  if "prompt" not in row or not found:
    expected = " or ".join(_EXPECTED[form] for form in forms)
    raise DataError(f"{where}: has columns {sorted(row)}; expected prompt and {expected}")
  prompt, name = row["prompt"], found[0]
  try:
    if name in _COLUMNS["steps"]:
      prompt = (
        text_of(prompt, "prompt") if isinstance(prompt, str) else messages_of(prompt, "prompt")
      )
      return Asked(prompt, None, steps_of(row[name], name))
    response = row[name]
    if isinstance(prompt, str) and isinstance(response, str):
      return Asked(text_of(prompt, "prompt"), text_of(response, name), None)
    # After messages, a string is the content of the assistant's answer.
    if isinstance(response, str):
      response = [{"role": "assistant", "content": response}]
    return Asked(messages_of(prompt, "prompt"), messages_of(response, name), None)
  except RowError as error:
    raise DataError(f"{where}: {error.reason}: {error.detail}") from error


class RowNumbers(Sequence):
  """Default names of rows in error messages: item i is 'row i', for any number of rows."""

  def __len__(self) -> int:
    return 0

  def __getitem__(self, i: int) -> str:
    return f"row {i}"
