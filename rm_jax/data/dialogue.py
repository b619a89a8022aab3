"""Readers of one column's value: text, messages, numbers, and dialogues in Anthropic's raw form.

The functions that check a value raise `RowError` where it cannot be used. The error's `reason` is
the word that the report counts the dropped row under.
"""

import math
import re

from rm_jax.data.report import RowError, shown
from rm_jax.types import Message, Text

_ROLES = ("system", "user", "assistant", "tool")
# Other names of a role. OpenAI's newer models call the system role 'developer'. Most chat templates
# know only 'system', and they refuse or silently leave out a message of a role they do not know.
_ALIASES = {"developer": "system"}
# The smallest number that rounds to infinity in float32, the dtype of labels in a batch.
_INFINITE = (2 - 2**-24) * 2.0**127
_TURN = re.compile(r"\n\n(Human|Assistant): ")
_TURN_ROLES = {"Human": "user", "Assistant": "assistant"}
_FIRST_HUMAN = re.compile(r"\s*Human:(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)


def key_of(text: Text) -> str | tuple[tuple[str, str], ...]:
  """A hashable key of a text: equal for equal texts. Messages are dicts, which cannot be hashed."""
  return text if isinstance(text, str) else tuple((m["role"], m["content"]) for m in text)


def texts_of(text: Text) -> list[str]:
  """The contents of a text's messages; for a string, a list of that string."""
  return [text] if isinstance(text, str) else [message["content"] for message in text]


def plain(text: Text) -> str:
  """The contents of a text's messages, joined by line breaks; a string is returned unchanged."""
  return "\n".join(texts_of(text))


def text_of(value: object, column: str) -> str:
  """Returns `value` if it is a string that can be encoded as UTF-8.

  Raises:
    RowError: wrong_type, or lone_surrogate: JSON can hold half of a surrogate pair as an escape,
      and no tokenizer accepts it.
  """
  if not isinstance(value, str):
    raise RowError("wrong_type", f"{column!r} is {shown(value)}; expected text")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    found = f"{column!r} has half a surrogate pair at character {error.start}"
    raise RowError("lone_surrogate", f"{found}; expected encodable text") from error
  return value


def messages_of(value: object, column: str) -> tuple[Message, ...]:
  """Reads a list of {role, content}; other keys, such as ids, are ignored, except a tool's call.

  The role 'developer' is always read as 'system', its older name, even where the model's chat
  template would know it.

  Raises:
    RowError: wrong_type, bad_role, unsupported_message (a tool's call) or lone_surrogate.
  """
  if not isinstance(value, list | tuple):  # tuples are how the world and `types.Example` hold them
    found = f"{column!r} is {shown(value)}; expected a list of {{role, content}}, or all strings"
    raise RowError("wrong_type", found)
  messages = []
  for index, message in enumerate(value):
    where = f"{column}[{index}]"
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
      raise RowError("wrong_type", f"{where} is {shown(message)}; expected {{role, content}}")
    role = message["role"]
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in _ROLES:
      known = ", ".join((*_ROLES, *_ALIASES))
      raise RowError("bad_role", f"{where} has role {shown(role)}; expected one of {known}")
    for extra in ("tool_calls", "function_call"):
      if message.get(extra):  # Only the content is read, so a call's text would be lost.
        raise RowError("unsupported_message", f"{where} has {extra}; expected role and content")
    content = text_of(message["content"], f"{where}.content")
    messages.append(Message(role=role, content=content))
  return tuple(messages)


def number_of(value: object, column: str) -> float:
  """Reads a number that is finite in float32 as well: an infinite label ends the run in NaN.

  Raises:
    RowError: wrong_type (a bool is not accepted as a number) or not_finite.
  """
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise RowError("wrong_type", f"{column!r} is {shown(value)}; expected a number")
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  if not abs(number) < _INFINITE:
    expected = "a finite number" + (" in float32, under 3.4e38" if math.isfinite(number) else "")
    raise RowError("not_finite", f"{column!r} is {shown(value)}; expected {expected}")
  return number


def probability_of(value: object, column: str) -> float:
  """Reads a number in [0, 1]; false is read as 0 and true as 1.

  Raises:
    RowError: wrong_type, not_finite or out_of_range.
  """
  number = float(value) if isinstance(value, bool) else number_of(value, column)
  if not 0 <= number <= 1:
    raise RowError("out_of_range", f"{column!r} is {number}; expected it in [0, 1]")
  return number


def choice_of(value: object, known: dict, column: str, expected: str = "") -> object:
  """Looks a word or whole number up in `known`, which maps it to what it stands for.

  A bool is refused: Python would find True under the key 1. A float is read if it is whole, as
  pandas writes whole numbers of a column that has gaps.

  Raises:
    RowError: out_of_range, if `value` is not a key of `known`. `expected` replaces the list of keys
      in the message.
  """
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, int | str) or value not in known:
    expected = expected or "one of " + ", ".join(map(str, known))
    raise RowError("out_of_range", f"{column!r} is {shown(value)}; expected {expected}")
  return known[value]


