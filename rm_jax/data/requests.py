"""Rows to be scored: what is asked of a model, without any feedback on it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rm_jax.data.dialogue import messages_of, text_of
from rm_jax.data.feedback import steps_of
from rm_jax.data.report import DataError, RowError, shown
from rm_jax.types import Text


class Asked(NamedTuple):
  """A prompt with a response, or with the steps of a solution; the other of the two is None."""

  prompt: Text
  response: Text | None
  steps: tuple[str, ...] | None


_COLUMNS = {
  "response": ("response", "completion"),
  "steps": ("completions", "steps"),
}
_EXPECTED = {
  "response": "response (or completion)",
  "steps": "completions (or steps), the texts of its steps",
}


def read_row(row: Mapping[str, Any], i: int | str, *forms: str) -> Asked:
  """Reads a row: its prompt and `response` (or `completion`), or `completions` (or `steps`).

  Args:
    row: {column: value}; strings, or message lists. Steps are a list of strings.
    i: its number, or what else it is called in errors.
    forms: 'response', 'steps': what it may be; by default either.

  Raises:
    DataError: a column is missing, or holds what cannot be read.
  """
  where = f"row {i}" if isinstance(i, int) else i
  if not isinstance(row, Mapping):
    raise DataError(f"{where}: is {shown(row)}; expected {{column: value}}")
  forms = forms or tuple(_COLUMNS)
  found = [name for form in forms for name in _COLUMNS[form] if name in row]
  found.sort(key=lambda name: row[name] is None)  # null is not given, where another column is
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
    # A conversation's answer may be given as its bare text.
    if isinstance(response, str):
      response = [{"role": "assistant", "content": response}]
    return Asked(messages_of(prompt, "prompt"), messages_of(response, name), None)
  except RowError as error:
    raise DataError(f"{where}: {error.reason}: {error.detail}") from None
