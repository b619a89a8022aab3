"""Losses against their formulas, written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.losses import LOSSES, REGULARISERS, logistic
from rm_jax.losses.regularisers import centering, l2


def nll(x):
  """−log σ(x)."""
  return math.log1p(math.exp(-x))


def pair(chosen, rejected):
  return jnp.asarray([chosen, rejected], jnp.float32)


ALL = jnp.asarray([True, True])
LABELS = jnp.asarray([1.0, 0.0])


def test_logistic_is_bradley_terry():
  assert logistic(pair(1.2, 0.5), LABELS, where=ALL) == pytest.approx(nll(0.7), rel=1e-6)
  # The order of the list does not matter, the labels do.
  flipped = logistic(pair(0.5, 1.2), jnp.asarray([0.0, 1.0]), where=ALL)
  assert flipped == pytest.approx(nll(0.7), rel=1e-6)


def test_margin_and_smoothing():
  value = logistic(pair(1.2, 0.5), LABELS, where=ALL, margin=0.3, smoothing=0.1)
  assert value == pytest.approx(0.9 * nll(0.4) + 0.1 * nll(-0.4), rel=1e-6)


def test_margins_are_a_pairs_own_and_never_broadcast():
  # TRL's formula on the fixture that a [B, 1] - [B] broadcast gets wrong (1.600068).
  chosen, rejected, margin = [1, 2, 3], [0.5, 1.5, 3.5], [0.1, 1, 3]
  scores = jnp.asarray([chosen, rejected], jnp.float32).T
  margins = jnp.broadcast_to(jnp.asarray(margin)[:, None, None], (3, 2, 2))
  labels = jnp.broadcast_to(LABELS, (3, 2))
  value = logistic(scores, labels, where=labels >= 0, pair_margin=margins)
  assert value.shape == (3,)
  expected = [nll(c - r - m) for c, r, m in zip(chosen, rejected, margin, strict=True)]
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert float(value.mean()) == pytest.approx(1.672281, abs=1e-6)
  with pytest.raises(ValueError, match="pair_margin"):
    logistic(scores, labels, where=labels >= 0, pair_margin=jnp.asarray(margin))


def test_a_ranking_is_the_mean_of_its_pairs_and_ties_make_none():
  scores, labels = jnp.asarray([0.1, 0.9, 0.4]), jnp.asarray([2.0, 1.0, 1.0])
  value = logistic(scores, labels, where=jnp.ones(3, bool))
  assert value == pytest.approx((nll(-0.8) + nll(-0.3)) / 2, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
  def test_extreme_scores_never_give_nan(self, name):
    for big in (1e37, -1e37):
      value, gradient = jax.value_and_grad(lambda s: LOSSES[name](s, LABELS, where=ALL))(
        pair(big, -big)
      )
      assert np.isfinite(value)
      assert np.isfinite(gradient).all()

  def test_masked_entries_count_for_nothing(self, name):
    where = jnp.asarray([True, True, False])
    labels = jnp.asarray([1.0, 0.0, 9.0])

    def loss(scores):
      return LOSSES[name](scores, labels, where=where)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray([0.3, 0.1, jnp.nan]))
    assert value == pytest.approx(float(LOSSES[name](pair(0.3, 0.1), LABELS, where=ALL)), rel=1e-6)
    assert gradient[2] == 0
    assert np.isfinite(gradient).all()

  def test_all_masked_is_zero_with_zero_gradient(self, name):
    value, gradient = jax.value_and_grad(lambda s: LOSSES[name](s, LABELS, where=~ALL))(pair(1, 2))
    assert value == 0
    assert (gradient == 0).all()

  def test_any_batch_rank_jit_and_vmap(self, name):
    scores = jax.random.normal(jax.random.key(0), (2, 3, 4))
    labels = jax.random.normal(jax.random.key(1), (2, 3, 4))
    where = jax.random.bernoulli(jax.random.key(2), 0.8, (2, 3, 4))

    def loss(s, y, w):
      return LOSSES[name](s, y, where=w)

    whole = loss(scores, labels, where)
    assert whole.shape == (2, 3)
    np.testing.assert_allclose(jax.jit(loss)(scores, labels, where), whole, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(scores, labels, where), whole, rtol=1e-6)
    order = jnp.asarray([2, 0, 3, 1])
    shuffled = loss(scores[..., order], labels[..., order], where[..., order])
    np.testing.assert_allclose(shuffled, whole, rtol=1e-5)


def test_regularisers():
  assert set(REGULARISERS) == {"l2", "centering"}
  assert l2(pair(3, 1), where=ALL) == pytest.approx((9 + 1) / 2)
  assert centering(pair(3, -1), where=ALL) == pytest.approx((3 - 1) ** 2)
  only = jnp.asarray([True, False])
  assert l2(pair(3, jnp.nan), where=only) == 9
  assert centering(pair(3, jnp.nan), where=only) == 9
