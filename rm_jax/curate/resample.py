"""Changes the proportions of keys (sources, length buckets ...), by dropping rows or by weights."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from rm_jax.data.report import DataError


def _shares(keys: Sequence[str], targets: Mapping[str, float]) -> collections.Counter:
  """Counts the keys, and raises DataError if the targets do not fit them."""
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
  _check_sum(targets)
  return counts


def _check_sum(targets: Mapping[str, float]) -> None:
  total = sum(targets.values())
  if any(not 0 <= share <= 1 for share in targets.values()) or abs(total - 1) > 1e-6:
    raise DataError(f"resampling: targets {dict(targets)} sum to {total:g}; expected shares, sum 1")


def subsample(keys: Sequence[str], targets: Mapping[str, float], seed: int = 0) -> np.ndarray:
  """Chooses as many rows as possible such that the keys have the target shares.

  Rows are drawn without replacement. The total is the minimum over the keys of count / share,
  rounded down. It is divided among the keys by the largest-remainder method, so that each key's
  number of rows differs from share · total by less than one.

  Args:
    keys: [N], the key of each row.
    targets: key -> share; the shares sum to 1 and every key is named.
    seed: of the draw of rows.

  Returns:
    bool [N], the rows to keep.

  Raises:
    DataError: there is no row, or the targets do not fit the keys or leave no row.
  """
  counts = _shares(keys, targets)
  named = [key for key in targets if targets[key] > 0]
  total = int(min(counts[key] / targets[key] for key in named) + 1e-9)
  # No key's quota exceeds its number of rows: share · total is at most this number, which is whole,
  # so it bounds the quota even where that is rounded up.
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
  """{key: number of rows}: share · total rounded down, or up for the largest fractions.

  As many are rounded up as it takes for the numbers to sum to `total`.
  """
  exact = {key: targets[key] * total for key in named}
  quota = {key: int(value + 1e-9) for key, value in exact.items()}
  left = total - sum(quota.values())
  for key in sorted(named, key=lambda k: (quota[k] - exact[k], k))[:left]:
    quota[key] += 1
  return quota


def weights(keys: Sequence[str], targets: Mapping[str, float]) -> np.ndarray:
  """Factors of the rows' weights that give the keys the target shares, float64 [N].

  The factor of a row is its key's target share divided by its key's share of the N rows, so the
  factors' mean is 1. The shares are of the sum of weights, for rows whose weights were equal. No
  row is dropped; the rows of a key with target 0 get weight 0.

  Raises:
    DataError: there is no row, or the targets do not fit the keys.
  """
  counts = _shares(keys, targets)
  return np.asarray([targets[key] * len(keys) / counts[key] for key in keys])


def parse_targets(text: str, keys: Sequence[str]) -> dict[str, float]:
  """Parses targets: 'a=0.7,b=0.3', or 'equal' for the same share of each key in `keys`.

  Raises:
    DataError: the text does not have this form or names a key twice, a share is not in [0, 1], or
      the shares do not sum to 1.
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
  _check_sum(targets)
  return targets
