"""Calibration: fits against scikit-learn and optimality conditions, errors against known truth."""

import math

import numpy as np
import pytest

from rm_jax.metrics.calibration import (
  both_orders,
  brier,
  ece,
  fit_platt,
  fit_temperature,
  halves,
  isotonic,
  nll,
  nll_logits,
  reliability,
  sigmoid,
)

SKLEARN = "scikit-learn is the oracle"


def pairs(seed, temperature, n=4000):
  """Score differences of a calibrated model: chosen is better with probability σ(Δ/T)."""
  rng = np.random.default_rng(seed)
  true = rng.normal(size=n) * 1.5
  return temperature * np.where(rng.random(n) < sigmoid(true), true, -true)


def test_sigmoid_at_the_ends():
  assert sigmoid([0.0, 800.0, -800.0]).tolist() == [0.5, 1.0, 0.0]
  assert sigmoid(-40) == pytest.approx(math.exp(-40) / (1 + math.exp(-40)), rel=1e-14)


def test_halves_split_conversations_whole():
  clusters = ["a", "b", "a", "c", "d", "e", "b"]
  first = halves(clusters, seed=3)
  assert first[0] == first[2]
  assert first[1] == first[6]
  assert len({c for c, f in zip(clusters, first, strict=True) if f}) == 2
  assert np.array_equal(first, halves(clusters, seed=3))
  assert any(not np.array_equal(first, halves(clusters, seed=s)) for s in range(4, 9))
  with pytest.raises(ValueError, match=r"1 cluster\(s\)"):
    halves(["a", "a"])


def test_temperature_of_three_pairs_by_hand():
  # Two pairs are right by d and one is wrong by d: σ(d/T) = 2/3, so d/T = log 2.
  for d in (1.0, 1e-8, 3e12):
    assert fit_temperature([d, d, -d]) == pytest.approx(d / math.log(2), rel=1e-14)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 50.0])
def test_temperature_finds_the_scale_and_undoes_it(temperature):
  found = fit_temperature(pairs(0, temperature))
  assert found / temperature == pytest.approx(1, abs=0.1)  # The standard error is 0.03.
  d = pairs(0, temperature)
  at = [np.logaddexp(0, -d / (found * f)).sum() for f in (0.999, 1.0, 1.001)]
  assert at[1] < min(at[0], at[2])
  other = pairs(1, temperature)
  assert ece(*both_orders(other / found))["interval"][0] < 0.02
  if temperature != 1:
    assert ece(*both_orders(other))["interval"][0] > 0.05


@pytest.mark.parametrize(
  ("differences", "message"),
  [
    ([1.0, -1.0], "mean 0.0 over 2 pairs"),
    ([0.1, -1.0], "expected it above 0"),
    ([0.0, 0.0], "expected it above 0"),
    ([-0.4, -0.6, 0.3, -0.2, 0.9], "expected it above 0"),  # 0, but for the sum's rounding errors.
    ([0.9, -0.3, -0.2, -0.7, 0.3], "expected it above 0"),
    ([], "over 0 pairs"),
    ([1.0, 0.0], "never below 0"),
    ([1.0, math.nan], r"difference_N\[1\] is nan"),
  ],
)
def test_no_temperature_is_said(differences, message):
  with pytest.raises(ValueError, match=message):
    fit_temperature(differences)


def labelled(seed, n=500, soft=False):
  rng = np.random.default_rng(seed)
  score = rng.normal(size=n) * 3 + 40
  p = sigmoid(0.8 * (score - 41))
  return score, (p if soft else (rng.random(n) < p).astype(float))


@pytest.mark.parametrize("seed", range(3))
def test_platt_against_scikit_learn(seed):
  linear = pytest.importorskip("sklearn.linear_model", reason=SKLEARN)
  score, label = labelled(seed)
  theirs = linear.LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky")
  theirs.fit((score - 40)[:, None], label)
  a, b = fit_platt(score, label)
  assert a == pytest.approx(theirs.coef_[0, 0], rel=1e-6)
  assert b + 40 * a == pytest.approx(theirs.intercept_[0], rel=1e-6, abs=1e-6)
  assert fit_platt(-score, label) == pytest.approx((-a, b), rel=1e-9)


