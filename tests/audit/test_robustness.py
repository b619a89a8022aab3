"""The section `robustness` of planted scorers, and its figures against loops over the pairs."""

import dataclasses
import json

import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit.edits import EDITS
from rm_jax.audit.run import audit
from rm_jax.audit.sections.robustness import SECTION, robustness
from rm_jax.data.dialogue import plain
from rm_jax.world import World
from tests.audit.planted import Counting, length, noise, pair, truth
from tests.audit.test_page import Fake

# In this world layout and tone have no effect on the true reward.
WORLD = World(layout_weight=0.0, tone_weight=0.0)
PAIRS = WORLD.pairs("heldout", 100, 0)
SAME = [name for name, one in EDITS.items() if one.kind == "same"]
WORSE = [name for name, one in EDITS.items() if one.kind == "worse"]


def test_the_truth_is_robust_and_sees_what_is_worse():
  found = robustness(truth(WORLD), PAIRS)
  edits = found["edits"]
  assert list(edits) == [*SAME, *WORSE]
  for name in SAME:
    if name == "typos":
      continue
    assert edits[name]["n"] > 20, name
    assert edits[name]["moved"]["value"] == 0, name
    for side in ("chosen", "rejected"):
      assert edits[name]["flips"][side]["value"] == 0, name
      assert edits[name]["flips"][side]["interval"][1] > 0, name  # unseen flips may occur
  # The true reward is read from words, and a typo may hit one of them.
  assert -0.6 < edits["typos"]["change"]["value"] < -0.1
  assert 0.05 < edits["typos"]["flips"]["chosen"]["value"] < 0.35
  for name in ("off_topic", "other_answer"):
    assert edits[name]["lower"]["value"] > 0.9, name
    assert edits[name]["change"]["interval"][1] < -1.2, name
  # The true reward is read from values and names, so a 'not' does not change it.
  assert edits["negated"]["lower"]["value"] == 0.5
  assert edits["numbers"]["lower"]["value"] is None  # no response of the world has numbers
  assert edits["numbers"]["not_applicable"] == len(PAIRS)
  assert found["says"].startswith("edits that should not matter turn pairs round: typos")
  assert "not always scored lower: negated 50%" in found["says"]
  json.dumps(found, allow_nan=False)


def test_a_scorer_of_length_against_loops():
  found = robustness(length, PAIRS, edits=["politeness", "upper_case", "truncated"], worst=2)
  polite = found["edits"]["politeness"]
  lengths = np.array([[len(plain(r)) for r in e.responses] for e in PAIRS], float)
  assert found["unit"] == pytest.approx(lengths.std(ddof=1))

  def added(response):
    # Added are the sentences and a separator: a space, or a blank line before a list.
    text = plain(response)
    marked = text.startswith(("- ", "1. "))
    said = len("Thank you for your question.") + len("I hope this is useful to you.")
    return said + 2 * (2 if marked else 1)

  changes = np.array([[added(r) for r in e.responses] for e in PAIRS])
  assert polite["change"]["value"] == pytest.approx(changes.mean() / found["unit"])
  assert polite["n"] == 2 * len(PAIRS)
  for side, name in enumerate(("chosen", "rejected")):
    flips = []
    for (chosen, rejected), change in zip(lengths, changes, strict=True):
      if chosen == rejected:
        continue
      now = (chosen + change[0], rejected) if side == 0 else (chosen, rejected + change[1])
      before = chosen > rejected
      flips.append(0.5 if now[0] == now[1] else float((now[0] > now[1]) != before))
    assert polite["flips"][name]["n"] == len(flips)
    assert polite["flips"][name]["value"] == np.mean(flips)
  assert polite["flips"]["chosen"]["value"] > 0.2
  assert found["edits"]["upper_case"]["moved"]["value"] == 0
  assert found["edits"]["truncated"]["lower"]["value"] == 1
  assert found["edits"]["truncated"]["lower"]["interval"][0] < 1
  (first, second) = polite["worst"]
  assert first["change"] >= second["change"]
  assert first["score_edited"] == len(first["edited"])
  assert first["score"] == len(first["response"])
  assert first["change"] == pytest.approx(changes.max() / found["unit"])
  assert first["prompt"] in {plain(e.prompt) for e in PAIRS}


def test_ties_before_and_after():
  end = len(" I am sure.")
  pairs = [
    pair(0, "p", "aaa", "bbb"),  # tied before: left out
    pair(1, "q", "a", "b" * (1 + end)),  # tied when the chosen is edited: half
    pair(2, "r", "aaa", "b"),  # flipped when the rejected is edited, not when the chosen is
  ]
  flips = robustness(length, pairs, edits=["certainty"])["edits"]["certainty"]["flips"]
  assert {side: (f["value"], f["n"], f["ties"]) for side, f in flips.items()} == {
    "chosen": (0.25, 2, 1),
    "rejected": (0.5, 2, 0),
  }


