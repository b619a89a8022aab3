"""The order of a run: which groups a step sees is a function of (seed, step) and of nothing else.

So there is no iterator state to save: a run that resumes at a step sees what it would have seen.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")


def step_groups(step: int, *, count: int, size: int, seed: int) -> np.ndarray:
  """The `size` groups of a step (counted from 0) of `count`: epochs of permutations, end to end."""
  wanted = np.arange(step * size, (step + 1) * size)
  epochs = wanted // count
  out = np.empty(size, np.int64)
  for epoch in np.unique(epochs):
    order = np.random.default_rng([seed, int(epoch)]).permutation(count)
    here = epochs == epoch
    out[here] = order[wanted[here] % count]
  return out


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