def test_platt_meets_its_conditions_and_takes_probabilities():
  score, label = labelled(0)
  a, b = fit_platt(score, label)
  wrong = sigmoid(a * score + b) - label
  assert wrong.mean() == pytest.approx(0, abs=1e-12)
  assert (wrong * score).mean() == pytest.approx(0, abs=1e-10)
  assert fit_platt(*labelled(1, soft=True)) == pytest.approx((0.8, -0.8 * 41), rel=1e-8)
  # A label of 0.25 counts as one row with label 1 and three with label 0.
  soft = fit_platt([0.0, 1.0, 2.0], [0.25, 0.5, 0.75])
  hard = fit_platt(np.repeat([0.0, 1.0, 2.0], 4), [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0])
  assert soft == pytest.approx(hard, abs=1e-9)
  assert soft == pytest.approx((math.log(3), -math.log(3)), abs=1e-9)


def test_platt_smoothed_has_a_fit_where_a_threshold_separates():
  score, label = [0.0, 0.0, 1.0, 1.0, 1.0], [0, 0, 1, 1, 1]
  with pytest.raises(ValueError, match="separates"):
    fit_platt(score, label)
  a, b = fit_platt(score, label, smooth=True)
  assert sigmoid([b, a + b]) == pytest.approx([1 / 4, 4 / 5], rel=1e-9)  # Platt's targets.
  with pytest.raises(ValueError, match="expected 0 or 1 where smooth"):
    fit_platt([0.0, 1.0], [0.5, 1.0], smooth=True)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_platt_smoothed_has_a_fit_of_one_kind_of_label_and_none_of_one_score(label):
  a, b = fit_platt([1.0, 2.0, 3.0], [label] * 3, smooth=True)
  assert sigmoid(a * 2 + b) == pytest.approx(4 / 5 if label else 1 / 5, rel=1e-9)
  assert a == pytest.approx(0, abs=1e-9)
  with pytest.raises(ValueError, match="expected both kinds"):
    fit_platt([1.0, 2.0, 3.0], [label] * 3)
  with pytest.raises(ValueError, match="3 values, all equal"):
    fit_platt([2.0] * 3, [0.0, label, 1.0], smooth=True)


def test_platt_of_what_all_but_separates():
  """One label of 400 is on the wrong side of a wide gap: undamped Newton steps diverge."""
  score = np.concatenate([np.linspace(-9, -8, 200), np.linspace(8, 9, 200), [-8.2]])
  label = np.repeat([0.0, 1.0], [200, 201])
  a, b = fit_platt(score, label)
  wrong = sigmoid(a * score + b) - label
  assert [wrong.mean(), (wrong * score).mean()] == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize(
  ("score", "label", "message"),
  [
    ([1.0, 1.0], [0, 1], "all equal"),
    ([], [], "0 values"),
    ([1.0, 2.0], [1, 1], "label_N is all 1"),
    ([1.0, 2.0, 2.0, 3.0], [0, 0, 1, 1], "separates"),  # Both labels at 2: still no maximum.
    ([1.0, 2.0, 3.0], [1, 1, 0], "separates"),
    ([1.0, 2.0], [0, 1.5], r"label_N\[1\] is 1.5"),
    ([1.0], [0, 1], "score_N has 1 values, label_N 2"),
  ],
)
def test_platt_refuses(score, label, message):
  with pytest.raises(ValueError, match=message):
    fit_platt(score, label)


@pytest.mark.parametrize("seed", range(6))
def test_isotonic_against_scikit_learn(seed):
  sk = pytest.importorskip("sklearn.isotonic", reason=SKLEARN)
  rng = np.random.default_rng(seed)
  n = [1, 2, 30, 300, 300, 2000][seed]
  score = rng.integers(0, 40, n).astype(float) if seed % 2 else rng.normal(size=n)
  label = (rng.random(n) < sigmoid(score - score.mean())).astype(float)
  weight = rng.random(n) + 0.1
  knots, values = isotonic(score, label, weight)
  theirs = sk.IsotonicRegression(out_of_bounds="clip").fit(score, label, sample_weight=weight)
  at = np.linspace(score.min() - 1, score.max() + 1, 500)
  assert np.interp(at, knots, values) == pytest.approx(theirs.predict(at), abs=1e-12)
  assert (np.diff(knots) > 0).all()
  assert (np.diff(values) >= 0).all()
  assert len(knots) == len(theirs.X_thresholds_)


