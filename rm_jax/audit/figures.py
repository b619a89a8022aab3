"""Figures as the audit reports them: a value, its interval by conversation, its n; or why none.

A figure is a dict of JSON's own types: {value, interval: [low, high], n}, and with a `why` where
the value or the interval is None. Intervals are 95 %.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import agreement


def none(why: str, n: int = 0) -> dict:
  """The figure that is not defined, and why."""
  return {"value": None, "interval": None, "n": n, "why": why}


def mean(values: npt.ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0) -> dict:
  """Mean of [N] values with its interval; of a − b it is `agreement.paired_difference`.

  Args:
    values: [N], finite.
    clusters: N labels, the conversation of each.
    seed: of the bootstrap.

  Returns:
    A figure; with fewer than 2 conversations the interval is None, without a value both are.
  """
  value_N = agreement.vector(values, "values")
  if not len(value_N):
    return none("there is nothing to take the mean of")
  figure = {"value": float(value_N.mean()), "interval": None, "n": len(value_N)}
  if len(set(clusters)) < 2:
    return {**figure, "why": "one conversation alone says nothing of how conversations differ"}
  return {**figure, "interval": list(agreement.cluster_bootstrap(value_N, clusters, seed=seed))}


def share(credits: npt.ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0) -> dict:
  """Mean of [N] credits of 0, 0.5 (a tie) or 1, as `agreement.accuracy`; a figure with `ties`."""
  credit_N = agreement.vector(credits, "credits")
  if len(set(clusters)) < 2:
    return {**mean(credit_N, clusters), "ties": int(np.count_nonzero(credit_N == 0.5))}
  found = agreement.accuracy(credit_N, clusters, seed=seed)
  return {"value": found["accuracy"], **{key: found[key] for key in ("interval", "n", "ties")}}


def unsure(figure: dict, conversations: int) -> dict:
  """A share's figure; where all are 0 or all are 1 no resample differs, and the bootstrap would
  claim certainty: its interval is then Wilson's over so many conversations."""
  if figure["value"] not in (0.0, 1.0):
    return figure
  bounds = agreement.wilson(figure["value"] * conversations, conversations)
  return {**figure, "interval": list(bounds)}


def top_weights(scores: npt.ArrayLike, share: float) -> np.ndarray:
  """How far each of [N] scores is among the top `share`: 1, 0, or between where a tie is cut.

  The weights' sum is exactly share · N: equals at the edge share what room is left, so that no
  order of rows decides.

  Raises:
    ValueError: share is not in (0, 1), or a score is not finite.
  """
  if not 0 < share < 1:
    raise ValueError(f"share is {share}; expected it in (0, 1)")
  score_N = agreement.vector(scores, "scores")
  values, place, count = np.unique(score_N, return_inverse=True, return_counts=True)
  above = np.cumsum(count[::-1])[::-1] - count  # how many score higher
  room = np.clip((share * len(score_N) - above) / count, 0, 1) if len(values) else above
  return room[place]


def top_clusters(scores: npt.ArrayLike, share: float, clusters: Sequence[Hashable]) -> int:
  """How many clusters have a score among the top `share`."""
  at = np.flatnonzero(top_weights(scores, share))
  return len({clusters[i] for i in at})


def shown(figure: dict) -> str:
  """'0.61 [0.58, 0.64]', or '-' where there is no value."""
  if figure["value"] is None:
    return "-"
  interval = figure["interval"]
  bounds = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
  return f"{figure['value']:.2f}{bounds}"
