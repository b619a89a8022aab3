"""Helpers for the sections' pictures: colours, a chart of points with intervals, names of files."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from rm_jax.storage import pictures

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9762b", "#2a7a3b", "#777777"
COLOURS = (BLUE, ORANGE, GREEN, "#8b3a8b", "#a33c3c")
_LONGEST = 60  # a file's name has at most so many characters of a data set's or other given name


class Point(NamedTuple):
  """One row of a chart.

  Attributes:
    name: label of the row.
    value: position of the point on the horizontal axis.
    interval: (low, high) ends of the line through the point; None = no line.
    colour: of the point and the line.
  """

  name: str
  value: float
  interval: Sequence[float] | None
  colour: str = BLUE


def points(title: str, rows: Sequence[Point], line: float, label: str = "") -> bytes:
  """A PNG of points with intervals, each on a row of its own, narrow enough for a phone.

  Args:
    title: of the chart.
    rows: from top to bottom.
    line: value at which a dotted vertical line marks 'no effect', such as 0.5 for an accuracy.
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
  """A picture's file name without suffix, for a picture of something whose name may be any text.

  A name of at most `_LONGEST` lower-case ASCII letters, digits and underscores is used unchanged.
  In any other, characters other than ASCII letters and digits become underscores, it is cut to
  `_LONGEST` characters, and the CRC-32 of the name is added. So different names have different
  stems even where the file system ignores case, except for collisions of the checksum.

  Args:
    kind: prefix of the stem.
    name: any text.
  """
  plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
  if plain == name and name == name.lower() and len(name) <= _LONGEST:
    return kind + name
  return f"{kind}{plain[:_LONGEST]}_{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
