"""Section `rules`: the share of responses outside declared limits, of all and of the top-scored.

Optimisation picks what scores highest, so the share among the top-scored matters most. The limits
are those of shaping/limits.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rm_jax.audit import figures
from rm_jax.audit.comparisons import conversation_of
from rm_jax.audit.scorer import Score, scores_of
from rm_jax.audit.section import Section, Subject
from rm_jax.audit.writer import View, Writer, escaped
from rm_jax.data.dialogue import plain
from rm_jax.shaping.limits import FEWEST, Limits, expected_outside, score_range
from rm_jax.types import Example


def flagged(
  score: Score,
  examples: Sequence[Example],
  *,
  limits: Limits | None = None,
  reference: npt.ArrayLike | None = None,
  top: float = 0.1,
  seed: int = 0,
) -> dict:
  """Share of responses that each limit flags, of all and of the top-scored.

  Args:
    score: rows of (prompt, response) -> float [N].
    examples: of any kind; all their responses are checked.
    limits: None = the defaults of `Limits`.
    reference: [R] scores from which `score_range` takes the range of scores; None = the range is
      not checked.
    top: share of the responses that counts as top-scored; ties at its edge count in part.
    seed: of the intervals.

  Returns:
    {responses: number of them, top, limits: [low, high], the range of scores, or None without a
    reference, expected: {below, above}: the shares that `expected_outside` expects, or {} without
    one, rules: the fields of `limits`,
    flags: name -> {all, top}, figures (audit/figures.py) of the share that is flagged: by each
      limit of `Limits.flags`, as 'below' and 'above' the range, and by 'any' of all these}.

  Raises:
    ValueError: no example, fewer than 2 conversations, a score that is not finite, a reference that
      `score_range` cannot use, or `top` outside (0, 1).
  """
  limits = limits or Limits()
  rows = [(e.prompt, response) for e in examples for response in e.responses]
  clusters = [conversation_of(e) for e in examples for _ in e.responses]
  if len(set(clusters)) < 2:
    raise ValueError(f"{len(set(clusters))} conversation(s); intervals need at least 2")
  score_N = scores_of(score, rows)
  flags = [limits.flags(plain(response)) for _, response in rows]
  hit = {name: np.array([f[name] for f in flags]) for name in flags[0]}
  bounds = None
  if reference is not None:
    bounds = score_range(reference, limits)
    hit |= {"below": score_N < bounds[0], "above": score_N > bounds[1]}
  hit["any"] = np.any(list(hit.values()), axis=0)

  found = shares(score_N, hit, clusters, top=top, seed=seed)
  if bounds is None:
    why = figures.none("no reference scores were given", len(rows))
    found |= {"below": {"all": why, "top": why}, "above": {"all": why, "top": why}}
  return {
    "responses": len(rows),
    "top": top,
    "limits": None if bounds is None else list(bounds),
    "expected": {}
    if bounds is None
    else dict(zip(("below", "above"), expected_outside(len(reference), limits), strict=True)),
    "rules": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(limits).items()},
    "flags": found,
  }


def shares(
  score_N: np.ndarray,
  hit: Mapping[str, np.ndarray],
  clusters: Sequence[str],
  *,
  top: float = 0.1,
  seed: int = 0,
) -> dict[str, dict]:
  """The share of responses that each rule hits.

  Args:
    score_N: [N].
    hit: name of a rule -> bool [N].
    clusters: N conversations.
    top, seed: as `flagged`'s.

  Returns:
    name -> {all, top}, figures of the share among all and among the top-scored.
  """

  def among_top(score_N, hit_N) -> float:
    high_N = figures.top_weights(score_N, top)
    return float((high_N * hit_N).sum() / high_N.sum())

  return {
    name: {
      "all": figures.share(hit_N, clusters, seed=seed),
      "top": figures.top_share(among_top, score_N, hit_N, clusters, top=top, seed=seed),
    }
    for name, hit_N in hit.items()
  }


def _measure(subject: Subject) -> dict[str, Any]:
  if why := subject.lacks_conversations():
    return {"why": why}
  reference, settings = subject.reference, subject.settings
  enough = reference is not None and len(reference.scores) >= FEWEST
  return flagged(
    subject.scorer,
    subject.examples,
    limits=settings.limits,
    reference=reference.scores if enough else None,
    seed=settings.seed,
  )


def _render(page: Writer, found: View) -> None:
  page.table(
    ("flagged by", "of all", "of the top-scored", "of the reference's own"),
    (
      (
        escaped(name),
        *(page.figure(one[k]) for k in ("all", "top")),
        page.value(found["expected"][name]) if name in found["expected"] else "",
      )
      for name, one in found["flags"].items()
    ),
  )


SECTION = Section("rules", "Out of range, and caught by rules", _measure, _render)
