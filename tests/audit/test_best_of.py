"""Section `best_of`: what it measures of whole solutions and of steps, and what it shows."""

import dataclasses
import re

import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit.run import audit
from rm_jax.audit.sections import best_of
from rm_jax.types import Example
from rm_jax.world import World
from tests.audit.planted import length
from tests.audit.test_page import Fake

ONLY = [best_of.SECTION]


def solutions(count=12):
  """Problems whose right solution is the longest, in an order that changes."""
  found = []
  for i in range(count):
    texts = [f"so {i}\nA: {i}", f"thus {i}, which was asked for\nA: 1,00{i}", f"or {i}\nA: {i}."]
    order = [(n + i) % 3 for n in range(3)]
    labels = [float(n == 1) for n in order]
    found.append(
      Example(
        f"p{i}", tuple(texts[n] for n in order), tuple(labels), "outcome", conversation=f"p{i}"
      )
    )
  return found


class Steps(Fake):
  """Also scores steps, by whether they contain the letter x."""

  def steps(self, rows):
    return [np.asarray([-1.0 if "x" in s else 1.0 for s in row["completions"]]) for row in rows]


def test_whole_solutions_beside_another_model(tmp_path):
  shortest = Fake(lambda rows: -length(rows))
  against = {"the model": shortest, "other": shortest}
  found = audit(Fake(length), solutions(), sections=ONLY, against=against)["best_of"]
  at = found["k"]["3"]
  right = {name: one["pick"]["accuracy"] for name, one in at["readings"].items()}
  assert right == {"the model": 1.0, "the model, a model": 0.0, "other": 0.0}
  assert at["rules"]["majority"]["accuracy"] == 0.0
  about = {"model": "m", "data": "d"}
  assert page.write(tmp_path, {"about": about, "best_of": found}, ONLY) == {}
  shown = (tmp_path / "report.html").read_text()
  assert "<h1>Audit of m</h1>" in shown
  assert 'data-path="best_of/k/3/readings/the model/pick/accuracy">1.000<' in shown
  assert 'data-path="best_of/k/2/readings/other/pick/accuracy">' in shown
  assert "a solution is right if its label is above 1/2" in shown
  assert shown.count("<img ") == len(re.findall("<img alt=", shown)) == 2
  assert (tmp_path / "best_of.png").exists()
  assert (tmp_path / "best_of_k.png").exists()
  page.write(
    tmp_path, {"about": about | {"model": "a<b"}, "best_of": found}, ONLY, title="Best of n"
  )
  assert "<h1>Best of n of a&lt;b</h1>" in (tmp_path / "report.html").read_text()


def test_labelled_steps():
  def solution(i, steps):
    labels = tuple(float("x" not in step) for step in steps)
    return Example(
      f"p{i}", ("\n".join(steps),), labels, "step", conversation=f"p{i}", steps=(tuple(steps),)
    )

  examples = [
    solution(i, steps)
    for i in range(6)
    for steps in (["a", "x"], ["a", "b"], ["a", "b", "x", "c"], ["y"])
  ]
  found = audit(Steps(length), examples, sections=ONLY)["best_of"]
  at = found["k"]["4"]
  right = {name: one["pick"]["accuracy"] for name, one in at["readings"].items()}
  # Two of four have no wrong step; by the last step the third looks like them. Step by step: a ties
  # with y; then a solution through a ends in b, and ties with x only if its score does.
  assert right == {
    "the model, min": 1.0,
    "the model, product": 1.0,
    "the model, mean": 1.0,
    "the model, last": pytest.approx(2 / 3),
    "the model, step by step": 1.0,
  }
  assert at["rules"]["oracle"]["accuracy"] == 1.0
  assert found["main"] == ["the model, min"]
  assert found["prefixes"] == {"problems": 6, "alike": 6, "first_steps": 2.0}
  assert "all of its steps" in found["right"]


def test_an_example_may_have_several_solutions_in_steps(tmp_path):
  steps = (("a", "x", "x"), ("a", "b"))
  examples = [
    Example(f"p{i}", ("axx", "ab"), (1.0, 0.0, 0.0, 1.0, 1.0), "step", steps=steps)
    for i in range(6)
  ]
  found = audit(Steps(length), examples, sections=ONLY)["best_of"]
  page.write(tmp_path, {"about": {"model": "m", "data": "d"}, "best_of": found}, ONLY)
  assert "candidates has a final answer that could vote" in (tmp_path / "report.html").read_text()
  at = found["k"]["2"]
  assert at["readings"]["the model, min"]["pick"]["accuracy"] == 1.0
  assert at["rules"]["random"]["accuracy"] == 0.5


def test_it_is_silent_with_a_reason():
  single = [dataclasses.replace(e, responses=e.responses[:1], labels=(1.0,)) for e in solutions()]
  for examples in (World().pairs("heldout", 12, 0), single):
    assert audit(Fake(length), examples, sections=ONLY)["best_of"] == {
      "why": "no problem has several solutions labelled right or wrong"
    }
  step = [Example(f"p{i}", ("x",), (1.0,), "step", steps=(("x",),)) for i in range(3)]
  assert set(audit(Steps(length), step, sections=ONLY)["best_of"]) == {"why"}
