"""Declared limits on a response and its score, outside which a reward should not be trusted.

Optimisation finds inputs that the training data did not have. A score that is not between two
quantiles of a reference's scores, or a text that is too short or too long, repeats itself or
matches a forbidden pattern, is flagged. The audit reports how many responses are flagged; whoever
optimises against the score decides what a flag costs.
"""

import dataclasses
import re

import numpy as np
import numpy.typing as npt

from rm_jax.errors import InputError
from rm_jax.metrics import interval
from rm_jax.metrics.surface import characters, longest_run, repetition

# Smallest number of reference scores that `score_range` accepts. With so few, 2 % of new scores are
# expected outside the default range (`expected_outside`), and with fewer even more.
FEWEST = 100


# Of a default of earlier versions, which saved chains have, a pattern with the same matches. The
# old one has \s*, which at each line break ran over all following lines: 20,000 took minutes.
_FASTER = {r"^\s*(?:Human|Assistant|User):": r"^[^\S\n]*(?:Human|Assistant|User):"}


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits on a response, which is flagged by each limit that it is outside of.

  Attributes:
    quantiles: (low, high) of the reference's scores. A score below the low quantile or above the
      high one is out of range. Even of responses like the reference's own, at least a share of
      low + (1 − high) is expected out of range, and more if the reference is small: see
      `expected_outside`.
    min_characters: least length of the text without the white space at its ends; 1 flags empty
      responses.
    max_characters: greatest length of the text; 20,000 characters are about 5,000 tokens of
      English.
    max_repetition: greatest share of repeated word trigrams (`metrics.surface.repetition`). In
      prose less than 0.1 repeat, in long lists seldom half.
    max_run: how many times in a row one phrase may occur (`metrics.surface.longest_run`).
    deny: regular expressions, searched for case-insensitively and with ^ and $ at line breaks; a
      response that contains one is flagged. By default the markers of chat templates, which a
      policy writes if it does not stop at the end of its turn. Add what your product must not say.

  Raises:
    ValueError: a limit is out of its range, or a lower limit is above its upper one (of quantiles:
      or equal to it).
    InputError: a pattern of `deny` is not a regular expression.
  """

  quantiles: tuple[float, float] = (0.001, 0.999)
  min_characters: int = 1
  max_characters: int = 20_000
  max_repetition: float = 0.5
  max_run: int = 5
  deny: tuple[str, ...] = (
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|user|assistant)\|>",
    r"\[/?INST\]|<</?SYS>>",
    r"^[^\S\n]*(?:Human|Assistant|User):",
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
    """Name of each limit on the text -> whether this response is outside it.

    >>> [name for name, flagged in Limits().flags("no no no no no no").items() if flagged]
    ['repetition', 'run']
    """
    options = re.IGNORECASE | re.MULTILINE
    return {
      "short": characters(text.strip()) < self.min_characters,
      "long": characters(text) > self.max_characters,
      "repetition": repetition(text) > self.max_repetition,
      "run": longest_run(text) > self.max_run,
      "deny": any(re.search(_FASTER.get(one, one), text, options) for one in self.deny),
    }


def score_range(reference: npt.ArrayLike, limits: Limits) -> tuple[float, float]:
  """(lowest, highest) score that is in range: `limits.quantiles` of the reference's scores.

  Args:
    reference: [R] scores of responses like those that the model was trained on, R at least 100.
    limits: whose `quantiles` are taken.

  Raises:
    ValueError: fewer than 100 scores, or one that is not finite.
  """
  reference_R = interval.vector(reference, "reference")
  if len(reference_R) < FEWEST:
    raise ValueError(f"reference has {len(reference_R)} scores; expected at least {FEWEST}")
  low, high = np.quantile(reference_R, limits.quantiles)
  return float(low), float(high)


def expected_outside(count: int, limits: Limits) -> tuple[float, float]:
  """(below, above): expected shares of new responses whose scores are outside the `score_range`.

  The new responses are taken to be distributed like the reference's own.

  A new score falls below the k-th lowest of R with probability k / (R + 1), and the quantile q lies
  at k = 1 + q (R − 1). With q = 0.001 and R = 1,000 that is 0.002, twice the nominal share.

  Args:
    count: R, the number of reference scores.
    limits: whose `quantiles` are taken.
  """
  low, high = limits.quantiles
  below = (1 + low * (count - 1)) / (count + 1)
  above = (1 + (1 - high) * (count - 1)) / (count + 1)
  return below, above
