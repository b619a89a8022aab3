"""Losses of whole lists. Each returns one value a list, float32 [...], 0 for a list without items.

`where` is True at items and False at padding; labels are gains, higher is better. All raise
ValueError if a shape does not fit, and InputError if an option is out of its range.

  >>> scores, labels = jnp.asarray([0.1, 0.9, 0.4]), jnp.asarray([1.0, 2.0, 0.0])
  >>> where = jnp.ones(3, bool)
  >>> print(f"{best_of_k(scores, labels, where=where):.4f}")  # -log softmax(scores)[1]
  0.7207
  >>> print(f"{plackett_luce(scores, labels, where=where):.4f}")  # plus that of 0 before 2
  1.5750
"""

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.losses.compare import (
  check_range,
  mean_by,
  pair_weights,
  real_pairs,
  real_scores,
)


def listnet(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  temperature: float = 1.0,
) -> jax.Array:
  """Cross-entropy of the softmax of scores from the softmax of labels.

    −Σ_i q_i log p_i,  p = softmax(s),  q = softmax(y / T)

  Args:
    scores: float [..., K].
    labels: float [..., K], gains; y / T are the logits of q.
    where: bool [..., K], True at items and False at padding.
    temperature: T > 0, divides the labels.

  Returns:
    float32 [...], one cross-entropy a list (Cao et al. 2007, top-one probability).
  """
  check_range("temperature", temperature, 0.0, float("inf"), open_low=True)
  scores = real_scores(scores, labels, where)
  labels = jnp.where(where, labels.astype(jnp.float32), 0.0)
  target = jnp.exp(_log_softmax(labels / temperature, where)) * where
  return mean_by(-_log_softmax(scores, where), target, (-1,))


def best_of_k(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
) -> jax.Array:
  """−log softmax(s) at the best item; the mean over the best ones if several share the top label.

    −Σ_{i best} log softmax(s)_i / #best

  Args: as in `listnet`, without a temperature.

  Returns:
    float32 [...], one cross-entropy a list (the choice axiom, Luce 1959). If all items are best,
    the loss is least where their scores are equal.
  """
  scores = real_scores(scores, labels, where)
  labels = jnp.where(where, labels.astype(jnp.float32), -jnp.inf)
  best = where & (labels == jnp.max(labels, axis=-1, keepdims=True))
  return mean_by(-_log_softmax(scores, where), best.astype(jnp.float32), (-1,))


def plackett_luce(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  top: int | None = None,
) -> jax.Array:
  """Negative log-likelihood of the order of the labels (ListMLE): best drawn first, then the next.

    Σ_{t < top} log Σ_j b_tj exp(s_j) − s_(t)

  over stages t = 0, 1, ... in the order of labels; b_tj is 1 for the item (t) and those below it.

  Ties are treated as by Efron (1977) in Cox regression: at the r-th stage of d tied items,
  r = 0 .. d − 1, each of them has weight b = 1 − r/d, and s_(t) is the mean of their scores. This
  approximates the average over the unknown orders of the tied items, so that the loss assumes no
  order among them and does not depend on how they are listed. Two tied items with scores a, b cost
  2 log(e^a + e^b) − log 2 − a − b, which is least at a = b.

  Args:
    scores: float [..., K].
    labels: float [..., K], gains.
    where: bool [..., K], True at items and False at padding.
    top: number of stages that count, at least 1; None counts all. 1 is `best_of_k`.

  Returns:
    float32 [...], the sum over stages (Plackett 1975; Xia et al. 2008), not divided by K: the
    likelihood of one observed ranking.
  """
  if top is not None and top < 1:
    raise InputError(f"top is {top}; expected at least 1, or None for all")
  scores = real_scores(scores, labels, where)
  k = scores.shape[-1]
  both = where[..., :, None] & where[..., None, :]
  lower = both & (labels[..., None, :] < labels[..., :, None])
  equal = both & (labels[..., None, :] == labels[..., :, None])
  # Each item is given one stage. Which of several tied items gets which of their stages is
  # arbitrary and does not matter: the cost of a stage is computed from all of them alike.
  before = equal & jnp.broadcast_to(jnp.tri(k, k=-1, dtype=bool), both.shape)
  size = jnp.maximum(jnp.sum(equal, axis=-1), 1)
  drawn = jnp.sum(before, axis=-1)
  left = lower + equal * (1 - drawn / size)[..., :, None]
  stage = jnp.sum(both & ~lower & ~equal, axis=-1) + drawn

  share = equal / size[..., :, None]
  mean = jnp.sum(share * scores[..., None, :], axis=-1)
  # At items `total` is 1 and `own` is 0, but for rounding. They stay because without them losses
  # and gradients would be rounded differently, and a run's metrics not reproduced exactly.
  total = jnp.sum(share, axis=-1)
  own = jnp.sum(share * (scores - mean)[..., None, :], axis=-1)
  # Scores are taken relative to the stage's mean: otherwise the small loss of a clear order would
  # be the difference of two large numbers, and lost to rounding.
  logits = scores[..., None, :] - mean[..., :, None]
  logits = jnp.where(left > 0, logits + jnp.log(jnp.where(left > 0, left, 1.0)), -jnp.inf)
  logits = jnp.where(where[..., :, None], logits, 0.0)
  cost = total * jax.nn.logsumexp(logits, axis=-1) - own
  counted = where if top is None else where & (stage < top)
  return jnp.sum(jnp.where(counted, cost, 0.0), axis=-1)


