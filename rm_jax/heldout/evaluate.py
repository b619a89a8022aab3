"""Evaluates scores on held-out feedback of any kind, next to baselines that need no model.

`evaluate` makes the report; `summary_line` and `summary_table` print it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.data.feedback import outweighs
from rm_jax.errors import InputError
from rm_jax.heldout import intervals, pointwise
from rm_jax.heldout.pointwise import characters
from rm_jax.metrics import agreement
from rm_jax.metrics.correlation import kendall
from rm_jax.metrics.ranking import list_correlation
from rm_jax.types import Example
from rm_jax.world import best_reachable


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The result of `evaluate`.

  Attributes:
    report: name -> figure, of types that JSON has.
    scores: two named sets of scores for a histogram, of responses (or steps) that people found
      better and worse: ((name, float [n]), (name, float [m])).
  """

  report: dict[str, Any]
  scores: tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]


def evaluate(
  scores: Sequence[np.ndarray],
  examples: Sequence[Example],
  attributes: Sequence[str] = (),
  outputs: Sequence[np.ndarray] | None = None,
  *,
  seed: int = 0,
) -> Evaluation:
  """Evaluates scores on held-out feedback, one report for each kind of feedback.

  Args:
    scores: for each example float [M], the scores of its M marks (responses, or steps); for
      feedback on A attributes [A, M].
    examples: N examples, in the same order.
    attributes: names of the model's attributes, in order.
    outputs: for each example float [A, M], scores of each attribute; None = not known.
    seed: of the intervals.

  Returns:
    an `Evaluation` of comparisons (pairs and rankings together) if people decided any, else of the
    first kind that has a figure; with several kinds, `report["kinds"]` has the report of each.
    Where judgements are about one of the model's attributes (`Example.objective`) and `outputs` are
    known, `report["objectives"]` has for each of these attributes the report of its own scores. A
    figure that cannot be computed is None, and of one with an interval `why` has the reason.

  Raises:
    InputError: a score, or an output that judgements are about, is not finite.
  """
  for score, example in zip(scores, examples, strict=True):
    if not np.isfinite(score).all():
      raise InputError(
        f"{example.origin or example.conversation}: its scores are {np.asarray(score).tolist()}; "
        "expected finite ones. The weights have grown too large: try a lower learning rate"
      )
  chunks: dict[str, list[int]] = {}
  for i, example in enumerate(examples):
    name = "comparison" if example.kind in ("pair", "ranking") else example.kind
    chunks.setdefault(name, []).append(i)
  on_attributes = functools.partial(pointwise.attribute_report, names=attributes)
  reports = {"comparison": comparison_report} | pointwise.REPORTS | {"attributes": on_attributes}
  done = {}
  for kind, make in reports.items():
    if kind in chunks:
      mine = chunks[kind]
      report, drawn = make([scores[i] for i in mine], [examples[i] for i in mine], seed=seed)
      done[kind] = Evaluation({"kind": kind, **report}, drawn)
  if not done:
    return Evaluation({"kind": "comparison", **pair_report([], []), "undecided": 0}, _UNDRAWN)
  first = next((one for one in done.values() if one.report["n"]), next(iter(done.values())))
  report = dict(first.report)
  if len(done) > 1:
    report["kinds"] = {kind: one.report for kind, one in done.items()}
  if outputs is not None and (found := _objectives(outputs, examples, attributes, seed)):
    report["objectives"] = found
  return Evaluation(report, first.scores)


