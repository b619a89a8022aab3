"""Formats of data sets with two responses and a judgement of which is better."""

import re

from rm_jax.data.dialogue import check_prompt, choice_of, messages_of, number_of, text_of
from rm_jax.data.feedback import answer_of, example_of, win_rates
from rm_jax.data.formats import register
from rm_jax.data.pairs import pair_example
from rm_jax.data.published.texts import (
  answered,
  asked,
  dicts_of,
  helpsteer_prompt,
  names_of,
  unpacked,
)
from rm_jax.data.read import Row
from rm_jax.data.report import RowError, shown
from rm_jax.types import Example

# What HelpSteer2 and HelpSteer3 write for "response 1 is much better" to "response 2 is".
_STRENGTHS = {strength: strength for strength in range(-3, 4)}
_STRENGTH = "-3 (response 1 is much better) to 3 (response 2 is)"
_IGNORED = -100  # HelpSteer2: the annotator found neither response valid.


@register(
  "helpsteer2_preference",
  needs=("prompt", "response_1", "response_2", "preference_strength"),
  optional=("all_preferences_unprocessed",),
  last=True,
)
def _helpsteer2_preference(row: Row, origin: str) -> Example:
  """HelpSteer2-Preference (Wang et al. 2024, arXiv:2410.01257): two responses and a strength.

  `preference_strength` is negative where response 1 is better and positive where response 2 is: 3
  much better, 2 better, 1 slightly better; 0 is a tie. Its size is the margin. What each annotator
  said (`all_preferences_unprocessed`, of the same sign) is kept as `judges` where it is a list,
  without those who found neither response valid (-100). The prompt is read as HelpSteer's.
  """
  strength = choice_of(row["preference_strength"], _STRENGTHS, "preference_strength", _STRENGTH)
  sides = answered(row["response_1"], "response_1"), answered(row["response_2"], "response_2")
  said = row.get("all_preferences_unprocessed")
  judges = None
  if isinstance(said, list):  # Some rows have it as Python's text of a list instead.
    name = "all_preferences_unprocessed"
    votes = [one["strength"] for one in dicts_of(said, name, ("strength",))]
    judges = _judges([vote for vote in votes if vote != _IGNORED], name)
  prompt = helpsteer_prompt(row["prompt"])
  return pair_example(
    row, origin, prompt, sides, -strength, margin=float(abs(strength)) or None, judges=judges
  )


@register(
  "helpsteer3",
  needs=("context", "response1", "response2", "overall_preference"),
  optional=("individual_preference",),
  last=True,
)
def _helpsteer3(row: Row, origin: str) -> Example:
  """HelpSteer3-Preference (Wang et al. 2025, arXiv:2505.11475): a conversation and two responses.

  `overall_preference` is negative where response 1 is better and positive where response 2 is: 3
  much better, 2 better, 1 slightly better; 0 is a tie. Its size is the margin. The annotators'
  `score`s in `individual_preference`, of the same sign, are kept as `judges`, by their sign alone.
  """
  strength = choice_of(row["overall_preference"], _STRENGTHS, "overall_preference", _STRENGTH)
  sides = answered(row["response1"], "response1"), answered(row["response2"], "response2")
  judges = None
  if row.get("individual_preference") is not None:
    name = "individual_preference"
    judges = _judges([one["score"] for one in dicts_of(row[name], name, ("score",), 0)], name)
  return pair_example(
    row,
    origin,
    messages_of(row["context"], "context"),
    sides,
    -strength,
    margin=float(abs(strength)) or None,
    judges=judges,
  )


def _judges(votes: list[object], column: str) -> dict[str, float] | None:
  """What each annotator said of two responses, from strengths: below 0 the first is better.

  None if there are no votes.
  """
  said = {}
  for i, vote in enumerate(votes):
    strength = choice_of(vote, _STRENGTHS, f"{column}[{i}]", _STRENGTH)
    said[f"annotator {i + 1}"] = 0.5 if not strength else float(strength < 0)
  return said or None


@register(
  "safe_rlhf",
  needs=("prompt", "response_0", "response_1", "better_response_id"),
  optional=("response_0_source", "response_1_source"),
  last=True,
)
def _safe_rlhf(row: Row, origin: str) -> Example:
  """PKU-SafeRLHF (Ji et al. 2024, arXiv:2406.15513), by helpfulness, whatever the harm.

  `better_response_id` is the number of the more helpful response, 0 or 1. In the data set's form of
  a single dimension it is the better one in both respects together. The safer response is the
  business of the format `safe_rlhf_safety`.
  """
  return _safe_rlhf_by(row, origin, "better_response_id")


@register(
  "safe_rlhf_safety",
  needs=("prompt", "response_0", "response_1", "safer_response_id"),
  optional=("response_0_source", "response_1_source"),
  by_name=True,
)
def _safe_rlhf_safety(row: Row, origin: str) -> Example:
  """PKU-SafeRLHF by harmlessness: `safer_response_id` is the safer response's number, 0 or 1."""
  return _safe_rlhf_by(row, origin, "safer_response_id")


