"""Responses paired with prompts that they were not given to, for the reference point of KTO.

KTO's reference point z₀ is β times the divergence of the model from its reference. Ethayarajh et
al. (2024, section 4.1) estimate it without sampling, from responses y' of the data paired with
other prompts x: the mean over them of β log (π(y' | x) / π_ref(y' | x)), or 0 if that is below.
"""

import dataclasses
from collections.abc import Sequence
from typing import overload

import numpy as np

from rm_jax.batch.group import Group
from rm_jax.data.report import DataError


def partners(conversations: Sequence[str], seed: int) -> np.ndarray:
  """For each item the one whose response it is paired with.

  The items stand on a circle in random order, and each has the first one before it that is of
  another conversation. Where no conversation has two items, every response is taken once.

  Args:
    conversations: of each item.
    seed: of the order.

  Returns:
    int64 [items].

  Raises:
    DataError: all items are of one conversation.
  """
  if len(set(conversations)) < 2:
    raise DataError(
      f"loss.outcome asks for baseline='batch', and all {len(conversations)} outcomes are of one "
      "conversation; expected at least two, to pair prompts with responses to others"
    )
  order = np.random.default_rng(seed).permutation(len(conversations))
  before = np.empty(len(order), np.int64)
  # Walking the circle twice, `last` and `other` are the latest item, and the latest of another
  # conversation than its.
  last = other = None
  for i in [*order, *order]:
    if last is not None and conversations[i] != conversations[last]:
      other = last
    if other is not None:
      before[i] = other
    last = i
  return before


class Mismatched(Sequence[Group]):
  """The groups, those of outcomes with one more response: the first one of another group.

  Its mark is in `Group.mismatched`. It follows the prompt as it is, token by token. What does not
  fit into `max_length` is cut from its end.

  Args:
    groups: of decoders' tokens.
    conversations: of each group.
    max_length: tokens of a sequence.
    seed: of `partners`.

  Raises:
    DataError: as `partners`.
  """

  def __init__(
    self, groups: Sequence[Group], conversations: Sequence[str], *, max_length: int, seed: int
  ):
    self._groups, self._max_length = groups, max_length
    mine = [i for i, group in enumerate(groups) if group.kind == "outcome"]
    found = partners([conversations[i] for i in mine], seed)
    self._partner = {i: mine[j] for i, j in zip(mine, found, strict=True)}

  def __len__(self) -> int:
    return len(self._groups)

  @overload
  def __getitem__(self, i: int) -> Group: ...
  @overload
  def __getitem__(self, i: slice) -> list[Group]: ...
  def __getitem__(self, i):
    if isinstance(i, slice):
      return [self[j] for j in range(*i.indices(len(self)))]
    i = range(len(self))[i]
    group = self._groups[i]
    if i not in self._partner:
      return group
    return with_response(group, self._groups[self._partner[i]], self._max_length)


def with_response(group: Group, other: Group, max_length: int) -> Group:
  """The group with one more response, the first one of another group; see `Mismatched`."""
  prompt = group.ids[0][: len(group.ids[0]) - group.length[0]]
  response = other.ids[0][len(other.ids[0]) - other.length[0] :]
  ids = np.concatenate([prompt, response])[:max_length]
  own = len(ids) - len(prompt)
  return dataclasses.replace(
    group,
    ids=(*group.ids, ids),
    shared=min(group.shared, len(prompt)),
    marks=np.append(group.marks, np.int32(len(ids) - 1)),
    response=np.append(group.response, np.int32(len(group.ids))),
    labels=np.append(group.labels, np.float32(0)),
    length=np.append(group.length, np.int32(own)),
    mismatched=np.append(np.zeros(len(group.marks), bool), True),
  )
