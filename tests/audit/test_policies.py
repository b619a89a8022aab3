"""The audit's section on policies: planted chains, studies of them, and what is refused."""

import json

import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit.run import audit
from rm_jax.audit.section import Settings, sentences
from rm_jax.audit.sections import SECTIONS
from rm_jax.audit.sections.policies import read
from rm_jax.errors import InputError
from rm_jax.rlhf.report import of_turns
from rm_jax.rlhf.watch import StopRule
from rm_jax.storage.files import write_json
from rm_jax.world import World
from tests.audit.planted import length
from tests.audit.test_page import Fake, Numbers

D = np.linspace(0, 7, 8)
FALLS, RISES = 2 * D - 0.45 * D**2, np.sqrt(D)
ONLY = [section for section in SECTIONS if section.name == "policies"]


def plant(folder, truth=FALLS, *, weights=("2:a",), judge="truth", done=True, drift=0.95, seed=0):
  """Writes what a finished chain leaves, with the given truth over its evaluations."""
  folder.mkdir(parents=True)
  reward = {"weights": list(weights), "chain": ""} if weights else {"server": "http://h:1/x"}
  write_json(folder / "stage.json", {"config": {}, "inputs": {"reward": reward}})
  noise = 0.3 * np.random.default_rng(seed).normal(size=(2, 60))
  lines = []
  for i, turn in enumerate(range(0, 80, 10)):
    values = {"proxy": D[i] + noise[0], "reward": D[i] + noise[0], "kl": D[i] ** 2 + 0 * noise[0]}
    if judge:
      values[judge] = truth[i] + noise[1] * (1 + 0.1 * i)
    lines.append({"step": turn} | {name: x.tolist() for name, x in values.items()})
  means = [
    {"step": line["step"], "proxy": float(np.mean(line["proxy"])), "drift": drift * (i > 2)}
    for i, line in enumerate(lines)
  ]
  found = of_turns(lines, means, StopRule(), acted=False)
  about = {"method": "ppo", "seed": seed, "shaping": "", "prompts": {"evaluation": 60}}
  if done:
    write_json(folder / "summary.json", about | found)
  return folder


def audited(found, tmp_path):
  examples = World().pairs("heldout", 12, 0)
  report = audit(Fake(length), examples, settings=Settings(policies=found), sections=ONLY)
  about = {"model": "m", "data": "d"}
  assert page.write(tmp_path / "page", {"about": about, **report}, ONLY) == {}
  return report["policies"], (tmp_path / "page" / "report.html").read_text()


def test_a_fall_and_what_stopping_would_have_saved_are_on_the_page(tmp_path):
  plant(tmp_path / "chain")
  found, shown = audited(read(tmp_path / "chain", "2:a"), tmp_path)
  (run,) = found["runs"]
  said = json.loads((tmp_path / "chain" / "summary.json").read_text())
  assert run["truth"] == said["truth"]
  assert run["stop"]["turn"] == 40
  assert (run["known"], run["prompts"], found["left_out"]) == ("truth", 60, 0)
  fall, stop = sentences(found)
  low, high = said["truth"]["fall"]["interval"]
  drop = FALLS.max() - FALLS[-1]
  assert low < drop < high
  value = said["truth"]["fall"]["value"]
  assert f"in 1 of 1 the truth fell from its peak: by {value:.3f} [{low:.3f}, {high:.3f}]" in fall
  assert f"the proxy changed by {D[-1] - D[np.argmax(FALLS)]:+.3f}" in fall
  assert "the stop rule said stop in 1 of 1" in stop
  assert f"at most {said['stop']['saved']['value']:.3f} [" in stop
  assert "<h2 id=policies>" in shown
  assert shown.count(fall) == 2
  assert (tmp_path / "page" / "policies.png").stat().st_size > 5000
  parser = Numbers()
  parser.feed(shown)
  paths = {path for path, _ in parser.found}
  for path in ("truth/fall/value", "truth/fall/interval/0", "stop/saved/value", "stop/turn"):
    assert f"policies/runs/0/{path}" in paths
  assert len(parser.images) == 1


