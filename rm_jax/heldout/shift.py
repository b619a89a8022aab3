"""Whether disagreement among an ensemble's members detects prompts unlike the training data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rm_jax.batch.dataset import TokenDataset
from rm_jax.batch.layout import Packing
from rm_jax.heldout import intervals
from rm_jax.metrics.correlation import auroc
from rm_jax.models.network import Network
from rm_jax.reward.score import score_groups


def member_variance(scores_ML: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Variance of scores over the members of an ensemble, averaged over the marks of a group.

  Args:
    scores_ML: N arrays [members, marks]. A mark is a token at which a score is read: one a
      response, or one a step where solutions are judged by steps (see `batch.group.Group`).

  Returns:
    float64 [N], the variance of the scores; and float64 [N], that of the scores minus each member's
    mean score in the group. Comparisons do not determine a constant for each prompt, in which
    members may differ arbitrarily; subtracting the mean removes it. For a group of one mark the
    second figure is 0.
  """
  raw, centered = [], []
  for scores in scores_ML:
    scores = np.asarray(scores, np.float64)
    raw.append(scores.var(axis=0).mean())
    centered.append((scores - scores.mean(axis=1, keepdims=True)).var(axis=0).mean())
  return np.asarray(raw), np.asarray(centered)


def shift_report(
  network: Network,
  params: dict,
  heldout: TokenDataset,
  shifted: TokenDataset,
  *,
  mesh: Mesh,
  packing: Packing,
) -> dict[str, Any]:
  """Scores two data sets with an ensemble of heads, and reports their `separation`.

  Args:
    network: with an ensemble of heads.
    params: nested dict of arrays on the mesh.
    heldout: data from the distribution of the training data.
    shifted: data from another distribution.
    mesh: the devices.
    packing: see `batch.layout.Packing`.
  """
  scores = [
    score_groups(
      network, params, data.groups, outputs=True, mesh=mesh, packing=packing, progress="shift"
    )
    for data in (heldout, shifted)
  ]
  return separation(scores, (heldout, shifted))


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
    "centered" as in `member_variance`. An AUROC of 1/2 is no separation. Intervals are 95 %, with
    conversations as clusters. If a score is not finite, values and variances are None, and `why`
    says so.
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
    report[name] = intervals.statistic(
      auroc, (variance, is_shifted), clusters, why, scale="probability", classes=is_shifted
    )
  for name, (raw, centered) in zip(("heldout", "shifted"), found, strict=True):
    report[name] = {
      "n": len(raw),
      "variance": float(raw.mean()),
      "variance_centered": float(centered.mean()),
    }
  return report