def test_isotonic_by_hand_and_refusals():
  knots, values = isotonic([1, 2, 3, 4, 5, 5], [0, 1, 0, 0.5, 1, 0])
  # The mean labels at the scores 2 to 5 are 1, 0, ½ and ½, which pool to a half.
  assert knots.tolist() == [1, 2, 5]
  assert values.tolist() == [0, 0.5, 0.5]
  with pytest.raises(ValueError, match=r"weight_N has 0\.0"):
    isotonic([1.0, 2.0], [0, 1], [1, 0])
  with pytest.raises(ValueError, match="at least one"):
    isotonic([], [])


def test_both_orders_are_symmetric():
  p, y = both_orders([2.0, -1.0])
  assert p == pytest.approx([*sigmoid([2.0, -1.0]), *sigmoid([-2.0, 1.0])])
  assert y.tolist() == [1, 1, 0, 0]
  found = reliability(*both_orders(pairs(2, 1.7)), bins=10)
  for one, other in zip(found, found[::-1], strict=True):
    assert one["n"] == other["n"]
    assert one["frequency"] == pytest.approx(1 - other["frequency"])
    assert one["confidence"] == pytest.approx(1 - other["confidence"])


@pytest.mark.parametrize("mass", [False, True])
def test_reliability_against_scikit_learn(mass):
  sk = pytest.importorskip("sklearn.calibration", reason=SKLEARN)
  rng = np.random.default_rng(0)
  p = np.round(rng.beta(2, 1, 700), 2)  # With values on the edges.
  y = (rng.random(700) < p).astype(float)
  strategy = "quantile" if mass else "uniform"
  frequency, confidence = sk.calibration_curve(y, p, n_bins=15, strategy=strategy)
  found = [b for b in reliability(p, y, bins=15, mass=mass) if b["n"]]
  assert [b["frequency"] for b in found] == pytest.approx(frequency.tolist(), abs=1e-12)
  assert [b["confidence"] for b in found] == pytest.approx(confidence.tolist(), abs=1e-12)
  assert sum(b["n"] for b in found) == 700
  for b in found:
    assert b["low"] <= b["confidence"] <= b["high"]
    assert b["interval"][0] <= b["frequency"] <= b["interval"][1]


def test_reliability_of_empty_bins_and_of_one_value():
  for measure in (reliability, ece):
    with pytest.raises(ValueError, match="bins is 0; expected at least 1"):
      measure([0.0, 1.0], [0, 1], bins=0)
    for labels in (["a"], list("abc")):
      with pytest.raises(ValueError, match=f"{len(labels)} cluster labels for 2 values"):
        measure([0.0, 1.0], [0, 1], bins=2, clusters=labels)
  found = reliability([0.0, 1.0], [0, 1], bins=3)
  assert [b["n"] for b in found] == [1, 0, 1]
  assert found[1]["frequency"] is found[1]["confidence"] is found[1]["interval"] is None
  (only,) = reliability([0.3, 0.3], [0, 1], bins=4, mass=True)
  assert (only["low"], only["high"], only["n"], only["frequency"]) == (0.3, 0.3, 2, 0.5)


def test_ece_by_hand():
  # Bin (0, ½]: residuals −0.2, 0.6, −0.1; bin (½, 1]: 0.25, −0.75.
  p, y = [0.2, 0.4, 0.1, 0.75, 0.75], [0, 1, 0, 1, 0]
  found = ece(p, y, bins=2)
  assert found["plain"] == pytest.approx((abs(-0.2 + 0.6 - 0.1) + abs(0.25 - 0.75)) / 5)
  first = (-0.2 * 0.6 - 0.2 * -0.1 + 0.6 * -0.1) / 3
  assert found["squared"] == pytest.approx(3 / 5 * first + 2 / 5 * 0.25 * -0.75)
  assert (found["value"], found["alone"], found["n"]) == (0.0, 0, 5)
  # If the last two are of one conversation, their bin has no u_b, and they are counted as alone.
  found = ece(p, y, bins=2, clusters=["a", "b", "c", "d", "d"])
  assert found["squared"] == pytest.approx(first)
  assert found["alone"] == 2
  found = ece(p, y, bins=2, clusters=["a", "a", "a", "d", "d"])
  assert (found["value"], found["alone"]) == (None, 5)
  assert "no bin" in found["why"]


