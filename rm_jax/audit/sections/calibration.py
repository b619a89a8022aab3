"""Section `calibration`: whether scores or their differences are log-odds; fits to make them so.

A temperature (comparisons) or Platt's slope and bias (outcomes and steps) is fitted on one half of
the conversations, as is isotonic regression, and errors are measured on the other half. From all of
the data are only the mean score (`zero`) and the temperatures of single sources, which stand beside
the common one.

Guo et al. (2017), On calibration of modern neural networks. Platt (1999), Probabilistic outputs for
support vector machines.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_jax.audit import figures, plots
from rm_jax.audit.comparisons import PREFERENCES, conversation_of
from rm_jax.audit.section import Draw, Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.errors import InputError
from rm_jax.heldout.evaluate import judged
from rm_jax.metrics import calibration as metrics
from rm_jax.metrics.correlation import bootstrap
from rm_jax.storage import pictures
from rm_jax.storage.files import write_json
from rm_jax.types import Example

FILE = "calibration.json"
_BINS = 10
_RESAMPLES = 200  # of the bootstrap; fewer than elsewhere, because each resample is fitted anew
_LEAST = 20  # fewest comparisons of a source for which a temperature of its own is fitted


def pairs(
  scores: Sequence[np.ndarray], examples: Sequence[Example], *, seed: int = 0
) -> dict[str, Any]:
  """Calibration of σ(Δ / T), where Δ is the preferred response's score minus the other's.

  Args:
    scores: for each example float [K], of its responses.
    examples: of any kind. Comparisons are taken from the pairs and rankings among them; `zero` and
      `spread` are over the responses of all of them.
    seed: of the split into halves, and of the intervals.

  Returns:
    {n: comparisons in the half on which errors are measured, fitted_on: comparisons in the other,
    temperature, interval: of the temperature,
    before: {ece, brier, nll: in nats, reliability} at T = 1, after: the same at the fitted T,
    sources: name -> {temperature, interval: fitted on all comparisons of that source, spread:
    standard deviation of the scores of all its responses, n: its comparisons},
    zero: figure of the mean score of all responses, with `reference`: names of the sources,
    position: a sentence that says why position bias is not measured}.
    temperature and after are None, with `why`, if no T fits; of a source temperature is None, too,
    if it has fewer than 20 comparisons. A fit also has `undefined`, the number of resamples without
    a fit, and `why_no_interval` where it has no interval.

  Raises:
    ValueError: no decided comparison, or fewer than 2 conversations with one; a score that is not
      finite.
  """
  difference, cluster, source = [], [], []
  for one, example in zip(scores, examples, strict=True):
    if example.kind not in PREFERENCES:
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
    "before": _pair_errors(tested, kept, seed),
    "sources": {},
    "zero": _zero(scores, examples, seed),
    "position": "none: the model sees one response at a time, and the data does not say which was "
    "shown first",
  }
  fitted = [c for c, fit in zip(cluster, fit_N, strict=True) if fit]
  out |= {"temperature": None, "after": None} | _scale(difference_N[fit_N], fitted, seed)
  if out["temperature"] is not None:
    out["after"] = _pair_errors(tested / out["temperature"], kept, seed)
  for name in sorted(set(source)):
    mine_N = source_N == name
    own = [c for c, mine in zip(cluster, mine_N, strict=True) if mine]
    if len(own) < _LEAST:
      scale = {"why": f"{len(own)} comparisons; a temperature wants {_LEAST}", "temperature": None}
    else:
      scale = _scale(difference_N[mine_N], own, seed)
    out["sources"][name] = scale | {"n": len(own), "spread": _spread(name, scores, examples)}
  return out


def _pair_errors(logit_N: np.ndarray, clusters: list[str], seed: int) -> dict[str, Any]:
  """{ece, brier, nll, reliability} of [N] log-odds that the preferred response is preferred.

  For ece and reliability each comparison is two predictions, one for each order of its responses;
  with one order alone, all labels would be 1.
  """
  p_2N, y_2N = metrics.both_orders(logit_N)
  both = [*clusters, *clusters]
  binned = {"bins": _BINS, "clusters": both, "seed": seed}
  ece = metrics.ece(p_2N, y_2N, **binned)
  return {
    # n counts comparisons, of which each is two predictions.
    "ece": {**ece, "n": len(logit_N), "predictions": ece["n"]},
    "brier": figures.mean(
      (1 - metrics.sigmoid(logit_N)) ** 2, clusters, bounds=(0.0, 1.0), seed=seed
    ),
    "nll": figures.mean(np.logaddexp(0.0, -logit_N), clusters, seed=seed),
    "reliability": metrics.reliability(p_2N, y_2N, **binned),
  }


def _scale(difference_N: np.ndarray, clusters: list[str], seed: int) -> dict[str, Any]:
  """{temperature, interval, undefined: resamples without a fit}.

  All are None, with `why`, if no positive temperature fits: the scores get no comparison wrong, so
  that the likelihood grows as the temperature goes to 0; or on average they do not prefer the
  response that people did.
  """
  try:
    found = _fitted(metrics.fit_temperature, (difference_N,), clusters, seed, "positive")
  except ValueError as error:
    return {"temperature": None, "interval": None, "undefined": None, "why": str(error)}
  # In this report `why` means that nothing was fitted, so a missing interval has another key.
  found |= {"why_no_interval": found.pop("why")} if "why" in found else {}
  return {"temperature": found.pop("value")} | {k: v for k, v in found.items() if k != "n"}


def _fitted(
  fit: Callable[..., float],
  arrays: Sequence[np.ndarray],
  clusters: list[str],
  seed: int,
  scale: str = "plain",
) -> dict[str, Any]:
  """The figure of a fitted number, with `undefined`: number of resamples that have no fit.

  Args:
    fit: arrays -> number; raises ValueError if no number fits.
    arrays: the arguments of `fit`, each [N].
    clusters: N conversations.
    seed: of the bootstrap.
    scale: of the interval: a key of `SCALES` in metrics/interval.py.

  Raises:
    ValueError: `fit` raises it for all the data. In a resample it is counted as undefined.
  """
  value = fit(*arrays)

  def again(*drawn: np.ndarray) -> float:
    try:
      return fit(*drawn)
    except ValueError:
      return float("nan")

  drawn = bootstrap(again, arrays, clusters, resamples=_RESAMPLES, seed=seed, scale=scale)
  return drawn | {"value": value, "n": len(clusters)}


def _spread(name: str, scores: Sequence[np.ndarray], examples: Sequence[Example]) -> float:
  """Standard deviation of the scores of all responses of a source."""
  mine = [one for one, e in zip(scores, examples, strict=True) if e.source == name]
  return float(np.concatenate(mine).std())


def _zero(scores: Sequence[np.ndarray], examples: Sequence[Example], seed: int) -> dict[str, Any]:
  """Figure of the mean score over the data, with the names of the data's sources as `reference`.

  Preferences do not determine a constant that is added to all scores. Subtracting this mean fixes
  it: a score of 0 is then the mean over these data.
  """
  flat = np.concatenate([np.asarray(one, np.float64) for one in scores])
  cluster = [conversation_of(e) for one, e in zip(scores, examples, strict=True) for _ in one]
  names = sorted({e.source for e in examples})
  return figures.mean(flat, cluster, seed=seed) | {"reference": ", ".join(names)}


def labels(
  score_N: np.ndarray, label_N: np.ndarray, clusters: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
  """Calibration of σ(s) as the probability that a response, or a solution up to a step, is right.

  Args:
    score_N: [N] log-odds, of outcomes or of steps.
    label_N: [N] in [0, 1].
    clusters: N conversations (for solutions: questions).
    seed: of the split into halves, and of the intervals.

  Returns:
    {n: items in the half on which errors are measured, fitted_on: items in the other,
    platt: {slope, bias}, each a figure with `undefined`, the number of resamples without a fit,
    before: {ece, brier, nll: in nats, reliability} of σ(s), after: of σ(slope s + bias),
    isotonic: {ece, brier, reliability} of isotonic regression, the best monotone fit, to compare
      with. It has no nll, because it may predict 0 or 1, for which nll is infinite}.
    platt and after are None, with `why`, if no finite slope and bias fit.

  Raises:
    ValueError: fewer than 2 conversations, or an argument that is not finite or out of its range.
  """
  score_N, label_N = np.asarray(score_N, np.float64), np.asarray(label_N, np.float64)
  fit_N = metrics.halves(clusters, seed)
  kept = [c for c, fit in zip(clusters, fit_N, strict=True) if not fit]
  score, label = score_N[~fit_N], label_N[~fit_N]

  def by_logit(z_N):
    # The cross-entropy −y log σ(z) − (1 − y) log σ(−z) of label y.
    nll_N = label * np.logaddexp(0.0, -z_N) + (1 - label) * np.logaddexp(0.0, z_N)
    return errors(metrics.sigmoid(z_N)) | {"nll": figures.mean(nll_N, kept, seed=seed)}

  def errors(p_N):
    binned = {"bins": _BINS, "clusters": kept, "seed": seed}
    return {
      "ece": metrics.ece(p_N, label, **binned),
      "brier": figures.mean((p_N - label) ** 2, kept, bounds=(0.0, 1.0), seed=seed),
      "reliability": metrics.reliability(p_N, label, **binned),
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
  """Writes the fitted numbers to `calibration.json` in a model's folder, and returns them.

  Args:
    folder: of the model.
    found: the section's report: 'pairs' as `pairs` returns it, 'outcomes' and 'steps' as `labels`.
    data: name of the data that the numbers were fitted on.

  Raises:
    InputError: one of these parts has no fit, or there is none of them; then nothing is written.
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


