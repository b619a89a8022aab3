"""Scores of a solution up to each of its steps, against the formulas in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from rm_jax.losses.process import SO_FAR, so_far

SCORES = np.asarray([2.0, -1.0, 0.5, 3.0, 1.0, 9.0], np.float32)
WHERE = np.asarray([1, 1, 1, 1, 1, 0], bool)
# The marks of two responses stand between one another; each response's are in order.
RESPONSE = np.asarray([0, 1, 0, 0, 1, 1])


def read(how, scores=SCORES, where=WHERE, response=RESPONSE):
  arrays = dict(where=jnp.asarray(where), response=jnp.asarray(response))
  return np.asarray(so_far(jnp.asarray(scores), how=how, **arrays))


def test_each_reading_is_its_formula():
  p = expit(SCORES.astype(np.float64))
  np.testing.assert_array_equal(read("own"), [2.0, -1.0, 0.5, 3.0, 1.0, 0.0])
  np.testing.assert_array_equal(read("min"), [2.0, -1.0, 0.5, 0.5, -1.0, 0.0])
  products = [p[0], p[1], p[0] * p[2], p[0] * p[2] * p[3], p[1] * p[4]]
  # A log-odds near 0 is a difference of nearly equal logarithms, so its relative error is large
  # however it is computed; that of the probability is not.
  np.testing.assert_allclose(expit(read("product")[:5].astype(np.float64)), products, rtol=1e-6)
  assert read("product")[5] == 0.0


def test_one_mark_is_read_as_it_is():
  scores = np.linspace(-15, 15, 31).astype(np.float32)
  arrays = dict(where=np.ones((31, 1), bool), response=np.zeros((31, 1), int))
  np.testing.assert_array_equal(read("min", scores[:, None], **arrays)[:, 0], scores)
  np.testing.assert_allclose(read("product", scores[:, None], **arrays)[:, 0], scores, atol=2e-2)
  np.testing.assert_allclose(
    read("product", scores[:, None], **arrays)[5:-10, 0], scores[5:-10], atol=1e-4
  )


@pytest.mark.parametrize("how", SO_FAR)
def test_extreme_scores_have_finite_scores_and_gradients(how):
  scores = np.asarray([1e30, 88.0, -88.0, -1e30, 0.0], np.float32)
  where, response = jnp.ones(5, bool), jnp.zeros(5, int)

  def total(s):
    return jnp.sum(jnp.clip(so_far(s, where=where, response=response, how=how), -1e3, 1e3))

  value, gradient = jax.value_and_grad(total)(jnp.asarray(scores))
  assert math.isfinite(value)
  assert np.isfinite(gradient).all()


def test_padding_changes_nothing():
  padded = np.concatenate([SCORES, [np.nan, -50.0]]).astype(np.float32)
  where = np.concatenate([WHERE, [False, False]])
  response = np.concatenate([RESPONSE, [0, 1]])
  for how in SO_FAR:
    found = read(how, padded, where, response)
    np.testing.assert_array_equal(found[:6], read(how))
    np.testing.assert_array_equal(found[6:], 0.0)


def test_an_unknown_reading_is_refused():
  with pytest.raises(ValueError, match="how is 'mean'; expected one of own, min, product"):
    read("mean")
