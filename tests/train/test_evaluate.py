"""The held-out report, on scores whose agreement is known."""

import math

import numpy as np
import pytest

from rm_jax.train.evaluate import characters, pair_report, summary_line, summary_table
from rm_jax.types import Example


def example(i, chosen, rejected, truth=None, source="a"):
  return Example(
    "p", (chosen, rejected), (1.0, 0.0), conversation=f"c{i}", source=source, truth=truth
  )


EXAMPLES = [
  example(0, "long one", "x", (2.0, 1.0)),
  example(1, "y", "longer", (1.0, 3.0)),
  example(2, "same", "size", (1.0, 1.0), "b"),
  example(3, "longest of all", "short", (5.0, 0.0), "b"),
]
SCORES = [np.asarray(s, np.float32) for s in ([1, 0], [2, 1], [0, 0], [0, 3])]


def test_accuracy_baselines_and_best_reachable():
  report = pair_report(SCORES, EXAMPLES)
  assert report["accuracy"] == (1 + 1 + 0.5 + 0) / 4
  assert report["ties"] == 1
  assert report["n"] == 4
  assert report["baselines"] == {"random": 0.5, "longest": 2.5 / 4, "shortest": 1.5 / 4}
  assert report["best_reachable"] == (1 + 0 + 0.5 + 1) / 4
  assert report["paired"]["longest"]["difference"] == report["accuracy"] - 2.5 / 4
  nll = [math.log1p(math.exp(-d)) for d in (1, 1, 0, -3)]
  assert report["loss"] == pytest.approx(sum(nll) / 4)
  assert report["sources"]["b"]["n"] == 2
  assert report["sources"]["b"]["best_length_rule"] == {"rule": "longest", "accuracy": 0.75}
  assert "best reachable 0.625" in summary_line(report)


def test_the_table_has_every_baseline_and_every_source_with_its_length_rule():
  examples = [*EXAMPLES, example(4, "a", "bb", source="alone")]
  table = summary_table(pair_report([*SCORES, np.asarray([1.0, 0.0])], examples)).splitlines()
  # Accuracy (1 + 1 + 0.5 + 0 + 1) / 5 to longest's (1 + 0 + 0.5 + 1 + 0) / 5.
  assert "+0.200 [" in next(line for line in table if "to longest, paired" in line)
  assert "0.700 [" in table[0]
  # Source b: credits 0.5 and 0 to longest's 0.5 and 1; one pair alone has no interval.
  few = "0.250 (no interval: 2 conversations: an interval wants 5) on 2 pairs"
  assert few in next(line for line in table if line.startswith("  b "))
  assert "best length rule: longest 0.750" in next(
    line for line in table if line.startswith("  b ")
  )
  none = "1.000 (no interval: 1 conversation: an interval wants 5) on 1 pairs"
  assert none in next(line for line in table if line.startswith("  alone"))


def test_without_truth_nothing_is_said_of_the_best():
  report = pair_report(SCORES, [*EXAMPLES[:3], example(3, "a", "b")])
  assert "best_reachable" not in report


def test_length_is_what_people_see():
  assert characters("abc") == 3
  assert characters(({"role": "assistant", "content": "ab"}, {"role": "user", "content": "c"})) == 3
