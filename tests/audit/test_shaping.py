"""What a stage changes is measured, and a stage that can change nothing is told as such."""

import dataclasses
import json
import re

import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit.run import audit
from rm_jax.audit.section import Settings
from rm_jax.audit.sections import SECTIONS
from rm_jax.audit.sections import shaping as section
from rm_jax.audit.sections.shaping import fit, sample_of, shaping
from rm_jax.data.dialogue import plain
from rm_jax.errors import InputError
from rm_jax.metrics import interval
from rm_jax.metrics.calibration import halves
from rm_jax.shaping.chain import Fitted, chain_of, declared, plan
from rm_jax.shaping.stages import Decorrelate
from rm_jax.types import Example
from rm_jax.world import World
from tests.audit.planted import length, noise, noisy, pair, truth
from tests.audit.test_overoptimisation import WORLD as SKILLED
from tests.audit.test_overoptimisation import exploited
from tests.audit.test_page import Ensemble, Fake

WORLD = World(length_confound=2.0)
PAIRS = WORLD.pairs("heldout", 150, 0)
ONLY = [one for one in SECTIONS if one.name == "shaping"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
  """Fewer resamples, which take most of the time."""
  start = interval.Resampling.__init__

  def made(self, clusters, **options):
    start(self, clusters, **{**options, "resamples": 60})

  monkeypatch.setattr(interval.Resampling, "__init__", made)


def members(score):
  return lambda rows: np.asarray(score(rows), np.float32)[:, None]


def test_a_stage_that_only_rises_keeps_the_order_and_one_that_ties_does_not():
  texts = ["x" * n for n in range(1, 41)]
  examples = [pair(i, f"p{i}", texts[2 * i + 1], texts[2 * i]) for i in range(20)]
  chain = declared("normalise(mean=20, deviation=10), tanh, clip(low=-1, high=0)")
  found = shaping(members(length), examples, chain)
  stages = found["stages"]
  assert list(stages) == ["raw", "normalise", "tanh", "clip"]
  assert stages["raw"]["agreement"]["value"] == 1
  assert "change" not in stages["raw"]["agreement"]
  for name in ("normalise", "tanh"):
    assert stages[name]["agreement"] == {"keeps": "it only rises with the score: the same order"}
  assert "a straight line" in stages["normalise"]["hacking"]["keeps"]
  assert stages["tanh"]["hacking"]["characters"]["value"] is not None
  # Of the 20 pairs those with a score above 20 characters in both, 10, are tied; a tie is a half.
  assert stages["clip"]["agreement"]["value"] == 0.75
  assert stages["clip"]["agreement"]["ties"] == 10
  assert stages["clip"]["agreement"]["change"]["difference"] == -0.25
  assert stages["raw"]["best_of_n"] == {"why": "no world, whose true reward is known"}
  assert found["filtered"] == {}
  assert found["says"][0].startswith("shaped scores agree with people in 0.75 [")
  assert chain_of(found["chain"], "f") == chain
  json.dumps(found, allow_nan=False)
  alone = shaping(members(length), examples, declared("tanh(scale=30)"))
  assert alone["says"] == ["no stage changes a comparison"]


def test_decorrelation_takes_away_what_length_explains():
  world = World(length_confound=0.0)

  def score(rows):
    return noisy(truth(world), 0.5)(rows) + 0.05 * length(rows)

  chain, tested = fit(members(score), world.pairs("heldout", 800, 0), plan("decorrelate", "x"))
  assert chain.stages[0].slope == pytest.approx(0.05, abs=0.01)
  found = shaping(members(score), tested, chain)["stages"]
  of_raw, after = (found[k]["hacking"]["characters"]["value"] for k in ("raw", "decorrelate"))
  assert of_raw > 0.7
  assert abs(after) < 0.2
  assert found["decorrelate"]["agreement"]["change"]["interval"][0] > 0


def test_at_equal_judgement_less_of_the_quality_that_goes_with_length_is_taken():
  def score(rows):  # better responses are longer in this world
    return noisy(truth(WORLD), 0.5)(rows) + 0.05 * length(rows)

  sample = sample_of(members(score), WORLD.pairs("heldout", 800, 0))
  none = np.zeros(0, np.int64)
  unjudged = dataclasses.replace(sample, better=none, worse=none)
  raw = sample.responses.raw.astype(np.float64)
  slopes = [Decorrelate().estimated(raw, one)["slope"] for one in (sample, unjudged)]
  assert 0.05 < slopes[0] < slopes[1] - 0.01


def test_filters_end_an_exploit_and_say_of_what():
  texts = ["fine", "no " * 6, "x" * 91, "", "fine", "The cat is on the mat.", "fine", "fine"]
  examples = [pair(i, f"p{i}", texts[2 * i], texts[2 * i + 1]) for i in range(4)]
  chain = declared("filters(max_characters=90, penalty=-9, low=None, high=None, languages=())")
  found = shaping(members(length), examples, chain)
  shares = {name: one["all"]["value"] for name, one in found["filtered"].items()}
  assert shares == {
    **{"short": 1 / 8, "long": 1 / 8, "repetition": 1 / 8, "run": 1 / 8, "deny": 0, "any": 3 / 8},
  }
  assert found["says"][1] == (
    "rules filter 37.5% of responses: short 12.5%, long 12.5%, repetition 12.5%, run 12.5%"
  )

  def in_messages(rows):
    return exploited([(prompt, plain(response)) for prompt, response in rows])

  chain = declared(
    "tanh(scale=50), filters(max_characters=75, penalty=-50, low=None, high=None, languages=())"
  )
  settings = Settings(world=SKILLED, prompts=12, candidates=128)
  pairs = SKILLED.pairs("heldout", 20, 0)
  found = shaping(members(in_messages), pairs, chain, settings=settings)["stages"]
  assert found["raw"]["best_of_n"]["value"] < 0
  assert found["tanh"]["best_of_n"] == {"keeps": "it only rises with the score: the same order"}
  assert found["filters"]["best_of_n"]["value"] > 0.5
  change = found["filters"]["best_of_n"]["change"]
  assert change["interval"][0] > 0
  difference = found["filters"]["best_of_n"]["value"] - found["raw"]["best_of_n"]["value"]
  assert change["value"] == pytest.approx(difference)


def test_a_plan_is_fitted_on_one_half_and_measured_on_the_other(tmp_path):
  planned = plan("normalise, clip, filters", "--shape")
  settings = Settings(shaping=planned, seed=3)
  made = audit(Fake(noisy(truth(WORLD), 0.5)), PAIRS, settings=settings, sections=ONLY)
  found = made["shaping"]
  mine = halves([e.conversation for e in PAIRS], 3)
  half = [e for e, is_mine in zip(PAIRS, mine, strict=True) if is_mine]
  sample = sample_of(members(noisy(truth(WORLD), 0.5)), half)
  expected = planned.fit(sample, Fitted("", len(half), 2 * len(half)))
  assert chain_of(found["chain"], "f") == expected
  after = expected.shape(sample.responses).after["normalise"]
  assert (after.mean(), after.std()) == pytest.approx((0, 1), abs=1e-6)
  other = found["stages"]["normalise"]
  assert other["mean"]["interval"][0] < 0 < other["mean"]["interval"][1]
  assert 0.8 < other["deviation"] < 1.2
  assert (found["fitted_on"], found["conversations"]) == (len(half), len(PAIRS) - len(half))
  _, others = fit(members(length), PAIRS, plan("normalise", "--shape"), seed=3)
  assert others == [e for e in PAIRS if e not in half]
  assert page.write(tmp_path, {"about": {"model": "m", "data": "d"}, **made}, ONLY) == {}
  shown = (tmp_path / "report.html").read_text()
  assert re.search(r"The chain, fitted on <span[^>]*>75</span> other conversations, on", shown)
  assert "<th>filtered by</th><th>of all</th><th>of the top-scored</th>" in shown
  assert 'data-path="shaping/filtered/any/top/value"' in shown


def test_a_sample_knows_who_won_and_which_prompts_are_equal():
  examples = [
    Example("p", ("a", "b", "c"), (1.0, 3.0, 2.0), "ranking", conversation="1"),
    Example("q", ("d",), (1.0,), "outcome", conversation="2"),
    Example("p", ("e", "f"), (1.0, 1.0), "pair", conversation="3"),
    Example("p", ("g",), (4.0,), "score", conversation="4"),
  ]
  sample = sample_of(members(length), examples)
  assert sample.prompts.tolist() == [0, 0, 0, 1, 0, 0, 0]
  won = set(zip(sample.better.tolist(), sample.worse.tolist(), strict=True))
  assert won == {(1, 0), (1, 2), (2, 0)}
  assert (sample.rated.tolist(), sample.labels.tolist()) == ([3], [1.0])
  assert sample.judged.tolist() == [-2, 2, 0, 1, 0, 0, 0]


def test_the_chain_that_is_saved_with_an_ensemble_is_measured_on_all(tmp_path):
  chain = declared("lower(deviations=2), normalise(mean=0, deviation=3)")
  scorer = Ensemble(lambda rows: np.asarray([noise(f"{p} {r}") for p, r in rows]))
  found = audit(scorer, PAIRS, settings=Settings(shaping=chain), sections=ONLY)
  report = found["shaping"]
  assert (report["fitted_on"], report["conversations"]) == (None, 150)
  assert report["stages"]["lower"]["agreement"]["change"]["difference"] != 0
  assert "keeps" in report["stages"]["normalise"]["agreement"]
  assert page.write(tmp_path, {"about": {"model": "m", "data": "d"}, **found}, ONLY) == {}
  shown = (tmp_path / "report.html").read_text()
  assert "The chain, saved with the model, on" in shown
  assert "lower(deviations=2), normalise(mean=0, deviation=3)" in shown
  assert "it only rises with the score: the same order" in shown
  assert 'data-path="shaping/stages/lower/agreement/change/difference"' in shown
  assert 'data-path="shaping/stages/lower/hacking/characters/value"' in shown


def test_without_a_chain_there_is_no_section_and_without_data_a_reason():
  assert audit(Fake(length), PAIRS, sections=ONLY) == {}
  planned = plan("calibrate", "--shape")
  few = audit(Fake(length), PAIRS[:2], settings=Settings(shaping=planned), sections=ONLY)
  assert few == {"shaping": {"why": "2 conversation(s); expected at least 3"}}
  # Scores that get no comparison wrong have no temperature.
  exact = [pair(i, f"p{i}", "longer", "short") for i in range(8)]
  found = audit(Fake(length), exact, settings=Settings(shaping=planned), sections=ONLY)
  assert found["shaping"]["why"].startswith("calibrate: difference_N is never below 0")
  with pytest.raises(InputError, match="the model has one member"):
    shaping(members(length), exact, declared("lower"))


def test_outcomes_have_no_comparison_and_are_filtered_all_the_same():
  outcomes = [
    Example(f"q{i}", ("x" * i, "no " * 6), (1.0, 0.0), "outcome", conversation=f"c{i}")
    for i in range(1, 9)
  ]
  chain = declared("filters(penalty=-9, low=None, high=None, languages=())")
  found = shaping(members(length), outcomes, chain)
  assert found["stages"]["raw"]["agreement"] == {"why": "people decided no comparison"}
  assert found["filtered"]["run"]["all"]["value"] == 0.5
  assert found["says"] == ["rules filter 50.0% of responses: repetition 50.0%, run 50.0%"]


def test_feedback_without_a_quality_has_no_hacking():
  attributes = [
    Example(f"q{i}", ("a", "b"), (0.0, 0.0), "attributes", conversation=f"c{i}") for i in range(4)
  ]
  found = section._hacking(length, attributes, 0)
  assert set(found) == {"why"}
