"""`data.columns`: reads a file whose columns have other names than those that our formats read.

A mapping says, for each of our columns, which of the file's it is. The file's name may be nested:
'answers.0.text' is `text` of the first of `answers`.
"""

from collections.abc import Collection, Iterable, Mapping

from rm_jax.data.report import DataError, RowError, shown
from rm_jax.data.tables import TEXTS

Given = str | Mapping[str, str] | None  # 'prompt=question,chosen=best', or the same as a dict.


def parse_columns(given: Given, where: str = "columns") -> dict[str, str]:
  """Reads a mapping, our column -> the file's.

  Args:
    given: 'ours=theirs,..', or a dict; None and '' are an empty mapping.
    where: the option's name in error messages.

  Raises:
    DataError: it has another form, or names a column twice.
  """
  if not given:
    return {}
  expected = "expected 'ours=theirs,ours=theirs' or a dict, as 'prompt=question,chosen=answer_a'"
  if isinstance(given, str):
    parts = [part.partition("=") for part in given.split(",")]
    pairs = [(ours.strip(), theirs.strip()) for ours, _, theirs in parts]
  elif hasattr(given, "items"):
    pairs = list(given.items())
  else:
    raise DataError(f"{where} is {shown(given)}; {expected}")
  if not all(isinstance(name, str) and name for pair in pairs for name in pair):
    raise DataError(f"{where} is {shown(given)}; {expected}")
  for i, side in enumerate(("our", "the file's")):
    names = [pair[i] for pair in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
      raise DataError(f"{where} names {side} column {twice[0]!r} twice; expected it once")
  return dict(pairs)


def texts_of_columns(columns: Mapping[str, str]) -> dict[str, bool]:
  """Of a file of CSV, the file's column -> whether it holds texts, by what it is mapped to.

  A column of which a part is taken, as by 'answers.0.text', holds JSON.
  """
  whole = {theirs: bool(TEXTS.fullmatch(ours)) for ours, theirs in columns.items()}
  return {theirs.split(".")[0]: False for theirs in columns.values() if "." in theirs} | whole


def check_first(row: Mapping[str, object], columns: Mapping[str, str], origin: str) -> None:
  """Raises DataError if a file's first row lacks a mapped column: then most likely all do."""
  for ours, theirs in columns.items():
    try:
      value_of(row, theirs)
    except RowError as error:
      raise DataError(
        f"{origin}: columns maps {ours!r} to {theirs!r}, and {error.detail}. Name one of the "
        "file's columns, or a part of one as in answers.0.text."
      ) from error


def check_meanings(
  columns: Collection[str], same: Iterable[Collection[str]], where: str = "columns"
) -> frozenset[str]:
  """Our columns in place of which mapped ones are read, since they mean the same.

  Args:
    columns: ours, of a mapping.
    same: collections of columns that mean the same, of which a row needs one.
    where: the option's name in error messages.

  Raises:
    DataError: two mapped columns mean the same.
  """
  instead: set[str] = set()
  for names in same:
    mapped = [name for name in columns if name in names]
    if len(mapped) > 1:
      raise DataError(
        f"{where} has {' and '.join(mapped)}, which mean the same; expected one of them"
      )
    if mapped:
      instead.update(names)
  return frozenset(instead.difference(columns))


def renamed(
  row: dict[str, object], columns: Mapping[str, str], instead: Collection[str] = ()
) -> dict[str, object]:
  """A row under our names: the mapped columns, and all others of the row as they are.

  A column that is mapped, or of which a part is, is not in it under its own name. It replaces a
  column of the file that has our name for it, and those of `instead`, which mean the same (see
  `check_meanings`).

  Raises:
    RowError: missing_column, if the row lacks a mapped one.
  """
  if not columns:
    return row
  found = {ours: value_of(row, theirs) for ours, theirs in columns.items()}
  used = {theirs if theirs in row else theirs.split(".")[0] for theirs in columns.values()}
  used.update(instead)
  return {name: value for name, value in row.items() if name not in used} | found


def with_value(row: Mapping[str, object], name: str, value: object) -> dict[str, object]:
  """A copy of a row with another value in a file's column, whose name may be nested.

  Raises:
    RowError: missing_column, if the name is nested and the row has no such place.
  """
  if name in row or "." not in name:
    return {**row, name: value}
  value_of(row, name)
  first, *rest = name.split(".")

  def within(old: object, parts: list[str]) -> object:
    if not parts:
      return value
    if isinstance(old, Mapping):
      return {**old, parts[0]: within(old[parts[0]], parts[1:])}
    at = int(parts[0])
    return [*old[:at], within(old[at], parts[1:]), *old[at + 1 :]]

  return {**row, first: within(row[first], rest)}


def value_of(row: Mapping[str, object], name: str) -> object:
  """A column's value, or that of a part of it.

  Raises:
    RowError: missing_column, where there is none.
  """
  if name in row:
    return row[name]
  value: object = row
  for i, part in enumerate(parts := name.split(".")):
    if isinstance(value, Mapping) and part in value:
      value = value[part]
    elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
      value = value[int(part)]
    else:
      here = ".".join(parts[:i])
      has = f"the row has columns {sorted(row)}" if not i else f"{here!r} is {shown(value)}"
      raise RowError("missing_column", f"{has}; expected {part!r} in it")
  return value
