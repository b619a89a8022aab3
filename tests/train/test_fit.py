"""What a loss cannot use of the data is refused when they are read, by the row."""

import json

import pytest

from rm_jax.data.report import DataError
from tests.train.runs import run, small_config


def config_of(folder, path, rows, **losses):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = small_config(folder, steps=2)
  config.data.train, config.data.heldout = str(path), "0"
  config.loss.update(losses)
  return config


def pairs(count, **fields):
  return [{"prompt": f"p{i} ", "chosen": "aa", "rejected": "b"} | fields for i in range(count)]


def ratings(scores):
  return [{"prompt": f"p{i} ", "response": "aa", "score": s} for i, s in enumerate(scores)]


@pytest.mark.parametrize(
  ("rows", "losses", "message"),
  [
    (
      [*pairs(3, margin=1.0), *pairs(2)],
      {"pair": "scaled_logistic"},
      r"rows.jsonl:4: .*it has no margin, .* with 2 of 5 examples",
    ),
    (pairs(3), {"pair": "scaled_logistic"}, r"rows.jsonl:1: .* with 3 of 3 examples"),
    (pairs(3, margin=0.0), {"pair": "scaled_logistic"}, "all margins are 0"),
    (
      ratings([0, 4, 5, 9]),
      {"score": "ordinal(classes=5)"},
      r"rows.jsonl:3: .*its label 5 is no grade of 0 .. 4; so it is with 2 of 4",
    ),
    (
      ratings([-1, 2]),
      {"score": "ordinal(classes=5)"},
      r"rows.jsonl:1: .*its label -1 is no grade",
    ),
    (pairs(3, weight=0.0), {}, "the weights of the training data add up to 0"),
  ],
)
def test_what_a_loss_cannot_use_is_refused_before_the_folder_is_made(
  rows, losses, message, llama_folder, tmp_path
):
  config = config_of(llama_folder, tmp_path / "rows.jsonl", rows, **losses)
  with pytest.raises(DataError, match=message):
    run(config, tmp_path / "run", devices=1)
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_margins_that_are_there_are_used(llama_folder, tmp_path):
  rows = [*pairs(8, margin=0.0), *pairs(8, margin=2.0)]
  losses = {"pair": "scaled_logistic"}
  config = config_of(llama_folder, tmp_path / "rows.jsonl", rows, **losses)
  assert run(config, tmp_path / "run", devices=1)["train"]["steps"] == 2
