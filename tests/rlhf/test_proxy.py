"""Rewards of folders: an ensemble, shaping, other tokenizers, and what is not finite."""

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax.api import RewardModel
from rm_jax.data import formats
from rm_jax.data.report import Report
from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig
from rm_jax.parallel.mesh import make_mesh
from rm_jax.policy.rollout import Rules, roll_out
from rm_jax.rlhf.proxy import Proxy, open_proxy
from rm_jax.rlhf.watch import Asked
from rm_jax.shaping.chain import declared
from tests.conftest import decoder_tokenizer
from tests.policy.small import byte_policy, nested, one_device, params_of, text_model, world_policy

ROWS = [{"prompt": "a", "response": text} for text in ("bc", "d" * 9, "e f")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Three reward models on bytes, with random weights."""
  made = []
  for seed in range(3):
    model = text_model(decoder_tokenizer(), HeadConfig(), num_hidden_layers=1)
    params = unflatten_dict(params_of(model.network, seed), sep="/")
    made.append(str(tmp_path_factory.mktemp("models") / str(seed)))
    RewardModel(model, params, one_device()).save_pretrained(made[-1])
  return made


def open_(names, shaping="", **options):
  return open_proxy(names, byte_policy(1), make_mesh({"data": -1}), shaping=shaping, **options)


def test_several_folders_are_an_ensemble(folders):
  each = np.stack([RewardModel.from_pretrained(name).score(ROWS) for name in folders], axis=1)
  scored = open_(folders)(ROWS)
  np.testing.assert_allclose(scored.raw, each.mean(1), rtol=1e-5)
  np.testing.assert_allclose(scored.disagreement, each.std(1), rtol=1e-4)
  np.testing.assert_allclose(scored.shaped, scored.raw, rtol=1e-6)
  low = open_(folders, "lower(deviations=2.0)")(ROWS)
  np.testing.assert_allclose(low.shaped, each.mean(1) - 2 * each.std(1), rtol=1e-4, atol=1e-5)
  alone = open_(folders[:1])(ROWS)
  assert np.isnan(alone.disagreement).all()
  assert open_(folders).fingerprint != open_(folders[:2]).fingerprint


def test_filters_are_counted(folders):
  scored = open_(
    folders[:1], "filters(penalty=-9.0, low=None, high=None, languages=(), max_characters=5)"
  )(ROWS)
  assert scored.caught.tolist() == [False, True, False]
  assert scored.shaped[1] == -9.0


def test_numbers_that_are_left_out_need_preferences(folders, tmp_path):
  with pytest.raises(InputError, match="no preferences to fit them on"):
    open_(folders[:1], "normalise")
  rows = [(f"q{i}", "ab" * (i + 1), "c" * i + "d") for i in range(9)]
  path = tmp_path / "pairs.jsonl"

  def read():
    return formats.load(path, report=Report(strict=True))

  lines = [f'{{"prompt": "{p}", "chosen": "{c}", "rejected": "{r}"}}\n' for p, c, r in rows]
  path.write_text("".join(lines))
  proxy = open_(folders[:1], "normalise", preferences=read)
  texts = [{"prompt": p, "response": t} for p, *both in rows for t in both]
  shaped = proxy(texts).shaped
  assert shaped.mean() == pytest.approx(0, abs=1e-5)
  assert shaped.std() == pytest.approx(1, abs=1e-5)
  # Numbers that were fitted earlier are taken as they are.
  path.unlink()
  again = open_(folders[:1], "normalise", preferences=read, fitted=proxy.chain)
  assert again.fingerprint == proxy.fingerprint


def test_a_reward_that_is_not_finite_stops_and_names_the_response():
  def members(rows):
    return np.asarray([[np.inf if "d" in row["response"] else 1.0] for row in rows])

  for chain in (None, declared("tanh")):
    with pytest.raises(InputError, match="response 'ddddddddd': its reward is not finite"):
      Proxy(members, chain, {})(ROWS)


def test_a_folder_whose_scores_are_not_finite_names_the_response(tmp_path):
  model = text_model(decoder_tokenizer(), HeadConfig(), num_hidden_layers=1)
  flat = params_of(model.network)
  flat["head/out/kernel"] = np.full_like(flat["head/out/kernel"], 3e38)  # sums overflow
  RewardModel(model, unflatten_dict(flat, sep="/"), one_device()).save_pretrained(tmp_path / "rm")
  with pytest.raises(InputError, match=r"response 'd': its score is -?(inf|nan)"):
    open_([str(tmp_path / "rm")])([{"prompt": "p", "response": "d"}])


def test_a_policy_and_a_reward_model_of_different_tokenizers(folders):
  """The policy writes the world's words, the reward model reads bytes."""
  policy, proxy = world_policy(), open_(folders)
  asked = Asked(proxy)
  rollout = roll_out(
    policy,
    nested(params_of(policy.text_model.network)),
    ["Who has the saw?", "Where?"],
    asked,
    jax.random.key(0),
    samples=3,
    sampling=policy.sampling(6),
    mesh=one_device(),
    rules=Rules(empty=-3.0),
  )
  rows = [
    {"prompt": prompt, "response": text}
    for prompt, texts in zip(rollout.prompts, rollout.texts, strict=True)
    for text in texts
  ]
  expected = np.mean([RewardModel.from_pretrained(name).score(rows) for name in folders], axis=0)
  np.testing.assert_allclose(asked.of(rollout).raw.reshape(-1), expected, rtol=1e-4, atol=1e-5)


def test_an_empty_response_earns_what_is_declared():
  def members(rows):
    return np.ones((len(rows), 2)) * [0.0, 2.0]

  policy, asked = byte_policy(1), Asked(Proxy(members, declared("clip(low=-1, high=0.5)"), {}))
  ends = policy.sampling(1)  # one token: EOS, or a byte
  flat = params_of(policy.text_model.network)
  rollout = roll_out(
    policy,
    nested(flat),
    ["a"],
    asked,
    jax.random.key(0),
    samples=400,
    sampling=ends,
    mesh=one_device(),
    rules=Rules(empty=-3.0),
  )
  empty = np.isnan(rollout.scores)
  assert 0 < empty.sum() < 400
  said = asked.of(rollout)
  np.testing.assert_array_equal(said.raw, np.where(empty, -3.0, 1.0))
  np.testing.assert_array_equal(said.shaped, np.where(empty, -3.0, 0.5))
  np.testing.assert_array_equal(np.isnan(said.disagreement), empty)
