"""`RewardModel`: a score depends on its prompt and response and on nothing else."""

import dataclasses
import doctest
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax import RewardModel
from rm_jax.batch.group import tokenise
from rm_jax.batch.together import rows_by_prompt
from rm_jax.batch.tokens import Cut, Tokens
from rm_jax.data.report import DataError, Report
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh
from rm_jax.pretrained.hf import WeightsError, export_params
from rm_jax.pretrained.source import RECORD, save_folder
from rm_jax.reward.export import export
from rm_jax.reward.setup import build_model, init_params
from rm_jax.types import Example
from tests.conftest import LLAMA, decoder_tokenizer
from tests.train.runs import run, small_config


def rows_of(seed=0, prompts=4, each=3):
  rng = np.random.default_rng(seed)

  def words(longest):
    return "".join(rng.choice(list("abcdefgh "), rng.integers(1, longest)))

  rows = []
  for i in range(prompts):
    prompt = f"{i} {words(60)}"
    rows += [{"prompt": prompt, "response": words(90)} for _ in range(each)]
  return rows


@pytest.fixture(
  scope="module",
  params=[
    "llama",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("bert", "llama, pad is eos", "llama, mean", "bert, mean")
    ),
  ],
)
def model(request, llama_folder, bert_folder, tmp_path_factory):
  """A model with random weights, saved and read back."""
  kind, _, variant = request.param.partition(", ")
  folder = {"llama": llama_folder, "bert": bert_folder}[kind]
  if variant == "pad is eos":  # as in most decoders' tokenizers
    folder = tmp_path_factory.mktemp("pad")
    decoder_tokenizer(pad="</s>").save_pretrained(folder)
    (folder / "config.json").write_text((llama_folder / "config.json").read_text())
  config = small_config(folder, steps=1)
  config.model.config, config.model.tokenizer = str(folder / "config.json"), str(folder)
  config.model.pooling = "mean" if variant == "mean" else ""
  built = build_model(config)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = init_params(built, mesh, jax.random.key(0), training=True)
  rng = np.random.default_rng(1)
  params = {p: x + 0.2 * rng.normal(size=x.shape).astype(np.float32) for p, x in params.items()}
  # A new head's scores are near zero and would agree to 1e-5 whatever they are; these are not.
  head = "head/out/kernel"
  params[head] = jax.random.normal(jax.random.key(2), params[head].shape) / 4
  return RewardModel(built, unflatten_dict(params, sep="/"), mesh)


def test_the_example_of_the_docstring(model, tmp_path):
  model.save_pretrained(tmp_path)
  (example,) = doctest.DocTestFinder(recurse=False).find(
    RewardModel, "RewardModel", globs={"RewardModel": RewardModel, "folder": tmp_path}
  )
  found = doctest.DocTestRunner().run(example)
  assert (found.failed, found.attempted) == (0, 5)


def test_score_does_not_depend_on_its_batch(model):
  rows = rows_of()
  together = model.score(rows)
  assert together.dtype == np.float32
  assert together.std() > 0.05
  alone = np.concatenate([model.score([row]) for row in rows])
  np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
  order = np.random.default_rng(0).permutation(len(rows))
  np.testing.assert_allclose(
    model.score([rows[i] for i in order]), together[order], rtol=0, atol=1e-5
  )


def test_what_the_head_reads_and_the_scores_that_come_with_it(model):
  rows = rows_of()
  pooled_ND, scores_NM = model.pooled_and_scores(rows)
  np.testing.assert_allclose(scores_NM, model.score_members(rows), atol=1e-5)
  assert pooled_ND.dtype == np.float32
  head = model.params["head"]
  h_ND = pooled_ND
  if "pooler" in head:  # a BERT's own
    pooler = head["pooler"]
    h_ND = np.tanh(h_ND @ np.asarray(pooler["kernel"]) + np.asarray(pooler["bias"]))
  scores_N1 = h_ND @ np.asarray(head["out"]["kernel"]) + np.asarray(head["out"].get("bias", 0.0))
  np.testing.assert_allclose(scores_N1[:, 0], model.score(rows), atol=1e-4)


