"""Is this data like what the model was trained on? Scores and features against a reference.

A model knows by heart what it was trained on: its scores and features there are not what they are
of more such data. So the reference is what the run held out, where there is any."""

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.audit import figures
from rm_jax.errors import InputError
from rm_jax.metrics import drift as metrics
from rm_jax.metrics.correlation import auroc, bootstrap
from rm_jax.metrics.monitor import DriftMonitor

FILE = "reference.npz"
LEVEL = 0.01  # of a test's false alarms
_WINDOW = 100


@dataclasses.dataclass(frozen=True)
class Reference:
  """Scores and features of data like that a model was trained on, one response a conversation.

  Attributes:
    scores: float32 [N].
    pooled: float32 [N, D], what the head reads.
    data: its name.
    model: `scorer.model_hash` of whose they are: a run that went on has others.
    known: whether the model was trained on it, or may have been (files before this was kept).
  """

  scores: np.ndarray
  pooled: np.ndarray
  data: str
  model: str = ""
  known: bool = True

  def save(self, folder: Path) -> None:
    """Keeps it with the model, in a folder that exists."""
    with (Path(folder) / FILE).open("wb") as file:
      np.savez(file, **dataclasses.asdict(self))

  @classmethod
  def load(cls, folder: Path) -> "Reference | None":
    """The one that is kept with a model; None where there is none."""
    path = Path(folder) / FILE
    if not path.exists():
      return None
    try:
      with np.load(path) as file:
        known = bool(file["known"]) if "known" in file else True
        return cls(file["scores"], file["pooled"], str(file["data"]), str(file["model"]), known)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      raise InputError(f"{path}: is no reference of scores ({error}); delete it") from None


def drift(
  scores: np.ndarray, pooled: np.ndarray, reference: Reference, *, seed: int = 0
) -> dict[str, Any]:
  """Distances of scores and features from a reference, and what a monitor says of the stream.

  Args:
    scores: [M], one response a conversation, in the order in which they came; at least 20.
    pooled: float [M, D], likewise.
    reference: at least 20 rows; of the same model.
    seed: of permutations and halves.

  Returns:
    {n: [reference's, M], level, scores: {ks, psi, energy}, features: {energy: of features in the
    reference's standard deviations, mahalanobis}: each {value, p, alarm: p < its share of the
    level}, shift: mean of scores less the reference's, in its standard deviations, monitor:
    {window, tests, alarms}, alarm: whether any did, says: a sentence}. mahalanobis is KS of the
    distances from one half of the reference, those of its other half against these, and None with
    `why` where the reference has one feature vector alone. The level is shared by the five tests.

  Raises:
    ValueError: too few rows, or shapes that do not fit.
  """
  scores, pooled = np.asarray(scores, np.float64), np.asarray(pooled, np.float64)
  then = np.asarray(reference.scores, np.float64)
  if min(len(scores), len(then)) < 20:
    raise ValueError(f"{len(then)} reference rows and {len(scores)} new ones; expected 20 of each")
  if pooled.shape[1] != reference.pooled.shape[1]:
    raise ValueError(
      f"features have {pooled.shape[1]} dimensions and the reference's "
      f"{reference.pooled.shape[1]}: it is another model's"
    )
  half = np.random.default_rng(seed).permutation(len(then)) < len(then) // 2
  fitted = reference.pooled[half].astype(np.float64)
  spread = fitted.std(axis=0)
  # One that never varies has no unit of its own: it keeps that of the features.
  varies = spread > 1e-6 * np.maximum(np.abs(fitted).max(axis=0), 1e-30)
  spread[~varies] = spread[varies].mean() if varies.any() else 1.0
  ks, ks_p = metrics.ks(then, scores)
  found = {
    "scores": {
      "ks": {"value": ks, "p": ks_p},
      "psi": metrics.psi(then, scores, seed=seed),
      "energy": metrics.energy_distance(then, scores, seed=seed),
    },
    "features": {
      "energy": metrics.energy_distance(
        reference.pooled / spread, pooled / spread, seed=seed, limit=500
      ),
      "mahalanobis": _mahalanobis(fitted, reference.pooled[~half], pooled, spread, varies),
    },
  }
  tests = [one for part in found.values() for one in part.values()]
  for one in tests:
    one["alarm"] = bool(one["p"] is not None and one["p"] < LEVEL / len(tests))
  window = min(_WINDOW, len(then), len(scores))
  monitor = DriftMonitor(then, level=LEVEL, window=window)
  alarms = monitor.update(scores)
  shift = float((scores.mean() - then.mean()) / (then.std() or 1.0))
  moved = [
    f"{part} by {name}"
    for part, mine in found.items()
    for name, one in mine.items()
    if one["alarm"]
  ]
  if moved:
    says = f"the data has moved from {reference.data}: {', '.join(moved)}; scores by {shift:+.2f} "
    says += "standard deviations"
    if reference.known and all(name.startswith("features") for name in moved):
      says += " (features alone: where it was trained on the reference, it may know that by heart)"
  elif alarms:
    says = (
      f"no sign that the data as a whole has moved from {reference.data}, but in its own order "
    )
    says += f"{len(alarms)} of {monitor.tests} windows of {window} scores have"
  else:
    says = f"no sign that the data has moved from {reference.data}"
  return found | {
    "n": [len(then), len(scores)],
    "level": LEVEL,
    "reference": reference.data,
    "known": reference.known,
    "shift": shift,
    "monitor": {"window": window, "tests": monitor.tests, "alarms": alarms},
    "alarm": bool(moved or alarms),
    "says": says,
  }