def _objectives(
  outputs: Sequence[np.ndarray], examples: Sequence[Example], attributes: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
  """Attribute -> the report of its own scores on the judgements that are about it."""
  found = {}
  for a, name in enumerate(attributes):
    mine = [i for i, e in enumerate(examples) if e.objective == name]
    if mine:
      own = [np.asarray(outputs[i][a]) for i in mine]
      found[name] = evaluate(own, [examples[i] for i in mine], seed=seed).report
  return found


_UNDRAWN = (("chosen", np.zeros(0)), ("rejected", np.zeros(0)))


def judged(example: Example) -> tuple[list[tuple[int, int]], int]:
  """The comparisons of an example that people decided, and the number of undecided ones.

  If several people compared two responses, the majority of those who preferred one of them decides.
  With numbers for either side that are equal but for rounding, or none, the comparison is
  undecided. Where `pairs` and `ties` are None the labels decide each comparison, unless they are
  equal.

  Returns:
    ([(index of the better response, index of the worse)], number of undecided comparisons).
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
  every = range(count)
  better = [(i, j) for i in every for j in every if outweighs(value[i][j], value[j][i])]
  total = sum(asked[i][j] > 0 for i in range(count) for j in range(i))
  return better, total - len(better)


def comparison_report(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> tuple[dict[str, Any], Any]:
  """Report of pairs and rankings: each decided comparison counts as a pair.

  Returns:
    `pair_report`'s report with `undecided`, the number of comparisons that people left undecided,
    and for lists of three or more responses `kendall`, the mean over lists of Kendall's τ-b between
    scores and labels, over the comparisons that people made (see `_tau`): {value, interval, n:
    lists that have one, undefined: the others, which are left out}; and the scores for the
    histogram, as `Evaluation` has them. Where the true rewards of such lists are known, also
    `gain`, what choosing the response with the highest score gains in true reward over a random
    one, the mean over lists: {value, interval, n, oracle: what the best choice gains}.
  """
  pairs, expanded, undecided, taus, lists, gains = [], [], 0, [], [], []
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
      taus.append(_tau(np.asarray(score), example))
      lists.append(example.conversation)
      if example.truth is not None:
        gains.append((_gain(np.asarray(score), np.asarray(example.truth)), example.conversation))
  report = pair_report(pairs, expanded, seed=seed) | {"undecided": undecided}
  if not pairs:
    report["why"] = f"people decided none of {undecided} comparisons"
  if taus:
    fine = [(t, c) for t, c in zip(taus, lists, strict=True) if np.isfinite(t)]
    found = intervals.mean([t for t, _ in fine], [c for _, c in fine], (-1.0, 1.0), seed=seed)
    report["kendall"] = found | {"undefined": len(taus) - len(fine)}
    if not fine:
      report["kendall"]["why"] = "every list is tied, in its scores or in its gains"
  if gains:
    gain_NX, owners = np.asarray([gain for gain, _ in gains]), [owner for _, owner in gains]
    gain_N, best_N, worst_N = gain_NX.T
    bounds = float(worst_N.min()), float(best_N.max())
    found = intervals.mean(gain_N, owners, bounds, seed=seed)
    report["gain"] = found | {"oracle": float(best_N.mean())}
  if not pairs:
    return report, _UNDRAWN
  stacked = np.stack(pairs)
  return report, (("chosen", stacked[:, 0]), ("rejected", stacked[:, 1]))


def _gain(score_K: np.ndarray, truth_K: np.ndarray) -> tuple[float, float, float]:
  """What the highest score, the best and the worst choice gain in truth over a random choice.

  Responses with equal highest scores get the mean of their truths, the expectation of a fair draw.
  """
  worst, best = truth_K.min(), truth_K.max()
  # The mean of equal numbers may be rounded to one above them.
  picked = np.clip(truth_K[score_K == score_K.max()].mean(), worst, best)
  found = np.asarray([picked, best, worst], np.float64) - truth_K.mean()
  return tuple(found.tolist())


def _tau(score_K: np.ndarray, example: Example) -> float:
  """Kendall's τ-b of scores and labels over the pairs of responses that were compared.

    (concordant − discordant) / √((pairs − ties in scores)(pairs − ties in labels))

  Where comparisons were observed, labels are win rates, and that of a response without a comparison
  is 1/2, which says nothing. Pairs that nobody compared are left out of all counts. If every
  response was compared with every other one, this is the τ-b of the whole list.

  Returns:
    the correlation: 0 where equal scores rank nothing, NaN where the labels rank nothing.
  """
  label_K = np.asarray(example.labels, np.float64)
  if example.pairs is None and example.ties is None:
    return list_correlation(kendall, score_K, label_K)
  seen = sum(np.asarray(m, np.float64) for m in (example.pairs, example.ties) if m is not None)
  asked = (seen + seen.T) > 0
  equal = np.isclose(label_K[:, None], label_K, rtol=1e-9, atol=1e-12)  # but for rounding
  sign_score, sign_label = (np.sign(x[:, None] - x) * asked for x in (score_K, label_K))
  sign_label = np.where(equal, 0.0, sign_label)
  if not sign_label.any():
    return float("nan")
  below = np.sqrt(float(np.count_nonzero(sign_score)) * np.count_nonzero(sign_label))
  return float((sign_score * sign_label).sum() / below) if below else 0.0


def pair_report(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> dict[str, Any]:
  """Agreement of scores with pairs.

  Args:
    scores: for each example float [2], of its chosen and its rejected response.
    examples: pairs with labels (1, 0), in the same order.
    seed: of the intervals.

  Returns:
    {accuracy, interval, n, ties, conversations, loss (Bradley & Terry's, nats), margin (mean score
    difference), baselines: {random, longest, shortest} accuracies, paired: {baseline: {difference,
    interval}} of accuracies on the same pairs, sources: {source: {accuracy, interval, n, ..,
    best_length_rule: {rule, accuracy, difference, interval: of the model's accuracy minus the
    rule's}}}, and best_reachable, the true reward's accuracy, if all examples have a
    `truth`}.
    Equal scores count half. Intervals are 95 %, with conversations as clusters; with too few
    conversations they are None, and `why` says so. Without pairs counts are 0 and figures None.
  """
  pairs = np.asarray([s[:2] for s in scores], np.float64).reshape(-1, 2)
  lengths = np.asarray([[characters(r) for r in e.responses] for e in examples]).reshape(-1, 2)
  clusters = [e.conversation for e in examples]
  credit = agreement.credit(pairs[:, 0], pairs[:, 1])
  rules = {
    "random": agreement.coin(len(examples)),
    "longest": agreement.longest(lengths[:, 0], lengths[:, 1]),
    "shortest": agreement.shortest(lengths[:, 0], lengths[:, 1]),
  }
  difference = pairs[:, 0] - pairs[:, 1]

  def mean(values) -> float | None:
    return float(values.mean()) if len(values) else None

  report = intervals.accuracy(credit, clusters, seed=seed) | {
    "loss": mean(np.logaddexp(0.0, -difference)),
    "margin": mean(difference),
    "baselines": {name: mean(rule) for name, rule in rules.items()},
    "paired": {
      name: intervals.paired(credit, rule, clusters, seed=seed) for name, rule in rules.items()
    },
  }
  if examples and all(e.truth is not None for e in examples):
    report["best_reachable"] = best_reachable(examples)
  sources = np.asarray([e.source for e in examples])
  report["sources"] = {}
  for source in sorted(set(sources)):
    here = np.flatnonzero(sources == source)
    best = max(("longest", "shortest"), key=lambda name: rules[name][here].mean())
    mine = [clusters[i] for i in here]
    entry = intervals.accuracy(credit[here], mine, seed=seed)
    entry["best_length_rule"] = {
      "rule": best,
      "accuracy": float(rules[best][here].mean()),
      # The better rule is chosen on these pairs, so that the difference is rather too small.
      **intervals.paired(credit[here], rules[best][here], mine, seed=seed),
    }
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
  """The report in one line; for a figure that is None, the reason."""
  unit = _UNITS[report.get("kind", "comparison")]
  if not report["n"]:
    return f"held-out: no figure, {report.get('why', 'nothing is held out')}"
  if "attributes" in report:
    return f"held-out {_errors(report)} on {report['n']} {unit}"
  if "accuracy" not in report:
    rho = report["spearman"]
    if rho["value"] is None:
      return (
        f"held-out {_errors(report)} on {report['n']} {unit}; no Spearman correlation: {rho['why']}"
      )
    return f"held-out Spearman correlation {_valued(rho)} on {report['n']} {unit}"
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


def _valued(one: dict[str, Any], name: str = "value", form: str = ".3f") -> str:
  """A figure with its interval: '0.750 [0.700, 0.800]', or '0.750 [no interval: WHY]'."""
  if not one.get("interval"):
    return f"{one[name]:{form}} [no interval: {one.get('why', 'too little is held out')}]"
  low, high = one["interval"]
  return f"{one[name]:{form}} [{low:{form}}, {high:{form}}]"


def _beyond(rule: dict[str, Any] | None) -> str:
  """What the best rule has; '' where there is none, as in reports of earlier versions."""
  if rule is None:
    return ""
  difference = _valued(rule, "difference", "+.3f")
  value = rule["auroc"] if "auroc" in rule else rule["accuracy"]
  return f"; best rule: {rule['rule']} {value:.3f}, {difference} to it"


def summary_table(report: dict[str, Any]) -> str:
  """The report in several lines: `summary_line`, differences to baselines, and what else it has.

  The differences are on the same pairs, with intervals over conversations; a difference whose
  interval contains zero may be chance.
  """
  lines = [summary_line(report)]
  for name, paired in report.get("paired", {}).items():
    if paired["difference"] is not None:
      lines.append(f"  {_valued(paired, 'difference', '+.3f')} to {name}, paired")
  valued = {name: report.get(name) for name in ("auroc", "kendall", "spearman")}
  valued |= {f"solution auroc, {how}": x for how, x in report.get("solution_auroc", {}).items()}
  for name, one in valued.items():
    # A report of ratings has its Spearman correlation in the first line, or why there is none.
    if one and (one["value"] is not None or "accuracy" in report):
      found = f"none: {one['why']}" if one["value"] is None else _valued(one)
      lines.append(f"  {name} {found}{_beyond(one.get('best_rule'))}")
  for name, one in report.get("attributes", {}).items():
    rho = one["spearman"]
    known = rho["value"] is not None
    found = f"Spearman correlation {_valued(rho)}; " if known else ""
    lines.append(
      f"  {name}: {found}{_errors(one)}, on {one['n']}"
      + ("" if known else f"; no Spearman correlation: {rho['why']}")
    )
  for name in ("best_of", "first_error"):
    if name in report:
      lines.append(f"  {name.replace('_', ' ')}: {summary_line(report[name])}")
  tuned = report.get("first_error", {}).get("tuned")  # reports of earlier versions have none
  if tuned and tuned["accuracy"] is not None:
    lines.append(
      f"  first error, with the other half's threshold: {_valued(tuned, 'accuracy')}, F1 "
      f"{tuned['f1']:.3f} (with 0 {report['first_error']['f1']:.3f})"
    )
  within = report.get("best_of", {}).get("pairs")  # reports of earlier versions have none
  if within and within["n"]:
    lines.append(
      f"  right above wrong, within a question: {_valued(within, 'accuracy')} on {within['n']} "
      f"pairs{_beyond(within['best_rule'])}"
    )
  if gain := report.get("gain"):
    lines.append(
      f"  true reward of the highest score, above a random choice: {_valued(gain, form='+.3f')} on "
      f"{gain['n']} lists; of the best choice {gain['oracle']:+.3f}"
    )
  if own := report.get("shift", {}).get("report"):
    lines.append(f"  {summary_line(own).replace('held-out', 'on data.shifted:', 1)}")
  if "auroc" in report.get("shift", {}):
    shift = report["shift"]
    found = [
      f"none: {one['why']}" if one["value"] is None else _valued(one)
      for one in (shift["auroc"], shift["auroc_centered"])
    ]
    lines.append(
      f"  members' disagreement, {shift['shifted']['n']} shifted against held out: AUROC "
      f"{found[0]}, of centered scores {found[1]}"
    )
  if len(report.get("sources", ())) > 1:
    width = max(map(len, report["sources"]))
    for source, one in report["sources"].items():
      rule = one["best_length_rule"]
      lines.append(
        f"  {source:{width}} {_valued(one, 'accuracy')} on {one['n']} pairs; "
        f"best length rule: {rule['rule']} {rule['accuracy']:.3f}"
        # Reports of earlier versions have no difference, and others may have no interval of it.
        + (f", {_valued(rule, 'difference', '+.3f')} to it" if rule.get("interval") else "")
      )
  for name, one in report.get("objectives", {}).items():
    lines.append(f"  {name}, by its own scores: {summary_line(one)}")
  for kind, one in report.get("kinds", {}).items():
    if kind != report["kind"]:
      lines.append(f"{kind}: {summary_table(one)}")
  return "\n".join(lines)
