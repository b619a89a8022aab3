"""The order of a run: of given data and batch size, a step's groups depend on (seed, step) alone.

So there is no iterator state to checkpoint: a run that resumes at a step sees the same groups as
one that was never interrupted.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")


def step_groups(
  step: int, parts: Sequence[np.ndarray], rates: Sequence[float], *, size: int, seed: int
) -> np.ndarray:
  """The groups of a step: a share of each part.

  Each part is read in epochs of its own: permutation after permutation, end to end.

  Args:
    step: counted from 0.
    parts: for each part an int array of indices of its groups.
    rates: each part's share of every step, summing to 1. After any number of steps each part but
      the one with the largest rate has had its share to within one group; that one has the rest.
    size: groups of a step.
    seed: of the permutations.

  Returns:
    int64 [size], indices of groups.
  """
  largest = int(np.argmax(rates))

  def taken(steps: int) -> np.ndarray:
    """How many groups of each part the first `steps` steps have."""
    counts = np.floor(np.asarray(rates) * (steps * size) + 1e-9).astype(np.int64)
    counts[largest] = 0
    counts[largest] = steps * size - counts.sum()
    return counts

  chosen = []
  for p, (part, first, last) in enumerate(zip(parts, taken(step), taken(step + 1), strict=True)):
    wanted = np.arange(first, last)
    for epoch in np.unique(wanted // len(part)):
      # The random key of the first part does not include its number 0, so that data with one part
      # keep the order of earlier versions, which had no parts.
      key = [seed, int(epoch)] + ([p] if p else [])
      order = np.random.default_rng(key).permutation(len(part))
      chosen.append(part[order[wanted[wanted // len(part) == epoch] % len(part)]])
  return np.concatenate(chosen)


def bootstrap_counts(groups: int, members: int, seed: int) -> np.ndarray:
  """How often each group is in the bootstrap sample of each member of an ensemble.

  Poisson(1) draws, the online bootstrap (Oza & Russell 2001); float32 [groups, members].
  """
  rng = np.random.default_rng([seed, members])
  return rng.poisson(1.0, (groups, members)).astype(np.float32)


def ahead(
  function: Callable[[Item], Result], items: Iterable[Item], depth: int = 2
) -> Iterator[Result]:
  """Maps a function in order, in a thread that works up to `depth` items ahead of the consumer."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = collections.deque()
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > depth:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
