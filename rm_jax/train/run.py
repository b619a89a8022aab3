"""A run: its packing, state and compiled step, and taking one step. `loop` drives it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.group import Group
from rm_jax.batch.iterate import bootstrap_counts, step_groups
from rm_jax.batch.layout import Micro, Packing, Shape, need, pack, plan
from rm_jax.batch.pack import assemble, optional_fields
from rm_jax.models.kernels import PACKING
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import (
  like_parameters,
  parameter_shardings,
  place_batch,
  place_whole,
  replicated,
  rows_multiple,
)
from rm_jax.reward.setup import TextModel, init_params, kept_dtype
from rm_jax.train import text_penalty
from rm_jax.train.objective import Objective
from rm_jax.train.optimizer import (
  applied,
  frozen_patterns,
  make_optimizer,
  make_schedule,
  split_frozen,
)
from rm_jax.train.step import compile_step
from rm_jax.train.window import zero_window
from rm_jax.types import Batch
from rm_jax.workdir.state import TrainState


def abstract_state(
  config: Any,
  network: Network,
  own: dict[str, jax.ShapeDtypeStruct],
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  sources: int = 1,
) -> TrainState:
  """The initial state of a `Run` as shapes, dtypes and shardings, without any arrays.

  Args:
    config: see configs/base.py.
    network: the model's.
    own: shapes of the losses' parameters, 'loss/...' -> shape.
    optimizer: from `make_optimizer`.
    mesh: of real devices, or of those of a topology that is only described.
    sources: number of data sources, whose metrics are kept apart.

  Raises:
    InputError: as `split_frozen` and `parameter_shardings`.
  """

  def placed(shapes, shardings):
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )

  params = {
    path: jax.ShapeDtypeStruct(x.shape, kept_dtype(network, path))
    for path, x in flatten_dict(network.abstract(), sep="/").items()
  } | own
  params = placed(params, parameter_shardings(params, mesh))
  trained, frozen = split_frozen(params, frozen_patterns(config))
  moments = jax.eval_shape(optimizer.init, trained)
  # eval_shape gives its results the shardings of its inputs; the real arrays have other ones.
  moments = placed(moments, like_parameters(moments, trained, mesh))
  everywhere = replicated(mesh)
  window = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
    for name, x in jax.eval_shape(lambda: zero_window(sources)).items()
  }
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
  return TrainState(step, trained, frozen, moments, window)


def make_packing(config: Any, network: Network, mesh: Mesh) -> Packing:
  """The packing that the `data` part of a config and the network's attention ask for."""
  data = config.data
  return Packing(
    share=data.share and network.causal,
    pack=data.pack,
    cells=data.cells,
    multiple=rows_multiple(mesh),
    row_lengths=tuple(data.row_lengths),
    shapes=data.shapes,
    **PACKING[network.attention],
  )


def plan_shapes(
  groups: Sequence[Group], step_groups: int, packing: Packing
) -> tuple[tuple[Shape, ...], ...] | None:
  """`batch.layout.plan` of a data set's groups; None if there are none."""
  return plan(groups, step_groups, packing) if groups else None


