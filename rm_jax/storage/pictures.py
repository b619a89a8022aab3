"""Figures without a window, whose texts are drawn as they are written."""

import io

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def figure(width: float, height: float) -> Figure:
  """An empty figure, width and height in inches."""
  made = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(made)
  return made


def png(drawn: Figure, dpi: int) -> bytes:
  """The figure as a PNG file's bytes, without the frame's upper and right lines.

  Names of sources and files stand in titles and labels, and may have dollars: no text is read as
  a formula, of which 'cost $^{x$ y' is none.
  """
  for axis in drawn.axes:
    axis.spines[["top", "right"]].set_visible(False)
  for text in drawn.findobj(Text):
    text.set_parse_math(False)
  out = io.BytesIO()
  with matplotlib.rc_context({"text.parse_math": False}):  # ticks are made when they are drawn
    drawn.savefig(out, dpi=dpi, format="png")
  return out.getvalue()
