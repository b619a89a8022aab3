"""Do score differences mean probabilities? Temperatures and biases, fitted on one half of the data.

All fits are on one half of the conversations and all errors on the other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.texts import conversation_of
from rm_jax.metrics import calibration as metrics
from rm_jax.train.evaluate import judged
from rm_jax.train.writers import write_json
from rm_jax.types import Example

FILE = "calibration.json"
_BINS = 10
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
    {n: comparisons of the half that is reported, fitted_on: of the other, temperature, before:
    {ece, brier, nll, reliability} at T = 1, after: the same at the fitted T, sources: name ->
    {temperature, spread, n}: each source's own T and standard deviation of scores, zero: mean score
    of all responses, position: what can be said of it}. temperature and after are None, with `why`,
    where no T fits.

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
  try:
    temperature = metrics.fit_temperature(difference_N[fit_N])
    out |= {"temperature": temperature, "after": _pair_errors(tested / temperature, kept)}
  except ValueError as error:
    out |= {"temperature": None, "after": None, "why": str(error)}
  for name in sorted(set(source)):
    out["sources"][name] = _scale(difference_N[source_N == name]) | {
      "spread": _spread(name, scores, examples)
    }
  return out


def _pair_errors(logit_N: np.ndarray, clusters: list[str]) -> dict[str, Any]:
  p_2N, y_2N = metrics.both_orders(logit_N)
  return {
    "ece": metrics.ece(p_2N, y_2N, bins=_BINS, clusters=[*clusters, *clusters]),
    "brier": figures.mean((1 - metrics.sigmoid(logit_N)) ** 2, clusters),
    "nll": figures.mean(np.logaddexp(0.0, -logit_N), clusters),
    "reliability": metrics.reliability(p_2N, y_2N, bins=_BINS),
  }


def _scale(difference_N: np.ndarray) -> dict[str, Any]:
  if len(difference_N) < _LEAST:
    why = f"{len(difference_N)} comparisons; a temperature wants {_LEAST}"
    return {"temperature": None, "n": len(difference_N), "why": why}
  try:
    return {"temperature": metrics.fit_temperature(difference_N), "n": len(difference_N)}
  except ValueError as error:
    return {"temperature": None, "n": len(difference_N), "why": str(error)}


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
    {n, fitted_on, platt: {slope, bias}, before, after, isotonic: errors by the monotone fit, for
    reference}; each of the three {ece, brier, reliability}. platt and after are None, with `why`,
    where there is no fit.

  Raises:
    ValueError: fewer than 2 conversations, or an argument out of its range.
  """
  score_N, label_N = np.asarray(score_N, np.float64), np.asarray(label_N, np.float64)
  fit_N = metrics.halves(clusters, seed)
  kept = [c for c, fit in zip(clusters, fit_N, strict=True) if not fit]
  score, label = score_N[~fit_N], label_N[~fit_N]

  def errors(p_N):
    return {
      "ece": metrics.ece(p_N, label, bins=_BINS, clusters=kept),
      "brier": figures.mean((p_N - label) ** 2, kept),
      "reliability": metrics.reliability(p_N, label, bins=_BINS),
    }

  knots, values = metrics.isotonic(score_N[fit_N], label_N[fit_N])
  out = {
    "n": len(score),
    "fitted_on": int(fit_N.sum()),
    "before": errors(metrics.sigmoid(score)),
    "isotonic": errors(np.interp(score, knots, values)),
  }
  try:
    slope, bias = metrics.fit_platt(score_N[fit_N], label_N[fit_N])
  except ValueError as error:
    return out | {"platt": None, "after": None, "why": str(error)}
  after = errors(metrics.sigmoid(slope * score + bias))
  return out | {"platt": {"slope": slope, "bias": bias}, "after": after}


def store(folder: Path, section: dict[str, Any], data: str) -> dict[str, Any]:
  """Writes what was fitted to a model's folder (`calibration.json`), and returns it.

  Args:
    folder: of the model.
    section: of `pairs`, with a temperature.
    data: name of what it was fitted on.

  Raises:
    ValueError: nothing could be fitted.
  """
  if section["temperature"] is None:
    raise ValueError(f"there is no temperature to keep: {section['why']}")
  kept = {
    "temperature": section["temperature"],
    "zero": section["zero"]["value"],
    "reference": section["zero"]["reference"],
    "fitted_on": section["fitted_on"],
    "data": data,
    "means": "P(a is preferred to b) = sigmoid((r(a) - r(b)) / temperature); r - zero has mean 0 "
    "on the reference",
  }
  write_json(Path(folder) / FILE, kept)
  return kept
