"""The reference of a model: its scores and features of some data, kept in the model's folder.

The audit compares new data with it, to find drift and scores out of range. A model scores its
training data differently from other data of the same kind, so the reference should be made of the
data that the run held out.
"""

import dataclasses
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rm_jax.audit.comparisons import one_each
from rm_jax.audit.scorer import Scorer
from rm_jax.errors import InputError
from rm_jax.types import Example

FILE = "reference.npz"


@dataclasses.dataclass(frozen=True)
class Reference:
  """Scores and features of one response from each conversation of some data.

  Attributes:
    scores: float32 [N].
    pooled: float32 [N, D], the features that the head reads.
    data: name of the data.
    model: `scorer.model_hash` of the model. If the model's run has been continued, its hash
      differs and the reference is out of date.
    known: whether the model was trained on the data. `load` takes True for a file without this
      field, as earlier versions wrote them.
    asked: whether the user named the data, so that no default may replace the reference. Of a file
      without this field `load` takes whether it has the field `known`: versions that wrote neither
      also wrote, without being asked, references of the training data.
  """

  scores: np.ndarray
  pooled: np.ndarray
  data: str
  model: str = ""
  known: bool = True
  asked: bool = False

  def save(self, folder: Path) -> None:
    """Writes `reference.npz` into the model's folder, which must exist.

    It is written under another name and renamed, so that an interrupted write leaves the old one.
    """
    part = Path(folder) / (FILE + ".part")
    with part.open("wb") as file:
      np.savez(file, **dataclasses.asdict(self))
    os.replace(part, Path(folder) / FILE)

  @classmethod
  def load(cls, folder: Path) -> "Reference | None":
    """Reads the reference in a model's folder; None if it has none.

    Raises:
      InputError: the file cannot be read as a reference.
    """
    path = Path(folder) / FILE
    if not path.exists():
      return None
    try:
      with np.load(path) as file:
        known = bool(file["known"]) if "known" in file else True
        asked = bool(file["asked"]) if "asked" in file else "known" in file
        names = str(file["data"]), str(file["model"])
        return cls(file["scores"], file["pooled"], *names, known, asked)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      raise InputError(f"{path}: is no reference of scores ({error}); delete it") from error


def make_reference(
  scorer: Scorer,
  examples: Sequence[Example],
  data: str,
  *,
  known: bool = True,
  asked: bool = False,
  limit: int = 1000,
  seed: int = 0,
) -> Reference:
  """Makes a reference: scores and features of one drawn response of each conversation.

  Args:
    scorer: of the model.
    examples: feedback on whole responses.
    data: name of the data.
    known: whether the model was trained on the data.
    asked: whether the user named the data.
    limit: largest number of rows.
    seed: of the draws.

  Raises:
    DataError, InputError: as `Scorer.members`.
  """
  rows = one_each(examples, limit, seed)
  pooled_ND = scorer.pooled(rows)  # before the scores, which this forward pass puts into the cache
  return Reference(scorer(rows), pooled_ND, data, scorer.name, known, asked)
