"""Section `agreement`: accuracy, also by parts of the data; rank correlations; each annotator."""

import functools
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rm_jax.audit import figures, plots
from rm_jax.audit.comparisons import PREFERENCES, conversation_of
from rm_jax.audit.section import Draw, Section, Subject
from rm_jax.audit.topics import topics
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.heldout.evaluate import evaluate, judged
from rm_jax.heldout.pointwise import characters
from rm_jax.metrics import agreement as metrics
from rm_jax.metrics.correlation import kendall, spearman
from rm_jax.metrics.ranking import best_order, ndcg, pick_rate, within_and_pooled
from rm_jax.types import Example

# A mask [N] of comparisons -> the figure of their accuracy.
Part = Callable[[np.ndarray], dict[str, Any]]

# Key of `ceiling` -> its row on the page.
_OF_TWO = {
  "people": "two annotators with one another",
  "model": "the model with one of two annotators",
  "bound": "any score with one of two, at best",
}
_PARTS = 5  # quantile bins of a length gap or a margin
_LONGEST = 12  # length of the longest list whose best order is searched, in exponential time


def agreement(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> dict[str, Any]:
  """Measures how far scores agree with people's judgements of whole responses.

  Args:
    scores: for each example float [K], of its responses.
    examples: pairs, rankings, outcomes and scores.
    seed: of the intervals and the topics.

  Returns:
    the report of `heldout.evaluate.evaluate`. If there are pairs or rankings, also
    ties: {people: comparisons that people left undecided, model: exact ties of scores, which count
      half},
    by: if people decided any comparison, {source, topic, length_gap, human_margin, model_margin} ->
      [{name, value, interval, n, ties}], the accuracy in each part of the comparisons. human_margin
      is left out if a pair has no `margin`; in longer lists without one it is the difference of the
      labels,
    one_order: if people compared the responses of a list of three or more pairwise, a figure of the
      share of all decided comparisons that the best single order of each list agrees with: an upper
      bound for any score, below 1 if comparisons are cyclic,
    judges: if annotators are known, {each: name of an annotator -> accuracy against that one, a
      figure; and, if any pair was decided by two annotators, ceiling: of every two who decided
      the same pair {people: how often they agree, model: its mean agreement with either, bound: the
      most that a score can have of the latter, which is above `people` where they disagree, what: a
      sentence that says so}}.
    If a prompt has three or more responses, in one list or each rated by itself, also
    correlation: {lists: number of them, kendall, spearman: of `ranking.within_and_pooled`, without
      a pooled value where the lists are of several kinds or sources; ndcg:
      the figure within lists of the same function with `chance`, the NDCG of a random order, pick:
      how often the response with the highest score is one with the highest rating, of
      `ranking.pick_rate`}.

  Raises:
    ValueError: a score is not finite, or an example is of kind 'step' or 'attributes'.
  """
  wrong = sorted({e.kind for e in examples} - {*PREFERENCES, "outcome", "score"})
  if wrong:
    raise ValueError(f"examples of kinds {wrong}; expected pairs, rankings, outcomes or scores")
  for one in scores:
    metrics.vector(one, "scores")
  report = evaluate(scores, examples, seed=seed).report
  compared = [i for i, e in enumerate(examples) if e.kind in PREFERENCES]
  if compared:
    mine = [scores[i] for i in compared], [examples[i] for i in compared]
    # If people decided no comparison, the report's own figures may be of another kind of feedback.
    compared_report = report.get("kinds", {}).get("comparison", report)
    report["ties"] = {"people": compared_report["undecided"], "model": compared_report["ties"]}
    if compared_report["n"]:
      report["by"] = _slices(*mine, seed)
    if one_order := _one_order(mine[1], seed):
      report["one_order"] = one_order
    if judges := _judges(*mine, seed):
      report["judges"] = judges
  lists = _lists(scores, examples)
  if lists.scores:
    report["correlation"] = _correlation(lists, seed)
  return report


class _Lists(NamedTuple):
  """The lists of at least three responses to one prompt: of each its scores, gains, and so on.

  Attributes:
    scores: float64 [K].
    gains: float64 [K].
    conversations: of each list.
    scales: (kind, source) of each: gains of one kind and source alone are comparable.
  """

  scores: list[np.ndarray]
  gains: list[np.ndarray]
  conversations: list[str]
  scales: list[tuple[str, str]]


def _lists(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> _Lists:
  together: dict[Hashable, tuple[list, list]] = {}
  for i, (one, example) in enumerate(zip(scores, examples, strict=True)):
    # A ranking is one example, but the ratings of a prompt's responses may be an example each and
    # have to be put together. Only ratings of one kind and source are on a common scale: one source
    # may say right or wrong, and another give three of five stars.
    scale = example.kind, example.source
    alone = example.kind in ("outcome", "score") and len(example.responses) == 1
    key = (conversation_of(example), repr(example.prompt), scale, -1 if alone else i)
    mine = together.setdefault(key, ([], []))
    mine[0].extend(np.asarray(one, np.float64))
    mine[1].extend(example.labels)
  kept = [(key, s, g) for key, (s, g) in together.items() if len(s) > 2]
  return _Lists(
    [np.asarray(s) for _, s, _ in kept],
    [np.asarray(g, np.float64) for _, _, g in kept],
    [key[0] for key, _, _ in kept],
    [key[2] for key, _, _ in kept],
  )


def _one_order(examples: Sequence[Example], seed: int) -> dict[str, Any] | None:
  """The largest accuracy that any score can have on all decided comparisons.

  It is below 1 if some of them form cycles (a over b, b over c, c over a), since a score puts each
  list into one order. None if people compared no list of three or more responses pair by pair, for
  only there can be a cycle; a figure without a value if a list has more than `_LONGEST` responses.
  """
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
  return figures.share(right, clusters, seed=seed)


def _correlation(lists: _Lists, seed: int) -> dict[str, Any]:
  """Rank correlations of scores with gains; see `agreement`."""
  scores, gains, clusters, scales = lists
  # NDCG needs gains of 0 and more. The lowest of a scale is its 0: with that of all data, a list of
  # a scale that begins higher would have gains that are nearly equal, and any order a high NDCG.
  least: dict[tuple[str, str], float] = {}
  for g, scale in zip(gains, scales, strict=True):
    least[scale] = min(least.get(scale, np.inf), float(g.min()))
  raised = [g - least[scale] for g, scale in zip(gains, scales, strict=True)]
  unread = [np.zeros(len(g)) for g in gains]  # of tied scores NDCG is the mean over all orders

  def both(statistic, scores, gains):
    found = within_and_pooled(statistic, scores, gains, clusters=clusters, seed=seed)
    if len(least) > 1:
      n = sum(map(len, scores))
      why = f"the gains are on {len(least)} scales (kinds and sources), which cannot be compared"
      found["pooled"] = figures.none(why, n)
    return found

  return {
    "lists": len(scores),
    "kendall": both(kendall, scores, gains),
    "spearman": both(spearman, scores, gains),
    "ndcg": both(ndcg, scores, raised)["within"]
    | {"chance": both(ndcg, unread, raised)["within"]["value"]},
    "pick": pick_rate(scores, gains, clusters, seed=seed),
  }


def _slices(
  scores: Sequence[np.ndarray], examples: Sequence[Example], seed: int
) -> dict[str, list[dict[str, Any]]]:
  """The accuracy in parts of the comparisons, divided by several properties; see `agreement`."""
  topic_of = topics([e.prompt for e in examples], seed=seed)
  credit, cluster, rest = [], [], {"source": [], "topic": [], "length": [], "human": [], "own": []}
  for one, example, topic in zip(scores, examples, topic_of, strict=True):
    lengths = [characters(response) for response in example.responses]
    # The labels of a pair, 1 and 0, say which response is better but not by how much.
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

  def part(here: np.ndarray) -> dict[str, Any]:
    """The accuracy where a mask [N] is true."""
    at = np.flatnonzero(here)
    return figures.share([credit[i] for i in at], [cluster[i] for i in at], seed=seed)

  out = {
    "source": _named(rest["source"], part),
    "topic": _named(rest["topic"], part),
    "length_gap": _binned(rest["length"], part, "{:+.0f} to {:+.0f}"),
    "model_margin": _binned(rest["own"], part, "{:.2f} to {:.2f}"),
  }
  if None not in rest["human"]:
    out["human_margin"] = _binned(rest["human"], part, "{:.2f} to {:.2f}")
  return out


def _named(names: Sequence[str], part: Part) -> list[dict[str, Any]]:
  """The accuracy of the comparisons with each name, the most frequent name first."""
  name_N = np.asarray(names)
  found, count = np.unique(name_N, return_counts=True)
  order = sorted(zip(found.tolist(), count.tolist(), strict=True), key=lambda x: (-x[1], x[0]))
  return [{"name": name, **part(name_N == name)} for name, _ in order]


def _binned(values: Sequence[float], part: Part, form: str) -> list[dict[str, Any]]:
  """The accuracy in quantile bins of the values, lowest values first."""
  value_N = np.asarray(values, np.float64)
  edges = np.unique(np.quantile(value_N, np.linspace(0, 1, _PARTS + 1)))
  if len(edges) < 2:
    return [{"name": form.format(edges[0], edges[0]), **part(value_N == edges[0])}]
  which_N = np.clip(np.searchsorted(edges, value_N, side="left"), 1, len(edges) - 1)
  return [
    {"name": form.format(edges[b - 1], edges[b]), **part(which_N == b)}
    for b in range(1, len(edges))
    if (which_N == b).any()
  ]


def _judges(scores: Sequence[np.ndarray], examples: Sequence[Example], seed: int) -> dict[str, Any]:
  """Agreement of the model with each annotator, and of the annotators with one another."""
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
      out["each"][name] = figures.share(right, [c for _, _, c in decided], seed=seed)
  # How often two annotators agree is what a copy of one of them would reach against the other. A
  # score is held against both, so that it can agree with them more often than they do: with each
  # half of the time where they differ. The most it can is to choose as the majority of all does.
  people, model, bound, clusters = [], [], [], []
  for score, judges, conversation in asked:
    said = [judges[name] for name in names if judges.get(name, 0.5) != 0.5]
    for a, b in itertools.combinations(said, 2):
      people.append(float(a == b))
      model.append((_agrees(score[0] - score[1], a) + _agrees(score[0] - score[1], b)) / 2)
      bound.append(max(said.count(1.0), said.count(0.0)) / len(said))
      clusters.append(conversation)
  if people:
    out["ceiling"] = {
      "people": figures.share(people, clusters, seed=seed),
      "model": figures.mean(model, clusters, bounds=(0.0, 1.0), seed=seed),
      "bound": figures.mean(bound, clusters, bounds=(0.5, 1.0), seed=seed),
      "what": "of two annotators who both chose: how often they choose alike, how often the model "
      "does with one of them, and how often any score can at best",
    }
  return out


def _agrees(difference: float, said: float) -> float:
  """1 if a score difference agrees with a judgement of 1 (first better) or 0; 0.5 for a tie."""
  return 0.5 if difference == 0 else float((difference > 0) == (said == 1.0))


def _measure(subject: Subject) -> dict[str, Any]:
  why = subject.lacks_comparisons()
  if why and all(e.kind in PREFERENCES for e in subject.examples):
    return {"why": why}
  return agreement(subject.scores, subject.examples, seed=subject.settings.seed)


def _measure_steps(subject: Subject) -> dict[str, Any]:
  return evaluate(subject.scores, subject.examples, seed=subject.settings.seed).report


def _draw(found: Mapping[str, Any]) -> dict[str, Draw]:
  drawn = {}
  for name, title in (("source", "by source"), ("length_gap", "by length gap, characters")):
    parts = found.get("by", {}).get(name, [])
    if len(parts) > 1:
      rows = [plots.Point(p["name"], p["value"], p["interval"]) for p in parts[:12]]
      drawn[f"accuracy_{name}"] = functools.partial(plots.points, f"Accuracy {title}", rows, 0.5)
  return drawn


def _summary(page: Writer, found: View) -> list[str]:
  if "accuracy" not in found:
    return []
  figure = page.figure(found, key="accuracy")
  return [f"agrees with people in {figure} of {page.value(found.get('n'))}"]


def _render(page: Writer, found: View) -> None:
  rows = []

  def row(name: str, figure: View) -> None:
    rows.append((name, page.figure(figure), page.value(figure.get("n"))))

  if "accuracy" in found:
    rows.append(("accuracy", page.figure(found, key="accuracy"), page.value(found.get("n"))))
  if "best_reachable" in found:
    rows.append(("best reachable", page.value(found["best_reachable"]), ""))
  if "one_order" in found:
    row("any score, at best", found["one_order"])
  for name in ("auroc", "spearman"):
    if isinstance(found.get(name).value, dict):
      rows.append((name, page.figure(found[name]), ""))
  for name, one in found.get("correlation").items():
    if not isinstance(one.value, dict):
      continue
    if "within" in one:
      for where in ("within", "pooled"):
        row(f"{name} {where}", one.get(where))
    else:
      row(f"{name} within", one)
    if "chance" in one:
      rows.append((f"{name} by chance", page.value(one["chance"]), ""))
  judges = found.get("judges")
  for name, one in judges.get("each").items():
    row(f"with {name}", one)
  if "ceiling" in judges:
    for name, what in _OF_TWO.items():
      row(what, judges["ceiling"][name])
  page.table(("", "value", "n"), ((escaped(a), b, c) for a, b, c in rows))
  if isinstance(found.get("ties").value, dict):
    ties = found["ties"]
    page.add(
      f"<p>People left {page.value(ties['people'])} comparisons undecided; the "
      f"model ties {page.value(ties['model'])}, which count half.</p>"
    )
  for name, parts in found.get("by").items():
    page.add(f"<h3>Accuracy by {escaped(name.replace('_', ' '))}</h3>")
    page.picture(f"accuracy_{name}", f"accuracy by {name}")
    page.table(
      ("", "accuracy", "n"),
      ((escaped(one.value["name"]), page.figure(one), page.value(one.get("n"))) for one in parts),
    )


SECTION = Section(
  "agreement",
  "Agreement with people",
  _measure,
  _render,
  draw=_draw,
  measure_steps=_measure_steps,
  summary=_summary,
)