def _measure(subject: Subject) -> dict[str, Any]:
  scores, examples, seed = subject.scores, subject.examples, subject.settings.seed
  out, lacks = {}, subject.lacks_comparisons(conversations=2)
  if not lacks:
    out["pairs"] = pairs(scores, examples, seed=seed)
  at = [i for i, e in enumerate(examples) if e.kind == "outcome"]
  if len({conversation_of(examples[i]) for i in at}) > 1:
    score_N = np.concatenate([scores[i] for i in at])
    label_N = np.concatenate([examples[i].labels for i in at])
    clusters = [conversation_of(examples[i]) for i in at for _ in examples[i].responses]
    out["outcomes"] = labels(score_N, label_N, clusters, seed=seed)
  if at or any(e.kind in PREFERENCES for e in examples):
    return out or {"why": f"halves are of two conversations and more: {lacks}"}
  return {"why": "neither comparisons nor outcomes in the data: ratings are no probabilities"}


def _measure_steps(subject: Subject) -> dict[str, Any]:
  clusters = [conversation_of(e) for e in subject.examples for _ in e.labels]
  if len(set(clusters)) < 2:
    return {"why": "halves are of two conversations and more: there is one"}
  label_N = np.concatenate([e.labels for e in subject.examples])
  score_N = np.concatenate(subject.scores)
  return {"steps": labels(score_N, label_N, clusters, seed=subject.settings.seed)}


