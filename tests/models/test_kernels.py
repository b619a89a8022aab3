"""Attention kernels: they give XLA's numbers, keep what remat wants, and are chosen by a rule."""

import dataclasses
import functools
import importlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.models import kernels
from rm_jax.models.attention import RowAttention
from rm_jax.models.layers import REMAT
from rm_jax.pretrained.config import backbone_config
from tests.models.oracle import hf_config

LONG, SHORT, N, K, H = 200, 60, 4, 2, 16
GPU = next((d for d in jax.local_devices() if d.platform == "gpu"), None)


def segments_of(alone):
  """Segments of two rows: two long windows and a short one; a sequence in each, or several."""
  long, short = np.zeros((2, 2, LONG), np.int32), np.zeros((2, 1, SHORT), np.int32)
  for number, (row, window, start, end) in enumerate(
    [(0, 0, 0, 150), (0, 1, 0, 200), (1, 0, 0, 1), (1, 1, 0, 77)], 1
  ):
    long[row, window, start:end] = number
  if not alone:
    long[0, 0, 150:190], long[1, 0, 1:130], long[1, 0, 130:] = 7, 8, 9
  short[0, 0, :50] = 11
  return long, short


def inputs(dtype=np.float32):
  rng = np.random.default_rng(0)
  columns = 2 * LONG + SHORT
  q, k, v, g = (rng.normal(size=(2, columns, n, H)).astype(dtype) for n in (N, K, K, N))
  return (q, k, v), g


def attention_of(kernel, segments):
  """Attention within the segments of windows, one array [B, W, L] for each size of them."""
  masks = []
  for one in segments:
    L = one.shape[-1]
    flat = one.reshape(-1, L)
    masks.append((flat[:, :, None] == flat[:, None, :]) & np.tril(np.ones((1, L, L), bool)))
  sizes = tuple(one.shape[1:] for one in segments)
  position = np.zeros((len(segments[0]), sum(W * L for W, L in sizes)), np.int32)
  return RowAttention(True, tuple(masks), tuple(segments), position, None, None, sizes, kernel)


def test_windows_of_each_size_attend_to_themselves():
  (q, k, v), _ = inputs()
  whole, start = attention_of("xla", segments_of(False)).attend(q, k, v), 0
  for one in segments_of(False):
    columns = slice(start, start := start + one[0].size)
    alone = attention_of("xla", [one]).attend(*(x[:, columns] for x in (q, k, v)))
    np.testing.assert_array_equal(whole[:, columns], alone)


def output_and_gradients(kernel, segments, parts, g):
  """The output of `attend` at real columns, and the gradients of its product with g."""
  attention = attention_of(kernel, segments)
  real = np.concatenate([one.reshape(one.shape[0], -1) for one in segments], axis=1) > 0

  def product(q, k, v):
    out = jnp.where(real[:, :, None, None], attention.attend(q, k, v), 0)
    return jnp.sum(out.astype(jnp.float32) * g), out

  (_, out), gradients = jax.jit(jax.value_and_grad(product, (0, 1, 2), has_aux=True))(*parts)
  return out, *gradients


@functools.cache
def expected(alone):
  parts, g = inputs()
  return output_and_gradients("xla", segments_of(alone), parts, g)


def check(found, alone, tolerance):
  for a, b in zip(found, expected(alone), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b)
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kernel", "options"),
  [
    ("interpreted", {}),
    ("interpreted", {"_BLOCK": 128}),  # several blocks, and windows padded to them
    ("interpreted", {"_BLOCK": 128, "_FUSED": 1}),  # the gradient by two kernels
    ("lengths", {}),
  ],
)
def test_kernels_give_the_numbers_of_xla(kernel, options, monkeypatch):
  for name, value in options.items():
    monkeypatch.setattr(kernels, name, value)
  alone = kernel == "lengths"
  parts, g = inputs()
  found = output_and_gradients(kernel, segments_of(alone), parts, g)
  check(found, alone, 5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["interpreted", "lengths"])
def test_each_device_runs_a_kernel_on_its_rows_and_heads(kernel):
  mesh = jax.make_mesh(
    (1, 2, 2),
    ("data", "fsdp", "tensor"),
    devices=jax.devices()[:4],
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  alone = kernel == "lengths"
  parts, g = inputs()
  with jax.set_mesh(mesh):
    found = output_and_gradients(kernel, segments_of(alone), parts, g)
  check(found, alone, 5e-6)


# What rematerialisation keeps, read in the program as lowered for a TPU or a GPU.


def custom_calls(kernel, platform, remat):
  """Names of the kernels of a scan over layers and its gradient."""
  segment_WL = jnp.ones((2, 256), jnp.int32)

  def step(h, _):
    return kernels._KERNELS[kernel](jnp.sin(h), h[:, :, :K], h[:, :, :K], segment_WL), None

  def loss(h):
    body = jax.checkpoint(step, policy=REMAT[remat], prevent_cse=False)
    return jnp.sum(jax.lax.scan(body, h, None, length=3)[0].astype(jnp.float32))

  h = jax.ShapeDtypeStruct((2, 256, N, 128), jnp.bfloat16)
  traced = jax.jit(jax.value_and_grad(loss)).trace(h)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  return re.findall(r'kernel_name = "(\w+)"|custom_call @(__cudnn[$\w]+)', text)


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "forward"), [("minimal", 1), ("full", 2)])
def test_splash_is_lowered_for_tpu_and_its_output_kept(remat, forward):
  names = ["".join(name) for name in custom_calls("splash", "tpu", remat)]
  assert len([n for n in names if "fwd" in n]) == forward
  assert len([n for n in names if "dkv" in n]) == 1
  assert len(names) == forward + 1


