"""Rollouts: samples as text, their rewards at the right responses and tokens, and their groups."""

import dataclasses

import jax
import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.batch.tokenise import Convention
from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig
from rm_jax.parallel.mesh import make_mesh, place_whole
from rm_jax.policy import rollout as module
from rm_jax.policy.experience import Credit, lay, make_experience, packing_of, shapes_of
from rm_jax.policy.generate import Samples, Sampling
from rm_jax.policy.rollout import Rules, groups_of, roll_out, sample, split_steps
from rm_jax.reward.setup import TextModel
from rm_jax.world import World
from tests.conftest import decoder_tokenizer
from tests.policy.small import byte_policy, nested, one_device, params_of, text_model, world_policy

PROMPTS = ["Name a fruit.", ({"role": "user", "content": "Hi"},), "a"]
KEY = jax.random.key(0)
SAMPLING = Sampling(6, (2,))


def encoded(text):
  return byte_policy().text_model.tokenizer(text, add_special_tokens=False).input_ids


def written(monkeypatch, texts, *, longest=24):
  """Makes `sample` return these responses: texts, which end in '$' if EOS follows."""
  shape = len(texts), len(texts[0])
  made = Samples(
    np.zeros((*shape, longest), np.int32),
    np.zeros((*shape, longest), np.float32),
    np.zeros(shape, np.int32),
    np.zeros(shape, bool),
  )
  for p, s in np.ndindex(shape):
    ids = encoded(texts[p][s].removesuffix("$")) + [2] * texts[p][s].endswith("$")
    made.tokens[p, s, : len(ids)], made.length[p, s] = ids, len(ids)
    made.ended[p, s] = texts[p][s].endswith("$")
    made.logp[p, s, : len(ids)] = -0.5
  monkeypatch.setattr(module, "sample", lambda *_, **__: made)


def rolled(reward, prompts=PROMPTS[:1], samples=2, **options):
  options = dict(samples=samples, sampling=SAMPLING, mesh=one_device()) | options
  return roll_out(byte_policy(), {}, prompts, reward, KEY, **options)


def test_the_reward_function_is_asked_about_texts_and_answers_in_their_order(monkeypatch):
  written(monkeypatch, [["An apple.$", "no$"], ["hello$", " two\n\nlines$"]])
  seen = []

  def reward(rows):
    seen.extend(rows)
    return [0.7, -0.3, 2, 0.125]

  got = rolled(reward, PROMPTS[:2])
  assert seen == [
    {"prompt": PROMPTS[0], "response": "An apple."},
    {"prompt": PROMPTS[0], "response": "no"},
    {"prompt": PROMPTS[1], "response": "hello"},
    {"prompt": PROMPTS[1], "response": " two\n\nlines"},
  ]
  np.testing.assert_array_equal(got.rewards, np.float32([[0.7, -0.3], [2, 0.125]]))
  np.testing.assert_array_equal(got.scores, got.rewards)
  assert got.rewards.dtype == np.float32
  assert got.counts.all()


def test_an_empty_response_has_its_declared_reward_and_is_not_asked_about(monkeypatch):
  written(monkeypatch, [["$", " \n$", "yes$"]])
  got = rolled(lambda rows: [0.7] * len(rows), samples=3, rules=Rules(empty=-2.5))
  np.testing.assert_array_equal(got.rewards, np.float32([[-2.5, -2.5, 0.7]]))
  np.testing.assert_array_equal(got.scores, np.float32([[np.nan, np.nan, 0.7]]))
  written(monkeypatch, [["$", "$"]])

  def never(rows):
    raise AssertionError(rows)

  got = rolled(never, rules=Rules(empty=0.5), step_reward=never)
  assert (got.rewards == 0.5).all()


@pytest.mark.parametrize(
  ("unfinished", "expected", "counts"),
  [
    ("keep", 0.7, True),
    ("subtract", -0.55, True),
    ("replace", 1.25, True),
    ("leave_out", 0.7, False),
  ],
)
def test_a_response_without_eos_has_its_declared_treatment(
  monkeypatch, unfinished, expected, counts
):
  written(monkeypatch, [["on and on", "done$"]])
  rules = Rules(unfinished=unfinished, penalty=1.25)
  got = rolled(lambda rows: [0.7] * len(rows), rules=rules)
  np.testing.assert_allclose(got.rewards, [[expected, 0.7]], rtol=1e-6)
  assert got.counts.tolist() == [[counts, True]]
  assert got.where[0, 0].sum() == (len("on and on") if counts else 0)
  assert got.where[0, 1].sum() == len("done") + 1


