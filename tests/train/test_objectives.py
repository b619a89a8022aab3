"""Judgements about one of several objectives: a head for each, and a mix or a gate over them."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax import RewardModel
from rm_jax.data.report import DataError, Report
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.setup import build_model, init_params
from rm_jax.storage.files import read_lines
from rm_jax.train.datasets import load_data
from rm_jax.train.objective import Objective, gate_loss
from rm_jax.types import Batch
from tests.train.runs import run, small_config

NAMES = ("many", "few")
ROWS = [{"prompt": f"{i}{p}", "response": r} for i in range(3) for p in "xy" for r in ("aab", "bb")]


def write(path, count, last, better):
  """Pairs of which the better one is full of one letter; prompts end with `last`."""
  rng = np.random.default_rng(len(path.name))
  worse = {"a": "b", "b": "a"}[better]

  def word(most, rest):
    return "".join(rng.choice([most, rest], rng.integers(4, 10), p=[0.9, 0.1]))

  with path.open("w") as file:
    for i in range(count):
      row = {"chosen": word(better, worse), "rejected": word(worse, better)}
      file.write(json.dumps({"prompt": f"{i}{last}"} | row) + "\n")
  return str(path)


def configured(folder, tmp_path, *, steps, gate=False, mix=(), others=0):
  """Two sources that contradict one another: one wants the letter a, the other the letter b."""
  config = small_config(folder, steps=steps)
  config.data.train, config.data.heldout = "", "0.25"
  config.model.attributes, config.model.gate, config.model.mix = NAMES, gate, mix
  config.optimizer.mix_rate = 10.0 if gate else 0.0
  config.data.objectives = "x*=many, yes=few"
  with config.unlocked():
    config.data.sources = {
      "xs": {"path": write(tmp_path / "xs.jsonl", 40, "x", "a")},
      "yes": {"path": write(tmp_path / "yes.jsonl", 40, "y", "b")},
    }
    if others:
      config.data.sources["any"] = {"path": write(tmp_path / "others.jsonl", others, "z", "a")}
  return config


@pytest.fixture(scope="module")
def mixed(llama_folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("objectives")
  return path, run(
    configured(llama_folder, path, steps=40, mix=(1.0, 0.5)), path / "run", devices=1
  )


@pytest.fixture(scope="module")
def gated(llama_folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("objectives")
  return path, run(configured(llama_folder, path, steps=40, gate=True), path / "run", devices=1)


@pytest.mark.slow
def test_each_objective_learns_from_its_own_source(mixed):
  path, summary = mixed
  found = summary["heldout"]["objectives"]
  assert set(found) == set(NAMES)
  assert min(found[name]["accuracy"] for name in NAMES) > 0.9
  assert sum(found[name]["n"] for name in NAMES) == summary["heldout"]["n"]
  # The mix prefers the letter a everywhere.
  assert summary["heldout"]["sources"]["xs"]["accuracy"] > 0.9
  assert summary["heldout"]["sources"]["yes"]["accuracy"] < 0.1
  lines = read_lines(path / "run" / "metrics.jsonl")
  last = [x for x in lines if x["split"] == "heldout"][-1]
  assert last["objectives"]["few"]["accuracy"] == found["few"]["accuracy"]
  # In training each source is judged by its own objective's scores.
  trained = [x for x in lines if x["split"] == "train"][-1]
  assert trained["accuracy"] > 0.9


@pytest.mark.slow
def test_a_gate_reads_the_prompt_and_serves_both(gated):
  path, summary = gated
  for source in ("xs", "yes"):
    assert summary["heldout"]["sources"][source]["accuracy"] > 0.9
  model = RewardModel.from_pretrained(path / "run")
  weights = model.attribute_weights(ROWS)
  assert weights.dtype == np.float32
  assert weights.shape == (12, 2)
  np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
  is_x = np.asarray([row["prompt"][-1] == "x" for row in ROWS])
  assert weights[is_x, 0].min() > 0.5 > weights[~is_x, 0].max()
  scores = model.score_attributes(ROWS)
  np.testing.assert_allclose(model.score(ROWS), (weights * scores).sum(axis=1), atol=1e-5)
  # A prompt's weights do not depend on the response, nor on what is scored beside it.
  np.testing.assert_allclose(weights[0::2], weights[1::2], atol=1e-6)
  alone = np.concatenate([model.attribute_weights([row]) for row in ROWS])
  np.testing.assert_allclose(weights, alone, atol=1e-6)


@pytest.mark.parametrize("limit", [0, 12])
def test_a_long_prompts_weights_are_those_of_its_limit_whatever_the_response(
  limit, llama_folder, tmp_path
):
  config = configured(llama_folder, tmp_path, steps=1, gate=True)
  config.data.max_length, config.data.max_prompt_length = 24, limit
  built = build_model(config)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = unflatten_dict(init_params(built, mesh, jax.random.key(0), training=True), sep="/")
  gating = params["head"]["gating"]
  kernel = 0.1 * jax.random.normal(jax.random.key(1), gating["kernel"].shape)
  params["head"] |= {"gating": gating | {"kernel": kernel}}
  rows = [{"prompt": "abcdefghijklmnopqrstuvwxyz", "response": "x" * n} for n in (1, 6, 11)]
  weights = RewardModel(built, params, mesh).attribute_weights(rows)
  if limit:
    np.testing.assert_allclose(weights, weights[[0] * 3], atol=1e-6)
  else:  # by max_length alone other parts of the prompt are left
    assert np.abs(weights - weights[:1]).max() > 1e-3


@pytest.mark.parametrize("gate", [True, False])
def test_weights_that_are_not_finite_are_refused(gate, llama_folder, tmp_path):
  built = build_model(configured(llama_folder, tmp_path, steps=1, gate=gate))
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = unflatten_dict(init_params(built, mesh, jax.random.key(0), training=True), sep="/")
  model = RewardModel(built, params, mesh)
  assert np.isfinite(model.attribute_weights(ROWS[:2])).all()
  part = params["head"]["gating"]["bias"] if gate else params["head"]["mix"]
  bad = part.at[0].set(np.nan)
  params["head"] |= {"gating": params["head"]["gating"] | {"bias": bad}} if gate else {"mix": bad}
  with pytest.raises(InputError, match=r"^row 0: its weight is nan; expected a finite number"):
    model.attribute_weights(ROWS[:2])


@pytest.mark.slow
def test_a_run_with_a_gate_resumes_exactly(llama_folder, gated, tmp_path):
  path, _ = gated
  config = configured(llama_folder, path, steps=40, gate=True)
  stopped = config.copy_and_resolve_references()
  stopped.train.steps = 17
  stopped.train.checkpoint_every = 17
  config.train.checkpoint_every = 17
  run(stopped, tmp_path / "run", devices=1)
  run(config, tmp_path / "run", devices=1)
  whole, resumed = (RewardModel.from_pretrained(p / "run") for p in (path, tmp_path))
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


@pytest.mark.slow
def test_an_export_has_the_mix_folded_in(mixed, tmp_path):
  model = RewardModel.from_pretrained(mixed[0] / "run")
  model.save_pretrained(tmp_path / "own")
  again = RewardModel.from_pretrained(tmp_path / "own")
  np.testing.assert_array_equal(again.score(ROWS), model.score(ROWS))
  assert again.attributes == NAMES
  model.save_pretrained(tmp_path / "other", mix={"few": 2.0, "many": -1.0})
  other = RewardModel.from_pretrained(tmp_path / "other")
  expected = model.score_attributes(ROWS) @ np.asarray([-1.0, 2.0], np.float32)
  np.testing.assert_allclose(other.score(ROWS), expected, atol=1e-5)
  np.testing.assert_array_equal(other.attribute_weights(ROWS[:1]), [[-1.0, 2.0]])
  for mix, message in (
    ({"many": 1.0}, "mix weighs many; the model's attributes are many, few"),
    ({"many": 0.0, "few": 0.0}, "not all 0"),
    ({"many": float("nan"), "few": 1.0}, "finite weights"),
  ):
    with pytest.raises(InputError, match=message):
      model.save_pretrained(tmp_path / "none", mix=mix)
  assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_an_export_of_a_gate_needs_a_mix(gated, tmp_path):
  model = RewardModel.from_pretrained(gated[0] / "run")
  with pytest.raises(InputError, match=r"attributes \(many, few\) are a function of the prompt"):
    model.save_pretrained(tmp_path / "none")
  assert not (tmp_path / "none").exists()
  model.save_pretrained(tmp_path / "few", mix={"many": 0.0, "few": 1.0})
  again = RewardModel.from_pretrained(tmp_path / "few")
  np.testing.assert_allclose(again.score(ROWS), model.score_attributes(ROWS)[:, 1], atol=1e-6)


def test_a_group_is_judged_by_its_own_objective(llama_folder, tmp_path):
  """Its gradient reaches one output of the head, and its loss is the pair's of these scores."""
  config = configured(llama_folder, tmp_path, steps=1, others=40)
  model = build_model(config)
  network = model.network
  scores = np.asarray(
    [[[[2.0, 0.5]], [[2.0, 0.5]], [[2.0, 0.5]]], [[[-1.0, 3.0]], [[-1.0, 3.0]], [[-1.0, 3.0]]]],
    np.float32,
  )  # [A, B, G, K]
  batch = Batch(
    tokens=np.zeros((3, 4), np.int32), group=None, branch=None, position=None, marks=None,
    where=np.ones((3, 1, 2), bool), labels=np.asarray([[[1.0, 0.0]]] * 3, np.float32),
    weight=np.ones((3, 1), np.float32), kind=np.zeros((3, 1), np.int32),
    objective=np.asarray([[0], [1], [-1]], np.int32),
  )  # fmt: skip
  params = {"head": {"mix": np.asarray([0.5, 0.5], np.float32)}}
  judged = network.judged(params, scores, batch)
  np.testing.assert_allclose(judged[:, 0], [[2.0, 0.5], [-1.0, 3.0], [0.5, 1.75]])
  objective = Objective(config.loss, {"pair"})
  expected = np.log1p(np.exp(-(judged[:, 0, 0] - judged[:, 0, 1])))
  np.testing.assert_allclose(objective(judged, batch)[:, 0], expected, rtol=1e-6)


