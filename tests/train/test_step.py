"""The numbers of a step do not depend on how its groups are laid out, cut up or divided."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from configs.base import get_config
from rm_jax.batch.group import make_group
from rm_jax.batch.layout import Packing, need, pack, plan
from rm_jax.batch.pack import assemble, optional_fields
from rm_jax.batch.tokenise import Convention, TextEncoder
from rm_jax.models.config import HeadConfig
from rm_jax.models.kernels import PACKING
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import make_mesh
from rm_jax.pretrained.config import backbone_config
from rm_jax.reward.score import make_features, score_groups
from rm_jax.train.objective import Objective
from rm_jax.train.optimizer import make_optimizer, make_schedule
from rm_jax.train.run import abstract_state
from rm_jax.train.step import compile_step, make_accumulate, make_apply
from rm_jax.train.window import window_metrics, zero_sums, zero_window
from rm_jax.types import Example
from rm_jax.workdir.state import TrainState
from tests.conftest import BERT, LLAMA, decoder_tokenizer, encoder_tokenizer

pytestmark = pytest.mark.usefixtures("last_layer_apart")
KINDS = {"llama": LLAMA, "bert": BERT}
BITS = jax.random.key_data(jax.random.key(0))
# (architecture, where its reward is read)
READ = [("llama", "last"), ("bert", "first"), ("llama", "mean"), ("bert", "mean")]


def make_groups(kind, count, seed=0, pooling=""):
  rng = np.random.default_rng(seed)
  if kind == "llama":
    encoder = TextEncoder(
      decoder_tokenizer(), Convention(max_length=200, pooling=pooling or "last")
    )
  else:
    convention = Convention(encoder=True, eos="none", pooling=pooling or "first", max_length=200)
    encoder = TextEncoder(encoder_tokenizer(), convention)

  def words(longest):
    return "".join(rng.choice(list("abcdefgh "), rng.integers(1, longest)))

  groups = []
  for i in range(count):
    example = Example(words(40), (words(30), words(30)), (1.0, 0.0), weight=1.0 + i % 3)
    sequences = encoder.sequences([(example.prompt, r) for r in example.responses])
    groups.append(make_group(sequences, dataclasses.replace(example, margin=0.1 * (i % 2))))
  return groups


def network_of(kind, **options):
  return Network(backbone_config(KINDS[kind]), HeadConfig(), **options)


def params_of(network):
  # Norms and head as training leaves them, not the ones and near-zeros they begin as.
  flat = flatten_dict(network.init(jax.random.key(0)), sep="/")
  rng = np.random.default_rng(1)
  return {path: x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for path, x in flat.items()}


def state_of(params):
  return TrainState(jnp.int32(0), params, {}, optax.EmptyState(), zero_window(1))


@functools.cache
def _accumulate(network):
  config = get_config().loss
  config.pair, config.l2 = "logistic(smoothing=0.05)", 0.01
  return jax.jit(make_accumulate(network, Objective(config, {"pair"}), sources=1, dropout=False))


def loss_and_gradients(network, params, groups, micro_batches, packing):
  """Sums over the given number of micro-batches, divided once."""
  accumulate = _accumulate(network)
  gradients = jax.tree.map(jnp.zeros_like, params)
  sums = zero_sums(1)
  needs = [need(g, packing) for g in groups]
  # The same shapes for all: fewer groups leave rows empty, and those must not count either.
  shapes = tuple(sizes[-1:] for sizes in plan(groups, len(groups), packing))
  for part in np.array_split(np.arange(len(groups)), micro_batches):
    for micro in pack(part, needs, shapes):
      batch, _ = assemble(micro, groups, packing=packing, fields=optional_fields(groups))
      batch = jax.tree.map(jnp.asarray, batch)
      gradients, sums = accumulate(state_of(params), gradients, sums, batch, BITS)
  weight = float(sums["weight"].sum())
  assert weight == sum(g.weight for g in groups)
  return float(sums["loss"].sum()) / weight, jax.tree.map(
    lambda g: np.asarray(g) / weight, gradients
  )


LAYOUTS = {
  "padded": Packing(share=False, pack=False, cells=10**6),
  "packed": Packing(share=False, pack=True, cells=10**6),
  "shared": Packing(share=True, pack=True, cells=10**6),
  "shared rows of another length": Packing(share=True, pack=True, row_lengths=(160, 256)),
  "shared, attention by sequences": Packing(windows="sequences", align=8),
}
# (layout, number of micro-batches) of a step: every layout, and each number in two of them.
LAID = (
  *((name, count) for name in ("padded", "shared") for count in (1, 2, 4)),
  *((name, 2) for name in LAYOUTS if name not in ("padded", "shared")),
)
# What attention runs on instead of XLA's own products.
KERNELS = {
  "splash": ("interpreted", Packing(**PACKING["splash"])),
  "splash, nothing shared": ("interpreted", Packing(share=False, **PACKING["splash"])),
  "a window each": ("lengths", Packing(**PACKING["cudnn"])),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pooling"), READ)
def test_sixteen_groups_in_any_layout_and_any_number_of_micro_batches(kind, pooling):
  network = network_of(kind)
  params, groups = params_of(network), make_groups(kind, 16, pooling=pooling)
  loss, gradients = loss_and_gradients(network, params, groups, 1, LAYOUTS["padded"])
  scale = max(np.abs(g).max() for g in gradients.values())
  for name, count in LAID:
    packing = LAYOUTS[name]
    if packing.share and kind != "llama":
      continue
    other, others = loss_and_gradients(network, params, groups, count, packing)
    assert other == pytest.approx(loss, rel=1e-5), (name, count)
    for path, gradient in gradients.items():
      error = np.abs(others[path] - gradient).max() / scale
      assert error <= 1e-5, (name, count, path, error)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_sixteen_groups_on_any_kernel(name):
  attention, packing = KERNELS[name]
  network = network_of("llama")
  params, groups = params_of(network), make_groups("llama", 16)
  loss, gradients = loss_and_gradients(network, params, groups, 1, LAYOUTS["shared"])
  scale = max(np.abs(g).max() for g in gradients.values())
  network = dataclasses.replace(network, attention=attention, remat="minimal")
  other, others = loss_and_gradients(network, params, groups, 1, packing)
  assert other == pytest.approx(loss, rel=1e-5)
  for path, gradient in gradients.items():
    assert np.abs(others[path] - gradient).max() / scale <= 1e-5, path


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pooling"), READ)
def test_frozen_activations_that_were_kept_give_the_same_scores(kind, pooling):
  network = network_of(kind, frozen=1)
  params = network.init(jax.random.key(0))
  groups = make_groups(kind, 12, pooling=pooling)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  packing = Packing(share=kind == "llama", row_lengths=(160,))
  options = dict(mesh=mesh, packing=packing)
  direct = score_groups(network, params, groups, **options)
  features = make_features(network, params, groups, **options)
  kept = score_groups(network, params, groups, features=features, **options)
  np.testing.assert_allclose(np.stack(kept), np.stack(direct), atol=1e-7, rtol=1e-5)
  # They are used, and not merely ignored.
  wrong = [f + 1 for f in features]
  off = score_groups(network, params, groups, features=wrong, **options)
  assert np.abs(np.stack(off) - np.stack(direct)).max() > 1e-5


def _of_eight_layers():
  """`make_accumulate` of a decoder of eight layers, its arguments, and the parameters' shapes."""
  hf = LLAMA | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
  network = Network(backbone_config(hf), HeadConfig(), remat="full")
  params = {
    path: jax.ShapeDtypeStruct(x.shape, jnp.float32)
    for path, x in flatten_dict(network.abstract(), sep="/").items()
  }
  groups, packing = make_groups("llama", 2), LAYOUTS["padded"]
  needs, shapes = [need(g, packing) for g in groups], plan(groups, 2, packing)
  (micro,) = pack(np.arange(2), needs, shapes)
  batch, _ = assemble(micro, groups, packing=packing, fields=optional_fields(groups))
  config = get_config().loss
  config.pair = "logistic"
  accumulate = make_accumulate(network, Objective(config, {"pair"}), sources=1, dropout=False)
  arguments = (state_of(params), params, zero_sums(1), batch, BITS)
  return accumulate, arguments, params


