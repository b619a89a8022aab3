"""`python -m experiments.curate` as a real process: one good run of each kind, and mistakes."""

import json

import pytest

from rm_jax.data.formats import load
from rm_jax.data.report import Report
from tests.curate.planted import plant
from tests.processes import attempts, command
from tests.train.runs import write_pairs

pytestmark = pytest.mark.slow  # Processes, or whole runs.


def lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_clean_a_file_with_a_config(llama_folder, tmp_path):
  data = write_pairs(tmp_path / "pairs.jsonl", 48, seed=5)
  rows = [json.loads(line) for line in data.read_text().splitlines()]
  held = lines(tmp_path / "held.jsonl", rows[40:44])
  data.write_text(data.read_text() + json.dumps(rows[0]) + "\n{oops\n")
  output, report = tmp_path / "new" / "out.jsonl.gz", tmp_path / "new" / "report.json"
  config = {
    "model.config": llama_folder / "config.json",
    "model.tokenizer": llama_folder,
    "data.batch_groups": 8,
    "data.row_lengths": (64,),
    "train.steps": 12,
    "optimizer.learning_rate": 3e-3,
  }
  code, out, err = command(
    "curate",
    f"--input={data}",
    f"--output={output}",
    f"--report={report}",
    f"--heldout={held}",
    "--contamination_n=2",
    "--contamination_share=1",
    "--denoise=downweight",
    "--denoise_threshold=0.3",
    "--folds=2",
    "--denoise_config=configs/base.py",
    *(f"--denoise_config.{key}={value}" for key, value in config.items()),
  ).finish()
  assert code == 0, err
  assert "50 rows read = 44 kept + 6 dropped" in out
  assert "near duplicates: 100%" in err  # The progress bar.
  got = json.loads(report.read_text())
  assert got["dropped"] == {"in_heldout": 4, "exact_duplicate": 1, "invalid_json": 1}
  assert got["heldout"]["kept"] == 4
  assert got["denoise"]["flagged"] == got["rows"]["changed"]
  assert (tmp_path / "new" / "report.json.folds" / "fold1" / "run" / "summary.json").exists()
  assert len(load(output, report=Report(strict=True))) == 44


def test_annotators_of_a_file(tmp_path):
  rows = [
    {"p": f"{i // 2}", "response1": "a " * (i % 7 + 1), "response2": "b b b", "x": i % 3 % 2 + 1,
     "y": (i + i % 5) % 3}
    for i in range(40)
  ]  # fmt: skip
  rows[3]["x"] = "?"
  report = tmp_path / "report.json"
  flags = [f"--input={lines(tmp_path / 'j.jsonl', rows)}", f"--report={report}", "--prompt=p"]
  code, out, err = command("curate", *flags, "--annotators=x,y").finish()
  assert code == 0, err
  assert "39 of 40 rows kept, 20 prompts" in out
  assert "Dawid-Skene: none: there are no three annotators of whom each two judged 30 rows" in out
  (dropped,) = json.loads(report.read_text())["dropped"]
  assert dropped["origin"].endswith("j.jsonl:4")
  assert dropped["reason"] == "unknown_judgement"


def test_a_large_drop_stops_with_a_report_and_no_output(tmp_path):
  row = {"prompt": "why", "chosen": "a b", "rejected": "c"}
  data = lines(tmp_path / "in.jsonl", [row] * 5)
  output, report = tmp_path / "out.jsonl", tmp_path / "report.json"
  flags = [f"--input={data}", f"--output={output}", f"--report={report}"]
  code, _, err = command("curate", *flags).finish()
  assert code == 1
  message = err.splitlines()[-1]
  assert message.startswith("error: duplicates would drop 4 of 5 rows, more than half")
  assert "--allow_large_drop" in message
  assert not output.exists()
  got = json.loads(report.read_text())
  assert got["stopped"] == {"rule": "duplicates", "dropped": 4, "of": 5}
  assert len(got["listed"]["dropped"]) == 4
  code, _, err = command("curate", *flags, "--allow_large_drop").finish()
  assert code == 0, err
  assert json.loads(report.read_text())["stopped"] is None
  assert len(output.read_text().splitlines()) == 1
  before = output.read_bytes()
  code, _, err = command("curate", *flags).finish()
  assert (code, output.read_bytes()) == (1, before)
  assert "out.jsonl, which was there before, is as it was" in err


