"""The stop rule on made-up evaluations, and means over responses."""

import numpy as np
import pytest

from rm_jax.rlhf.watch import StopRule, drift_of, features_left, means_of

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


def test_hidden_states_that_have_left_those_of_the_start_are_a_sign():
  strange = CALM | {"features": 0.95}
  assert RULE.says(lines(CALM, strange, strange))["turn"] == 20
  assert "hidden states" in RULE.says(lines(CALM, strange, strange))["why"]
  nearer = CALM | {"features": -0.95}
  assert RULE.says(lines(CALM, nearer, nearer)) is None
  off = StopRule(patience=1, features=0.0)
  assert off.says(lines(CALM, strange, strange)) is None


def test_features_are_left_by_what_is_further_away_and_not_by_what_is_nearer():
  rng = np.random.default_rng(0)
  start, same = rng.normal(size=(400, 3)), rng.normal(size=(300, 3))
  assert abs(features_left(start, same)) < 0.15
  assert features_left(start, same + 10) == 1
  assert features_left(start, same * 0.01) == -1
  assert np.isnan(features_left(start[:3], same))
  assert np.isnan(features_left(np.ones((8, 3)), same))
  # A feature that did not vary at the start and does so now.
  flat = start * [1, 1, 0]
  assert features_left(flat, same * [1, 1, 10]) > 0.7


def test_drift_is_the_distance_of_two_distributions():
  start = list(np.arange(100.0))
  assert drift_of(start, np.arange(100.0).reshape(10, 10)) == 0
  assert drift_of(start, np.full((4, 5), 1000.0)) == 1
  assert drift_of(start, np.arange(50.0, 150.0)[None]) == pytest.approx(0.5)


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
