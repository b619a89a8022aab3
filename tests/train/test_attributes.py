"""Ratings on several attributes: they are learned, mixed to a reward, reported and saved."""

import json

import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.data.report import DataError, Report
from rm_jax.reward.setup import build_model
from rm_jax.storage.files import read_lines
from rm_jax.train.datasets import load_data
from tests.train.runs import run, small_config

NAMES = ("letter", "brevity")
ROWS = [{"prompt": f"{i} ", "response": "ab" * (i + 1)} for i in range(9)]


def rated(rng, i):
  """The share of the letter a, and shortness, of which a third is not rated."""
  odds, length = float(rng.random()), int(rng.integers(3, 14))
  response = "".join(rng.choice(["a", "b"], length, p=[odds, 1 - odds]))
  ratings = {"letter": 4 * odds - 2, "brevity": None if i % 3 == 0 else 2 - length / 4, "other": 1}
  return {"prompt": f"{rng.integers(10**6)} ", "response": response, "attributes": ratings}


def write(path, count, make=rated):
  rng = np.random.default_rng(len(path.name))
  path.write_text("".join(json.dumps(make(rng, i)) + "\n" for i in range(count)))
  return str(path)


def configured(folder, tmp_path, *, steps=30, mix=()):
  config = small_config(folder, steps=steps)
  config.data.train = write(tmp_path / "rated.jsonl", 48)
  config.data.heldout = write(tmp_path / "held.jsonl", 24)
  config.data.row_lengths = (96,)
  config.model.attributes, config.model.mix = NAMES, mix
  return config


def with_pairs(config, tmp_path):
  """Beside the ratings pairs that want the letter, whatever the length."""

  def pair(rng, i):
    prompt = {"prompt": f"{rng.integers(10**6)} "}
    return prompt | {"chosen": "a" * int(rng.integers(3, 14)), "rejected": "b" * 8}

  rated_file, config.data.train = config.data.train, ""
  with config.unlocked():
    config.data.sources = {
      "ratings": {"path": rated_file},
      "pairs": {"path": write(tmp_path / "pairs.jsonl", 48, pair)},
    }
  config.data.heldout = "0.25"
  config.optimizer.mix_rate = 10.0
  return config


