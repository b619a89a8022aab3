"""The state of a training run between two steps, which is what a checkpoint holds."""

import dataclasses
from typing import Any

import jax
from flax.traverse_util import unflatten_dict


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """The state of a training run between two steps; a pytree.

  Attributes:
    step: int32 [], number of steps done.
    params: trained parameters, path -> float32; those of losses have paths 'loss/...'.
    frozen: parameters that are not trained, path -> array.
    optimizer: optax's state, of `params`.
    window: sums of the metrics since the last log point, see `zero_window` in train/window.py.
  """

  step: jax.Array
  params: dict[str, jax.Array]
  frozen: dict[str, jax.Array]
  optimizer: Any
  window: dict[str, jax.Array]

  def all_params(self) -> dict:
    """The network's parameters, trained and frozen, as the nested dict that `Network` takes."""
    whole = unflatten_dict({**self.params, **self.frozen}, sep="/")
    whole.pop("loss", None)
    return whole

  def loss_params(self) -> dict[str, jax.Array]:
    """The losses' own parameters, trained and frozen, by path."""
    both = {**self.params, **self.frozen}
    return {path: x for path, x in both.items() if path.startswith("loss/")}
