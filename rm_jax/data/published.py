"""Formats of published data sets that have columns of their own.

Each is an example of what `rm_jax.data.register` is for: a short function that says what the
columns mean.
"""

import hashlib
import itertools
import random
import re

from rm_jax.data.dialogue import check_prompt, choice_of, number_of, probability_of, text_of
from rm_jax.data.feedback import (
  answer_of,
  attributes_example,
  comparisons_of,
  example_of,
  prompt_of,
  step_example,
  win_rates,
)
from rm_jax.data.formats import register
from rm_jax.data.read import Row
from rm_jax.data.report import RowError, shown
from rm_jax.types import Example, Message

_STEP_LABELS = {"positive": 1.0, "neutral": 1.0, "negative": 0.0}
_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@register(
  "qa_feedback",
  needs=("question", "passages", "preference", *(f"prediction {i}" for i in (1, 2, 3, 4))),
)
def _qa_feedback(row: Row, origin: str) -> Example:
  """QA-Feedback (Wu et al. 2023): four answers, and all six comparisons of two of them.

  `preference` lists the comparisons in the order (1, 2), (1, 3), .. (3, 4); 0 is a tie, 1 means
  that the first is better and 2 that the second is.
  """
  passages = row["passages"]
  if not isinstance(passages, list) or not all(isinstance(p, list) for p in passages):
    raise RowError("wrong_type", f"'passages' is {shown(passages)}; expected lists of sentences")
  # A passage is [title, title and first sentence, sentence ...], so its text starts at index 1.
  notes = [" ".join(text_of(s, "passages") for s in passage[1:]) for passage in passages]
  question = text_of(row["question"], "question")
  prompt = "\n\n".join([*notes, f"Question: {question}\nAnswer:"])
  names = [f"prediction {i}" for i in (1, 2, 3, 4)]
  responses = tuple(answer_of(f" {text_of(row[n], n)}", True, n) for n in names)
  judged = row["preference"]
  if not isinstance(judged, list) or len(judged) != 6:
    found = f"'preference' is {shown(judged)}"
    raise RowError("out_of_range", f"{found}; expected six of 0 (tie), 1 (first), 2 (second)")
  outcome = {0: "tie", 1: 1.0, 2: 0.0}
  comparisons = [
    [i, j, choice_of(x, outcome, "preference", "0 (tie), 1 (first), 2 (second)")]
    for (i, j), x in zip(itertools.combinations(range(4), 2), judged, strict=True)
  ]
  pairs, ties = comparisons_of(comparisons, 4)
  return example_of(
    row, origin, prompt, responses, win_rates(pairs, ties), "ranking", pairs=pairs, ties=ties
  )


@register("helpsteer", needs=("prompt", "response", *_HELPSTEER))
def _helpsteer(row: Row, origin: str) -> Example:
  """HelpSteer (Wang et al. 2023) and HelpSteer2 (Wang et al. 2024): five ratings from 0 to 4.

  The prompt is one string and becomes messages: in a prompt of several turns, a line
  '<extra_id_1>Assistant' or '<extra_id_1>User' starts each turn but the first.
  """
  first, *rest = _HELPSTEER_TURN.split(text_of(row["prompt"], "prompt"))
  roles = ["user", *(role.lower() for role in rest[::2])]
  if roles[-1] != "user":
    raise RowError("malformed_dialogue", "'prompt' ends with the assistant; expected the user")
  prompt = tuple(
    Message(role=role, content=text) for role, text in zip(roles, [first, *rest[1::2]], strict=True)
  )
  check_prompt(prompt)
  ratings = {name: row[name] for name in _HELPSTEER}
  responses = (answer_of(row["response"], False, "response"),)
  return attributes_example(row, origin, prompt, responses, ratings)


@register("prm800k", needs=("question", "steps", "labels"))
def _prm800k(row: Row, origin: str) -> Example:
  """PRM800K (Lightman et al. 2023), with steps as text, each positive, neutral or negative.

  A neutral step is labelled right, as in the paper, because it is not an error.
  """
  steps, labels = row["steps"], row["labels"]
  if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels):
    found = f"'steps' is {shown(steps)} and 'labels' {shown(labels)}"
    raise RowError("lengths_differ", f"{found}; expected lists of one length")
  gains = [choice_of(label, _STEP_LABELS, f"labels[{i}]") for i, label in enumerate(labels)]
  prompt = f"{prompt_of(row, 'question')}\n"
  return step_example(row, origin, prompt, steps, gains)


@register("gsm8k_solutions", needs=("question", "ground_truth", *_SYSTEMS))
def _gsm8k_solutions(row: Row, origin: str) -> Example:
  """GSM8K (Cobbe et al. 2021): the solutions of four models, each right or wrong.

  Their order is shuffled by a hash of the question, so that a solution's place does not tell which
  model wrote it. The final answer is what follows the last 'A:'.
  """
  question = prompt_of(row, "question")
  order = list(_SYSTEMS)
  random.Random(hashlib.blake2b(question.encode()).digest()).shuffle(order)
  solutions = [row[name] for name in order]
  if not all(isinstance(s, dict) and isinstance(s.get("is_correct"), bool) for s in solutions):
    raise RowError("wrong_type", "a solution is not {solution, is_correct}; expected all four so")
  responses = tuple(answer_of(s.get("solution"), True, "solution") for s in solutions)
  labels = [probability_of(s["is_correct"], "is_correct") for s in solutions]
  answers = tuple(_final_answer(r) for r in responses)
  return example_of(
    row,
    origin,
    f"{question}\n",
    responses,
    labels,
    "outcome",
    authors=tuple(order),
    answers=answers,
  )


