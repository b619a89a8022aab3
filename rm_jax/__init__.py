"""rm_jax: reward models from a pretrained transformer and human judgements, in JAX."""

from typing import Any

__all__ = ["RewardModel"]


def __getattr__(name: str) -> Any:
  # Imported on first use: `rm_jax.api` imports most of the package, and a program that only needs a
  # loss or reads data should not wait for that.
  if name == "RewardModel":
    from rm_jax.api import RewardModel

    return RewardModel
  raise AttributeError(f"module 'rm_jax' has no attribute {name!r}")
