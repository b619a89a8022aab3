"""The stages of a chain: each turns the scores of N responses into others, by declared numbers.

A stage is a frozen dataclass whose fields are its numbers, so that a record in JSON, or a text such
as 'clip(low=-5, high=5)', declares it. `apply` computes with them; `estimated` gives those that
are taken from data. To add one, write the class and list it in `STAGES`.

Coste et al. (2023), Reward model ensembles help mitigate overoptimization (`lower`). Ziegler et al.
(2019), Fine-tuning language models from human preferences (`normalise`: mean 0 and deviation 1).
Guo et al. (2017) and Platt (1999), see metrics/calibration.py (`calibrate`). Huang et al. (2024),
Post-hoc reward calibration: a case study on length bias, arXiv 2409.17407 (`decorrelate`, here with
one straight line in place of local ones). Zheng et al. (2023), Secrets of RLHF in large language
models, part I, arXiv 2307.04964 (`normalise` followed by `clip`).
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from rm_jax.errors import InputError
from rm_jax.metrics.calibration import fit_platt, fit_temperature
from rm_jax.metrics.language import LANGUAGES, guess_language
from rm_jax.metrics.surface import characters
from rm_jax.shaping.limits import FEWEST, Limits, score_range

# What `guess_language` says of a text from which it cannot tell: of too few stop words of any
# language, or without a letter. It is no reason to filter a response.
UNTOLD = ("unsure", "script:none")
# Smallest share of a sample's responses that a guess of the language has if it is to be allowed.
_SPOKEN = 0.01


@dataclasses.dataclass(frozen=True)
class Responses:
  """N responses, as the stages read them.

  Attributes:
    members: [N, M], the scores of an ensemble's members; M = 1 if the model is no ensemble.
    texts: N responses; a solution in steps is its steps, joined.
  """

  members: np.ndarray
  texts: Sequence[str]

  def __post_init__(self):
    if self.members.ndim != 2 or len(self.members) != len(self.texts) or not self.members.shape[1]:
      raise ValueError(
        f"members are {self.members.shape} of {len(self.texts)} texts; expected [N, M], M at least "
        "1, of N texts"
      )

  @property
  def raw(self) -> np.ndarray:
    """[N], the model's own score: the mean over the members, in the dtype of `members`."""
    return self.members.mean(axis=1)

  @property
  def lengths(self) -> np.ndarray:
    """Float64 [N], characters of each text."""
    return np.array([characters(text) for text in self.texts], np.float64)


@dataclasses.dataclass(frozen=True)
class Sample:
  """Responses with people's judgements, from which a stage's numbers are estimated.

  Attributes:
    responses: N.
    prompts: int [N]; responses with the same number answer the same prompt.
    better: int [C], in each of C comparisons the index of the response that people preferred.
    worse: int [C], the index of the other one.
    rated: int [L], indices of the responses that were judged right or wrong by themselves.
    labels: float [L] in [0, 1], 1 = right.
  """

  responses: Responses
  prompts: np.ndarray
  better: np.ndarray
  worse: np.ndarray
  rated: np.ndarray
  labels: np.ndarray

  @property
  def judged(self) -> np.ndarray:
    """Float64 [N], how each response was judged among those to its prompt: the comparisons that it
    won minus those that it lost, plus its label."""
    count = len(self.prompts)
    judged_N = np.bincount(self.better, minlength=count) - np.bincount(self.worse, minlength=count)
    labels_N = np.bincount(self.rated, self.labels, minlength=count)
    return judged_N + labels_N


class Stage(Protocol):
  """What a stage is.

  Attributes:
    name: in records and texts.
    monotone: whether the score after it is a non-decreasing function of the score before it, the
      same for all responses. Such a stage changes no comparison, unless it makes a tie.
    affine: whether it is a straight line of that score, which changes no correlation, either.
    estimates: names of the fields that are taken from data where they are not declared.
  """

  name: ClassVar[str]
  monotone: ClassVar[bool]
  affine: ClassVar[bool]
  estimates: ClassVar[tuple[str, ...]]

  def apply(self, score_N: np.ndarray, responses: Responses) -> np.ndarray:
    """The scores [N] after the stage, of the scores [N] before it."""

  def estimated(self, score_N: np.ndarray, sample: Sample) -> dict[str, Any]:
    """{field of `estimates`: its value on a sample}, whose scores before the stage are `score_N`.

    Raises:
      InputError: the sample does not determine it.
    """


