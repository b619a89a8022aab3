"""The examples in the losses' docstrings print what they say."""

import doctest
import importlib

import pytest

FAMILIES = ("pairwise", "listwise", "pointwise", "process", "ties", "noise")


@pytest.mark.parametrize("family", FAMILIES)
def test_examples(family):
  result = doctest.testmod(importlib.import_module(f"rm_jax.losses.{family}"))
  assert result.attempted
  assert not result.failed
