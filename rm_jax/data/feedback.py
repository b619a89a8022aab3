"""Our own formats of rankings, comparisons, outcomes, scores, steps and attributes.

Prompts and whole responses are strings or lists of messages; all have an optional column `weight`.
"""

from collections.abc import Sequence

from rm_jax.data.dialogue import (
  check_prompt,
  check_response,
  conversation_of,
  messages_of,
  number_of,
  probability_of,
  text_of,
  weight_of,
)
from rm_jax.data.formats import register
from rm_jax.data.read import Row
from rm_jax.data.report import RowError, shown
from rm_jax.types import Example, Matrix, Message, Text


@register("ranking", needs=("prompt", "responses", "scores|ranks|comparisons"))
def _ranking(row: Row, origin: str) -> Example:
  """K responses with `scores` (higher is better), `ranks` (1 is best) or `comparisons`.

  Equal scores or ranks are ties. A group whose responses all tie is kept: each loss decides whether
  it learns from ties. `comparisons` is a list of [i, j, p]: i and j are the responses' indices from
  0, and p is the probability that i is the better one, or the word "tie". Several people's
  comparisons of the same two responses are summed.
  """
  prompt, responses = prompt_of(row), responses_of(row)
  count = len(responses)
  if row.get("comparisons") is not None:
    pairs, ties = comparisons_of(row["comparisons"], count)
    return example_of(
      row, origin, prompt, responses, win_rates(pairs, ties), "ranking", pairs=pairs, ties=ties
    )
  name = "scores" if row.get("scores") is not None else "ranks"
  gains = _numbers(row.get(name), name, count, number_of)
  if name == "ranks":
    gains = [-rank for rank in gains]
  return example_of(row, origin, prompt, responses, gains, "ranking")


@register("outcomes", needs=("prompt", "responses", "labels"))
def _outcomes(row: Row, origin: str) -> Example:
  """K responses, each labelled good or not: `labels` are bools, or probabilities in [0, 1]."""
  responses = responses_of(row, least=1)
  labels = _numbers(row["labels"], "labels", len(responses), probability_of)
  return example_of(row, origin, prompt_of(row), responses, labels, "outcome")


@register("outcome", needs=("prompt", "completion|response", "label"))
def _outcome(row: Row, origin: str) -> Example:
  """One response labelled good or not: `label` is a bool, or a probability in [0, 1]."""
  label = probability_of(row["label"], "label")
  return example_of(row, origin, prompt_of(row), _one_response(row), [label], "outcome")


@register("score", needs=("prompt", "completion|response", "score"))
def _score(row: Row, origin: str) -> Example:
  """One response and its rating `score`, any finite number."""
  score = number_of(row["score"], "score")
  return example_of(row, origin, prompt_of(row), _one_response(row), [score], "score")


@register("attributes", needs=("prompt", "completion|response", "attributes"))
def _attributes(row: Row, origin: str) -> Example:
  """One response and its ratings: `attributes` is {name: number}, null for a missing rating."""
  return attributes_example(row, origin, prompt_of(row), _one_response(row), row["attributes"])


def attributes_example(
  row: Row, origin: str, prompt: Text, responses: tuple[Text], ratings: object, **more
) -> Example:
  """Builds the `Example` of one response's ratings on attributes; formats of ratings call it.

  Args:
    row: the row, for its `weight`.
    origin: where the row came from, 'file:line'.
    prompt: checked by the caller.
    responses: the one response, checked by the caller.
    ratings: {name: number or None}; the names with None are left out.
    more: further fields of the `Example`.

  Raises:
    RowError: wrong_type (not {name: number}), not_finite, no_attribute where none has a number, or
      as `weight_of`.
  """
  if not isinstance(ratings, dict):
    raise RowError("wrong_type", f"'attributes' is {shown(ratings)}; expected {{name: number}}")
  given = {
    name: number_of(value, f"attributes.{name}")
    for name, value in ratings.items()
    if value is not None
  }
  if not given:
    raise RowError("no_attribute", f"'attributes' is {shown(ratings)}; expected a number in it")
  more["attributes"] = (given,)
  return example_of(row, origin, prompt, responses, [0.0], "attributes", **more)


@register("step", needs=("prompt", "completions", "labels"))
def _step(row: Row, origin: str) -> Example:
  """One solution in steps, and for each step whether the solution is right up to its end.

  `labels` are bools, or probabilities in [0, 1].
  """
  steps = steps_of(row["completions"], "completions")
  labels = _numbers(row["labels"], "labels", len(steps), probability_of)
  return step_example(row, origin, prompt_of(row), steps, labels)


def step_example(
  row: Row, origin: str, prompt: Text, steps: Sequence[object], labels: Sequence[float], **more
) -> Example:
  """Builds the `Example` of one solution in steps, for use in a new format.

  The response is the steps joined by line breaks. `labels` has one number for each step. `more` is
  passed on, as to `example_of`.

  Raises:
    RowError: as `steps_of` or `weight_of`.
  """
  texts = steps_of(steps, "steps")
  response = "\n".join(texts)
  return example_of(row, origin, prompt, (response,), labels, "step", steps=(texts,), **more)


def steps_of(value: object, column: str) -> tuple[str, ...]:
  """Reads the texts of a solution's steps.

  Raises:
    RowError: wrong_type (not a list of texts, or an empty one), empty_response (a blank step) or
      lone_surrogate.
  """
  if not isinstance(value, list | tuple) or not value:
    found = f"{column!r} is {shown(value)}"
    raise RowError("wrong_type", f"{found}; expected a list of the steps' texts")
  texts = tuple(text_of(step, f"step {i}") for i, step in enumerate(value))
  for i, text in enumerate(texts):
    if not text.strip():
      raise RowError("empty_response", f"step {i} is {shown(text)}; expected text")
  return texts


