"""Agreement with held-out judgements, with the baselines that need no model beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.metrics import agreement
from rm_jax.types import Example, Text
from rm_jax.world import best_reachable


def characters(text: Text) -> int:
  """Length of a response as people see it: characters, whatever the tokenizer."""
  return len(text) if isinstance(text, str) else sum(len(m["content"]) for m in text)


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
    # One conversation alone says nothing of how conversations differ: no interval.
    entry = (
      agreement.accuracy(credit[here], mine)
      if len(set(mine)) > 1
      else {"accuracy": float(credit[here].mean()), "n": len(here)}
    )
    entry["best_length_rule"] = {"rule": best, "accuracy": float(rules[best][here].mean())}
    report["sources"][source] = entry
  return report


def summary_line(report: dict[str, Any]) -> str:
  """One line for people."""
  low, high = report["interval"]
  reachable = report.get("best_reachable")
  baselines = ", ".join(f"{name} {value:.3f}" for name, value in report["baselines"].items())
  return (
    f"held-out accuracy {report['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {report['n']} pairs"
    + (f"; best reachable {reachable:.3f}" if reachable is not None else "")
    + f"; {baselines}"
  )


def summary_table(report: dict[str, Any]) -> str:
  """The line for people, how far each baseline is behind, and each source beside its length rule.

  Differences are over the same pairs, resampled by conversation; one whose interval holds zero may
  be luck.
  """
  lines = [summary_line(report)]
  for name, paired in report["paired"].items():
    low, high = paired["interval"]
    lines.append(f"  {paired['difference']:+.3f} [{low:+.3f}, {high:+.3f}] to {name}, paired")
  if len(report["sources"]) > 1:
    width = max(map(len, report["sources"]))
    for source, one in report["sources"].items():
      rule = one["best_length_rule"]
      low, high = one.get("interval", (float("nan"),) * 2)
      lines.append(
        f"  {source:{width}} {one['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {one['n']} pairs; "
        f"best length rule: {rule['rule']} {rule['accuracy']:.3f}"
      )
  return "\n".join(lines)
