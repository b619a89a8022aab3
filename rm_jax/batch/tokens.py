"""One prompt + response as tokens, and what was left out of it."""

import dataclasses
from collections.abc import Sequence

import numpy as np


class Cut(int):
  """How many ids of a text were left out because it was too long: a number, with its parts.

  Attributes:
    response: how many of them are the response's, and not the prompt's.
  """

  response: int

  def __new__(cls, total: int, response: int = 0):
    self = super().__new__(cls, total)
    self.response = response
    return self


def cut_message(cuts: Sequence[Cut], limits: str) -> str:
  """The warning for texts that were too long.

  Args:
    cuts: of each text, at least one of them positive.
    limits: the model's, as `Convention.limits` has them.
  """
  found = [cut for cut in cuts if cut]
  responses = sum(cut.response for cut in found)
  said = (
    f"{len(found)} of {len(cuts)} rows are longer than {limits}: of their prompts "
    f"{sum(found) - responses} tokens are left out, the oldest first"
  )
  if not responses:
    return said
  many = sum(cut.response > 0 for cut in found)
  return f"{said}, and of {many} responses, too long by themselves, the first {responses} tokens"


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
  """One prompt + response as tokens.

  Attributes:
    ids: int32 [N], N at most `Convention.max_length`.
    prompt: number of leading ids that are the prompt's.
    marks: int32 [M], indices of the tokens at which rewards are read: one, or one a step.
    token_type: int32 [N] if the tokenizer's pair encoding has it (encoders), else None.
    cut: number of ids that were left out because the whole was too long; see `Cut`.
    starts: int32 [M], with mean pooling the first token of each mean (the last is the mark); else
      None.
  """

  ids: np.ndarray
  prompt: int
  marks: np.ndarray
  token_type: np.ndarray | None
  cut: Cut
  starts: np.ndarray | None = None


def common_prefix(sequences: Sequence[np.ndarray]) -> int:
  """Length of the longest common prefix."""
  shortest = min(len(s) for s in sequences)
  first = sequences[0][:shortest]
  for other in sequences[1:]:
    differs = np.flatnonzero(first[:shortest] != other[:shortest])
    if len(differs):
      shortest = int(differs[0])
  return shortest
