"""Shaped scores of a model: by its chain, which is saved, loaded and exported with it."""

import inspect
import json
import logging

import jax
import ml_collections
import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.errors import InputError
from rm_jax.pretrained.source import SHAPING
from rm_jax.shaping.chain import Chain, Fitted, declared, plan
from rm_jax.shaping.stages import Clip, Normalise, Responses
from rm_jax.workdir.folder import claim
from tests.conftest import decoder_tokenizer
from tests.reward.test_export import modelled
from tests.shaping.test_stages import pairs

ROWS = [
  {"prompt": f"question {i // 2} ", "response": "The cat is on the mat. " * (1 + i % 3)}
  for i in range(12)
]
ROWS.append({"prompt": "question", "response": "no " * 6})
TURNS = [{"role": "user", "content": "Where?"}], [{"role": "assistant", "content": "no " * 6}]
WHOLE = "lower, normalise, decorrelate, clip(low=-3, high=2.5), tanh(scale=2), filters"


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
  """An ensemble of three members with random weights, and a chain that was fitted for it."""
  model = modelled(tmp_path_factory.mktemp("of") / "m", decoder_tokenizer(), members=3)
  kernel = model.params["head"]["out"]["kernel"]
  model.params["head"]["out"]["kernel"] = jax.random.normal(jax.random.key(2), kernel.shape) / 4
  scores_NM = model.score_members(ROWS[:12])
  sample = pairs(scores_NM, [row["response"] for row in ROWS[:12]])
  fitted = Fitted("rows", 6, 12, model.weights)
  model.shaping = plan(WHOLE, "--shape").fit(sample, fitted)
  return model


def test_shaped_scores_are_the_chains_of_the_members_and_the_texts(ensemble, caplog):
  found = ensemble.score(ROWS, shaped=True)
  assert found.dtype == np.float32
  texts = [row["response"] for row in ROWS]
  expected = ensemble.shaping.shape(Responses(ensemble.score_members(ROWS), texts))
  np.testing.assert_array_equal(found, expected.scores)
  assert ensemble.explain(ROWS) == expected.explained()
  assert [one["shaped"] for one in ensemble.explain(ROWS)] == found.tolist()
  assert [one["raw"] for one in ensemble.explain(ROWS)] == ensemble.score(ROWS).tolist()
  reasons = [one["reasons"] for one in ensemble.explain(ROWS)]
  assert reasons == [[], [], ["repetition"]] * 4 + [["repetition", "run"]]
  assert not caplog.records
  with caplog.at_level(logging.INFO, logger="rm_jax.api"):
    ensemble.score(ROWS[:1], shaped=True)
  assert f"shaped by {ensemble.shaping.digest}: lower(deviations=1.0), normalise" in caplog.text


def test_messages_and_solutions_are_texts_too(ensemble):
  prompt, response = TURNS
  solution = {"prompt": "Where?", "completions": ["no no no ", "no no no"]}
  rows = [{"prompt": prompt, "response": response}, solution]
  assert [one["reasons"] for one in ensemble.explain(rows)] == [["repetition", "run"]] * 2
  explained = ensemble.explain([solution], aggregate="last", origins=["f:1"])
  assert explained[0]["raw"] == ensemble.score([solution], aggregate="last")[0]


def test_no_rows_and_one(ensemble):
  assert ensemble.score([], shaped=True).shape == (0,)
  assert ensemble.explain([]) == []
  assert ensemble.explain(iter(ROWS[:1]))[0]["shaped"] == ensemble.score(ROWS[:1], shaped=True)[0]


def test_a_chain_is_saved_loaded_and_exported_with_its_model(ensemble, tmp_path, caplog):
  raw, shaped = ensemble.score(ROWS), ensemble.score(ROWS, shaped=True)
  ensemble.save_pretrained(tmp_path)
  assert "which transformers does not apply: its scores are the model's own" in caplog.text
  caplog.clear()
  again = RewardModel.from_pretrained(tmp_path)
  assert again.shaping == ensemble.shaping
  np.testing.assert_array_equal(again.score(ROWS, shaped=True), shaped)
  np.testing.assert_array_equal(again.score(ROWS), raw)
  assert again.explain(ROWS) == ensemble.explain(ROWS)
  assert not caplog.records  # the weights are those that it was fitted with
  again.save_pretrained(tmp_path / "again")
  assert (tmp_path / "again" / SHAPING).read_bytes() == (tmp_path / SHAPING).read_bytes()
  # Another chain in its place, all of whose numbers are declared.
  other = RewardModel.from_pretrained(tmp_path, shaping="clip(low=-0.1, high=0.1)")
  np.testing.assert_allclose(other.score(ROWS, shaped=True), raw.clip(-0.1, 0.1))
  with pytest.raises(InputError, match=r"shaping \(--shaping\) has 'normalise' without mean"):
    RewardModel.from_pretrained(tmp_path, shaping="normalise")


