"""How often the solution that is chosen among several is right: by models, votes and plain rules.

`problems` collects the candidate solutions of each problem, a `Reading` is one way of choosing by a
model's scores, and `best_of` reports on all of them side by side.
"""

import collections
import dataclasses
import functools
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rm_jax.data.answers import canonical, final_answer
from rm_jax.data.dialogue import plain, texts_of
from rm_jax.errors import InputError
from rm_jax.heldout import intervals
from rm_jax.heldout.pointwise import best_author, characters
from rm_jax.losses.process import HOW
from rm_jax.metrics.selection import exact, highest, one_line, step_by_step, vote
from rm_jax.reward.score import solution_scores
from rm_jax.types import Example, Text

GREEDY = "step by step"
RANDOM, MAJORITY, ORACLE = "random", "majority", "oracle"


class Problem(NamedTuple):
  """A problem and its candidate solutions.

  Attributes:
    example: of kind 'outcome', with K >= 2 responses, each labelled 1 (right) or 0, and their final
      answers as `data.answers` writes them; without those where the data judge steps.
    steps: for each candidate the texts of its steps: those that the data have, else the lines of
      the response that are not blank. None where a response is of several messages.
    places: for each candidate (index of its example in the data, of the response in that).
  """

  example: Example
  steps: tuple[tuple[str, ...], ...] | None
  places: tuple[tuple[int, int], ...]

  @property
  def right(self) -> np.ndarray:
    """Whether each candidate is right, float64 [K]."""
    return np.asarray(self.example.labels, np.float64)

  def in_steps(self) -> Example:
    """The candidates in steps, of kind 'step', without labels: for scoring alone.

    Raises:
      ValueError: there are no steps.
    """
    if self.steps is None:
      raise ValueError(f"{self.example.origin}: its solutions have no steps")
    labels = (0.0,) * sum(map(len, self.steps))
    return dataclasses.replace(
      self.example, kind="step", steps=self.steps, labels=labels, authors=None, answers=None
    )


def problems(examples: Sequence[Example]) -> tuple[list[Problem], dict[str, int]]:
  """The problems of outcome labels, or of labelled steps, that have several candidate solutions.

  Candidates are the responses of one example or, of examples with one response each, those with the
  same prompt, kind and source. A response is right if its label is above 1/2; in steps, if those of
  all its steps are.

  Returns:
    (problems, in the order of the data; reason -> number of examples that are not used:
    'one_candidate', or 'other_feedback' of those that do not say right or wrong).
  """
  left_out: collections.Counter[str] = collections.Counter()
  together: dict[Hashable, list[int]] = {}
  for i, example in enumerate(examples):
    if example.kind not in ("outcome", "step"):
      left_out["other_feedback"] += 1
      continue
    alone = len(example.responses) == 1
    key = (repr(example.prompt), example.kind, example.source) if alone else i
    together.setdefault(key, []).append(i)
  found = []
  for mine in together.values():
    places = tuple((i, r) for i in mine for r in range(len(examples[i].responses)))
    if len(places) > 1:
      found.append(_problem(examples, places))
    else:
      left_out["one_candidate"] += 1
  return found, dict(left_out)


def _problem(examples: Sequence[Example], places: tuple[tuple[int, int], ...]) -> Problem:
  first = examples[places[0][0]]
  responses, labels, answers, authors, steps = [], [], [], [], []
  for i, r in places:
    example = examples[i]
    response = example.responses[r]
    responses.append(response)
    authors.append(example.authors[r] if example.authors else None)
    if example.steps is None:
      labels.append(example.labels[r])
      steps.append(_lines(response))
    else:
      counts = [len(one) for one in example.steps]
      start = sum(counts[:r])
      labels.append(min(example.labels[start : start + counts[r]]))
      steps.append(example.steps[r])
    answers.append(_answer(example, r))
  whole = dataclasses.replace(
    first,
    kind="outcome",
    responses=tuple(responses),
    labels=tuple(float(label > 0.5) for label in labels),
    conversation=first.conversation or plain(first.prompt),
    answers=tuple(answers),
    authors=tuple(authors) if all(authors) else None,
    steps=None,
  )
  return Problem(whole, None if None in steps else tuple(steps), places)


