"""All that a run is between two steps: what a checkpoint holds."""

import dataclasses
from typing import Any

import jax
from flax.traverse_util import unflatten_dict


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a run is, between two steps.

  Attributes:
    step: int32, steps done.
    params: trained parameters, path -> float32; those of losses are 'loss/...'.
    frozen: the others.
    optimizer: optax's state.
    window: sums of the metrics since the last log point.
  """

  step: jax.Array
  params: dict[str, jax.Array]
  frozen: dict[str, jax.Array]
  optimizer: Any
  window: dict[str, jax.Array]

  def all_params(self) -> dict:
    """Trained and frozen parameters as the nested dict that a `Network` takes."""
    whole = unflatten_dict({**self.params, **self.frozen}, sep="/")
    whole.pop("loss", None)
    return whole

  def loss_params(self) -> dict[str, jax.Array]:
    """Those that are the losses' own, trained and frozen."""
    both = {**self.params, **self.frozen}
    return {path: x for path, x in both.items() if path.startswith("loss/")}
