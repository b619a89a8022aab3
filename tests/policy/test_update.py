"""Whole updates of PPO, GRPO and RLOO against NumPy and a network that sees each text alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rm_jax.batch.layout import Packing
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh, parameter_shardings, rows_multiple
from rm_jax.policy.experience import lay, make_experience, shapes_of
from rm_jax.policy.generate import Samples
from rm_jax.policy.optimise import grpo, ppo, rloo
from rm_jax.policy.rollout import Rollout, groups_of
from rm_jax.policy.update import (
  Loss,
  compile_update,
  evaluate,
  forward,
  start,
  take_step,
  value_params,
)
from rm_jax.train.loop import NotFiniteError
from rm_jax.types import Batch
from tests.policy.small import byte_policy, nested, one_device, optimizer_of, params_of

P, S, M = 3, 2, 6
NETWORK = byte_policy(2).text_model.network
LONGEST = 9
LENGTHS = np.array([[6, 2], [3, 5], [1, 4]])
R = np.random.default_rng(0)
IDS = [R.integers(3, 300, n).astype(np.int32) for n in (LONGEST, 4, 1)]
WHERE = np.arange(M) < LENGTHS[..., None]
TOKENS = np.where(WHERE, R.integers(3, 300, (P, S, M)), 0).astype(np.int32)
REWARDS = np.float32([[0.7, -0.3], [2.0, 0.0], [0.25, 0.5]])
PROCESS = np.zeros((P, S, M), np.float32)
PROCESS[0, 0, [1, 4]] = 0.5, -1.25  # at two marks of one response
PROCESS[1, 1, [0, 4]] = -0.5, 0.125
NOISE = 0.3 * R.normal(size=(P, S, M))
BETA = 0.3
KEY = jax.random.key(3)


@functools.cache
def params():
  """The policy's, its critic's included."""
  made = params_of(NETWORK) | value_params(NETWORK.backbone.width, KEY)
  return jax.tree.map(np.asarray, made)


@functools.cache
def reference():
  return params_of(NETWORK, seed=1)


PACKINGS = {
  "packed": Packing(),
  "a row each": Packing(pack=False, cells=128),
  "a prompt for each response": Packing(share=False),
}


def evaluated(flat, packing="packed"):
  packing = PACKINGS[packing]
  shapes = shapes_of(LONGEST, S, M, packing)
  options = dict(tokens=M, shapes=shapes, packing=packing, mesh=one_device())
  return evaluate(NETWORK, nested(flat), groups_of(rollout()), **options)


@functools.cache
def rollout(counts=True):
  """A rollout whose log-probabilities are those of other parameters than the policy's now."""
  old_logp = np.where(WHERE, plain(params())[0] + NOISE, 0)
  samples = Samples(TOKENS, old_logp.astype(np.float32), LENGTHS, np.ones((P, S), bool))
  counts = np.ones((P, S), bool) if counts else np.array([[1, 1], [0, 1], [1, 1]], bool)
  return Rollout(["-"] * P, IDS, [["-"] * S] * P, samples, REWARDS, REWARDS, PROCESS, counts)


@jax.jit
def plain(flat):
  """(log π, values) of the samples' tokens, [P, S, M]: each text in a row of its own."""
  flat = dict(flat)
  critic = flat.pop("value/out/kernel", None), flat.pop("value/out/bias", None)
  texts = np.zeros((P * S, LONGEST + M), np.int32)
  begins = np.array([len(ids) for ids in IDS]).repeat(S)
  for n, begin in enumerate(begins):
    texts[n, :begin] = IDS[n // S]
    texts[n, begin : begin + M] = TOKENS[n // S, n % S]
  zeros = jnp.zeros_like(texts)
  one = jnp.zeros((P * S, 1, 1), jnp.int32)
  column = jnp.broadcast_to(jnp.arange(texts.shape[1])[None], texts.shape)
  batch = Batch(texts, zeros + 1, zeros, column, one, one > 0, one, one[..., 0])
  h = NETWORK.hidden(nested(flat), batch)
  before = (begins - 1)[:, None] + np.arange(M)
  h = jnp.take_along_axis(h, before[..., None], axis=1)  # the state before each sampled token
  logits = jnp.einsum("nmd,vd->nmv", h, flat["backbone/embed/embedding"], precision="highest")
  logp = logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True))
  logp = jnp.take_along_axis(logp, TOKENS.reshape(P * S, M, 1), axis=-1)
  logp = jnp.where(WHERE, logp.reshape(P, S, M), 0.0)
  if critic[0] is None:
    return logp, None
  values = jnp.einsum("nmd,do->nmo", h, critic[0], precision="highest")[..., 0] + critic[1][0]
  return logp, jnp.where(WHERE, values.reshape(P, S, M), 0.0)


