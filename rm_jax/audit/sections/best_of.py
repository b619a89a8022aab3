"""Section `best_of`: how often the solution that a model chooses among several is right.

It reads data in which problems have several solutions that are labelled right or wrong, or judged
step by step; `heldout.best_of` measures. `experiments.best_of` writes this section alone, of
several models side by side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.audit import plots
from rm_jax.audit.scorer import example_scores
from rm_jax.audit.section import Draw, Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.heldout.best_of import (
  MAJORITY,
  ORACLE,
  RANDOM,
  Problem,
  best_of,
  by_score,
  by_steps,
  problems,
  rows_of,
)
from rm_jax.storage import pictures

_MODEL = "the model"
_RULES = (RANDOM, MAJORITY, ORACLE)  # drawn over k beside the main readings


def _problems(subject: Subject) -> tuple[list[Problem], str]:
  """(the data's problems with several solutions; why there are none)."""
  asked, _ = problems(subject.examples)
  return asked, "" if asked else "no problem has several solutions labelled right or wrong"


def _measure(subject: Subject) -> dict[str, Any]:
  asked, why = _problems(subject)
  if why:
    return {"why": why}
  whole = [p.example for p in asked]
  readings = by_score(_MODEL, example_scores(subject.scorer, whole))
  for name, other in subject.against.items():
    # A name that another reading has would replace it.
    key = f"{name}, a model" if name == _MODEL else name
    readings |= by_score(key, example_scores(other, whole))
  report = best_of(asked, readings, seed=subject.settings.seed)
  return report | {"right": "a solution is right if its label is above 1/2"}


def _measure_steps(subject: Subject) -> dict[str, Any]:
  asked, why = _problems(subject)
  if why:
    return {"why": why}

  def scores(example: int, response: int) -> np.ndarray:
    counts = [len(steps) for steps in subject.examples[example].steps]
    return np.split(subject.scores[example], np.cumsum(counts)[:-1])[response]

  steps = [[scores(*place) for place in p.places] for p in asked]
  report = best_of(
    asked, by_steps(_MODEL, steps), main=[f"{_MODEL}, min"], seed=subject.settings.seed
  )
  return report | {"right": "a solution is right if all of its steps are labelled right"}


def _draw(found: Mapping[str, Any]) -> dict[str, Draw]:
  out: dict[str, Draw] = {"best_of": lambda: _chart(found)}
  if len(found["k"]) > 2:
    out["best_of_k"] = lambda: _curves(found)
  return out


def _chart(found: Mapping[str, Any]) -> bytes:
  """A PNG of all figures at the largest k, around the line of a random choice."""
  k, at = list(found["k"].items())[-1]
  colours = {"pick": plots.BLUE, "vote": plots.GREEN}
  rows = [
    plots.Point(name, one["accuracy"], one["interval"], colours.get(path[-1], plots.GREY))
    for name, *path in rows_of(at)
    for one in [_at(at, path)]
  ]
  return plots.points(
    f"The chosen of {k} is right", rows, at["rules"][RANDOM]["accuracy"], "share of problems"
  )


def _curves(found: Mapping[str, Any]) -> bytes:
  """A PNG of the share of right choices over the number of candidates.

  Of the main readings (ways to read a candidate's score, `found["main"]`), and of the rules without
  a model, such as a vote, that were measured at the smallest number of candidates.
  """
  figure = pictures.figure(4.8, 4.2)
  axis = figure.subplots()
  ks = [int(k) for k in found["k"]]
  first = next(iter(found["k"].values()))

  def line(name: str, path: Sequence[str], colour: str, style: str = "-") -> None:
    figures = [_at(at, path) for at in found["k"].values()]
    values = [one["accuracy"] for one in figures]
    axis.plot(ks, values, style, marker="o", ms=3, label=plots.one_line(name)[:34], color=colour)
    # Bands of the rules as well would hide one another.
    if style == "-" and all(one["interval"] for one in figures):
      ends = zip(*(one["interval"] for one in figures), strict=True)
      axis.fill_between(ks, *ends, color=colour, alpha=0.12, lw=0)

  for name, style in zip(_RULES, (":", "--", "-."), strict=True):
    if name in first["rules"]:
      line(name, ("rules", name), plots.GREY, style)
  for name, colour in zip(found["main"], plots.COLOURS, strict=False):
    line(name, ("readings", name, "pick"), colour)
  axis.set_xscale("log", base=2)
  axis.set_xticks(ks, [str(k) for k in ks])
  axis.set(xlabel="candidates", ylabel="share of problems", title="The chosen solution is right")
  axis.legend(frameon=False, fontsize=8)
  return plots.png(figure)


def _render(page: Writer, found: View) -> None:
  k, at = list(found["k"].items())[-1]
  answers, candidates, prefixes = found["answers"], found["candidates"], found["prefixes"]
  said = (
    f"Of the {page.value(candidates['all'])} candidates {page.value(answers['none'])} have no "
    f"final answer, and so no vote; {page.value(answers['text'])} have one that is no number."
    if answers["problems"].value
    else f"None of the {page.value(candidates['all'])} candidates has a final answer that could "
    "vote."
  )
  page.add(
    f"<p>{page.value(found['problems'])} problems of {page.value(candidates['fewest'])} to "
    f"{page.value(candidates['most'])} candidates; all are right in "
    f"{page.value(found['all_right'])} problems, none in {page.value(found['all_wrong'])}. "
    f"{page.value(found['fewer'])} problems have fewer than {escaped(k)} and are left out. {said} "
    f"Two different solutions have the same first step in {page.value(prefixes['alike'])} of "
    f"{page.value(prefixes['problems'])} problems.</p>"
  )
  if "right" in found:
    page.add(f"<p>Here {page.value(found['right'])}.</p>")
  page.picture("best_of", f"share of problems whose chosen solution of {k} is right")
  named = rows_of(at.value)
  rows = []
  for name, *path in named:
    one = _at(at, path)
    beside = (one["paired"].get(other) for other in (RANDOM, MAJORITY))
    rows.append(
      (
        escaped(name),
        page.figure(one, key="accuracy"),
        *(page.figure(difference, key="difference") for difference in beside),
        page.value(one["shared"]),
      )
    )
  page.table((f"best of {k}", "right", "to random", "to majority", "shared"), rows)
  page.add(
    "<p>A choice is shared where several candidates, answers or next steps are equally good: one "
    "of them is drawn. 'votes' is the answer with the largest sum of σ(score). The best of several "
    "readings of one model, chosen here, will be worse on other problems.</p>"
  )
  if len(found["k"].value) > 1:
    page.picture("best_of_k", "the same over the number of candidates")
    # At a smaller k not all rules are there.
    each = [(view, rows_of(view.value)) for _, view in found["k"].items()]
    page.table(
      ("right among", *map(escaped, found["k"].value)),
      (
        (escaped(name), *(page.figure(_at(view, path), key="accuracy") for view, _ in each))
        for name, *path in named
        if all((name, *path) in there for _, there in each)
      ),
    )


def _at(part: Any, path: Sequence[str]) -> Any:
  """What keys lead to in a dict or a `View`."""
  for key in path:
    part = part[key]
  return part


SECTION = Section(
  "best_of",
  "The right solution among several",
  _measure,
  _render,
  draw=_draw,
  measure_steps=_measure_steps,
)
