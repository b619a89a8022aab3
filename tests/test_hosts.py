"""Two processes of two devices each are one run: the same numbers, one stop, one workdir."""

import signal
import socket
import time

import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.storage.files import read_lines
from tests.processes import command
from tests.test_commands import train_flags
from tests.train.runs import write_pairs

pytestmark = pytest.mark.slow  # processes, or whole runs
STEPS = {"train.steps": 8, "train.eval_every": 4}  # of a run, in its first and its second half


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 48)


def both(llama_folder, data, workdirs, own=({}, {}), **fields):
  """Starts the two processes of a run, each with its workdir and, in `own`, fields of its own."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    command(
      "train",
      *train_flags(llama_folder, data, workdir, **STEPS | fields | mine),
      "--mesh=data=2,fsdp=2",
      f"--coordinator=localhost:{port}",
      "--processes=2",
      f"--process={index}",
      devices=2,
    )
    for index, (workdir, mine) in enumerate(zip(workdirs, own, strict=True))
  ]


def losses(workdir):
  return [x["loss"] for x in read_lines(workdir / "metrics.jsonl") if x["split"] == "train"]


@pytest.fixture(scope="module")
def alone(llama_folder, data, tmp_path_factory):
  """The workdir of the same run by one process on one device."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  flags = train_flags(llama_folder, data, workdir, **STEPS)
  code, _, err = command("train", *flags, devices=1).finish()
  assert code == 0, err
  return workdir


def test_two_processes_are_one_run(alone, llama_folder, data, tmp_path):
  """Each has a folder of its own here; those of the next test share one."""
  workdir, other = tmp_path / "run", tmp_path / "other"
  for steps in (4, 8):
    fields = {"train.steps": steps}
    results = [p.finish() for p in both(llama_folder, data, [workdir, other], **fields)]
    for code, _, err in results:
      assert code == 0, err
    assert "resumed at step 4" in err or steps == 4
  assert not other.exists()
  (_, spoken, _), (_, silent, _) = results
  assert "held-out accuracy" in spoken
  assert "accuracy" not in silent
  assert len(losses(alone)) == 8
  np.testing.assert_allclose(losses(workdir), losses(alone), rtol=0, atol=1e-5)
  rows = [{"prompt": f"{i} ", "response": "ab" * (i + 1)} for i in range(5)]
  one, two = (RewardModel.from_pretrained(w).score(rows) for w in (alone, workdir))
  np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)


def test_a_signal_to_one_stops_both_after_the_same_step(alone, llama_folder, data, tmp_path):
  workdir = tmp_path / "run"
  fields = {"train.steps": 400}  # enough that the signal comes in the middle
  processes = both(llama_folder, data, [workdir] * 2, **fields)
  until = time.monotonic() + 240
  while len(losses(workdir)) < 2:
    assert time.monotonic() < until
    time.sleep(0.05)
  processes[1].send_signal(signal.SIGTERM)
  results = [process.finish() for process in processes]
  said = [err.splitlines()[-1] for _, _, err in results]
  assert [code for code, _, _ in results] == [128 + signal.SIGTERM] * 2, said
  assert said[0] == said[1]
  assert "is saved in" in said[0]
  done = len(losses(workdir))
  assert 2 <= done < 400
  fields = {"train.steps": max(8, done + 2)}
  for process in both(llama_folder, data, [workdir] * 2, **fields):
    code, _, err = process.finish()
    assert code == 0, err
  np.testing.assert_allclose(losses(workdir)[:8], losses(alone), rtol=0, atol=1e-5)
  assert len(losses(workdir)) == fields["train.steps"]


def test_other_data_or_another_config_is_refused_by_all(llama_folder, data, tmp_path):
  other = write_pairs(tmp_path / "pairs.jsonl", 48, seed=5)
  own = {}, {"data.train": other, "seed": 1}
  processes = both(llama_folder, data, [tmp_path / "run"] * 2, own, **{"data.heldout": "0"})
  for process in processes:
    code, _, err = process.finish()
    assert code == 1
    assert "processes [1] have another config and training data than process 0" in err
  assert not (tmp_path / "run").exists()


def test_half_of_what_a_process_must_know_is_refused(llama_folder, data, tmp_path):
  flags = train_flags(llama_folder, data, tmp_path / "run")
  for some in (["--coordinator=localhost:1"], ["--processes=2", "--process=1"]):
    code, _, err = command("train", *flags, *some).finish()
    assert code == 1
    assert "expected all three, or --multihost alone" in err


def test_a_command_of_one_process_is_not_several(tmp_path):
  flags = [f"--{name}={tmp_path / name}" for name in ("model", "input", "output")]
  code, _, err = command("score", *flags, "--multihost").finish()
  assert code == 1
  assert "only experiments.train is several" in err
