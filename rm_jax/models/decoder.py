"""One decoder for all families of Llama's kind; `DecoderConfig` says how they differ.

Shape letters: B rows, T columns (tokens) of a row, D width, N query heads, K key/value heads, H
head width, h = H / 2, M columns of the space in which attention runs (see `attention`).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rm_jax.models.attention import Attention, column_attention, row_attention
from rm_jax.models.config import DecoderConfig, Rope
from rm_jax.models.layers import RMSNorm, activation, linear, run_stack, stack
from rm_jax.models.lora import Lora
from rm_jax.parallel.axes import shard_embedded
from rm_jax.types import Batch


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
  """Radians by which each pair of a head's dimensions turns per position, float32 [H / 2].

  Pair i turns by theta^(-2 i / H) (Su et al. 2021, equation 15). 'linear' divides every frequency
  by `factor`. 'llama3' (Llama 3.1) divides those whose wavelength is over
  original_length / low_freq_factor, keeps those under original_length / high_freq_factor, and
  interpolates between.
  """
  # Computed by numpy, each step rounded to float32 as PyTorch does: XLA's power and division may be
  # off by a few units in the last place, which at position 8,000 turns a head by 5e-3 radians.
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  power = np.power(np.float64(rope.theta), exponent.astype(np.float64)).astype(np.float32)
  frequency = np.float32(1) / power
  if rope.kind == "linear":
    return frequency / np.float32(rope.factor)
  if rope.kind == "llama3":
    wavelength = 2 * math.pi / frequency
    low = rope.original_length / rope.low_freq_factor
    high = rope.original_length / rope.high_freq_factor
    blend = (rope.original_length / wavelength - rope.low_freq_factor) / (
      rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * frequency / rope.factor + blend * frequency
    return np.where(
      wavelength > low, frequency / rope.factor, np.where(wavelength < high, frequency, blended)
    )
  return frequency


def rotate(x_BTNH: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotary position embedding, computed in float32; [B, T, N, H] in the input's dtype.

  Args:
    x_BTNH: queries or keys. Dimension i is paired with i + H / 2, as in Hugging Face's checkpoints;
      the paper pairs neighbours.
    turn: (cosine, sine) of the angles, float32 [B, T, H / 2].
  """
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  cos, sin = (x_BTh[:, :, None, :] for x_BTh in turn)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BTNH.dtype)


