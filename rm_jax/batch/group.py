"""Groups: an example as tokens, its responses beginning with what they share."""

import dataclasses
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import TypeVar

import numpy as np

from rm_jax.batch.iterate import ahead
from rm_jax.batch.tokenise import Sequence, TextEncoder, common_prefix
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.errors import InputError
from rm_jax.types import Example

Item = TypeVar("Item")
_CHUNK = 512  # examples that the tokenizer is given at once


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
  """One example as tokens: K sequences that begin with the same `shared` ids.

  Attributes:
    ids: K arrays int32 [N_k], each a whole prompt + response.
    shared: leading ids that all K have and that are the prompt's own; one short of the shortest.
    marks: int32 [M], index of each mark in its own sequence, never inside the shared part.
    starts: int32 [M], in its own sequence, the first token of the mean that a mark is the last of;
      None where marks are read alone.
    response: int32 [M], which of the K sequences each mark reads.
    labels: float32 [M], gains.
    length: int32 [M], tokens of the mark's response.
    kind: see `types.KINDS`.
    source: its example's.
    weight: of the group.
    margin: by how much the better of two should win; 0 where not given.
    pairs, ties: float32 [M, M] (see `types.Example`), or None where the labels' order says it all.
    attributes: float32 [M, A], ratings on a model's attributes, NaN where there is none; None where
      the model has no attributes.
    token_type: K arrays int32 [N_k], or None.
    cut: ids left out of its sequences because they were too long.
  """

  ids: tuple[np.ndarray, ...]
  shared: int
  marks: np.ndarray
  response: np.ndarray
  labels: np.ndarray
  length: np.ndarray
  kind: str = "pair"
  source: str = ""
  weight: float = 1.0
  margin: float = 0.0
  pairs: np.ndarray | None = None
  ties: np.ndarray | None = None
  attributes: np.ndarray | None = None
  token_type: tuple[np.ndarray, ...] | None = None
  starts: np.ndarray | None = None
  cut: int = 0

  def columns(self, share: bool) -> int:
    """Columns it takes in a row, its prompt stored once or with every response."""
    total = sum(len(ids) for ids in self.ids)
    return total - (len(self.ids) - 1) * self.shared if share else total

  def comparisons(self) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, ties), float32 [M, M]: as observed, else by the order of the labels."""
    if self.pairs is not None or self.ties is not None:
      none = np.zeros((len(self.marks),) * 2, np.float32)
      return none if self.pairs is None else self.pairs, none if self.ties is None else self.ties
    label = self.labels[:, None]
    equal = (label == self.labels) & ~np.eye(len(self.marks), dtype=bool)
    return (label > self.labels).astype(np.float32), equal.astype(np.float32)


def make_group(sequences: Seq[Sequence], example: Example, attributes: Seq[str] = ()) -> Group:
  """Puts an example's sequences together; `attributes` are a model's, in order."""
  shared = common_prefix([s.ids for s in sequences])
  shared = min(shared, *(min(s.prompt, s.marks[0], len(s.ids) - 1) for s in sequences))
  counts = [len(s.marks) for s in sequences]
  types = tuple(s.token_type for s in sequences)
  starts = [s.starts for s in sequences]
  tokens = Group(
    ids=tuple(s.ids for s in sequences),
    shared=int(shared),
    marks=np.concatenate([s.marks for s in sequences]),
    response=np.repeat(np.arange(len(sequences), dtype=np.int32), counts),
    labels=None,
    length=np.repeat(np.asarray([len(s.ids) - s.prompt for s in sequences], np.int32), counts),
    token_type=None if types[0] is None else types,
    starts=None if starts[0] is None else np.concatenate(starts),
    cut=sum(s.cut for s in sequences),
  )
  return label(tokens, example, attributes)


def label(tokens: Group, example: Example, attributes: Seq[str] = ()) -> Group:
  """A group of which only the tokens are set, with all that an example says of them."""

  def matrix(value):
    return None if value is None else np.asarray(value, np.float32)

  return Group(
    ids=tokens.ids,
    shared=tokens.shared,
    marks=tokens.marks,
    response=tokens.response,
    labels=np.asarray(example.labels, np.float32),
    length=tokens.length,
    kind=example.kind,
    source=example.source,
    weight=example.weight,
    margin=example.margin or 0.0,
    pairs=matrix(example.pairs),
    ties=matrix(example.ties),
    attributes=_ratings(example, attributes, len(tokens.marks)) if attributes else None,
    token_type=tokens.token_type,
    starts=tokens.starts,
    cut=tokens.cut,
  )


def check_vocabulary(groups: Iterable[Group], vocab: int) -> None:
  """ValueError where a token is none of the model's: it would read another's embedding."""
  largest = max((int(ids.max()) for g in groups for ids in g.ids if len(ids)), default=-1)
  if largest >= vocab:
    raise InputError(
      f"the tokenizer gives id {largest} and the model has a vocabulary of {vocab}; set the "
      "model's own tokenizer (in training, --config.model.tokenizer)"
    )


def _ratings(example: Example, attributes: Seq[str], marks: int) -> np.ndarray:
  if example.attributes is None:
    return np.full((marks, len(attributes)), np.nan, np.float32)
  rated = [[one.get(name, np.nan) for name in attributes] for one in example.attributes]
  return np.asarray(rated, np.float32)


def tokenise(
  examples: Seq[Example], encoder: TextEncoder, report: Report, attributes: Seq[str] = ()
) -> tuple[list[Group], list[Example]]:
  """Examples -> groups, and the examples that they came from, in order.

  Dropped and counted in `report`: text that cannot be tokenised, groups whose sequences are all
  equal once tokenised (a difference that was cut away would train on a loss of log 2 forever), and
  feedback on none of the model's attributes.

  Args:
    examples: of any kind.
    encoder: the model's.
    report: counts what is dropped.
    attributes: the model's, in order.

  Raises:
    DataError: feedback on attributes, and the model has none.
  """
  groups, kept = keep(examples, outcomes(examples, encoder), report, attributes)
  return [label(g, e, attributes) for g, e in zip(groups, kept, strict=True)], kept


def keep(
  examples: Seq[Example],
  found: Iterable[Item | RowError],
  report: Report,
  attributes: Seq[str] = (),
) -> tuple[list[Item], list[Example]]:
  """(what was found of the examples that are kept, those examples); see `tokenise`."""
  items, kept = [], []
  for example, one in zip(examples, found, strict=True):
    rated = {name for ratings in example.attributes or () for name in ratings}
    if rated and not attributes:
      raise DataError(
        f"{example.origin}: feedback on attributes ({', '.join(sorted(rated))}), and the model "
        "has none; set --config.model.attributes to the names of those that it is to learn"
      )
    if isinstance(one, RowError):
      report.drop(one.reason, example.origin, one.detail)
    elif rated and rated.isdisjoint(attributes):
      detail = f"rates {', '.join(sorted(rated))}; expected {', '.join(attributes)}"
      report.drop("no_attribute", example.origin, detail)
    else:
      items.append(one)
      kept.append(example)
  return items, kept


def outcomes(examples: Seq[Example], encoder: TextEncoder) -> Iterator[Group | RowError]:
  """For each example its tokens, as a group without labels, or why there are none.

  They depend on its texts alone. The texts are rendered a chunk ahead, in a thread: templates are
  Python's work, and while the tokenizer works Python is free.
  """

  def prepare(start):
    chunk = examples[start : start + _CHUNK]
    whole = [(e.prompt, r) for e in chunk if e.steps is None for r in e.responses]
    return chunk, whole, encoder.rendered(whole)

  for chunk, whole, rendered in ahead(prepare, range(0, len(examples), _CHUNK)):
    sequences = iter(encoder.encoded(whole, rendered))
    for example in chunk:
      if example.steps is None:
        mine = [next(sequences) for _ in example.responses]
      else:
        mine = [encoder.step_sequence(example.prompt, steps) for steps in example.steps]
      error = next((s for s in mine if isinstance(s, RowError)), None)
      if error is not None:
        yield error
      elif len(mine) > 1 and all(np.array_equal(s.ids, mine[0].ids) for s in mine[1:]):
        yield RowError(
          "identical_after_tokenising",
          f"the {len(mine)} responses are the same {len(mine[0].ids)} tokens"
          + (f" after {mine[0].cut} were cut; expected a larger max_length" if mine[0].cut else ""),
        )
      else:
        yield make_group(mine, example)
