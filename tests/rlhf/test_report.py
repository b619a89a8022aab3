"""The report finds a planted peak, fall and form, and its intervals are over prompts."""

import numpy as np
import pytest

from rm_jax.rlhf.report import Curve, draw, of_turns, sentence
from rm_jax.rlhf.watch import StopRule

TURNS = list(range(0, 80, 10))
D = np.linspace(0, 7, len(TURNS))
R = np.random.default_rng(0)


def evaluations(truth, proxy=None, prompts=60):
  """Lines of evaluations.jsonl whose means are near the given ones."""
  proxy = D if proxy is None else proxy
  noise = 0.3 * R.normal(size=(3, prompts))
  return [
    {
      "step": turn,
      "proxy": (proxy[i] + noise[0]).tolist(),
      "reward": (proxy[i] + noise[0]).tolist(),
      "truth": (truth[i] + noise[1] * (1 + 0.1 * i)).tolist(),
      "kl": (D[i] ** 2 * np.ones(prompts)).tolist(),
    }
    for i, turn in enumerate(TURNS)
  ]


def means(lines, drift=0.0):
  return [
    {"step": line["step"], "proxy": float(np.mean(line["proxy"])), "drift": drift * (i > 2)}
    for i, line in enumerate(lines)
  ]


FALLS = 2 * D - 0.45 * D**2  # from 2.2 at d = 2 to -8.05 at 7


def test_a_fall_is_found_and_has_an_interval():
  lines = evaluations(FALLS)
  found = of_turns(lines, means(lines), StopRule(), acted=False)
  truth = found["truth"]
  assert truth["peak"]["turn"] == truth["fall"]["turn"] == TURNS[int(np.argmax(FALLS))]
  assert truth["fall"]["falls"] is True
  drop = FALLS.max() - FALLS[-1]
  low, high = truth["fall"]["interval"]
  assert low < truth["fall"]["value"] < high
  assert truth["fall"]["value"] == pytest.approx(drop, abs=0.3)
  assert truth["proxy_after"]["value"] == pytest.approx(D[-1] - D[np.argmax(FALLS)], abs=1e-6)
  assert found["stop"] is None
  assert found["points"][3]["d"] == pytest.approx(D[3])


def test_without_a_fall_none_is_found():
  lines = evaluations(np.sqrt(D))
  found = of_turns(lines, means(lines), StopRule(), acted=False)
  assert found["truth"]["fall"]["falls"] is False
  assert found["truth"]["fall"]["value"] == 0


def test_the_interval_covers_the_truth_as_often_as_it_says():
  covered = 0
  for seed in range(80):
    rng = np.random.default_rng(seed)
    low, high = Curve(rng.normal(size=(2, 40)) + 1.0).at(0)["interval"]
    covered += low < 1.0 < high
  assert covered >= 70  # of 80 at 95 %: 76 are expected, with a deviation of 2


def test_gaos_form_is_fitted_to_what_follows_it():
  d = np.maximum(D, 1e-9)
  lines = evaluations(0.8 * d - 0.3 * d * np.log(d))
  fit = of_turns(lines, means(lines), StopRule(), acted=False)["truth"]["fit"]
  assert fit["form"] == "rl"
  assert fit["alpha"]["value"] == pytest.approx(0.8, abs=0.05)
  assert fit["beta"]["value"] == pytest.approx(0.3, abs=0.05)
  few = of_turns(lines[:3], means(lines[:3]), StopRule(), acted=False)["truth"]["fit"]
  assert "fewer than 4 evaluations" in few["why"]


def test_what_the_stop_rule_would_have_saved():
  lines = evaluations(FALLS)
  found = of_turns(lines, means(lines, drift=1.0), StopRule(patience=2), acted=False)
  stop = found["stop"]
  assert stop["turn"] == 40
  assert stop["acted"] is False
  expected = found["points"][4]["truth"] - found["points"][-1]["truth"]
  assert stop["saved"]["value"] == pytest.approx(expected)
  assert expected > 3
  assert stop["saved"]["interval"][0] > 0


def test_the_picture_and_the_sentence(tmp_path):
  lines = evaluations(FALLS)
  found = {"method": "ppo", **of_turns(lines, means(lines, 1.0), StopRule(), acted=False)}
  drawn = [
    {"split": "evaluation", "step": one["step"], "kl": 1.0, "length": 2.0, "entropy": None}
    for one in lines
  ]
  draw(tmp_path / "report.png", found, drawn)
  assert (tmp_path / "report.png").stat().st_size > 5000
  assert "a fall of" in sentence(found)
  one = of_turns(lines[:1], means(lines[:1]), StopRule(), acted=False)
  assert one["truth"]["fall"] is None
  assert sentence({"method": "ppo", **one})
