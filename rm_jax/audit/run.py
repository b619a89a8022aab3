"""Audits a model: measures one section after another."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rm_jax.audit.benchmarks import Item
from rm_jax.audit.comparisons import PREFERENCES
from rm_jax.audit.reference import Reference
from rm_jax.audit.scorer import Scorer
from rm_jax.audit.section import Section, Settings, Subject, silent
from rm_jax.audit.sections import SECTIONS
from rm_jax.types import Example

log = logging.getLogger(__name__)


def audit(
  scorer: Scorer,
  examples: Sequence[Example],
  *,
  reference: Reference | None = None,
  against: Mapping[str, Scorer] | None = None,
  benchmarks: Mapping[str, Sequence[Item]] | None = None,
  settings: Settings | None = None,
  sections: Sequence[Section] = SECTIONS,
) -> dict[str, Any]:
  """Measures all sections of the audit of one model on one data set.

  Args:
    scorer: of the model.
    examples: feedback on whole responses (pairs, rankings, outcomes, scores), or on steps alone.
    reference: scores and features of the model on other data, with which these examples are
      compared; None = there is none.
    against: name -> scorer of another model to compare with.
    benchmarks: name of a published benchmark -> its items.
    settings: see `Settings`.
    sections: the sections to measure, in this order.

  Returns:
    {name of a section: its report}, of JSON's own types, without the sections that do not apply to
    the model or its feedback. A section that has no data to measure, or that raised an error, has
    the report {why: reason}. If sections, or parts of them, failed, `failed` is {name: error}.

  Raises:
    ValueError: examples of kind 'attributes', or of kind 'step' together with other kinds.
    InputError: a score of the examples that is not finite.
    DataError: an example that the model cannot score.
  """
  subject = Subject(
    scorer, examples, settings or Settings(), reference, against or {}, benchmarks or {}
  )
  wrong = sorted({e.kind for e in examples} - {*PREFERENCES, "outcome", "score"})
  if wrong and not subject.in_steps:
    raise ValueError(f"examples of kinds {wrong}; expected pairs, rankings, outcomes or scores")
  measures = {
    section.name: section.measure_steps if subject.in_steps else section.measure
    for section in sections
  }
  for section in sections:
    if measures[section.name] and section.prepare:
      section.prepare(subject)
  _ = subject.scores  # not inside `attempt`: the audit must stop if the examples are not scored
  report: dict[str, Any] = {}
  for name, measure in measures.items():
    if measure is None:
      continue
    began = time.monotonic()
    found = subject.attempt(name, lambda measure=measure: measure(subject))
    if found is None:
      continue
    report[name] = found
    took = f"{time.monotonic() - began:.1f} s"
    log.info("%s: %s", name, found["why"] if silent(found) else took)
  failed = subject.attempt.failed
  return report | ({"failed": failed} if failed else {})
