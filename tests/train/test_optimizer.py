"""Schedules and decays against their formulas; what is frozen."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from rm_jax.storage.files import read_lines
from rm_jax.train.optimizer import decayed, make_optimizer, make_schedule, split_frozen
from tests.train.runs import run, small_config


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
  config.head_rate, config.mix_rate, config.loss_rate = 5.0, 20.0, 50.0
  names = (
    *("a/kernel", "head/out/kernel", "head/out/bias", "head/pooler/kernel"),
    *("head/mix", "head/gating/kernel", "loss/pair/log_tie", "loss/text/embedding"),
  )
  params = {name: jnp.zeros(2) for name in names}
  new = step(config, params, {name: jnp.ones(2) for name in names})
  # Adam's first step is the learning rate, whatever the gradient.
  for name, rate in zip(names, (1, 5, 5, 1, 20, 20, 50, 1), strict=True):
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


def kernels(seed=0):
  """Parameters with the paths and shapes of a small decoder's."""
  rng = np.random.default_rng(seed)
  shapes = {
    "backbone/layers/q/kernel": (2, 12, 2, 4),
    "backbone/layers/o/kernel": (2, 2, 4, 12),
    "backbone/layers/up/kernel": (2, 12, 20),
    "backbone/layers/mlp_norm/scale": (2, 12),
    "backbone/embed/embedding": (30, 12),
    "head/out/kernel": (12, 1),
  }
  return {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()}


def test_muon_makes_each_layers_kernel_orthogonal_and_leaves_the_rest_to_adam():
  config = options(name="muon", schedule="constant", warmup_steps=0, clip=0.0, learning_rate=1.0)
  params, gradients = kernels(), kernels(1)
  new = step(config, params, gradients)
  adam = step(options(schedule="constant", warmup_steps=0, clip=0.0), params, gradients)
  for path, x in params.items():
    moved = np.asarray(new[path] - x)
    if not path.startswith("backbone/layers/") or not path.endswith("/kernel"):
      np.testing.assert_allclose(new[path], adam[path], rtol=1e-6)
      continue
    inputs = 8 if "/o/" in path else 12
    for layer, gradient in zip(moved.reshape(2, inputs, -1), gradients[path], strict=True):
      # Each layer's update is downhill, its singular values nearly one size: that of 0.2 an entry.
      assert (layer * gradient.reshape(layer.shape)).sum() < 0
      size = np.linalg.svd(layer / (0.2 * max(layer.shape) ** 0.5), compute_uv=False)
      assert size.min() > 0.6, path
      assert size.max() < 1.3, path


@pytest.mark.slow
def test_adafactor_keeps_a_small_part_of_what_adam_keeps():
  config = options(name="adafactor", schedule="constant", warmup_steps=0, clip=0.0)
  up, q = "backbone/layers/up/kernel", "backbone/layers/q/kernel"
  params = {up: jnp.zeros((2, 256, 512)), q: jnp.zeros((2, 256, 8, 64))}
  optimizer = make_optimizer(config, make_schedule(config))
  state = optimizer.init(params)
  kept = sum(x.size for x in jax.tree.leaves(state))
  assert kept < 0.01 * (params[up].size + params[q].size)
  # An update of rank one is scaled to one everywhere: what rows and columns say is all there is.
  gradient = jnp.outer(jnp.arange(1.0, 257.0), jnp.arange(1.0, 513.0))
  gradient = jnp.stack([gradient, 3 * gradient])
  gradients = {up: gradient, q: gradient.reshape(2, 256, 8, 64)}
  updates, _ = optimizer.update(gradients, state, params)
  for x in updates.values():
    np.testing.assert_allclose(x, -1.0, rtol=1e-3)


def test_muon_without_kernels_is_refused():
  optimizer = make_optimizer(options(name="muon"), make_schedule(options()))
  with pytest.raises(ValueError, match="no layer's kernel is trained"):
    optimizer.init({"backbone/layers/q/lora_a": jnp.zeros((2, 12, 4))})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_run_resumes_and_is_the_same_on_eight_devices(name, llama_folder, tmp_path):
  lines = {}
  for where, parts, mesh in (
    ("whole", (6,), {}),
    ("parts", (3, 6), {}),
    ("eight", (6,), {"data": 2, "fsdp": 2, "tensor": 2}),
  ):
    for steps in parts:
      config = small_config(llama_folder, steps=steps)
      config.optimizer.name, config.optimizer.decay_steps = name, 6
      config.train.eval_every = 3
      config.mesh = {"data": 1, "fsdp": 1, "tensor": 1} | mesh
      run(config, tmp_path / where, devices=None if mesh else 1)
    found = read_lines(tmp_path / where / "metrics.jsonl")
    lines[where] = [x["loss"] for x in found if x["split"] == "train"]
  assert lines["whole"] == lines["parts"]
  np.testing.assert_allclose(lines["eight"], lines["whole"], rtol=0, atol=2e-5)
  assert lines["whole"][-1] < lines["whole"][0]
