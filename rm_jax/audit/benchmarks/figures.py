"""Scores of a benchmark's items, each text once, and its figures.

Every published number here is a function of sums over items (right ones of a subset, and how many
there are), so that its bootstrap is one product of draws and sums.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rm_jax.audit.benchmarks.items import Item
from rm_jax.metrics import interval
from rm_jax.types import Text

Score = Callable[[Sequence[tuple[Text, Text]]], npt.ArrayLike]
ScoreSteps = Callable[[Sequence[dict[str, Any]]], Sequence[npt.ArrayLike]]


def response_scores(score: Score, items: Sequence[Item]) -> list[np.ndarray]:
  """For each item float64 [K], its responses' scores; each distinct text is scored once.

  Raises:
    ValueError: there are no items, or `score` gave another number of scores or one that is not
      finite.
  """
  rows: dict[Hashable, tuple[Text, Text]] = {}
  keys = []
  for item in items:
    prompt = _key(item.example.prompt)
    keys.append([(prompt, _key(response)) for response in item.example.responses])
    for key, response in zip(keys[-1], item.example.responses, strict=True):
      rows.setdefault(key, (item.example.prompt, response))
  if not rows:
    raise ValueError("items is empty; expected those of a benchmark's load")
  got = interval.vector(score(list(rows.values())), "scores")
  if len(got) != len(rows):
    raise ValueError(f"score gave {len(got)} scores for {len(rows)} rows; expected as many")
  scored = dict(zip(rows, got, strict=True))
  return [np.asarray([scored[key] for key in mine]) for mine in keys]


def step_scores(score_steps: ScoreSteps, items: Sequence[Item]) -> list[np.ndarray]:
  """For each item float64 [steps], log-odds; each distinct solution is scored once.

  Raises:
    ValueError: there are no items, or `score_steps` gave what is not one finite number a step.
  """
  rows: dict[Hashable, dict[str, Any]] = {}
  keys = []
  for item in items:
    prompt, steps = item.example.prompt, item.example.steps[0]
    keys.append((_key(prompt), steps))
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


def _key(text: Text) -> Hashable:
  return text if isinstance(text, str) else tuple((m["role"], m["content"]) for m in text)


def rate(credits: npt.ArrayLike, clusters: Sequence[Hashable], *, seed: int = 0) -> dict[str, Any]:
  """{accuracy, interval over clusters, n} of credits in [0, 1], one an item; None where none is."""
  credit_N = np.asarray(credits, np.float64)
  n = len(credit_N)
  if not n:
    return {"accuracy": None, "interval": None, "n": 0, "why": "no items"}
  # Rounding could leave a mean of thirds above 1.
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
  """The published number with its 95 % interval over whole clusters, by `interval.Resampling`.

  Args:
    terms: [N, M] of N items.
    clusters: N labels; what shares one is drawn together.
    value: sums of terms [..., M] -> the number [...], NaN where it is not defined.
    missing: parts of the benchmark that the items have nothing of.
    resamples: how many.
    seed: of the draws.

  Returns:
    {score, interval, undefined: replicates without a value}, and `why` where one of the first two
    is None.
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
  """float64 [N, len(order)]: 1 where an item's name is that one; names not in it have none."""
  place = {name: i for i, name in enumerate(order)}
  out = np.zeros((len(names), len(order)))
  for n, name in enumerate(names):
    if name in place:
      out[n, place[name]] = 1.0
  return out


def by_subset(items: Sequence[Item], credits: npt.ArrayLike) -> dict[str, dict[str, Any]]:
  """{subset: `rate` of its items}, in the order in which subsets appear."""
  credit_N = np.asarray(credits, np.float64)
  names = np.asarray([item.subset for item in items])
  return {name: rate_of(items, credit_N, names == name) for name in dict.fromkeys(names.tolist())}


def rate_of(items: Sequence[Item], credits: npt.ArrayLike, where: np.ndarray) -> dict[str, Any]:
  """`rate` of some of the items, over their conversations."""
  at = np.flatnonzero(where)
  return rate(np.asarray(credits, np.float64)[at], [items[i].example.conversation for i in at])


def absent(items: Sequence[Item], order: Sequence[str]) -> list[str]:
  """Those subsets of `order` that no item is of."""
  there = {item.subset for item in items}
  return [name for name in order if name not in there]


def finite(value: float) -> float | None:
  """JSON has no NaN: None for it."""
  return float(value) if np.isfinite(value) else None
