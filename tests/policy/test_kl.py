"""Estimators of KL, and the adaptive coefficient, are those of the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.policy import kl

R = np.random.default_rng(0)
LOGP, REFERENCE = (R.normal(size=(2, 3, 5)).astype(np.float32) - 2 for _ in range(2))
WHERE = R.uniform(size=(2, 3, 5)) < 0.7


@pytest.mark.parametrize(
  ("estimator", "formula"),
  [
    ("k1", lambda d: d),
    ("k2", lambda d: d * d / 2),
    ("k3", lambda d: np.exp(-d) - 1 + d),
  ],
)
def test_estimators_are_schulmans(estimator, formula):
  got = kl.estimate(LOGP, REFERENCE, where=WHERE, estimator=estimator)
  expected = np.where(WHERE, formula(LOGP.astype(np.float64) - REFERENCE), 0)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_on_average_k1_and_k3_are_the_divergence_exactly():
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
  exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
  for estimator in ("k1", "k3"):
    each = kl.estimate(np.log(p), np.log(q), where=np.ones(3, bool), estimator=estimator)
    assert float(p @ np.asarray(each)) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
  ("estimator", "expected"),
  [
    ("k1", lambda p, q: np.zeros(3)),
    ("k2", lambda p, q: p * (np.log(p / q) - p @ np.log(p / q))),  # of KL(p ‖ q) by p's logits
    ("k3", lambda p, q: p - q),  # of KL(q ‖ p) by p's logits
  ],
)
def test_gradients_of_the_estimators_are_those_that_the_docstring_says(estimator, expected):
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])

  def one(logits, token):
    logp = jax.nn.log_softmax(logits)[token][None]
    return kl.estimate(
      logp, jnp.log(q)[token][None], where=jnp.ones(1, bool), estimator=estimator
    ).sum()

  each = jax.vmap(jax.grad(one), (None, 0))(jnp.log(p), jnp.arange(3))
  np.testing.assert_allclose(p @ np.asarray(each), expected(p, q), atol=1e-6)


@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
def test_what_does_not_count_adds_no_value_and_no_gradient(estimator):
  def total(logp):
    reference = jnp.where(WHERE, REFERENCE, jnp.inf)
    return kl.estimate(logp, reference, where=WHERE, estimator=estimator).sum()

  value, gradient = jax.value_and_grad(total)(jnp.where(WHERE, LOGP, jnp.nan))
  assert np.isfinite(value)
  assert (np.asarray(gradient)[~WHERE] == 0).all()
  assert np.isfinite(gradient).all()


def test_the_coefficient_moves_towards_the_target_by_at_most_two_percent():
  # Ziegler et al.: e = clip((KL - target) / target, -0.2, 0.2); beta (1 + 0.1 e).
  assert kl.adapted(0.5, 6.6, target=6.0) == pytest.approx(0.5 * (1 + 0.1 * 0.1))
  assert kl.adapted(0.5, 60.0, target=6.0) == pytest.approx(0.5 * 1.02)
  assert kl.adapted(0.5, 0.0, target=6.0) == pytest.approx(0.5 * 0.98)
  assert kl.adapted(0.5, 6.0, target=6.0) == 0.5
  assert kl.adapted(0.5, 9.0, target=6.0, rate=1.0, limit=0.3) == pytest.approx(0.5 * 1.3)


def test_what_cannot_be_is_refused():
  with pytest.raises(InputError, match="'k4'; expected one of k1, k2, k3"):
    kl.estimate(LOGP, REFERENCE, where=WHERE, estimator="k4")
  with pytest.raises(ValueError, match="reference"):
    kl.estimate(LOGP, REFERENCE[0], where=WHERE)
  for target in (0.0, math.inf, math.nan):
    with pytest.raises(InputError, match="target"):
      kl.adapted(0.5, 1.0, target=target)
  with pytest.raises(ValueError, match="nan"):
    kl.adapted(0.5, math.nan, target=1.0)
