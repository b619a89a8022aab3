"""Writes a run's metrics.jsonl, timing.jsonl, files of TensorBoard, and report.png."""

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rm_jax.storage.files import read_lines, write_atomically


def peak_memory_bytes() -> int:
  """Peak memory so far: of this process's fullest device, or if none tells (CPU) of the process."""
  peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices()]
  return max(peaks) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Writers:
  """Writes metrics.jsonl, timing.jsonl and the files of TensorBoard in a workdir.

  Lines that an earlier run wrote after the step it is resumed from are removed. metrics.jsonl has
  nothing that depends on the clock, so that the same run writes the same bytes.

  Args:
    workdir: the run's folder.
    step: the step that the run starts from; at 0 no earlier line is kept.
    active: whether to write, which only process 0 does; if not, every method does nothing.
  """

  def __init__(self, workdir: Path, step: int, *, active: bool):
    self._active = active
    if not active:
      return
    from tensorboardX import SummaryWriter

    self._files = {}
    for name in ("metrics", "timing"):
      path = workdir / f"{name}.jsonl"
      # A run that died before its first checkpoint starts again at 0: none of its lines are kept.
      known = [line for line in read_lines(path) if isinstance(line.get("step"), int)]
      kept = [line for line in known if line["step"] <= step] if step else []
      write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
      self._files[name] = path.open("a", encoding="utf-8")
    self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else 0)

  def write(self, name: str, step: int, values: dict[str, Any], split: str = "train") -> None:
    """Writes a line to metrics.jsonl or timing.jsonl, and its unnested numbers to TensorBoard.

    Raises:
      ValueError: a number is NaN or infinite.
    """
    if not self._active:
      return
    line = {"step": step, "split": split, **values}
    self._files[name].write(json.dumps(line, allow_nan=False) + "\n")
    self._files[name].flush()
    for key, value in values.items():
      if isinstance(value, int | float):
        self._board.add_scalar(f"{split}/{key}", value, step)

  def close(self) -> None:
    """Closes the files."""
    if self._active:
      for file in self._files.values():
        file.close()
      self._board.close()


def draw_report(
  path: Path,
  lines: Sequence[dict[str, Any]],
  heldout: dict[str, Any] | None,
  scores: Sequence[tuple[str, np.ndarray]],
) -> None:
  """Draws report.png: loss, accuracy with baselines and interval, histograms of scores.

  Of comparisons of several sources it also shows each source's accuracy with its interval, beside
  the better of the rules "longer" and "shorter".

  Beside the training data's, curves are of the validation data where there are some, else of the
  held-out data. Baselines and scores are always the held-out data's.

  Args:
    path: of the picture.
    lines: of metrics.jsonl.
    heldout: the report of `evaluate.evaluate`, or None.
    scores: the scores of `evaluate.evaluate`: (name, float [n]) of the good and the bad responses;
      empty if there are none.
  """
  from rm_jax.storage import pictures as drawing

  sources = {
    name: one
    for name, one in (heldout or {}).get("sources", {}).items()
    if one.get("accuracy") is not None and "best_length_rule" in one
  }
  panels = 4 if len(sources) > 1 else 3
  figure = drawing.figure(13 / 3 * panels, 4.6)
  left, middle, *others, right = figure.subplots(1, panels)
  train = [line for line in lines if line["split"] == "train"]
  aside = [line for line in lines if line["split"] == "validation"]
  held = aside or [line for line in lines if line["split"] == "heldout"]
  shown = "validation" if aside else "held out"
  blue, orange, grey = "#2563a8", "#d9762b", "#777777"

  known = [x for x in train if x["loss"] is not None]
  left.plot([x["step"] for x in known], [x["loss"] for x in known], color=blue, label="train")
  valued = [x for x in held if x.get("loss") is not None]
  left.plot(
    [x["step"] for x in valued], [x["loss"] for x in valued], "o-", color=orange, label=shown
  )
  left.axhline(np.log(2), color=grey, lw=0.8, ls=":", label="log 2, a coin")
  left.set(xlabel="step", ylabel="loss", title="Loss")
  left.legend(frameon=False)

  judged = [x for x in train if x["accuracy"] is not None]
  middle.plot([x["step"] for x in judged], [x["accuracy"] for x in judged], color=blue, alpha=0.5)
  held = [x for x in held if x.get("accuracy") is not None]
  if held:
    at = [x["step"] for x in held]
    bounds = [x["interval"] or (x["accuracy"],) * 2 for x in held]
    low = [x["accuracy"] - b[0] for x, b in zip(held, bounds, strict=True)]
    high = [b[1] - x["accuracy"] for x, b in zip(held, bounds, strict=True)]
    middle.errorbar(
      at,
      [x["accuracy"] for x in held],
      yerr=[low, high],
      fmt="o-",
      color=orange,
      capsize=3,
      label=f"{shown}, 95 %",
    )
  title = "Agreement"
  if heldout and heldout.get("accuracy") is not None:
    for (name, value), style in zip(heldout["baselines"].items(), (":", "--", "-."), strict=False):
      middle.axhline(value, color=grey, lw=0.9, ls=style, label=f"{name} {value:.3f}")
    if "best_reachable" in heldout:
      best = heldout["best_reachable"]
      middle.axhline(best, color="#2a7a3b", lw=1.2, label=f"best reachable {best:.3f}")
    title = f"Agreement: {heldout['accuracy']:.3f}, n = {heldout['n']}"
  middle.set(xlabel="step", ylabel="accuracy, ties half", title=title)
  below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=2)
  if middle.get_legend_handles_labels()[1]:
    middle.legend(frameon=False, fontsize=8, **below)

  for axis in others:
    for y, one in enumerate(sources.values()):
      low, high = one["interval"] or (one["accuracy"],) * 2
      axis.plot([low, high], [y, y], color=blue, lw=2)
      axis.plot([one["accuracy"]], [y], "o", color=blue, label="" if y else "model, 95 %")
      rule = one["best_length_rule"]["accuracy"]
      axis.plot([rule], [y], "|", color=orange, ms=14, label="" if y else "best length rule")
    axis.axvline(0.5, color=grey, lw=0.8, ls=":", label="a coin")
    axis.set_yticks(range(len(sources)), list(sources))
    axis.set_ylim(len(sources) - 0.5, -0.5)
    axis.set(xlabel="held-out accuracy", title="By source")
    axis.legend(frameon=False, fontsize=8, **below)

  if sum(len(values) for _, values in scores):
    edges = np.histogram_bin_edges(np.concatenate([values for _, values in scores]), bins=30)
    for (name, values), color in zip(scores, (blue, orange), strict=True):
      right.hist(values, edges, color=color, alpha=0.6, label=name)
    right.legend(frameon=False)
  right.set(xlabel="score", ylabel="held-out scores", title="Scores")
  path.write_bytes(drawing.png(figure, dpi=110))
