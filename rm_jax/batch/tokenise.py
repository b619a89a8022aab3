"""Text -> token ids with marks: the one place that decides what a model reads, and where.

Training, scoring and export all go through `TextEncoder`, with the `Convention` that is saved with
the model, so that a model is given in production what it was given in training.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.batch import templates
from rm_jax.batch.tokens import Cut, Tokens, common_prefix
from rm_jax.batch.turns import shortened
from rm_jax.data.report import RowError
from rm_jax.errors import InputError
from rm_jax.types import Message, Text

# The dialogue form of Anthropic's HH data, for tokenizers that have no chat template. With it a
# parsed HH dialogue renders to exactly its published text.
HH_TEMPLATE = (
  "{% for m in messages %}"
  "{% if m['role'] == 'user' %}{{ '\n\nHuman: ' + m['content'] }}"
  "{% elif m['role'] == 'assistant' %}{{ '\n\nAssistant: ' + m['content'] }}"
  "{% else %}{{ raise_exception('HH dialogues have user and assistant turns only') }}{% endif %}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
TEMPLATES = {"hh": HH_TEMPLATE}


@dataclasses.dataclass(frozen=True)
class Convention:
  """What was decided about tokens when the model was made; saved beside its weights.

  Attributes:
    encoder: for encoders. Prompt and response are joined by the tokenizer's pair encoding.
      Otherwise prompt and response are one text.
    eos: 'append' adds the tokenizer's EOS behind a response that does not already end in it (not
      for encoders); 'none' adds nothing.
    pooling: where the reward of a response is read. 'last': the last token; 'first': the first
      token; 'hf': the rightmost token that is not `pad`, or the first where all are, as Hugging
      Face's sequence classifiers of decoders do; 'mean': the mean over the response's own tokens
      including its EOS (an encoder's last separator). In solutions in steps, 'mean' is over the
      tokens of each step, and else each step's last token is read.
    max_length: the most tokens of one prompt + response; what is longer is cut, the prompt first.
    max_prompt_length: the most tokens of a prompt, 0 = no limit but `max_length`. By `max_length`
      alone more is cut of a prompt where the response is longer, so that responses to one prompt
      are read after different parts of it.
    separator: text that follows every step of a solution, the last one included; its last token is
      the step's mark.
    date: the date that a chat template is given if it asks for today's, as 'DD Mon YYYY'. It is
      fixed because the same text must have the same score tomorrow.
    bos: 'add' puts what the tokenizer itself puts before a string (its BOS) before a chat
      template's text, unless the text begins with it (not for encoders); 'template' leaves that to
      the template.
    question: what a judge is asked of the response, as a further turn of the user's, behind which
      the chat template opens the assistant's turn; the reward is read there, where a language model
      would write its verdict. To strings these turns are appended as text. '' asks nothing.
    pad: with pooling 'hf', the id of the token that is passed over at the end of a text, -1 for
      none: config.json's `pad_token_id`, which need not be the tokenizer's pad token. None, as in
      the records of earlier versions: the tokenizer's, or none where it has none.

  Raises:
    InputError: `eos`, `pooling` or `bos` is none of these, `max_length` is below 1,
      `max_prompt_length` is negative, or there is a question and the model is an encoder, adds EOS
      or reads another token than the last.
  """

  encoder: bool = False
  eos: str = "append"
  pooling: str = "last"
  max_length: int = 1024
  separator: str = "\n"
  date: str = "26 Jul 2024"
  bos: str = "add"
  question: str = ""
  pad: int | None = None
  max_prompt_length: int = 0

  def __post_init__(self):
    for name, value, known in (
      ("eos", self.eos, ("append", "none")),
      ("pooling", self.pooling, ("last", "first", "hf", "mean")),
      ("bos", self.bos, ("add", "template")),
    ):
      if value not in known:
        raise InputError(f"convention.{name} is {value!r}; expected one of {', '.join(known)}")
    if self.max_length < 1:
      raise InputError(f"convention.max_length is {self.max_length}; expected tokens, 1 or more")
    if self.max_prompt_length < 0:
      found = f"convention.max_prompt_length is {self.max_prompt_length}"
      raise InputError(f"{found}; expected tokens, or 0 for no limit")
    if self.question and (self.encoder or self.eos != "none" or self.pooling != "last"):
      found = f"encoder is {self.encoder}, eos {self.eos!r}, pooling {self.pooling!r}"
      raise InputError(
        f"convention.question is {self.question!r:.60} and {found}; expected a decoder, "
        "eos='none' and pooling='last', since the reward is read where the verdict begins"
      )

  @property
  def limits(self) -> str:
    """What a text is cut to, to stand behind 'longer than'."""
    most = self.max_prompt_length
    return f"{self.max_length} tokens" + (f", or their prompts than {most}" if most else "")


class TextEncoder:
  """Renders messages by the chat template, tokenises texts, cuts them and sets the marks.

  Args:
    tokenizer: a Hugging Face tokenizer; its chat template renders messages.
    convention: see `Convention`.
    option: how the caller can set an option, for error messages; {0} is the option's name.

  Raises:
    InputError: the convention wants an EOS and the tokenizer has none, an encoder's `max_length`
      has no room for text beside the special tokens, there is no room beside the question, or the
      chat template cannot be rendered.
  """

  def __init__(self, tokenizer: Any, convention: Convention, *, option: str = "--config.model.{0}"):
    self.tokenizer = tokenizer
    self.convention = convention
    self.option = option
    appends = convention.eos == "append" and not convention.encoder
    if appends and tokenizer.eos_token_id is None:
      raise InputError(
        "eos is 'append' and the tokenizer has no eos_token; set "
        f"{option.format('eos')} to 'none', or a tokenizer that has one"
      )
    special = tokenizer.num_special_tokens_to_add(pair=True) if convention.encoder else 0
    if convention.max_length <= special:
      raise InputError(
        f"convention.max_length is {convention.max_length}, and the tokenizer puts {special} "
        "special tokens around a prompt and response; set data.max_length to "
        f"{special + 1} or more"
      )
    # Lengths are limited by the convention; without this the tokenizer warns of its own limit.
    tokenizer.model_max_length = int(1e30)
    self.appends = appends
    # Of a tokenizer that has several templates, by name, none is checked here; the one that is
    # used is 'default'.
    if isinstance(tokenizer.chat_template, str):
      said = option.format("chat_template").rstrip(",")
      templates.check(self._template(), option=said, **self._variables())
    self._opening = np.asarray(tokenizer("").input_ids, np.int32)
    adds = convention.bos == "add" and not convention.encoder
    self.bos = self._own_opening() if adds else self._opening[:0]
    self.asking, self.asking_ids = "", self._opening[:0]
    if convention.question:
      self.asking = self._asking()
      (self.asking_ids,) = self._ids([self.asking], special=False)
      if len(self.asking_ids) >= convention.max_length:
        raise InputError(
          f"convention.max_length is {convention.max_length}, and the judge's question takes "
          f"{len(self.asking_ids)} tokens; expected room for a response before it: a larger "
          "data.max_length, or a shorter question"
        )

  def sequences(self, pairs: Sequence[tuple[Text, Text]]) -> list[Tokens | RowError]:
    """Tokenises (prompt, response) pairs; for a pair that cannot be tokenised, the reason.

    Raises:
      ValueError: the texts of a pair are messages and the tokenizer has no chat template, or
        several and no default.
    """
    return self.encoded(pairs, self.rendered(pairs))

  def rendered(self, pairs: Sequence[tuple[Text, Text]]) -> list[tuple[str, str] | RowError]:
    """Renders (prompt, response) pairs for `encoded`.

    The result has for each pair (prompt's text, whole text), or a RowError that says why not.

    It is safe to call this in another thread.

    Raises:
      ValueError: as `sequences`.
    """
    out, last, own = [], None, ""
    for prompt, response in pairs:
      if last is None or prompt is not last:  # the responses of a group have one prompt object
        last, own = prompt, self._attempt(self._prompt, prompt)
      if isinstance(own, RowError):
        out.append(own)
        continue
      whole = self._attempt(self._whole, prompt, response)
      out.append(whole if isinstance(whole, RowError) else (own, whole))
    return out

  def encoded(
    self, pairs: Sequence[tuple[Text, Text]], rendered: Sequence[tuple[str, str] | RowError]
  ) -> list[Tokens | RowError]:
    """Tokenises pairs that `rendered` rendered.

    Its errors stay in their places, and a pair that cannot be tokenised gets one, too.
    """
    good = [i for i, r in enumerate(rendered) if not isinstance(r, RowError)]
    out: list[Tokens | RowError] = list(rendered)
    encode = self._encode_pairs if self.convention.encoder else self._encode_texts
    # A decoder's tokenizer adds its special tokens to strings; a chat template's text has its own.
    for special in (True, False):
      mine = [i for i in good if isinstance(pairs[i][0], str) is special]
      for start in range(0, len(mine), 1024):
        chunk = mine[start : start + 1024]
        done = encode([pairs[i] for i in chunk], [rendered[i] for i in chunk], special)
        for i, sequence in zip(chunk, done, strict=True):
          out[i] = sequence
    return out

  # Rendering.

  def _attempt(self, function: Callable[..., str], *args) -> str | RowError:
    """Renders a text and checks that it is valid Unicode; otherwise returns the reason."""
    try:
      text = function(*args)
      text.encode("utf-8")
      return text
    except UnicodeEncodeError as error:
      return RowError("lone_surrogate", f"the text holds a lone surrogate: {error}")
    except RowError as error:
      return error

  def _prompt(self, prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else self.render(prompt, generation=True)

  def _whole(self, prompt: Text, response: Text) -> str:
    if isinstance(prompt, str):
      return prompt + response  # `_encode_texts` appends the tokens of the question
    if self.convention.question:
      return self.render((*prompt, *response, self._question), generation=True)
    return self.render((*prompt, *response))

  @property
  def _question(self) -> Message:
    return {"role": "user", "content": self.convention.question}

  def _asking(self) -> str:
    """What follows a response that is a string: the question and the opening of the verdict.

    It is what the chat template puts behind an assistant's turn, or two paragraphs where there is
    no template.
    """
    if self._has_template():
      answer = "\u2400"
      turns = {"role": "user", "content": "a"}, {"role": "assistant", "content": answer}
      try:
        return self.render((*turns, self._question), generation=True).rpartition(answer)[2]
      except RowError as error:
        raise InputError(f"the judge's question cannot be asked: {error.detail}") from None
    return f"\n\n{self.convention.question}\n"

  def _has_template(self) -> bool:
    named = self.tokenizer.chat_template
    return bool(named) and not (isinstance(named, Mapping) and "default" not in named)

  def verdict_ids(self, words: Sequence[str]) -> tuple[int, ...]:
    """Of each word the token that a language model would begin it with as its verdict.

    A space is put before the word unless the opening of the verdict ends in white space or in one
    of the tokenizer's added tokens, or words and spaces have tokens of their own.

    Raises:
      ValueError: the convention has no question, or two words begin with the same token or with
        none.
    """
    if not self.convention.question:
      raise ValueError("convention.question is ''; expected one, whose answer the words are")
    added = tuple(self.tokenizer.get_added_vocab())
    spaced = not (self.asking[-1:].isspace() or self.asking.endswith(added))
    for space in (" ", "") if spaced else ("",):
      texts = [self.asking + space + word for word in words]
      opening, *whole = self._ids([self.asking, *texts], special=False)
      starts = [ids[common_prefix([opening, ids]) :][:1].tolist() for ids in whole]
      found = tuple(i for ids in starts for i in ids)
      if len(set(found)) == len(words):
        return found
    tokens = [self.tokenizer.convert_ids_to_tokens(ids) for ids in starts]
    raise InputError(
      f"the verdicts {', '.join(map(repr, words))} begin with the tokens {tokens}; expected words "
      "that the first token tells apart"
    )

  def render(self, messages: Sequence[Message], *, generation: bool = False) -> str:
    """Renders a conversation; `generation` adds the template's opening of the assistant's turn.

    Raises:
      InputError: the tokenizer has no chat template, or several and no default.
      RowError: there are no messages, or the template refuses them or fails.
    """
    if not self.tokenizer.chat_template:
      raise InputError(
        "the data holds messages and the tokenizer has no chat template; set "
        f"{self.option.format('chat_template')} to a Jinja template, a file of one, or one of: "
        + ", ".join(TEMPLATES)
      )
    named = self.tokenizer.chat_template
    if isinstance(named, Mapping) and "default" not in named:
      raise InputError(
        "the data holds messages and the tokenizer has the chat templates "
        f"{', '.join(map(repr, named))}, none of them 'default'; set "
        f"{self.option.format('chat_template')} to a Jinja template or a file of one"
      )
    from jinja2 import TemplateError

    if not messages:
      raise RowError("template_error", "a conversation without messages; expected at least one")
    try:
      return templates.render(
        self._template(), messages, add_generation_prompt=generation, **self._variables()
      )
    except TemplateError as error:
      raise RowError("template_error", f"the chat template refused the messages: {error}") from None
    except Exception as error:  # a template is someone else's code and may raise anything
      found = f"{type(error).__name__}: {error}"
      raise RowError("template_error", f"the chat template failed: {found}") from None

  def _template(self) -> str:
    return self.dated() + "{{ '' }}" + self.tokenizer.get_chat_template()

  def _variables(self) -> dict[str, Any]:
    return {**self.tokenizer.special_tokens_map, "date_string": self.convention.date}

  def dated(self) -> str:
    """A macro to put before a template's source, so that it gets the convention's date."""
    # The macro shadows transformers' function of the same name, which returns today's date.
    date = self.convention.date
    return "{% macro strftime_now(format) %}" + date + "{% endmacro %}"

  # Decoders: prompt and response are one text.

  def _encode_texts(self, pairs, rendered, special: bool) -> list[Tokens | RowError]:
    whole = self.opened([full for _, full in rendered], special)
    prompts = list(dict.fromkeys(prompt for prompt, _ in rendered))
    own = dict(zip(prompts, self.opened(prompts, special), strict=True))
    if special and self.convention.question:
      # Tokens of their own, as the EOS that other conventions append is one.
      whole = [np.concatenate([ids, self.asking_ids]) for ids in whole]
    return [
      self._finish(pair, self._with_eos(ids, full), common_prefix([ids, own[prompt]]))
      for pair, (prompt, full), ids in zip(pairs, rendered, whole, strict=True)
    ]

  def _ids(self, texts: list[str], special: bool) -> list[np.ndarray]:
    if not texts:  # the tokenizer fails on an empty list
      return []
    encoded = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False)
    return [np.asarray(ids, np.int32) for ids in encoded.input_ids]

  def opened(self, texts: list[str], special: bool) -> list[np.ndarray]:
    """Tokenises whole texts: strings (`special`), or a chat template's texts, which get `bos`."""
    done = self._ids(texts, special)
    if special or not len(self.bos):
      return done
    return [
      ids if common_prefix([ids, self.bos]) == len(self.bos) else np.concatenate([self.bos, ids])
      for ids in done
    ]

  def _own_opening(self) -> np.ndarray:
    """The ids that the tokenizer puts before every string: BOS, or none."""
    (whole,), (bare,) = self._ids(["a"], special=True), self._ids(["a"], special=False)
    for start in range(len(whole) - len(bare) + 1):
      if np.array_equal(whole[start : start + len(bare)], bare):
        return whole[:start]
    return whole[:0]

  def _with_eos(self, ids: np.ndarray, text: str) -> np.ndarray:
    tokenizer = self.tokenizer
    if not self.appends or text.rstrip().endswith(tokenizer.eos_token):
      return ids
    if len(ids) and ids[-1] == tokenizer.eos_token_id:  # the tokenizer has added one itself
      return ids
    return np.append(ids, np.int32(tokenizer.eos_token_id))

  def _finish(self, pair: tuple[Text, Text], ids: np.ndarray, prompt: int) -> Tokens | RowError:
    if not len(ids):
      return RowError("no_tokens", "prompt and response give no token; expected text")
    cut = Cut(0)
    if self._too_long(len(ids), prompt):
      full = len(ids)
      try:
        ids, prompt, of_response = self._cut(pair, ids, prompt)
      except RowError as error:
        return error
      cut = Cut(full - len(ids), of_response)
    return self._sequence(ids, prompt, self._mark(ids), None, cut)

  def _too_long(self, whole: int, prompt: int) -> bool:
    """Whether a text of `whole` tokens, of which `prompt` are the prompt's, is to be cut."""
    most = self.convention.max_prompt_length
    return whole > self.convention.max_length or (most > 0 and prompt > most)

  def _excess(self, whole: int, prompt: int, opening: int) -> int:
    """How many tokens are to be cut, the prompt's first ones behind its opening.

    Of what only `max_prompt_length` forbids, the opening is not cut.
    """
    most = self.convention.max_prompt_length
    over = min(prompt - most, prompt - opening) if most else 0
    return max(0, whole - self.convention.max_length, over)

  def _cut(
    self, pair: tuple[Text, Text], ids: np.ndarray, prompt: int
  ) -> tuple[np.ndarray, int, int]:
    """Cuts to the limits: the prompt's oldest turns, then its oldest tokens, then the response's.

    The end of the response always stays, and so does a BOS of the tokenizer's own where there is
    room for two tokens. The opening (BOS and, of messages, what precedes the content of the oldest
    turn that is left, system turns aside) stays unless it and the response are too long together.

    Returns:
      (ids, number of leading ids that are the prompt's, number of the response's that are cut).

    Raises:
      RowError: the chat template refuses the conversation with other content in that turn.
    """
    limit = self.convention.max_length
    messages, response = pair
    opening = common_prefix([ids, self._opening])
    if not isinstance(messages, str):

      def tokens(turns: list[Message]) -> tuple[np.ndarray, int]:
        text, own = self._whole(turns, response), self.render(turns, generation=True)
        whole, own_ids = self.opened([text, own], special=False)
        return self._with_eos(whole, text), common_prefix([whole, own_ids])

      def fits(found: tuple[np.ndarray, int]) -> bool:
        return not self._too_long(len(found[0]), found[1])

      turns, found = shortened(list(messages), tokens, fits)
      ids, prompt = found or (ids, prompt)
      # The opening: BOS, system turns, and the header of the oldest other turn that is left. It is
      # the common prefix with the ids of a rendering in which that turn has other content.
      first = next((i for i, m in enumerate(turns) if m["role"] != "system"), 0)
      probe = [*turns[:first], {**turns[first], "content": "\u2400"}, *turns[first + 1 :]]
      opening = common_prefix([ids, self.opened([self.render(probe)], special=False)[0]])
    excess = self._excess(len(ids), prompt, opening)
    if not excess:
      return ids, prompt, 0
    if prompt - opening >= excess:
      return np.concatenate([ids[:opening], ids[opening + excess :]]), prompt - excess, 0
    # The opening and the response are too long together: keep the BOS that the tokenizer itself
    # puts before a text, if it does and there is room for one more token, and the last tokens of
    # the whole. These may begin with the end of the prompt.
    keep = min(common_prefix([ids, self._opening]), limit - 1)
    kept = np.concatenate([ids[:keep], ids[len(ids) - (limit - keep) :]])
    return kept, max(keep, limit - (len(ids) - prompt)), max(0, keep + excess - max(keep, prompt))

  # Solutions in steps.

  def step_sequence(self, prompt: Text, steps: Sequence[str]) -> Tokens | RowError:
    """Tokenises a prompt and the steps of its solution, with a mark after each step.

    The first step is tokenised with the prompt, each other one by itself. Each is followed by the
    separator's ids, so that all marks are the same token. In one text, the tokenizer may merge a
    separator with its neighbours, and the token at a mark would then say something about the step.

    Args:
      prompt: a string, or messages, after which the chat template opens the assistant's turn.
      steps: at least one; none of them may be empty.

    Returns:
      the tokens, or why there are none.

    Raises:
      InputError: the model is an encoder, which has a single mark; the separator has no token; or
        the prompt is messages and the tokenizer has no chat template, or several and no default.
    """
    if self.convention.encoder:
      raise InputError(
        "the data holds solutions in steps, and an encoder reads one mark, its first token; set "
        "--config.model.pretrained to a decoder"
      )
    if self.convention.question:
      raise InputError(
        "the data holds solutions in steps, and the model asks a judge's question behind a whole "
        "response (model.question); expected responses without steps, or model.question=''"
      )
    separator = self._ids([self.convention.separator], special=False)[0]
    if not len(separator):
      raise InputError(
        f"convention.separator {self.convention.separator!r} gives no token; set another"
      )
    try:
      turns, head = self._head(prompt)
      for part in (head, *steps):
        part.encode("utf-8")
    except UnicodeEncodeError as error:
      return RowError("lone_surrogate", f"the text holds a lone surrogate: {error}")
    except RowError as error:
      return error
    rest = [np.append(ids, separator) for ids in self._ids(list(steps[1:]), special=False)]
    eos = self.tokenizer.eos_token_id
    end = [np.asarray([eos], np.int32)] if self.appends and separator[-1] != eos else []

    def whole(head: str) -> tuple[list[np.ndarray], np.ndarray]:
      special = isinstance(prompt, str)
      first, own = self.opened([head + steps[0], head], special)
      # An EOS that the tokenizer adds to a string is removed: it would be before the separator.
      if special and len(first) and first[-1] == eos:
        first = first[:-1]
      return [np.append(first, separator), *rest], own

    def tokens(parts: list[np.ndarray]) -> int:
      return sum(map(len, [*parts, *end]))

    parts, own = whole(head)

    def too_long(found: tuple[list[np.ndarray], np.ndarray]) -> bool:
      return self._too_long(tokens(found[0]), common_prefix([found[0][0], found[1]]))

    full = tokens(parts)
    if turns and too_long((parts, own)):
      _, found = shortened(
        turns,
        lambda shorter: whole(self.render(shorter, generation=True)),
        lambda found: not too_long(found),
      )
      parts, own = found or (parts, own)
    length = common_prefix([parts[0], own])
    opening = common_prefix([parts[0], self._opening])
    if excess := self._excess(tokens(parts), length, opening):
      if length - opening < excess:
        limit = self.convention.max_length
        return RowError(
          "steps_too_long",
          f"its steps alone take more than {limit} tokens; expected a larger data.max_length",
        )
      parts[0] = np.concatenate([parts[0][:opening], parts[0][opening + excess :]])
      length -= excess
    marks = np.cumsum([len(part) for part in parts]) - 1
    ids = np.concatenate([*parts, *end])
    return self._sequence(ids, length, marks.astype(np.int32), None, Cut(full - len(ids)))

  def _head(self, prompt: Text) -> tuple[list[Message], str]:
    """Returns (the turns of a prompt, [] for a string; its text, up to where the answer begins)."""
    if isinstance(prompt, str):
      return [], prompt
    return list(prompt), self.render(prompt, generation=True)

  # Encoders: the tokenizer's pair encoding.

  def _encode_pairs(self, pairs, rendered, special: bool) -> list[Tokens]:
    del pairs, special  # the pair encoding always adds special tokens, to templates' texts too
    firsts, seconds = [], []
    for prompt, full in rendered:
      if not full.startswith(prompt):  # the template opens the assistant's turn in another way
        same = (a == b for a, b in zip(prompt, full, strict=False))
        prompt = full[: sum(itertools.takewhile(bool, same))]
      firsts.append(prompt)
      seconds.append(full[len(prompt) :])
    encoded = self.tokenizer(firsts, seconds, return_token_type_ids=True)
    limit, most = self.convention.max_length, self.convention.max_prompt_length
    out = []
    for i in range(len(firsts)):
      ids = np.asarray(encoded.input_ids[i], np.int32)
      types = np.asarray(encoded.token_type_ids[i], np.int32)
      side = np.asarray([-1 if s is None else s for s in encoded.sequence_ids(i)])
      # Cut are the prompt's oldest tokens, then the response's oldest; special tokens stay.
      candidates = np.concatenate([np.flatnonzero(side == 0), np.flatnonzero(side == 1)])
      over = int((side == 0).sum()) - most if most else 0
      excess = max(0, len(ids) - limit, over)
      keep = np.ones(len(ids), bool)
      keep[candidates[:excess]] = False
      prompt = int(np.flatnonzero(side == 1)[0]) if (side == 1).any() else len(ids)
      kept = ids[keep]
      cut = Cut(len(ids) - len(kept), int((~keep[side == 1]).sum()))
      out.append(self._sequence(kept, int(keep[:prompt].sum()), self._mark(kept), types[keep], cut))
    return out

  def _sequence(self, ids, prompt: int, marks: np.ndarray, token_type, cut: Cut) -> Tokens:
    starts = None
    if self.convention.pooling == "mean":
      own = np.append(np.int32(prompt), marks[:-1] + 1)
      # The mean of a response or step without tokens of its own is over the mark alone.
      starts = np.minimum(own, marks).astype(np.int32)
    return Tokens(ids, prompt, marks, token_type, cut, starts)

  def _mark(self, ids: np.ndarray) -> np.ndarray:
    mark = len(ids) - 1
    if self.convention.pooling == "first":
      mark = 0
    elif self.convention.pooling == "hf":
      pad = self.convention.pad
      pad = self.tokenizer.pad_token_id if pad is None else pad
      real = np.flatnonzero(ids != (-1 if pad is None else pad))
      mark = int(real[-1]) if len(real) else 0
    return np.asarray([mark], np.int32)
