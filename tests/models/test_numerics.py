"""Products of matrices: in bfloat16 they are summed in float32 and rounded once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.models.numerics import product, transposed


def arrays(dtype):
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (5, 300), dtype)
  return x, jax.random.normal(keys[1], (300, 7), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_has_its_operands_dtype(dtype):
  x, y = arrays(dtype)
  options = dict(precision=jax.lax.Precision.HIGHEST)
  found = product(x, y, 1, 0, **options)
  assert found.dtype == dtype
  exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
  np.testing.assert_allclose(
    np.asarray(found, np.float64), exact, rtol=float(jnp.finfo(dtype).eps), atol=1e-4
  )
  turned = product(transposed(x), y.T, 0, 1, **options)
  np.testing.assert_allclose(
    np.asarray(turned, np.float64), exact, rtol=float(jnp.finfo(dtype).eps), atol=1e-4
  )


def test_on_a_cpu_products_in_bfloat16_have_float32_results():
  """The kernel that uses the CPU's instructions for bfloat16 is for these alone."""
  text = jax.jit(lambda x, y: product(x, y, 1, 0)).lower(*arrays(jnp.bfloat16)).as_text()
  (line,) = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
  assert line.endswith("(tensor<5x300xbf16>, tensor<300x7xbf16>) -> tensor<5x7xf32>")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(4, 1), (1, 6), (2, 3, 5)])
def test_the_last_two_axes_are_exchanged(dtype, shape):
  x = jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)
  found = jax.jit(transposed)(x)
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, np.swapaxes(np.asarray(x), -1, -2))
