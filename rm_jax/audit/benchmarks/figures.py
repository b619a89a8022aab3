"""Scores of a benchmark's items, and intervals of its published number.

Every number that `published` computes is a function of sums over items, such as the number of right
items in each subset and the number of items in it. So the M sums of R bootstrap resamples come from
a matrix product: of how often each resample has each of C clusters [R, C], and of the sums within
each cluster [C, M].
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rm_jax.audit.benchmarks.items import Item
from rm_jax.audit.scorer import Score, ScoreSteps, example_scores
from rm_jax.data.dialogue import key_of
from rm_jax.metrics import interval


def response_scores(score: Score, items: Sequence[Item]) -> list[np.ndarray]:
  """The scores of each item's responses, float64 [K]; see `scorer.example_scores`.

  Raises:
    ValueError: no items, or scores that are not one finite number for each row.
  """
  if not items:
    raise ValueError("items is empty; expected those of a benchmark's load")
  return example_scores(score, [item.example for item in items])


def step_scores(score_steps: ScoreSteps, items: Sequence[Item]) -> list[np.ndarray]:
  """The log-odds of each item's steps, float64 [steps]; each distinct solution is scored once.

  Raises:
    ValueError: no items, or scores that are not one finite number for each step.
  """
  rows: dict[Hashable, dict[str, Any]] = {}
  keys = []
  for item in items:
    prompt, steps = item.example.prompt, item.example.steps[0]
    keys.append((key_of(prompt), steps))
    asked = prompt if isinstance(prompt, str) else list(prompt)
    rows.setdefault(keys[-1], {"prompt": asked, "completions": list(steps)})
  if not rows:
    raise ValueError("items is empty; expected those of a benchmark's load")
  got = score_steps(list(rows.values()))
  if len(got) != len(rows):
    raise ValueError(f"score_steps gave {len(got)} arrays for {len(rows)} rows; expected as many")
  scored = {}
  for i, (key, one) in enumerate(zip(rows, got, strict=True)):
    scored[key] = interval.vector(one, f"scores of row {i}")
    if len(scored[key]) != len(key[1]):
      raise ValueError(
        f"row {i} has {len(key[1])} steps and {len(scored[key])} scores; expected one a step"
      )
  return [scored[key] for key in keys]


def rate(credits: npt.ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0) -> dict[str, Any]:
  """The mean of N credits in [0, 1], of items or steps, as {accuracy, interval, n}.

  Without credits accuracy and interval are None, with `why`; with too few clusters the interval
  alone is None, with `why`.

  Args:
    credits: [N].
    clusters: N labels; credits with the same label are resampled together.
    seed: of the bootstrap.
  """
  credit_N = np.asarray(credits, np.float64)
  n = len(credit_N)
  if not n:
    return {"accuracy": None, "interval": None, "n": 0, "why": "no items"}
  # Sums of thirds may round to more than 1.
  credit_N = np.clip(credit_N, 0.0, 1.0)
  found = interval.mean(credit_N, clusters, bounds=(0.0, 1.0), share=True, seed=seed).report()
  accuracy = min(float(credit_N.mean()), 1.0)
  return {"accuracy": accuracy, "interval": found.pop("interval"), "n": n} | found


def published(
  terms: npt.ArrayLike,
  clusters: Sequence[Hashable],
  value: Callable[[np.ndarray], np.ndarray],
  missing: Sequence[str] = (),
  *,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """The published number with its 95 % interval over clusters, by `interval.Resampling`.

  Args:
    terms: [N, M], the M summands of each of N items.
    clusters: N labels; items with the same label are resampled together.
    value: sums of the terms over items [..., M] -> the published number [...], NaN where it is not
      defined.
    missing: names of parts of the benchmark of which there are no items. If there are any, the
      number is not defined.
    resamples: number of bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    {score, interval, undefined: number of resamples without a value}, and `why` if score or
    interval is None.
  """
  term_NM = np.asarray(terms, np.float64)
  plan = interval.Resampling(clusters, resamples=resamples, seed=seed)
  sums_CM = np.zeros((plan.count, term_NM.shape[1]))
  np.add.at(sums_CM, plan.cluster_N, term_NM)
  with np.errstate(divide="ignore", invalid="ignore"):
    score = float(value(term_NM.sum(axis=0)))
    if missing or not np.isfinite(score):
      why = f"nothing of {', '.join(missing)}" if missing else "not defined for these items"
      return {"score": None, "interval": None, "undefined": resamples, "why": why}
    values = [value(times_RC @ sums_CM) for times_RC in plan.times()]
  values = np.concatenate(values) if values else np.zeros(0)
  found = plan.interval(score, values).report()
  undefined = int((~np.isfinite(values)).sum())
  return {"score": score, "interval": found.pop("interval"), "undefined": undefined} | found


def one_hot(names: Sequence[str], order: Sequence[str]) -> np.ndarray:
  """float64 [N, len(order)]: 1 where the item's name is that of the column, else 0.

  Args:
    names: one name for each of N items; a name that is not in `order` gives a row of zeros.
    order: names of the columns.
  """
  place = {name: i for i, name in enumerate(order)}
  out = np.zeros((len(names), len(order)))
  for n, name in enumerate(names):
    if name in place:
      out[n, place[name]] = 1.0
  return out


def by_subset(
  items: Sequence[Item],
  credits: npt.ArrayLike,
  *,
  seed: int = 0,
  clusters: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
  """Name of each subset -> `rate` of its items, in order of first occurrence.

  Args:
    items: of the benchmark.
    credits: [N], of each item.
    seed: of the intervals.
    clusters: [N], what is resampled together; None = the items' conversations.
  """
  credit_N = np.asarray(credits, np.float64)
  names = np.asarray([item.subset for item in items])
  return {
    name: rate_of(items, credit_N, names == name, seed=seed, clusters=clusters)
    for name in dict.fromkeys(names.tolist())
  }


def rate_of(
  items: Sequence[Item],
  credits: npt.ArrayLike,
  where: np.ndarray,
  *,
  seed: int = 0,
  clusters: Sequence[str] | None = None,
) -> dict[str, Any]:
  """`rate` of the items where a mask [N] is true; clusters as in `by_subset`."""
  at = np.flatnonzero(where)
  clusters = clusters or [item.example.conversation for item in items]
  return rate(np.asarray(credits, np.float64)[at], [clusters[i] for i in at], seed=seed)


def absent(items: Sequence[Item], order: Sequence[str]) -> list[str]:
  """The subsets in `order` of which there are no items."""
  there = {item.subset for item in items}
  return [name for name in order if name not in there]


def finite(value: float) -> float | None:
  """The value as a float; None if it is NaN or infinite, for which JSON has no word."""
  return float(value) if np.isfinite(value) else None
