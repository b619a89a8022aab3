"""Formats of other libraries: LLaMA-Factory, ShareGPT, NeMo-RL, distilabel and the like."""

from rm_jax.data.dialogue import check_response, common_end, messages_of, number_of, text_of
from rm_jax.data.feedback import answer_of, example_of
from rm_jax.data.formats import register
from rm_jax.data.pairs import pair_example
from rm_jax.data.published.texts import (
  Chat,
  answered,
  asked,
  dicts_of,
  names_of,
  system_of,
  turns_of,
  unpacked,
)
from rm_jax.data.read import Row
from rm_jax.data.report import RowError, shown
from rm_jax.types import Example, Message

_ALPACA = ("input", "system", "history")
_NAMES = ("generation_models", "model_names", "generation_model")  # of distilabel's versions


def _alpaca_prompt(row: Row) -> Chat:
  """LLaMA-Factory's prompt: system, history, and instruction and input on two lines."""
  parts = [text_of(row["instruction"], "instruction")]
  if row.get("input") is not None:
    parts.append(text_of(row["input"], "input"))
  text = "\n".join(part for part in parts if part.strip())
  if not text:
    found = "'instruction' and 'input' are without text"
    raise RowError("empty_prompt", f"{found}; expected text in one of them")
  earlier: list[Message] = []
  history = unpacked(row.get("history"))
  if not isinstance(history, list | None):
    raise RowError(
      "wrong_type", f"'history' is {shown(history)}; expected [question, answer] lists"
    )
  for i, turn in enumerate(history or ()):
    if not isinstance(turn, list | tuple) or len(turn) != 2:
      found = f"history[{i}] is {shown(turn)}"
      raise RowError("wrong_type", f"{found}; expected [question, answer]")
    earlier += [*asked(turn[0], f"history[{i}][0]"), *answered(turn[1], f"history[{i}][1]")]
  return (*system_of(row.get("system")), *earlier, Message(role="user", content=text))


def _plain_sides(row: Row, prompt: str) -> bool:
  """Whether chosen and rejected are strings that answer the text of the column `prompt`.

  They are not where what both begin with contains the question, or one is a dialogue of HH: then
  they are whole conversations. These, and rows with a column 'prompt', other formats read.
  """
  sides, question = (row["chosen"], row["rejected"]), row[prompt]
  if not all(isinstance(text, str) for text in (*sides, question)) or "prompt" in row:
    return False
  front = sides[0][: common_end(*sides)]
  repeated = question.strip() and question.strip() in front
  return not repeated and not any("\n\nHuman:" in side for side in sides)


@register(
  "alpaca",
  needs=("instruction", "chosen", "rejected"),
  looks=lambda row: _plain_sides(row, "instruction"),
  optional=_ALPACA,
)
def _alpaca(row: Row, origin: str) -> Example:
  """LLaMA-Factory's preferences in Alpaca's form: `chosen` is the better answer.

  The user's message is `instruction` and, on the next line, `input`. `system` and `history`, a list
  of [question, answer], come before it.
  """
  sides = answered(row["chosen"], "chosen"), answered(row["rejected"], "rejected")
  return pair_example(row, origin, _alpaca_prompt(row), sides, 1.0)


@register(
  "alpaca_outputs",
  needs=("instruction", "output"),
  looks=lambda row: isinstance(unpacked(row["output"]), list),
  optional=_ALPACA,
  last=True,
)
def _alpaca_outputs(row: Row, origin: str) -> Example:
  """Older preferences of LLaMA-Factory: `output` is [better answer, worse answer]."""
  outputs = unpacked(row["output"])
  if not isinstance(outputs, list) or len(outputs) != 2:
    found = f"'output' is {shown(outputs)}"
    raise RowError("wrong_type", f"{found}; expected [better answer, worse answer]")
  sides = answered(outputs[0], "output[0]"), answered(outputs[1], "output[1]")
  return pair_example(row, origin, _alpaca_prompt(row), sides, 1.0)


@register("alpaca_kto", needs=("instruction", "output", "kto_tag"), optional=_ALPACA, last=True)
def _alpaca_kto(row: Row, origin: str) -> Example:
  """LLaMA-Factory's answers for KTO in Alpaca's form: `kto_tag` true is a good answer."""
  responses = (answered(row["output"], "output"),)
  return example_of(row, origin, _alpaca_prompt(row), responses, [_tag(row)], "outcome")


def _tag(row: Row) -> bool:
  tag = row["kto_tag"]
  if not isinstance(tag, bool):
    raise RowError("wrong_type", f"'kto_tag' is {shown(tag)}; expected true (good) or false")
  return tag


def _looks_like_orca(row: Row) -> bool:
  name = "question" if "question" in row else "input"
  return "instruction" not in row and _plain_sides(row, name)


@register(
  "orca_dpo",
  needs=("question|input", "chosen", "rejected"),
  looks=_looks_like_orca,
  optional=("system", "status"),
)
def _orca_dpo(row: Row, origin: str) -> Example:
  """Intel's orca_dpo_pairs, and argilla's version of it, which calls the question `input`.

  `chosen` is the better answer, `system` an optional system message. Where argilla's `status` is
  'tie' the two were rated alike; where it is 'swapped' the columns have been swapped already.
  """
  name = "question" if row.get("question") is not None else "input"
  prompt = asked(row.get(name), name, row.get("system"))
  sides = answered(row["chosen"], "chosen"), answered(row["rejected"], "rejected")
  return pair_example(row, origin, prompt, sides, 0.0 if row.get("status") == "tie" else 1.0)


