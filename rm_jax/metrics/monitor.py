"""A monitor of score drift: alarms over a stream, with the chance of a false one held for its life.

Spending a level over tests: Foster and Stine (2008), α-investing. The test is Smirnov's.
"""

import math

import numpy as np
import numpy.typing as npt

from rm_jax.metrics.agreement import vector
from rm_jax.metrics.drift import ks_signed


class DriftMonitor:
  """Watches a stream of scores, and over its whole life raises a false alarm with chance <= level.

  Scores are gathered into windows, and each full one is tested against the reference by `ks`. The
  k-th test may use 6 / (π² k²) of the level: these shares sum to 1, so that, by the union bound,
  the chance that a stream like the reference ever raises an alarm is at most the level, however
  long it runs. Later windows need larger changes, though slowly: the distance that alarms grows as
  √log k. A change too small for one window is not found by many.

  Attributes:
    seen: scores so far.
    tests: windows tested so far.
    spent: of the level, by those tests.
  """

  def __init__(self, reference: npt.ArrayLike, *, level: float = 0.01, window: int = 200):
    """Starts at no scores.

    Args:
      reference: [N] scores, at least as many as the window; independent of the stream.
      level: chance of ever a false alarm, in (0, 1).
      window: scores a test, at least 20: larger ones see smaller changes, and later.

    Raises:
      ValueError: an argument out of its range.
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
    """Takes the next scores, in order, and returns the alarms of the windows that they fill.

    Args:
      scores: [M], any number. The alarms do not depend on how a stream is cut into calls.

    Returns:
      alarms {step: scores seen at the window's end, test: its number from 1, statistic, p, level:
      what p was held against, direction: 'up' if the window's scores lie higher where the two
      distributions are farthest apart, else 'down'}.

    Raises:
      ValueError: a score that is not finite; the monitor is then as before the call.
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
