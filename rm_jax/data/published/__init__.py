"""Formats of data sets and libraries that have columns of their own.

Each is an example of what `rm_jax.data.register` is for: a short function that says what the
columns mean. Its docstring names the source, and says which way the label points. A module holds
one job: `preferences` (two responses), `arenas` (two conversations), `ratings` (several responses,
or one with its ratings), `steps` (solutions in steps), `libraries` (what other libraries read).
"""

# These modules register their formats when they are imported.
from rm_jax.data.published import arenas, libraries, preferences, ratings, steps  # noqa: F401
