"""What a chain writes while its policy is optimised.

    metrics.jsonl      a line a turn (split 'train') and an evaluation (split 'evaluation')
    timing.jsonl       seconds and memory of a turn
    tensorboard/       the numbers of both
    evaluations.jsonl  each evaluation's figures by prompt, which intervals are made of
    samples.jsonl      responses to a few fixed prompts, as text
    start.json         what drift is measured from: the scores of the responses before the first
                       turn, and how likely these were

All but timing.jsonl and tensorboard/ are the same bytes in a run that was interrupted and resumed.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_jax.data.dialogue import plain
from rm_jax.pretrained.source import read_json
from rm_jax.rlhf.watch import Seen, drift_of
from rm_jax.storage.files import read_lines, write_atomically, write_json
from rm_jax.train.writers import Writers


class Records:
  """Writes the files of the module.

  Args:
    folder: of the chain.
    turn: from which the run goes on; lines of later ones are removed, and at 0 all are.
    texts: number of prompts whose samples are written to samples.jsonl.
  """

  def __init__(self, folder: Path, turn: int, *, texts: int):
    self._folder, self._texts = folder, texts
    self._writers = Writers(folder, turn, active=True)
    for name in ("evaluations", "samples"):
      kept = [line for line in read_lines(self._path(name)) if turn and line["step"] <= turn]
      write_atomically(self._path(name), "".join(json.dumps(line) + "\n" for line in kept))

  def _path(self, name: str) -> Path:
    return self._folder / f"{name}.jsonl"

  def _append(self, name: str, line: Mapping[str, Any]) -> None:
    with self._path(name).open("a", encoding="utf-8") as file:
      file.write(json.dumps(line, allow_nan=False) + "\n")

  def turn(self, turn: int, values: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
    """Writes a turn's metrics and its times; numbers that are not finite are written as None."""
    self._writers.write("metrics", turn, known(values))
    self._writers.write("timing", turn, dict(timing))

  def evaluation(self, turn: int, seen: Seen, *, texts: bool) -> dict[str, Any]:
    """Writes an evaluation; returns its line of metrics.jsonl.

    Args:
      turn: after which it was made; 0 = before the first.
      seen: what it found.
      texts: whether samples are written.
    """
    if not turn:
      start = {n: seen.values[n].reshape(-1).tolist() for n in ("proxy", "surprise")}
      write_json(self._folder / "start.json", start)
    line = seen.means() | drift_of(self.start(), seen.values)
    self._writers.write("metrics", turn, known(line), split="evaluation")
    self._append("evaluations", {"step": turn, **seen.by_prompt()})
    if texts:
      rollout = seen.rollout
      for p in range(min(self._texts, len(rollout.prompts))):
        figures = {n: seen.values[n][p, 0] for n in ("proxy", "truth", "gold") if n in seen.values}
        what = {"prompt": plain(rollout.prompts[p]), "response": rollout.texts[p][0]}
        self._append("samples", {"step": turn, **what, **known(figures)})
    return line

  def start(self) -> dict[str, list[float]]:
    """'proxy' and 'surprise' of all responses of the evaluation before the first turn."""
    return read_json(self._folder / "start.json")

  def evaluations(self) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl on evaluations so far."""
    return evaluations(self._folder)

  def close(self) -> None:
    """Closes the files."""
    self._writers.close()


def evaluations(folder: Path) -> list[dict[str, Any]]:
  """The lines of a chain's metrics.jsonl on evaluations."""
  lines = read_lines(folder / "metrics.jsonl")
  return [line for line in lines if line.get("split") == "evaluation"]


def known(values: Mapping[str, Any]) -> dict[str, Any]:
  """The values, None in place of numbers that are not finite, for JSON has no word for these."""
  return {
    name: None if x is None or not math.isfinite(x) else float(x) for name, x in values.items()
  }