class Run:
  """A run's state and its step: `prepare` makes a step's micro-batches, `step` trains on them.

  Args:
    config: see configs/base.py.
    mesh: the devices.
    model: from `setup.build_model`.
    train_set: the training data.

  Attributes:
    state: the state between two steps.
    compiled: the jitted functions of a step.
    features: for each group of `train_set` the activations that enter the first trained layer, if
      the layers below are frozen and their output is kept; else None.
    references: for each group of `train_set` the log-likelihoods of the reference of an implicit
      reward, set before the first step; None where there is no reference.

  Raises:
    ValueError: config, data, devices and the checkpoint's tensors do not fit one another.
  """

  def __init__(self, config: Any, mesh: Mesh, model: TextModel, train_set: TokenDataset):
    self.config, self.mesh, self.model, self.train_set = config, mesh, model, train_set
    self.objective = Objective(config.loss, {e.kind for e in train_set.examples})
    self.packing = make_packing(config, model.network, mesh)
    self.needs = [need(g, self.packing) for g in train_set.groups]
    self.members = None
    if config.model.members > 1 and config.model.bootstrap:
      self.members = bootstrap_counts(len(train_set.groups), config.model.members, config.seed)
    self.parts, self.rates = train_set.parts(config.data.batch_groups)
    self.sources = sorted({g.source for g in train_set.groups})
    self.fields = optional_fields(train_set.groups) | self.objective.needs | model.network.needs
    self.shapes = plan_shapes(train_set.groups, config.data.batch_groups, self.packing)
    self.features = None
    self.references = None
    self.key = jax.random.key(config.seed)
    schedule = make_schedule(config.optimizer)
    optimizer = make_optimizer(config.optimizer, schedule)
    # The log calls the schedule. Jitted, that runs one program and not one for each operation.
    self.schedule = jax.jit(schedule)
    self.state = self._start(optimizer)
    self.compiled = compile_step(
      model.network,
      self.objective,
      optimizer,
      self.state,
      mesh,
      sources=len(self.sources),
      dropout=config.model.dropout,
    )

  def _start(self, optimizer) -> TrainState:
    params = init_params(self.model, self.mesh, jax.random.fold_in(self.key, 0), training=True)
    own = self.objective.init_params(jax.random.fold_in(self.key, 2))
    params |= place_whole(own, self.mesh)
    if self.objective.text:
      params |= text_penalty.load_head(self.model, self.mesh)
    trained, frozen = split_frozen(params, frozen_patterns(self.config))
    # Without out_shardings, jit would replicate Adam's moments on every device.
    shardings = like_parameters(jax.eval_shape(optimizer.init, trained), trained, self.mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(trained)
    step = place_whole(np.zeros((), np.int32), self.mesh)
    return TrainState(step, trained, frozen, opt_state, self.zero_window())

  def zero_window(self) -> dict[str, jax.Array]:
    """The sums of the metrics before a window's first step (train/window.py), on the mesh."""
    return place_whole(zero_window(len(self.sources)), self.mesh)

  def skipped(self) -> int:
    """Number of steps so far that were skipped because something in them was not finite.

    That is the loss, another sum of the metrics, the moments of decorrelation, or the gradient's
    norm: see `step.checked` and `step.make_apply`.
    """
    done, seen = jax.device_get((self.state.step, applied(self.state.optimizer)))
    return int(done) - int(seen)

  def micros(self, step: int) -> list[Micro]:
    """A step's groups, packed into micro-batches."""
    data = self.config.data
    chosen = step_groups(
      step, self.parts, self.rates, size=data.batch_groups, seed=self.config.seed
    )
    return pack(chosen, self.needs, self.shapes)

  def prepare(self, step: int) -> list[tuple[Batch, jax.Array]]:
    """A step's micro-batches on the devices, each with the bits of a key for dropout.

    It does not depend on the state, so that it can run ahead, in a thread.
    """
    micros = self.micros(step)
    key = jax.random.fold_in(jax.random.fold_in(self.key, 1), step)
    bits = np.asarray(jax.random.key_data(jax.random.split(key, len(micros))))
    placed = []
    for micro, micro_bits in zip(micros, bits, strict=True):
      batch, _ = assemble(
        micro,
        self.train_set.groups,
        packing=self.packing,
        fields=self.fields,
        sources=self.sources,
        features=self.features,
        members=self.members,
        references=self.references,
      )
      placed.append((place_batch(batch, self.mesh), place_whole(micro_bits, self.mesh)))
    return placed

  def step(self, micros: Sequence[tuple[Batch, jax.Array]]) -> dict[str, jax.Array]:
    """Dispatches a step on `prepare`'s micro-batches, without waiting for its result.

    Returns:
      scalars on the devices that may not be computed yet: 'skipped', 1 if the step was skipped,
      else 0; 'finite', whether all trained parameters are finite after it.
    """
    compiled = self.compiled
    gradients, sums = compiled.zeros()
    ahead = None
    if self.objective.looks_ahead:
      parts = [compiled.ahead(self.state, batch, bits) for batch, bits in micros]
      # Not `sum`, which begins with Python's 0: adding that to an array is a transfer from the
      # host, which the loop forbids during a step (`jax.transfer_guard` in train/loop.py).
      ahead = functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)
    for batch, bits in micros:
      gradients, sums = compiled.accumulate(self.state, gradients, sums, batch, bits, ahead)
    sums = compiled.checked(self.state.window, sums, ahead)
    self.state, pulse = compiled.apply(self.state, gradients, sums, ahead)
    return pulse | {"finite": compiled.finite(self.state.params)}