def _draw(found: Mapping[str, Any]) -> dict[str, Draw]:
  return {
    f"calibration_{name}": lambda part=part: _reliability_diagram(part)
    for name, part in found.items()
    if part.get("before")
  }


def _reliability_diagram(part: Mapping[str, Any]) -> bytes:
  figure = pictures.figure(4.8, 4.4)
  axis = figure.subplots()
  axis.plot([0, 1], [0, 1], color=plots.GREY, lw=0.8, ls=":", label="calibrated")
  for name, colour in (("before", plots.ORANGE), ("after", plots.BLUE)):
    errors = part.get(name)
    if not errors:
      continue
    bins = [b for b in errors["reliability"] if b["n"]]
    x = [b["confidence"] for b in bins]
    y = [b["frequency"] for b in bins]
    # A bin of few conversations has no interval; its error bar gets length 0.
    ends = [b["interval"] or (b["frequency"],) * 2 for b in bins]
    low = [max(0.0, b["frequency"] - end) for b, (end, _) in zip(bins, ends, strict=True)]
    high = [max(0.0, end - b["frequency"]) for b, (_, end) in zip(bins, ends, strict=True)]
    ece = errors["ece"]["value"]
    label = f"{name} the fit" + ("" if ece is None else f", ECE {ece:.3f}")
    axis.errorbar(x, y, yerr=[low, high], fmt="o-", color=colour, capsize=3, lw=1, label=label)
  axis.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1))
  axis.legend(frameon=False, fontsize=9)
  return plots.png(figure)


def _render(page: Writer, found: View) -> None:
  for name, part in found.items():
    page.add(f"<h3>{escaped(name)}</h3>")
    if part.value.get("why"):
      page.add(f"<p class=why>{escaped(part.value['why'])}</p>")
    page.picture(f"calibration_{name}", f"reliability diagram of {name}")
    page.table(
      ("", "ECE, debiased", "Brier", "loss, nats"),
      (
        (when, *(page.figure(part[when].get(k)) for k in ("ece", "brier", "nll")))
        for when in ("before", "after", "isotonic")
        if part.value.get(when)
      ),
    )
    if "temperature" in part:
      _render_temperature(page, part)
    elif part.value.get("platt"):
      slope, bias = (page.figure(part["platt"][k]) for k in ("slope", "bias"))
      page.add(f"<p>σ({slope} s + {bias})</p>")


def _render_temperature(page: Writer, part: View) -> None:
  page.add(
    f"<p>Temperature {page.figure(part, key='temperature')}, fitted on "
    f"{page.value(part['fitted_on'])} comparisons; zero at "
    f"{page.figure(part['zero'])}, the mean on "
    f"{escaped(part.value['zero']['reference'])}. Position: {escaped(part.value['position'])}.</p>"
  )
  page.table(
    ("source", "its own temperature", "spread of scores", "n"),
    (
      (
        escaped(source),
        page.figure(one, key="temperature"),
        *(page.value(one[k]) for k in ("spread", "n")),
      )
      for source, one in part["sources"].items()
    ),
  )


SECTION = Section(
  "calibration", "Calibration", _measure, _render, draw=_draw, measure_steps=_measure_steps
)
