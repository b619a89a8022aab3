"""The section `controls` says of a planted scorer what is known of it."""

import json

import numpy as np
import pytest

from rm_jax.audit.sections.controls import NEUTRAL, controls, neutral
from rm_jax.metrics import agreement, interval
from rm_jax.world import World
from tests.audit.planted import Counting, length, noise, noisy, pair, remembered, truth

WORLD = World()
PAIRS = WORLD.pairs("heldout", 240, 0)


def test_a_scorer_of_length_is_called_so():
  found = controls(length, PAIRS)
  longest = found["rules"]["longest"]
  assert longest["agrees"]["value"] == 1 - longest["agrees"]["ties"] / 2 / len(PAIRS)
  assert longest["accuracy"] == found["model"]
  assert longest["difference"]["value"] == 0
  assert found["rules"]["shortest"]["accuracy"]["value"] == pytest.approx(
    1 - found["model"]["value"]
  )
  assert found["says"].startswith("a length rule explains it: longest agrees with the model on")
  # The prompt has no influence on it.
  for name in ("removed", "swapped"):
    assert found["sample"][name]["difference"]["value"] == 0
    assert found["sample"][name]["agrees"]["value"] > 0.98
  json.dumps(found, allow_nan=False)


def test_the_truth_needs_prompt_and_content():
  found = controls(noisy(truth(WORLD), 1e-3), PAIRS, sample=200, seed=3)
  assert found["model"]["value"] > 0.8
  assert found["content"]["interval"][0] > 0.15
  assert found["says"].startswith("the content counts: beats")
  sample = found["sample"]
  assert sample["pairs"] == sample["model"]["n"] == 200
  for name in ("removed", "swapped"):
    assert sample[name]["remains"]["interval"][1] < 0.5
    assert sample[name]["difference"]["interval"][0] > 0.2
  assert found["rules"]["random"]["accuracy"]["value"] == 0.5


def test_a_scorer_that_ignores_the_prompt_loses_nothing_without_it():
  found = controls(remembered(PAIRS), PAIRS, sample=200)
  w = interval.wilson(0, 200)[1]  # upper end for 0 different choices in 200 conversations
  for name in ("removed", "swapped"):
    entry = found["sample"][name]
    assert entry["accuracy"] == found["sample"]["model"]
    assert entry["difference"]["value"] == 0
    assert entry["difference"]["interval"] == pytest.approx([-w, w])
    assert entry["remains"]["value"] == 1
    above = found["sample"]["model"]["value"] - 0.5
    assert entry["remains"]["interval"] == pytest.approx([1 - w / above, 1 + w / above])
  said = "hardly reads the prompt: 100% [95%, 105%] of its accuracy above chance is left with"
  assert said in found["says"]


def test_by_hand():
  pairs = [
    pair(0, "p", "longer", "short"),  # the model is right, and so is `longest`
    pair(1, "q", "- a\n- b", "a, and then b"),  # right: the shorter, more formatted one
    pair(2, "r", "cc", "dd"),  # tied for the model and for all rules
    pair(3, "s", "e", "ff"),  # wrong
  ]
  table = {"longer": 2, "short": 1, "- a\n- b": 2, "a, and then b": 1, "cc": 1, "dd": 1, "e": 0}
  found = controls(lambda rows: np.array([table.get(r, 1) for _, r in rows], float), pairs)
  assert found["model"]["value"] == 2.5 / 4
  assert found["rules"]["longest"]["accuracy"]["value"] == 1.5 / 4
  assert found["rules"]["most_formatted"]["accuracy"]["value"] == 2.5 / 4
  assert found["rules"]["longest"]["agrees"]["value"] == (1 + 0 + 0.5 + 1) / 4
  assert found["best_rule"] in ("shortest", "most_formatted")
  assert found["content"]["value"] == 0
  difference = agreement.paired_difference([1, 1, 0.5, 0], [1, 0, 0.5, 0], "0123")
  assert found["rules"]["longest"]["difference"]["interval"] == difference["interval"]
  # With this accuracy, which may be that of chance, no share of it is defined.
  assert found["sample"]["removed"]["remains"]["value"] is None
  assert found["says"].startswith("whether it beats a rule that reads nothing is not told: 4 conv")


def test_what_is_scored():
  messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
  assert neutral(messages) == ({"role": "user", "content": NEUTRAL},)
  assert neutral("Question?\n\n") == f"{NEUTRAL}\n\n"
  pairs = [pair(i, f"p{i} ", f"good{i}", f"bad{i}") for i in range(6)]
  score = Counting(length)
  controls(score, pairs, sample=2, seed=1)
  (rows,) = score.calls
  assert len(rows) == len(set(rows)) == 2 * 6 + 2 * 2 + 2 * 2
  asked = rows[12:]
  assert [p for p, _ in asked[:4]] == [f"{NEUTRAL} "] * 4
  own = {r: p for p, r in rows[:12]}
  assert all(own[r] != p and p in own.values() for p, r in asked[4:])
  with pytest.raises(ValueError, match="no comparison"):
    controls(length, [])


def test_few_pairs_do_not_tell_whether_the_prompt_is_read():
  pairs = [pair(i, f"p{i}", f"{i}a", f"{i}b") for i in range(600)]

  def never(rows):  # slightly prefers the better response; noise depends on response and prompt
    noises = np.array([noise(r) + noise(p + r) for p, r in rows])
    return noises + np.array([0.5 * r.endswith("a") for _, r in rows])

  many, some, few = (controls(never, pairs, sample=n) for n in (500, 150, 40))
  low, _ = many["sample"]["swapped"]["remains"]["interval"]
  assert low > 0.5
  assert f"yet hardly reads the prompt: 98% [{low:.0%}, " in many["says"]
  low, high = some["sample"]["swapped"]["remains"]["interval"]
  assert low < 0.5 < 0.8 < high
  assert "; of 150 pairs it is not told whether it reads the prompt: " in some["says"]
  assert few["sample"]["swapped"]["remains"]["value"] is None
  assert "whether it reads the prompt is not told: the accuracy with the prompt" in few["says"]


def test_a_sample_of_one_conversation_gets_the_prompt_of_another():
  asked = Counting(length)
  found = controls(asked, PAIRS, sample=1)
  assert found["sample"]["pairs"] == 1
  assert found["sample"]["swapped"]["difference"]["value"] == 0


def test_what_remains_of_an_accuracy_below_chance_means_nothing():
  found = controls(lambda rows: -np.asarray(truth(WORLD)(rows)), PAIRS, sample=200)
  assert found["sample"]["model"]["interval"][1] < 0.5
  for name in ("removed", "swapped"):
    remains = found["sample"][name]["remains"]
    assert remains["value"] is None
    assert remains["why"] == "the accuracy with the prompt is below chance"
