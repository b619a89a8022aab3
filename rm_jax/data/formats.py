"""Rows to `Example`s: what the columns of a data set mean.

A format is a function of (row, origin) that returns an `Example` or raises `RowError`; it plugs in
by `register`. `load` reads a path, finds the format of each file, and counts what it drops.

Reasons that a row is dropped for, beside those of `rm_jax.data.read`: missing_column, wrong_type,
bad_role, unsupported_message, lone_surrogate, malformed_dialogue, empty_prompt, empty_response,
identical_sides, prompts_differ, not_finite, out_of_range.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence

from rm_jax.data.dialogue import (
  common_end,
  common_front,
  conversation_of,
  messages_of,
  number_of,
  parse_dialogue,
  text_of,
  texts_of,
)
from rm_jax.data.read import File, Row, files, read_file
from rm_jax.data.report import DataError, Report, RowError, shown
from rm_jax.types import Example, Message, Text

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
  """A way to read a row.

  Attributes:
    name: what it is asked for by.
    needs: columns that every row of it has.
    looks: whether a row that has these columns is of this format, from its values.
    convert: (row, origin) -> Example; raises RowError.
  """

  name: str
  needs: tuple[str, ...]
  looks: Callable[[Row], bool] | None
  convert: Callable[[Row, str], Example]


FORMATS: dict[str, Format] = {}


def register(name: str, *, needs: Sequence[str], looks: Callable[[Row], bool] | None = None):
  """Decorator that makes a function (row, origin) -> Example the format `name`; see `Format`.

  Raises:
    ValueError: if the name is taken.
  """

  def add(convert: Callable[[Row, str], Example]) -> Callable[[Row, str], Example]:
    if name in FORMATS:
      raise ValueError(f"format {name!r} is registered already; known: {sorted(FORMATS)}")
    FORMATS[name] = Format(name, tuple(needs), looks, convert)
    return convert

  return add


def detect(row: Row) -> Format | None:
  """The format of a row: of those whose columns it has, the one that asks for most."""
  asking = sorted(FORMATS.values(), key=lambda f: (len(f.needs), f.looks is not None), reverse=True)
  for fmt in asking:
    if all(column in row for column in fmt.needs) and (fmt.looks is None or fmt.looks(row)):
      return fmt
  return None


def load(
  path: str | os.PathLike,
  *,
  report: Report,
  format: str = "auto",
  source: str | None = None,
  limit: int | None = None,
) -> list[Example]:
  """Reads everything at `path` into examples, in its order.

  Args:
    path: a file, a folder or a hub id; see `rm_jax.data.read.ACCEPTED`.
    report: counts rows and drops; `Report(strict=True)` raises at the first bad row.
    format: a name in `FORMATS`, or 'auto': each file's is that of its first good row.
    source: the examples' `source`; by default the hub id, or each file's name without suffixes
      and shard numbers.
    limit: stop after this many examples, the rest unread.

  Raises:
    DataError: if there is nothing to read, if a file's first row has not the columns that the
      format (any format, where 'auto') needs, or if no row could be kept.
  """
  if format != "auto" and format not in FORMATS:
    raise DataError(f"no format {format!r}; known: auto, {_known()}")
  if limit is not None and limit < 1:
    raise DataError(f"limit is {limit}; expected at least 1, or None for all")
  found = files(path, report)
  examples: list[Example] = []
  for file in found:
    name = source or _source(path, file)
    for example in _examples(file, FORMATS.get(format), report):
      examples.append(dataclasses.replace(example, source=name))
      if len(examples) == limit:
        return examples
  if not examples:
    raise DataError(f"{os.fspath(path)}: not one row could be kept. {report}")
  return examples


def _examples(file: File, fmt: Format | None, report: Report) -> Iterator[Example]:
  first = True
  for origin, row in read_file(file, report):
    if first:
      _check_columns(origin, row, fmt)
      first = False
    # Undecided until a row converts: a bad first row must not choose how the good ones are read.
    candidate = fmt or detect(row)
    try:
      example = _convert(candidate, row, origin)
    except RowError as error:
      report.drop(error.reason, origin, error.detail)
      continue
    fmt = candidate
    yield example


def _convert(fmt: Format | None, row: Row, origin: str) -> Example:
  missing = [column for column in fmt.needs if column not in row] if fmt else []
  if fmt is None or missing:
    expected = f"{missing} too" if fmt else f"those of one of: {_known()}"
    raise RowError("missing_column", f"has columns {sorted(row)}; expected {expected}")
  return fmt.convert(row, origin)


def _check_columns(origin: str, row: Row, fmt: Format | None) -> None:
  """Stops where a file's first row lacks the columns: then all would be dropped, one by one."""
  if fmt is None and not any(set(f.needs) <= row.keys() for f in FORMATS.values()):
    raise DataError(
      f"{origin}: columns {sorted(row)} are of no known format. Known: {_known()}. "
      "Rename the columns, or register a format (rm_jax.data.formats.register)."
    )
  if fmt is not None and not set(fmt.needs) <= row.keys():
    raise DataError(
      f"{origin}: columns {sorted(row)}; format {fmt.name!r} needs {list(fmt.needs)}. "
      f"Rename the columns or choose another format: {_known()}."
    )


