"""What a section of the audit is, and what it is given to measure.

A section is one module in `audit/sections/` that ends with its `SECTION`, listed once in
`audit/sections/__init__.py`. It has up to three main parts, and the later ones see only the results
of those before them:

  measure   Subject -> report      scores texts, computes figures
  draw      report -> pictures     optional
  render    report, pictures -> HTML

A report is a dict of JSON's own types, so that report.json holds all that the page shows.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.audit.benchmarks import Item
from rm_jax.audit.comparisons import PREFERENCES, conversation_of
from rm_jax.audit.reference import Reference
from rm_jax.audit.scorer import Scorer, example_scores
from rm_jax.audit.writer import View, Writer
from rm_jax.heldout.evaluate import judged
from rm_jax.shaping.chain import Chain, Plan
from rm_jax.shaping.limits import Limits
from rm_jax.types import Example
from rm_jax.world import World

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How much the sections measure, and on what.

  Attributes:
    edited_pairs: largest number of pairs that are scored again with edited responses or with other
      prompts.
    limits: limits on responses and scores; see the section `rules`.
    shaping: the model's chain of shaping, or a plan of one to be fitted, for the section `shaping`;
      None = there is none, and no such section.
    world: the generated world that the data, or some of them, are from. The section
      `overoptimisation` draws candidates from it, whose true reward is known. A string: the data
      are from several worlds, and the string says so; None: no world is known. With either, no
      candidates are drawn.
    prompts: number of prompts drawn from the world, for `overoptimisation`; at least 2.
    candidates: number of responses drawn for each of these prompts; at least 4.
    policies: what became of policies that were optimised against the model, from
      `sections.policies.read`; None = nothing is known, and there is no such section.
    seed: of all draws but that of `comparisons.compared`, which is always the same.
  """

  edited_pairs: int = 500
  limits: Limits = dataclasses.field(default_factory=Limits)
  shaping: Chain | Plan | None = None
  world: World | str | None = None
  prompts: int = 32
  candidates: int = 1024
  policies: Mapping[str, Any] | None = None
  seed: int = 0


class Attempts:
  """Calls functions; of one that fails the result is {why: the error}.

  A call fails if it raises, or returns what JSON cannot hold. An audit can take long, so an
  unforeseen error in one part must not cost the others.

  Attributes:
    failed: {name of a call that failed: its error}.
  """

  def __init__(self):
    self.failed: dict[str, str] = {}

  def __call__(self, name: str, make: Callable[[], Any]) -> Any:
    """The value of `make()`; {why: the error} if it raises or returns what JSON cannot hold."""
    try:
      made = make()
      json.dumps(made, allow_nan=False)
    except Exception as error:
      log.exception("%s", name)
      self.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:500]
      return {"why": f"it failed, which is no finding ({self.failed[name]})"}
    return made


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model and the data on which it is audited.

  Attributes:
    scorer: of the model.
    examples: feedback on whole responses, or on the steps of solutions.
    settings: see `Settings`.
    reference: scores and features of the model on other data, to compare with; None = no reference.
    against: name -> scorer of other models to compare with.
    benchmarks: name of a published benchmark -> its items.
    attempt: calls a section, or a part of one, so that its error does not stop the others.
  """

  scorer: Scorer
  examples: Sequence[Example]
  settings: Settings = dataclasses.field(default_factory=Settings)
  reference: Reference | None = None
  against: Mapping[str, Scorer] = dataclasses.field(default_factory=dict)
  benchmarks: Mapping[str, Sequence[Item]] = dataclasses.field(default_factory=dict)
  attempt: Attempts = dataclasses.field(default_factory=Attempts)

  @property
  def in_steps(self) -> bool:
    """Whether all examples are solutions that are judged step by step."""
    return {e.kind for e in self.examples} == {"step"}

  @functools.cached_property
  def scores(self) -> list[np.ndarray]:
    """For each example the scores of its responses [K], or the log-odds of its steps [steps]."""
    if not self.in_steps:
      return example_scores(self.scorer, self.examples)
    rows = [
      {"prompt": e.prompt if isinstance(e.prompt, str) else list(e.prompt), "completions": steps}
      for e in self.examples
      for steps in map(list, e.steps)
    ]
    scores = iter(self.scorer.steps(rows))
    return [np.concatenate([next(scores) for _ in e.steps]) for e in self.examples]

  def lacks_comparisons(self, conversations: int = 1) -> str:
    """Why people did not decide comparisons in this many conversations; '' if they did.

    Sections that call this and raise an error on fewer than 2 conversations ask for 2.
    """
    asked = [e for e in self.examples if e.kind in PREFERENCES]
    if not asked:
      return "no comparison in the data"
    judgements = [(conversation_of(e), *judged(e)) for e in asked]
    decided = {name for name, better, _ in judgements if better}
    if len(decided) >= conversations:
      return ""
    count = sum(len(better) + undecided for _, better, undecided in judgements)
    if not decided:
      return f"people decided none of {count} comparisons"
    return (
      f"people decided comparisons of {len(decided)} conversation alone, of {count} comparisons in "
      f"all; it wants those of {conversations}"
    )

  def lacks_conversations(self) -> str:
    """Why the variation between conversations cannot be estimated; '' unless there is only one."""
    if len({conversation_of(e) for e in self.examples}) == 1:
      return "one conversation alone says nothing of how conversations differ"
    return ""


# Draws one picture as a PNG.
Draw = Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Section:
  """One section of the audit.

  A report is {why: reason} if there is nothing to measure or measuring failed; then the page shows
  the reason, and `draw`, `render` and `summary` are not called. The findings in words, if any, are
  under the report's key `says`, a sentence or a list of sentences: the page shows them at its top
  and below the section's heading, and the command prints them.

  Attributes:
    name: key in the report and anchor on the page.
    title: heading on the page.
    measure: a subject with whole responses -> the section's report. If it returns None, the audit's
      report has no such section.
    render: writes the tables and pictures of a report on the page; all its numbers are in the
      report.
    draw: report -> {name of a picture: function that draws it}. Each function is called by itself,
      so that an error of one leaves the others.
    measure_steps: as `measure`, for a subject whose solutions are judged step by step; None = such
      a subject gets no such section.
    prepare: called with a subject that the section measures, before any section measures it; it
      scores texts in an order that avoids computing them twice.
    summary: the page's writer, report -> lines of HTML for the top of the page, in addition to
      `says`.
  """

  name: str
  title: str
  measure: Callable[[Subject], dict[str, Any] | None]
  render: Callable[[Writer, View], None]
  draw: Callable[[Mapping[str, Any]], dict[str, Draw]] | None = None
  measure_steps: Callable[[Subject], dict[str, Any] | None] | None = None
  prepare: Callable[[Subject], None] | None = None
  summary: Callable[[Writer, View], list[str]] | None = None


def silent(report: Mapping[str, Any]) -> bool:
  """Whether a report is {why: reason} alone: the section had nothing to measure, or it failed."""
  return set(report) == {"why"}


def sentences(report: Any) -> list[str]:
  """The findings of a section in words: its `says`, a sentence or a list; [] if it has none."""
  says = report.get("says") if isinstance(report, Mapping) else None
  if isinstance(says, str):
    return [says]
  return says if isinstance(says, list) else []