def test_the_gate_learns_the_log_probability_of_the_objective():
  weights = np.asarray([0.2, 0.3, 0.5], np.float32)
  scores = np.zeros((6, 1, 4, 2), np.float32)
  scores[3:] = np.log(weights)[:, None, None, None]
  where = np.asarray([[[True, True], [True, False], [True, True], [False, False]]])
  scores[3:, 0, 1, 1] = 0.0  # no mark: `Network.apply` gives 0
  batch = Batch(
    tokens=None, group=None, branch=None, position=None, marks=None, where=where, labels=None,
    weight=None, objective=np.asarray([[0, 2, -1, 1]], np.int32),
  )  # fmt: skip
  expected = [[-np.log(0.2), -np.log(0.5), 0.0, 0.0]]
  np.testing.assert_allclose(gate_loss(scores, batch), expected, rtol=1e-6)


def test_what_does_not_fit_is_refused_before_anything_is_compiled(llama_folder, tmp_path):
  def refused(message, **changes):
    config = configured(llama_folder, tmp_path, steps=1)
    with config.unlocked():
      config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
      load_data(config, build_model(config))

  def mapped(text):
    return {"data.objectives": text}

  refused(r"model.attributes is \('many', 'few'\); expected 'most'", **mapped("x*=most,*=few"))
  refused("no row of the training data rates and no source has as its", **mapped("*=few"))
  refused(r"attributes is \(\); expected 'many' to be one of these", **{"model.attributes": ()})
  refused("'z' is the first to match nothing; the sources are xs, yes", **mapped("z=few,*=many"))
  refused("'yes' is the first to match nothing", **mapped("*=few,yes=many"))
  refused("expected 'pattern=attribute,..'", **mapped("xs"))
  refused("not all 0", **{"model.mix": (0.0, 0.0)})
  refused("as many as model.attributes", **{"model.mix": (1.0,)})
  refused("the gate would not learn", **{"model.gate": True})
  refused("gate_trains is 0.1 and model.gate False", **{"model.gate_trains": 0.1})
  gate = {"model.gate": True, "optimizer.mix_rate": 1.0}
  refused("model.mix is .*expected numbers above 0", **gate, **{"model.mix": (1.0, 0.0)})
  refused("expected two or more attributes", **gate, **{"model.attributes": ("many",)})
  refused("add pairs without an objective", **{"optimizer.mix_rate": 1.0})


