"""Scores of texts, with a cache of the scores of each distinct (prompt, response).

The sections of an audit ask for overlapping sets of texts, and the next audit of the same model
asks for most of them again, so scores are cached by content in memory and in a file. Those of
attributes and of steps are not cached.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from flax.traverse_util import flatten_dict

from rm_jax.api import RewardModel
from rm_jax.errors import InputError
from rm_jax.parallel.fingerprint import checksums, fingerprint
from rm_jax.storage.files import home
from rm_jax.types import Example, Text

log = logging.getLogger(__name__)

Row = tuple[Text, Text]  # (prompt, response)
# What a section measures: rows -> their scores [N]. A `Scorer` is one; any such function will do.
Score = Callable[[Sequence[Row]], npt.ArrayLike]
# Rows {prompt, completions: steps of a solution} -> for each row an array [steps]: the log-odds
# that the solution is right up to and including each step.
ScoreSteps = Callable[[Sequence[dict[str, Any]]], Sequence[npt.ArrayLike]]

# The cache file is written after at most this many new rows, so that an interruption loses the
# scores of no more.
_CHUNK = 8192


def distinct_rows(rows: Sequence[Row]) -> tuple[list[Row], np.ndarray]:
  """(the distinct rows in order of first occurrence, int64 [N]: the index of each row in these)."""
  place: dict[str, int] = {}
  distinct = []
  at = np.empty(len(rows), np.int64)
  for i, row in enumerate(rows):
    at[i] = place.setdefault(json.dumps(row), len(distinct))
    if at[i] == len(distinct):
      distinct.append(row)
  return distinct, at


def scores_of(score: Score, rows: Sequence[Row]) -> np.ndarray:
  """Scores of rows, float64 [N]. Each distinct row is scored once, all in one call of `score`.

  Raises:
    ValueError: `score` did not return one finite number for each distinct row.
  """
  distinct, at = distinct_rows(rows)
  scores = np.asarray(score(distinct), np.float64)
  if scores.shape != (len(distinct),):
    raise ValueError(f"score gave shape {scores.shape}; expected [{len(distinct)}], one a row")
  for row, value in zip(distinct, scores.tolist(), strict=True):
    if not math.isfinite(value):
      raise ValueError(f"score gave {value} for {row}; expected finite scores")
  return scores[at]


def example_scores(score: Score, examples: Sequence[Example]) -> list[np.ndarray]:
  """Scores of each example's responses, float64 [K]; all by one call of `scores_of`."""
  rows = [(e.prompt, response) for e in examples for response in e.responses]
  ends = np.cumsum([len(e.responses) for e in examples])
  return np.split(scores_of(score, rows), ends)[:-1]


@dataclasses.dataclass
class Counts:
  """How many rows (prompt, response) the cache of a `Scorer` was asked for.

  Attributes:
    asked: rows, counting repetitions.
    distinct: distinct rows over all calls.
    hits: distinct rows whose scores were in the cache file.
    scored: distinct rows that the model has scored, as their scores were not.
  """

  asked: int = 0
  distinct: int = 0
  hits: int = 0
  scored: int = 0


