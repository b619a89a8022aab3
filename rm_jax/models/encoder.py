"""BERT, a post-norm encoder.

Shape letters: B rows, T columns (tokens) of a row, M columns in attention, D width, N heads, H head
width.

The prompt's columns see the response too, so that their hidden states differ from one response to
another. Therefore each response has its own copy of the prompt.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rm_jax.models.attention import Attention, column_attention, row_attention
from rm_jax.models.config import EncoderConfig
from rm_jax.models.layers import activation, linear, run_stack, stack
from rm_jax.models.lora import Lora
from rm_jax.models.numerics import drop
from rm_jax.parallel.axes import shard_embedded
from rm_jax.types import Batch


def _norm(config: EncoderConfig, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
  # Flax's fast variance, E[x²] - E[x]², cancels where the mean is far from 0: it loses digits that
  # equality with transformers needs.
  return nnx.LayerNorm(
    config.width, epsilon=config.eps, use_fast_variance=False, dtype=dtype, rngs=rngs
  )


class EncoderLayer(nnx.Module):
  """Attention, then a feed-forward, both post-norm and residual: norm(h + f(h))."""

  def __init__(self, config: EncoderConfig, *, dtype, rngs: nnx.Rngs, lora: Lora | None = None):
    c = config
    maps = dict(bias=True, std=c.init_std, dtype=dtype, rngs=rngs, lora=lora)
    heads = (c.heads, c.width // c.heads)
    self.q = linear("q", c.width, heads, **maps)
    self.k = linear("k", c.width, heads, **maps)
    self.v = linear("v", c.width, heads, **maps)
    self.o = linear("o", heads, c.width, axis=(-2, -1), **maps)
    self.attention_norm = _norm(c, dtype, rngs)
    self.up = linear("up", c.width, c.ffn, **maps)
    self.down = linear("down", c.ffn, c.width, **maps)
    self.mlp_norm = _norm(c, dtype, rngs)
    self.config = config

  def __call__(self, h_BTD: jax.Array, attention: Attention, *, key: jax.Array | None) -> jax.Array:
    """The layer's output at the columns of `attention.of_queries`; `key` turns dropout on."""
    c = self.config
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)
    own_BMD = attention.of_queries(h_BTD)
    parts = attention.project(own_BMD, h_BTD, self.q, self.k, self.v)
    x_BMNH = attention.attend(*parts, dropout=c.attention_dropout, key=keys[0])
    x_BTD = attention.output(x_BMNH, self.o)
    h_BTD = self.attention_norm(own_BMD + drop(x_BTD, c.hidden_dropout, keys[1]))
    x_BTD = self.down(activation(c.activation)(self.up(h_BTD)))
    return self.mlp_norm(h_BTD + drop(x_BTD, c.hidden_dropout, keys[2]))


class Encoder(nnx.Module):
  """Tokens in groups -> last hidden states; arguments as of `decoder.Decoder`, less `attention`."""

  causal = False

  def __init__(
    self,
    config: EncoderConfig,
    *,
    frozen: int,
    dtype,
    remat: str,
    rngs: nnx.Rngs,
    lora: Lora | None = None,
  ):
    c = config
    self.config = config
    self.remat = remat
    self.dtype = dtype
    embed = dict(
      features=c.width, embedding_init=nnx.initializers.normal(c.init_std), dtype=dtype, rngs=rngs
    )
    self.embed = nnx.Embed(c.vocab, **embed)
    self.embed_position = nnx.Embed(c.max_positions, **embed)
    self.embed_token_type = nnx.Embed(c.token_types, **embed)
    self.embed_norm = _norm(c, dtype, rngs)

    make = functools.partial(EncoderLayer, config, dtype=dtype)
    self.lower = stack(lambda r: make(rngs=r), frozen, rngs)
    self.layers = stack(lambda r: make(rngs=r, lora=lora), c.layers - frozen, rngs)

  def _run(
    self,
    layers: nnx.Module | None,
    h_BTD: jax.Array,
    batch: Batch,
    key: jax.Array | None,
    at_BM: jax.Array | None = None,
  ) -> jax.Array:
    """A stack's output, [B, T, D]; with `at_BM`, at those columns only, [B, M, D]."""
    rows = row_attention(batch, causal=False)

    def body(layer, h, _, layer_key):
      return layer(h, rows, key=layer_key)

    def last(layer, h, _, layer_key):
      return layer(h, column_attention(batch, at_BM, causal=False), key=layer_key)

    last = None if at_BM is None else last
    return run_stack(layers, body, h_BTD, key=key, remat=self.remat, last=last)

  def embedded(self, batch: Batch) -> jax.Array:
    """The embedding's output, normalised, [B, T, D]."""
    token_type = jnp.zeros_like(batch.tokens) if batch.token_type is None else batch.token_type
    h_BTD = shard_embedded(
      self.embed(batch.tokens)
      + self.embed_token_type(token_type)
      + self.embed_position(batch.position)
    )
    return self.embed_norm(h_BTD)

  def features(self, batch: Batch, *, key: jax.Array | None = None) -> jax.Array:
    """What enters the first trained layer, [B, T, D]: embedding and frozen layers.

    `key` turns dropout of the embedding's output on; frozen layers have no dropout.
    """
    h_BTD = drop(self.embedded(batch), self.config.hidden_dropout, key)
    return self._run(self.lower, h_BTD, batch, None)

  def __call__(
    self, batch: Batch, *, key: jax.Array | None = None, at_BM: jax.Array | None = None
  ) -> jax.Array:
    """Last hidden states, [B, T, D] in the compute dtype; `key` and `at_BM` as `Decoder`'s."""
    embed_key, layer_key = (None, None) if key is None else jax.random.split(key)
    if batch.hidden is not None:
      h_BTD = batch.hidden.astype(self.dtype)
    else:
      # Where layers are frozen, the embedding is frozen too, and the frozen layers' output may be
      # computed once and kept (`Batch.hidden`), without dropout. So the embedding has none here
      # either: training must be the same whether that output is kept or not.
      h_BTD = self.features(batch, key=embed_key if self.lower is None else None)
    return self._run(self.layers, h_BTD, batch, layer_key, at_BM)
