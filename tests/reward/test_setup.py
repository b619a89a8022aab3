"""From a config to a text model and data: defaults, and errors."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs.base import get_config
from rm_jax.batch.tokenise import HH_TEMPLATE
from rm_jax.data.report import DataError, Report
from rm_jax.errors import InputError
from rm_jax.models.network import Network
from rm_jax.parallel.mesh import make_mesh
from rm_jax.pretrained.config import backbone_config, head_config
from rm_jax.pretrained.hf import export_params
from rm_jax.pretrained.source import RECORD, save_folder
from rm_jax.reward.architecture import build_network, planned_architecture
from rm_jax.reward.setup import build_model, convention_for, init_params, with_likelihood
from rm_jax.train import loop
from rm_jax.train.datasets import load_data
from rm_jax.train.fields import check_fields
from rm_jax.train.run import make_packing
from rm_jax.types import Example
from rm_jax.workdir.folder import claim, earlier_record
from tests.batch.test_dataset import group_of
from tests.conftest import BERT, LLAMA, decoder_tokenizer, encoder_tokenizer
from tests.models.oracle import random_params
from tests.train.runs import small_config, write_pairs


def mesh():
  return make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def test_convention_of_each_kind_of_checkpoint():
  options = dict(eos="auto", max_length=1024)
  ours = convention_for(LLAMA, {}, decoder_tokenizer(), **options)
  assert (ours.encoder, ours.eos, ours.pooling, ours.max_length) == (False, "append", "last", 512)
  classifier = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}
  theirs = convention_for(classifier, {}, decoder_tokenizer(), **options)
  assert (theirs.eos, theirs.pooling, theirs.pad) == ("none", "hf", 0)
  for pad, skipped in ((2, 2), (None, -1), (-1, -1)):  # whatever the tokenizer's is
    got = convention_for(classifier | {"pad_token_id": pad}, {}, decoder_tokenizer(), **options)
    assert got.pad == skipped
  # What config.json leaves out is as transformers has it for the family.
  silent = {key: value for key, value in classifier.items() if key != "pad_token_id"}
  assert convention_for(silent, {}, decoder_tokenizer(), **options).pad == -1
  with pytest.raises(ValueError, match=r"config\.json: .*pad_token_id"):
    convention_for(classifier | {"pad_token_id": "</s>"}, {}, decoder_tokenizer(), **options)
  bert = convention_for(BERT, {}, encoder_tokenizer(), **options)
  assert (bert.encoder, bert.eos, bert.pooling, bert.max_length) == (True, "none", "first", 256)
  assert (ours.pad, bert.pad) == (None, None)
  saved = {"convention": {"eos": "none", "pooling": "last", "max_length": 100, "date": "x"}}
  again = convention_for(LLAMA, saved, decoder_tokenizer(), **options)
  assert (again.eos, again.date, again.max_length) == ("none", "x", 512)


def test_a_limit_of_prompts_is_saved_and_a_record_without_one_has_none(llama_folder):
  options = dict(eos="auto", max_length=0)
  old = {"convention": {"eos": "append", "pooling": "last", "max_length": 64}}
  assert convention_for(LLAMA, old, decoder_tokenizer(), **options).max_prompt_length == 0
  kept = {"convention": old["convention"] | {"max_prompt_length": 40}}
  assert convention_for(LLAMA, kept, decoder_tokenizer(), **options).max_prompt_length == 40
  options |= {"max_prompt_length": 30}
  for record in ({}, old, kept):
    assert convention_for(LLAMA, record, decoder_tokenizer(), **options).max_prompt_length == 30
  config = small_config(llama_folder, steps=1)
  model = build_model(config)
  assert "max_prompt_length" not in model.record()["convention"]
  config.data.max_prompt_length = 6
  assert build_model(config).record()["convention"]["max_prompt_length"] == 6
  config.data.max_length = 6
  with pytest.raises(InputError, match=r"max_prompt_length=6 and --config\.data\.max_length=6: "):
    check_fields(config)


def test_bos_is_what_the_record_says_and_a_record_without_it_adds_none():
  options = dict(eos="auto", max_length=0)
  new = convention_for(LLAMA, {}, decoder_tokenizer(), **options)
  assert new.bos == "add"
  old = {"convention": {"eos": "append", "pooling": "last", "max_length": 64}}
  assert convention_for(LLAMA, old, decoder_tokenizer(), **options).bos == "template"
  kept = {"convention": dataclasses.asdict(new)}
  assert convention_for(LLAMA, kept, decoder_tokenizer(), **options).bos == "add"
  # A head trained by another library, with its own chat template or, without one, on strings.
  classifier = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}
  assert convention_for(classifier, {}, decoder_tokenizer(), **options).bos == "template"
  assert convention_for(classifier, {}, decoder_tokenizer(chat=None), **options).bos == "add"


def test_a_run_that_goes_on_keeps_the_bos_that_it_had(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  config.model.chat_template = "hh"
  new = build_model(config)
  claim(tmp_path, config, new)
  assert build_model(config, earlier=earlier_record(tmp_path)).convention == new.convention
  # A run of an earlier version, whose record does not have the field.
  path = tmp_path / "model" / RECORD
  record = json.loads(path.read_text())
  assert record["convention"].pop("bos") == "add"
  path.write_text(json.dumps(record))
  old = build_model(config, earlier=earlier_record(tmp_path))
  assert old.convention.bos == "template"
  assert json.loads(json.dumps(old.record())) == record
  assert build_model(config, earlier=earlier_record(tmp_path / "new")).convention.bos == "add"


def test_a_run_that_goes_on_passes_over_the_token_that_it_did(llama_folder, tmp_path):
  """A run of an earlier version over the tokenizer's pad token, which its record does not name."""
  classifier = LLAMA | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
  (tmp_path / "config.json").write_text(json.dumps(classifier | {"pad_token_id": 2}))
  config = small_config(llama_folder, steps=1)
  config.model.config, config.model.eos = str(tmp_path / "config.json"), "none"
  new = build_model(config)
  assert (new.convention.pooling, new.convention.pad) == ("hf", 2)
  record = new.record()
  assert build_model(config, earlier=record).convention == new.convention
  del record["convention"]["pad"]
  old = build_model(config, earlier=record)
  assert old.convention == dataclasses.replace(new.convention, pad=None)
  assert old.record() == record