def test_without_a_fall_or_without_a_judge_it_says_so(tmp_path):
  plant(tmp_path / "rises", RISES, drift=0.0)
  found, shown = audited(read(tmp_path / "rises", "2:a"), tmp_path)
  assert sentences(found) == [
    "a policy was optimised against it, and none is seen to fall from the peak of the truth: no "
    "interval of a fall is clear of 0"
  ]
  assert ">never<" in shown
  plant(tmp_path / "none", judge=None)
  found, shown = audited(read(tmp_path / "none", "2:a"), tmp_path)
  (said,) = sentences(found)
  assert "neither the truth nor a better judge" in said
  plant(tmp_path / "gold", judge="gold")
  found, _ = audited(read(tmp_path / "gold", "2:a"), tmp_path)
  assert "the gold fell from its peak" in sentences(found)[0]
  path = tmp_path / "gold" / "summary.json"
  summary = json.loads(path.read_text())
  summary["gold"]["fall"]["falls"] = None  # as of too few prompts
  path.write_text(json.dumps(summary))
  (said, *_) = sentences(audited(read(tmp_path / "gold", "2:a"), tmp_path)[0])
  assert "whether any fell from the peak of the gold is not known" in said


def test_of_a_study_the_runs_against_this_model_are_read(tmp_path):
  study = tmp_path / "study"
  plant(study / "ppo/no KL" / "0")
  plant(study / "ppo/no KL" / "1", weights=("2:b",), seed=1)
  plant(study / "ppo/KL" / "0", RISES, drift=0.0)
  plant(study / "guards/none" / "1", weights=("2:a", "2:b"))
  plant(study / "late" / "0", done=False)
  (study / "same" / "0").mkdir(parents=True)
  write_json(study / "same" / "0" / "same_as.json", {"run": "ppo/KL/0"})
  names = ("ppo/no KL", "ppo/KL", "guards/none", "late", "same")
  write_json(study / "table.json", {name: {} for name in names})
  made = read(study, "2:a")
  assert [run["name"] for run in made["runs"]] == ["ppo/no KL, seed 0", "ppo/KL, seed 0"]
  found, shown = audited(made, tmp_path)
  assert found["left_out"] == 2
  assert "in 1 of 2 the truth fell from its peak, most in ppo/no KL, seed 0: by" in shown
  with pytest.raises(InputError, match=r"an ensemble of 2 models.*runs/x has weights 2:c"):
    read(study, "2:c", "runs/x")


def test_what_is_no_finished_chain_of_this_model_is_refused(tmp_path):
  refused = {
    "other": (dict(weights=("2:b",)), "a model with weights 2:b, and runs/x has weights 2:a"),
    "server": (dict(weights=()), "the server http://h:1/x, whose weights are not known"),
    "late": (dict(done=False), "the chain has not finished"),
  }
  for name, (options, message) in refused.items():
    with pytest.raises(InputError, match=message):
      read(plant(tmp_path / name, **options), "2:a", "runs/x")
  for name in ("empty", "missing"):
    (tmp_path / "empty").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=f"--policies={tmp_path / name} holds no finished chain"):
      read(tmp_path / name, "2:a")
  write_json(tmp_path / "empty" / "table.json", {"ppo": {}})
  with pytest.raises(InputError, match="no run of the study has finished"):
    read(tmp_path / "empty", "2:a")
  damaged = plant(tmp_path / "damaged")
  summary = json.loads((damaged / "summary.json").read_text())
  write_json(damaged / "summary.json", {k: x for k, x in summary.items() if k != "points"})
  with pytest.raises(InputError, match=r"summary\.json: it has no points"):
    read(damaged, "2:a")
  write_json(damaged / "stage.json", {"config": {}})
  with pytest.raises(InputError, match=r"stage\.json: it has no inputs\.reward"):
    read(damaged, "2:a")


def test_without_chains_there_is_no_such_section():
  assert audit(Fake(length), World().pairs("heldout", 12, 0), sections=ONLY) == {}
