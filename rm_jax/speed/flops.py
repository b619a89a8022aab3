"""A model's work, counted from shapes: what MFU divides by (Chowdhery et al. 2022, appendix B).

A product of [m, k] and [k, n] is 2 m k n operations. Counted are the backbone's linear maps over
tokens that are not padding, and attention over the (query, key) pairs that see one another, so that
of a causal square only its half; not counted are norms, softmax, the embedding's lookup, the head,
and what rematerialisation makes again.
"""

import dataclasses
from collections.abc import Iterable

from rm_jax.batch.group import Group
from rm_jax.models.config import DecoderConfig, EncoderConfig
from rm_jax.models.network import Network


@dataclasses.dataclass(frozen=True)
class Work:
  """What groups put before a model: `tokens`, and `visible` (query, key) pairs of columns."""

  tokens: int = 0
  visible: int = 0


def work(groups: Iterable[Group], *, share: bool, causal: bool) -> Work:
  """The work of groups.

  Args:
    groups: as tokenised.
    share: a prompt is stored once; else with every response.
    causal: a column sees none after it.
  """
  tokens = visible = 0
  for group in groups:
    shared = group.shared if share else 0
    tokens += group.columns(share)
    visible += _square(shared, causal)
    for ids in group.ids:
      rest = len(ids) - shared
      visible += rest * shared + _square(rest, causal)
  return Work(tokens, visible)


def _square(n: int, causal: bool) -> int:
  return n * (n + 1) // 2 if causal else n * n


def layer_weights(backbone: DecoderConfig | EncoderConfig) -> int:
  """Numbers in the linear maps of one layer, biases not counted."""
  c = backbone
  if isinstance(c, DecoderConfig):
    return c.width * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.width * c.ffn
  return 4 * c.width * c.width + 2 * c.width * c.ffn


def _linear_flops(backbone: DecoderConfig | EncoderConfig, what: Work) -> float:
  return 2.0 * layer_weights(backbone) * what.tokens


def _attention_flops(backbone: DecoderConfig | EncoderConfig, what: Work) -> float:
  # A pair that see one another: their logit, and what the value adds.
  c = backbone
  return 4.0 * (c.heads * c.head_dim if isinstance(c, DecoderConfig) else c.width) * what.visible


def _keys_share(backbone: DecoderConfig | EncoderConfig) -> float:
  """Of a layer's linear maps, the share that makes keys and values."""
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
  """Operations of so many layers' forward pass; `last_at_marks` as `step_flops` has it."""
  linear, attention = _linear_flops(backbone, what), _attention_flops(backbone, what)
  most = layers * (linear + attention)
  return most - (linear + attention - linear * _keys_share(backbone)) if last_at_marks else most


def step_flops(network: Network, what: Work, *, last_at_marks: bool = False) -> float:
  """Operations of a training step over some work: the backward pass is twice the forward.

  Frozen layers have no backward pass; that their output may be kept is not counted. Beside adapters
  linear maps have no gradient of their own, so that their backward pass is one forward; the
  adapters' work, as small as their rank, is not counted.

  Args:
    network: whose.
    what: see `Work`.
    last_at_marks: the last layer makes keys and values alone of all tokens (see
      `network.reads_marks_alone`); what it does for the few marks is not counted.
  """
  backbone, frozen = network.backbone, network.frozen
  linear = (2 if network.lora else 3) * _linear_flops(backbone, what)
  trained = linear + 3 * _attention_flops(backbone, what)
  most = (backbone.layers - frozen) * trained + forward_flops(backbone, frozen, what)
  return most - (trained - linear * _keys_share(backbone)) if last_at_marks else most
