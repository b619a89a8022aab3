"""Prompts as tokens and responses as text, of tokenizers of different kinds."""

import dataclasses

import jax
import numpy as np
import pytest

from rm_jax import RewardModel
from rm_jax.batch.tokenise import HH_TEMPLATE
from rm_jax.errors import InputError
from rm_jax.models.config import HeadConfig, LikelihoodHead
from rm_jax.policy.generate import Sampling
from rm_jax.policy.rollout import sample
from rm_jax.policy.text import Policy
from rm_jax.world import World
from tests.conftest import decoder_tokenizer
from tests.models.oracle import needs_torch
from tests.policy.small import (
  byte_policy,
  nested,
  one_device,
  params_of,
  text_model,
  world_policy,
)


def responses(policy, prompt, response):
  """(ids of the prompt, ids of a response to it) as training tokenises them, without EOS."""
  (tokens,) = policy.encoder.sequences([(prompt, response)])
  ids = tokens.ids[tokens.prompt :]
  return tokens.ids[: tokens.prompt], ids[ids != policy.text_model.tokenizer.eos_token_id]


@pytest.mark.parametrize("messages", [True, False])
def test_the_worlds_texts_come_back_exactly_and_so_does_their_true_reward(messages):
  policy, world = world_policy(), World()
  for split in ("train", "heldout"):
    for example in world.rankings(split, 30, 4, seed=2, messages=messages):
      lead = policy.lead(example.prompt)
      for response, truth in zip(example.responses, example.truth, strict=True):
        prompt, ids = responses(policy, example.prompt, response)
        text = policy.text(prompt, ids).removeprefix(lead)
        assert text == (response[0]["content"] if messages else response)
        answer = ({"role": "assistant", "content": text},) if messages else text
        assert world.true_reward(example.prompt, answer) == truth


@pytest.mark.parametrize("text", ["An apple.", " and  more\n\n- so ", "naïve ☃ 字", "a, b ."])
def test_any_text_comes_back_exactly_from_bytes(text):
  policy = byte_policy()
  ids = np.asarray(policy.text_model.tokenizer(text, add_special_tokens=False).input_ids)
  (prompt,) = policy.prompt_ids(["Say: "], 4)
  assert policy.text(prompt, ids) == text
  assert policy.text(prompt, ids[:0]) == ""


def test_a_space_that_a_tokenizer_drops_at_the_beginning_of_a_text_is_kept():
  tokenizer = world_policy().text_model.tokenizer

  class Dropping:  # as SentencePiece: the first word's space is not decoded
    backend_tokenizer = None
    eos_token_id = 2

    def decode(self, ids, **options):
      return " ".join(tokenizer.convert_ids_to_tokens(ids))

  model = dataclasses.replace(world_policy().text_model, tokenizer=Dropping())
  ids = np.asarray(tokenizer("look in the shed").input_ids)
  assert Policy(model).text(ids[:2], ids[2:]) == " the shed"


def test_prompts_end_where_a_response_begins():
  tokenizer = byte_policy().text_model.tokenizer
  turns = ({"role": "user", "content": "Hi"},)
  string, chat = byte_policy().prompt_ids(["Hi", turns], 4)
  assert tokenizer.decode(string) == "<s>Hi"
  assert tokenizer.decode(chat) == "<s>user:Hi</s>\n<s>assistant:"


def test_an_eos_that_the_tokenizer_adds_to_a_prompt_is_taken_off():
  from tokenizers import processors

  tokenizer = decoder_tokenizer()
  tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
  )
  policy = Policy(text_model(tokenizer, LikelihoodHead(reference=False)))
  (ids,) = policy.prompt_ids(["Hi"], 4)
  assert tokenizer.decode(ids) == "<s>Hi"
  # One that the prompt has itself stays.
  (ids,) = byte_policy().prompt_ids(["Hi</s>"], 4)
  assert tokenizer.decode(ids) == "<s>Hi</s>"


def test_what_a_template_puts_before_an_answer_is_no_part_of_it():
  turns = ({"role": "user", "content": "Hi"},)
  assert byte_policy().lead(turns) == ""
  assert byte_policy().lead("Hi") == ""
  tokenizer = decoder_tokenizer(chat=HH_TEMPLATE)
  policy = Policy(text_model(tokenizer, LikelihoodHead(reference=False)))
  assert policy.lead(turns) == " "
  # Templates that open the turn in another way, or do not show an answer as it is.
  turn = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
  tokenizer.chat_template = turn + "{% if add_generation_prompt %}Answer:{% endif %}"
  assert policy.lead(turns) == ""
  tokenizer.chat_template = turn.replace("m['content']", "m['content'] | length")
  assert policy.lead(turns) == ""


def test_responses_are_drawn_until_eos_of_tokens_that_have_a_text():
  got = world_policy().sampling(7, temperature=0.5, top_p=0.9)
  tokenizer = world_policy().text_model.tokenizer
  assert got == Sampling(7, (tokenizer.eos_token_id,), 0.5, 0.9, len(tokenizer))
  assert len(tokenizer) < world_policy().text_model.network.backbone.vocab


def test_special_tokens_in_a_response_are_no_text():
  policy = byte_policy()
  ids = np.asarray([*policy.text_model.tokenizer("ab").input_ids, 1, 0])  # <s>ab<s><pad>
  assert policy.text(np.asarray([1]), ids) == "ab"


@needs_torch
def test_a_saved_policy_is_a_language_model_of_transformers(tmp_path):
  import torch
  import transformers

  policy, mesh = byte_policy(2), one_device()
  network = policy.text_model.network
  params = nested(params_of(network))
  RewardModel(policy.text_model, params, mesh).save_pretrained(tmp_path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  (ids,) = policy.prompt_ids(["Name a fruit."], 8)
  assert tokenizer("Name a fruit.").input_ids == ids.tolist()
  with torch.no_grad():
    logp = theirs(torch.tensor(ids[None]).long()).logits[0, -1].log_softmax(-1).numpy()
  options = dict(samples=4, sampling=policy.sampling(1), mesh=mesh)
  made = sample(policy, params, [ids], jax.random.key(0), **options)
  np.testing.assert_allclose(made.logp[0, :, 0], logp[made.tokens[0, :, 0]], atol=1e-5)


def test_what_cannot_be_is_refused():
  bytes_ = decoder_tokenizer()
  for head in (HeadConfig(), LikelihoodHead()):
    with pytest.raises(InputError, match="expected a language model's"):
      Policy(text_model(bytes_, head))
  policy = byte_policy()
  with pytest.raises(InputError, match=r"prompt 1: 507 tokens; expected 1 to 502"):
    policy.prompt_ids(["Hi", "a" * 506], 10)
  for bad in ("a\ud800", ({"role": "user", "content": "\ud800"},)):
    with pytest.raises(InputError, match=r"prompt 0: .*surrogate"):
      policy.prompt_ids([bad], 10)
  with pytest.raises(InputError, match=r"prompt 0: .*without messages"):
    policy.prompt_ids([()], 10)
  small = text_model(bytes_, LikelihoodHead(reference=False), vocab_size=100)
  with pytest.raises(InputError, match=r"prompt 0: .* vocabulary of 100"):
    Policy(small).prompt_ids(["é"], 10)
  bare = decoder_tokenizer(bos=False)
  with pytest.raises(InputError, match="prompt 0: 0 tokens"):
    Policy(text_model(bare, LikelihoodHead(reference=False))).prompt_ids([""], 10)
  bare.eos_token = None
  with pytest.raises(InputError, match="no response would ever end"):
    Policy(text_model(bare, LikelihoodHead(reference=False)))