class _Declared:
  """A stage's attributes by default, and its `estimated` where all its numbers are declared."""

  monotone: ClassVar[bool] = False
  affine: ClassVar[bool] = False
  estimates: ClassVar[tuple[str, ...]] = ()

  def estimated(self, score_N: np.ndarray, sample: Sample) -> dict[str, Any]:
    del score_N, sample
    return {}


def _positive(**values: float) -> None:
  for name, value in values.items():
    if not value > 0:
      raise ValueError(f"{name} is {value}; expected it above 0")


def below_mean(members_NM: np.ndarray, deviations: float) -> np.ndarray:
  """An ensemble's mean minus `deviations` standard deviations over its members, [N].

  Raises:
    InputError: there is one member alone, which has no deviation.
  """
  if members_NM.shape[1] == 1:
    raise InputError(
      f"lower is {deviations} and the model has one member; expected an ensemble (model.members)"
    )
  return members_NM.mean(axis=1) - members_NM.dtype.type(deviations) * members_NM.std(axis=1)


@dataclasses.dataclass(frozen=True)
class Lower(_Declared):
  """mean − deviations · std over an ensemble's members: the first stage, if there is one.

  Attributes:
    deviations: at least 0.
  """

  deviations: float = 1.0

  name: ClassVar[str] = "lower"

  def __post_init__(self):
    if not self.deviations >= 0:
      raise ValueError(f"deviations is {self.deviations}; expected at least 0")

  def apply(self, score_N: np.ndarray, responses: Responses) -> np.ndarray:
    del score_N  # the members' mean
    return below_mean(responses.members, self.deviations).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Normalise(_Declared):
  """(score − mean) / deviation.

  Numbers that are not declared are those of the sample's scores. If neither is, the sample has mean
  0 and deviation 1 afterwards.

  Attributes:
    mean: subtracted.
    deviation: above 0.
  """

  mean: float = 0.0
  deviation: float = 1.0

  name: ClassVar[str] = "normalise"
  monotone: ClassVar[bool] = True
  affine: ClassVar[bool] = True
  estimates: ClassVar[tuple[str, ...]] = ("mean", "deviation")

  def __post_init__(self):
    _positive(deviation=self.deviation)

  def apply(self, score_N: np.ndarray, responses: Responses) -> np.ndarray:
    del responses
    return (score_N - self.mean) / self.deviation

  def estimated(self, score_N: np.ndarray, sample: Sample) -> dict[str, Any]:
    del sample
    if not len(score_N) or score_N.min() == score_N.max():
      raise InputError(
        f"normalise: the {len(score_N)} scores it is fitted on are all equal; expected at least "
        "two different ones"
      )
    return {"mean": float(score_N.mean()), "deviation": float(score_N.std())}


@dataclasses.dataclass(frozen=True)
class Calibrate(_Declared):
  """score / temperature + bias, so that scores, or their differences, are log-odds.

  The sample's comparisons decide the temperature, by which σ of a difference is the probability
  that the better response is preferred; they say nothing of the bias, with which the sample's mean
  becomes 0. Without comparisons Platt's slope and bias are taken, by which σ(score) is the
  probability that a response is right.

  Attributes:
    temperature: above 0.
    bias: added.
  """

  temperature: float = 1.0
  bias: float = 0.0

  name: ClassVar[str] = "calibrate"
  monotone: ClassVar[bool] = True
  affine: ClassVar[bool] = True
  estimates: ClassVar[tuple[str, ...]] = ("temperature", "bias")

  def __post_init__(self):
    _positive(temperature=self.temperature)

  def apply(self, score_N: np.ndarray, responses: Responses) -> np.ndarray:
    del responses
    return score_N / self.temperature + self.bias

  def estimated(self, score_N: np.ndarray, sample: Sample) -> dict[str, Any]:
    try:
      if len(sample.better):
        temperature = fit_temperature(score_N[sample.better] - score_N[sample.worse])
        return {"temperature": temperature, "bias": float(-score_N.mean() / temperature)}
      slope, bias = fit_platt(score_N[sample.rated], sample.labels)
    except ValueError as error:
      raise InputError(f"calibrate: {error}") from error
    if not slope > 0:
      raise InputError(
        f"calibrate: the slope on the labels is {slope}, so that higher scores are of responses "
        "that are wrong; expected it above 0"
      )
    return {"temperature": 1 / slope, "bias": bias}


