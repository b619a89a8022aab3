"""A chain is fitted in its order, saved with all its numbers, and read strictly."""

import dataclasses
import doctest
import json
import warnings

import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.shaping import chain as module
from rm_jax.shaping.chain import Chain, Fitted, chain_of, declared, plan
from rm_jax.shaping.stages import Calibrate, Clip, Filters, Lower, Normalise, Responses, Tanh
from tests.shaping.test_stages import pairs, responses

WHOLE = "lower, normalise, calibrate, decorrelate, clip(low=-3, high=2.5), tanh(scale=2), filters"
FITTED = Fitted("data", 100, 200, "abcd")


def sample_of(seed=0, members=3):
  rng = np.random.default_rng(seed)
  texts = ["The cat is on the mat. " * (1 + n) for n in rng.integers(0, 3, 200)]
  scores = rng.normal(1, 2, (200, members)) + np.tile([1.0, 0.0], 100)[:, None]
  return pairs(scores, texts)


@pytest.fixture(scope="module")
def whole():
  return plan(WHOLE, "--shape").fit(sample_of(), FITTED)


def test_each_stage_is_fitted_on_the_scores_before_it(whole):
  sample = sample_of()
  after = whole.shape(sample.responses).after
  assert list(after) == [
    *("lower", "normalise", "calibrate", "decorrelate", "clip", "tanh", "filters"),
  ]
  assert after["normalise"].mean() == pytest.approx(0, abs=1e-12)
  assert after["normalise"].std() == pytest.approx(1)
  np.testing.assert_array_equal(after["lower"], Lower().apply(None, sample.responses))
  assert whole.stages[-1].penalty == after["tanh"].min()
  # In another order the numbers are others.
  other = plan("lower, decorrelate, normalise", "--shape").fit(sample, FITTED)
  assert other.shape(sample.responses).scores.std() == pytest.approx(1)
  assert other.stages[1] != whole.stages[3]


def test_what_is_declared_is_not_fitted():
  made = plan("normalise(mean=5), clip", "--shape")
  assert made.missing == {"normalise": ["deviation"]}
  found = made.fit(sample_of(), FITTED)
  assert (found.stages[0].mean, found.stages[1]) == (5, Clip(-5, 5))
  assert found.stages[0].deviation != 1
  assert found.fitted == FITTED
  # Without a number to fit the sample is not used.
  whole = plan("normalise(mean=5, deviation=2), clip", "--shape")
  assert whole.fit(pairs([1.0, 1.0]), FITTED) == declared("normalise(mean=5, deviation=2), clip")


def test_the_record_and_the_text_give_the_chain_again(whole):
  again = chain_of(json.loads(json.dumps(whole.record())), "f")
  assert again == whole
  assert again.fitted == FITTED
  assert declared(str(whole)) == dataclasses.replace(whole, fitted=None)
  assert chain_of(declared(str(whole)).record(), "f").fitted is None
  new = responses(np.random.default_rng(1).normal(1, 2, (50, 3)), ["Is it? " * 9] * 50)
  np.testing.assert_array_equal(again.shape(new).scores, whole.shape(new).scores)
  assert len(whole.digest) == 12
  assert again.digest == whole.digest == declared(str(whole)).digest
  assert declared("clip(low=-1, high=1)").digest != declared("clip(low=-1, high=2)").digest


def test_scores_and_how_they_came_about():
  made = Chain((Normalise(1, 2), Clip(-1, 1), Filters(penalty=-3)))
  found = made.shape(responses(np.float32([2, 9, 2]), ["a", "b", ""]))
  assert found.scores.dtype == np.float32
  assert found.explained() == [
    {"raw": 2, "stages": {"normalise": 0.5, "clip": 0.5, "filters": 0.5}, "shaped": 0.5}
    | {"reasons": []},
    {"raw": 9, "stages": {"normalise": 4, "clip": 1, "filters": 1}, "shaped": 1, "reasons": []},
    {"raw": 2, "stages": {"normalise": 0.5, "clip": 0.5, "filters": -3}, "shaped": -3}
    | {"reasons": ["short"]},
  ]


