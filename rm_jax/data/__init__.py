"""Reads feedback in any registered format into `Example`s of text; every dropped row is counted."""

# These modules register their formats when they are imported.
from rm_jax.data import feedback, pairs, published  # noqa: F401
from rm_jax.data.formats import register

__all__ = ["register"]
