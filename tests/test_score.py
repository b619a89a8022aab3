"""`experiments.score` as a process: rows are checked, then streamed; output is all or nothing."""

import datetime
import json
import re

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax import RewardModel
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.setup import build_model, init_params
from tests.processes import command
from tests.train.runs import small_config


@pytest.fixture(scope="module")
def saved(llama_folder, tmp_path_factory):
  """A saved Llama with random weights that reads 64 tokens, and it in Python."""
  config = small_config(llama_folder, steps=1)
  config.data.max_length = 64
  built = build_model(config)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = init_params(built, mesh, jax.random.key(0), training=True)
  rng = np.random.default_rng(1)
  params = {p: x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for p, x in params.items()}
  model = RewardModel(built, unflatten_dict(params, sep="/"), mesh)
  folder = tmp_path_factory.mktemp("saved") / "model"
  model.save_pretrained(folder)
  return folder, model


@pytest.mark.slow
def test_parts_are_scored_as_the_whole_and_written_at_the_end(saved, tmp_path):
  folder, model = saved
  rows = [
    {"prompt": f"question {i // 3} ", "response": "yes " * (i % 5), "n": i} for i in range(50)
  ]
  rows.append({"prompt": "p" * 99, "response": "r", "n": 50})
  source = tmp_path / "rows.jsonl"
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  output = tmp_path / "new" / "folder" / "scored.jsonl"
  flags = (f"--model={folder}", f"--input={source}", f"--output={output}", "--rows=7")
  code, out, err = command("score", *flags, "--mark_cut").finish()
  assert code == 0, err
  scored = [json.loads(line) for line in output.read_text().splitlines()]
  assert [{k: v for k, v in row.items() if k not in ("reward", "cut")} for row in scored] == rows
  # To 1e-6 and not bitwise: in parts, texts may be packed into rows of another length.
  rewards = [row["reward"] for row in scored]
  np.testing.assert_allclose(rewards, model.score(rows), rtol=0, atol=1e-6)
  assert [row["cut"] for row in scored] == [0] * 50 + [38]
  assert "1 of 51 rows are longer than 64 tokens: of their prompts 38 tokens are left out" in out
  assert "rows 50 to 51 of 51" in err
  assert [path.name for path in output.parent.iterdir()] == ["scored.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("column", "found"),
  [
    ([datetime.datetime(2024, 1, 1)] * 2, r"'extra' is datetime.datetime\(2024"),
    ([b"zz"] * 2, "'extra' is b'zz'"),
    ([1.0, float("nan")], "row 1: column 'extra' is nan"),
    ("\ud800", "rows.jsonl:1: column 'extra' is '\\\\ud800'"),
  ],
  ids=["time", "bytes", "nan", "surrogate"],
)
def test_what_cannot_be_written_is_refused_before_the_model_is_read(tmp_path, column, found):
  if isinstance(column, str):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"prompt": "a", "response": "x", "extra": column}) + "\n")
  else:
    source = tmp_path / "rows.parquet"
    table = {"prompt": ["a", "b"], "response": ["x", "y"], "extra": column}
    pyarrow.parquet.write_table(pyarrow.table(table), source)
  output = tmp_path / "scored.jsonl"
  output.write_text("what was there\n")
  flags = (f"--model={tmp_path / 'none'}", f"--input={source}", f"--output={output}")
  code, _, err = command("score", *flags).finish()
  assert code == 1
  (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
  assert re.search(found, line)
  assert "JSON has no word" in line
  assert output.read_text() == "what was there\n"


@pytest.mark.slow
def test_a_row_that_fails_late_leaves_no_half_file(saved, tmp_path):
  folder, _ = saved
  rows = [{"prompt": f"q{i} ", "response": "a"} for i in range(10)]
  rows.append({"prompt": "q", "completions": ["x" * 99]})
  source, output = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  flags = (f"--model={folder}", f"--input={source}", f"--output={output}", "--rows=4")
  code, _, err = command("score", *flags).finish()
  assert code == 1
  assert f"error: {source}:11: steps_too_long" in err
  assert "Traceback" not in err
  assert list(tmp_path.iterdir()) == [source]
  code, _, err = command("score", *flags[:2], f"--output={tmp_path}").finish()
  assert code == 1
  assert "is a folder; expected the path of a file" in err


@pytest.mark.slow
def test_an_output_that_cannot_be_is_refused_before_any_work(tmp_path):
  (tmp_path / "file").write_text("")
  taken = tmp_path / "file" / "folder"
  model = f"--model={tmp_path / 'none'}"
  for name, flags in (
    ("evaluate", (model, f"--data={tmp_path / 'none.jsonl'}", f"--out={taken}")),
    ("audit", (model, f"--data={tmp_path / 'none.jsonl'}", f"--out={taken}")),
    ("curate", (f"--input={tmp_path / 'none.jsonl'}", "--output=x.jsonl", f"--report={taken}/r")),
  ):
    code, _, err = command(name, *flags).finish()
    assert code == 1
    assert f"{taken} cannot be written in: Not a directory" in err


@pytest.mark.slow
def test_columns_of_other_names_are_scored_and_evaluated_and_the_output_keeps_them(saved, tmp_path):
  folder, model = saved
  source, output = tmp_path / "rows.csv", tmp_path / "scored.jsonl"
  source.write_text(
    "q,response,answers,n\n"
    '7,old,"[{""t"": ""1""}, {""t"": ""2""}]",3\n'
    '8,old,"[{""t"": ""4""}, {""t"": 5}]",\n'
  )
  # It stands in place of the file's `response`, which means the same.
  columns = "--columns=prompt=q,completion=answers.0.t"
  flags = (f"--model={folder}", f"--input={source}", f"--output={output}")
  code, _, err = command("score", *flags, columns).finish()
  assert code == 0, err
  scored = [json.loads(line) for line in output.read_text().splitlines()]
  rewards = [row.pop("reward") for row in scored]
  assert scored == [
    {"q": "7", "response": "old", "answers": [{"t": "1"}, {"t": "2"}], "n": 3},
    {"q": "8", "response": "old", "answers": [{"t": "4"}, {"t": 5}], "n": None},
  ]
  asked = [{"prompt": "7", "response": "1"}, {"prompt": "8", "response": "4"}]
  np.testing.assert_allclose(rewards, model.score(asked), rtol=0, atol=1e-6)
  code, _, err = command("score", *flags, "--columns=prompt=q,chosen=n").finish()
  assert code == 1
  assert "error: --columns has 'chosen'; expected of prompt, response, completion, comp" in err
  code, _, err = command("score", *flags, "--columns=prompt=q,response=a,completion=b").finish()
  assert code == 1
  assert "error: --columns has response and completion, which mean the same" in err
  source.write_text("q,a,b\n7,1,2\n8,3,4\n9,5,6\n")
  flags = (f"--model={folder}", f"--data={source}", f"--output={tmp_path / 'out'}")
  code, out, err = command("evaluate", *flags, "--columns=prompt=q,chosen=a,rejected=b").finish()
  assert code == 0, err
  assert "3 of 3 rows kept" in out
