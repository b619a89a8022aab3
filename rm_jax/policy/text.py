"""A policy's tokens as text: prompts that it reads, and responses exactly as it wrote them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from rm_jax.batch.tokenise import TextEncoder
from rm_jax.data.report import RowError
from rm_jax.errors import InputError
from rm_jax.policy.generate import Sampling
from rm_jax.reward.setup import TextModel
from rm_jax.types import Text
from rm_jax.world import restore

# Stands for a response where the chat template is asked what it puts before one.
_PROBE = "\u2400"

# (ids of the prompt, ids that follow it) -> the text that they add.
Decode = Callable[[np.ndarray, np.ndarray], str]


@dataclasses.dataclass(frozen=True)
class Policy:
  """A language model that writes responses; its parameters are kept apart.

  Attributes:
    text_model: a decoder with a `LikelihoodHead` without a reference, and its tokenizer.
    decode: how its tokens become text; None = as its tokenizer says, and, of a tokenizer that drops
      spaces as the world's does, by `world.restore`.

  Raises InputError where the text model is not of that kind, or its tokenizer has no EOS.
  """

  text_model: TextModel
  decode: Decode | None = None

  def __post_init__(self):
    network = self.text_model.network
    if not network.implicit or network.head.reference:
      raise InputError(
        f"a policy's head is {network.head}; expected a language model's: model.reward='implicit' "
        "and model.reference='none'"
      )
    if self.text_model.tokenizer.eos_token_id is None:
      raise InputError("the policy's tokenizer has no eos_token, so no response would ever end")

  @functools.cached_property
  def encoder(self) -> TextEncoder:
    """What turns prompts into tokens."""
    return self.text_model.text_encoder()

  def sampling(self, tokens: int, *, temperature: float = 1.0, top_p: float = 1.0) -> Sampling:
    """How responses of at most so many tokens are drawn: until EOS, of tokens that have a text."""
    tokenizer = self.text_model.tokenizer
    known = min(len(tokenizer), self.text_model.network.backbone.vocab)
    return Sampling(tokens, (tokenizer.eos_token_id,), temperature, top_p, known)

  def prompt_ids(self, prompts: Sequence[Text], room: int) -> list[np.ndarray]:
    """Tokens of prompts, int32 [N] each.

    Args:
      prompts: strings, or messages, after which the chat template opens the assistant's turn.
      room: tokens that a response may have.

    Raises:
      InputError: a prompt has no tokens, cannot be rendered, is too long to leave that room, or has
        a token that the model does not know; the message names it by its number.
    """
    limit = self.text_model.network.backbone.max_positions - room
    found = []
    for i, prompt in enumerate(prompts):
      try:
        ids = self._prompt_ids(prompt)
      except (RowError, UnicodeEncodeError) as error:
        raise InputError(f"prompt {i}: {error}") from error
      if not 0 < len(ids) <= limit:
        raise InputError(
          f"prompt {i}: {len(ids)} tokens; expected 1 to {limit}, which leaves {room} of the "
          "model's positions for a response"
        )
      if ids.max() >= (vocab := self.text_model.network.backbone.vocab):
        raise InputError(
          f"prompt {i}: the tokenizer gives id {ids.max()} and the model has a vocabulary of "
          f"{vocab}; expected the model's own tokenizer"
        )
      found.append(ids)
    return found

  def length(self, prompt: Text) -> int:
    """Tokens of a prompt; 0 of one that cannot be rendered or has none."""
    try:
      return len(self._prompt_ids(prompt))
    except (RowError, UnicodeEncodeError):
      return 0

  def _prompt_ids(self, prompt: Text) -> np.ndarray:
    special = isinstance(prompt, str)
    text = prompt if special else self.encoder.render(prompt, generation=True)
    text.encode("utf-8")  # a lone surrogate has no tokens
    (ids,) = self.encoder.opened([text], special)
    # An EOS that the tokenizer adds to a string would end the response before it begins.
    return ids[:-1] if special and self._adds_eos else ids

  @functools.cached_property
  def _adds_eos(self) -> bool:
    tokenizer = self.text_model.tokenizer
    return tokenizer("a").input_ids[-1] == tokenizer.eos_token_id

  def text(self, prompt: np.ndarray, ids: np.ndarray) -> str:
    """The text of a response's tokens, without the one that ends it.

    Args:
      prompt: ids of the prompt: whether a token begins with a space may depend on what precedes it.
      ids: those of the response.
    """
    return (self.decode or self._decode)(prompt, ids)

  @functools.cached_property
  def _decode(self) -> Decode:
    tokenizer = self.text_model.tokenizer
    if (
      getattr(tokenizer, "backend_tokenizer", None) and tokenizer.backend_tokenizer.decoder is None
    ):
      return lambda prompt, ids: restore(tokenizer.convert_ids_to_tokens(ids.tolist()))

    def joined(ids: np.ndarray) -> str:
      plain = dict(skip_special_tokens=True, clean_up_tokenization_spaces=False)
      return tokenizer.decode(ids.tolist(), **plain)

    return lambda prompt, ids: joined(np.concatenate([prompt, ids]))[len(joined(prompt)) :]

  def lead(self, prompt: Text) -> str:
    """What the chat template puts between the opening of the assistant's turn and its content.

    It is a space in the dialogue form of Anthropic's HH data, nothing in most templates. It is part
    of what the policy writes and not of the message's content. '' for strings.
    """
    if isinstance(prompt, str):
      return ""
    opening = self.encoder.render(prompt, generation=True)
    whole = self.encoder.render((*prompt, {"role": "assistant", "content": _PROBE}))
    if not whole.startswith(opening) or _PROBE not in whole:
      return ""
    return whole[len(opening) : whole.rindex(_PROBE)]