@pytest.mark.parametrize("packing", PACKINGS)
def test_log_probabilities_and_values_are_those_of_each_text_alone(packing):
  logp, values = evaluated(params(), packing)
  expected, expected_values = plain(params())
  np.testing.assert_allclose(logp, expected, atol=1e-5)
  np.testing.assert_allclose(values, expected_values, atol=1e-5)
  assert evaluated(reference())[1] is None


# The oracle: NumPy for what a rollout gives, loops over tokens, and AdamW written out.


def credit_in_numpy(name, ref):
  """(advantages, targets of the critic) by the papers' formulas, in float64."""
  made = rollout()
  old = made.samples.logp.astype(float)
  kl = np.where(WHERE, old - ref, 0.0)
  advantages, targets = np.zeros((P, S, M)), np.zeros((P, S, M))
  rewards = PROCESS.astype(float)
  for p, s in np.ndindex(P, S):
    rewards[p, s, LENGTHS[p, s] - 1] += REWARDS[p, s]
  if name != "grpo":
    rewards -= BETA * kl
  if name == "ppo":
    values = np.asarray(plain(params())[1], float)
    for p, s in np.ndindex(P, S):
      after = value = 0.0
      for t in reversed(range(LENGTHS[p, s])):
        after = rewards[p, s, t] + value - values[p, s, t] + 0.95 * after
        value = values[p, s, t]
        advantages[p, s, t], targets[p, s, t] = after, after + value
    real = advantages[WHERE]
    return np.where(WHERE, (advantages - real.mean()) / np.sqrt(real.var() + 1e-8), 0), targets
  for p in range(P):
    whole = rewards[p].sum(-1)
    for s in range(S):
      if name == "grpo":
        one = (whole[s] - whole.mean()) / (whole.std(ddof=1) + 1e-4)
      else:
        one = whole[s] - np.delete(whole, s).mean()
      advantages[p, s, : LENGTHS[p, s]] = one
  return advantages, None


def loss_in_numpy_style(flat, name, advantages, targets, ref, old_values):
  logp, values = plain(flat)
  old = rollout().samples.logp
  total = 0.0
  for p, s in np.ndindex(P, S):
    mine = 0.0
    for t in range(LENGTHS[p, s]):
      at, a = (p, s, t), float(advantages[p, s, t])
      ratio = jnp.exp(logp[at] - old[at])
      mine += jnp.maximum(-a * ratio, -a * jnp.minimum(jnp.maximum(ratio, 0.8), 1.2))
      if name == "grpo":
        mine += BETA * (jnp.exp(ref[at] - logp[at]) - 1 - (ref[at] - logp[at]))
      if name == "ppo":
        v, o, target = values[at], float(old_values[at]), float(targets[at])
        near = o + jnp.minimum(jnp.maximum(v - o, -0.2), 0.2)
        mine += 0.1 * 0.5 * jnp.maximum((v - target) ** 2, (near - target) ** 2)
    total += mine / (LENGTHS[p, s] if name == "grpo" else 1)
  return total / (LENGTHS.sum() if name == "ppo" else P * S)


def adamw(flat, gradient, state, step):
  """Clipping at norm 1, Adam, decoupled decay: float64 -> new parameters."""
  norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in gradient.values()))
  new = {}
  for path, p in flat.items():
    g = gradient[path].astype(float) / max(norm, 1.0)
    m, v = state.get(path, (0.0, 0.0))
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    state[path] = m, v
    moved = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-2)
    if path.endswith(("/kernel", "/embedding")):
      moved = moved + 0.01 * p
    new[path] = p - 0.05 * moved
  return new


METHODS = {
  "ppo": ppo(samples=S),
  "grpo": grpo(samples=S, mean="response"),
  "rloo": rloo(samples=S),
}


