"""Data: read any format, check it, tokenise with marks, pack into a few shapes, order."""

# The formats register themselves.
from rm_jax.data import feedback, pairs, published  # noqa: F401
from rm_jax.data.formats import register

__all__ = ["register"]