def test_without_a_chain_nothing_is_written_and_shaped_scores_are_refused(ensemble, tmp_path):
  ensemble.save_pretrained(tmp_path)
  plain = RewardModel(ensemble.text_model, ensemble.params, ensemble.mesh)
  plain.save_pretrained(tmp_path)  # over one that has a chain
  plain.save_pretrained(tmp_path / "new")
  for folder in (tmp_path, tmp_path / "new"):
    assert not (folder / SHAPING).exists()
  again = RewardModel.from_pretrained(tmp_path)
  assert again.shaping is None
  for call in (lambda: again.score(ROWS, shaped=True), lambda: again.explain(ROWS)):
    with pytest.raises(
      InputError, match=rf"{tmp_path} has no chain of shaping: expected {SHAPING}"
    ):
      call()


def test_a_run_that_goes_on_keeps_its_chain_and_other_weights_are_told(ensemble, tmp_path, caplog):
  ensemble.save_pretrained(tmp_path / "model")
  source = RewardModel.from_pretrained(tmp_path / "model")
  claim(tmp_path, ml_collections.ConfigDict({"data": {}}), source.text_model)
  assert (tmp_path / "model" / SHAPING).exists()
  caplog.clear()
  out = source.params["head"]["out"]
  out["kernel"] = out["kernel"] + 1e-3
  source.score(ROWS[:1])
  assert not caplog.records
  source.score(ROWS[:1], shaped=True)
  assert "THE SHAPED SCORES MAY BE WRONG: their chain was fitted with other weights" in caplog.text
  caplog.clear()
  source.score(ROWS[:1], shaped=True)
  assert not caplog.records  # it is told once


def test_lower_is_a_stage_of_a_shaped_score(ensemble, tmp_path):
  model = RewardModel(ensemble.text_model, ensemble.params, ensemble.mesh)
  model.shaping = declared("lower(deviations=0.5)")
  found = model.score(ROWS, shaped=True)
  np.testing.assert_array_equal(found, model.score(ROWS, lower=0.5))
  with pytest.raises(ValueError, match=r"lower is 0\.5 and shaped is true"):
    model.score(ROWS, shaped=True, lower=0.5)
  assert "lower" not in inspect.signature(model.explain).parameters
  assert inspect.signature(model.explain).parameters.keys() < (
    inspect.signature(model.score).parameters.keys()
  )
  ensemble.save_pretrained(tmp_path / "m")
  with pytest.raises(InputError, match=r"reference is x, and the reward of .* is not relative to"):
    RewardModel.from_pretrained(tmp_path / "m", reference="x")


def test_a_shaped_score_that_is_not_finite_names_the_row_and_the_stage(ensemble):
  model = RewardModel(ensemble.text_model, ensemble.params, ensemble.mesh)
  model.shaping = Chain((Clip(), Normalise(0, 1e-300)))
  with pytest.raises(
    InputError, match=r"^row 0: the stage 'normalise' of the chain gives the score"
  ):
    model.score(ROWS, shaped=True)
  with pytest.raises(InputError, match=r"^f:7: the stage 'normalise'"):
    model.score(ROWS[:1], shaped=True, origins=["f:7"])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "not a readable JSON file"),
    ("[]", "holds a list; expected an object"),
    ('{"stages": []}', "has no stage"),
    ('{"stages": [{"name": "clip", "low": NaN, "high": 1}]}', r"stages\[0\]\.low is nan"),
    ('{"stages": [{"name": "clip", "low": 0, "low": 1, "high": 1}]}', "not a readable JSON file"),
    ("[" * 100_000, "not a readable JSON file"),
    (" " * (2**20 + 1), "expected at most 1048576"),
    (None, "not a readable JSON file"),  # a dangling link
  ],
)
def test_a_damaged_chain_is_told_when_the_model_is_loaded(ensemble, tmp_path, text, message):
  ensemble.save_pretrained(tmp_path)
  path = tmp_path / SHAPING
  path.unlink()
  path.symlink_to("nowhere") if text is None else path.write_text(text)
  with pytest.raises(InputError, match=f"^{path}.*{message}"):
    RewardModel.from_pretrained(tmp_path)


@pytest.mark.slow
def test_the_export_of_another_mix_has_no_chain(tmp_path, caplog):
  model = modelled(tmp_path / "m", decoder_tokenizer(), attributes=("a", "b"))
  model.shaping = declared("clip(low=-0.1, high=0.1)")
  model.save_pretrained(tmp_path / "own")
  assert json.loads((tmp_path / "own" / SHAPING).read_text()) == model.shaping.record()
  model.save_pretrained(tmp_path / "mixed", mix={"a": 1.0, "b": 2.0})
  assert not (tmp_path / "mixed" / SHAPING).exists()
  assert "without the chain of shaping, whose numbers are of another mix" in caplog.text
  again = RewardModel.from_pretrained(tmp_path / "own")
  np.testing.assert_array_equal(again.score(ROWS, shaped=True), model.score(ROWS, shaped=True))
