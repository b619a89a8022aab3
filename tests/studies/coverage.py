"""Measures the coverage of the 95 % intervals on the audit's page and in the held-out report.

  python -m tests.studies.coverage [--only=NAME ...] [--runs=N] [--seed=S] [--jobs=2] [--out=FILE]

It prints a table and appends each of its rows to --out (./coverage.jsonl) as a line of JSON, so
that the same command resumes where it stopped. Each row is a simulation with a known truth:

- accuracy and the paired difference: 2,000 runs at 5 to 200 conversations of one or eight pairs;
- every other interval: 400 runs at 10, 50 and 200 conversations, with the audit's resamples;
- the sentences of the hacking section, which say whether there is a bias: 500 runs.

Pairs of a conversation have an intraclass correlation of about 0.3. A row passes if at least 0.92
of the intervals (0.90 below 50 conversations), less two standard errors, cover the truth. Runs
without an interval are left out. Takes about an hour on two cores.

`COVERS` says which simulation stands for which field of report.json and summary.json;
tests/metrics/test_interval.py checks that it names every field that the sections report.
"""

import argparse
import functools
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import betaincinv

from rm_jax.audit import figures
from rm_jax.audit.benchmarks.figures import published, rate
from rm_jax.audit.sections import calibration, controls, drift, hacking
from rm_jax.metrics import agreement, annotators, best_of_n, correlation, ranking
from rm_jax.metrics import calibration as fits
from rm_jax.types import Example

Found = dict[str, list | None]  # name of an interval -> [low, high], or None where there is none
_CORRELATION = 0.3
_MANY = 20_000  # Conversations of a sample whose statistic stands for the truth.

# Field of a report (with * for numbers and names) -> the simulation that stands for it.
COVERS = {
  "accuracy": "accuracy",
  "paired/*": "paired",
  "sources/*": "accuracy",
  "sources/*/best_length_rule": "paired",
  "baselines": "accuracy",
  "kendall": "lists/within kendall",
  "gain": "values/mean",
  "auroc": "auroc",
  "auroc/best_rule": "disagreement/beyond",
  "solution_auroc/*": "auroc",
  "spearman": "lists/pooled spearman",
  "attributes/*/spearman": "lists/pooled spearman",
  "best_of": "accuracy",
  "best_of/paired/*": "paired",
  "best_of/pairs": "accuracy",
  "best_of/pairs/best_rule": "paired",
  "first_error/paired/*": "paired",
  "first_error": "accuracy",
  "first_error/tuned": "accuracy",
  "shift/auroc": "auroc",
  "shift/auroc_centered": "auroc",
  "by/*/*": "accuracy",
  "one_order": "accuracy",
  "judges/each/*": "accuracy",
  "judges/ceiling/people": "accuracy",
  "judges/ceiling/model": "values/share of quarters",
  "judges/ceiling/bound": "values/share of quarters",
  "correlation/*/within": "lists/within kendall",
  "correlation/kendall/pooled": "lists/pooled kendall",
  "correlation/spearman/pooled": "lists/pooled spearman",
  "correlation/ndcg": "lists/ndcg",
  "correlation/pick": "lists/pick",
  "correlation/pick/above_chance": "lists/above chance",
  "compare": "paired",
  "alike": "accuracy",
  "model": "accuracy",
  "rules/*/accuracy": "accuracy",
  "rules/*/agrees": "accuracy",
  "rules/*/difference": "paired",
  "content": "paired",
  "sample/model": "accuracy",
  "sample/*/accuracy": "accuracy",
  "sample/*/agrees": "accuracy",
  "sample/*/difference": "paired",
  "sample/*/remains": "remains",
  "pairs/*/ece": "pairs/ece",
  "pairs/*/brier": "pairs/brier",
  "pairs/*/nll": "pairs/nll",
  "pairs/*/reliability/*": "pairs/reliability",
  "pairs": "pairs/temperature",
  "pairs/sources/*": "pairs/temperature",
  "pairs/zero": "values/mean",
  "labels/*/ece": "labels/ece",
  "labels/*/brier": "labels/brier",
  "labels/*/nll": "labels/nll",
  "labels/*/reliability/*": "labels/reliability",
  "labels/platt/slope": "labels/slope",
  "labels/platt/bias": "labels/bias",
  "edits/*/change": "values/mean",
  "edits/*/moved": "values/mean",
  "edits/*/flips/*": "accuracy",
  "edits/*/lower": "accuracy",
  "red_team/*": "accuracy",
  "disagreement/auroc": "disagreement/auroc",
  "disagreement/margin": "disagreement/margin",
  "disagreement/beyond": "disagreement/beyond",
  "measures/*/spearman": "hacking/spearman",
  "measures/*/partial": "hacking/partial",
  "measures/*/pairs/partial": "hacking/within",
  "measures/*/pairs/slope": "hacking/slope",
  "measures/*/pairs/equal": "hacking/equal",
  "top_low": "hacking/top_low",
  "variants/*/proxy/*": "curves/proxy",
  "variants/*/true/*": "curves/true",
  "variants/*/fits/*/*/alpha": "curves/alpha",
  "variants/*/fits/*/*/beta": "curves/beta",
  "variants/*/fits/*/*/peak": "curves/d*",
  "variants/*/peak/drop": "curves/drop",
  "flags/*/all": "accuracy",
  "flags/*/top": "hacking/top_low",
  "benchmark": "benchmark/score",
  "subsets/*": "benchmark/subset",
}


