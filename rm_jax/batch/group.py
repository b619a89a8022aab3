"""Groups: an example as token sequences that begin with a shared prompt, and its feedback."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from rm_jax.batch.iterate import ahead
from rm_jax.batch.tokenise import TextEncoder
from rm_jax.batch.tokens import Tokens, common_prefix
from rm_jax.data.report import DataError, Report, RowError
from rm_jax.errors import InputError
from rm_jax.types import Example

Item = TypeVar("Item")
_CHUNK = 512  # examples that are rendered, and then encoded, together
COMPARED = ("pair", "ranking")  # kinds whose feedback compares the responses


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
  """One example as tokens: K sequences that begin with the same `shared` ids.

  A field that has the name of an optional array of `types.Batch` is packed into that array. A mark
  is a token at which a reward is read.

  Attributes:
    ids: K arrays int32 [N_k], each a whole prompt + response.
    shared: number of leading ids that all sequences have and that belong to the prompt; less than
      the length of the shortest sequence, so that every response has a token of its own.
    marks: int32 [M], index of each mark in its own sequence, never inside the shared part.
    response: int32 [M], which of the K sequences each mark reads.
    labels: float32 [M], gains, higher is better; None in a group without feedback (see `label`).
    length: int32 [M], tokens of the mark's response.
    kind: one of `types.KINDS`.
    source: the example's.
    weight: of the group in the loss.
    pair_margin: by how much the better of two should win, in units of score; None where it is not
      given, or 0.
    pairs, ties: float32 [M, M] or None (see `types.Example`); where both are None, the labels'
      order says it all.
    attributes: float32 [M, A], ratings on a model's attributes, NaN where not rated; None where the
      model has no attributes.
    objective: index of the model's attribute that the judgement is about; None = the reward.
    token_type: K arrays int32 [N_k], or None.
    mismatched: bool [M], marks of responses to other prompts (see `batch.mismatch`), or None.
    starts: int32 [M], for mean pooling, index in its own sequence of the first token of the mean
      whose last token is the mark; None with other pooling.
    cut: number of ids that were left out because a sequence was too long.
  """

  ids: tuple[np.ndarray, ...]
  shared: int
  marks: np.ndarray
  response: np.ndarray
  labels: np.ndarray | None
  length: np.ndarray
  kind: str = "pair"
  source: str = ""
  weight: float = 1.0
  pair_margin: float | None = None
  pairs: np.ndarray | None = None
  ties: np.ndarray | None = None
  attributes: np.ndarray | None = None
  objective: int | None = None
  token_type: tuple[np.ndarray, ...] | None = None
  mismatched: np.ndarray | None = None
  starts: np.ndarray | None = None
  cut: int = 0

  def columns(self, share: bool) -> int:
    """Number of tokens, its prompt counted once (`share`) or with every response."""
    total = sum(len(ids) for ids in self.ids)
    return total - (len(self.ids) - 1) * self.shared if share else total

  def comparisons(self) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, ties), float32 [M, M]: as observed, or, if neither is given, by the labels' order."""
    if self.pairs is not None or self.ties is not None:
      none = np.zeros((len(self.marks),) * 2, np.float32)
      return none if self.pairs is None else self.pairs, none if self.ties is None else self.ties
    label = self.labels[:, None]
    equal = (label == self.labels) & ~np.eye(len(self.marks), dtype=bool)
    return (label > self.labels).astype(np.float32), equal.astype(np.float32)


def make_group(
  sequences: Sequence[Tokens], example: Example, attributes: Sequence[str] = ()
) -> Group:
  """A group from an example and its tokenised responses.

  Args:
    sequences: one for each response.
    example: the one that they are of.
    attributes: names of the model's attributes, in order.

  Raises:
    ValueError: the example's objective is none of the attributes.
  """
  return label(join(sequences), example, attributes)


