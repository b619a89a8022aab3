"""Rewards of steps, by a reward model that scores them, arrive at the steps' marks in a chain."""

import json

import numpy as np
import pytest

from rm_jax.api import RewardModel
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh
from rm_jax.policy import rollout as module
from rm_jax.policy.optimise import Optimisation
from rm_jax.rlhf.chain import run
from rm_jax.rlhf.proxy import Proxy, open_proxy
from rm_jax.shaping.chain import declared
from rm_jax.storage.files import read_lines, write_json
from tests.conftest import decoder_tokenizer
from tests.policy.small import byte_policy
from tests.rlhf.small import own_config, own_folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  return own_folder(tmp_path_factory.mktemp("own"))


def in_lines(monkeypatch):
  """Makes samples of 'a', 'b' and 'c' in lines of two: every third token is the separator's."""
  tokenizer, real = decoder_tokenizer(), module.sample
  ids = np.asarray(tokenizer("abc", add_special_tokens=False).input_ids)
  (line,) = tokenizer("\n", add_special_tokens=False).input_ids

  def sample(*args, **options):
    made = real(*args, **options)
    place = np.arange(made.tokens.shape[-1])
    tokens = np.where(place % 3 == 2, line, ids[made.tokens % 3])
    own = place < (made.length - made.ended)[..., None]
    made.tokens[own] = tokens[own]
    return made

  monkeypatch.setattr(module, "sample", sample)


def watched(monkeypatch):
  """The list to which every turn's rollout is added."""
  rollouts, turn = [], Optimisation.turn

  def kept(self, *args, **options):
    found = turn(self, *args, **options)
    rollouts.append(found[0])
    return found

  monkeypatch.setattr(Optimisation, "turn", kept)
  return rollouts


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_steps_earn_their_scores_at_their_marks(own, tmp_path, monkeypatch, method):
  in_lines(monkeypatch)
  rollouts = watched(monkeypatch)
  folders = [str(own / "rm"), str(own / "gold")]
  config = own_config(own, method, reward__model=",".join(folders), reward__steps=True)
  summary = run(config, tmp_path / "run")
  models = [RewardModel.from_pretrained(folder) for folder in folders]
  totals, counts = [], []
  for rollout in rollouts:
    expected = np.zeros(rollout.samples.tokens.shape)
    for p, s in np.ndindex(rollout.rewards.shape):
      if text := rollout.texts[p][s]:
        steps = text.removesuffix("\n").split("\n")
        row = {"prompt": rollout.prompts[p], "completions": steps}
        scores = np.mean([model.score_steps([row])[0] for model in models], axis=0)
        # A character is a token. The separator's ends a step, the last token of all the last one.
        ends = [i for i, c in enumerate(text) if c == "\n"]
        marks = ends if text.endswith("\n") else [*ends, len(text) - 1]
        expected[p, s, marks] = scores
        counts.append(len(steps))
    np.testing.assert_allclose(rollout.process, expected, rtol=1e-4, atol=1e-5)
    empty = np.asarray([[not text for text in texts] for texts in rollout.texts])
    np.testing.assert_array_equal(rollout.rewards, np.where(empty, -1.0, 0.0))
    totals.append((expected.sum(-1) + rollout.rewards).mean())
  assert max(counts) == 3
  lines = read_lines(tmp_path / "run" / "metrics.jsonl")
  turns = [line for line in lines if line["split"] == "train"]
  for line, total in zip(turns, totals, strict=True):
    assert line["proxy"] == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert line["reward"] == pytest.approx(line["proxy"])
    assert line["disagreement"] > 0
    assert "score" not in line
  first = summary["points"][0]
  assert first["proxy"] == pytest.approx(lines[0]["proxy"], abs=1e-6)
  assert first["reward"] == pytest.approx(first["proxy"])


def test_a_chain_that_was_begun_before_some_fields_were_there_goes_on(own, tmp_path):
  config = own_config(own, "best_of_n")
  summary = run(config, tmp_path / "run")
  path = tmp_path / "run" / "stage.json"
  begun = json.loads(path.read_text())
  for part, name in (("reward", "steps"), ("reward", "separator"), ("stop", "surprise")):
    del begun["config"][part][name]
  path.write_text(json.dumps(begun))
  assert run(config, tmp_path / "run") == json.loads(json.dumps(summary))
  with pytest.raises(InputError, match=r"reward\.steps: False there, True now"):
    run(own_config(own, "ppo", reward__steps=True), tmp_path / "run")


def test_what_scores_no_steps_is_refused(own, monkeypatch):
  def opened(name):
    return open_proxy([name], byte_policy(2), make_mesh({"data": -1}), steps=True)

  with pytest.raises(InputError, match="is a server, which scores no steps"):
    opened("http://localhost:1/get_reward")
  real = RewardModel.from_pretrained

  def changed(**fields):
    def load(name, **options):
      model = real(name, **options)
      for field, value in fields.items():
        object.__setattr__(model.text_model.convention, field, value)
      return model

    return load

  for field, value, message in (
    ("encoder", True, "is an encoder, which scores no steps; expected a decoder"),
    ("question", "Good?", "asks a judge's question behind a whole response"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(RewardModel, "from_pretrained", changed(**{field: value}))
      with pytest.raises(InputError, match=message):
        opened(str(own / "rm"))


def test_a_saved_chain_of_shaping_is_refused(own):
  chain = declared("clip(low=-1.0, high=1.0)", "--shape")
  path = own / "gold" / "shaping.json"
  write_json(path, chain.record())
  with pytest.raises(InputError, match=r"has a chain of shaping \(clip.*without shaping\.json"):
    open_proxy([str(own / "gold")], byte_policy(2), make_mesh({"data": -1}), steps=True)
  path.unlink()


def test_a_reward_of_a_step_that_is_not_finite_names_the_response():
  def scores(rows):
    return [np.asarray([[0.5, np.nan if "d" in row["completions"][1] else 1.0]]) for row in rows]

  proxy = Proxy(lambda rows: None, None, {}, None, scores)
  fine, bad = ({"prompt": "a", "completions": ["b", text]} for text in ("c", "d"))
  each, said = proxy.steps([fine])
  np.testing.assert_array_equal(each, [[0.5, 1.0]])
  assert said.raw.tolist() == said.shaped.tolist() == [1.5]
  assert np.isnan(said.disagreement).all()
  with pytest.raises(InputError, match=r"response 'bd': the reward of a step is not finite \(1 of"):
    proxy.steps([fine, bad])
