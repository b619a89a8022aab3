"""Writes HTML of the audit's page, from views: parts of the report that know their place in it."""

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; font-size: 1.25rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
.says { border-left: .25rem solid #2563a8; padding-left: .8rem; }
.why { color: #777; } small { color: #777; white-space: nowrap; }
small.why { white-space: normal; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8884; }
td, th { vertical-align: top; } th { font-weight: 600; }
img { width: 36rem; max-width: 100%; height: auto; display: block; }
img { background: #fff; border-radius: .3rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; }
code { overflow-wrap: anywhere; }
"""


class View:
  """A part of the report together with its path.

  The path goes into the HTML that `Writer.value` makes (`data-path`), so that a reader finds the
  number in report.json.

  Attributes:
    value: the part, of JSON's own types; None if there is none at this path.
    path: keys and indices that lead to it.
  """

  def __init__(self, value: Any, *path: Any):
    self.value, self.path = value, path

  def __getitem__(self, key: Any) -> "View":
    """The part under a key or index, which must be there."""
    return View(self.value[key], *self.path, key)

  def get(self, key: str) -> "View":
    """The part under a key; a view of None if there is no such key, or this part is no dict."""
    return View(self.value.get(key) if isinstance(self.value, Mapping) else None, *self.path, key)

  def __contains__(self, key: str) -> bool:
    return isinstance(self.value, Mapping) and key in self.value

  def __iter__(self) -> Iterator["View"]:
    """Yields a view of each item of a list; nothing of a view of None."""
    return (self[i] for i in range(len(self.value or ())))

  def items(self) -> Iterator[tuple[str, "View"]]:
    """(key, part) of a dict; nothing of a view of None."""
    return ((key, self[key]) for key in self.value or ())


def escaped(value: Any) -> str:
  """The value as text in HTML, so that markup in it has no effect."""
  return html.escape(str(value))


def number(value: Any) -> str:
  """A value as the page shows it: a float with three decimals, None as a dash, a word unchanged.

  A float other than 0 with an absolute value below 0.0005 has three significant digits, as in
  1.23e-04. Thousands are separated by commas.
  """
  if value is None:
    return "–"
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.2e}" if 0 < abs(value) < 5e-4 else f"{value:,.3f}"


class Writer:
  """A page that is being written. Parts of the report are given to it as `View`s.

  Args:
    drawn: name of a picture -> PNG.

  Attributes:
    parts: the HTML so far.
  """

  def __init__(self, drawn: Mapping[str, bytes]):
    self.drawn = drawn
    self.parts: list[str] = []

  def add(self, html_text: str) -> None:
    """Adds HTML as it is."""
    self.parts.append(html_text)

  def value(self, view: View) -> str:
    """HTML of one number or word of the report, with its path; a dash for None."""
    where = html.escape("/".join(map(str, view.path)), quote=True)
    return f'<span data-path="{where}">{escaped(number(view.value))}</span>'

  def figure(self, view: View, key: str = "value") -> str:
    """HTML of a figure's value and interval; where one of these is None, the reason.

    Args:
      view: of a figure (see audit/figures.py), or of None, which gives a dash.
      key: the figure's key that holds the value.
    """
    one = view.value
    if one is None:
      return "–"
    if one.get(key) is None:
      return f"<small class=why>{escaped(one.get('why', '–'))}</small>"
    out = self.value(view[key])
    if one.get("interval"):
      low, high = (self.value(end) for end in view["interval"])
      out += f" <small>[{low}, {high}]</small>"
    elif why := one.get("why_no_interval", one.get("why")):
      out += f" <small class=why>(no interval: {escaped(why)})</small>"
    return out

  def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Adds a table.

    Args:
      head: the columns' headings, as text.
      rows: the cells of each row, as HTML.

    Raises:
      ValueError: a row has more or fewer cells than the head.
    """
    rows = list(rows)
    if wrong := {len(row) for row in rows} - {len(head)}:
      raise ValueError(f"rows have {sorted(wrong)} cells; expected {len(head)}, one a column")
    cells = "".join(f"<th>{escaped(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    self.add(f"<div class=wide><table><tr>{cells}</tr>{body}</table></div>")

  def picture(self, name: str, says: str) -> None:
    """Adds a picture, if one of that name was drawn; `says` is its alternative text."""
    if name in self.drawn:
      data = base64.b64encode(self.drawn[name]).decode()
      self.add(f'<img alt="{html.escape(says, quote=True)}" src="data:image/png;base64,{data}">')
