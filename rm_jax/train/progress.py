"""What a running loop keeps an eye on: the clock, and signals that ask it to stop."""

import contextlib
import signal
import threading
import time

import jax


class Signals:
  """While open, SIGTERM and SIGINT are noted and not obeyed at once: the step is finished first."""

  def __init__(self):
    self.asked: int | None = None
    self._old = {}

  def __enter__(self):
    # Python lets only the main thread do this; elsewhere (a notebook's worker) signals stay as are.
    # And of several processes one may be asked: JAX listens for all (`hosts.asked_to_stop`).
    alone = jax.process_count() == 1
    if alone and threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._old[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, _frame):
    self.asked = number

  def __exit__(self, *_):
    for number, handler in self._old.items():
      signal.signal(number, handler)


class Clock:
  """Seconds spent in steps: not in evaluation, checkpoints, or the first step, which compiles."""

  def __init__(self, groups: int):
    self._groups = groups  # of a step
    self._seconds = 0.0
    self._steps = 0
    self._last: float | None = None
    self._window = time.perf_counter()
    self._window_steps = 0

  def tick(self, _done: int) -> None:
    now = time.perf_counter()
    if self._last is not None:
      self._seconds += now - self._last
      self._steps += 1
    self._last = now
    self._window_steps += 1

  @contextlib.contextmanager
  def pause(self):
    began = time.perf_counter()
    yield
    away = time.perf_counter() - began
    self._window += away
    if self._last is not None:
      self._last += away

  def window(self, tokens: int) -> dict[str, float]:
    """Speed since it was last asked."""
    now = time.perf_counter()
    seconds, steps = max(1e-9, now - self._window), self._window_steps
    self._window, self._window_steps = now, 0
    return {
      "seconds": round(seconds, 3),
      "pairs_per_second": round(steps * self._groups / seconds, 2),
      "tokens_per_second": round(tokens / seconds, 1),
    }

  def pairs_per_second(self) -> float | None:
    """Over all steps but the first; None where there was no other."""
    return round(self._steps * self._groups / self._seconds, 3) if self._steps else None
