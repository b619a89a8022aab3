"""What should not be believed without a look: scores out of range, and texts that a rule catches.

Optimisation finds what the training data had not. A score beyond those of the reference, or a text
that is too long, repeats itself or has what it must not have, is flagged, and the report says which
share that is: of all responses, and of those that score highest, which optimisation would pick.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rm_jax.audit import figures
from rm_jax.audit.texts import Score, conversation_of, scores_of
from rm_jax.data.dialogue import plain
from rm_jax.errors import InputError
from rm_jax.metrics import agreement
from rm_jax.metrics.text import characters, longest_run, repetition
from rm_jax.types import Example

_REFERENCE = 100  # reference scores below which a tail's quantile is a guess


@dataclasses.dataclass(frozen=True)
class Rules:
  """Declared limits; a response outside any one is flagged by it.

  Attributes:
    quantiles: low and high, of the reference's scores: below the one or above the other is out of
      range. Of responses like the reference's own that share is flagged, and more by a small
      reference: see `expected`.
    min_characters: of a response's text; 1 flags the empty ones (white space does not count).
    max_characters: of a response's text; 20,000 is some 5,000 tokens of English.
    max_repetition: share of repeated word trigrams (`metrics.text.repetition`); of prose, less than
      0.1 repeat, and long lists seldom half.
    max_run: times that one phrase may stand after itself (`metrics.text.longest_run`).
    deny: regular expressions, searched for without regard to case, none of which a response may
      have: a chat template's own marks, which a model wrote where it should have ended. Others
      (words that a product must not say) are yours to declare.

  Raises:
    ValueError: quantiles out of order, a limit below its like, or no regular expression.
  """

  quantiles: tuple[float, float] = (0.001, 0.999)
  min_characters: int = 1
  max_characters: int = 20_000
  max_repetition: float = 0.5
  max_run: int = 5
  deny: tuple[str, ...] = (
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|user|assistant)\|>",
    r"\[/?INST\]|<</?SYS>>",
    r"^\s*(?:Human|Assistant|User):",
  )

  def __post_init__(self):
    low, high = self.quantiles
    if not 0 <= low < high <= 1:
      raise ValueError(f"quantiles are {self.quantiles}; expected 0 <= low < high <= 1")
    if not 0 <= self.min_characters <= self.max_characters:
      found = f"{self.min_characters} .. {self.max_characters}"
      raise ValueError(f"min_characters .. max_characters is {found}; expected 0 <= min <= max")
    if not 0 <= self.max_repetition <= 1 or self.max_run < 1:
      found = f"{self.max_repetition}, max_run {self.max_run}"
      raise ValueError(f"max_repetition is {found}; expected it in [0, 1], max_run at least 1")
    for pattern in self.deny:
      try:
        re.compile(pattern)
      except re.error as error:
        raise InputError(f"deny: {pattern!r} is no regular expression: {error}") from error

  def flags(self, text: str) -> dict[str, bool]:
    """Rule of the text -> whether it flags this one."""
    options = re.IGNORECASE | re.MULTILINE
    return {
      "short": characters(text.strip()) < self.min_characters,
      "long": characters(text) > self.max_characters,
      "repetition": repetition(text) > self.max_repetition,
      "run": longest_run(text) > self.max_run,
      "deny": any(re.search(pattern, text, options) for pattern in self.deny),
    }


def limits(reference: npt.ArrayLike, rules: Rules) -> tuple[float, float]:
  """The scores between which one is in range: quantiles of the reference's.

  Args:
    reference: [R] scores of responses like those that the model was trained on, R at least 100.
    rules: `quantiles`.

  Raises:
    ValueError: fewer than 100, or one that is not finite.
  """
  reference_R = agreement.vector(reference, "reference")
  if len(reference_R) < _REFERENCE:
    raise ValueError(f"reference has {len(reference_R)} scores; expected at least {_REFERENCE}")
  low, high = np.quantile(reference_R, rules.quantiles)
  return float(low), float(high)


def expected(reference: int, rules: Rules) -> tuple[float, float]:
  """Shares of fresh responses like the reference's own that are below and above its limits.

  A fresh score falls below the k-th lowest of R with probability k / (R + 1), and a quantile q
  lies at k = 1 + q (R − 1): with 0.001 of 1,000 scores that is 0.002.

  Args:
    reference: R, its number of scores.
    rules: `quantiles`.
  """
  low, high = rules.quantiles
  below = (1 + low * (reference - 1)) / (reference + 1)
  above = (1 + (1 - high) * (reference - 1)) / (reference + 1)
  return below, above


def flagged(
  score: Score,
  examples: Sequence[Example],
  *,
  rules: Rules | None = None,
  reference: npt.ArrayLike | None = None,
  top: float = 0.1,
  seed: int = 0,
) -> dict:
  """Share of responses that each rule flags, of all and of the top-scored.

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: of any kind; all their responses are looked at.
    rules: the limits; None = the defaults.
    reference: [R] scores for the range; None = no score is called out of range.
    top: share of the responses that is called top-scored; ties at its edge are shared out.
    seed: of the intervals.

  Returns:
    {responses, top, limits: [low, high] or None, expected: {below, above} of `expected`, rules: the
    declared ones,
    flags: name -> {all, top}, for each rule, for 'below' and 'above' the range, and for 'any' of
      them: figures of `figures`}.

  Raises:
    ValueError: no example, fewer than 2 conversations, or a score not finite; as `limits`.
  """
  rules = rules or Rules()
  rows = [(e.prompt, response) for e in examples for response in e.responses]
  clusters = [conversation_of(e) for e in examples for _ in e.responses]
  if len(set(clusters)) < 2:
    raise ValueError(f"{len(set(clusters))} conversation(s); intervals need at least 2")
  score_N = scores_of(score, rows)
  flags = [rules.flags(plain(response)) for _, response in rows]
  hit = {name: np.array([f[name] for f in flags]) for name in flags[0]}
  bounds = None
  if reference is not None:
    bounds = limits(reference, rules)
    hit |= {"below": score_N < bounds[0], "above": score_N > bounds[1]}
  hit["any"] = np.any(list(hit.values()), axis=0)

  def among_top(score_N, hit_N) -> float:
    high_N = figures.top_weights(score_N, top)
    return float((high_N * hit_N).sum() / high_N.sum())

  found = {}
  for name, hit_N in hit.items():
    found[name] = {
      "all": figures.share(hit_N, clusters, seed=seed),
      "top": figures.by_scores(among_top, score_N, hit_N, clusters, top=top, seed=seed),
    }
  if bounds is None:
    why = figures.none("no reference scores were given", len(rows))
    found |= {"below": {"all": why, "top": why}, "above": {"all": why, "top": why}}
  return {
    "responses": len(rows),
    "top": top,
    "limits": None if bounds is None else list(bounds),
    "expected": {}
    if bounds is None
    else dict(zip(("below", "above"), expected(len(reference), rules), strict=True)),
    "rules": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(rules).items()},
    "flags": found,
  }