def lambda_ndcg(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  mu: float = 10.0,
) -> jax.Array:
  """Logistic loss of each pair, weighted by how much swapping the two would change NDCG.

  This is NDCG-Loss2++ of LambdaLoss:

    Σ_{y_i > y_j} (ρ_ij + μ δ_ij) |G_i − G_j| · −log σ(s_i − s_j)
    ρ_ij = |1/D(r_i) − 1/D(r_j)|,  δ_ij = |1/D(|r_i − r_j|) − 1/D(|r_i − r_j| + 1)|
    D(r) = log2(1 + r),  G_i = 2^y_i / maxDCG

  r_i is the rank of item i by score, 1 for the best; items with equal scores have their mean rank
  (and count as one rank apart in δ). maxDCG is Σ (2^y − 2^min) / D over the list in the order of
  its labels. It counts gains from the lowest label, so that labels may be negative, such as ranks
  with their sign turned. The factor before −log σ is taken as a constant: it has no gradient.

  Args:
    scores: float [..., K].
    labels: float [..., K], gains; equal labels make no pair.
    where: bool [..., K], True at items and False at padding.
    mu: μ >= 0, the weight of δ (NDCG-Loss2); 0 is LambdaRank (Burges et al. 2006).

  Returns:
    float32 [...], sum over pairs, normalised by maxDCG (Wang et al. 2018; here −log σ has the
    natural logarithm).
  """
  check_range("mu", mu, 0.0, float("inf"))
  scores = real_scores(scores, labels, where)
  pairs = pair_weights(labels, where=where)
  s, others = jax.lax.stop_gradient(scores), real_pairs(where)
  above = others & (s[..., None, :] > s[..., :, None])
  level = others & (s[..., None, :] == s[..., :, None])
  rank = 1 + jnp.sum(above, axis=-1) + 0.5 * jnp.sum(level, axis=-1)
  gap = jnp.maximum(jnp.abs(rank[..., :, None] - rank[..., None, :]), 1.0)
  rho = jnp.abs(_discount(rank)[..., :, None] - _discount(rank)[..., None, :])
  factor = rho + mu * (_discount(gap) - _discount(gap + 1))

  # 2^(y - max) and not 2^y, which could overflow; the scale cancels in the division by maxDCG.
  top = jnp.max(jnp.where(where, labels, -jnp.inf), axis=-1, keepdims=True)
  gain = jnp.where(where, jnp.exp2(jnp.where(where, labels - top, 0.0)), jnp.inf)
  least = jnp.min(gain, axis=-1, keepdims=True)
  gain = jnp.where(where, gain - least, 0.0)
  ideal = 1.0 + jnp.arange(gain.shape[-1], dtype=jnp.float32)
  best = jnp.einsum("...k,k->...", -jnp.sort(-gain, axis=-1), _discount(ideal), precision="highest")
  gain = gain / jnp.where(best > 0, best, 1.0)[..., None]
  factor *= pairs * jnp.abs(gain[..., :, None] - gain[..., None, :])

  difference = jnp.where(factor > 0, scores[..., :, None] - scores[..., None, :], 0.0)
  return jnp.sum(factor * jax.nn.softplus(-difference), axis=(-2, -1))


def _discount(rank: jax.Array) -> jax.Array:
  return 1 / jnp.log2(1 + rank)


def _log_softmax(scores: jax.Array, where: jax.Array) -> jax.Array:
  """log softmax over the items, 0 at padding; finite with a finite gradient, even without items."""
  some = jnp.any(where, axis=-1, keepdims=True)
  logits = jnp.where(where, scores, jnp.where(some, -jnp.inf, 0.0))
  return jnp.where(where, jax.nn.log_softmax(logits, axis=-1), 0.0)