def start_of(name):
  flat = dict(params())
  if name != "ppo":
    flat = {p: x for p, x in flat.items() if not p.startswith("value/")}
  return jax.tree.map(jnp.asarray, flat)


def experience_of(name, *, counts=True):
  method = METHODS[name]
  ref, _ = evaluated(reference())
  values = evaluated(params())[1] if name == "ppo" else None
  return make_experience(
    rollout(counts), method.credit, coefficient=BETA, reference=ref, values=values
  )


def run(name, *, steps=1, packing="packed", parts=None, experience=None, then=None, mesh=None):
  """Our state and metrics after steps on the whole rollout, laid as `packing` says.

  `then` is an experience of the same rollout for one more step.
  """
  packing, optimizer, mesh = PACKINGS[packing], optimizer_of(), mesh or one_device()
  compiled = compile_update(NETWORK, METHODS[name].loss, optimizer)
  experience = experience or experience_of(name)
  flat = start_of(name)
  flat = jax.device_put(flat, parameter_shardings(flat, mesh))
  packing = dataclasses.replace(packing, multiple=rows_multiple(mesh))
  state, shapes = start(flat, optimizer, mesh), shapes_of(LONGEST, S, M, packing)
  for one in [experience] * steps + [then] * (then is not None):
    micros = [
      rows
      for part in parts or [range(P)]
      for rows in lay(experience.groups, part, shapes=shapes, packing=packing)
    ]
    state, metrics = take_step(compiled, state, micros, one.arrays, mesh, coefficient=BETA)
  return jax.device_get(state), metrics


