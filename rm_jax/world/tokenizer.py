"""A word-level tokenizer of the world's vocabulary, for small models trained from scratch."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rm_jax.world.words import SPLITS

_PIECES = r"\w+|\n|[^\w\s]"
_SPECIAL = ("<pad>", "<unk>", "<eos>")
# Signs and the line break, before which there is no space.
_CLOSING = frozenset(".,:;?!)\n")
# Tokens that the vocabularies of words.py may lack: signs and numbers that layouts write, and the
# turn markers of a dialogue as Anthropic's HH-RLHF has it, '\n\nHuman: ...\n\nAssistant: ...'.
_MORE = (*"-123456.,:;?!'\"()", "Human", "Assistant")


def make_tokenizer() -> Any:
  """Makes a Hugging Face tokenizer whose tokens are the words and signs of both vocabularies.

  It has about 600 tokens, and a prompt of the world with two responses is about 75 tokens long.
  Spaces are dropped, so the tokenizer's own decoding does not restore a text, but `restore` does; a
  line break is a token; any other word becomes '<unk>'.
  """
  import tokenizers
  from tokenizers import models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  split = pre_tokenizers.Split(tokenizers.Regex(_PIECES), "removed", invert=True)
  words = {
    form
    for text in _strings(tuple(SPLITS.values()))
    for piece, _ in split.pre_tokenize_str(text)
    for form in (piece, piece[0].upper() + piece[1:])  # A note's first word is capitalised.
  }
  table = [*_SPECIAL, *sorted(words | {*_MORE, "\n"})]
  tokenizer = tokenizers.Tokenizer(
    models.WordLevel({word: i for i, word in enumerate(table)}, unk_token="<unk>")
  )
  tokenizer.pre_tokenizer = split
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
  )


def restore(tokens: Sequence[str]) -> str:
  """The text that the tokens of a response, or of a prompt, are of; the inverse of the tokenizer.

  A text of the world comes back exactly. Any other tokens give a text with the same tokens: between
  two words there is always a space.

  >>> restore(["1", ".", "Mia", ",", "look", "in", "the", "shed", ".", "\\n", "2", ".", "Bye", "!"])
  '1. Mia, look in the shed.\\n2. Bye!'

  Args:
    tokens: words, signs and line breaks, as `tokenizer.convert_ids_to_tokens` gives them.
  """
  text, tight, quoted = "", True, False
  for token in tokens:
    # A quotation mark opens or closes; the next one does the other.
    opens = token == "(" or (token == '"' and not quoted)
    closes = token in _CLOSING or (token == '"' and quoted)
    quoted ^= token == '"'
    text += token if tight or closes else f" {token}"
    tight = opens or token == "\n"
  return text


def _strings(value: Any) -> Iterator[str]:
  """Yields all strings in nested dataclasses, dicts and tuples; keys of dicts are left out."""
  if isinstance(value, str):
    yield value
  elif dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      yield from _strings(getattr(value, field.name))
  else:
    for one in value.values() if isinstance(value, dict) else value:
      if isinstance(one, str | dict | tuple) or dataclasses.is_dataclass(one):
        yield from _strings(one)
