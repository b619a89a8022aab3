"""What every registered loss must bear, in each of its settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rm_jax.losses import LOSSES
from tests.losses.cases import CASES, make_inputs, one_list, permute, spoil

every = pytest.mark.parametrize("case", CASES, ids=str)


def test_every_loss_has_a_case():
  assert {c.name for c in CASES} == set(LOSSES)


@functools.cache
def _compiled(case):
  def total(scores, params, fields):
    values = case(scores, fields, params)
    return jnp.sum(values), values

  return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


def value_and_gradients(case, scores, fields):
  """Value of each list, and gradients of their sum by scores and params."""
  (_, values), gradients = _compiled(case)(scores, case.learned, fields)
  return values, *gradients


def slopes(f, x, h=1e-5):
  """Central differences of f at each entry of x, in float64."""
  x = np.asarray(x, np.float64)
  out = np.zeros_like(x)
  for i in np.ndindex(*x.shape):
    up, down = x.copy(), x.copy()
    up[i] += h
    down[i] -= h
    out[i] = (f(up) - f(down)) / (2 * h)
  return out


# By observed comparisons and by labels; without comparisons the two are one.
INPUTS = [(c, True) for c in CASES] + [(c, False) for c in CASES if "pairs" in c.loss.uses]


@pytest.mark.parametrize(("case", "observed"), INPUTS, ids=lambda x: str(x))
def test_value_and_gradient_are_the_references(case, observed):
  scores, fields = spoil(*make_inputs(case, (8,), observed=observed))
  values, by_score, by_param = value_and_gradients(case, scores, fields)
  expected_by_param = {n: 0.0 for n in by_param}
  for index in range(8):
    s, at = one_list(scores, fields, (index,))
    assert float(values[index]) == pytest.approx(case.reference(s, at), rel=2e-6, abs=1e-6)
    gradient = by_score[..., index, :]
    real = np.broadcast_to(np.asarray(at["where"]), s.shape)
    expected = slopes(lambda x, at=at: case.reference(x, at), jnp.where(real, s, 0.0))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    assert (np.asarray(gradient)[~real] == 0).all()
    for name in by_param:

      def moved(v, name=name, s=s, at=at):
        return case.reference(s, at, {**case.params, name: v.tolist()})

      expected_by_param[name] += slopes(moved, case.params[name])
  for name, gradient in by_param.items():
    np.testing.assert_allclose(gradient, expected_by_param[name], rtol=1e-5, atol=1e-6)


@every
def test_what_is_masked_does_not_matter(case):
  inputs = make_inputs(case, (8,))
  with_nan = value_and_gradients(case, *spoil(*inputs))
  with_number = value_and_gradients(case, *spoil(*inputs, 7.0))
  for a, b in zip(jax.tree.leaves(with_nan), jax.tree.leaves(with_number), strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_array_equal(a, b)


@every
@pytest.mark.parametrize("content", [0.5, np.nan])
def test_a_list_without_items_is_zero_with_zero_gradient(case, content):
  scores, fields = make_inputs(case, (8,))
  fields["where"] = jnp.zeros_like(fields["where"])
  for leaf in jax.tree.leaves(value_and_gradients(case, *spoil(scores, fields, content))):
    assert (np.asarray(leaf) == 0).all()


@every
def test_extreme_scores_never_give_nan(case):
  scores, fields = make_inputs(case, (8,))
  signs = jnp.sign(scores)
  for extreme in (case.big * signs, case.big * jnp.ones_like(signs), jnp.zeros_like(signs)):
    value, by_score, by_param = value_and_gradients(case, extreme, fields)
    assert not np.isnan(value).any()
    assert np.isfinite(value).all() or not case.finite_at_big
    assert np.isfinite(by_score).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(by_param))


def reshape(scores, fields, batch):
  """Inputs of batch [8] as another batch."""
  extra = scores.ndim - fields["where"].ndim

  def one(array, lead):
    return array.reshape(*array.shape[:lead], *batch, *array.shape[lead + 1 :])

  moved = {n: one(v, extra if n == "labels" else 0) for n, v in fields.items()}
  return one(scores, extra), moved


@pytest.mark.slow
@every
def test_any_batch_rank_jit_and_vmap(case):
  inputs = make_inputs(case, (8,))
  expected = case(*inputs)
  assert expected.shape == (8,)
  assert expected.dtype == jnp.float32
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
  jitted = jax.jit(case.__call__)
  close(jitted(*inputs), expected)
  close(jitted(*reshape(*inputs, (2, 2, 2))), expected.reshape(2, 2, 2))
  close(jitted(*one_list(*inputs, (3,))), expected[3])
  outputs = inputs[0].ndim - 2
  axes = {n: outputs if n == "labels" else 0 for n in inputs[1]}
  close(jax.jit(jax.vmap(case.__call__, (outputs, axes)))(*inputs), expected)


@pytest.mark.slow
@every
def test_eight_devices_give_one_devices_numbers(case):
  scores, fields = make_inputs(case, (8,))
  expected = value_and_gradients(case, scores, fields)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  divided = NamedSharding(mesh, P("data"))
  second = NamedSharding(mesh, P(None, "data"))
  outputs = scores.ndim > fields["where"].ndim
  put = {n: jax.device_put(v, second if outputs and n == "labels" else divided)
         for n, v in fields.items()}  # fmt: skip
  placed = jax.device_put(scores, second if outputs else divided)
  value, *rest = value_and_gradients(case, placed, put)
  assert len(value.sharding.device_set) == 8
  for a, b in zip(jax.tree.leaves((value, rest)), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@every
def test_the_order_of_the_list_does_not_matter(case):
  for observed in (True, False):
    scores, fields = make_inputs(case, (8,), observed=observed)
    order = jnp.asarray([3, 0, 4, 2, 1])
    if "response" in fields:  # steps keep their order within a response
      fields["response"] = jnp.broadcast_to(jnp.asarray([0, 0, 1, 1, 1]), (8, 5))
      order = jnp.asarray([2, 0, 3, 1, 4])
    moved, *_ = value_and_gradients(case, *permute(scores, fields, order))
    here, *_ = value_and_gradients(case, scores, fields)
    np.testing.assert_allclose(moved, here, rtol=2e-6, atol=1e-6)


@every
def test_bfloat16_scores_are_computed_in_float32(case):
  scores, fields = make_inputs(case, (8,))
  rounded = scores.astype(jnp.bfloat16)
  value = case(rounded, fields)
  assert value.dtype == jnp.float32
  np.testing.assert_array_equal(value, case(rounded.astype(jnp.float32), fields))


@every
def test_shapes_that_do_not_fit_are_errors(case):
  scores, fields = make_inputs(case, (8,))
  for name, value in fields.items():
    if name == "response" and case.options.get("steps", "all") == "all":
      continue  # not read
    for wrong in (value[:1], value[..., :1]):
      with pytest.raises(ValueError, match=name):
        case(scores, {**fields, name: wrong})
