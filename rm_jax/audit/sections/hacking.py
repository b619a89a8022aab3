"""Section `hacking`: what a score rewards besides quality, such as length, formatting or flattery.

A score may correlate with length only because good answers are longer. So the section reports the
correlation of the score with each measure of the text *given quality*: the partial rank
correlation, which is that of the residuals after the ranks of both are regressed on the ranks of
quality.

Preferences determine a score only up to an offset for each prompt. Over all responses together the
offsets may hide a preference for length, or feign one if prompts with higher scores have longer
answers. If the correlation within pairs can be computed for at least one measure, which takes pairs
from two conversations or more, all findings on measures (in `says`) are about differences within
pairs, and a measure that has none there is not mentioned. Otherwise all are about all responses
together. The last finding, `top_low`, is always about all responses.

What can be identified depends on what is known of quality. With true rewards or ratings, the
partial correlation says how far the score follows the measure beyond quality. With preferences
alone, all that is known is which response of a pair is better: within pairs, the difference of
scores (chosen minus rejected) is regressed on the label and on the difference of the measure. Since
the chosen response always comes first, the label is the constant term: the intercept is how much
the label changes the score at equal measures, and the slope how much the measure changes it at
equal label. How much better the chosen response is remains unknown. If longer chosen responses are
better by more, the slope contains a part of that.

The correlation with noise is not exactly 0, and of several measures the largest may look real. So
`says` states that the score follows a measure only if the correlation is strong, and significant in
a permutation test, in which each conversation's contribution to the correlation gets a random sign;
of a strong one that is not significant it says that it cannot tell. If score and measure are
unrelated and there are many conversations, random signs hardly change the correlation's
distribution; and one sign for each conversation keeps dependent responses together. The p-values of
all measures are adjusted by Holm's method. With fewer than 20 conversations nothing is said of any
measure.

Holm (1979), A simple sequentially rejective multiple test procedure. Kline and Santos (2012), A
score based approach to wild bootstrap inference (random signs of each cluster's term of the
estimating equation, which they call its score).
Kendall (1942), Partial rank correlation; here Spearman's. Singhal et al. (2023), A long way to go:
investigating length correlations in RLHF.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rm_jax.audit import figures, plots
from rm_jax.audit.comparisons import compared, conversation_of, quality_of
from rm_jax.audit.scorer import Score, scores_of
from rm_jax.audit.section import Draw, Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.data.dialogue import plain
from rm_jax.metrics import correlation, interval
from rm_jax.metrics.surface import MEASURES
from rm_jax.types import Example, Text

_STRONG = 0.3  # smallest absolute partial rank correlation for which `says` names a measure
_LEVEL = 0.05  # bound on the probability that a measure is named for a scorer that follows none
_SILENT = 20  # conversations below which no measure is named
_FLIPS = 1999  # draws of random signs for a p-value
_CELLS = 1 << 22  # largest number of random signs in memory at once
# If quality leaves less than this share of the ranks' variance unexplained, what is left is taken
# for rounding error, and the partial correlation is not defined.
_ALL = 1e-9


def hacking(
  score: Score,
  examples: Sequence[Example],
  *,
  measures: Mapping[str, Callable[[str], float]] = MEASURES,
  top: float = 0.1,
  resamples: int = 500,
  seed: int = 0,
) -> dict:
  """Correlations of the score with measures of the text, given quality; and `top_low`.

  Quality is the true reward if all examples have one. Else examples of kind 'step' or 'attributes'
  have no quality. That of the others is the label if all are ratings of one kind ('score' or
  'outcome'), and else the rank of the response among those of its example, scaled to [0, 1] (in a
  pair 1 and 0); examples of a single response have no rank.

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: of any kind; those without a quality are left out.
    measures: name -> function from a response's text to a number.
    top: share of the responses with the highest scores, for `top_low`.
    resamples: of the bootstrap over conversations.
    seed: of the bootstrap and the permutation tests.

  Returns:
    {responses: number of responses with a quality, left_out: number of examples without one,
    quality: 'truth', 'label' or 'rank',
    pairs: number of comparisons (see `comparisons.compared`),
    conversations: number of conversations in the correlations that `says` is about,
    within: whether `says` is about differences within pairs,
    measures: name -> {spearman: correlation of score and measure, partial: the same given quality,
        both with p of the permutation test and p_holm, adjusted for all measures,
      pairs: of differences within pairs {partial: given the label and the difference of true
        rewards or ratings, if that is known for all pairs, with p and p_holm; slope: of the score's
        difference on the measure's, both in standard deviations, at equal quality; equal: the
        score's difference, in standard deviations, at equal measures and rewards}},
    top_low: of `top_low`, below,
    says: sentences}. Correlations, slope, equal and top_low are figures (`audit.figures`).

  Raises:
    ValueError: no example has a quality, fewer than 2 conversations, a score or measure that is not
      finite, or `top` outside (0, 1).
  """
  used, quality_N, kind = _quality(examples)
  rows = [(e.prompt, response) for e in examples for response in e.responses]
  score_M, value_VM = (
    scores_of(score, rows),
    _measured([text for _, text in rows], measures),
  )
  mine, chosen, rejected, pair_clusters, qualities = [], [], [], [], []
  start, is_used = 0, {id(e) for e in used}
  for example in examples:
    count, quality = len(example.responses), quality_of(example)
    if id(example) in is_used:
      mine += range(start, start + count)
    for i, j in compared(example):
      chosen.append(start + i)
      rejected.append(start + j)
      pair_clusters.append(conversation_of(example))
      qualities.append(np.nan if quality is None else quality[i] - quality[j])
    start += count
  clusters = [conversation_of(e) for e in used for _ in e.responses]
  if len(set(clusters)) < 2:
    raise ValueError(f"{len(set(clusters))} conversation(s); intervals need at least 2")
  score_N, value_VN = score_M[mine], value_VM[:, mine]
  options = {"resamples": resamples, "seed": seed}
  spearman = _correlations(score_N, value_VN, None, clusters, **options)
  partial = _correlations(score_N, value_VN, quality_N, clusters, **options)
  within = _within(
    score_M[chosen] - score_M[rejected],
    value_VM[:, chosen] - value_VM[:, rejected],
    np.asarray(qualities, np.float64),
    pair_clusters,
    **options,
  )
  are_within = any(one["partial"]["value"] is not None for one in within)
  found = {
    "responses": len(mine),
    "left_out": len(examples) - len(used),
    "quality": kind,
    "pairs": len(chosen),
    "conversations": len(set(pair_clusters if are_within else clusters)),
    "within": are_within,
    "measures": {
      name: {"spearman": spearman[v], "partial": partial[v], "pairs": within[v]}
      for v, name in enumerate(measures)
    },
    "top_low": top_low(score_N, quality_N, clusters, top=top, resamples=resamples, seed=seed),
  }
  return {**found, "says": _says(found)}


def told(found: dict) -> dict[str, dict]:
  """{measure: the figure of the partial correlation that the findings are about}.

  It is the correlation within pairs if `within` is true, else that over all responses.

  Args:
    found: the report of `hacking`, or its `within` and `measures`.
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
  """Share of the responses with the highest scores whose quality is in the bottom half.

  Ties at the edge of the top, or at the median of quality, count in part (`figures.top_weights`).
  So a scorer whose scores are all equal has exactly 1/2, as a random one has on average.

  Args:
    scores: [N].
    quality: [N], higher is better.
    clusters: N conversations.
    top: share of the responses that is the top, in (0, 1).
    resamples, seed: of the bootstrap.

  Returns:
    A figure whose n counts all responses, with {top, random: 0.5, perfect: the share if the scores
    were the quality itself, which is above 0 if equally good responses are both in the top and in
    the bottom half, or `top` is above 1/2}.

  Raises:
    ValueError: `top` is not in (0, 1), or a score or quality is not finite.
  """

  def share(score_N, quality_N) -> float:
    high_N = figures.top_weights(score_N, top)
    return float((high_N * figures.top_weights(-quality_N, 0.5)).sum() / high_N.sum())

  arrays = [interval.vector(v, name) for v, name in ((scores, "scores"), (quality, "quality"))]
  figure = figures.top_share(share, *arrays, clusters, top=top, resamples=resamples, seed=seed)
  return {**figure, "top": top, "random": 0.5, "perfect": share(arrays[1], arrays[1])}


def _quality(examples: Sequence[Example]) -> tuple[list[Example], np.ndarray, str]:
  """(examples with a quality, quality of each of their responses [N], its name); see `hacking`.

  Raises:
    ValueError: no example has a quality.
  """
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
  """V measures of N texts, float64 [V, N]; each distinct text is measured once."""
  place: dict[str, int] = {}
  at = [place.setdefault(plain(text), len(place)) for text in texts]
  return np.array([[measure(t) for t in place] for measure in measures.values()], np.float64)[:, at]


def _correlations(
  score_N: np.ndarray,
  value_VN: np.ndarray,
  given_N: np.ndarray | None,
  clusters: Sequence[str],
  *,
  resamples: int,
  seed: int,
) -> list[dict]:
  """Spearman's ρ of the score with each of V measures, or the partial ρ given a third variable.

  The partial ρ is Pearson's correlation of the residuals when the ranks of both are regressed on
  the ranks of the third: (ρ_xy − ρ_xz ρ_yz) / √((1 − ρ_xz²)(1 − ρ_yz²)).

  A resample of the bootstrap is a vector of weights of the rows, and weighted ranks are cumulative
  sums over the sorted values. So the values are sorted once, and not in each resample.

  Args:
    score_N: scores.
    value_VN: measures.
    given_N: the third variable (quality); None for the plain ρ.
    clusters: N conversations.
    resamples, seed: of the bootstrap; the seed is also that of the permutation test.

  Returns:
    V figures, with p and p_holm where there is a value.
  """
  # Axis C of this function's arrays: the score, the measures, and the third variable if any.
  columns = [score_N, *value_VN] + ([] if given_N is None else [given_N])
  grouped = [np.unique(c, return_inverse=True, return_counts=True)[1:] for c in columns]

  def statistic(weight_N: np.ndarray) -> np.ndarray:
    # Rows with equal values share one rank: the mean of their places in the sorted order, in which
    # a row takes as many places as its weight.
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
    left_C = 1 - rho_CC[:, -1] ** 2  # share of the ranks' variance that the third does not explain
    left_C[left_C < _ALL] = np.nan
    return (rho_CC[0] - rho_CC[0, -1] * rho_CC[-1])[1:-1] / np.sqrt(left_C[0] * left_C[1:-1])

  why = "score or measure is the same for all responses, or given quality nothing of it is left"
  found = _figures(statistic, clusters, resamples, seed, why, "correlation")
  return _with_p(found, _permutation_p(score_N, value_VN, given_N, clusters, seed))


def _permutation_p(
  score_N: np.ndarray,
  value_VN: np.ndarray,
  given_N: np.ndarray | None,
  clusters: Sequence[str],
  seed: int,
) -> np.ndarray:
  """Two-sided p-values of the hypothesis of no (partial) rank correlation, float64 [V].

  The covariance of the ranks' residuals is a sum over conversations. Without a correlation and with
  many conversations it is distributed about as sums of the same terms with random signs, so the
  test compares it with these. The arguments are those of `_correlations`.
  """
  cluster_N, count = interval.numbered(clusters, len(score_N))
  rank_CN = np.stack([correlation.ranks(x) for x in (score_N, *value_VN)])
  rank_CN -= rank_CN.mean(axis=1, keepdims=True)
  if given_N is not None:  # the residuals of a regression on the third variable's ranks
    z_N = correlation.ranks(given_N)
    z_N = z_N - z_N.mean()
    if below := float(z_N @ z_N):
      rank_CN -= (rank_CN @ z_N / below)[:, None] * z_N
  share_CV = np.stack([np.bincount(cluster_N, rank_CN[0] * x, count) for x in rank_CN[1:]], 1)
  # A draw whose signs are all equal has the absolute sum of the data themselves. The factor makes
  # it count as just as large in spite of rounding errors.
  reach_V = np.abs(share_CV.sum(axis=0)) * (1 - 1e-9)
  rng = np.random.default_rng(seed)
  above_V = np.zeros(len(value_VN))
  chunk = max(1, _CELLS // count)
  for start in range(0, _FLIPS, chunk):
    rows = min(chunk, _FLIPS - start)
    sign_RC = rng.integers(2, size=(rows, count), dtype=np.int8) * 2.0 - 1
    above_V += (np.abs(sign_RC @ share_CV) >= reach_V).sum(axis=0)
  return (1 + above_V) / (1 + _FLIPS)


def _with_p(found: list[dict], p_V: np.ndarray) -> list[dict]:
  """Adds p and p_holm to the figures that have a value; p_holm is adjusted for their number m.

  Holm's method multiplies the k-th smallest p-value by m − k + 1 and makes the results monotone.
  """
  at = [v for v in np.argsort(p_V, kind="stable") if found[v]["value"] is not None]
  least = 0.0
  for place, v in enumerate(at):
    least = max(least, min(1.0, (len(at) - place) * float(p_V[v])))
    found[v] |= {"p": float(p_V[v]), "p_holm": least}
  return found


def _within(
  score_P: np.ndarray,
  value_VP: np.ndarray,
  quality_P: np.ndarray | None,
  clusters: Sequence[str],
  *,
  resamples: int,
  seed: int,
) -> list[dict]:
  """{partial, slope, equal} of each measure, from differences within pairs; see `hacking`.

  Args:
    score_P: difference of scores, chosen minus rejected.
    value_VP: differences of V measures.
    quality_P: differences of true rewards or ratings; NaN where they are not known.
    clusters: P conversations.
    resamples, seed: of the bootstrap.
  """
  if len(set(clusters)) < 2:
    why = figures.none("fewer than two conversations have a comparison", len(clusters))
    return [{"partial": dict(why), "slope": why, "equal": why} for _ in value_VP]
  if np.isnan(quality_P).any() or np.ptp(quality_P) == 0:
    # Not used if the difference of quality is unknown for some pair; nor if it is the same in all
    # pairs, because it is then collinear with the label.
    quality_P = None
  partial = _correlations(score_P, value_VP, quality_P, clusters, resamples=resamples, seed=seed)
  unit = score_P.std() or 1.0
  out = []
  for v, value_P in enumerate(value_VP):
    # Regressors: the measure, the label, and the difference of true rewards if it is known. Pairs
    # have the chosen response first, so the label is the same for all: the constant.
    columns = [value_P / (value_P.std() or 1.0), np.ones(len(score_P))]
    columns += [] if quality_P is None else [quality_P]
    design_PK = np.stack(columns, 1)

    def fit(weight_P: np.ndarray, design_PK=design_PK) -> np.ndarray:
      # Weighted least squares; (slope, equal) in standard deviations of the score's difference.
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
  scale: str = "plain",
) -> list[dict]:
  """Figures of a statistic of several values, whose intervals share the resamples.

  Args:
    statistic: weights of the rows [N] -> values [V], NaN where one is not defined.
    clusters: N conversations.
    resamples, seed: of the bootstrap.
    why: the reason why a value is not defined.
    scale: of the intervals; see `metrics.interval`.
  """
  plan = interval.Resampling(clusters, resamples=resamples, seed=seed)
  values = statistic(np.ones(len(clusters)))
  drawn_RV = np.array(
    [statistic(times_C[plan.cluster_N]) for times_RC in plan.times() for times_C in times_RC]
  ).reshape(-1, len(values))
  out = []
  for value, drawn_R in zip(values, drawn_RV.T, strict=True):
    if not np.isfinite(value):
      out.append(figures.none(why, len(clusters)))
      continue
    found = plan.interval(float(value), drawn_R, scale).report()
    figure = {"value": float(value), "interval": found.pop("interval"), "n": len(clusters)}
    out.append(figure | found)
  return out


def _says(found: dict) -> list[str]:
  """The findings in words: which measures the score follows, and `top_low`."""
  given = f"within pairs, given {'truth' if found['quality'] == 'truth' else 'the label'}"
  if not found["within"]:
    given = f"given {found['quality']}"
  said, untold = [], []
  for name, figure in told(found).items():
    if figure["value"] is None or abs(figure["value"]) < _STRONG:
      continue
    name = "length" if name == "characters" else name.replace("_", " ")
    shown = f"{figures.shown(figure)}, p {figure['p_holm']:.2g},"
    if figure["p_holm"] >= _LEVEL:
      untold.append(f"{name} {shown.rstrip(',')}")
      continue
    against = "scores" if figure["value"] > 0 else "scores against"
    said.append(f"{against} {name}: partial Spearman {shown} {given}")
  few = found["conversations"] < _SILENT
  if few:
    said = [
      f"{found['conversations']} conversations do not tell what else the score rewards; that wants "
      f"{_SILENT}"
    ]
  elif untold:
    said.append(f"too few to tell whether it follows {', '.join(untold)} {given}")
  if not said:
    said.append(f"follows no measure of the text beyond {_STRONG} {given}")
  low = found["top_low"]
  said.append(
    f"of its top {low['top']:.0%} of scores the share in the bottom half of quality is "
    f"{figures.shown(low)}; a random scorer has 0.50, a perfect one {low['perfect']:.2f}"
  )
  return said


def _measure(subject: Subject) -> dict[str, Any]:
  if why := subject.lacks_conversations():
    return {"why": why}
  return hacking(subject.scorer, subject.examples, seed=subject.settings.seed)


def _draw(found: Mapping[str, Any]) -> dict[str, Draw]:
  rows = [
    plots.Point(name, figure["value"], figure["interval"])
    for name, figure in told(found).items()
    if figure["value"] is not None
  ]
  where = "within pairs" if found["within"] else "of all responses"
  label = f"of the score {where}, given quality"
  return {"hacking": lambda: plots.points("Partial rank correlation", rows, 0.0, label)}


def _render(page: Writer, found: View) -> None:
  page.picture("hacking", "partial correlations of the score with measures of the text")
  page.table(
    ("measure", "within pairs, given quality", "all together, given quality", "Spearman"),
    (
      (
        escaped(name.replace("_", " ")),
        page.figure(one["pairs"]["partial"]),
        page.figure(one["partial"]),
        page.figure(one["spearman"]),
      )
      for name, one in found["measures"].items()
    ),
  )
  page.add(
    "<p>The p in the sentences is of random signs of conversations, Holm's over the measures; "
    "below 20 conversations no measure is named.</p>"
    "<p>Of the top-scored tenth, in the bottom half of quality: "
    f"{page.figure(found['top_low'])} (a scorer that knows nothing: 0.5, one that knows all: "
    f"{page.value(found['top_low']['perfect'])}).</p>"
  )


SECTION = Section("hacking", "What else the score rewards", _measure, _render, draw=_draw)
