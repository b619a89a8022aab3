"""A tokenizer of the world's own words, for small models that start from nothing."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rm_jax.world.words import SPLITS

_PIECES = r"\w+|\n|[^\w\s]"
_SPECIAL = ("<pad>", "<unk>", "<eos>")
# What layouts write, and what a dialogue in Anthropic's form has.
_MORE = (*"-123456.,:;?!'\"()", "Human", "Assistant")


def make_tokenizer() -> Any:
  """A Hugging Face tokenizer whose tokens are the words of both vocabularies, and marks.

  Some 600 tokens: a pair of the world is 80 of them. Spaces are not kept; a line's end is a token,
  and any other word is '<unk>'.
  """
  import tokenizers
  from tokenizers import models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  split = pre_tokenizers.Split(tokenizers.Regex(_PIECES), "removed", invert=True)
  words = {
    form
    for text in _strings(tuple(SPLITS.values()))
    for piece, _ in split.pre_tokenize_str(text)
    for form in (piece, piece[0].upper() + piece[1:])  # a note begins with a capital
  }
  table = [*_SPECIAL, *sorted(words | {*_MORE, "\n"})]
  tokenizer = tokenizers.Tokenizer(
    models.WordLevel({word: i for i, word in enumerate(table)}, unk_token="<unk>")
  )
  tokenizer.pre_tokenizer = split
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
  )


def _strings(value: Any) -> Iterator[str]:
  """All texts in the tables."""
  if isinstance(value, str):
    yield value
  elif dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      yield from _strings(getattr(value, field.name))
  else:
    for one in value.values() if isinstance(value, dict) else value:
      if isinstance(one, str | dict | tuple) or dataclasses.is_dataclass(one):
        yield from _strings(one)
