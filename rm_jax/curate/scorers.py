"""Out-of-fold scorers for denoising: logistic regression on words, and a trained reward model.

A scorer is a function (examples to train on, examples to score) -> margins [N].
"""

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

from rm_jax.api import RewardModel
from rm_jax.curate.ngrams import mixed
from rm_jax.data.dialogue import plain
from rm_jax.data.report import DataError
from rm_jax.data.verdict import chance
from rm_jax.errors import InputError
from rm_jax.metrics.surface import words
from rm_jax.storage.files import write_atomically
from rm_jax.train import loop
from rm_jax.train.fields import check_fields
from rm_jax.types import Example, Text

log = logging.getLogger(__name__)


# Logistic regression on words.


class ContentModel:
  """A scorer for a quick look: logistic regression on differences of hashed bags of words.

  Its features are words, pairs of neighbouring words, the number of words, and for each word of the
  response that is in the prompt the word before it there, or else that it is not in the prompt. It
  does not understand the text, so it finds only labels that are plainly wrong; expect a reward
  model (`ConfigScorer`) to find more.

  With φ = log(1 + count) of each feature, x = φ(first) − φ(second), scaled down to |x| <= 1. The
  model is P(first > second) = sigmoid(w · x), without an intercept, as swapping the responses must
  turn P into 1 − P. `fit_logistic` fits it to what the labels say of the first response.

  Args:
    l2: strength of the penalty, above 0.
    bits: the features are hashed into 2^bits columns.
    progress: show a progress bar while features are computed, which is done once for each example.
  """

  def __init__(self, l2: float = 1.0, bits: int = 18, progress: bool = False):
    self.l2, self.bits, self.progress = l2, bits, progress
    self._hashes: dict[str, int] = {}
    # Features by the example's `id()`, because examples hold dicts and cannot be hashed. The
    # example is stored too: while it is alive, no other object can have its id.
    self._known: dict[int, tuple[Example, np.ndarray, np.ndarray]] = {}

  def __call__(self, train: Sequence[Example], test: Sequence[Example]) -> np.ndarray:
    said = np.asarray([chance(e) for e in train])
    return self.differences(test).times(fit_logistic(self.differences(train), self.l2, said=said))

  def differences(self, examples: Sequence[Example]) -> "Differences":
    """x of each example: features of the first response minus those of the second."""
    new = [e for e in examples if id(e) not in self._known]
    for e in tqdm(new, desc="features", unit="pair", disable=not (self.progress and new)):
      self._known[id(e)] = (e, *self._read(e))
    known = [self._known[id(e)] for e in examples]
    sizes = [len(columns) for _, columns, _ in known]
    nothing = np.zeros(0)
    return Differences(
      row=np.repeat(np.arange(len(known)), sizes),
      column=np.concatenate([nothing.astype(np.int32), *(columns for _, columns, _ in known)]),
      value=np.concatenate([nothing, *(values for _, _, values in known)]),
      shape=(len(known), 2**self.bits),
    )

  def _read(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
    """(columns int32, values float32) of the nonzero entries of an example's x; see the class."""
    before = _before(example.prompt)
    total: dict[int, float] = {}
    for sign, response in zip((1.0, -1.0), example.responses, strict=True):
      for feature, count in _features(response, before, self._hashes).items():
        total[feature] = total.get(feature, 0.0) + sign * math.log1p(count)
    found = {feature: value for feature, value in total.items() if value}
    hashed = mixed(np.fromiter(found, np.uint64, len(found)), 1) >> np.uint64(64 - self.bits)
    values = np.fromiter(found.values(), np.float64, len(found))
    values = values / max(1.0, float(np.sqrt(values @ values)))
    return hashed.astype(np.int32), values.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Differences:
  """A sparse matrix X [N, D] of V entries, as coordinates.

  Attributes:
    row: int64 [V], sorted.
    column: int32 [V].
    value: float [V].
    shape: (N, D).
  """

  row: np.ndarray
  column: np.ndarray
  value: np.ndarray
  shape: tuple[int, int]

  def times(self, w: np.ndarray) -> np.ndarray:
    """X w, [N]."""
    return np.bincount(self.row, self.value * w[self.column], minlength=self.shape[0])

  def transposed_times(self, r: np.ndarray) -> np.ndarray:
    """Xᵀ r, [D]."""
    return np.bincount(self.column, self.value * r[self.row], minlength=self.shape[1])


def _before(prompt: Text) -> dict[str, str]:
  """{word of a prompt: the word before its first occurrence, '' for the prompt's first word}."""
  found = words(plain(prompt))
  return dict(reversed(list(zip(found, ["", *found], strict=False))))


def _features(response: Text, before: dict[str, str], cache: dict[str, int]) -> dict[int, int]:
  """{hashed feature: count} of a response.

  Args:
    response: whose features.
    before: what `_before` returns for the prompt.
    cache: hashes of features by their names; new ones are added.
  """
  found = words(plain(response))
  names = [f"w {w}" for w in found]
  names += [f"b {a} {b}" for a, b in itertools.pairwise(found)]
  names += [f"after {before[w]}" if w in before else "not in the prompt" for w in found]
  names += ["length"] * len(found)
  counts: dict[int, int] = {}
  for name in names:
    number = cache.get(name)
    if number is None:
      number = cache[name] = _hash(name)
    counts[number] = counts.get(number, 0) + 1
  return counts


def _hash(name: str) -> int:
  value = 0xCBF29CE484222325  # FNV-1a, because Python's own hash differs between processes.
  for byte in name.encode("utf-8", "surrogatepass"):
    value = ((value ^ byte) * 0x100000001B3) & (2**64 - 1)
  return value


def fit_logistic(
  x: Differences,
  l2: float,
  *,
  said: np.ndarray | None = None,
  steps: int = 30,
  tolerance: float = 1e-4,
):
  """The w, float64 [D], that minimises the cross-entropy of the rows of x, and l2/2 |w|².

  That is Σ (c log(1 + exp(−x w)) + (1 − c) log(1 + exp(x w))), with c what is `said` of the row.

  This is Newton's method; each step is computed by conjugate gradients, which need no Hessian
  matrix, and is halved until the loss falls enough (Armijo's rule).

  Args:
    x: [N, D].
    l2: strength of the penalty, above 0.
    said: float [N], the probability by its label that a row's first response is better; None = 1.
    steps: largest number of Newton steps.
    tolerance: the gradient's norm, divided by √N, at which the fit has converged.

  Raises:
    ValueError: l2 is not above 0.
    DataError: the fit did not converge within `steps` Newton steps.
  """
  if l2 <= 0:
    raise ValueError(f"l2 is {l2}; expected above 0")
  w = np.zeros(x.shape[1])
  margin = np.zeros(x.shape[0])
  c = np.ones(x.shape[0]) if said is None else said

  def loss(margin: np.ndarray, w: np.ndarray) -> float:
    rows = c * np.logaddexp(0, -margin) + (1 - c) * np.logaddexp(0, margin)
    return float(rows.sum() + l2 / 2 * (w @ w))

  for _ in range(steps):
    p = 0.5 * (1 + np.tanh(margin / 2))
    gradient = l2 * w - x.transposed_times(c - p)
    size = float(np.sqrt(gradient @ gradient))
    if size <= tolerance * max(1, x.shape[0]) ** 0.5:
      return w
    curvature = p * (1 - p)

    def hessian(v: np.ndarray, curvature=curvature) -> np.ndarray:
      return l2 * v + x.transposed_times(curvature * x.times(v))

    step = _conjugate_gradients(hessian, -gradient, min(0.1, size**0.5) * size)
    now, slope, scale = loss(margin, w), float(gradient @ step), 1.0
    towards = x.times(step)
    while loss(margin + scale * towards, w + scale * step) > now + 1e-4 * scale * slope:
      scale /= 2
      if scale < 1e-8:
        return w  # Within rounding errors no step lowers the loss: w is the minimum.
    w, margin = w + scale * step, margin + scale * towards
  raise DataError(f"the content model did not converge in {steps} Newton steps; raise its l2")


def _conjugate_gradients(matrix, b: np.ndarray, tolerance: float, most: int = 200) -> np.ndarray:
  """Solves A x = b until |A x − b| <= tolerance, or for `most` steps; `matrix` maps v to A v."""
  out, residual, direction = np.zeros_like(b), b.copy(), b.copy()
  square = float(residual @ residual)
  for _ in range(most):
    if square**0.5 <= tolerance:
      break
    applied = matrix(direction)
    alpha = square / float(direction @ applied)
    out += alpha * direction
    residual -= alpha * applied
    before, square = square, float(residual @ residual)
    direction = residual + square / before * direction
  return out


# A reward model.


class ConfigScorer:
  """Trains a reward model on the examples outside each fold, as a config says, and scores the fold.

  The k-th call is for fold k. Each fold has its own folder, so that an interrupted run is resumed.

  Args:
    config: an experiment's config. Its data are replaced by the fold's examples: `data.train` and
      `data.heldout` are their files, `data.sources` and `data.columns` empty, `data.format` 'pair'
      and `data.limit` 0. A fraction `data.validation` is set aside from the other folds' examples.
    workdir: gets a folder for each fold, fold0/, fold1/ ..., with its data and its run.

  Raises:
    InputError: a field of the config has a wrong value; or `data.objectives` is set, which is about
      sources, and a fold's files have none.
  """

  def __init__(self, config: Any, workdir: str | Path):
    # `loop.train` would check them only at the first fold, after all rows were read and compared.
    check_fields(config)
    if objectives := config.data.get("objectives", ""):
      raise InputError(
        f"--denoise_config.data.objectives={objectives!r}: expected '', since it is about sources "
        "and the pairs of a fold are in one file without them; give '' and no model.attributes"
      )
    if config.model.attributes:
      raise InputError(
        f"--denoise_config.model.attributes={tuple(config.model.attributes)}: expected (), since "
        "the pairs of a fold rate no attributes"
      )
    self.config = config
    self.workdir = Path(workdir)
    self.done = 0

  def __call__(self, train: Sequence[Example], test: Sequence[Example]) -> np.ndarray:
    folder = self.workdir / f"fold{self.done}"
    self.done += 1
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in (("train", train), ("heldout", test)):
      write_examples(folder / f"{name}.jsonl", examples)
    config = ml_collections.ConfigDict(self.config.to_dict())
    config.data.train = str(folder / "train.jsonl")
    config.data.heldout = str(folder / "heldout.jsonl")
    config.data.sources = ml_collections.ConfigDict()
    config.data.columns = None
    config.data.format = "pair"
    config.data.limit = 0
    log.info("%s: training on %d pairs, to score %d", folder, len(train), len(test))
    loop.train(config, folder / "run")
    model = RewardModel.from_pretrained(folder / "run", dtype=config.model.dtype)
    rows = [{"prompt": _plain(e.prompt), "response": _plain(r)} for e in test for r in e.responses]
    scores = model.score(rows, progress=True).astype(np.float64).reshape(-1, 2)
    return scores[:, 0] - scores[:, 1]


def write_examples(path: Path, examples: Sequence[Example]) -> None:
  """Writes comparisons of two responses as JSON lines of the format 'pair'.

  A tie has the column `tie`. Where the first response is better with another probability than 1,
  `preference` has it, an even vote's 1/2 included; ties among several judgements count half.
  """
  lines = []
  for e in examples:
    row = {"prompt": e.prompt, "chosen": e.responses[0], "rejected": e.responses[1]}
    row = {name: _plain(text) for name, text in row.items()} | {"weight": e.weight}
    p = chance(e)
    if p == 0.5 and not any(map(any, e.pairs or ())):
      row["tie"] = True
    elif p != 1:
      row["preference"] = p
    lines.append(json.dumps(row if e.margin is None else row | {"margin": e.margin}) + "\n")
  write_atomically(path, "".join(lines))


def _plain(text: Text) -> str | list[dict[str, str]]:
  return text if isinstance(text, str) else [dict(m) for m in text]
