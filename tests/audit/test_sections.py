"""The registry of sections: what is listed is measured, drawn and written, and nothing else."""

import dataclasses
import json
import pkgutil

import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit import sections as package
from rm_jax.audit.benchmarks.items import make_item
from rm_jax.audit.plots import Point, points
from rm_jax.audit.reference import make_reference
from rm_jax.audit.run import audit
from rm_jax.audit.section import Section, Settings, sentences
from rm_jax.audit.sections import SECTIONS
from rm_jax.audit.writer import View, Writer
from rm_jax.data.dialogue import plain
from rm_jax.metrics import interval
from rm_jax.shaping.chain import plan
from rm_jax.types import Example
from rm_jax.world import World
from tests.audit.planted import length, noise
from tests.audit.test_page import Ensemble, Fake

EXAMPLES = World().pairs("heldout", 12, 0)


def test_every_module_of_the_package_is_listed_once():
  modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
  assert sorted(section.name for section in SECTIONS) == sorted(modules)


def test_a_section_of_ones_own_is_measured_drawn_and_written(tmp_path):
  def measure(subject):
    mean = sum(one.sum() for one in subject.scores) / sum(map(len, subject.scores))
    return {"mean": float(mean), "says": f"the mean is {mean:.1f}"}

  def draw(found):
    return {"mean": lambda: points("Mean", [Point("mean", found["mean"], None)], 0.0)}

  def render(writer, found):
    writer.picture("mean", "the mean score")
    writer.table(("mean",), [(writer.value(found["mean"]),)])

  mine = Section("lengths", "Lengths", measure, render, draw=draw)
  found = audit(Fake(length), EXAMPLES, sections=[mine])
  texts = [plain(response) for e in EXAMPLES for response in e.responses]
  assert set(found) == {"lengths"}
  assert found["lengths"]["mean"] == pytest.approx(sum(map(len, texts)) / len(texts))
  assert page.write(tmp_path, {"about": {"model": "m", "data": "d"}, **found}, [mine]) == {}
  shown = (tmp_path / "report.html").read_text()
  assert "<h2 id=lengths>Lengths</h2>" in shown
  assert 'data-path="lengths/mean"' in shown
  assert shown.count(f"the mean is {found['lengths']['mean']:.1f}") == 2  # at the top and its own
  assert (tmp_path / "mean.png").exists()


def test_a_section_without_a_measure_of_steps_is_not_in_a_report_of_steps():
  with_steps = {section.name for section in SECTIONS if section.measure_steps}
  assert with_steps == {"agreement", "calibration", "best_of", "policies", "benchmarks"}


def test_feedback_that_no_section_reads_is_refused():
  attributes = Example("p", ("x",), (0.0,), "attributes", attributes=({"a": 1},))
  step = Example("p", ("x",), (1.0,), "step", steps=(("x",),))
  for other in (attributes, step):
    with pytest.raises(ValueError, match=f"kinds \\['{other.kind}'\\]; expected pairs"):
      audit(Fake(length), [*EXAMPLES, other])


def test_a_benchmark_that_fails_leaves_the_others(tmp_path):
  prompt = make_item("p", ("xx", "y"), (1, 0), subset="Natural", origin="f:1", messages=False)
  benchmarks = {"llmbar": [prompt], "judgebench": []}
  only = [section for section in SECTIONS if section.name == "benchmarks"]
  assert audit(Fake(length), EXAMPLES, sections=only) == {}
  found = audit(Fake(length), EXAMPLES, sections=only, benchmarks=benchmarks)
  assert found["benchmarks"]["llmbar"]["subsets"]["Natural"]["accuracy"] == 1.0
  assert found["benchmarks"]["judgebench"]["score"] is None
  assert set(found["failed"]) == {"judgebench"}
  assert page.write(tmp_path, {"about": {"model": "m", "data": "d"}, **found}, only) == {}
  shown = (tmp_path / "report.html").read_text()
  assert 'data-path="benchmarks/llmbar/subsets/Natural/accuracy">1.000</span>' in shown


def test_the_page_is_a_function_of_report_json(tmp_path):
  found = audit(Fake(length), EXAMPLES, settings=Settings(edited_pairs=6))
  page.write(tmp_path, {"about": {"model": "m", "data": "d"}, **found})
  report = json.loads((tmp_path / "report.json").read_text())
  drawn = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
  assert page._Page(report, drawn, SECTIONS).html() == (tmp_path / "report.html").read_text()


