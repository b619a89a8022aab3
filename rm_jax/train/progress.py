"""What the loop watches: time spent in steps, and signals that ask it to stop."""

import contextlib
import signal
import threading
import time

import jax


class Signals:
  """A context in which SIGTERM and SIGINT do not end the process but set `asked` to their number.

  So the loop can finish its step first. With several processes, or outside the main thread, it
  changes nothing.
  """

  def __init__(self):
    self.asked: int | None = None
    self._old = {}

  def __enter__(self):
    # Python allows signal handlers in the main thread only; in another thread (a notebook's worker)
    # both signals do what they did before. With several processes a SIGTERM may reach only one of
    # them, so JAX's preemption service handles it and tells the others (`asked_to_stop` in
    # parallel/hosts.py); SIGINT then does what it did before.
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
  """Time spent in steps, without evaluation and checkpoints.

  `pairs_per_second` leaves out the first step too, which compiles.

  Args:
    groups: number of groups in a step.
    tokens: that are in the metrics' window already, of steps before a run was resumed.
  """

  def __init__(self, groups: int, tokens: int = 0):
    self._groups, self._tokens = groups, tokens
    self._seconds = 0.0
    self._steps = 0
    self._last: float | None = None
    self._window = time.perf_counter()
    self._window_steps = 0

  def tick(self) -> None:
    """Counts a step that is done."""
    now = time.perf_counter()
    if self._last is not None:
      self._seconds += now - self._last
      self._steps += 1
    self._last = now
    self._window_steps += 1

  @contextlib.contextmanager
  def pause(self):
    """A context whose time does not count."""
    began = time.perf_counter()
    yield
    away = time.perf_counter() - began
    self._window += away
    if self._last is not None:
      self._last += away

  def window(self, tokens: int) -> dict[str, float]:
    """Speed since the last call; 'pairs_per_second' counts groups, of whatever kind.

    Args:
      tokens: of the metrics' window that ends now, without padding.
    """
    now = time.perf_counter()
    seconds, steps = max(1e-9, now - self._window), self._window_steps
    tokens -= self._tokens
    self._window, self._window_steps, self._tokens = now, 0, 0
    return {
      "seconds": round(seconds, 3),
      "pairs_per_second": round(steps * self._groups / seconds, 2),
      "tokens_per_second": round(tokens / seconds, 1),
    }

  def pairs_per_second(self) -> float | None:
    """Groups, of whatever kind, per second over all steps but the first; None without others."""
    return round(self._steps * self._groups / self._seconds, 3) if self._steps else None
