"""A sweep runs settings by seeds, makes a table with intervals, and refuses wrong settings."""

import json
import math
import types

import pytest

from configs.base import get_config
from experiments import sweep
from experiments.sweep import apply, check_done
from rm_jax.data.report import Report
from rm_jax.errors import InputError, InUseError
from rm_jax.storage.files import write_json
from rm_jax.train.datasets import read_both
from rm_jax.train.loop import NotFiniteError
from rm_jax.workdir.folder import plain, resolve
from tests.processes import command
from tests.test_commands import train_flags
from tests.train.runs import write_pairs

STUDY = """
from configs import base


def get_config():
  return base.get_config()


def sweep():
  return {"bt": {"loss.pair": "logistic"}, "hinge": {"loss.pair": "hinge(margin=0.5)"}}
"""


def summaries(**figures):
  """{setting: [summary of each seed]}, from accuracies."""
  return {
    name.replace("__", "/"): [{"heldout": {"accuracy": value}} for value in values]
    for name, values in figures.items()
  }


def test_table_is_students():
  table = sweep.tabulate(summaries(a=[1.0, 2.0, 3.0], b=[2.0, 3.0, 7.0]), ["accuracy"])
  a, b = table[""]["accuracy"]["a"], table[""]["accuracy"]["b"]
  half = 4.302653 * 1.0 / math.sqrt(3)  # Student's t at 97.5 % with 2 degrees of freedom
  assert a["mean"] == 2
  assert a["interval"] == pytest.approx([2 - half, 2 + half], rel=1e-6)
  # Seed by seed: 1, 1, 4; mean 2, deviation √3.
  assert b["to_first"]["difference"] == 2
  half = 4.302653 * math.sqrt(3) / math.sqrt(3)
  assert b["to_first"]["interval"] == pytest.approx([2 - half, 2 + half], rel=1e-6)


def test_each_group_has_its_own_first_and_its_own_measures():
  runs = summaries(x__a=[1.0, 2.0], x__b=[2.0, 3.0], y__c=[5.0, 6.0], y__d=[6.0, 7.0])
  for summary in [*runs["y/c"], *runs["y/d"]]:
    summary["heldout"]["kendall"] = {"value": 0.25}
  table = sweep.tabulate(runs, ["accuracy", "kendall.value"])
  assert {group: list(measures) for group, measures in table.items()} == {
    "x": ["accuracy"],
    "y": ["accuracy", "kendall.value"],
  }
  assert "to_first" not in table["y"]["accuracy"]["y/c"]
  assert table["y"]["accuracy"]["y/d"]["to_first"]["difference"] == 1
  text = sweep.as_text(table, 2)
  assert "**y**" in text
  assert "| d | 6.5000" in text
  del runs["y/d"][0]["heldout"]["kendall"]
  with pytest.raises(ValueError, match=r"'kendall\.value' is not in all reports of y/d"):
    sweep.tabulate(runs, ["accuracy", "kendall.value"])
  with pytest.raises(ValueError, match="'auroc' is a number in no report; they have accuracy"):
    sweep.tabulate(runs, ["auroc"])


def test_figures_are_found_by_name():
  summary = {"heldout": {"accuracy": 0.5, "kendall": {"value": 0.25}}}
  assert sweep.figure_of(summary, "kendall.value") == 0.25
  assert sweep.figure_of(summary, "auroc") is None
  assert sweep.figure_of(summary, "accuracy.value") is None
  assert sweep.figure_of(summary, "kendall") == 0.25
  assert sweep.figure_of(summary | {"train": {"wall_seconds": 3}}, "train.wall_seconds") == 3.0
  assert sweep.figure_of({"heldout": {"why": "no", "interval": [0, 1], "x": True}}, "why") is None
  assert sweep.figure_of({"heldout": {"interval": [0, 1]}}, "interval") is None
  assert sweep.figure_of({"heldout": {"x": True}}, "x") is None
  with pytest.raises(InputError, match=r"'tau' is a number in .* accuracy, kendall\.value\."):
    sweep.find({"a": [summary]}, "tau")


