"""The commands as people run them: real processes, real exit codes, one message for a mistake."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest

from configs.base import get_config
from experiments import launch, startup
from experiments.startup import with_large_pages
from rm_jax import RewardModel
from rm_jax.data.report import DataError
from rm_jax.errors import InputError, MissingFileError, UserError
from rm_jax.storage.files import read_lines
from rm_jax.train.loop import NotFiniteError, Stopped
from rm_jax.workdir.checkpoints import CheckpointError
from tests.processes import ROOT, attempts, command, environment
from tests.train.runs import write_pairs


@pytest.mark.parametrize(
  ("platforms", "cores", "plugins", "libtpu", "expected"),
  [
    ("cpu", 2, ["cuda"], True, True),
    (None, 2, [], False, True),
    (None, None, [], False, True),
    ("cpu", 16, [], False, False),
    ("cuda", 2, ["cuda"], False, False),
    (None, 2, ["cuda"], False, False),
    (None, 2, [], True, False),
  ],
)
def test_freed_memory_is_kept_on_small_cpus_alone(
  platforms, cores, plugins, libtpu, expected, monkeypatch
):
  monkeypatch.setattr(os, "cpu_count", lambda: cores)
  monkeypatch.setattr(startup.importlib.metadata, "entry_points", lambda group: plugins)
  monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: libtpu or None)
  config = types.SimpleNamespace(jax_platforms=platforms)
  monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(config=config))
  assert startup.on_small_cpu() is expected


@pytest.mark.parametrize(
  ("environment", "libc", "expected"),
  [
    ({}, "glibc 2.36", "glibc.malloc.hugetlb=1"),
    (
      {"GLIBC_TUNABLES": "glibc.malloc.check=3"},
      "glibc 2.35",
      "glibc.malloc.check=3:glibc.malloc.hugetlb=1",
    ),
    ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc 2.36", None),
    ({}, "glibc 2.34", None),
    ({}, "", None),
    ({}, "musl 1.2", None),
  ],
)
def test_large_pages_are_asked_for_once(environment, libc, expected):
  new = with_large_pages(environment, libc)
  assert (new or {}).get("GLIBC_TUNABLES") == expected
  if new:
    assert with_large_pages(new, libc) is None


MISTAKES = {
  "input": InputError("data.train is ''"),
  "data": DataError("rows.jsonl:1: no column"),
  "missing": MissingFileError("none: no such folder"),
  "checkpoint": CheckpointError("no checkpoint"),
  "not finite": NotFiniteError("3 steps"),
  "stopped": Stopped("stopped by signal 15", 15),
  "path": FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.jsonl"),
  "permission": PermissionError(errno.EACCES, "Permission denied", "runs"),
  "disk": OSError(errno.ENOSPC, "No space left on device"),
}
BUGS = {
  "value": ValueError("zip() argument 2 is shorter than argument 1"),
  "encoding": UnicodeDecodeError("utf-8", b"a", 0, 1, "invalid start byte"),
  "key": KeyError("accuracy"),
  "attribute": AttributeError("'NoneType' object has no attribute 'shape'"),
  "type": TypeError("unsupported operand"),
  "descriptor": OSError(errno.EBADF, "Bad file descriptor"),
  "runtime": RuntimeError("generator raised StopIteration"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_the_user_can_mend_is_a_message(name):
  assert launch._is_mistake(MISTAKES[name])


@pytest.mark.parametrize("name", BUGS)
def test_any_other_error_keeps_its_traceback(name):
  assert not launch._is_mistake(BUGS[name])


def test_errors_of_ours_are_caught_by_their_usual_types():
  for name in ("input", "data"):
    assert isinstance(MISTAKES[name], ValueError)
  assert isinstance(MISTAKES["missing"], FileNotFoundError)
  for name in ("checkpoint", "not finite", "stopped"):
    assert isinstance(MISTAKES[name], RuntimeError)
  assert all(isinstance(e, UserError | OSError) for e in MISTAKES.values())


def test_mesh_is_read_as_a_plan_reads_it():
  config = get_config()
  assert launch.with_mesh(config, "").mesh.to_dict() == {"data": -1, "fsdp": 1, "tensor": 1}
  mesh = launch.with_mesh(config, "fsdp=4,tensor=2").mesh
  assert mesh.to_dict() == {"data": 1, "fsdp": 4, "tensor": 2}
  with pytest.raises(InputError, match="--mesh=model=2: 'model=2' is not as expected"):
    launch.with_mesh(config, "model=2")


@pytest.mark.parametrize(
  ("coordinator", "processes", "process", "message"),
  [
    ("foo", 2, 0, "--coordinator=foo: expected HOST:PORT"),
    ("foo:", 2, 0, "--coordinator=foo:: expected HOST:PORT"),
    (":80", 2, 0, "--coordinator=:80: expected HOST:PORT"),
    ("foo:bar", 2, 0, "--coordinator=foo:bar: expected HOST:PORT"),
    ("foo:80", 2, 2, "--process=2 of --processes=2: expected a number from 0"),
    ("foo:80", 2, None, "expected all three"),
  ],
)
def test_who_joins_whom_is_checked_first(coordinator, processes, process, message, monkeypatch):
  values = {"COORDINATOR": coordinator, "PROCESSES": processes, "PROCESS": process}
  for name, value in values.items():
    monkeypatch.setattr(launch, name, types.SimpleNamespace(value=value))
  monkeypatch.setattr(launch, "MULTIHOST", types.SimpleNamespace(value=False))
  joined = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *given: joined.append(given))
  with pytest.raises(InputError, match=message):
    launch._join(hosts=True)
  monkeypatch.setattr(launch, "COORDINATOR", types.SimpleNamespace(value="[::1]:8476"))
  monkeypatch.setattr(launch, "PROCESS", types.SimpleNamespace(value=1))
  launch._join(hosts=True)
  assert joined == [("[::1]:8476", 2, 1)]


@pytest.mark.parametrize(
  ("error", "message"),
  [
    (AssertionError(), "there is none; expected 'cpu'"),
    (
      RuntimeError("Unable to initialize backend 'foo': not known (set JAX_PLATFORMS='' to ...)"),
      "'foo': not known; expected 'cpu'",
    ),
  ],
)
def test_no_device_is_a_message(error, message, monkeypatch):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  with pytest.raises(InputError, match=f"JAX_PLATFORMS=cpu: .*{message}"):
    launch.check_devices()


def test_too_little_memory_is_a_message():
  said = "INTERNAL: RESOURCE_EXHAUSTED: Out of memory allocating 4398046511104 bytes.\nmore"
  full = launch._out_of_memory(jax.errors.JaxRuntimeError(said))
  assert "memory is too small: RESOURCE_EXHAUSTED: Out of memory allocating 43980" in str(full)
  assert "data.cells" in str(full)
  assert "\n" not in str(full)
  assert launch._out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: a bug")) is None
  assert launch._out_of_memory(ValueError("RESOURCE_EXHAUSTED")) is None


@pytest.mark.slow
def test_a_fork_says_what_a_process_says(tmp_path):
  cases = {"unknown": ["--nonsense=1"], "forgotten": ["--config=configs/base.py"]}
  forks = attempts("train", cases)
  for case, flags in cases.items():
    code, out, err = command("train", *flags, fork=False).finish()
    assert forks[case] == (code, out, err.replace(f"{ROOT}/", ""))
    assert code != 0


_MAINS = """
import os, sys
from experiments.launch import launch
from rm_jax.errors import InputError
from rm_jax.train.loop import Stopped