def test_save_and_load_is_exact(model, tmp_path):
  rows = rows_of(seed=1)
  model.save_pretrained(tmp_path)
  again = RewardModel.from_pretrained(tmp_path, mesh={"data": 2, "fsdp": 2, "tensor": 2})
  np.testing.assert_allclose(again.score(rows), model.score(rows), rtol=0, atol=1e-5)
  assert again.text_model.convention == model.text_model.convention


def test_transformers_reads_what_we_save(model, tmp_path, caplog):
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import AutoModelForSequenceClassification, AutoTokenizer

  model.save_pretrained(tmp_path)
  mean = model.text_model.convention.pooling == "mean"
  assert ("transformers reads one token of it" in caplog.text) == mean
  theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
  tokenizer = AutoTokenizer.from_pretrained(tmp_path)
  encoder = model.text_model.convention.encoder
  for row in rows_of(seed=2, prompts=3, each=1):
    if encoder:
      inputs = tokenizer(row["prompt"], row["response"], return_tensors="pt")
    else:
      inputs = tokenizer(row["prompt"] + row["response"], return_tensors="pt")
    with torch.no_grad():
      if mean:
        # One token a byte: a row ends in the response's bytes and EOS, or the last separator.
        h = theirs.base_model(**inputs).last_hidden_state[0, -len(row["response"]) - 1 :].mean(0)
        h = torch.tanh(theirs.bert.pooler.dense(h)) if encoder else h
        score = (theirs.classifier if encoder else theirs.score)(h).item()
      else:
        score = theirs(**inputs).logits.item()
    assert model.score([row])[0] == pytest.approx(score, abs=2e-5)


def test_rows_in_every_form(model):
  score = model.score([{"prompt": "ab", "response": "cd"}, {"prompt": "ab", "completion": "cd"}])
  assert score[0] == pytest.approx(score[1], abs=1e-5)
  assert model.score([]).shape == (0,)
  for row, message in (
    ({"prompt": "ab"}, r"row 0: has columns \['prompt'\]"),
    ({"prompt": "ab", "response": 3}, "row 0: wrong_type"),
    ({"prompt": None, "response": "a"}, "row 0: wrong_type"),
    ({"prompt": "a\ud800", "response": "a"}, "row 0: lone_surrogate"),
    ("ab", "row 0: is 'ab'; expected {column: value}"),
  ):
    with pytest.raises(ValueError, match=message):
      model.score([row])


def solutions(seed=0, prompts=4, each=3):
  """Solutions of one to twelve steps, several to a prompt."""
  rng = np.random.default_rng(seed)

  def words(longest):
    return "".join(rng.choice(list("abcdefgh"), rng.integers(1, longest)))

  return [
    {"prompt": f"{i} ", "completions": [words(9) for _ in range(rng.integers(1, 13))]}
    for i in range(prompts)
    for _ in range(each)
  ]


def decoder(model):
  if model.text_model.convention.encoder:
    pytest.skip("an encoder reads no steps")
  return model


def test_steps_are_scored_as_they_are_trained(model):
  rows = solutions()
  steps = decoder(model).score_steps(rows)
  assert [s.shape for s in steps] == [(len(row["completions"]),) for row in rows]
  assert {s.dtype for s in steps} == {np.dtype(np.float32)}
  examples = [
    Example(r["prompt"], ("-",), (0.0,) * len(t), "step", steps=(tuple(t),))
    for r in rows
    for t in [r["completions"]]
  ]
  groups, _ = tokenise(examples, model.text_model.text_encoder(), Report(strict=True))
  assert np.concatenate(steps).std() > 0.05
  for got, expected in zip(steps, model.score_groups(groups), strict=True):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
  # The scores do not depend on the batch, nor on later steps.
  alone = model.score_steps([{"prompt": rows[4]["prompt"], "steps": rows[4]["completions"]}])[0]
  np.testing.assert_allclose(steps[4], alone, rtol=0, atol=1e-5)
  start = [{**row, "completions": row["completions"][:1]} for row in rows]
  first = np.concatenate(model.score_steps(start))
  np.testing.assert_allclose(first, [s[0] for s in steps], rtol=0, atol=1e-5)
  assert model.score_steps([]) == []


