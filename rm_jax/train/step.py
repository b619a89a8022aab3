"""The training step: gradient accumulation over micro-batches, one division, one update.

    zeros -> accumulate (once for each micro-batch) -> checked -> apply

`objective` says what is minimised. Where it needs sums over the whole step before the gradient, the
micro-batches' `ahead` are added up first. `run.Run.step` calls these in order.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from rm_jax.losses.moments import penalty
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import replicated
from rm_jax.train.objective import Objective, mean_gradient
from rm_jax.train.window import batch_sums, zero_sums
from rm_jax.types import Batch
from rm_jax.workdir.state import TrainState


def make_accumulate(
  network: Network, objective: Objective, *, sources: int, dropout: bool
) -> Callable:
  """(state, gradients, sums, batch, key bits, ahead) -> (gradients, sums).

  Adds a micro-batch's gradient of `Objective.numerator` and its sums for the metrics. The random
  key is given as its bits, because several processes can only make a global array of plain numbers.

  Args:
    network: the model's.
    objective: of the run.
    sources: number of data sources, whose metrics are kept apart.
    dropout: whether dropout is on.
  """

  def accumulate(state: TrainState, gradients, sums, batch: Batch, bits, ahead=None):
    key = jax.random.wrap_key_data(bits)

    def numerator(params):
      whole = unflatten_dict({**params, **state.frozen}, sep="/")
      value, scored = objective.numerator(
        network,
        whole,
        batch,
        sources=sources,
        key=key if dropout else None,
        ahead=ahead,
      )
      return value, batch_sums(
        scored.judged, scored.loss, batch.with_feedback(), sources, scored.text
      )

    # The backward pass adds each parameter's gradient into its buffer as soon as it is known.
    # Adding two trees of gradients afterwards would hold both in memory.
    buffers = jax.tree.map(jax.new_ref, gradients)
    value, backward, new = jax.vjp(numerator, state.params, has_aux=True)
    backward.with_refs(buffers)(jnp.ones_like(value))
    return jax.tree.map(jax.freeze, buffers), jax.tree.map(jnp.add, sums, new)

  return accumulate


def make_ahead(network: Network, objective: Objective, *, dropout: bool) -> Callable:
  """(state, batch, key bits) -> `Objective.ahead`, by a forward pass of its own."""

  def ahead(state: TrainState, batch: Batch, bits) -> dict[str, jax.Array]:
    key = jax.random.wrap_key_data(bits)
    params = state.all_params()
    scores = network.apply(params, batch, key if dropout else None)
    return objective.ahead(network.reward(params, scores), batch)

  return ahead


def correlation_square(ahead: dict[str, jax.Array] | None) -> jax.Array:
  """float32 []: the squared correlation of score and length over the step; 0 if it is not known."""
  return penalty(ahead["length"]) if ahead and "length" in ahead else jnp.float32(0)


def all_finite(tree: Any) -> jax.Array:
  """bool []: no floating-point number of a tree's leaves is infinite or NaN."""
  floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def checked(
  window: dict[str, jax.Array],
  sums: dict[str, jax.Array],
  ahead: dict[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
  """The step's sums, with weight NaN if something is not finite, so that `apply` skips the step.

  Looked at are the step's sums added to the window's, the sums of `ahead`, and the penalty on them.
  A gradient divided by NaN is not finite, which `apply` sees. The gradient alone would not tell: a
  loss of infinity, such as one with a margin of 1e39, can have a finite gradient.

  This is a program of its own, because inside `apply` XLA would fuse it with the gradient's norm
  and round that differently.
  """
  added = {name: window[name] + value for name, value in sums.items()}
  whole = (ahead, correlation_square(ahead)) if ahead else ()
  fine = all_finite((added, whole))
  return sums | {"weight": jnp.where(fine, sums["weight"], jnp.nan)}


def make_apply(optimizer: optax.GradientTransformation) -> Callable:
  """(state, gradients, sums, ahead) -> (state, {'skipped': float32 [], 1 or 0}).

  Divides by the step's weight and updates. A step whose gradient has no finite norm is skipped: it
  only adds 1 to `step` and to the window's 'steps' and 'skipped'. Where the norm is finite the
  update may still overflow, with a learning rate or a decay that could not have worked; `Run.step`
  says afterwards whether the new parameters are finite, and the loop raises an error if not; a
  check here would need both old and new ones in memory.
  """

  def apply(state: TrainState, gradients, sums, ahead=None):
    mean = mean_gradient(gradients, sums["weight"])
    norm = optax.tree.norm(mean)
    fine = jnp.isfinite(norm)
    updates, new_optimizer = optimizer.update(mean, state.optimizer, state.params)
    new_params = optax.apply_updates(state.params, updates)

    def keep(new, old):
      return jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)

    here = sums | {
      "gradient_norm": jnp.where(fine, norm, 0.0),
      "skipped": 1.0 - fine,
      "steps": jnp.float32(1),
      "length_correlation_square": correlation_square(ahead),
    }
    # A skipped step adds only its counts to the window: if a loss that is not finite were added,
    # the losses of the window's other steps would be lost.
    here = jax.tree.map(lambda x: jnp.where(fine, x, 0.0), here) | {
      "skipped": here["skipped"],
      "steps": here["steps"],
    }
    new = TrainState(
      step=state.step + 1,
      params=keep(new_params, state.params),
      frozen=state.frozen,
      optimizer=keep(new_optimizer, state.optimizer),
      window=jax.tree.map(jnp.add, state.window, here),
    )
    return new, {"skipped": new.window["skipped"] - state.window["skipped"]}

  return apply


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step's functions under `jax.jit`; each is compiled when it is first called.

  Attributes:
    zeros: () -> (gradients, sums) before the first micro-batch.
    accumulate: from `make_accumulate`; donates the buffers of gradients and sums.
    ahead: from `make_ahead`.
    checked: `checked`.
    apply: from `make_apply`; donates the state's buffers.
    finite: `all_finite`.
  """

  zeros: Callable
  accumulate: Callable
  ahead: Callable
  checked: Callable
  apply: Callable
  finite: Callable


def compile_step(
  network: Network,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  mesh: Mesh,
  *,
  sources: int,
  dropout: bool,
) -> Compiled:
  """The step's functions, jitted with the shardings of their results.

  The last few of each are kept for the next runs in the same process. A run of another seed, or one
  that resumes, traces and compiles nothing again; a run with another loss compiles no new `apply`.

  Args:
    network: the model's.
    objective: of the run.
    optimizer: from `optimizer.make_optimizer`.
    state: only its leaves' shapes, dtypes and shardings are looked at, so it may be abstract.
    mesh: the devices.
    sources: number of data sources, whose metrics are kept apart.
    dropout: whether dropout is on.
  """
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  leaves, tree = jax.tree.flatten(state)
  params = tuple(state.params.items())
  zeros, accumulate, ahead = _summing(network, objective, params, mesh, sources, dropout)
  everywhere = replicated(mesh)
  return Compiled(
    zeros=zeros,
    accumulate=accumulate,
    ahead=ahead,
    checked=_everywhere(checked, everywhere),
    apply=_applying(optimizer, tree, tuple(leaves), everywhere),
    finite=_everywhere(all_finite, everywhere),
  )


@functools.lru_cache(maxsize=8)
def _summing(network, objective, params, mesh, sources, dropout) -> tuple[Callable, ...]:
  everywhere = replicated(mesh)
  shardings = {path: x.sharding for path, x in params}
  sums = dict.fromkeys(zero_sums(1), everywhere)

  def zeros():
    return {path: jnp.zeros(x.shape, x.dtype) for path, x in params}, zero_sums(sources)

  accumulate = make_accumulate(network, objective, sources=sources, dropout=dropout)
  ahead = make_ahead(network, objective, dropout=dropout)
  return (
    jax.jit(zeros, out_shardings=(shardings, sums)),
    jax.jit(accumulate, donate_argnums=(1, 2), out_shardings=(shardings, sums)),
    jax.jit(ahead, out_shardings=everywhere),
  )


@functools.lru_cache(maxsize=8)
def _applying(optimizer, tree, leaves, everywhere) -> Callable:
  shardings = jax.tree.unflatten(tree, [x.sharding for x in leaves])
  return jax.jit(
    make_apply(optimizer),
    donate_argnums=(0,),
    out_shardings=(shardings, {"skipped": everywhere}),
  )


@functools.lru_cache(maxsize=8)
def _everywhere(function, everywhere) -> Callable:
  return jax.jit(function, out_shardings=everywhere)
