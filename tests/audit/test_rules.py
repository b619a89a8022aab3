"""What the declared rules flag, by hand."""

import json

import numpy as np
import pytest

from rm_jax.audit.rules import Rules, expected, flagged, limits
from rm_jax.metrics import interval
from tests.audit.planted import length, pair


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
  assert {name for name, hit in Rules().flags(text).items() if hit} == flags


def test_bad_rules():
  with pytest.raises(ValueError, match=r"deny: '\(' is no regular expression"):
    Rules(deny=("(",))
  with pytest.raises(ValueError, match=r"quantiles are \(0.9, 0.1\)"):
    Rules(quantiles=(0.9, 0.1))
  with pytest.raises(ValueError, match=r"min_characters \.\. max_characters is 5 \.\. 4"):
    Rules(min_characters=5, max_characters=4)
  with pytest.raises(ValueError, match="max_repetition is 2"):
    Rules(max_repetition=2)


def test_limits_are_quantiles_of_the_reference():
  reference = np.arange(1001.0)
  assert limits(reference, Rules(quantiles=(0.01, 0.99))) == (10, 990)
  with pytest.raises(ValueError, match="reference has 99 scores; expected at least 100"):
    limits(np.zeros(99), Rules())
  with pytest.raises(ValueError, match="not finite"):
    limits(np.full(200, np.nan), Rules())


def test_shares_of_all_and_of_the_top():
  # 20 responses of 1 .. 20 characters: the top tenth are the two longest, of which one is denied.
  texts = ["".join("abcdefghijklmnopqrstu"[:i]) for i in range(1, 21)]
  texts[18] = "[INST]" + "abcdefghijklm"
  examples = [pair(i, f"p{i}", texts[2 * i], texts[2 * i + 1]) for i in range(10)]
  reference = np.linspace(2, 18, 500)
  rules = Rules(quantiles=(0.0, 1.0), max_characters=16)
  found = flagged(length, examples, rules=rules, reference=reference)
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
  # None of the two on top, of one conversation, is no proof of none.
  assert flags["below"]["top"]["interval"] is None
  assert flags["below"]["top"]["why"] == "of the top-scored, 1 conversation: an interval wants 5"
  assert flags["short"]["all"]["interval"] == list(interval.wilson(0, 10))
  json.dumps(found, allow_nan=False)
  without = flagged(length, examples, rules=rules)
  assert without["limits"] is None
  assert without["flags"]["above"]["all"]["why"] == "no reference scores were given"
  assert without["flags"]["any"]["all"]["value"] == 4 / 20
  with pytest.raises(ValueError, match=r"0 conversation\(s\)"):
    flagged(length, [])


@pytest.mark.parametrize("size", [100, 1000])
def test_how_many_of_the_references_own_are_out_of_range(size):
  """Uniform scores: what is below a limit is the limit itself, here averaged over references."""
  rng = np.random.default_rng(size)
  outside = np.array(
    [(low, 1 - high) for low, high in (limits(rng.random(size), Rules()) for _ in range(4000))]
  )
  error = outside.std(axis=0) / len(outside) ** 0.5
  assert (np.abs(outside.mean(axis=0) - expected(size, Rules())) < 4 * error).all()
  assert expected(size, Rules())[0] > 1.9 * Rules().quantiles[0]
