"""Kernels that attention can run on instead of XLA's own products: which, where, what they ask.

Neither knows branches, so that they see windows of whole sequences (`batch.layout.Packing`): there
'same group, same branch or prompt, not later' is 'same sequence, not later'.

Shape letters as in attention.py; W windows of a size, of all rows together.
"""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp

from rm_jax.models.config import DecoderConfig, EncoderConfig
from rm_jax.parallel.axes import by_rows_and_heads

log = logging.getLogger(__name__)

# Values of model.attention.
CHOICES = ("auto", "xla", "splash", "cudnn")
# What a network's attention may be -> how its rows are laid, as arguments of `Packing`.
# 'interpreted' is 'splash' as plain JAX, step by step, and 'lengths' is cuDNN's call on XLA's own
# products: by these two a CPU holds the others to account.
PACKING: dict[str, dict[str, Any]] = {
  "xla": {},
  # Blocks are of whole lanes, of which a TPU has 128.
  "splash": dict(windows="sequences", align=128),
  "interpreted": dict(windows="sequences", align=128),
  "cudnn": dict(windows="alone"),
  "lengths": dict(windows="alone"),
}
_LANES = 128
# Columns of a block of queries or keys at most. Smaller ones are soon done and wait for memory;
# logits of larger ones do not fit on the chip beside what else is there.
_BLOCK = 512
# Beyond so many blocks of keys the parts of the queries' gradient, one a block, take more memory
# than they save products.
_FUSED = 4


def choose(
  wanted: str, backbone: DecoderConfig | EncoderConfig, *, dtype: str, packed: bool, device: Any
) -> str:
  """What a network's attention runs on, a name of `PACKING`.

  Args:
    wanted: model.attention. 'auto': 'splash' on TPU, 'cudnn' on NVIDIA, where they can be had, else
      'xla'; the reason is logged.
    backbone: of the network.
    dtype: of its compute.
    packed: data.pack: its rows have windows.
    device: one of those that the step is compiled for, which need not be there.

  Raises:
    ValueError: an unknown name, or a kernel that cannot be had.
  """
  if wanted not in CHOICES:
    raise ValueError(f"model.attention is {wanted!r}; expected one of {', '.join(CHOICES)}")
  kernel = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform, "xla")
  kernel = kernel if wanted == "auto" else wanted
  if kernel == "xla":
    return kernel
  if obstacle := _obstacle(kernel, backbone, dtype, packed, device):
    found, expected = obstacle
    if wanted != "auto":
      raise ValueError(
        f"model.attention is {wanted!r} and {found}; expected {expected}, or model.attention=auto"
      )
    log.info("attention: xla and not %s, because %s", kernel, found)
    return "xla"
  return "interpreted" if kernel == "splash" and device.platform == "cpu" else kernel


def _obstacle(kernel: str, backbone, dtype: str, packed: bool, device) -> tuple[str, str] | None:
  """(what keeps a kernel from a network's attention, what it needs); None where nothing does."""
  if not isinstance(backbone, DecoderConfig):
    return "the model is an encoder", "a decoder"
  if backbone.sliding_windows is not None:
    return "layers of the model see a sliding window", "a model whose layers see everything before"
  if (cap := backbone.attention_cap) is not None:
    return f"the model caps attention's logits at {cap:g}", "a model that does not"
  if backbone.attention_dropout > 0:
    rate = backbone.attention_dropout
    return f"the checkpoint drops attention's weights at a rate of {rate}", "model.dropout=False"
  if not packed:
    return "data.pack is False", "data.pack=True"
  if kernel == "splash":
    if device.platform not in ("tpu", "cpu"):
      return f"the devices are of platform {device.platform!r}", "a TPU, or a CPU for tests (slow)"
    if device.platform == "tpu" and dtype != "bfloat16":
      # Its products of float32 are rounded to bfloat16, and float32 compute means float32.
      return f"model.dtype is {dtype!r}", "model.dtype=bfloat16"
    return None
  if device.platform != "gpu":
    return f"the devices are of platform {device.platform!r}", "an NVIDIA GPU"
  capability = str(getattr(device, "compute_capability", ""))
  major = int(capability.split(".")[0]) if capability[:1].isdigit() else 0
  if major < 8:
    return f"{device.device_kind} has compute capability {capability!r}", "8.0 or more"
  if dtype not in ("bfloat16", "float16"):
    return f"model.dtype is {dtype!r}", "model.dtype=bfloat16"
  most = 256 if major >= 9 else 128
  if backbone.head_dim % 8 or backbone.head_dim > most:
    return f"a head is {backbone.head_dim} wide", f"a multiple of 8, {most} at most"
  return None


