"""Edits of a response: some should not change its score, others should lower it.

All are short rules for English that work on strings, so they are approximate. An edit returns None
for a response that it does not apply to; sections/robustness.py reports how many these are.

Ribeiro et al. (2020), Beyond accuracy: behavioral testing of NLP models with CheckList (invariance
and directional tests).
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from rm_jax.data.dialogue import plain, texts_of
from rm_jax.types import Text

# (prompt, response, rng, responses to other prompts) -> the edited response, or None if the edit
# does not apply. All texts are strings: of messages, the content of the last one.
Change = Callable[[str, str, np.random.Generator, Sequence[str]], str | None]

# Markup at the start of a line: a heading, list item, quote, code fence or table row.
_MARKUP = re.compile(r"\s*(#{1,6}\s|[-*+•]\s|\d+[.)]\s|>\s|```|\|)")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_BULLET = re.compile(r"(\s*[-*+•]\s+)(\S.*)")
_LONG_WORD = re.compile(r"[^\W\d_]{5,}")
_TYPOS = 0.1  # probability that a word of five letters or more gets a typo; one always does
# First words of sentences that refer back, and so make no sense in another order.
_DEPENDS = re.compile(
  r"(?:it|its|this|that|these|those|he|she|they|their|his|her|them|so|then|but|and|or|also|"
  r"however|therefore|thus|because|first|firstly|second|secondly|third|next|finally|instead|"
  r"otherwise|hence|moreover|furthermore|similarly|another|both|such|which|for example)\b",
  re.IGNORECASE,
)
_YES = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
_VERB = (
  r"is|are|was|were|will|can|could|should|would|must|has|have|had|does|do|did|might|am|need|may"
)
_NOT = re.compile(rf"\b(?:({_VERB})(?:n't|n\u2019t| not)|won(?:'|\u2019)t)\b", re.IGNORECASE)
# A verb followed by a pronoun begins a question ("is it"), which is no statement to negate.
_POSITIVE = re.compile(rf"\b({_VERB})\b(?!['\u2019]|\s+(?:i|you|he|she|it|we|they|there)\b)", re.I)
_CANNOT = re.compile(r"\b(can)(?:not|'t|\u2019t)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?!\w)")
_LIST_NUMBER = re.compile(r"^\s*\d+[.)]\s", re.MULTILINE)
_OFF_TOPIC = (
  "Bread rises because yeast turns sugar into gas, which the dough holds. Leave it in a warm place "
  "for an hour, then bake it until the crust is brown.",
  "Whales are mammals and not fish. They breathe air, feed their young with milk, and some sing "
  "songs that travel for hundreds of kilometres.",
  "A bicycle chain should be cleaned and oiled every few weeks. Wipe it dry, put a drop on each "
  "link, and turn the pedals backwards.",
  "Volcanoes form where molten rock reaches the surface. Some erupt quietly for years, others all "
  "at once after centuries of silence.",
  "Chess is played on a board of sixty-four squares. The bishop keeps to one colour all its life, "
  "and the knight jumps over other pieces.",
  "Cotton grows best with a long summer and little rain at harvest. Its fibres are spun into yarn "
  "and woven into cloth.",
)


@dataclasses.dataclass(frozen=True)
class Edit:
  """One edit of a response.

  Attributes:
    name: key in the registry and in the report.
    kind: 'same' if the edit should not change the score, 'worse' if it should lower the score of a
      good answer.
    what: description of the edit in a few words, for the audit's page.
    change: the function that edits strings; see `Change`.
  """

  name: str
  kind: str
  what: str
  change: Change

  def __call__(
    self, prompt: Text, response: Text, rng: np.random.Generator, others: Sequence[Text]
  ) -> Text | None:
    """The response with its last message edited; None if the edit does not apply or has no effect.

    Args:
      prompt: that the response answers; an edit may quote it.
      response: a string, or messages.
      rng: random generator for the edits that draw something.
      others: responses to other prompts, at least one.
    """
    old = last(response)
    new = self.change(last(prompt), old, rng, [last(other) for other in others])
    return None if new is None or new == old else with_last(response, new)


EDITS: dict[str, Edit] = {}


def edit(name: str, kind: str, what: str) -> Callable[[Change], Change]:
  """Returns a decorator that registers a function (see `Change`) as an edit.

  Args:
    name, kind, what: as in `Edit`.

  Raises:
    ValueError: the name is taken, or the kind is neither 'same' nor 'worse'.
  """
  if name in EDITS or kind not in ("same", "worse"):
    raise ValueError(f"edit {name!r} of kind {kind!r}; expected a new name, and 'same' or 'worse'")

  def register(change: Change) -> Change:
    EDITS[name] = Edit(name, kind, what, change)
    return change

  return register


def last(text: Text) -> str:
  """The content of a text's last message; a string is returned unchanged."""
  return texts_of(text)[-1]


