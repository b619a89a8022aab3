"""Responses paired with prompts of other conversations."""

import numpy as np
import pytest

from rm_jax.batch.group import make_group
from rm_jax.batch.mismatch import Mismatched, partners, with_response
from rm_jax.batch.tokens import Tokens
from rm_jax.data.report import DataError
from rm_jax.types import Example


def test_every_response_is_taken_once_where_conversations_differ():
  found = partners([str(i) for i in range(50)], seed=3)
  assert sorted(found) == list(range(50))
  assert (found != np.arange(50)).all()
  assert (found != partners([str(i) for i in range(50)], seed=4)).any()
  circle = [0]
  for _ in range(49):
    circle.append(found[circle[-1]])
  assert len(set(circle)) == 50


def test_no_partner_is_of_the_same_conversation():
  rng = np.random.default_rng(0)
  for seed in range(20):
    names = [*rng.integers(0, 3, size=12).tolist(), 3]
    for i, j in enumerate(partners(names, seed)):
      assert names[i] != names[j]


def test_outcomes_of_one_conversation_are_refused():
  with pytest.raises(DataError, match="all 5 outcomes are of one conversation"):
    partners(["a"] * 5, seed=0)


def outcome(prompt, response, kind="outcome", label=1.0):
  ids = np.asarray(prompt + response, np.int32)
  marks = np.asarray([len(ids) - 1], np.int32)
  tokens = Tokens(ids=ids, prompt=len(prompt), marks=marks, cut=0, token_type=None, starts=None)
  return make_group([tokens], Example("p", ("r",), (label,), kind=kind))


def test_the_response_follows_the_other_prompt():
  group = with_response(outcome([1, 2, 3], [4, 5]), outcome([6], [7, 8, 9], label=0.0), 100)
  assert [ids.tolist() for ids in group.ids] == [[1, 2, 3, 4, 5], [1, 2, 3, 7, 8, 9]]
  assert (group.shared, group.columns(share=True)) == (3, 8)
  assert group.marks.tolist() == [4, 5]
  assert group.length.tolist() == [2, 3]
  assert group.response.tolist() == [0, 1]
  assert group.labels.tolist() == [1.0, 0.0]
  assert group.mismatched.tolist() == [False, True]


def test_what_does_not_fit_is_cut_from_the_end():
  group = with_response(outcome([1, 2, 3], [4]), outcome([6], [7, 8, 9]), 5)
  assert group.ids[1].tolist() == [1, 2, 3, 7, 8]
  assert (group.marks[1], group.length[1]) == (4, 2)


def test_groups_of_other_kinds_stay_as_they_are():
  groups = [outcome([1], [2]), outcome([3], [4], kind="score"), outcome([5], [6])]
  mixed = Mismatched(groups, ["a", "b", "c"], max_length=9, seed=0)
  assert len(mixed) == 3
  assert mixed[1] is groups[1]
  assert [g.ids[-1].tolist() for g in mixed[::2]] == [[1, 6], [5, 2]]
  assert mixed[-1].ids[-1].tolist() == [5, 2]
