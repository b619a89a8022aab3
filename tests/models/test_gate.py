"""A gate weighs the attributes by the prompt alone, however rows are laid out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from rm_jax.batch.group import Group
from rm_jax.batch.layout import Packing, need, pack, plan
from rm_jax.batch.pack import assemble
from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.score import pool_groups, score_groups
from tests.batch.test_pack import random_groups
from tests.models.layouts import VOCAB
from tests.models.oracle import make_network, quick_jit, random_params

# It reads the prompt's end where the head reads its marks.
pytestmark = pytest.mark.usefixtures("last_layer_apart")
HEAD = HeadConfig(outputs=2, attributes=("a", "b"), mix=(0.5, 0.5), gate=True)
# Prompts of at least one token: in an encoder each response has a copy.
GROUPS = [
  dataclasses.replace(
    g,
    ids=tuple((i % VOCAB).astype(np.int32) for i in g.ids),
    token_type=tuple((np.arange(len(i)) >= g.shared).astype(np.int32) for i in g.ids),
  )
  for g in random_groups(12, longest=28)
  if g.shared
]


def gated(arch):
  network = make_network(arch)
  pooler = {"pooler": network.head.pooler, "bias": network.head.bias}
  return dataclasses.replace(network, head=dataclasses.replace(HEAD, **pooler))


def run(network, params, packing):
  """For each group the log-weights at its marks, [A, marks], and its rewards, [marks]."""
  needs = [need(g, packing) for g in GROUPS]
  micros = pack(range(len(GROUPS)), needs, plan(GROUPS, len(GROUPS), packing))
  fields = frozenset(network.needs | ({"token_type"} if not network.causal else set()))
  out = [None] * len(GROUPS)
  for micro in micros:
    batch, index_BG = assemble(micro, GROUPS, packing=packing, fields=fields)
    outputs = quick_jit(network.apply)(params, batch)
    rewards = np.asarray(network.reward(params, outputs))
    outputs = np.asarray(outputs)
    assert outputs.shape == (4, *batch.marks.shape)
    for b, g in zip(*np.nonzero(index_BG >= 0), strict=True):
      marks = len(GROUPS[index_BG[b, g]].marks)
      out[index_BG[b, g]] = outputs[:, b, g, :marks], rewards[b, g, :marks]
  return out


def prompt_state(network, params, group):
  """What the gate is to read, from the prompt alone."""
  prompt = np.asarray(group.ids[0][: group.shared])
  if network.causal:
    alone = dataclasses.replace(
      group,
      ids=(prompt,),
      shared=0,
      marks=np.asarray([len(prompt) - 1], np.int32),
      response=np.zeros(1, np.int32),
      labels=np.zeros(1, np.float32),
      length=np.ones(1, np.int32),
    )
    packing = Packing(share=False, pack=False, cells=512)
    (micro,) = pack([0], [need(alone, packing)], plan([alone], 1, packing))
    batch, _ = assemble(micro, [alone], packing=packing, fields=frozenset())
    return np.asarray(quick_jit(network.hidden)(params, batch))[0, len(prompt) - 1]
  p = params["backbone"]
  h = p["embed"]["embedding"][prompt] + p["embed_token_type"]["embedding"][0]
  h = h + p["embed_position"]["embedding"][: len(prompt)]
  h = (h - h.mean(axis=-1, keepdims=True)) / np.sqrt(
    h.var(axis=-1, keepdims=True) + network.backbone.eps
  )
  return (h * p["embed_norm"]["scale"] + p["embed_norm"]["bias"]).mean(axis=0)


@pytest.mark.parametrize("arch", ["llama", "bert"])
@pytest.mark.slow
def test_the_weights_are_a_softmax_of_the_prompts_own_state(arch):
  network = gated(arch)
  params = random_params(network)
  found = run(network, params, Packing(share=network.causal, cells=512))
  gating = params["head"]["gating"]
  for group, (outputs, rewards) in zip(GROUPS, found, strict=True):
    state = prompt_state(network, params, group)
    expected = log_softmax(state @ gating["kernel"] + gating["bias"])
    weights = outputs[2:]
    np.testing.assert_allclose(weights, np.tile(expected[:, None], len(group.marks)), atol=2e-5)
    np.testing.assert_allclose(rewards, (np.exp(weights) * outputs[:2]).sum(axis=0), atol=1e-5)
  spread = np.ptp([outputs[2, 0] for outputs, _ in found])
  assert spread > 0.5  # The prompts differ in what they are given.


@pytest.mark.parametrize("packed", [True, False])
def test_sharing_and_packing_change_no_weight(packed):
  network = gated("llama")
  params = random_params(network)
  expected = run(network, params, Packing(share=True, cells=512))
  for (ours, _), (other, _) in zip(
    run(network, params, Packing(share=False, pack=packed, cells=512)), expected, strict=True
  ):
    np.testing.assert_allclose(ours, other, atol=2e-5)


@pytest.mark.parametrize("trains", [0.0, 0.5])
@pytest.mark.parametrize("arch", ["llama", "bert"])
@pytest.mark.slow
def test_the_gate_trains_the_backbone_where_it_is_to(arch, trains):
  network = dataclasses.replace(gated(arch), gate_trains=trains)
  params = random_params(network)
  packing = Packing(share=network.causal, cells=512)
  needs = [need(g, packing) for g in GROUPS[:2]]
  micro = pack(range(2), needs, plan(GROUPS[:2], 2, packing))[0]
  fields = frozenset(network.needs | ({"token_type"} if not network.causal else set()))
  batch, _ = assemble(micro, GROUPS, packing=packing, fields=fields)
  gradient = quick_jit(jax.grad(lambda p: jnp.sum(network.apply(p, batch)[2] ** 2)))(params)
  reached = any((np.asarray(g) != 0).any() for g in jax.tree.leaves(gradient["backbone"]))
  assert reached == (trains > 0)
  assert np.abs(gradient["head"]["gating"]["kernel"]).max() > 0


@pytest.mark.slow
def test_pooled_scores_are_those_of_the_outputs():
  """Without the gate's log-weights, and with an axis of outputs also where there is one."""
  mesh = make_mesh({"data": 1}, jax.devices()[:1])
  options = dict(mesh=mesh, packing=Packing(share=True))
  network = gated("llama")
  one = dataclasses.replace(network, head=HeadConfig())
  for each in (network, one):
    params = random_params(each)
    pooled = pool_groups(each, params, GROUPS[:3], outputs=True, **options)
    scored = score_groups(each, params, GROUPS[:3], outputs=True, **options)
    for (_, found), expected in zip(pooled, scored, strict=True):
      assert found.shape == expected.shape
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_steps_are_read_so_far_and_weights_are_not():
  network = gated("llama")
  params = random_params(network)
  group = Group(
    ids=(np.arange(12, dtype=np.int32) % VOCAB,),
    shared=0,
    marks=np.asarray([6, 9, 11], np.int32),
    response=np.zeros(3, np.int32),
    labels=np.zeros(3, np.float32),
    length=np.full(3, 8, np.int32),
    kind="step",
  )
  packing = Packing(share=False, pack=False, cells=512)
  (micro,) = pack([0], [need(group, packing)], plan([group], 1, packing))
  batch, _ = assemble(micro, [group], packing=packing, fields=frozenset(network.needs))
  least = dataclasses.replace(network, head=dataclasses.replace(network.head, steps="min"))
  own, read = (np.asarray(quick_jit(n.apply)(params, batch))[:, 0, 0, :3] for n in (network, least))
  np.testing.assert_allclose(read[:2], np.minimum.accumulate(own[:2], axis=1), atol=1e-5)
  assert np.ptp(own[:2], axis=1).min() > 0.01
  np.testing.assert_allclose(read[2:], own[2:], atol=1e-5)


