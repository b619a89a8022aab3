"""Likelihoods of text in chunks: those of a plain log-softmax, in the memory of a chunk."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rm_jax.losses.likelihood import sum_by_response, token_log_likelihood

LEAD, N, D, V = (2, 3), 12, 5, 23
R = np.random.default_rng(0)
HIDDEN = jnp.asarray(R.normal(size=(*LEAD, N, D)), jnp.float32)
HEAD = jnp.asarray(R.normal(size=(V, D)), jnp.float32)
TARGETS = jnp.asarray(R.integers(0, V, (*LEAD, N)))
WHERE = jnp.asarray(R.uniform(size=(*LEAD, N)) < 0.7).at[0, 0].set(False)
COTANGENT = jnp.asarray(R.normal(size=(*LEAD, N)), jnp.float32)


def plain(hidden, head, targets, where=None):
  log_p = jax.nn.log_softmax(jnp.einsum("...nd,vd->...nv", hidden, head, precision="highest"))
  value = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  return value if where is None else jnp.where(where, value, 0.0)


def with_gradients(f, hidden=HIDDEN, head=HEAD, **options):
  """Values, and gradients by hidden and head of a weighted sum."""

  def total(hidden, head):
    values = f(hidden, head, **options)
    return jnp.vdot(values.astype(jnp.float32), COTANGENT), values

  @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
  def run(hidden, head):
    return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, head)

  (_, values), gradients = run(hidden, head)
  return values, *gradients


# One, divides, does not, all but one, all, more than all.
@pytest.mark.parametrize("chunk", [1, 4, 5, 11, 12, 100])
def test_any_chunk_gives_the_plain_log_softmax(chunk):
  got = with_gradients(token_log_likelihood, targets=TARGETS, chunk=chunk)
  for a, b in zip(got, with_gradients(plain, targets=TARGETS), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("chunk", [5, 12])
def test_what_is_masked_does_not_leak(chunk):
  expected = with_gradients(plain, targets=TARGETS, where=WHERE)
  for content in (jnp.nan, jnp.inf, 1e37):
    hidden = jnp.where(WHERE[..., None], HIDDEN, content)
    # An id outside the vocabulary is what a padding of -100 would be.
    targets = jnp.where(WHERE, TARGETS, -100)
    got = with_gradients(token_log_likelihood, hidden, targets=targets, where=WHERE, chunk=chunk)
    for a, b in zip(got, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    assert (np.asarray(got[0])[~np.asarray(WHERE)] == 0).all()
    assert (np.asarray(got[1])[~np.asarray(WHERE)] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 4, 5])
def test_chunks_of_which_nothing_counts_are_passed_over(chunk):
  where = WHERE.at[..., 6:].set(False)
  expected = with_gradients(plain, targets=TARGETS, where=where)
  got = with_gradients(token_log_likelihood, targets=TARGETS, where=where, chunk=chunk)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)

  # A head that is not a number would reach all that is multiplied with it.
  @jax.jit
  def slope(head):
    options = dict(where=jnp.zeros_like(where), chunk=chunk)
    return jax.grad(lambda w: token_log_likelihood(HIDDEN, w, TARGETS, **options).sum())(head)

  np.testing.assert_array_equal(slope(jnp.full_like(HEAD, jnp.nan)), 0)


def test_large_logits_do_not_overflow():
  values, by_hidden, by_head = with_gradients(
    token_log_likelihood, 1e4 * HIDDEN, targets=TARGETS, chunk=5
  )
  assert np.isfinite(values).all()
  assert np.isfinite(by_hidden).all()
  assert np.isfinite(by_head).all()


def test_bfloat16_is_computed_in_float32_at_the_highest_precision():
  hidden, head = HIDDEN.astype(jnp.bfloat16), HEAD.astype(jnp.bfloat16)
  values, by_hidden, by_head = with_gradients(
    token_log_likelihood, hidden, head, targets=TARGETS, chunk=1
  )
  expected = with_gradients(
    plain, hidden.astype(jnp.float32), head.astype(jnp.float32), targets=TARGETS
  )
  assert values.dtype == jnp.float32
  assert (by_hidden.dtype, by_head.dtype) == (jnp.bfloat16, jnp.bfloat16)
  np.testing.assert_allclose(values, expected[0], rtol=1e-5, atol=2e-6)
  # The gradients are rounded once, whatever the chunks.
  np.testing.assert_allclose(by_hidden.astype(jnp.float32), expected[1], rtol=2**-8, atol=1e-5)
  np.testing.assert_allclose(by_head.astype(jnp.float32), expected[2], rtol=2**-8, atol=1e-5)

  # A CPU multiplies in float32 whatever is asked: what a TPU would be asked is in the text.
  def total(hidden, head):
    return token_log_likelihood(hidden, head, TARGETS, chunk=5).sum()

  text = jax.jit(jax.value_and_grad(total, (0, 1))).lower(hidden, head).as_text()
  dots = re.findall(r"stablehlo\.dot_general.*", text)
  assert len(dots) >= 4  # forward, again, and by each of the two
  assert all("precision = [HIGHEST, HIGHEST]" in d and "bf16" not in d for d in dots)


def tokens(n, d=16, v=2048, chunk=32):
  """Gradient of the likelihood of n tokens, and its arguments' shapes."""

  def total(hidden, head, targets):
    return token_log_likelihood(hidden, head, targets, chunk=chunk).sum()

  shapes = [((n, d), jnp.float32), ((v, d), jnp.float32), ((n,), jnp.int32)]
  return jax.value_and_grad(total, (0, 1)), [jax.ShapeDtypeStruct(*s) for s in shapes]