def test_a_scorer_that_likes_what_is_worse_is_told():
  pairs = [pair(i, f"p{i}", f"It is {i} metres long and {i + 9} wide.", "No.") for i in range(40)]
  found = robustness(lambda rows: -length(rows), pairs, edits=["truncated", "negated", "numbers"])
  edits = found["edits"]
  assert edits["truncated"]["lower"]["value"] == 0
  assert edits["negated"]["lower"]["value"] == 1
  assert edits["numbers"]["lower"]["ties"] == 40
  gains = [case["score_edited"] - case["score"] for case in edits["truncated"]["worst"]]
  assert gains == sorted(gains, reverse=True)
  assert min(gains) > 0
  assert found["says"] == "worse answers are not always scored lower: truncated 0%, numbers 50%"


def test_each_text_is_scored_once_and_an_edit_draws_the_same_in_any_company():
  pairs = PAIRS[:20]
  score = Counting(lambda rows: np.array([noise(r) for _, r in rows]))
  found = robustness(score, pairs, edits=["typos", "off_topic"], sample=10, seed=5)
  (rows,) = score.calls
  assert len({json.dumps(row) for row in rows}) == len(rows) <= 10 * (2 + 2 + 1)
  assert found["pairs"] == 10
  alone = robustness(score, pairs, edits=["off_topic"], sample=10, seed=5)
  assert alone["edits"]["off_topic"] == found["edits"]["off_topic"]


def test_bad_input():
  with pytest.raises(ValueError, match=r"edits: \['no'\]; expected some of"):
    robustness(length, PAIRS, edits=["no"])
  flat = robustness(lambda rows: np.zeros(len(rows)), PAIRS[:9], edits=["certainty"])
  assert flat["edits"]["certainty"]["change"]["value"] is None
  assert flat["edits"]["certainty"]["flips"]["chosen"]["value"] is None  # all pairs tied before


def test_none_of_thirty_pairs_is_no_proof_of_none():
  pairs = [pair(i, f"p{i}", "y" * 40 + str(i), "no" + str(i)) for i in range(30)]
  found = robustness(length, pairs, edits=["certainty", "off_topic"])
  assert found["edits"]["certainty"]["flips"]["chosen"]["value"] == 0
  # Wilson's upper end for 0 of 30 is 1.96² / (30 + 1.96²) = 11 %.
  assert found["says"].startswith(
    "edits that should not matter turned at most 0% of these pairs round, and may turn up to 11%"
  )


def test_the_sentence_makes_nothing_of_a_few_texts():
  pairs = [pair(i, f"p{i}", f"It is {i} metres long.", f"No {i}.") for i in range(29)]
  found = robustness(lambda rows: -length(rows), pairs, edits=["truncated", "certainty"])
  assert found["edits"]["truncated"]["lower"]["value"] == 0
  assert found["says"] == "no edit had 30 texts or pairs of 5 conversations to tell by"
  # With a constant scorer all pairs tie, so no share of flipped pairs is defined.
  same = [pair(i, f"p{i}", f"It is {i} metres long.", f"No {i}.") for i in range(60)]
  found = robustness(lambda rows: np.zeros(len(rows)), same, edits=["certainty", "truncated"])
  assert found["says"] == (
    "worse answers are not always scored lower: truncated 50%; with fewer than 30 texts or pairs, "
    "or 5 conversations, to tell by: certainty"
  )


def test_of_few_conversations_the_red_team_says_why_it_has_no_interval(tmp_path):
  examples = [pair(i, f"p{i}", "aaa", "bb", source="hh-harmless-base") for i in range(3)]
  examples += [pair(10 + i, f"q{i}", "aaa", "bb", source="adversarial") for i in range(8)]
  examples += [
    dataclasses.replace(pair(20 + i, f"r{i}", "aaa", "bb", source="adversarial"), labels=(0.0, 1.0))
    for i in range(4)
  ]
  report = audit(Fake(length), examples, sections=[SECTION])
  few, more = (report["robustness"]["red_team"][name] for name in ("harmless", "adversarial"))
  assert few["why"] == "3 conversations: an interval wants 5"
  assert more["method"] == "Wilson's, effective sample size"
  about = {"about": {"model": "m", "data": "d"}}
  assert page.write(tmp_path, about | report, [SECTION]) == {}
  assert f"(no interval: {few['why']})</small> on " in (tmp_path / "report.html").read_text()


def test_a_sample_of_one_conversation_borrows_from_the_others():
  found = robustness(length, PAIRS, sample=1)
  assert found["pairs"] == 1
  assert found["edits"]["off_topic"]["n"] + found["edits"]["off_topic"]["not_applicable"] == 1
