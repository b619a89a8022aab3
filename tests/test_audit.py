"""Parts of the command experiments.audit; tests/audit/test_command.py runs it as a whole."""

import pytest
from absl import flags

from experiments import audit  # noqa: F401  (defines the flags)
from rm_jax.audit.run import audit as measured
from rm_jax.audit.section import Settings
from rm_jax.audit.sections import overoptimisation
from rm_jax.world import World
from tests.audit.planted import length
from tests.audit.test_page import Fake

WORLD = World()


def test_the_fewest_prompts_and_candidates_have_a_curve():
  least = {"prompts": 2, "candidates": 4}
  for name, bound in least.items():
    with pytest.raises(flags.IllegalFlagValueError, match=f">= {bound}"):
      flags.FLAGS[name].parse(str(bound - 1))
  settings = Settings(world=WORLD, **least)
  only = [overoptimisation.SECTION]
  found = measured(Fake(length), WORLD.pairs("heldout", 4, 0), settings=settings, sections=only)
  assert "failed" not in found
  assert found["overoptimisation"]["world"]["variants"]["score"]["n"] == [1, 2, 3, 4]
