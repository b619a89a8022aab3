"""Prompts and texts from files, and what is left out of them."""

import json

import pytest

from rm_jax.data.report import DataError
from rm_jax.rlhf.prompts import drawn, read_prompts, texts_of, truth_of
from tests.policy.small import byte_policy
from tests.rlhf.small import config_of


def written(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def of_file(tmp_path, rows, **changes):
  name = written(tmp_path / "prompts.jsonl", rows)
  config = config_of(tmp_path, data__prompts=name, data__evaluation=3, **changes)
  return read_prompts(config, byte_policy(1))


def test_evaluation_prompts_are_set_aside_whatever_the_seed(tmp_path):
  rows = [{"prompt": f"prompt {i}"} for i in range(10)] + [{"prompt": "prompt 3"}]
  found = of_file(tmp_path, rows)
  assert len(found.evaluation) == 3
  assert len(found.train) == 7  # the repeated one is there once
  assert not set(found.train) & set(found.evaluation)
  assert of_file(tmp_path, rows, seed=5) == found
  assert of_file(tmp_path, rows, data__evaluation_seed=1).evaluation != found.evaluation


def test_prompts_that_leave_no_room_are_left_out(tmp_path):
  rows = [{"prompt": "x" * n} for n in (1, 2, 3, 4, 5, 130)]
  found = of_file(tmp_path, rows)
  assert found.left_out == 1
  assert all(len(p) < 130 for p in [*found.train, *found.evaluation])


def test_prompts_of_the_world_that_leave_no_room_are_left_out(tmp_path, caplog):
  config, policy = config_of(tmp_path), byte_policy(1)
  lengths = sorted(policy.length(p) for p in drawn(config, "prompts", 16))
  longest = max(policy.length(p) for p in drawn(config, "evaluation", config.data.evaluation))
  config.data.max_length = config.sampling.tokens + lengths[-1]
  assert read_prompts(config, policy).left_out == 0
  room = max(lengths[-1] - 1, longest)
  config.data.max_length = config.sampling.tokens + room
  found = read_prompts(config, policy)
  assert found.left_out == sum(n > room for n in lengths)
  assert all(policy.length(p) <= room for p in [*found.train, *found.evaluation])
  config.data.max_length = config.sampling.tokens + longest - 1
  with pytest.raises(DataError, match="of the evaluation prompts not all leave room"):
    read_prompts(config, policy)


def test_prompts_of_feedback_are_taken(tmp_path):
  pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(5)]
  assert len(of_file(tmp_path, pairs).train) == 2
  hh = [
    {"chosen": f"\n\nHuman: Q{i}\n\nAssistant: A", "rejected": f"\n\nHuman: Q{i}\n\nAssistant: B"}
    for i in range(5)
  ]
  found = of_file(tmp_path, hh)
  assert found.train[0][0]["role"] == "user"


def test_a_row_without_a_prompt_is_dropped_and_the_others_are_read(tmp_path, caplog):
  rows = [{"prompt": f"p{i}"} for i in range(5)]
  found = of_file(tmp_path, [*rows[:3], {"id": 7}, *rows[3:]])
  assert len(found.train) + len(found.evaluation) == 5
  assert "missing_column" in caplog.text


def test_too_few_prompts_are_an_error(tmp_path):
  with pytest.raises(DataError, match=r"expected more than the data\.evaluation=3"):
    of_file(tmp_path, [{"prompt": str(i)} for i in range(3)])
  with pytest.raises(DataError, match="no prompt in it"):
    of_file(tmp_path, [{"prompt": ""}])


def test_texts_to_fine_tune_on_leave_out_evaluation_prompts(tmp_path):
  rows = [{"prompt": p, "response": p.upper()} for p in ("a", "b", "c")]
  name = written(tmp_path / "texts.jsonl", rows)
  config = config_of(tmp_path, sft__texts=name)
  assert texts_of(config, ["b"]) == [("a", "A"), ("c", "C")]
  with pytest.raises(DataError, match="all 3 texts are answers to the 4 prompts"):
    texts_of(config, ["a", "b", "c", "d"])


def test_the_truth_is_known_of_the_world_alone(tmp_path):
  config = config_of(tmp_path)
  prompts = drawn(config, "prompts", 1)
  truth = truth_of(config)(prompts * 2, ["nothing of use", "Happy to help!"])
  assert truth[1] - truth[0] == pytest.approx(config.world.tone_weight)
  config.data.prompts = "prompts.jsonl"
  assert truth_of(config) is None
