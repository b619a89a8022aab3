"""What a run leaves behind: metrics.jsonl, timing.jsonl, TensorBoard files, summary, report.png."""

import json
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np


def read_lines(path: Path) -> list[dict[str, Any]]:
  """The objects of a JSON lines file that we wrote; a last line cut off by a crash is left out."""
  if not path.exists():
    return []
  out = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      out.append(json.loads(line))
    except ValueError:
      break
  return out


def write_atomically(path: Path, text: str) -> None:
  """All of it or nothing, whenever the process dies."""
  part = path.with_name(path.name + ".part")
  part.write_text(text, encoding="utf-8")
  os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
  """Indented JSON; not-a-number is an error, since JSON has no word for it."""
  write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def peak_memory_bytes() -> int:
  """The most memory used so far: of the fullest device, or of this process where that is a CPU."""
  peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices()]
  return max(peaks) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Writers:
  """Writers of a workdir's files; what an earlier run wrote past `step` is taken back.

  metrics.jsonl holds nothing that depends on the clock, so that the same run writes the same file.

  Args:
    workdir: where.
    step: the step that the run starts from.
    active: only process 0 writes.
  """

  def __init__(self, workdir: Path, step: int, *, active: bool):
    self._active = active
    if not active:
      return
    from tensorboardX import SummaryWriter

    self._files = {}
    for name in ("metrics", "timing"):
      path = workdir / f"{name}.jsonl"
      kept = [line for line in read_lines(path) if line["step"] <= step]
      write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
      self._files[name] = path.open("a", encoding="utf-8")
    self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, name: str, step: int, values: dict[str, Any], split: str = "train") -> None:
    """One object to metrics.jsonl or timing.jsonl, its numbers to TensorBoard too."""
    if not self._active:
      return
    line = {"step": step, "split": split, **values}
    self._files[name].write(json.dumps(line, allow_nan=False) + "\n")
    self._files[name].flush()
    for key, value in values.items():
      if isinstance(value, int | float):
        self._board.add_scalar(f"{split}/{key}", value, step)

  def close(self) -> None:
    """Flushes all."""
    if self._active:
      for file in self._files.values():
        file.close()
      self._board.close()


def draw_report(
  path: Path,
  lines: Sequence[dict[str, Any]],
  heldout: dict[str, Any] | None,
  scores: np.ndarray | None,
) -> None:
  """report.png: loss, accuracies with baselines and interval, and the scores' histograms.

  Args:
    path: of the picture.
    lines: of metrics.jsonl.
    heldout: from `evaluate.pair_report`, or None.
    scores: float [n, 2], of chosen and rejected held-out responses, or None.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(13, 4.6), layout="constrained")
  FigureCanvasAgg(figure)
  left, middle, right = figure.subplots(1, 3)
  train = [line for line in lines if line["split"] == "train"]
  held = [line for line in lines if line["split"] == "heldout"]
  blue, orange, grey = "#2563a8", "#d9762b", "#777777"

  left.plot([x["step"] for x in train], [x["loss"] for x in train], color=blue, label="train")
  left.plot(
    [x["step"] for x in held], [x["loss"] for x in held], "o-", color=orange, label="held out"
  )
  left.axhline(np.log(2), color=grey, lw=0.8, ls=":", label="log 2, a coin")
  left.set(xlabel="step", ylabel="Bradley–Terry loss (nats)", title="Loss")
  left.legend(frameon=False)

  middle.plot([x["step"] for x in train], [x["accuracy"] for x in train], color=blue, alpha=0.5)
  if held:
    at = [x["step"] for x in held]
    low = [x["accuracy"] - x["interval"][0] for x in held]
    high = [x["interval"][1] - x["accuracy"] for x in held]
    middle.errorbar(
      at,
      [x["accuracy"] for x in held],
      yerr=[low, high],
      fmt="o-",
      color=orange,
      capsize=3,
      label="held out, 95 %",
    )
  if heldout:
    for (name, value), style in zip(heldout["baselines"].items(), (":", "--", "-."), strict=True):
      middle.axhline(value, color=grey, lw=0.9, ls=style, label=f"{name} {value:.3f}")
    if "best_reachable" in heldout:
      best = heldout["best_reachable"]
      middle.axhline(best, color="#2a7a3b", lw=1.2, label=f"best reachable {best:.3f}")
    title = f"Agreement: {heldout['accuracy']:.3f} on {heldout['n']} pairs"
  else:
    title = "Agreement"
  middle.set(xlabel="step", ylabel="accuracy, ties half", title=title)
  below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=2)
  middle.legend(frameon=False, fontsize=8, **below)

  if scores is not None:
    edges = np.histogram_bin_edges(scores.ravel(), bins=30)
    right.hist(scores[:, 0], edges, color=blue, alpha=0.6, label="chosen")
    right.hist(scores[:, 1], edges, color=orange, alpha=0.6, label="rejected")
    right.legend(frameon=False)
  right.set(xlabel="score", ylabel="held-out responses", title="Scores")
  for axis in (left, middle, right):
    axis.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, dpi=110)
