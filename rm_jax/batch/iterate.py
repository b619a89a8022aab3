"""The order of a run: which groups a step sees is a function of (seed, step) and of nothing else.

So there is no iterator state to save: a run that resumes at a step sees what it would have seen.
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
  """The groups of a step: of each part its share, in epochs of permutations, end to end.

  Args:
    step: counted from 0.
    parts: int arrays, which groups a part has; each is gone through in epochs of its own.
    rates: a part's share of every step, summing to 1. To less than a group it holds at every step.
    size: groups of a step.
    seed: of the permutations.

  Returns:
    int64 [size].
  """
  largest = int(np.argmax(rates))

  def taken(steps: int) -> np.ndarray:
    """How many groups of each part the first `steps` steps have; the largest has what is left."""
    counts = np.floor(np.asarray(rates) * (steps * size) + 1e-9).astype(np.int64)
    counts[largest] = 0
    counts[largest] = steps * size - counts.sum()
    return counts

  chosen = []
  for p, (part, first, last) in enumerate(zip(parts, taken(step), taken(step + 1), strict=True)):
    wanted = np.arange(first, last)
    for epoch in np.unique(wanted // len(part)):
      # The first part's key is the seed's own: what there is one part of has the order it had.
      key = [seed, int(epoch)] + ([p] if p else [])
      order = np.random.default_rng(key).permutation(len(part))
      chosen.append(part[order[wanted[wanted // len(part) == epoch] % len(part)]])
  return np.concatenate(chosen)


def bootstrap_counts(groups: int, members: int, seed: int) -> np.ndarray:
  """How often each member of an ensemble has each group in its data set: float32 [groups, members].

  Poisson(1) draws: the online bootstrap (Oza & Russell 2001).
  """
  rng = np.random.default_rng([seed, members])
  return rng.poisson(1.0, (groups, members)).astype(np.float32)


def ahead(
  function: Callable[[Item], Result], items: Iterable[Item], depth: int = 2
) -> Iterator[Result]:
  """Maps in order, in a thread that is `depth` items ahead of who consumes it."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = collections.deque()
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > depth:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