def turns(config: DecoderConfig, position_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What `rotate` takes of these positions: (cosine, sine), float32 [B, T, h] each."""
  frequency_h = rope_frequencies(config.rope, config.head_dim)
  angle_BTh = position_BT[:, :, None] * frequency_h[None, None, :]
  return jnp.cos(angle_BTh), jnp.sin(angle_BTh)


class DecoderLayer(nnx.Module):
  """Attention, then a gated feed-forward, both pre-norm and residual: h + f(norm(h)).

  With `post_norms`, h + norm(f(norm(h))).

  Args:
    config: of the decoder.
    dtype: of the compute; fresh parameters are float32.
    rngs: for fresh parameters.
    lora: which linear maps have adapters; None = none.
  """

  def __init__(self, config: DecoderConfig, *, dtype, rngs: nnx.Rngs, lora: Lora | None = None):
    c = config
    maps = dict(std=c.init_std, dtype=dtype, rngs=rngs, lora=lora)
    norm = dict(epsilon=c.eps, offset=c.norm_offset, dtype=dtype, rngs=rngs)
    self.attention_norm = RMSNorm(c.width, **norm)
    self.q = linear("q", c.width, (c.heads, c.head_dim), bias=c.qkv_bias, **maps)
    self.k = linear("k", c.width, (c.kv_heads, c.head_dim), bias=c.qkv_bias, **maps)
    self.v = linear("v", c.width, (c.kv_heads, c.head_dim), bias=c.qkv_bias, **maps)
    self.o = linear("o", (c.heads, c.head_dim), c.width, axis=(-2, -1), bias=c.out_bias, **maps)
    self.q_norm = RMSNorm(c.head_dim, **norm) if c.qk_norm else None
    self.k_norm = RMSNorm(c.head_dim, **norm) if c.qk_norm else None
    self.attention_post_norm = RMSNorm(c.width, **norm) if c.post_norms else None
    self.mlp_norm = RMSNorm(c.width, **norm)
    self.gate = linear("gate", c.width, c.ffn, bias=c.mlp_bias, **maps)
    self.up = linear("up", c.width, c.ffn, bias=c.mlp_bias, **maps)
    self.down = linear("down", c.ffn, c.width, bias=c.mlp_bias, **maps)
    self.mlp_post_norm = RMSNorm(c.width, **norm) if c.post_norms else None
    self.config = c

  def __call__(
    self,
    h_BTD: jax.Array,
    turn: tuple[jax.Array, jax.Array],
    attention: Attention,
    *,
    sliding_window: jax.Array | None,
    dropout: float,
    key: jax.Array | None,
  ) -> jax.Array:
    """The layer's output at the columns of `attention.of_queries`, [B, T or M, D].

    Args:
      h_BTD: activations of all columns.
      turn: as `rotate` takes it, of `attention.positions`.
      attention: see `attention.Attention`.
      sliding_window: int [], of this layer, in tokens, 0 = none; None = no layer has one.
      dropout, key: rate and random key of the dropout of attention's weights; no key = no dropout.
    """
    x_BTD = self.attention_norm(h_BTD)
    q_BMNH, k_BMKH, v_BMKH = attention.project(
      attention.of_queries(x_BTD), x_BTD, self.q, self.k, self.v
    )
    if self.q_norm is not None:
      q_BMNH, k_BMKH = self.q_norm(q_BMNH), self.k_norm(k_BMKH)
    q_BMNH = rotate(q_BMNH, tuple(map(attention.of_queries, turn)))
    k_BMKH = rotate(k_BMKH, turn)
    x_BMNH = attention.attend(
      q_BMNH,
      k_BMKH,
      v_BMKH,
      scale=self.config.attention_scale,
      cap=self.config.attention_cap,
      sliding_window=sliding_window,
      dropout=dropout,
      key=key,
    )
    h_BTD = attention.of_queries(h_BTD)
    h_BTD += self._normalised(self.attention_post_norm, attention.output(x_BMNH, self.o))
    return h_BTD + self._normalised(self.mlp_post_norm, self._feed_forward(h_BTD))

  def _feed_forward(self, h_BTD):
    x_BTD = self.mlp_norm(h_BTD)
    return self.down(activation(self.config.activation)(self.gate(x_BTD)) * self.up(x_BTD))

  def _normalised(self, norm: RMSNorm | None, x_BTD: jax.Array) -> jax.Array:
    return x_BTD if norm is None else norm(x_BTD)


class Decoder(nnx.Module):
  """Tokens in groups and branches -> hidden states after the last norm.

  The parameters of layers are stacked on a leading axis and the layers run by `lax.scan`, so that
  compile time does not grow with their number (see `layers.run_stack`).

  Args:
    config: of the decoder.
    frozen: how many of the lowest layers are not trained. They are a stack of their own, `lower`,
      so that no gradient of them is computed and their output can be computed once and kept.
    dtype: of the compute; fresh parameters are float32.
    remat: see `layers.run_stack`.
    rngs: for fresh parameters.
    lora: which linear maps of the layers that are not frozen have adapters.
    attention: what attention runs on, a name of `kernels.PACKING`.
  """

  causal = True

  def __init__(
    self,
    config: DecoderConfig,
    *,
    frozen: int,
    dtype,
    remat: str,
    rngs: nnx.Rngs,
    lora: Lora | None = None,
    attention: str = "xla",
  ):
    self.config = config
    self.frozen = frozen
    self.attention = attention
    self.remat = remat
    self.dtype = dtype
    init = nnx.initializers.normal(config.init_std)
    self.embed = nnx.Embed(config.vocab, config.width, embedding_init=init, dtype=dtype, rngs=rngs)

    make = functools.partial(DecoderLayer, config, dtype=dtype)
    self.lower = stack(lambda r: make(rngs=r), frozen, rngs)
    self.layers = stack(lambda r: make(rngs=r, lora=lora), config.layers - frozen, rngs)
    norm = dict(epsilon=config.eps, offset=config.norm_offset, dtype=dtype, rngs=rngs)
    self.norm = RMSNorm(config.width, **norm)

  def _run(
    self,
    layers: nnx.Module | None,
    h_BTD: jax.Array,
    batch: Batch,
    sliding_windows: tuple[int, ...] | None,
    *,
    dropout: bool,
    key: jax.Array | None,
    at_BM: jax.Array | None = None,
  ) -> jax.Array:
    """A stack's output, [B, T, D]; with `at_BM`, at those columns only, [B, M, D]."""
    c = self.config
    options = dict(dropout=c.attention_dropout if dropout else 0.0)
    rows = row_attention(batch, causal=True, kernel=self.attention)
    turn = turns(c, rows.positions)

    def body(layer, h, sliding_window, layer_key):
      return layer(h, turn, rows, sliding_window=sliding_window, key=layer_key, **options)

    def last(layer, h, sliding_window, layer_key):
      some = column_attention(batch, at_BM, causal=True)
      turn = turns(c, some.positions)
      return layer(h, turn, some, sliding_window=sliding_window, key=layer_key, **options)

    # The layers' sliding windows are an array, of which the scan gives each layer its element: the
    # layers of a scan are one compiled program, in which a window cannot be a constant.
    return run_stack(
      layers,
      body,
      h_BTD,
      per_layer=None if sliding_windows is None else jnp.asarray(sliding_windows, jnp.int32),
      key=key,
      remat=self.remat,
      last=None if at_BM is None else last,
    )

  def embedded(self, tokens_BT: jax.Array) -> jax.Array:
    """What enters the first layer, [B, T, D]."""
    h_BTD = self.embed(tokens_BT)
    if (scale := self.config.embed_scale) != 1.0:
      # Rounded to the compute dtype, as transformers does.
      h_BTD *= jnp.asarray(scale, h_BTD.dtype)
    return shard_embedded(h_BTD)

  def features(self, batch: Batch) -> jax.Array:
    """What enters the first trained layer, [B, T, D]: embedding and frozen layers, no dropout."""
    h_BTD = self.embedded(batch.tokens)
    windows = self.config.sliding_windows and self.config.sliding_windows[: self.frozen]
    return self._run(self.lower, h_BTD, batch, windows, dropout=False, key=None)

  def __call__(
    self, batch: Batch, *, key: jax.Array | None = None, at_BM: jax.Array | None = None
  ) -> jax.Array:
    """Hidden states after the last norm, [B, T, D] in the compute dtype.

    Args:
      batch: `batch.hidden`, if it is not None, is taken as the output of the embedding and the
        frozen layers, which are then not run.
      key: turns dropout on.
      at_BM: int32, the columns whose hidden states alone are returned, [B, M, D]: the last layer
        computes queries, output map and feed-forward for no others. Needs a layer that is not
        frozen.
    """
    h_BTD = self.features(batch) if batch.hidden is None else batch.hidden.astype(self.dtype)
    windows = self.config.sliding_windows and self.config.sliding_windows[self.frozen :]
    dropout = key is not None
    return self.norm(
      self._run(self.layers, h_BTD, batch, windows, dropout=dropout, key=key, at_BM=at_BM)
    )
