"""A decoder that reads one token more: attention to cached keys and values of what came before.

A prompt is computed once, whatever the number of samples that continue it: their queries read the
one copy of its keys and values. What a sample wrote itself is in a cache of its own.

Shape letters: P prompts, S samples of each, T columns of the longest prompt, M tokens of a sample,
D width, N query heads, K key/value heads, R = N / K, H head width, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rm_jax.models.attention import Attention, row_attention
from rm_jax.models.decoder import Decoder, DecoderLayer, turns
from rm_jax.models.numerics import precision
from rm_jax.types import Batch

# As in `models.attention`: far below any real logit, and finite.
_MASKED = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
  """Keys, after their rotation, and values of one layer, in the compute dtype.

  Attributes:
    prompt: (keys, values) of the prompts, [P, K, T, H] each: heads come first, so that products
      with queries need no copy in another order.
    own: (keys, values) of the samples' own tokens, [P, S, K, M, H] each.
  """

  prompt: tuple[jax.Array, jax.Array]
  own: tuple[jax.Array, jax.Array]


class _Recorded(Attention):
  """Another attention, whose keys and values are kept."""

  def __init__(self, inner: Attention):
    self.inner, self.positions, self.kept = inner, inner.positions, None

  def of_queries(self, x_BTX):
    return self.inner.of_queries(x_BTX)

  def project(self, own_BMD, x_BTD, q, k, v):
    return self.inner.project(own_BMD, x_BTD, q, k, v)

  def output(self, x_BMNH, o):
    return self.inner.output(x_BMNH, o)

  def _attend_scaled(self, q_BMNH, k_BMKH, v_BMKH, **options):
    self.kept = k_BMKH, v_BMKH
    return self.inner._attend_scaled(q_BMNH, k_BMKH, v_BMKH, **options)


class CachedAttention(Attention):
  """Attention of the newest token of each sample to its prompt and to what the sample wrote before.

  A layer sees prompts as rows and samples as columns, [P, S, D]. After it has run, `cache` has the
  new token's key and value.

  Args:
    cache: of the layer.
    length_P: int32, tokens of each prompt.
    step: int32 [], which of the samples' tokens is the newest, from 0.
  """

  def __init__(self, cache: LayerCache, length_P: jax.Array, step: jax.Array):
    self.cache, self.length_P, self.step = cache, length_P, step
    samples = cache.own[0].shape[1]
    self.positions = jnp.broadcast_to((length_P + step)[:, None], (len(length_P), samples))

  def of_queries(self, x_PSX):
    return x_PSX

  def project(self, own_PSD, x_PSD, q, k, v):
    del own_PSD  # the same as x_PSD
    return q(x_PSD), k(x_PSD), v(x_PSD)

  def output(self, x_PSNH, o):
    return o(x_PSNH)

  def _attend_scaled(self, q_PSNH, k_PSKH, v_PSKH, *, cap, sliding_window, dropout, key):
    del dropout
    assert key is None  # nothing is sampled with dropout
    own = tuple(
      jax.lax.dynamic_update_slice_in_dim(all_PSKMH, new_PSKH[:, :, :, None], self.step, axis=3)
      for all_PSKMH, new_PSKH in zip(self.cache.own, (k_PSKH, v_PSKH), strict=True)
    )
    self.cache = LayerCache(self.cache.prompt, own)
    (prompt_k, prompt_v), (own_k, own_v) = self.cache.prompt, own
    T, M = prompt_k.shape[2], own_k.shape[3]
    P, S, N, H = q_PSNH.shape
    K = k_PSKH.shape[2]
    q_PSKRH = q_PSNH.reshape(P, S, K, N // K, H)
    exact = dict(precision=precision(q_PSNH.dtype), preferred_element_type=jnp.float32)
    logits = jnp.concatenate(
      [
        jnp.einsum("pskrh,pkth->pskrt", q_PSKRH, prompt_k, **exact),
        jnp.einsum("pskrh,pskmh->pskrm", q_PSKRH, own_k, **exact),
      ],
      axis=-1,
    )
    if cap is not None:
      logits = cap * jnp.tanh(logits / cap)
    # How many positions back each key is, [P, T + M]; negative for what is not written yet.
    column_T, column_M = jnp.arange(T)[None], jnp.arange(M)[None]
    back = jnp.concatenate(
      [
        self.length_P[:, None] + self.step - column_T,
        jnp.broadcast_to(self.step - column_M, (P, M)),
      ],
      axis=1,
    )
    real = jnp.concatenate([column_T < self.length_P[:, None], jnp.ones((P, M), bool)], axis=1)
    sees = real & (back >= 0)
    if sliding_window is not None:
      sees &= (sliding_window == 0) | (back < sliding_window)
    logits = jnp.where(sees[:, None, None, None], logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_PSKH.dtype)
    out_PSKRH = jnp.einsum("pskrt,pkth->pskrh", weights[..., :T], prompt_v, **exact)
    out_PSKRH += jnp.einsum("pskrm,pskmh->pskrh", weights[..., T:], own_v, **exact)
    return out_PSKRH.reshape(P, S, N, H).astype(v_PSKH.dtype)


def layers_of(decoder: Decoder) -> list[tuple[DecoderLayer, jax.Array | None]]:
  """(layer, its sliding window) of a decoder, from the lowest on, each with its own parameters.

  Layers are taken out of their stacks once, before the loop over tokens. A scan over the stack
  would copy each layer's parameters out of it at every token, which takes as long as reading them.
  """
  layers = []
  for stack in (decoder.lower, decoder.layers):
    if stack is None:
      continue
    graph, state = nnx.split(stack)
    for i in range(jax.tree.leaves(state)[0].shape[0]):
      layers.append(nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], state)))
  windows = decoder.config.sliding_windows or [None] * len(layers)
  windows = [None if w is None else jnp.int32(w) for w in windows]
  return list(zip(layers, windows, strict=True))


def read_prompts(
  decoder: Decoder,
  tokens_PT: jax.Array,
  length_P: jax.Array,
  *,
  samples: int,
  longest: int,
) -> tuple[jax.Array, list[LayerCache]]:
  """Runs the prompts.

  Args:
    decoder: with its parameters.
    tokens_PT: int32, padded on the right.
    length_P: int32, at least 1.
    samples: S, of each prompt.
    longest: M, tokens of a sample that there is to be room for.

  Returns:
    (the last hidden state of each prompt's last token, [P, D]; the layers' caches).
  """
  P, T = tokens_PT.shape
  column_PT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (P, T))
  nothing = jnp.zeros((P, 1, 1), jnp.int32)
  batch = Batch(
    tokens=tokens_PT,
    group=(column_PT < length_P[:, None]).astype(jnp.int32),
    branch=jnp.zeros((P, T), jnp.int32),
    position=column_PT,
    marks=nothing,
    where=nothing > 0,
    labels=nothing.astype(jnp.float32),
    weight=jnp.ones((P, 1), jnp.float32),
  )
  rows = row_attention(batch, causal=True)
  turn = turns(decoder.config, rows.positions)
  h_PTD, caches = decoder.embedded(tokens_PT), []
  for layer, window in layers_of(decoder):
    attention = _Recorded(rows)
    h_PTD = layer(h_PTD, turn, attention, sliding_window=window, dropout=0.0, key=None)
    prompt = tuple(x_PTKH.swapaxes(1, 2) for x_PTKH in attention.kept)
    room = P, samples, decoder.config.kv_heads, longest, decoder.config.head_dim
    caches.append(LayerCache(prompt, tuple(jnp.zeros(room, x.dtype) for x in prompt)))
  last_PD = jnp.take_along_axis(h_PTD, (length_P - 1)[:, None, None], axis=1)[:, 0]
  return decoder.norm(last_PD), caches


def read_tokens(
  decoder: Decoder,
  layers: list[tuple[DecoderLayer, jax.Array | None]],
  caches: list[LayerCache],
  tokens_PS: jax.Array,
  length_P: jax.Array,
  step: jax.Array,
) -> tuple[jax.Array, list[LayerCache]]:
  """Runs the newest token of each sample.

  Args:
    decoder: with its parameters.
    layers: `layers_of` it.
    caches: of the layers, up to the token before.
    tokens_PS: int32.
    length_P: int32, tokens of each prompt.
    step: int32 [], which of the samples' tokens this is, from 0.

  Returns:
    (the last hidden states, [P, S, D]; the caches with this token).
  """
  h_PSD, new = decoder.embedded(tokens_PS), []
  positions = CachedAttention(caches[0], length_P, step).positions
  turn = turns(decoder.config, positions)
  for (layer, window), cache in zip(layers, caches, strict=True):
    attention = CachedAttention(cache, length_P, step)
    h_PSD = layer(h_PSD, turn, attention, sliding_window=window, dropout=0.0, key=None)
    new.append(attention.cache)
  return decoder.norm(h_PSD), new
