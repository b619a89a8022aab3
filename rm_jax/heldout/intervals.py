"""Figures with intervals over conversations; None, with the reason in 'why', if there are no data.

The functions of `rm_jax.metrics` raise ValueError on empty input. A report is written at the end of
hours of training and must not fail there, so these wrappers return None instead.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy.typing as npt

from rm_jax.metrics import agreement, interval
from rm_jax.metrics.correlation import bootstrap

_NOTHING = {"interval": None, "why": interval.too_few(0, 0.0)}


def accuracy(
  credits: npt.ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0
) -> dict[str, Any]:
  """As `metrics.agreement.accuracy`; without credits the accuracy is None."""
  if len(clusters):
    return agreement.accuracy(credits, clusters, seed=seed)
  return {"accuracy": None, "n": 0, "ties": 0, "conversations": 0} | _NOTHING


def mean(
  values: npt.ArrayLike,
  clusters: Sequence[Hashable],
  bounds: tuple[float, float],
  *,
  share: bool = False,
  seed: int = 0,
) -> dict[str, Any]:
  """The mean of values: {value, n, interval}, with `method` or `why` as `Interval.report` has them.

  Args:
    values: float [N], within `bounds`.
    clusters: N conversations.
    bounds: the smallest and the largest possible value.
    share: whether the mean is a proportion (see `metrics.interval.mean`).
    seed: of the bootstrap.

  Raises:
    ValueError: a value is not finite or outside the bounds.
  """
  if not len(clusters):
    return {"value": None, "n": 0} | _NOTHING
  value_N = interval.vector(values, "values")
  found = interval.mean(value_N, clusters, bounds=bounds, share=share, seed=seed).report()
  return {"value": float(value_N.mean()), "n": len(value_N)} | found


def paired(
  a: npt.ArrayLike, b: npt.ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0
) -> dict[str, Any]:
  """As `metrics.agreement.paired_difference`; without values the difference is None."""
  if len(clusters):
    return agreement.paired_difference(a, b, clusters, seed=seed)
  return {"difference": None} | _NOTHING


def statistic(
  function: Callable[..., float],
  arrays: Sequence[npt.ArrayLike],
  clusters: Sequence[Hashable],
  undefined: str,
  *,
  scale: str,
  seed: int = 0,
  classes: npt.ArrayLike | None = None,
) -> dict[str, Any]:
  """As `metrics.correlation.bootstrap`; without a value `why` is `undefined`, also on empty input.

  Args:
    function: of the arrays; NaN if it is undefined.
    arrays: each [N].
    clusters: N conversations.
    undefined: the reason for the report if the statistic is undefined.
    scale, seed, classes: as `bootstrap` takes them.
  """
  if len(clusters):
    found = bootstrap(function, arrays, clusters, seed=seed, scale=scale, classes=classes)
  else:
    found = {"value": None, "undefined": 0} | _NOTHING
  if found["value"] is None:
    found["why"] = undefined
  return found
