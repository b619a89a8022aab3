"""Section `drift`: whether the data differ from a reference in the model's scores and features.

Of an ensemble also whether its members' disagreement predicts its errors, which needs no reference.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.comparisons import each_comparison, one_each, sampled
from rm_jax.audit.reference import Reference
from rm_jax.audit.scorer import Row, key_of
from rm_jax.audit.section import Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.metrics import drift as metrics
from rm_jax.metrics.correlation import auroc, bootstrap
from rm_jax.metrics.monitor import DriftMonitor

# If nothing has drifted, the five tests together raise a false alarm with at most this probability.
# So does the monitor by itself if the data are in random order. Where they are not, as where one
# source follows another, its alarm says that the order matters, and not that the data have moved.
LEVEL = 0.01
FEWEST = 20  # conversations that the data and the reference each need to be compared
_MOST = 1000  # largest number of conversations of the data that are compared
_WINDOW = 100  # largest number of scores in one window of the monitor
_ENSEMBLE_PAIRS = 2000  # largest number of pairs on which an ensemble's members are compared


def drift(
  scores: np.ndarray, pooled: np.ndarray, reference: Reference, *, seed: int = 0
) -> dict[str, Any]:
  """Distances of scores and features from a reference, and alarms of a monitor of the scores.

  Args:
    scores: [M], of one response of each conversation, in the order of the data; M at least 20.
    pooled: float [M, D], features of the same responses: the hidden states that the head reads.
    reference: of the same model, with at least 20 rows.
    seed: of permutation tests, of the rows drawn for the energy distance, and of the split of the
      reference into halves.

  Returns:
    {n: [rows of the reference, M], level: `LEVEL`, reference: name of the reference's data, known:
      whether the model was trained on those data,
    scores: {ks, psi, energy}, features: {energy, mahalanobis}: each {value: distance, p, alarm:
      whether p is below a fifth of the level, Bonferroni's for the five tests},
    shift: mean score minus the reference's, in standard deviations of the reference's scores
      (undivided if they are all equal),
    monitor: {window, tests, alarms} of a `DriftMonitor` that reads the scores as a stream,
    alarm: whether any test or the monitor raised an alarm,
    says: a sentence}.
    The energy distance of features is that of at most 500 rows of each, and each feature is divided
    by its standard deviation in reference and data together. mahalanobis compares Mahalanobis
    distances from one half of the reference by the KS test: those of the other half against those
    of the data. There each feature is divided by its standard deviation in the first half, or by
    the mean of the others' where it does not vary there; the value is None, with `why`, if none
    does.

  Raises:
    ValueError: too few rows, features of another dimension or with a singular covariance, or a
      value that is not finite.
  """
  scores, pooled = np.asarray(scores, np.float64), np.asarray(pooled, np.float64)
  then = np.asarray(reference.scores, np.float64)
  if min(len(scores), len(then)) < FEWEST:
    found = f"{len(then)} reference rows and {len(scores)} new ones"
    raise ValueError(f"{found}; expected {FEWEST} of each")
  if pooled.shape[1] != reference.pooled.shape[1]:
    raise ValueError(
      f"features have {pooled.shape[1]} dimensions and the reference's "
      f"{reference.pooled.shape[1]}: it is another model's"
    )
  half = np.random.default_rng(seed).permutation(len(then)) < len(then) // 2
  fitted = reference.pooled[half].astype(np.float64)
  spread = fitted.std(axis=0)
  # A feature that does not vary in this half of the reference has no standard deviation to be
  # measured in. It gets the mean of the others', so that data in which it varies count as moved.
  varies = spread > 1e-6 * np.maximum(np.abs(fitted).max(axis=0), 1e-30)
  spread[~varies] = spread[varies].mean() if varies.any() else 1.0
  # A permutation test is exact only if a permutation of all rows would not change how they are
  # scaled. With the standard deviations of one half, whose rows are smaller by them than others
  # are, it raised false alarms in 12 % of samples of 100 rows and 512 heavy-tailed features.
  scale = np.concatenate([reference.pooled, pooled]).astype(np.float64).std(axis=0)
  scale[scale == 0] = 1.0
  ks, ks_p = metrics.ks(then, scores)
  found = {
    "scores": {
      "ks": {"value": ks, "p": ks_p},
      "psi": metrics.psi(then, scores, seed=seed),
      "energy": metrics.energy_distance(then, scores, seed=seed),
    },
    "features": {
      "energy": metrics.energy_distance(
        reference.pooled / scale, pooled / scale, seed=seed, limit=500
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
  """The KS test of Mahalanobis distances from `fitted_ND`: those of `left_LD` against `new_MD`.

  Rows from which the mean and covariance were estimated are on average nearer than other rows of
  the same distribution, so the reference's own distances are those of the half that was not used
  for that.
  """
  if not varies_D.any():
    return {"value": None, "p": None, "median": None, "why": "the reference's features are all one"}
  left, new = (metrics.mahalanobis(fitted_ND / spread_D, x / spread_D) for x in (left_LD, new_MD))
  distance, p = metrics.ks(left, new)
  return {"value": distance, "p": p, "median": float(np.median(left))}


def errors_by_disagreement(
  members_chosen: np.ndarray,
  members_rejected: np.ndarray,
  clusters: Sequence[str],
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """How well the disagreement of an ensemble's members predicts its errors.

  Args:
    members_chosen: float [N, M], scores of the preferred responses by M >= 2 members.
    members_rejected: float [N, M], of the other responses.
    clusters: N conversations.
    seed: of the intervals.

  Returns:
    {auroc: AUROC with which the standard deviation of the members' score differences tells wrong
      pairs from right ones; 0.5 = no better than chance,
    margin: the same of minus the absolute mean difference, the simplest predictor of an error,
    beyond: auroc − margin,
    wrong: number of pairs that the mean of the members gets wrong,
    ties: number of pairs that the mean leaves undecided; they are left out}.
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
  options = {"arrays": arrays, "clusters": kept, "classes": wrong_N, "seed": seed}
  found = {
    "auroc": bootstrap(lambda d, m, w: auroc(d, w), **options, scale="probability"),
    "margin": bootstrap(lambda d, m, w: auroc(m, w), **options, scale="probability"),
    "beyond": bootstrap(lambda d, m, w: auroc(d, w) - auroc(m, w), **options),
  }
  return {name: one | {"n": len(mean_N)} for name, one in found.items()} | counts


def _rows(subject: Subject) -> list[Row]:
  return one_each(subject.examples, _MOST, subject.settings.seed)


def _prepare(subject: Subject) -> None:
  """Reads the features that drift needs before any section scores texts.

  A forward pass for features gives scores as well, so in this order it need not be repeated for the
  scores. The other responses to the same prompts are scored in the same pass, in which a decoder's
  computation of a prompt can be shared.
  """
  if subject.reference is None or len(rows := _rows(subject)) < FEWEST:
    return
  drawn = {key_of((prompt, "")) for prompt, _ in rows}
  same = [e for e in subject.examples if key_of((e.prompt, "")) in drawn]
  subject.scorer.pooled(rows, [(e.prompt, response) for e in same for response in e.responses])


def _measure(subject: Subject) -> dict[str, Any]:
  reference, scorer, seed = subject.reference, subject.scorer, subject.settings.seed
  disagreement = _disagreement(subject)
  if reference is None:
    return {"why": "no reference is kept with the model; --reference=DATA makes one"} | disagreement
  rows = _rows(subject)
  if min(len(rows), len(reference.scores)) < FEWEST:
    return {
      "why": f"{len(rows)} conversations against {len(reference.scores)} of {reference.data}; a "
      f"comparison of distributions wants {FEWEST} of each"
    } | disagreement
  return drift(scorer(rows), scorer.pooled(rows), reference, seed=seed) | disagreement


def _disagreement(subject: Subject) -> dict[str, Any]:
  """{'disagreement': `errors_by_disagreement`}, or {} without an ensemble or without pairs."""
  scorer, seed = subject.scorer, subject.settings.seed
  if scorer.outputs == 1 or not (compared := list(each_comparison(subject.examples))):
    return {}
  # A random sample and not the first pairs, because data come source by source.
  pairs = sampled(compared, _ENSEMBLE_PAIRS, seed)
  clusters = [p.conversation for p in pairs]
  if len(set(clusters)) < 2:
    return {}
  members = scorer.members([(p.prompt, r) for p in pairs for r in (p.chosen, p.rejected)])
  both = members.reshape(len(pairs), 2, -1)
  return {"disagreement": errors_by_disagreement(both[:, 0], both[:, 1], clusters, seed=seed)}


def _render(page: Writer, found: View) -> None:
  if "why" in found:
    page.add(f"<p class=why>Not measured: {escaped(found['why'].value)}.</p>")
  else:
    _render_distances(page, found)
  if "disagreement" in found:
    one = found["disagreement"]
    page.add(
      "<p>Its errors (0.5 = not told): by the members' disagreement AUROC "
      f"{page.figure(one['auroc'])}, by a small margin alone {page.figure(one['margin'])}.</p>"
    )


def _render_distances(page: Writer, found: View) -> None:
  page.table(
    ("", "distance", "p", "alarm"),
    (
      (f"{part}, {name}", page.figure(one), *(page.value(one[k]) for k in ("p", "alarm")))
      for part in ("scores", "features")
      for name, one in found[part].items()
    ),
  )
  monitor = found["monitor"]
  page.add(
    f"<p>Monitor: {page.value(monitor['tests'])} windows of {page.value(monitor['window'])}, "
    f"{len(monitor.value['alarms'])} alarms.</p>"
  )


SECTION = Section("drift", "Drift", _measure, _render, prepare=_prepare)