@pytest.mark.parametrize(("remat", "forward"), [("minimal", 1), ("full", 2)])
def test_cudnn_is_lowered_for_nvidia_and_its_output_kept(remat, forward, monkeypatch):
  # JAX asks this machine for its cuDNN, which lowering does not need.
  inside = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(inside, "check_cudnn_version", lambda: 91000)
  names = ["".join(name) for name in custom_calls("cudnn", "cuda", remat)]
  assert names == ["__cudnn$fmhaSoftmax"] * forward + ["__cudnn$fmhaSoftmaxBackward"]


@pytest.mark.skipif(GPU is None, reason="no GPU that JAX can use: JAX_PLATFORMS=cuda where one is")
def test_cudnn_gives_the_numbers_of_xla():
  (q, k, v), g = inputs(jnp.bfloat16)
  found = output_and_gradients("cudnn", segments_of(True), (q, k, v), g)
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in found)
  check(found, True, 0.03)


# Which kernel is chosen.


def device(platform, capability=None):
  return types.SimpleNamespace(
    platform=platform, compute_capability=capability, device_kind=f"a {platform}"
  )


def choose(wanted="auto", where="tpu", *, arch="qwen3", dtype="bfloat16", packed=True, **changes):
  backbone = backbone_config(hf_config(arch, head_dim=64) if arch == "qwen3" else hf_config(arch))
  backbone = dataclasses.replace(backbone, **changes)
  at = device("gpu", where) if where[0].isdigit() or where == "gfx942" else device(where)
  return kernels.choose(wanted, backbone, dtype=dtype, packed=packed, device=at)


@pytest.mark.parametrize(
  ("kernel", "options"),
  [
    ("splash", {}),
    ("splash", {"head_dim": 80}),
    ("xla", {"wanted": "xla"}),
    ("xla", {"dtype": "float32"}),
    ("xla", {"sliding_windows": (0, 5, 0)}),
    ("xla", {"attention_cap": 50.0}),
    ("xla", {"attention_dropout": 0.1}),
    ("xla", {"packed": False}),
    ("xla", {"arch": "bert"}),
    ("xla", {"where": "cpu", "dtype": "float32"}),
    ("interpreted", {"wanted": "splash", "where": "cpu", "dtype": "float32"}),
    ("cudnn", {"where": "9.0"}),
    ("cudnn", {"where": "8.6", "dtype": "float16"}),
    ("cudnn", {"where": "10.0", "head_dim": 256}),
    ("xla", {"where": "8.0", "head_dim": 256}),
    ("xla", {"where": "9.0", "head_dim": 12}),
    ("xla", {"where": "9.0", "dtype": "float32"}),
    ("xla", {"where": "9.0", "arch": "bert"}),
    ("xla", {"where": "7.5"}),
    ("xla", {"where": "gfx942"}),  # AMD's
  ],
)
def test_auto_takes_what_can_be_had(kernel, options):
  assert choose(**options) == kernel


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"wanted": "flash"}, "model.attention is 'flash'; expected one of auto, xla, splash, cudnn"),
    ({"arch": "bert"}, "'splash' and the model is an encoder; expected a decoder"),
    ({"dtype": "float32"}, "model.dtype is 'float32'; expected model.dtype=bfloat16"),
    ({"sliding_windows": (0, 5, 0)}, "sliding window"),
    ({"attention_cap": 50.0}, "caps attention's logits at 50; expected a model that does not"),
    ({"attention_dropout": 0.1}, r"rate of 0\.1; expected model.dropout=False"),
    ({"packed": False}, "data.pack is False; expected data.pack=True"),
    ({"where": "9.0"}, "platform 'gpu'; expected a TPU"),
    ({"wanted": "cudnn", "where": "tpu"}, "platform 'tpu'; expected an NVIDIA GPU"),
    ({"wanted": "cudnn", "where": "cpu"}, "platform 'cpu'; expected an NVIDIA GPU"),
    ({"wanted": "cudnn", "where": "7.5"}, r"compute capability '7\.5'; expected 8\.0"),
    ({"wanted": "cudnn", "where": "9.0", "dtype": "float32"}, "expected model.dtype=bfloat16"),
    ({"wanted": "cudnn", "where": "9.0", "head_dim": 12}, "12 wide; expected a multiple of 8, 256"),
  ],
)
def test_a_kernel_that_cannot_be_had_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    choose(**{"wanted": "splash"} | options)
  if options.get("wanted") != "flash":
    with pytest.raises(ValueError, match=r"or model\.attention=auto"):
      choose(**{"wanted": "splash"} | options)


def test_blocks_are_few_equal_and_of_whole_lanes():
  expected = {60: (1, 128), 128: (1, 128), 512: (1, 512), 640: (2, 384), 1408: (3, 512)}
  assert {L: kernels.blocks(L) for L in expected} == expected