class Scorer:
  """A model as a function from rows to scores, with a cache in memory and in a file.

  Args:
    model: the model that scores the rows.
    folder: where the cache file is; its name is `model_hash` with the suffix .npz. '' = the folder
      `scores` beside rm_jax's other caches; None = no file.
    progress: whether to show a progress bar.
  """

  def __init__(self, model: RewardModel, *, folder: Path | str | None = "", progress: bool = True):
    self.model, self.progress = model, progress
    self.counts = Counts()
    self.name = model_hash(model)
    folder = home() / "scores" if folder == "" else folder
    self._path = None if folder is None else Path(folder) / f"{self.name}.npz"
    self._known: dict[bytes, np.ndarray] = {}
    self._pooled: dict[bytes, np.ndarray] = {}
    self._fresh: set[bytes] = set()  # keys of all rows that were asked for so far
    if self._path is not None and self._path.exists():
      self._read()

  @property
  def outputs(self) -> int:
    """Number of ensemble members; 1 for a model that is no ensemble."""
    head = self.model.text_model.network.head
    return head.outputs if head.ensemble else 1

  def __call__(self, rows: Sequence[Row]) -> np.ndarray:
    """Rewards, float32 [N]; of an ensemble the mean over its members. Raises as `members`."""
    return self.members(rows).mean(axis=1)

  def members(self, rows: Sequence[Row]) -> np.ndarray:
    """Scores of each ensemble member, float32 [N, M]; M = 1 if the model is no ensemble.

    Raises:
      DataError: a row that the model cannot score.
      InputError: a score that is not finite, or a token outside the model's vocabulary.
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
    """Features that the head reads for each row, float32 [N, D]; [0, 0] without rows.

    Features are cached in memory and on disk like scores. One forward pass gives both, so the
    scores of these rows are cached, too.

    Args:
      rows: the rows whose features are returned.
      beside: rows of the same prompts whose scores will be needed later; they may repeat `rows`.
        Those without cached scores are scored along with `rows`, if there are any, in passes of
        `_CHUNK` rows, in which a decoder can compute a prompt once for all its responses.

    Raises:
      DataError, InputError: as `members`.
    """
    if not rows:
      return np.zeros((0, 0), np.float32)
    both = [*beside, *rows]
    keys, missing = self._ask(both)
    mine = keys[len(beside) :]
    unread = set(mine) - self._pooled.keys()
    new = {k: row for k, row in zip(keys, both, strict=True) if k in unread or k in missing}
    for chunk in _chunks(list(new)):
      pooled_ND, scores_NM = self.model.pooled_and_scores(
        [_asked(new[k]) for k in chunk], progress=self.progress
      )
      # Features, D numbers a row, are kept for `rows` alone; scores, one a member, for all.
      self._pooled |= {k: one for k, one in zip(chunk, pooled_ND, strict=True) if k in unread}
      at = [n for n, key in enumerate(chunk) if key in missing]
      self._keep([chunk[n] for n in at], scores_NM[at], missing)
    return np.stack([self._pooled[key] for key in mine])

  @property
  def attributes(self) -> tuple[str, ...]:
    """Names of the model's attributes; () if it has none."""
    return self.model.attributes

  def attribute_scores(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(each attribute's scores, the attributes' weights), float32 [N, A] both; not cached.

    Raises:
      DataError: a row that the model cannot score.
      ValueError: the model has no attributes, or a score is not finite.
    """
    distinct, at = distinct_rows(rows)
    asked = [_asked(row) for row in distinct]
    scores_NA = self.model.score_attributes(asked, progress=self.progress)
    return scores_NA[at], self.model.attribute_weights(asked, progress=self.progress)[at]

  def steps(self, rows: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """Log-odds that all steps so far are right, float32 [steps] for each row; not cached.

    Args:
      rows: {prompt, completions: the steps of a solution}.

    Raises:
      DataError: the model is an encoder, which reads no steps, or a row is not of this form or too
        long for the model.
      InputError: a score that is not finite.
    """
    return self.model.score_steps(rows, progress=self.progress)

  def _ask(self, rows: Sequence[Row]) -> tuple[list[bytes], dict[bytes, Row]]:
    """(key of each row, {key: row} of the rows without cached scores); counts what is asked."""
    keys = [key_of(row) for row in rows]
    # Rows that were asked for before may be missing too, if their scoring was interrupted.
    missing = {k: row for k, row in zip(keys, rows, strict=True) if k not in self._known}
    new = set(keys) - self._fresh
    self.counts.asked += len(rows)
    self.counts.distinct += len(new)
    self.counts.hits += len(new - missing.keys())
    self._fresh |= new
    return keys, missing

  def _keep(self, keys: list[bytes], scores_NM: np.ndarray, rows: dict[bytes, Row]) -> None:
    if not np.isfinite(scores_NM).all():
      bad = int(np.flatnonzero(~np.isfinite(scores_NM).all(axis=1))[0])
      raise InputError(f"the model gives {scores_NM[bad]} for {rows[keys[bad]]}")
    self._known.update(zip(keys, scores_NM, strict=True))
    self.counts.scored += len(keys)
    self._write()

  def _read(self) -> None:
    try:
      with np.load(self._path) as file:
        self._known = _unstacked(file["keys"], file["scores"])
        if "pooled" in file:
          self._pooled = _unstacked(file["pooled_keys"], file["pooled"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      log.warning("%s: cannot all be read (%s): the rest is scored anew", self._path, error)

  def _write(self) -> None:
    if self._path is None:
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    keys_N16, scores_NM = _stacked(self._known)
    kept = {"keys": keys_N16, "scores": scores_NM}
    if self._pooled:
      kept["pooled_keys"], kept["pooled"] = _stacked(self._pooled)
    # Written under a temporary name and renamed, so that an interrupted write damages nothing.
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
  """The keys in lists of at most `_CHUNK`, in order."""
  return (keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK))


def _asked(row: Row) -> dict:
  """A row in the form that `RewardModel.score_members` takes."""
  prompt, response = (text if isinstance(text, str) else list(text) for text in row)
  return {"prompt": prompt, "response": response}


def key_of(row: Row) -> bytes:
  """The first 16 bytes of the SHA-256 of a row: its key in the cache."""
  return hashlib.sha256(json.dumps(row, ensure_ascii=False).encode()).digest()[:16]


def model_hash(model: RewardModel, *, ordered: bool = True) -> str:
  """16 hex digits of a hash of a model, for which scores are cached.

  It is of the parameters, the network, the convention by which text becomes tokens, the reference
  of an implicit reward, the tokenizer with its chat template, and the version of JAX. It is not of
  the devices, on which scores depend by rounding errors.

  Args:
    model: the model.
    ordered: False for the hash of earlier versions, which two models share whose parameters differ
      only in the order of an array's numbers, such as the weights of two attributes.
  """
  made = model.text_model
  said = {
    "parameters": checksums(flatten_dict(model.params, sep="/"))
    if ordered
    else fingerprint(model.params),
    "network": repr(made.network),
    "record": made.record(),
    "tokenizer": made.tokenizer.backend_tokenizer.to_str(),
    "template": made.tokenizer.chat_template or "",
    "jax": jax.__version__,
  }
  text = json.dumps(said, sort_keys=True, default=repr)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
