"""Parts of the command experiments.audit; tests/audit/test_command.py runs it as a whole."""

import dataclasses
import types

import numpy as np
import pytest
from absl import flags

from configs.base import get_config
from experiments import audit
from experiments.run_data import own_data
from rm_jax.audit.reference import FILE, Reference
from rm_jax.audit.run import audit as measured
from rm_jax.audit.section import Settings
from rm_jax.audit.sections import overoptimisation
from rm_jax.data.report import Report
from rm_jax.train import datasets
from rm_jax.world import World
from tests.audit.planted import length
from tests.audit.test_page import Fake

WORLD = World()


def flag(monkeypatch, **values):
  """Sets flags of the command: name -> value."""
  for name, value in values.items():
    monkeypatch.setattr(audit, name, types.SimpleNamespace(value=value))


def test_only_what_a_run_trained_on_is_said_to_be_so(monkeypatch):
  config = get_config()
  config.data.train, config.data.heldout = "world:80", "0.25"
  config.data.validation, config.data.fraction = 0.25, 0.5
  flag(monkeypatch, DATA="heldout", EXCLUDE=None, LIMIT=0, SEED=0, MODEL="run")
  flag(monkeypatch, FORMAT="auto", COLUMNS="")
  report = Report()
  examples = audit._data(config, report)
  counts = dict(report.dropped)
  assert counts.keys() == {"trained_on", "validated_on", "not_in_fraction"}
  assert len(examples) + sum(counts.values()) == 80
  assert counts["validated_on"] > 5
  train, heldout = own_data(config, Report(), "run")
  assert (len(train), heldout) == (counts["trained_on"], examples)
  both, held, _ = datasets.read_both(config, Report())
  kept, aside = datasets.divided(config, both, Report())
  assert (train, held) == (kept, heldout)
  assert len(aside) == counts["validated_on"]
  assert not {e.conversation for e in train} & {e.conversation for e in aside}


def unread(scorer):
  """The scorer with a model that can read every text."""
  scorer.model = types.SimpleNamespace(
    text_model=types.SimpleNamespace(tokenise=lambda examples, report: (None, examples))
  )
  return scorer


def test_a_reference_of_the_training_data_that_was_asked_for_is_kept(monkeypatch, tmp_path):
  config = get_config()
  config.data.train, config.data.heldout = "world:90", "world:30"
  scorer, audited = unread(Fake(length)), WORLD.pairs("heldout", 30, 9)
  flag(monkeypatch, REFERENCE="world:90", SEED=0, MODEL="run")
  asked = audit._reference(scorer, config, tmp_path, audited)
  assert (asked.data, asked.known, asked.asked, len(asked.scores)) == ("world:90", True, True, 90)
  flag(monkeypatch, REFERENCE=None)
  found = audit._reference(scorer, config, tmp_path, audited)
  assert (found.data, len(found.scores)) == ("world:90", 90)
  assert Reference.load(tmp_path).data == "world:90"

  # A file of a version that knew `known` and not `asked`, which wrote such a one only if asked.
  whole = dataclasses.asdict(asked)
  np.savez(tmp_path / FILE, **{k: v for k, v in whole.items() if k != "asked"})
  assert audit._reference(scorer, config, tmp_path, audited).data == "world:90"
  # One of a version before, which wrote it by default.
  np.savez(tmp_path / FILE, **{k: v for k, v in whole.items() if k not in ("asked", "known")})
  assert audit._reference(scorer, config, tmp_path, audited).data == audit.HELD
  assert Reference.load(tmp_path).data == audit.HELD
  # What was held out is kept by default, and asking for it makes no other thing of it.
  for value in ("heldout", None):
    flag(monkeypatch, REFERENCE=value)
    assert audit._reference(scorer, config, tmp_path, audited).data == audit.HELD
  # Other data are asked for, whatever the version.
  np.savez(
    tmp_path / FILE,
    **{k: v for k, v in whole.items() if k not in ("asked", "known", "data")},
    data="mine",
  )
  assert audit._reference(scorer, config, tmp_path, audited).data == "mine"


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
