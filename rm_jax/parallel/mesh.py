"""The mesh of devices, and how parameters, optimiser state and batches are sharded over it.

The functions of a training step are jitted on sharded arrays, and XLA inserts the communication.
With the mesh {'data': -1} this is plain data parallelism: the gradients are all-reduced, as by
`pmap` with a `psum`. With 'fsdp' or 'tensor' the same code trains a model whose parameters are
sharded.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rm_jax.errors import InputError
from rm_jax.parallel.axes import ROWS, ShardingRules, logical_axes

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(ROWS)


def parse_mesh(text: str) -> dict[str, int]:
  """'data=2,fsdp=128' -> {'data': 2, 'fsdp': 128, 'tensor': 1}; an axis that is not named is 1.

  Raises:
    InputError: the text is not of that form, or an axis is unknown or named twice.
  """
  sizes: dict[str, int] = {}
  for part in text.split(","):
    axis, equals, size = (x.strip() for x in part.partition("="))
    known = axis in AXES and axis not in sizes and equals
    # Not `isdigit`, which is true of '²' too; and int() refuses a text of thousands of digits.
    if not known or not re.fullmatch(r"-?[0-9]{1,9}", size):
      raise InputError(
        f"--mesh={text}: {part!r} is not as expected; write axis=devices, each of "
        f"{', '.join(AXES)} at most once, as in 'data=2,fsdp=128'"
      )
    sizes[axis] = int(size)
  return dict.fromkeys(AXES, 1) | sizes


def make_mesh(sizes: Mapping[str, int], devices: list[Any] | None = None) -> Mesh:
  """A mesh of all devices.

  Several TPU slices are joined by the data centre's network, which is much slower than the links
  inside a slice. They are laid out so that only the 'data' axis crosses slices: over the network
  gradients are all-reduced (once a micro-batch), and no parameters are all-gathered.

  Args:
    sizes: {'data', 'fsdp', 'tensor'} -> number of devices along the axis, 1 for an axis that is not
      there; -1, for one axis at most, stands for the number that uses up all devices.
    devices: by default all of this run's.

  Raises:
    InputError: there is another axis, a size is no whole number, the sizes do not multiply to the
      number of devices, a size is 0 or below -1, or 'data' is not a multiple of the number of TPU
      slices.
  """
  devices = jax.devices() if devices is None else devices
  if other := [axis for axis in sizes if axis not in AXES]:
    raise InputError(f"mesh {dict(sizes)} has {other}; expected axes of {', '.join(AXES)}")
  wanted = [sizes.get(axis, 1) for axis in AXES]
  if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in wanted):
    raise InputError(f"mesh {dict(sizes)}: expected whole numbers of devices")
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
  # XLA distinguishes links inside a slice from the network between slices on TPU only.
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
  """Number of slices that devices belong to; 1 where they have no slice index, as CPUs."""
  return len({getattr(device, "slice_index", None) for device in devices})


def rows_multiple(mesh: Mesh) -> int:
  """Number of shards of a batch's rows; row counts must be multiples of it."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that is whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
  """The sharding of each parameter, by its logical axes and `ShardingRules`.

  Args:
    shapes: path -> anything with a `shape`.
    mesh: from `make_mesh`.

  Raises:
    KeyError: a parameter has no logical axes.
    InputError: the size of a mesh axis does not divide the dimension that is sharded over it.
  """
  rules = ShardingRules()
  out = {}
  for path, leaf in shapes.items():
    # The parameters of a loss are a few numbers, which are replicated. The language-model head of a
    # penalty on text is sharded, as it is as large as the embedding.
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
  """Shardings of an optimiser's state: moments are sharded as their parameters are.

  Arrays of another shape than their parameter's (Adafactor's factored moments), or of no parameter
  (counters), are replicated.

  Args:
    tree: the state, or the shapes of its arrays.
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
  """Puts host arrays, the same in every process, whole on every device.

  Unlike `jax.device_put`, which checks across processes that the arrays are equal, this does not
  communicate. So a thread may call it: communication from several threads could come in another
  order on each process, and then never end.
  """
  everywhere = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index, x=x: x[index]),
    jax.tree.map(np.asarray, tree),
  )


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """Puts host arrays on the mesh, sharded by rows.

  Every process has the whole micro-batch on its host and puts only its own rows on its devices.
  """
  sharding = NamedSharding(mesh, BATCH)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index]), batch
  )
