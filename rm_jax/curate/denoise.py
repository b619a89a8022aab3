"""Likely wrong labels, by disagreement of models that did not train on them.

Northcutt, Jiang and Chuang (2021), Confident learning: estimating uncertainty in dataset labels,
adapted to pairs. A pair has no class of its own: which response is first is a convention, so both
of the paper's thresholds are one, the mean P(chosen > rejected).
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rm_jax.curate.ledger import Ledger
from rm_jax.data.report import DataError
from rm_jax.errors import InputError
from rm_jax.metrics.agreement import accuracy, credit
from rm_jax.types import Example

# (examples to train on, examples to score) -> margins: score of the chosen less the rejected.
Scorer = Callable[[Sequence[Example], Sequence[Example]], np.ndarray]

POLICIES = ("none", "drop", "flip", "downweight")
# What makes the disagreement in the surest tenth the share of flipped labels.
ASSUMES = (
  "labels are flipped as often in these pairs as in close ones, and the scorer makes no error there"
)


def folds(examples: Sequence[Example], count: int, seed: int = 0) -> np.ndarray:
  """A fold for each example, int64 [N] in 0 .. count − 1; a conversation is in one fold whole.

  Conversations are dealt out in the order of a hash of their text and the seed, so that folds hold
  as many of them, give or take one.

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
  """Margins of every example by a scorer that trained on the other folds, float64 [N].

  Raises:
    DataError: as `folds`, or the scorer did not give one finite margin an example.
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
  """(P(chosen > rejected) [N], s): sigmoid(s · margin), s >= 0 the most likely scale.

  One number mends a model that is too sure or not sure enough, and changes no ranking (Platt
  1999, without an intercept: a pair has no side). Where every margin is above 0 no finite scale is
  best, and the one that gives the mean margin a probability of 0.95 is taken.
  """
  m = np.asarray(margins, np.float64)
  size = float(np.abs(m).mean())
  if not size or m.mean() <= 0:
    return np.full(len(m), 0.5), 0.0
  if m.min() >= 0:
    scale = math.log(19) / size
  else:
    low, high = 0.0, 1000 / size  # the slope of the likelihood falls with the scale
    for _ in range(100):
      middle = (low + high) / 2
      rising = float((m * 0.5 * (1 - np.tanh(middle * m / 2))).sum()) > 0
      low, high = (middle, high) if rising else (low, middle)
    scale = (low + high) / 2
  return 0.5 * (1 + np.tanh(scale * m / 2)), scale


@dataclasses.dataclass(frozen=True)
class Suspicion:
  """What `suspect` found.

  Attributes:
    probability: float64 [N], out of fold, P(chosen > rejected).
    ranked: int64 [N], indices, the likeliest flips first.
    noise_rate: the confident joint's estimate of the share of flipped labels.
    surest: share of the surest tenth of the pairs whose labels the scorer disagrees with.
    count: round(min(noise_rate, surest) · N): how many to flag by count.
    report: the numbers for a report.
  """

  probability: np.ndarray
  ranked: np.ndarray
  noise_rate: float
  surest: float
  count: int
  report: dict[str, Any]


def suspect(examples: Sequence[Example], margins: np.ndarray) -> Suspicion:
  """Ranks pairs by how likely their label is flipped, and estimates how many are.

  With p = P(chosen > rejected) and t = mean p: a label is confidently right where p >= t and
  p >= 1/2, confidently flipped where 1 − p >= t and 1 − p > 1/2, and

    noise rate = flipped / (flipped + right)                            (the confident joint's)

  This counts the model's own errors as noise: of pairs whose labels are all true, a model that is
  right in 65 % finds 30 % flipped. So the disagreement in the surest tenth of the pairs (largest
  |p − 1/2|) stands beside it, where the model's own errors are fewest (Liu and Tao 2016, anchor
  points), with its interval.

  **Neither bounds the share of flipped labels, from either side.** The second is that share if
  labels are flipped as often in the surest pairs as in the others, and the scorer makes no errors
  there (`ASSUMES`, which reports repeat). Judges who err where two responses are close flip many
  more: with the true reward for a scorer and 0.268 flipped by Bradley and Terry's odds, the two are
  0.194 and 0.052. The ranking assumes less than either: that the surest disagreements are worst.

  Args:
    examples: N pairs, for their conversations.
    margins: [N], out of fold.

  Raises:
    DataError: the margins agree with the labels no better than a coin (the 95 % interval reaches
      1/2): there is nothing to denoise by.
  """
  found = accuracy(credit(margins, np.zeros(len(examples))), [e.conversation for e in examples])
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
  talks = [examples[i].conversation for i in surest.tolist()]
  interval = None  # over one conversation there is none
  if len(set(talks)) > 1:
    interval = accuracy((p[surest] < 0.5).astype(np.float64), talks)["interval"]
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
  return Suspicion(p, np.argsort(p, kind="stable"), rate, disagreement, count, report)


def apply(
  ledger: Ledger,
  suspicion: Suspicion,
  policy: str,
  *,
  by: str = "threshold",
  threshold: float = 0.1,
  weight: float = 0.5,
) -> dict[str, Any]:
  """Does a policy to the suspected rows of a ledger; returns what it did, for a report.

  Args:
    ledger: whose kept rows, in order, the suspicion is of.
    suspicion: of `suspect`.
    policy: 'drop', 'flip' (swap chosen and rejected), 'downweight', or 'none' (list them only).
    by: 'threshold': rows whose probability is below `threshold`; 'count': the estimated count.
    threshold: in (0, 0.5].
    weight: factor of 'downweight', in [0, 1).

  Raises:
    ValueError: an argument is out of its range.
  """
  if policy not in POLICIES or by not in ("threshold", "count"):
    raise ValueError(f"policy {policy!r} by {by!r}; expected one of {POLICIES}, threshold or count")
  if not 0 < threshold <= 0.5 or not 0 <= weight < 1:
    raise InputError(f"threshold {threshold}, weight {weight}; expected in (0, 0.5] and in [0, 1)")
  kept = ledger.kept
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
