"""A mis-scaled model is detected and corrected, measured on conversations outside the fit."""

import json

import numpy as np
import pytest

from rm_jax.audit.sections import calibration
from rm_jax.metrics import calibration as metrics
from rm_jax.types import Example
from tests.audit.planted import pair


def judged_pairs(scale, n=4000, seed=0, source="s"):
  """Pairs labelled with probability σ(difference of utilities), and scores = scale · utility."""
  rng = np.random.default_rng(seed)
  u_N2 = rng.normal(size=(n, 2))
  first = rng.random(n) < 1 / (1 + np.exp(u_N2[:, 1] - u_N2[:, 0]))
  u_N2 = np.where(first[:, None], u_N2, u_N2[:, ::-1])  # chosen first
  examples = [pair(f"{source}{i}", "p", "a", "b", source=source) for i in range(n)]
  return list(scale * u_N2), examples


@pytest.mark.parametrize("scale", [5.0, 0.2])
@pytest.mark.slow
def test_a_mis_scaled_model_is_calibrated_on_the_other_half(scale):
  found = calibration.pairs(*judged_pairs(scale))
  assert found["temperature"] == pytest.approx(scale, rel=0.12)
  before, after = found["before"], found["after"]
  assert before["ece"]["value"] > 0.1
  assert after["ece"]["value"] < 0.03
  assert before["ece"]["interval"][0] > after["ece"]["interval"][1]
  assert after["nll"]["value"] < before["nll"]["value"]
  assert found["n"] + found["fitted_on"] == 4000


@pytest.mark.slow
def test_scale_drift_between_sources():
  (one, ones), (two, twos) = judged_pairs(1.0, source="x"), judged_pairs(3.0, source="y", seed=1)
  found = calibration.pairs([*one, *two], [*ones, *twos])["sources"]
  assert found["x"]["temperature"] == pytest.approx(1.0, rel=0.15)
  assert found["y"]["temperature"] == pytest.approx(3.0, rel=0.15)
  assert found["y"]["spread"] == pytest.approx(3 * found["x"]["spread"], rel=0.1)


def test_a_model_that_is_wrong_has_no_temperature():
  scores, examples = judged_pairs(-1.0)
  found = calibration.pairs(scores, examples)
  assert found["temperature"] is None
  assert found["after"] is None
  assert "mean" in found["why"]
  with pytest.raises(ValueError, match=r"for pairs cannot be calibrated: .*mean"):
    calibration.store(None, {"pairs": found}, "d")
  with pytest.raises(ValueError, match="nothing is kept: ratings are no"):
    calibration.store(None, {"why": "ratings are no probabilities"}, "d")


@pytest.mark.slow
def test_the_zero_is_the_mean_on_named_data(tmp_path):
  scores, examples = judged_pairs(2.0)
  found = calibration.pairs([s + 7 for s in scores], examples)
  assert found["zero"]["value"] == pytest.approx(7 + np.mean(scores))
  kept = calibration.store(tmp_path, {"pairs": found}, "file.jsonl")
  assert json.loads((tmp_path / calibration.FILE).read_text()) == kept
  assert (kept["pairs"]["zero"], kept["pairs"]["reference"]) == (found["zero"]["value"], "s")


def test_what_is_kept_of_pairs_is_what_was_found(tmp_path):
  zero = {"value": 7.25, "reference": "s"}
  found = {"temperature": 0.5, "zero": zero, "fitted_on": 12, "interval": [0.4, 0.6]}
  kept = calibration.store(tmp_path, {"pairs": found}, "file.jsonl")["pairs"]
  assert "sigmoid" in kept.pop("means")
  numbers = {"temperature": 0.5, "zero": 7.25, "reference": "s"}
  assert kept == numbers | {"fitted_on": 12, "data": "file.jsonl"}


@pytest.mark.slow
def test_temperatures_have_intervals():
  scores, examples = judged_pairs(4.0)
  found = calibration.pairs(scores, examples)
  low, high = found["interval"]
  assert low < found["temperature"] < high < 1.5 * low
  (source,) = found["sources"].values()
  low, high = source["interval"]
  assert low < source["temperature"] < high
  assert source["undefined"] == 0
  # For a model near chance some resamples have no temperature; `undefined` counts them.
  rng = np.random.default_rng(0)
  near = calibration.pairs([s / 200 + rng.normal(size=2) for s in scores], examples)
  assert near["temperature"] is not None
  assert near["undefined"] > 0


@pytest.mark.slow
def test_labels_get_slope_and_bias(tmp_path):
  rng = np.random.default_rng(0)
  logit = rng.normal(size=6000)
  label = (rng.random(6000) < 1 / (1 + np.exp(-logit))).astype(float)
  found = calibration.labels((logit - 1) * 4, label, [f"c{i}" for i in range(6000)])
  assert found["platt"]["slope"]["value"] == pytest.approx(0.25, rel=0.15)
  assert found["platt"]["bias"]["value"] == pytest.approx(1.0, rel=0.2)
  low, high = found["platt"]["slope"]["interval"]
  assert low < found["platt"]["slope"]["value"] < high < 1.5 * low
  kept = calibration.store(tmp_path, {"outcomes": found}, "d")["outcomes"]
  assert {k: kept[k] for k in found["platt"]} == {k: v["value"] for k, v in found["platt"].items()}
  reported = ~metrics.halves([f"c{i}" for i in range(6000)], 0)
  for when, z in (
    ("before", (logit - 1) * 4),
    ("after", kept["slope"] * (logit - 1) * 4 + kept["bias"]),
  ):
    expected = metrics.nll_logits(z[reported], label[reported])
    assert found[when]["nll"]["value"] == pytest.approx(expected)
  assert found["before"]["nll"]["value"] > found["after"]["nll"]["value"] + 0.1
  assert found["before"]["ece"]["value"] > 0.15 > 0.04 > found["after"]["ece"]["value"]
  assert found["isotonic"]["brier"]["value"] == pytest.approx(
    found["after"]["brier"]["value"], abs=0.01
  )


def test_no_comparison_is_an_error():
  with pytest.raises(ValueError, match="no comparison among the examples"):
    calibration.pairs([np.zeros(1)], [Example("p", ("a",), (1.0,), "outcome")])


@pytest.mark.slow
def test_comparisons_are_counted_once_and_bins_are_over_conversations():
  scores, examples = judged_pairs(1.0, n=400)
  found = calibration.pairs(scores, examples)["before"]
  assert (found["ece"]["n"], found["ece"]["predictions"]) == (200, 400)
  # Ten copies of each conversation's pair carry no more information than one.
  again = [e for e in examples for _ in range(10)]
  tenfold = calibration.pairs([s for s in scores for _ in range(10)], again)["before"]
  for one, ten in zip(found["reliability"], tenfold["reliability"], strict=True):
    if one["interval"] is not None:
      assert np.diff(ten["interval"]) == pytest.approx(np.diff(one["interval"]), rel=0.25)
