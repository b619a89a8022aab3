"""Each stage of a chain: what it computes, and the numbers that it takes from a sample."""

import dataclasses

import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.metrics.calibration import fit_platt, fit_temperature, sigmoid
from rm_jax.shaping.stages import (
  STAGES,
  Calibrate,
  Clip,
  Decorrelate,
  Filters,
  Lower,
  Normalise,
  Responses,
  Sample,
  Tanh,
)

NONE = np.zeros(0, np.int64)


def responses(scores, texts=None):
  """Of one member, or of [N, M]."""
  scores = np.asarray(scores, np.float64)
  members = scores[:, None] if scores.ndim == 1 else scores
  return Responses(members, ["an answer"] * len(members) if texts is None else texts)


def pairs(scores, texts=None):
  """A sample of pairs: two responses in a row answer one prompt, and the first is better."""
  count = len(scores)
  even = np.arange(0, count, 2)
  return Sample(responses(scores, texts), np.arange(count) // 2, even, even + 1, NONE, np.zeros(0))


def rated(scores, labels):
  at = np.arange(len(scores))
  return Sample(responses(scores), at, NONE, NONE, at, np.asarray(labels, np.float64))


def test_the_lower_bound_is_the_mean_minus_deviations():
  members = np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0]])
  found = Lower(deviations=0.5).apply(members.mean(1), responses(members))
  np.testing.assert_allclose(found, [2 - 0.5 * 1, 2 - 0.5 * 0, 2 - 0.5 * 2])
  np.testing.assert_array_equal(Lower(0.0).apply(np.zeros(3), responses(members)), [2, 2, 2])
  with pytest.raises(InputError, match=r"lower is 1\.0 and the model has one member"):
    Lower().apply(np.zeros(2), responses([1.0, 2.0]))


def test_normalised_scores_of_the_sample_have_mean_0_and_deviation_1():
  score = np.random.default_rng(0).gamma(2, 3, 500) - 40
  made = Normalise(**Normalise().estimated(score, pairs(score)))
  after = made.apply(score, responses(score))
  assert abs(after.mean()) < 1e-12
  assert abs(after.std() - 1) < 1e-12
  for same in ([], [3.0], [3.0, 3.0]):
    with pytest.raises(InputError, match=f"the {len(same)} scores it is fitted on are all equal"):
      Normalise().estimated(np.array(same), pairs(same))


def test_calibrated_differences_are_log_odds():
  rng = np.random.default_rng(0)
  gap = rng.normal(0, 2, 20_000)
  right = rng.random(len(gap)) < sigmoid(gap)
  # Scores 2.5 times as large as log-odds, and shifted.
  better = np.where(right, gap, -gap) * 2.5
  score = np.stack([better, np.zeros_like(better)], 1).ravel() + 7
  made = Calibrate(**Calibrate().estimated(score, pairs(score)))
  assert made.temperature == fit_temperature(better)
  assert made.temperature == pytest.approx(2.5, rel=0.05)
  assert made.apply(score, responses(score)).mean() == pytest.approx(0, abs=1e-9)


def test_calibrated_scores_of_labels_are_log_odds():
  rng = np.random.default_rng(1)
  score = rng.normal(0, 2, 2000)
  label = rng.random(2000) < sigmoid(0.5 * score - 1)
  made = Calibrate(**Calibrate().estimated(score, rated(score, label)))
  slope, bias = fit_platt(score, label.astype(float))
  np.testing.assert_allclose(made.apply(score, responses(score)), slope * score + bias)
  with pytest.raises(InputError, match="calibrate: the slope on the labels is -"):
    Calibrate().estimated(-score, rated(-score, label))
  with pytest.raises(InputError, match="calibrate: difference_N is never below 0 in 2 pairs"):
    Calibrate().estimated(np.array([2.0, 1.0, 4.0, 1.0]), pairs([2.0, 1.0, 4.0, 1.0]))
  with pytest.raises(InputError, match="calibrate: score_N has 0 values"):
    Calibrate().estimated(np.zeros(2), rated([], []))


