"""Formats of Chatbot Arena: two models' conversations with one user, and who won the vote."""

import json

from rm_jax.data.dialogue import choice_of, common_front, messages_of, text_of
from rm_jax.data.formats import register
from rm_jax.data.pairs import pair_example
from rm_jax.data.published.texts import answered, asked, names_of
from rm_jax.data.read import Row
from rm_jax.data.report import RowError, shown
from rm_jax.types import Example, Message

_WINNERS = {
  "model_a": 1.0,
  "model_b": -1.0,
  "tie": 0.0,
  "tie (bothbad)": 0.0,  # of the first releases
  "both_bad": 0.0,  # of the release of 140,000 votes
  "tie (inconsistent)": 0.0,  # MT-Bench: GPT-4 chose otherwise when the answers were swapped
}
_MODELS = ("model_a", "model_b")

Chat = tuple[Message, ...]


@register(
  "arena",
  needs=("conversation_a", "conversation_b", "winner"),
  optional=(*_MODELS, "turn"),
  last=True,
)
def _arena(row: Row, origin: str) -> Example:
  """Chatbot Arena's conversations and MT-Bench's human judgments (Zheng et al. 2023).

  `winner` is model_a, model_b, or a tie; a vote that both are bad is a tie too. The prompt is what
  the conversations share (`common_front`), and what follows is judged. `turn`, where
  a row has it, is the number of the user's turns that were judged: MT-Bench's rows have both turns
  of a conversation, and judge the first one alone where `turn` is 1. In the release of 140,000
  votes a message's content is a list of parts; a row with an image is refused. The models are kept
  as authors; the judge is not kept, as a row has one alone.
  """
  sign = choice_of(row["winner"], _WINNERS, "winner")
  turn = row.get("turn")
  if turn is not None and (type(turn) is not int or turn < 1):
    raise RowError("out_of_range", f"'turn' is {shown(turn)}; expected 1 or more")
  a, b = (_judged(row[name], name, turn) for name in ("conversation_a", "conversation_b"))
  return _battle(row, origin, a, b, sign)


@register(
  "arena_55k",
  needs=("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
  optional=_MODELS,
  last=True,
)
def _arena_55k(row: Row, origin: str) -> Example:
  """Chatbot Arena's 55,000 votes (Chiang et al. 2024, arXiv:2403.04132), as on Kaggle.

  `prompt`, `response_a` and `response_b` are JSON lists, each of one text for each turn. Of the
  three columns of the winner one is 1 and the others are 0. The models are kept as authors.
  """
  flags = {name: row[f"winner_{name}"] for name in (*_MODELS, "tie")}
  votes = [choice_of(v, {0: 0, 1: 1}, f"winner_{name}", "0 or 1") for name, v in flags.items()]
  if sum(votes) != 1:
    found = ", ".join(f"winner_{name} {vote}" for name, vote in flags.items())
    raise RowError("out_of_range", f"{found}; expected one of them to be 1")
  sign = float(votes[0] - votes[1])
  asks = _turns(row["prompt"], "prompt")
  sides = []
  for name in ("response_a", "response_b"):
    answers = _turns(row[name], name)
    if len(answers) != len(asks):
      found = f"{name!r} has {len(answers)} turns and 'prompt' {len(asks)}"
      raise RowError("lengths_differ", f"{found}; expected as many")
    chat: list[Message] = []
    for i, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
      chat += [*asked(ask, f"prompt[{i}]"), *answered(answer, f"{name}[{i}]")]
    sides.append(tuple(chat))
  return _battle(row, origin, *sides, sign)


def _turns(value: object, column: str) -> list[object]:
  """A list of turns, or the JSON text of one."""
  turns = value
  if isinstance(value, str):
    try:
      turns = json.loads(value)
    except (ValueError, RecursionError):
      turns = None
  if not isinstance(turns, list) or not turns:
    found = f"{column!r} is {shown(value)}"
    raise RowError("wrong_type", f"{found}; expected a JSON list of the turns' texts")
  return turns


def _battle(row: Row, origin: str, a: Chat, b: Chat, sign: float) -> Example:
  """The example of two whole conversations; their common front is the prompt."""
  if a == b:
    raise RowError("identical_sides", "both conversations are the same; expected two that differ")
  front = common_front(a, b)
  authors = names_of([row.get(name) for name in _MODELS])
  return pair_example(row, origin, a[:front], (a[front:], b[front:]), sign, authors=authors)


def _judged(value: object, column: str, turn: int | None) -> Chat:
  """A conversation up to the answer of its user's turn number `turn`; None = all of it."""
  if isinstance(value, list):
    value = [_joined(message, f"{column}[{i}]") for i, message in enumerate(value)]
  chat = messages_of(value, column)
  if turn is not None:
    starts = [i for i, message in enumerate(chat) if message["role"] == "user"]
    if len(starts) < turn:
      found = f"'turn' is {turn} and {column!r} has {len(starts)} turns of the user"
      raise RowError("out_of_range", f"{found}; expected no more than it has")
    chat = chat[: starts[turn]] if len(starts) > turn else chat
  if not chat or chat[-1]["role"] != "assistant" or not chat[-1]["content"].strip():
    found = f"{column!r} ends with {shown(chat[-1] if chat else None)}"
    raise RowError("empty_response", f"{found}; expected an assistant's text")
  return chat


def _joined(message: object, where: str) -> object:
  """A message whose content, if it is a list of parts, is their text; no other part is allowed."""
  if not isinstance(message, dict) or not isinstance(message.get("content"), list):
    return message
  texts = []
  for i, part in enumerate(message["content"]):
    if not isinstance(part, dict) or part.get("type") != "text":
      found = f"{where}.content[{i}] is {shown(part)}"
      raise RowError("unsupported_message", f"{found}; expected a part of type 'text'")
    texts.append(text_of(part.get("text"), f"{where}.content[{i}].text"))
  return {**message, "content": "\n".join(texts)}
