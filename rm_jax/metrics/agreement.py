"""Agreement of scores with observed preferences, with intervals.

A pair earns the credit 1 if the chosen response scores higher, 0 if it scores lower, and 0.5 at a
tie, which is what a coin earns on average. Pairs of one conversation are not independent, so
intervals treat whole conversations as the units; see `rm_jax.metrics.interval`.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.metrics import interval
from rm_jax.metrics.interval import vector


def credit(scores_chosen: npt.ArrayLike, scores_rejected: npt.ArrayLike) -> np.ndarray:
  """Credit of each pair: 1 if chosen > rejected, 0 if chosen < rejected, 0.5 at an exact tie.

  Args:
    scores_chosen: [N], in any unit. Scores are compared in float64, which represents every
      narrower float exactly, so the comparison makes no tie of its own.
    scores_rejected: [N].

  Returns:
    float64 [N].

  Raises:
    ValueError: if the shapes are not the same [N], or a score is NaN or infinite.
  """
  chosen = vector(scores_chosen, "scores_chosen")
  rejected = vector(scores_rejected, "scores_rejected")
  _same_length(chosen, rejected, "scores_chosen", "scores_rejected")
  return (chosen > rejected) + 0.5 * (chosen == rejected)


def longest(lengths_chosen: npt.ArrayLike, lengths_rejected: npt.ArrayLike) -> np.ndarray:
  """Credit of the rule 'the longer response is better', float64 [N]; lengths in the same unit."""
  return credit(lengths_chosen, lengths_rejected)


def shortest(lengths_chosen: npt.ArrayLike, lengths_rejected: npt.ArrayLike) -> np.ndarray:
  """Credit of the rule 'the shorter response is better', float64 [N]."""
  return credit(lengths_rejected, lengths_chosen)


def coin(n: int) -> np.ndarray:
  """Expected credit of a coin, float64 [n]: the baseline that any rule has to beat."""
  return np.full(n, 0.5)


def accuracy(
  credits: npt.ArrayLike,
  clusters: Sequence[Hashable],
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> dict:
  """Mean credit with its interval over conversations.

  Args:
    credits: [N], each 0, 0.5 or 1; see `credit`.
    clusters: N labels, the conversation of each pair.
    level, resamples, seed: of `interval.mean`.

  Returns:
    {accuracy, interval: [low, high], n: pairs, ties: pairs with credit 0.5, conversations}, and
    `method` if the interval is not by the cluster bootstrap. With too few conversations
    (`interval.too_few`) the interval is None, and `why` says so.

  Raises:
    ValueError: a credit has another value, there is no pair, or as `interval.mean`.
  """
  credit_N = vector(credits, "credits")
  odd = np.flatnonzero(~np.isin(credit_N, (0.0, 0.5, 1.0)))
  if odd.size:
    raise ValueError(f"credits[{odd[0]}] is {credit_N[odd[0]]}; expected 0, 0.5 or 1")
  if not credit_N.size:
    raise ValueError("credits is empty; expected at least one pair")
  options = {"level": level, "resamples": resamples, "seed": seed}
  found = interval.mean(credit_N, clusters, bounds=(0.0, 1.0), share=True, **options).report()
  return {
    "accuracy": float(credit_N.mean()),
    "interval": found.pop("interval"),
    "n": len(credit_N),
    "ties": int(np.count_nonzero(credit_N == 0.5)),
    "conversations": len(set(clusters)),
    **found,
  }


def paired_difference(
  a: npt.ArrayLike,
  b: npt.ArrayLike,
  clusters: Sequence[Hashable],
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> dict:
  """Mean of a − b over the same pairs, with its interval: is model a better than model b?

  Args:
    a: [N] credits (or any finite values) of one model. If all of a and b are in [0, 1], they are
      taken for credits.
    b: [N] credits of the other model, on the same pairs in the same order.
    clusters: N labels, the conversation of each pair.
    level, resamples, seed: of `interval.mean`.

  Returns:
    {difference}, and the interval as `interval.Interval.report` gives it.

  Raises:
    ValueError: if the lengths differ, there is no pair, or as `interval.mean`.
  """
  a_N, b_N = vector(a, "a"), vector(b, "b")
  _same_length(a_N, b_N, "a", "b")
  if not a_N.size:
    raise ValueError("a is empty; expected at least one pair")
  # Against a constant credit between 0 and 1, such as a coin's, a − b is a shifted share, and the
  # interval of a share applies: it has a width even if a was right in all pairs, as a may be wrong
  # in the next.
  share = bool(np.ptp(b_N) == 0 and 0 < b_N[0] < 1)
  credits = all(x.min() >= 0 and x.max() <= 1 for x in (a_N, b_N))
  bounds = ((-b_N[0], 1 - b_N[0]) if share else (-1.0, 1.0)) if credits else None
  options = {"level": level, "resamples": resamples, "seed": seed}
  found = interval.mean(a_N - b_N, clusters, bounds=bounds, share=credits and share, **options)
  return {"difference": float((a_N - b_N).mean()), **found.report()}


def _same_length(one: np.ndarray, other: np.ndarray, name: str, other_name: str) -> None:
  # Without this check numpy would broadcast a single value against all others.
  if len(one) != len(other):
    raise ValueError(f"{name} has {len(one)} values, {other_name} {len(other)}; expected as many")
