"""Readers that the formats of this folder share, as of questions, answers and ShareGPT's turns."""

import json
import re
from collections.abc import Sequence

from rm_jax.data.dialogue import check_prompt, check_response, text_of
from rm_jax.data.report import RowError, shown
from rm_jax.types import Message

_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
# Names of the roles in ShareGPT's form, as LLaMA-Factory lists them.
_SPEAKERS = {
  "system": "system",
  "human": "user",
  "user": "user",
  "gpt": "assistant",
  "assistant": "assistant",
  "observation": "tool",
  "tool": "tool",
}

Chat = tuple[Message, ...]


def question_of(value: object, column: str) -> str:
  """One question as a string, for data sets whose questions and solutions are plain text.

  Raises:
    RowError: wrong_type, lone_surrogate or empty_prompt.
  """
  text = text_of(value, column)
  check_prompt(text)
  return text


def asked(value: object, column: str, system: object = None) -> Chat:
  """One question as a user's message, behind a system message where `system` has text.

  Raises:
    RowError: wrong_type, lone_surrogate or empty_prompt.
  """
  text = text_of(value, column)
  if not text.strip():
    raise RowError("empty_prompt", f"{column!r} is {shown(text)}; expected text")
  return (*system_of(system), Message(role="user", content=text))


def system_of(value: object) -> Chat:
  """A column's system message; () where it is null or has no text. RowError as `text_of`."""
  text = "" if value is None else text_of(value, "system")
  return (Message(role="system", content=text),) if text.strip() else ()


def answered(value: object, column: str) -> Chat:
  """One answer as an assistant's message.

  Raises:
    RowError: wrong_type, lone_surrogate or empty_response.
  """
  answer = (Message(role="assistant", content=text_of(value, column)),)
  check_response(answer, column)
  return answer


def turns_of(value: object, column: str) -> Chat:
  """Reads ShareGPT's turns, a list of {from, value} or one of them.

  Raises:
    RowError: wrong_type, bad_role, lone_surrogate; or unsupported_message for a function call,
      whose text no message can hold.
  """
  turns = []
  for i, turn in enumerate(value if isinstance(value, list) else [value]):
    where = f"{column}[{i}]" if isinstance(value, list) else column
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
      raise RowError("wrong_type", f"{where} is {shown(turn)}; expected {{from, value}}")
    speaker = turn["from"]
    if speaker == "function_call":
      raise RowError("unsupported_message", f"{where} is a function call; expected text")
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
      known = ", ".join(_SPEAKERS)
      raise RowError("bad_role", f"{where} is from {shown(speaker)}; expected one of {known}")
    content = text_of(turn["value"], f"{where}.value")
    turns.append(Message(role=_SPEAKERS[speaker], content=content))
  return tuple(turns)


def helpsteer_prompt(value: object) -> Chat:
  """HelpSteer's prompt: one string, and in a prompt of several turns, a line
  '<extra_id_1>Assistant' or '<extra_id_1>User' starts each turn but the first.

  Raises:
    RowError: wrong_type, lone_surrogate, empty_prompt, or malformed_dialogue if the assistant
      speaks last.
  """
  first, *rest = _HELPSTEER_TURN.split(text_of(value, "prompt"))
  roles = ["user", *(role.lower() for role in rest[::2])]
  if roles[-1] != "user":
    raise RowError("malformed_dialogue", "'prompt' ends with the assistant; expected the user")
  prompt = tuple(
    Message(role=role, content=text) for role, text in zip(roles, [first, *rest[1::2]], strict=True)
  )
  check_prompt(prompt)
  return prompt


def unpacked(value: object) -> object:
  """A list or an object whose JSON a cell of CSV holds; any other value as it is, '' as null.

  For columns that hold no text in their layout, and have a name that texts have elsewhere.
  """
  if not isinstance(value, str):
    return value
  if not value.strip():
    return None
  try:
    found = json.loads(value) if value.lstrip().startswith(("[", "{")) else value
  except (ValueError, RecursionError):
    return value
  return found if isinstance(found, list | dict) else value


def dicts_of(
  value: object, column: str, keys: Sequence[str], least: int = 1
) -> list[dict[str, object]]:
  """Reads a list of objects that all have these keys.

  Raises:
    RowError: wrong_type, or too_few_responses (under `least`, where that is more than 1).
  """
  expected = f"a list of {{{', '.join(keys)}}}"
  if not isinstance(value, list):
    raise RowError("wrong_type", f"{column!r} is {shown(value)}; expected {expected}")
  for i, one in enumerate(value):
    if not isinstance(one, dict) or any(key not in one for key in keys):
      raise RowError("wrong_type", f"{column}[{i}] is {shown(one)}; expected {expected}")
  if len(value) < least:
    reason = "too_few_responses" if least > 1 else "wrong_type"
    raise RowError(reason, f"{column!r} has {len(value)}; expected at least {least}")
  return value


def names_of(values: Sequence[object]) -> tuple[str, ...] | None:
  """Names of the responses' authors; None if one of them is not known."""
  return tuple(values) if all(isinstance(name, str) and name for name in values) else None