@pytest.mark.parametrize("how", ["min", "product"])
@pytest.mark.slow
def test_steps_are_read_as_the_solution_so_far(model, how, tmp_path):
  rows = solutions(seed=2)
  own = decoder(model).score_steps(rows)
  network = dataclasses.replace(
    model.text_model.network, head=dataclasses.replace(model.text_model.network.head, steps=how)
  )
  read = RewardModel(
    dataclasses.replace(model.text_model, network=network), model.params, model.mesh
  )
  for scores, each in zip(read.score_steps(rows), own, strict=True):
    log_p = -np.log1p(np.exp(-each.astype(np.float64))).cumsum()
    expected = {
      "min": np.minimum.accumulate(each),
      "product": log_p - np.log(-np.expm1(log_p)),
    }[how]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
  # A response that is scored as a whole has one mark, which is read as it is.
  plain = rows_of(prompts=2, each=1)
  np.testing.assert_allclose(read.score(plain), model.score(plain), rtol=0, atol=1e-5)
  # It is saved with the model, and another reading can be asked for.
  read.save_pretrained(tmp_path)
  again = RewardModel.from_pretrained(tmp_path)
  saved, made = (np.concatenate(m.score_steps(rows)) for m in (again, read))
  np.testing.assert_allclose(saved, made, rtol=0, atol=1e-5)
  as_own = RewardModel.from_pretrained(tmp_path, steps="own").score_steps(rows)
  np.testing.assert_allclose(np.concatenate(as_own), np.concatenate(own), rtol=0, atol=1e-5)
  with pytest.raises(InputError, match="steps is 'mean'; expected one of own, min, product"):
    RewardModel.from_pretrained(tmp_path, steps="mean")


