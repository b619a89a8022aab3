"""Figures as the audit reports them: a value, its interval over conversations, and the sample size.

A figure is a dict of JSON's own types: {value, interval: [low, high], n: number of values that it
is computed from}, with `method` if the interval is not the bootstrap's. If the value or the
interval is None, `why` gives the reason. All intervals are 95 % confidence intervals over whole
conversations, since responses of the same conversation are not independent.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import agreement, interval


def none(why: str, n: int = 0) -> dict:
  """A figure without value and interval, for the reason `why`."""
  return {"value": None, "interval": None, "n": n, "why": why}


def mean(
  values: npt.ArrayLike,
  clusters: Sequence[Hashable],
  *,
  bounds: tuple[float, float] | None = None,
  seed: int = 0,
) -> dict:
  """The mean of [N] values, with its interval by `interval.mean`.

  Args:
    values: [N], finite.
    clusters: N conversations.
    bounds: (lowest, highest) possible value; None = the values have no bounds.
    seed: of the bootstrap.

  Returns:
    A figure. Its interval is None where `interval.mean` gives none; without values its value is
    None, too.

  Raises:
    ValueError: a value is not finite or outside the bounds, or there are not N conversations.
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
  """The mean of [N] credits of 0, 0.5 (a tie) or 1, as `agreement.accuracy` computes it.

  Returns:
    A figure with `ties`, the number of credits of 0.5.

  Raises:
    ValueError: a credit has another value, or there are not N clusters.
  """
  credit_N = interval.vector(credits, "credits")
  if not len(credit_N):
    return {**none("there is nothing to take the share of"), "ties": 0}
  found = agreement.accuracy(credit_N, clusters, seed=seed)
  found = {"value": found.pop("accuracy"), **found}
  del found["conversations"]
  return found


def top_share(
  statistic: Callable[[np.ndarray, np.ndarray], float],
  scores: npt.ArrayLike,
  other: npt.ArrayLike,
  clusters: Sequence[Hashable],
  *,
  top: float,
  resamples: int = 500,
  seed: int = 0,
) -> dict:
  """A share among the responses with the highest scores, such as the share of them that is flagged.

  Only conversations with a response among the top-scored carry information. If there are fewer than
  30 of these (`interval.FEW`), the bootstrap's percentiles would be too narrow: the interval is
  that of `interval.proportion`, with the variance over the replicates of `interval.Resampling`. If
  the share is 0 or 1, the interval is Wilson's with one trial for each of these conversations.

  Args:
    statistic: (scores, other) -> the share among the top-scored, in [0, 1].
    scores: [N].
    other: [N], what `statistic` reads beside the score.
    clusters: N conversations.
    top: share of the responses that counts as top-scored, in (0, 1); `statistic` must use the same.
    resamples, seed: of the bootstrap.

  Returns:
    A figure whose n is N. Its interval is None, for one, if fewer than 5 conversations have a
    top-scored response.

  Raises:
    ValueError: `top` is not in (0, 1), or a score is not finite.
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
  """Weights in [0, 1] with which each of [N] scores belongs to the top `share` of them.

  Scores that tie at the edge of the top get equal fractional weights, so that the result does not
  depend on the order of the rows. The weights sum to share · N.

  Raises:
    ValueError: share is not in (0, 1), or a score is not finite.
  """
  if not 0 < share < 1:
    raise ValueError(f"share is {share}; expected it in (0, 1)")
  score_N = interval.vector(scores, "scores")
  values, place, count = np.unique(score_N, return_inverse=True, return_counts=True)
  above = np.cumsum(count[::-1])[::-1] - count  # number of scores above each distinct value
  room = np.clip((share * len(score_N) - above) / count, 0, 1) if len(values) else above
  return room[place]


def top_clusters(scores: npt.ArrayLike, share: float, clusters: Sequence[Hashable]) -> int:
  """The number of clusters that have a score among the top `share`. Raises as `top_weights`."""
  at = np.flatnonzero(top_weights(scores, share))
  return len({clusters[i] for i in at})


def shown(figure: dict) -> str:
  """A figure as text: '0.61 [0.58, 0.64]', '0.61' without an interval, '-' without a value."""
  if figure["value"] is None:
    return "-"
  interval = figure["interval"]
  bounds = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
  return f"{figure['value']:.2f}{bounds}"
