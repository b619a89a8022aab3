"""Logical axes of every parameter, over which axes of a mesh they go, and how activations lie.

The compiler is told three things, and finds the rest: rows of activations are divided over `ROWS`,
a layer's parameters are gathered when the layer is about to run, and the embedding is looked up
where its columns are. Left to itself it divides the width of activations as the parameters are, and
then sends whole batches about, many times for each layer.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

# Mesh axes over which rows of a batch go: fsdp is data parallelism whose parameters are divided.
ROWS = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Rules:
  """Logical axis of a parameter -> mesh axis; None = not divided."""

  vocab: str | None = "tensor"
  embed: str | None = "fsdp"
  heads: str | None = "tensor"
  kv_heads: str | None = "tensor"
  mlp: str | None = "tensor"
  head_dim: str | None = None
  layers: str | None = None

  def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
    """Mesh axes of an array's logical axes."""
    return PartitionSpec(*(getattr(self, axis) if axis else None for axis in axes))


_AXES = {
  "embed/embedding": ("vocab", "embed"),
  "text/embedding": ("vocab", "embed"),
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
}


def matrix_axes(path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """(input axes, output axes) of a layer's kernel, which stands in a stack; None for all else."""
  module = "/".join(path.split("/")[-2:])
  if not path.startswith(("backbone/layers/", "backbone/lower/")) or not path.endswith("/kernel"):
    return None
  # Before them is the axis of layers.
  inputs = 2 if module == "o/kernel" else 1
  return tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, 1 + len(_AXES[module])))


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
  """Logical axis of each dimension of the parameter at `path` ('backbone/layers/q/kernel').

  Raises KeyError for a parameter that the table does not know: a parameter nobody decided about
  would be replicated on every device, silently.
  """
  module = "/".join(path.split("/")[-2:])
  if module.endswith(("/lora_a", "/lora_b")):
    name, leaf = module.split("/")
    kernel, inputs = _AXES[f"{name}/kernel"], 2 if name == "o" else 1
    # The rank is divided over nothing: it is small.
    axes = (*kernel[:inputs], None) if leaf == "lora_a" else (None, *kernel[inputs:])
  else:
    axes = (None,) if "norm/" in module else _AXES.get(module)
  if axes is not None and ("/layers/" in path or "/lower/" in path):
    axes = ("layers", *axes)
  if axes is None or len(axes) != ndim:
    raise KeyError(f"no logical axes for parameter {path!r} of {ndim} dimensions; add it to _AXES")
  return axes


def _divided() -> bool:
  """Whether the mesh in use has these axes, and more than one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size > 1 and set(ROWS) <= set(mesh.axis_names)


def on_one_cpu() -> bool:
  """Whether what is traced here is for one CPU alone."""
  mesh = jax.sharding.get_abstract_mesh()
  return jax.default_backend() == "cpu" and mesh.size <= 1


def _constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
  """Says to the compiler how an array lies on the mesh in use; nothing where that is one device."""
  return jax.lax.with_sharding_constraint(x, spec) if _divided() else x


def by_rows(h_BTD: jax.Array) -> jax.Array:
  """Activations of rows on the devices that have the rows."""
  return _constrain(h_BTD, PartitionSpec(ROWS))


def by_rows_and_heads(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`function(q, k, v, of_rows)` as each device runs it on its own rows and heads.

  For what the compiler cannot divide by itself. Of q, k, v and the output, [B, M, heads, H], a
  device has whole rows and some heads; of the arrays of `of_rows`, [B, ...], whole rows.
  """
  if not _divided():
    return function
  heads = PartitionSpec(ROWS, None, Rules().heads)
  return jax.shard_map(
    function,
    in_specs=(heads, heads, heads, PartitionSpec(ROWS)),
    out_specs=heads,
    check_vma=False,  # a kernel does not say over which axes its output differs
  )


def looked_up(h_BTD: jax.Array) -> jax.Array:
  """An embedding's output: made where the embedding's columns are, then sent to where its rows are.

  Else every device would take the whole embedding, or the whole batch's activations.
  """
  return by_rows(_constrain(h_BTD, PartitionSpec("data", None, "fsdp")))


def gathered(layer: Any, dtype: Any) -> Any:
  """One layer's parameters, gathered over fsdp to where they are used; `tensor` stays divided.

  The backward pass sums their gradients and divides them again in one (a reduce-scatter).

  Args:
    layer: pytree of one layer's parameters, without an axis of layers.
    dtype: of the compute: kernels are sent in it, as the linear maps would cast them anyway.
  """
  if not _divided():
    return layer

  def one(path, x):
    names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
    axes = logical_axes("/".join(names), x.ndim)
    cast = names[-1] in ("kernel", "bias", "lora_a", "lora_b") and "norm" not in names[-2]
    return _gather(x.astype(dtype) if cast else x, Rules().spec(axes), Rules(embed=None).spec(axes))

  return jax.tree_util.tree_map_with_path(one, layer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, divided: PartitionSpec, whole: PartitionSpec) -> jax.Array:
  del divided
  return _constrain(x, whole)


def _gather_forward(x, divided, whole):
  return _gather(x, divided, whole), None


def _gather_backward(divided, whole, _, gradient):
  del whole
  return (_constrain(gradient, divided),)


_gather.defvjp(_gather_forward, _gather_backward)
