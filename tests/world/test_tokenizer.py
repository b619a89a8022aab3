"""The world's tokenizer: every word of both splits is a token, and none becomes <unk>."""

import itertools
import re

import numpy as np
import pytest

from rm_jax.batch.tokenise import HH_TEMPLATE
from rm_jax.world import World, make_tokenizer, restore
from rm_jax.world.grammar import LAYOUTS
from rm_jax.world.words import SPLITS


def test_all_texts_of_the_world_are_known():
  tokenizer = make_tokenizer()
  tokenizer.chat_template = HH_TEMPLATE
  for split in ("train", "heldout"):
    for example in World().rankings(split, 300, 4, seed=0):
      for response in example.responses:
        text = tokenizer.apply_chat_template([*example.prompt, *response], tokenize=False)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        # Everything but the spaces can be decoded.
        back = "".join(tokenizer.convert_ids_to_tokens(ids))
        assert back == re.sub(" ", "", text)


def test_it_is_the_same_every_time_and_others_words_are_unknown():
  one, two = make_tokenizer(), make_tokenizer()
  assert one.get_vocab() == two.get_vocab()
  assert len(one) < 640
  assert one("zebra")["input_ids"] == [one.unk_token_id]
  assert len({one.pad_token_id, one.unk_token_id, one.eos_token_id}) == 3


@pytest.mark.parametrize("messages", [True, False])
def test_every_text_of_the_world_is_restored_exactly(messages):
  tokenizer, seen = make_tokenizer(), set()
  for split in ("train", "heldout"):
    for example in World(skill=0.5).rankings(split, 400, 4, seed=1, messages=messages):
      for text in (example.prompt, *example.responses):
        text = text if isinstance(text, str) else text[-1]["content"]
        seen |= {name for name, (_, p) in LAYOUTS.items() if re.fullmatch(p, text)}
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert restore(tokens) == text
  assert seen == set(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_of_every_sentence_is_restored_exactly(layout):
  tokenizer, (write, _) = make_tokenizer(), LAYOUTS[layout]
  for words in SPLITS.values():
    named = [
      f"{name}, {answer.format(item=item, value=value)}"
      for scene in words.scenes
      for name, item, value in zip(
        itertools.cycle(words.names), scene.items, itertools.cycle(scene.values)
      )
      for answer in scene.answer
    ]
    rest = [*words.fillers, *words.tones[-1], *words.tones[1]]
    for i, first in enumerate(named):
      text = write([first, *(rest[(i + j) % len(rest)] for j in range(i % 4))])
      tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
      assert restore(tokens) == text


def test_any_tokens_give_a_text_with_the_same_tokens():
  tokenizer, rng = make_tokenizer(), np.random.default_rng(0)
  for _ in range(300):
    ids = rng.integers(0, len(tokenizer), 30).tolist()
    text = restore(tokenizer.convert_ids_to_tokens(ids))
    assert tokenizer(text)["input_ids"] == ids
  assert restore([]) == ""
