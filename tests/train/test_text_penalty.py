"""Text regularisation: likelihoods are those of teacher forcing, and a step learns from them."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from configs.base import get_config
from rm_jax import RewardModel
from rm_jax.batch.group import make_group
from rm_jax.batch.layout import Packing, need, pack, plan
from rm_jax.batch.pack import assemble, optional_fields
from rm_jax.batch.tokenise import Convention, TextEncoder
from rm_jax.losses.likelihood import response_log_likelihood
from rm_jax.parallel.mesh import make_mesh
from rm_jax.pretrained.hf import export_params
from rm_jax.pretrained.source import save_folder
from rm_jax.reward.setup import build_model, init_params
from rm_jax.storage.files import read_lines
from rm_jax.train import loop, text_penalty
from rm_jax.train.objective import Objective
from rm_jax.train.step import make_accumulate
from rm_jax.train.window import zero_sums
from rm_jax.types import Batch, Example
from tests.conftest import LLAMA, decoder_tokenizer
from tests.train.runs import run, small_config
from tests.train.test_kinds import outcome
from tests.train.test_step import BITS, LAID, LAYOUTS, network_of, params_of, state_of

MERGES = [("a", "b"), ("b", "c")]
TINYSTORIES = Path(__file__).parents[3] / "shared/weights/tinystories-llama-260k"


@functools.cache
def groups_and_sequences():
  """Pairs, rankings and outcomes; some prompts end in the middle of a merge, some are cut away."""
  rng = np.random.default_rng(0)
  encoder = TextEncoder(decoder_tokenizer(MERGES), Convention(max_length=48))

  def words(longest):
    return "".join(rng.choice(list("abc "), rng.integers(1, longest)))

  groups, sequences = [], []
  kinds = {"pair": (1.0, 0.0), "ranking": (0.0, 2.0, 1.0), "outcome": (1.0,)}
  for i in range(24):
    kind = list(kinds)[i % 3]
    labels = kinds[kind]
    prompt = words(30) + "a" * (i % 2)
    responses = tuple("b" * ((i + k) % 2) + words(30 if i % 5 else 60) for k in range(len(labels)))
    example = Example(prompt, responses, labels, kind=kind, weight=1.0 + i % 2)
    sequences.append(encoder.sequences([(prompt, r) for r in responses]))
    groups.append(make_group(sequences[-1], example))
  assert len({s.prompt for one in sequences[3:6:2] for s in one}) > 1
  return groups, sequences


def row_each(sequences):
  """One sequence a row, with air behind it: no group, no branch, no packing."""
  T = max(len(s.ids) for s in sequences)
  tokens, real = np.zeros((len(sequences), T), np.int32), np.zeros((len(sequences), T), np.int32)
  for b, s in enumerate(sequences):
    tokens[b, : len(s.ids)], real[b, : len(s.ids)] = s.ids, 1
  none = np.zeros((len(sequences), 1, 1))
  return Batch(
    tokens=tokens,
    group=real,
    branch=real,
    position=np.tile(np.arange(T, dtype=np.int32), (len(tokens), 1)),
    marks=none.astype(np.int32),
    where=none.astype(bool),
    labels=none.astype(np.float32),
    weight=none[..., 0].astype(np.float32),
  )


def forced(h_BTD, head_VD, sequences):
  """(Σ log π of each sequence's response, its tokens): plain log-softmax, logits and all."""
  log_p = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", h_BTD, head_VD, precision="highest"))
  following, own = (np.zeros(h_BTD.shape[:2], np.int32) for _ in range(2))
  for b, s in enumerate(sequences):
    following[b, : len(s.ids) - 1] = s.ids[1:]
    own[b, max(1, s.prompt) - 1 : len(s.ids) - 1] = 1
  said = jnp.take_along_axis(log_p, following[..., None], axis=-1)[..., 0]
  return jnp.sum(said * own, axis=1), own.sum(1)


def batches_of(groups, packing, parts=1):
  """(batch, index) of all micro-batches, the groups in so many parts."""
  needs = [need(g, packing) for g in groups]
  shapes = tuple(sizes[-1:] for sizes in plan(groups, len(groups), packing))
  fields = optional_fields(groups) | {"previous"}
  for part in np.array_split(np.arange(len(groups)), parts):
    for micro in pack(part, needs, shapes):
      batch, index = assemble(micro, groups, packing=packing, fields=fields)
      yield jax.tree.map(jnp.asarray, batch), index


@functools.cache
def forced_one_by_one():
  """A network, its parameters, and (Σ log π, tokens) of each response of each group."""
  _, sequences = groups_and_sequences()
  network = network_of("llama")
  params = params_of(network)
  flat = [s for one in sequences for s in one]
  hidden = network.hidden(unflatten_dict(params, sep="/"), row_each(flat))
  sums, tokens = forced(hidden, params["backbone/embed/embedding"], flat)
  each = iter(zip(np.asarray(sums), tokens, strict=True))
  return network, params, [[next(each) for _ in one] for one in sequences]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_likelihoods_are_those_of_plain_teacher_forcing(layout):
  groups, _ = groups_and_sequences()
  network, params, expected = forced_one_by_one()

  @jax.jit
  def ours(batch, wanted):
    head = params["backbone/embed/embedding"]
    hidden = network.hidden(unflatten_dict(params, sep="/"), batch)
    return response_log_likelihood(hidden, head, batch, wanted)

  seen = 0
  for batch, index in batches_of(groups, LAYOUTS[layout]):
    got, counts = map(np.asarray, ours(batch, batch.where))
    some = np.random.default_rng(1).random(got.shape) < 0.4
    for few, every in zip(ours(batch, batch.where & some), (got, counts), strict=True):
      np.testing.assert_allclose(few, np.where(some, every, 0), rtol=1e-5)
    for b, g in zip(*np.nonzero(index >= 0), strict=True):
      for k, (value, count) in enumerate(expected[index[b, g]]):
        assert counts[b, g, k] == count
        assert got[b, g, k] == pytest.approx(value, rel=1e-5)
        seen += 1
      assert not got[b, g, len(expected[index[b, g]]) :].any()
    assert not got[index < 0].any()
  assert seen == sum(map(len, expected))


def objective(**losses):
  config = get_config().loss
  config.update(losses)
  return Objective(config, {"pair", "ranking", "outcome"})


@functools.cache
def accumulate(network, losses):
  return jax.jit(make_accumulate(network, objective(**dict(losses)), sources=1, dropout=False))


def sums_of(network, params, groups, packing, parts=1, **losses):
  """(loss, gradients, metrics' sums), divided by the weight of all groups."""
  step = accumulate(network, tuple(losses.items()))
  gradients, sums = jax.tree.map(jnp.zeros_like, params), zero_sums(1)
  for batch, _ in batches_of(groups, packing, parts):
    gradients, sums = step(state_of(params), gradients, sums, batch, BITS)
  weight = sum(g.weight for g in groups)
  assert float(sums["weight"][0]) == weight
  gradients = {path: np.asarray(g) / weight for path, g in gradients.items()}
  return float(sums["loss"][0]) / weight, gradients, sums


@pytest.mark.slow
def test_what_it_adds_to_loss_and_gradient_is_that_of_plain_teacher_forcing():
  groups, sequences = groups_and_sequences()
  network = network_of("llama")
  params = params_of(network)
  flat = [s for one in sequences for s in one]
  batch = row_each(flat)

  def plain(params):
    nested = unflatten_dict(params, sep="/")
    sums, tokens = forced(network.hidden(nested, batch), params["backbone/embed/embedding"], flat)
    at = iter(range(len(flat)))
    total, mean = 0.0, 0.0
    for group, one in zip(groups, sequences, strict=True):
      here = [next(at) for _ in one]
      if group.kind != "outcome":
        best = here[int(np.argmax(group.labels))]
        dpo = -jax.nn.log_sigmoid(0.2 * sums[best])
        total += group.weight * (-0.3 * sums[best] / tokens[best] + 0.02 * dpo)
        mean += group.weight * sums[best] / tokens[best]
    return total / sum(g.weight for g in groups), mean

  (value, mean), gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
  off, without, _ = sums_of(network, params, groups, LAYOUTS["shared"])
  on, with_text, sums = sums_of(
    network,
    params,
    groups,
    LAYOUTS["shared"],
    text_sft=0.3,
    text_dpo=0.02,
    text_beta=0.2,
  )
  assert on - off == pytest.approx(float(value), rel=1e-5)
  scale = max(np.abs(g).max() for g in gradient.values())
  for path, g in gradient.items():
    assert np.abs(with_text[path] - without[path] - g).max() / scale <= 1e-5, path
    assert np.abs(g).max() > 1e-4 * scale or path.startswith("head/"), path
  ordered = sum(g.weight for g in groups if g.kind != "outcome")
  assert float(sums["text_weight"][0]) == ordered
  assert float(sums["text_log_likelihood"][0]) == pytest.approx(float(mean), rel=1e-5)


@pytest.mark.slow
def test_any_layout_and_any_number_of_micro_batches_give_the_same_step():
  groups, _ = groups_and_sequences()
  network = network_of("llama")
  # With a head of its own, as an untied checkpoint has it.
  head = 0.1 * jax.random.normal(jax.random.key(5), (LLAMA["vocab_size"], LLAMA["hidden_size"]))
  params = params_of(network) | {"loss/text/embedding": head}
  options = dict(text_sft=0.3, text_dpo=0.02)
  loss, gradients, _ = sums_of(network, params, groups, LAYOUTS["padded"], **options)
  scale = max(np.abs(g).max() for g in gradients.values())
  assert np.abs(gradients["loss/text/embedding"]).max() > 1e-3 * scale
  for name, parts in LAID:
    other, others, _ = sums_of(network, params, groups, LAYOUTS[name], parts, **options)
    assert other == pytest.approx(loss, rel=1e-5), (name, parts)
    for path, gradient in gradients.items():
      error = np.abs(others[path] - gradient).max() / scale
      assert error <= 1e-5, (name, parts, path, error)


def language_model(folder, path, *, tied, own=True):
  """A folder of a language model with random weights, saved as transformers would."""
  config = small_config(folder, steps=1)
  model = build_model(config)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = init_params(model, mesh, jax.random.key(3), training=True)
  backbone = {p: x for p, x in params.items() if p.startswith("backbone/")}
  tensors = dict(export_params(model.network, unflatten_dict(backbone, sep="/")))
  if own:
    rng = np.random.default_rng(4)
    tensors["lm_head.weight"] = 0.02 * rng.normal(size=(300, 32)).astype(np.float32)
  save_folder(
    path,
    config=LLAMA | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied},
    tokenizer=model.tokenizer,
    record={},
    tensors=tensors,
  )
  (path / "rm_jax.json").unlink()
  return path


