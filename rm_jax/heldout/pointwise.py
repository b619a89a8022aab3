"""Held-out reports of feedback on single responses and steps: outcomes, ratings, steps, attributes.

Scores of outcomes and steps are log-odds: 0 is where a response is as likely right as wrong.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.heldout import intervals
from rm_jax.losses.process import HOW
from rm_jax.metrics import agreement
from rm_jax.metrics.correlation import auroc, spearman
from rm_jax.reward.score import solution_scores
from rm_jax.types import Example

_ALIKE = "all labels are alike"
Drawn = tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]


def _flat(scores: Sequence[np.ndarray], examples: Sequence[Example]):
  """All marks: their scores, labels, and conversations."""
  score_N = np.concatenate([np.asarray(s, np.float64) for s in scores])
  label_N = np.concatenate([np.asarray(e.labels, np.float64) for e in examples])
  clusters = [e.conversation for e in examples for _ in e.labels]
  return score_N, label_N, clusters


def _binary(score_N: np.ndarray, label_N: np.ndarray, clusters: list[str]) -> dict[str, Any]:
  """Accuracy at 0 beside the more frequent answer's, AUROC, loss and Brier score."""
  good_N = label_N > 0.5
  frequent = good_N if good_N.mean() >= 0.5 else ~good_N
  right_N = ((score_N > 0) == good_N).astype(np.float64)
  rules = {"random": agreement.coin(len(good_N)), "most_frequent": frequent.astype(np.float64)}
  probability = np.exp(-np.logaddexp(0.0, -score_N))
  loss = label_N * np.logaddexp(0.0, -score_N) + (1 - label_N) * np.logaddexp(0.0, score_N)
  return intervals.accuracy(right_N, clusters) | {
    "loss": float(loss.mean()),
    "brier": float(np.square(probability - label_N).mean()),
    "base_rate": float(label_N.mean()),
    "auroc": intervals.statistic(auroc, (score_N, good_N), clusters, _ALIKE, scale="probability"),
    "baselines": {name: float(rule.mean()) for name, rule in rules.items()},
    "paired": {name: intervals.paired(right_N, rule, clusters) for name, rule in rules.items()},
  }


