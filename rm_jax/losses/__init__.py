"""Objectives: pure functions, the last axis the list; named in configs through `LOSSES`."""

from rm_jax.losses import regularisers
from rm_jax.losses.pairwise import logistic

LOSSES = {"logistic": logistic}
REGULARISERS = {"l2": regularisers.l2, "centering": regularisers.centering}

__all__ = ["LOSSES", "REGULARISERS", "logistic"]