def config_of(folder, path, *, steps=20, **losses):
  config = small_config(folder, steps=steps)
  config.model.config, config.model.tokenizer, config.model.pretrained = "", "", str(path)
  config.loss.update({"text_sft": 0.5} | losses)
  return config


@pytest.fixture(scope="module")
def untied(llama_folder, tmp_path_factory):
  return language_model(llama_folder, tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def tied(llama_folder, tmp_path_factory):
  return language_model(llama_folder, tmp_path_factory.mktemp("tied"), tied=True, own=False)


@pytest.fixture(scope="module")
def whole(llama_folder, untied, tmp_path_factory):
  """A run of 20 steps with a head of its own, its summary and its metrics."""
  workdir = tmp_path_factory.mktemp("whole")
  summary = run(config_of(llama_folder, untied), workdir, devices=1)
  return workdir, summary, train_lines(workdir)


def train_lines(workdir):
  return [x for x in read_lines(workdir / "metrics.jsonl") if x["split"] == "train"]


def values(lines, name="loss"):
  return np.asarray([x[name] for x in lines])


@pytest.mark.slow
def test_a_run_grows_likelier_text_and_still_learns_rewards(whole, llama_folder, untied, tmp_path):
  _, summary, lines = whole
  likelihood = values(lines, "text_log_likelihood")
  # At the start logits are small: nearly every token of 300 has the same probability.
  assert likelihood[0] == pytest.approx(-np.log(300), abs=0.1)
  assert likelihood[-1] > likelihood[0] + 1.5
  assert summary["heldout"]["accuracy"] > 0.9
  assert summary["train"]["frozen_parameters"] == 0
  assert "loss_params" not in summary["train"]  # it is no few numbers to look at
  config = config_of(llama_folder, untied, steps=2, text_sft=0.0)
  plain = run(config, tmp_path, devices=1)
  assert all("text_log_likelihood" not in x for x in train_lines(tmp_path))
  # The head is there only where it is asked for.
  more = summary["train"]["trained_parameters"] - plain["train"]["trained_parameters"]
  assert more == 300 * 32


@pytest.mark.slow
def test_what_is_saved_is_the_classifier_that_it_always_was(whole, tmp_path):
  model = RewardModel.from_pretrained(whole[0])
  model.save_pretrained(tmp_path)
  tensors = load_file(tmp_path / "model.safetensors")
  assert sorted(tensors) == sorted(
    n for n, _ in export_params(model.text_model.network, model.params)
  )
  assert "lm_head.weight" not in tensors
  assert "score.weight" in tensors
  rows = [{"prompt": "0.1 ab ", "response": "aab"}]
  again = RewardModel.from_pretrained(tmp_path)
  np.testing.assert_array_equal(again.score(rows), model.score(rows))


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [(), ("^loss/text/", "^backbone/embed")])
def test_resumes_with_its_head_trained_or_frozen(freeze, llama_folder, untied, tmp_path):
  config = config_of(llama_folder, untied, steps=6)
  config.optimizer.freeze = freeze
  summary = run(config, tmp_path / "whole", devices=1)
  assert summary["train"]["frozen_parameters"] == len(freeze) * 300 * 32
  config.train.steps = 3
  run(config, tmp_path / "parts", devices=1)
  config.train.steps = 6
  run(config, tmp_path / "parts", devices=1)
  assert train_lines(tmp_path / "whole") == train_lines(tmp_path / "parts")