def _chances(rng, mean: float, clusters: int, size: int) -> np.ndarray:
  """Each conversation's probability that a pair is right, [C, 1]; the mean for single pairs."""
  if size == 1:
    return np.full((clusters, 1), mean)
  k = 1 / _CORRELATION - 1
  return rng.beta(mean * k, (1 - mean) * k, size=(clusters, 1))


def _labels(clusters: int, size: int) -> list[int]:
  return np.repeat(np.arange(clusters), size).tolist()


def accuracy(rng, clusters: int, size: int, mean: float, seed: int) -> Found:
  right = rng.random((clusters, size)) < _chances(rng, mean, clusters, size)
  found = agreement.accuracy(right.ravel().astype(float), _labels(clusters, size), seed=seed)
  return {"accuracy": found["interval"]}


def paired(rng, clusters: int, size: int, mean: float, seed: int) -> Found:
  """A model minus a coin, minus an equally good model, and minus one that is 0.05 worse.

  The rivals' errors are correlated with the model's.
  """
  k, u = 1 / _CORRELATION - 1, rng.random((clusters, 1))
  chance = [
    betaincinv(p * k, (1 - p) * k, u) if size > 1 else np.full((clusters, 1), p)
    for p in (mean, mean - 0.05)
  ]
  luck = rng.random((clusters, size))
  other = np.where(rng.random(luck.shape) < 0.6, luck, rng.random(luck.shape))
  model = (luck < chance[0]).astype(float).ravel()
  rivals = {
    "coin": np.full(model.shape, 0.5),
    "as good": (other < chance[0]).astype(float).ravel(),
    "worse": (other < chance[1]).astype(float).ravel(),
  }
  return {
    name: agreement.paired_difference(model, rival, _labels(clusters, size), seed=seed)["interval"]
    for name, rival in rivals.items()
  }


def _normal(rng, clusters: int, size: int) -> np.ndarray:
  """Normal values [C, size] of variance 1, correlated within a conversation."""
  own = rng.normal(size=(clusters, size)) * math.sqrt(1 - _CORRELATION)
  return own + rng.normal(size=(clusters, 1)) * math.sqrt(_CORRELATION)


def values(rng, clusters: int, seed: int) -> Found:
  x = np.exp(0.5 * _normal(rng, clusters, 3)).ravel()  # Skewed, like changes of scores.
  quarters = rng.binomial(4, _chances(rng, 0.8, clusters, 3), size=(clusters, 3)).ravel() / 4
  mine = _labels(clusters, 3)
  return {
    "mean": figures.mean(x, mine, seed=seed)["interval"],
    "share of quarters": figures.mean(quarters, mine, bounds=(0.0, 1.0), seed=seed)["interval"],
  }


