"""Benchmarks of process reward models: ProcessBench and PRMBench.

A scorer returns, for each step of a solution, the log-odds that all steps up to and including it
are right, as `RewardModel.score_steps` does. A probability p in the papers is log-odds of
log p − log(1 − p).
"""

import functools
import itertools
import os
import re
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from rm_jax.audit.benchmarks.figures import (
  absent,
  by_subset,
  finite,
  one_hot,
  published,
  rate,
  rate_of,
  step_scores,
)
from rm_jax.audit.benchmarks.items import (
  Benchmark,
  Item,
  drawn_together,
  load_items,
  make_solution,
  split_name,
  whole_number,
)
from rm_jax.audit.scorer import ScoreSteps
from rm_jax.data.dialogue import text_of
from rm_jax.data.read import Row
from rm_jax.data.report import Report, RowError, shown

PARTS = ("gsm8k", "math", "olympiadbench", "omnimath")

# Ability -> classes of errors (PRMBench, section 3), in the spelling of the data set.
ABILITIES = {
  "simplicity": ("redundency", "circular"),
  "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
  "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
CLASSES = tuple(itertools.chain.from_iterable(ABILITIES.values()))


def load_processbench(*paths: str | os.PathLike, messages: bool, report: Report) -> list[Item]:
  """ProcessBench (Zheng et al. 2025): id, problem, steps, label; see `Benchmark.load`.

  The label is the index of the first wrong step, from 0, or -1 if all are right. The part of the
  benchmark is the file's name (gsm8k.json ..) or, for other names, the id's beginning ('gsm8k-0').
  """
  needs = ("id", "problem", "steps", "label")
  convert = functools.partial(_located, messages=messages)
  return load_items(
    paths, report, needs, convert, lambda found: [split_name(file) for file in found]
  )


def _located(row: Row, origin: str, name: str, *, messages: bool) -> Iterator[Item]:
  id = text_of(row["id"], "id")
  part = name if name in PARTS else id.rpartition("-")[0]
  if part not in PARTS:
    found = f"'id' is {shown(id)} in a file {shown(name)}"
    raise RowError("out_of_range", f"{found}; expected one of them to say {', '.join(PARTS)}")

  def labels(count: int) -> list[bool]:
    first = whole_number(row["label"], "label", -1, count - 1)
    return [first < 0 or i < first for i in range(count)]

  yield make_solution(
    row["problem"], row["steps"], labels, subset=part, origin=origin, messages=messages, id=id
  )


def evaluate_processbench(
  score_steps: ScoreSteps,
  items: Sequence[Item],
  *,
  threshold: float | None = None,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """ProcessBench's average F1 over its four parts; see `Benchmark.evaluate`.

  The model's answer is the index of the first step that scores below the threshold, or -1 if there
  is none. The F1 of a part is the harmonic mean of the accuracy on solutions with an error and the
  accuracy on solutions without one (0 if both are 0).

  Args:
    score_steps: see the module.
    items: as `load_processbench` returns them.
    threshold: in log-odds. None = the threshold with the best F1 on the GSM8K part, which the paper
      uses for process reward models (its repository has no code for it). The F1 of GSM8K is then
      optimistic.
    resamples, seed: of the bootstrap. The threshold is not chosen anew in each resample.

  Returns:
    what `Benchmark.evaluate` says, with `threshold`, `chosen_on` ('gsm8k' if the threshold was
    chosen, else None), and in each subset `f1` and its two accuracies, `on_erroneous` and
    `on_correct`.

  Raises:
    ValueError: threshold is None and the GSM8K part lacks solutions with an error or without one.
  """
  scores = step_scores(score_steps, items)
  truth = np.asarray([_first(np.asarray(item.example.labels) < 0.5) for item in items])
  names = np.asarray([item.subset for item in items])
  chosen_on = None
  if threshold is None:
    chosen_on = PARTS[0]
    mine = np.flatnonzero(names == chosen_on)
    threshold = best_threshold([scores[i] for i in mine], truth[mine])
  right = np.asarray([_first(s < threshold) for s in scores]) == truth
  erroneous = truth >= 0
  member = one_hot(names, PARTS)
  kinds = (erroneous & right, erroneous, ~erroneous & right, ~erroneous)
  terms = np.concatenate([member * kind[:, None] for kind in kinds], axis=1)

  def f1(sums: np.ndarray) -> np.ndarray:
    a, n, b, m = np.split(sums, 4, axis=-1)
    return _harmonic(a / n, b / m)

  clusters = [item.example.conversation for item in items]
  figure = published(
    terms,
    clusters,
    lambda sums: f1(sums).mean(-1),
    absent(items, PARTS),
    resamples=resamples,
    seed=seed,
  )
  with np.errstate(invalid="ignore"):
    parts = dict(zip(PARTS, f1(terms.sum(axis=0)), strict=True))
  subsets = by_subset(items, right, seed=seed)
  for name, one in subsets.items():
    one["f1"] = finite(parts[name])
    one["on_erroneous"] = rate_of(items, right, (names == name) & erroneous, seed=seed)
    one["on_correct"] = rate_of(items, right, (names == name) & ~erroneous, seed=seed)
  return {
    "benchmark": "processbench",
    **figure,
    "n": len(items),
    "subsets": subsets,
    "threshold": float(threshold),
    "chosen_on": chosen_on,
  }


def best_threshold(scores: Sequence[np.ndarray], truth: Sequence[int]) -> float:
  """The threshold with the best F1, where each step that scores below it is called wrong.

  Args:
    scores: float [steps] of each solution.
    truth: index of the first wrong step of each, or -1.

  Returns:
    A threshold between two running minima of the solutions' scores, or 1 below the lowest or above
    the highest of those at which an answer becomes right or wrong: only running minima change an
    answer. Of equally good thresholds that are tried it is the lowest.

  Raises:
    ValueError: there are no solutions with an error, or none without one.
  """
  # The answer is step k if the lowest score before step k is at least the threshold t and the score
  # of step k is below t. So the answer on a solution is right for t in one interval (least[k + 1],
  # least[k]], and each accuracy is the share of the solutions whose interval contains t.
  spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
  counts = {True: 0, False: 0}
  for one, first in zip(scores, truth, strict=True):
    least = np.concatenate([[np.inf], np.minimum.accumulate(one), [-np.inf]])
    k = first if first >= 0 else len(one)
    counts[first >= 0] += 1
    spans[first >= 0].append((least[k + 1], least[k]))  # empty if they are equal
  if not counts[True] or not counts[False]:
    found = f"{counts[True]} solutions with an error, {counts[False]} without"
    raise ValueError(f"no threshold can be chosen on {found}; expected both, or give a threshold")
  ends = np.unique([np.min(s) for s in scores] + [x for s in spans.values() for p in s for x in p])
  ends = ends[np.isfinite(ends)]
  # Thresholds to try: one below all `ends`, one between each two neighbours (the upper one itself
  # where rounding leaves nothing between), one above all. `ends` are the finite ends of all
  # intervals, at which an answer becomes right or wrong, and each solution's lowest score, so that
  # the first threshold is below all scores.
  middles = ends[:-1] / 2 + ends[1:] / 2
  between = np.where(middles > ends[:-1], middles, ends[1:])
  tried = np.concatenate([[ends[0] - 1], between, [ends[-1] + 1]])
  rates = []
  for kind in (True, False):
    low, high = (np.sort([span[i] for span in spans[kind]]) for i in (0, 1))
    inside = np.searchsorted(low, tried) - np.searchsorted(high, tried)
    rates.append(inside / counts[kind])
  return float(tried[np.argmax(_harmonic(*rates))])


def _first(wrong: np.ndarray) -> int:
  """The index of the first wrong step, or -1."""
  found = np.flatnonzero(wrong)
  return int(found[0]) if len(found) else -1


def _harmonic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """The harmonic mean 2ab / (a + b), elementwise; 0 where both are 0, NaN where one is NaN."""
  return np.where(a + b == 0, 0.0, 2 * a * b / np.where(a + b == 0, 1.0, a + b))


def load_prmbench(*paths: str | os.PathLike, messages: bool, report: Report) -> list[Item]:
  """PRMBench (Song et al. 2025); see `Benchmark.load`.

  The columns are idx, modified_question, modified_process, error_steps, classification and, where
  there is one, original_question. As in the authors' code, steps are numbered from 1, numbers in
  `error_steps` beyond the last step (in 100 rows) have no effect, and of rows with the same class
  and idx only the first is kept (5 of 6,216 rows are left out, which strict reading does not stop
  at). Steps keep the numbers that their texts begin with ('3. ..'), which the authors remove for
  some models. The 3 rows with an empty step, which `RewardModel.score_steps` refuses, are dropped
  as bad.

  A solution has up to nine variants, and a problem of PRM800K up to two solutions ('prm_test_p1_0',
  'prm_test_p2_1772'). All items of a problem are one conversation. Two items are of one problem if
  they have the same idx, prompt or original question: 77 of the 1,733 questions have several idx.
  In the hub's file, unlike in the authors' repository, an idx begins with the class
  ('circular_prm_test_p1_0'), which is removed.
  """
  question: dict[tuple[str, str], Hashable] = {}
  needs = ("modified_question", "modified_process", "error_steps", "classification", "idx")
  convert = functools.partial(_faulty, question=question, messages=messages, report=report)
  items = load_items(paths, report, needs, convert)
  return drawn_together(
    items, lambda item: (("idx", item.id), ("question", question[item.subset, item.id]))
  )


def _faulty(
  row: Row,
  origin: str,
  _: str,
  *,
  question: dict[tuple[str, str], Hashable],
  messages: bool,
  report: Report,
) -> Iterator[Item]:
  kind, id, errors = row["classification"], text_of(row["idx"], "idx"), row["error_steps"]
  if kind not in CLASSES:
    found = f"'classification' is {shown(kind)}"
    raise RowError("out_of_range", f"{found}; expected one of {', '.join(CLASSES)}")
  if not isinstance(errors, list) or any(
    isinstance(e, bool) or not isinstance(e, int) or e < 1 for e in errors
  ):
    found = f"'error_steps' is {shown(errors)}"
    raise RowError("out_of_range", f"{found}; expected steps' numbers, from 1")
  id = id.removeprefix(f"{kind}_")
  if (kind, id) in question:
    found = f"a second {kind} of idx {shown(id)}; the first is kept"
    report.drop("second_of_its_id", origin, found, fault=False)
    return
  item = make_solution(
    row["modified_question"],
    row["modified_process"],
    lambda count: [i not in errors for i in range(1, count + 1)],
    subset=kind,
    origin=origin,
    messages=messages,
    id=id,
  )
  original = row.get("original_question")
  # Some variants of a question lack the dollar signs and backslashes of its formulas.
  bare = re.sub(r"[\s$\\]+", "", original.casefold()) if isinstance(original, str) else ""
  question[kind, id] = bare or ("of the idx", id)
  yield item


def evaluate_prmbench(
  score_steps: ScoreSteps,
  items: Sequence[Item],
  *,
  threshold: float = 0.0,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, Any]:
  """PRMBench's PRMScore over all steps; see `Benchmark.evaluate`.

  PRMScore = (F1 + F1_neg) / 2, where F1 = 2TP / (2TP + FP + FN) takes right steps as positive and
  F1_neg takes wrong steps as positive. For the class multi_solutions, which has no wrong step,
  PRMScore is F1 alone; for an ability it is the mean over its classes. A step is called right if it
  scores above the threshold.

  If no step is called right, the authors' code may return an F1 of −1, and this function returns 0.
  Some of the authors' models have a second score for redundancy, which they use for the classes
  `redundency` and `circular`. Our models score only whether a step is right, and the authors' code
  uses the one score of such a model for all classes. Steps of one original problem are resampled
  together.

  Args:
    score_steps: see the module.
    items: as `load_prmbench` returns them.
    threshold: in log-odds; 0 is the probability 0.5, which the authors use.
    resamples, seed: of the bootstrap.

  Returns:
    what `Benchmark.evaluate` says, with `f1`, `negative_f1` (F1_neg), `abilities` {name: PRMScore,
    None if a class of it is missing}, `threshold`, and in each subset `prm_score`, `f1`,
    `negative_f1`. `n` is the number of solutions, but in
    `subsets` accuracy and `n` are of steps.
  """
  scores = step_scores(score_steps, items)
  rows, subsets = [], {}
  for one, item in zip(scores, items, strict=True):
    said, good = one > threshold, np.asarray(item.example.labels) > 0.5
    rows.append([np.sum(x) for x in (said & good, said & ~good, ~said & ~good, ~said & good)])
  table = np.asarray(rows, np.float64)
  names = np.asarray([item.subset for item in items])
  clusters = [item.example.conversation for item in items]
  scored = {}
  for name in dict.fromkeys(names.tolist()):
    mine = np.flatnonzero(names == name)
    f1, negative = _f1s(table[mine].sum(axis=0))
    scored[name] = f1 if name == "multi_solutions" else (f1 + negative) / 2
    subsets[name] = {
      **_step_accuracy(table[mine], [clusters[i] for i in mine], seed),
      "prm_score": finite(scored[name]),
      "f1": finite(f1),
      "negative_f1": finite(negative),
    }
  missing = absent(items, CLASSES)
  figure = published(
    table,
    clusters,
    lambda sums: sum(_f1s(sums)) / 2,
    missing,
    resamples=resamples,
    seed=seed,
  )
  f1, negative = _f1s(table.sum(axis=0))
  return {
    "benchmark": "prmbench",
    **figure,
    "n": len(items),
    "subsets": subsets,
    "f1": finite(f1),
    "negative_f1": finite(negative),
    "abilities": {
      name: finite(np.mean([scored.get(c, np.nan) for c in classes]))
      for name, classes in ABILITIES.items()
    },
    "threshold": float(threshold),
  }


def _f1s(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(F1, F1_neg) of counts [..., (TP, FP, TN, FN)]; NaN for 0 / 0."""
  tp, fp, tn, fn = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
  with np.errstate(invalid="ignore"):
    return 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)


def _step_accuracy(table: np.ndarray, clusters: Sequence[str], seed: int) -> dict[str, Any]:
  """{accuracy, interval, n} of the steps, by `rate`.

  Args:
    table: [N, 4], counts (TP, FP, TN, FN) of the steps of each solution.
    clusters: N conversations of the solutions.
    seed: of the bootstrap.
  """
  right_N = table[:, 0] + table[:, 2]
  count_N = table.sum(axis=1)
  # One credit for each step: for each solution first its ones (steps that are called right or wrong
  # as they are), then its zeros.
  each = np.stack([right_N, count_N - right_N], axis=1).astype(np.int64)
  credits = np.repeat(np.tile([1.0, 0.0], len(table)), each.ravel())
  of_steps = [c for c, n in zip(clusters, count_N.astype(int), strict=True) for _ in range(n)]
  return rate(credits, of_steps, seed=seed)


PROCESSBENCH = Benchmark("processbench", "steps", load_processbench, evaluate_processbench)
PRMBENCH = Benchmark("prmbench", "steps", load_prmbench, evaluate_prmbench)
