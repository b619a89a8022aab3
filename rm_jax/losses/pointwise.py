"""Losses of single items: outcomes, ratings, grades, attributes.

Each loss returns one value a list, float32 [...]: the mean over the list's items (or ratings, in
`attribute_mse`), 0 if there are none. `where` is True at items and False at padding. All raise
ValueError if a shape does not fit, and InputError if an option is out of its range.

  >>> scores, labels = jnp.asarray([1.2, 0.5]), jnp.asarray([1.0, 0.0])
  >>> where = jnp.ones(2, bool)
  >>> print(f"{bce(scores, labels, where=where):.4f}")  # (log(1 + e^-1.2) + log(1 + e^0.5)) / 2
  0.6187
  >>> print(f"{mse(scores, labels, where=where):.4f}")  # (0.2² + 0.5²) / 2
  0.1450
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rm_jax.errors import InputError
from rm_jax.losses.compare import check_range, check_shape, mean_by, mean_where, real_scores


def real_labels(labels: jax.Array, where: jax.Array) -> jax.Array:
  """float32 labels, 0 at padding."""
  return jnp.where(where, labels.astype(jnp.float32), 0.0)


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
  """y · −log σ(s) + (1 − y) · −log σ(−s), elementwise."""
  return labels * jax.nn.softplus(-scores) + (1 - labels) * jax.nn.softplus(scores)


def bce(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
) -> jax.Array:
  """Cross-entropy of an outcome from σ(s).

    y · −log σ(s) + (1 − y) · −log σ(−s)

  Of implicit rewards this is BCO (Jung et al. 2024) without its shift, a running mean of rewards
  that BCO subtracts from them.

  Args:
    scores: float [..., K], log-odds of a good outcome.
    labels: float [..., K] in [0, 1], 1 is good; values between are probabilities. Clipped to
      [0, 1], since with other labels the loss has no lower bound.
    where: bool [..., K], True at items and False at padding.

  Returns:
    float32 [...], mean over the list's items (Cobbe et al. 2021, outcome verifiers).
  """
  scores = real_scores(scores, labels, where)
  labels = jnp.clip(real_labels(labels, where), 0.0, 1.0)
  return mean_where(cross_entropy(scores, labels), where, (-1,))


def kto(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  baseline: float | str | jax.Array = 0.0,
  desirable: float = 1.0,
  undesirable: float = 1.0,
) -> jax.Array:
  """What a person with prospect theory's value function loses by an outcome.

    y · λ_D · σ(z₀ − s) + (1 − y) · λ_U · σ(s − z₀)

  Unlike `bce`'s, its gradient vanishes for outcomes that the scores contradict strongly, so that it
  gives up on labels that are likely to be wrong.

  In the paper s is the implicit reward β · log(π / π_ref), and z₀ is β times the divergence of the
  model from its reference, estimated at each step from responses paired with other prompts, without
  a gradient. In training that is baseline='batch' (see `batch.mismatch`). With a z₀ of 0, its value
  at the start, this is the variant that TRL calls 'apo_zero_unpaired'.

  Args: as in `bce`, but scores are of any scale, and
    baseline: z₀, in units of score; a number, or float [] without a gradient.
    desirable, undesirable: λ_D and λ_U, at least 0; the paper advises values with which the good
      and the bad outcomes of the data weigh about equally.

  Returns:
    float32 [...], mean over the list's items (Ethayarajh et al. 2024, "KTO: Model Alignment as
    Prospect Theoretic Optimization", eq. 8, which adds the constant λ_y).
  """
  if isinstance(baseline, str):
    raise InputError(f"baseline is {baseline!r}; expected a number, or 'batch' (in training)")
  check_range("desirable", desirable, 0.0, float("inf"))
  check_range("undesirable", undesirable, 0.0, float("inf"))
  scores = real_scores(scores, labels, where)
  labels = jnp.clip(real_labels(labels, where), 0.0, 1.0)
  good = desirable * jax.nn.sigmoid(baseline - scores)
  bad = undesirable * jax.nn.sigmoid(scores - baseline)
  return mean_where(labels * good + (1 - labels) * bad, where, (-1,))


def likelihood(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
) -> jax.Array:
  """−s of what is good: maximum likelihood, of scores that are log-likelihoods.

    Σ y · (−s) / Σ y

  Such are implicit rewards without a reference and with a β of 1, and this is then supervised
  fine-tuning on the good responses. For scores without an upper bound, such as a head's, this loss
  has no lower bound.

  Args:
    scores: float [..., K], log-likelihoods.
    labels: float [..., K] in [0, 1], 1 is good; clipped to [0, 1].
    where: bool [..., K], True at items and False at padding.

  Returns:
    float32 [...], mean over the list's items by their labels; 0 if none is good.
  """
  scores = real_scores(scores, labels, where)
  return mean_by(-scores, jnp.clip(real_labels(labels, where), 0.0, 1.0), (-1,))


def mse(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
) -> jax.Array:
  """(s − y)²: regression on a rating.

  Args:
    scores: float [..., K], predicted ratings.
    labels: float [..., K], ratings, any real numbers.
    where: bool [..., K], True at items and False at padding.

  Returns:
    float32 [...], mean over the list's items, without a factor 1/2 (NeMo-Aligner's regression).
  """
  residual = real_scores(scores, labels, where) - real_labels(labels, where)
  return mean_where(jnp.square(residual), where, (-1,))


def huber(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  delta: float = 1.0,
) -> jax.Array:
  """Regression with a bounded gradient: (s − y)² / 2 within δ, δ (|s − y| − δ/2) beyond.

  Args: as in `mse`, and
    delta: δ > 0, in units of score.

  Returns:
    float32 [...], mean over the list's items (Huber 1964).
  """
  check_range("delta", delta, 0.0, float("inf"), open_low=True)
  size = jnp.abs(real_scores(scores, labels, where) - real_labels(labels, where))
  near = jnp.minimum(size, delta)
  # Written as one product, because adding and subtracting δ |s − y| would lose the gradient to
  # rounding at large δ.
  value = near * (size - 0.5 * near)
  return mean_where(value, where, (-1,))


def ordinal(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
  params: dict[str, jax.Array],
) -> jax.Array:
  """−log P(y) of a grade y in 0 .. C − 1, with cut-points θ on the scale of the score.

    P(y ≤ c) = σ(θ_c − s),  θ_0 = first,  θ_c = θ_{c−1} + exp(log_steps_{c−1})

  Args:
    scores: float [..., K].
    labels: [..., K], integer grades, higher is better; rounded, and clipped to 0 .. C − 1.
    where: bool [..., K], True at items and False at padding.
    params: {"first": scalar, "log_steps": [C − 2]}; see `ordinal_params`.

  Returns:
    float32 [...], mean over the list's items (McCullagh 1980, proportional odds).
  """
  scores = real_scores(scores, labels, where)
  steps = jnp.exp(params["log_steps"].astype(jnp.float32))
  rises = jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.cumsum(steps)])
  cuts = params["first"].astype(jnp.float32) + rises
  last = cuts.shape[0]
  grade = jnp.clip(jnp.round(real_labels(labels, where)), 0, last).astype(jnp.int32)
  # σ(a) − σ(b) = σ(a) σ(−b) (1 − exp(b − a)) avoids the difference of two nearly equal
  # probabilities.
  below = jnp.where(grade < last, jax.nn.softplus(scores - cuts[jnp.minimum(grade, last - 1)]), 0.0)
  above = jnp.where(grade > 0, jax.nn.softplus(cuts[jnp.maximum(grade - 1, 0)] - scores), 0.0)
  width = jnp.concatenate([jnp.zeros(1), -jnp.log(-jnp.expm1(-steps)), jnp.zeros(1)])
  return mean_where(below + above + width[grade], where, (-1,))


def ordinal_params(key: jax.Array, *, classes: int) -> dict[str, jax.Array]:
  """params of `ordinal` for C = classes grades, equally likely at score 0; `key` is unused.

  Raises InputError if `classes` is below 2.
  """
  del key
  if classes < 2:
    raise InputError(f"classes is {classes}; expected at least 2 grades")
  below = jnp.arange(1, classes, dtype=jnp.float32) / classes
  cuts = jnp.log(below / (1 - below))
  return {"first": cuts[0], "log_steps": jnp.log(jnp.diff(cuts))}


def no_grade(labels: Sequence[float], margin: float | None, *, classes: int) -> str:
  """The group's first label that `ordinal` would clip to a grade, in a message; '' if none."""
  del margin
  bad = [y for y in labels if not 0 <= round(y) < classes]
  return f"its label {bad[0]:g} is no grade of 0 .. {classes - 1}" if bad else ""


def attribute_mse(
  scores: jax.Array,
  labels: jax.Array,
  *,
  where: jax.Array,
) -> jax.Array:
  """Regression on several attributes, with an output for each: mean of (s − y)² over the ratings.

  Args:
    scores: float [A, ..., K], one row an attribute.
    labels: float [A, ..., K], ratings; NaN where an attribute was not rated.
    where: bool [..., K], True at items and False at padding.

  Returns:
    float32 [...], mean over the list's ratings, all attributes together (Wang et al. 2023,
    HelpSteer; NeMo-Aligner's masked regression).
  """
  check_shape("labels", labels, scores.shape)
  check_shape("where", where, scores.shape[1:])
  rated = where[None] & ~jnp.isnan(labels)
  residual = jnp.where(rated, scores.astype(jnp.float32), 0.0) - real_labels(labels, rated)
  return mean_where(jnp.square(residual), rated, (0, -1))
