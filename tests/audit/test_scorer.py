"""No text is scored twice, in one audit or the next, and each model has its own scores."""

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax import RewardModel
from rm_jax.audit.scorer import Scorer, example_scores, model_hash
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.setup import build_model, init_params
from tests.train.runs import small_config

ROWS = [("a b", "ccc"), ("a b", "dd"), ("e", "ccc"), ("a b", "ccc")]
CHAT = [(({"role": "user", "content": "hi"},), ({"role": "assistant", "content": "yo"},))]


def make(folder, seed=0, members=1):
  config = small_config(folder, steps=1)
  config.model.members = members
  built = build_model(config)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = init_params(built, mesh, jax.random.key(seed), training=True)
  return RewardModel(built, unflatten_dict(params, sep="/"), mesh)


@pytest.fixture(scope="module")
def model(llama_folder):
  return make(llama_folder)


def test_each_distinct_text_once(model, tmp_path):
  scorer = Scorer(model, folder=tmp_path, progress=False)
  scores = scorer(ROWS)
  expected = model.score([{"prompt": p, "response": r} for p, r in ROWS])
  np.testing.assert_allclose(scores, expected, atol=1e-6)
  assert vars(scorer.counts) == {"asked": 4, "distinct": 3, "hits": 0, "scored": 3}
  scorer(ROWS[:2])
  assert vars(scorer.counts) == {"asked": 6, "distinct": 3, "hits": 0, "scored": 3}


def test_the_next_audit_finds_them(model, tmp_path, monkeypatch):
  first = Scorer(model, folder=tmp_path, progress=False)(ROWS + CHAT)
  again = Scorer(model, folder=tmp_path, progress=False)
  monkeypatch.setattr(model, "score_members", None)  # all scores are in the cache
  np.testing.assert_array_equal(again(ROWS + CHAT), first)
  assert vars(again.counts) == {"asked": 5, "distinct": 4, "hits": 4, "scored": 0}


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 3])
def test_scores_come_with_what_is_read(llama_folder, members, tmp_path, monkeypatch):
  model = make(llama_folder, members=members)
  scorer = Scorer(model, folder=tmp_path, progress=False)
  pooled_ND = scorer.pooled(ROWS)
  assert pooled_ND.shape == (4, 32)
  np.testing.assert_array_equal(pooled_ND[0], pooled_ND[3])
  expected = model.score_members([{"prompt": p, "response": r} for p, r in ROWS])
  monkeypatch.setattr(model, "score_members", None)  # all scores are in the cache
  np.testing.assert_allclose(scorer.members(ROWS), expected, atol=1e-6)
  assert vars(scorer.counts) == {"asked": 8, "distinct": 3, "hits": 0, "scored": 3}
  monkeypatch.setattr(model, "pooled_and_scores", None)  # and all features
  np.testing.assert_array_equal(scorer.pooled(ROWS), pooled_ND)
  assert Scorer(model, folder=tmp_path, progress=False).members(ROWS).shape == (4, members)


def test_what_is_of_the_same_prompt_is_scored_with_it(model, tmp_path, monkeypatch):
  asked = []
  read = model.pooled_and_scores
  monkeypatch.setattr(
    model, "pooled_and_scores", lambda rows, **kw: asked.append(len(rows)) or read(rows, **kw)
  )
  scorer = Scorer(model, folder=tmp_path, progress=False)
  pooled_ND = scorer.pooled(ROWS[:1], ROWS)
  assert asked == [3]  # each distinct text once, and all in one call
  assert vars(scorer.counts) == {"asked": 5, "distinct": 3, "hits": 0, "scored": 3}
  expected = model.score([{"prompt": p, "response": r} for p, r in ROWS])
  monkeypatch.setattr(model, "score_members", None)  # all scores are in the cache
  np.testing.assert_allclose(scorer(ROWS), expected, atol=1e-6)
  # Features are kept only of the rows that were asked for; a row of `beside` has to be read again.
  np.testing.assert_allclose(scorer.pooled(ROWS[:2], ROWS)[0], pooled_ND[0], atol=1e-6)
  assert asked == [3, 1]
  assert scorer.counts.scored == 3
  # A second scorer reads all from the cache, bit for bit.
  again = Scorer(model, folder=tmp_path, progress=False)
  np.testing.assert_array_equal(again.pooled(ROWS[:2]), scorer.pooled(ROWS[:2]))
  assert asked == [3, 1]
  assert (again.counts.hits, again.counts.scored) == (2, 0)