def test_a_solution_has_one_score(model):
  rows = solutions(seed=1)
  steps = decoder(model).score_steps(rows)
  expected = {
    "min": [s.min() for s in steps],
    "product": [-np.log1p(np.exp(-s.astype(np.float64))).sum() for s in steps],
    "mean": [s.mean() for s in steps],
    "last": [s[-1] for s in steps],
  }
  for how, values in expected.items():
    np.testing.assert_allclose(model.score(rows, aggregate=how), values, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(model.score(rows), expected["min"], rtol=0, atol=1e-5)
  # Whole responses among solutions have the same scores for any aggregation of steps.
  plain = rows_of(prompts=2, each=1)
  mixed = model.score([plain[0], rows[0], plain[1], rows[1]], aggregate="product")
  np.testing.assert_allclose(mixed[::2], model.score(plain), rtol=0, atol=1e-5)
  np.testing.assert_allclose(mixed[1::2], expected["product"][:2], rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="aggregate is 'max'; expected one of min, product"):
    model.score(rows, aggregate="max")


def test_steps_that_cannot_be_scored(model):
  good = {"prompt": "a", "completions": ["b"]}
  if model.text_model.convention.encoder:
    for call in (model.score_steps, model.score):
      with pytest.raises(DataError, match=r"row 0: .*an encoder reads one mark"):
        call([good])
    return
  for row, message in (
    ({"prompt": "a", "response": "b"}, r"row 1: has columns .*; expected prompt and completions"),
    ({"completions": ["b"]}, "row 1: has columns"),
    (good | {"completions": []}, r"row 1: wrong_type: 'completions' is \[\]"),
    (good | {"completions": "b"}, "row 1: wrong_type"),
    (good | {"completions": ["b", " "]}, "row 1: empty_response: step 1"),
    (good | {"completions": ["b" * 600]}, "row 1: steps_too_long"),
    (good | {"prompt": 3}, "row 1: wrong_type: 'prompt' is 3"),
  ):
    with pytest.raises(ValueError, match=message):
      model.score_steps([good, row])


@pytest.fixture(scope="module")
def small(llama_folder):
  """A Llama with random weights, reading 64 tokens."""
  config = small_config(llama_folder, steps=1)
  config.data.max_length = 64
  built = build_model(config)
  mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  params = init_params(built, mesh, jax.random.key(0), training=True)
  return RewardModel(built, unflatten_dict(params, sep="/"), mesh)


def test_a_score_that_is_not_finite_is_refused(small):
  params = jax.tree.map(lambda x: x, small.params)
  table = params["backbone"]["embed"]["embedding"]
  token = small.text_model.tokenizer("z").input_ids[-1]
  params["backbone"]["embed"]["embedding"] = table.at[token].set(np.nan)
  damaged = RewardModel(small.text_model, params, small.mesh)
  rows = [{"prompt": "a", "response": r} for r in ("b", "c", "zz", "d")]
  assert np.isfinite(damaged.score([rows[0], rows[1], rows[3]])).all()
  with pytest.raises(ValueError, match=r"row 2: its score is nan; expected a finite number"):
    damaged.score(rows)
  with pytest.raises(ValueError, match=r"f\.jsonl:9: its score is nan"):
    damaged.score(rows[2:3], origins=["f.jsonl:9"])
  with pytest.raises(ValueError, match="its score is nan"):
    damaged.pooled_and_scores(rows)
  with pytest.raises(ValueError, match="row 2: its score is nan"):
    damaged.score_members(rows)


def test_a_token_that_the_model_does_not_know_is_refused_in_scoring_too(small):
  tokenizer = decoder_tokenizer()
  tokenizer.add_tokens([f"word{i}" for i in range(60)])
  other = RewardModel(
    dataclasses.replace(small.text_model, tokenizer=tokenizer), small.params, small.mesh
  )
  assert np.isfinite(other.score([{"prompt": "a", "response": "word0"}])).all()
  with pytest.raises(ValueError, match="gives id 318 and the model has a vocabulary of 300"):
    other.score([{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "word59"}])


def test_a_template_that_renders_nothing_is_refused_when_the_model_is_loaded(small, tmp_path):
  small.save_pretrained(tmp_path / "saved")
  assert RewardModel.from_pretrained(tmp_path / "saved").attributes == ()
  decoder_tokenizer(chat="{{ 'a' * 10**10 }}").save_pretrained(tmp_path / "saved")
  with pytest.raises(ValueError, match="the chat template cannot be rendered: LimitError"):
    RewardModel.from_pretrained(tmp_path / "saved")


def test_cut_prompts_are_told_of(small, caplog):
  rows = [{"prompt": "p" * n, "response": "r"} for n in (10, 100, 61, 62)]
  with caplog.at_level("WARNING", logger="rm_jax.api"):
    scores = small.score(rows)
  assert caplog.messages == [
    "2 of 4 rows are longer than 64 tokens: of their prompts 40 tokens are left out, "
    "the oldest first"
  ]
  caplog.clear()
  cuts = []
  np.testing.assert_array_equal(small.score(rows, cuts=cuts), scores)
  assert (cuts, caplog.messages) == ([0, 39, 0, 1], [])


def test_messages_go_through_the_chat_template(model):
  if model.text_model.convention.encoder:
    pytest.skip("this encoder's tokenizer has no chat template")
  messages = [{"role": "user", "content": "ab"}]
  answer = [{"role": "assistant", "content": "cd"}]
  rendered = {"prompt": "user:ab</s>\n<s>assistant:", "response": "cd</s>\n"}
  scores = model.score(
    [
      {"prompt": messages, "response": answer},
      {"prompt": messages, "response": "cd"},
      {"prompt": tuple(messages), "response": "cd"},  # as the world writes them
      rendered,  # the tokenizer adds the first <s> itself
    ]
  )
  np.testing.assert_allclose(scores, scores[0], atol=1e-5)


@pytest.mark.slow
def test_a_workdir_scores_as_the_run_did(llama_folder, tmp_path):
  config = small_config(llama_folder, steps=5)
  config.model.frozen_layers = 1
  summary = run(config, tmp_path, devices=1)
  model = RewardModel.from_pretrained(tmp_path)
  lines = (llama_folder / "heldout.jsonl").read_text().splitlines()
  pairs = [json.loads(line) for line in lines]
  rows = [{"prompt": p["prompt"], "response": p[s]} for p in pairs for s in ("chosen", "rejected")]
  scores = model.score(rows).reshape(-1, 2)
  accuracy = ((scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])).mean()
  assert accuracy == pytest.approx(summary["heldout"]["accuracy"])
  margin = (scores[:, 0] - scores[:, 1]).mean()
  assert margin == pytest.approx(summary["heldout"]["margin"], abs=1e-5)
  model.save_pretrained(tmp_path / "saved")
  np.testing.assert_array_equal(
    RewardModel.from_pretrained(tmp_path / "saved").score(rows).reshape(-1, 2), scores
  )