def _answer(example: Example, r: int) -> str | None:
  """The final answer of a response; None of a solution that is judged by steps.

  Such solutions often stop at the first error, as in PRM800K, so that one with an answer is right,
  and votes of those that have one would know the labels.
  """
  if example.steps is not None:
    return None
  if example.answers is not None:
    return canonical(example.answers[r] or "")
  return final_answer(texts_of(example.responses[r])[-1])


def _lines(response: Text) -> tuple[str, ...] | None:
  if not isinstance(response, str):
    if len(response) > 1:
      return None
    response = response[0]["content"]
  return tuple(line.strip() for line in response.split("\n") if line.strip())


@dataclasses.dataclass(frozen=True)
class Reading:
  """One way of choosing by a model, of P problems.

  Attributes:
    scores: for each problem [K], of which the highest is chosen; None = step by step.
    log_weights: for each problem [K], logarithms of the weights of votes; None = no votes.
    steps: for each problem the scores of each candidate's steps, K arrays; for `GREEDY` alone.
  """

  scores: Sequence[np.ndarray] | None = None
  log_weights: Sequence[np.ndarray] | None = None
  steps: Sequence[Sequence[np.ndarray]] | None = None


def by_score(name: str, scores: Sequence[np.ndarray]) -> dict[str, Reading]:
  """A reading of whole solutions, {name: it}; votes weigh σ(score).

  Args:
    name: of the reading.
    scores: for each problem [K], log-odds that the candidate is right. Those of a model that was
      trained on comparisons are no log-odds; its votes are weighted all the same.
  """
  return {name: Reading(scores, [_log_sigmoid(one) for one in scores])}


def by_steps(name: str, steps: Sequence[Sequence[np.ndarray]]) -> dict[str, Reading]:
  """Readings of the scores of steps: each of `losses.process.HOW`, and `GREEDY`.

  Args:
    name: of the model; a reading is called 'name, min' and so on.
    steps: for each problem the scores of each candidate's steps, K arrays of log-odds.
  """
  count = [len(one) for one in steps]
  flat = [one for many in steps for one in many]
  found = {}
  for how in HOW:
    scores = np.split(solution_scores(flat, how).astype(np.float64), np.cumsum(count)[:-1])
    # 'product' is a log-probability already.
    weights = scores if how == "product" else [_log_sigmoid(one) for one in scores]
    found[f"{name}, {how}"] = Reading(scores, weights)
  return found | {f"{name}, {GREEDY}": Reading(steps=steps)}


def _log_sigmoid(scores: np.ndarray) -> np.ndarray:
  with np.errstate(invalid="ignore"):  # `best_of` refuses what is not finite
    return -np.logaddexp(0.0, -np.asarray(scores, np.float64))


