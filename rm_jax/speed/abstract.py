"""The real training step on abstract arrays, for devices that need not be there.

Arrays are `jax.ShapeDtypeStruct`s with shardings, so that a step can be lowered and compiled for a
pod without weights, data or the pod.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from rm_jax.batch.fit import up
from rm_jax.batch.layout import Shape
from rm_jax.batch.pack import ALWAYS
from rm_jax.errors import InputError
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import BATCH, replicated, rows_multiple
from rm_jax.reward.architecture import planned_architecture
from rm_jax.speed.flops import Work, planned_work, sliding_windows
from rm_jax.train import text_penalty
from rm_jax.train.objective import Objective
from rm_jax.train.optimizer import make_optimizer, make_schedule
from rm_jax.train.run import abstract_state, make_packing
from rm_jax.train.step import compile_step
from rm_jax.types import ARRAYS, Batch


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
  """The devices to compile for.

  Args:
    topology: 'local' for this machine's devices, or that of a TPU, such as 'v5e:16x16', which need
      not be there.
    slices: number of such TPU slices, joined by the data centre's network.

  Raises:
    InputError: libtpu is missing, or knows no such topology or number of slices; or 'local' is
      asked for with more than one slice.
  """
  if topology == "local":
    if slices != 1:
      raise InputError(f"--slices={slices} and --topology=local: expected 1, or a TPU's topology")
    return jax.devices()
  from jax.experimental import topologies

  # Otherwise libtpu asks the cloud's metadata server what machine this is, and does not load while
  # another process has it loaded.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  # By default a v4 chip is described as two devices.
  options = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}
  if slices > 1:
    options["num_slices"] = slices
  try:
    return topologies.get_topology_desc(topology, "tpu", **options).devices
  except Exception as error:
    said = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"--topology={topology} --slices={slices}: {said}. Expected 'local', "
      "or a TPU topology that libtpu knows, as v5e:16x16 or v5p:4x4x4 (pip install 'rm_jax[tpu]')"
    ) from error


@dataclasses.dataclass(frozen=True)
class Layout:
  """The layout of a planned step: `micros` micro-batches of `shape`.

  `work` is the size of the whole step's input without padding: tokens, (query, key) pairs that
  attend, and predicted tokens (see `flops.Work`).
  """

  shape: Shape
  micros: int
  work: Work


def planned_layout(config: Any, network: Network, mesh: Mesh, *, tokens: int, marks: int) -> Layout:
  """The layout of a step whose groups are all alike, with responses of one length.

  Half of a group's columns are the prompt if responses share it; else all are its responses.

  Args:
    config: see configs/base.py.
    network: the model's.
    mesh: the devices.
    tokens: columns (tokens) of a group.
    marks: number of responses of a group.

  Raises:
    InputError: a group is longer than each of `data.row_lengths`.
  """
  data, m = config.data, rows_multiple(mesh)
  packing = make_packing(config, network, mesh)
  shared = tokens // 2 if packing.share else 0
  responses = (tokens - shared) // marks
  columns = max(data.row_lengths, default=up(max(tokens, data.max_length), 128))
  if tokens > columns:
    raise InputError(
      f"data.row_lengths={tuple(data.row_lengths)} has no row for a group of {tokens} tokens; give "
      f"a longer row, or --tokens of at most {columns}"
    )
  groups = max(1, columns // tokens) if data.pack else 1
  rows_needed = -(-data.batch_groups // groups)
  a_device = max(1, min(data.cells // columns, -(-rows_needed // m)))
  if data.pack and data.row_lengths:
    a_device = 1  # The row is as long as is said, whatever data.cells.
  micros = -(-rows_needed // (a_device * m))
  # A row has no more places for groups than there are groups for it.
  groups = min(groups, -(-data.batch_groups // (micros * a_device * m)))

  work = planned_work(
    data.batch_groups,
    tokens=tokens,
    shared=shared,
    ends=[shared + responses] * marks,
    causal=network.causal,
    sliding=sliding_windows(network.backbone),
  )
  if not data.pack:
    return Layout(Shape(a_device * m, columns, groups, marks), micros, work)
  # Roughly as `plan` in batch/layout.py: one long row a device. A window holds as many groups as
  # fit into `columns`, or one group in a row of a given length, or one sequence where kernels know
  # no branches.
  windows, copies = ((columns, a_device),), 1
  if data.row_lengths:
    columns = min(t for t in data.row_lengths if t >= groups * tokens)
    windows = ((up(tokens, packing.align), groups),)
  if packing.windows != "cheapest":
    length = up(shared + responses, packing.align)
    windows, copies = ((length, a_device * groups * marks),), marks if shared else 1
  shape = Shape(m, a_device * columns, a_device * groups, marks, windows, copies)
  return Layout(shape, micros, work)


def abstract_batch(
  config: Any,
  network: Network,
  mesh: Mesh,
  shape: Shape,
  *,
  needs: Iterable[str] = (),
) -> Batch:
  """A micro-batch as shapes, dtypes and shardings, with the arrays that the config asks for.

  Args:
    config: see configs/base.py.
    network: the model's.
    mesh: the devices.
    shape: of the micro-batch.
    needs: optional arrays that the objective cannot do without, beside those of the network.
  """
  c, head = config.model, network.head
  optional = {
    "starts": c.pooling == "mean",
    "token_type": not network.causal,
    "attributes": head.attributes,
    "members": c.members > 1 and c.bootstrap,
    "hidden": c.frozen_layers and c.keep_features,
  }
  names = ALWAYS | set(needs) | network.needs | {name for name, there in optional.items() if there}
  sizes = {
    "B": shape.rows,
    "T": shape.columns,
    "G": shape.groups,
    "K": shape.marks,
    "A": len(head.attributes),
    "M": c.members,
    "D": network.backbone.width,
  }
  sharding = NamedSharding(mesh, BATCH)

  def array(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  arrays = {
    name: array(
      *ARRAYS[name].shape(sizes), dtype=c.dtype if name == "hidden" else ARRAYS[name].dtype
    )
    for name in names
  }
  if shape.windows:
    windows = tuple(array(shape.rows, count, length) for length, count in shape.windows)
    places = array(shape.rows, shape.columns, shape.copies)
    arrays |= {"windows": windows, "segments": windows, "places": places}
  return Batch(**arrays)


def lower_step(
  config: Any, network: Network, mesh: Mesh, layout: Layout, *, kind: str = "pair"
) -> tuple[dict[str, Any], Any, Batch]:
  """Lowers the main programs of the real step.

  Args:
    config: see configs/base.py; its model's config.json is read where the loss needs a
      language-model head.
    network: the model's.
    mesh: the devices.
    layout: of the step.
    kind: of the feedback.

  Returns:
    ({'accumulate', 'apply' and, if a step looks ahead (see `Objective`), 'moments': a lowered
    program}, the abstract state, the abstract batch).

  Raises:
    ValueError: the loss does not learn from this kind of feedback, or the network's parameters do
      not fit the mesh or optimizer.freeze; or as `planned_architecture`.
  """
  objective = Objective(config.loss, {kind})
  optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer))
  own = jax.eval_shape(lambda: objective.init_params(jax.random.key(0)))
  if objective.text:
    own |= text_penalty.planned_head(planned_architecture(config), network)
  state = abstract_state(config, network, own, optimizer, mesh)
  step = compile_step(
    network, objective, optimizer, state, mesh, sources=1, dropout=config.model.dropout
  )
  everywhere = replicated(mesh)
  batch = abstract_batch(config, network, mesh, layout.shape, needs=objective.needs)
  gradients, sums = jax.eval_shape(step.zeros)
  gradients = {
    path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=state.params[path].sharding)
    for path, x in gradients.items()
  }
  sums = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere) for name, x in sums.items()
  }
  bits = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=everywhere)
  ahead = None
  if objective.looks_ahead:
    ahead = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
      jax.eval_shape(step.ahead, state, batch, bits),
    )
  lowered = {}
  with jax.set_mesh(mesh):
    lowered["accumulate"] = step.accumulate.lower(state, gradients, sums, batch, bits, ahead)
    lowered["apply"] = step.apply.lower(state, gradients, sums, ahead)
    if ahead is not None:
      lowered["moments"] = step.ahead.lower(state, batch, bits)
  return lowered, state, batch
