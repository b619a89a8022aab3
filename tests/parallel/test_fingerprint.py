"""Checksums tell parameters apart, and do not see how they are divided."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rm_jax.parallel.fingerprint import fingerprint, fingerprint_of

RNG = np.random.default_rng(0)
STACK = RNG.normal(size=(3, 8, 4)).astype(np.float32)
PARAMS = {"backbone/layers/q/kernel": STACK, "backbone/norm/scale": np.ones(8, np.float32)}


def test_a_flipped_bit_and_another_name_are_seen():
  other = STACK.copy()
  other.view(np.uint32)[1, 2, 3] ^= 1
  found = {
    fingerprint_of(PARAMS),
    fingerprint_of(PARAMS | {"backbone/layers/q/kernel": other}),
    fingerprint_of({path.replace("/q/", "/k/"): x for path, x in PARAMS.items()}),
    fingerprint_of({path: jnp.asarray(x, jnp.bfloat16) for path, x in PARAMS.items()}),
  }
  assert len(found) == 4
  assert fingerprint([STACK]) != fingerprint([other])


def test_exchanged_numbers_are_seen():
  """Scores of a model whose attributes weigh (1, 2) were taken for those of one with (2, 1)."""
  one = {"head/mix": np.asarray([1.0, 2.0], np.float32)} | PARAMS
  other = one | {"head/mix": np.asarray([2.0, 1.0], np.float32)}
  layers = one | {"backbone/layers/q/kernel": STACK[::-1].copy()}
  turned = one | {"backbone/layers/q/kernel": STACK[:, :, ::-1].copy()}
  assert len({fingerprint_of(x) for x in (one, other, layers, turned)}) == 4


def test_a_fingerprint_of_an_earlier_version_is_compared_in_its_form():
  saved = "5d037db0d87b23c3"
  assert fingerprint_of(PARAMS, saved) == saved
  other = PARAMS | {"backbone/norm/scale": np.zeros(8, np.float32)}
  assert fingerprint_of(other, saved) == fingerprint_of(other) != saved


def test_a_stack_of_frozen_layers_is_a_part_of_the_whole():
  divided = {
    "backbone/lower/q/kernel": STACK[:2],
    "backbone/norm/scale": PARAMS["backbone/norm/scale"],
    "backbone/layers/q/kernel": STACK[2:],
  }
  assert fingerprint_of(divided) == fingerprint_of(PARAMS)


def test_sharding_makes_no_difference():
  mesh = jax.make_mesh((8,), ("data",))
  placed = {
    path: jax.device_put(x, NamedSharding(mesh, P(None, "data") if x.ndim == 3 else P("data")))
    for path, x in PARAMS.items()
  }
  assert fingerprint_of(placed) == fingerprint_of(PARAMS)
