"""Section `compare`: the model against other models, on the same comparisons."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.comparisons import PREFERENCES, conversation_of
from rm_jax.audit.scorer import example_scores
from rm_jax.audit.section import Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.heldout import intervals
from rm_jax.heldout.evaluate import judged
from rm_jax.metrics.agreement import credit
from rm_jax.types import Example


def compare(
  scores: Sequence[np.ndarray],
  others: Sequence[np.ndarray],
  examples: Sequence[Example],
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """The accuracy of one model minus that of another, paired by comparison.

  Args:
    scores: for each example float [K], the model's scores of its responses.
    others: the other model's scores, in the same form.
    examples: of these, pairs and rankings are used.
    seed: of the intervals.

  Returns:
    {difference, interval: of the difference, n: comparisons, alike: figure of the share of
    comparisons in which both models choose the same response; a tie of one model counts half}, and
    `method` or `why` as of `metrics.agreement.accuracy`.

  Raises:
    ValueError: no decided comparison, or a score that is not finite.
  """
  pairs, cluster = [], []
  for one, other, example in zip(scores, others, examples, strict=True):
    if example.kind not in PREFERENCES:
      continue
    for i, j in judged(example)[0]:
      pairs.append((one[i], one[j], other[i], other[j]))
      cluster.append(conversation_of(example))
  if not pairs:
    raise ValueError("no comparison among the examples; expected pairs or rankings")
  chosen, rejected, other_chosen, other_rejected = np.asarray(pairs).T
  first, second = credit(chosen, rejected), credit(other_chosen, other_rejected)
  alike = 1 - np.abs(np.subtract(first, second))
  return intervals.paired(first, second, cluster, seed=seed) | {
    "n": len(pairs),
    "alike": figures.share(alike, cluster, seed=seed),
  }


def _measure(subject: Subject) -> dict[str, Any]:
  if not subject.against:
    return {"why": "no other model was given"}
  if why := subject.lacks_comparisons():
    return {"why": why}
  # A report whose only key is 'why' counts as one that measured nothing (`section.silent`).
  return {
    "why, a model" if name == "why" else name: subject.attempt(
      f"compare with {name}",
      lambda other=other: compare(
        subject.scores,
        example_scores(other, subject.examples),
        subject.examples,
        seed=subject.settings.seed,
      ),
    )
    for name, other in subject.against.items()
  }


def _render(page: Writer, found: View) -> None:
  page.table(
    ("compared with", "difference in accuracy", "both choose alike"),
    (
      (escaped(name), page.figure(one, key="difference"), page.figure(one.get("alike")))
      for name, one in found.items()
    ),
  )


SECTION = Section("compare", "Against other models", _measure, _render)
