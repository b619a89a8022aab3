"""The stop rule on made-up evaluations, and means over responses."""

import numpy as np
import pytest

from rm_jax.rlhf.watch import StopRule, drift_of, means_of

CALM = {"disagreement": 0.1, "drift": 0.2}
APART = {"disagreement": 0.2, "drift": 0.2}
GONE = {"disagreement": 0.1, "drift": 0.95}
RULE = StopRule(patience=2, disagreement=1.5, drift=0.9)


def lines(*signs, proxy=None):
  proxy = proxy or range(len(signs))
  return [
    {"step": 10 * i, "proxy": float(p), **one}
    for i, (p, one) in enumerate(zip(proxy, signs, strict=True))
  ]


def test_it_says_stop_where_the_proxy_rises_and_a_sign_is_there_twice_in_a_row():
  assert RULE.says(lines(CALM, CALM, CALM)) is None
  assert RULE.says(lines(CALM, *[{"disagreement": 0.14, "drift": 0.89}] * 3)) is None
  found = RULE.says(lines(CALM, APART, CALM, APART, APART, APART))
  assert found["turn"] == 40
  assert "disagree by 0.2, and by 0.1" in found["why"]
  assert RULE.says(lines(CALM, GONE, APART))["turn"] == 20
  assert StopRule(patience=1).says(lines(CALM, GONE))["turn"] == 10


def test_it_says_nothing_where_the_proxy_does_not_rise():
  assert RULE.says(lines(CALM, APART, APART, APART, proxy=[0, 1, 1, 0.5])) is None


def test_a_sign_of_0_is_not_looked_at():
  off = StopRule(patience=1, disagreement=0.0, drift=0.0)
  assert off.says(lines(CALM, APART, GONE)) is None
  alone = {"disagreement": None, "drift": 0.2}  # one member
  assert RULE.says(lines(alone, alone, alone)) is None
  assert RULE.says([]) is None


def test_responses_that_the_start_would_not_write_are_a_sign():
  strange = CALM | {"surprise_drift": 0.75}
  found = RULE.says(lines(CALM, strange, strange))
  assert found["turn"] == 20
  assert "would hardly have written" in found["why"]
  likelier = CALM | {"surprise_drift": -0.95}
  assert RULE.says(lines(CALM, likelier, likelier)) is None
  assert StopRule(patience=1, surprise=0.0).says(lines(CALM, strange, strange)) is None


def test_drift_is_the_distance_of_two_distributions():
  start = {"proxy": list(np.arange(100.0)), "surprise": list(np.arange(100.0))}

  def drift(proxy, surprise):
    return drift_of(start, {"proxy": proxy, "surprise": surprise})

  same = np.arange(100.0).reshape(10, 10)
  assert drift(same, same) == {"drift": 0.0, "surprise_drift": 0.0}
  assert drift(same - 1000, same + 1000) == {"drift": 1.0, "surprise_drift": 1.0}
  half = np.arange(50.0, 150.0)[None]
  assert drift(half, half - 100) == {"drift": pytest.approx(0.5), "surprise_drift": -0.5}
  assert drift_of({"proxy": [0.0]}, {"proxy": same, "surprise": same}).keys() == {"drift"}


def test_means_leave_out_what_is_not_known_and_weigh_entropy_by_tokens():
  values = {
    "proxy": np.array([[1.0, np.nan], [3.0, 5.0]]),
    "disagreement": np.full((2, 2), np.nan),
    "length": np.array([[1.0, 3.0], [4.0, 2.0]]),
    "entropy": np.array([[4.0, 1.0], [1.0, 1.0]]),
  }
  assert means_of(values) == {
    "proxy": 3.0,
    "disagreement": None,
    "length": 2.5,
    "entropy": pytest.approx((4 + 3 + 4 + 2) / 10),
  }