@pytest.mark.slow
@pytest.mark.parametrize("off", [0.0, 0.1])
def test_debiased_ece_has_no_bias_and_the_plain_one_has(off):
  """600 data sets of 200 with y ~ p + off·sin, so that the expectation of r in a bin is known."""
  squares, plain, covered = [], [], 0
  for seed in range(600):
    rng = np.random.default_rng(seed)
    p = (rng.integers(10, size=200) + 0.5) / 10
    true = p + off * np.where(p > 0.5, 1, -1) * (np.abs(p - 0.5) < 0.4)
    found = ece(p, rng.random(200) < true, bins=10, resamples=200, seed=seed)
    squares.append(found["squared"])
    plain.append(found["plain"])
    covered += found["interval"][0] <= off * math.sqrt(0.8) <= found["interval"][1]
  error = np.std(squares) / math.sqrt(600)
  assert np.mean(squares) == pytest.approx(0.8 * off**2, abs=3 * error)
  assert 3 * error < 0.001
  assert np.mean(plain) > 0.8 * off + 0.01
  assert covered / 600 > 0.9


def test_debiased_ece_of_both_orders_and_of_conversations():
  """Both orders of a pair share the middle bin; pairs of one conversation are correlated."""
  squares, naive = [], []
  for seed in range(300):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(60), 5)
    p = np.full(300, 0.7)
    y = np.repeat(rng.random(60) < 0.7, 5)
    squares.append(ece(p, y, clusters=clusters.tolist(), resamples=1)["squared"])
    naive.append(ece(p, y, resamples=1)["squared"])
  assert np.mean(squares) == pytest.approx(0, abs=3 * np.std(squares) / math.sqrt(300))
  assert np.mean(naive) > 0.002
  d = pairs(0, 1.0, n=300) * 0.05
  p, y = both_orders(d)
  one = ece(p, y, bins=1, clusters=[*range(300)] * 2, resamples=1)
  assert one["squared"] == pytest.approx(0, abs=1e-15)  # A pair's residuals are r and −r.
  assert ece(p, y, bins=1, resamples=1)["squared"] < -1e-4


def test_scores_of_probabilities_against_scikit_learn():
  sk = pytest.importorskip("sklearn.metrics", reason=SKLEARN)
  rng = np.random.default_rng(0)
  z = rng.normal(size=300) * 3
  y = (rng.random(300) < 0.5).astype(float)
  assert brier(sigmoid(z), y) == pytest.approx(sk.brier_score_loss(y, sigmoid(z)), rel=1e-12)
  assert nll(sigmoid(z), y) == pytest.approx(sk.log_loss(y, sigmoid(z)), rel=1e-12)
  assert nll_logits(z, y) == pytest.approx(sk.log_loss(y, sigmoid(z)), rel=1e-12)


def test_nll_far_out():
  assert nll_logits([-1000.0, 1000.0], [1, 1]) == 500
  assert nll([1.0, 0.0, 0.5], [1, 0, 0.5]) == pytest.approx(math.log(2) / 3)
  with pytest.raises(ValueError, match=r"p_N\[1\] is 1.0, y_N 0.0: infinitely wrong"):
    nll([0.5, 1.0], [0, 0])


@pytest.mark.parametrize("function", [brier, nll, reliability, ece])
def test_probabilities_are_checked(function):
  with pytest.raises(ValueError, match=r"p_N\[1\] is 1.01; expected it in \[0, 1\]"):
    function([0.5, 1.01], [0, 1])
  with pytest.raises(ValueError, match=r"y_N\[0\] is nan"):
    function([0.5, 1.0], [math.nan, 1])
  with pytest.raises(ValueError, match="p_N is empty"):
    function([], [])
  with pytest.raises(ValueError, match="p_N has 1 values, y_N 2"):
    function([0.5], [0, 1])
