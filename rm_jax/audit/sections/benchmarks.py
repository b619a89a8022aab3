"""Section `benchmarks`: published benchmarks, by their own metrics; see `audit.benchmarks`."""

from collections.abc import Sequence
from typing import Any

from rm_jax.audit.benchmarks import BENCHMARKS, Item
from rm_jax.audit.section import Section, Subject
from rm_jax.audit.writer import View, Writer, escaped


def _measure(subject: Subject) -> dict[str, Any] | None:
  if not subject.benchmarks:
    return None
  return {
    name: {
      "score": None,
      **subject.attempt(name, lambda name=name, items=items: _evaluated(subject, name, items)),
    }
    for name, items in subject.benchmarks.items()
  }


def _evaluated(subject: Subject, name: str, items: Sequence[Item]) -> dict[str, Any]:
  one = BENCHMARKS[name]
  scorer = subject.scorer if one.scores == "responses" else subject.scorer.steps
  return one.evaluate(scorer, items, seed=subject.settings.seed)


def _render(page: Writer, found: View) -> None:
  for name, one in found.items():
    page.add(f"<h3>{escaped(name)}: {page.figure(one, key='score')}</h3>")
    page.table(
      ("subset", "accuracy", "n"),
      (
        (escaped(subset), page.figure(part, key="accuracy"), page.value(part.get("n")))
        for subset, part in one.get("subsets").items()
      ),
    )


SECTION = Section("benchmarks", "Published benchmarks", _measure, _render, measure_steps=_measure)
