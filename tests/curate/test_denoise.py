"""Denoising: folds, calibration, the two estimates of noise, and logistic regression on words."""

import dataclasses

import numpy as np
import pytest

from rm_jax.curate import denoise
from rm_jax.curate.ledger import Ledger
from rm_jax.curate.scorers import ContentModel, fit_logistic, write_examples
from rm_jax.data.formats import load
from rm_jax.data.report import DataError, Report
from rm_jax.types import Example
from rm_jax.world import World


def examples_of(n, per_conversation=1):
  return [
    Example(f"p{i // per_conversation}", (f"good {i}", f"bad {i}"), (1.0, 0.0), origin=f"f:{i}",
            conversation=f"p{i // per_conversation}")
    for i in range(n)
  ]  # fmt: skip


def test_folds_keep_conversations_whole_and_balanced():
  examples = examples_of(303, per_conversation=3)
  fold = denoise.folds(examples, 5)
  assert (fold.reshape(101, 3) == fold.reshape(101, 3)[:, :1]).all()
  assert sorted(np.bincount(fold) // 3) == [20, 20, 20, 20, 21]
  order = np.random.default_rng(0).permutation(303)
  assert (denoise.folds([examples[i] for i in order], 5) == fold[order]).all()
  assert (denoise.folds(examples, 5, seed=1) != fold).any()
  with pytest.raises(DataError, match=r"1 conversation\(s\) cannot be dealt to 2"):
    denoise.folds(examples[:3], 2)
  with pytest.raises(ValueError, match=r"1 fold\(s\)"):
    denoise.folds(examples, 1)
  with pytest.raises(DataError, match="f:0: no conversation"):
    denoise.folds([dataclasses.replace(examples[0], conversation="")], 2)


def test_out_of_fold_never_trains_on_what_it_scores():
  examples = examples_of(60, per_conversation=2)
  seen = []

  def scorer(train, test):
    assert not {e.conversation for e in train} & {e.conversation for e in test}
    assert len(train) + len(test) == 60
    seen.extend(e.origin for e in test)
    return [float(e.origin[2:]) for e in test]

  margins = denoise.out_of_fold(examples, scorer, count=3)
  assert margins.tolist() == list(range(60))
  assert sorted(seen) == sorted(e.origin for e in examples)
  with pytest.raises(DataError, match=r"gave \(1,\) margins for 20 examples of fold 0"):
    denoise.out_of_fold(examples, lambda train, test: [0.0], count=3)
  with pytest.raises(DataError, match="1 of them not finite"):
    denoise.out_of_fold(examples, lambda train, test: [np.nan] + [1.0] * (len(test) - 1), count=3)


def test_scale_is_the_most_likely_one():
  optimize = pytest.importorskip("scipy.optimize")
  rng = np.random.default_rng(0)
  m = rng.normal(0.5, 1, 400)
  p, scale = denoise.probabilities(m)
  best = optimize.minimize_scalar(
    lambda s: np.logaddexp(0, -s * m).sum(), bounds=(0, 50), method="bounded",
    options={"xatol": 1e-10},
  )  # fmt: skip
  assert scale == pytest.approx(best.x, rel=1e-5)
  assert p == pytest.approx(1 / (1 + np.exp(-scale * m)))
  # The unit of the scores does not matter.
  assert denoise.probabilities(100 * m)[0] == pytest.approx(p)
  assert denoise.probabilities(-m)[1] == 0
  assert denoise.probabilities(np.zeros(3))[0].tolist() == [0.5] * 3
  all_agree, _ = denoise.probabilities(np.array([1.0, 1.0]))
  assert all_agree == pytest.approx([0.95, 0.95])


def test_the_confident_joint_by_hand():
  margins = np.repeat([3.0, 2.5, 2.0, 1.5, 1.0, 0.1, -0.1, -3.0], 4)
  s = denoise.suspect(examples_of(32), margins)
  p, t = s.probability, s.probability.mean()
  right = sum(1 for x in p if x >= t and x >= 0.5)
  flipped = sum(1 for x in p if 1 - x >= t and x < 0.5)
  assert (s.report["confidently_right"], s.report["confidently_flipped"]) == (right, flipped)
  assert (right, flipped) == (20, 4)  # Margins of 0.1 and -0.1 are not confident.
  assert s.noise_rate == flipped / (flipped + right)
  assert s.ranked.tolist() == [*range(28, 32), *range(24, 28), *range(20, 24), *range(16, 20),
                               *range(12, 16), *range(8, 12), *range(4, 8), *range(4)]  # fmt: skip


def test_noise_of_a_model_that_knows_the_truth():
  """Margins of a true score, 10 % of labels flipped: both estimates are near 10 %."""
  rng = np.random.default_rng(1)
  n, noise = 5000, 0.1
  size = np.abs(rng.normal(3, 1, n))
  flipped = rng.random(n) < noise
  s = denoise.suspect(examples_of(n), np.where(flipped, -size, size))
  # The standard error of a share of 500 is 0.013.
  assert s.noise_rate == pytest.approx(noise, abs=0.02)
  assert s.surest == pytest.approx(noise, abs=0.05)
  low, high = s.report["surest_interval"]
  assert low < noise < high


def test_no_bound_is_claimed():
  """With Bradley–Terry judges and the true reward as the scorer, both estimates are
  far below the share of flipped labels, and the report states the assumption they need."""
  rng = np.random.default_rng(0)
  size = np.abs(rng.normal(size=5000)) * 1.5
  flipped = rng.random(5000) < 1 / (1 + np.exp(size))
  s = denoise.suspect(examples_of(5000), np.where(flipped, -size, size))
  assert max(s.noise_rate, s.surest, s.report["surest_interval"][1]) < flipped.mean() - 0.05
  assert s.report["assumes"] == denoise.ASSUMES
  # With few pairs the surest tenth has six, and its interval is wide.
  wide = denoise.suspect(examples_of(60), np.where(np.arange(60) % 5 == 4, -0.1, 2.0))
  assert (wide.surest, wide.report["surest_pairs"]) == (0.0, 6)
  assert wide.report["surest_interval"][1] > 0.3
  assert flipped[s.ranked[: s.count]].mean() > 0.99


def soft(example, p):
  """The example with the preference p of its first response; None = a tie."""
  if p is None:
    return dataclasses.replace(example, labels=(0.0, 0.0), ties=((0.0, 1.0), (1.0, 0.0)))
  return dataclasses.replace(example, labels=(p, 1 - p), pairs=((0.0, p), (1 - p, 0.0)))


def test_a_label_is_what_the_preference_says():
  """Rows whose second response is preferred, and ties, against the same rows in plain order."""
  examples = examples_of(60)
  margins = np.where(np.arange(60) % 9 == 4, -2.0, np.linspace(0.5, 3, 60))
  plain = denoise.suspect(examples, margins)
  turned = [soft(e, 0.2) if i % 2 else e for i, e in enumerate(examples)]
  signs = np.where(np.arange(60) % 2, -1, 1)
  tied = [soft(e, None) for e in examples_of(7)]
  found = denoise.suspect([*turned, *tied], np.concatenate([margins * signs, np.full(7, -9.0)]))
  assert found.report == plain.report
  assert (found.count, found.noise_rate) == (plain.count, plain.noise_rate)
  assert found.probability.tolist() == [*plain.probability.tolist(), *[0.5] * 7]
  assert found.ranked[: found.count].tolist() == plain.ranked[: plain.count].tolist()
  with pytest.raises(DataError, match="all 7 pairs are ties"):
    denoise.suspect(tied, np.ones(7))
  with pytest.raises(ValueError, match="scores_chosen"):
    denoise.suspect(examples, np.ones(1))


def test_a_coin_is_refused():
  rng = np.random.default_rng(2)
  with pytest.raises(DataError, match="no better than a coin"):
    denoise.suspect(examples_of(500), rng.normal(0, 1, 500))
  with pytest.raises(DataError, match="no better than a coin"):
    denoise.suspect(examples_of(500), -np.ones(500))


def book_of(n):
  rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)]
  return Ledger(rows, examples_of(n))


