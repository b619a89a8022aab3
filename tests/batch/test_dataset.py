"""The fingerprint of a data set: what it tells apart, and that of earlier versions."""

import dataclasses

import numpy as np
import pytest

from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.group import Group, make_group
from rm_jax.batch.tokenise import Convention, TextEncoder
from rm_jax.errors import InputError
from rm_jax.types import Example
from tests.conftest import decoder_tokenizer


def group_of(ids=((1, 2), (3,)), **other):
  ids = tuple(np.asarray(one, np.int32) for one in ids)
  fields = {
    "ids": ids,
    "shared": 0,
    "marks": np.asarray([len(one) - 1 for one in ids], np.int32),
    "response": np.arange(len(ids), dtype=np.int32),
    "labels": np.asarray([1.0, 0.0], np.float32),
    "length": np.asarray([len(one) for one in ids], np.int32),
  }
  return Group(**fields | other)


def mark(*groups, saved=""):
  return TokenDataset(list(groups), []).fingerprint(saved)


_WON = np.asarray([[0, 1], [0, 0]], np.float32)


@pytest.mark.parametrize(
  "other",
  [
    group_of(((1,), (2, 3))),
    group_of(((1,), (2, 3)), marks=np.asarray([1, 0], np.int32)),
    group_of(marks=np.asarray([0, 0], np.int32)),
    group_of(response=np.asarray([0, 0], np.int32)),
    group_of(source="s"),
    group_of(pairs=_WON),
    group_of(ties=_WON),
    group_of(attributes=_WON),
    group_of(objective=1),
  ],
)
def test_data_that_differ_have_other_fingerprints(other):
  one = mark(group_of())
  assert one.startswith("2:")
  assert len(one) == 2 + 24
  assert mark(group_of()) == one != mark(other)


def test_a_matrix_of_wins_is_not_one_of_ties_nor_one_group_two():
  assert mark(group_of(pairs=_WON)) != mark(group_of(ties=_WON))
  labels = np.zeros(1, np.float32)
  one, two = (group_of(((i,),), labels=labels) for i in (1, 2))
  assert mark(one, two) != mark(two, one)
  assert mark(one, one) != mark(one)


def test_the_fingerprint_of_an_earlier_version_is_compared_in_its_form():
  example = Example("a", ("b", "c"), (1.0, 0.0), source="s", margin=0.5)
  encoder = TextEncoder(decoder_tokenizer(), Convention())
  group = make_group(encoder.sequences([("a", r) for r in example.responses]), example)
  saved = "e4d1639633c03395fc388e0d"  # written by the version before
  assert mark(group, saved=saved) == saved
  # Of other data it is not, and then theirs is in the new form.
  other = dataclasses.replace(group, weight=0.5)
  assert mark(other, saved=saved) == mark(other) != saved
  assert mark(group, saved="2:" + saved) == mark(group)


def test_each_source_with_a_rate_is_a_part():
  groups = [group_of(source=name) for name in ("a", "b", "a", "c")]
  plain, _ = TokenDataset(groups, []).parts(2)
  assert [part.tolist() for part in plain] == [[0, 1, 2, 3]]
  parts, rates = TokenDataset(groups, [], {"a": 3.0, "c": 1.0}).parts(4)
  assert [part.tolist() for part in parts] == [[0, 2], [3]]
  assert rates == [0.75, 0.25]
  with pytest.raises(InputError, match="nothing is left of d, e to train on"):
    TokenDataset(groups, [], {"a": 1.0, "d": 1.0, "e": 1.0}).parts(4)
  with pytest.raises(InputError, match=r"batch_groups is 2, too few for 2 .*at least 3"):
    TokenDataset(groups, [], {"a": 3.0, "c": 1.0}).parts(2)
