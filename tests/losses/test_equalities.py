"""Losses that must be one another somewhere: by value and gradient, on batches of lists."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.losses import LOSSES
from rm_jax.losses.noise import noise_params
from rm_jax.losses.pointwise import ordinal_params

KEY = jax.random.key(0)


def run(name, scores, labels, **extra):
  where = extra.pop("where", None)
  where = jnp.ones(scores.shape, bool) if where is None else where
  return LOSSES[name](scores, labels, where=where, **extra)


def same(f, g, scores, rtol=2e-6, atol=1e-6):
  """f and g have the same values, and the same gradient of their sum."""

  # Most of this file's time is compilation: unoptimised is twice as fast.
  @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
  def both(s):
    return [jax.value_and_grad(lambda x, h=h: (h(x).sum(), h(x)), has_aux=True)(s) for h in (f, g)]

  ((_, value), slope), ((_, expected), expected_slope) = both(scores)
  assert value.shape == expected.shape
  assert float(jnp.abs(value).max()) > 0.1
  np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol)
  np.testing.assert_allclose(slope, expected_slope, rtol=rtol, atol=atol)


def lists(k, n=30, seed=0, size=2.0):
  """Scores and labels without ties, [n, k]."""
  rng = np.random.default_rng(seed)
  labels = rng.permuted(np.broadcast_to(np.arange(k, dtype=np.float32), (n, k)), axis=-1)
  return jnp.asarray(size * rng.normal(size=(n, k)), jnp.float32), jnp.asarray(labels)


def far(k=2):
  """The same with differences from 0.1 to 100, where one of the tails is all that is left."""
  scores, labels = lists(k)
  return scores * jnp.geomspace(0.1, 30.0, len(scores))[:, None], labels


@pytest.mark.parametrize("name", ["plackett_luce", "best_of_k"])
def test_a_pair_by_its_order_is_bradley_terry(name):
  scores, labels = far()
  same(lambda s: run(name, s, labels), lambda s: run("logistic", s, labels), scores)


def test_listnet_of_a_pairs_log_probabilities_is_soft_bradley_terry():
  scores, _ = far()
  p = jnp.asarray(np.random.default_rng(1).uniform(0.01, 0.99, len(scores)), jnp.float32)
  labels = jnp.stack([jnp.log(p), jnp.log1p(-p)], -1)
  pairs = jnp.zeros((len(p), 2, 2)).at[:, 0, 1].set(p).at[:, 1, 0].set(1 - p)
  same(
    lambda s: run("listnet", s, labels),
    lambda s: run("logistic", s, labels, pairs=pairs),
    scores,
  )


@pytest.mark.parametrize("name", ["davidson", "rao_kupper"])
@pytest.mark.parametrize(("k", "smoothing"), [(2, 0.0), (4, 0.2)])
def test_models_of_ties_without_ties_are_bradley_terry(name, k, smoothing):
  scores, labels = lists(k)
  params = {"log_tie": jnp.float32(-40.0)}
  same(
    lambda s: run(name, s, labels, params=params, smoothing=smoothing),
    lambda s: run("logistic", s, labels, smoothing=smoothing),
    scores,
  )


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_the_first_stage_of_plackett_luce_is_best_of_k(k):
  scores, labels = lists(k)
  # Without ties, with one or two best, and all best; three lists of each masked.
  y = jnp.stack([labels, jnp.floor(labels / 2), jnp.zeros_like(labels)])
  where = jnp.ones(y.shape, bool).at[:, :3, k // 2 :].set(False)
  same(
    lambda s: run("plackett_luce", s, y, top=1, where=where),
    lambda s: run("best_of_k", s, y, where=where),
    jnp.stack([scores, 2 * scores, 2 - scores]),
  )


def test_plackett_luce_is_the_best_of_what_is_left_stage_by_stage():
  scores, labels = lists(5)

  def stages(s):
    return sum(run("best_of_k", s, labels, where=labels <= top) for top in range(5))

  same(lambda s: run("plackett_luce", s, labels), stages, scores)


OPTIONS = {"margin": 0.3, "temperature": 0.8}


@pytest.mark.parametrize("name", ["noisy_logistic", "unbiased_logistic"])
def test_without_noise_the_noise_models_are_bradley_terry(name):
  scores, labels = far(4)
  same(
    lambda s: run(name, s, labels, rate=0.0, **OPTIONS),
    lambda s: run("logistic", s, labels, **OPTIONS),
    scores,
  )


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_the_mean_of_unbiased_logistic_over_flips_is_the_clean_loss(rate):
  k = 3
  scores, labels = lists(k)
  clean = (labels[:, :, None] > labels[:, None, :]).astype(jnp.float32)
  both = list(itertools.combinations(range(k), 2))

  def expectation(s):
    total = 0.0
    for flips in itertools.product([False, True], repeat=len(both)):
      chance = math.prod(rate if f else 1 - rate for f in flips)
      flipped = np.zeros((k, k), bool)
      for (i, j), f in zip(both, flips, strict=True):
        flipped[i, j] = flipped[j, i] = f
      recorded = jnp.where(flipped[None], clean.swapaxes(-1, -2), clean)
      total += chance * run("unbiased_logistic", s, labels, pairs=recorded, rate=rate)
    return total

  # What cancels is 1 / (1 - 2e) times as large as what is left.
  atol = 1e-6 / (1 - 2 * rate)
  same(expectation, lambda s: run("logistic", s, labels), scores, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("rate", [0.01, 0.45])
def test_learned_noise_at_its_params_is_noisy_logistic(rate):
  params = noise_params(KEY, rate=rate)
  assert 0.5 / (1 + math.exp(-float(params["noise_logit"]))) == pytest.approx(rate, rel=2e-6)
  scores, labels = far(4)
  same(
    lambda s: run("learned_noise", s, labels, params=params, **OPTIONS),
    lambda s: run("noisy_logistic", s, labels, rate=rate, **OPTIONS),
    scores,
  )


def test_exponential_below_its_clamp_is_the_exponential():
  scores, labels = lists(2, n=200, size=1.5)

  def plain(s, clamp):
    d = jnp.where(labels[:, 0] > labels[:, 1], s[:, 0] - s[:, 1], s[:, 1] - s[:, 0])
    return jnp.where(-d < clamp, jnp.exp(-d), 0.0)

  def clamped(s, clamp):
    d = jnp.where(labels[:, 0] > labels[:, 1], s[:, 0] - s[:, 1], s[:, 1] - s[:, 0])
    return jnp.where(-d < clamp, run("exponential", s, labels, clamp=clamp), 0.0)

  for clamp in (1.0, 20.0):
    f, g = (functools.partial(h, clamp=clamp) for h in (clamped, plain))
    assert (np.asarray(g(scores)) > 0).mean() > 0.5
    same(f, g, scores, rtol=1e-5)


def test_exponential_is_continued_by_its_tangent():
  clamp, h = 2.0, 2.0**-8
  labels = jnp.asarray([1.0, 0.0])

  @jax.jit
  @jax.vmap
  @jax.value_and_grad
  def at(d):
    return run("exponential", jnp.stack([d, jnp.zeros_like(d)]), labels, clamp=clamp)

  value, slope = at(jnp.asarray([-clamp, -clamp - 3, -clamp - h, -clamp + h]))
  e = math.exp(clamp)
  np.testing.assert_allclose(value, [e, 4 * e, (1 + h) * e, math.exp(2 - h)], rtol=2e-6)
  np.testing.assert_allclose(slope, [-e, -e, -e, -math.exp(2 - h)], rtol=2e-6)


def test_scaled_logistic_of_one_strength_is_that_times_logistic():
  scores, labels = far(4)
  options = {"smoothing": 0.1, "temperature": 0.8}
  strength = jnp.geomspace(0.1, 10.0, len(scores)).at[::2].multiply(-1).at[0].set(1.0)
  full = jnp.broadcast_to(strength[:, None, None], (*scores.shape, 4))
  same(
    lambda s: run("scaled_logistic", s, labels, pair_margin=full, **options),
    lambda s: jnp.abs(strength) * run("logistic", s, labels, **options),
    scores,
  )


@pytest.mark.parametrize(
  "name", ["logistic", "scaled_logistic", "hinge", "squared_hinge", "exponential"]
)
def test_the_margin_of_a_tie_is_not_read(name):
  tied, margin = jnp.zeros(2), jnp.full((2, 2), 2.0)
  value, slope = jax.value_and_grad(lambda s: run(name, s, tied, pair_margin=margin))(
    jnp.asarray([0.3, -1.0])
  )
  assert (float(value), slope.tolist()) == (0.0, [0.0, 0.0])


def test_smoothing_is_the_same_as_pairs_seen_the_other_way():
  scores, labels = lists(4)
  seen = (labels[:, :, None] > labels[:, None, :]).astype(jnp.float32)
  pairs = 0.8 * seen + 0.2 * seen.swapaxes(-1, -2)
  # A flipped comparison's margin has the other sign: of a margin antisymmetric in the pair.
  m = jnp.asarray(np.random.default_rng(2).normal(size=pairs.shape), jnp.float32)
  m = m - m.swapaxes(-1, -2)
  same(
    lambda s: run("logistic", s, labels, smoothing=0.2, pair_margin=m),
    lambda s: run("logistic", s, labels, pairs=pairs, pair_margin=m),
    scores,
  )


def test_temperature_divides_scores_and_margin():
  scores, labels = lists(4)
  for name in ("logistic", "exponential"):
    same(
      lambda s, n=name: run(n, s, labels, temperature=2.5, margin=0.6),
      lambda s, n=name: run(n, s / 2.5, labels, margin=0.6 / 2.5),
      scores,
    )


def test_an_outcome_is_a_soft_pair_against_zero_and_a_grade_of_two():
  scores, _ = far(1)
  y = jnp.asarray(np.random.default_rng(3).uniform(size=scores.shape), jnp.float32)
  pairs = jnp.zeros((len(y), 2, 2)).at[:, 0, 1].set(y[:, 0]).at[:, 1, 0].set(1 - y[:, 0])

  def pair(s):
    against = jnp.concatenate([s, jnp.zeros_like(s)], -1)
    return run("logistic", against, against, pairs=pairs)

  same(lambda s: run("bce", s, y), pair, scores)
  same(lambda s: run("process", s, y), lambda s: run("bce", s, y), scores)
  hard, params = jnp.round(y), ordinal_params(KEY, classes=2)
  assert float(params["first"]) == 0
  same(lambda s: run("ordinal", s, hard, params=params), lambda s: run("bce", s, hard), scores)


def test_ordinal_begins_with_all_grades_as_likely():
  params = ordinal_params(KEY, classes=5)
  grades = jnp.arange(5, dtype=jnp.float32)[:, None]
  value = jax.jit(lambda y: run("ordinal", 0 * y, y, params=params))(grades)
  np.testing.assert_allclose(value, math.log(5), rtol=2e-6)


def test_regressions_are_one_another():
  scores, labels = lists(3)
  same(lambda s: 2 * run("huber", s, labels, delta=1e6), lambda s: run("mse", s, labels), scores)
  where = jnp.ones(labels.shape, bool)
  same(
    lambda s: run("attribute_mse", s[None], labels[None], where=where),
    lambda s: run("mse", s, labels),
    scores,
  )
