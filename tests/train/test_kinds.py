"""Whole small runs on every kind of feedback: they learn, say what they found, and resume."""

import json

import numpy as np
import pytest

from rm_jax.reward.setup import build_model
from rm_jax.storage.files import read_lines
from rm_jax.train.datasets import load_data
from tests.train.runs import run, small_config


def words(rng, odds):
  return "".join(rng.choice(["a", "b"], rng.integers(4, 12), p=[odds, 1 - odds]))


def ranking(rng, i):
  odds = rng.permutation([0.05, 0.5, 0.95])
  return {
    "prompt": f"{i} ",
    "responses": [words(rng, o) for o in odds],
    "ranks": [int(r) for r in 1 + np.argsort(np.argsort(-odds))],
  }


def compared(rng, i):
  row = ranking(rng, i)
  ranks = row.pop("ranks")
  row["comparisons"] = [
    [a, b, "tie" if abs(ranks[a] - ranks[b]) == 1 else float(ranks[a] < ranks[b])]
    for a, b in ((0, 1), (0, 2), (1, 2))
  ]
  return row


def outcome(rng, i):
  good = bool(rng.integers(2))
  return {"prompt": f"{i} ", "completion": words(rng, 0.9 if good else 0.1), "label": good}


def score(rng, i):
  odds = float(rng.random())
  return {"prompt": f"{i} ", "completion": words(rng, odds), "score": 4 * odds - 2}


def step(rng, i):
  labels = [True] * int(rng.integers(1, 4)) + [False] * int(rng.integers(0, 2))
  return {
    "prompt": f"{i} ",
    "completions": [words(rng, 0.95 if good else 0.05) for good in labels],
    "labels": labels,
  }


def configured(folder, tmp_path, make, *, steps=20, **losses):
  config = small_config(folder, steps=steps)
  for split, count in (("train", 48), ("heldout", 24)):
    rng = np.random.default_rng(len(split))
    path = tmp_path / f"{split}.jsonl"
    path.write_text("".join(json.dumps(make(rng, f"{split}{i}")) + "\n" for i in range(count)))
    config.data[split] = str(path)
  config.data.row_lengths = (96,)
  config.loss.update(losses)
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "losses", "kind", "measure", "above"),
  [
    (ranking, {}, "comparison", lambda r: r["accuracy"], 0.75),
    (ranking, {"ranking": "listnet"}, "comparison", lambda r: r["kendall"]["value"], 0.5),
    (compared, {"ranking": "rao_kupper"}, "comparison", lambda r: r["accuracy"], 0.8),
    (outcome, {}, "outcome", lambda r: r["auroc"]["value"], 0.8),
    (score, {}, "score", lambda r: r["spearman"]["value"], 0.5),
    (step, {}, "step", lambda r: r["auroc"]["value"], 0.8),
  ],
)
def test_learns(llama_folder, tmp_path, make, losses, kind, measure, above):
  config = configured(llama_folder, tmp_path, make, **losses)
  summary = run(config, tmp_path / "run", devices=1, picture=True)
  assert summary["heldout"]["kind"] == kind
  assert summary["data"]["kinds"] == {"comparison": {"ranking": 48}}.get(kind, {kind: 48})
  assert measure(summary["heldout"]) > above
  assert (tmp_path / "run/report.png").stat().st_size > 10_000


@pytest.mark.slow
def test_what_a_loss_learns_is_saved_with_the_run_and_resumes(llama_folder, tmp_path):
  losses = {"ranking": "davidson(tie_rate=0.5)"}
  whole = configured(llama_folder, tmp_path, compared, steps=6, **losses)
  run(whole, tmp_path / "whole", devices=2)
  part = configured(llama_folder, tmp_path, compared, steps=3, **losses)
  run(part, tmp_path / "parts", devices=2)
  run(whole, tmp_path / "parts", devices=2)
  lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
  # The part evaluates where it ends; all else is the same to the last digit.
  same = [[x for x in one if x["split"] == "train"] for one in lines]
  assert same[0] == same[1]


@pytest.mark.slow
def test_mixed_kinds_in_one_file_are_refused_and_ties_without_a_word_are_counted(
  llama_folder, tmp_path
):
  def tied(rng, i):
    row = {"prompt": f"{i} ", "chosen": words(rng, 0.9), "rejected": words(rng, 0.1)}
    return row | {"tie": int(i.removeprefix("train").removeprefix("heldout")) % 4 == 0}

  config = configured(llama_folder, tmp_path, tied, steps=2)
  summary = run(config, tmp_path / "logistic", devices=1)
  assert summary["data"]["dropped"] == {"all_tied": 12}
  assert summary["heldout"]["undecided"] == 6
  config.loss.pair = "davidson"
  summary = run(config, tmp_path / "davidson", devices=1)
  assert summary["data"]["dropped"] == {}
  assert summary["data"]["train"] == 48


