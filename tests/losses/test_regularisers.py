"""Penalties on scores and texts as formulas, and the one on a step as numpy's correlation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.losses import REGULARISERS
from rm_jax.losses.moments import linearised, moments, penalty
from rm_jax.losses.regularisers import centering, l2, spread, text_dpo, text_sft

nan = math.nan
# Compilation is most of this file's time: unoptimised is twice as fast.
fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
WHERE = jnp.asarray([True, True, False])


def nll(x):
  """−log σ(x)."""
  return math.log1p(math.exp(-x))


def check(f, x, where, expected, slope):
  """Value and gradient of f at x, the same in a batch beside an empty list, for any content."""
  x = jnp.asarray(x, jnp.float32)
  batch, wheres = jnp.stack([x, x, x]), jnp.stack([where, where, jnp.zeros_like(where)])
  batch = batch.at[1].set(jnp.where(where, x, nan)).at[2].set(jnp.asarray([nan, 1e37, jnp.inf]))

  def total(x):
    values = f(x, wheres)
    return values.sum(), values

  (_, value), gradient = fast(jax.value_and_grad(total, has_aux=True))(batch)
  np.testing.assert_allclose(value, [expected, expected, 0], rtol=2e-6, atol=1e-7)
  np.testing.assert_allclose(gradient, [slope, slope, [0, 0, 0]], rtol=2e-6, atol=1e-7)
  assert value.dtype == jnp.float32
  assert jax.eval_shape(f, batch.astype(jnp.bfloat16), wheres).dtype == jnp.float32


SCORES = [3.0, -0.5, 7.0]
ALL = jnp.ones(3, bool)


@pytest.mark.parametrize(
  ("f", "where", "expected", "slope"),
  [
    (l2, WHERE, (3**2 + 0.5**2) / 2, [3, -0.5, 0]),
    (l2, ALL, (3**2 + 0.5**2 + 7**2) / 3, [2, -1 / 3, 14 / 3]),
    (centering, WHERE, (3 - 0.5) ** 2, [5, 5, 0]),
    (centering, ALL, (3 - 0.5 + 7) ** 2, [19, 19, 19]),
    (spread, WHERE, 0, [0, 0, 0]),
    (lambda x, where: spread(x, where=where, limit=2.0), WHERE, 1 / 2, [1, 0, 0]),
    (lambda x, where: spread(x, where=where, limit=0.25), WHERE, (2.75**2 + 0.25**2) / 2,
     [2.75, -0.25, 0]),
  ],
)  # fmt: skip
def test_penalties_on_scores(f, where, expected, slope):
  if f in REGULARISERS.values():
    check(lambda x, w: f(x, where=w), SCORES, where, expected, slope)
  else:
    check(f, SCORES, where, expected, slope)


def test_the_registered_penalties():
  assert {"l2": l2, "centering": centering, "spread": spread} == REGULARISERS


LIKELIHOOD = [-12.0, -20.0, -3.0]  # the third not real


def spoil(where, x, real_shape):
  x = jnp.broadcast_to(jnp.asarray(x, jnp.float32), real_shape)
  return jnp.where(where, x, nan)


@pytest.mark.parametrize(
  ("options", "labels", "expected", "slope"),
  [
    ({}, [1, 0, 9], 12, [-1, 0, 0]),
    ({}, [0, 1, 9], 20, [0, -1, 0]),
    ({"tokens": [4, 8, 2]}, [0, 1, 9], 20 / 8, [0, -1 / 8, 0]),
    ({"tokens": [0, 8, 2]}, [1, 0, 9], 12, [-1, 0, 0]),
    ({}, [1, 1, 9], (12 + 20) / 2, [-0.5, -0.5, 0]),
  ],
)
def test_text_sft(options, labels, expected, slope):
  def f(x, where):
    extra = {n: spoil(where, v, x.shape) for n, v in options.items()}
    return text_sft(x, spoil(where, labels, x.shape), where=where, **extra)

  check(f, LIKELIHOOD, WHERE, expected, slope)


@pytest.mark.parametrize(
  ("options", "labels", "expected", "slope"),
  [
    ({}, [1, 0, 9], nll(-1.2), [-0.1 / (1 + math.exp(-1.2)), 0, 0]),
    ({"beta": 0.5}, [0, 1, 9], nll(-10), [0, -0.5 / (1 + math.exp(-10)), 0]),
    ({"reference": [-14, -19, 5]}, [1, 0, 9], nll(0.2), [-0.1 / (1 + math.exp(0.2)), 0, 0]),
    ({}, [1, 1, 9], (nll(-1.2) + nll(-2)) / 2,
     [-0.05 / (1 + math.exp(-1.2)), -0.05 / (1 + math.exp(-2)), 0]),
  ],
)  # fmt: skip
def test_text_dpo(options, labels, expected, slope):
  beta = options.get("beta", 0.1)

  def f(x, where):
    extra = {n: spoil(where, v, x.shape) for n, v in options.items() if n != "beta"}
    return text_dpo(x, spoil(where, labels, x.shape), where=where, beta=beta, **extra)

  check(f, LIKELIHOOD, WHERE, expected, slope)


def test_a_long_unlikely_text_pulls_with_a_bounded_slope():
  slope = jax.grad(lambda x: text_dpo(x, jnp.ones(1), where=jnp.ones(1, bool)))(jnp.full(1, -1e37))
  np.testing.assert_allclose(slope, [-0.1], rtol=2e-6)


def test_what_does_not_fit_is_an_error():
  x, where = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
  with pytest.raises(ValueError, match="where"):
    l2(x, where=where[:1])
  with pytest.raises(ValueError, match="limit"):
    spread(x, where=where, limit=-1.0)
  with pytest.raises(ValueError, match="labels"):
    text_sft(x[0], x, where=where[0])
  with pytest.raises(ValueError, match="tokens"):
    text_sft(x, x, where=where, tokens=jnp.ones(3))
  with pytest.raises(ValueError, match="labels"):
    text_dpo(x, x, where=where, reference=jnp.ones(3))
  with pytest.raises(ValueError, match="beta"):
    text_dpo(x, x, where=where, beta=0.0)
  with pytest.raises(ValueError, match="lengths"):
    moments(x, x[:1], where=where)
  with pytest.raises(ValueError, match="where"):
    moments(x, x, where=where[:1])
  with pytest.raises(ValueError, match="weights"):
    moments(x, x, where=where, weights=jnp.ones(3))


# The penalty of a step: 24 lists of up to 3 scores, by a line through some features, and lengths
# that go with them.
R = np.random.default_rng(0)
REAL = R.uniform(size=(24, 3)) < 0.8
FEATURES = R.normal(size=(24, 3, 4))
LENGTHS = 300 + 80 * (FEATURES @ [0.5, -0.2, 0, 0.3] + R.normal(size=(24, 3)))
THETA = np.asarray([0.7, 0.3, -0.4, 0.5])
WEIGHTS = R.uniform(0.2, 3.0, (24, 3))


def correlation2(theta, weights=None):
  """Numpy's, float64, of all real items of the step; weighted by its covariance."""
  s, l = (FEATURES @ theta)[REAL], LENGTHS[REAL]
  if weights is None:
    return np.corrcoef(s, l)[0, 1] ** 2
  c = np.cov(s, l, aweights=weights[REAL])
  return c[0, 1] ** 2 / (c[0, 0] * c[1, 1])


