"""Formats of two responses, chosen and rejected: with a prompt, without one, and HH's dialogues.

Optional columns: `margin` (in units of score), `weight`, `preference` (the probability that chosen
is better, in [0, 1]) and `tie` (true if neither is better). A null counts as an absent column.
"""

import itertools

from rm_jax.data.dialogue import (
  check_prompt,
  check_response,
  common_end,
  common_front,
  conversation_of,
  flag_of,
  messages_of,
  number_of,
  parse_dialogue,
  probability_of,
  text_of,
  weight_of,
)
from rm_jax.data.formats import register
from rm_jax.data.read import Row
from rm_jax.data.report import RowError, shown
from rm_jax.types import Example, Message, Text


def _looks_like_dialogue(row: Row) -> bool:
  sides = row["chosen"], row["rejected"]
  return all(isinstance(side, str) for side in sides) and any(
    side.startswith("\n\nHuman:") or "\n\nAssistant:" in side for side in sides
  )


_OPTIONAL = ("margin", "preference", "tie")


@register("pair", needs=("prompt", "chosen", "rejected"), optional=_OPTIONAL)
def _pair(row: Row, origin: str) -> Example:
  """Prompt, chosen and rejected: three strings, or message lists.

  A string prompt with message lists is read as one user message, and a string response to a message
  list as one assistant message. Sides of messages may repeat the prompt, which is then removed.
  If both start with a system message and the prompt behind it, the system message joins the prompt.
  """
  prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
  if isinstance(prompt, list):
    chosen, rejected = (
      [{"role": "assistant", "content": side}] if isinstance(side, str) else side
      for side in (chosen, rejected)
    )
  elif isinstance(chosen, str) and isinstance(rejected, str):
    sides = text_of(chosen, "chosen"), text_of(rejected, "rejected")
    return _example(text_of(prompt, "prompt"), *sides, row, origin)
  elif isinstance(prompt, str):
    prompt = [{"role": "user", "content": prompt}]
  front = messages_of(prompt, "prompt")
  check_prompt(front)
  sides = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
  _check_differ(*sides)
  front = _with_system(front, *sides)
  after = _after(front, sides[0], "chosen"), _after(front, sides[1], "rejected")
  return _example(front, *after, row, origin)


@register("hh", needs=("chosen", "rejected"), looks=_looks_like_dialogue, optional=_OPTIONAL)
def _hh(row: Row, origin: str) -> Example:
  """Two whole dialogues in Anthropic's raw form; the prompt is as `common_front` finds it."""
  sides = text_of(row["chosen"], "chosen"), text_of(row["rejected"], "rejected")
  _check_differ(*sides)
  chosen, rejected = map(parse_dialogue, sides)
  front = common_front(chosen, rejected)
  return _example(chosen[:front], chosen[front:], rejected[front:], row, origin)


@register("implicit", needs=("chosen", "rejected"), optional=_OPTIONAL)
def _implicit(row: Row, origin: str) -> Example:
  """Two conversations; the prompt is what they share (`common_front`, of strings `common_end`)."""
  chosen, rejected = row["chosen"], row["rejected"]
  if isinstance(chosen, str) and isinstance(rejected, str):
    _check_differ(text_of(chosen, "chosen"), text_of(rejected, "rejected"))
    end = common_end(chosen, rejected)
    if not chosen[:end].strip():
      raise RowError(
        "empty_prompt",
        f"no column of a prompt among {sorted(row)}, and 'chosen' and 'rejected' do not begin "
        "alike; expected a prompt in front of both, or in a column (data.columns says in which)",
      )
    return _example(chosen[:end], chosen[end:], rejected[end:], row, origin)
  sides = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
  _check_differ(*sides)
  front = common_front(*sides)
  return _example(sides[0][:front], sides[0][front:], sides[1][front:], row, origin)


def _with_system(prompt: tuple[Message, ...], *sides: tuple[Message, ...]) -> tuple[Message, ...]:
  """Adds to the prompt the system messages that both sides have in front of a repeated prompt."""
  turns = itertools.takewhile(lambda m: m["role"] == "system", sides[0])
  whole = (*turns, *prompt)
  return whole if all(side[: len(whole)] == whole for side in sides) else prompt


