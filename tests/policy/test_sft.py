"""Supervised fine-tuning: its loss is the formula's, falls, and does not depend on the layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.batch.layout import Packing
from rm_jax.data.report import DataError, Report
from rm_jax.policy.experience import lay, packing_of
from rm_jax.policy.sft import Likelihood, mean_loss, tokenised
from rm_jax.policy.update import compile_update, start, take_step
from rm_jax.types import Batch
from rm_jax.world import World
from tests.policy.small import nested, one_device, optimizer_of, params_of, world_policy

POLICY = world_policy()
NETWORK = POLICY.text_model.network


def rows(count=6):
  world = World()
  rng = np.random.default_rng(0)
  prompts = world.prompts("train", count, seed=0)
  return [(prompt, world.sample(prompt, 1, rng)[0].response) for prompt in prompts]


def texts(count=6, packing=None):
  return tokenised(POLICY, rows(count), Report(), packing or packing_of(one_device(), 512))


def by_hand(flat, made):
  """−log π of each response's tokens in NumPy, by a softmax after each text alone."""
  longest = max(len(group.ids[0]) for group in made.groups)
  ids = np.zeros((len(made.groups), longest), np.int32)
  for row, group in zip(ids, made.groups, strict=True):
    row[: len(group.ids[0])] = group.ids[0]
  zeros = jnp.zeros_like(ids)
  column = jnp.broadcast_to(jnp.arange(longest, dtype=jnp.int32)[None], ids.shape)
  one = jnp.zeros((len(ids), 1, 1), jnp.int32)
  batch = Batch(jnp.asarray(ids), zeros + 1, zeros, column, one, one > 0, one, one[..., 0])
  h = np.asarray(NETWORK.hidden(nested(flat), batch), np.float64)
  logits = h @ np.asarray(flat["backbone/embed/embedding"], np.float64).T
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return [
    -logp[n, i - 1, group.ids[0][i]]
    for n, group in enumerate(made.groups)
    for i in range(group.shared, len(group.ids[0]))
  ]


def test_tokens_are_those_that_the_policy_reads_and_writes():
  made = texts()
  for (prompt, response), group in zip(rows(), made.groups, strict=True):
    (ids,) = POLICY.prompt_ids([prompt], 40)
    assert group.ids[0][: group.shared].tolist() == ids.tolist()
    own = group.ids[0][group.shared :]
    assert own[-1] == POLICY.text_model.tokenizer.eos_token_id
    assert POLICY.text(ids, own[:-1]) == response[0]["content"]


def test_the_loss_is_the_mean_over_all_tokens():
  flat, made = params_of(NETWORK), texts()
  expected = np.mean(by_hand(flat, made))
  assert mean_loss(NETWORK, nested(flat), made, one_device()) == pytest.approx(expected, rel=1e-5)
  optimizer = optimizer_of()
  laid = lay(made.groups, range(6), shapes=made.shapes, packing=made.packing)
  compiled = compile_update(NETWORK, Likelihood(), optimizer)
  _, said = take_step(
    compiled, start(flat, optimizer, one_device()), laid, made.arrays, one_device()
  )
  assert said["loss"] == pytest.approx(expected, rel=1e-5)


def test_loss_falls():
  optimizer = optimizer_of(learning_rate=3e-3, eps=1e-8, weight_decay=0.0)
  state = start(params_of(NETWORK, noise=0.0), optimizer, one_device())
  compiled, made = compile_update(NETWORK, Likelihood(), optimizer), texts()
  losses = []
  for _ in range(60):
    laid = lay(made.groups, range(6), shapes=made.shapes, packing=made.packing)
    state, metrics = take_step(compiled, state, laid, made.arrays, one_device())
    losses.append(metrics["loss"])
  assert losses[0] == pytest.approx(np.log(640), rel=0.1)
  assert losses[-1] < 0.5 * losses[0]
  assert mean_loss(NETWORK, state.all_params(), made, one_device()) < losses[-1] * 1.01


@pytest.mark.parametrize("packing", [Packing(), Packing(pack=False, cells=64)])
def test_loss_and_gradient_do_not_depend_on_the_layout(packing):
  flat = params_of(NETWORK)
  optimizer = optimizer_of()
  compiled = compile_update(NETWORK, Likelihood(), optimizer)
  found = []
  for made in (texts(), texts(packing=packing)):
    state = start(flat, optimizer, one_device())
    laid = lay(made.groups, range(6), shapes=made.shapes, packing=made.packing)
    state, metrics = take_step(compiled, state, laid, made.arrays, one_device())
    found.append((jax.device_get(state.params), metrics))
  for path, x in found[0][0].items():
    np.testing.assert_allclose(x, found[1][0][path], rtol=1e-4, atol=1e-5)
  assert found[0][1]["loss"] == pytest.approx(found[1][1]["loss"], rel=1e-5)


def test_no_texts_are_an_error():
  with pytest.raises(DataError, match="none of the 0 texts"):
    tokenised(POLICY, [], Report(), packing_of(one_device()))
