"""Do score differences mean probabilities? Temperatures and biases, fitted on one half of the data.

All fits are on one half of the conversations and all errors on the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.texts import conversation_of
from rm_jax.errors import InputError
from rm_jax.heldout.evaluate import judged
from rm_jax.metrics import calibration as metrics
from rm_jax.metrics.correlation import bootstrap
from rm_jax.storage.files import write_json
from rm_jax.types import Example

FILE = "calibration.json"
_BINS = 10
_RESAMPLES = 200  # fits for an interval
_LEAST = 20  # comparisons of a source for a temperature of its own


def pairs(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> dict[str, Any]:
  """Calibration of σ(Δ/T), Δ the score of the preferred response less the other's.

  Args:
    scores: for each example float [K], of its responses.
    examples: those that are pairs or rankings are used.
    seed: of the halves.

  Returns:
    {n: comparisons of the half that is reported, fitted_on: of the other, temperature and its
    interval, before: {ece, brier, nll, reliability} at T = 1, after: the same at the fitted T,
    sources: name -> {temperature, interval, spread, n}: each source's own T and standard deviation
    of scores, zero: mean score of all responses, position: what can be said of it}. temperature and
    after are None, with `why`, where no T fits.

  Raises:
    ValueError: no comparison, or fewer than 2 conversations.
  """
  difference, cluster, source = [], [], []
  for one, example in zip(scores, examples, strict=True):
    if example.kind not in ("pair", "ranking"):
      continue
    for i, j in judged(example)[0]:
      difference.append(float(one[i]) - float(one[j]))
      cluster.append(conversation_of(example))
      source.append(example.source)
  if not difference:
    raise ValueError("no comparison among the examples; expected pairs or rankings")
  difference_N, source_N = np.asarray(difference), np.asarray(source)
  fit_N = metrics.halves(cluster, seed)
  kept = [c for c, fit in zip(cluster, fit_N, strict=True) if not fit]
  tested = difference_N[~fit_N]
  out = {
    "n": len(tested),
    "fitted_on": int(fit_N.sum()),
    "before": _pair_errors(tested, kept),
    "sources": {},
    "zero": _zero(scores, examples),
    "position": "none: the model sees one response at a time, and the data does not say which was "
    "shown first",
  }
  fitted = [c for c, fit in zip(cluster, fit_N, strict=True) if fit]
  out |= {"temperature": None, "after": None} | _scale(difference_N[fit_N], fitted, seed)
  if out["temperature"] is not None:
    out["after"] = _pair_errors(tested / out["temperature"], kept)
  for name in sorted(set(source)):
    mine_N = source_N == name
    own = [c for c, mine in zip(cluster, mine_N, strict=True) if mine]
    if len(own) < _LEAST:
      scale = {"why": f"{len(own)} comparisons; a temperature wants {_LEAST}", "temperature": None}
    else:
      scale = _scale(difference_N[mine_N], own, seed)
    out["sources"][name] = scale | {"n": len(own), "spread": _spread(name, scores, examples)}
  return out


def _pair_errors(logit_N: np.ndarray, clusters: list[str]) -> dict[str, Any]:
  p_2N, y_2N = metrics.both_orders(logit_N)
  both = [*clusters, *clusters]
  ece = metrics.ece(p_2N, y_2N, bins=_BINS, clusters=both)
  return {
    # Each comparison is two predictions, and still one comparison.
    "ece": {**ece, "n": len(logit_N), "predictions": ece["n"]},
    "brier": figures.mean((1 - metrics.sigmoid(logit_N)) ** 2, clusters, bounds=(0.0, 1.0)),
    "nll": figures.mean(np.logaddexp(0.0, -logit_N), clusters),
    "reliability": metrics.reliability(p_2N, y_2N, bins=_BINS, clusters=both),
  }


def _scale(difference_N: np.ndarray, clusters: list[str], seed: int) -> dict[str, Any]:
  """{temperature, interval, undefined: resamples without one}, or None and `why`."""
  try:
    found = _fitted(metrics.fit_temperature, (difference_N,), clusters, seed, "positive")
  except ValueError as error:
    return {"temperature": None, "interval": None, "undefined": None, "why": str(error)}
  # `why` is of what was not fitted: that a temperature has no interval is told apart from it.
  found |= {"why_no_interval": found.pop("why")} if "why" in found else {}
  return {"temperature": found.pop("value")} | {k: v for k, v in found.items() if k != "n"}


def _fitted(
  fit: Callable[..., float],
  arrays: Sequence[np.ndarray],
  clusters: list[str],
  seed: int,
  scale: str = "plain",
) -> dict[str, Any]:
  """A fit's figure; resamples without a fit are counted. Raises as the fit itself does."""
  value = fit(*arrays)

  def again(*drawn: np.ndarray) -> float:
    try:
      return fit(*drawn)
    except ValueError:
      return float("nan")

  drawn = bootstrap(again, arrays, clusters, resamples=_RESAMPLES, seed=seed, scale=scale)
  return drawn | {"value": value, "n": len(clusters)}