@pytest.mark.slow
def test_decorrelation_lowers_the_correlation_with_length(llama_folder, tmp_path):
  def longer(rng, i):
    return {"prompt": f"{i} ", "chosen": "b" * int(rng.integers(9, 14)), "rejected": "b" * 4}

  found = {}
  for weight in (0.0, 3.0):
    config = configured(llama_folder, tmp_path, longer, decorrelation=weight)
    run(config, tmp_path / f"run{weight}", devices=1)
    lines = read_lines(tmp_path / f"run{weight}/metrics.jsonl")
    found[weight] = [x for x in lines if x["split"] == "train"][-1]
  assert "length_correlation_square" not in found[0.0]
  assert found[0.0]["loss"] < 0.1  # length tells all
  assert found[3.0]["loss"] > 0.3
  assert found[3.0]["length_correlation_square"] < 0.5


@pytest.mark.slow
def test_sources_of_several_kinds_have_their_rates_and_their_own_metrics(llama_folder, tmp_path):
  config = configured(llama_folder, tmp_path, ranking, steps=10)
  outcomes = tmp_path / "outcomes.jsonl"
  rng = np.random.default_rng(3)
  outcomes.write_text("".join(json.dumps(outcome(rng, f"o{i}")) + "\n" for i in range(12)))
  rankings, config.data.train = config.data.train, ""
  with config.unlocked():
    config.data.sources = {
      "lists": {"path": rankings, "rate": 3.0},
      "verdicts": {"path": str(outcomes), "rate": 1.0, "weight": 0.5},
    }
  config.data.heldout = "0.2"
  summary = run(config, tmp_path / "run", devices=2)
  lines = [x for x in read_lines(tmp_path / "run/metrics.jsonl") if x["split"] == "train"]
  assert all(x["sources"].keys() == {"lists", "verdicts"} for x in lines)
  # Six rankings of weight 1 and two outcomes of weight 1/2 make up every step's loss.
  for x in lines:
    each = {name: one["loss"] for name, one in x["sources"].items()}
    assert x["loss"] == pytest.approx((6 * each["lists"] + each["verdicts"]) / 7, rel=1e-5)
  assert set(summary["heldout"]["kinds"]) == {"comparison", "outcome"}
  assert summary["data"]["kinds"].keys() == {"ranking", "outcome"}


@pytest.mark.parametrize(
  ("sources", "message"),
  [
    ({"a": {"rate": 1.0}}, r"data.sources.a has \['rate'\]; expected 'path'"),
    ({"a": {"path": "x", "ratio": 1.0}}, r"data\.sources\.a has"),
    ({"a": {"path": "world:8", "rate": -1.0}}, r"rate -1\.0"),
    ({"a": {"path": 8}}, r"data\.sources\.a\.path is 8; expected a text"),
    ({"a": {"path": "x", "format": 8}}, r"data\.sources\.a\.format is 8; expected a text"),
    ({"a": {"path": "x", "format": ["pair"]}}, r"data\.sources\.a\.format is .*; expected a text"),
    ({"a": "world:8"}, r"data\.sources\.a is 'world:8'; expected \{'path'"),
    (
      {"a": {"path": "world:8", "rate": 1.0}, "b": {"path": "world:8"}},
      "a have a rate and the others have not",
    ),
  ],
)
def test_sources_that_make_no_sense_are_refused(llama_folder, tmp_path, sources, message):
  config = small_config(llama_folder, steps=2)
  config.data.train = ""
  with config.unlocked():
    config.data.sources = sources
  with pytest.raises(ValueError, match=message):
    run(config, tmp_path / "run", devices=1)
  assert not (tmp_path / "run").exists()


def test_a_source_with_the_rate_0_is_only_held_out(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=2)
  pairs, config.data.train, config.data.heldout = config.data.train, "", "0.25"
  with config.unlocked():
    config.data.sources = {
      "taught": {"path": pairs, "rate": 2.0},
      "unseen": {"path": str(llama_folder / "heldout.jsonl"), "rate": 0.0},
    }
  data = load_data(config, build_model(config))
  assert {e.source for e in data.train.examples} == {"taught"}
  assert {e.source for e in data.heldout.examples} == {"taught", "unseen"}
  assert data.train.rates == {"taught": 2.0}
  held = sum(e.source == "unseen" for e in data.heldout.examples)
  assert data.report.dropped["not_trained_on"] == 16 - held
  config.data.sources.taught.rate = 0.0  # no rate at all: the sizes decide
  assert {e.source for e in load_data(config, build_model(config)).train.examples} == {
    "taught",
    "unseen",
  }