@pytest.mark.slow
def test_imported_classifier_keeps_its_head_and_pooling(tmp_path):
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

  torch.manual_seed(0)
  # If pad is EOS, Hugging Face's rule reads the last token that is not EOS.
  config = LlamaConfig(**LLAMA | {"pad_token_id": 2, "num_labels": 1})
  theirs = LlamaForSequenceClassification(config).eval()
  theirs.save_pretrained(tmp_path)
  decoder_tokenizer(pad="</s>").save_pretrained(tmp_path)
  model = RewardModel.from_pretrained(tmp_path)
  assert model.text_model.convention.eos == "none"
  assert model.text_model.convention.pooling == "hf"
  tokenizer = AutoTokenizer.from_pretrained(tmp_path)
  for response in ("cdef", "cd</s>"):
    inputs = tokenizer("ab" + response, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
      score = theirs(**inputs).logits.item()
    got = model.score([{"prompt": "ab", "response": response}])[0]
    assert got == pytest.approx(score, abs=2e-5)


def classifier(folder, *, chat=None, pad="<pad>", **said):
  """A classifier that transformers saved, with random weights; its config does not tell of EOS.

  The pad token of its config.json is the tokenizer's, unless `said` has another.
  """
  torch = pytest.importorskip("torch", reason="torch makes the checkpoint")
  from transformers import LlamaConfig, LlamaForSequenceClassification

  torch.manual_seed(0)
  tokenizer = decoder_tokenizer(chat=chat, pad=pad)
  said = {"pad_token_id": tokenizer.pad_token_id} | said
  config = LlamaConfig(**LLAMA | {"num_labels": 1} | said)
  theirs = LlamaForSequenceClassification(config).eval()
  torch.nn.init.normal_(theirs.score.weight)
  theirs.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return theirs, tokenizer


def test_messages_for_a_model_without_a_chat_template(tmp_path):
  classifier(tmp_path)
  talk = {"prompt": [{"role": "user", "content": "ab"}], "response": "cd"}
  message = r"no chat template; set chat_template of from_pretrained, or --chat_template of a comm"
  with pytest.raises(ValueError, match=message):
    RewardModel.from_pretrained(tmp_path).score([talk])
  model = RewardModel.from_pretrained(tmp_path, chat_template="hh")
  same = {"prompt": "\n\nHuman: ab\n\nAssistant:", "response": " cd"}  # with its BOS, too
  # Each by itself: the same tokens in the same layout have the same score to the last bit.
  np.testing.assert_array_equal(model.score([talk]), model.score([same]))
  with pytest.raises(ValueError, match="chat_template 'hhh' is neither Jinja text, nor a file"):
    RewardModel.from_pretrained(tmp_path, chat_template="hhh")
  # The given template is saved with the model.
  model.save_pretrained(tmp_path / "saved")
  again = RewardModel.from_pretrained(tmp_path / "saved")
  np.testing.assert_array_equal(again.score([talk, same]), model.score([talk, same]))


def test_eos_of_a_classifier_that_others_trained_is_said_by_who_loads_it(tmp_path):
  theirs, tokenizer = classifier(tmp_path)
  import torch

  def logits(text):
    with torch.no_grad():
      return theirs(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits

  row = {"prompt": "ab", "response": "cd"}
  for eos, text in (("", "abcd"), ("none", "abcd"), ("append", "abcd</s>")):
    model = RewardModel.from_pretrained(tmp_path, eos=eos)
    assert model.score([row])[0] == pytest.approx(logits(text).item(), abs=2e-5)
    ended = model.score([row | {"response": "cd</s>"}])[0]
    assert ended == pytest.approx(logits("abcd</s>").item(), abs=2e-5)
  with pytest.raises(ValueError, match="eos is 'middle'; expected one of append, none"):
    RewardModel.from_pretrained(tmp_path, eos="middle")


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_what_others_trained_is_saved_with_its_own_rule(pad, tmp_path):
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import AutoModelForSequenceClassification, AutoTokenizer

  classifier(tmp_path / "theirs", pad=pad)
  for eos in ("none", "append"):
    model = RewardModel.from_pretrained(tmp_path / "theirs", eos=eos, chat_template="hh")
    model.save_pretrained(tmp_path / eos)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / eos).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / eos)
    talk = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    expected = model.score(
      [{"prompt": "ab", "response": "cd"}, {"prompt": talk[:1], "response": talk[1:]}]
    )
    texts = tokenizer("abcd"), tokenizer.apply_chat_template(talk, return_dict=True)
    inputs = tokenizer.pad([dict(t) for t in texts], return_tensors="pt")
    with torch.no_grad():
      logits = theirs(**inputs).logits[:, 0].numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("skipped", [None, 0, 2, -1, 280, "d"])