def with_last(text: Text, content: str) -> Text:
  """The text with the content of its last message replaced."""
  return content if isinstance(text, str) else (*text[:-1], {**text[-1], "content": content})


def in_form(text: Text, like: Text, role: str) -> Text:
  """The text in the form of `like`: a string, or messages (a string becomes one message of `role`).

  So a text of one conversation can be put into another, whatever the form of either.
  """
  if isinstance(like, str):
    return plain(text)
  return ({"role": role, "content": text},) if isinstance(text, str) else text


def _before(sentence: str, text: str) -> str:
  # Markdown reads the markup of a list or code block as prose if it does not begin its line, so a
  # text that begins with markup goes below the sentence.
  return sentence + ("\n\n" if _MARKUP.match(text) else " ") + text


def _after(text: str, sentence: str) -> str:
  text = text.rstrip()
  marked = _MARKUP.match(text.rsplit("\n", 1)[-1])
  return text + ("\n\n" if marked else " ") + sentence


# Edits that should not change the score.


@edit("whitespace", "same", "spaces between words doubled, a line break at the end")
def _whitespace(prompt, text, rng, others):
  return re.sub(r"(?<=\S) (?=\S)", "  ", text) + "\n"


@edit("lower_case", "same", "all in lower case")
def _lower_case(prompt, text, rng, others):
  return text.lower()


@edit("upper_case", "same", "all in capitals")
def _upper_case(prompt, text, rng, others):
  return text.upper()


@edit("typos", "same", "two letters exchanged inside one long word in ten, in one at least")
def _typos(prompt, text, rng, others):
  found = list(_LONG_WORD.finditer(text))
  if not found:
    return None
  hit = rng.random(len(found)) < _TYPOS
  hit[int(rng.integers(len(found)))] = True
  letters = list(text)
  for match, misspelt in zip(found, hit, strict=True):
    if misspelt:
      inner = range(match.start() + 1, match.end() - 2)
      at = int(rng.integers(inner.start, inner.stop))
      # Two equal letters exchanged would be no typo: the next place of the word where they differ.
      places = [*range(at, inner.stop), *range(inner.start, at)]
      at = next((i for i in places if letters[i] != letters[i + 1]), at)
      letters[at], letters[at + 1] = letters[at + 1], letters[at]
  return "".join(letters)


@edit("wrapped", "same", "'To answer the question:' before it")
def _wrapped(prompt, text, rng, others):
  return _before("To answer the question:", text)


@edit("echo", "same", "the prompt's last line quoted before it, where it is short")
def _echo(prompt, text, rng, others):
  lines = prompt.strip().rsplit("\n", 1)
  if not lines[-1] or len(lines[-1]) > 200:
    return None
  return _before(f"You asked: {lines[-1]}", text)


@edit("list_order", "same", "a bullet list's items in another order (those of steps matter)")
def _list_order(prompt, text, rng, others):
  lines = text.split("\n")
  at = [i for i, line in enumerate(lines) if _BULLET.fullmatch(line)]
  # Only a list of consecutive lines at one level is reordered: a nested item, or text between
  # items, belongs to the item above it and would have to move with it.
  flat = len({_BULLET.fullmatch(lines[i])[1] for i in at}) == 1
  if len(at) < 2 or at[-1] - at[0] != len(at) - 1 or not flat:
    return None
  for place, origin in zip(at, _reordered(at, rng), strict=True):
    lines[place] = text.split("\n")[origin]
  return "\n".join(lines)


