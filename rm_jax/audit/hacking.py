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

A correlation of noise is not 0, and of eight measures one stands out. So a measure is named where
it is strong and a permutation test says so: each conversation's share of the correlation is given a
random sign, which under no relation leaves its distribution as it is (what a conversation has
together stays together), and the p-values of all measures are Holm's. Below 20 conversations
nothing is said.

Holm (1979), A simple sequentially rejective multiple test procedure. Kline and Santos (2012), A
score based approach to wild bootstrap inference (random signs of clusters' scores).
Kendall (1942), Partial rank correlation; here Spearman's. Singhal et al. (2023), A long way to go:
investigating length correlations in RLHF.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rm_jax.audit import figures
from rm_jax.audit.texts import Score, compared, conversation_of, quality_of, scores_of
from rm_jax.data.dialogue import plain
from rm_jax.metrics import agreement, correlation, interval
from rm_jax.metrics.surface import MEASURES
from rm_jax.types import Example, Text

_STRONG = 0.3  # partial rank correlation from which the sentences name a measure
_LEVEL = 0.05  # chance that a scorer without any bias has a measure named
_SILENT = 20  # conversations below which none is named
_FLIPS = 1999  # draws of signs of a permutation p
_CELLS = 1 << 22  # signs held at once
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
    seed: of the resamples and of the permutations.

  Returns:
    {responses, left_out: examples, quality: 'truth', 'label' or 'rank', pairs: comparisons (of long
    lists `texts.compared`'s), conversations: those that the sentences rest on,
    within: whether some of the correlations within pairs is known, which is then spoken of,
    measures: name -> {spearman: of score and measure, partial: given quality, with the permutation
        p of that, and p_holm: of all measures,
      pairs: {partial: of the differences within pairs, given the label and, where it is known, the
        difference of true rewards or ratings, with p and p_holm; slope: standard deviations of the
        score's difference for one of the measure's, at equal quality; equal: the score's difference
        in its standard deviations at equal measures (and rewards or ratings)}},
    top_low: share of the top-scored whose quality is in the bottom half, ties shared out, with
      {top, random: 0.5, what a scorer without any knowledge has, perfect: what quality itself has},
    says: sentences}. Each a figure of `figures`.

  Raises:
    ValueError: no example has a quality, fewer than 2 conversations, or a score not finite.
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
  figure = figures.by_scores(share, *arrays, clusters, top=top, resamples=resamples, seed=seed)
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
  *,
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
  found = _figures(statistic, clusters, resamples, seed, why, "correlation")
  return _with_p(found, _permutation_p(score_N, value_VN, given_N, clusters, seed))


def _permutation_p(
  score_N: np.ndarray,
  value_VN: np.ndarray,
  given_N: np.ndarray | None,
  clusters: Sequence[str],
  seed: int,
) -> np.ndarray:
  """Two-sided p of no (partial) rank correlation of the score with each measure, float64 [V].

  Of ranks less what is linear in the third's, a conversation's sum of products is its share of the
  correlation, and has any sign with equal chance where there is none.
  """
  cluster_N, count = agreement.numbered(clusters, len(score_N))
  rank_CN = np.stack([correlation.ranks(x) for x in (score_N, *value_VN)])
  rank_CN -= rank_CN.mean(axis=1, keepdims=True)
  if given_N is not None:
    z_N = correlation.ranks(given_N)
    z_N = z_N - z_N.mean()
    if below := float(z_N @ z_N):
      rank_CN -= (rank_CN @ z_N / below)[:, None] * z_N
  share_CV = np.stack([np.bincount(cluster_N, rank_CN[0] * x, count) for x in rank_CN[1:]], 1)
  reach_V = np.abs(share_CV.sum(axis=0)) * (1 - 1e-9)  # what rounding alone parts is no smaller
  rng = np.random.default_rng(seed)
  above_V = np.zeros(len(value_VN))
  chunk = max(1, _CELLS // count)
  for start in range(0, _FLIPS, chunk):
    rows = min(chunk, _FLIPS - start)
    sign_RC = rng.integers(2, size=(rows, count), dtype=np.int8) * 2.0 - 1
    above_V += (np.abs(sign_RC @ share_CV) >= reach_V).sum(axis=0)
  return (1 + above_V) / (1 + _FLIPS)


def _with_p(found: list[dict], p_V: np.ndarray) -> list[dict]:
  """The figures with p, and Holm's over those that are defined."""
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
  """For each measure {partial, slope, equal}, of differences within pairs."""
  if len(set(clusters)) < 2:
    why = figures.none("fewer than two conversations have a comparison", len(clusters))
    return [{"partial": dict(why), "slope": why, "equal": why} for _ in value_VP]
  if np.isnan(quality_P).any() or np.ptp(quality_P) == 0:
    quality_P = None  # not known; or as much better in each pair: that is the label
  partial = _correlations(score_P, value_VP, quality_P, clusters, resamples=resamples, seed=seed)
  unit = score_P.std() or 1.0
  out = []
  for v, value_P in enumerate(value_VP):
    columns = [value_P / (value_P.std() or 1.0), np.ones(len(score_P))]
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
  scale: str = "plain",
) -> list[dict]:
  """A figure of each value of a statistic of the rows' weights; its intervals by conversation."""
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
