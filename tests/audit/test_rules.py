"""The shares of responses that declared limits flag, by hand."""

import json

import numpy as np
import pytest

from rm_jax.audit.sections.rules import flagged
from rm_jax.metrics import interval
from rm_jax.shaping.limits import Limits
from tests.audit.planted import length, pair


def test_shares_of_all_and_of_the_top():
  # Responses have 1 to 20 characters. The top tenth are the two longest, one of which is denied.
  texts = ["".join("abcdefghijklmnopqrstu"[:i]) for i in range(1, 21)]
  texts[18] = "[INST]" + "abcdefghijklm"
  examples = [pair(i, f"p{i}", texts[2 * i], texts[2 * i + 1]) for i in range(10)]
  reference = np.linspace(2, 18, 500)
  limits = Limits(quantiles=(0.0, 1.0), max_characters=16)
  found = flagged(length, examples, limits=limits, reference=reference)
  flags = found["flags"]
  assert found["limits"] == [2, 18]
  assert {name: entry["all"]["value"] for name, entry in flags.items()} == {
    "short": 0,
    "long": 4 / 20,
    "repetition": 0,
    "run": 0,
    "deny": 1 / 20,
    "below": 1 / 20,
    "above": 2 / 20,
    "any": 5 / 20,
  }
  assert flags["deny"]["top"]["value"] == 0.5
  assert flags["above"]["top"]["value"] == 1
  assert flags["below"]["top"]["value"] == 0
  # The two top responses are of one conversation, too few for an interval.
  assert flags["below"]["top"]["interval"] is None
  assert flags["below"]["top"]["why"] == "of the top-scored, 1 conversation: an interval wants 5"
  assert flags["short"]["all"]["interval"] == list(interval.wilson(0, 10))
  json.dumps(found, allow_nan=False)
  without = flagged(length, examples, limits=limits)
  assert without["limits"] is None
  assert without["flags"]["above"]["all"]["why"] == "no reference scores were given"
  assert without["flags"]["any"]["all"]["value"] == 4 / 20
  with pytest.raises(ValueError, match=r"0 conversation\(s\)"):
    flagged(length, [])