def mistake():
  raise InputError("mend this")

def missing():
  open("/nowhere/rows.jsonl")

def stopped():
  raise Stopped("stopped by signal 15", 15)

def bug():
  list(zip([1], [2, 3], strict=True))

for main in (mistake, missing, stopped, bug):
  sys.stderr.write(f"# {main.__name__}\\n")
  sys.stderr.flush()
  if not os.fork():
    launch(main)
  print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("traceback", [False, True])
def test_a_mistake_is_one_line_and_a_bug_keeps_its_traceback(traceback):
  wanted = {"RM_JAX_TRACEBACK": "1"} if traceback else {}
  done = subprocess.run(
    [sys.executable, "-c", _MAINS],
    cwd=ROOT,
    env=environment() | wanted,
    capture_output=True,
    text=True,
    timeout=200,
    check=True,
  )
  assert [int(code) for code in done.stdout.split()] == [1, 1, 128 + signal.SIGTERM, 1]
  said = dict(part.split("\n", 1) for part in done.stderr.removeprefix("# ").split("# "))
  lines = {
    "mistake": "error: mend this",
    "missing": "error: [Errno 2] No such file or directory: '/nowhere/rows.jsonl'",
    "stopped": "error: stopped by signal 15",
  }
  for name, line in lines.items():
    assert said[name].splitlines()[-1] == line
    assert ("Traceback" in said[name]) == traceback
  assert "list(zip([1], [2, 3], strict=True))" in said["bug"] or "in bug" in said["bug"]
  assert said["bug"].splitlines()[-1].startswith("ValueError: zip()")


