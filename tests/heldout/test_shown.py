"""Pairs as text for people to read."""

import numpy as np

from rm_jax.heldout.shown import as_text, drawn
from rm_jax.types import Example


def pair(i, chosen="c", rejected="r", kind="pair"):
  return Example(f"p{i}", (chosen, rejected), (1.0, 0.0), kind, origin=f"f:{i}")


def test_right_and_wrong_are_drawn_apart():
  examples = [pair(i) for i in range(9)] + [pair(9, kind="outcome")]
  scores = [np.asarray([1.0, 0.0])] * 4 + [np.asarray([0.0, 1.0])] * 4 + [np.zeros(2)] * 2
  found = drawn(scores, examples, 3)
  assert [len(found[name]) for name in ("right", "wrong")] == [3, 3]
  assert {e for e, _, _ in found["right"]} <= {0, 1, 2, 3}
  assert {e for e, _, _ in found["wrong"]} <= {4, 5, 6, 7}
  assert found == drawn(scores, examples, 3)
  assert found != drawn(scores, examples, 3, seed=1)
  assert [len(x) for x in drawn(scores, examples, 99).values()] == [4, 4]


def test_a_ranking_gives_its_comparisons():
  example = Example("p", ("a", "b", "c"), (1.0, 3.0, 2.0), "ranking")
  found = drawn([np.asarray([0.0, 5.0, -1.0])], [example], 9)
  assert found == {"right": [(0, 1, 0), (0, 1, 2)], "wrong": [(0, 2, 0)]}


def test_no_text_ends_its_block():
  prompt = ({"role": "user", "content": "code:\n```\n# x\n````"},)
  chosen, rejected = (({"role": "assistant", "content": x},) for x in ("yes", "no"))
  example = Example(prompt, (chosen, rejected), (1.0, 0.0), origin="f:1")
  shown = as_text([np.asarray([0.25, -1.0])], [example], 2)
  assert "`````text\nuser: code:\n```\n# x\n````\n`````" in shown
  assert "**preferred, score +0.250**\n\n```text\nassistant: yes\n```" in shown
  assert "## Right (1)" in shown
  assert "## Wrong (0)" in shown