def test_pooling_is_the_architectures_own_the_mean_or_the_trained_heads():
  options = dict(eos="auto", max_length=1024)
  for config, tokenizer, own in (
    (LLAMA, decoder_tokenizer(), "last"),
    (BERT, encoder_tokenizer(), "first"),
  ):
    for asked, expected in (("", own), (own, own), ("mean", "mean")):
      got = convention_for(config, {}, tokenizer, pooling=asked, **options)
      assert got.pooling == expected
  with pytest.raises(ValueError, match=r"model\.pooling is 'first'; expected 'last' or 'mean'"):
    convention_for(LLAMA, {}, decoder_tokenizer(), pooling="first", **options)
  saved = {"convention": {"pooling": "mean"}}
  for asked in ("", "mean"):
    got = convention_for(LLAMA, saved, decoder_tokenizer(), pooling=asked, **options)
    assert got.pooling == "mean"
  with pytest.raises(ValueError, match="is 'last'; expected 'mean', which the checkpoint's head"):
    convention_for(LLAMA, saved, decoder_tokenizer(), pooling="last", **options)
  classifier = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}
  with pytest.raises(ValueError, match="is 'mean'; expected 'hf', which the checkpoint's head"):
    convention_for(classifier, {}, decoder_tokenizer(), pooling="mean", **options)


def implicit_record(**convention):
  """The record of a language model that a run with an implicit reward saved."""
  said = {"eos": "append", "separator": "\n\n", "max_length": 64, "bos": "add"} | convention
  return {"convention": said, "implicit": {"beta": 0.1, "normalised": False, "reference": None}}


def test_a_new_head_on_what_an_implicit_run_saved_is_read_as_one_asks():
  """It is a language model: the record has no head that was trained behind a question."""
  record, tokenizer = implicit_record(), decoder_tokenizer()
  saved = convention_for(LLAMA, record, tokenizer, eos="auto", max_length=0)
  assert (saved.eos, saved.pooling, saved.max_length) == ("append", "last", 64)

  def read(eos="auto", **fields):
    return convention_for(LLAMA, record, tokenizer, eos=eos, max_length=0, **fields)

  assert read(pooling="mean") == dataclasses.replace(saved, pooling="mean")
  # Behind a question no EOS is appended, as on a language model of another library.
  assert read(question="Good?") == dataclasses.replace(saved, question="Good?", eos="none")
  assert read(question="Good?", eos="none").eos == "none"
  with pytest.raises(ValueError, match=r"question is 'Good\?'.*pooling 'mean'"):
    read(question="Good?", pooling="mean")
  with pytest.raises(ValueError, match=r"question is 'Good\?'.*eos 'append'"):
    read(question="Good?", eos="append")
  with pytest.raises(ValueError, match="'first'; expected 'last' or 'mean', which its archit"):
    read(pooling="first")