@pytest.mark.slow
def test_eight_devices_give_one_devices_run(whole, llama_folder, untied, tmp_path):
  config = config_of(llama_folder, untied)
  config.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  seen = {}

  class Spy(loop._Loop):
    def run_steps(self):
      seen["head"] = self.run.state.params["loss/text/embedding"]
      seen["head"] = seen["head"].addressable_shards[0].data.shape
      return super().run_steps()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "_Loop", Spy)
    run(config, tmp_path)
  for name in ("loss", "text_log_likelihood"):
    got, want = (values(lines, name) for lines in (train_lines(tmp_path), whole[2]))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
  mesh = config.mesh
  assert seen["head"] == (300 // mesh.tensor, 32 // mesh.fsdp)


@pytest.mark.slow
def test_frozen_layers_kept_or_not_give_the_same_run(llama_folder, tied, tmp_path):
  lines = {}
  for keep in (True, False):
    config = config_of(llama_folder, tied, steps=6)
    config.model.frozen_layers, config.model.keep_features = 2, keep
    summary = run(config, tmp_path / str(keep), devices=1)
    lines[keep] = train_lines(tmp_path / str(keep))
    assert summary["train"]["frozen_parameters"] > 300 * 32  # the embedding, which is the head
  for name in ("loss", "text_log_likelihood"):
    np.testing.assert_allclose(values(lines[True], name), values(lines[False], name), atol=2e-5)
  likelihood = values(lines[True], "text_log_likelihood")
  assert likelihood[-1] > likelihood[0] + 0.01


@pytest.mark.slow
def test_an_ensemble_has_one_text_penalty(llama_folder, tied, tmp_path):
  found = {}
  for weight in (0.0, 0.5):
    config = config_of(llama_folder, tied, steps=1, text_sft=weight)
    config.model.members, config.model.bootstrap = 3, False
    run(config, tmp_path / str(weight), devices=1)
    (found[weight],) = train_lines(tmp_path / str(weight))
  more = found[0.5]["loss"] - found[0.0]["loss"]
  assert more == pytest.approx(-0.5 * found[0.5]["text_log_likelihood"], rel=1e-5)


def refused(config, tmp_path, message):
  with pytest.raises(ValueError, match=message):
    run(config, tmp_path / "run", devices=1)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["text_sft", "text_dpo"])
