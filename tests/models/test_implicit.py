"""An implicit reward is β times the log-ratio of likelihoods, however rows are laid out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs.base import get_config
from rm_jax.batch.group import make_group
from rm_jax.batch.layout import need, pack, plan
from rm_jax.batch.pack import assemble, optional_fields
from rm_jax.batch.tokenise import Convention, TextEncoder
from rm_jax.errors import InputError
from rm_jax.losses import LOSSES
from rm_jax.models.config import LikelihoodHead
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import make_mesh, parameter_shardings, place_batch, rows_multiple
from rm_jax.pretrained.config import backbone_config
from rm_jax.reward.score import likelihoods_of, score_groups
from rm_jax.train.objective import Objective
from rm_jax.train.step import make_accumulate
from rm_jax.train.window import zero_sums
from rm_jax.types import Example
from tests.conftest import BERT, LLAMA, decoder_tokenizer
from tests.models.families import SMALL
from tests.train.test_step import BITS, LAYOUTS, state_of
from tests.train.test_text_penalty import MERGES, row_each

BETA = 0.3


@functools.cache
def data():
  """(groups, sequences of each, references): pairs, rankings, outcomes and solutions in steps."""
  rng = np.random.default_rng(0)
  encoder = TextEncoder(decoder_tokenizer(MERGES), Convention(max_length=64))

  def words(longest):
    return "".join(rng.choice(list("abc "), rng.integers(1, longest))) + "c"

  groups, sequences = [], []
  labels = {"pair": (1.0, 0.0), "ranking": (0.0, 2.0, 1.0), "outcome": (1.0,)}
  for i in range(24):
    kind = ("pair", "ranking", "outcome", "step")[i % 4]
    prompt = words(30) + "a" * (i % 2)
    if kind == "step":
      solutions = tuple(tuple(words(8) for _ in range(n)) for n in (3, 1 + i % 3))
      found = [encoder.step_sequence(prompt, steps) for steps in solutions]
      wanted = tuple(float(n % 2) for n in range(sum(map(len, solutions))))
      responses = tuple("\n".join(steps) for steps in solutions)
    else:
      wanted = labels[kind]
      responses = tuple("b" * ((i + k) % 2) + words(30) for k in range(len(wanted)))
      found = encoder.sequences([(prompt, r) for r in responses])
    sequences.append(found)
    groups.append(make_group(found, Example(prompt, responses, wanted, kind=kind)))
  references = [rng.normal(size=len(g.marks)).astype(np.float32) - 20 for g in groups]
  return groups, sequences, references


@functools.cache
def network_of(arch="llama", *, tied=True, **head):
  config = LLAMA if arch == "llama" else SMALL[arch].keys | {"model_type": arch, "vocab_size": 300}
  return Network(backbone_config(config), LikelihoodHead(BETA, tied=tied, **head))


@functools.cache
def params_of(network):
  flat = flatten_dict(network.init(jax.random.key(0)), sep="/")
  rng = np.random.default_rng(1)
  return {path: x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for path, x in flat.items()}


def head_of(params):
  return params.get("lm_head/embedding", params["backbone/embed/embedding"])


def token_log_likelihoods(network, params, sequences, np=np):
  """For each sequence log π of its tokens from the second on, from the logits of all of them."""
  hidden = network.hidden(unflatten_dict(params, sep="/"), row_each(sequences))
  if np is not jnp:
    hidden = np.asarray(hidden, np.float64)
  logits = np.einsum("btd,vd->btv", hidden, np.asarray(head_of(params), hidden.dtype))
  if (cap := network.backbone.logit_cap) is not None:
    logits = cap * np.tanh(logits / cap)
  top = logits.max(axis=-1, keepdims=True)
  log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
  return [log_p[b, np.arange(len(s.ids) - 1), s.ids[1:]] for b, s in enumerate(sequences)]


def expected_rewards(network, params, np=np):
  """For each group the rewards at its marks, by the formula."""
  _, sequences, references = data()
  each = iter(token_log_likelihoods(network, params, [s for one in sequences for s in one], np))
  out = []
  for one, reference in zip(sequences, references, strict=True):
    values, at = [], 0
    for s in one:
      log_p = next(each)
      for mark in s.marks:
        own = log_p[max(s.prompt, 1) - 1 : mark]  # the token at index t has log_p[t - 1]
        value = own.sum() - (reference[at] if network.head.reference else 0.0)
        values.append(network.head.beta * value / (len(own) if network.head.normalised else 1))
        at += 1
    out.append(np.stack(values))
  return out


def batches_of(groups, packing, references, *, parts=1, multiple=1):
  """(batch, index) of all micro-batches, the groups in so many parts."""
  packing = dataclasses.replace(packing, multiple=multiple)
  needs = [need(g, packing) for g in groups]
  shapes = tuple(sizes[-1:] for sizes in plan(groups, len(groups), packing))
  fields = optional_fields(groups) | {"previous", "reference"}
  for part in np.array_split(np.arange(len(groups)), parts):
    for micro in pack(part, needs, shapes):
      yield assemble(micro, groups, packing=packing, fields=fields, references=references)


def rewards_of(network, params, packing, mesh=None):
  """For each group the rewards at its marks, and the largest value that is no mark's."""
  groups, _, references = data()
  run = jax.jit(network.apply)
  out, stray = [None] * len(groups), 0.0
  multiple = 1 if mesh is None else rows_multiple(mesh)
  for batch, index in batches_of(groups, packing, references, multiple=multiple):
    batch = jax.tree.map(jnp.asarray, batch) if mesh is None else place_batch(batch, mesh)
    got = np.asarray(run(params, batch))
    stray = max(stray, np.abs(got[~np.asarray(batch.where)]).max(initial=0.0))
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      out[index[b, g]] = got[b, g, : len(groups[index[b, g]].marks)]
  return out, stray


