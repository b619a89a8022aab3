"""Fused attention kernels: Pallas' splash attention on TPU, cuDNN's on NVIDIA; when each is used.

Neither kernel knows branches. So they get windows that hold whole sequences
(`batch.layout.windows_of` repeats a shared prompt's columns for each of its responses), within
which the rule 'same group, same branch or prompt, not later' is 'same sequence, not later', which
both support as causal attention.

Shape letters: B rows, M columns of all windows of a row laid end to end, N query heads, K key/value
heads, H head width, W windows of one size in all rows together, R in each row, L columns of a
window.
"""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.models.config import DecoderConfig, EncoderConfig
from rm_jax.parallel.axes import map_rows_and_heads

log = logging.getLogger(__name__)

# Values of the config field model.attention.
CHOICES = ("auto", "xla", "splash", "cudnn")
# What a network's attention may run on -> how its batches are packed, as arguments of `Packing`.
# 'interpreted' is 'splash' run by Pallas' interpreter, and 'lengths' is JAX's call that 'cudnn'
# makes, computed by XLA: with these two, tests on a CPU run the code of 'splash' and 'cudnn'.
PACKING: dict[str, dict[str, Any]] = {
  "xla": {},
  # Windows are padded to whole TPU registers, which are 128 lanes wide.
  "splash": dict(windows="sequences", align=128),
  "interpreted": dict(windows="sequences", align=128),
  "cudnn": dict(windows="alone"),
  "lengths": dict(windows="alone"),
}
_LANES = 128
# The most columns of a block, of queries and of keys alike. With smaller blocks of queries, keys
# and values are read more often; larger blocks need more of the chip's own memory (VMEM) for their
# logits, queries × keys.
_BLOCK = 512
# The most blocks of keys for which one kernel computes the whole gradient. It writes one partial
# gradient of the queries for each block of keys, and saves a second computation of the logits. From
# how many blocks on the writing takes longer is an estimate; it was not measured on a chip.
_FUSED = 4


def choose(
  wanted: str, backbone: DecoderConfig | EncoderConfig, *, dtype: str, packed: bool, device: Any
) -> str:
  """What a network's attention runs on, a name of `PACKING`.

  Args:
    wanted: model.attention. 'auto' is 'splash' on TPU and 'cudnn' on NVIDIA where they support the
      network, or else 'xla', with the reason logged; it is 'xla' on other devices.
    backbone: of the network.
    dtype: of its compute.
    packed: the config field data.pack; if it is False, batches have no windows.
    device: one of those that the step is compiled for, which need not be on this machine.

  Raises:
    InputError: an unknown name, or a kernel that was asked for by name and does not support the
      network, its dtype, unpacked rows or the device.
  """
  if wanted not in CHOICES:
    raise InputError(f"model.attention is {wanted!r}; expected one of {', '.join(CHOICES)}")
  kernel = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform, "xla")
  kernel = kernel if wanted == "auto" else wanted
  if kernel == "xla":
    return kernel
  if obstacle := _obstacle(kernel, backbone, dtype, packed, device):
    found, expected = obstacle
    if wanted != "auto":
      raise InputError(
        f"model.attention is {wanted!r} and {found}; expected {expected}, or model.attention=auto"
      )
    log.info("attention: xla and not %s, because %s", kernel, found)
    return "xla"
  return "interpreted" if kernel == "splash" and device.platform == "cpu" else kernel


def _obstacle(kernel: str, backbone, dtype: str, packed: bool, device) -> tuple[str, str] | None:
  """(why a kernel cannot compute a network's attention, what it would need); None where it can."""
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
      # Splash rounds the operands of float32 products to bfloat16, and float32 compute must not.
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
    q_BMNH, k_BMKH, v_BMKH: queries, keys and values, in window space; queries already scaled.
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

  return map_rows_and_heads(local)(q_BMNH, k_BMKH, v_BMKH, segments)


def blocks(L: int) -> tuple[int, int]:
  """(number of equal blocks of a window of L columns, columns of each, a multiple of 128)."""
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
  """JAX's splash attention for TPU, a FlashAttention (Dao et al. 2022); [W, L, N, H].

  A query sees the keys of its own segment that are not later. Blocks of keys that are later as a
  whole are not computed. Output and normaliser have the name 'attention', which rematerialisation
  'minimal' keeps.

  Args:
    q_WLNH, k_WLKH, v_WLKH: bfloat16 (interpreted, float32 as well); N a multiple of K; queries
      already scaled.
    segment_WL: int32; 0 = padding, whose output is finite and means nothing.
    interpret: run by Pallas' interpreter, on any device; slow.
  """
  # Imported here because it takes half a second, which only its users should pay.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash_lib

  _, L, N, _ = q_WLNH.shape
  count, size = blocks(L)
  fused = count <= _FUSED
  # One kernel for the whole gradient recomputes the logits once, two kernels twice.
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
  """Causal attention within windows that hold one sequence each, from their first column on.

  Args:
    q_WLNH, k_WLKH, v_WLKH: for cuDNN bfloat16 or float16; N a multiple of K; queries already
      scaled.
    segment_WL: int32, 0 after the sequence's end.
    implementation: 'cudnn' or 'xla', as `jax.nn.dot_product_attention` takes it.

  Returns:
    [W, L, N, H], 0 after the sequence's end.
  """
  inside_WL = segment_WL > 0
  # An empty window gets length 1: of length 0, a kernel would divide by a sum over no keys.
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
  # Kernels may leave NaN in padding, and 0 · NaN is NaN.
  return jnp.where(inside_WL[:, :, None, None], out_WLNH, 0)


_KERNELS = {
  "splash": splash,
  "interpreted": functools.partial(splash, interpret=True),
  "cudnn": functools.partial(by_lengths, implementation="cudnn"),
  "lengths": functools.partial(by_lengths, implementation="xla"),
}
