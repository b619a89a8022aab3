"""The world's tokenizer: every word of both splits is a token, and none becomes <unk>."""

import re

from rm_jax.batch.tokenise import HH_TEMPLATE
from rm_jax.world import World, make_tokenizer


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