def _is_turn(value: object) -> bool:
  return isinstance(value, dict) and "from" in value


def _are_turns(value: object) -> bool:
  return isinstance(value, list) and all(map(_is_turn, value))


def _looks_like_sharegpt(row: Row) -> bool:
  return _are_turns(row["conversations"]) and _are_turns([row["chosen"], row["rejected"]])


@register(
  "sharegpt",
  needs=("conversations", "chosen", "rejected"),
  looks=_looks_like_sharegpt,
  optional=("system",),
)
def _sharegpt(row: Row, origin: str) -> Example:
  """LLaMA-Factory's preferences in ShareGPT's form: turns {from, value}.

  `conversations` are the turns before the two answers, `chosen` (the better one) and `rejected`,
  which are one turn each; `system` is an optional system message.
  """
  prompt = (*system_of(row.get("system")), *turns_of(row["conversations"], "conversations"))
  chosen, rejected = (_answer(turns_of(row[n], n), n) for n in ("chosen", "rejected"))
  return pair_example(row, origin, prompt, (chosen, rejected), 1.0)


def _answer(turns: Chat, column: str) -> Chat:
  check_response(turns, column)
  return turns


@register(
  "sharegpt_kto",
  needs=("conversations", "kto_tag"),
  looks=lambda row: _are_turns(row["conversations"]),
  optional=("system",),
  last=True,
)
def _sharegpt_kto(row: Row, origin: str) -> Example:
  """LLaMA-Factory's answers for KTO in ShareGPT's form: the last turn is judged by `kto_tag`.

  True is a good answer.
  """
  turns = turns_of(row["conversations"], "conversations")
  prompt = _checked((*system_of(row.get("system")), *turns[:-1]), "conversations")
  responses = (_answer(turns[-1:], "conversations"),)
  return example_of(row, origin, prompt, responses, [_tag(row)], "outcome")


def _checked(prompt: Chat, column: str) -> Chat:
  if not any(m["role"] == "user" and m["content"].strip() for m in prompt):
    found = f"{column!r} has no user's text before what is judged"
    raise RowError("empty_prompt", f"{found}; expected a question")
  return prompt


@register(
  "ultrainteract",
  needs=("trajectory", "chosen", "rejected"),
  looks=lambda row: _are_turns(row["trajectory"]) and "prompt" not in row,
)
def _ultrainteract(row: Row, origin: str) -> Example:
  """UltraInteract's pairs (Yuan et al. 2024, arXiv:2404.02078): two next actions of an agent.

  `trajectory` are the turns {from, value} before them, and `chosen` is the right action.
  """
  prompt = turns_of(row["trajectory"], "trajectory")
  sides = answered(row["chosen"], "chosen"), answered(row["rejected"], "rejected")
  return pair_example(row, origin, prompt, sides, 1.0)


def _looks_like_nemo(row: Row) -> bool:
  found = row["completions"]
  return isinstance(found, list) and all(isinstance(c, dict) and "rank" in c for c in found)


@register("nemo_rl", needs=("context", "completions"), looks=_looks_like_nemo, last=True)
def _nemo_rl(row: Row, origin: str) -> Example:
  """NeMo-RL's preferences: completions {rank, completion}; the lower rank is the better one.

  Two completions are a pair, and more of them a ranking. Equal ranks are ties. `context` is a
  list of messages, and so is each `completion`, or it is the answer's text.
  """
  found = dicts_of(row["completions"], "completions", ("rank", "completion"), 2)
  ranks = [number_of(c["rank"], f"completions[{i}].rank") for i, c in enumerate(found)]
  responses = tuple(
    answer_of(c["completion"], False, f"completions[{i}].completion") for i, c in enumerate(found)
  )
  prompt = _checked(messages_of(row["context"], "context"), "context")
  if len(found) == 2:
    return pair_example(row, origin, prompt, responses, ranks[1] - ranks[0])
  labels = [-rank for rank in ranks]
  return example_of(row, origin, prompt, responses, labels, "ranking")


@register(
  "distilabel",
  needs=("instruction", "generations", "ratings"),
  optional=_NAMES,
  last=True,
)
def _distilabel(row: Row, origin: str) -> Example:
  """distilabel's ratings of several generations by a judge: the higher rating is better."""
  texts, ratings = row["generations"], row["ratings"]
  if not isinstance(texts, list) or not isinstance(ratings, list) or len(texts) != len(ratings):
    found = f"'generations' is {shown(texts)} and 'ratings' {shown(ratings)}"
    raise RowError("lengths_differ", f"{found}; expected lists of one length")
  if len(texts) < 2:
    raise RowError("too_few_responses", f"'generations' has {len(texts)}; expected at least 2")
  responses = tuple(answered(text, f"generations[{i}]") for i, text in enumerate(texts))
  labels = [number_of(rating, f"ratings[{i}]") for i, rating in enumerate(ratings)]
  names = next((row[n] for n in _NAMES if isinstance(row.get(n), list)), [])
  authors = names_of(names) if len(names) == len(texts) else None
  prompt = asked(row["instruction"], "instruction")
  return example_of(row, origin, prompt, responses, labels, "ranking", authors=authors)