def sizes(jaxpr):
  """Entries of each array in a jaxpr and those inside it."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval.size
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from sizes(inner)


def test_the_logits_of_all_tokens_are_never_held():
  d, v, chunk = 16, 2048, 32
  few, many = 64, 1024
  f, shapes = tokens(many)
  largest = max(sizes(jax.make_jaxpr(f)(*shapes).jaxpr))
  assert largest == max(chunk * v, v * d, many * d)

  bytes_of = {}
  for n in (few, many):
    f, shapes = tokens(n)
    compiled = jax.jit(f).lower(*shapes).compile()
    bytes_of[n] = compiled.memory_analysis().temp_size_in_bytes
  # States and values may be copied, a few times each; logits would add n · V · 4.
  assert bytes_of[many] - bytes_of[few] <= 4 * (4 * d + 8) * (many - few)
  assert bytes_of[many] < many * v * 4 / 4


def test_leading_axes_are_divided_over_devices_without_a_word():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, P("data"))
  rng = np.random.default_rng(1)
  hidden = jax.device_put(jnp.asarray(rng.normal(size=(8, N, D)), jnp.float32), rows)
  targets = jax.device_put(jnp.asarray(rng.integers(0, V, (8, N))), rows)
  head = jax.device_put(HEAD, NamedSharding(mesh, P()))
  f = jax.jit(lambda h, w, y: token_log_likelihood(h, w, y, chunk=5))
  compiled = f.lower(hidden, head, targets).compile()
  assert not re.search("all-|collective|reduce-scatter", compiled.as_text())
  values = compiled(hidden, head, targets)
  assert len(values.sharding.device_set) == 8
  np.testing.assert_allclose(
    values, plain(np.asarray(hidden), HEAD, np.asarray(targets)), rtol=1e-5, atol=2e-6
  )


def test_no_tokens_at_all():
  assert token_log_likelihood(HIDDEN[..., :0, :], HEAD, TARGETS[..., :0]).shape == (*LEAD, 0)


def test_shapes_that_do_not_fit_are_errors():
  with pytest.raises(ValueError, match="targets"):
    token_log_likelihood(HIDDEN, HEAD, TARGETS[0])
  with pytest.raises(ValueError, match="head_VD"):
    token_log_likelihood(HIDDEN, HEAD.T, TARGETS)
  with pytest.raises(ValueError, match="where"):
    token_log_likelihood(HIDDEN, HEAD, TARGETS, where=WHERE[0])
  with pytest.raises(ValueError, match="chunk"):
    token_log_likelihood(HIDDEN, HEAD, TARGETS, chunk=0)
  ids = jnp.zeros((2, 5), int)
  with pytest.raises(ValueError, match="group_BT"):
    sum_by_response(jnp.zeros((2, 5)), ids[:1], ids, groups=1, branches=1)
  with pytest.raises(ValueError, match="branch_BT"):
    sum_by_response(jnp.zeros((2, 5)), ids, ids[:1], groups=1, branches=1)


def test_sum_by_response_is_a_loop():
  rows, columns, groups, branches = 4, 40, 3, 2
  rng = np.random.default_rng(2)
  # Groups 0 .. 4 and branches 0 .. 3: padding, prompts, and some beyond those asked for.
  group, branch = (rng.integers(0, n, (rows, columns)) for n in (groups + 2, branches + 2))
  group[3] = 0
  group[2][group[2] == 2] = 1
  real = (group > 0) & (group <= groups) & (branch > 0) & (branch <= branches)
  values = np.where(real, rng.normal(size=(rows, columns)), np.nan).astype(np.float32)
  expected = np.zeros((rows, groups, branches))
  for b in range(rows):
    for t in range(columns):
      if real[b, t]:
        expected[b, group[b, t] - 1, branch[b, t] - 1] += values[b, t]
  cotangent = rng.normal(size=expected.shape).astype(np.float32)

  @jax.jit
  def total(values):
    sums = sum_by_response(
      values, jnp.asarray(group), jnp.asarray(branch), groups=groups, branches=branches
    )
    return jnp.vdot(sums, cotangent), sums

  (_, sums), slopes = jax.value_and_grad(total, has_aux=True)(jnp.asarray(values))
  assert sums.shape == (rows, groups, branches)
  np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-6)
  assert (np.asarray(sums)[2, 1] == 0).all()
  assert (np.asarray(sums)[3] == 0).all()
  wanted = np.where(
    real,
    np.take_along_axis(
      cotangent.reshape(rows, -1), np.where(real, (group - 1) * branches + branch - 1, 0), -1
    ),
    0,
  )
  np.testing.assert_array_equal(slopes, wanted)