def test_the_mix_multiplies_the_gates_probabilities():
  network = gated("llama")
  params = random_params(network)
  even = run(network, params, Packing(share=True, cells=512))
  mix = (0.2, 0.6)
  other = dataclasses.replace(network, head=dataclasses.replace(network.head, mix=mix))
  params["head"] |= {"mix": np.asarray(mix, np.float32)}
  found = run(other, params, Packing(share=True, cells=512))
  for (outputs, rewards), (before, _) in zip(found, even, strict=True):
    np.testing.assert_array_equal(outputs, before)  # The gate itself, which is trained, is as ever.
    first = 0.2 * np.exp(before[2]) / (0.2 * np.exp(before[2]) + 0.6 * np.exp(before[3]))
    expected = first * before[0] + (1 - first) * before[1]
    np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)


def test_a_mix_beside_a_gate_is_above_zero():
  for mix in ((1.0, 0.0), (-1.0, 2.0)):
    with pytest.raises(InputError, match="expected numbers above 0"):
      HeadConfig(outputs=2, attributes=("a", "b"), mix=mix, gate=True)


def test_a_gate_needs_something_to_weigh():
  with pytest.raises(InputError, match="expected two or more"):
    HeadConfig(outputs=1, attributes=("a",), mix=(1.0,), gate=True)


def test_the_repr_of_a_head_without_a_gate_is_that_of_earlier_versions():
  """It is part of the key of cached scores and of drift references."""
  assert repr(HeadConfig()) == (
    "HeadConfig(outputs=1, ensemble=False, attributes=(), mix=(), bias=False, pooler=False, "
    "activation='tanh', dropout=0.0)"
  )
  assert repr(HEAD).endswith("dropout=0.0, gate=True)")
