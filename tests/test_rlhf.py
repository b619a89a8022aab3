"""Studies of chains: seeds, tables, and small ones as people run them."""

import math

import pytest

from experiments import rlhf_study
from experiments.rlhf_study import as_text, seeds_of, summaries, tabulate
from rm_jax.errors import InputError, InUseError
from rm_jax.storage.files import read_lines, write_json
from rm_jax.train.loop import NotFiniteError
from tests.processes import command
from tests.rlhf.small import config_of

SETTINGS = {"ppo/none": {}, "ppo/KL": {}, "other": {}}


def summary(truth, *, fell=False, stop=None):
  return {
    "kl": {"value": 2.0},
    "stop": stop,
    "points": [{"d": 0.0, "proxy": 0.0, "truth": 1.0}, {"d": 1.5, "proxy": 2.0, "truth": truth}],
    "proxy": {"start": {"value": 0.0}, "end": {"value": 2.0}},
    "truth": {
      "start": {"value": 1.0},
      "peak": {"value": 3.0},
      "end": {"value": truth},
      "fall": {"value": 3.0 - truth, "falls": fell},
      "fit": {"alpha": {"value": 2 * truth}, "beta": {"value": 0.25}},
    },
  }


def write(workdir, name, seed, *args, **options):
  folder = workdir / name / str(seed)
  folder.mkdir(parents=True)
  write_json(folder / "summary.json", summary(*args, **options))


def test_seeds_are_those_of_the_setting_then_of_its_group_then_three():
  counts = seeds_of(SETTINGS, {"ppo": 2, "ppo/KL": 5}, 0)
  assert counts == {"ppo/none": 2, "ppo/KL": 5, "other": 3}
  assert set(seeds_of(SETTINGS, {"ppo": 2}, 7).values()) == {7}
  for wrong in ({"pop": 2}, {"ppo": 0}, {"ppo": "2"}):
    with pytest.raises(InputError, match="SEEDS has"):
      seeds_of(SETTINGS, wrong, 0)


def test_the_table_is_over_seeds_and_differences_are_seed_by_seed(tmp_path):
  for seed, truth in enumerate((1.0, 2.0, 3.0)):
    write(tmp_path, "ppo/none", seed, truth, fell=seed < 2)
  stop = {"turn": 20, "saved": {"value": 0.5}}
  write(tmp_path, "ppo/KL", 0, 2.5)
  write(tmp_path, "ppo/KL", 2, 3.5, stop=stop)
  (tmp_path / "other" / "0").mkdir(parents=True)  # has not ended
  found = summaries(tmp_path, SETTINGS)
  assert {name: list(runs) for name, runs in found.items()} == {
    "ppo/none": [0, 1, 2],
    "ppo/KL": [0, 2],
  }
  table = tabulate(found, SETTINGS)
  none, kl = (table[name]["truth, end"] for name in ("ppo/none", "ppo/KL"))
  half = 4.302653 / math.sqrt(3)  # Student's t of 2 degrees of freedom, deviation 1
  assert none["mean"] == 2
  assert none["interval"] == pytest.approx([2 - half, 2 + half], rel=1e-6)
  assert kl["to_first"]["mean"] == pytest.approx((1.5 + 0.5) / 2)
  assert table["ppo/none"]["runs"]["fell"] == 2
  assert table["ppo/KL"]["runs"]["stop"] == {2: {"turn": 20, "saved": 0.5}}
  assert table["ppo/none"]["Gao's α"]["mean"] == 4
  text = as_text(table)
  assert "| none | 3 |" in text
  assert "2 of 3" in text
  assert "2: 20 (+0.500)" in text
  rlhf_study.write_table(tmp_path, SETTINGS)
  assert (tmp_path / "table.png").stat().st_size > 3000


def test_a_setting_that_changes_nothing_has_the_run_of_the_other(tmp_path):
  write(tmp_path, "ppo/none", 0, 2.0)
  (tmp_path / "other" / "0").mkdir(parents=True)
  write_json(tmp_path / "other" / "0" / "same_as.json", {"run": "ppo/none/0"})
  found = summaries(tmp_path, SETTINGS)
  assert found["other"] == found["ppo/none"]


def test_a_setting_of_an_unknown_field_is_refused(tmp_path):
  base = config_of(tmp_path)
  for changes in ({"rl.speed": 1}, {"rl.clip": -1.0}):
    with pytest.raises(InputError, match=r"sweep\(\), a: "):
      rlhf_study.config_of(base, "a", changes, 0)


def test_a_run_that_is_not_finite_does_not_stop_the_others(tmp_path, monkeypatch):
  def run(config, folder, *, shared):
    if config.rl.clip == 0.5:
      raise NotFiniteError("no step was finite")
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", summary(2.0))

  monkeypatch.setattr(rlhf_study.chain, "run", run)
  settings = {"a": {"rl.clip": 0.5}, "b": {}, "c": {}}
  with pytest.raises(InputError, match=r"without 1 of 3 runs:\n  no step was finite"):
    rlhf_study.run(config_of(tmp_path), tmp_path, settings, settings, dict.fromkeys(settings, 1))
  assert list(summaries(tmp_path, settings)) == ["b", "c"]  # c is b's run


