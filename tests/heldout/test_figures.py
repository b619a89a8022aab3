"""Figures of a report by their names."""

import pytest

from rm_jax.heldout import figures

REPORT = {
  "accuracy": 0.7,
  "interval": [0.6, 0.8],
  "n": 4,
  "why": "x",
  "ties": True,
  "auroc": {"value": 0.8, "interval": [0.5, 0.9]},
  "rule": {"accuracy": 0.5, "difference": 0.1, "interval": [0.0, 0.2]},
  "kendall": {"value": None, "interval": None},
  "sources": {
    "a.test": {"accuracy": 0.6, "interval": [0.1, 0.9], "n": 3},
    "b": {"accuracy": 0.9, "interval": None, "n": 1},
  },
}


@pytest.mark.parametrize(
  ("name", "value", "interval"),
  [
    ("accuracy", 0.7, (0.6, 0.8)),
    ("n", 4.0, None),
    ("auroc", 0.8, (0.5, 0.9)),
    ("auroc.value", 0.8, (0.5, 0.9)),
    ("kendall", None, None),
    ("sources.a.test.accuracy", 0.6, (0.1, 0.9)),
    ("sources.b.accuracy", 0.9, None),
    ("sources.*.accuracy", 0.75, None),
    ("why", None, None),
    ("ties", None, None),
    ("rule.difference", 0.1, (0.0, 0.2)),
    ("rule.accuracy", 0.5, None),
    ("sources", None, None),
  ],
)
def test_a_name_is_a_path_of_keys(name, value, interval):
  assert figures.look_up(REPORT, name)
  assert figures.number(REPORT, name) == (value if value is None else pytest.approx(value))
  assert figures.interval(REPORT, name) == interval


@pytest.mark.parametrize(
  "name", ["acuracy", "sources.c.accuracy", "sources.*.loss", "accuracy.value", "a.test", ""]
)
def test_what_is_not_there_is_nothing(name):
  assert figures.look_up(REPORT, name) == []
  assert figures.number(REPORT, name) is None
  assert figures.interval(REPORT, name) is None


def test_names_are_those_of_the_numbers():
  assert list(figures.names(REPORT)) == [
    "accuracy",
    "n",
    "auroc.value",
    "rule.accuracy",
    "rule.difference",
    "sources.a.test.accuracy",
    "sources.a.test.n",
    "sources.b.accuracy",
    "sources.b.n",
  ]
