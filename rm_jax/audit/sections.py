"""All sections of the audit of one model on one data set, one after another."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.api import RewardModel
from rm_jax.audit import calibration, drift
from rm_jax.audit.agreement import agreement, compare, example_scores
from rm_jax.audit.controls import controls
from rm_jax.audit.drift import Reference
from rm_jax.audit.hacking import hacking
from rm_jax.audit.overoptimisation import Candidates, overoptimisation, rated
from rm_jax.audit.robustness import robustness
from rm_jax.audit.rules import Rules, flagged
from rm_jax.audit.scorer import Row, Scorer, key_of
from rm_jax.audit.texts import conversation_of, each_comparison, sampled
from rm_jax.heldout.evaluate import evaluate, judged
from rm_jax.metrics.best_of_n import best_of_n_curve
from rm_jax.types import Example
from rm_jax.world import World

log = logging.getLogger(__name__)

_MANY = 8  # responses to one prompt from which on best-of-n says something
_RED_TEAM = ("adversarial", "harmless")  # in a source's name


@dataclasses.dataclass(frozen=True)
class Settings:
  """What an audit looks at.

  Attributes:
    sample: pairs for which edited texts and other prompts are scored.
    rules: declared limits.
    world: whose candidates over-optimisation is measured on, by its true reward: the world that the
      data are of. None, or a reason, where they are of none.
    prompts: of the world, for those curves.
    candidates: responses drawn for each.
    seed: of all draws.
  """

  sample: int = 500
  rules: Rules = dataclasses.field(default_factory=Rules)
  world: World | str | None = None
  prompts: int = 32
  candidates: int = 1024
  seed: int = 0


class Sections:
  """Sections measured one after another, of which one that fails does not take the others along.

  Attributes:
    found: name -> what it found, of JSON's own types, or {why: it has nothing to say}.
    failed: name -> the error, of those that should have had something to say.
  """

  def __init__(self):
    self.found: dict[str, Any] = {}
    self.failed: dict[str, str] = {}

  def add(self, name: str, make: Callable[[], Any], why: str = "") -> None:
    """Measures a section, or keeps why it has nothing to say; an error is logged and kept."""
    begun = time.monotonic()
    if why:
      self.found[name] = {"why": why}
    else:
      self.found[name] = self.guarded(name, make)
    log.info("%s: %s", name, why or f"{time.monotonic() - begun:.1f} s")

  def guarded(self, name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, if it is JSON's and finite; else {why}."""
    try:
      made = make()
      json.dumps(made, allow_nan=False)
    except Exception as error:  # whatever it is, hours of the others' work are worth a page
      log.exception("%s", name)
      self.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:500]
      return {"why": f"it failed, which is no finding ({self.failed[name]})"}
    return made

  def report(self) -> dict[str, Any]:
    """`found`, with `failed` where something did."""
    return self.found | ({"failed": self.failed} if self.failed else {})


def _undecided(examples: Sequence[Example], conversations: int = 1) -> str:
  """Why there are not comparisons of so many conversations; '' where there are."""
  compared = [e for e in examples if e.kind in _PAIRED]
  if not compared:
    return "no comparison in the data"
  judgements = [(conversation_of(e), *judged(e)) for e in compared]
  decided = {name for name, better, _ in judgements if better}
  if len(decided) >= conversations:
    return ""
  asked = sum(len(better) + undecided for _, better, undecided in judgements)
  if not decided:
    return f"people decided none of {asked} comparisons"
  return (
    f"people decided comparisons of {len(decided)} conversation alone, of {asked} comparisons in "
    f"all; it wants those of {conversations}"
  )


