"""Our losses beside other people's: Rax by its code, the field's trainers by their formulas."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.losses import LOSSES, REGULARISERS
from rm_jax.losses.likelihood import token_log_likelihood
from rm_jax.losses.moments import moments, penalty
from rm_jax.losses.regularisers import text_dpo, text_sft

K = 6
N = 12


# From 0 to K real ones a list, the first three lists full.
WHERE = np.arange(K) < (np.arange(N) % (K + 1))[:, None]
WHERE = np.random.default_rng(0).permuted(WHERE, axis=-1)
WHERE[:3] = True


def make_lists(labels=None, seed=1):
  """Scores [N, K], and labels: a fresh order in each list unless given."""
  rng = np.random.default_rng(seed)
  if labels is None:
    labels = rng.permuted(np.broadcast_to(np.arange(K), (N, K)), axis=-1)
  else:
    labels = labels(rng)
  return 2 * rng.normal(size=(N, K)).astype(np.float32), np.asarray(labels, np.float32)


def same_as_rax(name, theirs, labels=None, **options):
  """Value and gradient, a list at a time: Rax's mean pools the comparisons of a batch."""
  scores, labels = make_lists(labels)
  ours = LOSSES[name].bind(**options)

  @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
  def both(s, y, w):
    def batch(s):
      values = ours(s, y, where=w)
      return values.sum(), values

    def one_by_one(s):
      values = jax.lax.map(lambda x: theirs(x[0], x[1], where=x[2]), (s, y, w))
      return values.sum(), values

    return [jax.value_and_grad(f, has_aux=True)(s) for f in (batch, one_by_one)]

  with jax.numpy_rank_promotion("allow"):
    ((_, value), slope), ((_, expected), expected_slope) = both(scores, labels, WHERE)
  assert value.shape == expected.shape == (N,)
  assert float(jnp.max(expected)) > 0.5
  np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)
  np.testing.assert_allclose(slope, expected_slope, rtol=1e-5, atol=2e-6)


@pytest.fixture
def rax():
  return pytest.importorskip("rax", reason="the oracle of these tests is Rax: pip install rax")


def grades(rng):
  return rng.integers(0, 4, (N, K))


@pytest.mark.parametrize("labels", [None, grades], ids=["ranking", "grades"])
def test_logistic_is_raxs(rax, labels):
  same_as_rax("logistic", rax.pairwise_logistic_loss, labels)


@pytest.mark.parametrize("labels", [None, grades], ids=["ranking", "grades"])
def test_hinge_is_raxs(rax, labels):
  same_as_rax("hinge", rax.pairwise_hinge_loss, labels)


def test_listnet_is_raxs_softmax_of_the_labels_softmax(rax):
  def theirs(s, y, where):
    # The label distribution by hand: Rax's own helper divides labels by their sum.
    chances = jnp.where(where, jnp.exp(y), 0.0)
    chances /= jnp.maximum(chances.sum(), 1.0)
    return rax.softmax_loss(s, chances, where=where, reduce_fn=jnp.sum)

  same_as_rax("listnet", theirs, grades)


def test_best_of_k_is_raxs_softmax_of_the_best(rax):
  def theirs(s, y, where):
    best = where & (y == jnp.max(jnp.where(where, y, -jnp.inf)))
    best = best / jnp.maximum(best.sum(), 1)
    return rax.softmax_loss(s, best, where=where, reduce_fn=jnp.sum)

  same_as_rax("best_of_k", theirs, grades)


def test_plackett_luce_is_raxs_listmle_without_ties(rax):
  same_as_rax("plackett_luce", rax.listmle_loss)


def test_plackett_luce_of_ties_is_not_one_of_raxs_orders_but_between_them(rax):
  # Rax breaks ties by chance. A likelihood of the order unknown averages over them: Efron's
  # approximation lies among the six orders of three equals, and is the same for all six.
  scores = jnp.asarray([0.3, -0.4, 0.9, 0.1])
  labels = np.asarray([1.0, 1.0, 1.0, 0.0])
  ones = np.ones(4, bool)
  ours, theirs = [], []
  listmle = jax.jit(rax.listmle_loss)
  efron = jax.jit(lambda s, y: LOSSES["plackett_luce"](s, y, where=ones))
  with jax.numpy_rank_promotion("allow"):
    for order in itertools.permutations(range(3)):
      broken = labels.copy()
      broken[:3] += 0.1 * np.asarray(order)
      theirs.append(float(listmle(scores, broken)))
      moved = [*order, 3]
      ours.append(float(efron(scores[jnp.asarray(moved)], labels[moved])))
  np.testing.assert_allclose(ours, ours[0], rtol=1e-6)
  assert min(theirs) < ours[0] < max(theirs)