def test_process_rewards_stand_at_the_tokens_that_end_the_steps_and_reach_the_advantages(
  monkeypatch,
):
  written(monkeypatch, [["ab\ncde\n\nf$", "x\ny"]])
  seen = []

  def steps(rows):
    seen.extend(rows)
    return [np.float32([0.25, -0.5, 1.0]), np.float32([2.0, 4.0])]

  got = rolled(lambda rows: [0.7, -0.3], step_reward=steps)
  assert [row["completions"] for row in seen] == [["ab", "cde", "f"], ["x", "y"]]
  expected = np.zeros((1, 2, 24), np.float32)
  # The separators' tokens: 'ab\n' ends at 2, 'cde\n\n' at 7, 'f' at 8, before EOS at 9.
  expected[0, 0, [2, 7, 8]], expected[0, 1, [1, 2]] = (0.25, -0.5, 1.0), (2.0, 4.0)
  np.testing.assert_array_equal(got.process, expected)
  # GAE with lambda 1, no discount and values of 0: what is still to come.
  credit = Credit("gae", lam=1.0, whiten=False)
  made = make_experience(got, credit, values=np.zeros((1, 2, 24), np.float32))
  first = [1.45] * 3 + [1.2] * 5 + [1.7, 0.7]
  np.testing.assert_allclose(made.arrays["advantages"][0, 0, :10], first, rtol=1e-6)
  np.testing.assert_allclose(made.arrays["advantages"][0, 1, :3], [5.7, 5.7, 3.7], rtol=1e-6)
  assert not made.arrays["advantages"][0, 1, 3:].any()
  np.testing.assert_allclose(made.returns, [[1.45, 5.7]], rtol=1e-6)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a", [("a", 1)]),
    ("a\nb", [("a", 2), ("b", 3)]),
    ("a\n", [("a", 2)]),
    ("a\n\n\nb\n ", [("a", 4), ("b", 7)]),
    ("\n\na\nb", [("a", 4), ("b", 5)]),
  ],
)
def test_steps_are_what_separators_end(text, expected):
  assert split_steps(text, "\n") == expected
  assert split_steps(text, "\n", 3) == [(step, end + 3) for step, end in expected]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_reward_that_is_not_finite_names_its_sample(monkeypatch, bad):
  written(monkeypatch, [["$", "An apple.$"]])
  with pytest.raises(InputError, match=r"prompt 0, sample 1 \('An apple.'\): its reward is"):
    rolled(lambda rows: [bad])
  with pytest.raises(InputError, match=r"prompt 0, sample 1 \('An apple.'\): its reward is"):
    rolled(lambda rows: [0.0], step_reward=lambda rows: [[bad]])


def test_another_number_of_rewards_is_refused(monkeypatch):
  written(monkeypatch, [["a$", "b\nc$"]])
  for wrong in ([0.1], [[0.1], [0.2]], 0.3):
    with pytest.raises(ValueError, match=r"expected \(2,\)"):
      rolled(lambda rows, wrong=wrong: wrong)
  with pytest.raises(ValueError, match=r"expected \(2,\)"):
    rolled(lambda rows: [0.1, 0.2], step_reward=lambda rows: [[0.1], [0.2]])
  with pytest.raises(ValueError, match="1 items; expected 2"):
    rolled(lambda rows: [0.1, 0.2], step_reward=lambda rows: [[0.1]])


def test_groups_are_the_sampled_tokens_with_the_prompt_once(monkeypatch):
  written(monkeypatch, [["ab$", "abc"], ["$", "ab$"]])
  got = rolled(lambda rows: np.zeros(len(rows)), PROMPTS[:2])
  groups, packing = groups_of(got), packing_of(one_device())
  prompts = byte_policy().prompt_ids(PROMPTS[:2], 24)
  (rows,) = lay(groups, [0, 1], shapes=shapes_of(40, 2, 24, packing), packing=packing)
  batch = rows.batch
  for g, prompt in enumerate(prompts):
    (number,) = set(batch.group[rows.at][rows.of[0] == g])
    mine = batch.group == number
    assert batch.tokens[mine & (batch.branch == 0)].tolist() == prompt.tolist()
    for k in range(2):
      at = np.nonzero(mine & (batch.branch == k + 1))
      n = got.samples.length[g, k]
      assert batch.tokens[at].tolist() == got.samples.tokens[g, k, :n].tolist()
      assert batch.position[at].tolist() == list(range(len(prompt), len(prompt) + n))
      # The first token is predicted by the prompt's last column, each other one by the last.
      before = batch.previous[at].tolist()
      last = np.flatnonzero((mine & (batch.branch == 0))[at[0][0]])[-1]
      assert before == [last, *at[1][:-1].tolist()]
  # Values of tokens go to their columns and back.
  values = np.where(got.where, np.arange(96, dtype=np.float32).reshape(2, 2, 24) + 1, 0)
  back = np.zeros_like(values)
  laid = rows.spread(values)
  rows.collect(laid, back)
  np.testing.assert_array_equal(back, values)
  assert (laid != 0).sum() == got.samples.length.sum()


