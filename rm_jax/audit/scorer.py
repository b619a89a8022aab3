"""Scores of texts: each distinct (prompt, response) once, kept on the disk for the next audit."""

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from rm_jax.api import RewardModel
from rm_jax.errors import InputError
from rm_jax.storage.files import home
from rm_jax.types import Text
from rm_jax.workdir.checkpoints import fingerprint

log = logging.getLogger(__name__)

Row = tuple[Text, Text]  # (prompt, response)

# Texts that are scored before what is known so far goes to the disk: an audit that is stopped goes
# on from there.
_CHUNK = 8192


@dataclasses.dataclass
class Counts:
  """What was asked of a `Scorer`.

  Attributes:
    asked: rows.
    distinct: (prompt, response) among them, over all calls.
    hits: of the distinct ones those that were found on the disk.
    scored: of the distinct ones those that the model scored now.
  """

  asked: int = 0
  distinct: int = 0
  hits: int = 0
  scored: int = 0


class Scorer:
  """A model as a function of rows, which scores no text twice.

  Args:
    model: whose scores.
    folder: where scores are kept, in a file named by a hash of all that they depend on; None =
      nowhere; '' = scores/ beside the other caches.
    progress: show a bar.
  """

  def __init__(self, model: RewardModel, *, folder: Path | str | None = "", progress: bool = True):
    self.model, self.progress = model, progress
    self.counts = Counts()
    self.name = model_hash(model)
    folder = home() / "scores" if folder == "" else folder
    self._path = None if folder is None else Path(folder) / f"{self.name}.npz"
    self._known: dict[bytes, np.ndarray] = {}
    self._pooled: dict[bytes, np.ndarray] = {}
    self._fresh: set[bytes] = set()  # scored by this process, or asked of it already
    if self._path is not None and self._path.exists():
      self._read()

  @property
  def outputs(self) -> int:
    """Members of an ensemble; 1 where the model is none."""
    head = self.model.model.network.head
    return head.outputs if head.ensemble else 1

  def __call__(self, rows: Sequence[Row]) -> np.ndarray:
    """Rewards, float32 [N]: the mean of an ensemble's members."""
    return self.members(rows).mean(axis=1)

  def members(self, rows: Sequence[Row]) -> np.ndarray:
    """Scores by each member, float32 [N, M]; M = 1 where the model is no ensemble.

    Raises:
      DataError: a row that the model cannot score.
    """
    keys, missing = self._ask(rows)
    for chunk in _chunks(list(missing)):
      asked = [_asked(missing[k]) for k in chunk]
      scores_NM = self.model.score_members(asked, progress=self.progress)
      self._keep(chunk, scores_NM, missing)
    if not rows:
      return np.zeros((0, self.outputs), np.float32)
    return np.stack([self._known[key] for key in keys])

  def pooled(self, rows: Sequence[Row], beside: Sequence[Row] = ()) -> np.ndarray:
    """What the head reads at the end of each row's response, float32 [N, D].

    Kept as scores are; of rows not scored yet, the scores come with it.

    Args:
      rows: whose responses are read.
      beside: others that will be wanted, of the same prompts: they are scored in one go with the
        rows where they are not known, so that a decoder computes each prompt once.
    """
    if not rows:
      return np.zeros((0, 0), np.float32)
    both = [*beside, *rows]
    keys, missing = self._ask(both)
    mine = keys[len(beside) :]
    unread = set(mine) - self._pooled.keys()
    new = {k: row for k, row in zip(keys, both, strict=True) if k in unread or k in missing}
    for chunk in _chunks(list(new)):
      pooled_ND, scores_NM = self.model.read(
        [_asked(new[k]) for k in chunk], progress=self.progress
      )
      # Of those beside the scores alone are kept: features take a thousand times as much room.
      self._pooled |= {k: one for k, one in zip(chunk, pooled_ND, strict=True) if k in unread}
      at = [n for n, key in enumerate(chunk) if key in missing]
      self._keep([chunk[n] for n in at], scores_NM[at], missing)
    return np.stack([self._pooled[key] for key in mine])

  def _ask(self, rows: Sequence[Row]) -> tuple[list[bytes], dict[bytes, Row]]:
    """(keys of the rows; those of which no score is known), counted."""
    keys = [key_of(row) for row in rows]
    new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._fresh}
    missing = {key: row for key, row in new.items() if key not in self._known}
    self.counts.asked += len(rows)
    self.counts.distinct += len(new)
    self.counts.hits += len(new) - len(missing)
    self.counts.scored += len(missing)
    self._fresh |= new.keys()
    return keys, missing

  def _keep(self, keys: list[bytes], scores_NM: np.ndarray, rows: dict[bytes, Row]) -> None:
    if not np.isfinite(scores_NM).all():
      bad = int(np.flatnonzero(~np.isfinite(scores_NM).all(axis=1))[0])
      raise InputError(f"the model gives {scores_NM[bad]} for {rows[keys[bad]]}")
    self._known.update(zip(keys, scores_NM, strict=True))
    self._write()

  def _read(self) -> None:
    try:
      with np.load(self._path) as file:
        self._known = _unstacked(file["keys"], file["scores"])
        if "pooled" in file:
          self._pooled = _unstacked(file["pooled_keys"], file["pooled"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      log.warning("%s: cannot be read (%s): its texts are scored anew", self._path, error)

  def _write(self) -> None:
    if self._path is None:
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    keys_N16, scores_NM = _stacked(self._known)
    kept = {"keys": keys_N16, "scores": scores_NM}
    if self._pooled:
      kept["pooled_keys"], kept["pooled"] = _stacked(self._pooled)
    # Under another name first, so that a stopped audit leaves the file whole.
    handle, part = tempfile.mkstemp(dir=self._path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
      np.savez(file, **kept)
    os.replace(part, self._path)


def _stacked(kept: dict[bytes, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  keys_N16 = np.frombuffer(b"".join(kept), np.uint8).reshape(-1, 16)
  return keys_N16, np.stack(list(kept.values()))


def _unstacked(keys_N16: np.ndarray, rows: np.ndarray) -> dict[bytes, np.ndarray]:
  return {key.tobytes(): row for key, row in zip(keys_N16, rows, strict=True)}


def _chunks(keys: list[bytes]) -> Iterator[list[bytes]]:
  """The keys, so many at a time as are scored before they go to the disk."""
  return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))


def _asked(row: Row) -> dict:
  prompt, response = (text if isinstance(text, str) else list(text) for text in row)
  return {"prompt": prompt, "response": response}


def key_of(row: Row) -> bytes:
  """16 bytes that a (prompt, response) is known by."""
  return hashlib.sha256(json.dumps(row, ensure_ascii=False).encode()).digest()[:16]


def model_hash(model: RewardModel) -> str:
  """16 hex digits of all that scores depend on: parameters, network, tokenizer, convention."""
  made = model.model
  said = {
    "parameters": fingerprint(model.params),
    "network": repr(made.network),
    "record": made.record(),
    "tokenizer": made.tokenizer.backend_tokenizer.to_str(),
    "template": made.tokenizer.chat_template or "",
    "jax": jax.__version__,
  }
  text = json.dumps(said, sort_keys=True, default=repr)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