def test_one_seed_has_the_intervals_of_its_own_reports(tmp_path):
  runs = {
    name: [
      {
        "heldout": {"accuracy": value, "interval": [value - 0.1, value + 0.1]},
        "train": {"wall_seconds": 60.0},
      }
    ]
    for name, value in (("x/a", 0.5), ("x/b", 0.75))
  }
  table = sweep.tabulate(runs, ["accuracy", "train.wall_seconds"])
  assert table["x"]["accuracy"]["x/b"]["interval"] == [0.65, 0.85]
  assert table["x"]["accuracy"]["x/b"]["to_first"] == {"difference": 0.25, "interval": None}
  assert table["x"]["train.wall_seconds"]["x/a"]["interval"] is None
  text = sweep.as_text(table, 1)
  assert "| b | 0.7500 [0.6500, 0.8500] | +0.2500 | 60.0000 | +0.0000 |" in text
  sweep.draw(tmp_path / "table.png", table)
  assert (tmp_path / "table.png").stat().st_size > 1000


def test_a_study_may_hold_out_other_conversations_with_every_seed(tmp_path):
  config = get_config()
  assert sweep.apply(config, {}, 2).data.split_seed == 0
  assert sweep.apply(config, {}, 2, split_by_seed=True).data.split_seed == -1
  path = tmp_path / "study.py"
  path.write_text("SPLIT_BY_SEED = True\ndef sweep(): return {'a': {}}\n")
  assert sweep.study_of(str(path)).split_by_seed
  path.write_text(path.read_text() + "def pools(): return {'p': ('a', 'x')}\n")
  with pytest.raises(InputError, match="SPLIT_BY_SEED is set and there are pools"):
    sweep.study_of(str(path))


def test_settings_are_checked_before_the_first_run(tmp_path):
  from configs import base

  path = tmp_path / "none.py"
  path.write_text("x = 1\n")
  with pytest.raises(ValueError, match=r"has no sweep\(\)"):
    sweep.study_of(str(path))
  with pytest.raises(ValueError, match=r"loss\.piar"):
    sweep.apply(base.get_config(), {"loss.piar": "hinge"}, 0)
  changed = sweep.apply(base.get_config(), {"loss.pair": "hinge"}, 3)
  assert (changed.loss.pair, changed.seed) == ("hinge", 3)


def test_a_study_whose_config_takes_an_argument(tmp_path):
  path = tmp_path / "study.py"
  path.write_text("def sweep(): return {'a': {}}\n")
  assert sweep.study_of(f"{path}:/some/data").settings == {"a": {}}


def test_pools_are_of_settings_that_there_are(tmp_path):
  path = tmp_path / "study.py"
  path.write_text(
    STUDY + '\n\ndef pools():\n  return {"all": ("bt", "x"), "none": ("lasso", "x")}\n'
  )
  with pytest.raises(ValueError, match="pool 'none' is of 'lasso'"):
    sweep.study_of(str(path))


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("def sweep(): return [1]", r"sweep\(\) returned \[1\]; expected \{name: "),
    ("def sweep(): return {'a': 1}", r"sweep\(\) returned \{'a': 1\}; expected \{name: "),
    ("def sweep(): return {1: {}}", r"sweep\(\) returned \{1: \{\}\}; expected \{name: "),
    ("def sweep(): return {}", r"its sweep\(\) is empty"),
    ("def sweep(): return {'a': {}}\ndef pools(): return ['a']", r"pools\(\) returned \['a'\]"),
    ("def sweep(): return {'a': {}}\ndef pools(): return {'p': 'ab'}", r"pools\(\) returned \{'p'"),
    (
      "def sweep(): return {'a': {}}\nMEASURES = 'accuracy'",
      "MEASURES is 'accuracy'; expected a t",
    ),
  ],
)
def test_a_study_of_another_form_is_refused(body, message, tmp_path):
  path = tmp_path / "study.py"
  path.write_text(body + "\n")
  with pytest.raises(InputError, match=message):
    sweep.study_of(str(path))


def planned(
  monkeypatch,
  tmp_path,
  settings,
  *,
  seeds=3,
  measures=None,
  report=None,
  declared=(),
  only=None,
  fails=(),
  busy=None,
):
  """Runs the command's main on settings; the runs are not made, and their folders returned."""
  study = sweep.Study(settings, declared, {}, False)
  monkeypatch.setattr(sweep, "study_of", lambda path: study)
  monkeypatch.setattr(sweep.config_flags, "get_config_filename", lambda flag: "study.py")
  monkeypatch.setattr(sweep.flags, "FLAGS", {"config": None})
  given = dict(
    CONFIG=get_config(), WORKDIR=str(tmp_path), SEEDS=seeds, MEASURES=measures, ONLY=only, MESH=""
  )
  for name, value in given.items():
    monkeypatch.setattr(sweep, name, types.SimpleNamespace(value=value))
  made, shared = [], set()

  def train(config, folder, *, kept):
    made.append(folder)
    shared.add(kept)
    if any(name in str(folder) for name in fails):
      raise NotFiniteError("not finite")
    if busy and busy.get(name := str(folder.relative_to(tmp_path)), 0) > 0:
      busy[name] -= 1
      raise InUseError(f"{name} is in use")
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", {"heldout": report})
    return {"heldout": report}

  monkeypatch.setattr(sweep.loop, "train", train)
  said = ""
  try:
    sweep.main()
  except InputError as error:
    said = str(error)
  assert len(shared) <= 1  # the frozen layers' output is one for all runs
  return made, said


