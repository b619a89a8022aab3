"""What is written of a run beside its metrics: the picture's bars, and the memory."""

import resource
import types

import matplotlib.axes
import numpy as np
import pytest

from rm_jax.train import writers


def test_the_bars_of_the_picture_are_the_intervals(tmp_path, monkeypatch):
  drawn = []

  def errorbar(self, x, y, *, yerr, **style):
    drawn.append((x, y, yerr))

  monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", errorbar)
  lines = [
    {"split": "heldout", "step": 0, "loss": 0.7, "accuracy": 0.5, "interval": None},
    {"split": "heldout", "step": 9, "loss": 0.6, "accuracy": 0.7, "interval": [0.6, 0.75]},
  ]
  writers.draw_report(tmp_path / "report.png", lines, None, [])
  ((steps, accuracies, ends),) = drawn
  assert (steps, accuracies) == ([0, 9], [0.5, 0.7])
  np.testing.assert_allclose(ends, [[0.0, 0.1], [0.0, 0.05]], atol=1e-12)


@pytest.mark.parametrize(("of_devices", "expected"), [((5, None, 7), 7), ((None, None), 3 * 1024)])
def test_peak_memory_is_of_the_fullest_device_or_of_the_process(of_devices, expected, monkeypatch):
  devices = [
    types.SimpleNamespace(memory_stats=lambda peak=peak: peak and {"peak_bytes_in_use": peak})
    for peak in of_devices
  ]
  monkeypatch.setattr(writers.jax, "local_devices", lambda: devices)
  usage = types.SimpleNamespace(ru_maxrss=3)  # in KiB, as Linux counts
  monkeypatch.setattr(resource, "getrusage", lambda who: usage)
  assert writers.peak_memory_bytes() == expected