def _known() -> str:
  return ", ".join(f"{f.name} {{{', '.join(f.needs)}}}" for f in FORMATS.values())


def _source(path: str | os.PathLike, file: File) -> str:
  text = os.fspath(path)
  if not os.path.exists(os.path.expanduser(text)):
    return text  # a hub id
  name = file.path.name
  for suffix in (".gz", ".jsonl", ".json", ".parquet"):
    name = name.removesuffix(suffix)
  return _SHARD.sub("", name)


def split(
  examples: Sequence[Example], fraction: float, seed: int = 0
) -> tuple[list[Example], list[Example]]:
  """(train, held out), by conversation: none is on both sides. Each side keeps the order.

  A conversation's side depends on its text and the seed alone, so it stays where it is when rows
  are added, dropped, reordered or cut by a limit: what one run held out, no other trains on.

  Args:
    examples: with their `conversation` set.
    fraction: of the conversations to hold out, in [0, 1); of the examples it is so on average. 0
      holds out nothing; otherwise each side gets at least one conversation.
    seed: another seed, another split.

  Raises:
    DataError: if the fraction is out of range, an example has no conversation, or there is one
      conversation only.
  """
  if not 0 <= fraction < 1:
    raise DataError(f"held-out fraction is {fraction}; expected it in [0, 1)")
  for example in examples:
    if not example.conversation:
      raise DataError(f"{example.origin or 'an example'}: no conversation to split by; set it")
  if fraction == 0:
    return list(examples), []
  place = {e.conversation: _place(e.conversation, seed) for e in examples}
  if len(place) < 2:
    raise DataError(f"{len(place)} conversation(s) cannot be split in two; expected at least 2")
  order = sorted(place, key=place.__getitem__)
  held = {c for c in order[:-1] if place[c] < fraction} or {order[0]}
  train = [e for e in examples if e.conversation not in held]
  return train, [e for e in examples if e.conversation in held]


def _place(conversation: str, seed: int) -> float:
  """Uniform in [0, 1), from a hash: Python's own `hash` differs from process to process."""
  text = f"{seed}:{conversation}".encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48


def _looks_like_dialogue(row: Row) -> bool:
  sides = row["chosen"], row["rejected"]
  return all(isinstance(side, str) for side in sides) and any(
    side.startswith("\n\nHuman:") or "\n\nAssistant:" in side for side in sides
  )


