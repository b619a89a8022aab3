"""Writing a page: what it shows of a report it takes by path, and says which."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
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


def text(value: Any) -> str:
  return html.escape(str(value))


def number(value: Any) -> str:
  """How the page shows a number: three digits behind the point, and all of a small one's first."""
  if value is None:
    return "–"
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.2e}" if 0 < abs(value) < 5e-4 else f"{value:,.3f}"


class Writer:
  """A page being written.

  Args:
    report: nested dicts and lists of JSON's own types.
    drawn: name -> PNG.
  """

  def __init__(self, report: Mapping[str, Any], drawn: Mapping[str, bytes]):
    self.report, self.drawn, self.parts = report, drawn, []

  def add(self, html_text: str) -> None:
    self.parts.append(html_text)

  def at(self, *path: Any) -> Any:
    here: Any = self.report
    for key in path:
      if isinstance(here, list):
        here = here[key]
      else:
        here = here.get(key) if here is not None else None
    return here

  def value(self, *path: Any) -> str:
    where = html.escape("/".join(map(str, path)), quote=True)
    return f'<span data-path="{where}">{text(number(self.at(*path)))}</span>'

  def figure(self, *path: Any, key: str = "value") -> str:
    """Value and interval of a figure; why there is none, of either, in its stead."""
    one = self.at(*path)
    if one is None:
      return "–"
    if one.get(key) is None:
      return f"<small class=why>{text(one.get('why', '–'))}</small>"
    out = self.value(*path, key)
    if one.get("interval"):
      low, high = (self.value(*path, "interval", i) for i in (0, 1))
      out += f" <small>[{low}, {high}]</small>"
    elif why := one.get("why_no_interval", one.get("why")):
      out += f" <small class=why>(no interval: {text(why)})</small>"
    return out

  def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    cells = "".join(f"<th>{text(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    self.add(f"<div class=wide><table><tr>{cells}</tr>{body}</table></div>")

  def picture(self, name: str, says: str) -> None:
    if name in self.drawn:
      data = base64.b64encode(self.drawn[name]).decode()
      self.add(f'<img alt="{html.escape(says, quote=True)}" src="data:image/png;base64,{data}">')

  def says(self, *path: Any) -> None:
    said = self.at(*path)
    for one in [said] if isinstance(said, str) else said or []:
      self.add(f"<p class=says>{text(one)}</p>")
