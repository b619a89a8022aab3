"""Figures with intervals over conversations, or None with the reason where the data have none.

`rm_jax.metrics` refuses to judge nothing at all. A report is written at the end of hours of
training, so that here such a figure is None and its 'why' says what is missing.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy.typing as npt

from rm_jax.metrics import agreement, interval
from rm_jax.metrics.correlation import bootstrap

_NOTHING = {"interval": None, "why": interval.too_few(0, 0.0)}


def accuracy(credits: npt.ArrayLike, clusters: Sequence[Hashable]) -> dict[str, Any]:
  """`metrics.agreement.accuracy`; of no credit at all the accuracy is None."""
  if len(clusters):
    return agreement.accuracy(credits, clusters)
  return {"accuracy": None, "n": 0, "ties": 0, "conversations": 0} | _NOTHING


def mean(
  values: npt.ArrayLike,
  clusters: Sequence[Hashable],
  bounds: tuple[float, float],
  *,
  share: bool = False,
) -> dict[str, Any]:
  """{value, interval, n} of the mean of [N] values, and `method` or `why` of `metrics.interval`.

  Args:
    values: in `bounds`.
    clusters: N conversations.
    bounds: the least and the largest that the mean can be.
    share: it is a proportion.
  """
  if not len(clusters):
    return {"value": None, "n": 0} | _NOTHING
  value_N = interval.vector(values, "values")
  found = interval.mean(value_N, clusters, bounds=bounds, share=share).report()
  return {"value": float(value_N.mean()), "n": len(value_N)} | found


def paired(a: npt.ArrayLike, b: npt.ArrayLike, clusters: Sequence[Hashable]) -> dict[str, Any]:
  """`metrics.agreement.paired_difference`; of no pair at all the difference is None."""
  if len(clusters):
    return agreement.paired_difference(a, b, clusters)
  return {"difference": None} | _NOTHING


def statistic(
  function: Callable[..., float],
  arrays: Sequence[npt.ArrayLike],
  clusters: Sequence[Hashable],
  undefined: str,
  *,
  scale: str,
) -> dict[str, Any]:
  """`metrics.correlation.bootstrap` of a statistic, with `why` where it or its interval is None.

  Args:
    function: of the arrays; NaN where it is not defined.
    arrays: each [N], of the same N.
    clusters: N conversations.
    undefined: why it would not be defined, for people.
    scale: as `bootstrap` takes it.
  """
  if len(clusters):
    found = bootstrap(function, arrays, clusters, scale=scale)
  else:
    found = {"value": None, "undefined": 0} | _NOTHING
  if found["value"] is None:
    found["why"] = undefined
  return found
