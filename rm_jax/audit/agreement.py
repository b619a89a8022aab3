"""Agreement with people: accuracy and where it comes from, rank correlations, each annotator."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.texts import Score, conversation_of, scores_of
from rm_jax.audit.topics import topics
from rm_jax.heldout import intervals
from rm_jax.heldout.evaluate import characters, evaluate, judged
from rm_jax.metrics import agreement as metrics
from rm_jax.metrics.correlation import kendall, spearman
from rm_jax.metrics.ranking import best_order, ndcg, pick_rate, within_and_pooled
from rm_jax.types import Example

_PARTS = 5  # bins of a length gap or a margin
_LONGEST = 12  # list whose orders are gone through


def example_scores(score: Score, examples: Sequence[Example]) -> list[np.ndarray]:
  """For each example the scores of its responses, float64 [K]; each distinct text scored once."""
  rows = [(e.prompt, response) for e in examples for response in e.responses]
  ends = np.cumsum([len(e.responses) for e in examples])
  return np.split(scores_of(score, rows), ends[:-1])


def agreement(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> dict[str, Any]:
  """How far scores agree with what people said of whole responses.

  Args:
    scores: for each example float [K], of its responses.
    examples: pairs, rankings, outcomes and scores; at least 2 conversations.

  Returns:
    what `heldout.evaluate.evaluate` reports of them, and with comparisons
    ties: {people: comparisons that they left undecided, model: exact ties of scores, which count
      half},
    by: source, topic, length_gap, human_margin, model_margin -> [{name, value, interval, n, ties}],
      accuracies; without the human one where nobody gave a margin,
    one_order: where people compared the responses of longer lists two by two, the share that the
      best order of each list agrees with: no score can agree with more,
    judges: name -> {accuracy, n ..} of each annotator, and `ceiling` where there are several;
    with lists or ratings
    correlation: kendall, spearman -> {within, pooled} of `ranking.within_and_pooled`, ndcg, and
      pick: how often the best-scored is a best-rated, of `ranking.pick_rate`.

  Raises:
    ValueError: a score that is not finite, or kinds of feedback that are no whole responses'.
  """
  wrong = sorted({e.kind for e in examples} - {"pair", "ranking", "outcome", "score"})
  if wrong:
    raise ValueError(f"examples of kinds {wrong}; expected pairs, rankings, outcomes or scores")
  for one in scores:
    metrics.vector(one, "scores")
  report = evaluate(scores, examples).report
  compared = [i for i, e in enumerate(examples) if e.kind in ("pair", "ranking")]
  if compared:
    mine = [scores[i] for i in compared], [examples[i] for i in compared]
    # Where people decided none, another kind of feedback has the report's first figures.
    compared_report = report.get("kinds", {}).get("comparison", report)
    report["ties"] = {"people": compared_report["undecided"], "model": compared_report["ties"]}
    if compared_report["n"]:
      report["by"] = _slices(*mine)
    if one_order := _one_order(mine[1]):
      report["one_order"] = one_order
    if judges := _judges(*mine):
      report["judges"] = judges
  lists = _lists(scores, examples)
  if lists[0]:
    report["correlation"] = _correlation(*lists)
  return report


def _lists(
  scores: Sequence[np.ndarray], examples: Sequence[Example]
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
  """(scores, gains, conversations) of lists of three and more, and of a source's ratings."""
  together: dict[Hashable, tuple[list, list]] = {}
  for i, (one, example) in enumerate(zip(scores, examples, strict=True)):
    # Ratings of responses to one prompt come as an example each; a list is one already. What is
    # right or wrong by one source and three or five stars by another is on no common scale.
    alone = example.kind in ("outcome", "score") and len(example.responses) == 1
    scale = (example.kind, example.source) if alone else i
    key = (conversation_of(example), repr(example.prompt), scale)
    mine = together.setdefault(key, ([], []))
    mine[0].extend(np.asarray(one, np.float64))
    mine[1].extend(example.labels)
  kept = [(s, g, key[0]) for key, (s, g) in together.items() if len(s) > 2]
  return (
    [np.asarray(s) for s, _, _ in kept],
    [np.asarray(g, np.float64) for _, g, _ in kept],
    [conversation for _, _, conversation in kept],
  )


def _one_order(examples: Sequence[Example]) -> dict[str, Any] | None:
  """The agreement that comparisons which go in circles leave to be had; None where none could."""
  if all(e.pairs is None or len(e.responses) < 3 for e in examples):
    return None
  if any(len(e.responses) > _LONGEST for e in examples):
    return figures.none(f"a list has more than {_LONGEST} responses")
  right, clusters = [], []
  for example in examples:
    better, _ = judged(example)
    agreed = best_order(better, len(example.responses))
    right += [1.0] * agreed + [0.0] * (len(better) - agreed)
    clusters += [conversation_of(example)] * len(better)
  return figures.share(right, clusters)


def _correlation(scores: list, gains: list, clusters: list[str]) -> dict[str, Any]:
  least = min(float(g.min()) for g in gains)
  raised = [g - least for g in gains]
  unread = [np.zeros(len(g)) for g in gains]  # no order: each counts as all orders on average
  return {
    "lists": len(scores),
    "kendall": within_and_pooled(kendall, scores, gains, clusters),
    "spearman": within_and_pooled(spearman, scores, gains, clusters),
    "ndcg": within_and_pooled(ndcg, scores, raised, clusters)["within"]
    | {"chance": within_and_pooled(ndcg, unread, raised, clusters)["within"]["value"]},
    "pick": pick_rate(scores, gains, clusters),
  }


