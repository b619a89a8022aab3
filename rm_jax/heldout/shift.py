"""Whether an ensemble's disagreement tells data unlike its training data from held-out data."""

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


def disagreement(scores_ML: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Variance over the members, mean over the marks, of each of N groups.

  Args:
    scores_ML: N arrays [members, marks].

  Returns:
    float64 [N] of the scores; and [N] of their distances to the group's mean score: comparisons
    leave a constant of each prompt free, in which members may differ for no reason. The latter is 0
    for a single mark.
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
  """`separation` of an ensemble of heads."""
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
  """AUROC of the members' disagreement, shifted prompts against held-out ones.

  Args:
    scores: of the held-out and of the shifted groups, each [members, marks].
    datasets: the two, whose conversations are resampled.

  Returns:
    {auroc, auroc_centered: {value, interval}, heldout, shifted: {n, variance, variance_centered}};
    1/2 is no separation. Intervals are 95 %, over conversations.
  """
  found = [disagreement(one) for one in scores]
  clusters = [e.conversation for data in datasets for e in data.examples]
  is_shifted = np.repeat([False, True], [len(raw) for raw, _ in found])
  report: dict[str, Any] = {}
  for at, name in enumerate(("auroc", "auroc_centered")):
    variance = np.concatenate([pair[at] for pair in found])
    why = "nothing is held out, or nothing is shifted"
    report[name] = intervals.statistic(
      auroc, (variance, is_shifted), clusters, why, scale="probability"
    )
  for name, (raw, centered) in zip(("heldout", "shifted"), found, strict=True):
    report[name] = {
      "n": len(raw),
      "variance": float(raw.mean()),
      "variance_centered": float(centered.mean()),
    }
  return report
