"""Finds labels that are likely wrong: a model that was trained on other rows disagrees with them.

This is confident learning (Northcutt, Jiang and Chuang 2021, Confident learning: estimating
uncertainty in dataset labels), adapted to pairs. The paper has a threshold for each class. In a
pair, which response comes first is a convention and not a class, so there is one threshold: the
mean of P(chosen > rejected) over all pairs. Of each pair, 'chosen' is the response that its label
prefers (`rm_jax.data.verdict`), whichever comes first. A tie prefers none, so that no scorer can
disagree with it.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rm_jax.curate.ledger import Ledger
from rm_jax.data.report import DataError
from rm_jax.data.verdict import compares_two, verdict
from rm_jax.errors import InputError
from rm_jax.metrics.agreement import accuracy, credit
from rm_jax.types import Example

# (examples to train on, examples to score) -> margins [N]: score of the first response − score of
# the second.
Scorer = Callable[[Sequence[Example], Sequence[Example]], np.ndarray]

POLICIES = ("none", "drop", "flip", "downweight")
# Among the tenth of the pairs of which the scorer is surest, the share of labels that it disagrees
# with equals the share of flipped labels only under this assumption. Reports state both together.
ASSUMES = (
  "labels are flipped as often in these pairs as in close ones, and the scorer makes no error there"
)


def folds(examples: Sequence[Example], count: int, seed: int = 0) -> np.ndarray:
  """Assigns each example a fold, int64 [N] in 0 .. count − 1; a conversation is never split.

  Conversations are sorted by a hash of their text and the seed, and dealt to the folds in turn, so
  that the folds' numbers of conversations differ by one at most.

  Raises:
    DataError: there are fewer conversations than folds, or an example has none.
    ValueError: count is below 2.
  """
  if count < 2:
    raise ValueError(f"{count} fold(s); expected at least 2")
  for example in examples:
    if not example.conversation:
      raise DataError(f"{example.origin or 'an example'}: no conversation to split by; set it")

  def place(conversation: str) -> bytes:
    text = f"fold:{seed}:{conversation}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()

  order = sorted({e.conversation for e in examples}, key=place)
  if len(order) < count:
    raise DataError(f"{len(order)} conversation(s) cannot be dealt to {count} folds")
  fold = {conversation: i % count for i, conversation in enumerate(order)}
  return np.asarray([fold[e.conversation] for e in examples], np.int64)


def out_of_fold(
  examples: Sequence[Example], scorer: Scorer, *, count: int = 5, seed: int = 0
) -> np.ndarray:
  """Margins of every example by a scorer trained on the other folds, float64 [N].

  Args:
    examples: N pairs.
    scorer: called once for each fold.
    count: number of folds.
    seed: of the folds.

  Raises:
    DataError, ValueError: as `folds`.
    DataError: the scorer did not return one finite margin for each example.
  """
  fold_N = folds(examples, count, seed)
  margins = np.empty(len(examples))
  for k in range(count):
    test = np.flatnonzero(fold_N == k)
    given = np.asarray(
      scorer([examples[i] for i in np.flatnonzero(fold_N != k)], [examples[i] for i in test]),
      np.float64,
    )
    if given.shape != test.shape or not np.isfinite(given).all():
      raise DataError(
        f"the scorer gave {given.shape} margins for {len(test)} examples of fold {k}, "
        f"{int(np.count_nonzero(~np.isfinite(given)))} of them not finite; expected one finite each"
      )
    margins[test] = given
  return margins


def probabilities(margins: np.ndarray) -> tuple[np.ndarray, float]:
  """Calibrates margins: P(chosen > rejected) = sigmoid(s · margin), with the most likely s >= 0.

  This is Platt scaling (Platt 1999) without an intercept, because swapping the two responses must
  turn p into 1 − p. It corrects an overconfident or underconfident scorer and, if s > 0, keeps the
  ranking.
  If no margin is negative, the likelihood has no maximum at a finite s; then s is chosen so that
  the mean of |margin| gets the probability 0.95. If the mean margin is not positive, s is 0.

  Returns:
    (P(chosen > rejected) float64 [N], s).
  """
  m = np.asarray(margins, np.float64)
  size = float(np.abs(m).mean())
  if not size or m.mean() <= 0:
    return np.full(len(m), 0.5), 0.0
  if m.min() >= 0:
    scale = math.log(19) / size
  else:
    # Bisection: the log-likelihood is concave in the scale, so its slope changes sign once.
    low, high = 0.0, 1000 / size
    for _ in range(100):
      middle = (low + high) / 2
      rising = float((m * 0.5 * (1 - np.tanh(middle * m / 2))).sum()) > 0
      low, high = (middle, high) if rising else (low, middle)
    scale = (low + high) / 2
  return 0.5 * (1 + np.tanh(scale * m / 2)), scale


@dataclasses.dataclass(frozen=True)
class Suspicion:
  """What `suspect` found about N pairs.

  Attributes:
    probability: float64 [N], out-of-fold P(chosen > rejected); 1/2 for a tie.
    ranked: int64 [N], indices of the pairs, the most likely flips first.
    noise_rate: the confident joint's estimate of the share of flipped labels, of those that are
      no ties.
    surest: share of labels that the scorer disagrees with, over the surest tenth of these pairs.
    count: round(min(noise_rate, surest) · number of these pairs), at most as many pairs as have a
      probability below 1/2: the number that `apply` suspects by 'count'.
    report: the numbers for a report.
  """

  probability: np.ndarray
  ranked: np.ndarray
  noise_rate: float
  surest: float
  count: int
  report: dict[str, Any]


def suspect(examples: Sequence[Example], margins: np.ndarray) -> Suspicion:
  """Ranks pairs by how likely their label is flipped, and estimates how many labels are.

  With p = P(chosen > rejected) and t = mean p, a label is confidently right where p >= t and
  p >= 1/2, and confidently flipped where 1 − p >= t and 1 − p > 1/2. The first estimate of the
  share of flipped labels is that of the paper's confident joint, the counts of these two:

    noise rate = flipped / (flipped + right)

  It counts the scorer's own errors as noise: if all labels are true, a scorer that is right in 65 %
  of the pairs estimates 30 % flipped. The second estimate is therefore the share of labels that the
  scorer disagrees with among the surest tenth of the pairs (largest |p − 1/2|), where its own
  errors are fewest (Liu and Tao 2016, anchor points). The report has an interval of it, or None
  where these pairs are of too few conversations.

  **Neither is an upper or a lower bound of the share of flipped labels.** The second equals it only
  if labels are flipped as often in the surest pairs as in the others and the scorer makes no errors
  there (`ASSUMES`). But judges mostly err where two responses are close. In a simulation with the
  true reward as the scorer and 0.268 of the labels flipped by Bradley–Terry judges, the two
  estimates are 0.194 and 0.052. The ranking assumes less: only that the labels which the scorer
  most surely disagrees with are the most likely to be wrong.

  Ties count in none of these numbers.

  Args:
    examples: N pairs; their conversations are the clusters of the intervals.
    margins: [N], as `out_of_fold` returns them.

  Raises:
    DataError: all pairs are ties; or the margins agree with the labels no better than a coin (the
      95 % interval of the accuracy reaches 1/2, or there are too few conversations for one), so
      they cannot say which labels are wrong.
    ValueError: there is no pair, an example is none, or the margins are not one finite number for
      each.
  """
  sign = np.asarray([verdict(e) for e in examples], np.float64)
  sure = np.flatnonzero(sign)
  if len(examples) and not len(sure):
    raise DataError(f"all {len(examples)} pairs are ties, and a tie has no label to be wrong")
  ahead = credit(margins, np.zeros(len(examples)))  # of the first response
  margins = (np.asarray(margins, np.float64) * sign)[sure]
  talks = [examples[i].conversation for i in sure.tolist()]
  found = accuracy(np.where(sign < 0, 1 - ahead, ahead)[sure], talks)
  if found["interval"] is None:
    raise DataError(f"whether the scorer is better than a coin is not known: {found['why']}")
  if found["interval"][0] <= 0.5:
    low, high = found["interval"]
    raise DataError(
      f"out of fold, the scorer agrees with {found['accuracy']:.3f} [{low:.3f}, {high:.3f}] of the "
      "labels, which is no better than a coin: it cannot say which are wrong. Train a better one "
      "(--denoise_config), on more data, or leave denoising out"
    )
  p, scale = probabilities(margins)
  t = float(p.mean())
  right = int(((p >= t) & (p >= 0.5)).sum())
  flipped = int(((1 - p >= t) & (p < 0.5)).sum())
  rate = flipped / max(1, flipped + right)
  surest = np.argsort(-np.abs(p - 0.5), kind="stable")[: max(1, len(p) // 10)]
  theirs = [talks[i] for i in surest.tolist()]
  interval = None  # One conversation does not show how conversations vary.
  if len(set(theirs)) > 1:
    interval = accuracy((p[surest] < 0.5).astype(np.float64), theirs)["interval"]
  disagreement = float((p[surest] < 0.5).mean())
  count = min(round(min(rate, disagreement) * len(p)), int((p < 0.5).sum()))
  report = {
    "accuracy": found["accuracy"],
    "interval": found["interval"],
    "scale": scale,
    "threshold": t,
    "confidently_right": right,
    "confidently_flipped": flipped,
    "noise_rate": rate,
    "disagreement_of_surest_tenth": disagreement,
    "surest_interval": interval,
    "surest_pairs": len(surest),
    "assumes": ASSUMES,
    "estimated_count": count,
    "quantiles_of_probability": {
      f"p{q:02d}": float(np.percentile(p, q)) for q in (1, 5, 10, 25, 50)
    },
  }
  probability = np.full(len(examples), 0.5)
  probability[sure] = p
  ranked = np.argsort(probability, kind="stable")
  return Suspicion(probability, ranked, rate, disagreement, count, report)


def apply(
  ledger: Ledger,
  suspicion: Suspicion,
  policy: str,
  *,
  by: str = "threshold",
  threshold: float = 0.1,
  weight: float = 0.5,
) -> dict[str, Any]:
  """Applies a policy to the suspected rows of a ledger.

  Args:
    ledger: the pairs among its kept rows, in order, are those that `suspicion` is about.
    suspicion: the result of `suspect`.
    policy: 'drop', 'flip' (swap chosen and rejected), 'downweight', or 'none' (only list the rows).
    by: which rows are suspected: 'threshold', those whose probability is below `threshold`; or
      'count', the first `suspicion.count` of the ranking.
    threshold: a probability, in (0, 0.5].
    weight: factor that 'downweight' multiplies the rows' weights by, in [0, 1).

  Returns:
    The suspicion's report with {policy, by, flagged: number of suspected rows}.

  Raises:
    InputError: `threshold` or `weight` is out of its range.
    ValueError: `policy` or `by` is unknown, or the numbers of kept pairs differ.
    DataError: a row to flip has no columns 'chosen' and 'rejected'.
  """
  if policy not in POLICIES or by not in ("threshold", "count"):
    raise ValueError(f"policy {policy!r} by {by!r}; expected one of {POLICIES}, threshold or count")
  if not 0 < threshold <= 0.5 or not 0 <= weight < 1:
    raise InputError(f"threshold {threshold}, weight {weight}; expected in (0, 0.5] and in [0, 1)")
  kept = [i for i in ledger.kept if compares_two(ledger.examples[i])]
  if len(kept) != len(suspicion.probability):
    raise ValueError(f"a suspicion of {len(suspicion.probability)} rows; {len(kept)} are kept")
  if by == "count":
    chosen = suspicion.ranked[: suspicion.count]
  else:
    chosen = np.flatnonzero(suspicion.probability < threshold)
  for at in sorted(chosen.tolist()):
    index = kept[at]
    detail = f"out of fold, P(chosen > rejected) = {suspicion.probability[at]:.4f}"
    if policy == "drop":
      ledger.drop(index, "suspected_flip", detail)
    elif policy == "flip":
      ledger.flip(index, "suspected_flip", detail)
    elif policy == "downweight":
      ledger.reweigh(index, "suspected_flip", detail, weight)
    else:
      ledger.note(index, "suspected_flip", detail)
  return suspicion.report | {"policy": policy, "by": by, "flagged": len(chosen)}
