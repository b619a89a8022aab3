"""The command experiments.audit in its own process, on the workdir of a run."""

import json

import pytest

from rm_jax.api import RewardModel
from rm_jax.storage.files import read_lines
from tests.processes import attempts, command
from tests.train.runs import run, small_config, write_pairs

pytestmark = pytest.mark.slow  # processes, or whole runs


@pytest.fixture(scope="module")
def workdir(llama_folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("audit") / "run"
  config = small_config(llama_folder, steps=10)
  config.data.heldout = str(write_pairs(llama_folder / "held24.jsonl", 24, seed=1))
  run(config, path, devices=1)
  return path


def audit(tmp_path, *flags):
  return command("audit", f"--output={tmp_path / 'out'}", "--edits=8", *flags).finish()


def test_a_page_of_a_run(workdir, tmp_path):
  rows = read_lines(write_pairs(tmp_path / "held.jsonl", 30, seed=3))
  for row in rows[::4]:  # without errors in the labels no temperature fits
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
  data = tmp_path / "held.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  cases = tmp_path / "Natural.json"
  row = {"input": "a?", "output_1": "aaa", "output_2": "bbb", "label": 1}
  cases.write_text(json.dumps([row, row | {"input": "b?", "label": 2}]))
  common = (
    f"--model={workdir}",
    f"--data={data}",
    f"--cache={tmp_path / 'scores'}",
    "--calibrate",
    f"--benchmark=llmbar={cases}",
  )
  code, out, err = audit(tmp_path, *common, f"--against={workdir}")
  assert code == 0, err
  folder = tmp_path / "out"
  report = json.loads((folder / "report.json").read_text())
  assert report["agreement"]["n"] == 30
  assert report["about"]["conversations"] == 30
  (against,) = report["compare"].values()
  assert against["difference"] == 0.0
  assert against["alike"]["value"] == 1.0
  # What the run held out becomes the reference, and is kept with the model.
  assert report["drift"]["reference"] == "what the run held out"
  assert report["drift"]["known"] is False
  assert (workdir / "model" / "reference.npz").exists()
  kept = json.loads((workdir / "model" / "calibration.json").read_text())
  assert kept["pairs"]["temperature"] == report["calibration"]["pairs"]["temperature"]
  # Both items have the same two texts and opposite labels, so one of them is right.
  assert report["benchmarks"]["llmbar"]["subsets"]["Natural"]["accuracy"] == 0.5
  assert (folder / "report.html").stat().st_size > 50_000
  counts = report["scorer"]
  assert counts["scored"] == counts["distinct"] - counts["hits"] > 60
  assert f"{counts['scored']} scored, {counts['hits']} kept from before" in out

  # A second audit finds all scores in the cache, and its report is the same.
  code, out, err = audit(tmp_path, *common)
  assert code == 0, err
  again = json.loads((folder / "report.json").read_text())
  assert again["scorer"]["scored"] == 0
  assert " 0 scored" in out
  del report["compare"], again["compare"], report["scorer"], again["scorer"]
  assert again == report


def test_a_chain_is_fitted_kept_and_used_to_score(workdir, tmp_path):
  data = write_pairs(tmp_path / "held.jsonl", 30, seed=3)
  shape = "--shape=decorrelate, normalise, clip(low=-1, high=1), filters(max_characters=9)"
  model, cache = f"--model={workdir}", f"--cache={tmp_path / 'scores'}"
  flags = (model, f"--data={data}", cache)
  kept = workdir / "model" / "shaping.json"
  # The scores of so small a run get no comparison wrong: a chain without a temperature is kept.
  code, out, err = audit(tmp_path, *flags, shape, "--calibrate")
  assert "calibrate: nothing is kept, for pairs cannot be calibrated: difference_N is" in err
  assert "the chain of shaping is kept" in err
  assert f"{kept}: decorrelate(slope=" in out
  report = json.loads((tmp_path / "out" / "report.json").read_text())["shaping"]
  chain = json.loads(kept.read_text())
  assert chain["stages"] == report["chain"]["stages"]
  assert chain["fitted"]["data"] == str(data)
  assert (chain["fitted"]["conversations"], report["conversations"]) == (15, 15)
  loaded = RewardModel.from_pretrained(workdir)
  assert chain["fitted"]["weights"] == loaded.weights

  rows = [{"prompt": "a ", "response": "aab"}, {"prompt": "a ", "response": "ab" * 9}]
  source, output = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  flags = (model, f"--input={source}", f"--output={output}")
  code, out, err = command("score", *flags, "--shaped").finish()
  assert code == 0, err
  assert f"shaped by {loaded.shaping.digest}: decorrelate(slope=" in out
  explained = loaded.explain(rows)
  assert [one["reasons"] for one in explained] == [[], ["long"]]
  for found, row, one in zip(read_lines(output), rows, explained, strict=True):
    assert found.pop("reward") == pytest.approx(one["shaped"], abs=1e-6)
    assert found.pop("raw_reward") == pytest.approx(one["raw"], abs=1e-6)
    assert found == {**row, "reasons": one["reasons"], "shaping": loaded.shaping.digest}
  code, _, err = command("score", *flags, "--shaped", "--shaping=clip(low=0, high=1e-9)").finish()
  assert code == 0, err
  assert all(0 <= row["reward"] <= 1e-9 for row in read_lines(output))
  # Scored again without the chain, no row says that its reward is shaped.
  again = tmp_path / "again.jsonl"
  code, _, err = command("score", model, f"--input={output}", f"--output={again}").finish()
  assert code == 0, err
  for found, row, one in zip(read_lines(again), rows, explained, strict=True):
    assert found == {**row, "reward": pytest.approx(one["raw"], abs=1e-6)}
  kept.unlink()
  cases = {
    "has no chain of shaping: expected shaping.json in it, which experiments": ["--shaped"],
    "--shaping=tanh is for --shaped, which is not set": ["--shaping=tanh"],
  }
  cases = {expected: [*flags, *more] for expected, more in cases.items()}
  for expected, (code, _, err) in attempts("score", cases).items():
    assert code == 1
    assert expected in err


def test_flags_have_their_old_names_too(workdir, tmp_path):
  data = write_pairs(tmp_path / "held.jsonl", 12, seed=3)
  flags = (f"--model={workdir}", f"--data={data}", "--cache=none", "--sample=3")
  code, _, err = command("audit", *flags, f"--out={tmp_path / 'page'}").finish()
  assert code == 0, err
  report = json.loads((tmp_path / "page" / "report.json").read_text())
  assert report["robustness"]["pairs"] == report["controls"]["sample"]["pairs"] == 3


def test_a_run_of_before_data_columns_audits_a_file_of_other_names(workdir, tmp_path):
  path = workdir / "config.json"
  config = json.loads(path.read_text())
  del config["data"]["columns"]
  path.write_text(json.dumps(config))
  pairs = read_lines(write_pairs(tmp_path / "held.jsonl", 12, seed=3))
  rows = [f"{row['prompt']},{row['chosen']},{row['rejected']}\n" for row in pairs]
  data = tmp_path / "held.csv"
  data.write_text("q,better,worse\n" + "".join(rows))
  flags = (f"--model={workdir}", f"--data={data}", "--cache=none")
  code, out, err = audit(tmp_path, *flags, "--columns=prompt=q,chosen=better,rejected=worse")
  assert code == 0, err
  assert "12 of 12 rows kept" in out


def test_what_a_run_held_out(workdir, tmp_path):
  code, out, err = audit(tmp_path, f"--model={workdir}", "--data=heldout", "--cache=none")
  assert code == 0, err
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  of_run = json.loads((workdir / "summary.json").read_text())
  assert report["about"]["examples"] == of_run["data"]["heldout"] > 0
  assert f"dropped {of_run['data']['train']}: trained_on" in out
  want = of_run["heldout"]["accuracy"]
  assert report["agreement"]["accuracy"] == pytest.approx(want)

  # --reference=heldout: other data are compared with what the run held out.
  data = write_pairs(tmp_path / "new.jsonl", 30, seed=3)
  flags = (f"--model={workdir}", "--reference=heldout", "--cache=none")
  code, out, err = audit(tmp_path, *flags, f"--data={data}")
  assert code == 0, err
  found = json.loads((tmp_path / "out" / "report.json").read_text())["drift"]
  assert found["reference"] == "what the run held out"
  assert found["n"] == [report["about"]["conversations"], 30]
  code, _, err = audit(tmp_path, *flags, "--data=heldout")
  assert code == 1
  assert "--reference=heldout is --data itself" in err


@pytest.mark.slow
def test_what_fails_does_not_cost_the_page(workdir, tmp_path):
  rows = read_lines(write_pairs(tmp_path / "tied.jsonl", 12, seed=3))
  data = tmp_path / "tied.jsonl"
  data.write_text("".join(json.dumps(row | {"tie": True}) + "\n" for row in rows))
  row = {
    "original_question": "q",
    "modified_question": "q",
    "modified_process": ["long " * 2000],
    "error_steps": [],
    "classification": "circular",
    "idx": "a",
  }
  (tmp_path / "prm.jsonl").write_text(json.dumps(row) + "\n")
  flags = (f"--model={workdir}", f"--data={data}", "--cache=none")
  code, _, err = audit(tmp_path, *flags, f"--benchmark=prmbench={tmp_path / 'prm.jsonl'}")
  assert code == 1
  assert f"{tmp_path / 'out'}/report.html is written, without what failed: prmbench: " in err
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  assert report["agreement"] == {"why": "people decided none of 12 comparisons"}
  assert "steps_too_long" in report["failed"]["prmbench"]
  shown = (tmp_path / "out" / "report.html").read_text()
  assert "prmbench could not be measured" in shown
  # A missing file is an error before anything is scored.
  code, _, err = audit(tmp_path, *flags, "--benchmark=llmbar=missing")
  assert code == 1
  assert "missing: no such file or folder" in err
  assert "Traceback" not in err


def test_mistakes_are_one_message(workdir, tmp_path):
  data = write_pairs(tmp_path / "held.jsonl", 12, seed=3)
  code, _, err = audit(tmp_path, f"--model={workdir}", f"--data={data}", "--benchmark=mine=x")
  assert code == 1
  assert "--benchmark=mine=x: expected NAME=PATH, NAME of rewardbench" in err
  assert "Traceback" not in err
  code, _, err = audit(tmp_path, f"--model={workdir}", "--data=heldout", "--columns=prompt=q")
  assert code == 1
  assert "--columns=prompt=q and --data=heldout" in err
  RewardModel.from_pretrained(str(workdir)).save_pretrained(tmp_path / "saved")
  code, _, err = audit(tmp_path, f"--model={tmp_path / 'saved'}", "--data=heldout")
  assert code == 1
  assert "--data=heldout wants a run's workdir" in err


def test_mistakes_stop_before_anything_is_scored(workdir, tmp_path):
  data = write_pairs(tmp_path / "held.jsonl", 12, seed=3)
  rated = tmp_path / "rated.jsonl"
  ratings = {"helpfulness": 1.0}
  rows = [{"prompt": f"{i} ", "response": "ab", "attributes": ratings} for i in range(4)]
  rated.write_text("".join(json.dumps(row) + "\n" for row in rows))
  model = f"--model={workdir}"
  cases = {
    "--calibrate: no/body is no folder": ["--model=no/body", f"--data={data}", "--calibrate"],
    "which an audit does not read": [model, f"--data={rated}"],
    "missing: no such file or folder": [model, f"--data={data}", "--against=missing"],
    "--shape has the stage 'squash'; expected": [model, f"--data={data}", "--shape=squash"],
  }
  cache = f"--cache={tmp_path / 'scores'}"
  flags = {name: [*some, cache, f"--output={tmp_path / 'out'}"] for name, some in cases.items()}
  for expected, (code, _, err) in attempts("audit", flags).items():
    assert code == 1, expected
    assert expected in err, (expected, err)
    assert "Traceback" not in err, (expected, err)
  assert not (tmp_path / "scores").exists()