@pytest.mark.parametrize("policy", denoise.POLICIES)
def test_policies(policy):
  book = book_of(42)
  book.drop(0, "before", "")
  margins = np.full(41, 1.0)
  margins[[4, 9]] = -3.0  # Rows 5 and 10, as one row was dropped before.
  s = denoise.suspect([book.examples[i] for i in book.kept], margins)
  done = denoise.apply(book, s, policy, threshold=0.2, weight=0.25)
  assert done["flagged"] == 2
  counts = book.counts()
  rows = {"read": 42, "kept": 41, "dropped": 1, "changed": 0}
  if policy == "drop":
    assert counts["rows"] == rows | {"kept": 39, "dropped": 3}
    assert counts["dropped"]["suspected_flip"] == 2
    assert [e.origin for e in book.dropped[1:]] == ["f:5", "f:10"]
  elif policy == "none":
    assert counts["rows"] == rows
    assert counts["noted"] == {"suspected_flip": 2}
  else:
    assert counts["rows"] == rows | {"changed": 2}
    assert [e.origin for e in book.changed] == ["f:5", "f:10"]
    if policy == "flip":
      assert book.rows[5]["chosen"] == "bad 5"
      assert book.examples[10].responses == ("bad 10", "good 10")
    else:
      assert book.rows[5]["weight"] == 0.25
    assert book.rows[6] == {"prompt": "p6", "chosen": "good 6", "rejected": "bad 6"}


def test_by_count():
  book = book_of(100)
  margins = np.full(100, 1.0)
  margins[:20] = -np.linspace(3, 0.1, 20)
  s = denoise.suspect(book.examples, margins)
  done = denoise.apply(book, s, "drop", by="count")
  assert done["flagged"] == s.count == min(round(min(s.noise_rate, s.surest) * 100), 20)
  assert [e.origin for e in book.dropped] == [f"f:{i}" for i in range(s.count)]