@pytest.mark.slow
def test_a_micro_batch_holds_no_second_gradient():
  accumulate, arguments, params = _of_eight_layers()
  lowered = jax.jit(accumulate, donate_argnums=(1, 2)).lower(*arguments)
  temporaries = lowered.compile().memory_analysis().temp_size_in_bytes
  # Few tokens and layers made again: all else together is less than the gradient.
  assert temporaries < sum(4 * x.size for x in params.values())


@pytest.mark.parametrize("devices", [1, 4])
def test_on_one_cpu_the_last_layer_stands_apart_for_its_marks(devices):
  accumulate, arguments, _ = _of_eight_layers()
  config = get_config().mesh
  config.data = devices
  with jax.set_mesh(make_mesh(config, jax.devices()[:devices])):
    text = str(jax.make_jaxpr(accumulate)(*arguments))
  lengths = set(re.findall(r"\blength=(\d+)", text))
  assert lengths == ({"7"} if devices == 1 else {"8"})


def test_apply_divides_once_and_skips_what_is_not_finite():
  params = {"w/kernel": jnp.asarray([1.0, 2.0])}
  optimizer = optax.sgd(0.5)
  state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), zero_window(1))
  sums = zero_sums(1) | {"weight": jnp.asarray([4.0]), "loss": jnp.asarray([8.0])}
  apply = make_apply(optimizer)
  new, pulse = apply(state, {"w/kernel": jnp.asarray([4.0, 8.0])}, sums)
  assert not pulse["skipped"]
  np.testing.assert_allclose(new.params["w/kernel"], [1 - 0.5 * 1, 2 - 0.5 * 2])
  assert new.step == 1
  after, pulse = apply(
    new, {"w/kernel": jnp.asarray([jnp.nan, 1.0])}, sums | {"loss": jnp.asarray([jnp.nan])}
  )
  assert pulse["skipped"]
  np.testing.assert_array_equal(after.params["w/kernel"], new.params["w/kernel"])
  assert after.step == 2
  metrics = window_metrics(jax.device_get(after.window), ["a"])
  assert metrics["skipped_steps"] == 1
  assert metrics["loss"] == 2.0


