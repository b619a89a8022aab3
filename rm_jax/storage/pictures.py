"""Matplotlib figures as PNG, made without a display and without parsing text as formulas."""

import io

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def figure(width: float, height: float) -> Figure:
  """An empty figure; width and height in inches."""
  made = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(made)
  return made


def png(drawn: Figure, dpi: int) -> bytes:
  """The bytes of a figure as a PNG file, without the upper and right lines of the axes' frames.

  Titles and labels contain names of users' sources and files. Math parsing is off, because a name
  with dollar signs, such as 'cost $^{x$ y', would be parsed as a formula and fail.
  """
  for axis in drawn.axes:
    axis.spines[["top", "right"]].set_visible(False)
  for text in drawn.findobj(Text):
    text.set_parse_math(False)
  out = io.BytesIO()
  with matplotlib.rc_context({"text.parse_math": False}):  # tick labels are created while drawing
    drawn.savefig(out, dpi=dpi, format="png")
  return out.getvalue()
