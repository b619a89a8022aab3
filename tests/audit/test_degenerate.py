"""With data that allow few conclusions a page is written, and sections say why they have none."""

import dataclasses
import json
import pathlib
import types

import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit.plots import stem
from rm_jax.audit.reference import Reference
from rm_jax.audit.run import audit
from rm_jax.audit.scorer import Scorer
from rm_jax.audit.section import Settings
from rm_jax.audit.sections import SECTIONS, agreement, drift
from rm_jax.types import Example
from tests.audit.planted import noise
from tests.audit.test_page import Fake

ABOUT = {"model": "m", "data": "d"}


def example(i, prompt, responses, labels, kind, source, **more):
  return Example(
    prompt=prompt,
    responses=responses,
    labels=labels,
    kind=kind,
    source=source,
    origin=f"f:{i}",
    conversation=prompt,
    **more,
  )


def pair(i, labels=(1.0, 0.0), source="s", prompt=None, **more):
  prompt = prompt or f"question {i}"
  responses = (f"a good answer {i}, of 12", f"bad {i}")
  if labels[0] == labels[1]:
    more["ties"] = ((0.0, 1.0), (1.0, 0.0))
  return example(i, prompt, responses, labels, "pair", source, **more)


def single(i, label, kind, source="s", prompt="p"):
  return example(i, prompt, (f"answer {i}",), (label,), kind, source)


def listed(i, k=64):
  responses = tuple(f"answer {i} {j}" for j in range(k))
  labels = tuple(float(j % 7) for j in range(k))
  return example(i, f"p{i}", responses, labels, "ranking", "lists")


def scored(rows):
  return [noise(f"{p} {r}") for p, r in rows]


def constant(rows):
  return np.zeros(len(rows))


LONG = "long " * 20_000
TIED = [pair(i, labels=(0.0, 0.0)) for i in range(24)]
DATA = {
  "tied": TIED,
  "one_decided": [*TIED, pair(99)],
  "two": [pair(0), pair(1)],
  "one_conversation": [pair(i, prompt="the same") for i in range(4)],
  "pairs": [pair(i) for i in range(24)],
  "long": [pair(i, prompt=f"{LONG} {i}") for i in range(3)],
  "lists": [listed(i) for i in range(2)],
  "equal_outcomes": [single(i, 1.0, "outcome", prompt=f"p{i}") for i in range(24)],
  "equal_scores": [single(i, 3.0, "score", prompt=f"p{i}") for i in range(24)],
  "one_outcome_beside_ties": [*TIED, single(0, 1.0, "outcome")],
}


@pytest.mark.parametrize("score", [scored, constant])
@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=pytest.mark.slow if n in ("lists", "long") else ()) for n in DATA]
)
def test_a_page_is_written(name, score, tmp_path):
  scorer = Fake(score)
  reference = Reference(np.zeros(30, np.float32), np.ones((30, 3), np.float32), "train", "fake")
  found = audit(
    scorer,
    DATA[name],
    reference=reference,
    against={"another": Fake(constant)},
    settings=Settings(edited_pairs=20),
  )
  assert "failed" not in found
  assert page.write(tmp_path, {"about": ABOUT, **found}) == {}
  said = json.loads((tmp_path / "report.json").read_text())
  # Each section has findings, or a reason why not.
  for part in ("agreement", "controls", "calibration", "robustness", "drift", "hacking", "rules"):
    assert said[part], part
    assert said[part].get("why", "why") != ""


def test_what_ties_alone_and_one_decided_conversation_leave():
  found = audit(Fake(scored), TIED)
  assert found["agreement"] == {"why": "people decided none of 24 comparisons"}
  assert found["calibration"]["why"].endswith("people decided none of 24 comparisons")
  found = audit(Fake(scored), DATA["one_decided"])
  assert found["agreement"]["n"] == 1
  assert found["agreement"]["interval"] is None
  for name in ("controls", "robustness"):
    assert "of 1 conversation alone, of 25 comparisons" in found[name]["why"]


def broken(*_, **__):
  raise IndexError("index -1 is out of\nbounds")


def test_a_section_that_fails_leaves_the_others(tmp_path, caplog):
  faults = {
    "controls": {"measure": broken},
    "hacking": {"measure": lambda _: {"says": [], "measures": float("nan")}},
    "rules": {"render": broken},
    "robustness": {"draw": lambda _: {"robustness": broken}},
    "calibration": {"draw": broken},
  }
  sections = [dataclasses.replace(s, **faults.get(s.name, {})) for s in SECTIONS]
  settings = Settings(edited_pairs=20)
  found = audit(Fake(scored), DATA["pairs"], settings=settings, sections=sections)
  assert found["failed"]["controls"] == "IndexError: index -1 is out of bounds"
  assert set(found["failed"]) == {"controls", "hacking"}
  assert "Traceback" in caplog.text
  assert "broken" in caplog.text  # the traceback names the function
  failed = page.write(tmp_path, {"about": ABOUT, **found}, sections)
  assert set(failed) == {
    "the picture robustness",
    "the picture calibration",
    "the page's part rules",
  }
  shown = (tmp_path / "report.html").read_text()
  assert "<b>controls could not be measured</b>: IndexError" in shown
  assert "Not measured: it failed, which is no finding (IndexError" in shown
  assert "It could not be written; report.json has it" in shown
  assert "<h2 id=agreement>" in shown
  said = json.loads((tmp_path / "report.json").read_text())
  assert said["agreement"]["n"] == 24


