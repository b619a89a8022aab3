"""Feedback as text: any format read, every row checked, what is dropped counted."""

# The formats register themselves.
from rm_jax.data import feedback, pairs, published  # noqa: F401
from rm_jax.data.formats import register

__all__ = ["register"]
