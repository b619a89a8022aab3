"""What the sections' pictures have in common: colours, points with intervals, names of files."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from rm_jax.storage import pictures

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9762b", "#2a7a3b", "#777777"
COLOURS = (BLUE, ORANGE, GREEN, "#8b3a8b", "#a33c3c")
_LONGEST = 60  # characters of a user's name that go into the name of a file


class Point(NamedTuple):
  """One row of a chart.

  Attributes:
    name: label of the row.
    value: where the point stands.
    interval: (low, high) of the line through it; None = no line.
    colour: of both.
  """

  name: str
  value: float
  interval: Sequence[float] | None
  colour: str = BLUE


def points(title: str, rows: Sequence[Point], line: float, label: str = "") -> bytes:
  """A PNG of points with intervals, one row below another, which stays legible on a phone.

  Args:
    title: of the chart.
    rows: from top to bottom.
    line: where a vertical line marks no effect.
    label: of the horizontal axis.
  """
  figure = pictures.figure(4.8, 1.0 + 0.34 * max(1, len(rows)))
  axis = figure.subplots()
  for y, (_, value, interval, colour) in enumerate(rows):
    axis.plot([value], [y], "o", color=colour)
    if interval:
      axis.plot(interval, [y, y], color=colour, lw=2)
    axis.annotate(
      f"{value:.3f}", (value, y), (0, 6), textcoords="offset points", fontsize=8, ha="center"
    )
  axis.axvline(line, color=GREY, lw=0.8, ls=":")
  axis.set_yticks(range(len(rows)), [one_line(row.name)[:34] for row in rows])
  axis.set_ylim(len(rows) - 0.4, -0.7)
  axis.set_title(title, fontsize=11)
  axis.set_xlabel(label)
  axis.locator_params(axis="x", nbins=6)  # labels of small numbers are long and would overlap
  return png(figure)


def png(figure: Figure) -> bytes:
  """The figure as a PNG, in the resolution of all pictures of the page."""
  return pictures.png(figure, dpi=160)


def one_line(name: str) -> str:
  """A name with its white space collapsed, for titles and labels."""
  return " ".join(name.split())


def stem(kind: str, name: str) -> str:
  """The name of a picture of something that the user named, fit to be a file's name.

  Different names have different stems (but for rare coincidences), also on a file system that
  ignores case: unless a name is short and consists of lower-case ASCII letters, digits and
  underscores, it is cut to `_LONGEST` characters and its checksum is added.

  Args:
    kind: what the stem begins with.
    name: any text.
  """
  plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
  if plain == name and name == name.lower() and len(name) <= _LONGEST:
    return kind + name
  return f"{kind}{plain[:_LONGEST]}_{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
