"""Held-out reports of feedback on single responses and steps: outcomes, ratings, steps, attributes.

Scores of outcomes and steps are log-odds: at exactly 0 a response or step is as likely right as
wrong, and either answer has half the credit, as equal scores of a pair have. Functions in `REPORTS`
take for each example its scores, float [M] of its marks, the examples in the same order, and the
seed of intervals. They return the report, of types that JSON has, and two named sets of scores for
a histogram.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rm_jax.heldout import intervals
from rm_jax.losses.process import HOW
from rm_jax.metrics import agreement
from rm_jax.metrics.correlation import auroc, spearman
from rm_jax.metrics.selection import highest, vote
from rm_jax.reward.score import solution_scores
from rm_jax.types import Example, Text

_ALIKE = "all labels are alike"
_CUTS = 1000  # thresholds that are tried, at most
Drawn = tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]


def characters(text: Text) -> int:
  """Length of a response in characters, so that length baselines do not depend on a tokenizer."""
  return len(text) if isinstance(text, str) else sum(len(m["content"]) for m in text)


def _flat(scores: Sequence[np.ndarray], examples: Sequence[Example]):
  """Scores, labels and conversations of all marks of all examples, each [N]."""
  score_N = np.concatenate([np.asarray(s, np.float64) for s in scores])
  label_N = np.concatenate([np.asarray(e.labels, np.float64) for e in examples])
  clusters = [e.conversation for e in examples for _ in e.labels]
  return score_N, label_N, clusters


def _binary(
  score_N: np.ndarray,
  label_N: np.ndarray,
  clusters: list[str],
  seed: int,
  rules: dict[str, np.ndarray],
) -> dict[str, Any]:
  """Figures of binary labels, a label above 1/2 being good: those that `outcome_report` lists.

  `rules` are scores [N] by rules that read no text; of each its opposite is a rule, too.
  """
  good_N = label_N > 0.5
  frequent = good_N if good_N.mean() >= 0.5 else ~good_N
  right_N = np.where(score_N == 0, 0.5, (score_N > 0) == good_N)
  coins = {"random": agreement.coin(len(good_N)), "most_frequent": frequent.astype(np.float64)}
  options = {"seed": seed, "classes": good_N}
  ranked = intervals.statistic(
    auroc, (score_N, good_N), clusters, _ALIKE, scale="probability", **options
  )
  if ranked["value"] is not None:
    found = {name: auroc(rule_N, good_N) for name, rule_N in rules.items()}
    best = max(found, key=found.get)
    # The best rule is chosen on these labels, so that the difference is rather too small.
    beyond = intervals.statistic(
      lambda s, r, y: auroc(s, y) - auroc(r, y),
      (score_N, rules[best], good_N),
      clusters,
      _ALIKE,
      scale="plain",
      **options,
    )
    ranked["best_rule"] = {"rule": best, "auroc": found[best], "difference": beyond.pop("value")}
    ranked["best_rule"] |= beyond
  probability = np.exp(-np.logaddexp(0.0, -score_N))
  loss = label_N * np.logaddexp(0.0, -score_N) + (1 - label_N) * np.logaddexp(0.0, score_N)
  return intervals.accuracy(right_N, clusters, seed=seed) | {
    "loss": float(loss.mean()),
    "brier": float(np.square(probability - label_N).mean()),
    "base_rate": float(label_N.mean()),
    "auroc": ranked,
    "baselines": {name: float(coin.mean()) for name, coin in coins.items()},
    "paired": {
      name: intervals.paired(right_N, coin, clusters, seed=seed) for name, coin in coins.items()
    },
  }


def _by_length(texts: Iterable[Text]) -> dict[str, np.ndarray]:
  """Rules that know the lengths of N texts: name -> float [N]."""
  length_N = np.asarray([characters(text) for text in texts], np.float64)
  return {"longer": length_N, "shorter": -length_N}


def outcome_report(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> tuple[dict, Drawn]:
  """Report of outcome labels.

  Returns:
    report: `accuracy`, of a score above 0 meaning good, with its `interval` and `ties`, the number
      of scores of 0, which count half; `auroc` {value, interval, best_rule}, where best_rule {rule,
      auroc, difference, interval} is the better of "longer responses are good" and "shorter ones
      are", and the difference is the score's AUROC minus the rule's; `loss` (cross entropy, nats),
      `brier`, `base_rate` (the mean label), `baselines` {random, most_frequent} and `paired`
      differences to them; and `best_of`, see `best_of_report`, if prompts have several responses.
    scores: of good and of bad responses.
  """
  score_N, label_N, clusters = _flat(scores, examples)
  rules = _by_length(response for example in examples for response in example.responses)
  report = _binary(score_N, label_N, clusters, seed, rules)
  lists = [(s, e) for s, e in zip(scores, examples, strict=True) if len(e.responses) > 1]
  if lists:
    report["best_of"] = best_of_report(lists, seed=seed)
  good = label_N > 0.5
  return report, (("good", score_N[good]), ("bad", score_N[~good]))


def best_of_report(lists: Sequence[tuple[np.ndarray, Example]], *, seed: int = 0) -> dict[str, Any]:
  """How often the highest-scored of several responses is good, next to other ways to pick one.

  Among equally scored responses each is picked with the same probability.

  Args:
    lists: (scores float [K], example with K responses).
    seed: of the intervals.

  Returns:
    {accuracy, interval, n, baselines, paired, pairs, vote, best_author}. The baselines are
    `random`; `longest` and `shortest`, the response of most and of fewest characters; `oracle`,
    whether any response is good; `majority`, a response with the most frequent final
    answer; and `best_author`, always a response of the author who is right most often here, whom
    only the labels tell. The report's own `best_author` is that author's name. `vote` is the
    accuracy of the final answer whose responses have the largest sum of probabilities of being
    right (the verifier's voting of Cobbe et al. 2021, "Training Verifiers to Solve Math Word
    Problems"). `pairs`: see `within_report`. What needs answers is left out if an example has none,
    and what needs authors if not all examples have the same authors.
  """
  good_L = [np.asarray(e.labels) > 0.5 for _, e in lists]
  examples = [e for _, e in lists]
  count = [len(good) for good in good_L]
  picked = [highest(s, g, k).right for (s, _), g, k in zip(lists, good_L, count, strict=True)]
  length_L = [np.asarray([characters(r) for r in e.responses], np.float64) for e in examples]
  rules = {
    "random": [good.mean() for good in good_L],
    "longest": [highest(x, g, len(g)).right for x, g in zip(length_L, good_L, strict=True)],
    "shortest": [highest(-x, g, len(g)).right for x, g in zip(length_L, good_L, strict=True)],
    "oracle": [float(good.any()) for good in good_L],
  }
  report = {}
  if all(e.answers for e in examples):
    answers = [e.answers for e in examples]
    rules["majority"] = [
      vote(a, g, k).right for a, g, k in zip(answers, good_L, count, strict=True)
    ]
    voted = [
      vote(a, g, k, log_weights=-np.logaddexp(0.0, -np.asarray(s, np.float64))).right
      for (s, _), a, g, k in zip(lists, answers, good_L, count, strict=True)
    ]
    report["vote"] = float(np.mean(voted))
  if best := best_author(examples):
    report["best_author"], rules["best_author"] = best
  clusters = [e.conversation for _, e in lists]
  found = intervals.mean(picked, clusters, (0.0, 1.0), share=True, seed=seed)
  return report | {
    "kind": "best_of",
    "accuracy": found.pop("value"),
    **found,
    "baselines": {name: float(np.mean(rule)) for name, rule in rules.items()},
    "paired": {
      name: intervals.paired(picked, rule, clusters, seed=seed)
      for name, rule in rules.items()
      if name != "oracle"
    },
    "pairs": within_report([s for s, _ in lists], length_L, good_L, clusters, seed=seed),
  }


def within_report(
  scores: Sequence[np.ndarray],
  lengths: Sequence[np.ndarray],
  good: Sequence[np.ndarray],
  clusters: Sequence[str],
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """How often a good response has a higher score than a bad one of the same prompt.

  Unlike `auroc` it does not credit a model for telling easy prompts from hard ones.

  Args:
    scores, lengths: for each prompt float [K].
    good: for each prompt bool [K].
    clusters: each prompt's conversation.
    seed: of the intervals.

  Returns:
    {accuracy, interval, n, ties, conversations, best_rule} over all pairs of a good and a bad
    response of one prompt; best_rule {rule, accuracy, difference, interval} is the better of
    "longer responses are good" and "shorter ones are", and the difference is paired.
  """

  def credits(value_L):
    """Credits of all pairs, each good response with each bad one."""
    found = []
    for value_K, good_K in zip(value_L, good, strict=True):
      ours, others = value_K[good_K], value_K[~good_K]
      found.append(agreement.credit(np.repeat(ours, len(others)), np.tile(others, len(ours))))
    return np.concatenate(found)

  own = [c for c, g in zip(clusters, good, strict=True) for _ in range(g.sum() * (~g).sum())]
  right_N, longer_N = credits(scores), credits(lengths)
  report = intervals.accuracy(right_N, own, seed=seed)
  if own:
    rule = "longer" if longer_N.mean() >= 0.5 else "shorter"
    rule_N = longer_N if rule == "longer" else 1 - longer_N
    paired = intervals.paired(right_N, rule_N, own, seed=seed)
    report["best_rule"] = {"rule": rule, "accuracy": float(rule_N.mean())} | paired
  return report


def best_author(examples: Sequence[Example]) -> tuple[str, list[float]] | None:
  """The author who is right most often, and for each example how often that one is right.

  Of several responses of one author to a prompt each is picked with the same probability. None
  unless all examples of outcomes, at least one, have responses of the same authors.
  """
  named = {frozenset(e.authors or ()) for e in examples}
  if len(named) != 1 or not examples[0].authors:
    return None

  def share(example: Example, author: str) -> float:
    mine = [y > 0.5 for a, y in zip(example.authors, example.labels, strict=True) if a == author]
    return sum(mine) / len(mine)

  right = {author: [share(e, author) for e in examples] for author in examples[0].authors}
  best = max(right, key=lambda author: np.mean(right[author]))
  return best, right[best]


def step_report(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> tuple[dict, Drawn]:
  """Report of step labels.

  Returns:
    report: over all steps the figures of `outcome_report` but `best_of`, where the rules also know
      which steps come earlier in their solution; `first_error`, see `first_error_report`; and
      `solution_auroc`: for each aggregation of a solution's steps (min, product, mean, last) the
      AUROC of the aggregated score for whether all steps are right, with its interval.
    scores: of steps that are right so far and of wrong ones.
  """
  score_N, label_N, clusters = _flat(scores, examples)
  place_N = np.concatenate([np.arange(len(e.labels), dtype=np.float64) for e in examples])
  rules = _by_length(step for e in examples for steps in e.steps for step in steps)
  rules |= {"later": place_N, "earlier": -place_N}
  report = _binary(score_N, label_N, clusters, seed, rules)
  sound = np.asarray([min(e.labels) > 0.5 for e in examples])
  mine = [e.conversation for e in examples]
  why = "all solutions are right, or none is"
  options = {"scale": "probability", "seed": seed, "classes": sound}
  report["solution_auroc"] = {
    how: intervals.statistic(auroc, (solution_scores(scores, how), sound), mine, why, **options)
    for how in HOW
  }
  report["first_error"] = first_error_report(scores, examples, seed=seed)
  good = label_N > 0.5
  return report, (("right so far", score_N[good]), ("wrong", score_N[~good]))


def first_error_report(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> dict[str, Any]:
  """How often the first step with a negative score is the first wrong step.

  If no step is wrong, no score may be negative (the task of ProcessBench, Zheng et al. 2024). A
  step with score 0 is read as wrong with probability 1/2, so that a solution's credit is the
  probability of the right answer.

  Where few steps are wrong, or the data are not those of the training, hardly any score may be on
  the right side of 0, although the scores tell steps apart. `tuned` takes another threshold: the
  conversations are split into halves at random, and a half is read with the threshold that has the
  best F1 on the other.

  Returns:
    {accuracy, interval, n, on_erroneous, on_sound (accuracies on solutions with and without an
    error; None where there are none), f1: their harmonic mean, as ProcessBench has it, baselines:
    {last_step, no_error, random_step}, paired, tuned: {accuracy, interval, n, on_erroneous,
    on_sound, f1, thresholds: of the two halves}, or {accuracy: None, why}}. random_step draws one
    of the steps, or no error, each with the same probability.
  """

  def first(wrong) -> int:
    found = np.flatnonzero(wrong)
    return int(found[0]) if len(found) else -1

  truth = np.asarray([first(np.asarray(e.labels) <= 0.5) for e in examples])
  count = np.asarray([len(e.labels) for e in examples])
  right = _first_read(scores, truth)
  clusters = [e.conversation for e in examples]
  rules = {
    "last_step": (truth == count - 1).astype(np.float64),
    "no_error": (truth == -1).astype(np.float64),
    "random_step": 1 / (count + 1),
  }

  return {
    "kind": "first_error",
    **_credits(right, truth, clusters, seed),
    "tuned": _tuned(scores, truth, clusters, seed),
    "baselines": {name: float(rule.mean()) for name, rule in rules.items()},
    "paired": {
      name: intervals.paired(right, rule, clusters, seed=seed) for name, rule in rules.items()
    },
  }


def _first_read(
  scores: Sequence[np.ndarray], truth_N: np.ndarray, threshold: float = 0.0
) -> np.ndarray:
  """The probability that step truth_N[n] of solution n is the first one read as wrong, float64 [N].

  Of truth -1, that none is. A step is read as wrong if its score is below the threshold.
  """

  def credit(score, at: int) -> float:
    wrong = np.heaviside(threshold - np.asarray(score, np.float64), 0.5)
    sound = np.prod(1 - (wrong if at < 0 else wrong[:at]))
    return float(sound if at < 0 else sound * wrong[at])

  return np.asarray([credit(s, at) for s, at in zip(scores, truth_N.tolist(), strict=True)])


def _credits(
  right_N: np.ndarray, truth_N: np.ndarray, clusters: Sequence[str], seed: int
) -> dict[str, Any]:
  """The accuracies of `first_error_report` and their F1."""
  found = intervals.mean(right_N, clusters, (0.0, 1.0), share=True, seed=seed)
  parts = {"on_erroneous": truth_N >= 0, "on_sound": truth_N < 0}
  shares = {n: float(right_N[at].mean()) if at.any() else None for n, at in parts.items()}
  f1 = _f1(*shares.values()) if None not in shares.values() else None
  return {"accuracy": found.pop("value"), **found, **shares, "f1": f1}


def _f1(a: float, b: float) -> float:
  return 2 * a * b / (a + b) if a + b else 0.0


def _tuned(
  scores: Sequence[np.ndarray], truth_N: np.ndarray, clusters: Sequence[str], seed: int
) -> dict[str, Any]:
  """`tuned` of `first_error_report`."""
  names = sorted(set(clusters))
  drawn = np.random.default_rng(seed).permutation(len(names)) < len(names) // 2
  half = dict(zip(names, drawn, strict=True))
  half_N = np.asarray([half[name] for name in clusters], bool)
  right_N, thresholds = np.zeros(len(truth_N)), []
  for mine_N in (half_N, ~half_N):
    others = [s for s, mine in zip(scores, mine_N, strict=True) if not mine]
    threshold = best_threshold(others, truth_N[~mine_N])
    if threshold is None:
      why = "a half of the solutions has none with an error, or none without"
      return {"accuracy": None, "interval": None, "why": why}
    own = [s for s, mine in zip(scores, mine_N, strict=True) if mine]
    right_N[mine_N] = _first_read(own, truth_N[mine_N], threshold)
    thresholds.append(threshold)
  return _credits(right_N, truth_N, clusters, seed) | {"thresholds": thresholds}


def best_threshold(scores: Sequence[np.ndarray], truth_N: np.ndarray) -> float | None:
  """The threshold of step scores with the best F1 of finding the first error.

  Args:
    scores: of the steps of N solutions.
    truth_N: int [N], the first wrong step; -1 where none is.

  Returns:
    a number half-way between two scores, or below or above all; of several that are as good, the
    one with the widest gap between these scores. None if no solution has an error, or all have.
  """
  wrong_N = truth_N >= 0
  if wrong_N.all() or not wrong_N.any():
    return None
  values = np.unique(np.concatenate([np.asarray(s, np.float64) for s in scores]))
  if len(values) > _CUTS:
    values = np.unique(np.quantile(values, np.linspace(0, 1, _CUTS)))
  cut_C = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
  # Step k is the first one below a threshold if that is above its score and not above any earlier.
  low_N = np.asarray([s[at] if at >= 0 else -np.inf for s, at in zip(scores, truth_N, strict=True)])
  high_N = np.asarray(
    [
      np.min(s[: at if at >= 0 else None], initial=np.inf)
      for s, at in zip(scores, truth_N, strict=True)
    ]
  )
  right_CN = (low_N < cut_C[:, None]) & (cut_C[:, None] <= high_N)
  on_C = [right_CN[:, part].mean(axis=1) for part in (wrong_N, ~wrong_N)]
  f1_C = np.asarray([_f1(a, b) for a, b in zip(*on_C, strict=True)])
  gap_C = np.concatenate([[0], np.diff(values), [0]])
  return float(cut_C[np.argmax(np.where(f1_C == f1_C.max(), gap_C, -1))])


def rating_report(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> tuple[dict, Drawn]:
  """Report of ratings.

  Returns:
    report: `n` ratings; `spearman` {value, interval}, Spearman's correlation; `loss`, the mean
      square error, and `baselines` {mean}, that of always predicting the mean rating.
    scores: of the responses rated above the median, and of the others.
  """
  score_N, label_N, clusters = _flat(scores, examples)
  return _regression(score_N, label_N, clusters, seed), _halves(score_N, label_N)


def _regression(
  score_N: np.ndarray, label_N: np.ndarray, clusters: list[str], seed: int
) -> dict[str, Any]:
  alike = [name for name, x in (("scores", score_N), ("ratings", label_N)) if len(set(x)) < 2]
  why = f"all {' and '.join(alike)} are alike" if alike else "it is defined in no resample"
  return {
    "n": len(score_N),
    "loss": float(np.square(score_N - label_N).mean()),
    "baselines": {"mean": float(label_N.var())},
    "spearman": intervals.statistic(
      spearman, (score_N, label_N), clusters, why, scale="correlation", seed=seed
    ),
  }


def _halves(score_N: np.ndarray, label_N: np.ndarray) -> Drawn:
  high = label_N > (np.median(label_N) if len(label_N) else 0)
  return ("rated high", score_N[high]), ("rated low", score_N[~high])


def attribute_report(
  scores: Sequence[np.ndarray],
  examples: Sequence[Example],
  names: Sequence[str],
  *,
  seed: int = 0,
) -> tuple[dict, Drawn]:
  """Report of ratings on attributes.

  Args:
    scores: for each example float [A, M], the scores of each attribute.
    examples: in the same order.
    names: of the A attributes.
    seed: of the intervals.

  Returns:
    report: `n` responses; `attributes`: for each rated attribute the report of `rating_report`;
      `loss` and `baselines`, mean square errors over all ratings. If none is rated, `n` is 0, these
      are None, and `why` says so.
    scores: of the first rated attribute, as `rating_report` gives them.
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
      found[name] = _regression(score_N, label_N, [r[2] for r in rated], seed)
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


# Kind of feedback -> its report. `attribute_report` is not here: it also takes attributes' names.
REPORTS = {"outcome": outcome_report, "score": rating_report, "step": step_report}