def test_what_was_stopped_goes_on(model, tmp_path, monkeypatch):
  monkeypatch.setattr("rm_jax.audit.scorer._CHUNK", 1)
  real, calls = model.score_members, []

  def stops(rows, **options):
    calls.append(rows)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(rows, **options)

  monkeypatch.setattr(model, "score_members", stops)
  with pytest.raises(KeyboardInterrupt):
    Scorer(model, folder=tmp_path, progress=False)(ROWS)
  scorer = Scorer(model, folder=tmp_path, progress=False)
  scorer(ROWS)
  assert (scorer.counts.hits, scorer.counts.scored) == (2, 1)


def test_a_scorer_goes_on_after_it_was_stopped(model, tmp_path, monkeypatch):
  monkeypatch.setattr("rm_jax.audit.scorer._CHUNK", 2)
  real, calls = model.score_members, []

  def stops(rows, **options):
    calls.append(rows)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(rows, **options)

  expected = Scorer(model, folder=None, progress=False)(ROWS)
  monkeypatch.setattr(model, "score_members", stops)
  scorer = Scorer(model, folder=None, progress=False)
  with pytest.raises(KeyboardInterrupt):
    scorer(ROWS)
  assert vars(scorer.counts) == {"asked": 4, "distinct": 3, "hits": 0, "scored": 2}
  np.testing.assert_allclose(scorer(ROWS), expected, atol=1e-6)
  assert vars(scorer.counts) == {"asked": 8, "distinct": 3, "hits": 0, "scored": 3}
  assert [len(rows) for rows in calls] == [2, 1, 1]
  # Features that could not be read are read when they are asked for again.
  read = model.pooled_and_scores
  monkeypatch.setattr(model, "pooled_and_scores", stops)
  calls[:] = calls[:1]
  with pytest.raises(KeyboardInterrupt):
    scorer.pooled(CHAT)
  monkeypatch.setattr(model, "pooled_and_scores", read)
  assert scorer.pooled(CHAT).shape == (1, 32)
  assert (scorer.counts.distinct, scorer.counts.scored) == (4, 4)


def test_no_example_has_no_scores():
  assert example_scores(lambda rows: np.zeros(len(rows)), []) == []


def test_another_model_has_another_file(model, llama_folder, tmp_path):
  other = make(llama_folder, seed=1)
  assert model_hash(model) != model_hash(other)
  assert model_hash(model) == model_hash(make(llama_folder))
  Scorer(model, folder=tmp_path, progress=False)(ROWS)
  scorer = Scorer(other, folder=tmp_path, progress=False)
  scorer(ROWS)
  assert scorer.counts.hits == 0


def test_a_damaged_file_is_scored_anew(model, tmp_path, caplog):
  scorer = Scorer(model, folder=tmp_path, progress=False)
  expected = scorer(ROWS)
  (file,) = tmp_path.glob("*.npz")
  file.write_bytes(file.read_bytes()[:50])
  again = Scorer(model, folder=tmp_path, progress=False)
  np.testing.assert_array_equal(again(ROWS), expected)
  assert again.counts.scored == 3
  assert "scored anew" in caplog.text


def test_an_ensemble_keeps_its_members(llama_folder, tmp_path):
  model = make(llama_folder, members=3)
  scorer = Scorer(model, folder=tmp_path, progress=False)
  members_NM = scorer.members(ROWS)
  assert scorer.outputs == members_NM.shape[1] == 3
  np.testing.assert_allclose(scorer(ROWS), members_NM.mean(axis=1))
  assert scorer.members([]).shape == (0, 3)


def test_a_score_that_is_not_finite_stops_the_audit(model, monkeypatch):
  monkeypatch.setattr(
    model, "score_members", lambda rows, **_: np.full((len(rows), 1), np.nan, np.float32)
  )
  with pytest.raises(ValueError, match=r"the model gives \[nan\] for \('a b', 'ccc'\)"):
    Scorer(model, folder=None, progress=False)(ROWS)
