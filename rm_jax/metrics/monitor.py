"""A monitor of score drift that raises alarms over a stream, and bounds the chance of a false one.

Each window is tested with the two-sample Kolmogorov-Smirnov test. The bound is over the monitor's
whole life: every test spends a part of one significance level (compare Foster and Stine 2008,
α-investing).
"""

import math

import numpy as np
import numpy.typing as npt

from rm_jax.metrics.drift import ks_signed
from rm_jax.metrics.interval import vector


class DriftMonitor:
  """Watches a stream of scores; the chance that it ever raises a false alarm is at most `level`.

  Scores are gathered into windows, and each full window is tested against the reference
  (`drift.ks`). The k-th test is made at the level 6 / (π² k²) · `level`. These parts sum to
  `level`, so by the union bound a stream of independent scores that is distributed like the
  reference ever raises an alarm with probability at most `level`, however long it is. Later windows
  need a larger change to raise an alarm, but the distance between the distributions that raises one
  only grows as √log k. Evidence is not added up over windows, so a change that is too small to be
  seen in one window is missed.

  Attributes:
    seen: number of scores so far.
    tests: number of windows tested so far.
    spent: the part of `level` that these tests have used.
  """

  def __init__(self, reference: npt.ArrayLike, *, level: float = 0.01, window: int = 200):
    """Starts a monitor that has seen no scores.

    Args:
      reference: [N] scores, at least as many as a window has; independent of the stream.
      level: bound on the probability that there is ever a false alarm, in (0, 1).
      window: scores of each test, at least 20. A larger window detects smaller changes, but later.

    Raises:
      ValueError: an argument is out of its range.
    """
    self._reference = vector(reference, "reference")
    if not 0 < level < 1:
      raise ValueError(f"level is {level}; expected it in (0, 1)")
    if not 20 <= window <= len(self._reference):
      raise ValueError(
        f"window is {window}; expected it from 20 to the reference's {len(self._reference)} scores"
      )
    self._level, self._window = level, window
    self._waiting = np.zeros(0)
    self.seen, self.tests, self.spent = 0, 0, 0.0

  def update(self, scores: npt.ArrayLike) -> list[dict]:
    """Takes the next scores, in order, and returns the alarms of the windows that they complete.

    Args:
      scores: [M], any number. The alarms do not depend on how a stream is divided into calls.

    Returns:
      A list of alarms {step: number of scores seen at the window's end, test: the window's number
      from 1, statistic, p, level: the level that p was compared with, direction: 'up' if the
      window's scores are higher where the two distributions differ most, else 'down'}.

    Raises:
      ValueError: scores are not [M] or not finite; the call then leaves the monitor unchanged.
    """
    score_M = vector(scores, "scores")
    waiting = np.concatenate([self._waiting, score_M])
    start = self.seen - len(self._waiting)
    self.seen += len(score_M)
    alarms = []
    while len(waiting) >= self._window:
      now, waiting = waiting[: self._window], waiting[self._window :]
      start += self._window
      self.tests += 1
      level = self._level * 6 / (math.pi * self.tests) ** 2
      self.spent += level
      difference, p = ks_signed(self._reference, now)
      if p <= level:
        alarms.append(
          {
            "step": start,
            "test": self.tests,
            "statistic": abs(difference),
            "p": p,
            "level": level,
            "direction": "up" if difference > 0 else "down",
          }
        )
    self._waiting = waiting
    return alarms

  def state(self) -> dict:
    """What the monitor knows of the stream so far, of JSON's types, for `resume`."""
    waiting = self._waiting.tolist()
    return {"seen": self.seen, "tests": self.tests, "spent": self.spent, "waiting": waiting}

  def resume(self, state: dict) -> None:
    """Goes on where another monitor, with the same reference and settings, was: see `state`."""
    self.seen, self.tests, self.spent = state["seen"], state["tests"], state["spent"]
    self._waiting = np.asarray(state["waiting"], np.float64)
