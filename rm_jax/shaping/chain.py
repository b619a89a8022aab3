"""The chain between a model's score and the score that reinforcement learning reads.

A chain is a list of stages (`stages.py`), each applied to the scores of the one before it. It is
declared as a text, 'normalise, clip(low=-5, high=5)'. Numbers that the text leaves out have
defaults, or are fitted on responses that people have compared or rated (a stage's `estimates`).
With all its numbers a chain is saved beside the model, in the file that `pretrained.source.SHAPING`
names.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.declared import parse, parse_calls
from rm_jax.errors import InputError
from rm_jax.shaping.stages import STAGES, Filters, Responses, Sample, Stage


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What a chain was fitted on.

  Attributes:
    data: its name.
    conversations: number of them.
    responses: number of responses.
    weights: `parallel.fingerprint.fingerprint_of` the model's parameters; of other ones the numbers
      may be wrong. '' = not known.
  """

  data: str
  conversations: int
  responses: int
  weights: str = ""


@dataclasses.dataclass(frozen=True)
class Shaped:
  """Scores of N responses on their way through a chain.

  Attributes:
    raw: [N], the model's own scores.
    after: name of a stage -> float64 [N], the scores after it, in the chain's order.
    reasons: for each response the rules that caught it, () if none did or the chain has none.
  """

  raw: np.ndarray
  after: dict[str, np.ndarray]
  reasons: tuple[tuple[str, ...], ...]

  @property
  def scores(self) -> np.ndarray:
    """Float32 [N], the scores after the last stage."""
    return next(reversed(self.after.values())).astype(np.float32)

  def explained(self) -> list[dict[str, Any]]:
    """How each score came about, of JSON's own types.

    Returns:
      for each response {raw: the model's own score (of an ensemble the mean), stages: name of a
      stage -> the score after it, shaped: the score after the last one, as in `scores`, reasons:
      names of the rules that caught it, [] if none did}.
    """
    raw, shaped = self.raw.tolist(), self.scores.tolist()
    after = {name: score_N.tolist() for name, score_N in self.after.items()}
    return [
      {
        "raw": raw[i],
        "stages": {name: scores[i] for name, scores in after.items()},
        "shaped": shaped[i],
        "reasons": list(reasons),
      }
      for i, reasons in enumerate(self.reasons)
    ]


@dataclasses.dataclass(frozen=True)
class Chain:
  """Stages in their order, with all their numbers.

  >>> chain = declared("clip(low=-2, high=2), tanh")
  >>> responses = Responses(np.float32([[9.0], [0.0]]), ["yes", "no"])
  >>> chain.shape(responses).scores
  array([0.9640276, 0.       ], dtype=float32)
  >>> str(chain)
  'clip(low=-2, high=2), tanh(scale=1.0)'

  Attributes:
    stages: one or more, none of them twice; `Lower` is the first and `Filters` the last.
    fitted: what they were fitted on; None = all numbers were declared.

  Raises:
    InputError: the stages are not of that order.
  """

  stages: tuple[Stage, ...]
  fitted: Fitted | None = None

  def __post_init__(self):
    check_order([stage.name for stage in self.stages])

  def __str__(self) -> str:
    """The text that declares this chain."""
    return ", ".join(
      f"{stage.name}({', '.join(f'{k}={v!r}' for k, v in vars(stage).items())})"
      for stage in self.stages
    )

  @property
  def digest(self) -> str:
    """12 hex digits of a hash of all numbers of the stages: chains with the same one are equal."""
    said = json.dumps(self.record()["stages"], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:12]

  def record(self) -> dict[str, Any]:
    """The chain in JSON's own types, as `chain_of` reads it."""
    stages = [{"name": stage.name, **dataclasses.asdict(stage)} for stage in self.stages]
    fitted = {} if self.fitted is None else {"fitted": dataclasses.asdict(self.fitted)}
    return json.loads(json.dumps({"stages": stages} | fitted, allow_nan=False))

  def shape(self, responses: Responses, origins: Sequence[str] | None = None) -> Shaped:
    """Applies the stages one after another, in float64.

    Args:
      responses: N.
      origins: their N names in errors; None = their numbers.

    Raises:
      InputError: a score, the model's own or one after a stage, is not a finite float32; the
        message names the stage and the response. Or the first stage is `Lower` and there is one
        member.
    """
    raw_N = responses.raw
    _check(raw_N, "the model", "", origins)
    score_N, after = raw_N.astype(np.float64), {}
    reasons: list[tuple[str, ...]] = [()] * len(raw_N)
    for stage in self.stages:
      with np.errstate(over="ignore"):  # what overflows is an error here
        if isinstance(stage, Filters):
          reasons = stage.reasons(responses)  # kept, because reading the texts takes time
          score_N = stage.penalised(score_N, reasons)
        else:
          score_N = stage.apply(score_N, responses)
      mend = f": fit the chain again, or declare other numbers than {stage!r:.200}"
      _check(score_N, f"the stage {stage.name!r} of the chain", mend, origins)
      after[stage.name] = score_N
    return Shaped(raw_N, after, tuple(reasons))


def _check(score_N: np.ndarray, source: str, mend: str, origins: Sequence[str] | None) -> None:
  with np.errstate(over="ignore"):
    finite_N = np.isfinite(score_N.astype(np.float32))
  if not finite_N.all():
    bad = int(np.flatnonzero(~finite_N)[0])
    origin = f"row {bad}" if origins is None else origins[bad]
    found = f"{origin}: {source} gives the score {score_N[bad]}"
    raise InputError(f"{found}; expected a finite number of float32{mend}")