@pytest.mark.slow
def test_a_config_files_own_errors_keep_their_traceback(tmp_path):
  base = "from configs import base\n\n\ndef get_config():\n  c = base.get_config()\n"
  bodies = {
    "KeyError": "  return {}['missing']\n",
    "AttributeError": "  c.data.batch_group = 3\n  return c\n",
    "ValueError": "  raise ValueError('of the file')\n",
  }
  cases = {}
  for name, body in bodies.items():
    path = tmp_path / f"{name.lower()}.py"
    path.write_text(base + body)
    cases[name] = [f"--config={path}", f"--workdir={tmp_path}/w"]
  for name, (code, _, err) in attempts("train", cases).items():
    assert code != 0, name
    assert "Traceback" in err, (name, err)
    assert f"{name.lower()}.py" in err, (name, err)
    assert name in err, (name, err)


def train_flags(folder, data, workdir, **fields):
  fields = {
    "model.config": folder / "config.json",
    "model.tokenizer": folder,
    "data.train": data,
    "data.heldout": "0.25",
    "data.batch_groups": 8,
    "data.cells": 1024,
    "data.shapes": 1,
    "train.steps": 12,
    "train.log_every": 1,
    "train.eval_every": 6,
    "optimizer.decay_steps": 12,
    "optimizer.learning_rate": 3e-3,
  } | fields
  settings = [f"--config.{key}={value}" for key, value in fields.items() if value is not None]
  return ["--config=configs/base.py", f"--workdir={workdir}", *settings]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 40)