def join(sequences: Sequence[Tokens]) -> Group:
  """The sequences of one example as a group that has no labels yet."""
  shared = common_prefix([s.ids for s in sequences])
  # The shared part has only tokens of the prompt (where a tokenizer merges the prompt's end with a
  # response, the merged token is not one), no mark, and not the whole of any sequence.
  shared = min(shared, *(min(s.prompt, s.marks[0], len(s.ids) - 1) for s in sequences))
  counts = [len(s.marks) for s in sequences]
  types = tuple(s.token_type for s in sequences)
  starts = [s.starts for s in sequences]
  return Group(
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


def label(tokens: Group, example: Example, attributes: Sequence[str] = ()) -> Group:
  """The group with the example's feedback; `tokens` has only what depends on the texts.

  This is apart from `join`, because tokens are cached on disk and feedback is not: if only labels
  or weights change, nothing is tokenised again.

  Raises:
    ValueError: the example's objective is none of the attributes.
  """

  def matrix(value):
    return None if value is None else np.asarray(value, np.float32)

  return dataclasses.replace(
    tokens,
    labels=np.asarray(example.labels, np.float32),
    kind=example.kind,
    source=example.source,
    weight=example.weight,
    pair_margin=example.margin or None,
    pairs=matrix(example.pairs),
    ties=matrix(example.ties),
    attributes=_ratings(example, attributes, len(tokens.marks)) if attributes else None,
    objective=attributes.index(example.objective) if example.objective else None,
  )


def check_vocabulary(groups: Iterable[Group], vocab: int) -> None:
  """Raises InputError if a token id is not in the model's vocabulary.

  `nnx.Embed` gives NaN for such an id, and the scores would be NaN with no hint at the cause.
  """
  largest = max((int(ids.max()) for g in groups for ids in g.ids if len(ids)), default=-1)
  if largest >= vocab:
    raise InputError(
      f"the tokenizer gives id {largest} and the model has a vocabulary of {vocab}; set the "
      "model's own tokenizer (in training, --config.model.tokenizer)"
    )


def _ratings(example: Example, attributes: Sequence[str], marks: int) -> np.ndarray:
  if example.attributes is None:
    return np.full((marks, len(attributes)), np.nan, np.float32)
  rated = [[one.get(name, np.nan) for name in attributes] for one in example.attributes]
  return np.asarray(rated, np.float32)


def tokenise(
  examples: Sequence[Example],
  encoder: TextEncoder,
  report: Report,
  attributes: Sequence[str] = (),
) -> tuple[list[Group], list[Example]]:
  """Examples -> groups, and the examples that they came from, in order.

  Dropped and counted in `report`: text that cannot be tokenised; comparisons of sequences that are
  all equal once tokenised (as where the difference was cut away), since their scores would be equal
  whatever is learned, while labels of single responses still say what the score should be; and
  feedback on none of the model's attributes.

  Args:
    examples: of any kind.
    encoder: the model's.
    report: counts what is dropped.
    attributes: names of the model's attributes, in order.

  Raises:
    DataError: there is feedback on attributes and the model has none, a judgement is about an
      objective that the model does not have, or `report` is strict and a row is at fault.
    ValueError: messages without a chat template, steps for an encoder, or steps whose separator
      gives no token.
  """
  groups, kept = keep(examples, unlabelled(examples, encoder), report, attributes)
  return [label(g, e, attributes) for g, e in zip(groups, kept, strict=True)], kept


def keep(
  examples: Sequence[Example],
  found: Iterable[Item | RowError],
  report: Report,
  attributes: Sequence[str] = (),
) -> tuple[list[Item], list[Example]]:
  """Drops and counts examples as `tokenise` says.

  Args:
    examples: of any kind.
    found: for each example something that stands for its tokens, or a RowError that says why it has
      none.
    report: counts what is dropped.
    attributes: names of the model's attributes.

  Returns:
    (the items found for the examples that are kept, these examples).

  Raises:
    DataError: as `tokenise`.
  """
  items, kept = [], []
  for example, one in zip(examples, found, strict=True):
    if example.objective and example.objective not in attributes:
      raise DataError(
        f"{example.origin or example.source}: its objective is {example.objective!r}, and the "
        f"model's attributes are {tuple(attributes)}; expected one of these: add it to "
        "--config.model.attributes"
      )
    rated = {name for ratings in example.attributes or () for name in ratings}
    if rated and not attributes:
      raise DataError(
        f"{example.origin}: feedback on attributes ({', '.join(sorted(rated))}), and the model "
        "has none; train it with --config.model.attributes, the names of those it is to learn"
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


def unlabelled(examples: Sequence[Example], encoder: TextEncoder) -> Iterator[Group | RowError]:
  """For each example a group that has its tokens and no labels, or why it has to be dropped.

  Of the feedback the result depends on whether the kind is one of `COMPARED`, and on nothing else,
  so that it can be cached. A thread renders the chat template for the next chunks while the
  tokenizer encodes this one: rendering is Python, and a tokenizer in Rust releases Python's lock
  while it works.

  Raises:
    ValueError: as `tokenise`.
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
      elif (
        example.kind in COMPARED
        and len(mine) > 1
        and all(np.array_equal(s.ids, mine[0].ids) for s in mine[1:])
      ):
        yield RowError(
          "identical_after_tokenising",
          f"the {len(mine)} responses are the same {len(mine[0].ids)} tokens"
          + (f" after {mine[0].cut} were cut; expected a larger max_length" if mine[0].cut else ""),
        )
      else:
        yield join(mine)
