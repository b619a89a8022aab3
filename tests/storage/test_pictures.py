"""Figures draw any text as it is written; a dollar sign starts no formula."""

import io

import matplotlib.image
import numpy as np
import pytest

from experiments import sweep
from rm_jax.storage import pictures as drawing
from rm_jax.train.writers import draw_report

ODD = ("cost $^{x$ y", "a_{b}^$", "\\frac{1}{", "$$", "nul\x00", "two\nlines", "<b>&")


def drawn(title):
  figure = drawing.figure(3, 2)
  axis = figure.subplots()
  axis.plot([0, 1], label=title)
  axis.set(title=title, xlabel=title)
  axis.set_yticks([0, 1], [title, "b"])
  axis.legend(title=title)
  return matplotlib.image.imread(io.BytesIO(drawing.png(figure, dpi=50)))


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ODD)
def test_any_name_is_drawn(name):
  assert drawn(name).shape == (100, 150, 4)


def test_a_formula_is_not_read():
  # Rendered as a formula the text would be narrow: an x with an index.
  ink = [int((drawn(text)[..., :3] < 0.5).any(-1).sum()) for text in ("$x_{i}$", "x")]
  assert ink[0] > 1.3 * ink[1]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_reports_and_the_sweeps_pictures(tmp_path):
  line = {"step": 1, "loss": 0.5, "accuracy": 0.6, "interval": [0.5, 0.7]}
  heldout = {
    "kind": "comparison",
    "accuracy": 0.6,
    "interval": [0.5, 0.7],
    "n": 9,
    "baselines": dict.fromkeys(ODD, 0.5),
  }
  lines = [{"split": "train", **line}, {"split": "heldout", **line}]
  scores = [(ODD[0], np.arange(3.0)), (ODD[1], np.arange(3.0))]
  draw_report(tmp_path / "one.png", lines, heldout, scores)
  rule = {"best_length_rule": {"rule": "longest", "accuracy": 0.55}}
  parts = {"accuracy": 0.6, "interval": [0.5, 0.7], "n": 9} | rule
  several = heldout | {"sources": {ODD[0]: parts, ODD[1]: parts | {"interval": None}}}
  draw_report(tmp_path / "report.png", lines, several, scores)
  one = {"runs": [0.5, 0.6], "mean": 0.55, "interval": [0.5, 0.6]}
  sweep.draw(tmp_path / "table.png", {ODD[0]: {ODD[1]: dict.fromkeys(ODD, one)}})
  width = {}
  for name in ("one", "report", "table"):
    width[name] = matplotlib.image.imread(tmp_path / f"{name}.png").shape[1]
  assert width["report"] > 1.3 * width["one"]  # a panel of the sources