def test_chat_template_by_name_text_and_file(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  config.model.chat_template = "hh"
  assert build_model(config).tokenizer.chat_template == HH_TEMPLATE
  config.model.chat_template = "{{ messages }}"
  assert build_model(config).tokenizer.chat_template == "{{ messages }}"
  (tmp_path / "t.jinja").write_text("{{ 1 }}")
  config.model.chat_template = str(tmp_path / "t.jinja")
  assert build_model(config).tokenizer.chat_template == "{{ 1 }}"
  config.model.chat_template = "nope"
  with pytest.raises(ValueError, match=r"chat_template 'nope' is neither"):
    build_model(config)


def test_what_is_refused(llama_folder):
  config = get_config()
  with pytest.raises(ValueError, match="found neither"):
    build_model(config)
  config.model.config = str(llama_folder / "config.json")
  with pytest.raises(ValueError, match="needs "):
    build_model(config)
  config = small_config(llama_folder, steps=1)
  for field, value, message in (
    ("layers", 4, r"model\.layers is 4; expected 1 to 3"),
    ("frozen_layers", 4, r"model\.frozen_layers is 4; expected 0 to 3"),
    ("remat", "some", r"model\.remat is 'some'"),
  ):
    bad = small_config(llama_folder, steps=1)
    bad.model[field] = value
    with pytest.raises(ValueError, match=message):
      init_params(build_model(bad), mesh(), jax.random.key(0), training=True)
  config.data.train = "world:many"
  with pytest.raises(ValueError, match="expected 'world:N'"):
    load_data(config, build_model(config))


def saved(folder, path):
  """A language model's folder: backbone and tokenizer, no head. Returns its parameters."""
  config = small_config(folder, steps=1)
  model = build_model(config)
  params = init_params(model, mesh(), jax.random.key(3), training=True)
  backbone = {p: x for p, x in params.items() if p.startswith("backbone/")}
  save_folder(
    path,
    config=model.config | {"architectures": ["LlamaForCausalLM"]},
    tokenizer=model.tokenizer,
    record={},
    tensors=export_params(model.network, unflatten_dict(backbone, sep="/")),
  )
  (path / "rm_jax.json").unlink()
  return backbone


def pretrained_config(folder, path):
  config = small_config(folder, steps=1)
  config.model.config, config.model.tokenizer = "", ""
  config.model.pretrained = str(path)
  return config


def test_missing_head_is_made_and_warned_of(llama_folder, tmp_path, caplog):
  backbone = saved(llama_folder, tmp_path)
  model = build_model(pretrained_config(llama_folder, tmp_path))
  params = init_params(model, mesh(), jax.random.key(0), training=True)
  assert "no reward head (score.weight): a new one is made" in caplog.text
  for path, x in backbone.items():
    np.testing.assert_array_equal(params[path], x)
  again = init_params(model, mesh(), jax.random.key(0), training=True)
  other = init_params(model, mesh(), jax.random.key(1), training=True)
  head = "head/out/kernel"
  np.testing.assert_array_equal(params[head], again[head])
  assert not np.array_equal(params[head], other[head])


def test_an_architecture_beside_a_checkpoint_has_to_be_its_own(llama_folder, tmp_path):
  saved(llama_folder, tmp_path)
  config = pretrained_config(llama_folder, tmp_path)
  alone = build_model(config)
  config.model.config = str(llama_folder / "config.json")
  assert build_model(config).network == alone.network
  # A plan does not read the checkpoint if model.config is set.
  config.model.pretrained = "nobody/nothing"
  assert build_network(config, planned_architecture(config)) == alone.network
  other = tmp_path / "other.json"
  other.write_text(json.dumps(LLAMA | {"hidden_size": 48}))
  config.model.config, config.model.pretrained = str(other), str(tmp_path)
  with pytest.raises(ValueError, match=r"'width': 48.*'width': 32.*expected the same"):
    build_model(config)


def test_rows_are_laid_as_the_attention_of_the_devices_has_it(llama_folder):
  config = small_config(llama_folder, steps=1)
  for wanted, found, windows, align in (
    ("auto", "xla", "cheapest", 32),
    ("splash", "interpreted", "sequences", 128),  # on a CPU the kernel is interpreted
  ):
    config.model.attention = wanted
    network = build_model(config, mesh()).network
    packing = make_packing(config, network, mesh())
    assert (network.attention, packing.windows, packing.align) == (found, windows, align)
  # Without a mesh it is XLA, which runs anywhere.
  assert build_model(config).network.attention == "xla"
  config.model.attention = "cudnn"
  with pytest.raises(
    ValueError, match=r"model\.attention is 'cudnn' and the devices are of .*'cpu'"
  ):
    build_model(config, mesh())


def test_the_description_of_a_network_stays(llama_folder, bert_folder):
  """It is part of the key of cached scores and of drift references (`audit.scorer.model_hash`)."""

  def described(folder):
    config = small_config(folder, steps=1)
    config.model.config, config.model.tokenizer = str(folder / "config.json"), str(folder)
    config.model.remat = "none"
    return repr(build_model(config).network)

  assert described(llama_folder) == (
    "Network(backbone=DecoderConfig(model_type='llama', vocab=300, width=32, layers=3, heads=4, "
    "kv_heads=2, head_dim=8, ffn=64, activation='silu', eps=1e-06, rope=Rope(theta=10000.0, "
    "kind='default', factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=512), "
    "qkv_bias=False, out_bias=False, mlp_bias=False, qk_norm=False, windows=None, "
    "max_positions=512, attention_dropout=0.0, init_std=0.02), head=HeadConfig(outputs=1, "
    "ensemble=False, attributes=(), mix=(), bias=False, pooler=False, activation='tanh', "
    "dropout=0.0), frozen=0, dtype='float32', remat='none', lora=None, attention='xla')"
  )
  assert described(bert_folder) == (
    "Network(backbone=EncoderConfig(model_type='bert', vocab=300, width=32, layers=2, heads=4, "
    "ffn=64, activation='gelu', eps=1e-12, max_positions=256, token_types=2, hidden_dropout=0.0, "
    "attention_dropout=0.0, init_std=0.02), head=HeadConfig(outputs=1, ensemble=False, "
    "attributes=(), mix=(), bias=True, pooler=True, activation='tanh', dropout=0.0), frozen=0, "
    "dtype='float32', remat='none', lora=None, attention='xla')"
  )


def test_the_lowest_layers_alone(llama_folder, tmp_path):
  backbone = saved(llama_folder, tmp_path)
  config = pretrained_config(llama_folder, tmp_path)
  config.model.layers, config.model.frozen_layers = 2, 1
  model = build_model(config)
  params = init_params(model, mesh(), jax.random.key(0), training=True)
  q = backbone["backbone/layers/q/kernel"]
  np.testing.assert_array_equal(params["backbone/lower/q/kernel"], q[:1])
  np.testing.assert_array_equal(params["backbone/layers/q/kernel"], q[1:2])
  assert model.exported_config()["num_hidden_layers"] == 2
  assert flatten_dict(model.network.abstract(), sep="/").keys() == params.keys()


def test_conversations_held_out_are_not_trained_on(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  config.data.train = str(write_pairs(tmp_path / "train.jsonl", 10))
  config.data.heldout = str(write_pairs(tmp_path / "held.jsonl", 4))  # the same first four
  config.data.strict = True  # and leaving them out is not a faulty row
  train, held, _, report = load_data(config, build_model(config))
  assert len(train.groups) == 6
  assert len(held.groups) == 4
  assert dict(report.dropped) == {"conversation_is_held_out": 4}
  assert report.kept == 10


def test_groups_without_a_likelihood_are_dropped_and_counted():
  """A response of no token, or whose only token is the first of all, which nothing predicts."""
  examples = [Example(f"p{i}", ("a", "b"), (1.0, 0.0), origin=f"row {i}") for i in range(3)]
  groups = [
    group_of(((7, 1), (7, 2)), length=np.asarray([1, 1])),
    group_of(((7, 1), (7,)), length=np.asarray([1, 0])),
    group_of(((1,), (7, 2)), length=np.asarray([1, 1])),
  ]
  report = Report()
  assert with_likelihood(groups, examples, report) == (groups[:1], examples[:1])
  assert dict(report.dropped) == {"no_likelihood": 2}
  assert [one.split(":")[0] for one in report.examples["no_likelihood"]] == ["row 1", "row 2"]
  report = Report()
  assert with_likelihood(groups[:1], examples[:1], report) == (groups[:1], examples[:1])
  assert not report.dropped


def test_texts_that_another_had_are_left_out_on_request(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  path = write_pairs(tmp_path / "train.jsonl", 10)
  lines = path.read_text().splitlines()
  turned = json.loads(lines[4])
  turned["chosen"], turned["rejected"] = turned["rejected"], turned["chosen"]
  path.write_text("\n".join([*lines, lines[2], lines[2], json.dumps(turned)]) + "\n")
  config.data.train, config.data.heldout = str(path), "0.2"
  config.data.strict = True
  _, _, _, report = load_data(config, build_model(config))
  assert (report.kept, dict(report.dropped)) == (13, {})
  config.data.deduplicate = True
  train, held, _, report = load_data(config, build_model(config))
  # A pair with its sides exchanged is another text; contradictions are left to curation.
  assert (report.kept, dict(report.dropped)) == (11, {"duplicate": 2})
  assert len(train.groups) + len(held.groups) == 11


def test_a_fraction_that_holds_out_one_conversation_stops_before_the_workdir(
  llama_folder, tmp_path
):
  config = small_config(llama_folder, steps=1)
  config.data.train = str(write_pairs(tmp_path / "ten.jsonl", 10))
  config.data.heldout = "0.1"
  with pytest.raises(DataError, match=r"0.1 of 10 conversations, which holds out 1; .* at least 2"):
    loop.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  config.data.heldout = "0.3"
  _, held, _, _ = load_data(config, build_model(config))
  assert len({e.conversation for e in held.examples}) >= 2


@pytest.mark.parametrize(("weight", "found"), [(0, "add up to 0"), (3e38, r"add up to 3e\+39")])
def test_weights_whose_sum_is_no_number_are_refused(llama_folder, tmp_path, weight, found):
  config = small_config(llama_folder, steps=1)
  path = write_pairs(tmp_path / "train.jsonl", 10)
  rows = [json.loads(line) | {"weight": weight} for line in path.read_text().splitlines()]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config.data.train, config.data.heldout = str(path), "0"
  with pytest.raises(DataError, match=rf"{found}.*the largest is .* of .*train\.jsonl:1"):
    load_data(config, build_model(config))


def test_one_example_that_outweighs_all_others_is_warned_of(llama_folder, tmp_path, caplog):
  config = small_config(llama_folder, steps=1)
  path = write_pairs(tmp_path / "train.jsonl", 10)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  config.data.train, config.data.heldout = str(path), "0"
  for weight in (1.0, 10.0):
    rows[3]["weight"] = weight
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_data(config, build_model(config))
    warned = (
      "train.jsonl:4 has weight 10 of 19 in all: the other 9 training examples" in caplog.text
    )
    assert warned == (weight == 10)


def test_a_sources_weight_that_is_no_number_is_refused(llama_folder):
  config = small_config(llama_folder, steps=1)
  path, config.data.train = config.data.train, ""
  for key in ("weight", "rate"):
    for value in (float("nan"), float("inf"), -1.0):
      config.data.sources = {"a": {"path": path, key: value}}
      with pytest.raises(ValueError, match=f"data.sources.a: .*{value}.*expected finite numbers"):
        load_data(config, build_model(config))


def test_heldout_data_of_which_nothing_is_left_are_an_error(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  row = {"prompt": "a ", "chosen": "x" * 400 + "y" * 600, "rejected": "z" * 400 + "y" * 600}
  (tmp_path / "held.jsonl").write_text(json.dumps(row) + "\n")
  config.data.heldout = str(tmp_path / "held.jsonl")
  config.data.max_length = 60
  with pytest.raises(DataError, match=r"held\.jsonl: no group of it is left"):
    load_data(config, build_model(config))


def test_repeats_of_messages_are_left_out_on_request(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)

  def row(n, answer="yes"):
    turn = {"role": "user", "content": f"question {n}"}
    sides = ([{"role": "assistant", "content": text}] for text in (answer, "no"))
    return {"prompt": [turn], **dict(zip(("chosen", "rejected"), sides, strict=True))}

  rows = [row(n) for n in range(4)] + [row(2), row(2, "yes!")]
  path = tmp_path / "messages.jsonl"
  path.write_text("".join(json.dumps(one) + "\n" for one in rows))
  config.data.train, config.data.heldout, config.data.deduplicate = str(path), "0", True
  train, _, _, report = load_data(config, build_model(config))
  assert dict(report.dropped) == {"duplicate": 1}
  assert len(train.groups) == 5


def test_the_loss_decides_whether_tied_rankings_are_kept(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=1)
  config.data.heldout, config.data.train = "0", str(tmp_path / "rankings.jsonl")
  rows = [
    {"prompt": "a ", "responses": ["1", "2", "3"], "scores": [1, 2, 2]},
    {"prompt": "b ", "responses": ["1", "2", "3"], "scores": [2, 2, 2]},
    {"prompt": "c ", "responses": ["1", "2", "3"], "ranks": [1, 1, 1]},
    # These scores differ in float64 only, and losses see float32.
    {"prompt": "d ", "responses": ["1", "2"], "scores": [1, 1 + 1e-12]},
    {"prompt": "e ", "responses": ["1", "2"], "comparisons": [[0, 1, "tie"]]},
  ]
  (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  for loss, kept in (("davidson", 5), ("rao_kupper", 5), ("logistic", 1), ("listnet", 1)):
    config.loss.ranking = loss
    train, _, _, report = load_data(config, build_model(config))
    assert (len(train.groups), report.dropped["all_tied"]) == (kept, 5 - kept)
  config.loss.ranking = "davidson"
  train, _, _, _ = load_data(config, build_model(config))
  pairs, ties = train.groups[1].comparisons()
  assert (pairs.sum(), ties.sum()) == (0, 6)


def test_the_world_takes_options_beside_its_name(llama_folder):
  config = small_config(llama_folder, steps=1)
  config.model.chat_template = "hh"
  config.data.train, config.data.heldout = "world:30(flips=1.0)", "world:5:3(vocabulary='train')"
  train, held, _, _ = load_data(config, build_model(config))
  config.data.train = "world:30"
  plain, _, _, _ = load_data(config, build_model(config))
  assert [e.responses for e in train.examples] == [e.responses[::-1] for e in plain.examples]
  assert {len(e.responses) for e in held.examples} == {3}
  for wrong, message in (
    ("world:0", "expected 'world:N'"),
    ("world:9(flips)", "expected 'world:N'"),
    ("world:9(flops=1)", "flops"),
    ("world:9(flips=2)", "flips: 2; expected a probability"),
  ):
    config.data.train = wrong
    with pytest.raises(ValueError, match=re.escape(message)):
      load_data(config, build_model(config))


def test_a_tokenizer_of_another_model_is_an_error(llama_folder, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": 50}))
  config = small_config(llama_folder, steps=1)
  config.model.config = str(tmp_path / "config.json")
  with pytest.raises(ValueError, match="vocabulary of 50; set"):
    load_data(config, build_model(config))


def test_the_labels_of_another_librarys_classifier_are_attributes(llama_folder, tmp_path):
  """config.json alone names its outputs: nothing is known of a mix, so they count alike."""
  said = json.loads((llama_folder / "config.json").read_text())
  said |= {
    "architectures": ["LlamaForSequenceClassification"],
    "id2label": {"0": "help", "1": "truth"},
  }
  network = Network(backbone_config(said), head_config(said))
  tensors = dict(export_params(network, random_params(network)))
  save_folder(tmp_path, config=said, tokenizer=decoder_tokenizer(), record={}, tensors=tensors)
  (tmp_path / "rm_jax.json").unlink()
  config = small_config(llama_folder, steps=1)
  config.model.config, config.model.pretrained = "", str(tmp_path)
  config.model.attributes = ("help", "truth")
  assert build_model(config).network.head.mix == (0.5, 0.5)
  config.model.mix = (2.0, 1.0)
  assert build_model(config).network.head.mix == (2.0, 1.0)
