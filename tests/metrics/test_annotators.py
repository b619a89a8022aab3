"""Annotators: alpha against the published worked examples, Dawid-Skene against known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from rm_jax.metrics.annotators import (
  LEVELS,
  alpha_interval,
  dawid_skene,
  krippendorff_alpha,
  logistic,
  share,
)

NAN = math.nan
Z95 = 1.959963984540054
# Krippendorff (2011), section E: four observers, twelve units, missing values.
FOUR = np.array(
  [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
  ]
).T


@pytest.mark.parametrize(
  ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_as_published(level, published):
  assert round(krippendorff_alpha(FOUR, level), 3) == published


def test_alpha_as_published_for_two_observers():
  # Section A, binary data; section B, nominal data, values as letters there.
  meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
  assert round(krippendorff_alpha(np.array([meg, owen]).T), 3) == 0.095
  ben, gerry = "aabbdcccedda", "babbbccceddd"
  letters = np.array([[ord(c) for c in word] for word in (ben, gerry)]).T
  assert round(krippendorff_alpha(letters), 3) == 0.692


def test_alpha_of_all_pairs_directly():
  """The observed and expected disagreement summed over pairs of ratings, without coincidences."""
  rng = np.random.default_rng(0)
  ratings = rng.integers(0, 4, (30, 5)).astype(float)
  ratings[rng.random(ratings.shape) < 0.4] = NAN
  units = [row[~np.isnan(row)] for row in ratings]
  units = [u for u in units if len(u) > 1]
  pooled = np.concatenate(units)
  observed = sum(((u[:, None] - u) ** 2).sum() / (len(u) - 1) for u in units) / len(pooled)
  chance = ((pooled[:, None] - pooled) ** 2).sum() / (len(pooled) * (len(pooled) - 1))
  assert krippendorff_alpha(ratings, "interval") == pytest.approx(1 - observed / chance)


def of_coincidences(ratings, level):
  """Alpha from the matrix of coincidences, as Krippendorff (2011) writes it."""
  values = np.unique(ratings[~np.isnan(ratings)])
  o = np.zeros((len(values), len(values)))
  for unit in ratings:
    at = np.searchsorted(values, unit[~np.isnan(unit)])
    for i in range(len(at)):
      for j in range(len(at)):
        if i != j:
          o[at[i], at[j]] += 1 / (len(at) - 1)
  n = o.sum(axis=1)
  ranked = np.array([[n[min(c, k) : max(c, k) + 1].sum() - (n[c] + n[k]) / 2 for k in range(len(n))]
                     for c in range(len(n))])  # fmt: skip
  apart = {
    "nominal": 1 - np.eye(len(n)),
    "ordinal": ranked**2,
    "interval": (values[:, None] - values) ** 2,
  }[level]
  return 1 - (n.sum() - 1) * (o * apart).sum() / (n @ apart @ n)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_is_that_of_the_coincidences(level):
  rng = np.random.default_rng(4)
  for unit in (1.0, 0.1, 1e9):
    ratings = np.round(rng.normal(size=(15, 4)) * 2) * unit + unit * 10
    ratings[rng.random(ratings.shape) < 0.4] = NAN
    for some in (ratings, FOUR):
      assert krippendorff_alpha(some, level) == pytest.approx(
        of_coincidences(some, level), abs=1e-12
      )


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_of_many_distinct_ratings_takes_no_matrix_of_them(level):
  rng = np.random.default_rng(5)
  truth = rng.normal(size=(30_000, 1))
  said = truth + rng.normal(size=(30_000, 2))  # 60,000 ratings, all different.
  alpha = krippendorff_alpha(said, level)
  if level == "nominal":
    assert alpha == pytest.approx(0, abs=1e-4)
  else:
    assert alpha == pytest.approx(
      0.5 if level == "interval" else 6 / math.pi * math.asin(0.25), abs=0.02
    )
  few = said[:50] * 1e-170  # Squares of these are 0 in float64.
  assert krippendorff_alpha(few, level) == pytest.approx(krippendorff_alpha(said[:50], level))


def test_alpha_at_its_ends():
  agree = np.array([[0, 0], [1, 1], [2, 2]], float)
  for level in LEVELS:
    assert krippendorff_alpha(agree, level) == pytest.approx(1)
  # Two values, no agreement: the observed disagreement is 1, the expected n / 2 / (n - 1), n = 4.
  assert krippendorff_alpha([[0, 1], [1, 0]]) == pytest.approx(1 - 1 / (2 / 3))
  rng = np.random.default_rng(1)
  assert abs(krippendorff_alpha(rng.integers(0, 3, (20_000, 3)))) < 0.02


def test_ordinal_depends_on_order_and_not_on_distance():
  stretched = np.where(np.isnan(FOUR), NAN, np.exp(FOUR))
  assert krippendorff_alpha(stretched, "ordinal") == pytest.approx(
    krippendorff_alpha(FOUR, "ordinal")
  )
  assert krippendorff_alpha(stretched, "interval") != pytest.approx(
    krippendorff_alpha(FOUR, "interval"), abs=1e-3
  )
  swapped = np.where(FOUR == 1, 5, np.where(FOUR == 5, 1, FOUR))
  assert krippendorff_alpha(swapped) == pytest.approx(krippendorff_alpha(FOUR))


def test_alpha_refuses():
  with pytest.raises(ValueError, match="0 / 0"):
    krippendorff_alpha([[1, 1], [1, 1]])
  with pytest.raises(ValueError, match="units with two or more are 2: alpha is 0 / 0"):
    krippendorff_alpha([[2, 2], [1, NAN]])
  with pytest.raises(ValueError, match="no unit has two ratings"):
    krippendorff_alpha([[1, NAN], [NAN, 2]])
  with pytest.raises(ValueError, match="no unit has two ratings"):
    krippendorff_alpha(np.full((2, 2), NAN))
  with pytest.raises(ValueError, match="'ratio'; expected one of nominal"):
    krippendorff_alpha(FOUR, "ratio")
  with pytest.raises(ValueError, match=r"shape \(4,\)"):
    krippendorff_alpha([1, 2, 3, 4])
  with pytest.raises(ValueError, match="infinite"):
    krippendorff_alpha([[1, math.inf], [1, 2]])


def test_alpha_interval_covers():
  """In 100 samples of 60 units, 80 or more of the 90 % intervals cover the alpha of a large sample.

  Binomial(100, 0.9) is below 80 once in 1,000. In samples this small, the percentile bootstrap
  covers a little less often than it claims.
  """
  rng = np.random.default_rng(2)

  def draw(n):
    truth = rng.integers(0, 3, (n, 1))
    said = np.where(rng.random((n, 3)) < 0.8, truth, rng.integers(0, 3, (n, 3)))
    return said.astype(float)

  truth = krippendorff_alpha(draw(200_000))
  covered = 0
  for seed in range(100):
    low, high = alpha_interval(draw(60), range(60), confidence=0.9, resamples=200, seed=seed).ends
    covered += low <= truth <= high
  assert covered >= 80


def test_alpha_interval_resamples_clusters():
  rng = np.random.default_rng(3)
  truth = rng.integers(0, 2, (40, 1))
  said = np.where(rng.random((40, 3)) < 0.8, truth, 1 - truth).astype(float)
  tenfold = np.repeat(said, 10, axis=0)  # Ten copies of the units add no information.
  clusters = np.repeat(np.arange(40), 10).tolist()

  def width(*args):
    low, high = alpha_interval(*args).ends
    return high - low

  assert width(tenfold, clusters) == pytest.approx(width(said, range(40)), rel=0.15)
  assert width(tenfold, range(400)) < 0.5 * width(tenfold, clusters)
  assert alpha_interval(said, [0] * 40).why == "1 conversation: an interval wants 5"
  few = alpha_interval(said[:12], range(12))
  assert few.method == "Student's t, cluster jackknife"
  assert few.ends[0] < krippendorff_alpha(said[:12]) < few.ends[1] < 1
  with pytest.raises(ValueError, match="39 cluster labels for 40"):
    alpha_interval(said, range(39))


def test_units_of_one_rating_do_not_count_as_clusters():
  rng = np.random.default_rng(0)
  said = rng.integers(0, 2, (8, 2)).astype(float)
  alone = np.c_[rng.integers(0, 2, 40), np.full(40, NAN)]
  few = alpha_interval(said, range(8))
  assert few.method == "Student's t, cluster jackknife"
  assert alpha_interval(np.r_[alone, said], range(48)) == few


def simulate(n, confusions, prior, seed=0, missing=0.0):
  rng = np.random.default_rng(seed)
  truth = rng.choice(len(prior), n, p=prior)
  labels = np.stack(
    [[rng.choice(len(prior), p=c[t]) for t in truth] for c in np.asarray(confusions)], 1
  )
  labels[rng.random(labels.shape) < missing] = -1
  return labels[(labels >= 0).any(axis=1)], truth


CONFUSIONS = [
  [[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]],
  [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.15, 0.15, 0.7]],
  [[0.95, 0.05, 0.0], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]],
  [[0.6, 0.2, 0.2], [0.1, 0.9, 0.0], [0.2, 0.0, 0.8]],
  [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]],
]
PRIOR = np.array([0.5, 0.3, 0.2])


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_dawid_skene_recovers_what_was_simulated(missing):
  labels, _ = simulate(6000, CONFUSIONS, PRIOR, missing=missing)
  fit = dawid_skene(labels, 3)
  assert fit.converged
  # If the truth were known, a cell's standard error were at most √(0.25/(6000·0.2·0.7)) = 0.017.
  assert np.abs(fit.confusion - CONFUSIONS).max() < 0.1
  assert np.abs(fit.prior - PRIOR).max() < 0.04
  true = np.einsum("k,akk->a", PRIOR, CONFUSIONS)
  assert np.abs(fit.reliability - true).max() < 0.03
  assert np.argsort(fit.reliability).tolist() == np.argsort(true).tolist()
  assert np.allclose(fit.posterior.sum(axis=1), 1)


@pytest.mark.slow
def test_dawid_skene_beats_the_vote():
  """One good annotator among four bad ones: the majority vote follows the bad ones."""
  good, bad = [[0.95, 0.05], [0.05, 0.95]], [[0.6, 0.4], [0.4, 0.6]]
  labels, truth = simulate(3000, [good, bad, bad, bad, bad], [0.5, 0.5])
  fit = dawid_skene(labels, 2)
  vote = labels.sum(axis=1) >= 3
  assert (fit.posterior.argmax(axis=1) == truth).mean() > (vote == truth).mean() + 0.1
  assert fit.reliability[0] > 0.9


def test_dawid_skene_likelihood_never_falls_and_is_the_formula():
  for seed in range(5):
    labels, _ = simulate(200, CONFUSIONS, PRIOR, seed=seed, missing=0.4)
    fit = dawid_skene(labels, 3, seed=seed, tolerance=1e-12, iterations=300)
    rises = np.diff(fit.log_likelihood)
    assert (rises >= -1e-9).all()
    assert rises[0] > 1e-3
  total = 0.0
  for row in labels:
    of_class = [
      fit.prior[k] * math.prod(fit.confusion[a, k, x] for a, x in enumerate(row) if x >= 0)
      for k in range(3)
    ]
    total += math.log(sum(of_class))
  assert fit.log_likelihood[-1] == pytest.approx(total, abs=1e-6)


def test_dawid_skene_says_when_it_did_not_converge_and_repeats_itself():
  labels, _ = simulate(300, CONFUSIONS, PRIOR)
  assert not dawid_skene(labels, 3, iterations=2).converged
  one, other = dawid_skene(labels, 3, seed=4), dawid_skene(labels, 3, seed=4)
  assert one.log_likelihood == other.log_likelihood
  # More starts never give a lower likelihood.
  assert dawid_skene(labels, 3).log_likelihood[-1] >= (
    dawid_skene(labels, 3, starts=1).log_likelihood[-1] - 1e-3
  )


def test_dawid_skene_tries_as_many_starts_as_asked_and_says_which_won():
  labels = np.random.default_rng(1).integers(0, 2, (12, 3))  # noise: the maxima are many
  one, two = (dawid_skene(labels, 2, starts=n, iterations=100) for n in (1, 2))
  assert (one.start, two.start) == (0, 1)
  assert two.log_likelihood[-1] > one.log_likelihood[-1] + 1


def test_dawid_skene_of_perfect_annotators_and_an_unused_class():
  labels = np.repeat(np.array([0, 1, 0, 1, 1])[:, None], 3, axis=1)
  fit = dawid_skene(labels, 3)
  assert fit.reliability == pytest.approx([1, 1, 1])
  assert fit.prior == pytest.approx([0.4, 0.6, 0])
  assert np.isfinite(fit.confusion).all()


def test_dawid_skene_refuses():
  with pytest.raises(ValueError, match=r"labels in 0 .. 3; expected -1 .. 2"):
    dawid_skene([[0, 3], [1, 1]], 3)
  with pytest.raises(ValueError, match=r"item \[1\] has no label"):
    dawid_skene([[0, 1], [-1, -1]], 2)
  with pytest.raises(ValueError, match=r"annotator \[1\] has no label"):
    dawid_skene([[0, -1], [1, -1]], 2)
  with pytest.raises(ValueError, match=r"1 annotator\(s\)"):
    dawid_skene([[0], [1]], 2)
  with pytest.raises(ValueError, match="float64"):
    dawid_skene([[0.0, 1.0]], 2)
  with pytest.raises(ValueError, match="has no label"):
    dawid_skene(np.zeros((0, 2), int), 2)


def test_share():
  found = share([1, 0, 1, 1] * 30, range(120))
  assert found["share"] == 0.75
  assert found["method"] == "cluster bootstrap"
  assert found["interval"][0] < 0.75 < found["interval"][1] <= 1
  assert share([1] * 5, "abcde")["interval"][0] == pytest.approx(5 / (5 + Z95**2))  # Wilson, 5 of 5
  assert share([1, 0], "aa") == {
    "share": 0.5,
    "interval": None,
    "n": 2,
    "clusters": 1,
    "method": "none",
    "why": "1 conversation: an interval wants 5",
  }
  assert share([], []) == {
    "share": None,
    "interval": None,
    "n": 0,
    "clusters": 0,
    "method": "none",
    "why": "0 conversations: an interval wants 5",
  }
  with pytest.raises(ValueError, match="1 cluster labels for 0 values"):
    share([], [0])


def test_logistic_against_sklearn_and_a_sandwich_by_hand():
  linear_model = pytest.importorskip("sklearn.linear_model")
  rng = np.random.default_rng(0)
  x = np.c_[np.ones(500), rng.standard_normal((500, 2))]
  y = (rng.random(500) < 1 / (1 + np.exp(-x @ [0.3, -1.0, 2.0]))).astype(float)
  found = logistic(x, y, range(500))
  model = linear_model.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
  beta = model.fit(x, y).coef_[0]
  assert [f["slope"] for f in found] == pytest.approx(beta, abs=1e-5)
  p = 1 / (1 + np.exp(-x @ beta))
  bread = np.linalg.inv((x.T * (p * (1 - p))) @ x)
  meat = (x.T * (y - p) ** 2) @ x
  error = np.sqrt(np.diag(bread @ meat @ bread) * 500 / 499)
  assert [f["standard_error"] for f in found] == pytest.approx(error, rel=1e-4)
  assert found[1]["interval"] == pytest.approx(
    [beta[1] - Z95 * error[1], beta[1] + Z95 * error[1]], abs=1e-4
  )
  # A copy of each row in the same cluster adds no information.
  twice = logistic(np.repeat(x, 2, 0), np.repeat(y, 2), np.repeat(np.arange(500), 2).tolist())
  assert [f["standard_error"] for f in twice] == pytest.approx(error, rel=1e-3)


def test_logistic_of_few_clusters_by_hand():
  """Eight clusters: Student's t, and the changes of the slopes when one is left out; four: none."""
  rng = np.random.default_rng(2)
  x = np.c_[np.ones(96), rng.standard_normal(96)]
  y = (rng.random(96) < 1 / (1 + np.exp(-x @ [0.3, 1.0]))).astype(float)
  clusters = np.arange(96) // 12
  found = logistic(x, y, clusters.tolist())
  beta = np.asarray([f["slope"] for f in found])
  p = 1 / (1 + np.exp(-x @ beta))
  score_NF, weight_N = x * (y - p)[:, None], p * (1 - p)
  assert np.abs(score_NF.sum(0)).max() < 1e-6  # the maximum of the likelihood
  changes = [
    np.linalg.solve(
      (x[clusters != g].T * weight_N[clusters != g]) @ x[clusters != g],
      score_NF[clusters == g].sum(0),
    )
    for g in range(8)
  ]
  error = np.sqrt(7 / 8 * np.square(changes).sum(0))
  assert [f["standard_error"] for f in found] == pytest.approx(error, rel=1e-6)
  half = stats.t.ppf(0.975, 7) * error
  for f, b, h in zip(found, beta, half, strict=True):
    assert f["interval"] == pytest.approx([b - h, b + h], rel=1e-6)
  for one in logistic(x, y, (np.arange(96) // 24).tolist()):
    assert (one["interval"], one["standard_error"]) == (None, None)
    assert one["why"] == "4 conversations: an interval wants 5"


@pytest.mark.parametrize("conversations", [12, 60])
@pytest.mark.parametrize("unit", [1e-8, 1e-6, 1e5, 1e8])
def test_logistic_does_not_depend_on_the_units_of_a_feature(unit, conversations):
  rng = np.random.default_rng(0)
  x = np.c_[np.ones(120), rng.standard_normal(120)]
  y = (rng.random(120) < 1 / (1 + np.exp(-x @ [0.3, 1.0]))).astype(float)
  clusters = (np.arange(120) % conversations).tolist()
  plain = logistic(x, y, clusters)
  for column in (0, 1):
    units = np.where(np.arange(2) == column, unit, 1.0)
    found = logistic(x * units, y, clusters)
    for f, want, scale in zip(found, plain, units, strict=True):
      for key in ("slope", "standard_error", "interval"):
        assert np.multiply(f[key], scale) == pytest.approx(np.asarray(want[key]), rel=1e-7)
  with pytest.raises(ValueError, match="collinear"):
    logistic(np.c_[x, unit * x[:, 1]], y, clusters)
  with pytest.raises(ValueError, match="separate"):
    logistic(x * [1, unit], (x[:, 1] > 0).astype(float), clusters)


@pytest.mark.parametrize("conversations", [12, 60])
def test_logistic_of_a_feature_that_is_far_from_0(conversations):
  """Times in seconds: the slope is that of the times after the first, for any labels."""
  rng = np.random.default_rng(0)
  after = np.round(rng.normal(size=120) * 100)
  y = rng.integers(0, 2, 120)
  clusters = (np.arange(120) % conversations).tolist()
  ones = np.ones(120)
  plain = logistic(np.c_[ones, after], y, clusters)[1]
  for features, at in ((np.c_[ones, 1.7e9 + after], 1), (np.c_[1.7e9 + after, ones], 0)):
    found = logistic(features, y, clusters)[at]
    for key in ("slope", "standard_error", "interval"):
      assert found[key] == pytest.approx(plain[key], rel=1e-6)


def test_logistic_has_slopes_unless_the_outcomes_are_separated():
  """Heavy-tailed features, against a linear programme that looks for a separating direction."""
  optimize = pytest.importorskip("scipy.optimize", reason="scipy is the oracle")
  rng = np.random.default_rng(0)
  told = []
  for _ in range(40):
    n = int(rng.integers(20, 60))
    x = np.c_[np.ones(n), rng.standard_t(1.2, size=(n, 2)) * 10.0 ** rng.integers(-3, 4, 2)]
    logit = x @ (3 * rng.normal(size=3) / np.abs(x).mean(axis=0))
    y = (rng.random(n) < 1 / (1 + np.exp(-np.clip(logit, -500, 500)))).astype(float)
    unit = x / np.abs(x).max(axis=0)
    signed = unit * (2 * y - 1)[:, None]
    most = optimize.linprog(-signed.sum(axis=0), -signed, np.zeros(n), bounds=[(-1, 1)] * 3).fun
    told.append(-most > 1e-9)
    if told[-1]:
      with pytest.raises(ValueError, match="separate"):
        logistic(x, y, range(n))
    else:
      slopes = [f["slope"] for f in logistic(x, y, range(n))]
      p = 0.5 * (1 + np.tanh(x @ slopes / 2))
      assert unit.T @ (y - p) == pytest.approx(0, abs=1e-8)
  assert 5 < sum(told) < 35


def test_logistic_refuses():
  x = np.c_[np.ones(20), np.arange(20.0)]
  with pytest.raises(ValueError, match="separate"):
    logistic(x, (np.arange(20) > 9).astype(float), range(20))
  with pytest.raises(ValueError, match="collinear"):
    logistic(np.c_[x, x[:, 1]], np.arange(20) % 2, range(20))
  with pytest.raises(ValueError, match="2 clusters for 2 slopes"):
    logistic(x, np.arange(20) % 2, [0, 1] * 10)
  with pytest.raises(ValueError, match=r"level is 1\.5; expected it in \(0, 1\)"):
    logistic(x, np.arange(20) % 2, range(20), level=1.5)
  with pytest.raises(ValueError, match="outcomes of 0 and 1"):
    logistic(x, np.full(20, 0.5), range(20))