class Every(Ensemble):
  """An ensemble with attributes, which scores steps too, so that all sections measure it."""

  attributes = ("kind", "safe")

  def attribute_scores(self, rows):
    said = [[noise(f"{name}{plain(response)}") for name in "ks"] for _, response in rows]
    return np.asarray(said), np.full((len(rows), 2), 0.5)

  def steps(self, rows):
    return [np.asarray([noise(step) for step in row["completions"]]) for row in rows]


def judged_by_all_kinds():
  """40 examples of each kind of feedback on whole responses."""
  pairs = [
    dataclasses.replace(e, source="adversarial", judges={"A": 1.0, "B": float(i % 2)})
    for i, e in enumerate(World().pairs("heldout", 40, 0))
  ]
  outcomes = [
    Example(f"o{i}", (f"a {i}", f"b {i}"), (1.0, float(i % 2)), "outcome", conversation=f"o{i}")
    for i in range(40)
  ]
  rated = [
    Example(
      f"s{i}",
      tuple(f"answer {i} {j}" for j in range(8)),
      tuple(float(i * j % 5) for j in range(8)),
      "score",
      conversation=f"s{i}",
    )
    for i in range(40)
  ]
  return [*pairs, *outcomes, *rated]


def items_of(name, label):
  return [
    make_item(
      f"{name} {subset} {i}",
      (f"a {i}", f"b {i}"),
      label,
      subset=subset,
      origin=f"f:{i}",
      messages=False,
    )
    for subset in ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")
    for i in range(30)
  ]


def test_every_draw_of_an_audit_has_the_seed_of_its_settings(monkeypatch):
  score = Every(lambda rows: np.asarray([noise(f"{p} {r}") for p, r in rows]))
  reference = make_reference(score, World().pairs("heldout", 40, 1), "world", seed=7)
  steps = [
    Example(
      "q", ("a\nb",), (1.0, float(i % 2)), "step", steps=((f"a{i}", "b"),), conversation=f"{i}"
    )
    for i in range(40)
  ]
  settings = Settings(
    edited_pairs=40,
    shaping=plan("lower, normalise, decorrelate, filters", "--shape"),
    world=World(),
    prompts=31,
    candidates=4,
    seed=7,
  )
  drawn, real = [], np.random.default_rng

  def watched(seed=None):
    drawn.append(seed)
    return real(seed)

  start = interval.Resampling.__init__

  def few(self, clusters, **options):  # 2 resamples take less time, and have the same seed
    start(self, clusters, **{**options, "resamples": 2})

  monkeypatch.setattr(np.random, "default_rng", watched)
  monkeypatch.setattr(interval.Resampling, "__init__", few)
  found = audit(
    score,
    judged_by_all_kinds(),
    reference=reference,
    against={"length": Fake(length)},
    benchmarks={
      "llmbar": items_of("llmbar", (1, 0)),
      "gsm8k_best_of_4": items_of("gsm8k", (1, 0)),
    },
    settings=settings,
  )
  assert "failed" not in found
  assert not [name for name, part in found.items() if set(part) == {"why"}]
  assert "failed" not in audit(score, steps, settings=settings)
  assert len(drawn) > 200
  assert {np.ravel(seed)[0] for seed in drawn} == {7}


def test_a_view_knows_its_path_and_what_is_missing():
  view = View({"a": [{"value": 0.5}, {"value": None, "why": "too few"}]})
  assert view["a"][1]["why"].path == ("a", 1, "why")
  assert [one.path for one in view["a"]] == [("a", 0), ("a", 1)]
  assert [key for key, _ in view.items()] == ["a"]
  assert view.get("b").get("c").value is None
  assert list(view.get("b").items()) == []
  assert "a" in view
  assert "b" not in view
  with pytest.raises(KeyError):
    view["b"]
  writer = Writer({})
  assert writer.figure(view["a"][0]) == '<span data-path="a/0/value">0.500</span>'
  assert writer.figure(view["a"][1]) == "<small class=why>too few</small>"
  assert writer.figure(view.get("b")) == "–"


def test_a_table_has_a_cell_for_each_column():
  writer = Writer({})
  writer.table(("<a>", "b"), [("1", "<b>2</b>")])
  assert "<th>&lt;a&gt;</th><th>b</th></tr><tr><td>1</td><td><b>2</b></td></tr>" in writer.parts[0]
  with pytest.raises(ValueError, match=r"rows have \[1, 3\] cells; expected 2"):
    writer.table(("a", "b"), [("1",), ("1", "2"), ("1", "2", "3")])


def test_the_sentences_of_a_report():
  assert sentences({"says": "one"}) == ["one"]
  assert sentences({"says": ["one", "two"]}) == ["one", "two"]
  assert sentences({"n": 1}) == sentences("text") == []
  # A section by names has them for keys, and one of them may be 'says'.
  assert sentences({"says": {"value": 0.5}}) == []