@pytest.mark.parametrize("mu", [0.0, 3.0])
def test_lambda_ndcg_is_raxs_lambda_weights(rax, mu):
  # Rax scales the weights by K, and counts gains from label 0: the lowest of each list here is 0.
  def labels(rng):
    y = rng.integers(1, 4, (N, K))
    y[np.arange(N), WHERE.argmax(-1)] = 0
    return y

  def weight(scores, labels, **more):
    rank = rax.dcg_lambdaweight(scores, labels, normalize=True, **more)
    distance = rax.dcg2_lambdaweight(scores, labels, normalize=True, **more)
    return jax.lax.stop_gradient((rank + mu * distance) / K)

  def theirs(s, y, where):
    return rax.pairwise_logistic_loss(s, y, where=where, lambdaweight_fn=weight, reduce_fn=jnp.sum)

  same_as_rax("lambda_ndcg", theirs, labels, mu=mu)


def test_bce_is_raxs_pointwise_sigmoid(rax):
  # Labels outside [0, 1] are clipped by both.
  same_as_rax("bce", rax.pointwise_sigmoid_loss, lambda rng: rng.uniform(-0.3, 1.3, (N, K)))


def test_mse_is_raxs(rax):
  same_as_rax("mse", rax.pointwise_mse_loss, lambda rng: rng.normal(size=(N, K)))


# The field's trainers, for pairs: their formulas of PEERS.md in numpy, float64. Each is the mean
# over the batch of what is one value a list here.

R = np.random.default_rng(7)
CHOSEN, REJECTED, MARGIN = 2 * R.normal(size=(3, 16))
SCORES = jnp.asarray(np.stack([CHOSEN, REJECTED], -1), jnp.float32)
LABELS = jnp.broadcast_to(jnp.asarray([1.0, 0.0]), SCORES.shape)
REAL = jnp.ones(SCORES.shape, bool)
# The rejected one's entries are never used: NaN there would show.
MARGINS = jnp.full((16, 2, 2), jnp.nan).at[:, 0, 1].set(jnp.asarray(MARGIN, jnp.float32))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def mean(name, scores=SCORES, labels=LABELS, where=REAL, **options):
  """The batch's mean over lists, as the training step takes it."""
  return float(
    jax.jit(functools.partial(LOSSES[name], **options))(scores, labels, where=where).mean()
  )


def close(value, expected):
  assert value == pytest.approx(float(expected), rel=1e-6, abs=1e-6)


def test_trl():
  penalty = jax.jit(REGULARISERS["centering"])(SCORES, where=REAL).mean()
  value = mean("logistic", pair_margin=MARGINS) + 0.01 * float(penalty)
  expected = -np.log(sigmoid(CHOSEN - REJECTED - MARGIN)).mean()
  close(value, expected + 0.01 * ((CHOSEN + REJECTED) ** 2).mean())


def test_trls_margin_fixture():
  scores = jnp.asarray([[1.0, 0.5], [2.0, 1.5], [3.0, 3.5]])
  margins = jnp.zeros((3, 2, 2)).at[:, 0, 1].set(jnp.asarray([0.1, 1.0, 3.0]))
  value = mean("logistic", scores, LABELS[:3], REAL[:3], pair_margin=margins)
  difference = np.asarray([1, 2, 3]) - np.asarray([0.5, 1.5, 3.5]) - np.asarray([0.1, 1, 3])
  close(value, -np.log(sigmoid(difference)).mean())
  assert value == pytest.approx(1.672281, abs=1e-6)


def test_openrlhf_pairwise_and_log_exp():
  expected = -np.log(sigmoid(CHOSEN - REJECTED - MARGIN)).mean()
  close(mean("logistic", pair_margin=MARGINS), expected)
  close(mean("logistic"), np.log(1 + np.exp(REJECTED - CHOSEN)).mean())


def test_nemo_rls_beta_is_a_temperature():
  for beta in (0.1, 2.5):
    expected = -np.log(sigmoid(beta * (CHOSEN - REJECTED))).mean()
    close(mean("logistic", temperature=1 / beta), expected)