def test_a_gate_that_would_learn_nothing_is_refused(llama_folder, tmp_path):
  config = configured(llama_folder, tmp_path, steps=1, gate=True)
  config.data.objectives = ""
  rows = [
    {"prompt": f"{i}x", "response": "ab", "attributes": {"many": i % 3, "few": i % 2}}
    for i in range(40)
  ]
  path = tmp_path / "rated.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  with config.unlocked():
    config.data.sources = {"rated": {"path": str(path)}}
  with pytest.raises(
    InputError, match=r"model\.gate is True and the data are ratings on attributes"
  ):
    load_data(config, build_model(config))
  # Pairs, and ratings that are about an objective, train it.
  config.data.objectives = "rated=many"
  load_data(config, build_model(config))
  config.data.objectives = ""
  with config.unlocked():
    config.data.sources.pairs = {"path": write(tmp_path / "ys.jsonl", 40, "y", "b")}
  load_data(config, build_model(config))


def test_an_objective_that_the_model_lacks_is_named(llama_folder, tmp_path):
  config = configured(llama_folder, tmp_path, steps=1)
  train, *_ = load_data(config, build_model(config))
  config.model.attributes = ()
  with pytest.raises(DataError, match=r"its objective is '(many|few)', and the model's attributes"):
    build_model(config).tokenise(train.examples, Report())


def test_patterns_match_the_path_of_a_file_too(llama_folder, tmp_path):
  """A data set of the hub is one source, whatever its files."""
  config = configured(llama_folder, tmp_path, steps=1)
  (tmp_path / "harm").mkdir()
  path = write(tmp_path / "harm" / "train.jsonl", 40, "x", "a")
  with config.unlocked():
    config.data.sources = {
      "one": {"path": path},
      "two": {"path": write(tmp_path / "train.jsonl", 40, "y", "b")},
    }
  config.data.objectives = "*/harm/*=many,*=few"
  data = load_data(config, build_model(config))
  for one in (data.train, data.heldout):
    assert {(e.source, e.objective) for e in one.examples} == {("one", "many"), ("two", "few")}