@edit("sentence_order", "same", "a paragraph's sentences after the first in another order, where "
      "none begins as if it needed the one before")  # fmt: skip
def _sentence_order(prompt, text, rng, others):
  found = _SENTENCES.split(text.strip())
  if len(found) < 3 or "\n" in text.strip() or any(_DEPENDS.match(s) for s in found[1:]):
    return None
  return " ".join([found[0], *_reordered(found[1:], rng)])


def _reordered(items: list, rng: np.random.Generator) -> list:
  """The n ≥ 2 items rotated by 1 to n − 1 places, so that each has another place."""
  by = int(rng.integers(1, len(items)))
  return items[by:] + items[:by]


@edit("politeness", "same", "'Thank you for your question.' before it, a wish behind it")
def _politeness(prompt, text, rng, others):
  return _after(_before("Thank you for your question.", text), "I hope this is useful to you.")


@edit("markdown", "same", "a heading above it and its first sentence bold")
def _markdown(prompt, text, rng, others):
  if _MARKUP.match(text):
    return f"## Answer\n\n{text}"
  first, *rest = _SENTENCES.split(text.strip(), maxsplit=1)
  if not first or "*" in first or "\n" in first:
    return f"## Answer\n\n{text}"
  return f"## Answer\n\n**{first}**" + "".join(" " + r for r in rest)


@edit("certainty", "same", "'I am sure.' behind it")
def _certainty(prompt, text, rng, others):
  return _after(text, "I am sure.")


# Edits that make a good answer worse. Whether they make a bad answer worse cannot be known.


@edit("negated", "worse", "the first statement turned round: yes for no, a 'not' more or less")
def _negated(prompt, text, rng, others):
  if yes := _YES.match(text):
    return text[: yes.start(1)] + {"yes": "No", "no": "Yes"}[yes[1].lower()] + text[yes.end(1) :]
  found = [match for match in (_CANNOT.search(text), _NOT.search(text)) if match]
  negative, positive = min(found, key=re.Match.start, default=None), _POSITIVE.search(text)
  if negative and (not positive or negative.start() <= positive.start()):
    verb = negative[1] or ("Will" if negative[0][0].isupper() else "will")  # won't
    return text[: negative.start()] + verb + text[negative.end() :]
  return f"{text[: positive.end()]} not{text[positive.end() :]}" if positive else None


@edit("numbers", "worse", "its numbers exchanged; the only one altered in its last digit")
def _numbers(prompt, text, rng, others):
  spans = [match.span() for match in _LIST_NUMBER.finditer(text)]
  found = [m for m in _NUMBER.finditer(text) if not any(a <= m.start() < b for a, b in spans)]
  values = list(dict.fromkeys(match[0] for match in found))
  if not values:
    return None
  if len(values) > 1:
    new = dict(zip(values, _reordered(values, rng), strict=True))
  else:
    last_digit = (int(values[0][-1]) + int(rng.integers(1, 10))) % 10
    new = {values[0]: f"{values[0][:-1]}{last_digit}"}
  parts, end = [], 0
  for match in found:
    parts += [text[end : match.start()], new[match[0]]]
    end = match.end()
  return "".join([*parts, text[end:]])


@edit("truncated", "worse", "its first half alone")
def _truncated(prompt, text, rng, others):
  half = text.strip()[: len(text.strip()) // 2]
  cut = half.rsplit(None, 1)[0] if len(half.split()) > 1 else half
  return cut if len(text.split()) > 3 or len(text) > 20 else None


@edit("off_topic", "worse", "two sentences about something else in its place")
def _off_topic(prompt, text, rng, others):
  return _OFF_TOPIC[int(rng.integers(len(_OFF_TOPIC)))]


@edit("other_answer", "worse", "the answer to another conversation's prompt in its place")
def _other_answer(prompt, text, rng, others):
  return others[int(rng.integers(len(others)))]