def test_a_reference_of_nothing_is_said_to_be_so(tmp_path):
  model = types.SimpleNamespace()
  scorer = Scorer.__new__(Scorer)  # no row is scored, so it needs no model
  scorer.model, scorer.name = model, "m"
  assert scorer.pooled([]).shape == (0, 0)
  nothing = Reference(np.zeros(0, np.float32), scorer.pooled([]), "what it held out", "m")
  nothing.save(tmp_path)
  found = audit(Fake(scored), DATA["pairs"], reference=Reference.load(tmp_path))
  assert found["drift"]["why"].startswith("24 conversations against 0 of what it held out")


def test_drift_of_features_that_do_not_vary():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=60).astype(np.float32)
  same = Reference(scores, np.ones((60, 8), np.float32), "train", "m")
  found = drift.drift(rng.normal(size=50), np.ones((50, 8)), same)
  none = found["features"]["mahalanobis"]
  assert (none["value"], none["alarm"]) == (None, False)
  assert none["why"] == "the reference's features are all one"
  assert found["features"]["energy"]["p"] == 1.0
  # A feature that varies only now has moved.
  found = drift.drift(rng.normal(size=50), 1 + rng.normal(size=(50, 8)), same)
  assert found["features"]["energy"]["alarm"]
  some = rng.normal(size=(60, 8)).astype(np.float32)
  some[:, 3] = 7.0
  part = Reference(scores, some, "train", "m")
  still = np.concatenate(
    [rng.normal(size=(50, 3)), np.full((50, 1), 7.0), rng.normal(size=(50, 4))], 1
  )
  assert not drift.drift(rng.normal(size=50), still, part)["alarm"]
  still[:, 3] = 9.0
  assert drift.drift(rng.normal(size=50), still, part)["features"]["mahalanobis"]["alarm"]


def test_outcomes_and_stars_of_one_prompt_are_no_list():
  examples = [
    single(i, value, kind, source)
    for i, (value, kind, source) in enumerate(
      [
        *[(v, "outcome", "right") for v in (1.0, 0.0, 1.0)],
        *[(v, "score", "stars") for v in (5.0, 9.0, 7.0)],
        *[(v, "score", "percent") for v in (50.0, 90.0, 70.0)],
      ]
    )
  ]
  gains = agreement._lists([np.array([float(i)]) for i in range(9)], examples).gains
  assert [g.tolist() for g in gains] == [[1, 0, 1], [5, 9, 7], [50, 90, 70]]


ODD = (
  "cost $^{x$ y",
  "a_{b}^$",
  "</pre><script>alert(1)</script>",
  '\'" onerror="x"',
  "",
  "日本語 ünï",
  "two\nlines",
  "x" * 5000,
  "Case",
  "case",
  "why",
  "world",
  "../../up",
  "nul\x00 esc\x1b",
  "\\frac{1}{",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_name_of_a_source_can_be_drawn_and_shown(tmp_path):
  examples = [pair(100 * s + i, source=name) for s, name in enumerate(ODD) for i in range(2)]
  eight = tuple(map(float, range(8)))
  examples += [
    example(i, f"q{s} {i}", tuple(f"{j} of {s} {i}" for j in range(8)), eight, "ranking", name)
    for s, name in enumerate((*ODD[:3], "why", "world"))
    for i in range(2)
  ]
  out = tmp_path / "out"
  found = audit(Fake(scored), examples, settings=Settings(edited_pairs=20))
  assert "failed" not in found
  assert page.write(out, {"about": {"model": ODD[2], "data": ODD[3]}, **found}) == {}
  shown = (out / "report.html").read_text()
  assert "<script" not in shown
  assert 'onerror="' not in shown
  curves = found["overoptimisation"]
  assert set(curves) == {*ODD[:3], "why, rated", "world, rated"}
  assert len(list(out.glob("best_of_n_*.png"))) == 5
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_pictures_of_an_earlier_report_go(tmp_path):
  (tmp_path / "mine.png").write_bytes(b"kept")
  found = audit(Fake(scored), DATA["pairs"], settings=Settings(edited_pairs=20))
  page.write(tmp_path, {"about": ABOUT, **found})
  assert (tmp_path / "hacking.png").exists()
  found = audit(Fake(scored), TIED)
  page.write(tmp_path, {"about": ABOUT, **found})
  said = json.loads((tmp_path / "report.json").read_text())
  there = {p.stem for p in pathlib.Path(tmp_path).glob("*.png")}
  assert there == {"mine", *said["pictures"]}
  assert "controls" not in there
  # A file that is no report is no obstacle, and names in it that are paths delete nothing.
  (tmp_path / "report.json").write_text('{"pictures": ["../mine", "mine/x"]}')
  page.write(tmp_path, {"about": ABOUT, **found})
  (tmp_path / "report.json").write_text("[")
  page.write(tmp_path, {"about": ABOUT, **found})
  assert (tmp_path / "mine.png").exists()


def test_stems_of_other_names_are_other():
  assert stem("best_of_n_", "qa_feedback") == "best_of_n_qa_feedback"
  assert len({stem("", name).lower() for name in ODD}) == len(ODD)
  assert all(len(stem("", name)) < 80 and stem("", name).isascii() for name in ODD)