def _final_answer(solution: str) -> str:
  """What follows the last 'A:', without thousands separators; the whole solution if there is none.

  A solution without an answer then agrees with no other one when answers are counted as votes.
  """
  _, mark, answer = solution.rpartition("A:")
  return answer.strip().rstrip(".").replace(",", "") if mark else solution


@register("bigbench_mistake", needs=("input", "steps", "mistake_index"))
def _bigbench_mistake(row: Row, origin: str) -> Example:
  """BIG-Bench Mistake (Tyen et al. 2023): `mistake_index` is the first wrong step, from 0, or null.

  All steps after the first wrong one are labelled wrong too, because they build on an error.
  """
  steps, first = row["steps"], row["mistake_index"]
  if not isinstance(steps, list) or not steps:
    raise RowError("wrong_type", f"'steps' is {shown(steps)}; expected a list of texts")
  if first is not None and (type(first) is not int or not 0 <= first < len(steps)):
    found = f"'mistake_index' is {shown(first)}"
    raise RowError("out_of_range", f"{found}; expected null or 0 to {len(steps) - 1}")
  labels = [float(first is None or i < first) for i in range(len(steps))]
  return step_example(row, origin, f"{prompt_of(row, 'input')}\n", steps, labels)


@register("prmbench", needs=("question", "modified_process", "error_steps"))
def _prmbench(row: Row, origin: str) -> Example:
  """PRMBench (Song et al. 2025): a solution with inserted errors; `error_steps` counts from 1."""
  steps, errors = row["modified_process"], row["error_steps"]
  if not isinstance(steps, list) or not isinstance(errors, list):
    raise RowError("wrong_type", "'modified_process' and 'error_steps' are not both lists")
  wrong = [e for e in errors if type(e) is not int or not 1 <= e <= len(steps)]
  if wrong:
    found = f"'error_steps' has {shown(wrong[0])}"
    raise RowError("out_of_range", f"{found}; expected 1 to {len(steps)}")
  labels = [float(i not in errors) for i in range(1, len(steps) + 1)]
  return step_example(row, origin, f"{prompt_of(row, 'question')}\n", steps, labels)


@register("pandalm", needs=("instruction", "input", "response1", "response2", "annotator1"))
def _pandalm(row: Row, origin: str) -> Example:
  """PandaLM's test set (Wang et al. 2023): two answers, and each annotator's 0 (tie), 1 or 2."""
  instruction, more = text_of(row["instruction"], "instruction"), row["input"]
  if not isinstance(more, str):
    raise RowError("wrong_type", f"'input' is {shown(more)}; expected text, '' where there is none")
  prompt = "\n\n".join(part for part in (instruction, more) if part.strip()) + "\n\n"
  responses = tuple(answer_of(row[n], True, n) for n in ("response1", "response2"))
  said = {0: 0.5, 1: 1.0, 2: 0.0}
  judges = {}
  for name in sorted(column for column in row if re.fullmatch(r"annotator\d+", column)):
    if row[name] is None:
      continue
    judges[name] = choice_of(row[name], said, name, "0 (tie), 1 or 2")
  if not judges:
    raise RowError("no_annotation", "no annotator says anything; expected at least one")
  first, second, tied = (float(list(judges.values()).count(x)) for x in (1.0, 0.0, 0.5))
  pairs, ties = ((0.0, first), (second, 0.0)), ((0.0, tied), (tied, 0.0))
  return example_of(
    row,
    origin,
    prompt,
    responses,
    win_rates(pairs, ties),
    "ranking",
    pairs=pairs,
    ties=ties,
    judges=judges,
  )


@register("llmbar", needs=("input", "output_1", "output_2", "label"))
def _llmbar(row: Row, origin: str) -> Example:
  """LLMBar (Zeng et al. 2024): two answers; `label`, 1 or 2, is the one that does as instructed."""
  label = row["label"]
  if isinstance(label, bool) or label not in (1, 2):
    raise RowError("out_of_range", f"'label' is {shown(label)}; expected 1 or 2")
  responses = tuple(answer_of(row[n], True, n) for n in ("output_1", "output_2"))
  prompt = text_of(row["input"], "input") + "\n\n"
  check_prompt(prompt)
  return example_of(row, origin, prompt, responses, (label == 1, label == 2), "ranking")


@register("summ_human", needs=("doc_id", "src", "ref_summ", "responses"))
def _summ_human(row: Row, origin: str) -> Example:
  """SummEval and REALSumm: summaries by many systems; a summary's label is its mean rating."""
  prompt = text_of(row["src"], "src") + "\n\nSummary:"
  found = row["responses"]
  if not isinstance(found, list) or len(found) < 2 or not all(isinstance(x, dict) for x in found):
    raise RowError("wrong_type", f"'responses' is {shown(found)}; expected summaries of systems")
  labels, responses, systems = [], [], []
  for i, one in enumerate(found):
    ratings = one.get("scores")
    if not isinstance(ratings, dict) or not ratings:
      raise RowError("wrong_type", f"responses[{i}].scores is {shown(ratings)}; expected ratings")
    numbers = [number_of(x, f"responses[{i}].scores.{name}") for name, x in ratings.items()]
    labels.append(sum(numbers) / len(numbers))
    text = text_of(one.get("text"), f"responses[{i}].text")
    responses.append(answer_of(f" {text}", True, f"responses[{i}].text"))
    systems.append(str(one.get("system", i)))
  return example_of(
    row, origin, prompt, tuple(responses), labels, "ranking", authors=tuple(systems)
  )
