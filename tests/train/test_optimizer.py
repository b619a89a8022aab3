"""Schedules and decays against their formulas; what is frozen."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from rm_jax.train.optimizer import decayed, make_optimizer, make_schedule, split_frozen


def options(**fields):
  c = get_config().optimizer
  c.learning_rate, c.warmup_steps, c.decay_steps = 1.0, 4, 14
  c.update(fields)
  return c


def test_warm_up_then_cosine_to_the_final_scale():
  schedule = make_schedule(options(final_scale=0.1))
  # From 1 / (4 + 1): no step has rate 0.
  np.testing.assert_allclose([schedule(i) for i in range(5)], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
  middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 5 / 10))
  assert schedule(9) == pytest.approx(middle, rel=1e-6)
  assert schedule(14) == pytest.approx(0.1, rel=1e-6)
  assert schedule(99) == pytest.approx(0.1, rel=1e-6)


def test_linear_and_constant():
  linear = make_schedule(options(schedule="linear", warmup_steps=0, final_scale=0.0))
  assert linear(7) == pytest.approx(0.5)
  constant = make_schedule(options(schedule="constant", warmup_steps=0))
  assert constant(1000) == 1.0


@pytest.mark.parametrize(("field", "value"), [("schedule", "wobbly"), ("name", "madam")])
def test_unknown_names_are_errors(field, value):
  config = options(**{field: value})
  with pytest.raises(ValueError, match=f"optimizer.{field} is {value!r}"):
    make_optimizer(config, make_schedule(config))


def step(config, params, gradients, steps=1):
  optimizer = make_optimizer(config, make_schedule(config))
  state = optimizer.init(params)
  for _ in range(steps):
    updates, state = optimizer.update(gradients, state, params)
    params = {k: params[k] + updates[k] for k in params}
  return params


def test_the_few_numbers_of_a_loss_have_a_rate_of_their_own():
  config = options(schedule="constant", warmup_steps=0, learning_rate=1e-3, clip=0.0)
  config.mix_rate, config.loss_rate = 20.0, 50.0
  names = ("a/kernel", "head/mix", "loss/pair/log_tie", "loss/text/embedding")
  params = {name: jnp.zeros(2) for name in names}
  new = step(config, params, {name: jnp.ones(2) for name in names})
  # Adam's first step is the learning rate, whatever the gradient.
  for name, rate in zip(names, (1, 20, 50, 1), strict=True):
    np.testing.assert_allclose(new[name], -1e-3 * rate, rtol=1e-5)


def test_weight_decay_is_decoupled_and_masked():
  config = options(schedule="constant", warmup_steps=0, learning_rate=0.1, weight_decay=0.5)
  params = {"a/kernel": jnp.ones(2), "a/bias": jnp.ones(2), "norm/scale": jnp.ones(2)}
  new = step(config, params, {k: jnp.zeros(2) for k in params})
  np.testing.assert_allclose(new["a/kernel"], 1 - 0.1 * 0.5)
  np.testing.assert_allclose(new["a/bias"], 1)
  np.testing.assert_allclose(new["norm/scale"], 1)
  assert decayed("embed/embedding")


def test_decay_towards_the_start_pulls_back():
  config = options(schedule="constant", warmup_steps=0, learning_rate=0.1, clip=0.0)
  config.towards_pretrained = 0.5
  config.name, config.b1 = "sgd", 0.0
  params, gradient = {"a/kernel": jnp.asarray([1.0])}, {"a/kernel": jnp.asarray([1.0])}
  # p1 = p0 - 0.1 g; p2 = p1 - 0.1 (g + 0.5 (p1 - p0)).
  new = step(config, params, gradient, steps=2)
  np.testing.assert_allclose(new["a/kernel"], 0.9 - 0.1 * (1 + 0.5 * -0.1), rtol=1e-6)


def test_clipping_bounds_the_global_norm():
  config = options(schedule="constant", warmup_steps=0, clip=1.0)
  config.name, config.b1 = "sgd", 0.0
  params = {"a/kernel": jnp.zeros(1), "b/kernel": jnp.zeros(1)}
  new = step(config, params, {"a/kernel": jnp.asarray([30.0]), "b/kernel": jnp.asarray([40.0])})
  np.testing.assert_allclose([new["a/kernel"][0], new["b/kernel"][0]], [-0.6, -0.8], rtol=1e-6)


def test_freezing_by_path():
  params = {"backbone/embed/embedding": 1, "backbone/layers/q/kernel": 2, "head/out/kernel": 3}
  trained, frozen = split_frozen(params, (r"^backbone/embed", "q/"))
  assert trained == {"head/out/kernel": 3}
  assert frozen.keys() == {"backbone/embed/embedding", "backbone/layers/q/kernel"}
  with pytest.raises(ValueError, match="'nothing' is found in no parameter's path"):
    split_frozen(params, ("nothing",))
  with pytest.raises(ValueError, match="leaves no parameter to train"):
    split_frozen(params, ("",))