def test_a_wrong_value_of_any_setting_stops_before_the_first_run(monkeypatch, tmp_path):
  settings = {"good": {}, "bad": {"optimizer.b1": 1.5}}
  made, said = planned(monkeypatch, tmp_path, settings)
  assert said.startswith("sweep(), bad: --config.optimizer.b1=1.5: expected")
  assert not made


def test_a_measure_that_no_report_has_stops_after_the_first_seed(monkeypatch, tmp_path):
  settings = {"a": {}, "b": {"loss.l2": 0.5}}
  report = {"accuracy": 0.5, "interval": [0.25, 0.75]}
  made, said = planned(monkeypatch, tmp_path, settings, measures=["interval"], report=report)
  assert "'interval' is a number in no report; they have accuracy." in said
  assert made == [tmp_path / "a" / "0", tmp_path / "b" / "0"]


def test_a_declared_measure_that_no_report_has_is_left_out(monkeypatch, tmp_path):
  settings = {"a": {}, "b": {"loss.l2": 0.5}}
  report = {"accuracy": 0.5, "interval": [0.25, 0.75]}
  declared = ("accuracy", "sources.harmless.accuracy")
  _, said = planned(monkeypatch, tmp_path, settings, declared=declared, report=report, seeds=1)
  assert said == ""
  assert list(json.loads((tmp_path / "table.json").read_text())[""]) == ["accuracy"]


def test_a_setting_that_is_chosen_later_takes_the_run_of_its_equal(monkeypatch, tmp_path):
  settings = {"x/base": {}, "y/plain": {}, "y/other": {"loss.l2": 0.5}}
  options = dict(report={"accuracy": 0.5, "interval": [0.25, 0.75]}, seeds=1)
  made, _ = planned(monkeypatch, tmp_path, settings, only=["y"], **options)
  assert made == [tmp_path / "x/base/0", tmp_path / "y/other/0"]
  made, _ = planned(monkeypatch, tmp_path, settings, **options)
  assert made == []


def test_a_run_that_cannot_be_learned_is_told_at_the_end(monkeypatch, tmp_path):
  settings = {"a": {}, "b": {"loss.l2": 0.5}, "c": {"loss.l2": 0.25}}
  options = dict(report={"accuracy": 0.5, "interval": [0.25, 0.75]}, seeds=2)
  made, said = planned(monkeypatch, tmp_path, settings, fails=["b/1"], **options)
  assert len(made) == 6
  assert "without the settings of which a run is missing:\n  b, seed 1: not finite" in said
  assert set(json.loads((tmp_path / "table.json").read_text())[""]["accuracy"]) == {"a", "c"}


def test_processes_share_a_study(monkeypatch, tmp_path):
  settings = {"a": {}, "b": {"loss.l2": 0.5}, "c": {"loss.l2": 0.25}}
  options = dict(report={"accuracy": 0.5, "interval": [0.25, 0.75]}, seeds=1)
  busy = {"a/0": 1, "b/0": 10}  # how often another process is at work on them
  made, said = planned(monkeypatch, tmp_path, settings, busy=busy, **options)
  assert [str(at.relative_to(tmp_path)) for at in made] == ["a/0", "b/0", "c/0", "a/0", "b/0"]
  assert "of which a run is missing:\n  b, seed 0: b/0 is in use" in said
  assert list(json.loads((tmp_path / "table.json").read_text())[""]["accuracy"]) == ["a", "c"]


