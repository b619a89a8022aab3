"""Agreement with held-out judgements, with the baselines that need no model beside it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.metrics import agreement, interval
from rm_jax.metrics.correlation import kendall
from rm_jax.metrics.ranking import order
from rm_jax.train import pointwise
from rm_jax.types import Example, Text
from rm_jax.world import best_reachable


def characters(text: Text) -> int:
  """Length of a response as people see it: characters, whatever the tokenizer."""
  return len(text) if isinstance(text, str) else sum(len(m["content"]) for m in text)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What was found: `report`, JSON's own types alone, and scores to draw.

  `scores` are two named sets, of what people found good and bad: (name, float [n]).
  """

  report: dict[str, Any]
  scores: tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]


def evaluate(
  scores: Sequence[np.ndarray], examples: Sequence[Example], attributes: Sequence[str] = ()
) -> Evaluation:
  """Held-out agreement, for whatever kinds of feedback there are.

  Args:
    scores: for each example float [M], of its marks; of feedback on attributes [A, M].
    examples: in the same order.
    attributes: the model's, in order.

  Returns:
    the report of the comparisons (pairs and rankings together) where there are any, else of the
    first kind of `types.KINDS`; `report["kinds"]` has each kind's where there are several.
  """
  chunks: dict[str, list[int]] = {}
  for i, example in enumerate(examples):
    name = "comparison" if example.kind in ("pair", "ranking") else example.kind
    chunks.setdefault(name, []).append(i)
  on_attributes = functools.partial(pointwise.attributes, names=attributes)
  makers = {"comparison": comparisons} | pointwise.MAKERS | {"attributes": on_attributes}
  done = {}
  for kind, make in makers.items():
    if kind in chunks:
      mine = chunks[kind]
      report, drawn = make([scores[i] for i in mine], [examples[i] for i in mine])
      done[kind] = Evaluation({"kind": kind, **report}, drawn)
  first = next(iter(done.values()))
  if len(done) == 1:
    return first
  kinds = {kind: one.report for kind, one in done.items()}
  return Evaluation({**first.report, "kinds": kinds}, first.scores)


def judged(example: Example) -> tuple[list[tuple[int, int]], int]:
  """Comparisons that people decided, (better, worse), and how many they left undecided.

  Where several were asked the majority decides; a tie, or as many for as against, does not.
  """
  count = len(example.responses)
  if example.pairs is None and example.ties is None:
    value = [[float(a > b) for b in example.labels] for a in example.labels]
    asked = [[1.0] * count for _ in range(count)]
  else:
    zero = [[0.0] * count for _ in range(count)]
    value = example.pairs or zero
    ties = example.ties or zero
    asked = [[value[i][j] + value[j][i] + ties[i][j] for j in range(count)] for i in range(count)]
  better = [(i, j) for i in range(count) for j in range(count) if value[i][j] > value[j][i]]
  total = sum(asked[i][j] > 0 for i in range(count) for j in range(i))
  return better, total - len(better)


def comparisons(
  scores: Sequence[np.ndarray], examples: Sequence[Example]
) -> tuple[dict[str, Any], Any]:
  """Report of pairs and rankings, each of whose decided comparisons counts as a pair.

  Beside `pair_report`'s: `undecided` comparisons (people's ties), and for lists of three and more
  `kendall`: mean τ-b of a list's scores with its gains, {value, interval, n, undefined}.
  """
  pairs, expanded, undecided, taus, lists = [], [], 0, [], []
  for score, example in zip(scores, examples, strict=True):
    better, tied = judged(example)
    undecided += tied
    for i, j in better:
      pairs.append(np.asarray([score[i], score[j]]))
      expanded.append(
        dataclasses.replace(
          example,
          responses=(example.responses[i], example.responses[j]),
          labels=(1.0, 0.0),
          truth=example.truth and (example.truth[i], example.truth[j]),
          pairs=None,
          ties=None,
        )
      )
    if len(example.responses) > 2:
      taus.append(order(kendall, np.asarray(score), np.asarray(example.labels)))
      lists.append(example.conversation)
  report = pair_report(pairs, expanded) | {"undecided": undecided}
  fine = [(t, c) for t, c in zip(taus, lists, strict=True) if np.isfinite(t)]
  if len({c for _, c in fine}) > 1:
    values, clusters = zip(*fine, strict=True)
    report["kendall"] = {
      "value": float(np.mean(values)),
      **interval.mean(values, clusters, bounds=(-1.0, 1.0)).report(),
      "n": len(values),
      "undefined": len(taus) - len(values),
    }
  stacked = np.stack(pairs)
  return report, (("chosen", stacked[:, 0]), ("rejected", stacked[:, 1]))


