"""Pairs are judged the right way round, at the judge's temperature, and read as pairs."""

import json
import math

import numpy as np

from rm_jax.data import formats
from rm_jax.data.report import Report
from rm_jax.rlhf.preferences import judged, row


def test_the_better_response_comes_first():
  scores = np.array([[1.0, 2.0], [3.0, -1.0]])
  order = judged(scores, 0.0, 0.0, np.random.default_rng(0))
  assert order.tolist() == [[1, 0], [0, 1]]
  assert judged(scores, 0.0, 1.0, np.random.default_rng(0)).tolist() == [[0, 1], [1, 0]]


def test_the_judge_errs_as_bradley_terry_says():
  count = 40_000
  scores = np.tile([[0.0, 0.6]], (count, 1))
  for flips in (0.0, 0.2):
    order = judged(scores, 0.5, flips, np.random.default_rng(1))
    p = 1 / (1 + math.exp(-0.6 / 0.5))
    p = p * (1 - flips) + (1 - p) * flips
    assert abs((order[:, 0] == 1).mean() - p) < 4 * math.sqrt(p * (1 - p) / count)


def test_rows_are_read_as_pairs(tmp_path):
  messages = ({"role": "user", "content": "Q"},)
  rows = [row("p", ["good", "bad"], np.array([2.0, 1.0]))]
  rows += [row(messages, ["yes", "no"], np.array([0.5, 0.25]))]
  path = tmp_path / "preferences.jsonl"
  path.write_text("".join(json.dumps(one) + "\n" for one in rows))
  first, second = formats.load(path, report=Report(strict=True))
  assert (first.kind, first.responses, first.labels) == ("pair", ("good", "bad"), (1.0, 0.0))
  assert second.responses[0][0]["content"] == "yes"
  assert rows[1]["scores"] == [0.5, 0.25]
