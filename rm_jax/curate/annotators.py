"""Annotators of pairs: how far they agree, how reliable each is, and what sways each.

Rows have two responses and a column for each annotator that says which is better.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from rm_jax.curate.ledger import Entry, FullReport
from rm_jax.data.read import Row, read_rows
from rm_jax.data.report import DataError, shown
from rm_jax.metrics.annotators import (
  LEVELS,
  alpha_interval,
  dawid_skene,
  krippendorff_alpha,
  logistic,
  share,
)
from rm_jax.metrics.surface import formatting, normalise, words

# Rows that each two of three annotators must share for a reliability. Simulated, two classes, right
# in 0.8, 0.7 and 0.65: at 10, 30, 50, 100 rows the estimate is off by 0.16, 0.11, 0.09, 0.08 on
# average and the 95 % interval 0.49, 0.44, 0.35, 0.27 wide; it covers 0.88 at 10 and 0.94 at 30.
ENOUGH = 30
FIRST, SECOND, TIE, MISSING = 0, 1, 2, -1
CLASSES = ("first", "second", "tie")


@dataclasses.dataclass(frozen=True)
class Judgements:
  """What annotators said of N pairs.

  Attributes:
    names: A annotators.
    labels: int64 [N, A]: 0 first better, 1 second, 2 tie, -1 missing.
    words: int64 [N, 2] of the first and the second response.
    formatting: int64 [N, 2], Markdown marks.
    clusters: N prompts; intervals resample them.
    origins: N, 'file:line'.
    unread: rows that are left out, with reasons.
    rows: rows read: N and the unread.
  """

  names: tuple[str, ...]
  labels: np.ndarray
  words: np.ndarray
  formatting: np.ndarray
  clusters: list[str]
  origins: list[str]
  unread: list[Entry]
  rows: int


def read_judgements(
  path: str | os.PathLike,
  annotators: Sequence[str],
  *,
  first: str = "response1",
  second: str = "response2",
  prompt: Sequence[str] = (),
  values: Sequence[str] = ("1", "2", "0"),
) -> Judgements:
  """Reads judgements from a file.

  Args:
    path: see `rm_jax.data.read.ACCEPTED`.
    annotators: their columns. null, '' or no such column in a row: missing.
    first: column of the first response.
    second: column of the second one.
    prompt: columns that make a prompt together; none: every row is a cluster of its own.
    values: what a column holds for: first better, second better, a tie ('' = there are none).

  Raises:
    DataError: there is nothing to read, a column is in no row, or no row is left. Rows with another
      value, or without text, are listed in `unread`.
  """
  if len(values) != 3 or len({v for v in values if v}) < len([v for v in values if v]):
    raise DataError(
      f"annotator values are {list(values)}; expected three that differ, such as 1,2,0"
    )
  if len(set(annotators)) < len(annotators) or not annotators:
    raise DataError(f"annotator columns are {list(annotators)}; expected some, each once")
  meaning = {v: label for v, label in zip(values, (FIRST, SECOND, TIE), strict=True) if v}
  report = FullReport()
  labels, counts, marks, clusters, origins = [], [], [], [], []
  seen: set[str] = set()
  columns: set[str] = set()
  for origin, row in read_rows(path, report):
    columns |= row.keys()
    seen |= {a for a in annotators if row.get(a) not in (None, "")}
    try:
      mine = [_label(row, a, meaning) for a in annotators]
      texts = [_text(row, c) for c in (first, second)]
      cluster = json.dumps([normalise(_text(row, c)) for c in prompt]) if prompt else origin
    except _Bad as bad:
      report.drop(bad.reason, origin, bad.detail)
      continue
    if all(label == MISSING for label in mine):
      report.drop("no_annotation", origin, f"none of {list(annotators)} says anything")
      continue
    labels.append(mine)
    counts.append([len(words(t)) for t in texts])
    marks.append([formatting(t) for t in texts])
    clusters.append(cluster)
    origins.append(origin)
  absent = sorted(({*annotators} - seen) | ({first, second, *prompt} - columns))
  if absent:
    raise DataError(f"{os.fspath(path)}: no row has {absent}; its columns are {sorted(columns)}")
  if not labels:
    raise DataError(f"{os.fspath(path)}: not one row could be kept. {report}")
  arrays = [np.asarray(x, np.int64) for x in (labels, counts, marks)]
  return Judgements(
    tuple(annotators), *arrays, clusters, origins, unread=report.entries, rows=report.rows
  )


class _Bad(Exception):
  def __init__(self, reason: str, detail: str):
    super().__init__(detail)
    self.reason, self.detail = reason, detail


def _label(row: Row, column: str, meaning: dict[str, int]) -> int:
  value = row.get(column)
  if value in (None, ""):
    return MISSING
  whole = isinstance(value, float) and value.is_integer()  # 1.0, as tables with gaps have it
  label = meaning.get(str(int(value) if whole else value))
  if label is None:
    detail = f"{column!r} is {shown(value)}; expected one of {', '.join(meaning)}"
    raise _Bad("unknown_judgement", detail)
  return label


def _text(row: Row, column: str) -> str:
  value = row.get(column)
  if not isinstance(value, str):
    raise _Bad("wrong_type", f"{column!r} is {shown(value)}; expected text")
  return value


def identified(labels: np.ndarray, enough: int = ENOUGH) -> np.ndarray:
  """bool [A]: annotators who are one of three of whom each two judged `enough` rows in common."""
  there_NA = (labels != MISSING).astype(np.int64)
  shared_AA = there_NA.T @ there_NA >= enough
  np.fill_diagonal(shared_AA, False)
  ways_AA = shared_AA.astype(np.int64)
  return (np.einsum("ab,bc,ca->a", ways_AA, ways_AA, ways_AA) > 0) & shared_AA.any(axis=1)


def reliability(
  judgements: Judgements, *, resamples: int = 200, seed: int = 0
) -> dict[str, Any] | str:
  """Dawid–Skene's reliabilities with intervals, and what EM did.

  Three annotators identify one another where each two of them judged rows in common: agreement of
  two has one equation for two unknowns. So annotators count who are one of three of whom each two
  share `ENOUGH` rows; the others have a reason and no numbers, and no say in the fit.

  Intervals are percentiles of refits on resampled clusters (prompts), each by EM from the majority
  vote.

  Args:
    judgements: of any annotators.
    resamples: refits; 0 = no intervals.
    seed: of starts and resamples.

  Returns:
    {classes, prior, annotators: {name: {reliability, interval, confusion} or a reason}, ...}; or
    the reason why there is nothing, where no annotator counts.
  """
  used = [k for k in range(len(CLASSES)) if (judgements.labels == k).any()]
  if len(used) < 2:
    raise DataError(f"all judgements are {CLASSES[used[0]]!r}; there is nothing to tell apart")
  named = list(judgements.names)
  counted_A = identified(judgements.labels)
  reason = f"none: not one of three annotators of whom each two judged {ENOUGH} rows in common"
  if not counted_A.any():
    return reason.replace("not one of three", "there are no three")
  label_NA = np.where(judgements.labels >= 0, np.searchsorted(used, judgements.labels), MISSING)
  label_NA = label_NA[:, counted_A]
  kept_N = (label_NA >= 0).any(axis=1)
  label_NA = label_NA[kept_N]
  fit = dawid_skene(label_NA, len(used), seed=seed)
  rng = np.random.default_rng(seed)
  members: dict[str, list[int]] = {}
  for i, row in enumerate(np.flatnonzero(kept_N).tolist()):
    members.setdefault(judgements.clusters[row], []).append(i)
  groups = [np.asarray(m) for m in members.values()]
  drawn = []
  for _ in tqdm(range(resamples if len(groups) > 1 else 0), desc="reliability", disable=None):
    at = np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))])
    if (label_NA[at] >= 0).any(axis=0).all():
      again = dawid_skene(label_NA[at], len(used), starts=1, tolerance=1e-6, seed=seed)
      drawn.append(again.reliability)
  bounds = np.quantile(drawn, [0.025, 0.975], axis=0) if drawn else None
  names = [CLASSES[k] for k in used]
  found: dict[str, Any] = dict.fromkeys(named, reason)
  for a, at in enumerate(np.flatnonzero(counted_A).tolist()):
    found[named[at]] = {
      "reliability": float(fit.reliability[a]),
      "interval": None if bounds is None else [float(b) for b in bounds[:, a]],
      "confusion": {names[k]: _named(names, fit.confusion[a, k]) for k in range(len(names))},
    }
  return {
    "classes": names,
    "prior": _named(names, fit.prior),
    "annotators": found,
    "interval_method": "cluster bootstrap, refitted" if drawn else "none",
    "resamples": len(drawn),
    "log_likelihood": fit.log_likelihood[-1],
    "iterations": len(fit.log_likelihood),
    "converged": fit.converged,
  }


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
  return {name: float(value) for name, value in zip(names, values, strict=True)}


def biases(judgements: Judgements) -> dict[str, dict[str, Any]]:
  """What sways each annotator, over the pairs in which they chose (ties left out, and counted).

  An association is not yet a bias: longer answers may be better. So beside each share stands
  `beyond_others`, the annotator's credit less the mean of the other annotators' on the same pairs
  (who chose too): what they all see in the texts cancels, and what is left is the annotator's own.

  Returns:
    annotator -> {n, ties, missing,
    position: P(first chosen); length: share of the longer chosen (in words; equal ones left out);
    formatting: share of the heavier in Markdown chosen (likewise): each {share, interval, n,
    clusters, method, beyond_others: {difference, interval, n}},
    logistic: P(first) = sigmoid(position + length · ln(words₁/words₂) + formatting · (marks₁ −
    marks₂)), each {slope, interval (Wald over clusters), standard_error}, or the reason why not}.
    With one annotator there are no others.
  """
  label_NA = judgements.labels
  chose_NA = (label_NA == FIRST) | (label_NA == SECOND)
  first_NA = np.where(label_NA == FIRST, 1.0, 0.0)
  longer_N = np.sign(judgements.words[:, 0] - judgements.words[:, 1])
  heavier_N = np.sign(judgements.formatting[:, 0] - judgements.formatting[:, 1])
  ones_N = np.ones(len(label_NA), np.int64)
  out = {}
  for a, name in enumerate(judgements.names):
    mine = chose_NA[:, a]
    out[name] = {
      "n": int(mine.sum()),
      "ties": int((label_NA[:, a] == TIE).sum()),
      "missing": int((label_NA[:, a] == MISSING).sum()),
    }
    for what, side_N in (("position", ones_N), ("length", longer_N), ("formatting", heavier_N)):
      at = np.flatnonzero(mine & (side_N != 0))
      # Credit 1 where the choice is the first and it leads, or the second and that one leads.
      credit_NA = np.where(side_N[:, None] > 0, first_NA, 1 - first_NA)
      entry = share(credit_NA[at, a], [judgements.clusters[i] for i in at])
      entry["beyond_others"] = _beyond(credit_NA, chose_NA, at, a, judgements.clusters)
      out[name][what] = entry
    out[name]["logistic"] = _slopes(judgements, first_NA[:, a], mine)
  return out


def _beyond(credit_NA, chose_NA, at, a: int, clusters: list[str]) -> dict[str, Any] | None:
  others = np.delete(np.arange(chose_NA.shape[1]), a)
  at = at[chose_NA[at][:, others].any(axis=1)]
  if not len(at):
    return None
  weight = chose_NA[at][:, others]
  mean = (credit_NA[at][:, others] * weight).sum(axis=1) / weight.sum(axis=1)
  # In [-1, 1]; `share` takes any finite number, and only 0 and 1 are special to it.
  found = share((credit_NA[at, a] - mean + 1) / 2, [clusters[i] for i in at])
  interval = found["interval"] and [2 * b - 1 for b in found["interval"]]
  return {"difference": 2 * found["share"] - 1, "interval": interval, "n": len(at)}


def _slopes(judgements: Judgements, first_N: np.ndarray, mine: np.ndarray) -> dict[str, Any] | str:
  at = np.flatnonzero(mine)
  ratio = np.log(np.maximum(judgements.words[at], 1))  # an empty response counts as one word
  columns = {
    "position": np.ones(len(at)),
    "length": ratio[:, 0] - ratio[:, 1],
    "formatting": (judgements.formatting[at, 0] - judgements.formatting[at, 1]).astype(float),
  }
  if not columns["formatting"].any():
    del columns["formatting"]
  try:
    found = logistic(
      np.stack(list(columns.values()), 1), first_N[at], [judgements.clusters[i] for i in at]
    )
  except ValueError as error:
    return f"not fitted: {error}"
  return dict(zip(columns, found, strict=True))


def agreement(judgements: Judgements, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
  """Krippendorff's alpha at each level, with cluster-bootstrap intervals.

  For 'ordinal' and 'interval' a tie stands between the two: first 1, tie 0, second −1.

  Returns:
    level -> {alpha, interval}, or the reason why there is none.
  """
  value = np.array([1.0, -1.0, 0.0, math.nan])  # of first, second, tie; the last is MISSING
  ratings = value[judgements.labels]
  out: dict[str, Any] = {}
  for level in LEVELS:
    try:
      found = alpha_interval(ratings, judgements.clusters, level, resamples=resamples, seed=seed)
      out[level] = {"alpha": krippendorff_alpha(ratings, level), **found.report()}
    except ValueError as error:
      out[level] = f"none: {error}"
  return out


def annotator_report(judgements: Judgements, *, seed: int = 0) -> dict[str, Any]:
  """{rows, dropped, agreement, reliability, biases} of judgements; see the functions of this room.

  `reliability` is a reason in words where there are no three annotators to identify one another.
  """
  rows = {
    "read": judgements.rows,
    "kept": len(judgements.origins),
    "dropped": len(judgements.unread),
  }
  assert rows["read"] == rows["kept"] + rows["dropped"], rows
  return {
    "rows": rows,
    "prompts": len(set(judgements.clusters)),
    "agreement": agreement(judgements, seed=seed),
    "reliability": reliability(judgements, seed=seed),
    "biases": biases(judgements),
    "dropped": [dataclasses.asdict(entry) for entry in judgements.unread],
  }


def table(report: dict[str, Any]) -> str:
  """The report as lines for people; intervals are 95 %."""

  def number(entry: dict[str, Any] | str | None, name: str) -> str:
    if not isinstance(entry, dict) or entry[name] is None:
      return "-"
    value = f"{entry[name]:.3f}"
    return value if entry["interval"] is None else value + " [{:.3f}, {:.3f}]".format(
      *entry["interval"]
    )  # fmt: skip

  rows = report["rows"]
  lines = [
    f"{rows['kept']} of {rows['read']} rows kept, {report['prompts']} prompts (resampled whole)"
  ]
  for level, entry in report["agreement"].items():
    shown_entry = number(entry, "alpha") if isinstance(entry, dict) else entry
    lines.append(f"Krippendorff's alpha, {level}: {shown_entry}")
  reliable = report["reliability"]
  if isinstance(reliable, str):
    lines.append(f"Dawid-Skene: {reliable}")
  else:
    state = "converged" if reliable["converged"] else "NOT converged"
    lines.append(
      f"Dawid-Skene: {state} after {reliable['iterations']} iterations, log-likelihood "
      f"{reliable['log_likelihood']:.2f}"
    )
  for name, bias in report["biases"].items():
    lines.append(f"{name}: chose in {bias['n']}, tie {bias['ties']}, missing {bias['missing']}")
    if not isinstance(reliable, str):
      entry = reliable["annotators"][name]
      shown_entry = number(entry, "reliability") if isinstance(entry, dict) else entry
      lines.append(f"  reliability        {shown_entry}")
    for what, title in (
      ("position", "first chosen"),
      ("length", "longer chosen"),
      ("formatting", "heavier chosen"),
    ):
      lines.append(
        f"  {title:<18} {number(bias[what], 'share')} of {bias[what]['n']}; beyond the others "
        f"{number(bias[what]['beyond_others'], 'difference')}"
      )
    slopes = bias["logistic"]
    if isinstance(slopes, str):
      lines.append(f"  logistic slopes    {slopes}")
    else:
      lines += [f"  slope of {what:<9} {number(entry, 'slope')}" for what, entry in slopes.items()]
  return "\n".join(lines)
