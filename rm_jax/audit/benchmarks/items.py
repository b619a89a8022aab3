"""Items of published benchmarks, and how they are read from files in their published layout."""

import dataclasses
import gzip
import json
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from rm_jax.data.dialogue import check_prompt, conversation_of, messages_of, text_of
from rm_jax.data.feedback import steps_of
from rm_jax.data.read import File, Row, files, parse_line, read_file
from rm_jax.data.report import DataError, Report, RowError, shown
from rm_jax.types import Example, Message, Text

_SUFFIX = re.compile(r"(-\d{5}-of-\d{5})?(\.(jsonl?|parquet))?(\.gz)?$")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """One item of a benchmark.

  Attributes:
    example: its prompt and responses, in the order of the file; labels are 1 for a right response
      (or step) and 0 for a wrong one. Items of one `conversation` are drawn together in intervals:
      of one prompt, or of what a benchmark makes several prompts of.
    subset: which part of the benchmark it is of.
    id: what the benchmark calls it; empty where nothing depends on that.
  """

  example: Example
  subset: str
  id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Benchmark:
  """A published benchmark.

  Attributes:
    name: its key in the registry.
    hub: the data sets of the hub that hold it, as `load` takes them; empty where it is on none.
    scores: 'responses' or 'steps', what `evaluate` is to be given a scorer of.
    load: (*paths, messages, report) -> items. Paths are files, folders in the published layout, or
      hub ids; `messages`, whether the texts are chat messages (for a model with a chat template) or
      strings, the prompt ended by a line break; `report` counts bad rows or stops at the first
      (see `rm_jax.data.report`). Raises DataError.
    evaluate: (score, items) -> report, all rates in [0, 1]: `score` (the published number; None
      where the items do not suffice for it, and then `why`), its 95 % `interval`, `undefined`
      (resamples without a value), `n` items, `subsets` {name: {accuracy, interval, n}}, and the
      benchmark's own breakdown. Each distinct text is scored once, in one call of `score`.
  """

  name: str
  hub: tuple[str, ...]
  scores: str
  load: Callable[..., list[Item]]
  evaluate: Callable[..., dict[str, Any]]


def split_name(file: File) -> str:
  """A file's name without suffixes and shard number: what the hub calls its split."""
  return _SUFFIX.sub("", file.path.name)


def load_items(
  paths: Sequence[str | os.PathLike],
  report: Report,
  needs: Sequence[str],
  convert: Callable[[Row, str, str], Iterable[Item]],
  choose: Callable[[Sequence[File]], Sequence[str | None]] = lambda found: [""] * len(found),
) -> list[Item]:
  """The items of everything at `paths`, in their order.

  Args:
    paths: files, folders or hub ids; see `rm_jax.data.read.ACCEPTED`. JSON files may also be one
      array of objects.
    report: counts the rows, and decides whether a bad one raises.
    needs: columns of every row.
    convert: (row, origin, what `choose` said of its file) -> items; raises RowError.
    choose: files -> a word about each for `convert`, or None for a file that is no part of the
      benchmark: it goes to `report.unread`.

  Raises:
    DataError: nothing to read, not one row could be kept, or, if strict, the first bad row.
  """
  if not paths:
    raise DataError("no path; expected a file, a folder, or a data set of the hub")
  found = [file for path in paths for file in files(path, report)]
  items: list[Item] = []
  for file, word in zip(found, choose(found), strict=True):
    if word is None:
      report.unread.append(file.name)
      continue
    for origin, row in _rows(file, report):
      try:
        missing = [name for name in needs if name not in row]
        if missing:
          detail = f"has columns {sorted(row)}; expected {missing} too"
          raise RowError("missing_column", detail)
        items += convert(row, origin, word)
      except RowError as error:
        report.drop(error.reason, origin, error.detail)
  if not items:
    names = ", ".join(map(os.fspath, paths))
    raise DataError(f"{names}: not one row could be kept. {report}")
  return items