def test_an_encoder_is_refused(name, bert_folder, tmp_path):
  config = small_config(bert_folder, steps=1)
  config.loss[name] = 0.1
  refused(config, tmp_path, rf"loss\.{name} is 0\.1, and a model of type 'bert' is an encoder")


def test_a_head_that_is_not_to_be_had_is_refused(llama_folder, untied, tmp_path):
  config = small_config(llama_folder, steps=1)
  config.loss.text_sft = 0.1
  refused(config, tmp_path, r"loss\.text_sft is 0\.1, and the model has random weights")
  headless = language_model(llama_folder, tmp_path / "headless", tied=False, own=False)
  refused(config_of(llama_folder, headless), tmp_path, r"headless has no lm_head\.weight, though")
  # A tied one has its embedding, even where its weights are random.
  (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"tie_word_embeddings": True}))
  config.model.config = str(tmp_path / "config.json")
  text_penalty.check(config.loss, build_model(config))
  other = json.loads((untied / "config.json").read_text()) | {"hidden_size": 16}
  model = build_model(config_of(llama_folder, untied))
  wrong = dataclasses.replace(
    model, network=dataclasses.replace(model.network, backbone=backbone_of(other))
  )
  with pytest.raises(ValueError, match=r"lm_head\.weight is \(300, 32\), config\.json says \(300"):
    text_penalty.check(config.loss, wrong)


