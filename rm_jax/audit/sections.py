"""All sections of the audit of one model on one data set, one after another."""

import dataclasses
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
from rm_jax.metrics.best_of_n import over_optimisation
from rm_jax.train.evaluate import evaluate
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
    world: whose candidates over-optimisation is measured on; None where the model knows no world.
    prompts: of the world, for those curves.
    candidates: responses drawn for each.
    seed: of all draws.
  """

  sample: int = 500
  rules: Rules = dataclasses.field(default_factory=Rules)
  world: World | None = None
  prompts: int = 32
  candidates: int = 1024
  seed: int = 0


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
    compare}, of JSON's own types.

  Raises:
    ValueError: examples that are rated in steps or attributes, fewer than 2 conversations, or a
      score that is not finite.
  """
  settings = settings or Settings()
  if reference and len(drift_rows := _drift_rows(examples, settings.seed)) >= FEWEST:
    # First, that nothing is read twice: scores come with it, those of the same prompts too.
    drawn = {key_of((prompt, "")) for prompt, _ in drift_rows}
    same = [e for e in examples if key_of((e.prompt, "")) in drawn]
    scorer.pooled(drift_rows, [(e.prompt, response) for e in same for response in e.responses])
  scores = example_scores(scorer, examples)
  compared = any(e.kind in ("pair", "ranking") for e in examples)
  no_pairs = "no comparison in the data"
  seed = settings.seed
  found: dict[str, Any] = {}

  def section(name: str, make: Callable[[], Any], why: str = "") -> None:
    begun = time.monotonic()
    found[name] = {"why": why} if why else make()
    log.info("%s: %s", name, why or f"{time.monotonic() - begun:.1f} s")

  section("agreement", lambda: agreement(scores, examples))
  others = {name: example_scores(one, examples) for name, one in (against or {}).items()}
  section(
    "compare",
    lambda: {name: compare(scores, other, examples) for name, other in others.items()},
    "no other model was given" if not others else "" if compared else no_pairs,
  )
  section(
    "controls",
    lambda: controls(scorer, examples, sample=settings.sample, seed=seed),
    "" if compared else no_pairs,
  )
  section("calibration", lambda: _calibration(scores, examples, seed))
  section(
    "robustness",
    lambda: _robustness(scorer, scores, examples, settings),
    "" if compared else no_pairs,
  )
  section(
    "drift",
    lambda: _drift(scorer, examples, reference, seed),
    "" if reference else "no reference is kept with the model; --reference=DATA makes one",
  )
  section("hacking", lambda: hacking(scorer, examples, seed=seed))
  section("overoptimisation", lambda: _curves(scorer, examples, settings))
  section(
    "rules",
    lambda: flagged(
      scorer,
      examples,
      rules=settings.rules,
      reference=reference.scores if reference and len(reference.scores) >= 100 else None,
      seed=seed,
    ),
  )
  return found


def _calibration(
  scores: Sequence[np.ndarray], examples: Sequence[Example], seed: int
) -> dict[str, Any]:
  out = {}
  if any(e.kind in ("pair", "ranking") for e in examples):
    out["pairs"] = calibration.pairs(scores, examples, seed=seed)
  at = [i for i, e in enumerate(examples) if e.kind == "outcome"]
  if at:
    score_N = np.concatenate([scores[i] for i in at])
    label_N = np.concatenate([examples[i].labels for i in at])
    clusters = [conversation_of(examples[i]) for i in at for _ in examples[i].responses]
    out["outcomes"] = calibration.labels(score_N, label_N, clusters, seed=seed)
  return out or {
    "why": "neither comparisons nor outcomes in the data: ratings are no probabilities"
  }


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
  if settings.world is not None:
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
      out[source] = _curve(drawn, settings.seed)
  return out or {
    "why": "neither a generated world nor lists of 8 and more rated responses: no curve"
  }


def _curve(drawn: Candidates, seed: int) -> dict[str, Any]:
  count = drawn.true.shape[1]
  ns = [n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)]
  ns = [n for n in ns if n < count] + [count]
  return {
    "prompts": len(drawn.true),
    "candidates": count,
    "distinct": drawn.distinct,
    "variants": {
      name: over_optimisation(proxy, drawn.true, ns, clusters=drawn.clusters, seed=seed)
      for name, proxy in drawn.proxies.items()
    },
  }


def audit_steps(
  model: RewardModel, examples: Sequence[Example], *, seed: int = 0
) -> dict[str, Any]:
  """The report on solutions that are rated step by step: {agreement, calibration}.

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
  return {
    "agreement": evaluate(marks, examples).report,
    "calibration": {
      "steps": calibration.labels(np.concatenate(marks), label_N, clusters, seed=seed)
    },
  }