def test_a_chain_of_nothing(whole):
  found = whole.shape(responses(np.zeros((0, 3)), []))
  assert found.scores.shape == (0,)
  assert found.explained() == []
  one = responses([[1.0, 2.0, 4.0]], ["The cat is on the mat."])
  assert whole.shape(one).scores.shape == (1,)


def test_equal_scores_stay_equal(whole):
  text = "The cat is on the mat."
  found = whole.shape(responses([[1.0, 2.0, 4.0]] * 4, [text] * 4)).scores
  assert len(set(found.tolist())) == 1


@pytest.mark.parametrize(
  ("stages", "score", "message"),
  [
    ([Tanh()], np.nan, "row 1: the model gives the score nan; expected a finite number of float32"),
    ([Tanh(), Normalise()], np.inf, "row 1: the model gives the score inf"),
    ([Clip(), Normalise(0, 1e-300)], 1.0, "row 1: the stage 'normalise' of the chain gives"),
    # Finite in float64, and not in float32, which is what reinforcement learning reads.
    ([Calibrate(1e-30), Clip()], 1e20, "row 1: the stage 'calibrate' of the chain gives the score"),
    (
      [Clip(), Normalise(1e39)],
      0.0,
      "row 0: the stage 'normalise' of the chain gives the score -1",
    ),
  ],
)
def test_a_score_that_is_not_finite_names_the_stage(stages, score, message):
  made = Chain(tuple(stages))
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # no warning of numpy beside the error
    with pytest.raises(InputError, match=message):
      made.shape(responses([0.0, score]))
  with pytest.raises(InputError, match=message.replace("row ", "f:")):
    made.shape(responses([0.0, score]), ["f:0", "f:1"])


@pytest.mark.parametrize(
  "stages", [(), (Clip(), Clip(0, 1)), (Clip(), Lower()), (Filters(), Clip())]
)
def test_stages_in_another_order_are_no_chain(stages):
  with pytest.raises(InputError, match=r"^the chain has "):
    Chain(stages)


def test_a_lower_bound_wants_an_ensemble(whole):
  with pytest.raises(InputError, match="the model has one member; expected an ensemble"):
    whole.shape(responses([1.0]))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "--shape is ''; expected stages as in"),
    ("normalise clip", "--shape is 'normalise clip'; expected stages"),
    ("clip(5)", "expected stages as in"),
    ("squash", "--shape has the stage 'squash'; expected of lower, normalise, calibrate"),
    ("clip(top=5)", "--shape: clip has 'top', which we do not know; expected of low, high"),
    ("clip(high='x')", "--shape: clip.high is 'x'; expected a float"),
    ("clip(high=-9)", r"--shape: clip: low \.\. high is -5.0 \.\. -9"),
    ("clip(high=1e999)", "--shape: clip.high is inf"),
    ("tanh, tanh(scale=2)", "--shape has the stage 'tanh' twice"),
    ("normalise, lower", "--shape has 'lower' after 'normalise'; expected it first"),
    ("filters, clip", "--shape has 'filters' before 'clip'; expected it last"),
    ("filters(deny=('(',))", r"--shape: filters: deny: '\(' is no regular expression"),
    ("filters(monotone=True)", "--shape: filters has 'monotone', which we do not know"),
  ],
)
def test_texts_that_declare_no_chain(text, message):
  with pytest.raises(InputError, match=message):
    plan(text, "--shape")


def test_a_declared_chain_has_all_its_numbers():
  assert declared("clip, tanh").stages == (Clip(-5, 5), Tanh(1))
  with pytest.raises(InputError, match="shaping has 'normalise' without mean, deviation"):
    declared("normalise")
  with pytest.raises(InputError, match="has 'filters' without low, high, languages; expected them"):
    declared("filters(penalty=-5)")