CASES = {
  "tied": network_of(),
  "untied": network_of(tied=False),
  "without a reference, by the token": network_of(normalised=True, reference=False),
  "by the token": network_of(normalised=True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.slow
def test_rewards_are_those_of_all_logits(case, layout):
  network = CASES[case]
  params = params_of(network)
  got, stray = rewards_of(network, unflatten_dict(params, sep="/"), LAYOUTS[layout])
  expected = expected_rewards(network, params)
  np.testing.assert_allclose(np.concatenate(got), np.concatenate(expected), rtol=1e-5, atol=1e-5)
  assert stray == 0.0
  assert np.concatenate(expected).std() > 0.05


@pytest.mark.slow
def test_capped_logits_are_capped():
  network = network_of("gemma2")
  assert network.backbone.logit_cap
  params = {path: x * 3 if "embed" in path else x for path, x in params_of(network).items()}
  got, _ = rewards_of(network, unflatten_dict(params, sep="/"), LAYOUTS["shared"])
  expected = np.concatenate(expected_rewards(network, params))
  np.testing.assert_allclose(np.concatenate(got), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_rewards(layout):
  network = CASES["untied"]
  params = unflatten_dict(params_of(network), sep="/")
  got, _ = rewards_of(network, params, LAYOUTS[layout])
  expected, _ = rewards_of(network, params, LAYOUTS["padded"])
  np.testing.assert_allclose(np.concatenate(got), np.concatenate(expected), rtol=1e-5, atol=1e-5)


def test_steps_have_the_running_sum():
  groups, _, _ = data()
  network = network_of(reference=False)
  got, _ = rewards_of(network, unflatten_dict(params_of(network), sep="/"), LAYOUTS["shared"])
  steps = [one for one, g in zip(got, groups, strict=True) if g.kind == "step"]
  assert all((np.diff(one[:3]) < 0).all() for one in steps)  # each token has log π < 0
  assert all(one[3] > one[2] for one in steps)  # the next solution begins anew


@functools.cache
def accumulate(network, text_sft=0.0):
  config = get_config().loss
  config.ranking, config.text_sft = "logistic", text_sft
  objective = Objective(config, {"pair", "ranking", "outcome", "step"})
  return jax.jit(make_accumulate(network, objective, sources=1, dropout=False))


def pairs():
  """The groups and references of the pairs alone."""
  groups, sequences, references = data()
  mine = [i for i, g in enumerate(groups) if g.kind == "pair"]
  return [[x[i] for i in mine] for x in (groups, sequences, references)]


def step_of(network, params, groups, references, packing, parts=1, mesh=None, **losses):
  """(loss, gradients) of a step, divided by the weight of all groups."""
  step = accumulate(network, **losses)
  gradients, sums = jax.tree.map(jnp.zeros_like, params), zero_sums(1)
  multiple = 1 if mesh is None else rows_multiple(mesh)
  for batch, _ in batches_of(groups, packing, references, parts=parts, multiple=multiple):
    batch = jax.tree.map(jnp.asarray, batch) if mesh is None else place_batch(batch, mesh)
    gradients, sums = step(state_of(params), gradients, sums, batch, BITS)
  count = len(groups)
  return float(sums["loss"][0]) / count, {p: np.asarray(g) / count for p, g in gradients.items()}


def assert_same_gradients(got, expected):
  scale = max(np.abs(g).max() for g in expected.values())
  for path, gradient in expected.items():
    assert np.abs(got[path] - gradient).max() / scale <= 1e-5, path


@pytest.mark.parametrize("case", ["tied", "untied"])
@pytest.mark.slow
def test_loss_and_gradient_are_dpos_written_out(case):
  network = CASES[case]
  groups, sequences, references = pairs()
  flat = [s for one in sequences for s in one]
  reference = jnp.asarray(np.stack(references))

  def dpo(params):
    log_p = token_log_likelihoods(network, params, flat, jnp)
    sums = jnp.stack([x[s.prompt - 1 :].sum() for x, s in zip(log_p, flat, strict=True)])
    ratio = sums.reshape(-1, 2) - reference
    return -jnp.mean(jax.nn.log_sigmoid(BETA * (ratio[:, 0] - ratio[:, 1])))

  params = params_of(network)
  value, gradient = jax.jit(jax.value_and_grad(dpo))(params)
  loss, gradients = step_of(network, params, groups, references, LAYOUTS["shared"])
  assert loss == pytest.approx(float(value), rel=1e-5)
  assert_same_gradients(gradients, gradient)
  assert np.abs(gradient["backbone/layers/q/kernel"]).max() > 0


@pytest.mark.slow
def test_the_likelihood_of_the_best_response_may_be_kept_up_beside_it():
  network = CASES["untied"]
  groups, sequences, references = pairs()
  flat = [s for one in sequences for s in one]

  def sft(params):
    log_p = token_log_likelihoods(network, params, flat, jnp)
    best = list(zip(log_p, flat, strict=True))[::2]
    return -0.3 * jnp.mean(jnp.stack([x[s.prompt - 1 :].mean() for x, s in best]))

  params = params_of(network)
  value, gradient = jax.jit(jax.value_and_grad(sft))(params)
  options = params, groups, references, LAYOUTS["shared"]
  (with_text, both), (without, alone) = (
    step_of(network, *options, text_sft=0.3),
    step_of(network, *options),
  )
  assert with_text - without == pytest.approx(float(value), rel=1e-5)
  assert_same_gradients({p: both[p] - alone[p] for p in alone}, gradient)


@pytest.mark.slow
def test_micro_batches_layouts_and_devices_give_the_same_step():
  network = CASES["untied"]
  groups, _, references = data()
  params = params_of(network)
  loss, expected = step_of(network, params, groups, references, LAYOUTS["padded"])
  for layout, parts in (("shared", 1), ("shared", 4), ("packed", 2)):
    other, gradients = step_of(network, params, groups, references, LAYOUTS[layout], parts)
    assert other == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(gradients, expected)
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  shardings = parameter_shardings(params, mesh)
  with jax.set_mesh(mesh):
    placed = {path: jax.device_put(x, shardings[path]) for path, x in params.items()}
    other, gradients = step_of(network, placed, groups, references, LAYOUTS["shared"], 1, mesh)
  assert other == pytest.approx(loss, rel=1e-5)
  assert_same_gradients(gradients, expected)


def test_eight_devices_give_one_devices_rewards():
  network = CASES["untied"]
  flat = params_of(network)
  mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
  shardings = parameter_shardings(flat, mesh)
  placed = {path: jax.device_put(x, shardings[path]) for path, x in flat.items()}
  with jax.set_mesh(mesh):
    got, _ = rewards_of(network, unflatten_dict(placed, sep="/"), LAYOUTS["shared"], mesh)
  expected, _ = rewards_of(network, unflatten_dict(flat, sep="/"), LAYOUTS["shared"])
  np.testing.assert_allclose(np.concatenate(got), np.concatenate(expected), rtol=1e-5, atol=1e-5)


def test_a_model_that_is_its_own_reference_has_rewards_of_zero():
  groups, _, _ = data()
  network = CASES["untied"]
  params = unflatten_dict(params_of(network), sep="/")
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  options = dict(mesh=mesh, packing=LAYOUTS["shared"])
  references = likelihoods_of(network, params, groups, **options)
  scores = score_groups(network, params, groups, references=references, **options)
  assert all((one == 0.0).all() for one in scores)
  with pytest.raises(ValueError, match="references is None"):
    score_groups(network, params, groups, **options)


def test_ipo_is_the_papers():
  rng = np.random.default_rng(0)
  h = rng.normal(size=(5, 2)).astype(np.float32)
  labels, where = jnp.asarray([[1.0, 0.0]] * 5), jnp.ones((5, 2), bool)
  got = LOSSES["ipo"](BETA * h, labels, where=where, tau=BETA)
  np.testing.assert_allclose(got, (h[:, 0] - h[:, 1] - 1 / (2 * BETA)) ** 2, rtol=1e-5)


def test_what_cannot_be_is_refused():
  with pytest.raises(InputError, match=r"model\.beta is 0\.0; expected a finite number above 0"):
    LikelihoodHead(0.0)
  with pytest.raises(
    InputError, match="model of type 'bert' is an encoder, which predicts no next"
  ):
    Network(backbone_config(BERT), LikelihoodHead())
