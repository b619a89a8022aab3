"""Which texts and scores are outside declared limits."""

import doctest
import re

import numpy as np
import pytest

from rm_jax.errors import InputError
from rm_jax.shaping import limits as module
from rm_jax.shaping.limits import Limits, expected_outside, score_range


@pytest.mark.parametrize(
  ("text", "flags"),
  [
    ("A good answer.", set()),
    (" \n", {"short"}),
    ("x" * 20_001, {"long"}),
    ("no " * 6, {"repetition", "run"}),
    ("no " * 5, {"repetition"}),
    ("Yes.<|im_end|>", {"deny"}),
    ("Yes.\nhuman: and then?", {"deny"}),
    ("A human: that is one of us.", set()),
  ],
)
def test_flags(text, flags):
  assert {name for name, hit in Limits().flags(text).items() if hit} == flags


OLD = r"^\s*(?:Human|Assistant|User):"  # a default of earlier versions, which saved chains have


@pytest.mark.parametrize("limits", [Limits(), Limits(deny=(OLD,))])
def test_many_line_breaks_are_read_in_one_pass(limits):
  seen = limits.flags("\n" * 100_000)  # minutes, if each looked at all that follow
  assert (seen["long"], seen["deny"]) == (True, False)
  assert limits.flags("\n" * 100_000 + " User: go on")["deny"]


def test_a_saved_pattern_matches_as_it_did():
  rng = np.random.default_rng(0)
  parts = ["\n", "\n", " ", "\t", "\r", "\u2028", "User:", "human:", "x"]
  for _ in range(2_000):
    text = "".join(rng.choice(parts, rng.integers(0, 8)))
    found = re.search(OLD, text, re.IGNORECASE | re.MULTILINE) is not None
    assert Limits(deny=(OLD,)).flags(text)["deny"] == found
    assert Limits().flags(text)["deny"] == found


def test_bad_limits():
  with pytest.raises(InputError, match=r"deny: '\(' is no regular expression"):
    Limits(deny=("(",))
  with pytest.raises(ValueError, match=r"quantiles are \(0.9, 0.1\)"):
    Limits(quantiles=(0.9, 0.1))
  with pytest.raises(ValueError, match=r"min_characters \.\. max_characters is 5 \.\. 4"):
    Limits(min_characters=5, max_characters=4)
  with pytest.raises(ValueError, match="max_repetition is 2"):
    Limits(max_repetition=2)
  with pytest.raises(ValueError, match="max_run 0; expected"):
    Limits(max_run=0)
  with pytest.raises(ValueError, match=r"quantiles are \(0.5, 0.5\)"):
    Limits(quantiles=(0.5, 0.5))
  # The ends of what is allowed.
  Limits(quantiles=(0.0, 1.0), min_characters=0, max_characters=0, max_repetition=1.0, max_run=1)


def test_limits_are_quantiles_of_the_reference():
  reference = np.arange(1001.0)
  assert score_range(reference, Limits(quantiles=(0.01, 0.99))) == (10, 990)
  with pytest.raises(ValueError, match="reference has 99 scores; expected at least 100"):
    score_range(np.zeros(99), Limits())
  with pytest.raises(ValueError, match="not finite"):
    score_range(np.full(200, np.nan), Limits())


@pytest.mark.parametrize("size", [100, 1000])
def test_how_many_of_the_references_own_are_out_of_range(size):
  """Of uniform scores the share below a limit equals the limit; averaged over many references."""
  rng = np.random.default_rng(size)
  outside = np.array(
    [
      (low, 1 - high)
      for low, high in (score_range(rng.random(size), Limits()) for _ in range(4000))
    ]
  )
  error = outside.std(axis=0) / len(outside) ** 0.5
  assert (np.abs(outside.mean(axis=0) - expected_outside(size, Limits())) < 4 * error).all()
  assert expected_outside(size, Limits())[0] > 1.9 * Limits().quantiles[0]


def test_the_example_in_the_docstring():
  tried = doctest.testmod(module)
  assert (tried.failed, tried.attempted > 0) == (0, True)