def outcomes(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> tuple[dict, Drawn]:
  """Report of outcome labels.

  Returns:
    `accuracy` at score 0 with `interval`, `auroc`, `loss` (nats), `brier`, `base_rate`, `baselines`
    {random, most_frequent} and `paired`; and `best_of` for lists of several: how often the
    highest-scored response is good, beside a random one's rate and the oracle's; and the scores of
    good and bad responses.
  """
  score_N, label_N, clusters = _flat(scores, examples)
  report = _binary(score_N, label_N, clusters)
  lists = [(s, e) for s, e in zip(scores, examples, strict=True) if len(e.responses) > 1]
  if lists:
    report["best_of"] = best_of(lists)
  good = label_N > 0.5
  return report, (("good", score_N[good]), ("bad", score_N[~good]))


def best_of(lists: Sequence[tuple[np.ndarray, Example]]) -> dict[str, Any]:
  """The response that the scores pick, beside what picks without them.

  Of equals each is as likely taken. `majority` takes a response with the most frequent final
  answer; `best_author` always that of the author who is right most often here, which only who
  knows the labels could. `vote` adds up the probabilities of being right by final answer (Cobbe et
  al. 2021's verifier, voting).
  """
  good_L = [np.asarray(e.labels) > 0.5 for _, e in lists]
  picked = [good[s == np.max(s)].mean() for good, (s, _) in zip(good_L, lists, strict=True)]
  rules = {
    "random": [good.mean() for good in good_L],
    "oracle": [float(good.any()) for good in good_L],
  }
  report = {}
  if all(e.answers for _, e in lists):
    votes = [np.exp(-np.logaddexp(0.0, -np.asarray(s, np.float64))) for s, _ in lists]
    examples = [e for _, e in lists]
    rules["majority"] = [
      _voted(e.answers, np.ones(len(g)), g) for e, g in zip(examples, good_L, strict=True)
    ]
    voted = [_voted(e.answers, v, g) for e, v, g in zip(examples, votes, good_L, strict=True)]
    report["vote"] = float(np.mean(voted))
  if len({frozenset(e.authors or ()) for _, e in lists}) == 1 and lists[0][1].authors:
    right = {
      author: [
        float(good[e.authors.index(author)]) for good, (_, e) in zip(good_L, lists, strict=True)
      ]
      for author in lists[0][1].authors
    }
    report["best_author"] = max(right, key=lambda a: np.mean(right[a]))
    rules["best_author"] = right[report["best_author"]]
  clusters = [e.conversation for _, e in lists]
  found = intervals.mean(picked, clusters, (0.0, 1.0), share=True)
  return report | {
    "kind": "best_of",
    "accuracy": found.pop("value"),
    **found,
    "baselines": {name: float(np.mean(rule)) for name, rule in rules.items()},
    "paired": {
      name: intervals.paired(picked, rule, clusters)
      for name, rule in rules.items()
      if name != "oracle"
    },
  }


def _voted(answers: Sequence[str], votes: np.ndarray, good: np.ndarray) -> float:
  """How likely a response with the answer of most votes is good; of equals, any may be taken."""
  total: dict[str, float] = {}
  for answer, vote in zip(answers, votes, strict=True):
    total[answer] = total.get(answer, 0.0) + float(vote)
  most = max(total.values())
  winners = [np.asarray([a == w for a in answers]) for w, v in total.items() if v == most]
  return float(np.mean([good[mine].mean() for mine in winners]))


def steps(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> tuple[dict, Drawn]:
  """Report of step labels.

  Returns:
    as `outcomes` over all steps; and `first_error`: how often the first step scored under 0 is the
    first wrong one, or none where none is, beside the rules that look at no text; and
    `solution_auroc`: for each way to make one score of a solution's steps (min, product, mean,
    last) the AUROC of that score, with its interval, for whether all steps are right.
  """
  score_N, label_N, clusters = _flat(scores, examples)
  report = _binary(score_N, label_N, clusters)
  sound = np.asarray([min(e.labels) > 0.5 for e in examples])
  mine = [e.conversation for e in examples]
  why = "all solutions are right, or none is"
  report["solution_auroc"] = {
    how: intervals.statistic(
      auroc, (solution_scores(scores, how), sound), mine, why, scale="probability"
    )
    for how in HOW
  }
  report["first_error"] = first_error(scores, examples)
  good = label_N > 0.5
  return report, (("right so far", score_N[good]), ("wrong", score_N[~good]))


def first_error(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> dict[str, Any]:
  """Locating the first error, "there is none" being one of the answers (ProcessBench's task).

  Returns:
    {accuracy, interval, n, on_erroneous, on_sound (accuracies), baselines: {last_step, no_error,
    random_step}, paired}. random_step draws a step or none, each as likely.
  """

  def first(wrong) -> int:
    found = np.flatnonzero(wrong)
    return int(found[0]) if len(found) else -1

  truth = np.asarray([first(np.asarray(e.labels) <= 0.5) for e in examples])
  answer = np.asarray([first(np.asarray(s) < 0) for s in scores])
  count = np.asarray([len(e.labels) for e in examples])
  right = (answer == truth).astype(np.float64)
  clusters = [e.conversation for e in examples]
  rules = {
    "last_step": (truth == count - 1).astype(np.float64),
    "no_error": (truth == -1).astype(np.float64),
    "random_step": 1 / (count + 1),
  }

  def mean(where) -> float | None:
    return float(right[where].mean()) if where.any() else None

  found = intervals.mean(right, clusters, (0.0, 1.0), share=True)
  return {
    "kind": "first_error",
    "accuracy": found.pop("value"),
    **found,
    "on_erroneous": mean(truth >= 0),
    "on_sound": mean(truth < 0),
    "baselines": {name: float(rule.mean()) for name, rule in rules.items()},
    "paired": {name: intervals.paired(right, rule, clusters) for name, rule in rules.items()},
  }


def ratings(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> tuple[dict, Drawn]:
  """Report of ratings: `spearman` {value, interval}, mean square error beside that of the mean.

  Drawn are the scores of the better and the worse half.
  """
  score_N, label_N, clusters = _flat(scores, examples)
  return _regression(score_N, label_N, clusters), _halves(score_N, label_N)


def _regression(score_N: np.ndarray, label_N: np.ndarray, clusters: list[str]) -> dict[str, Any]:
  alike = [name for name, x in (("scores", score_N), ("ratings", label_N)) if len(set(x)) < 2]
  why = f"all {' and '.join(alike)} are alike" if alike else "it is defined in no resample"
  return {
    "n": len(score_N),
    "loss": float(np.square(score_N - label_N).mean()),
    "baselines": {"mean": float(label_N.var())},
    "spearman": intervals.statistic(
      spearman, (score_N, label_N), clusters, why, scale="correlation"
    ),
  }


def _halves(score_N: np.ndarray, label_N: np.ndarray) -> Drawn:
  high = label_N > (np.median(label_N) if len(label_N) else 0)
  return ("rated high", score_N[high]), ("rated low", score_N[~high])


def attributes(
  scores: Sequence[np.ndarray], examples: Sequence[Example], names: Sequence[str]
) -> tuple[dict, Drawn]:
  """Report of ratings on attributes.

  Args:
    scores: for each example float [A, M], each attribute's.
    examples: in the same order.
    names: of the A attributes.

  Returns:
    `n` responses; `attributes`: for each that is rated as `ratings` reports it; `loss` and
    `baselines`, mean square errors over all ratings. Drawn are the scores of the first attribute.
  """
  found, drawn = {}, None
  for a, name in enumerate(names):
    rated = [
      (score_M[m], rating[name], example.conversation)
      for score_AM, example in zip(scores, examples, strict=True)
      for score_M in [score_AM[a]]
      for m, rating in enumerate(example.attributes)
      if name in rating
    ]
    if rated:
      score_N, label_N = (np.asarray([r[i] for r in rated], np.float64) for i in (0, 1))
      found[name] = _regression(score_N, label_N, [r[2] for r in rated])
      drawn = drawn or _halves(score_N, label_N)
  if not found:
    why = f"no response is rated on {', '.join(names)}"
    empty = {"n": 0, "loss": None, "baselines": {"mean": None}, "attributes": {}, "why": why}
    return empty, _halves(np.zeros(0), np.zeros(0))
  counts = [one["n"] for one in found.values()]

  def mean(values) -> float:
    return float(np.average(list(values), weights=counts))

  report = {
    "n": sum(len(e.responses) for e in examples),
    "loss": mean(one["loss"] for one in found.values()),
    "baselines": {"mean": mean(one["baselines"]["mean"] for one in found.values())},
    "attributes": found,
  }
  return report, drawn


MAKERS = {"outcome": outcomes, "score": ratings, "step": steps}