def flag_of(value: object, column: str) -> bool:
  """Reads true or false; null is read as false.

  Raises:
    RowError: wrong_type.
  """
  if value is not None and not isinstance(value, bool):
    raise RowError("wrong_type", f"{column!r} is {shown(value)}; expected true or false")
  return bool(value)


def weight_of(row: dict[str, object]) -> float:
  """The row's `weight`; 1 where the column is absent or null.

  Raises:
    RowError: wrong_type, not_finite or out_of_range.
  """
  weight = row.get("weight")
  weight = 1.0 if weight is None else number_of(weight, "weight")
  if weight < 0:
    raise RowError("out_of_range", f"'weight' is {weight}; expected at least 0")
  return weight


def check_prompt(prompt: Text) -> None:
  """Raises RowError (empty_prompt) if no message of the prompt has text."""
  if not any(text.strip() for text in texts_of(prompt)):
    raise RowError("empty_prompt", f"prompt is {shown(prompt)}; expected text")


def check_response(response: Text, column: str) -> None:
  """Raises RowError (empty_response, malformed_dialogue) if it does not end in an assistant's text.

  Only the last message is checked: it is what was judged, and the earlier ones lead to it.
  """
  last = texts_of(response)[-1] if response else ""
  if not last.strip():
    raise RowError("empty_response", f"{column!r} ends with {shown(last)}; expected text there")
  if not isinstance(response, str) and response[-1]["role"] != "assistant":
    found = f"{column!r} ends with {shown(response[-1])}; expected the assistant's message"
    raise RowError("malformed_dialogue", found)


def conversation_of(prompt: Text) -> str:
  """The key of a prompt's conversation: its first human turn that has text, or else all of it.

  White space is collapsed. Prompts with the same key count as one conversation and go to the same
  split. Of a string that begins with 'Human:' only the turn behind it, up to the next 'Human:' or
  'Assistant:', is looked at; any other string is its own key.
  """
  if isinstance(prompt, str):
    match = _FIRST_HUMAN.match(prompt)
    turns = [match[1]] if match else []
    everything = prompt
  else:
    turns = [m["content"] for m in prompt if m["role"] == "user"]
    everything = " ".join(m["content"] for m in prompt)
  return next((kept for turn in turns if (kept := _collapsed(turn))), _collapsed(everything))


def _collapsed(text: str) -> str:
  return " ".join(text.split())


def parse_dialogue(text: str) -> tuple[Message, ...]:
  """Splits a dialogue in Anthropic's raw form into messages.

  Every character is kept: '\\n\\nHuman: {content}' and '\\n\\nAssistant: {content}', joined, are
  `text`. One role may speak twice in a row and a turn may be empty, because both occur in HH-RLHF.

  Raises:
    RowError: malformed_dialogue, if the dialogue does not start with a Human turn and end with an
      Assistant turn, or if a marker is not followed by a space.
  """
  before, *parts = _TURN.split(text)
  if before or not parts or parts[0] != "Human":
    found = f"starts {shown(text[:40])}; expected '\\n\\nHuman: '"
    raise RowError("malformed_dialogue", found)
  turns = list(zip(parts[::2], parts[1::2], strict=True))
  if turns[-1][0] != "Assistant":
    found = f"last turn is Human's {shown(turns[-1][1][:40])}; expected an Assistant turn"
    raise RowError("malformed_dialogue", found)
  for _, content in turns:
    if "\n\nHuman:" in content or "\n\nAssistant:" in content:
      found = f"a turn's marker without a space after it in {shown(content)}; expected one"
      raise RowError("malformed_dialogue", found)
  return tuple(Message(role=_TURN_ROLES[who], content=content) for who, content in turns)


def common_end(chosen: str, rejected: str) -> int:
  """Length of the common prefix in characters, as far as it can be the prompt of two responses.

  It is cut back so that neither response is blank or starts inside a word; 0 if it must be empty.
  White space before a response belongs to the response, because tokenizers attach a space to the
  word behind it.
  """
  pairs = enumerate(zip(chosen, rejected, strict=False))
  end = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
  while end and not (
    chosen[end:].strip()
    and rejected[end:].strip()
    and (chosen[end - 1].isspace() or (chosen[end].isspace() and rejected[end].isspace()))
  ):
    end -= 1
  return len(chosen[:end].rstrip())


def common_front(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
  """Number of leading messages that two conversations share and that an assistant's turn follows.

  These messages are the prompt. The first turn that differs may be the user's; then the responses
  start at the last assistant's turn before it, and each is several messages long.

  Raises:
    RowError: empty_response, empty_prompt, or prompts_differ where there is no such front.
  """
  if not chosen or not rejected:
    raise RowError("empty_response", "a side without messages; expected a conversation on both")
  front = 0
  for index, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
    if one["role"] == other["role"] == "assistant":
      front = index
    if one != other:
      break
  if front:
    return front
  if chosen[0]["role"] == rejected[0]["role"] == "assistant":
    raise RowError("empty_prompt", "both sides start with the assistant; expected a prompt before")
  found = f"{shown(chosen[0])} and {shown(rejected[0])}; expected the same turns on both sides"
  raise RowError("prompts_differ", f"{found} up to an assistant's")
