"""Formats of data sets with several responses to a prompt, or with ratings of single responses."""

import hashlib
import itertools
import random

from rm_jax.data.answers import final_answer
from rm_jax.data.dialogue import choice_of, number_of, parse_dialogue, probability_of, text_of
from rm_jax.data.feedback import (
  answer_of,
  attributes_example,
  comparisons_of,
  example_of,
  prompt_of,
  win_rates,
)
from rm_jax.data.formats import register
from rm_jax.data.published.preferences import article_of, summary_of
from rm_jax.data.published.texts import (
  answered,
  asked,
  dicts_of,
  helpsteer_prompt,
  names_of,
  question_of,
  unpacked,
)
from rm_jax.data.read import Row
from rm_jax.data.report import RowError, shown
from rm_jax.types import Example

_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
_ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
# UltraFeedback writes ratings as text, and N/A where an aspect does not apply.
_STARS = {"N/A": None} | {form(n): float(n) for n in range(1, 6) for form in (str, int)}
_AXES = ("overall", "accuracy", "coverage", "coherence")


def _looks_like_ultrafeedback(row: Row) -> bool:
  found = row["completions"]
  return isinstance(found, list) and all(isinstance(c, dict) and "response" in c for c in found)


_ULTRAFEEDBACK = dict(
  needs=("instruction", "completions"), looks=_looks_like_ultrafeedback, last=True
)


@register("ultrafeedback", **_ULTRAFEEDBACK)
def _ultrafeedback(row: Row, origin: str) -> Example:
  """UltraFeedback (Cui et al. 2023, arXiv:2310.01377): completions with GPT-4's `overall_score`.

  The score is at most 10, and higher is better; completions of one score are tied. The models are
  kept as authors. The system prompt that a completion was written under is not read, since the
  others had their own. The ratings of four aspects are the business of `ultrafeedback_ratings`.
  """
  found = dicts_of(row["completions"], "completions", ("response", "overall_score"), 2)
  scores = [
    number_of(c["overall_score"], f"completions[{i}].overall_score") for i, c in enumerate(found)
  ]
  wrong = next((i for i, score in enumerate(scores) if not 0 <= score <= 10), None)
  if wrong is not None:
    found = f"'completions[{wrong}].overall_score' is {scores[wrong]}"
    raise RowError("out_of_range", f"{found}; expected it in [0, 10]")
  responses, authors = _completions(found)
  prompt = asked(row["instruction"], "instruction")
  return example_of(row, origin, prompt, responses, scores, "ranking", authors=authors)


@register("ultrafeedback_ratings", **_ULTRAFEEDBACK, by_name=True)
def _ultrafeedback_ratings(row: Row, origin: str) -> Example:
  """UltraFeedback's ratings of each completion on four aspects, from 1 to 5, 5 the best.

  They are instruction_following, honesty, truthfulness and helpfulness. 'N/A' is no rating.
  """
  found = dicts_of(row["completions"], "completions", ("response", "annotations"))
  ratings = []
  for i, completion in enumerate(found):
    given = {}
    for aspect in _ASPECTS:
      where = f"completions[{i}].annotations.{aspect}"
      notes = completion["annotations"]
      note = notes.get(aspect) if isinstance(notes, dict) else notes
      if not isinstance(note, dict):
        raise RowError("wrong_type", f"'{where}' is {shown(note)}; expected {{Rating}}")
      stars = choice_of(note.get("Rating"), _STARS, f"{where}.Rating", "1 to 5, or 'N/A'")
      if stars is not None:
        given[aspect] = stars
    ratings.append(given)
  if not any(ratings):
    raise RowError("no_attribute", "no completion has a rating; expected one at least")
  responses, authors = _completions(found)
  prompt = asked(row["instruction"], "instruction")
  labels = [0.0] * len(responses)
  more = dict(attributes=tuple(ratings), authors=authors)
  return example_of(row, origin, prompt, responses, labels, "attributes", **more)


def _completions(found: list[dict]) -> tuple[tuple, tuple[str, ...] | None]:
  """(responses, their models) of UltraFeedback's completions."""
  responses = tuple(
    answered(c["response"], f"completions[{i}].response") for i, c in enumerate(found)
  )
  return responses, names_of([c.get("model") for c in found])


def _looks_like_nectar(row: Row) -> bool:
  found = row["answers"]
  return isinstance(found, list) and all(isinstance(a, dict) and "rank" in a for a in found)


@register("nectar", needs=("prompt", "answers"), looks=_looks_like_nectar, last=True)
def _nectar(row: Row, origin: str) -> Example:
  """Nectar (Zhu et al. 2023): seven answers, ranked by GPT-4; rank 1 is the best.

  The prompt is a dialogue in Anthropic's raw form that ends with '\\n\\nAssistant: '. The models
  are kept as authors.
  """
  found = dicts_of(row["answers"], "answers", ("answer", "rank"), 2)
  ranks = [number_of(a["rank"], f"answers[{i}].rank") for i, a in enumerate(found)]
  wrong = next((i for i, rank in enumerate(ranks) if rank < 1), None)
  if wrong is not None:
    raise RowError("out_of_range", f"'answers[{wrong}].rank' is {ranks[wrong]}; expected 1 or more")
  *prompt, last = parse_dialogue(f"{text_of(row['prompt'], 'prompt').rstrip()} ")
  if last["content"].strip():
    raise RowError("malformed_dialogue", "'prompt' ends with an answer; expected the user's turn")
  responses = tuple(answered(a["answer"], f"answers[{i}].answer") for i, a in enumerate(found))
  authors = names_of([a.get("model") for a in found])
  prompt = prompt_of({"prompt": prompt})
  labels = [-rank for rank in ranks]
  return example_of(row, origin, prompt, responses, labels, "ranking", authors=authors)