def test_runs_share_the_programs_that_do_not_depend_on_what_differs():
  def compiled(*, devices=1, sources=1, dropout=False, network=None, **fields):
    config = get_config()
    fields = {"optimizer.warmup_steps": 2, "optimizer.decay_steps": 9} | fields
    config.update_from_flattened_dict(fields)
    network = network or network_of("llama")
    mesh = make_mesh({"data": -1}, jax.devices()[:devices])
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer))
    objective = Objective(config.loss, {"pair"})
    state = abstract_state(config, network, {}, optimizer, mesh, sources=sources)
    return compile_step(
      network, objective, optimizer, state, mesh, sources=sources, dropout=dropout
    )

  first = compiled()
  assert compiled(**{"seed": 7, "data.train": "another.jsonl", "train.steps": 9}) == first
  neither, apply, accumulate = set(), {"apply"}, {"accumulate", "ahead", "zeros"}
  for different, shared in [
    (dict(devices=2), neither),
    (dict(sources=2), neither),
    ({"optimizer.freeze": ("embed",)}, neither),
    (dict(dropout=True), apply),
    (dict(network=network_of("llama", remat="full")), apply),
    ({"loss.pair": "hinge"}, apply),
    ({"optimizer.learning_rate": 0.5}, accumulate),
    ({"optimizer.clip": 0.25}, accumulate),
  ]:
    other = compiled(**different)
    same = {name for name in apply | accumulate if getattr(other, name) is getattr(first, name)}
    assert same == shared, different
