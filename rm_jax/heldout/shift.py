"""Whether disagreement among an ensemble's members detects prompts unlike the training data."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_jax.batch.dataset import TokenDataset
from rm_jax.heldout import intervals
from rm_jax.metrics.correlation import auroc


def member_variance(scores_ML: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Variance of scores over the members of an ensemble, averaged over the marks of a group.

  Args:
    scores_ML: N arrays [members, marks]. A mark is a token at which a score is read: one a
      response, or one a step where solutions are judged by steps (see `batch.group.Group`).

  Returns:
    float64 [N], the variance of the scores; and float64 [N], that of the scores minus each member's
    mean score in the group, times M / (M - 1) for M marks. Comparisons do not determine a constant
    for each prompt, in which members may differ arbitrarily; subtracting the mean removes it.
    Subtracting also takes 1/M of a variance that marks have each for themselves, which the factor
    makes good. A group of one mark has nothing left: its second figure is NaN.

  Both figures of a group are means over its marks, so that they are right on average whatever M is,
  and vary the less the more marks there are.
  """
  raw, centered = [], []
  for scores in scores_ML:
    scores = np.asarray(scores, np.float64)
    marks = scores.shape[1]
    raw.append(scores.var(axis=0).mean())
    own = (scores - scores.mean(axis=1, keepdims=True)).var(axis=0).mean()
    centered.append(own * marks / (marks - 1) if marks > 1 else np.nan)
  return np.asarray(raw), np.asarray(centered)


def separation(
  scores: Sequence[Sequence[np.ndarray]], datasets: Sequence[TokenDataset]
) -> dict[str, Any]:
  """AUROC of the members' variance for telling shifted prompts from held-out ones.

  Args:
    scores: for the held-out and for the shifted data set the scores of its groups, each
      [members, marks].
    datasets: the two data sets, in the same order.

  Returns:
    {auroc, auroc_centered: {value, interval}, heldout, shifted: {n, variance, variance_centered}},
    "centered" as in `member_variance`; groups of one mark are left out of what is centered, and
    `one_mark` of `heldout` and of `shifted` is their number where there are any. An AUROC of 1/2 is
    no separation. Intervals are 95 %, with conversations as clusters. If a score is not finite,
    values and variances are None, and `why` says so; so it does where a data set has no group of
    several marks.

    Where groups of one data set have more marks than those of the other, their variances vary less,
    and their median is nearer to their mean. This alone moves the AUROC: for lists of 8 against
    pairs, with members that disagree equally about both, `auroc_centered` is 0.63 of 2 members and
    0.56 of 8, and `auroc` 0.59 and 0.54. Data sets whose groups have as many marks are free of it.
  """
  bad = [sum(not np.isfinite(one).all() for one in some) for some in scores]
  if any(bad):
    why = f"the scores of {bad[0]} held-out and {bad[1]} shifted examples are not finite"
    nothing = {"value": None, "interval": None, "why": why}
    variances = {"variance": None, "variance_centered": None}
    return {"auroc": nothing, "auroc_centered": dict(nothing)} | {
      name: {"n": len(some), **variances}
      for name, some in zip(("heldout", "shifted"), scores, strict=True)
    }
  found = [member_variance(one) for one in scores]
  clusters = [e.conversation for data in datasets for e in data.examples]
  is_shifted = np.repeat([False, True], [len(raw) for raw, _ in found])
  report: dict[str, Any] = {}
  for at, name in enumerate(("auroc", "auroc_centered")):
    variance = np.concatenate([pair[at] for pair in found])
    why = "nothing is held out, or nothing is shifted"
    kept = np.flatnonzero(~np.isnan(variance))
    if len(kept) < len(variance):
      why += ", in groups of several marks: one mark minus its mean is 0"
    mine = [clusters[i] for i in kept]
    report[name] = intervals.statistic(
      auroc,
      (variance[kept], is_shifted[kept]),
      mine,
      why,
      scale="probability",
      classes=is_shifted[kept],
    )
  for name, (raw, centered) in zip(("heldout", "shifted"), found, strict=True):
    several = centered[~np.isnan(centered)]
    report[name] = {
      "n": len(raw),
      "variance": float(raw.mean()),
      "variance_centered": float(several.mean()) if len(several) else None,
    }
    if alone := len(raw) - len(several):
      report[name]["one_mark"] = alone
  return report
