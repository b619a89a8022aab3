"""Bradley–Terry when some comparisons are recorded the wrong way round.

Arguments (without `smoothing`), D = (s_i − s_j − m_ij) / T for "i was preferred to j", and the mean
over comparisons are those of `rm_jax.losses.pairwise.logistic`; e is the probability that a
recorded preference is flipped. Each loss returns float32 [...]. It raises ValueError if a shape
does not fit, and InputError if an option is out of its range.

  >>> scores, labels = jnp.asarray([-50.0, 50.0]), jnp.asarray([1.0, 0.0])
  >>> where = jnp.ones(2, bool)
  >>> print(f"{noisy_logistic(scores, labels, where=where, rate=0.2):.4f}")  # -log 0.2, not 100
  1.6094
"""

import jax
import jax.numpy as jnp

from rm_jax.losses.compare import check_range, compare


def noisy_logistic(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  temperature: float = 1.0,
  rate: float = 0.1,
) -> jax.Array:
  """Negative log-likelihood of the recorded preference, with e known.

    −log((1 − e) σ(D) + e σ(−D))

  This is not label smoothing: a comparison that the scores clearly contradict costs at most −log e,
  and its gradient tends to 0.

  Args: as in `logistic`, with this in place of `smoothing`:
    rate: e in [0, 1/2); 0 is `logistic`.

  Returns:
    float32 [...], mean over the list's comparisons (the forward correction of Patrini et al. 2017).
  """
  check_range("rate", rate, 0.0, 0.5)
  return compare(
    lambda d: _recorded(d, jnp.float32(rate)),
    scores,
    labels,
    where=where,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
    temperature=temperature,
  )


def learned_noise(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  params: dict[str, jax.Array],
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  temperature: float = 1.0,
) -> jax.Array:
  """`noisy_logistic` with e = σ(a) / 2 in (0, 1/2) learned, a = params["noise_logit"], a scalar.

  Only comparisons that the scores decide clearly can tell e apart from the scale of the scores.
  Other args, equation and mean over comparisons: as in `noisy_logistic`. Returns float32 [...].
  """
  rate = 0.5 * jax.nn.sigmoid(params["noise_logit"].astype(jnp.float32))
  return compare(
    lambda d: _recorded(d, rate),
    scores,
    labels,
    where=where,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
    temperature=temperature,
  )


def noise_params(key: jax.Array, *, rate: float = 0.1) -> dict[str, jax.Array]:
  """Initial params of `learned_noise`: e = rate. `key` is unused.

  Raises InputError unless `rate` is in (0, 1/2).
  """
  del key
  check_range("rate", rate, 0.0, 0.5, open_low=True)
  return {"noise_logit": jnp.log(jnp.float32(2 * rate / (1 - 2 * rate)))}


def unbiased_logistic(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  pairs: jax.Array | None = None,
  pair_margin: jax.Array | None = None,
  margin: float = 0.0,
  temperature: float = 1.0,
  rate: float = 0.1,
) -> jax.Array:
  """The loss whose mean over random flips of the true preferences is their logistic loss.

    ((1 − e) ℓ(D) − e ℓ(−D)) / (1 − 2e),  ℓ(D) = −log σ(D)

  It has no lower bound (on a single comparison it falls as −e D / (1 − 2e)): use it with a penalty
  on scores.

  Args: as in `logistic`, with this in place of `smoothing`:
    rate: e in [0, 1/2); 0 is `logistic`.

  Returns:
    float32 [...], mean over the list's comparisons (Natarajan et al. 2013, lemma 1; for preferences
    Chowdhury et al. 2024, "Provably Robust DPO").
  """
  check_range("rate", rate, 0.0, 0.5)

  def value(d):
    return ((1 - rate) * jax.nn.softplus(-d) - rate * jax.nn.softplus(d)) / (1 - 2 * rate)

  return compare(
    value,
    scores,
    labels,
    where=where,
    pairs=pairs,
    pair_margin=pair_margin,
    margin=margin,
    temperature=temperature,
  )


def _recorded(d: jax.Array, rate: jax.Array) -> jax.Array:
  """−log((1 − e) σ(d) + e σ(−d)), computed from logarithms so that neither tail underflows."""
  right = jnp.log1p(-rate) + jax.nn.log_sigmoid(d)
  wrong = jnp.log(rate) + jax.nn.log_sigmoid(-d)
  return -jnp.logaddexp(right, wrong)