def test_processes_share_a_study(tmp_path, monkeypatch):
  tried, busy = [], {"a/0": 1, "b/0": 10}  # how often another process is at work on them

  def run(config, folder, *, shared):
    name = str(folder.relative_to(tmp_path))
    tried.append(name)
    if busy.get(name):
      busy[name] -= 1
      raise InUseError(f"{name} is in use by process 1")
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", summary(2.0))

  monkeypatch.setattr(rlhf_study.chain, "run", run)
  settings = {"a": {}, "b": {"rl.clip": 0.5}, "c": {"rl.clip": 0.25}}
  with pytest.raises(InputError, match=r"without 1 of 3 runs:\n  b/0 is in use by process 1"):
    rlhf_study.run(config_of(tmp_path), tmp_path, settings, settings, dict.fromkeys(settings, 1))
  assert tried == ["a/0", "b/0", "c/0", "a/0", "b/0"]
  assert list(summaries(tmp_path, settings)) == ["a", "c"]


def test_pointers_follow_the_study_as_it_changes(tmp_path, monkeypatch):
  ran = []

  def run(config, folder, *, shared):
    ran.append(str(folder.relative_to(tmp_path)))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", summary(config.rl.clip))

  monkeypatch.setattr(rlhf_study.chain, "run", run)
  base, settings = config_of(tmp_path), {"ppo/none": {}, "guards/none": {}}
  counts = dict.fromkeys(settings, 1)
  rlhf_study.run(base, tmp_path, settings, {"guards/none": {}}, counts)
  assert ran == ["ppo/none/0"]  # the run is the first setting's, whichever is chosen
  assert list(summaries(tmp_path, settings)) == ["ppo/none", "guards/none"]
  settings["guards/none"] = {"rl.clip": 0.5}
  rlhf_study.run(base, tmp_path, settings, {"ppo/none": {}}, counts)
  assert list(summaries(tmp_path, settings)) == ["ppo/none"]  # the other has not run as it is now
  rlhf_study.run(base, tmp_path, settings, settings, counts)
  assert summaries(tmp_path, settings)["guards/none"][0]["truth"]["end"]["value"] == 0.5


@pytest.mark.slow
def test_a_small_study_shares_its_stages(tmp_path):
  settings = {
    "ppo/none": {"method": "grpo", "rl.turns": 1},
    "guards/none": {"method": "grpo", "rl.turns": 1},
    "guards/ensemble": {
      "method": "grpo",
      "rl.turns": 1,
      "reward.members": 2,
      "shaping": "lower(deviations=1.0)",
    },
  }
  counts = dict.fromkeys(settings, 1)
  base = config_of(tmp_path)
  rlhf_study.run(base, tmp_path / "study", settings, settings, counts)
  shared = tmp_path / "study" / "shared"
  assert len(list(shared.glob("sft-*"))) == len(list(shared.glob("preferences-*"))) == 1
  # The ensemble's first member is the other settings' reward model.
  assert sorted(path.name[0] for path in (shared / "reward").iterdir()) == ["0", "1"]
  folder = tmp_path / "study" / "guards" / "ensemble" / "0"
  line = read_lines(folder / "metrics.jsonl")[0]
  assert line["disagreement"] > 0
  assert line["reward"] < line["proxy"]
  text = (tmp_path / "study" / "table.md").read_text()
  assert text.count("| none | 1 |") == 2


@pytest.mark.slow
def test_the_command_runs_a_chain_and_a_study(tmp_path):
  small = tmp_path / "small_chain.py"
  small.write_text(
    "import pathlib\n"
    "from tests.rlhf.small import config_of\n"
    f"def get_config(): return config_of(pathlib.Path({str(tmp_path)!r}))\n"
    "def sweep(): return {'a/x': {'rl.turns': 1}, 'a/y': {'rl.turns': 1, 'method': 'best_of_n'}}\n"
  )
  code, out, err = command(
    "rlhf", f"--config={small}", f"--workdir={tmp_path / 'one'}", "--config.rl.turns=1"
  ).finish()
  assert code == 0, err
  assert "truth" in out
  code, out, err = command(
    "rlhf", f"--config={small}", f"--workdir={tmp_path / 'all'}", "--seeds=1"
  ).finish()
  assert code == 0, err
  assert "| y | 1 |" in out
  code, _, err = command(
    "rlhf", f"--config={small}", f"--workdir={tmp_path / 'one'}", "--config.seed=1"
  ).finish()
  assert code == 1
  assert "seed: 0 there, 1 now" in err