def test_apply_refuses():
  book = book_of(42)
  s = denoise.suspect(book.examples, np.ones(42))
  for wrong, message in (
    ({"policy": "swap"}, "policy 'swap'"),
    ({"policy": "drop", "by": "rank"}, "by 'rank'"),
    ({"policy": "drop", "threshold": 0.7}, "threshold 0.7"),
    ({"policy": "downweight", "weight": 1.0}, "weight 1.0"),
  ):
    with pytest.raises(ValueError, match=message):
      denoise.apply(book, s, **wrong)
  book.drop(0, "x", "")
  with pytest.raises(ValueError, match="a suspicion of 42 rows; 41 are kept"):
    denoise.apply(book, s, "drop")


def test_content_model_is_l2_logistic_regression():
  linear_model = pytest.importorskip("sklearn.linear_model")
  sparse = pytest.importorskip("scipy.sparse")
  model = ContentModel(l2=2.0, bits=12)
  x = model.differences(World().pairs("train", 150, 0))
  w = fit_logistic(x, 2.0, tolerance=1e-8)
  matrix = sparse.csr_matrix((x.value, (x.row, x.column)), shape=x.shape)
  assert x.times(w) == pytest.approx(matrix @ w)
  assert x.transposed_times(x.times(w)) == pytest.approx(matrix.T @ (matrix @ w))
  # sklearn needs two classes, so each pair is given in both orders with half the weight.
  both, y = sparse.vstack([matrix, -matrix]), np.r_[np.ones(150), np.zeros(150)]
  oracle = linear_model.LogisticRegression(C=1 / 2.0, fit_intercept=False, tol=1e-10, max_iter=5000)
  oracle.fit(both, y, sample_weight=np.full(300, 0.5))
  assert w == pytest.approx(oracle.coef_[0], abs=1e-4)


def test_content_model_learns_what_the_labels_say():
  examples = World(judge_temperature=0.0).pairs("train", 60, 0)
  train, test = examples[:50], examples[50:]
  margins = ContentModel(bits=12)(train, test)
  # Preferences below 1/2 of exchanged responses are the same judgements.
  turned = [soft(dataclasses.replace(e, responses=e.responses[::-1]), 0.0) for e in train]
  assert ContentModel(bits=12)(turned, test) == pytest.approx(margins, abs=1e-3)
  # From ties alone nothing is learned.
  assert not ContentModel(bits=12)([soft(e, None) for e in train], test).any()


@pytest.mark.slow
def test_content_model_learns_and_has_no_side():
  examples = World(judge_temperature=0.0).pairs("train", 800, 0)
  margins = ContentModel()(examples[:600], examples[600:])
  assert (margins > 0).mean() > 0.65  # Measured: 0.72. Chance plus 3 standard errors is 0.61.
  swapped = [dataclasses.replace(e, responses=e.responses[::-1]) for e in examples]
  assert ContentModel()(swapped[:600], examples[600:]) == pytest.approx(-margins, abs=0.02)
  model = ContentModel()
  assert (model(examples[:600], examples[600:]) == margins).all()
  assert (model(examples[:600], examples[600:]) == margins).all()  # The features are cached by now.
  with pytest.raises(ValueError, match="l2 is 0"):
    fit_logistic(model.differences(examples[:3]), 0)


def test_examples_written_for_a_fold_read_back(tmp_path):
  messages = World().pairs("train", 3, 0)
  strings = World().pairs("train", 3, 0, messages=False)
  weighed = [dataclasses.replace(e, weight=0.25, margin=1.5) for e in strings]
  judged = [soft(e, p) for e, p in zip(strings, (0.6, 0.25, None), strict=True)]
  for examples in (messages, strings, weighed, judged):
    write_examples(tmp_path / "x.jsonl", examples)
    again = load(tmp_path / "x.jsonl", report=Report(strict=True), format="pair")
    fields = [(e.prompt, e.responses, e.weight, e.margin, e.conversation) for e in again]
    expected = [(e.prompt, e.responses, e.weight, e.margin) for e in examples]
    assert [f[:4] for f in fields] == expected
    labels = [(e.labels, e.pairs, e.ties) for e in again]
    assert labels == [(e.labels, e.pairs, e.ties) for e in examples]
  votes = Example("p", ("a", "b"), (0.0, 1.0), kind="ranking", pairs=((0.0, 1.0), (3.0, 0.0)))
  write_examples(tmp_path / "x.jsonl", [votes])
  (again,) = load(tmp_path / "x.jsonl", report=Report(strict=True), format="pair")
  assert again.labels == (0.25, 0.75)


def test_a_pairs_features_are_cut_to_length_one():
  """One that differs in much does not outweigh others; one that differs in little stays small."""
  long = Example("p", (" a few words in an order", " other ones entirely"), (1.0, 0.0))
  found = ContentModel().differences([long])
  assert np.linalg.norm(found.value) == pytest.approx(1, rel=1e-6)
  same = Example("p", (" a few words", " a few words"), (1.0, 0.0))
  assert not len(ContentModel().differences([same]).value)
  repeated = " " + "a b " * 500
  near = Example("p", (repeated, repeated + "a b "), (1.0, 0.0))
  value = ContentModel().differences([near]).value
  assert 0 < np.linalg.norm(value) < 0.02  # each feature: log(1 + 501) - log(1 + 500)