@pytest.mark.slow
def test_mistakes_stop_at_once_with_one_message(llama_folder, data, tmp_path):
  not_json = tmp_path / "bad.jsonl"
  not_json.write_text(data.read_text().splitlines()[0] + "\n{'prompt': 1}\n")
  no_column = tmp_path / "column.jsonl"
  no_column.write_text(json.dumps({"prompt": "a", "chosen": "b"}) + "\n")
  unknown = tmp_path / "unknown.json"
  unknown.write_text(json.dumps({"model_type": "mamba"}))
  messages = tmp_path / "messages.jsonl"
  turn = [{"role": "user", "content": "hi"}]
  row = {
    "prompt": turn,
    "chosen": [{"role": "assistant", "content": "a"}],
    "rejected": [{"role": "assistant", "content": "b"}],
  }
  others = [row | {"prompt": [{"role": "user", "content": f"yo {i}"}]} for i in range(8)]
  messages.write_text("".join(json.dumps(one) + "\n" for one in (row, *others)))
  bare = tmp_path / "bare"
  bare.mkdir()
  for file in llama_folder.iterdir():
    if file.name != "chat_template.jinja" and file.is_file():
      (bare / file.name).write_bytes(file.read_bytes())
  strict = {"data.strict": True}
  cases = {
    "a key that is none": (
      train_flags(llama_folder, data, tmp_path / "w", **{"data.batch_group": 3}),
      "batch_group",
    ),
    "a value of another type": (
      train_flags(llama_folder, data, tmp_path / "w", **{"train.steps": "many"}),
      "train.steps",
    ),
    "no such file": (
      train_flags(llama_folder, tmp_path / "none.jsonl", tmp_path / "w"),
      "none.jsonl",
    ),
    "a row that is no JSON": (
      train_flags(llama_folder, not_json, tmp_path / "w", **strict),
      "bad.jsonl:2",
    ),
    "a missing column": (train_flags(llama_folder, no_column, tmp_path / "w"), "column.jsonl:1"),
    "an architecture we do not have": (
      train_flags(llama_folder, data, tmp_path / "w", **{"model.config": unknown}),
      "'mamba' is not supported",
    ),
    "messages without a template": (
      train_flags(bare, messages, tmp_path / "w"),
      "chat_template",
    ),
    "no config file": ([f"--config={tmp_path}/no.py", f"--workdir={tmp_path}/w"], "no.py"),
    "a flag forgotten": (["--config=configs/base.py"], "workdir"),
  }
  results = attempts("train", {n: flags for n, (flags, _) in cases.items()})
  for name, (code, _, err) in results.items():
    assert code != 0, name
    assert cases[name][1] in err, (name, err)
    assert "Traceback" not in err, (name, err)
    assert err.count("error:") == 1 or "FATAL" in err, (name, err)
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["curate", "evaluate", "sweep"])
def test_mistakes_in_flags_of_other_commands_are_one_line(name, llama_folder, data, tmp_path):
  binary = tmp_path / "template"
  binary.write_bytes(b"\xff\xff")
  study, output = "--config=configs/loss_ablation.py", f"--output={tmp_path / 'out.jsonl'}"
  model = f"--model={llama_folder}"
  cleaned = (f"--input={data}", output, f"--report={tmp_path / 'report.json'}")
  cases = {
    "curate": {
      "near is 1.0; expected it in [0, 1)": [*cleaned, "--near=1"],
      "contamination_share is 0.0; expected it in (0, 1]": [
        *cleaned,
        f"--heldout={data}",
        "--contamination_share=0",
      ],
      "cannot be dealt to 99 folds": [
        *cleaned,
        *["--denoise=drop", "--denoise_scorer=content", "--folds=99"],
      ],
    },
    "evaluate": {
      "holds neither model.safetensors": [model, f"--data={data}", output],
      "expected a text file in UTF-8": [
        model,
        f"--data={data}",
        output,
        f"--chat_template={binary}",
      ],
      "--limit=-1": [model, f"--data={data}", output, "--sample=-1"],
      "is a file; expected a folder": [model, f"--data={data}", f"--out={data}"],
    },
    "sweep": {
      "has no sweep()": ["--config=configs/base.py", f"--workdir={tmp_path}"],
      "--only has ['none']": [study, f"--workdir={tmp_path}", "--only=none"],
      "--mesh=fsdp: 'fsdp' is not as expected": [study, f"--workdir={tmp_path}", "--mesh=fsdp"],
    },
  }[name]
  for expected, (code, _, err) in attempts(name, cases).items():
    assert code != 0, expected
    assert expected in err, (expected, err)
    assert "Traceback" not in err, (expected, err)


