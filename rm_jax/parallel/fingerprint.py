"""Checksums of arrays on devices, which do not depend on how the arrays are sharded."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def _fingerprint(tree: Any) -> list[jax.Array]:
  # The sum of an array's words as unsigned integers, modulo 2^32: it does not depend on the
  # sharding, and any single flipped bit changes it.
  def bits(x):
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(x, word), dtype=jnp.uint32)

  return [bits(x) for x in jax.tree.leaves(tree)]


def fingerprint(tree: Any) -> list[int]:
  """A checksum of each leaf's bits, in the order of the pytree's leaves."""
  return [int(x) for x in jax.device_get(_fingerprint(tree))]


def fingerprint_of(params: Mapping[str, Any]) -> str:
  """16 hex digits of a hash of all parameters, path -> array.

  It does not depend on how many of the layers are a stack of their own ('backbone/lower', of frozen
  layers): the checksums of the two stacks are added.
  """
  sums: dict[str, int] = {}
  for path, value in zip(params, fingerprint(list(params.values())), strict=True):
    path = path.replace("/lower/", "/layers/")
    sums[path] = (sums.get(path, 0) + value) % 2**32
  return hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()[:16]
