"""Heads that cannot be are refused."""

import pytest

from rm_jax.models.config import HeadConfig


@pytest.mark.parametrize(
  ("said", "message"),
  [
    ({"outputs": 0}, "0 outputs"),
    ({"dropout": -1.0}, "dropout -1"),
    ({"dropout": float("nan")}, "dropout nan"),
    ({"activation": "os.system"}, "'os.system' is not supported"),
  ],
)
def test_a_head_that_cannot_be(said, message):
  with pytest.raises(ValueError, match=message):
    HeadConfig(**said)