def _scored(rng, clusters: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Scores and gains of lists, each [C, size]; they correlate within and between conversations."""
  gain = _normal(rng, clusters, size)
  return 0.7 * gain + 0.7 * _normal(rng, clusters, size), np.round(gain * 1.5)


def lists(rng, clusters: int, seed: int) -> Found:
  score, gain = _scored(rng, clusters, 4)
  least = min(-8.0, float(gain.min()))
  each, mine = list(range(clusters)), (list(score), list(gain))
  kendall = ranking.within_and_pooled(correlation.kendall, *mine, each, seed=seed)
  raised = [g - least for g in gain]
  picked = ranking.pick_rate(*mine, each, seed=seed)
  spearman = correlation.bootstrap(
    correlation.spearman, (score.ravel(), gain.ravel()), _labels(clusters, 4), seed=seed,
    scale="correlation",
  )  # fmt: skip
  ndcg = ranking.within_and_pooled(lambda s, g: ranking.ndcg(s, g), mine[0], raised, each)
  return {
    "within kendall": kendall["within"]["interval"],
    "pooled kendall": kendall["pooled"]["interval"],
    "pooled spearman": spearman["interval"],
    "ndcg": ndcg["within"]["interval"],
    "pick": picked["interval"],
    "above chance": picked["above_chance"]["interval"],
  }


def auroc(rng, clusters: int, seed: int) -> Found:
  score = _normal(rng, clusters, 4)
  good = (score + 1.2 * _normal(rng, clusters, 4)) > 0
  found = correlation.bootstrap(
    correlation.auroc, (score.ravel(), good.ravel()), _labels(clusters, 4), seed=seed,
    scale="probability", classes=good.ravel(),
  )  # fmt: skip
  return {"auroc": found["interval"]}


def remains(rng, clusters: int, seed: int) -> Found:
  chance = _chances(rng, 0.8, clusters, 2)
  with_N = (rng.random((clusters, 2)) < chance).astype(float).ravel()
  without_N = (rng.random((clusters, 2)) < 0.5 + (chance - 0.5) / 2).astype(float).ravel()
  mine = _labels(clusters, 2)
  model = figures.share(with_N, mine, seed=seed)
  return {"remains": controls._remains(without_N, with_N, model, mine, seed)["interval"]}


def _differences(rng, clusters: int) -> np.ndarray:
  """Score differences of chosen − rejected whose true temperature is 1.5, [C, 2]."""
  delta = 3 * _normal(rng, clusters, 2)
  right = rng.random(delta.shape) < fits.sigmoid(np.abs(delta) / 1.5)
  return np.where(right, np.abs(delta), -np.abs(delta))


def pairs(rng, clusters: int, seed: int) -> Found:
  difference = _differences(rng, clusters).ravel()
  mine = _labels(clusters, 2)
  scale = calibration._scale(difference, mine, seed)
  errors = calibration._pair_errors(difference, mine, seed)
  found = {"temperature": scale["interval"]}
  found |= {name: errors[name]["interval"] for name in ("ece", "brier", "nll")}
  for b in (5, 8):
    found[f"reliability {b}"] = errors["reliability"][b]["interval"]
  return found


def labels(rng, clusters: int, seed: int) -> Found:
  score = _normal(rng, clusters, 4)
  label = (rng.random(score.shape) < fits.sigmoid(1.5 * score + 0.5)).astype(float).ravel()
  score, mine = score.ravel(), _labels(clusters, 4)
  found = {}
  for k, name in enumerate(("slope", "bias")):
    try:
      fitted = calibration._fitted(
        lambda s, y, k=k: fits.fit_platt(s, y)[k], (score, label), mine, seed
      )
      found[name] = fitted["interval"]
    except ValueError:  # There is no fit, and the page says why.
      found[name] = None
  p = fits.sigmoid(score)
  found["ece"] = fits.ece(p, label, bins=10, clusters=mine, seed=seed)["interval"]
  found["brier"] = figures.mean((p - label) ** 2, mine, bounds=(0.0, 1.0), seed=seed)["interval"]
  nll = label * np.logaddexp(0.0, -score) + (1 - label) * np.logaddexp(0.0, score)
  found["nll"] = figures.mean(nll, mine, seed=seed)["interval"]
  for b in (4, 7):
    found[f"reliability {b}"] = fits.reliability(p, label, clusters=mine, seed=seed)[b]["interval"]
  return found


def disagreement(rng, clusters: int, seed: int) -> Found:
  good = np.abs(_normal(rng, clusters, 3)).reshape(-1, 1)
  spread = np.exp(0.5 * _normal(rng, clusters, 3)).reshape(-1, 1)
  chosen = good + 1.5 * spread * rng.normal(size=(3 * clusters, 4))
  found = drift.errors_by_disagreement(
    chosen, np.zeros_like(chosen), _labels(clusters, 3), seed=seed
  )
  return {name: found[name]["interval"] for name in ("auroc", "margin", "beyond")}


def _hacking(rng, clusters: int, resamples: int, seed: int) -> tuple[dict, list[dict]]:
  quality = _normal(rng, clusters, 2)
  length = 0.5 * quality + _normal(rng, clusters, 2)
  score = quality + 0.6 * length + _normal(rng, clusters, 2)
  label = quality + 0.8 * rng.normal(size=quality.shape)
  better = (label[:, :1] > label[:, 1:]).astype(float)
  rank = np.concatenate([better, 1 - better], axis=1).ravel()
  mine, options = _labels(clusters, 2), {"resamples": resamples, "seed": seed}
  flat = score.ravel(), length.ravel()[None]
  sign = np.where(better[:, 0] > 0, 1.0, -1.0)
  within = hacking._within(
    sign * (score[:, 0] - score[:, 1]),
    (sign * (length[:, 0] - length[:, 1]))[None],
    np.full(clusters, np.nan),
    list(range(clusters)),
    **options,
  )[0]
  found = {
    "spearman": hacking._correlations(*flat, None, mine, **options)[0],
    "partial": hacking._correlations(*flat, rank, mine, **options)[0],
    "within": within["partial"],
    "slope": within["slope"],
    "equal": within["equal"],
    "top_low": hacking.top_low(flat[0], quality.ravel(), mine, **options),
  }
  return found, [flat[0]]


def hacked(rng, clusters: int, seed: int) -> Found:
  return {name: one["interval"] for name, one in _hacking(rng, clusters, 500, seed)[0].items()}


_NS = (1, 2, 4, 8, 16, 32, 64)


def _curves(rng, clusters: int) -> tuple[np.ndarray, np.ndarray]:
  true = _normal(rng, clusters, 128)
  fooled = rng.random(true.shape) < 0.03  # Exploits: a higher proxy and a lower true reward.
  proxy = true + 0.5 * rng.normal(size=true.shape) + 4.0 * fooled
  return proxy, true - 2.0 * fooled


def curves(rng, clusters: int, seed: int) -> Found:
  found = best_of_n.best_of_n_curve(*_curves(rng, clusters), _NS, seed=seed)
  bon = found["fits"]["true"]["bon"]
  return {
    "proxy": found["proxy"][-1]["interval"],
    "true": found["true"][-1]["interval"],
    "alpha": bon["alpha"]["interval"],
    "beta": bon["beta"]["interval"],
    "d*": bon["peak"]["interval"],
    "drop": found["peak"]["drop"]["interval"] if found["peak"]["peaks"] is not None else None,
  }


def _items(rng, clusters: int) -> tuple[np.ndarray, np.ndarray]:
  subset = np.arange(clusters) % 3
  mean = np.asarray([0.7, 0.85, 0.9])[subset]
  right = (rng.random((clusters, 2)) < rng.beta(mean * 2.3, (1 - mean) * 2.3)[:, None]).astype(
    float
  )
  member = np.eye(3)[np.repeat(subset, 2)]
  return np.concatenate([member * right.ravel()[:, None], member], axis=1), right.ravel()


def _score(sums: np.ndarray) -> np.ndarray:
  return (sums[..., :3] / sums[..., 3:]).mean(-1)


def benchmark(rng, clusters: int, seed: int) -> Found:
  terms, right = _items(rng, clusters)
  mine = _labels(clusters, 2)
  first = terms[:, 3] > 0
  return {
    "score": published(terms, mine, _score, seed=seed)["interval"],
    "subset": rate(right[first], [c for c, is_first in zip(mine, first, strict=True) if is_first])[
      "interval"
    ],
  }


def judges(rng, clusters: int, seed: int) -> Found:
  """Intervals of annotators' statistics: alpha, and a slope of the logistic regression."""
  truth = _normal(rng, clusters, 2).reshape(-1, 1)
  said = (truth + rng.normal(size=(2 * clusters, 3)) > 0).astype(float)
  mine = _labels(clusters, 2)
  alpha = annotators.alpha_interval(said, mine, seed=seed)
  x = np.repeat(rng.normal(size=clusters), 8) * 0.7 + rng.normal(size=8 * clusters) * 0.7
  level = np.repeat(rng.normal(size=clusters), 8)
  y = (rng.random(8 * clusters) < fits.sigmoid(level)).astype(float)
  try:
    design = np.stack([np.ones_like(x), x], 1)
    slope = annotators.logistic(design, y, _labels(clusters, 8))[1]["interval"]
  except ValueError:
    slope = None
  return {"alpha": alpha.ends and list(alpha.ends), "slope": slope}


_WORDS = ("alpha", "beta", "gamma", "delta", "very", "good", "question", "sorry", "thanks")


def _text(rng, name: str) -> str:
  words = " ".join(rng.choice(_WORDS, int(rng.integers(3, 60))))
  head = "# head\n- a\n" if rng.random() < 0.3 else ""
  return f"{head}{words} {name}"


def sentences(rng, clusters: int, seed: int) -> dict[str, bool]:
  """Whether the hacking section states a bias of a random scorer, and of one that scores length."""
  examples = []
  for i in range(clusters):
    pair = _text(rng, f"{i}a"), _text(rng, f"{i}b")
    options = {"source": "s", "origin": f"o{i}", "conversation": f"p{i}"}
    examples.append(
      Example(prompt=f"p{i}", responses=pair, labels=(1.0, 0.0), kind="pair", **options)
    )
  found = {}
  for name, score in (
    ("noise", lambda rows: rng.normal(size=len(rows))),
    ("length", lambda rows: np.array([len(r) for _, r in rows]) + 30 * rng.normal(size=len(rows))),
  ):
    says = hacking.hacking(score, examples, resamples=20, seed=seed)["says"]
    found[name] = any(one.startswith("scores") for one in says)
  return found


PLAIN: dict[str, Callable] = {
  "values": values, "lists": lists, "auroc": auroc, "remains": remains, "pairs": pairs,
  "labels": labels, "disagreement": disagreement, "hacking": hacked, "curves": curves,
  "benchmark": benchmark, "judges": judges,
}  # fmt: skip


@functools.cache
def truth(name: str) -> dict[str, float]:
  """The true values, by a formula or as the statistics of a very large sample.

  Slow statistics, such as those of curves, use a smaller one.
  """
  rng = np.random.default_rng(12345)
  many, mine = _MANY * 5, None
  if name == "values":
    return {"mean": math.exp(0.125), "share of quarters": 0.8}
  if name == "lists":
    score, gain = _scored(rng, _MANY, 4)
    mine = list(range(_MANY))
    kendall = [
      ranking.list_correlation(correlation.kendall, s, g) for s, g in zip(score, gain, strict=True)
    ]
    picked = ranking.pick_rate(list(score), list(gain), mine, resamples=1)
    ndcg = [ranking.ndcg(s, g + 8) for s, g in zip(score, gain, strict=True)]
    return {
      "within kendall": float(np.nanmean(kendall)),
      "pooled kendall": correlation.kendall(score.ravel(), gain.ravel()),
      "pooled spearman": correlation.spearman(score.ravel(), gain.ravel()),
      "ndcg": float(np.nanmean(ndcg)),
      "pick": picked["value"],
      "above chance": picked["above_chance"]["value"],
    }
  if name == "auroc":
    score = _normal(rng, many, 4)
    good = (score + 1.2 * _normal(rng, many, 4)) > 0
    return {"auroc": correlation.auroc(score.ravel(), good.ravel())}
  if name == "remains":
    return {"remains": 0.5}
  if name == "pairs":
    difference = _differences(rng, many).ravel()
    p, y = fits.both_orders(difference)
    bins = fits.reliability(p, y)
    return {
      "temperature": 1.5,
      "ece": fits.ece(p, y, resamples=1)["value"],
      "brier": float(np.mean((1 - fits.sigmoid(difference)) ** 2)),
      "nll": float(np.logaddexp(0.0, -difference).mean()),
      **{f"reliability {b}": bins[b]["frequency"] for b in (5, 8)},
    }
  if name == "labels":
    score = _normal(rng, many, 4).ravel()
    p, chance = fits.sigmoid(score), fits.sigmoid(1.5 * score + 0.5)
    label = (rng.random(score.shape) < chance).astype(float)
    bins = fits.reliability(p, label)
    nll = label * np.logaddexp(0.0, -score) + (1 - label) * np.logaddexp(0.0, score)
    return {
      "slope": 1.5,
      "bias": 0.5,
      "ece": fits.ece(p, label, resamples=1)["value"],
      "brier": float(np.mean((p - label) ** 2)),
      "nll": float(nll.mean()),
      **{f"reliability {b}": bins[b]["frequency"] for b in (4, 7)},
    }
  if name == "disagreement":
    good = np.abs(_normal(rng, many, 3)).reshape(-1, 1)
    spread = np.exp(0.5 * _normal(rng, many, 3)).reshape(-1, 1)
    chosen = good + 1.5 * spread * rng.normal(size=(3 * many, 4))
    mean, wrong = chosen.mean(axis=1), chosen.mean(axis=1) < 0
    found = correlation.auroc(chosen.std(axis=1), wrong), correlation.auroc(-np.abs(mean), wrong)
    return {"auroc": found[0], "margin": found[1], "beyond": found[0] - found[1]}
  if name == "hacking":
    return {k: one["value"] for k, one in _hacking(rng, _MANY, 1, 0)[0].items()}
  if name == "curves":
    parts = [best_of_n.best_of_n_curve(*_curves(rng, 2000), _NS, resamples=2) for _ in range(20)]
    proxy, true = (
      np.mean([[x["value"] for x in part[side]] for part in parts], axis=0)
      for side in ("proxy", "true")
    )
    fit = best_of_n.fit_gao(np.sqrt([best_of_n.kl(n) for n in _NS]), true)
    found = {"proxy": proxy[-1], "true": true[-1], "d*": fit["peak"]["value"]}
    found |= {name: fit[name]["value"] for name in ("alpha", "beta")}
    # The truth is the drop from the highest point of the true curve. A run measures it from the
    # highest point of its own curve, with a band that is simultaneous over all n.
    return found | {"drop": true[int(np.argmax(true))] - true[-1]}
  if name == "benchmark":
    return {"score": (0.7 + 0.85 + 0.9) / 3, "subset": 0.7}
  if name == "judges":
    level = _normal(rng, many, 2).reshape(-1, 1)
    said = (level + rng.normal(size=(2 * many, 3)) > 0).astype(float)
    return {"alpha": annotators.krippendorff_alpha(said), "slope": 0.0}
  raise ValueError(f"no truth of {name!r}")


def cells() -> list[dict]:
  """The simulations to run: {name, clusters, runs}, and {size, mean} for accuracies."""
  out = [
    {"name": name, "clusters": c, "size": size, "mean": mean, "runs": 2000}
    for name in ("accuracy", "paired")
    for mean in (0.75, 0.95)
    for size in (1, 8)
    for c in (5, 10, 20, 50, 200)
  ]
  out += [{"name": name, "clusters": c, "runs": 400} for name in PLAIN for c in (10, 50, 200)]
  return out + [{"name": "sentences", "clusters": c, "runs": 500} for c in (20, 40, 100, 400)]


def simulate(cell: dict, seed: int) -> list[dict]:
  """Runs a simulation: {name, what, clusters .., runs, given, covered, width, floor, passes}.

  One row for each interval that it computes; `given` counts the runs with an interval.
  """
  begun, name, clusters = time.monotonic(), cell["name"], cell["clusters"]
  rows: dict[str, list] = {}
  for run in range(cell["runs"]):
    rng = np.random.default_rng([seed, run, clusters, len(name)])
    if name in ("accuracy", "paired"):
      make = {"accuracy": accuracy, "paired": paired}[name]
      found = make(rng, clusters, cell["size"], cell["mean"], run)
    elif name == "sentences":
      found = sentences(rng, clusters, run)
    else:
      found = PLAIN[name](rng, clusters, run)
    for what, ends in found.items():
      rows.setdefault(what, []).append(ends)
  if name == "accuracy":
    known = {"accuracy": cell["mean"]}
  elif name == "paired":
    known = {"coin": cell["mean"] - 0.5, "as good": 0.0, "worse": 0.05}
  else:
    known = {} if name == "sentences" else truth(name)
  out = []
  for what, ends in rows.items():
    row = {**cell, "what": what, "seed": seed, "seconds": round(time.monotonic() - begun, 1)}
    if name == "sentences":
      said = float(np.mean(ends))
      passes = said <= 0.07 if what == "noise" else said >= 0.9 or clusters < 40
      out.append(row | {"said": said, "passes": passes})
      continue
    given = [e for e in ends if e is not None]
    row |= {"truth": known[what], "given": len(given)}
    if given:
      low, high = np.asarray(given, np.float64).T
      slack = 1e-9 * max(1.0, abs(known[what]))
      held = (low - slack <= known[what]) & (known[what] <= high + slack)
      aim = 0.92 if clusters >= 50 else 0.9
      floor = aim - 2 * math.sqrt(aim * (1 - aim) / len(given))
      row |= {"covered": float(held.mean()), "width": float(np.median(high - low))}
      row |= {"floor": floor, "passes": bool(held.mean() >= floor)}
    else:
      row |= {"covered": None, "width": None, "passes": True}
    out.append(row)
  return out


def line(row: dict) -> str:
  kind = "".join(f" {k} {row[k]}" for k in ("size", "mean") if k in row)
  start = f"{row['name'] + '/' + row['what']:28}{row['clusters']:>5} clusters{kind:18}"
  verdict = "" if row["passes"] else "  FAILS"
  if "said" in row:
    return f"{start} said in {row['said']:.3f} of {row['runs']}{verdict}"
  if row["covered"] is None:
    return f"{start} none given in {row['runs']} runs"
  return (
    f"{start} covered {row['covered']:.3f} (least {row['floor']:.3f}) width {row['width']:.3f} "
    f"given {row['given']} of {row['runs']}{verdict}"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", action="append", help="a simulation's name; any number of times")
  parser.add_argument("--clusters", type=int, action="append", help="these numbers alone")
  parser.add_argument("--runs", type=int, default=0, help="of each; 0 = the study's own")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--jobs", type=int, default=2)
  parser.add_argument("--out", type=Path, default=Path("coverage.jsonl"))
  args = parser.parse_args()
  todo = [c for c in cells() if not args.only or c["name"] in args.only]
  todo = [c for c in todo if not args.clusters or c["clusters"] in args.clusters]
  if not todo:
    raise SystemExit(f"--only={args.only}: expected some of {sorted({c['name'] for c in cells()})}")
  todo = [c | {"runs": args.runs or c["runs"]} for c in todo]
  kept = args.out.read_text().splitlines() if args.out.exists() else []
  rows = [json.loads(one) for one in kept]

  def done(cell: dict) -> bool:
    return any(cell.items() <= row.items() and row["seed"] == args.seed for row in rows)

  left = [c for c in todo if not done(c)]
  with multiprocessing.Pool(args.jobs) as pool, args.out.open("a") as file:
    for made in pool.imap_unordered(functools.partial(simulate, seed=args.seed), left):
      rows += made
      file.write("".join(json.dumps(row) + "\n" for row in made))
      file.flush()
      for row in made:
        print(line(row), flush=True)
  shown = [r for r in rows if any(c.items() <= r.items() for c in todo) and r["seed"] == args.seed]
  print(f"\n{len(shown)} rows, {sum(not r['passes'] for r in shown)} fail")
  for row in shown:
    if not row["passes"]:
      print(line(row))


if __name__ == "__main__":
  main()