def attend_in_windows(
  kernel: str,
  q_BMNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKH: jax.Array,
  segments: tuple[jax.Array, ...],
) -> jax.Array:
  """Causal attention within the sequences of windows, on a kernel. Returns [B, M, N, H].

  On a mesh each device runs the kernel on its own rows and heads.

  Args:
    kernel: a name of `PACKING`, not 'xla'.
    q_BMNH, k_BMKH, v_BMKH: queries, keys and values, in window space; queries scaled.
    segments: int32 [B, R, L] for each size of window (`Batch.segments`).
  """

  def local(q_BMNH, k_BMKH, v_BMKH, segments):
    B, start, out = q_BMNH.shape[0], 0, []
    for segment_BRL in segments:
      _, R, L = segment_BRL.shape
      parts = [
        x[:, start : start + R * L].reshape(B * R, L, *x.shape[2:])
        for x in (q_BMNH, k_BMKH, v_BMKH)
      ]
      x_WLNH = _KERNELS[kernel](*parts, segment_BRL.reshape(B * R, L))
      out.append(x_WLNH.reshape(B, R * L, *q_BMNH.shape[2:]))
      start += R * L
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)

  return by_rows_and_heads(local)(q_BMNH, k_BMKH, v_BMKH, segments)


def blocks(L: int) -> tuple[int, int]:
  """(how many blocks hold a window of L columns, columns of each): few, equal, of whole lanes."""
  count = -(-L // _BLOCK)
  return count, -(-L // count // _LANES) * _LANES


def splash(
  q_WLNH: jax.Array,
  k_WLKH: jax.Array,
  v_WLKH: jax.Array,
  segment_WL: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Attention on TPU in blocks that never leave the chip (Dao et al. 2022), [W, L, N, H].

  Sees (query, key) where the key is not later and has the query's segment; blocks that are later as
  a whole are not computed. Output and normaliser are named 'attention' for rematerialisation.

  Args:
    q_WLNH, k_WLKH, v_WLKH: bfloat16 (interpreted, float32 as well); N a multiple of K.
    segment_WL: int32; 0 = padding, whose output is finite and means nothing.
    interpret: run as plain JAX.
  """
  # Half a second to import, for who has a use for it.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash_lib

  _, L, N, _ = q_WLNH.shape
  count, size = blocks(L)
  fused = count <= _FUSED
  # With one kernel for the whole gradient logits are made again once and not twice.
  apart = {} if fused else dict(block_q_dq=size, block_kv_dq=size)
  kernel = splash_lib.make_splash_mha(
    splash_lib.MultiHeadMask([splash_lib.CausalMask((count * size,) * 2)] * N),
    block_sizes=splash_lib.BlockSizes(
      block_q=size,
      block_kv=size,
      block_q_dkv=size,
      block_kv_dkv=size,
      use_fused_bwd_kernel=fused,
      **apart,
    ),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name="attention",
    interpret=interpret,
  )

  def padded(x_WLX):
    return jnp.pad(x_WLX, [(0, 0), (0, count * size - L)] + [(0, 0)] * (x_WLX.ndim - 2))

  q_WNLH, k_WKLH, v_WKLH = (padded(x).swapaxes(1, 2) for x in (q_WLNH, k_WLKH, v_WLKH))
  segment_WL = padded(segment_WL)
  out_WNLH = jax.vmap(kernel)(q_WNLH, k_WKLH, v_WKLH, splash_lib.SegmentIds(segment_WL, segment_WL))
  return out_WNLH.swapaxes(1, 2)[:, :L]


def by_lengths(
  q_WLNH: jax.Array,
  k_WLKH: jax.Array,
  v_WLKH: jax.Array,
  segment_WL: jax.Array,
  *,
  implementation: str,
) -> jax.Array:
  """Causal attention within windows of one sequence each, which begins where the window does.

  Args:
    q_WLNH, k_WLKH, v_WLKH: of cuDNN bfloat16 or float16; N a multiple of K.
    segment_WL: int32, 0 behind the sequence.
    implementation: 'cudnn' or 'xla', as `jax.nn.dot_product_attention` has it.

  Returns:
    [W, L, N, H], 0 behind the sequence.
  """
  inside_WL = segment_WL > 0
  # A window that nothing is in has one column all the same, lest a kernel divide by nothing.
  length_W = jnp.maximum(jnp.sum(inside_WL, axis=1, dtype=jnp.int32), 1)
  out_WLNH = jax.nn.dot_product_attention(
    q_WLNH,
    k_WLKH,
    v_WLKH,
    scale=1.0,
    is_causal=True,
    query_seq_lengths=length_W,
    key_value_seq_lengths=length_W,
    implementation=implementation,
  )
  # What a kernel leaves behind a sequence is its own affair: zero times it could be no number.
  return jnp.where(inside_WL[:, :, None, None], out_WLNH, 0)


_KERNELS = {
  "splash": splash,
  "interpreted": functools.partial(splash, interpret=True),
  "cudnn": functools.partial(by_lengths, implementation="cudnn"),
  "lengths": functools.partial(by_lengths, implementation="xla"),
}