def backbone_of(hf_config):
  from rm_jax.pretrained.config import backbone_config

  return backbone_config(hf_config)


def test_data_without_a_best_response_are_refused(llama_folder, tied, tmp_path):
  config = config_of(llama_folder, tied, steps=1)
  rng = np.random.default_rng(0)
  path = tmp_path / "outcomes.jsonl"
  path.write_text("".join(json.dumps(outcome(rng, i)) + "\n" for i in range(12)))
  config.data.train, config.data.heldout = str(path), "0.2"
  refused(config, tmp_path, r"best response of pair or ranking; the data has feedback of kind outc")


@pytest.mark.parametrize(
  ("losses", "message"),
  [
    ({"text_sft": -0.1}, r"loss\.text_sft is -0\.1; expected 0 or more"),
    ({"text_dpo": 0.1, "text_beta": 0.0}, r"loss\.text_beta is 0\.0; expected more than 0"),
  ],
)
def test_numbers_out_of_range_are_refused(losses, message):
  with pytest.raises(ValueError, match=message):
    objective(**losses)


@pytest.mark.slow
@pytest.mark.skipif(not TINYSTORIES.is_dir(), reason="tinystories-llama-260k is not here")
def test_transformers_says_the_same_of_real_text():
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import AutoModelForCausalLM

  config = get_config()
  config.model.pretrained = str(TINYSTORIES)
  config.loss.text_dpo = 0.1
  model = build_model(config)
  text_penalty.check(config.loss, model)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = init_params(model, mesh, jax.random.key(0), training=True)
  own = text_penalty.load_head(model, mesh)
  assert list(own) == ["loss/text/embedding"]
  whole = unflatten_dict(params | own, sep="/")
  head = text_penalty.head_of(whole, whole.pop("loss"))
  prompt = "Once upon a time, there was a little girl named"
  responses = (" Lily. She loved to play outside in the park.", " the the the and of.")
  sequences = model.text_encoder().sequences([(prompt, r) for r in responses])
  group = make_group(sequences, Example(prompt, responses, (1.0, 0.0)))
  ((batch, _),) = batches_of([group], Packing())
  hidden = model.network.hidden(whole, batch)
  got = np.asarray(response_log_likelihood(hidden, head, batch, batch.where)[0])[0, 0]

  oracle = AutoModelForCausalLM.from_pretrained(TINYSTORIES).double().eval()
  for value, s in zip(got, sequences, strict=True):
    ids = torch.tensor(s.ids).long()[None]
    with torch.no_grad():
      log_p = oracle(ids).logits[0].log_softmax(-1).numpy()
    own = np.arange(s.prompt, len(s.ids))
    assert value == pytest.approx(log_p[own - 1, s.ids[own]].sum(), rel=1e-5)
  # A story is likelier than a salad of words.
  assert got[0] / sequences[0].ids.size > got[1] / sequences[1].ids.size
  assert flatten_dict(model.network.abstract(), sep="/").keys() == params.keys()