@register("pair", needs=("prompt", "chosen", "rejected"))
def _pair(row: Row, origin: str) -> Example:
  """All strings, or message lists; a string prompt before message lists is one user message."""
  prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
  if isinstance(chosen, str) and isinstance(rejected, str):
    sides = text_of(chosen, "chosen"), text_of(rejected, "rejected")
    return _example(text_of(prompt, "prompt"), *sides, row, origin)
  if isinstance(prompt, str):
    front = (Message(role="user", content=text_of(prompt, "prompt")),)
  else:
    front = messages_of(prompt, "prompt")
  _check_prompt(front)
  sides = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
  _check_differ(*sides)
  after = _after(front, sides[0], "chosen"), _after(front, sides[1], "rejected")
  return _example(front, *after, row, origin)


@register("hh", needs=("chosen", "rejected"), looks=_looks_like_dialogue)
def _hh(row: Row, origin: str) -> Example:
  """Two whole dialogues in Anthropic's raw form; the prompt is their common leading turns."""
  sides = text_of(row["chosen"], "chosen"), text_of(row["rejected"], "rejected")
  _check_differ(*sides)
  chosen, rejected = map(parse_dialogue, sides)
  front = common_front(chosen, rejected)
  return _example(chosen[:front], chosen[front:], rejected[front:], row, origin)


@register("implicit", needs=("chosen", "rejected"))
def _implicit(row: Row, origin: str) -> Example:
  """Two whole conversations; the prompt is their common front."""
  chosen, rejected = row["chosen"], row["rejected"]
  if isinstance(chosen, str) and isinstance(rejected, str):
    _check_differ(text_of(chosen, "chosen"), text_of(rejected, "rejected"))
    end = common_end(chosen, rejected)
    return _example(chosen[:end], chosen[end:], rejected[end:], row, origin)
  sides = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
  _check_differ(*sides)
  front = common_front(*sides)
  return _example(sides[0][:front], sides[0][front:], sides[1][front:], row, origin)


def _after(
  prompt: tuple[Message, ...], side: tuple[Message, ...], column: str
) -> tuple[Message, ...]:
  """A side's messages after the prompt, which some data sets repeat in front of each side."""
  response = side[len(prompt) :] if side[: len(prompt)] == prompt else side
  if response and response[0]["role"] != "assistant":
    found = f"{column!r} starts with {shown(response[0])}; expected the prompt or the assistant"
    raise RowError("prompts_differ", found)
  return response


def _example(prompt: Text, chosen: Text, rejected: Text, row: Row, origin: str) -> Example:
  _check_differ(chosen, rejected)
  _check_prompt(prompt)
  for side, column in ((chosen, "chosen"), (rejected, "rejected")):
    last = texts_of(side)[-1] if side else ""  # what is judged: earlier turns are how it came there
    if not last.strip():
      raise RowError("empty_response", f"{column!r} ends with {shown(last)}; expected text there")
    if not isinstance(side, str) and side[-1]["role"] != "assistant":
      found = f"{column!r} ends with {shown(side[-1])}; expected the assistant's message"
      raise RowError("malformed_dialogue", found)
  margin = None if row.get("margin") is None else number_of(row["margin"], "margin")
  weight = number_of(row.get("weight", 1.0), "weight")
  if weight < 0:
    raise RowError("out_of_range", f"'weight' is {weight}; expected at least 0")
  return Example(
    prompt=prompt,
    responses=(chosen, rejected),
    labels=(1.0, 0.0),
    kind="pair",
    margin=margin,
    weight=weight,
    origin=origin,
    conversation=conversation_of(prompt),
  )


def _check_prompt(prompt: Text) -> None:
  if not any(text.strip() for text in texts_of(prompt)):
    raise RowError("empty_prompt", f"prompt is {shown(prompt)}; expected text")


def _check_differ(chosen: Text, rejected: Text) -> None:
  if chosen == rejected:
    found = f"'chosen' and 'rejected' are both {shown(chosen)}; expected two responses"
    raise RowError("identical_sides", found)