@dataclasses.dataclass(frozen=True)
class Decorrelate(_Declared):
  """score − slope · (characters − mean): without the straight line that length explains of it.

  The slope is that of least squares of a score on its length at equal judgement: on length and
  `Sample.judged` together, both as differences from their means over the responses to one prompt,
  because between prompts length and score go together for other reasons. In a pair it is the slope
  of the score's difference (chosen minus rejected) on that of length, beside a constant. Only where
  no prompt has two responses of different lengths it is the slope over all responses. The mean is
  that of the sample's lengths.

  A judgement says which response is better and not by how much: where longer responses are better
  by more, some of that is removed, too. The audit measures what it costs in agreement.

  Attributes:
    slope: score a character.
    mean: the length, in characters, at which a score stays as it is.
  """

  slope: float = 0.0
  mean: float = 0.0

  name: ClassVar[str] = "decorrelate"
  estimates: ClassVar[tuple[str, ...]] = ("slope", "mean")

  def apply(self, score_N: np.ndarray, responses: Responses) -> np.ndarray:
    return score_N - self.slope * (responses.lengths - self.mean)

  def estimated(self, score_N: np.ndarray, sample: Sample) -> dict[str, Any]:
    length_N = sample.responses.lengths
    for groups in (sample.prompts, np.zeros_like(sample.prompts)):
      inside_N2 = np.stack([_inside(x_N, groups) for x_N in (length_N, sample.judged)], axis=1)
      spread_2 = inside_N2.std(axis=0)
      if spread_2[0] > 0:
        inside_N2 /= np.where(spread_2 > 0, spread_2, 1)
        slope_2, *_ = np.linalg.lstsq(inside_N2, _inside(score_N, groups), rcond=1e-9)
        return {"slope": float(slope_2[0] / spread_2[0]), "mean": float(length_N.mean())}
    raise InputError(
      f"decorrelate: the {len(score_N)} responses that it is fitted on have one length; expected "
      "several"
    )


