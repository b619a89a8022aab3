"""The records `Item` and `Benchmark`, and what loaders use: files, rows, items."""

import dataclasses
import gzip
import json
import os
import re
import zlib
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
    example: prompt and responses, in the order of the file. Labels are 1 for a right response (or
      step) and 0 for a wrong one, so those of a pair whose second response is right are (0, 1).
      Items of the same `conversation` are resampled together: those
      whose prompts have the same first human turn, or that are made of the same problem.
    subset: name of the part of the benchmark that it belongs to.
    id: the benchmark's own name of the item; empty for a benchmark whose names are not read.
  """

  example: Example
  subset: str
  id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Benchmark:
  """A published benchmark.

  Attributes:
    name: key in the registry.
    scores: what the scorer that `evaluate` takes has to score: 'responses' or 'steps'.
    load: (*paths, messages, report) -> items. Paths are files, folders in the published layout, or
      hub ids. If `messages` is true, texts become chat messages (for a model with a chat template),
      else strings, the prompt with a line break at its end. `report` counts bad rows or raises at
      the first (see `rm_jax.data.report`). Raises DataError.
    evaluate: (scorer, items, seed=0) -> report, with rates as shares and not in %: `score`, the
      published number (None, with `why`, if there are no items of some part, or it is not defined
      for these items); its 95 % `interval`; `undefined`, the number of bootstrap resamples in which
      it is not defined; `n`, the number of items; `subsets` {name: {accuracy, interval, n}}; and
      the benchmark's own breakdown. `seed` is that of the bootstrap. The scorer is called once,
      with each distinct row once. Raises ValueError if there are no items, or the scores are not
      one finite number for each.
  """

  name: str
  scores: str
  load: Callable[..., list[Item]]
  evaluate: Callable[..., dict[str, Any]]


def split_name(file: File) -> str:
  """A file's name without suffixes and shard number: for a file of the hub, its split's name."""
  return _SUFFIX.sub("", file.path.name)


def load_items(
  paths: Sequence[str | os.PathLike],
  report: Report,
  needs: Sequence[str],
  convert: Callable[[Row, str, str], Iterable[Item]],
  choose: Callable[[Sequence[File]], Sequence[str | None]] = lambda found: [""] * len(found),
) -> list[Item]:
  """Reads the items of all files at `paths`, in order.

  Args:
    paths: files, folders or hub ids; see `rm_jax.data.read.ACCEPTED`. A JSON file may also be one
      array of objects.
    report: counts the rows, and decides whether a bad one raises an error.
    needs: columns that every row must have.
    convert: (row, its origin, the word that `choose` gave for its file) -> items; raises RowError.
    choose: files -> for each a word, such as its subset, which `convert` gets; None for a file that
      is not part of the benchmark: it is not read, and listed in `report.unread`.

  Raises:
    DataError: there is nothing to read, a file cannot be read at all, or not one row could be kept;
      if `report` is strict, at the first bad row.
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
  """Yields (origin, row) of a file.

  It reads what `data.read.read_file` reads, and a JSON array of objects, which is the form of
  several benchmarks' files. Damage to an array ends the reading and counts as one dropped row.
  """
  if file.path.name.lower().endswith(".parquet"):
    yield from read_file(file, report)
    return
  with open(file.path, "rb") as opened:
    zipped = opened.read(2) == b"\x1f\x8b"
  array, content = False, b""
  with gzip.open(file.path, "rb") if zipped else open(file.path, "rb") as opened:
    try:
      array = opened.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
      content = opened.read() if array and not opened.seek(0) else b""
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      if array:
        report.rows += 1  # Rows cannot be told apart in an array that is not whole.
        found = f"the gzip stream breaks off ({error}); expected the whole file: fetch it anew"
        report.drop("damaged_file", f"{file.name}:1", found)
        return
      # `read_file` below reports the damage.
  if not array:
    yield from read_file(file, report)
    return
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"{file.name}: {error}; expected UTF-8") from error
  decoder = json.JSONDecoder()
  at, line, counted = _SPACE.match(text, text.index("[") + 1).end(), 1, 0
  more = text[at : at + 1] != "]"
  while more:
    line += text.count("\n", counted, at)
    counted, origin = at, f"{file.name}:{line}"
    report.rows += 1
    try:
      _, end = decoder.raw_decode(text, at)
      after = _SPACE.match(text, end).end()
      if text[after : after + 1] not in (",", "]"):
        raise json.JSONDecodeError("Expecting ',' or ']'", text, after)
    except (ValueError, RecursionError) as error:
      # The start of the next object cannot be found, so the rest of the file is lost.
      report.drop("damaged_file", origin, f"{error}; expected a JSON array to its end")
      return
    try:
      # Parsed as a line of JSON lines is: duplicate keys and NaN are errors.
      row = parse_line(text[at:end].encode("utf-8", "surrogatepass"))
    except RowError as error:
      report.drop(error.reason, origin, error.detail)
    else:
      yield origin, row
    more = text[after] == ","
    at = _SPACE.match(text, after + 1).end() if more else after
  rest = _SPACE.match(text, at + 1).end()
  if rest < len(text):
    report.rows += 1
    line += text.count("\n", counted, rest)
    found = f"{shown(text[rest : rest + 200])} follows the JSON array; expected the end of the file"
    report.drop("damaged_file", f"{file.name}:{line}", found)


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
  """Makes an item of whole responses; see `Item` and, for `messages`, `Benchmark.load`.

  Empty responses are kept, because the published numbers count them.

  Args:
    prompt: value of the row's column: a string or messages.
    responses: values of the row's columns, which must be strings.
    labels: one for each response.
    subset, id: as in `Item`.
    origin: of the row, for errors.
    messages: whether texts become messages.

  Raises:
    RowError: a value is not text, or the prompt not valid messages; the prompt is empty; or it is a
      list of other than one message and `messages` is false: the benchmarks publish no rule that
      turns a dialogue into one string.
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
  """Makes an item of one solution in steps; see `make_item`.

  Args:
    problem: the prompt.
    steps: value of the row's column, which must be a list of strings.
    labels: number of steps -> the label of each.
    subset, id, origin, messages: as in `make_item`.

  Raises:
    RowError: as `make_item` or `labels`; or there is no step, or one without text, which
      `RewardModel.score_steps` refuses.
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
  """A row's prompt as messages, or as a string with a line break at its end."""
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
  """Gives one `conversation` to all items that are connected by common conversations or keys.

  Items are connected, too, if each is connected to a third one: this is a union-find over
  conversations and keys.

  Args:
    items: of a benchmark.
    keys: item -> keys that it shares with other items made of the same problem; may be none.

  Returns:
    The items in the same order. A connected set gets the conversation of its first item.
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
  first: dict[Hashable, str] = {}  # connected set -> the conversation of its first item
  names = [first.setdefault(root(p), p[1]) for p in prompts]
  return [
    dataclasses.replace(item, example=dataclasses.replace(item.example, conversation=name))
    for item, name in zip(items, names, strict=True)
  ]


def whole_number(value: object, column: str, least: int, most: int) -> int:
  """Returns the value if it is an integer in [least, most].

  Raises:
    RowError: it is not one.
  """
  if isinstance(value, bool) or not isinstance(value, int):
    raise RowError("wrong_type", f"{column!r} is {shown(value)}; expected a whole number")
  if not least <= value <= most:
    found = f"{column!r} is {value}"
    raise RowError("out_of_range", f"{found}; expected {least} to {most}")
  return value
