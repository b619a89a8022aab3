"""The network as a function: who sees whom, frozen stacks, remat, dropout, precision."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from rm_jax.batch.layout import Packing, need, pack, plan
from rm_jax.batch.pack import assemble
from rm_jax.models import layers
from rm_jax.models.attention import visible, within
from rm_jax.models.layers import run_stack, stack
from rm_jax.models.lora import Lora
from rm_jax.models.numerics import drop
from rm_jax.types import Batch
from tests.batch.test_pack import random_groups
from tests.models import oracle
from tests.models.layouts import VOCAB, WINDOW, T, layout
from tests.models.oracle import make_network, quick_jit, random_params, split_stack

_WINDOW = {"sliding_window": WINDOW}


def _batch(arch, name=None):
  return layout(name or ("copies" if arch == "bert" else "shared"), arch).batch


def _scores(network, params, batch, key=None):
  return jax.device_get(oracle.scores_of(network)(params, batch, key))


def _gradient(network, params, batch):
  run = oracle.gradient_of(network, hidden=batch.hidden is not None)
  return jax.device_get(run(params, batch))[1]


def _close(a, b, tolerance):
  """|difference| <= tolerance x |b|, parameter by parameter, both as vectors."""
  a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
  assert a.keys() == b.keys()
  for path in a:
    assert np.linalg.norm(a[path] - b[path]) <= tolerance * np.linalg.norm(b[path]), path


# Which columns see which.


def _row(group, branch):
  zeros = np.zeros((1, len(group)), np.int32)
  none = np.zeros((1, 1, 1), np.int32)
  return Batch(
    tokens=zeros,
    group=np.array([group], np.int32),
    branch=np.array([branch], np.int32),
    position=zeros,
    marks=none,
    where=none.astype(bool),
    labels=none.astype(np.float32),
    weight=np.zeros((1, 1), np.float32),
  )


@pytest.mark.parametrize(
  ("causal", "rows"),
  [
    # One line a query, one column a key: p p a a b | p' a' | padding.
    (True, ["1.......", "11......", "111.....", "1111....", "11..1...", ".....1..", ".....11."]),
    (False, ["11......", "11......", "1111....", "1111....", "11..1...", ".....1..", ".....11."]),
  ],
)
def test_visible_is_the_rule(causal, rows):
  batch = _row(group=[1, 1, 1, 1, 1, 2, 2, 0], branch=[0, 0, 1, 1, 2, 0, 1, 0])
  expected = np.array([[cell == "1" for cell in line] for line in rows])
  np.testing.assert_array_equal(visible(batch, causal=causal)[0, :7], expected)
  # Nothing real sees padding, and padding sees nothing real.
  assert not np.any(visible(batch, causal=causal)[0, 7, :7])


def test_visible_where_each_branch_has_its_own_copy():
  batch = _row(group=[1, 1, 1, 1], branch=[1, 1, 2, 2])
  both = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool)
  np.testing.assert_array_equal(visible(batch, causal=False)[0], both)
  np.testing.assert_array_equal(visible(batch, causal=True)[0], np.tril(both))


def test_a_window_counts_positions():
  position = np.array([[0, 1, 2, 3, 2]])
  np.testing.assert_array_equal(
    within(position, 2)[0].astype(int)[3:],
    # A key fewer than 2 positions back is seen; keys ahead are masked by `visible`.
    [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]],
  )
  assert within(position, 0).all()


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma2", "bert"])
def test_a_score_depends_on_its_own_sequence_alone(arch):
  """Bitwise: a masked column has weight zero, not a small one."""
  network = make_network(arch, **(_WINDOW if arch == "mistral" else {}))
  params = random_params(network)
  rows = layout("copies" if arch == "bert" else "shared", arch)
  before = _scores(network, params, rows.batch)
  for sequence in rows.sequences[:4]:
    tokens = rows.batch.tokens.copy()
    others = np.setdiff1d(np.arange(T), sequence.columns)
    tokens[sequence.row, others] = (tokens[sequence.row, others] + 41) % VOCAB
    after = _scores(network, params, dataclasses.replace(rows.batch, tokens=tokens))
    slot = (sequence.row, *sequence.slot)
    assert after[slot] == before[slot]
    changed = (after != before)[sequence.row] & rows.batch.where[sequence.row]
    assert changed.sum() == rows.batch.where[sequence.row].sum() - 1


@pytest.mark.parametrize("arch", ["mistral", "gemma2"])
@pytest.mark.parametrize("name", ["packed", "shared"])
def test_sliding_windows_are_measured_in_positions(name, arch):
  """Each sequence of a row, the second branch too, scores as it does alone in a row."""
  network = make_network(arch, **_WINDOW)
  params = random_params(network)
  rows = layout(name, arch)
  together = _scores(network, params, rows.batch)
  apart = 0
  for sequence in rows.sequences:
    row, columns = sequence.row, list(sequence.columns)
    apart += columns[-1] - columns[0] >= len(columns)
    alone = jax.tree.map(np.zeros_like, rows.batch)
    for field in ("tokens", "position", "branch", "group"):
      getattr(alone, field)[0, : len(columns)] = getattr(rows.batch, field)[row, columns]
    alone.marks[0, 0, 0] = len(columns) - 1
    alone.where[0, 0, 0] = True
    score = _scores(network, params, alone)[0, 0, 0]
    assert abs(score - together[(row, *sequence.slot)]) < 2e-6
  assert apart > 0 or name == "packed"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["mistral", "gemma2"])
def test_windows_of_a_row_change_no_number(arch):
  """Scores and gradients of rows whose prompts are shared or copied are those of padded rows."""
  groups = random_groups(8, longest=150)
  groups = [dataclasses.replace(g, ids=tuple(i % VOCAB for i in g.ids)) for g in groups]
  network = make_network(arch, **{**_WINDOW, "sliding_window": 40})
  params = random_params(network)
  factor = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

  def scores_and_gradients(packing):
    needs = [need(g, packing) for g in groups]
    (micro,) = pack(range(8), needs, plan(groups, 8, packing))
    batch, index = assemble(micro, groups, packing=packing, fields=frozenset())
    K = batch.where.shape[-1]

    def loss(params, batch):
      scores = network.apply(params, batch)
      return jnp.sum(jnp.where(batch.where, scores * factor[index][..., :K], 0)), scores

    (_, scores), grads = quick_jit(jax.value_and_grad(loss, has_aux=True))(params, batch)
    by_group = np.zeros_like(factor)
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      by_group[index[b, g], :K] = scores[b, g]
    return batch, by_group, jax.device_get(grads)

  padded, expected, gradients = scores_and_gradients(Packing(share=False, pack=False, cells=10**6))
  assert padded.windows is None
  # Compiling takes most of the time. How windows are made is alike for both architectures.
  several = (("cheapest", True), ("sequences", True), ("sequences", False))
  for windows, share in several if arch == "mistral" else several[:1]:
    packing = Packing(share=share, cells=10**6, windows=windows, align=8)
    batch, scores, ours = scores_and_gradients(packing)
    # Blocks of queries, of which causal attention makes several, begin at 64 columns.
    assert max(w.shape[-1] for w in batch.windows) > 64
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    _close(ours, gradients, 2e-5)


# Frozen layers.


@pytest.mark.slow
@pytest.mark.parametrize(
  ("arch", "frozen"), [("qwen2", 1), ("qwen2", 3), ("gemma2", 1), ("bert", 2), ("bert", 3)]
)
def test_frozen_layers_change_no_number(arch, frozen):
  # The window is in the last layer only: a stack must get its own layers' windows.
  keys = dict(_WINDOW, use_sliding_window=True, max_window_layers=2) if arch == "qwen2" else {}
  whole = make_network(arch, **keys)
  network = dataclasses.replace(whole, frozen=frozen)
  params, batch = random_params(whole), _batch(arch)
  split = split_stack(params, frozen)
  assert jax.tree.map(np.shape, split) == jax.tree.map(np.shape, network.abstract())

  @oracle.quick_jit
  def run(split, batch):
    # The output of the frozen layers can be kept, and enters above them.
    features = network.features(split, batch)
    kept = dataclasses.replace(batch, hidden=features, tokens=jnp.zeros_like(batch.tokens))
    return features, network.apply(split, batch), network.apply(split, kept)

  features, direct, through = jax.device_get(run(split, batch))
  expected = _scores(whole, params, batch)
  assert features.shape == (*batch.tokens.shape, 32)
  np.testing.assert_allclose(direct, expected, rtol=0, atol=2e-6)
  np.testing.assert_allclose(through, expected, rtol=0, atol=2e-6)
  assert np.abs(expected[batch.where]).min() > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("last_layer_apart")
def test_gradients_above_frozen_layers_are_the_same():
  whole = make_network("llama")
  network = dataclasses.replace(whole, frozen=1)
  params, batch = random_params(whole), _batch("llama")
  expected = split_stack(_gradient(whole, params, batch), 1)
  split = split_stack(params, 1)
  features = oracle.quick_jit(network.features)(split, batch)
  ours = _gradient(network, split, dataclasses.replace(batch, hidden=features))
  for room in ("layers", "norm"):
    _close(ours["backbone"][room], expected["backbone"][room], 1e-6)
  _close(ours["head"], expected["head"], 1e-6)
  assert all((g == 0).all() for g in jax.tree.leaves(ours["backbone"]["lower"]))
  assert (ours["backbone"]["embed"]["embedding"] == 0).all()


def test_settings_that_are_wrong():
  for options, message in (
    ({"frozen": 4}, "model.frozen_layers is 4; expected 0 to 3"),
    ({"frozen": -1}, "model.frozen_layers is -1"),
    ({"remat": "some"}, "model.remat is 'some'; expected one of none, minimal, full"),
  ):
    with pytest.raises(ValueError, match=message):
      make_network("llama", options=options)


# Rematerialisation and precision.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared", "packed"])
@pytest.mark.parametrize("arch", ["qwen3", "mistral", "gemma2", "bert"])
@pytest.mark.usefixtures("last_layer_apart")
def test_a_last_layer_at_marks_alone_changes_no_number(arch, name):
  if arch == "bert":
    name = {"shared": "copies"}.get(name, name)
  network = make_network(arch, **(_WINDOW if arch == "mistral" else {}))
  params, batch = random_params(network), _batch(arch, name)
  factor = np.random.default_rng(0).normal(size=batch.marks.shape).astype(np.float32)
  at_marks, at_all, pooled = _at_marks_and_at_all(network)
  marks, of_marks = at_marks(params, batch, factor)
  whole, of_whole = at_all(params, batch, factor)
  np.testing.assert_allclose(marks, whole, rtol=1e-5)
  for one in (of_marks, of_whole):  # adds the same to all of a softmax: zero but for rounding
    one["backbone"]["layers"]["k"].pop("bias", None)
  _close(of_marks, of_whole, 2e-5)
  read, taken = pooled(params, batch)
  np.testing.assert_allclose(read[batch.where], taken[batch.where], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("last_layer_apart")
def test_a_last_layer_at_marks_alone_has_its_adapters():
  network = dataclasses.replace(make_network("llama"), lora=Lora(rank=2))
  params, batch = random_params(network), _batch("llama", "shared")
  # Small, so that attention is not saturated, where gradients are differences of large numbers.
  params = jax.tree.map_with_path(lambda path, x: x / 8 if "lora" in str(path) else x, params)
  factor = np.random.default_rng(0).normal(size=batch.marks.shape).astype(np.float32)
  at_marks, at_all, _ = _at_marks_and_at_all(network)
  marks, of_marks = at_marks(params, batch, factor)
  whole, of_whole = at_all(params, batch, factor)
  np.testing.assert_allclose(marks, whole, rtol=1e-5)
  _close(of_marks, of_whole, 2e-5)
  last = of_marks["backbone"]["layers"]["o"]["lora_b"][-1]
  assert np.abs(last).max() > 1e-3


@functools.cache
def _at_marks_and_at_all(network):
  """Σ factor · score² and its gradient, by the two ways; what the head reads, by both."""

  def squares(function):
    def loss(params, batch, factor):
      return jnp.sum(factor * function(params, batch) ** 2)

    return quick_jit(jax.value_and_grad(loss))

  def pooled(params, batch):
    h_BTD = network.hidden(params, batch)
    at = batch.marks.reshape(len(h_BTD), -1, 1)
    taken = jnp.take_along_axis(h_BTD, at, axis=1).reshape(*batch.marks.shape, -1)
    return network.read(params, batch)[0], taken

  whole = squares(lambda params, batch: network.apply_with_hidden(params, batch)[0])
  return squares(network.apply), whole, quick_jit(pooled)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_remat_changes_memory_and_no_gradient(arch):
  whole, batch, memory, grads = make_network(arch), _batch(arch), {}, {}
  params = random_params(whole)
  for remat in ("none", "minimal", "full") if arch == "llama" else ("none", "full"):
    compiled = oracle.gradient_of(dataclasses.replace(whole, remat=remat))
    memory[remat] = compiled.memory_analysis().temp_size_in_bytes
    grads[remat] = jax.device_get(compiled(params, batch))[1]
    if arch == "bert":
      # A softmax does not see a shift of its logits: this gradient is rounding about zero.
      bias = grads[remat]["backbone"]["layers"]["k"].pop("bias")
      assert np.abs(bias).max() < 1e-5
  for remat in set(grads) - {"none"}:
    _close(grads[remat], grads["none"], 1e-6)
  assert memory["none"] > memory.get("minimal", memory["none"] - 1) > memory["full"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["qwen3", "bert"])
def test_bfloat16_is_close_to_float32(arch):
  network = make_network(arch)
  low = dataclasses.replace(network, dtype="bfloat16")
  params, batch = random_params(network), _batch(arch)
  real = batch.group > 0
  hidden, scores = oracle.forward(network, quick=True)(params, batch)
  rough, rough_scores = oracle.forward(low, quick=True)(params, batch)
  assert rough.dtype == jnp.bfloat16
  assert rough_scores.dtype == np.float32
  hidden = np.asarray(hidden)[real]
  difference = np.asarray(rough, np.float32)[real] - hidden
  error = math.sqrt(np.mean(difference**2) / np.mean(hidden**2))
  # bfloat16 rounds by at most 2^-9 of a number. A layer rounds about 8 times on its way through
  # (norm, q/k/v, weights, values, two maps, two sums), three layers 24 times: that is the most that
  # they add up to where no map amplifies them, and independent roundings add up to a fifth of it.
  assert 2**-9 < error < 24 * 2**-9
  assert np.isfinite(rough_scores).all()
  np.testing.assert_allclose(rough_scores, scores, atol=0.15)


@pytest.mark.parametrize("arch", ["qwen3", "bert"])
@pytest.mark.usefixtures("last_layer_apart")
def test_the_precision_of_every_dot(arch):
  """TPUs and NVIDIA round float32 products by default, CPUs do not: read in the lowered text."""

  def dots(dtype, platform="cpu"):
    network = make_network(arch, options={"dtype": dtype})
    traced = oracle.scores_of(network).trace(network.abstract(), _batch(arch))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return [line for line in text.splitlines() if "dot_general" in line]

  # Six maps, or a decoder's seven, and attention's two, once for the stack and once for its last
  # layer; the output layer, and BERT's pooler; the means of a decoder's norms, four in a layer.
  body, head, norms = (18, 1, 9) if arch == "qwen3" else (16, 2, 0)
  full, mixed = dots("float32"), dots("bfloat16")
  assert len(full) == len(mixed) == body + head + norms
  assert all("precision = [HIGHEST, HIGHEST]" in line for line in full)
  # Where the backbone computes in bfloat16, head and norms do not, and attention sums in float32.
  kinds = [tuple(re.findall(r"tensor<[0-9x]+x(\w+)>", line)) for line in mixed]
  assert kinds.count(("bf16", "bf16", "f32")) == body  # on a CPU the maps do too
  other = [tuple(re.findall(r"tensor<[0-9x]+x(\w+)>", x)) for x in dots("bfloat16", "cuda")]
  assert other.count(("bf16", "bf16", "f32")) == 4
  assert other.count(("bf16", "bf16", "bf16")) == body - 4
  heads = [m for m, kind in zip(mixed, kinds, strict=True) if kind == ("f32", "f32", "f32")]
  assert len(heads) == head + norms
  assert all("precision = [HIGHEST, HIGHEST]" in line for line in heads)


def test_berts_norm_keeps_the_digits_of_numbers_far_from_zero():
  """E[x²] - E[x]² would lose four of seven where the mean is 100 times the deviation."""
  network = make_network("bert")
  params, batch = random_params(network), _batch("bert")
  room = params["backbone"]
  room["embed"]["embedding"] += 100
  embedded = (
    room["embed"]["embedding"][batch.tokens]
    + room["embed_token_type"]["embedding"][batch.token_type]
    + room["embed_position"]["embedding"][batch.position]
  ).astype(np.float64)
  centred = embedded - embedded.mean(-1, keepdims=True)
  normed = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + network.backbone.eps)
  expected = normed * room["embed_norm"]["scale"] + room["embed_norm"]["bias"]
  features = oracle.quick_jit(network.features)(params, batch)
  # Float32 knows a number near 100 to 4e-6, and a mean of 32, summed in pairs, to five times that;
  # a deviation of 1.7 divides it and a scale of up to 2 multiplies it.
  np.testing.assert_allclose(features, expected, rtol=0, atol=5e-5)


# Padding.


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_padding_has_score_zero_and_no_gradient(arch):
  network = make_network(arch)
  params, batch = random_params(network), _batch(arch)
  empty = jax.tree.map(np.copy, batch)
  for leaf in (empty.group, empty.branch, empty.position, empty.marks, empty.where):
    leaf[1] = 0

  scores, grads = jax.device_get(oracle.gradient_of(network)(params, empty))
  assert scores.shape == batch.where.shape
  assert (scores[~empty.where] == 0).all()
  assert (scores[empty.where] != 0).all()
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))

  # Tokens that occur only in padding get no gradient, and changing them changes no number.
  seen = np.unique(empty.tokens[empty.group > 0])
  unseen = np.setdiff1d(np.arange(VOCAB), seen)
  assert (grads["backbone"]["embed"]["embedding"][unseen] == 0).all()
  other = dataclasses.replace(empty, tokens=np.where(empty.group > 0, empty.tokens, 5))
  again, _ = jax.device_get(oracle.gradient_of(network)(params, other))
  np.testing.assert_array_equal(again, scores)


# Heads and fresh parameters.


def test_several_outputs_are_a_leading_axis():
  one, three = make_network("llama"), make_network("llama", labels=3)
  params, batch = random_params(three), _batch("llama")
  scores_ABGK = _scores(three, params, batch)
  assert scores_ABGK.shape == (3, *batch.marks.shape)
  for a in range(3):
    kernel = params["head"]["out"]["kernel"][:, a : a + 1]
    scores_BGK = _scores(one, {**params, "head": {"out": {"kernel": kernel}}}, batch)
    np.testing.assert_allclose(scores_ABGK[a], scores_BGK, rtol=0, atol=1e-6)


def test_fresh_parameters():
  network = make_network("bert", hidden_size=128)
  params = jax.device_get(oracle.quick_jit(network.init)(jax.random.key(0)))
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
  assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), network.abstract())
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  for path, leaf in flatten_dict(params, sep="/").items():
    if path.endswith("/bias"):
      assert (leaf == 0).all(), path
    elif path.endswith("/scale"):
      assert (leaf == 1).all(), path
    else:
      std = 1 / 129 if path.startswith("head/out/") else 0.02
      # 128 numbers estimate a standard deviation to 1 / sqrt(2 · 128) = 6 %.
      assert leaf.std() == pytest.approx(std, rel=0.2), path
  up = params["backbone"]["layers"]["up"]["kernel"]
  assert (up[0] != up[1]).any(), "layers of a stack begin alike"
  # log 2 is what a pairwise loss begins at where no score is far from another.
  assert np.abs(_scores(network, params, _batch("bert"))).max() < 0.5


# Dropout.


def _rates(arch, **keys):
  if arch == "bert":
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return make_network("bert", **{**off, "classifier_dropout": 0.0, **keys})
  return make_network(arch, **{"attention_dropout": 0.0, **keys})


@pytest.mark.slow
@pytest.mark.parametrize(
  ("arch", "rate"),
  [
    ("llama", "attention_dropout"),
    ("bert", "hidden_dropout_prob"),
    ("bert", "attention_probs_dropout_prob"),
    ("bert", "classifier_dropout"),
  ],
)
@pytest.mark.usefixtures("last_layer_apart")
def test_dropout_is_of_the_rate_in_config_json_and_only_with_a_key(arch, rate):
  none, some = _rates(arch), _rates(arch, **{rate: 0.3})
  params, batch = random_params(none), _batch(arch)
  one, two = jax.random.split(jax.random.key(0))
  without = [oracle.scores_of(n).lower(params, batch).as_text() for n in (none, some)]
  assert without[0] == without[1]
  plain = _scores(none, params, batch)
  np.testing.assert_allclose(_scores(none, params, batch, one), plain, rtol=0, atol=1e-6)
  first = _scores(some, params, batch, one)
  np.testing.assert_array_equal(first, _scores(some, params, batch, one))
  real = batch.where
  assert (np.abs(first - plain)[real] > 1e-6).mean() > 0.9
  assert (np.abs(first - _scores(some, params, batch, two))[real] > 1e-6).mean() > 0.9
  assert (first[~real] == 0).all()


def test_drop_keeps_the_mean():
  kept = drop(jnp.ones((200, 100)), 0.3, jax.random.key(1))
  # 20,000 draws: three standard deviations of the mean are 3 sqrt(.3 · .7 / 20,000) = 0.0097.
  assert abs(float((kept > 0).mean()) - 0.7) < 0.0097
  np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.7], rtol=1e-6)


def test_each_layer_drops_by_its_own_key():
  layers = stack(lambda rngs: nnx.Linear(1, 1, rngs=rngs), 3, nnx.Rngs(0))

  @oracle.quick_jit
  def run(key):
    return run_stack(layers, lambda _, h, __, k: drop(h, 0.5, k), jnp.ones((100, 200)), key=key)

  # One key for all would keep a half; 3 sqrt(1/8 · 7/8 / 20,000) = 0.007.
  assert abs(float((run(jax.random.key(0)) > 0).mean()) - 1 / 8) < 0.007


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_kept_features_meet_the_same_dropout(arch):
  """Frozen layers never drop, so that training on their kept output is the same training."""
  rates = (
    {"attention_dropout": 0.3}
    if arch == "llama"
    else {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
  )
  network = dataclasses.replace(_rates(arch, **rates), frozen=2)
  params, batch = random_params(network), _batch(arch)
  without = dataclasses.replace(_rates(arch), frozen=2)
  lowered = [oracle.quick_jit(n.features).lower(params, batch) for n in (network, without)]
  assert lowered[0].as_text() == lowered[1].as_text()

  @oracle.quick_jit
  def run(params, batch, key):
    kept = dataclasses.replace(batch, hidden=network.features(params, batch))
    return network.apply(params, batch, key), network.apply(params, kept, key)

  whole, kept = jax.device_get(run(params, batch, jax.random.key(3)))
  np.testing.assert_allclose(kept, whole, rtol=0, atol=2e-6)
  other, _ = jax.device_get(run(params, batch, jax.random.key(4)))
  assert np.abs(other - whole)[batch.where].mean() > 1e-3


@pytest.mark.parametrize(("D", "F"), [(24, 40), (40, 24)])
def test_a_linear_maps_gradients_are_those_of_the_plain_product(D, F):
  """Whichever matrix is transposed on a CPU; lowered for a TPU or a GPU, none is."""
  x_key, w_key, g_key = jax.random.split(jax.random.key(0), 3)
  x_BTD = jax.random.normal(x_key, (2, 7, D))
  kernel_DF = jax.random.normal(w_key, (D, F))
  g_BTF = jax.random.normal(g_key, (2, 7, F))
  dimensions = (((2,), (0,)), ((), ()))
  options = dict(precision=jax.lax.Precision.HIGHEST, preferred_element_type=None)

  def gradients(dot):
    return jax.vjp(lambda x, w: dot(x, w, dimensions, **options), x_BTD, kernel_DF)[1](g_BTF)

  ours = jax.jit(functools.partial(gradients, layers._flat_dot))
  for mine, plain in zip(ours(), gradients(jax.lax.dot_general), strict=True):
    np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-5)
  for platform, barriers in (("cpu", True), ("tpu", False), ("cuda", False)):
    text = ours.trace().lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) is barriers


def test_the_decoders_norm_is_flaxs():
  """Values and gradients, of numbers far from one and of zeros."""
  x_key, s_key, g_key = jax.random.split(jax.random.key(0), 3)
  x_BTD = 30 * jax.random.normal(x_key, (3, 5, 48)).at[0, 0].set(0.0)
  g_BTD = jax.random.normal(g_key, x_BTD.shape)
  scale_D = jax.random.normal(s_key, (48,))

  def gradients(kind):
    norm = kind(48, epsilon=1e-6, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(norm)

    def of(x, scale):
      state["scale"] = state["scale"].replace(scale)
      return nnx.merge(graph, state)(x)

    y, back = jax.vjp(of, x_BTD, scale_D)
    return y, *back(g_BTD)

  for mine, flaxs in zip(gradients(layers.RMSNorm), gradients(nnx.RMSNorm), strict=True):
    np.testing.assert_allclose(mine, flaxs, rtol=1e-5, atol=1e-5 * float(jnp.abs(flaxs).max()))


def test_a_norm_adds_its_offset_in_float32():
  """A frozen base in bfloat16 (LoRA) has its scales so: the sum is not rounded to it again."""
  norm = layers.RMSNorm(64, epsilon=1e-6, dtype=jnp.float32, rngs=nnx.Rngs(0), offset=1.0)
  scale_D = (0.3 * jax.random.normal(jax.random.key(0), (64,))).astype(jnp.bfloat16)
  x_BD = jax.random.normal(jax.random.key(1), (4, 64))
  graph, state = nnx.split(norm)
  state["scale"] = state["scale"].replace(scale_D)
  x, scale = np.asarray(x_BD, np.float64), np.asarray(scale_D, np.float64)
  expected = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * (1 + scale)
  np.testing.assert_allclose(nnx.merge(graph, state)(x_BD), expected, rtol=1e-6)