def test_mistakes_stop_at_once_with_one_message(tmp_path):
  rows, _, _ = plant(60)
  folder = tmp_path / "in"
  folder.mkdir()
  data = lines(folder / "rows.jsonl", rows)
  out = f"--output={tmp_path}/out.jsonl"
  cases = {
    "no such file": ([f"--input={tmp_path}/none.jsonl", out], "none.jsonl: no such file"),
    "no output": ([f"--input={data}"], "set --output"),
    "a kind of output we do not write": (
      [f"--input={data}", f"--output={tmp_path}/out.csv"],
      "csv",
    ),
    "output over input": ([f"--input={folder}", f"--output={folder}/out.jsonl"], "lies in it"),
    "output over heldout": (
      [f"--input={data}", out, f"--heldout={tmp_path}/out.jsonl"],
      "is --heldout",
    ),
    "a policy that is none": ([f"--input={data}", out, "--duplicates=perhaps"], "perhaps"),
    "a number out of range": ([f"--input={data}", out, "--near=2"], "near is 2.0"),
    "a flag that is none": ([f"--input={data}", out, "--nearly=1"], "nearly"),
    "denoise by nothing": ([f"--input={data}", out, "--denoise=flip"], "--denoise_scorer"),
    "a coin of a scorer": (
      [f"--input={data}", out, "--denoise_scorer=content", "--folds=70"],
      "cannot be dealt to 70 folds",
    ),
    "targets without rows": (
      [f"--input={data}", out, "--resample_by=source", "--resample_to=x=1"],
      "targets without rows ['x']",
    ),
    "no such column": ([f"--input={data}", "--annotators=me"], "no row has ['me'"),
    "flags that annotators do not need": (
      [f"--input={data}", "--annotators=me", "--columns=chosen=a", "--strict", "--near=0.5"],
      "leave out --columns, --strict, --near",
    ),
    "flags that cleaning does not read": (
      [f"--input={data}", out, "--first=a"],
      "--first: only a report on --annotators reads it",
    ),
    "a report forgotten": (None, "report"),
  }

  flags = {
    name: [f"--input={data}", out] if some is None else [*some, f"--report={tmp_path}/r.json"]
    for name, (some, _) in cases.items()
  }
  results = attempts("curate", flags)
  for name, (code, _, err) in results.items():
    assert code != 0, name
    assert cases[name][1] in err, (name, err)
    assert "Traceback" not in err, (name, err)
    assert err.count("error:") == 1 or "FATAL" in err, (name, err)
  assert not (tmp_path / "out.jsonl").exists()
  assert not (tmp_path / "r.json").exists()


def test_columns_of_other_names_are_curated_and_kept(tmp_path):
  data = tmp_path / "pairs.csv"
  rows = [f"{i},good answer {i},bad answer {i}\n" for i in (7, 8, 9, 7)]
  data.write_text("q,a,b\n" + "".join(rows))
  output, report = tmp_path / "new" / "out.jsonl", tmp_path / "new" / "report.json"
  columns = "prompt=q,chosen=a,rejected=b"
  flags = (f"--input={data}", f"--output={output}", f"--report={report}")
  code, _, err = command("curate", *flags, f"--columns={columns}").finish()
  assert code == 0, err
  kept = [json.loads(line) for line in output.read_text().splitlines()]
  assert kept == [{"q": str(i), "a": f"good answer {i}", "b": f"bad answer {i}"} for i in (7, 8, 9)]
  assert [e.prompt for e in load(output, report=Report(), columns=columns)] == ["7", "8", "9"]


def test_a_report_overwrites_nothing_that_is_read(tmp_path):
  rows, _, _ = plant(60)
  data = lines(tmp_path / "rows.jsonl", rows)
  out = f"--output={tmp_path}/out.jsonl"
  results = attempts(
    "curate",
    {
      "input": [f"--input={data}", out, f"--report={data}"],
      "heldout": [f"--input={data}", out, f"--heldout={tmp_path}", f"--report={tmp_path}/r.json"],
      "output": [f"--input={data}", out, f"--report={tmp_path}/out.jsonl"],
    },
  )
  for name, (code, _, err) in results.items():
    assert code != 0, name
    said = "are both" if name == "output" else f"is --{name}, or lies in it"
    assert said in err, (name, err)
  assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(rows)
