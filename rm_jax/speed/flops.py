"""Operations of a model, counted from shapes: the numerator of model FLOPs utilisation (MFU).

As Chowdhery et al. 2022 (PaLM), appendix B: a product of [m, k] and [k, n] is 2 m k n operations.
Counted are the backbone's linear maps over tokens without padding, and attention over the (query,
key) pairs of one prompt + response, in a decoder those whose key is not later, about half of all;
and where the reward is implicit, the language-model head over the tokens of responses. Not counted
are norms, softmax, the embedding's lookup, any other head, and what rematerialisation computes
again.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from rm_jax.batch.group import Group
from rm_jax.models.config import DecoderConfig, EncoderConfig
from rm_jax.models.network import Network


@dataclasses.dataclass(frozen=True)
class Work:
  """Size of a model's input.

  Attributes:
    tokens: their number.
    visible: number of (query, key) pairs of one sequence, in a decoder without later keys.
    predicted: number of tokens of responses, whose likelihood an implicit reward is made of.
  """

  tokens: int = 0
  visible: int = 0
  predicted: int = 0


def work(groups: Iterable[Group], *, share: bool, causal: bool) -> Work:
  """The size of groups as input, without padding.

  Args:
    groups: tokenised examples.
    share: whether a prompt is stored once, and not with every response.
    causal: whether attention is causal (a decoder).
  """
  tokens = visible = predicted = 0
  for group in groups:
    shared = group.shared if share else 0
    tokens += group.columns(share)
    visible += _square(shared, causal)
    for ids in group.ids:
      rest = len(ids) - shared
      visible += rest * shared + _square(rest, causal)
    predicted += sum(
      int(group.length[group.response == k][0]) for k in np.unique(group.response).tolist()
    )
  return Work(tokens, visible, predicted)


def _square(n: int, causal: bool) -> int:
  """Number of (query, key) pairs of n tokens that see one another."""
  return n * (n + 1) // 2 if causal else n * n


def layer_weights(backbone: DecoderConfig | EncoderConfig) -> int:
  """Number of weights in the linear maps of one layer, without biases."""
  c = backbone
  if isinstance(c, DecoderConfig):
    return c.width * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.width * c.ffn
  return 4 * c.width * c.width + 2 * c.width * c.ffn


def _linear_flops(backbone: DecoderConfig | EncoderConfig, what: Work) -> float:
  return 2.0 * layer_weights(backbone) * what.tokens


def _attention_flops(backbone: DecoderConfig | EncoderConfig, what: Work) -> float:
  # In each channel of each head a (query, key) pair costs a multiplication and an addition for its
  # logit, and the same for its value.
  c = backbone
  return 4.0 * (c.heads * c.head_dim if isinstance(c, DecoderConfig) else c.width) * what.visible


def _keys_share(backbone: DecoderConfig | EncoderConfig) -> float:
  """The share of a layer's linear maps that computes keys and values."""
  c = backbone
  heads = c.kv_heads * c.head_dim if isinstance(c, DecoderConfig) else c.width
  return 2 * c.width * heads / layer_weights(c)


def forward_flops(
  backbone: DecoderConfig | EncoderConfig,
  layers: int,
  what: Work,
  *,
  last_at_marks: bool = False,
) -> float:
  """Operations of the forward pass of `layers` layers; `last_at_marks` as in `step_flops`."""
  linear, attention = _linear_flops(backbone, what), _attention_flops(backbone, what)
  most = layers * (linear + attention)
  return most - (linear + attention - linear * _keys_share(backbone)) if last_at_marks else most


def head_flops(network: Network, what: Work) -> float:
  """Operations of a forward pass of the language-model head, 0 unless the reward is implicit."""
  c = network.backbone
  return 2.0 * c.vocab * c.width * what.predicted if network.implicit else 0.0


def step_flops(network: Network, what: Work, *, last_at_marks: bool = False) -> float:
  """Operations of a training step, whose backward pass costs twice the forward pass.

  Frozen layers have no backward pass; their forward pass counts even if their output is cached.
  With LoRA, frozen linear maps have a gradient to their input and none to their weights, so that
  their backward pass costs one forward pass; the adapters themselves are not counted, since their
  rank is small.

  Args:
    network: whose.
    what: see `Work`.
    last_at_marks: of all tokens the last layer computes only keys and values, and the rest at marks
      (see `reads_marks_alone` in models/network.py). The rest is not counted, since marks are few.
  """
  backbone, frozen = network.backbone, network.frozen
  linear = (2 if network.lora else 3) * _linear_flops(backbone, what)
  trained = linear + 3 * _attention_flops(backbone, what)
  most = (backbone.layers - frozen) * trained + forward_flops(backbone, frozen, what)
  # An embedding that is also the head is frozen where the lowest layers are.
  fixed = network.lora or (frozen and network.implicit and network.head.tied)
  most += (2 if fixed else 3) * head_flops(network, what)
  return most - (trained - linear * _keys_share(backbone)) if last_at_marks else most
