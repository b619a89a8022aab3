"""The published layouts: a row of each, what it is read as, and whether its test knows the sign.

  python -m tests.studies.layouts

prints, for each layout of tests/data/layouts.py, its name, its columns, what is kept of a row, the
row and its Example. Then its reader is given the wrong sign, and the layout's own test in
tests/data/test_layouts.py has to fail. Exits with 1 if one does not.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

from rm_jax.data.formats import FORMATS, Format
from rm_jax.types import Example
from tests.data.layouts import LAYOUTS
from tests.data.test_layouts import test_a_published_row_is_read_as_its_card_says as check

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def short(example: Example) -> str:
  """An example's fields that are set."""
  fields = {f.name: (getattr(example, f.name), f.default) for f in dataclasses.fields(example)}
  return ", ".join(f"{n}={value!r}" for n, (value, default) in fields.items() if value != default)


def opposite(example: Example) -> Example:
  """The example as a reader with the wrong sign would make it."""
  turned = None
  if example.pairs is not None:
    turned = tuple(zip(*example.pairs, strict=True))
  if example.kind == "attributes":
    ratings = tuple({n: -x for n, x in one.items()} for one in example.attributes)
    return dataclasses.replace(example, attributes=ratings)
  if example.kind in ("outcome", "step"):
    labels = tuple(1.0 - x for x in example.labels)
  elif example.kind == "pair":
    labels = example.labels[::-1]
  else:
    labels = tuple(-x for x in example.labels)
  return dataclasses.replace(example, labels=labels, pairs=turned)


def caught(name: str, fmt: Format) -> bool:
  """Whether the layout's test fails when its reader has the wrong sign."""
  wrong = dataclasses.replace(fmt, convert=lambda row, origin: opposite(fmt.convert(row, origin)))
  FORMATS[name] = wrong
  try:
    check(name)
  except AssertionError:
    return True
  finally:
    FORMATS[name] = fmt
  return False


def main() -> int:
  kept = dict(re.findall(r"^\| `(\w+)`.*\| ([^|]*) \|$", DOCS.read_text(), re.M))
  silent = []
  for name, layout in sorted(LAYOUTS.items()):
    fmt = FORMATS[name]
    check(name)  # with the right sign it passes
    print(f"{name}: {', '.join(fmt.needs)}")
    print(f"  {kept[name]}")
    print(f"  row      {json.dumps(layout.row)}")
    print(f"  Example  {short(fmt.convert(layout.row, 'f:1'))}")
    if not caught(name, fmt):
      silent.append(name)
  print(f"{len(LAYOUTS)} layouts; the wrong sign is caught in {len(LAYOUTS) - len(silent)}")
  if silent:
    print(f"not in {', '.join(silent)}")
  return bool(silent)


if __name__ == "__main__":
  sys.exit(main())
