"""Low-rank adaptation (Hu et al. 2021): W + (alpha / rank) A B, where only A and B are trained."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rm_jax.errors import InputError

# The linear maps of a layer that can have an adapter.
MAPS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class Lora:
  """Which linear maps have adapters, and of what size.

  Attributes:
    rank: of A B.
    alpha: A B is multiplied by alpha / rank.
    targets: names of `MAPS`; empty = all that the architecture has.
    base_dtype: in which the parameters of `is_base`, which are not trained, are stored: 'float32'
      or 'bfloat16'.

  Raises InputError for a rank under 1, or a target or a `base_dtype` that is not known.
  """

  rank: int
  alpha: float = 16.0
  targets: tuple[str, ...] = ()
  base_dtype: str = "float32"

  def __post_init__(self):
    object.__setattr__(self, "targets", tuple(self.targets))  # JSON has no tuples
    if self.rank < 1:
      raise InputError(f"model.lora.rank is {self.rank}; expected at least 1, or 0 for none")
    if unknown := [name for name in self.targets if name not in MAPS]:
      raise InputError(f"model.lora.targets has {unknown}; expected of {', '.join(MAPS)}")
    if self.base_dtype not in ("float32", "bfloat16"):
      raise InputError(
        f"model.lora.base_dtype is {self.base_dtype!r}; expected 'float32' or 'bfloat16'"
      )

  @property
  def scale(self) -> float:
    """What A B is multiplied by."""
    return self.alpha / self.rank

  def adapts(self, name: str) -> bool:
    """Whether the linear map of that name has an adapter."""
    return not self.targets or name in self.targets


class Adapted(nnx.LinearGeneral):
  """A linear map with an adapter; A is normal with variance 1 / inputs, B zero, both float32.

  With B zero, the first step starts from the function of the checkpoint.
  """

  def __init__(self, inputs, outputs, *, lora: Lora, rngs: nnx.Rngs, **options):
    super().__init__(inputs, outputs, rngs=rngs, **options)
    fan_in = 1
    for size in self.in_features:
      fan_in *= size
    std = fan_in**-0.5
    key = rngs.params()
    self.lora_a = nnx.Param(std * jax.random.normal(key, (*self.in_features, lora.rank)))
    self.lora_b = nnx.Param(jnp.zeros((lora.rank, *self.out_features)))
    self.scale = lora.scale

  def __call__(self, x: jax.Array) -> jax.Array:
    y = super().__call__(x)
    axes = tuple(range(x.ndim - len(self.in_features), x.ndim))
    inputs = tuple(range(len(axes)))
    options = dict(precision=self.precision)
    a, b = self.lora_a[...].astype(y.dtype), self.lora_b[...].astype(y.dtype)
    low = self.dot_general(x.astype(y.dtype), a, ((axes, inputs), ((), ())), **options)
    return y + self.scale * self.dot_general(low, b, (((low.ndim - 1,), (0,)), ((), ())), **options)


def is_base(path: str) -> bool:
  """Whether a parameter ('backbone/layers/q/kernel') is the language model's own and no adapter's.

  The language-model head, where it is a parameter of its own, is part of the base as well.
  """
  return path.startswith(("backbone/", "lm_head/")) and not path.endswith(("/lora_a", "/lora_b"))


def merged(params: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
  """Parameters of the same function without adapters: (alpha / rank) A B is added to its kernel.

  Args:
    params: path -> array; stacks of layers have a leading axis.
    lora: the adapters' record that they were trained with.

  Returns:
    path -> array, those of `is_base` in float32.
  """
  out = {p: jnp.asarray(x, jnp.float32) if is_base(p) else x for p, x in params.items()}
  for path in [p for p in out if p.endswith("/lora_a")]:
    module = path.removesuffix("/lora_a")
    a, b, kernel = out.pop(path), out.pop(f"{module}/lora_b"), out[f"{module}/kernel"]
    layers, rank = kernel.shape[0], a.shape[-1]
    low = jnp.matmul(
      a.reshape(layers, -1, rank), b.reshape(layers, rank, -1), precision=jax.lax.Precision.HIGHEST
    )
    out[f"{module}/kernel"] = kernel + lora.scale * low.reshape(kernel.shape)
  return out