@pytest.mark.parametrize("pad", [None, "<pad>", "</s>"])
def test_the_token_that_others_skip_is_that_of_config_json(pad, skipped, tmp_path):
  """Whatever the tokenizer's pad token is: transformers' classifiers do not know the tokenizer."""
  if skipped == "d":  # no special token
    skipped = decoder_tokenizer().convert_tokens_to_ids("d")
  theirs, tokenizer = classifier(tmp_path / "theirs", pad=pad, pad_token_id=skipped)
  import torch

  responses = ["cd", "cd</s>", "c<pad>", "</s></s>", "<pad>"]
  expected = []
  for response in responses:
    inputs = tokenizer("ab" + response, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
      expected.append(theirs(**inputs).logits.item())
  rows = [{"prompt": "ab", "response": response} for response in responses]
  model = RewardModel.from_pretrained(tmp_path / "theirs")
  scores = model.score(rows)
  np.testing.assert_allclose(scores, expected, atol=2e-5)
  model.save_pretrained(tmp_path / "saved")
  np.testing.assert_array_equal(RewardModel.from_pretrained(tmp_path / "saved").score(rows), scores)
  # Nor do they know it of the export, one by one or, where it has such a pad token, in a batch.
  from transformers import AutoModelForSequenceClassification, AutoTokenizer

  theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
  tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
  texts = ["abcd", "abcd</s>", "ab</s></s>"]
  one_by_one = [tokenizer([text], return_tensors="pt") for text in texts]
  padded = tokenizer.pad_token_id == theirs.config.pad_token_id
  special = [None, -1, 280, 2, *([0] if pad == "<pad>" else [])]
  assert padded is (skipped in special)
  batch = [tokenizer(texts, return_tensors="pt", padding=True)] if padded else []
  for parts in (one_by_one, batch):
    with torch.no_grad():
      got = [x for part in parts for x in theirs(**part).logits[:, 0].tolist()]
    np.testing.assert_allclose(got, [*scores[:2], scores[3]][: len(got)], atol=2e-5)
  limits = export(model.text_model, model.params).limits
  assert any("and of a padded batch reads padding" in limit for limit in limits) is not padded


def test_a_folder_of_an_earlier_version_skips_the_tokenizers_pad_token(tmp_path):
  classifier(tmp_path / "theirs", pad="</s>", pad_token_id=0)
  model = RewardModel.from_pretrained(tmp_path / "theirs")
  model.save_pretrained(tmp_path / "saved")
  path = tmp_path / "saved" / RECORD
  record = json.loads(path.read_text())
  assert record["convention"].pop("pad") == 0
  path.write_text(json.dumps(record))
  old = RewardModel.from_pretrained(tmp_path / "saved")
  assert old.text_model.convention.pad is None
  assert json.loads(json.dumps(old.text_model.record()["convention"])) == record["convention"]
  plain, ended = ({"prompt": "ab", "response": r} for r in ("cd", "cd</s>"))
  np.testing.assert_array_equal(old.score([plain]), model.score([plain]))
  for pads, same in ((old, True), (model, False)):
    (short,), (long,) = pads.score([plain]), pads.score([ended])
    assert (abs(short - long) < 1e-5) == same


def test_scoring_without_a_head_is_an_error(llama_folder, tmp_path):
  built = build_model(small_config(llama_folder, steps=1))
  mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
  params = unflatten_dict(init_params(built, mesh, jax.random.key(0), training=True), sep="/")
  del params["head"]
  save_folder(
    tmp_path,
    config=built.config,
    tokenizer=built.tokenizer,
    record=built.record(),
    tensors=export_params(built.network, params),
  )
  with pytest.raises(WeightsError, match=r"has no reward head \(score\.weight\)"):
    RewardModel.from_pretrained(tmp_path)


def sequence(prompt, response):
  ids = np.zeros(prompt + response, np.int32)
  return Tokens(ids, prompt, np.asarray([len(ids) - 1], np.int32), None, 0)


@pytest.mark.parametrize(
  ("prompt", "response", "expected"),
  [
    (700, 100, [[0, 1, 2, 3, 4], [5]]),  # over 1,024 columns, at most 1.5 x the longest sequence
    (3000, 500, [[0, 1, 2, 3], [4, 5]]),
    (20, 300, [[0, 1, 2], [3, 4, 5]]),
    (20, 600, [[0], [1], [2], [3], [4], [5]]),  # a short prompt costs little to compute again
  ],
)
def test_responses_share_a_prompt_as_far_as_that_saves(prompt, response, expected):
  tokens = [sequence(prompt, response)] * 6
  assert rows_by_prompt(["p"] * 6, tokens, True) == expected
  assert rows_by_prompt(["p"] * 6, tokens, False) == [[i] for i in range(6)]


def test_a_cut_prompt_is_shared_where_the_same_is_left_of_it():
  def cut(left):
    ids = np.full(310, left, np.int32)
    return Tokens(ids, 300, np.asarray([309], np.int32), None, Cut(7))

  tokens = [cut(1), cut(2), cut(1), sequence(300, 10)]
  assert rows_by_prompt(["p"] * 4, tokens, True, cut=True) == [[0, 2], [1], [3]]
  assert rows_by_prompt(["p"] * 4, tokens, True) == [[0], [1], [2], [3]]
  assert rows_by_prompt(["p"] * 4, tokens, False, cut=True) == [[0], [1], [2], [3]]


def test_a_template_that_cannot_be_rendered_names_what_sets_another(llama_folder):
  message = r"another: chat_template of from_pretrained, or --chat_template of a command$"
  with pytest.raises(ValueError, match=message):
    RewardModel.from_pretrained(llama_folder, chat_template="{{ 1 + 'a' }}")
