"""Shifted data raise an alarm; data like the reference do so no more often than the level."""

import numpy as np
import pytest

from rm_jax.audit.reference import Reference
from rm_jax.audit.sections.drift import LEVEL, drift, errors_by_disagreement


def sample(rng, n, move=0.0, width=6):
  return rng.normal(size=n) + move, rng.normal(size=(n, width)) @ np.diag([5, 1, 1, 1, 1, 0.1])


def reference(rng, n=300):
  scores, pooled = sample(rng, n)
  return Reference(scores.astype(np.float32), pooled.astype(np.float32), "train")


def test_a_shift_of_scores_is_found():
  rng = np.random.default_rng(0)
  scores, pooled = sample(rng, 200, move=1.0)
  found = drift(scores, pooled, reference(rng))
  assert found["alarm"]
  assert all(found["scores"][name]["alarm"] for name in ("ks", "psi", "energy"))
  assert not any(one["alarm"] for one in found["features"].values())
  assert found["shift"] == pytest.approx(1.0, abs=0.2)
  assert "moved from train: scores by ks" in found["says"]
  assert "by heart" not in found["says"]
  assert found["monitor"]["alarms"]


def test_a_shift_of_features_is_found_where_scores_stay():
  rng = np.random.default_rng(1)
  scores, pooled = sample(rng, 200)
  pooled[:, 5] += 0.3  # three standard deviations of the smallest dimension
  found = drift(scores, pooled, reference(rng))
  assert all(one["alarm"] for one in found["features"].values())
  assert not any(one["alarm"] for one in found["scores"].values())
  assert "may know that by heart" in found["says"]


def test_windows_that_moved_are_said_where_the_whole_has_not():
  rng = np.random.default_rng(2)
  scores, pooled = sample(rng, 200)
  # Sorted, as in data in which one source follows another.
  found = drift(np.sort(scores), pooled, reference(rng))
  assert not any(one["alarm"] for part in ("scores", "features") for one in found[part].values())
  assert found["alarm"]
  assert "no sign that the data as a whole has moved from train" in found["says"]
  assert "2 of 2 windows of 100 scores have" in found["says"]


@pytest.mark.slow
def test_false_alarms_are_no_more_than_the_level():
  alarms = monitors = 0
  for seed in range(60):
    rng = np.random.default_rng([7, seed])
    found = drift(*sample(rng, 120), reference(rng, 200))
    alarms += any(one["alarm"] for part in ("scores", "features") for one in found[part].values())
    monitors += bool(found["monitor"]["alarms"])
  # At a level of 0.01, four or more alarms in 60 have a probability of 1 in 300.
  assert LEVEL == 0.01
  assert alarms <= 3
  assert monitors <= 3


def test_wide_heavy_tailed_features_that_have_not_moved_raise_no_alarm():
  """Scaled by the standard deviations of half of the reference their mean p was 0.07, not 0.5."""
  p = []
  for seed in range(6):
    rng = np.random.default_rng(seed)
    features = rng.standard_t(3, size=(80, 512))
    scores = rng.normal(size=80)
    reference = Reference(scores[:40], features[:40].astype(np.float32), "held-out pairs")
    found = drift(scores[40:], features[40:], reference, seed=seed)
    p.append(found["features"]["energy"]["p"])
  assert np.mean(p) > 0.15


def test_kept_with_the_model_and_read_again(tmp_path):
  one = reference(np.random.default_rng(0))
  assert Reference.load(tmp_path) is None
  one.save(tmp_path)
  again = Reference.load(tmp_path)
  np.testing.assert_array_equal(again.scores, one.scores)
  np.testing.assert_array_equal(again.pooled, one.pooled)
  assert again.data == "train"
  assert again.known
  held = Reference(one.scores, one.pooled, "held", known=False)
  held.save(tmp_path)
  assert not Reference.load(tmp_path).known
  # Files without the field are of training data.
  old = {"scores": one.scores, "pooled": one.pooled, "data": "train", "model": "m"}
  np.savez(tmp_path / "reference.npz", **old)
  assert Reference.load(tmp_path).known
  path = tmp_path / "reference.npz"
  for damaged in (b"not a zip", path.read_bytes()[:80]):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"reference\.npz: is no reference"):
      Reference.load(tmp_path)


def test_what_cannot_be_compared_is_refused():
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="expected 20 of each"):
    drift(*sample(rng, 19), reference(rng))
  scores, pooled = sample(rng, 30)
  with pytest.raises(ValueError, match="another model's"):
    drift(scores, pooled[:, :4], reference(rng))


@pytest.mark.slow
def test_disagreement_tells_errors():
  rng = np.random.default_rng(0)
  true = rng.normal(size=2000)
  noise = np.abs(rng.normal(size=2000))  # some pairs are harder for all members
  members = true[:, None] + noise[:, None] * rng.normal(size=(2000, 5)) * 2
  clusters = [f"c{i}" for i in range(2000)]
  found = errors_by_disagreement(members * np.sign(true)[:, None], np.zeros((2000, 5)), clusters)
  assert found["auroc"]["interval"][0] > 0.6
  # If the members disagree equally on all pairs, only a small margin predicts errors.
  alike = errors_by_disagreement(
    (members.mean(axis=1) * np.sign(true))[:, None] + [-1.0, 1.0], 0, clusters
  )
  assert alike["auroc"]["value"] == pytest.approx(0.5, abs=0.02)
  assert alike["margin"]["interval"][0] > 0.55
  assert alike["beyond"]["interval"][1] < 0
  spread = rng.normal(size=(2000, 1)) ** 2 * rng.normal(size=(2000, 5))
  spread -= spread.mean(axis=1, keepdims=True)
  mean = (members.mean(axis=1) * np.sign(true))[:, None]
  random = errors_by_disagreement(mean + spread, 0, clusters)["auroc"]
  assert random["interval"][0] < 0.5 < random["interval"][1]
  tied = errors_by_disagreement(np.array([[1.0, -1.0], [1, 0], [-1, 0]]), 0, list("abc"))
  assert (tied["ties"], tied["wrong"], tied["auroc"]["n"]) == (1, 1, 2)
  flat = errors_by_disagreement(np.ones((4, 2)), np.zeros((4, 2)), list("abcd"))
  assert flat["auroc"]["value"] is None


def test_few_errors_among_many_pairs_are_few():
  rng = np.random.default_rng(0)
  chosen = np.where(np.arange(60) < 4, -3.0, 3.0)[:, None] + rng.normal(size=(60, 4)) * 0.5
  found = errors_by_disagreement(chosen, np.zeros((60, 4)), [f"c{i}" for i in range(60)])
  assert found["wrong"] == 4
  for name in ("auroc", "margin", "beyond"):
    assert found[name]["why"] == "of the rarer class, 4 conversations: an interval wants 5"