def audit(
  scorer: Scorer,
  examples: Sequence[Example],
  *,
  reference: Reference | None = None,
  against: Mapping[str, Scorer] | None = None,
  settings: Settings | None = None,
) -> dict[str, Any]:
  """The report: section name -> what it found; a section without its data says why.

  Args:
    scorer: the model's.
    examples: pairs, rankings, outcomes or scores: whole responses.
    reference: scores and features of the training data.
    against: name -> another model's scorer.
    settings: see `Settings`.

  Returns:
    {agreement, controls, calibration, robustness, drift, hacking, overoptimisation, rules,
    compare}, of JSON's own types; and `failed`, section -> error, where one could not be measured
    for a reason that nobody thought of: the others are there.

  Raises:
    ValueError: examples that are rated in steps or attributes, or a score that is not finite.
  """
  settings = settings or Settings()
  wrong = sorted({e.kind for e in examples} - {*_PAIRED, "outcome", "score"})
  if wrong:
    raise ValueError(f"examples of kinds {wrong}; expected pairs, rankings, outcomes or scores")
  if reference and len(drift_rows := _drift_rows(examples, settings.seed)) >= FEWEST:
    # First, that nothing is read twice: scores come with it, those of the same prompts too.
    drawn = {key_of((prompt, "")) for prompt, _ in drift_rows}
    same = [e for e in examples if key_of((e.prompt, "")) in drawn]
    scorer.pooled(drift_rows, [(e.prompt, response) for e in same for response in e.responses])
  scores = example_scores(scorer, examples)
  seed = settings.seed
  sections = Sections()
  no_comparison, no_comparisons = _undecided(examples), _undecided(examples, 2)
  others = against or {}
  sections.add(
    "agreement",
    lambda: agreement(scores, examples),
    no_comparison if all(e.kind in _PAIRED for e in examples) else "",
  )
  sections.add(
    "compare",
    lambda: {
      name: sections.guarded(
        f"compare with {name}",
        lambda one=one: compare(scores, example_scores(one, examples), examples),
      )
      for name, one in others.items()
    },
    no_comparison if others else "no other model was given",
  )
  sections.add(
    "controls",
    lambda: controls(scorer, examples, sample=settings.sample, seed=seed),
    no_comparisons,
  )
  sections.add("calibration", lambda: _calibration(scores, examples, seed))
  sections.add(
    "robustness", lambda: _robustness(scorer, scores, examples, settings), no_comparisons
  )
  sections.add(
    "drift",
    lambda: _drift(scorer, examples, reference, seed),
    "" if reference else "no reference is kept with the model; --reference=DATA makes one",
  )
  alone = len({conversation_of(e) for e in examples}) == 1
  one = "one conversation alone says nothing of how conversations differ" if alone else ""
  sections.add("hacking", lambda: hacking(scorer, examples, seed=seed), one)
  sections.add("overoptimisation", lambda: _curves(scorer, examples, settings))
  sections.add(
    "rules",
    lambda: flagged(
      scorer,
      examples,
      rules=settings.rules,
      reference=reference.scores if reference and len(reference.scores) >= 100 else None,
      seed=seed,
    ),
    one,
  )
  return sections.report()


def _calibration(
  scores: Sequence[np.ndarray], examples: Sequence[Example], seed: int
) -> dict[str, Any]:
  out, lacks = {}, _undecided(examples, 2)
  if not lacks:
    out["pairs"] = calibration.pairs(scores, examples, seed=seed)
  at = [i for i, e in enumerate(examples) if e.kind == "outcome"]
  if len({conversation_of(examples[i]) for i in at}) > 1:
    score_N = np.concatenate([scores[i] for i in at])
    label_N = np.concatenate([examples[i].labels for i in at])
    clusters = [conversation_of(examples[i]) for i in at for _ in examples[i].responses]
    out["outcomes"] = calibration.labels(score_N, label_N, clusters, seed=seed)
  if at or any(e.kind in _PAIRED for e in examples):
    return out or {"why": f"halves are of two conversations and more: {lacks}"}
  return {"why": "neither comparisons nor outcomes in the data: ratings are no probabilities"}


def _robustness(
  scorer: Scorer, scores: Sequence[np.ndarray], examples: Sequence[Example], settings: Settings
) -> dict[str, Any]:
  found = robustness(scorer, examples, sample=settings.sample, seed=settings.seed)
  # Written to mislead, or for what a model should refuse: a line of their own.
  red = {
    name: [i for i, e in enumerate(examples) if name in e.source.lower() and e.kind in _PAIRED]
    for name in _RED_TEAM
  }
  found["red_team"] = {}
  for name, at in red.items():
    if len({conversation_of(examples[i]) for i in at}) > 1:
      report = evaluate([scores[i] for i in at], [examples[i] for i in at]).report
      found["red_team"][name] = {k: report[k] for k in ("accuracy", "interval", "n", "baselines")}
  return found


_PAIRED = ("pair", "ranking")
_DISAGREED = 2000  # pairs on which an ensemble's members are held against each other
# Conversations that a comparison of distributions wants.
FEWEST = 20


