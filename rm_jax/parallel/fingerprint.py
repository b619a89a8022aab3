"""Checksums of arrays on devices, which do not depend on how the arrays are sharded."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_ORDERED = "2:"  # begins a fingerprint that depends on the order of the numbers in an array


def _words(x: jax.Array) -> jax.Array:
  """An array's bits as unsigned integers."""
  word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  return jax.lax.bitcast_convert_type(x, word)


@jax.jit
def _fingerprint(tree: Any) -> list[jax.Array]:
  # The sum of an array's words modulo 2^32: it does not depend on the sharding, and any single
  # flipped bit changes it.
  return [jnp.sum(_words(x), dtype=jnp.uint32) for x in jax.tree.leaves(tree)]


def fingerprint(tree: Any) -> list[int]:
  """A checksum of each leaf's bits, in the order of the pytree's leaves.

  It tells damage. It does not tell arrays apart that have the same numbers in another order.
  """
  return [int(x) for x in jax.device_get(_fingerprint(tree))]


def _mixed(x: jax.Array) -> jax.Array:
  """uint32 [x.shape[0]]: for each row of an array a sum that depends on its words and their places.

  Each word is combined with its place in the row and mixed by a bijection (the finaliser of
  MurmurHash3, Appleby 2011), so that any single flipped bit changes the sum, and so do, but for
  chance, two exchanged words.
  """
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(1, x.ndim):
    place = place * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  h = _words(x).astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B9))
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(h ^ (h >> 16), axis=tuple(range(1, x.ndim)), dtype=jnp.uint32)


@jax.jit
def _rows(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
  # The first axis of a stack is its layers. Any other parameter is one row.
  return {p: _mixed(x if "/layers/" in p or "/lower/" in p else x[None]) for p, x in params.items()}


def checksums(params: Mapping[str, Any]) -> dict[str, list[int]]:
  """Path -> checksums that depend on the order of a parameter's numbers; of a stack, one a layer.

  They do not depend on how many of the layers are a stack of their own ('backbone/lower', of frozen
  layers): the checksums of the two stacks follow one another.
  """
  found = {path: x.tolist() for path, x in jax.device_get(_rows(dict(params))).items()}
  whole: dict[str, list[int]] = {}
  # 'lower' comes first, whatever the order of the paths.
  for path in sorted(found, key=lambda path: "/lower/" not in path):
    whole.setdefault(path.replace("/lower/", "/layers/"), []).extend(found[path])
  return whole


def fingerprint_of(params: Mapping[str, Any], saved: str = "") -> str:
  """A hash of all parameters: '2:' and 16 hex digits.

  Args:
    params: path -> array.
    saved: a fingerprint to compare with, which is returned if it is theirs. Earlier versions saved
      one of another form, which does not depend on the order of an array's numbers.
  """
  if saved and not saved.startswith(_ORDERED) and saved == _unordered(params):
    return saved
  return _ORDERED + _digest(checksums(params))


def _unordered(params: Mapping[str, Any]) -> str:
  """The fingerprint of earlier versions."""
  sums: dict[str, int] = {}
  for path, value in zip(params, fingerprint(list(params.values())), strict=True):
    path = path.replace("/lower/", "/layers/")
    sums[path] = (sums.get(path, 0) + value) % 2**32
  return _digest(sums)


def _digest(sums: Mapping[str, Any]) -> str:
  return hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()[:16]
