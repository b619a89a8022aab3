"""Objectives: pure functions, the last axis the list; named in configs through `LOSSES`."""

from rm_jax.losses import regularisers
from rm_jax.losses.pairwise import logistic
from rm_jax.losses.registry import LOSSES, Loss

# Penalties of (scores, where=) that the training step adds by their weights in a config. Those of
# text are of hidden states: `rm_jax.train.text_penalty`.
REGULARISERS = {
  "l2": regularisers.l2,
  "centering": regularisers.centering,
  "spread": regularisers.spread,
}

__all__ = ["LOSSES", "REGULARISERS", "Loss", "logistic"]