def _slices(
  scores: Sequence[np.ndarray], examples: Sequence[Example]
) -> dict[str, list[dict[str, Any]]]:
  topic_of = topics([e.prompt for e in examples])
  credit, cluster, rest = [], [], {"source": [], "topic": [], "length": [], "human": [], "own": []}
  for one, example, topic in zip(scores, examples, topic_of, strict=True):
    lengths = [characters(response) for response in example.responses]
    given = example.margin is not None or len(example.responses) > 2
    for i, j in judged(example)[0]:
      credit.append(float(metrics.credit([one[i]], [one[j]])[0]))
      cluster.append(conversation_of(example))
      rest["source"].append(example.source)
      rest["topic"].append(topic)
      rest["length"].append(lengths[i] - lengths[j])
      gap = example.labels[i] - example.labels[j] if example.margin is None else example.margin
      rest["human"].append(gap if given else None)
      rest["own"].append(abs(one[i] - one[j]))
  out = {
    "source": _named(rest["source"], credit, cluster),
    "topic": _named(rest["topic"], credit, cluster),
    "length_gap": _binned(rest["length"], credit, cluster, "{:+.0f} to {:+.0f}"),
    "model_margin": _binned(rest["own"], credit, cluster, "{:.2f} to {:.2f}"),
  }
  if None not in rest["human"]:
    out["human_margin"] = _binned(rest["human"], credit, cluster, "{:.2f} to {:.2f}")
  return out


def _named(names: Sequence[str], credit: list[float], cluster: list[str]) -> list[dict[str, Any]]:
  """The accuracy of each name's comparisons, most first."""
  name_N = np.asarray(names)
  found, count = np.unique(name_N, return_counts=True)
  order = sorted(zip(found.tolist(), count.tolist(), strict=True), key=lambda x: (-x[1], x[0]))
  return [{"name": name, **_part(name_N == name, credit, cluster)} for name, _ in order]


def _binned(
  values: Sequence[float], credit: list[float], cluster: list[str], form: str
) -> list[dict[str, Any]]:
  """Accuracies in bins of about as many comparisons, lowest values first."""
  value_N = np.asarray(values, np.float64)
  edges = np.unique(np.quantile(value_N, np.linspace(0, 1, _PARTS + 1)))
  if len(edges) < 2:
    return [
      {"name": form.format(edges[0], edges[0]), **_part(value_N == edges[0], credit, cluster)}
    ]
  which_N = np.clip(np.searchsorted(edges, value_N, side="left"), 1, len(edges) - 1)
  return [
    {"name": form.format(edges[b - 1], edges[b]), **_part(which_N == b, credit, cluster)}
    for b in range(1, len(edges))
    if (which_N == b).any()
  ]


def _part(here: np.ndarray, credit: list[float], cluster: list[str]) -> dict[str, Any]:
  at = np.flatnonzero(here)
  return figures.share([credit[i] for i in at], [cluster[i] for i in at])


def _judges(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> dict[str, Any]:
  """Agreement with each annotator, and of the annotators among themselves."""
  asked = [
    (one, e.judges, conversation_of(e))
    for one, e in zip(scores, examples, strict=True)
    if e.judges is not None
  ]
  if not asked:
    return {}
  names = sorted({name for _, judges, _ in asked for name in judges})
  out: dict[str, Any] = {"each": {}}
  for name in names:
    decided = [(s, j[name], c) for s, j, c in asked if j.get(name, 0.5) != 0.5]
    if decided:
      right = [_agrees(s[0] - s[1], said) for s, said, _ in decided]
      out["each"][name] = figures.share(right, [c for _, _, c in decided])
  # On the very pairs where two annotators both decided: what one says of the other's choice is what
  # a perfect copy of one of them would reach.
  pairs = [
    (s, j[a], j[b], c)
    for s, j, c in asked
    for i, a in enumerate(names)
    for b in names[i + 1 :]
    if j.get(a, 0.5) != 0.5 and j.get(b, 0.5) != 0.5
  ]
  if pairs:
    clusters = [c for *_, c in pairs]
    people = [float(a == b) for _, a, b, _ in pairs]
    model = [(_agrees(s[0] - s[1], a) + _agrees(s[0] - s[1], b)) / 2 for s, a, b, _ in pairs]
    out["ceiling"] = {
      "people": figures.share(people, clusters),
      "model": figures.mean(model, clusters, bounds=(0.0, 1.0)),
      "what": "of two annotators who both chose: how often they choose alike, and how often the "
      "model does with one of them",
    }
  return out


def _agrees(difference: float, said: float) -> float:
  return 0.5 if difference == 0 else float((difference > 0) == (said == 1.0))


def compare(
  scores: Sequence[np.ndarray],
  others: Sequence[np.ndarray],
  examples: Sequence[Example],
) -> dict[str, Any]:
  """Two models on the same comparisons: the first's accuracy less the second's, paired.

  Returns:
    {difference, interval, n, alike: share of comparisons in which both choose the same}; of one
    conversation alone there is no interval, and `why`.

  Raises:
    ValueError: no comparison.
  """
  first, second, cluster = [], [], []
  for one, other, example in zip(scores, others, examples, strict=True):
    if example.kind not in ("pair", "ranking"):
      continue
    for i, j in judged(example)[0]:
      first.append(_credit(one, i, j))
      second.append(_credit(other, i, j))
      cluster.append(conversation_of(example))
  if not first:
    raise ValueError("no comparison among the examples; expected pairs or rankings")
  alike = 1 - np.abs(np.subtract(first, second))
  return intervals.paired(first, second, cluster) | {
    "n": len(first),
    "alike": figures.share(alike, cluster),
  }


def _credit(scores: np.ndarray, i: int, j: int) -> float:
  return (float(scores[i] > scores[j]) + float(scores[i] >= scores[j])) / 2
