"""Agreement of scores with observed preferences, and how far it can be trusted.

A pair earns 1 where the chosen response scores higher, 0 where lower and 0.5 at a tie, as a coin
would. Pairs of one conversation are not independent, so intervals resample conversations.

Cameron, Gelbach and Miller (2008), Bootstrap-based improvements for inference with clustered
errors: the pairs cluster bootstrap. Wilson (1927), Probable inference.
"""

import math
import statistics
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

_DRAWS = 1 << 22  # cluster draws held at once (32 MiB of indices)


def credit(scores_chosen: npt.ArrayLike, scores_rejected: npt.ArrayLike) -> np.ndarray:
  """Credit of each pair: 1 if chosen > rejected, 0 if less, 0.5 at an exact tie.

  Args:
    scores_chosen: [N], any unit; compared in float64, which holds every narrower float exactly.
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
  """Credit of the rule 'the longer response is better', float64 [N]; lengths in any one unit."""
  return credit(lengths_chosen, lengths_rejected)


def shortest(lengths_chosen: npt.ArrayLike, lengths_rejected: npt.ArrayLike) -> np.ndarray:
  """Credit of the rule 'the shorter response is better', float64 [N]."""
  return credit(lengths_rejected, lengths_chosen)


def coin(n: int) -> np.ndarray:
  """Expected credit of a coin, float64 [n]: the floor that any rule has to beat."""
  return np.full(n, 0.5)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
  """Wilson's score interval of a proportion of n independent trials.

  (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), with p = successes / n.

  Args:
    successes: in [0, n]; a tie counts half.
    n: trials, at least 1.
    level: confidence in (0, 1).

  Returns:
    (low, high) in [0, 1].

  Raises:
    ValueError: if an argument is out of its range.
  """
  _check_level(level)
  if n < 1 or not 0 <= successes <= n:
    raise ValueError(f"{successes} successes of {n}; expected 0 <= successes <= n and n >= 1")
  z = statistics.NormalDist().inv_cdf((1 + level) / 2)
  p = successes / n
  middle = p + z * z / (2 * n)
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  # At 0 and n the formula gives the bound exactly, and its rounding does not.
  low = 0.0 if successes == 0 else (middle - half) / scale
  high = 1.0 if successes == n else (middle + half) / scale
  return low, high


def cluster_bootstrap(
  values: npt.ArrayLike,
  clusters: Sequence[Hashable],
  level: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile interval of the mean of `values`, resampling whole clusters.

  Each resample draws as many clusters as there are, with replacement, and takes the sum of their
  values over the sum of their sizes.

  Args:
    values: [N], finite.
    clusters: N labels, any hashables; values with the same label are drawn together.
    level: confidence in (0, 1).
    resamples: how many, at least 1; 2000 leave the bounds uncertain by a few hundredths of the
      interval's width.
    seed: of the draws; the same arguments give the same interval.

  Returns:
    (low, high), in units of `values`.

  Raises:
    ValueError: if an argument is out of its range, or there are fewer than 2 clusters: then nothing
      is known of how clusters differ.
  """
  value_N = vector(values, "values")
  _check_level(level)
  if resamples < 1:
    raise ValueError(f"resamples is {resamples}; expected at least 1")
  cluster_N, n_clusters = numbered(clusters, len(value_N))
  if n_clusters < 2:
    raise ValueError(f"{n_clusters} cluster(s); resampling needs at least 2")
  sum_C = np.bincount(cluster_N, weights=value_N)
  size_C = np.bincount(cluster_N)
  rng = np.random.default_rng(seed)
  means = []
  chunk = max(1, _DRAWS // n_clusters)
  for start in range(0, resamples, chunk):
    rows = min(chunk, resamples - start)
    drawn_RC = rng.integers(n_clusters, size=(rows, n_clusters))
    means.append(sum_C[drawn_RC].sum(axis=1) / size_C[drawn_RC].sum(axis=1))
  low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


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
    level, resamples, seed: of `cluster_bootstrap`.

  Returns:
    {accuracy, interval: [low, high], n: pairs, ties: pairs with credit 0.5, conversations}. Where
    every credit is 0, or every one 1, no resample differs and the bootstrap would claim certainty:
    the interval is then Wilson's over the conversations.

  Raises:
    ValueError: if a credit is none of the three, or as `cluster_bootstrap`.
  """
  credit_N = vector(credits, "credits")
  odd = np.flatnonzero(~np.isin(credit_N, (0.0, 0.5, 1.0)))
  if odd.size:
    raise ValueError(f"credits[{odd[0]}] is {credit_N[odd[0]]}; expected 0, 0.5 or 1")
  low, high = cluster_bootstrap(credit_N, clusters, level, resamples, seed)
  mean = float(credit_N.mean())
  conversations = len(set(clusters))
  if mean in (0.0, 1.0):
    low, high = wilson(mean * conversations, conversations, level)
  return {
    "accuracy": mean,
    "interval": [low, high],
    "n": len(credit_N),
    "ties": int(np.count_nonzero(credit_N == 0.5)),
    "conversations": conversations,
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
    a: [N] credits (or any finite values) of one model.
    b: [N] of the other, on the same pairs in the same order.
    clusters: N labels, the conversation of each pair.
    level, resamples, seed: of `cluster_bootstrap`.

  Returns:
    {difference, interval: [low, high]}.

  Raises:
    ValueError: if the lengths differ, or as `cluster_bootstrap`.
  """
  a_N, b_N = vector(a, "a"), vector(b, "b")
  _same_length(a_N, b_N, "a", "b")
  low, high = cluster_bootstrap(a_N - b_N, clusters, level, resamples, seed)
  return {"difference": float((a_N - b_N).mean()), "interval": [low, high]}


def vector(values: npt.ArrayLike, name: str) -> np.ndarray:
  """float64 [N]; ValueError if it is not of one dimension, or has what is not finite."""
  array = np.asarray(values, dtype=np.float64)
  if array.ndim != 1:
    raise ValueError(f"{name} has shape {array.shape}; expected [N]")
  bad = np.flatnonzero(~np.isfinite(array))
  if bad.size:
    raise ValueError(
      f"{name}[{bad[0]}] is {array[bad[0]]} ({bad.size} not finite); expected finite"
    )
  return array


def _same_length(one: np.ndarray, other: np.ndarray, name: str, other_name: str) -> None:
  # Checked and not broadcast: a [B, 1] against a [B] is a classic of the field.
  if len(one) != len(other):
    raise ValueError(f"{name} has {len(one)} values, {other_name} {len(other)}; expected as many")


def numbered(labels: Sequence[Hashable], n: int) -> tuple[np.ndarray, int]:
  """Labels as 0, 1, .. in order of appearance, and how many there are."""
  if len(labels) != n:
    raise ValueError(f"{len(labels)} cluster labels for {n} values; expected as many")
  # By dict and not np.unique: an array of strings takes the longest one's room for each.
  number: dict[Hashable, int] = {}
  ids = np.fromiter((number.setdefault(x, len(number)) for x in labels), np.int64, n)
  return ids, len(number)


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ValueError(f"level is {level}; expected it in (0, 1)")
