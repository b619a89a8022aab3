"""Operations of a model, counted from shapes: the numerator of model FLOPs utilisation (MFU).

As Chowdhery et al. 2022 (PaLM), appendix B: a product of [m, k] and [k, n] is 2 m k n operations.
Counted are the backbone's linear maps over tokens without padding, and attention over the (query,
key) pairs of one prompt + response, in a decoder those whose key is not later, about half of all,
and in a layer with a sliding window those within it, even where attention computes whole squares;
and where the reward is implicit, the language-model head over the tokens of responses. Not counted
are norms, softmax, the embedding's lookup, any other head, and what rematerialisation computes
again.
"""

import dataclasses
from collections.abc import Iterable, Sequence

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
    near: (sliding window, number of those pairs within it), for each of a decoder's. A layer whose
      window is not among them sees all of `visible`.
  """

  tokens: int = 0
  visible: int = 0
  predicted: int = 0
  near: tuple[tuple[int, int], ...] = ()


def work(
  groups: Iterable[Group], *, share: bool, causal: bool, sliding: Iterable[int] | None = None
) -> Work:
  """The size of groups as input, without padding.

  Args:
    groups: tokenised examples.
    share: whether a prompt is stored once, and not with every response.
    causal: whether attention is causal (a decoder).
    sliding: the sliding windows of a decoder's layers, 0 = none; None = no layer has one.
  """
  tokens = visible = predicted = 0
  near = dict.fromkeys(_limits(sliding), 0)
  for group in groups:
    shared = group.shared if share else 0
    ends = [len(ids) for ids in group.ids]
    tokens += group.columns(share)
    visible += visible_pairs(shared, ends, causal=causal)
    for window in near:
      near[window] += visible_pairs(shared, ends, causal=causal, window=window)
    predicted += sum(
      int(group.length[group.response == k][0]) for k in np.unique(group.response).tolist()
    )
  return Work(tokens, visible, predicted, tuple(near.items()))


def planned_work(
  count: int,
  *,
  tokens: int,
  shared: int,
  ends: Sequence[int],
  causal: bool,
  sliding: Iterable[int] | None = None,
) -> Work:
  """The size of `count` groups that are all alike; see `work` and `visible_pairs`.

  Args:
    count: number of groups.
    tokens: columns of a group.
    shared, ends: as `visible_pairs` takes them.
    causal, sliding: as `work` takes them.
  """
  visible = visible_pairs(shared, ends, causal=causal)
  near = tuple(
    (window, count * visible_pairs(shared, ends, causal=causal, window=window))
    for window in _limits(sliding)
  )
  predicted = sum(end - shared for end in ends)
  return Work(count * tokens, count * visible, count * predicted, near)


def visible_pairs(shared: int, ends: Sequence[int], *, causal: bool, window: int = 0) -> int:
  """Number of (query, key) pairs of a group that attention is about.

  Args:
    shared: tokens of the prompt that its responses share; 0 = each has its own copy of it.
    ends: tokens of each sequence, prompt + response.
    causal: whether attention is causal.
    window: how many tokens back a query sees, its own included; 0 = all.
  """

  def seen(n: int) -> int:
    """Pairs of the first n queries of a causal sequence: min(window, position + 1) for each."""
    full = min(n, window) if window else n
    return full * (full + 1) // 2 + (n - full) * window

  if causal:
    return seen(shared) + sum(seen(end) - seen(shared) for end in ends)
  square = sum((end - shared) * shared + (end - shared) ** 2 for end in ends)
  return shared * shared + square


def _limits(sliding: Iterable[int] | None) -> list[int]:
  """The distinct sliding windows of some layers, without 0."""
  return sorted({window for window in sliding or () if window})


def sliding_windows(backbone: DecoderConfig | EncoderConfig) -> tuple[int, ...] | None:
  """The sliding window of each layer, 0 = it sees all before; None where no layer has one."""
  return backbone.sliding_windows if isinstance(backbone, DecoderConfig) else None


def layer_weights(backbone: DecoderConfig | EncoderConfig) -> int:
  """Number of weights in the linear maps of one layer, without biases."""
  c = backbone
  if isinstance(c, DecoderConfig):
    return c.width * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.width * c.ffn
  return 4 * c.width * c.width + 2 * c.width * c.ffn


def _linear_flops(backbone: DecoderConfig | EncoderConfig, what: Work) -> float:
  return 2.0 * layer_weights(backbone) * what.tokens


def _attention_flops(backbone: DecoderConfig | EncoderConfig, what: Work, layers: range) -> float:
  """Operations of one layer's attention, the mean over some layers, whose windows may differ."""
  # In each channel of each head a (query, key) pair costs a multiplication and an addition for its
  # logit, and the same for its value.
  c = backbone
  width = c.heads * c.head_dim if isinstance(c, DecoderConfig) else c.width
  pairs, windows = what.visible, sliding_windows(c)
  if what.near and windows and layers:
    near = dict(what.near)
    pairs = sum(near.get(windows[i], what.visible) for i in layers) / len(layers)
  return 4.0 * width * pairs


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
  """Operations of the forward pass of the lowest layers.

  Args:
    backbone: whose.
    layers: how many.
    what: see `Work`.
    last_at_marks: as in `step_flops`.
  """
  linear = _linear_flops(backbone, what)
  most = layers * (linear + _attention_flops(backbone, what, range(layers)))
  last = linear + _attention_flops(backbone, what, range(layers - 1, layers))
  return most - (last - linear * _keys_share(backbone)) if last_at_marks else most


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
  backbone, frozen, layers = network.backbone, network.frozen, network.backbone.layers
  linear = (2 if network.lora else 3) * _linear_flops(backbone, what)
  trained = linear + 3 * _attention_flops(backbone, what, range(frozen, layers))
  most = (layers - frozen) * trained + forward_flops(backbone, frozen, what)
  # An embedding that is also the head is frozen where the lowest layers are.
  fixed = network.lora or (frozen and network.implicit and network.head.tied)
  most += (2 if fixed else 3) * head_flops(network, what)
  last = linear + 3 * _attention_flops(backbone, what, range(layers - 1, layers))
  return most - (last - linear * _keys_share(backbone)) if last_at_marks else most