def _looks_like_rewardbench2(row: Row) -> bool:
  sides = unpacked(row["chosen"]), unpacked(row["rejected"])
  return all(isinstance(s, list) and s and all(isinstance(x, str) for x in s) for s in sides)


@register(
  "rewardbench2",
  needs=("prompt", "chosen", "rejected", "num_correct"),
  looks=_looks_like_rewardbench2,
)
def _rewardbench2(row: Row, origin: str) -> Example:
  """RewardBench 2 (Malik et al. 2025, arXiv:2506.01937): lists of chosen and rejected responses.

  Each chosen response is better than each rejected one. Several chosen ones, as in the subset Ties,
  are tied, and so are the rejected ones.
  """
  groups = unpacked(row["chosen"]), unpacked(row["rejected"])
  if not _looks_like_rewardbench2(row):
    found = f"'chosen' is {shown(groups[0])} and 'rejected' {shown(groups[1])}"
    raise RowError("wrong_type", f"{found}; expected lists of texts, neither empty")
  responses = tuple(
    answered(text, f"{name}[{i}]")
    for name, group in zip(("chosen", "rejected"), groups, strict=True)
    for i, text in enumerate(group)
  )
  labels = [1.0] * len(groups[0]) + [0.0] * len(groups[1])
  return example_of(row, origin, asked(row["prompt"], "prompt"), responses, labels, "ranking")


@register("beavertails", needs=("prompt", "response", "is_safe"), last=True)
def _beavertails(row: Row, origin: str) -> Example:
  """BeaverTails (Ji et al. 2023, arXiv:2307.04657) and PKU-SafeRLHF-QA: is the response safe?

  `is_safe` true is labelled good. The categories of harm and its severity are not read.
  """
  safe = row["is_safe"]
  if not isinstance(safe, bool):
    raise RowError("wrong_type", f"'is_safe' is {shown(safe)}; expected true or false")
  responses = (answered(row["response"], "response"),)
  return example_of(row, origin, asked(row["prompt"], "prompt"), responses, [safe], "outcome")


def _looks_like_axes(row: Row) -> bool:
  return isinstance(row["summary"], dict) and "axes" in row["summary"]


@register("summarize_axes", needs=("info", "summary"), looks=_looks_like_axes, last=True)
def _summarize_axes(row: Row, origin: str) -> Example:
  """OpenAI's ratings of summaries (Stiennon et al. 2020): four axes from 1 to 7, 7 the best.

  They are overall, accuracy, coverage and coherence. The policy is kept as the author.
  """
  summary = row["summary"]
  axes = summary.get("axes") if isinstance(summary, dict) else None
  if not isinstance(axes, dict):
    raise RowError("wrong_type", f"'summary' is {shown(summary)}; expected {{text, axes}}")
  for name in _AXES:
    if axes.get(name) is not None and not 1 <= number_of(axes[name], f"summary.axes.{name}") <= 7:
      found = f"'summary.axes.{name}' is {axes[name]}"
      raise RowError("out_of_range", f"{found}; expected it in [1, 7]")
  responses = (summary_of(summary.get("text"), "summary.text"),)
  ratings = {name: axes.get(name) for name in _AXES}
  authors = names_of([summary.get("policy")])
  prompt = article_of(row["info"])
  return attributes_example(row, origin, prompt, responses, ratings, authors=authors)


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
  prompt = helpsteer_prompt(row["prompt"])
  ratings = {name: row[name] for name in _HELPSTEER}
  responses = (answer_of(row["response"], False, "response"),)
  return attributes_example(row, origin, prompt, responses, ratings)


@register("gsm8k_solutions", needs=("question", "ground_truth", *_SYSTEMS))
def _gsm8k_solutions(row: Row, origin: str) -> Example:
  """GSM8K (Cobbe et al. 2021): the solutions of four models, each right or wrong.

  Their order is shuffled by a hash of the question, so that a solution's place does not tell which
  model wrote it. Final answers are read by `data.answers.final_answer`.
  """
  question = question_of(row["question"], "question")
  order = list(_SYSTEMS)
  random.Random(hashlib.blake2b(question.encode()).digest()).shuffle(order)
  solutions = [row[name] for name in order]
  if not all(isinstance(s, dict) and isinstance(s.get("is_correct"), bool) for s in solutions):
    raise RowError("wrong_type", "a solution is not {solution, is_correct}; expected all four so")
  responses = tuple(answer_of(s.get("solution"), True, "solution") for s in solutions)
  labels = [probability_of(s["is_correct"], "is_correct") for s in solutions]
  answers = tuple(map(final_answer, responses))
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
