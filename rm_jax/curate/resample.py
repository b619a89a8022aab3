"""Target proportions: of sources, topics, length buckets; by leaving rows out or by weights."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from rm_jax.data.report import DataError


def _shares(keys: Sequence[str], targets: Mapping[str, float]) -> collections.Counter:
  """Counts of the keys, after a look at the targets."""
  counts = collections.Counter(keys)
  if not counts:
    raise DataError("no row to resample")
  unnamed = sorted(set(counts) - set(targets))
  absent = sorted(k for k, share in targets.items() if share > 0 and not counts[k])
  if unnamed or absent:
    raise DataError(
      f"resampling: rows have keys without a target {unnamed}; targets without rows {absent}. "
      f"Counts: {dict(counts.most_common())}; give each a share (0 leaves its rows out)"
    )
  total = sum(targets.values())
  if any(not 0 <= share <= 1 for share in targets.values()) or abs(total - 1) > 1e-6:
    raise DataError(f"resampling: targets {dict(targets)} sum to {total:g}; expected shares, sum 1")
  return counts


def subsample(keys: Sequence[str], targets: Mapping[str, float], seed: int = 0) -> np.ndarray:
  """Which rows to keep so that the keys have the target shares; as many as there can be.

  Without replacement: total = min over keys of count / share, rounded down, and each key gets its
  share of it by largest remainder, so that a count is within one of share · total.

  Args:
    keys: [N], of each row.
    targets: key -> share; they sum to 1 and name every key.
    seed: of which rows.

  Returns:
    bool [N].

  Raises:
    DataError: targets that do not fit the keys, or leave no row.
  """
  counts = _shares(keys, targets)
  named = [key for key in targets if targets[key] > 0]
  total = int(min(counts[key] / targets[key] for key in named) + 1e-9)
  # No quota is over its count: share · total <= count, a whole number, so rounding up is too.
  quota = _largest_remainder(named, targets, total)
  if not total:
    raise DataError(f"resampling to {dict(targets)} leaves no row of {dict(counts)}")
  rng = np.random.Generator(np.random.PCG64(seed))
  keep = np.zeros(len(keys), bool)
  rows_of: dict[str, list[int]] = {}
  for i, key in enumerate(keys):
    rows_of.setdefault(key, []).append(i)
  for key in sorted(named):
    keep[rng.permutation(np.asarray(rows_of[key]))[: quota[key]]] = True
  return keep


def _largest_remainder(named: list[str], targets: Mapping[str, float], total: int):
  exact = {key: targets[key] * total for key in named}
  quota = {key: int(value + 1e-9) for key, value in exact.items()}
  left = total - sum(quota.values())
  for key in sorted(named, key=lambda k: (quota[k] - exact[k], k))[:left]:
    quota[key] += 1
  return quota


def weights(keys: Sequence[str], targets: Mapping[str, float]) -> np.ndarray:
  """Factors of the rows' weights that give the keys the target shares, their mean 1; float64 [N].

  target / (count / N) of the row's key: every row stays, and those of a key with target 0 weigh 0.

  Raises:
    DataError: as `subsample`.
  """
  counts = _shares(keys, targets)
  return np.asarray([targets[key] * len(keys) / counts[key] for key in keys])


def parse_targets(text: str, keys: Sequence[str]) -> dict[str, float]:
  """'a=0.7,b=0.3', or 'equal': the same share for each key that there is.

  Raises:
    DataError: the text has not this form.
  """
  if text == "equal":
    names = sorted(set(keys))
    return {name: 1 / len(names) for name in names}
  targets: dict[str, float] = {}
  for part in text.split(","):
    name, _, share = part.rpartition("=")
    try:
      value = float(share)
    except ValueError:
      value = -1.0
    if not name or name in targets or not 0 <= value <= 1:
      raise DataError(f"resampling targets {text!r}: {part!r}; expected 'equal' or KEY=SHARE,...")
    targets[name] = value
  return targets