def test_nemo_aligner_margin_bt_and_scaled_bt():
  # The strength s by which raters preferred the one to the other.
  nll = -np.log(sigmoid(CHOSEN - REJECTED - np.abs(MARGIN)))
  close(mean("logistic", pair_margin=jnp.abs(MARGINS)), nll.mean())
  scaled = np.abs(MARGIN) * -np.log(sigmoid(CHOSEN - REJECTED))
  close(mean("scaled_logistic", pair_margin=MARGINS), scaled.mean())


def test_nemo_aligner_regression():
  # Σ mask (ŷ - y)² / Σ mask over responses and attributes, where a rating of -100 says none.
  rng = np.random.default_rng(8)
  predicted, rating = rng.normal(size=(2, 5, 9))
  rating[rng.uniform(size=rating.shape) < 0.3] = -100
  mask = rating != -100
  expected = (mask * (predicted - rating) ** 2).sum() / mask.sum()
  labels = jnp.asarray(np.where(mask, rating, np.nan), jnp.float32)
  scores, where = jnp.asarray(predicted, jnp.float32), jnp.ones(9, bool)
  close(mean("attribute_mse", scores, labels, where), expected)
  one = (mask[0] * (predicted[0] - rating[0]) ** 2).sum() / mask[0].sum()
  close(mean("mse", scores[0], jnp.asarray(rating[0], jnp.float32), jnp.asarray(mask[0])), one)


def test_rlhflow_orm():
  y = (R.uniform(size=CHOSEN.shape) < 0.4).astype(np.float64)
  p = sigmoid(CHOSEN)
  labels = jnp.asarray(y, jnp.float32)[:, None]
  expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
  close(mean("bce", SCORES[:, :1], labels, REAL[:, :1]), expected)


def test_openrlhf_prms_soft_labels():
  # Cross-entropy over the logits of the two reward tokens, targets [p, 1 - p], at the placeholders;
  # our score of a step is the difference of the two logits.
  rng = np.random.default_rng(9)
  good, bad = rng.normal(size=(2, 7))
  p = rng.uniform(size=7)
  log_total = np.log(np.exp(good) + np.exp(bad))
  expected = -(p * (good - log_total) + (1 - p) * (bad - log_total)).mean()
  scores, labels = jnp.asarray(good - bad, jnp.float32), jnp.asarray(p, jnp.float32)
  close(mean("process", scores, labels, jnp.ones(7, bool)), expected)


def test_grms_text_regularisation():
  alpha, beta = 0.01, 0.1
  rng = np.random.default_rng(10)
  # log π of each chosen response's tokens, from hidden states [B, T, D] and a head [V, D].
  hidden, head = rng.normal(size=(16, 5, 4)), rng.normal(size=(11, 4))
  tokens = rng.integers(0, 11, (16, 5))
  logits = hidden @ head.T
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  total = np.take_along_axis(log_p, tokens[..., None], -1)[..., 0].sum(-1)

  @jax.jit
  def ours(hidden, head, tokens):
    chosen = token_log_likelihood(hidden, head, tokens, chunk=2).sum(-1)
    both = jnp.stack([chosen, jnp.full_like(chosen, -3.0)], -1)
    terms = [f(both, LABELS, where=REAL).mean() for f in (text_dpo, text_sft)]
    return [(1 - alpha) * LOSSES["logistic"](SCORES, LABELS, where=REAL).mean() + alpha * t
            for t in terms]  # fmt: skip

  dpo, sft = ours(*(jnp.asarray(x, jnp.float32) for x in (hidden, head)), jnp.asarray(tokens))
  reward = -np.log(sigmoid(CHOSEN - REJECTED)).mean()
  close(float(dpo), (1 - alpha) * reward + alpha * -np.log(sigmoid(beta * total)).mean())
  close(float(sft), (1 - alpha) * reward + alpha * -total.mean())


def test_odins_correlation_with_length():
  rng = np.random.default_rng(11)
  lengths = rng.integers(20, 400, SCORES.shape)
  rho = np.corrcoef(np.asarray(SCORES, np.float64).ravel(), lengths.ravel())[0, 1]
  value = jax.jit(lambda s, n: penalty(moments(s, n, where=REAL)))(SCORES, jnp.asarray(lengths))
  close(float(value) ** 0.5, abs(rho))
