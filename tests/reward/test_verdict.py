"""A new head that is the language model's own verdict on a judge's question."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from rm_jax import RewardModel
from rm_jax.batch.tokenise import TEMPLATES, Convention, TextEncoder
from rm_jax.data.report import DataError
from rm_jax.errors import InputError
from rm_jax.parallel.mesh import make_mesh
from rm_jax.reward.setup import build_model, init_params
from rm_jax.train import text_penalty
from tests.conftest import CHAT, decoder_tokenizer, encoder_tokenizer
from tests.processes import command
from tests.train.runs import run, small_config
from tests.train.test_text_penalty import language_model, train_lines

QUESTION = "Good? Yes or No."
IMPLICIT = {
  "model.reward": "implicit",
  "model.reference": "none",
  "model.head_init": "random",
  "model.question": "",
}
STRINGS = [
  {"prompt": "0.1 ab ", "response": "aab"},
  {"prompt": "0.1 ab ", "response": "bb"},
  {"prompt": "7 b ", "response": "abba"},
]
CHATS = [
  {
    "prompt": [{"role": "user", "content": "ab"}, *more],
    "response": [{"role": "assistant", "content": answer}],
  }
  for answer in ("aab", "b")
  for more in ([], [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}])
]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, llama_folder, tmp_path_factory):
  path = tmp_path_factory.mktemp("base")
  return language_model(llama_folder, path, tied=request.param, own=not request.param)


@pytest.fixture(scope="module")
def judge(base):
  return RewardModel.from_pretrained(base, verdict=("Yes", "No"), question=QUESTION)


def judging(chat=CHAT, tokenizer=None, **options):
  options = {"eos": "none", "question": QUESTION} | options
  return TextEncoder(tokenizer or decoder_tokenizer(chat=chat), Convention(**options))


def text_of(encoder, tokens):
  return encoder.tokenizer.decode(tokens.ids, skip_special_tokens=False)


def test_the_reward_is_the_difference_of_two_logits(base, judge):
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import AutoModelForCausalLM, AutoTokenizer

  theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
  tokenizer = AutoTokenizer.from_pretrained(base)
  yes, no = (tokenizer(w, add_special_tokens=False).input_ids[0] for w in ("Yes", "No"))
  ask = {"role": "user", "content": QUESTION}
  texts = [
    tokenizer.apply_chat_template(
      [*row["prompt"], *row["response"], ask], tokenize=False, add_generation_prompt=True
    )
    for row in CHATS
  ]
  for text, score in zip(texts, judge.score(CHATS), strict=True):
    with torch.no_grad():
      logits = theirs(torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])).logits
    assert score == pytest.approx(float(logits[0, -1, yes] - logits[0, -1, no]), abs=1e-5)
  assert np.ptp(judge.score(CHATS)) > 1e-3


@pytest.mark.parametrize(
  ("chat", "asked"),
  [
    (CHAT, f"</s>\n<s>user:{QUESTION}</s>\n<s>assistant:"),
    (TEMPLATES["hh"], f"\n\nHuman: {QUESTION}\n\nAssistant:"),
    (None, f"\n\n{QUESTION}\n"),
  ],
  ids=["chat", "hh", "none"],
)
def test_a_string_is_asked_as_the_template_asks(chat, asked):
  encoder = judging(chat)
  (tokens,) = encoder.sequences([("ab", "c")])
  assert text_of(encoder, tokens) == "<s>abc" + asked
  assert tokens.marks.tolist() == [len(tokens.ids) - 1]
  assert tokens.prompt == 3
  if chat:
    turns = [{"role": "user", "content": "ab"}], [{"role": "assistant", "content": "c"}]
    (messages,) = encoder.sequences([turns])
    assert text_of(encoder, messages).endswith("c" + asked)
    assert messages.marks.tolist() == [len(messages.ids) - 1]


def test_a_verdict_begins_where_the_answer_would():
  words = "Yes", "No"
  merges = [("Ġ", "Y"), ("Ġ", "N")]
  for chat, first in ((TEMPLATES["hh"], "Ġ"), (None, "")):
    encoder = judging(tokenizer=decoder_tokenizer(merges, chat=chat))
    names = encoder.tokenizer.convert_ids_to_tokens(encoder.verdict_ids(words))
    assert names == [first + "Y", first + "N"]
  template = "{% for m in messages %}{{ m['content'] }}{% endfor %}</s>"  # opens with a token
  encoder = judging(tokenizer=decoder_tokenizer(merges, chat=template))
  assert encoder.tokenizer.convert_ids_to_tokens(encoder.verdict_ids(words)) == ["Y", "N"]
  with pytest.raises(InputError, match=r"'Yes', 'You' begin with the tokens \[\['Y'\], \['Y'\]\]"):
    encoder.verdict_ids(("Yes", "You"))


def test_what_is_too_long_is_cut_before_the_question():
  encoder = judging(max_length=60)
  for pair in [
    ("p" * 200, "answer"),
    ("p", "r" * 200),
    ([{"role": "user", "content": "p" * 200}], [{"role": "assistant", "content": "answer"}]),
    ([{"role": "user", "content": "p"}], [{"role": "assistant", "content": "r" * 200}]),
  ]:
    (tokens,) = encoder.sequences([pair])
    assert len(tokens.ids) == 60
    assert text_of(encoder, tokens).endswith(f"<s>user:{QUESTION}</s>\n<s>assistant:")
    assert tokens.cut > 0


def test_a_question_without_room_for_a_response_is_refused():
  with pytest.raises(InputError, match="max_length is 20, and the judge's question takes"):
    judging(max_length=20)


def test_saved_untrained_it_judges_alike_and_in_transformers(judge, tmp_path):
  judge.save_pretrained(tmp_path)
  again = RewardModel.from_pretrained(tmp_path)
  assert again.text_model.convention.question == QUESTION
  for rows in (STRINGS, CHATS):
    np.testing.assert_array_equal(again.score(rows), judge.score(rows))
  torch = pytest.importorskip("torch", reason="torch is the oracle")
  from transformers import AutoModelForSequenceClassification, AutoTokenizer

  theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
  tokenizer = AutoTokenizer.from_pretrained(tmp_path)
  texts = [tokenizer(row["prompt"] + row["response"]).input_ids for row in STRINGS]
  texts += [
    tokenizer.apply_chat_template(
      [*row["prompt"], *row["response"]], tokenize=True, return_dict=True
    )["input_ids"]
    for row in CHATS
  ]
  with torch.no_grad():
    scores = [float(theirs(torch.tensor([ids])).logits[0, 0]) for ids in texts]
  ours = [*judge.score(STRINGS), *judge.score(CHATS)]
  np.testing.assert_allclose(scores, ours, atol=1e-5)


def config_of(folder, path, **fields):
  config = small_config(folder, steps=6)
  config.model.config, config.model.tokenizer, config.model.pretrained = "", "", str(path)
  config.data.row_lengths = (256,)
  config.model.head_init, config.model.question = "verdict", QUESTION
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.slow
def test_training_goes_on_from_the_verdict(llama_folder, base, judge, tmp_path):
  run(config_of(llama_folder, base), tmp_path / "run", devices=1)
  losses = [line["loss"] for line in train_lines(tmp_path / "run")]
  assert losses[-1] < losses[0]
  record = json.loads((tmp_path / "run" / "model" / "rm_jax.json").read_text())
  assert record["convention"]["question"] == QUESTION
  # Where nothing is learned, what is saved is the verdict itself.
  still = {"train.steps": 1, "optimizer.learning_rate": 0.0}
  run(config_of(llama_folder, base, **still), tmp_path / "none", devices=1)
  untrained = RewardModel.from_pretrained(tmp_path / "none")
  np.testing.assert_allclose(untrained.score(STRINGS), judge.score(STRINGS), atol=1e-6)


@pytest.mark.slow
def test_the_command_scores_with_it(base, judge, tmp_path):
  source, output = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
  source.write_text("".join(json.dumps(row) + "\n" for row in STRINGS))
  flags = (f"--model={base}", f"--input={source}", f"--output={output}")
  code, _, err = command("score", *flags, "--verdict=Yes,No", f"--question={QUESTION}").finish()
  assert code == 0, err
  rewards = [json.loads(line)["reward"] for line in output.read_text().splitlines()]
  np.testing.assert_allclose(rewards, judge.score(STRINGS), atol=1e-6)


def test_a_question_alone_may_be_asked(llama_folder, base):
  model = build_model(config_of(llama_folder, base, **{"model.head_init": "random"}))
  assert model.words == ()
  assert model.convention.question == QUESTION
  model = build_model(config_of(llama_folder, base, **{"model.question": ""}))
  assert "Yes or No" in model.convention.question
  assert model.record()["convention"]["question"]
  plain = {"model.head_init": "random", "model.question": ""}
  assert (
    "question" not in build_model(config_of(llama_folder, base, **plain)).record()["convention"]
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model.layers": 2}, r"'verdict' and model\.layers 2: the language-model head was trained"),
    ({"model.members": 2}, r"'verdict', and the head has 2 outputs; expected one"),
    ({"model.reward": "implicit"}, r"'verdict', and the reward is implicit .*, which has no head"),
    (
      {"model.reward": "implicit", "model.head_init": "random"},
      r"question is 'Good\?.* and model\.reward 'implicit', which would count the likelihood",
    ),
    ({"model.verdict_words": ("Yes",)}, r"by the words \('Yes',\); expected two"),
    ({"model.verdict_words": ("Yes", "Yes")}, r"the verdicts 'Yes', 'Yes' begin with the tokens"),
    ({"model.eos": "append"}, r"question is 'Good\?.*eos 'append'.*expected a decoder, eos='none'"),
    ({"model.pooling": "mean"}, r"pooling 'mean'; expected a decoder"),
  ],
  ids=lambda x: str(x)[:30],
)
def test_what_makes_no_sense_is_refused(fields, message, llama_folder, base):
  with pytest.raises(InputError, match=message):
    build_model(config_of(llama_folder, base, **fields))


def test_a_verdict_of_what_an_implicit_run_saved(llama_folder, base, judge, tmp_path):
  config = config_of(llama_folder, base, **IMPLICIT)
  mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})

  def model_of(config):
    model = build_model(config)
    params = init_params(model, mesh, jax.random.key(0), training=True)
    return RewardModel(model, unflatten_dict(params, sep="/"), mesh)

  model_of(config).save_pretrained(tmp_path)
  again = model_of(config_of(llama_folder, tmp_path))
  np.testing.assert_array_equal(again.score(STRINGS), judge.score(STRINGS))
  mean = {"model.head_init": "random", "model.question": "", "model.pooling": "mean"}
  assert build_model(config_of(llama_folder, tmp_path, **mean)).convention.pooling == "mean"
  # Scored as it is, a question would be counted as the response's.
  with pytest.raises(
    InputError, match=r"question is 'Good\?'.*implicit.*likelihood of the question"
  ):
    RewardModel.from_pretrained(tmp_path, question="Good?")


def test_text_losses_do_not_learn_the_question(llama_folder, base):
  config = config_of(llama_folder, base, **{"loss.text_sft": 0.1})
  with pytest.raises(InputError, match="a judge's question stands behind each response"):
    text_penalty.check(config.loss, build_model(config))


def test_two_letters_of_a_word_are_no_two_words(base):
  with pytest.raises(InputError, match="expected two: of a good response, a bad"):
    RewardModel.from_pretrained(base, verdict="YN")


def test_models_without_a_verdict_are_refused(judge, llama_folder, bert_folder, tmp_path):
  random = small_config(llama_folder, steps=1)
  random.model.head_init = "verdict"
  with pytest.raises(InputError, match="the weights are random, which have no verdict"):
    build_model(random)
  headless = language_model(llama_folder, tmp_path / "headless", tied=False, own=False)
  with pytest.raises(InputError, match=r"verdict.*headless has no lm_head\.weight, though"):
    RewardModel.from_pretrained(headless, verdict=("Yes", "No"))
  judge.save_pretrained(tmp_path)
  with pytest.raises(InputError, match="has a head of its own already"):
    RewardModel.from_pretrained(tmp_path, verdict=("Yes", "No"))
  with pytest.raises(InputError, match=r"question is 'Other\?', and the checkpoint has a head"):
    RewardModel.from_pretrained(tmp_path, question="Other?")
  with pytest.raises(InputError, match="expected a decoder"):
    judging(tokenizer=encoder_tokenizer(), encoder=True, pooling="first")
  with pytest.raises(DataError, match="asks a judge's question behind a whole response"):
    judge.score([{"prompt": "a", "steps": ["b", "c"]}])
