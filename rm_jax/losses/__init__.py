"""Losses and penalties: pure functions whose last axis is the list. Configs name them."""

from rm_jax.losses import regularisers
from rm_jax.losses.registry import LOSSES, Loss

# Penalties (scores, where=) that the objective adds with their weights in a config. Those on text
# take hidden states: `rm_jax.train.text_penalty`.
REGULARISERS = {
  "l2": regularisers.l2,
  "centering": regularisers.centering,
  "spread": regularisers.spread,
}

__all__ = ["LOSSES", "REGULARISERS", "Loss"]