CLIP = {"name": "clip", "low": -1, "high": 1}


@pytest.mark.parametrize(
  ("record", "message"),
  [
    ([], r"f holds \[\]; expected an object with a list of stages"),
    ({}, "f holds {}"),
    ({"stages": {}}, "f holds"),
    ({"stages": []}, "f has no stage"),
    ({"stages": [CLIP], "more": 1}, "f has 'more', which we do not know"),
    ({"stages": [CLIP, CLIP]}, "f has the stage 'clip' twice"),
    ({"stages": ["clip"]}, r"f: stages\[0\] is 'clip'; expected an object with a name of lower"),
    ({"stages": [{"name": ["clip"]}]}, r"f: stages\[0\] is"),
    ({"stages": [CLIP, {"name": "x"}]}, r"f: stages\[1\] is {'name': 'x'}"),
    ({"stages": [{"name": "clip", "low": 1}]}, r"f: stages\[0\], 'clip', has no 'high'; expected"),
    ({"stages": [CLIP | {"up": 1}]}, r"f: stages\[0\] has 'up', which we do not know"),
    ({"stages": [CLIP | {"monotone": False}]}, r"f: stages\[0\] has 'monotone', which we do not"),
    ({"stages": [CLIP | {"low": "1"}]}, r"f: stages\[0\]\.low is '1'; expected a float"),
    ({"stages": [CLIP | {"low": True}]}, r"f: stages\[0\]\.low is True"),
    ({"stages": [CLIP | {"low": None}]}, r"f: stages\[0\]\.low is None"),
    ({"stages": [CLIP | {"low": float("nan")}]}, r"f: stages\[0\]\.low is nan"),
    ({"stages": [CLIP | {"low": -(10**400)}]}, r"f: stages\[0\]\.low is -1000"),
    ({"stages": [CLIP | {"low": 2}]}, r"f: stages\[0\]: low \.\. high is 2 \.\. 1"),
    ({"stages": [CLIP], "fitted": 1}, "f: fitted is 1; expected an object"),
    ({"stages": [CLIP], "fitted": {"data": 1}}, "f: fitted.data is 1; expected a str"),
    ({"stages": [CLIP], "fitted": {"data": "d"}}, "f: fitted: .*missing 2 required"),
  ],
)
def test_records_of_no_chain(record, message):
  with pytest.raises(InputError, match=message):
    chain_of(record, "f")


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("quantiles", [0.1, 0.2, 0.9], r"stages\[0\]: quantiles are \(0.1, 0.2, 0.9\); expected two"),
    ("quantiles", [0.1, "x"], r"stages\[0\]\.quantiles is"),
    ("deny", "x", r"stages\[0\]\.deny is 'x'; expected a list of str"),
    ("deny", ["["], r"stages\[0\]: deny: '\[' is no regular expression"),
    ("languages", [1], r"stages\[0\]\.languages is \[1\]"),
    ("max_run", 1.5, r"stages\[0\]\.max_run is 1.5; expected a int"),
    ("max_run", 0, r"max_run 0"),
    ("low", "0", r"stages\[0\]\.low is '0'; expected a float or NoneType"),
  ],
)
def test_records_of_no_filters(key, value, message):
  record = Chain((Filters(),)).record()
  record["stages"][0][key] = value
  with pytest.raises(InputError, match=message):
    chain_of(record, "f")


def test_the_example_in_the_docstring():
  tried = doctest.testmod(module, extraglobs={"Responses": Responses})
  assert (tried.failed, tried.attempted > 0) == (0, True)


def test_a_fitted_number_that_does_not_go_with_a_declared_one_names_the_stage():
  with pytest.raises(InputError, match="filters: a number that was fitted does not go with a decl"):
    plan("filters(low=100)", "--shape").fit(sample_of(), FITTED)