def pair_report(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> dict[str, Any]:
  """Held-out agreement of scores with pairs.

  Args:
    scores: [2] of each example: of its chosen and its rejected response.
    examples: pairs, labels (1, 0), in the same order.

  Returns:
    {accuracy, interval, n, ties, conversations, loss (Bradley–Terry's, nats), margin,
    baselines: {random, longest, shortest} accuracies, paired: {baseline: {difference, interval}},
    sources: {source: {accuracy, interval, n, best_length_rule}}, and best_reachable, the agreement
    of the true reward with the same labels, where every example knows it}. A tie counts half;
    intervals are 95 %, over conversations.
  """
  pairs = np.asarray([s[:2] for s in scores], np.float64)
  lengths = np.asarray([[characters(r) for r in e.responses] for e in examples])
  clusters = [e.conversation for e in examples]
  credit = agreement.credit(pairs[:, 0], pairs[:, 1])
  rules = {
    "random": agreement.coin(len(examples)),
    "longest": agreement.longest(lengths[:, 0], lengths[:, 1]),
    "shortest": agreement.shortest(lengths[:, 0], lengths[:, 1]),
  }
  difference = pairs[:, 0] - pairs[:, 1]
  report = agreement.accuracy(credit, clusters) | {
    "loss": float(np.logaddexp(0.0, -difference).mean()),
    "margin": float(difference.mean()),
    "baselines": {name: float(rule.mean()) for name, rule in rules.items()},
    "paired": {
      name: agreement.paired_difference(credit, rule, clusters) for name, rule in rules.items()
    },
  }
  if all(e.truth is not None for e in examples):
    report["best_reachable"] = best_reachable(examples)
  sources = np.asarray([e.source for e in examples])
  report["sources"] = {}
  for source in sorted(set(sources)):
    here = np.flatnonzero(sources == source)
    best = max(("longest", "shortest"), key=lambda name: rules[name][here].mean())
    mine = [clusters[i] for i in here]
    entry = agreement.accuracy(credit[here], mine)
    entry["best_length_rule"] = {"rule": best, "accuracy": float(rules[best][here].mean())}
    report["sources"][source] = entry
  return report


_UNITS = {
  "comparison": "pairs",
  "outcome": "responses",
  "score": "responses",
  "attributes": "responses",
  "step": "steps",
  "best_of": "questions",
  "first_error": "solutions",
}


def summary_line(report: dict[str, Any]) -> str:
  """One line for people."""
  unit = _UNITS[report.get("kind", "comparison")]
  if "attributes" in report:
    return f"held-out {_errors(report)} on {report['n']} {unit}"
  if "accuracy" not in report:
    return f"held-out Spearman correlation {_valued(report['spearman'])} on {report['n']} {unit}"
  reachable = report.get("best_reachable")
  baselines = ", ".join(f"{name} {value:.3f}" for name, value in report["baselines"].items())
  return (
    f"held-out accuracy {_valued(report, 'accuracy')} on {report['n']} {unit}"
    + (f"; best reachable {reachable:.3f}" if reachable is not None else "")
    + f"; {baselines}"
  )


def _errors(report: dict[str, Any]) -> str:
  return (
    f"mean square error {report['loss']:.3f}, of always the mean {report['baselines']['mean']:.3f}"
  )


def _valued(one: dict[str, Any], key: str = "value", form: str = ".3f") -> str:
  """'0.712 [0.651, 0.770]'; without an interval its reason."""
  if one[key] is None:
    return f"not defined ({one.get('why', 'for these data')})"
  if one.get("interval") is None:
    return f"{one[key]:{form}} (no interval: {one.get('why', 'none was made')})"
  low, high = one["interval"]
  return f"{one[key]:{form}} [{low:{form}}, {high:{form}}]"


def summary_table(report: dict[str, Any]) -> str:
  """The line for people, how far each baseline is behind, and each source beside its length rule.

  Differences are over the same pairs, resampled by conversation; one whose interval holds zero may
  be luck.
  """
  lines = [summary_line(report)]
  for name, paired in report.get("paired", {}).items():
    lines.append(f"  {_valued(paired, 'difference', '+.3f')} to {name}, paired")
  valued = {name: report.get(name) for name in ("auroc", "kendall", "spearman")}
  valued |= {f"solution auroc, {how}": x for how, x in report.get("solution_auroc", {}).items()}
  for name, one in valued.items():
    if one and one["value"] is not None:
      lines.append(f"  {name} {_valued(one)}")
  for name, one in report.get("attributes", {}).items():
    rho = one.get("spearman")
    rho = f"Spearman correlation {_valued(rho)}; " if rho and rho["value"] is not None else ""
    lines.append(f"  {name}: {rho}{_errors(one)}, on {one['n']}")
  for name in ("best_of", "first_error"):
    if name in report:
      lines.append(f"  {name.replace('_', ' ')}: {summary_line(report[name])}")
  if "shift" in report:
    shift = report["shift"]
    lines.append(
      f"  members' disagreement, {shift['shifted']['n']} shifted against held out: AUROC "
      f"{_valued(shift['auroc'])}, of centered scores {_valued(shift['auroc_centered'])}"
    )
  if len(report.get("sources", ())) > 1:
    width = max(map(len, report["sources"]))
    for source, one in report["sources"].items():
      rule = one["best_length_rule"]
      lines.append(
        f"  {source:{width}} {_valued(one, 'accuracy')} on {one['n']} pairs; "
        f"best length rule: {rule['rule']} {rule['accuracy']:.3f}"
      )
  for kind, one in report.get("kinds", {}).items():
    if kind != report["kind"]:
      lines.append(f"{kind}: {summary_table(one)}")
  return "\n".join(lines)
