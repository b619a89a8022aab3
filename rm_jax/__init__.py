"""rm_jax: reward models from a pretrained transformer and human judgements, in JAX."""

from typing import Any

__all__ = ["RewardModel"]


def __getattr__(name: str) -> Any:
  # On first use: who wants only a loss or the data should not wait for everything.
  if name == "RewardModel":
    from rm_jax.api import RewardModel

    return RewardModel
  raise AttributeError(f"module 'rm_jax' has no attribute {name!r}")
