"""An export's files give other libraries the same tokens and the same scores."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax import RewardModel
from rm_jax.batch.tokenise import HH_TEMPLATE
from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig
from rm_jax.parallel.mesh import make_mesh
from rm_jax.pretrained.clients import client_config
from rm_jax.pretrained.config import backbone_config
from rm_jax.pretrained.hf import export_params
from rm_jax.pretrained.source import RECORD, load_tokenizer, save_folder
from rm_jax.reward.export import PAD, _declared_mix, export
from rm_jax.reward.setup import build_model, init_params
from tests.clients.exports import DATED, LLAMA3_ROPE
from tests.conftest import BERT, CHAT, LLAMA, decoder_tokenizer, encoder_tokenizer
from tests.train.runs import small_config

TURNS = [{"role": "user", "content": "a <b "}, {"role": "assistant", "content": " c\n"}]
# A template with line ends and blanks at both ends, of which Jinja trims some and not others.
EDGES = "\n  {% for m in messages %}\n{{ m.content }}|{% endfor %}\n{{ '</s>' }}  \n"


def modelled(folder, tokenizer, config=LLAMA, **fields):
  folder.mkdir(exist_ok=True)
  tokenizer.save_pretrained(folder)
  (folder / "config.json").write_text(json.dumps(config))
  c = small_config(folder, steps=1)
  for key, value in fields.items():
    c.model[key] = value
  model = build_model(c)
  mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
  params = init_params(model, mesh, jax.random.key(0), training=True)
  return RewardModel(model, unflatten_dict(params, sep="/"), mesh)


def exported(rm, **options):
  return export(rm.text_model, rm.params, **options)


def ours(rm, prompt, response):
  (sequence,) = rm.text_model.text_encoder().sequences([(prompt, response)])
  return sequence.ids.tolist()


@pytest.mark.parametrize(
  "chat", [CHAT, HH_TEMPLATE, DATED, EDGES, "x", "{{ messages[0].content }}"]
)
@pytest.mark.parametrize("eos", ["append", "none"])
@pytest.mark.parametrize("bos", [True, False])
def test_the_template_renders_what_we_read(chat, eos, bos, tmp_path):
  rm = modelled(tmp_path / "m", decoder_tokenizer(chat=chat, bos=bos), eos=eos)
  out = exported(rm)
  for last in (" c\n", "", "d </s>", "e</s> \n"):
    talk = [TURNS[0], {"role": "assistant", "content": last}]
    expected = ours(rm, tuple(talk[:1]), tuple(talk[1:]))
    got = out.tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    assert got == expected
    for text in ("ab", f"ab{last}") if not last.rstrip().endswith("</s>") else ("ab",):
      assert out.tokenizer(text).input_ids == ours(rm, text, "")
  # A generation prompt, before an answer, has no EOS.
  opened = out.tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
  if chat == HH_TEMPLATE:
    assert opened == ("<s>" if bos else "") + "\n\nHuman: a <b \n\nAssistant:"
  assert out.tokenizer.pad_token_id not in (expected[-1], rm.text_model.tokenizer.eos_token_id)


def test_a_long_string_is_cut_as_we_cut_it(tmp_path):
  rm = modelled(tmp_path / "m", decoder_tokenizer())
  model = rm.text_model
  rm.text_model = dataclasses.replace(
    model, convention=dataclasses.replace(model.convention, max_length=9)
  )
  tokenizer = exported(rm).tokenizer
  for prompt, response in (("abcdefgh", "xyz"), ("ab", "lmnopqrstuvwxyz")):
    got = tokenizer(prompt + response, truncation=True).input_ids
    assert got == ours(rm, prompt, response)
    assert len(got) == 9


def test_a_long_pair_is_cut_as_we_cut_it_where_only_the_first_is_cut(tmp_path):
  rm = modelled(tmp_path / "m", encoder_tokenizer(), BERT)
  model = rm.text_model
  rm.text_model = dataclasses.replace(
    model, convention=dataclasses.replace(model.convention, max_length=12)
  )
  out = exported(rm)
  for pair in (("abcdefgh", "uvwxyz"), ("abcdef", "uvwxyz"), ("abc", "uvw")):
    (expected,) = rm.text_model.text_encoder().sequences([pair])
    got = out.tokenizer(*pair, truncation="only_first")
    assert (got.input_ids, got.token_type_ids) == (
      expected.ids.tolist(),
      expected.token_type.tolist(),
    )
  # With True the response is cut, too, which is what the limit is about.
  assert out.tokenizer("abcdefgh", "uvwxyz", truncation=True).input_ids != ours(
    rm, "abcdefgh", "uvwxyz"
  )
  (limit,) = out.limits
  assert "pairs longer than 12 tokens lose the prompt's oldest tokens first" in limit
  assert "truncation='only_first'" in limit
  # A response that is too long by itself has no counterpart there.
  with pytest.raises(Exception, match="too short"):
    out.tokenizer("ab", "lmnopqrstuvwxyz", truncation="only_first")


def test_several_templates_of_which_none_is_the_default(tmp_path):
  tokenizer = decoder_tokenizer(chat=None)
  tokenizer.chat_template = {"rag": CHAT, "tool_use": CHAT}
  rm = modelled(tmp_path / "m", tokenizer)
  rm.save_pretrained(tmp_path / "saved")
  again = RewardModel.from_pretrained(tmp_path / "saved")
  rows = [{"prompt": "a", "response": "b"}]
  np.testing.assert_array_equal(again.score(rows), rm.score(rows))
  assert again.text_model.tokenizer.chat_template == tokenizer.chat_template


def test_we_read_our_own_export_bitwise(tmp_path):
  rm = modelled(tmp_path / "m", decoder_tokenizer(pad="</s>"), chat_template="hh")
  rm.save_pretrained(tmp_path / "saved")
  again = RewardModel.from_pretrained(tmp_path / "saved")
  # The exported tokenizer and template add EOS themselves, and loading them does not double it.
  rows = [
    *[{"prompt": "ab", "response": r} for r in ("cd", "cd</s>", "cd</s> ", "", "</s>")],
    {"prompt": TURNS[:1], "response": " c\n"},
    {"prompt": "ab", "completions": ["x", "y"]},
  ]
  np.testing.assert_array_equal(again.score(rows), rm.score(rows))
  assert ours(again, "ab", "cd</s>") == ours(rm, "ab", "cd</s>")
  assert ours(again, "ab", "cd").count(2) == 1
  assert again.text_model.convention == rm.text_model.convention
  assert again.text_model.tokenizer.chat_template == HH_TEMPLATE
  # The folder used as a tokenizer only; and saved a second time.
  assert load_tokenizer(tmp_path / "saved")("ab").input_ids == decoder_tokenizer()("ab").input_ids
  again.save_pretrained(tmp_path / "twice")
  np.testing.assert_array_equal(
    RewardModel.from_pretrained(tmp_path / "twice").score(rows), rm.score(rows)
  )
  # A template that a user puts into the folder is kept.
  (tmp_path / "twice" / "chat_template.jinja").write_text("{{ messages[0].content }}")
  changed = RewardModel.from_pretrained(tmp_path / "twice")
  assert changed.text_model.tokenizer.chat_template == "{{ messages[0].content }}"


def test_an_export_of_an_earlier_version_has_its_old_ids(tmp_path):
  rm = modelled(tmp_path / "m", decoder_tokenizer(), chat_template="hh")
  record = rm.text_model.record()
  del record["convention"]["bos"]
  save_folder(
    tmp_path / "old",
    config=rm.text_model.exported_config(),
    tokenizer=rm.text_model.tokenizer,
    record=record,
    tensors=export_params(rm.text_model.network, rm.params),
  )
  old = RewardModel.from_pretrained(tmp_path / "old")
  assert ours(old, tuple(TURNS[:1]), tuple(TURNS[1:]))[0] != 1
  assert ours(old, "ab", "cd") == ours(rm, "ab", "cd")
  assert json.loads(json.dumps(old.text_model.record())) == json.loads(json.dumps(record))


def test_what_4_51_reads(tmp_path):
  rm = modelled(tmp_path / "m", decoder_tokenizer(), LLAMA | {"rope_parameters": LLAMA3_ROPE})
  rm.save_pretrained(tmp_path / "saved")
  tokenizer = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
  assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert not {"backend", "is_local"} & tokenizer.keys()  # which transformers 5 alone writes
  assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
  assert tokenizer["model_max_length"] == rm.text_model.convention.max_length
  assert (tokenizer["padding_side"], tokenizer["truncation_side"]) == ("right", "left")
  config = json.loads((tmp_path / "saved/config.json").read_text())
  assert config["rope_theta"] == 500000.0
  assert config["rope_scaling"]["factor"] == 8.0
  assert "rope_parameters" not in config
  assert config["problem_type"] == "regression"


@pytest.mark.parametrize(
  "beside",
  [
    {},
    {"rope_theta": 1e5, "dtype": "bfloat16", "auto_map": {"AutoModel": "evil.Model"}},
    {"rope_parameters": LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"model_type": "mistral", "sliding_window": 16},
    {"model_type": "mistral"},
    {"model_type": "qwen2"},
    {
      "model_type": "qwen2",
      "use_sliding_window": True,
      "sliding_window": 9,
      "max_window_layers": 1,
    },
    {"model_type": "qwen3", "head_dim": 16},
    BERT,
  ],
)
def test_a_clients_config_is_of_the_same_backbone(beside):
  config = LLAMA | beside if beside is not BERT else BERT
  backbone = backbone_config(config)
  written = client_config(config, backbone)
  assert backbone_config(json.loads(json.dumps(written))) == backbone
  assert not {"auto_map", "dtype"} & written.keys()


@pytest.mark.slow
def test_the_pad_token_is_one_that_no_text_ends_in(tmp_path):
  plain = exported(modelled(tmp_path / "a", decoder_tokenizer()))
  assert plain.config["pad_token_id"] == 0
  for pad in ("</s>", "<s>"):
    out = exported(modelled(tmp_path / "b", decoder_tokenizer(pad=pad)))
    assert out.tokenizer.pad_token == PAD
    assert out.config["pad_token_id"] == out.tokenizer.pad_token_id == 259
    assert out.config["vocab_size"] == 300
  # No row of the embedding is unused: it gets one more.
  tight = modelled(tmp_path / "c", decoder_tokenizer(pad="</s>"), LLAMA | {"vocab_size": 259})
  out = exported(tight)
  assert (out.config["vocab_size"], out.config["pad_token_id"]) == (260, 259)
  assert out.tensors["model.embed_tokens.weight"].shape == (260, 32)
  # An unknown word may end a text, and its token may not be what the pooling passes over.
  unknown = decoder_tokenizer(pad="<unk>")
  unknown.unk_token = "<unk>"
  unknown.backend_tokenizer.add_special_tokens(["<mask>", "<unk>"])
  out = exported(modelled(tmp_path / "e", unknown))
  assert out.tokenizer.pad_token == "<mask>"
  bert = exported(modelled(tmp_path / "d", encoder_tokenizer(), BERT))
  assert bert.config["pad_token_id"] == 0
  assert bert.tokenizer.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]


@pytest.mark.slow
def test_members_and_attributes_are_one_row(tmp_path):
  rm = modelled(tmp_path / "a", decoder_tokenizer(), members=3)
  kernel_DO = np.asarray(rm.params["head"]["out"]["kernel"])
  out = exported(rm)
  np.testing.assert_allclose(out.tensors["score.weight"][0], kernel_DO.mean(axis=1), atol=1e-7)
  assert out.config["id2label"] == {"0": "reward"}
  assert out.config["label2id"] == {"reward": 0}
  one = exported(modelled(tmp_path / "c", decoder_tokenizer(), attributes=("x",), mix=(-3.0,)))
  alone = modelled(tmp_path / "c", decoder_tokenizer())
  row_D = -3 * np.asarray(alone.params["head"]["out"]["kernel"])[:, 0]
  np.testing.assert_allclose(one.tensors["score.weight"][0], row_D, atol=1e-6)
  fields = dict(attributes=("x", "y"), mix=(2.0, -1.0), chat_template="hh")
  bert = modelled(tmp_path / "b", encoder_tokenizer(), BERT, **fields)
  layer = bert.params["head"]["out"]
  out = exported(bert)
  weights = np.asarray([2.0, -1.0])
  row_D = np.asarray(layer["kernel"]) @ weights
  np.testing.assert_allclose(out.tensors["classifier.weight"][0], row_D, atol=1e-6)
  np.testing.assert_allclose(
    out.tensors["classifier.bias"], [np.asarray(layer["bias"]) @ weights], atol=1e-6
  )
  bert.save_pretrained(tmp_path / "saved")
  again = RewardModel.from_pretrained(tmp_path / "saved")
  rows = [{"prompt": "a", "response": "b"}]
  np.testing.assert_array_equal(again.score_attributes(rows), bert.score_attributes(rows))
  record = json.loads((tmp_path / "saved" / RECORD).read_text())
  record["head_tensors"]["classifier.weight"]["float32"] = "AAAA"
  (tmp_path / "saved" / RECORD).write_text(json.dumps(record))
  with pytest.raises(ValueError, match="its head is not one that we wrote"):
    RewardModel.from_pretrained(tmp_path / "saved")


def test_training_from_one_attribute_begins_at_its_reward(tmp_path):
  rm = modelled(tmp_path / "m", decoder_tokenizer(), attributes=("harm",), mix=(-1.0,))
  rm.save_pretrained(tmp_path / "saved")

  def head(**fields):
    c = small_config(tmp_path / "m", steps=1)
    c.model.config = c.model.tokenizer = ""
    c.model.pretrained = str(tmp_path / "saved")
    c.model.update(fields)
    return build_model(c).network.head

  kept = RewardModel.from_pretrained(tmp_path / "saved").text_model.network.head
  assert (kept.attributes, tuple(kept.mix)) == (("harm",), (-1.0,))
  assert dataclasses.replace(head(attributes=("harm",)), dropout=0.0) == kept
  assert head(attributes=("harm",), mix=(2.0,)).mix == (2.0,)
  message = r"attribute 'harm', with the weight -1\.0 .* expected model\.attributes=\('harm',\)"
  with pytest.raises(ValueError, match=message):
    head()
  # Where the weight is 1 the reward is the output itself, and only its name is lost.
  record = json.loads((tmp_path / "saved" / RECORD).read_text())
  record["head"]["mix"] = [1.0]
  (tmp_path / "saved" / RECORD).write_text(json.dumps(record))
  assert head().attributes == ()


def test_what_the_files_cannot_say_is_named(tmp_path):
  rm = modelled(tmp_path / "a", decoder_tokenizer(chat=None))
  assert exported(rm).limits == ()
  (limit,) = exported(rm, kinds=("pair", "step")).limits
  assert "a score behind each" in limit
  (limit,) = exported(modelled(tmp_path / "b", decoder_tokenizer())).limits
  assert "conversations longer than 512 tokens are cut by whole turns" in limit
  mean = exported(modelled(tmp_path / "c", decoder_tokenizer(chat=None), pooling="mean")).limits
  assert "the mean over a response" in mean[0]
  two = modelled(tmp_path / "e", decoder_tokenizer(chat=None), attributes=("a", "b"))
  (limit,) = exported(two).limits
  assert "weighs a, b alike, by 0.5 each, as model.mix does where it is not set" in limit
  assert exported(two, mix={"a": 1.0, "b": 0.0}).limits == ()
  bert = exported(modelled(tmp_path / "d", encoder_tokenizer(), BERT, chat_template="hh"))
  assert "pairs longer than 256 tokens" in bert.limits[0]
  assert "messages become a pair" in bert.limits[1]
  with pytest.raises(Exception, match="a chat template cannot render"):
    bert.tokenizer.apply_chat_template(TURNS)


def test_messages_of_an_encoder_as_the_docs_have_them(tmp_path):
  rm = modelled(tmp_path / "m", encoder_tokenizer(), BERT, chat_template="hh")
  rm.save_pretrained(tmp_path / "saved")
  from transformers import AutoTokenizer

  tok = AutoTokenizer.from_pretrained(tmp_path / "saved")
  template = json.loads((tmp_path / "saved" / RECORD).read_text())["tokenizer"]["chat_template"]
  options = dict(chat_template=template, tokenize=False)
  prompt = tok.apply_chat_template(TURNS[:-1], add_generation_prompt=True, **options)
  whole = tok.apply_chat_template(TURNS, **options)
  inputs = tok(prompt, whole[len(prompt) :])
  pair = tuple(TURNS[:-1]), tuple(TURNS[-1:])
  (expected,) = rm.text_model.text_encoder().sequences([pair])
  assert inputs.input_ids == expected.ids.tolist()
  assert inputs.token_type_ids == expected.token_type.tolist()


def test_a_tokenizer_that_reads_a_rendered_text_otherwise_is_warned_of(tmp_path):
  import tokenizers

  # A blank goes before the first word alone: behind a BOS that is part of the text it is not first.
  tokenizer = decoder_tokenizer(chat=HH_TEMPLATE)
  tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Metaspace(" ", "first", split=False),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  rm = modelled(tmp_path / "m", tokenizer)
  (_, limit) = exported(rm).limits
  assert "messages have other tokens in transformers" in limit


@pytest.mark.parametrize("head", [{"x": 1}, [1], {"outputs": "2"}])
def test_a_damaged_record_is_named_in_training_too(head, tmp_path):
  modelled(tmp_path / "m", decoder_tokenizer()).save_pretrained(tmp_path / "saved")
  record = json.loads((tmp_path / "saved" / RECORD).read_text())
  (tmp_path / "saved" / RECORD).write_text(json.dumps(record | {"head": head}))
  c = small_config(tmp_path / "m", steps=1)
  c.model.config = c.model.tokenizer = ""
  c.model.pretrained = str(tmp_path / "saved")
  with pytest.raises(ValueError, match=r"rm_jax\.json: head"):
    build_model(c)


def test_weights_that_the_head_cannot_have_are_refused():
  head = HeadConfig(outputs=2, attributes=("a", "b"), mix=(0.5, 0.5))
  learned = {"head": {"mix": np.asarray([0.25, 0.75], np.float32)}}
  assert _declared_mix(head, learned, None).mix == (0.25, 0.75)
  assert _declared_mix(head, learned, {"b": 2, "a": 1}).mix == (1.0, 2.0)
  for mix in ({"a": 1e-50, "b": 0}, {"a": 1e300, "b": 0}, {"a": "x", "b": 1}, {"a": None, "b": 1}):
    with pytest.raises(InputError, match=r"expected (?:finite weights|a number for each)"):
      _declared_mix(head, learned, mix)
  with pytest.raises(InputError, match=r"mix weighs 1, 2; the model"):
    _declared_mix(head, learned, {1: 1.0, 2: 2.0})
