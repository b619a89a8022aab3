"""What each attribute of a model prefers, source by source."""

import dataclasses

import numpy as np
import pytest

from rm_jax.audit import page
from rm_jax.audit.run import audit
from rm_jax.audit.sections import objectives
from rm_jax.types import Example
from tests.audit.test_page import Fake

NAMES = ("kind", "safe")


def examples():
  return [
    Example(
      prompt=f"question {i}",
      responses=(f"good {i}", f"bad {i} and more"),
      labels=(1.0, 0.0),
      source="a" if i < 10 else "b",
      conversation=f"c{i}",
      objective="kind" if i < 10 else "",
    )
    for i in range(16)
  ]


class Two(Fake):
  """Its attribute 'kind' prefers what people prefer; 'safe' prefers the longer, the worse one."""

  attributes = NAMES

  def attribute_scores(self, rows):
    kind = np.asarray([float(response.startswith("good")) for _, response in rows])
    safe = np.asarray([float(len(response)) for _, response in rows])
    weights = np.asarray([[0.75, 0.25] if len(p) < 11 else [0.0, 1.0] for p, _ in rows])
    return np.stack([kind, safe], axis=1), weights


def test_each_attribute_is_held_against_each_source():
  scorer = Two(lambda rows: [float("good" in response) for _, response in rows])
  found = audit(scorer, examples(), sections=[objectives.SECTION])["objectives"]
  values = {
    name: {source: figure["value"] for source, figure in one.items()}
    for name, one in found["accuracy"].items()
  }
  assert values == {
    "reward": {"a": 1.0, "b": 1.0, "all": 1.0},
    "kind": {"a": 1.0, "b": 1.0, "all": 1.0},
    "safe": {"a": 0.0, "b": 0.0, "all": 0.0},
  }
  assert found["accuracy"]["kind"]["a"]["n"] == 10
  assert found["accuracy"]["kind"]["a"]["interval"][0] > 0.5
  assert found["weight"] == {"kind": {"a": 0.75, "b": 0.0}, "safe": {"a": 0.25, "b": 1.0}}
  (alike,) = found["alike"]
  assert (alike["first"], alike["second"], alike["figure"]["value"]) == ("kind", "safe", 0.0)
  assert found["objectives"] == {"a": ["kind"], "b": ["reward"]}


def test_a_source_all_and_an_attribute_reward_hide_no_figure(tmp_path):
  class Named(Two):
    attributes = ("reward", "safe")

  named = [
    dataclasses.replace(
      e, source="all" if e.source == "a" else "b", objective="reward" if e.objective else ""
    )
    for e in examples()
  ]
  # The reward prefers what people prefer in source 'all' alone; the attribute 'reward' always does.
  scorer = Named(lambda rows: [float(("good" in r) == (len(p) < 11)) for p, r in rows])
  report = audit(scorer, named, sections=[objectives.SECTION])
  found = report["objectives"]
  accuracy = {
    name: {source: figure["value"] for source, figure in one.items()}
    for name, one in found["accuracy"].items()
  }
  assert accuracy == {
    "reward": {"all, a source": 1.0, "b": 0.0, "all": 10 / 16},
    "reward, an attribute": {"all, a source": 1.0, "b": 1.0, "all": 1.0},
    "safe": {"all, a source": 0.0, "b": 0.0, "all": 0.0},
  }
  assert found["weight"]["reward, an attribute"] == {"all, a source": 0.75, "b": 0.0}
  assert found["alike"][0]["first"] == "reward, an attribute"
  assert found["objectives"] == {"all, a source": ["reward, an attribute"], "b": ["reward"]}
  about = {"about": {"model": "m", "data": "d"}}
  assert page.write(tmp_path, about | report, [objectives.SECTION]) == {}
  shown = (tmp_path / "report.html").read_text()
  for path in ("reward/all", "reward/all, a source", "reward, an attribute/all"):
    assert f'data-path="objectives/accuracy/{path}/value"' in shown
  with_both = [dataclasses.replace(e, source="all, a source") for e in named[:3]]
  found = audit(scorer, [*named, *with_both], sections=[objectives.SECTION])["objectives"]
  assert sorted(found["objectives"]) == ["all, a source", "all, a source, a source", "b"]


def test_a_tie_of_one_attribute_is_half_alike():
  kind = [np.asarray([[1.0, 0.0], [0.0, 0.0]])] * 16
  rewards, weights = [np.asarray([1.0, 0.0])] * 16, [np.full((2, 2), 0.5)] * 16
  found = objectives.objectives(rewards, kind, weights, examples(), NAMES)
  assert found["alike"][0]["figure"]["value"] == 0.5
  assert found["accuracy"]["safe"]["all"]["value"] == 0.5


def test_the_page_shows_every_figure(tmp_path):
  scorer = Two(lambda rows: [float("good" in response) for _, response in rows])
  report = audit(scorer, examples(), sections=[objectives.SECTION])
  about = {"about": {"model": "m", "data": "d"}}
  assert page.write(tmp_path, about | report, [objectives.SECTION]) == {}
  shown = (tmp_path / "report.html").read_text()
  for path in ("accuracy/safe/b/value", "weight/kind/a", "alike/0/figure/value"):
    assert f'data-path="objectives/{path}"' in shown


def test_a_model_of_one_score_has_no_such_section():
  scorer = Fake(lambda rows: [float("good" in response) for _, response in rows])
  assert audit(scorer, examples(), sections=[objectives.SECTION]) == {}


def test_nothing_to_compare_is_said():
  alone = [
    Example(prompt="q", responses=("r",), labels=(1.0,), kind="outcome", conversation=str(i))
    for i in range(3)
  ]
  scorer = Two(lambda rows: [0.0] * len(rows))
  found = audit(scorer, alone, sections=[objectives.SECTION])
  assert found["objectives"] == {"why": "no comparison in the data"}
  with pytest.raises(ValueError, match="no comparison"):
    objectives.objectives([np.zeros(1)], [np.zeros((1, 2))], [np.zeros((1, 2))], alone[:1], NAMES)