def check_order(names: Sequence[str], where: str = "the chain") -> None:
  """Checks the names of a chain's stages, in their order.

  Raises:
    InputError: there is none, one is there twice, 'lower' is not the first, or 'filters' not the
      last.
  """
  if not names:
    raise InputError(f"{where} has no stage; expected of {', '.join(STAGES)}")
  if twice := [name for name in names if names.count(name) > 1]:
    raise InputError(f"{where} has the stage {twice[0]!r} twice; expected each at most once")
  if "lower" in names[1:]:
    raise InputError(f"{where} has 'lower' after {names[0]!r}; expected it first: it reads members")
  if "filters" in names[:-1]:
    raise InputError(
      f"{where} has 'filters' before {names[-1]!r}; expected it last: no stage may change its "
      "penalty"
    )


def chain_of(record: Any, where: str) -> Chain:
  """The chain of a record, as `Chain.record` makes it.

  Args:
    record: what was read from JSON.
    where: its file, for messages.

  Raises:
    InputError: it is no such record: a key is missing or not known, a value is of another type, not
      finite or out of its range, or the stages are in another order. The message names the key.
  """
  if not isinstance(record, dict) or not isinstance(stages := record.get("stages"), list):
    raise InputError(f"{where} holds {record!r:.80}; expected an object with a list of stages")
  if unknown := sorted(record.keys() - {"stages", "fitted"}):
    raise InputError(
      f"{where} has {unknown[0]!r:.80}, which we do not know; was it saved by newer?"
    )
  found = []
  for i, one in enumerate(stages):
    key = f"{where}: stages[{i}]"
    name = one.get("name") if isinstance(one, dict) else None
    if not isinstance(name, str) or name not in STAGES:
      raise InputError(
        f"{key} is {one!r:.80}; expected an object with a name of {', '.join(STAGES)}"
      )
    fields = [field.name for field in dataclasses.fields(STAGES[name])]
    if missing := [field for field in fields if field not in one]:
      raise InputError(f"{key}, {name!r}, has no {missing[0]!r}; expected {', '.join(fields)}")
    found.append(parse(STAGES[name], {k: v for k, v in one.items() if k != "name"}, key))
  check_order([stage.name for stage in found], where)
  fitted = record.get("fitted")
  if fitted is not None:
    fitted = parse(Fitted, fitted, f"{where}: fitted")
  return Chain(tuple(found), fitted)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A chain of which some numbers are missing: those are to be fitted.

  Attributes:
    stages: (class of a stage, its declared fields) in order.
  """

  stages: tuple[tuple[type, dict[str, Any]], ...]

  @property
  def missing(self) -> dict[str, list[str]]:
    """Name of a stage -> its fields that are taken from data."""
    wanted = {cls.name: [f for f in cls.estimates if f not in given] for cls, given in self.stages}
    return {name: fields for name, fields in wanted.items() if fields}

  def fit(self, sample: Sample, fitted: Fitted) -> Chain:
    """The chain whose missing numbers are taken from a sample, each stage's from the scores before.

    Args:
      sample: of judged responses.
      fitted: says what it is.

    Raises:
      InputError: the sample does not determine a number, or one that does not go with a declared
        one; or as `Chain.shape`.
    """
    stages: list[Stage] = []
    for cls, given in self.stages:
      score_N = sample.responses.raw.astype(np.float64)
      if stages:
        score_N = next(reversed(Chain(tuple(stages)).shape(sample.responses).after.values()))
      options = given
      if cls.name in self.missing:
        found = cls(**given).estimated(score_N, sample)
        options = {name: found[name] for name in self.missing[cls.name]} | given
      try:
        stages.append(cls(**options))
      except ValueError as error:
        raise InputError(
          f"{cls.name}: a number that was fitted does not go with a declared one ({error}); "
          "declare both, or neither"
        ) from error
    return Chain(tuple(stages), fitted if self.missing else None)


def plan(text: str, where: str) -> Plan:
  """The plan of a text such as 'lower(deviations=0.5), normalise, clip, filters(penalty=-5)'.

  Args:
    text: names of `STAGES` in their order, each with fields of its class as keyword arguments.
      Fields in its `estimates` that are not given are to be fitted, others have their default.
    where: the flag or argument, for messages.

  Raises:
    InputError: the text is not of that form, a stage or field is not known, a value is of another
      type or out of its range, or the stages are in another order.
  """
  expected = f"{where} is {text!r:.200}; expected stages as in 'normalise, clip(low=-5, high=5)'"
  found = []
  for name, options in parse_calls(text, expected):
    if name not in STAGES:
      raise InputError(f"{where} has the stage {name!r:.80}; expected of {', '.join(STAGES)}")
    parse(STAGES[name], options, f"{where}: {name}")
    found.append((STAGES[name], options))
  check_order([cls.name for cls, _ in found], where)
  return Plan(tuple(found))


def declared(text: str, where: str = "shaping") -> Chain:
  """The chain of a text that has all numbers. `str` of a chain gives such a text.

  Args:
    text, where: as `plan`'s.

  Raises:
    InputError: as `plan`; or a number is missing that has to be fitted.
  """
  made = plan(text, where)
  for name, fields in made.missing.items():
    raise InputError(
      f"{where} has {name!r} without {', '.join(fields)}; expected them, or a chain fitted by "
      "experiments.audit --calibrate --shape"
    )
  return Chain(tuple(cls(**given) for cls, given in made.stages))