def test_samples_do_not_depend_on_what_runs_together():
  policy = byte_policy(1)
  params = nested(params_of(policy.text_model.network))
  ids = policy.prompt_ids([*PROMPTS, "b" * 40, "c"], 6)
  options = dict(samples=2, sampling=SAMPLING, mesh=one_device())
  whole = sample(policy, params, ids, KEY, **options)
  parts = sample(policy, params, ids, KEY, at_once=2, **options)
  np.testing.assert_array_equal(whole.tokens, parts.tokens)
  np.testing.assert_allclose(whole.logp, parts.logp, atol=1e-5)
  assert whole.tokens.shape == (5, 2, 6)
  # Prompt 4 has its own key, whatever its place in the order of lengths.
  np.testing.assert_array_equal(
    sample(policy, params, [*ids[:3], ids[4], ids[4]], KEY, **options).tokens[4], whole.tokens[4]
  )


def test_several_devices_give_the_samples_of_one():
  policy, mesh = byte_policy(1), make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
  flat = params_of(policy.text_model.network)
  ids = policy.prompt_ids([*PROMPTS, "b" * 40, "c"], 6)
  options = dict(samples=2, sampling=SAMPLING)
  one = sample(policy, nested(flat), ids, KEY, mesh=one_device(), **options)
  placed = place_whole(jax.device_get(flat), mesh)
  four = sample(policy, nested(placed), ids, KEY, mesh=mesh, **options)
  np.testing.assert_array_equal(one.tokens, four.tokens)
  np.testing.assert_allclose(one.logp, four.logp, atol=1e-5)


def test_policy_and_reward_model_may_have_different_tokenizers():
  policy, world = world_policy(), World()
  params = nested(params_of(policy.text_model.network, noise=0.02))
  made = text_model(decoder_tokenizer(), HeadConfig(), num_hidden_layers=1)
  judge = TextModel(made.network, made.tokenizer, Convention(max_length=512), made.config, None)
  mesh = one_device()
  model = RewardModel(judge, nested(params_of(judge.network, seed=1)), mesh)
  prompts = world.prompts("train", 3, seed=0)
  known = len(policy.text_model.tokenizer)
  got = roll_out(
    policy,
    params,
    prompts,
    model.score,
    KEY,
    samples=2,
    sampling=Sampling(8, (2,), vocab=known),
    mesh=mesh,
  )
  for p, s in np.ndindex(3, 2):
    row = {"prompt": prompts[p], "response": got.texts[p][s]}
    np.testing.assert_allclose(model.score([row]), got.rewards[p, s], atol=1e-5)
    assert isinstance(world.true_reward(prompts[p], got.texts[p][s]), float)


def test_rules_that_cannot_be_are_refused():
  with pytest.raises(InputError, match="'drop'; expected one of keep"):
    Rules(unfinished="drop")
  for name in ("empty", "penalty"):
    with pytest.raises(InputError, match=f"{name} is nan"):
      Rules(**{name: np.nan})


def test_credit_that_cannot_be_given_is_refused(monkeypatch):
  written(monkeypatch, [["a$"]])
  alone = rolled(lambda rows: [0.7], samples=1)
  with pytest.raises(InputError, match="1 sample; expected 2 or more"):
    make_experience(alone, Credit("group"))
  with pytest.raises(ValueError, match="values is None"):
    make_experience(alone, Credit("gae"))
  values = np.zeros((1, 1, 24), np.float32)
  with pytest.raises(ValueError, match="reference is None"):
    make_experience(alone, Credit("gae", "k1"), values=values)
  bad = dataclasses.replace(alone, rewards=np.float32([[np.nan]]))
  with pytest.raises(InputError, match="prompt 0, sample 0: its reward is nan"):
    make_experience(bad, Credit("gae"), values=values)
  with pytest.raises(InputError, match="'best'; expected one of gae"):
    Credit("best")