@pytest.mark.slow
def test_command_runs_what_is_not_done_and_writes_the_table(llama_folder, tmp_path):
  study = tmp_path / "study.py"
  shifted = write_pairs(tmp_path / "shifted.jsonl", 12, seed=7)
  study.write_text(STUDY + f"\n\ndef pools():\n  return {{'runs': ('bt', {str(shifted)!r})}}\n")
  flags = train_flags(
    llama_folder, write_pairs(tmp_path / "pairs.jsonl", 48), tmp_path / "out", **{"train.steps": 4}
  )
  flags = [f"--config={study}", *flags[1:], "--seeds=2"]
  code, out, err = command("sweep", *flags).finish()
  assert code == 0, err
  assert "| hinge |" in out
  table = json.loads((tmp_path / "out/table.json").read_text())
  runs = [
    json.loads((tmp_path / f"out/bt/{seed}/summary.json").read_text())["heldout"]["accuracy"]
    for seed in (0, 1)
  ]
  assert table[""]["accuracy"]["bt"]["runs"] == runs
  # The two runs of the first setting, as one ensemble's members.
  pooled = json.loads((tmp_path / "out/pools.json").read_text())["runs"]
  assert (pooled["members"], pooled["shift"]["shifted"]["n"]) == (2, 12)
  assert pooled["shift"]["heldout"]["variance"] > 0
  assert "members' disagreement, 12 shifted against held out: AUROC" in out
  assert (tmp_path / "out/table.png").stat().st_size > 5_000
  # A figure that a run has left is taken as it is: nothing is trained again.
  done = tmp_path / "out/bt/0/summary.json"
  summary = json.loads(done.read_text())
  summary["heldout"]["accuracy"] = 0.125
  done.write_text(json.dumps(summary))
  code, _, err = command("sweep", *flags).finish()
  assert code == 0, err
  assert (
    json.loads((tmp_path / "out/table.json").read_text())[""]["accuracy"]["bt"]["runs"][0] == 0.125
  )


def test_all_seeds_hold_out_the_same(tmp_path):
  config = get_config()
  assert config.data.heldout == "0.1"
  report = Report()
  config.data.train = str(write_pairs(tmp_path / "pairs.jsonl", 60))
  sides = []
  for seed in range(3):
    train, held, _ = read_both(apply(config, {}, seed), report)
    sides.append(({e.conversation for e in train}, {e.conversation for e in held}))
  assert len(sides[0][1]) > 1
  for train, held in sides[1:]:
    assert held == sides[0][1]
    assert not train & sides[0][1]
  # A split seed that was given stays, and so does held-out data of its own.
  assert apply(config, {"data.split_seed": 7}, 2).data.split_seed == 7
  assert apply(config, {"data.heldout": "world:5"}, 2).data.split_seed == -1
  # Outside a sweep each seed has a split of its own.
  config.seed = 1
  assert {e.conversation for e in read_both(config, report)[1]} != sides[0][1]


def test_runs_of_another_config_are_not_taken_into_the_table(tmp_path):
  config = apply(get_config(), {}, 1)
  folder = tmp_path / "bt" / "1"
  folder.mkdir(parents=True)
  write_json(folder / "config.json", plain(resolve(config, 640)))
  (folder / "summary.json").write_text("{}")
  for fields in ({}, {"mesh.fsdp": 2}, {"train.keep": 5}, {"train.steps": 20}):
    check_done([("bt", 0, config), ("bt", 1, apply(config, fields, 1))], tmp_path)
  for fields, found in {
    "optimizer.learning_rate": "optimizer.learning_rate: 1e-05 there, 0.05 now",
    "train.epochs": "train.epochs: 1.0 there, 0.05 now",
  }.items():
    with pytest.raises(ValueError, match=found):
      check_done([("bt", 1, apply(config, {fields: 0.05}, 1))], tmp_path)
  with pytest.raises(ValueError, match=r"train.steps: 20 there, 21 now"):
    check_done([("bt", 1, apply(config, {"train.steps": 21}, 1))], tmp_path)
  # Now the steps are to follow from the data, and are not those that were given then.
  write_json(folder / "config.json", plain(resolve(apply(config, {"train.steps": 4}, 1), 640)))
  write_json(folder / "summary.json", {"data": {"train": 640}})
  with pytest.raises(ValueError, match=r"train.steps: 4 there, 20 now"):
    check_done([("bt", 1, config)], tmp_path)


def test_without_a_name_the_table_has_what_the_reports_have():
  assert sweep.usual(summaries(a=[0.5], b=[0.75])) == ("accuracy",)
  ratings = {"a": [{"heldout": {"loss": 2.0, "spearman": {"value": None}}}]}
  assert sweep.usual(ratings) == ("loss",)
  assert sweep.tabulate({"a": ratings["a"] * 2}, ["loss"])[""]["loss"]["a"]["mean"] == 2
  with pytest.raises(ValueError, match=r"none: nothing was held out.* --measures="):
    sweep.tabulate({"a": [{"heldout": None}]}, ["accuracy"])
