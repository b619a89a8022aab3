"""What a score rewards besides quality: length, formatting, repetition, flattery.

A score that goes with length may only know that good answers are longer. So each measure of the
text is set against the score *given quality*: the partial rank correlation, quality taken out of
both.

A score may have any offset a prompt: what is learned of preferences fixes none. Over all responses
together an offset hides a preference for length, or makes one up where prompts that score higher
have longer answers. So where responses to one prompt are compared, the sentences speak of
differences within pairs, and of all responses together only where there is no pair.

What is identified depends on what is known of quality. With a true reward or ratings, the partial
correlation says what of the measure the score follows beyond quality. With preferences alone
quality is one bit a pair: within pairs, the difference of scores (chosen less rejected) is
regressed on the label and the difference of measures. Chosen first, the label is the constant; so
the intercept is what the label is worth at equal measures and the slope what the measure is worth
at an equal label. How far the chosen one is better is not known: where it is more so the longer it
is, the slope holds a part of quality.

Kendall (1942), Partial rank correlation; here Spearman's. Singhal et al. (2023), A long way to go:
investigating length correlations in RLHF.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.texts import (
  Comparison,
  Score,
  conversation_of,
  each_comparison,
  scores_of,
)
from rm_jax.data.dialogue import plain
from rm_jax.metrics import agreement, correlation
from rm_jax.metrics.text import MEASURES
from rm_jax.types import Example, Text

_STRONG = 0.3  # partial rank correlation from which the sentences name a measure
_ALL = 1e-9  # what is left of a rank's variance that counts as nothing


def hacking(
  score: Score,
  examples: Sequence[Example],
  *,
  measures: Mapping[str, Callable[[str], float]] = MEASURES,
  top: float = 0.1,
  resamples: int = 500,
  seed: int = 0,
) -> dict:
  """The score against measures of the text given quality, and the high scores of low quality.

  Quality is the true reward where all examples have one; else the label, where all are ratings of
  one kind ('score' or 'outcome'); else the response's rank in its own prompt, from 0 to 1, which of
  a pair is 1 or 0. Steps, attributes, and responses without another beside them have no rank.

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: of any kind; those without a quality are left out.
    measures: name -> a number of a response's text.
    top: share of the responses that is called high-scored.
    resamples: of conversations, for each interval.
    seed: of the resamples.

  Returns:
    {responses, left_out: examples, quality: 'truth', 'label' or 'rank', pairs: comparisons,
    within: whether some of the correlations within pairs is known, which is then spoken of,
    measures: name -> {spearman: of score and measure, partial: given quality,
      pairs: {partial: of the differences within pairs, given the label and, where it is known, the
        difference of true rewards or ratings; slope: standard deviations of the score's difference
        for one of the measure's, at equal quality; equal: the score's difference in its standard
        deviations at equal measures (and rewards or ratings)}},
    top_low: share of the top-scored whose quality is in the bottom half, ties shared out, with
      {top, random: 0.5, what a scorer without any knowledge has, perfect: what quality itself has},
    says: sentences}. Each a figure of `figures`.

  Raises:
    ValueError: no example has a quality, fewer than 2 conversations, or a score not finite.
  """
  used, quality_N, kind = _quality(examples)
  pairs = list(each_comparison(examples))
  rows = [(e.prompt, response) for e in used for response in e.responses]
  clusters = [conversation_of(e) for e in used for _ in e.responses]
  if len(set(clusters)) < 2:
    raise ValueError(f"{len(set(clusters))} conversation(s); intervals need at least 2")
  sides = [(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
  score_N, side_M = np.split(scores_of(score, rows + sides), [len(rows)])
  value_VM = _measured([text for _, text in rows + sides], measures)
  value_VN, side_VM = value_VM[:, : len(rows)], value_VM[:, len(rows) :]
  spearman = _correlations(score_N, value_VN, None, clusters, resamples, seed)
  partial = _correlations(score_N, value_VN, quality_N, clusters, resamples, seed)
  within = _within(pairs, side_M, side_VM, resamples, seed)
  found = {
    "responses": len(rows),
    "left_out": len(examples) - len(used),
    "quality": kind,
    "pairs": len(pairs),
    "within": any(one["partial"]["value"] is not None for one in within),
    "measures": {
      name: {"spearman": spearman[v], "partial": partial[v], "pairs": within[v]}
      for v, name in enumerate(measures)
    },
    "top_low": top_low(score_N, quality_N, clusters, top=top, resamples=resamples, seed=seed),
  }
  return {**found, "says": _says(found)}


def told(found: dict) -> dict[str, dict]:
  """Measure -> the partial correlation that is to be spoken of: within pairs, or of all responses.

  Args:
    found: the section, or what it has of `within` and `measures`.
  """
  measures = found["measures"]
  return {n: (m["pairs"] if found["within"] else m)["partial"] for n, m in measures.items()}


def top_low(
  scores: np.ndarray,
  quality: np.ndarray,
  clusters: Sequence[str],
  *,
  top: float = 0.1,
  resamples: int = 500,
  seed: int = 0,
) -> dict:
  """Of the top-scored, the share in the bottom half of quality.

  Where equal scores straddle the edge of the top, or equal qualities the middle, each is in by the
  share that fits (`figures.top_weights`), so that a scorer that knows nothing has exactly 1/2, one
  that gives all the same score too.

  Args:
    scores: [N].
    quality: [N], higher is better.
    clusters: N labels, the conversation of each.
    top: share of the responses that is called high-scored, in (0, 1).
    resamples, seed: of the interval.

  Returns:
    A figure with {top, random: 0.5, perfect: the share for scores that are the quality: above 0
    where more than half are equally good}; its n is that of all responses.
  """

  def share(score_N, quality_N) -> float:
    high_N = figures.top_weights(score_N, top)
    return float((high_N * figures.top_weights(-quality_N, 0.5)).sum() / high_N.sum())

  arrays = [agreement.vector(v, name) for v, name in ((scores, "scores"), (quality, "quality"))]
  found = correlation.bootstrap(share, arrays, clusters, resamples=resamples, seed=seed)
  figure = {"value": found["value"], "interval": found["interval"], "n": len(scores)}
  figure = figures.unsure(figure, figures.top_clusters(scores, top, clusters))
  return {**figure, "top": top, "random": 0.5, "perfect": share(arrays[1], arrays[1])}


def _quality(examples: Sequence[Example]) -> tuple[list[Example], np.ndarray, str]:
  """The examples that have one, the quality of each of their responses, and what it is."""
  rated = [e for e in examples if e.kind not in ("step", "attributes")]
  if examples and all(e.truth is not None for e in examples):
    used, quality, kind = list(examples), [e.truth for e in examples], "truth"
  elif rated and len({e.kind for e in rated}) == 1 and rated[0].kind in ("score", "outcome"):
    used, quality, kind = rated, [e.labels for e in rated], "label"
  else:
    used = [e for e in rated if len(e.responses) > 1]
    quality = [(correlation.ranks(e.labels) - 1) / (len(e.labels) - 1) for e in used]
    kind = "rank"
  if not used:
    kinds = sorted({e.kind for e in examples})
    raise ValueError(f"examples: none of {len(examples)}, of kinds {kinds}, says how good it is")
  return used, np.concatenate([np.asarray(q, np.float64) for q in quality]), kind


def _measured(texts: Sequence[Text], measures: Mapping[str, Callable[[str], float]]) -> np.ndarray:
  """float64 [V, N]; each distinct text is measured once."""
  place: dict[str, int] = {}
  at = [place.setdefault(plain(text), len(place)) for text in texts]
  return np.array([[measure(t) for t in place] for measure in measures.values()], np.float64)[:, at]


def _correlations(
  score_N: np.ndarray,
  value_VN: np.ndarray,
  given_N: np.ndarray | None,
  clusters: Sequence[str],
  resamples: int,
  seed: int,
) -> list[dict]:
  """Spearman's ρ of the score and each measure, given a third or not; a figure of each.

  With one given it is Pearson's of what is left of two ranks when each is regressed on the third's:
  (ρ_xy − ρ_xz ρ_yz) / √((1 − ρ_xz²)(1 − ρ_yz²)). Resamples are weights of rows, and a weighted
  rank is a cumulative count: nothing is sorted twice, and all measures share a resample.
  """
  # With weights of 1 it is what metrics.correlation.partial gives, where that one is there.
  columns = [score_N, *value_VN] + ([] if given_N is None else [given_N])
  grouped = [np.unique(c, return_inverse=True, return_counts=True)[1:] for c in columns]

  def statistic(weight_N: np.ndarray) -> np.ndarray:
    rank_CN = np.empty((len(columns), len(score_N)))
    for rank_N, (group_N, sizes) in zip(rank_CN, grouped, strict=True):
      count = np.bincount(group_N, weights=weight_N, minlength=len(sizes))
      rank_N[:] = (np.cumsum(count) - (count - 1) / 2)[group_N]
    rank_CN -= (rank_CN @ weight_N / weight_N.sum())[:, None]
    product_CC = (rank_CN * weight_N) @ rank_CN.T
    below_C = np.sqrt(np.diag(product_CC))
    with np.errstate(invalid="ignore", divide="ignore"):
      rho_CC = product_CC / (below_C[:, None] * below_C[None, :])
    if given_N is None:
      return rho_CC[0, 1:]
    left_C = 1 - rho_CC[:, -1] ** 2
    left_C[left_C < _ALL] = np.nan
    return (rho_CC[0] - rho_CC[0, -1] * rho_CC[-1])[1:-1] / np.sqrt(left_C[0] * left_C[1:-1])

  why = "score or measure is the same for all responses, or given quality nothing of it is left"
  return _figures(statistic, clusters, resamples, seed, why)


def _within(
  pairs: Sequence[Comparison],
  side_M: np.ndarray,
  side_VM: np.ndarray,
  resamples: int,
  seed: int,
) -> list[dict]:
  """For each measure {partial, slope, equal}, of differences within pairs."""
  clusters = [p.conversation for p in pairs]
  if len(set(clusters)) < 2:
    why = figures.none("fewer than two conversations have a comparison", len(pairs))
    return [{"partial": why, "slope": why, "equal": why} for _ in side_VM]
  score_P, value_VP = side_M[::2] - side_M[1::2], side_VM[:, ::2] - side_VM[:, 1::2]
  quality_P = None
  if all(p.quality is not None for p in pairs):
    quality_P = np.array([p.quality[0] - p.quality[1] for p in pairs])
    if np.ptp(quality_P) == 0:
      quality_P = None  # as much better in each pair: that is the label
  partial = _correlations(score_P, value_VP, quality_P, clusters, resamples, seed)
  unit = score_P.std() or 1.0
  out = []
  for v, value_P in enumerate(value_VP):
    columns = [value_P / (value_P.std() or 1.0), np.ones(len(pairs))]
    columns += [] if quality_P is None else [quality_P]
    design_PK = np.stack(columns, 1)

    def fit(weight_P: np.ndarray, design_PK=design_PK) -> np.ndarray:
      weighted_PK = design_PK * weight_P[:, None]
      product_KK = weighted_PK.T @ design_PK
      if np.linalg.matrix_rank(product_KK, hermitian=True) < len(product_KK):
        return np.full(2, np.nan)
      return np.linalg.solve(product_KK, weighted_PK.T @ score_P)[:2] / unit

    why = "measure, label and truth cannot be told apart: one of them does not vary by itself"
    slope, equal = _figures(fit, clusters, resamples, seed, why)
    out.append({"partial": partial[v], "slope": slope, "equal": equal})
  return out


def _figures(
  statistic: Callable[[np.ndarray], np.ndarray],
  clusters: Sequence[str],
  resamples: int,
  seed: int,
  why: str,
) -> list[dict]:
  """A figure of each value of a statistic of the rows' weights; its intervals by conversation."""
  cluster_N, count = agreement.numbered(clusters, len(clusters))
  rng = np.random.default_rng(seed)
  drawn = []
  for _ in range(resamples):
    weight_C = np.bincount(rng.integers(count, size=count), minlength=count)
    drawn.append(statistic(weight_C[cluster_N].astype(np.float64)))
  out = []
  values = statistic(np.ones(len(cluster_N)))
  for value, drawn_R in zip(values, np.array(drawn).T, strict=True):
    fine_R = drawn_R[np.isfinite(drawn_R)]
    if not np.isfinite(value) or not len(fine_R):
      out.append(figures.none(why, len(cluster_N)))
      continue
    interval = [float(b) for b in np.quantile(fine_R, [0.025, 0.975])]
    out.append({"value": float(value), "interval": interval, "n": len(cluster_N)})
  return out


def _says(found: dict) -> list[str]:
  given = f"within pairs, given {'truth' if found['quality'] == 'truth' else 'the label'}"
  if not found["within"]:
    given = f"given {found['quality']}"
  partials = told(found)
  said, untold = [], []
  for name, figure in partials.items():
    if figure["value"] is None or abs(figure["value"]) < _STRONG:
      continue
    low, high = figure["interval"]
    name = "length" if name == "characters" else name.replace("_", " ")
    if low <= 0 <= high:
      untold.append(f"{name} {figures.shown(figure)}")
      continue
    against = "scores" if figure["value"] > 0 else "scores against"
    said.append(f"{against} {name}: partial Spearman {figures.shown(figure)} {given}")
  if untold:
    said.append(f"too few to tell whether it follows {', '.join(untold)} {given}")
  if not said:
    said.append(f"follows no measure of the text beyond {_STRONG} {given}")
  low = found["top_low"]
  said.append(
    f"of its top {low['top']:.0%} of scores the share in the bottom half of quality is "
    f"{figures.shown(low)}; a random scorer has 0.50, a perfect one {low['perfect']:.2f}"
  )
  return said
