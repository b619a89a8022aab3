"""The audit's pictures: PNG bytes of what a report says."""

import functools
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rm_jax.audit.hacking import told
from rm_jax.storage import pictures as drawing

log = logging.getLogger(__name__)

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d9762b", "#2a7a3b", "#777777"
_LONGEST = 60  # characters of a user's name in a file's
_COLOURS = (BLUE, ORANGE, GREEN, "#8b3a8b", "#a33c3c")


def pictures(report: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
  """({name: PNG} of all that a report has something to draw of, {name: why it could not be drawn}).

  Names are file names' stems.
  """
  drawn, failed = {}, {}
  for name, draw in _all(report).items():
    try:
      drawn[name] = draw()
    except Exception as error:  # a page without a picture is better than none
      log.exception("the picture %s", name)
      failed[name] = f"{type(error).__name__}: {_one_line(error)}"
  return drawn, failed


def _all(report: Mapping[str, Any]) -> dict[str, Callable[[], bytes]]:
  """Name -> what draws it."""
  made: dict[str, Callable[[], bytes]] = {}
  controls, agreed = report.get("controls", {}), report.get("agreement", {})
  if "rules" in controls:
    title = "Accuracy, beside what reads nothing"
    made["controls"] = lambda: _bars(title, *_control_bars(controls))
  for name, title in (("source", "by source"), ("length_gap", "by length gap, characters")):
    parts = agreed.get("by", {}).get(name, [])
    if len(parts) > 1:
      bars = [(p["name"], p["value"], p["interval"], BLUE) for p in parts[:12]]
      made[f"accuracy_{name}"] = functools.partial(_bars, f"Accuracy {title}", bars, 0.5)
  for name, part in report.get("calibration", {}).items():
    if name != "why" and part.get("before"):
      made[f"calibration_{name}"] = functools.partial(_reliability, part)
  if "edits" in report.get("robustness", {}):
    made["robustness"] = lambda: _edits(report["robustness"]["edits"])
  if "measures" in report.get("hacking", {}):
    made["hacking"] = lambda: _hacking(report["hacking"])
  for name, curve in report.get("overoptimisation", {}).items():
    if name != "why":
      made[stem("best_of_n_", name)] = functools.partial(_curve, name, curve)
  return made


def stem(kind: str, name: str) -> str:
  """What a picture of something with a name of the user's is called, as a file may be.

  Other names have other stems, on a disk that does not tell cases apart, too.
  """
  plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
  if plain == name and name == name.lower() and len(name) <= _LONGEST:
    return kind + name
  return f"{kind}{plain[:_LONGEST]}_{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"


def _png(figure: Figure) -> bytes:
  return drawing.png(figure, dpi=160)


def _one_line(name: object) -> str:
  return " ".join(str(name).split())


def _hacking(found: Mapping[str, Any]) -> bytes:
  bars = [
    (name, figure["value"], figure["interval"], BLUE)
    for name, figure in told(found).items()
    if figure["value"] is not None
  ]
  where = "within pairs" if found["within"] else "of all responses"
  says = f"of the score {where}, given quality"
  return _bars("Partial rank correlation", bars, 0.0, says)


def _control_bars(controls: Mapping[str, Any]) -> tuple[list, float]:
  bars = [("the model", controls["model"]["value"], controls["model"]["interval"], BLUE)]
  for name, one in controls["rules"].items():
    accuracy = one["accuracy"]
    bars.append((name.replace("_", " "), accuracy["value"], accuracy["interval"], GREY))
  for name in ("removed", "swapped"):
    accuracy = controls["sample"][name]["accuracy"]
    bars.append((f"prompt {name}", accuracy["value"], accuracy["interval"], ORANGE))
  return bars, 0.5


def _bars(title: str, bars: Sequence[tuple], line: float, label: str = "") -> bytes:
  """Points with intervals, one under another: they stay legible on a phone."""
  figure = drawing.figure(4.8, 1.0 + 0.34 * max(1, len(bars)))
  axis = figure.subplots()
  for y, (_, value, interval, colour) in enumerate(bars):
    axis.plot([value], [y], "o", color=colour)
    if interval:
      axis.plot(interval, [y, y], color=colour, lw=2)
    axis.annotate(
      f"{value:.3f}", (value, y), (0, 6), textcoords="offset points", fontsize=8, ha="center"
    )
  axis.axvline(line, color=GREY, lw=0.8, ls=":")
  axis.set_yticks(range(len(bars)), [_one_line(name)[:34] for name, *_ in bars])
  axis.set_ylim(len(bars) - 0.4, -0.7)
  axis.set_title(title, fontsize=11)
  axis.set_xlabel(label)
  axis.locator_params(axis="x", nbins=6)  # small numbers are long, and must not run together
  return _png(figure)


def _reliability(part: Mapping[str, Any]) -> bytes:
  figure = drawing.figure(4.8, 4.4)
  axis = figure.subplots()
  axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":", label="calibrated")
  for name, colour in (("before", ORANGE), ("after", BLUE)):
    errors = part.get(name)
    if not errors:
      continue
    bins = [b for b in errors["reliability"] if b["n"]]
    x = [b["confidence"] for b in bins]
    y = [b["frequency"] for b in bins]
    # A bin of few conversations has none.
    ends = [b["interval"] or (b["frequency"],) * 2 for b in bins]
    low = [max(0.0, b["frequency"] - end) for b, (end, _) in zip(bins, ends, strict=True)]
    high = [max(0.0, end - b["frequency"]) for b, (_, end) in zip(bins, ends, strict=True)]
    ece = errors["ece"]["value"]
    label = f"{name} the fit" + ("" if ece is None else f", ECE {ece:.3f}")
    axis.errorbar(x, y, yerr=[low, high], fmt="o-", color=colour, capsize=3, lw=1, label=label)
  axis.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1))
  axis.legend(frameon=False, fontsize=9)
  return _png(figure)


def _edits(edits: Mapping[str, Any]) -> bytes:
  shown = [(name, one) for name, one in edits.items() if one["change"]["value"] is not None]
  bars = [
    (
      name.replace("_", " "),
      one["change"]["value"],
      one["change"]["interval"],
      BLUE if one["kind"] == "same" else ORANGE,
    )
    for name, one in shown
  ]
  return _bars("Score change", bars, 0.0, "standard deviations; orange should fall")


def _curve(name: str, curve: Mapping[str, Any]) -> bytes:
  figure = drawing.figure(4.8, 6.6)
  left, right = figure.subplots(2, 1)
  for (variant, one), colour in zip(curve["variants"].items(), _COLOURS, strict=False):
    d = np.sqrt(one["kl"])
    for axis, what in ((left, "proxy"), (right, "true")):
      value = [x["value"] for x in one[what]]
      # Centring within a prompt changes no pick: its curve lies on the score's.
      line = "--" if variant == "centred" else "-"
      axis.plot(d, value, line, marker="o", ms=3, color=colour, label=variant)
      bounds = [x["interval"] or (x["value"],) * 2 for x in one[what]]
      axis.fill_between(d, *zip(*bounds, strict=True), color=colour, alpha=0.12, lw=0)
  left.set(title=f"{_one_line(name)[:34]}: the proxy", ylabel="reward, relative to n = 1")
  right.set(title="the truth")
  for axis in (left, right):
    axis.axhline(0, color=GREY, lw=0.8, ls=":")
    axis.set_xlabel("√KL of the best of n")
  right.legend(frameon=False, fontsize=8)
  return _png(figure)
