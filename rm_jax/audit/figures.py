"""Figures as the audit reports them: a value, its interval by conversation, its n; or why none.

A figure is a dict of JSON's own types: {value, interval: [low, high], n}, and with a `why` where
the value or the interval is None. Intervals are 95 %.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import agreement, interval


def none(why: str, n: int = 0) -> dict:
  """The figure that is not defined, and why."""
  return {"value": None, "interval": None, "n": n, "why": why}


def mean(
  values: npt.ArrayLike,
  clusters: Sequence[Hashable],
  *,
  bounds: tuple[float, float] | None = None,
  seed: int = 0,
) -> dict:
  """Mean of [N] values with its interval; of a − b it is `agreement.paired_difference`.

  Args:
    values: [N], finite.
    clusters: N labels, the conversation of each.
    bounds: that no value can be outside of, where there are such.
    seed: of the bootstrap.

  Returns:
    A figure; with few conversations the interval is None, without a value both are.
  """
  value_N = interval.vector(values, "values")
  if not len(value_N):
    return none("there is nothing to take the mean of")
  found = interval.mean(value_N, clusters, bounds=bounds, seed=seed).report()
  return {
    "value": float(value_N.mean()),
    "interval": found.pop("interval"),
    "n": len(value_N),
  } | found


def share(credits: npt.ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0) -> dict:
  """Mean of [N] credits of 0, 0.5 (a tie) or 1, as `agreement.accuracy`; a figure with `ties`."""
  credit_N = interval.vector(credits, "credits")
  if not len(credit_N):
    return {**none("there is nothing to take the share of"), "ties": 0}
  found = agreement.accuracy(credit_N, clusters, seed=seed)
  found = {"value": found.pop("accuracy"), **found}
  del found["conversations"]
  return found


def by_scores(
  statistic: Callable[[np.ndarray, np.ndarray], float],
  scores: npt.ArrayLike,
  other: npt.ArrayLike,
  clusters: Sequence[Hashable],
  *,
  top: float,
  resamples: int = 500,
  seed: int = 0,
) -> dict:
  """A share among the top-scored, with its interval over conversations.

  It rests on the conversations that have a top score alone. Where those are few the interval is
  `interval.proportion`'s, with the jackknife's variance.

  Args:
    statistic: of (scores, other) -> a share in [0, 1].
    scores: [N].
    other: [N].
    clusters: N labels.
    top: share of the scores that is called top.
    resamples, seed: of the bootstrap.

  Returns:
    A figure; its n is N.
  """
  score_N, other_N = np.asarray(scores), np.asarray(other)
  figure = {"value": float(statistic(score_N, other_N)), "interval": None, "n": len(score_N)}
  seen = top_clusters(score_N, top, clusters)
  if why := interval.too_few(seen, float(seen)):
    return figure | {"why": f"of the top-scored, {why}"}
  if figure["value"] in (0.0, 1.0):
    found = interval.Interval(interval.wilson(figure["value"] * seen, seen), interval.WILSON)
  else:
    plan = interval.Resampling(clusters, resamples=resamples, seed=seed)
    if plan.why:
      return figure | {"why": plan.why}
    values = np.asarray([statistic(score_N[at], other_N[at]) for at in plan.rows()])
    found = plan.interval(figure["value"], values)
    if seen < interval.FEW:
      found = interval.proportion(figure["value"], plan.variance(values), seen, seen, 0.95)
  return figure | found.report()


def top_weights(scores: npt.ArrayLike, share: float) -> np.ndarray:
  """How far each of [N] scores is among the top `share`: 1, 0, or between where a tie is cut.

  The weights' sum is exactly share · N: equals at the edge share what room is left, so that no
  order of rows decides.

  Raises:
    ValueError: share is not in (0, 1), or a score is not finite.
  """
  if not 0 < share < 1:
    raise ValueError(f"share is {share}; expected it in (0, 1)")
  score_N = interval.vector(scores, "scores")
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