@pytest.mark.parametrize("name", METHODS)
def test_two_whole_updates_are_those_of_numpy(name):
  ref = np.asarray(plain(reference())[0], float)
  advantages, targets = credit_in_numpy(name, ref)
  experience = experience_of(name)
  np.testing.assert_allclose(experience.arrays["advantages"], advantages, atol=1e-5)
  if name == "ppo":
    np.testing.assert_allclose(experience.arrays["targets"], targets, atol=1e-5)

  given = name, advantages, targets, ref, np.asarray(plain(params())[1])
  slope = jax.jit(jax.value_and_grad(lambda flat: loss_in_numpy_style(flat, *given)))
  flat, moments = jax.device_get(start_of(name)), {}
  for step in (1, 2):
    loss, gradient = jax.device_get(slope(jax.tree.map(np.float32, flat)))
    if step == 2:
      norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in gradient.values()))
    flat = adamw(flat, gradient, moments, step)
  state, metrics = run(name, steps=2)
  assert metrics["loss"] == pytest.approx(float(loss), abs=1e-5)
  assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
  assert metrics["skipped"] == 0
  assert metrics["clipped"] > 0  # or the clip would not be tested
  for path, expected in flat.items():
    assert np.abs(expected - params()[path]).max() > 1e-3, path
    np.testing.assert_allclose(state.params[path], expected, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_and_layouts_change_nothing(name):
  expected, metrics = run(name)
  for packing, parts in (("a row each", [[2], [0, 1]]), ("a prompt for each response", None)):
    got, other = run(name, packing=packing, parts=parts)
    assert other == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    for path, x in expected.params.items():
      np.testing.assert_allclose(got.params[path], x, atol=2e-6, err_msg=path)


def test_several_devices_take_the_step_of_one():
  expected, metrics = run("ppo", steps=2)
  mesh = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
  got, other = run("ppo", steps=2, mesh=mesh)
  assert other == pytest.approx(metrics, rel=1e-4, abs=1e-6)
  for path, x in expected.params.items():
    np.testing.assert_allclose(got.params[path], x, atol=2e-6, err_msg=path)


def test_responses_that_are_left_out_train_nothing():
  left = experience_of("grpo", counts=False)
  assert not left.arrays["where"][1, 0].any()
  assert not left.arrays["advantages"][1].any()  # the other one has nothing to compare with
  noise = {
    name: np.where(left.arrays["where"], x, 7).astype(x.dtype) if name != "where" else x
    for name, x in left.arrays.items()
  }
  expected, metrics = run("grpo", experience=left)
  got, other = run("grpo", experience=dataclasses.replace(left, arrays=noise))
  assert other == pytest.approx(metrics, rel=1e-5)
  for path, x in expected.params.items():
    np.testing.assert_array_equal(got.params[path], x)


def test_a_step_that_is_not_finite_changes_nothing_and_says_so():
  bad = experience_of("grpo")
  bad.arrays["advantages"] = np.where(bad.arrays["advantages"] > 0, np.float32("nan"), 0)
  state, metrics = run("grpo", experience=bad)
  assert metrics["skipped"] == 1
  for path, x in start_of("grpo").items():
    np.testing.assert_array_equal(state.params[path], x)


def test_parameters_that_are_not_finite_are_an_error(monkeypatch):
  monkeypatch.setattr("tests.policy.test_update.optimizer_of", lambda: optax.sgd(1e39))
  with pytest.raises(NotFiniteError, match="parameters that are not finite"):
    run("grpo")


def test_a_step_without_a_token_that_counts_changes_nothing():
  """Neither the first one nor a later one, which Adam's momentum would move."""
  nothing = experience_of("grpo")
  nothing.arrays["where"] = np.zeros_like(nothing.arrays["where"])
  alone, metrics = run("grpo", experience=nothing)
  assert (metrics["skipped"], metrics["uncounted"]) == (0, 1)
  once, metrics = run("grpo")
  assert metrics["uncounted"] == 0
  later, _ = run("grpo", then=nothing)
  for path, x in start_of("grpo").items():
    np.testing.assert_array_equal(alone.params[path], x)
    np.testing.assert_array_equal(later.params[path], once.params[path])


def test_metrics_are_means_over_tokens():
  _, metrics = run("grpo")
  logp = np.asarray(plain(start_of("grpo"))[0])
  delta = (rollout().samples.logp - logp)[WHERE].astype(float)
  assert metrics["entropy"] == pytest.approx(-logp[WHERE].mean(), abs=1e-5)
  assert metrics["old_kl"] == pytest.approx((np.exp(-delta) - 1 + delta).mean(), abs=1e-5)
  far = (logp - evaluated(reference())[0])[WHERE].astype(float)
  assert metrics["kl_loss"] == pytest.approx((np.exp(-far) - 1 + far).mean(), abs=1e-5)


def test_a_critic_in_bfloat16_is_still_computed_in_float32():
  network = dataclasses.replace(NETWORK, dtype="bfloat16")
  options = dict(shapes=shapes_of(LONGEST, S, M, Packing()), packing=Packing())
  (rows,) = lay(groups_of(rollout()), range(P), **options)
  flat, batch = dict(params()), rows.batch
  logp, values = jax.jit(lambda p: forward(network, nested(p), batch))(flat)
  assert logp.dtype == values.dtype == jnp.float32
  kernel, bias = flat.pop("value/out/kernel"), flat.pop("value/out/bias")
  h_BTD = jax.jit(lambda p: network.hidden(nested(p), batch))(flat)
  assert h_BTD.dtype == jnp.bfloat16
  expected = np.asarray(h_BTD, np.float64) @ kernel[:, 0] + bias[0]
  expected = np.take_along_axis(expected, np.maximum(batch.previous, 0), axis=1)
  np.testing.assert_allclose(values, np.where(batch.previous >= 0, expected, 0), atol=1e-5)


def test_a_fresh_critic_starts_near_zero():
  fresh = value_params(1000, KEY)
  assert np.std(fresh["value/out/kernel"]) == pytest.approx(1 / 1001, rel=0.1)
  assert fresh["value/out/bias"].shape == (1,)


def test_the_parameters_given_survive_the_steps():
  given = start_of("grpo")
  state = start(given, optimizer_of(), one_device(), freeze=("^backbone/embed",))
  assert list(state.frozen) == ["backbone/embed/embedding"]
  compiled = compile_update(NETWORK, METHODS["grpo"].loss, optimizer_of())
  take_step(compiled, state, (), {}, one_device())
  for path, x in given.items():
    np.testing.assert_array_equal(x, params()[path])


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"estimator": "k1"}, "whose gradient is 0 on average"),
    ({"estimator": "k9"}, "expected one of k1, k2, k3"),
    ({"mean": "row"}, "expected one of token"),
    ({"low": 0.0}, r"low is 0\.0"),
    ({"high": -0.1}, r"high -0\.1"),
    ({"value": -1.0}, r"value -1\.0"),
  ],
)
def test_losses_that_cannot_be_are_refused(options, said):
  with pytest.raises(InputError, match=said):
    Loss(**options)
