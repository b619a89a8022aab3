"""Sharding rules: logical axes of every parameter, and the mesh axes they are sharded over.

Parameters have named ("logical") axes, and `ShardingRules` maps each name to a mesh axis, as in
MaxText and t5x. Of what is computed the XLA compiler is told this, and infers the rest:

- `shard_rows`: activations are sharded by rows of the batch, over `ROWS`;
- `gather_layer`: a layer's parameters are all-gathered over 'fsdp' just before the layer runs (FSDP
  or ZeRO-3, Rajbhandari et al. 2020);
- `shard_embedded`: each device looks tokens up in the slice of the embedding's width that it holds;
- `map_rows_and_heads`: attention kernels, which it cannot partition, run on each device's own rows
  and heads.

Without the first three the compiler shards the width of the activations as it does that of the
parameters, and then all-gathers whole batches many times in every layer.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

# Mesh axes that the rows of a batch are sharded over. 'fsdp' is data parallelism too, but with
# sharded parameters, where 'data' replicates them.
ROWS = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class ShardingRules:
  """Logical axis of a parameter -> mesh axis that it is sharded over; None = replicated."""

  vocab: str | None = "tensor"
  embed: str | None = "fsdp"
  heads: str | None = "tensor"
  kv_heads: str | None = "tensor"
  mlp: str | None = "tensor"
  head_dim: str | None = None
  layers: str | None = None

  def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes."""
    return PartitionSpec(*(getattr(self, axis) if axis else None for axis in axes))


# Last two parts of a parameter's path -> logical axes of its dimensions; None = replicated.
_AXES = {
  "embed/embedding": ("vocab", "embed"),
  "text/embedding": ("vocab", "embed"),
  "lm_head/embedding": ("vocab", "embed"),
  "embed_position/embedding": (None, "embed"),
  "embed_token_type/embedding": (None, "embed"),
  "q/kernel": ("embed", "heads", "head_dim"),
  "k/kernel": ("embed", "kv_heads", "head_dim"),
  "v/kernel": ("embed", "kv_heads", "head_dim"),
  "o/kernel": ("heads", "head_dim", "embed"),
  "q/bias": ("heads", "head_dim"),
  "k/bias": ("kv_heads", "head_dim"),
  "v/bias": ("kv_heads", "head_dim"),
  "o/bias": (None,),
  "gate/kernel": ("embed", "mlp"),
  "up/kernel": ("embed", "mlp"),
  "down/kernel": ("mlp", "embed"),
  "gate/bias": ("mlp",),
  "up/bias": ("mlp",),
  "down/bias": (None,),
  "pooler/kernel": ("embed", None),
  "pooler/bias": (None,),
  "out/kernel": (None, None),
  "out/bias": (None,),
  "head/mix": (None,),
  "gating/kernel": (None, None),
  "gating/bias": (None,),
}


def matrix_axes(path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """Which axes of a kernel are its inputs and which its outputs.

  Args:
    path: of a parameter, such as 'backbone/layers/q/kernel'.

  Returns:
    (input axes, output axes) of a layer's kernel; None for any other parameter.
  """
  module = "/".join(path.split("/")[-2:])
  if not path.startswith(("backbone/layers/", "backbone/lower/")) or not path.endswith("/kernel"):
    return None
  # Axis 0 is the axis of layers: the parameters of all layers are stacked.
  inputs = 2 if module == "o/kernel" else 1
  return tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, 1 + len(_AXES[module])))


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
  """Logical axis of each dimension of a parameter.

  Args:
    path: of the parameter, such as 'backbone/layers/q/kernel'.
    ndim: its number of dimensions.

  Raises:
    KeyError: `_AXES` does not have the parameter, or has it with another number of dimensions.
      There is no default, since it would replicate a large parameter on every device without
      notice.
  """
  module = "/".join(path.split("/")[-2:])
  if module.endswith(("/lora_a", "/lora_b")):
    name, leaf = module.split("/")
    kernel, inputs = _AXES[f"{name}/kernel"], 2 if name == "o" else 1
    # The adapter's rank is small, so that it is not sharded.
    axes = (*kernel[:inputs], None) if leaf == "lora_a" else (None, *kernel[inputs:])
  else:
    axes = (None,) if "norm/" in module else _AXES.get(module)
  if axes is not None and ("/layers/" in path or "/lower/" in path):
    axes = ("layers", *axes)
  if axes is None or len(axes) != ndim:
    raise KeyError(f"no logical axes for parameter {path!r} of {ndim} dimensions; add it to _AXES")
  return axes