def _safe_rlhf_by(row: Row, origin: str, column: str) -> Example:
  expected = "0 or 1, the number of a response"
  sign = choice_of(row[column], {0: 1.0, 1: -1.0}, column, expected)
  sides = answered(row["response_0"], "response_0"), answered(row["response_1"], "response_1")
  authors = names_of([row.get("response_0_source"), row.get("response_1_source")])
  return pair_example(row, origin, asked(row["prompt"], "prompt"), sides, sign, authors=authors)


@register("summarize_comparisons", needs=("info", "summaries", "choice"), last=True)
def _summarize_comparisons(row: Row, origin: str) -> Example:
  """OpenAI's comparisons of two summaries (Stiennon et al. 2020, arXiv:2009.01325).

  `choice` is the number of the better summary, 0 or 1. The policies that wrote them are kept as
  authors. `extra.confidence` is not read, nor are the worker's notes.
  """
  sign = choice_of(row["choice"], {0: 1.0, 1: -1.0}, "choice", "0 or 1, the number of a summary")
  summaries = dicts_of(row["summaries"], "summaries", ("text",), 2)
  if len(summaries) != 2:
    raise RowError("wrong_type", f"'summaries' has {len(summaries)}; expected 2")
  sides = tuple(summary_of(one["text"], f"summaries[{i}].text") for i, one in enumerate(summaries))
  authors = names_of([one.get("policy") for one in summaries])
  return pair_example(row, origin, article_of(row["info"]), sides, sign, authors=authors)


def article_of(info: object) -> str:
  """The prompt for a summary, from `info`: a Reddit post or an article, and 'TL;DR:' behind it.

  In front of it stand the subreddit and the title, where they are given.

  Raises:
    RowError: wrong_type, lone_surrogate or empty_prompt.
  """
  if not isinstance(info, dict):
    raise RowError("wrong_type", f"'info' is {shown(info)}; expected {{post}} or {{article}}")
  name = "post" if info.get("post") is not None else "article"
  text = text_of(info.get(name), f"info.{name}")
  check_prompt(text)
  parts = [f"{name.upper()}: {text}", "TL;DR:"]
  for key, form in (("title", "TITLE: {}"), ("subreddit", "SUBREDDIT: r/{}")):
    if info.get(key) is not None:
      parts.insert(0, form.format(text_of(info[key], f"info.{key}")))
  return "\n\n".join(parts)


def summary_of(value: object, column: str) -> str:
  """A summary, with the space in front that most have as published, to follow 'TL;DR:'.

  Raises:
    RowError: wrong_type, lone_surrogate or empty_response.
  """
  text = text_of(value, column)
  return answer_of(text if text[:1].isspace() else f" {text}", True, column)


@register("webgpt", needs=("question", "answer_0", "answer_1", "score_0", "score_1"), last=True)
def _webgpt(row: Row, origin: str) -> Example:
  """OpenAI's WebGPT comparisons (Nakano et al. 2021, arXiv:2112.09332): two answers and scores.

  `score_0` is the strength of the preference for answer 0, from -1 to 1, and `score_1` is -score_0:
  the answer whose score is positive is better, and 0 is a tie. The strength is the margin. The
  quotes that an answer refers to are not read.
  """
  scores = number_of(row["score_0"], "score_0"), number_of(row["score_1"], "score_1")
  if not -1 <= scores[0] <= 1 or abs(sum(scores)) > 1e-6:
    found = f"'score_0' is {scores[0]} and 'score_1' {scores[1]}"
    raise RowError("out_of_range", f"{found}; expected numbers in [-1, 1] whose sum is 0")
  question = unpacked(row["question"])
  if not isinstance(question, dict):
    raise RowError("wrong_type", f"'question' is {shown(question)}; expected {{full_text}}")
  prompt = asked(question.get("full_text"), "question.full_text")
  sides = answered(row["answer_0"], "answer_0"), answered(row["answer_1"], "answer_1")
  return pair_example(row, origin, prompt, sides, scores[0], margin=abs(scores[0]) or None)


@register("shp", needs=("history", "human_ref_A", "human_ref_B", "labels"), last=True)
def _shp(row: Row, origin: str) -> Example:
  """Stanford Human Preferences, SHP and SHP-2 (Ethayarajh et al. 2022): two comments on a post.

  `labels` is 1 where readers preferred comment A, and 0 where they preferred B. `score_ratio`, of
  the comments' votes, is not read: it is no margin in units of score.
  """
  sign = choice_of(row["labels"], {1: 1.0, 0: -1.0}, "labels", "1 (A is preferred) or 0 (B is)")
  sides = answered(row["human_ref_A"], "human_ref_A"), answered(row["human_ref_B"], "human_ref_B")
  return pair_example(row, origin, asked(row["history"], "history"), sides, sign)


# The annotators beside annotator1 whose columns may be mapped; more are read under their own names.
_ANNOTATORS = tuple(f"annotator{n}" for n in range(2, 10))


@register(
  "pandalm",
  needs=("instruction", "input", "response1", "response2", "annotator1"),
  optional=_ANNOTATORS,
)
def _pandalm(row: Row, origin: str) -> Example:
  """PandaLM's test set (Wang et al. 2023): two answers, and each annotator's verdict.

  It is the number of the better answer, 1 or 2, or 0 for a tie; null is skipped.
  """
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
