"""Formats of solutions in steps: PRM800K in two forms, Math-Shepherd, ProcessBench and others."""

import re

from rm_jax.data.dialogue import choice_of, text_of
from rm_jax.data.feedback import step_example
from rm_jax.data.formats import register
from rm_jax.data.published.texts import dicts_of, names_of, question_of, unpacked
from rm_jax.data.read import Row
from rm_jax.data.report import RowError, shown
from rm_jax.types import Example

_STEP_LABELS = {"positive": 1.0, "neutral": 1.0, "negative": 0.0}
_RATINGS = {1: 1.0, 0: 1.0, -1: 0.0}
_MARK = "ки"  # Math-Shepherd's token behind each step
_SIGNS = {"+": 1.0, "-": 0.0}
_FIRST_STEP = re.compile(r"[Ss]tep 1:")
_SHEPHERD_ANSWER = re.compile(r"The answer is:?\s*(\S.*)")


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
  prompt = f"{question_of(row['question'], 'question')}\n"
  return step_example(row, origin, prompt, steps, gains)


def _looks_like_prm800k(row: Row) -> bool:
  question, label = unpacked(row["question"]), row["label"]
  return isinstance(question, dict) and isinstance(label, dict) and "steps" in label


@register("prm800k_published", needs=("question", "label"), looks=_looks_like_prm800k, last=True)
def _prm800k_published(row: Row, origin: str) -> Example:
  """PRM800K (Lightman et al. 2023, arXiv:2305.20050) as OpenAI publishes it.

  A step has several completions, each rated 1 (right), 0 (neutral) or -1 (wrong); a neutral one is
  labelled right, because it is not an error. The solution that is read is the labelled trajectory:
  at each step the chosen completion or, where there is none, the step that the labeller wrote
  (right). Where there is neither, as at the error that ends a solution of phase 2, it is the first
  completion, the solution's own, and the last step. Alternatives are not read. The final answer is
  what follows '# Answer'.
  """
  question, label = unpacked(row["question"]), row["label"]
  if not isinstance(question, dict) or not isinstance(label, dict):
    found = f"'question' is {shown(question)} and 'label' {shown(label)}"
    raise RowError("wrong_type", f"{found}; expected {{problem}} and {{steps}}")
  texts, labels = [], []
  for i, step in enumerate(dicts_of(label.get("steps"), "label.steps", ("completions",))):
    text, right, last = _taken(step, f"label.steps[{i}]")
    if text is not None:
      texts.append(text)
      labels.append(right)
    if last:
      break
  prompt = f"{question_of(question.get('problem'), 'problem')}\n"
  _, mark, answer = (texts[-1] if texts and isinstance(texts[-1], str) else "").rpartition(
    "# Answer"
  )
  answers = (answer.strip(),) if mark and answer.strip() else None
  return step_example(row, origin, prompt, texts, labels, answers=answers)


def _taken(step: dict, where: str) -> tuple[object, float, bool]:
  """(text of the step that the trajectory takes, whether it is right, whether it is the last).

  The text is None, and the step the last, where there is nothing to take.
  """
  candidates = step["completions"] or []
  chosen = step.get("chosen_completion")
  written = step.get("human_completion")
  if chosen is None and written is not None:
    return (written.get("text") if isinstance(written, dict) else written), 1.0, False
  if chosen is None and not candidates:
    return None, 0.0, True
  candidates = dicts_of(candidates, f"{where}.completions", ("text", "rating"))
  number = 0 if chosen is None else chosen
  if type(number) is not int or not 0 <= number < len(candidates):
    found = f"'{where}.chosen_completion' is {shown(number)}"
    raise RowError("out_of_range", f"{found}; expected null or 0 to {len(candidates) - 1}")
  one, name = candidates[number], f"{where}.completions[{number}].rating"
  return one["text"], choice_of(one["rating"], _RATINGS, name), chosen is None


def _looks_like_shepherd(row: Row) -> bool:
  return isinstance(row["input"], str) and isinstance(row["label"], str) and _MARK in row["input"]


@register("math_shepherd", needs=("input", "label", "task"), looks=_looks_like_shepherd, last=True)
def _math_shepherd(row: Row, origin: str) -> Example:
  """Math-Shepherd (Wang et al. 2023, arXiv:2312.08935): `label` is `input` with signs at its steps.

  'ки' stands behind each step of `input`, and in its place `label` has '+', a good step, from which
  some continuation reached the right answer, or '-', a bad one. The problem ends where 'Step 1:'
  begins. The final answer is what follows 'The answer is:'.
  """
  text, label = text_of(row["input"], "input"), text_of(row["label"], "label")
  *parts, rest = text.split(_MARK)
  at, labels = 0, []
  for i, part in enumerate(parts):
    sign = label[at + len(part) :][:1]
    if label[at : at + len(part)] != part or sign not in _SIGNS:
      found = f"'label' has {shown(label[at : at + len(part) + 1])} for step {i}"
      raise RowError("malformed_dialogue", f"{found}; expected the text of 'input', and + or -")
    labels.append(_SIGNS[sign])
    at += len(part) + 1
  first = _FIRST_STEP.search(parts[0]) if parts else None
  if first is None or rest.strip():
    found = "'input' has text behind its last step" if first else "'input' has no 'Step 1:'"
    raise RowError(
      "malformed_dialogue", f"{found}; expected a problem and steps, each with {_MARK}"
    )
  problem = parts[0][: first.start()].strip()
  steps = [part.strip() for part in (parts[0][first.start() :], *parts[1:])]
  answer = _SHEPHERD_ANSWER.search(steps[-1])
  answers = (answer[1].strip(),) if answer else None
  prompt = f"{question_of(problem, 'input')}\n"
  return step_example(row, origin, prompt, steps, labels, answers=answers)


@register("processbench", needs=("problem", "steps", "label"), optional=("generator",), last=True)
def _processbench(row: Row, origin: str) -> Example:
  """ProcessBench (Zheng et al. 2024, arXiv:2412.06559): `label` is the first wrong step.

  It counts from 0, and is -1 where all steps are right. All steps after the first wrong one are
  labelled wrong too, because they build on an error. `final_answer_correct` is not read: a right
  answer may follow wrong steps. The generator of the solution is kept as its author.
  """
  steps, first = row["steps"], row["label"]
  if not isinstance(steps, list) or not steps:
    raise RowError("wrong_type", f"'steps' is {shown(steps)}; expected a list of texts")
  if type(first) is not int or not -1 <= first < len(steps):
    found = f"'label' is {shown(first)}"
    raise RowError("out_of_range", f"{found}; expected -1 (none) or 0 to {len(steps) - 1}")
  labels = [float(first < 0 or i < first) for i in range(len(steps))]
  prompt = f"{question_of(row['problem'], 'problem')}\n"
  authors = names_of([row.get("generator")])
  return step_example(row, origin, prompt, steps, labels, authors=authors)


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
  return step_example(row, origin, f"{question_of(row['input'], 'input')}\n", steps, labels)


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
  return step_example(row, origin, f"{question_of(row['question'], 'question')}\n", steps, labels)