def one_each(examples: Sequence[Example], limit: int, seed: int) -> list[Row]:
  """A response of each conversation, drawn, in their order: rows that do not depend on each other.

  Args:
    examples: of whole responses.
    limit: rows at most, drawn where there are more conversations.
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  first: dict[str, Example] = {}
  for example in examples:
    first.setdefault(conversation_of(example), example)
  kept = list(first.values())
  if len(kept) > limit:
    kept = [kept[i] for i in np.sort(rng.choice(len(kept), limit, replace=False))]
  return [(e.prompt, e.responses[int(rng.integers(len(e.responses)))]) for e in kept]


def make_reference(
  scorer: Scorer,
  examples: Sequence[Example],
  data: str,
  *,
  known: bool = True,
  limit: int = 1000,
  seed: int = 0,
) -> Reference:
  """Scores and features of data, one response a conversation: what others are compared with.

  Args:
    scorer: the model's.
    examples: of whole responses.
    data: its name.
    known: whether the model was trained on it.
    limit: rows at most.
    seed: of the draws.
  """
  rows = one_each(examples, limit, seed)
  pooled_ND = scorer.pooled(rows)  # before the scores, which come with it
  return Reference(scorer(rows), pooled_ND, data, scorer.name, known)


def _drift_rows(examples: Sequence[Example], seed: int) -> list[Row]:
  return one_each(examples, 1000, seed)


def _drift(
  scorer: Scorer, examples: Sequence[Example], reference: Reference, seed: int
) -> dict[str, Any]:
  rows = _drift_rows(examples, seed)
  if min(len(rows), len(reference.scores)) < FEWEST:
    return {
      "why": f"{len(rows)} conversations against {len(reference.scores)} of {reference.data}; a "
      f"comparison of distributions wants {FEWEST} of each"
    }
  found = drift.drift(scorer(rows), scorer.pooled(rows), reference, seed=seed)
  if scorer.outputs > 1 and (found_pairs := list(each_comparison(examples))):
    # A sample and not the first: data comes source by source.
    pairs = sampled(found_pairs, _DISAGREED, seed)
    members = scorer.members([(p.prompt, r) for p in pairs for r in (p.chosen, p.rejected)])
    both = members.reshape(len(pairs), 2, -1)
    clusters = [p.conversation for p in pairs]
    if len(set(clusters)) > 1:
      found["disagreement"] = drift.disagreement(both[:, 0], both[:, 1], clusters)
  return found


def _curves(scorer: Scorer, examples: Sequence[Example], settings: Settings) -> dict[str, Any]:
  """Best-of-n curves on the world's candidates, and on lists that people rated."""
  out: dict[str, Any] = {}
  members = scorer.members if scorer.outputs > 1 else None
  if isinstance(settings.world, World):
    prompts = settings.world.prompts("heldout", settings.prompts, settings.seed)
    drawn = overoptimisation(
      scorer,
      settings.world,
      prompts,
      candidates=settings.candidates,
      members=members,
      seed=settings.seed,
    )
    out["world"] = _curve(drawn, settings.seed)
  # One sample is one experiment: a data set's lists stand by themselves.
  for source in sorted({e.source for e in examples}):
    mine = [
      e
      for e in examples
      if e.source == source
      and e.kind in ("ranking", "score", "outcome")
      and len(e.responses) >= _MANY
    ]
    if len({conversation_of(e) for e in mine}) > 1:
      drawn = rated(scorer, mine, at_least=_MANY, members=members, seed=settings.seed)
      out[f"{source}, rated" if source in ("world", "why") else source] = _curve(
        drawn, settings.seed
      )
  lacks = settings.world if isinstance(settings.world, str) else ""
  lacks = lacks or "neither a generated world nor lists of 8 and more rated responses"
  return out or {"why": f"{lacks}: no curve"}


def _curve(drawn: Candidates, seed: int) -> dict[str, Any]:
  count = drawn.true.shape[1]
  ns = [n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)]
  ns = [n for n in ns if n < count] + [count]
  return {
    "prompts": len(drawn.true),
    "candidates": count,
    "distinct": drawn.distinct,
    "variants": {
      name: best_of_n_curve(proxy, drawn.true, ns, clusters=drawn.clusters, seed=seed)
      for name, proxy in drawn.proxies.items()
    },
  }


def audit_steps(
  model: RewardModel, examples: Sequence[Example], *, seed: int = 0
) -> dict[str, Any]:
  """The report on solutions that are rated step by step: {agreement, calibration}, as `audit`'s.

  Args:
    model: one that reads steps.
    examples: of kind 'step', one solution each.
    seed: of the halves.

  Raises:
    DataError: the model reads no steps, or a solution is too long for it.
  """
  rows = [
    {"prompt": e.prompt if isinstance(e.prompt, str) else list(e.prompt), "completions": steps}
    for e in examples
    for steps in map(list, e.steps)
  ]
  scores = iter(model.score_steps(rows, progress=True))
  marks = [np.concatenate([next(scores) for _ in e.steps]) for e in examples]
  clusters = [conversation_of(e) for e in examples for _ in e.labels]
  label_N = np.concatenate([e.labels for e in examples])
  sections = Sections()
  sections.add("agreement", lambda: evaluate(marks, examples).report)
  alone = len(set(clusters)) < 2
  sections.add(
    "calibration",
    lambda: {"steps": calibration.labels(np.concatenate(marks), label_N, clusters, seed=seed)},
    "halves are of two conversations and more: there is one" if alone else "",
  )
  return sections.report()