@pytest.fixture(scope="module")
def trained(llama_folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("attributes")
  config = configured(llama_folder, path, steps=60, mix=(2.0, -0.5))
  return path / "run", run(config, path / "run", devices=1, picture=True)


@pytest.mark.slow
def test_learns_each_and_reports_each(trained):
  workdir, summary = trained
  assert summary["data"]["kinds"] == {"attributes": 48}
  assert summary["data"]["ratings"] == {"letter": 48, "brevity": 32}
  report = summary["heldout"]
  assert report["kind"] == "attributes"
  assert {name: one["n"] for name, one in report["attributes"].items()} == dict(
    zip(NAMES, (24, 16), strict=True)
  )
  for one in report["attributes"].values():
    assert one["spearman"]["interval"][0] < one["spearman"]["value"]
    assert one["spearman"]["value"] > 0.5
    assert one["loss"] < one["baselines"]["mean"]
  last = [x for x in read_lines(workdir / "metrics.jsonl") if x["split"] == "heldout"][-1]
  assert last["attributes"] == report["attributes"]
  assert last["loss"] == report["loss"]
  assert (workdir / "report.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_reward_is_the_mix(trained):
  model = RewardModel.from_pretrained(trained[0])
  assert model.attributes == NAMES
  ratings = model.score_attributes(ROWS)
  assert ratings.dtype == np.float32
  assert ratings.shape == (9, 2)
  assert ratings.std(axis=0).min() > 0.05
  # Weights that were given are not trained.
  assert trained[1]["train"]["frozen_parameters"] == 2
  np.testing.assert_array_equal(model.params["head"]["mix"], [2.0, -0.5])
  expected = 2 * ratings[:, 0] - 0.5 * ratings[:, 1]
  np.testing.assert_allclose(model.score(ROWS), expected, rtol=1e-5, atol=1e-5)
  assert model.score_members(ROWS).shape == (9, 1)
  alone = np.concatenate([model.score_attributes([row]) for row in ROWS])
  np.testing.assert_allclose(ratings, alone, rtol=0, atol=1e-5)
  assert model.score_attributes([]).shape == (0, 2)
  with pytest.raises(DataError, match=r"row 0: .*expected prompt and response"):
    model.score_attributes([{"prompt": "a", "completions": ["b"]}])
  with pytest.raises(ValueError, match="has one member"):
    model.score(ROWS, lower=1.0)


@pytest.mark.slow
def test_saved_whole_with_the_reward_in_transformers(trained, tmp_path):
  model = RewardModel.from_pretrained(trained[0])
  model.save_pretrained(tmp_path)
  again = RewardModel.from_pretrained(tmp_path)
  assert again.attributes == NAMES
  np.testing.assert_array_equal(again.score(ROWS), model.score(ROWS))
  np.testing.assert_array_equal(again.score_attributes(ROWS), model.score_attributes(ROWS))
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["id2label"] == {"0": "reward"}
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import AutoModelForSequenceClassification, AutoTokenizer

  theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
  tokenizer = AutoTokenizer.from_pretrained(tmp_path)
  for row, expected in zip(ROWS, model.score(ROWS), strict=True):
    inputs = tokenizer(row["prompt"] + row["response"], return_tensors="pt")
    with torch.no_grad():
      np.testing.assert_allclose(theirs(**inputs).logits[0].numpy(), expected, atol=2e-5)


@pytest.mark.slow
def test_pairs_teach_the_mix_which_is_saved_and_resumes(llama_folder, tmp_path):
  whole = with_pairs(configured(llama_folder, tmp_path), tmp_path)
  summary = run(whole, tmp_path / "whole", devices=2)
  assert summary["data"]["kinds"].keys() == {"attributes", "pair"}
  assert set(summary["heldout"]["kinds"]) == {"comparison", "attributes"}
  assert summary["heldout"]["accuracy"] > 0.9
  whole.train.steps = 15
  run(whole, tmp_path / "parts", devices=2)
  whole.train.steps = 30
  run(whole, tmp_path / "parts", devices=2)
  whole, parts = (RewardModel.from_pretrained(tmp_path / name) for name in ("whole", "parts"))
  mix = np.asarray(whole.params["head"]["mix"])
  assert np.abs(mix - 0.5).max() > 0.1
  np.testing.assert_array_equal(mix, parts.params["head"]["mix"])
  whole.save_pretrained(tmp_path / "saved")
  saved = RewardModel.from_pretrained(tmp_path / "saved")
  np.testing.assert_array_equal(mix, saved.params["head"]["mix"])
  np.testing.assert_array_equal(whole.score(ROWS), saved.score(ROWS))
  np.testing.assert_allclose(whole.score(ROWS), whole.score_attributes(ROWS) @ mix, atol=1e-5)
  # Who goes on from there begins with what was learned; a mix that is given is taken instead.
  config = configured(llama_folder, tmp_path)
  config.model.config, config.model.tokenizer = "", ""
  config.model.pretrained = str(tmp_path / "saved")
  assert build_model(config).network.head.mix == tuple(mix.tolist())
  config.model.mix = (1.0, 0.0)
  assert build_model(config).network.head.mix == (1.0, 0.0)
  config.model.mix, config.model.attributes = (), ("brevity", "letter")
  with pytest.raises(ValueError, match=r"has a head of \('letter', 'brevity'\); expected these"):
    build_model(config)
  config.model.attributes = ()
  with pytest.raises(ValueError, match="its head has 2 outputs; a reward has one"):
    build_model(config)


@pytest.mark.slow
def test_pairs_alone_fit_the_mix_of_ratings_that_are_learned_already(
  llama_folder, trained, tmp_path
):
  RewardModel.from_pretrained(trained[0]).save_pretrained(tmp_path / "saved")

  def longer(rng, i):
    sides = {name: "".join(rng.choice(["a", "b"], n)) for name, n in (("chosen", 12), ("short", 4))}
    return {"prompt": f"{i} ", "chosen": sides["chosen"], "rejected": sides["short"]}

  config = configured(llama_folder, tmp_path, mix=(1.0, 1.0))
  config.model.config, config.model.tokenizer = "", ""
  config.model.pretrained = str(tmp_path / "saved")
  config.data.train, config.data.heldout = write(tmp_path / "pairs.jsonl", 48, longer), "0.25"
  config.optimizer.freeze, config.optimizer.mix_rate = ("^backbone", "^head/out"), 50.0
  summary = run(config, tmp_path / "run", devices=1)
  assert summary["train"]["trained_parameters"] == 2
  model = RewardModel.from_pretrained(tmp_path / "run")
  # Who prefers the long ones finds brevity worth less than nothing.
  assert model.params["head"]["mix"][1] < 0
  assert summary["heldout"]["accuracy"] > 0.9
  np.testing.assert_array_equal(
    model.score_attributes(ROWS),
    RewardModel.from_pretrained(tmp_path / "saved").score_attributes(ROWS),
  )


@pytest.mark.slow
def test_one_attribute_is_a_model_too(llama_folder, tmp_path):
  config = configured(llama_folder, tmp_path, steps=1, mix=(3.0,))
  config.model.attributes = ("letter",)
  run(config, tmp_path / "run", devices=1)
  model = RewardModel.from_pretrained(tmp_path / "run")
  ratings = model.score_attributes(ROWS)
  assert ratings.shape == (9, 1)
  np.testing.assert_allclose(model.score(ROWS), 3 * ratings[:, 0], rtol=1e-5)


def test_what_does_not_fit_is_refused_before_anything_is_written(llama_folder, tmp_path):
  def refused(message, error=ValueError, *, pairs=False, **model):
    config = configured(llama_folder, tmp_path)
    if pairs:
      with_pairs(config, tmp_path)
      config.data.train, config.data.sources = config.data.sources.pairs.path, {}
      config.optimizer.mix_rate = 0.0
    config.optimizer.mix_rate = model.pop("mix_rate", config.optimizer.mix_rate)
    config.model.update(model)
    with pytest.raises(error, match=message):
      run(config, tmp_path / "run", devices=1)
    assert not (tmp_path / "run").exists()

  nothing = r"rated.jsonl:\d+: feedback on attributes \(.*letter.*\), and the model has none; train"
  refused(nothing, DataError, attributes=())
  refused("training data rates and no source has as its objective; they have no feed", pairs=True)
  refused(
    "has tone, which no row .* its objective; rated are brevity, letter, other",
    attributes=("letter", "tone"),
  )
  refused("feedback on attributes alone", mix_rate=10.0)
  refused(r"model\.mix is \(1\.0,\)", mix=(1.0,))
  refused("expected names, each once", attributes=("letter", "letter"))
  refused(r"model\.members is 2 and model\.attributes is set", members=2)
  refused(r"optimizer\.mix_rate is 1\.0 and model\.attributes is \(\)", attributes=(), mix_rate=1.0)


def test_rows_on_other_attributes_are_dropped_and_counted(llama_folder, tmp_path):
  config = configured(llama_folder, tmp_path)
  path = tmp_path / "rated.jsonl"
  other = rated(np.random.default_rng(0), 1) | {"attributes": {"other": 1, "letter": None}}
  path.write_text(path.read_text() + json.dumps(other) + "\n")
  train, _, _, report = load_data(config, build_model(config))
  assert report.dropped == {"no_attribute": 1}
  assert len(train.groups) == 48
  # A model that has none refuses them in an evaluation, too.
  plain = build_model(small_config(llama_folder, steps=1))
  with pytest.raises(DataError, match="the model has none"):
    plain.tokenise(train.examples, Report())