def prompt_of(row: Row, column: str = "prompt") -> Text:
  """Reads and checks a column's prompt: a string, or messages.

  Raises:
    RowError: as `text_of` or `messages_of`, or empty_prompt.
  """
  value = row.get(column)
  prompt = text_of(value, column) if isinstance(value, str) else messages_of(value, column)
  check_prompt(prompt)
  return prompt


def responses_of(row: Row, column: str = "responses", least: int = 2) -> tuple[Text, ...]:
  """Reads and checks a column's list of responses, each as `answer_of` reads it.

  Raises:
    RowError: wrong_type, too_few_responses (under `least`), or as `answer_of`.
  """
  value = row.get(column)
  if not isinstance(value, list):
    raise RowError("wrong_type", f"{column!r} is {shown(value)}; expected a list of responses")
  if len(value) < least:
    found = f"{column!r} has {len(value)}"
    raise RowError("too_few_responses", f"{found}; expected at least {least} to compare")
  return tuple(
    answer_of(one, isinstance(row.get("prompt"), str), f"{column}[{i}]")
    for i, one in enumerate(value)
  )


def answer_of(value: object, plain: bool, column: str) -> Text:
  """Reads and checks one response, in the form of its prompt.

  Args:
    value: a string if the prompt is one; else messages, or a string that is read as the content of
      one assistant message.
    plain: whether the prompt is a string.
    column: the response's name in error messages.

  Raises:
    RowError: as `text_of`, `messages_of` or `check_response`.
  """
  if plain or isinstance(value, str):
    text = text_of(value, column)
    answer = text if plain else (Message(role="assistant", content=text),)
  else:
    answer = messages_of(value, column)
  check_response(answer, column)
  return answer


def comparisons_of(value: object, count: int) -> tuple[Matrix, Matrix]:
  """Reads a list of [i, j, p or "tie"] into two matrices.

  Returns:
    (pairs, ties), both count x count. pairs[i][j] is the sum of the probabilities that i is better
    than j; ties[i][j] = ties[j][i] is the number of ties.

  Raises:
    RowError: wrong_type, not_finite, out_of_range, or no_comparison where the list is empty.
  """
  if not isinstance(value, list):
    raise RowError("wrong_type", f"'comparisons' is {shown(value)}; expected a list of [i, j, p]")
  if not value:
    raise RowError("no_comparison", "'comparisons' is empty; expected at least one [i, j, p]")
  pairs = [[0.0] * count for _ in range(count)]
  ties = [[0.0] * count for _ in range(count)]
  for n, one in enumerate(value):
    where = f"comparisons[{n}]"
    if not isinstance(one, list) or len(one) != 3:
      raise RowError("wrong_type", f"{where} is {shown(one)}; expected [i, j, p]")
    i, j, p = one
    for index in (i, j):
      if isinstance(index, bool) or not isinstance(index, int):
        raise RowError("wrong_type", f"{where} has {shown(index)}; expected a response's number")
      if not 0 <= index < count:
        found = f"{where} speaks of response {index}"
        raise RowError("out_of_range", f"{found}; expected 0 to {count - 1}")
    if i == j:
      raise RowError("out_of_range", f"{where} compares response {i} with itself")
    if p == "tie":
      ties[i][j] += 1.0
      ties[j][i] += 1.0
    else:
      p = probability_of(p, where)
      pairs[i][j] += p
      pairs[j][i] += 1 - p
  return tuple(map(tuple, pairs)), tuple(map(tuple, ties))


def outweighs(one: float, other: float) -> bool:
  """Whether a sum of probabilities is above another by more than rounding.

  0.8 + 0.9 + 0.3 and 0.2 + 0.1 + 0.7 + 1 are both 2, but as floats they may differ in their last
  digit, which depends on the order of the summands.
  """
  return one - other > 1e-9 * (one + other)


def win_rates(pairs: Matrix, ties: Matrix) -> list[float]:
  """For each response the share of its comparisons that it won; a tie counts as half a win.

  Real comparisons may be intransitive, so that no order agrees with all of them. Losses that need
  one label for each response take these rates. A response without a comparison gets 1/2.
  """
  rates = []
  for i in range(len(pairs)):
    won = sum(pairs[i]) + sum(ties[i]) / 2
    total = sum(pairs[i]) + sum(row[i] for row in pairs) + sum(ties[i])
    rates.append(won / total if total else 0.5)
  return rates


def _one_response(row: Row) -> tuple[Text, ...]:
  name = "response" if row.get("completion") is None and "response" in row else "completion"
  return (answer_of(row[name], isinstance(row.get("prompt"), str), name),)


def _numbers(value: object, column: str, count: int, convert) -> list[float]:
  if not isinstance(value, list):
    raise RowError("wrong_type", f"{column!r} is {shown(value)}; expected a list of numbers")
  if len(value) != count:
    found = f"{column!r} has {len(value)} and there are {count} to be labelled"
    raise RowError("lengths_differ", f"{found}; expected as many")
  return [convert(one, f"{column}[{i}]") for i, one in enumerate(value)]


def example_of(
  row: Row,
  origin: str,
  prompt: Text,
  responses: tuple[Text, ...],
  labels: Sequence[float],
  kind: str,
  **more,
) -> Example:
  """Builds an `Example` with the row's `weight` and its prompt's conversation; `more` is passed on.

  The prompt and the responses are checked by the caller.

  Raises:
    RowError: as `weight_of`.
  """
  return Example(
    prompt=prompt,
    responses=responses,
    labels=tuple(map(float, labels)),
    kind=kind,
    weight=weight_of(row),
    origin=origin,
    conversation=conversation_of(prompt),
    **more,
  )
