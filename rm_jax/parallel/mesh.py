"""Devices as a mesh, and how parameters, optimiser and batches are divided over it.

Parameters, optimiser state and batches are sharded arrays under `jax.jit`; XLA puts in the
communication. That is what pmap did for one case only (every device a copy, a `psum` by hand):
with mesh {'data': -1} the compiled step is the same all-reduce, and with 'fsdp' or 'tensor' the
same line of code is a sharded model.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rm_jax.errors import InputError
from rm_jax.parallel.axes import ROWS, Rules, logical_axes

AXES = ("data", "fsdp", "tensor")


# Rows of a batch go over both: fsdp is data parallelism whose parameters are divided too.
BATCH = PartitionSpec(ROWS)
RULES = Rules()


def parse_mesh(text: str) -> dict[str, int]:
  """'data=2,fsdp=128' -> {'data': 2, 'fsdp': 128, 'tensor': 1}; what is not named is 1.

  Raises:
    InputError: it is not of that form, or an axis is unknown or named twice.
  """
  sizes: dict[str, int] = {}
  for part in text.split(","):
    axis, equals, size = (x.strip() for x in part.partition("="))
    if axis not in AXES or axis in sizes or not equals or not size.lstrip("-").isdigit():
      raise InputError(
        f"--mesh={text}: {part!r} is not as expected; write axis=devices, each of "
        f"{', '.join(AXES)} at most once, as in 'data=2,fsdp=128'"
      )
    sizes[axis] = int(size)
  return dict.fromkeys(AXES, 1) | sizes


def make_mesh(sizes: Mapping[str, int], devices: list[Any] | None = None) -> Mesh:
  """A mesh of all devices.

  Devices of several slices (pods joined by a network slower than their own) lie so that only the
  `data` axis goes from slice to slice.

  Args:
    sizes: {'data', 'fsdp', 'tensor'} -> devices along it; one of them may be -1, the rest.
    devices: default, all of this run's.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or `data` is no multiple of the
      number of slices.
  """
  devices = jax.devices() if devices is None else devices
  wanted = [int(sizes[axis]) for axis in AXES]
  if wanted.count(-1) > 1 or any(n == 0 or n < -1 for n in wanted):
    raise InputError(f"mesh {dict(sizes)}: expected positive sizes, at most one of them -1")
  known = int(np.prod([n for n in wanted if n != -1]))
  if -1 in wanted and len(devices) % known == 0:
    wanted[wanted.index(-1)] = len(devices) // known
  if int(np.prod(wanted)) != len(devices):
    raise InputError(
      f"mesh {dict(sizes)} does not fit {len(devices)} devices; expected sizes that multiply to it"
    )
  slices = count_slices(devices)
  # On TPU alone a ring inside a slice and a way between slices are different things to XLA.
  if wanted[0] % slices and devices[0].platform == "tpu":
    raise InputError(
      f"mesh.data is {wanted[0]} and the devices are {slices} slices; expected a multiple of "
      f"{slices}, so that parameters are gathered inside a slice"
    )
  split = dict(allow_split_physical_axes=True)
  if slices > 1 and wanted[0] % slices == 0:
    inside = (wanted[0] // slices, *wanted[1:])
    laid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, **split)
  else:
    laid = mesh_utils.create_device_mesh(wanted, devices, **split)
  return Mesh(laid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def count_slices(devices: list[Any]) -> int:
  """In how many slices devices are; 1 where they do not say."""
  return len({getattr(device, "slice_index", None) for device in devices})


def rows_multiple(mesh: Mesh) -> int:
  """Over how many devices the rows of a batch are divided."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(
  shapes: Mapping[str, Any], mesh: Mesh, rules: Rules = RULES
) -> dict[str, NamedSharding]:
  """Sharding of each parameter by its logical axes.

  Args:
    shapes: path -> anything with a `shape`.
    mesh: from `make_mesh`.
    rules: see `Rules`.

  Raises:
    KeyError: a parameter of which no rule speaks.
    ValueError: a mesh axis that does not divide the dimension it should.
  """
  out = {}
  for path, leaf in shapes.items():
    # A few numbers that a loss learns; but for a language-model head, which is an embedding's size.
    if path.startswith("loss/") and not path.startswith("loss/text/"):
      out[path] = replicated(mesh)
      continue
    spec = []
    for size, axis in zip(leaf.shape, logical_axes(path, len(leaf.shape)), strict=True):
      over = getattr(rules, axis) if axis else None
      if over and size % mesh.shape[over]:
        raise InputError(
          f"mesh.{over} is {mesh.shape[over]}, which does not divide {size}, the {axis!r} axis of "
          f"{path} {leaf.shape}; choose a divisor"
        )
      spec.append(over)
    out[path] = NamedSharding(mesh, PartitionSpec(*spec))
  return out


def like_parameters(tree: Any, params: Mapping[str, Any], mesh: Mesh) -> Any:
  """Shardings for an optimiser's state: a parameter's own for what is kept of each parameter.

  Args:
    tree: shapes of the state.
    params: path -> anything with a `shape`.
    mesh: from `make_mesh`.
  """
  shardings = parameter_shardings(params, mesh)

  def of(path, leaf):
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    name = next((k for k in keys if k in shardings), None)
    same = name is not None and leaf.shape == params[name].shape
    return shardings[name] if same else replicated(mesh)

  return jax.tree_util.tree_map_with_path(of, tree)


def place_whole(tree: Any, mesh: Mesh) -> Any:
  """Host arrays, the same in every process -> arrays that are whole on every device.

  Unlike `jax.device_put`, which has the processes compare what they bring, this does not talk: it
  may be called in a thread.
  """
  everywhere = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index, x=x: x[index]),
    jax.tree.map(np.asarray, tree),
  )


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """Host arrays -> arrays whose rows are divided over the mesh.

  Every process holds the whole micro-batch on the host and hands over its own rows.
  """
  sharding = NamedSharding(mesh, BATCH)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index]), batch
  )