def _inside(value_N: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """Each value minus the mean over its group, float64 [N]."""
  _, at = np.unique(groups, return_inverse=True)
  return value_N - (np.bincount(at, value_N) / np.bincount(at))[at]


@dataclasses.dataclass(frozen=True)
class Clip(_Declared):
  """The score, or the nearer bound where it is outside.

  Attributes:
    low: lowest score.
    high: highest score, above `low`.
  """

  low: float = -5.0
  high: float = 5.0

  name: ClassVar[str] = "clip"
  monotone: ClassVar[bool] = True

  def __post_init__(self):
    if not self.low < self.high:
      raise ValueError(f"low .. high is {self.low} .. {self.high}; expected low < high")

  def apply(self, score_N: np.ndarray, responses: Responses) -> np.ndarray:
    del responses
    return np.clip(score_N, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Tanh(_Declared):
  """scale · tanh(score / scale): about the score where it is small, and within ± scale.

  Attributes:
    scale: above 0.
  """

  scale: float = 1.0

  name: ClassVar[str] = "tanh"
  monotone: ClassVar[bool] = True

  def __post_init__(self):
    _positive(scale=self.scale)

  def apply(self, score_N: np.ndarray, responses: Responses) -> np.ndarray:
    del responses
    return self.scale * np.tanh(score_N / self.scale)


@dataclasses.dataclass(frozen=True)
class Filters(_Declared, Limits):
  """A response that a rule catches gets the penalty, or keeps its score where that is lower.

  The last stage, if there is one, so that the penalty is what reinforcement learning reads. The
  rules on the text are those of `Limits`, whose fields these are, too.

  Attributes:
    penalty: by default the lowest score of the sample.
    low, high: the range of the model's own score (of an ensemble the mean), outside which a
      response is caught; None = no bound. By default the quantiles `Limits.quantiles` of the
      sample's; of fewer than 100 responses there is no bound.
    languages: what `metrics.language.guess_language` may say of a response. It looks at the Unicode
      names of letters and at some twenty stop words of each of seven languages, and is no trained
      identifier: 'English', ..., or 'script:CYRILLIC', 'script:mixed' ... Where it cannot tell
      ('unsure', or no letter at all) a response is not caught. () = all; by default what it says of
      at least 1 % of the sample, and no rule where it can tell of none.
  """

  penalty: float = 0.0
  low: float | None = None
  high: float | None = None
  languages: tuple[str, ...] = ()

  name: ClassVar[str] = "filters"
  estimates: ClassVar[tuple[str, ...]] = ("penalty", "low", "high", "languages")

  def __post_init__(self):
    for name in ("quantiles", "deny", "languages"):  # lists in JSON
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if len(self.quantiles) != 2:
      raise ValueError(f"quantiles are {self.quantiles}; expected two")
    super().__post_init__()
    for name in self.languages:
      if name not in LANGUAGES and not str(name).startswith("script:"):
        raise ValueError(
          f"languages has {name!r}; expected of {', '.join(LANGUAGES)}, and 'script:' with the "
          "first word of its letters' Unicode names, as 'script:CYRILLIC'"
        )
    if self.low is not None and self.high is not None and not self.low <= self.high:
      raise ValueError(f"low .. high is {self.low} .. {self.high}; expected low <= high")

  def apply(self, score_N: np.ndarray, responses: Responses) -> np.ndarray:
    return self.penalised(score_N, self.reasons(responses))

  def penalised(self, score_N: np.ndarray, reasons: Sequence[tuple[str, ...]]) -> np.ndarray:
    """The scores [N] after the stage, from those before it and what `reasons` found."""
    caught_N = np.array([bool(found) for found in reasons], bool)
    return np.where(caught_N, np.minimum(score_N, self.penalty), score_N)

  def reasons(self, responses: Responses) -> list[tuple[str, ...]]:
    """For each response the rules that catch it: those of `Limits.flags`, 'language', 'below' and
    'above' (the range); () if none does."""
    return [
      self._reasons(float(raw), text)
      for raw, text in zip(responses.raw, responses.texts, strict=True)
    ]

  @property
  def reasons_there_are(self) -> tuple[str, ...]:
    """Names of the rules that can catch a response."""
    rules = {"language": bool(self.languages), "below": self.low is not None}
    rules["above"] = self.high is not None
    return (*self.flags(""), *(name for name, on in rules.items() if on))

  def _reasons(self, raw: float, text: str) -> tuple[str, ...]:
    found = [name for name, caught in self.flags(text).items() if caught]
    if self.languages and guess_language(text) not in (*self.languages, *UNTOLD):
      found.append("language")
    if self.low is not None and raw < self.low:
      found.append("below")
    if self.high is not None and raw > self.high:
      found.append("above")
    return tuple(found)

  def estimated(self, score_N: np.ndarray, sample: Sample) -> dict[str, Any]:
    raw_N, texts = sample.responses.raw, sample.responses.texts
    if not len(raw_N):
      raise InputError("filters: there is no response to fit it on; expected some")
    bounds = score_range(raw_N, self) if len(raw_N) >= FEWEST else (None, None)
    said = collections.Counter(map(guess_language, texts))
    least = max(1, math.ceil(_SPOKEN * len(texts)))
    spoken = [name for name, count in said.items() if count >= least and name not in UNTOLD]
    return {
      "penalty": float(score_N.min()),
      "low": bounds[0],
      "high": bounds[1],
      "languages": tuple(sorted(spoken)),
    }


STAGES: dict[str, type] = {
  one.name: one for one in (Lower, Normalise, Calibrate, Decorrelate, Clip, Tanh, Filters)
}