def _rows(file: File, report: Report) -> Iterator[tuple[str, Row]]:
  """(origin, row) of a file; `read_file`, and JSON arrays, which several benchmarks come as."""
  if file.path.name.lower().endswith(".parquet"):
    yield from read_file(file, report)
    return
  with open(file.path, "rb") as opened:
    zipped = opened.read(2) == b"\x1f\x8b"
  with gzip.open(file.path, "rb") if zipped else open(file.path, "rb") as opened:
    try:
      array = opened.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
      content = opened.read() if array and not opened.seek(0) else b""
    except (EOFError, OSError):  # a damaged archive: the lines' reader says so and counts it
      array = False
  if not array:
    yield from read_file(file, report)
    return
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"{file.name}: {error}; expected UTF-8") from error
  decoder = json.JSONDecoder()
  at, line, counted = _SPACE.match(text, text.index("[") + 1).end(), 1, 0
  while text[at : at + 1] != "]":
    line += text.count("\n", counted, at)
    counted, origin = at, f"{file.name}:{line}"
    report.rows += 1
    try:
      _, end = decoder.raw_decode(text, at)
      after = _SPACE.match(text, end).end()
      if text[after : after + 1] not in (",", "]"):
        raise json.JSONDecodeError("Expecting ',' or ']'", text, after)
    except (ValueError, RecursionError) as error:
      # Where the next object starts cannot be known.
      report.drop("damaged_file", origin, f"{error}; expected a JSON array to its end")
      return
    try:
      # By the lines' rules: no key twice, no NaN.
      row = parse_line(text[at:end].encode("utf-8", "surrogatepass"))
    except RowError as error:
      report.drop(error.reason, origin, error.detail)
    else:
      yield origin, row
    at = after if text[after] == "]" else _SPACE.match(text, after + 1).end()


def make_item(
  prompt: object,
  responses: Sequence[object],
  labels: Sequence[float],
  *,
  subset: str,
  origin: str,
  messages: bool,
  id: str = "",
) -> Item:
  """An item of responses, from the values of a row's columns; see `Item` and `Benchmark.load`.

  An empty response is kept: benchmarks have some, and their numbers count them.

  Raises:
    RowError: a value is no text, the prompt is empty, or it is a conversation of several turns
      and `messages` is off: no string form of it is published.
  """
  texts = [text_of(r, f"response {i}") for i, r in enumerate(responses)]
  if messages:
    made = tuple((Message(role="assistant", content=text),) for text in texts)
  else:
    made = tuple(texts)
  asked = _prompt(prompt, messages)
  example = Example(
    prompt=asked,
    responses=made,
    labels=tuple(map(float, labels)),
    kind="pair" if len(made) == 2 else "ranking",
    source=subset,
    origin=origin,
    conversation=conversation_of(asked),
  )
  return Item(example, subset, id)


def make_solution(
  problem: object,
  steps: object,
  labels: Callable[[int], Sequence[float]],
  *,
  subset: str,
  origin: str,
  messages: bool,
  id: str,
) -> Item:
  """An item of one solution in steps; `labels` is given their number.

  Raises:
    RowError: a value is no text, or a step is empty (nothing can be read at its end).
  """
  texts = steps_of(steps, "steps")
  asked = _prompt(problem, messages)
  example = Example(
    prompt=asked,
    responses=("\n".join(texts),),
    labels=tuple(map(float, labels(len(texts)))),
    kind="step",
    source=subset,
    origin=origin,
    conversation=conversation_of(asked),
    steps=(texts,),
  )
  return Item(example, subset, id)


def _prompt(value: object, messages: bool) -> Text:
  if isinstance(value, list):
    turns = messages_of(value, "prompt")
    if not messages and len(turns) == 1:
      value = turns[0]["content"]
    elif not messages:
      found = f"'prompt' has {len(turns)} messages"
      raise RowError("unsupported_message", f"{found}; expected one, or loading with messages")
    else:
      check_prompt(turns)
      return turns
  text = text_of(value, "prompt")
  check_prompt(text)
  return (Message(role="user", content=text),) if messages else f"{text}\n"


def drawn_together(items: Sequence[Item], keys: Callable[[Item], Iterable[Hashable]]) -> list[Item]:
  """The items, those of one prompt or with a key in common (by way of others too) of one
  conversation.

  Args:
    items: of a benchmark.
    keys: item -> what it shares with others that are made of the same problem; may be none.
  """
  head: dict[Hashable, Hashable] = {}

  def root(key: Hashable) -> Hashable:
    while head.setdefault(key, key) != key:
      head[key] = key = head[head[key]]
    return key

  prompts = [("conversation", item.example.conversation) for item in items]
  for item, prompt in zip(items, prompts, strict=True):
    for key in keys(item):
      head[root(key)] = root(prompt)
  first: dict[Hashable, str] = {}  # a cluster is called by its first item's conversation
  names = [first.setdefault(root(p), p[1]) for p in prompts]
  return [
    dataclasses.replace(item, example=dataclasses.replace(item.example, conversation=name))
    for item, name in zip(items, names, strict=True)
  ]


def whole_number(value: object, column: str, least: int, most: int) -> int:
  """An integer in [least, most].

  Raises:
    RowError: wrong_type or out_of_range.
  """
  if isinstance(value, bool) or not isinstance(value, int):
    raise RowError("wrong_type", f"{column!r} is {shown(value)}; expected a whole number")
  if not least <= value <= most:
    found = f"{column!r} is {value}"
    raise RowError("out_of_range", f"{found}; expected {least} to {most}")
  return value