def _spread(name: str, scores: Sequence[np.ndarray], examples: Sequence[Example]) -> float:
  mine = [one for one, e in zip(scores, examples, strict=True) if e.source == name]
  return float(np.concatenate(mine).std())


def _zero(scores: Sequence[np.ndarray], examples: Sequence[Example]) -> dict[str, Any]:
  """A score has no zero of its own: the mean over named data is one to subtract."""
  flat = np.concatenate([np.asarray(one, np.float64) for one in scores])
  cluster = [conversation_of(e) for one, e in zip(scores, examples, strict=True) for _ in one]
  names = sorted({e.source for e in examples})
  return figures.mean(flat, cluster) | {"reference": ", ".join(names)}


def labels(
  score_N: np.ndarray, label_N: np.ndarray, clusters: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
  """Calibration of σ(s) as the probability that a response, or all up to a step, is right.

  Args:
    score_N: [N] log-odds, of outcomes or of steps.
    label_N: [N] in [0, 1].
    clusters: N conversations (of solutions: questions).
    seed: of the halves.

  Returns:
    {n, fitted_on, platt: {slope, bias}, each a figure, before, after, isotonic: errors by the
    monotone fit, for reference}; each of the three {ece, brier, reliability}, the first two nll as
    well (the isotonic fit gives probabilities of 0 and 1, which may be infinitely wrong). platt and
    after are None, with `why`, where there is no fit.

  Raises:
    ValueError: fewer than 2 conversations, or an argument out of its range.
  """
  score_N, label_N = np.asarray(score_N, np.float64), np.asarray(label_N, np.float64)
  fit_N = metrics.halves(clusters, seed)
  kept = [c for c, fit in zip(clusters, fit_N, strict=True) if not fit]
  score, label = score_N[~fit_N], label_N[~fit_N]

  def by_logit(z_N):
    # Of label y, −y log σ(z) − (1 − y) log σ(−z).
    nll_N = label * np.logaddexp(0.0, -z_N) + (1 - label) * np.logaddexp(0.0, z_N)
    return errors(metrics.sigmoid(z_N)) | {"nll": figures.mean(nll_N, kept)}

  def errors(p_N):
    return {
      "ece": metrics.ece(p_N, label, bins=_BINS, clusters=kept),
      "brier": figures.mean((p_N - label) ** 2, kept, bounds=(0.0, 1.0)),
      "reliability": metrics.reliability(p_N, label, bins=_BINS, clusters=kept),
    }

  knots, values = metrics.isotonic(score_N[fit_N], label_N[fit_N])
  out = {
    "n": len(score),
    "fitted_on": int(fit_N.sum()),
    "before": by_logit(score),
    "isotonic": errors(np.interp(score, knots, values)),
  }
  try:
    halves = score_N[fit_N], label_N[fit_N]
    fitted = [c for c, fit in zip(clusters, fit_N, strict=True) if fit]
    platt = {
      name: _fitted(lambda s, y, k=k: metrics.fit_platt(s, y)[k], halves, fitted, seed)
      for k, name in enumerate(("slope", "bias"))
    }
  except ValueError as error:
    return out | {"platt": None, "after": None, "why": str(error)}
  after = by_logit(platt["slope"]["value"] * score + platt["bias"]["value"])
  return out | {"platt": platt, "after": after}


def store(folder: Path, found: dict[str, Any], data: str) -> dict[str, Any]:
  """Writes what was fitted to a model's folder (`calibration.json`), and returns it.

  Args:
    folder: of the model.
    found: name -> a section: 'pairs' of `pairs`, 'outcomes' and 'steps' of `labels`.
    data: name of what it was fitted on.

  Raises:
    ValueError: one of them could not be fitted, or there is none.
  """
  kept: dict[str, Any] = {}
  for name, section in found.items():
    if not isinstance(section, dict):
      continue
    if section.get("why"):
      raise InputError(f"nothing is kept, for {name} cannot be calibrated: {section['why']}")
    if name == "pairs":
      kept[name] = {
        "temperature": section["temperature"],
        "zero": section["zero"]["value"],
        "reference": section["zero"]["reference"],
        "means": "P(a is preferred to b) = sigmoid((r(a) - r(b)) / temperature); r - zero has mean "
        "0 on the reference",
      }
    else:
      kept[name] = {
        **{key: figure["value"] for key, figure in section["platt"].items()},
        "means": "P(right) = sigmoid(slope r + bias), r the score of a response or step",
      }
    kept[name] |= {"fitted_on": section["fitted_on"], "data": data}
  if not kept:
    why = found.get("why", "the data has neither comparisons nor labels of right")
    raise InputError(f"nothing is kept: {why}")
  write_json(Path(folder) / FILE, kept)
  return kept