def default_ks(counts: Sequence[int]) -> list[int]:
  """1, 2, 4, .. and the largest k that nine in ten of the problems have candidates for.

  Args:
    counts: number of candidates of each problem; at least one, each 2 or more.
  """
  most = int(sorted(counts)[len(counts) // 10])
  return [k for k in (2**i for i in range(most.bit_length())) if k < most] + [most]


def check_ks(asked: Sequence[Problem], ks: Sequence[int]) -> None:
  """Raises InputError if there is no problem, a k is below 1, or none has so many candidates."""
  if not asked or min(ks, default=1) < 1:
    raise InputError(
      f"k is {list(ks)} of {len(asked)} problems; expected 1 or more, and some problems"
    )
  most = max(len(p.right) for p in asked)
  if max(ks, default=1) > most:
    raise InputError(f"k is {max(ks)} and a problem has at most {most} candidates; expected fewer")


def best_of(
  asked: Sequence[Problem],
  readings: Mapping[str, Reading],
  *,
  ks: Sequence[int] = (),
  main: Sequence[str] = (),
  seed: int = 0,
) -> dict[str, Any]:
  """How often the choice among k candidates is right, by each reading and by rules without a model.

  All k are of the same problems: those with fewer candidates than the largest k are left out and
  counted. Figures are expectations over the subsets of k candidates (`metrics.selection`), and
  their intervals are over conversations.

  Args:
    asked: P problems.
    readings: name -> reading of these problems; may be empty.
    ks: numbers of candidates; none = `default_ks`.
    main: names of the readings that `says` and pictures speak of; none = all.
    seed: of the intervals and of random subsets.

  Returns:
    {problems: their number; fewer: problems left out; candidates: {all, fewest, most}; all_right,
    all_wrong: numbers of problems; answers: {none: candidates without a final answer, text: with
    one that is no number, problems: with a candidate that has one}; prefixes, see `_prefixes`; k:
    {k: {subsets: 'all', or in how many problems they were drawn; rules, readings}}; main; says:
    sentences}. A rule is {accuracy, interval, n, shared: share of choices that were among several
    alike, paired: differences to {random, majority}}. So are `pick` and, where it votes, `vote` of
    a reading; the pick of a choice step by step has `choices`, the mean number of steps at which
    there was one. The rules are `random`; `majority`, the most frequent answer (if there are
    answers); `first` in the data; `longest` and `shortest`, by characters; `oracle`, right where
    any candidate is; and, at a k of all candidates that are of the same authors in each problem,
    `best_author`, the one who is right most often here, whom only the labels tell.

  Raises:
    InputError: as `check_ks`, or a score is not finite.
  """
  check_ks(asked, ks)
  ks = sorted(set(ks)) or default_ks([len(p.right) for p in asked])
  kept = [i for i, problem in enumerate(asked) if len(problem.right) >= ks[-1]]
  _check_finite(asked, readings)
  mine = [asked[i] for i in kept]
  readings = {name: _of(reading, kept) for name, reading in readings.items()}
  counts = [len(p.right) for p in mine]
  answers = [a for p in mine for a in p.example.answers]
  report: dict[str, Any] = {
    "problems": len(mine),
    "fewer": len(asked) - len(mine),
    "candidates": {"all": sum(counts), "fewest": min(counts), "most": max(counts)},
    "all_right": sum(p.right.all() for p in mine).item(),
    "all_wrong": sum(not p.right.any() for p in mine),
    "answers": {
      "none": answers.count(None),
      "text": sum(a is not None and not set(a) <= set("-/0123456789") for a in answers),
      "problems": sum(set(p.example.answers) != {None} for p in mine),
    },
    "prefixes": _prefixes(mine),
    "k": {str(k): _at(mine, readings, k, seed) for k in ks},
  }
  main = list(main or readings)
  return report | {"main": main, "says": _says(report, main)}


def _of(reading: Reading, kept: Sequence[int]) -> Reading:
  parts = {f.name: getattr(reading, f.name) for f in dataclasses.fields(reading)}
  return Reading(**{n: None if x is None else [x[i] for i in kept] for n, x in parts.items()})


def _check_finite(asked: Sequence[Problem], readings: Mapping[str, Reading]) -> None:
  for name, reading in readings.items():
    for problem, one in zip(asked, reading.scores or reading.steps, strict=True):
      flat = np.concatenate([np.ravel(part) for part in one])
      if not np.isfinite(flat).all():
        raise InputError(
          f"{problem.example.origin or problem.example.conversation}: {name} scores it "
          f"{flat.tolist()}; expected finite scores"
        )


def _prefixes(asked: Sequence[Problem]) -> dict[str, Any]:
  """How far candidates begin alike, which a choice step by step depends on.

  Returns:
    {problems: with steps; alike: of these, problems where two different solutions have the same
    first step; first_steps: mean number of different first steps}.
  """
  alike, firsts, n = 0, 0, 0
  for problem in asked:
    if problem.steps is None:
      continue
    different = {one_line(steps) for steps in problem.steps}
    first = {steps[0] for steps in different}
    n, alike, firsts = n + 1, alike + (len(first) < len(different)), firsts + len(first)
  return {"problems": n, "alike": alike, "first_steps": firsts / n if n else None}


def _at(
  asked: Sequence[Problem], readings: Mapping[str, Reading], k: int, seed: int
) -> dict[str, Any]:
  """The part of `best_of`'s report for one k."""
  right = [p.right for p in asked]
  answers = [p.example.answers for p in asked]
  clusters = [p.example.conversation for p in asked]

  def picked(scores) -> list:
    return [highest(s, r, k) for s, r in zip(scores, right, strict=True)]

  def voted(log_weights=None) -> list:
    log_weights = log_weights or [None] * len(asked)
    return [
      vote(a, r, k, log_weights=w, seed=seed)
      for a, r, w in zip(answers, right, log_weights, strict=True)
    ]

  lengths = [np.asarray([characters(x) for x in p.example.responses]) for p in asked]
  votes = any(a is not None for one in answers for a in one)
  rules = {RANDOM: [(r.mean(), 0.0) for r in right]}
  if votes:
    rules[MAJORITY] = voted()
  rules |= {
    "first": picked([-np.arange(len(r)) for r in right]),
    "longest": picked(lengths),
    "shortest": picked([-x for x in lengths]),
  }
  if all(len(r) == k for r in right) and (best := best_author([p.example for p in asked])):
    rules["best_author"] = [(x, 0.0) for x in best[1]]
  rules[ORACLE] = [(one.right, 0.0) for one in picked(right)]
  against = {name: [x[0] for x in rules[name]] for name in (RANDOM, MAJORITY) if name in rules}

  def figure(name: str, choices: Sequence) -> dict[str, Any]:
    credit = [x[0] for x in choices]
    found = intervals.mean(credit, clusters, (0.0, 1.0), share=True, seed=seed)
    return {
      "accuracy": found.pop("value"),
      **found,
      "shared": float(np.mean([x[1] for x in choices])),
      "paired": {
        other: intervals.paired(credit, theirs, clusters, seed=seed)
        for other, theirs in against.items()
        if other != name
      },
    }

  out: dict[str, Any] = {}
  for name, reading in readings.items():
    if reading.steps is not None:
      paths = [
        step_by_step(p.steps, s, r, k, seed=seed)
        for p, s, r in zip(asked, reading.steps, right, strict=True)
      ]
      mean = float(np.mean([path.choices for path in paths]))
      out[name] = {"pick": figure(name, paths) | {"choices": mean}}
      continue
    out[name] = {"pick": figure(name, picked(reading.scores))}
    if votes and reading.log_weights is not None:
      out[name]["vote"] = figure(name, voted(reading.log_weights))
  drawn = sum(not exact(len(r), k) for r in right)
  found = {name: figure(name, choices) for name, choices in rules.items()}
  if "best_author" in found:
    found["best_author"]["author"] = best[0]
  return {
    "subsets": "all" if not drawn else f"drawn at random in {drawn} problems",
    "rules": found,
    "readings": out,
  }


def _says(report: Mapping[str, Any], main: Sequence[str]) -> list[str]:
  """The findings in sentences: rules, the main readings, and how far candidates begin alike."""
  k, at = list(report["k"].items())[-1]
  rules = at["rules"]
  parts = [f"{name} {valued(rules[name])}" for name in (RANDOM, MAJORITY, ORACLE) if name in rules]
  says = [f"right among {k} candidates of {report['problems']:,} problems: {', '.join(parts)}"]
  for name in main:
    one = at["readings"][name]["pick"]
    beside = [
      f"{valued(difference, 'difference', '+.3f')} to {other}"
      for other, difference in one["paired"].items()
    ]
    says.append(f"{name}: {valued(one)}, {' and '.join(beside)}, paired")
  prefixes = report["prefixes"]
  if any(name.endswith(GREEDY) for name in at["readings"]):
    says.append(
      f"step by step: in {prefixes['alike']:,} of {prefixes['problems']:,} problems two different "
      "solutions have the same first step; in the others this is the choice by the first step alone"
    )
  return says


def valued(one: Mapping[str, Any], key: str = "accuracy", form: str = ".3f") -> str:
  """A figure as text with its interval: '0.750 [0.700, 0.800]'."""
  ends = one.get("interval")
  return f"{one[key]:{form}}" + (f" [{ends[0]:{form}}, {ends[1]:{form}}]" if ends else "")


def rows_of(at: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """The figures of one k of a report, in the order of a table: (name, keys that lead to it)."""
  rows = [(name.replace("_", " "), "rules", name) for name in at["rules"]]
  for name, one in at["readings"].items():
    rows += [(name, "readings", name, "pick")]
    rows += [(f"{name}, votes", "readings", name, "vote")] if "vote" in one else []
  return rows


def table(report: Mapping[str, Any]) -> str:
  """The report at its largest k as lines of text, with intervals and paired differences."""
  k, at = list(report["k"].items())[-1]
  rows = [(f"best of {k}", "right", "to random", "to majority")]
  for name, *path in rows_of(at):
    one = functools.reduce(operator.getitem, path, at)
    beside = (one["paired"].get(other) for other in (RANDOM, MAJORITY))
    rows.append(
      (name, valued(one), *("" if x is None else valued(x, "difference", "+.3f") for x in beside))
    )
  widths = [max(len(row[c]) for row in rows) for c in range(4)]
  return "\n".join(
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for row in rows
  )