def slope(theta, weights=None, h=1e-5):
  steps = h * np.eye(4)
  return [
    (correlation2(theta + d, weights) - correlation2(theta - d, weights)) / (2 * h) for d in steps
  ]


def part(theta, rows, weights=None):
  """Moments of some rows, NaN where not real."""
  real = jnp.asarray(REAL[rows])
  features = jnp.asarray(FEATURES[rows], jnp.float32)
  scores = jnp.where(real, jnp.einsum("gkd,d->gk", features, theta, precision="highest"), nan)
  lengths = jnp.where(real, jnp.asarray(LENGTHS[rows] / 100, jnp.float32), nan)
  if weights is not None:
    weights = jnp.where(real, jnp.asarray(weights[rows], jnp.float32), nan)
  return moments(scores, lengths, where=real, weights=weights)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_micro_batches_give_numpys_correlation_and_the_gradient_of_one_batch(weights):
  theta = jnp.asarray(THETA, jnp.float32)
  rows = [slice(0, 5), slice(5, 20), slice(20, 21), slice(21, 24)]

  @fast
  def at_once(theta):
    def surrogate(t):  # the total may come with its own gradient, which is not to be followed
      whole = part(t, slice(None), weights)
      return linearised(whole, whole)

    value, gradient = jax.value_and_grad(lambda t: penalty(part(t, slice(None), weights)))(theta)
    return value, gradient, jax.grad(surrogate)(theta)

  @fast
  def in_parts(theta):
    total = sum(part(theta, r, weights) for r in rows)
    grads = [jax.grad(lambda t, r=r: linearised(part(t, r, weights), total))(theta) for r in rows]
    # And no mean over micro-batches of the penalty of each would do.
    each = [jax.grad(lambda t, r=r: penalty(part(t, r, weights)))(theta) for r in rows[:2]]
    return penalty(total), sum(grads), sum(each) / 2

  value, gradient, alone = at_once(theta)
  value_in_parts, summed, naive = in_parts(theta)
  expected = correlation2(THETA, weights)
  assert 0.1 < expected < 0.9
  assert float(value) == pytest.approx(expected, rel=1e-5)
  assert float(value_in_parts) == pytest.approx(expected, rel=1e-5)
  np.testing.assert_allclose(gradient, slope(THETA, weights), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(summed, gradient, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(alone, gradient, rtol=1e-5, atol=1e-6)
  assert float(jnp.abs(naive - gradient).max()) > 0.01


def of(scores, lengths, where=None):
  scores, lengths = jnp.asarray(scores, jnp.float32), jnp.asarray(lengths, jnp.float32)
  where = jnp.ones(scores.shape, bool) if where is None else where
  f = jax.value_and_grad(lambda s: penalty(moments(s, lengths, where=where)))
  return fast(f)(scores)


@pytest.mark.parametrize(
  ("scores", "lengths"),
  [
    ([0.3, 0.3, 0.3, 0.3], [5, 1, 7, 2]),
    ([-700.1, -700.1, -700.1, -700.1], [5, 1, 7, 2]),
    ([1.0, 0.3, -2.0, 0.1], [311, 311, 311, 311]),
    ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0]),
  ],
)
def test_without_variance_there_is_no_penalty_and_no_gradient(scores, lengths):
  value, gradient = of(scores, lengths)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_without_items_there_is_no_penalty_and_no_gradient():
  value, gradient = of([nan] * 4, [nan] * 4, where=jnp.zeros(4, bool))
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)
  value, gradient = of([0.7, nan, nan, nan], [3.0] * 4, where=jnp.arange(4) == 0)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_a_straight_line_is_one_whatever_its_slope():
  lengths = np.arange(4.0)
  for scores in (2 * lengths - 3, 1 - 0.25 * lengths):
    value, gradient = of(scores, lengths)
    assert float(value) == pytest.approx(1, rel=1e-6)
    assert float(value) <= 1
    np.testing.assert_allclose(gradient, 0, atol=2e-6)


def test_a_variance_that_is_all_rounding_is_none():
  rng = np.random.default_rng(1)
  lengths = rng.normal(size=200)
  scores = 0.5 * lengths + rng.normal(size=200)
  expected = np.corrcoef(scores, lengths)[0, 1] ** 2
  value, gradient = of(scores, lengths)
  assert float(value) == pytest.approx(expected, rel=1e-5)
  assert float(jnp.abs(gradient).max()) > 0
  far_value, far_gradient = of(scores + 2.0**9, lengths + 2.0**9)
  assert far_value == 0
  np.testing.assert_array_equal(far_gradient, 0)
