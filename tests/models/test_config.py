"""Heads that cannot be are refused."""

import pytest

from rm_jax.models.config import HeadConfig


@pytest.mark.parametrize(
  ("said", "message"),
  [
    ({"outputs": 0}, "0 outputs"),
    ({"dropout": -1.0}, "dropout -1"),
    ({"dropout": float("nan")}, "dropout nan"),
    ({"dropout": 1.0}, "dropout 1.0; expected 1 or more, and a rate from 0 and below 1"),
    ({"ensemble": True}, "ensemble is True and outputs 1; expected two members or more"),
    ({"activation": "os.system"}, "^head: activation 'os.system' is not supported"),
  ],
)
def test_a_head_that_cannot_be(said, message):
  with pytest.raises(ValueError, match=message):
    HeadConfig(**said)
