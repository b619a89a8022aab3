"""Losses and penalties: pure functions, chosen in a config by their names here.

The last axis of scores and labels is the list: a prompt's responses, or the steps of solutions.
"""

from rm_jax.losses import regularisers
from rm_jax.losses.registry import LOSSES, Loss, asks_for_baseline, with_baseline

# Penalties on a list's scores, called as f(scores, where=where). The objective adds each with its
# weight in the config. `rm_jax.train.text_penalty` applies those on the likelihood of text.
REGULARISERS = {
  "l2": regularisers.l2,
  "centering": regularisers.centering,
  "spread": regularisers.spread,
}

__all__ = ["LOSSES", "REGULARISERS", "Loss", "asks_for_baseline", "with_baseline"]