@pytest.mark.slow
def test_train_stop_resume_evaluate_and_score(llama_folder, data, tmp_path, monkeypatch):
  flags = train_flags(llama_folder, data, tmp_path / "whole")
  code, out, err = command("train", *flags).finish()
  assert code == 0, err
  assert "held-out accuracy" in out

  # The same run, stopped by a signal and resumed.
  flags = train_flags(llama_folder, data, tmp_path / "stopped")
  with monkeypatch.context() as patch:
    patch.delenv("GLIBC_TUNABLES")
    process = command("train", *flags, fork=False)
  metrics = tmp_path / "stopped" / "metrics.jsonl"
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline and process.poll() is None:
    if any(x["step"] >= 2 for x in read_lines(metrics)):
      if with_large_pages({}, startup._libc()):
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"glibc.malloc.hugetlb=1" in environment
      process.send_signal(signal.SIGTERM)
      break
    time.sleep(0.005)
  code, _, err = process.finish()
  assert code == 128 + signal.SIGTERM, err
  assert "stopped by signal 15 after step" in err
  assert not (tmp_path / "stopped" / "summary.json").exists()
  assert command("train", *flags).finish()[0] == 0
  assert metrics.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()

  # Another config for the same folder is refused.
  other = train_flags(llama_folder, data, tmp_path / "whole", **{"loss.l2": 1.0})
  before = (tmp_path / "whole" / "config.json").read_bytes()
  code, _, err = command("train", *other).finish()
  assert code == 1
  assert "loss.l2: 0.0 there, 1.0 now" in err
  assert (tmp_path / "whole" / "config.json").read_bytes() == before

  held = write_pairs(tmp_path / "held.jsonl", 20, seed=3)
  rows = [json.loads(line) for line in held.read_text().splitlines()]
  singles = [{"id": i, "prompt": r["prompt"], "response": r["chosen"]} for i, r in enumerate(rows)]
  singles[3]["completion"] = singles[3].pop("response")
  singles[4]["completions"] = [singles[4].pop("response"), "b"]
  with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
    file.writelines(json.dumps(row) + "\n" for row in singles)
  model = f"--model={tmp_path / 'whole'}"
  evaluate = command("evaluate", model, f"--data={held}", f"--out={tmp_path / 'e'}", "--sample=99")
  seen = tmp_path / "seen.jsonl"
  seen.write_text("".join(line + "\n" for line in held.read_text().splitlines()[:4]))
  without = command(
    "evaluate",
    model,
    f"--data={held}",
    f"--output={tmp_path / 'w'}",
    f"--exclude={seen}",
    "--limit=10",
  )
  own = command("evaluate", model, "--data=heldout", f"--output={tmp_path / 'own'}")
  output = tmp_path / "out.jsonl"
  files = (f"--input={tmp_path / 'in.jsonl.gz'}", f"--output={output}")
  score = command("score", model, *files, "--aggregate=product", "--limit=12")
  code, out, err = evaluate.finish()
  assert code == 0, err
  report = json.loads((tmp_path / "e" / "report.json").read_text())
  assert report["heldout"]["n"] == 20
  assert report["heldout"]["accuracy"] > 0.8
  assert without.finish()[0] == 0
  fewer = json.loads((tmp_path / "w" / "report.json").read_text())
  assert (fewer["heldout"]["n"], fewer["data"]["kept"]) == (10, 10)
  assert fewer["data"]["dropped"] == {"excluded": 4, "not_sampled": 6}
  assert fewer["data"]["trained_on"] == 0
  code, _, err = own.finish()
  assert code == 0, err
  report = json.loads((tmp_path / "own" / "report.json").read_text())["heldout"]
  run = json.loads((tmp_path / "whole" / "summary.json").read_text())["heldout"]
  assert (report["n"], report["accuracy"]) == (run["n"], run["accuracy"])
  code, _, err = score.finish()
  assert code == 0, err
  scored = read_lines(output)
  assert [{k: v for k, v in row.items() if k != "reward"} for row in scored] == singles[:12]
  assert all(isinstance(row["reward"], float) for row in scored)
  assert scored[4]["reward"] < 0  # a log-probability


@pytest.mark.slow
def test_messages_for_a_model_that_has_no_chat_template(tmp_path):
  from tests.test_api import classifier

  classifier(tmp_path / "theirs")
  rows = tmp_path / "rows.jsonl"
  talks = [[{"role": "user", "content": f"{i} ab"}] for i in range(6)]
  rows.write_text("".join(json.dumps({"prompt": t, "response": "cd"}) + "\n" for t in talks))
  sides = [
    {
      side: [{"role": "assistant", "content": c * 3}]
      for side, c in (("chosen", "a"), ("rejected", "b"))
    }
    for _ in talks
  ]
  pairs = tmp_path / "pairs.jsonl"
  pairs.write_text(
    "".join(json.dumps({"prompt": t, **s}) + "\n" for t, s in zip(talks, sides, strict=True))
  )
  model = f"--model={tmp_path / 'theirs'}"
  asked = {
    "score": (f"--input={rows}", f"--output={tmp_path / 'scored.jsonl'}"),
    "evaluate": (f"--data={pairs}", f"--out={tmp_path / 'e'}"),
    "audit": (f"--data={pairs}", f"--out={tmp_path / 'a'}", "--cache=none"),
  }
  for name, flags in asked.items():
    code, _, err = command(name, model, *flags).finish()
    assert code == 1
    assert "--chat_template of a command" in err
    code, _, err = command(name, model, *flags, "--chat_template=hh", "--eos=append").finish()
    assert code == 0, err
  expected = RewardModel.from_pretrained(tmp_path / "theirs", chat_template="hh", eos="append")
  scores = expected.score([{"prompt": t, "response": "cd"} for t in talks])
  assert [row["reward"] for row in read_lines(tmp_path / "scored.jsonl")] == pytest.approx(
    scores.tolist(), abs=1e-5
  )