def _after(
  prompt: tuple[Message, ...], side: tuple[Message, ...], column: str
) -> tuple[Message, ...]:
  """A side's messages without the prompt, which some data sets repeat in front of each side.

  Raises:
    RowError: prompts_differ, if what is left does not begin with the assistant.
  """
  response = side[len(prompt) :] if side[: len(prompt)] == prompt else side
  if response and response[0]["role"] != "assistant":
    found = f"{column!r} starts with {shown(response[0])}; expected the prompt or the assistant"
    raise RowError("prompts_differ", found)
  return response


def _example(prompt: Text, chosen: Text, rejected: Text, row: Row, origin: str) -> Example:
  """Checks the three texts, reads the optional columns and builds the `Example`.

  A preference p other than 1 becomes soft labels (p, 1 − p) and the same in `pairs`; a tie becomes
  equal labels and `ties`. The margin of a tie is kept as it was given; no loss reads it.
  """
  _check_differ(chosen, rejected)
  check_prompt(prompt)
  check_response(chosen, "chosen")
  check_response(rejected, "rejected")
  tie = flag_of(row.get("tie", False), "tie")
  preference = row.get("preference")
  if preference is not None:
    preference = probability_of(preference, "preference")
    if tie:
      found = f"'tie' is true and 'preference' is {preference}"
      raise RowError("out_of_range", f"{found}; expected one of the two")
  pairs = ties = None
  labels = (1.0, 0.0)
  if tie:
    labels, ties = (0.0, 0.0), ((0.0, 1.0), (1.0, 0.0))
  elif preference not in (None, 1.0):
    labels, pairs = (preference, 1 - preference), ((0.0, preference), (1 - preference, 0.0))
  return Example(
    prompt=prompt,
    responses=(chosen, rejected),
    labels=labels,
    kind="pair",
    margin=_margin_of(row),
    weight=weight_of(row),
    origin=origin,
    conversation=conversation_of(prompt),
    pairs=pairs,
    ties=ties,
  )


def _margin_of(row: Row) -> float | None:
  if row.get("margin") is None:
    return None
  margin = number_of(row["margin"], "margin")
  if margin < 0:
    raise RowError(
      "out_of_range",
      f"'margin' is {margin}; expected by how much 'chosen' should win, which is not negative. If "
      "its sign says which of the two is better, put the better one into 'chosen'",
    )
  return margin


def pair_example(
  row: Row,
  origin: str,
  prompt: Text,
  sides: tuple[Text, Text],
  sign: float,
  *,
  margin: float | None = None,
  authors: tuple[str, str] | None = None,
  judges: dict[str, float] | None = None,
) -> Example:
  """Builds the `Example` of two responses and a judgement of them, for use in a new format.

  Args:
    row: the row, for its `weight`.
    origin: where the row came from, 'file:line'.
    prompt: checked here.
    sides: the two responses, checked by the caller.
    sign: above 0 where the first is better, below 0 where the second is, 0 for a tie. The better
      one becomes the first of the example.
    margin: by how much the better one should win. That of a tie is kept, and no loss reads it.
    authors: of the two, in the order of `sides`.
    judges: what each annotator said of `sides`: 1.0 the first is better, 0.0 the second, 0.5 a tie.

  Raises:
    RowError: empty_prompt, identical_sides, or as `weight_of`.
  """
  check_prompt(prompt)
  if sides[0] == sides[1]:
    found = f"both responses are {shown(sides[0])}"
    raise RowError("identical_sides", f"{found}; expected two that differ")
  if sign < 0:
    sides = sides[::-1]
    authors = authors and authors[::-1]
    judges = judges and {name: 1.0 - said for name, said in judges.items()}
  return Example(
    prompt=prompt,
    responses=sides,
    labels=(1.0, 0.0) if sign else (0.0, 0.0),
    kind="pair",
    margin=margin,
    weight=weight_of(row),
    origin=origin,
    conversation=conversation_of(prompt),
    ties=None if sign else ((0.0, 1.0), (1.0, 0.0)),
    authors=authors,
    judges=judges,
  )


def _check_differ(chosen: Text, rejected: Text) -> None:
  if chosen == rejected:
    found = f"'chosen' and 'rejected' are both {shown(chosen)}; expected two responses"
    raise RowError("identical_sides", found)
