"""Logical axes of every parameter: what the sharding rules of a mesh are written in."""

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
