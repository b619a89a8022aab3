"""Comparisons that may end in a tie, with a learned tie rate: Rao–Kupper and Davidson.

`rm_jax.losses.compare` says how preferences and ties are found from `pairs` and `ties` or from
labels. Both models have one parameter a = params["log_tie"], a scalar: at equal scores the
probability of a tie is t with log(2t / (1 − t)) = a; as a → −∞ they become Bradley–Terry.
Throughout Δ = s_i − s_j.

  >>> equal, params = jnp.zeros(2), tie_params(jax.random.key(0), tie_rate=0.25)
  >>> print(f"{davidson(equal, equal, where=jnp.ones(2, bool), params=params):.4f}")  # -log 0.25
  1.3863
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import check_range, mean_by, pair_weights, real_scores, tie_weights


def tie_params(key: jax.Array, *, tie_rate: float = 1 / 3) -> dict[str, jax.Array]:
  """Initial params of both models, from the tie rate at equal scores; `key` is unused.

  Raises InputError unless `tie_rate` is in (0, 1).
  """
  del key
  check_range("tie_rate", tie_rate, 0.0, 1.0, open_low=True)
  return {"log_tie": jnp.log(jnp.float32(2 * tie_rate / (1 - tie_rate)))}


def rao_kupper(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  params: dict[str, jax.Array],
  pairs: jax.Array | None = None,
  ties: jax.Array | None = None,
  smoothing: float = 0.0,
) -> jax.Array:
  """Bradley–Terry with a threshold log θ that a difference must exceed to be noticed, θ = 1 + eᵃ.

    P(i beats j) = σ(Δ − log θ)
    P(tie)       = (θ² − 1) σ(Δ − log θ) σ(−Δ − log θ)

  Args:
    scores: float [..., K].
    labels: float [..., K], gains; equal labels are ties, unless `pairs` or `ties` say otherwise.
    where: bool [..., K], True at items and False at padding.
    params: {"log_tie": a, scalar}; see `tie_params`.
    pairs: float [..., K, K], observed preferences.
    ties: float [..., K, K], symmetric, observed ties; each tie is counted once.
    smoothing: ε in [0, 1/2); (1 − ε) pairs + ε pairsᵀ stands for `pairs`.

  Returns:
    float32 [...], mean of −log P over the list's preferences and ties (Rao & Kupper 1967).

  Raises:
    ValueError: a shape does not fit.
    InputError: `smoothing` is out of its range.
  """
  a = params["log_tie"].astype(jnp.float32)
  log_theta = jax.nn.softplus(a)
  log_factor = a + jnp.logaddexp(a, jnp.log(2.0))  # log(θ − 1) + log(θ + 1)

  def win(d):
    return jax.nn.softplus(log_theta - d)

  return _mean(
    win,
    lambda d: win(d) + win(-d) - log_factor,
    scores,
    labels,
    where=where,
    pairs=pairs,
    ties=ties,
    smoothing=smoothing,
  )


def davidson(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  params: dict[str, jax.Array],
  pairs: jax.Array | None = None,
  ties: jax.Array | None = None,
  smoothing: float = 0.0,
) -> jax.Array:
  """Bradley–Terry with P(tie) proportional to ν √(exp(s_i) exp(s_j)), ν = eᵃ.

    P(i beats j) = exp(Δ/2) / Z,  P(tie) = ν / Z,  Z = exp(Δ/2) + exp(−Δ/2) + ν

  Args, mean over comparisons, errors: as in `rao_kupper`. Returns float32 [...] (Davidson 1970).
  """
  a = params["log_tie"].astype(jnp.float32)
  return _mean(
    # Numerator and denominator are both divided by the numerator first: otherwise the small loss of
    # a clear win would be the difference of two large logarithms, and lost to rounding.
    lambda d: jax.nn.softplus(jnp.logaddexp(-d, a - d / 2)),
    lambda d: jax.nn.softplus(jnp.logaddexp(d / 2, -d / 2) - a),
    scores,
    labels,
    where=where,
    pairs=pairs,
    ties=ties,
    smoothing=smoothing,
  )


def _mean(
  win: Callable,
  tie: Callable,
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None,
  ties: jax.Array | None,
  smoothing: float,
) -> jax.Array:
  """Weighted mean of win(Δ) over the preferences and tie(Δ) over the ties, taken together."""
  check_range("smoothing", smoothing, 0.0, 0.5)
  scores = real_scores(scores, labels, where)
  won = pair_weights(labels, where=where, pairs=pairs)
  tied = tie_weights(labels, where=where, pairs=pairs, ties=ties)
  difference = scores[..., :, None] - scores[..., None, :]
  d = jnp.stack([jnp.where(w > 0, difference, 0.0) for w in (won, tied)])
  values = jnp.stack([(1 - smoothing) * win(d[0]) + smoothing * win(-d[0]), tie(d[1])])
  return mean_by(values, jnp.stack([won, tied]), (0, -2, -1))
