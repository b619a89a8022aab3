"""What a label says of two responses, whatever their order."""

import pytest

from rm_jax.data.verdict import chance, compares_two, preferred_first, swapped, verdict
from rm_jax.types import Example

SURE = Example("p", ("a", "b"), (1.0, 0.0))
SOFT = Example("p", ("a", "b"), (0.3, 0.7), pairs=((0.0, 0.3), (0.7, 0.0)))
TIE = Example("p", ("a", "b"), (0.0, 0.0), ties=((0.0, 1.0), (1.0, 0.0)))
VOTES = Example(
  "p",
  ("a", "b"),
  (0.375, 0.625),
  kind="ranking",
  pairs=((0.0, 1.0), (2.0, 0.0)),
  ties=((0.0, 1.0), (1.0, 0.0)),
  authors=("x", "y"),
  judges={"one": 1.0, "two": 0.0, "three": 0.0, "four": 0.5},
)
RANKED = Example("p", ("a", "b"), (1.0, 3.0), kind="ranking")


@pytest.mark.parametrize(
  ("example", "p"), [(SURE, 1.0), (SOFT, 0.3), (TIE, 0.5), (VOTES, 0.375), (RANKED, 0.0)]
)
def test_a_label_is_read_and_turned(example, p):
  assert chance(example) == p
  assert verdict(example) == (p > 0.5) - (p < 0.5)
  turned = swapped(example)
  assert turned.responses == ("b", "a")
  assert chance(turned) == 1 - p
  assert swapped(turned) == example
  assert preferred_first(example).responses == (("b", "a") if p < 0.5 else ("a", "b"))
  assert preferred_first(example) == preferred_first(turned) or p == 0.5


def test_what_is_said_of_a_response_goes_with_it():
  turned = swapped(VOTES)
  assert turned.authors == ("y", "x")
  assert turned.judges == {"one": 0.0, "two": 1.0, "three": 1.0, "four": 0.5}


@pytest.mark.parametrize(
  "example",
  [
    Example("p", ("a", "b"), (1.0, 0.0), kind="outcome", origin="f:1"),
    Example("p", ("a", "b", "c"), (2.0, 1.0, 0.0), kind="ranking", origin="f:1"),
    Example("p", ("a",), (1.0,), kind="score", origin="f:1"),
  ],
)
def test_other_feedback_compares_no_two(example):
  assert not compares_two(example)
  with pytest.raises(ValueError, match=rf"f:1: \d responses? \({example.kind}\); expected a pair"):
    verdict(example)