def _mahalanobis(
  fitted_ND: np.ndarray,
  left_LD: np.ndarray,
  new_MD: np.ndarray,
  spread_D: np.ndarray,
  varies_D: np.ndarray,
) -> dict[str, Any]:
  if not varies_D.any():
    return {"value": None, "p": None, "median": None, "why": "the reference's features are all one"}
  left, new = (metrics.mahalanobis(fitted_ND / spread_D, x / spread_D) for x in (left_LD, new_MD))
  distance, p = metrics.ks(left, new)
  return {"value": distance, "p": p, "median": float(np.median(left))}


def disagreement(
  members_chosen: np.ndarray, members_rejected: np.ndarray, clusters: Sequence[str]
) -> dict[str, Any]:
  """Does an ensemble disagree where it errs?

  Args:
    members_chosen, members_rejected: float [N, M], M >= 2 members' scores of each pair.
    clusters: N conversations.

  Returns:
    {auroc: of the members' deviation, for telling wrong pairs from right ones: 0.5 = it says
    nothing, margin: AUROC of a small mean difference, which says something by itself, beyond: the
    first less the second, wrong, ties: pairs that the mean leaves undecided, which are left out}.
    The first three are figures.
  """
  difference_NM = np.asarray(members_chosen, np.float64) - np.asarray(members_rejected, np.float64)
  decided_N = difference_NM.mean(axis=1) != 0
  difference_NM = difference_NM[decided_N]
  mean_N, deviation_N = difference_NM.mean(axis=1), difference_NM.std(axis=1)
  wrong_N = mean_N < 0
  counts = {"wrong": int(wrong_N.sum()), "ties": int((~decided_N).sum())}
  if wrong_N.all() or not wrong_N.any():
    why = figures.none("all pairs are right, or all are wrong", len(mean_N))
    return {"auroc": why, "margin": why, "beyond": why} | counts
  kept = [c for c, decided in zip(clusters, decided_N, strict=True) if decided]
  arrays = deviation_N, -np.abs(mean_N), wrong_N
  found = {
    "auroc": bootstrap(lambda d, m, w: auroc(d, w), arrays, kept, scale="probability"),
    "margin": bootstrap(lambda d, m, w: auroc(m, w), arrays, kept, scale="probability"),
    "beyond": bootstrap(lambda d, m, w: auroc(d, w) - auroc(m, w), arrays, kept),
  }
  return {name: one | {"n": len(mean_N)} for name, one in found.items()} | counts
