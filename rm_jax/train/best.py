"""The best checkpoint of a run, chosen by a measure on its validation data.

The validation data (`data.validation`) are conversations set aside from the training data. After
each evaluation the model is kept in the workdir's `best/` folder if its measure is the best so far,
beside the latest checkpoints, from which the run resumes. What is known of earlier evaluations is
read from metrics.jsonl, so that a resumed run chooses as one that was never interrupted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_jax.errors import InputError
from rm_jax.heldout import figures
from rm_jax.workdir.checkpoints import CheckpointError, Checkpoints
from rm_jax.workdir.folder import BEST
from rm_jax.workdir.state import TrainState

SPLIT = "validation"  # of the lines of metrics.jsonl


def measured(report: dict[str, Any], measure: str) -> float | None:
  """The figure of a report by which checkpoints are compared; larger is better.

  Args:
    report: of `heldout.evaluate.evaluate`, or a line of metrics.jsonl.
    measure: a name as `heldout.figures.look_up` takes it. If its last key is 'loss', for which
      smaller is better, the figure is returned with the opposite sign.

  Returns:
    the figure; None if the report has it and it is no number, as for lack of data, or if it has no
    figures because scores are not finite (`not_finite` counts their examples).

  Raises:
    InputError: the report has no such figure, or what it has is no figure but has some.
  """
  if report.get("not_finite"):
    return None
  found = figures.look_up(report, measure)
  if not found or any(isinstance(part, Mapping) and "value" not in part for part, _ in found):
    known = ", ".join(figures.names(report))
    raise InputError(f"train.best is {measure!r}; the validation data's report has {known}")
  value = figures.number(report, measure)
  return -value if value is not None and measure.rpartition(".")[2] == "loss" else value


class Best:
  """Keeps the best model of a run.

  Args:
    workdir: the run's folder.
    measure: see `measured`.
    patience: see `exhausted`.
    options: of `Checkpoints`.

  Its methods raise InputError as `measured`.
  """

  def __init__(self, workdir: Path, measure: str, patience: int, **options):
    self.measure, self.patience = measure, patience
    self.checkpoints = Checkpoints(workdir / BEST, 1, **options)

  def chosen(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first validation line of metrics.jsonl with the best measure; None if none has one."""
    valued = [x for x in self._lines(lines) if measured(x, self.measure) is not None]
    return max(valued, key=lambda x: measured(x, self.measure), default=None)

  def exhausted(self, lines: Sequence[dict[str, Any]]) -> bool:
    """Whether the last `patience` evaluations brought no new best.

    False if `patience` is 0 or there is no best yet.
    """
    mine, best = self._lines(lines), self.chosen(lines)
    if not self.patience or best is None:
      return False
    return len(mine) - 1 - mine.index(best) >= self.patience

  def keep(
    self, state: TrainState, report: dict[str, Any], lines: Sequence[dict[str, Any]]
  ) -> bool:
    """Saves the model if its report has the measure and is better than those of all earlier steps.

    Args:
      state: the run's.
      report: on the validation data.
      lines: of metrics.jsonl, without one for this step.

    Returns:
      whether it is the best so far.

    Raises:
      CheckpointError: as `Checkpoints.replace`.
    """
    value = measured(report, self.measure)
    earlier = self.chosen(lines)
    if value is None or (earlier and value <= measured(earlier, self.measure)):
      return False
    self.checkpoints.replace(state, {"measure": self.measure, "value": value})
    return True

  def restore(self, state: TrainState, line: dict[str, Any]) -> dict[str, Any]:
    """The network's parameters, nested, of the best checkpoint, placed as in `state`.

    Args:
      state: the run's.
      line: from `chosen`.

    Raises:
      CheckpointError: there is none that can be read; or it is of another step than the line, and
        is moved away. So it is where a run was killed after a new best, resumed from before it, and
        ended earlier or came to another figure there.
    """
    params = self.checkpoints.restore_model(state)
    if (found := self.checkpoints.step) != line["step"]:
      self.checkpoints.set_aside()
      raise CheckpointError(
        f"the checkpoint in {self.checkpoints.directory} is of step {found}, and by metrics.jsonl "
        f"the best is that of step {line['step']}, which is there no more: it was moved away"
      )
    return params

  @staticmethod
  def _lines(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("split") == SPLIT]
