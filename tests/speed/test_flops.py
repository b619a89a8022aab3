"""Counted operations against the network's parameters and against the attention mask itself."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rm_jax.batch.group import Group
from rm_jax.batch.layout import Packing, need, pack, plan
from rm_jax.batch.pack import assemble, optional_fields
from rm_jax.models.attention import visible, within
from rm_jax.models.config import HeadConfig, LikelihoodHead
from rm_jax.models.lora import Lora
from rm_jax.models.network import Network
from rm_jax.pretrained.config import backbone_config
from rm_jax.speed.flops import (
  Work,
  forward_flops,
  layer_weights,
  planned_work,
  step_flops,
  work,
)

LLAMA = {
  "model_type": "llama",
  "vocab_size": 50,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
}
BERT = {
  "model_type": "bert",
  "vocab_size": 50,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
}


def groups(seed=0):
  """Groups of two to four responses, of several lengths."""
  rng = np.random.default_rng(seed)
  out = []
  for _ in range(9):
    prompt = rng.integers(1, 50, rng.integers(1, 12))
    rest = [rng.integers(1, 50, rng.integers(1, 9)) for _ in range(rng.integers(2, 5))]
    ids = tuple(np.concatenate([prompt, r]).astype(np.int32) for r in rest)
    ends = np.asarray([len(i) - 1 for i in ids], np.int32)
    k = len(ids)
    response = np.arange(k, dtype=np.int32)
    out.append(Group(ids, len(prompt), ends, response, -response.astype(np.float32), ends))
  return out


@pytest.mark.parametrize(("share", "causal"), [(True, True), (False, True), (False, False)])
def test_visible_pairs_are_those_of_the_mask(share, causal):
  some = groups()
  packing = Packing(share=share, row_lengths=(160,))
  needs = [need(g, packing) for g in some]
  shapes = plan(some, len(some), packing)
  seen = columns = 0
  for micro in pack(range(len(some)), needs, shapes):
    batch, _ = assemble(micro, some, packing=packing, fields=optional_fields(some))
    mask = np.asarray(visible(jax.tree.map(np.asarray, batch), causal=causal))
    seen += int((mask & (batch.group > 0)[:, :, None]).sum())
    columns += int((batch.group > 0).sum())
  responses = sum(int(g.length.sum()) for g in some)
  assert work(some, share=share, causal=causal) == Work(columns, seen, responses)


@pytest.mark.parametrize("share", [True, False])
def test_visible_pairs_within_a_sliding_window_are_those_of_its_mask(share):
  some = groups()
  packing = Packing(share=share, row_lengths=(160,))
  shapes = plan(some, len(some), packing)
  seen = {4: 0, 9: 0}
  for micro in pack(range(len(some)), [need(g, packing) for g in some], shapes):
    batch, _ = assemble(micro, some, packing=packing, fields=optional_fields(some))
    mask = np.asarray(visible(jax.tree.map(np.asarray, batch), causal=True))
    mask = mask & (batch.group > 0)[:, :, None]
    for window in seen:
      seen[window] += int((mask & np.asarray(within(batch.position, window))).sum())
  what = work(some, share=share, causal=True, sliding=(9, 0, 4, 9))
  assert what.near == tuple(seen.items())
  assert what == dataclasses.replace(work(some, share=share, causal=True), near=what.near)
  assert seen[4] < seen[9] < what.visible


def test_a_layer_with_a_sliding_window_attends_within_it():
  backbone = dataclasses.replace(backbone_config(LLAMA), sliding_windows=(4, 0, 4))
  what = planned_work(1, tokens=10, shared=0, ends=[10], causal=True, sliding=(4, 0, 4))
  assert what == Work(10, 55, 10, ((4, 4 * 5 // 2 + 6 * 4),))
  linear, near, full = (2 * layer_weights(backbone) * 10, *(4 * 32 * n for n in (34, 55)))
  assert forward_flops(backbone, 1, what) == linear + near
  assert forward_flops(backbone, 3, what) == pytest.approx(3 * linear + 2 * near + full)
  network = Network(backbone, HeadConfig(), frozen=1)
  assert step_flops(network, what) == pytest.approx(
    (linear + near) + 3 * (2 * linear + near + full)
  )
  # At marks alone the last layer, of a window of 4, computes no attention over all tokens.
  less = step_flops(network, what) - step_flops(network, what, last_at_marks=True)
  keys = 2 * (2 * 24 * 16) * 10
  assert less == pytest.approx(3 * (linear + near - keys))


@pytest.mark.parametrize("config", [LLAMA, BERT], ids=["llama", "bert"])
def test_weights_are_the_networks_own(config):
  backbone = backbone_config(config)
  params = flatten_dict(Network(backbone, HeadConfig()).abstract(), sep="/")
  kernels = [x.size for p, x in params.items() if "/layers/" in p and p.endswith("/kernel")]
  assert layer_weights(backbone) * 3 == sum(kernels)


def test_a_step_by_hand():
  backbone = backbone_config(LLAMA)
  # q and o 24 x 32, k and v 24 x 16, gate, up and down 24 x 40.
  weights = 2 * 24 * 32 + 2 * 24 * 16 + 3 * 24 * 40
  one = 2 * weights * 10 + 4 * 32 * 55  # a causal sequence of 10
  what = Work(10, 55)
  assert forward_flops(backbone, 1, what) == one
  assert step_flops(Network(backbone, HeadConfig()), what) == 9 * one
  assert step_flops(Network(backbone, HeadConfig(), frozen=2), what) == 3 * one + 2 * one
  # The last layer computes only keys and values for all tokens: kernels of 24 x 16 each.
  less = 2 * weights * 10 - 2 * (2 * 24 * 16) * 10 + 4 * 32 * 55
  assert forward_flops(backbone, 3, what, last_at_marks=True) == 3 * one - less
  assert step_flops(Network(backbone, HeadConfig()), what, last_at_marks=True) == pytest.approx(
    9 * one - 3 * less
  )
  adapted = Network(backbone, HeadConfig(), lora=Lora(rank=2))
  assert step_flops(adapted, what) == 3 * (2 * 2 * weights * 10 + 3 * 4 * 32 * 55)


def test_an_implicit_reward_counts_the_language_model_head():
  backbone, what = backbone_config(LLAMA), Work(10, 55, 4)
  one = 2 * 50 * 24 * 4

  def more(head, **options):
    implicit, plain = (Network(backbone, h, **options) for h in (head, HeadConfig()))
    return step_flops(implicit, what) - step_flops(plain, what)

  assert more(LikelihoodHead()) == more(LikelihoodHead(tied=False)) == 3 * one
  # A head that is not trained has no gradient of its own.
  assert more(LikelihoodHead(), frozen=1) == more(LikelihoodHead(), lora=Lora(rank=2)) == 2 * one
  assert more(LikelihoodHead(tied=False), frozen=1) == 3 * one
