"""A data set as tokens: groups, the examples they came from, parts by source, a fingerprint."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from rm_jax.batch.group import Group
from rm_jax.errors import InputError
from rm_jax.types import Example

_NAMED = "2:"  # begins a fingerprint in which each part has its name and its length
# Optional fields of feedback, in the order in which they are hashed. A field that is added to
# `Group` with default None is hashed without a change here. The margin is left out because it is
# hashed with kind and weight, and `starts` and `token_type` because they are no feedback.
_FEEDBACK = [
  field.name
  for field in dataclasses.fields(Group)
  if field.default is None and field.name not in ("pair_margin", "starts", "token_type")
]


@dataclasses.dataclass(frozen=True)
class TokenDataset:
  """A data set as tokens.

  Attributes:
    groups: tokenised examples: a list, or `Groups` of batch/cache.py, which reads each from the
      disk when it is asked for.
    examples: those that the groups came from, in the same order.
    rates: source -> its share of every step, relative to the other rates. If it is empty or all are
      0, sources are mixed by their size.
  """

  groups: Sequence[Group]
  examples: list[Example]
  rates: dict[str, float] = dataclasses.field(default_factory=dict)

  def parts(self, size: int) -> tuple[list[np.ndarray], list[float]]:
    """The arguments (parts, rates) of `step_groups` in batch/iterate.py.

    Without rates there is one part, which has all groups; with rates each source is a part.

    Args:
      size: groups of a step.

    Raises:
      InputError: a step is too small for its sources, or a source has no group left.
    """
    if not any(self.rates.values()):
      return [np.arange(len(self.groups))], [1.0]
    of = np.asarray([g.source for g in self.groups])
    parts = [np.flatnonzero(of == name) for name in self.rates]
    empty = [name for name, part in zip(self.rates, parts, strict=True) if not len(part)]
    if empty:
      raise InputError(f"data.sources: nothing is left of {', '.join(empty)} to train on")
    total = sum(self.rates.values())
    rates = [rate / total for rate in self.rates.values()]
    if size * max(rates) < len(rates):
      raise InputError(
        f"data.batch_groups is {size}, too few for {len(rates)} sources at their rates; expected "
        f"at least {int(np.ceil(len(rates) / max(rates)))}"
      )
    return parts, rates

  def ratings(self, attributes: Sequence[str]) -> dict[str, int]:
    """How many responses have a rating on each attribute of a model."""
    if not attributes or not self.groups:
      return dict.fromkeys(attributes, 0)
    rated_A = sum(np.isfinite(g.attributes).sum(axis=0) for g in self.groups)
    return dict(zip(attributes, rated_A.tolist(), strict=True))

  def fingerprint(self, saved: str = "") -> str:
    """A hash of all token ids and their feedback, so that a run does not resume on other data.

    It is '2:' and 24 hex digits. Checkpoints hold it, so it must stay what it was for data of old
    checkpoints: a new field adds nothing to the hash where it is None.

    Args:
      saved: a fingerprint to compare with, which is returned if it is these data's. Earlier
        versions saved one of another form, which does not know marks, sources, nor where one
        response ends and the next begins.
    """
    if saved and not saved.startswith(_NAMED) and saved == self._unnamed():
      return saved
    digest = hashlib.blake2b(digest_size=12)
    for group in self.groups:
      feedback = {name: getattr(group, name) for name in _FEEDBACK}
      parts = {
        **{f"ids {k}": ids for k, ids in enumerate(group.ids)},
        "marks": group.marks,
        "response": group.response,
        "labels": group.labels,
        **{n: np.asarray(x, np.float32) for n, x in feedback.items() if x is not None},
      }
      # The sizes say where each part ends in the bytes that follow.
      sizes = [(name, part.dtype.str, part.shape) for name, part in parts.items()]
      margin = group.pair_margin or 0.0
      digest.update(repr((group.kind, group.source, group.weight, margin, sizes)).encode())
      for part in parts.values():
        digest.update(part.tobytes())
    return _NAMED + digest.hexdigest()

  def _unnamed(self) -> str:
    """The fingerprint of earlier versions."""
    digest = hashlib.blake2b(digest_size=12)
    for group in self.groups:
      for ids in group.ids:
        digest.update(ids.tobytes())
      digest.update(group.labels.tobytes())
      digest.update(repr((group.kind, group.weight, group.pair_margin or 0.0)).encode())
      for name in _FEEDBACK:
        value = getattr(group, name)
        digest.update(b"" if value is None else np.asarray(value, np.float32).tobytes())
    return digest.hexdigest()