def test_decorrelation_takes_what_length_explains_at_equal_judgement_within_prompts():
  rng = np.random.default_rng(2)
  length = rng.integers(5, 90, 400)
  length[::2] += 10  # better responses are longer, which is no preference for length
  prompt = np.repeat(rng.normal(0, 5, 200), 2) + 0.5 * np.repeat(length[::2], 2)
  quality = np.tile([1.5, 0.0], 200)
  score = prompt + quality + 0.02 * length
  sample = pairs(score, ["x" * n for n in length])
  made = Decorrelate(**Decorrelate().estimated(score, sample))
  assert made.slope == pytest.approx(0.02, rel=1e-9)
  assert made.mean == pytest.approx(length.mean())
  after = made.apply(score, sample.responses)
  np.testing.assert_allclose(after, prompt + quality + 0.02 * length.mean())
  # What it leaves has no slope any more; and at the mean length a score stays as it is.
  again = Decorrelate().estimated(after, sample)["slope"]
  assert abs(again) < 1e-9
  assert Decorrelate(3.0, 4.0).apply(np.array([1.5]), responses([0], ["four"])) == [1.5]


def test_decorrelation_at_equal_labels():
  # Right answers have one character more and are half a point better: no preference for length.
  length = np.tile([3, 2], 6) + np.repeat(np.arange(6) % 3, 2)
  length[::4] += 1  # of every other prompt two characters, so that the two can be told apart
  label = np.tile([1.0, 0.0], 6)
  score = 0.5 * label + np.repeat(np.arange(6.0), 2)
  texts = ["x" * n for n in length]
  sample = Sample(responses(score, texts), np.arange(12) // 2, NONE, NONE, np.arange(12), label)
  np.testing.assert_array_equal(sample.judged, label)
  assert Decorrelate().estimated(score, sample)["slope"] == pytest.approx(0, abs=1e-9)
  # Comparisons and labels add up.
  both = dataclasses.replace(sample, better=np.array([0, 2]), worse=np.array([1, 0]))
  assert both.judged.tolist() == [1, -1, 2, *label[3:]]


def test_decorrelation_over_all_responses_where_prompts_have_one():
  score = np.array([1.0, 3.0, 2.0, 6.0])
  texts = ["x" * n for n in (1, 3, 2, 6)]
  alone = Sample(responses(score, texts), np.arange(4), NONE, NONE, NONE, np.zeros(0))
  assert Decorrelate().estimated(score, alone) == pytest.approx({"slope": 1.0, "mean": 3.0})
  with pytest.raises(InputError, match="the 2 responses that it is fitted on have one length"):
    Decorrelate().estimated(np.array([1.0, 2.0]), pairs([1.0, 2.0], ["ab", "cd"]))


def test_which_stages_only_rise_and_which_are_straight_lines():
  assert {n for n, s in STAGES.items() if s.monotone} == {"normalise", "calibrate", "clip", "tanh"}
  assert {n for n, s in STAGES.items() if s.affine} == {"normalise", "calibrate"}


@pytest.mark.parametrize("stage", [Normalise(3, 2), Calibrate(0.3, 1), Clip(-1, 2), Tanh(1.5)])
def test_monotone_stages_keep_the_order(stage):
  assert stage.monotone
  score = np.sort(np.random.default_rng(3).normal(0, 4, 1000))
  after = stage.apply(score, responses(score))
  assert (np.diff(after) >= 0).all()
  if stage.affine:
    np.testing.assert_allclose(
      np.diff(after) / np.diff(score), 1 / list(vars(stage).values())[type(stage) is Normalise]
    )


def test_clip_and_tanh_bound_the_score():
  score = np.array([-1e30, -3.0, -1.0, 0.0, 1e-6, 1.0, 1e30])
  clipped = Clip(low=-2, high=1).apply(score, responses(score))
  np.testing.assert_array_equal(clipped, [-2, -2, -1, 0, 1e-6, 1, 1])
  bounded = Tanh(scale=3).apply(score, responses(score))
  np.testing.assert_allclose(bounded[[0, -1]], [-3, 3])
  assert bounded[4] == pytest.approx(1e-6)
  assert bounded[1] == pytest.approx(-3 * np.tanh(1))


def test_the_reasons_of_filters_are_exact():
  stage = Filters(
    min_characters=2,
    max_characters=60,
    deny=("secret",),
    penalty=-9,
    low=-1,
    high=1,
    languages=("English",),
  )
  texts_and_scores = [
    ("The cat is on the mat.", 0.5, ()),
    ("x", 0, ("short",)),
    ("It is so very long, and that is what this is for, as we have said.", 0, ("long",)),
    ("no no no no no no", 0, ("repetition", "run")),
    ("This is the SECRET of the house.", 0, ("deny",)),
    ("Das ist nicht der Bahnhof und auch ein Haus.", 0, ("language",)),
    ("Как пройти к вокзалу?", 0, ("language",)),
    ("42, 43.", 0, ()),  # without a letter
    ("Zebras graze.", 0, ()),  # without a stop word
    ("The cat is on the mat.", -1, ()),
    ("The cat is on the mat.", -1.5, ("below",)),
    ("The secret of the cat is this.", 2, ("deny", "above")),
  ]
  texts, scores, expected = zip(*texts_and_scores, strict=True)
  assert stage.reasons(responses(scores, texts)) == list(expected)
  assert stage.reasons_there_are == (
    *("short", "long", "repetition", "run", "deny", "language", "below", "above"),
  )
  assert Filters().reasons_there_are == ("short", "long", "repetition", "run", "deny")
  assert not Filters().reasons(responses([1e9], ["Das ist nicht der Bahnhof."]))[0]


def test_a_filter_gives_the_penalty_and_never_a_higher_score():
  stage = Filters(penalty=-2.0)
  found = stage.apply(np.array([1.0, 1.0, -5.0]), responses([0, 0, 0], ["fine", "", ""]))
  assert found.tolist() == [1.0, -2.0, -5.0]


def test_the_range_of_filters_is_of_the_mean_over_members():
  stage = Filters(low=0.0, high=1.0)
  members = np.array([[-1.0, 1.5], [3.0, 1.0]])
  assert stage.reasons(responses(members, ["fine", "fine"])) == [(), ("above",)]


def test_what_filters_take_from_a_sample():
  score = np.linspace(-3, 3, 200)
  texts = (
    ["The cat is on the mat."] * 197 + ["Das ist nicht der Bahnhof und ein Haus."] * 2 + ["42"]
  )
  sample = pairs(10 + score, texts)
  found = Filters(quantiles=(0.1, 0.9)).estimated(score, sample)
  assert found["penalty"] == -3
  assert (found["low"], found["high"]) == pytest.approx((10 - 2.4, 10 + 2.4))
  assert found["languages"] == ("English", "German")
  for count, bound in ((99, None), (100, 1.0)):  # `FEWEST`
    alike = np.ones(count)
    sample = Sample(responses(alike), np.arange(count), NONE, NONE, NONE, np.zeros(0))
    assert Filters().estimated(alike, sample)["high"] == bound
  few = pairs([1.0, 2.0], ["The cat is on the mat.", "42"])
  found = Filters().estimated(np.array([1.0, 2.0]), few)
  assert found == {"penalty": 1.0, "low": None, "high": None, "languages": ("English",)}
  with pytest.raises(InputError, match="there is no response to fit it on"):
    Filters().estimated(np.zeros(0), pairs([]))


def test_a_sample_of_one_score_has_a_range_of_one_score():
  stage = Filters(**Filters().estimated(np.ones(200), pairs(np.ones(200))))
  assert stage.reasons(responses([1.0, 1.1])) == [(), ("above",)]


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Lower(-1), "deviations is -1; expected at least 0"),
    (lambda: Normalise(deviation=0), "deviation is 0; expected it above 0"),
    (lambda: Calibrate(temperature=-1), "temperature is -1"),
    (lambda: Clip(1, 1), r"low \.\. high is 1 \.\. 1; expected low < high"),
    (lambda: Tanh(0), "scale is 0"),
    (lambda: Filters(low=1, high=0), r"low \.\. high is 1 \.\. 0; expected low <= high"),
    (lambda: Filters(quantiles=(0.1,)), "expected two"),
    (lambda: Filters(deny=("(",)), "no regular expression"),
    (
      lambda: Filters(languages=("english",)),
      "languages has 'english'; expected of English, German",
    ),
    (lambda: Responses(np.zeros(2), ["a", "b"]), r"expected \[N, M\]"),
    (lambda: Responses(np.zeros((1, 2)), []), r"members are \(1, 2\) of 0 texts"),
  ],
)
def test_numbers_out_of_range(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_nothing_and_of_one(name):
  options = {"deviations": 0.0} if name == "lower" else {}
  stage = STAGES[name](**options)
  for count in (0, 1):
    nothing = responses(np.zeros((count, 2)), ["The cat is on the mat."] * count)
    assert stage.apply(np.zeros(count), nothing).tolist() == [0.0] * count
