"""Figures with intervals over conversations, or None with the reason where there can be none.

`rm_jax.metrics` refuses what it cannot resample. A report is written at the end of hours of
training, so that here such a figure is None and its 'why' says what is missing.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import agreement
from rm_jax.metrics.correlation import bootstrap


def why_none(clusters: Sequence[Hashable]) -> str:
  """Why there is no interval over these conversations; '' where there is one."""
  count = len(set(clusters))
  if count > 1:
    return ""
  # One conversation alone says nothing of how conversations differ.
  return f"{count} conversation{'' if count == 1 else 's'}; an interval needs at least 2"


def _without(clusters: Sequence[Hashable]) -> dict[str, Any]:
  return {"interval": None, "why": why_none(clusters)}


def accuracy(credits: npt.ArrayLike, clusters: Sequence[Hashable]) -> dict[str, Any]:
  """`metrics.agreement.accuracy`; of no credit at all the accuracy is None."""
  if not why_none(clusters):
    return agreement.accuracy(credits, clusters)
  credit_N = agreement.vector(credits, "credits")
  return {
    "accuracy": float(credit_N.mean()) if len(credit_N) else None,
    "n": len(credit_N),
    "ties": int(np.count_nonzero(credit_N == 0.5)),
    "conversations": len(set(clusters)),
  } | _without(clusters)


def mean(values: npt.ArrayLike, clusters: Sequence[Hashable]) -> dict[str, Any]:
  """{value, interval, n} of the mean of [N] values, and `why` where there is no interval."""
  value_N = agreement.vector(values, "values")
  value, n = float(value_N.mean()) if len(value_N) else None, len(value_N)
  if why := why_none(clusters):
    return {"value": value, "interval": None, "n": n, "why": why}
  bounds = agreement.cluster_bootstrap(value_N, clusters)
  return {"value": value, "interval": list(bounds), "n": n}


def paired(a: npt.ArrayLike, b: npt.ArrayLike, clusters: Sequence[Hashable]) -> dict[str, Any]:
  """`metrics.agreement.paired_difference`; of no pair at all the difference is None."""
  if not why_none(clusters):
    return agreement.paired_difference(a, b, clusters)
  difference_N = agreement.vector(a, "a") - agreement.vector(b, "b")
  value = float(difference_N.mean()) if len(difference_N) else None
  return {"difference": value} | _without(clusters)


def statistic(
  function: Callable[..., float],
  arrays: Sequence[npt.ArrayLike],
  clusters: Sequence[Hashable],
  undefined: str,
) -> dict[str, Any]:
  """`metrics.correlation.bootstrap` of a statistic, with `why` where it or its interval is None.

  Args:
    function: of the arrays; NaN where it is not defined.
    arrays: each [N], of the same N.
    clusters: N conversations.
    undefined: why it would not be defined, for people.
  """
  if why_none(clusters):
    value = float(function(*map(np.asarray, arrays))) if len(clusters) else float("nan")
    fine = np.isfinite(value)
    found = {"value": value if fine else None, "undefined": 0} | _without(clusters)
  else:
    found = bootstrap(function, arrays, clusters)
  if found["value"] is None:
    found["why"] = undefined
  return found