def _is_sharded() -> bool:
  """Whether the current mesh has the axes `ROWS` and more than one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size > 1 and set(ROWS) <= set(mesh.axis_names)


def on_one_cpu() -> bool:
  """Whether the program that is being traced will run on one CPU device."""
  mesh = jax.sharding.get_abstract_mesh()
  return jax.default_backend() == "cpu" and mesh.size <= 1


def _constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
  """`with_sharding_constraint` on the current mesh; does nothing unless `_is_sharded`."""
  return jax.lax.with_sharding_constraint(x, spec) if _is_sharded() else x


def shard_rows(h_BTD: jax.Array) -> jax.Array:
  """Shards activations by rows of the batch; their width is not sharded."""
  return _constrain(h_BTD, PartitionSpec(ROWS))


def map_rows_and_heads(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`shard_map` of attention over rows and heads, for kernels that the compiler cannot partition.

  Args:
    function: (q, k, v, per_row) -> output. q, k, v and the output are [B rows, M columns, heads, H
      head width], and each device has some of the rows and some of the heads of them; `per_row` is
      a pytree of arrays [B, ...], of which each device has some of the rows.

  Returns:
    the function of the whole arrays; `function` itself unless `_is_sharded`.
  """
  if not _is_sharded():
    return function
  heads = PartitionSpec(ROWS, None, ShardingRules().heads)
  return jax.shard_map(
    function,
    in_specs=(heads, heads, heads, PartitionSpec(ROWS)),
    out_specs=heads,
    check_vma=False,  # kernels do not declare over which mesh axes their outputs vary
  )


def shard_embedded(h_BTD: jax.Array) -> jax.Array:
  """Shards an embedding's output by its width first, as the embedding is, and then by rows.

  So each device looks tokens up in its own slice of the embedding's width, and the results are
  exchanged. With the second constraint alone the compiler would gather the whole embedding, or the
  activations of the whole batch, on every device.
  """
  return shard_rows(_constrain(h_BTD, PartitionSpec("data", None, "fsdp")))


def gather_layer(layer: Any, dtype: Any) -> Any:
  """All-gathers one layer's parameters over 'fsdp'; they stay sharded over 'tensor'.

  In the backward pass the gradients are summed over 'fsdp' and sharded again in one collective, a
  reduce-scatter.

  Args:
    layer: pytree of one layer's parameters, without an axis of layers.
    dtype: compute dtype. Kernels and biases of linear maps, and LoRA's matrices, are cast to it
      before they are sent, which in bfloat16 halves the bytes; the maps would cast them anyway.
  """
  if not _is_sharded():
    return layer

  def one(path, x):
    names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
    axes = logical_axes("/".join(names), x.ndim)
    cast = names[-1] in ("kernel", "bias", "lora_a", "lora_b") and "norm" not in names[-2]
    sharded, whole = ShardingRules().spec(axes), ShardingRules(embed=None).spec(axes)
    return _gather(x.astype(dtype) if cast else x, sharded, whole)

  return jax.tree_util.tree_map_with_path(one, layer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, sharded: PartitionSpec, whole: PartitionSpec) -> jax.Array:
  # The VJP is custom, because the gradient gets the sharding `sharded` and the result `whole`.
  del sharded
  return _constrain(x, whole)


def _gather_forward(x, sharded, whole):
  return _gather(x, sharded, whole), None


def _gather_backward(sharded, whole, _, gradient):
  del whole
  return (_constrain(gradient, sharded),)


_gather.defvjp(_gather_forward, _gather_backward)
