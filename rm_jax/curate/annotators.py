"""Annotators of pairs: how far they agree, how reliable each is, and which biases each has.

Each row has two responses, and a column for each annotator that says which response is better.
"""

import dataclasses
import itertools
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
from rm_jax.metrics.interval import Interval, Resampling
from rm_jax.metrics.surface import formatting, normalise, words

# An annotator's reliability is estimated only if they are one of three annotators of whom each two
# judged at least this many rows in common. In simulations with two classes and annotators who are
# right in 0.8, 0.7 and 0.65 of the rows, the mean error of the estimate at 10, 30, 50, 100 rows was
# 0.16, 0.11, 0.09, 0.08 and the width of the 95 % interval 0.49, 0.44, 0.35, 0.27; the interval
# covered the truth in 0.88 of the cases at 10 rows and in 0.94 at 30.
ENOUGH = 30
FIRST, SECOND, TIE, MISSING = 0, 1, 2, -1
CLASSES = ("first", "second", "tie")


@dataclasses.dataclass(frozen=True)
class Judgements:
  """What A annotators said of N pairs.

  Attributes:
    names: of the A annotators.
    labels: int64 [N, A]: 0 the first is better, 1 the second is, 2 a tie, -1 missing.
    words: int64 [N, 2], number of words of the first and of the second response.
    formatting: int64 [N, 2], number of Markdown marks of each.
    clusters: a label of each pair's prompt, or of the pair itself where prompts are not known.
      Pairs with one label are resampled together.
    origins: where each pair came from, 'file:line' or similar.
    unread: rows that were left out, each with its reason.
    rows: number of rows read, N plus those left out.
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
  """Reads judgements from a file. Rows that cannot be used are left out and listed in `unread`.

  Args:
    path: see `rm_jax.data.read.ACCEPTED`.
    annotators: the annotators' columns. Where a row has null, '' or no such column, the judgement
      is missing.
    first: column of the first response.
    second: column of the second response.
    prompt: columns that together are the prompt; if empty, each row is a cluster of its own.
    values: the values that say: first better, second better, tie. '' as the third: no ties.

  Raises:
    DataError: nothing can be read, a column is in no row, an annotator's is empty in all rows, no
      row is left, `annotators` is empty or names a column twice, or `values` are not three that
      differ.
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
  """A row cannot be used; `reason` and `detail` are as in `Report.drop`."""

  def __init__(self, reason: str, detail: str):
    super().__init__(detail)
    self.reason, self.detail = reason, detail


def _label(row: Row, column: str, meaning: dict[str, int]) -> int:
  """An annotator's label in a row, `MISSING` if there is none; raises `_Bad` for other values."""
  value = row.get(column)
  if value in (None, ""):
    return MISSING
  # pandas stores a column of whole numbers with gaps as floats, so 1.0 is read as 1.
  whole = isinstance(value, float) and value.is_integer()
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
  """bool [A]: who is one of three annotators of whom each two have `enough` rows or more in common.

  In the graph that connects two annotators if they have so many rows in common, such three are a
  triangle; the diagonal of the third power of its adjacency matrix is positive for their members.
  """
  there_NA = (labels != MISSING).astype(np.int64)
  shared_AA = there_NA.T @ there_NA >= enough
  np.fill_diagonal(shared_AA, False)
  ways_AA = shared_AA.astype(np.int64)
  return (np.einsum("ab,bc,ca->a", ways_AA, ways_AA, ways_AA) > 0) & shared_AA.any(axis=1)


def reliability(
  judgements: Judgements, *, resamples: int = 200, seed: int = 0
) -> dict[str, Any] | str:
  """Reliabilities by the model of Dawid and Skene (1979), with intervals, and how EM converged.

  Two annotators' agreement is one equation for two unknown reliabilities; three annotators have
  three equations, which identify them. So the fit includes an annotator only if two others exist
  such that each two of the three judged `ENOUGH` rows in common. The judgements of any other
  annotator are left out of the fit, and the report has a reason in place of their numbers.

  Intervals are over bootstrap resamples of clusters (prompts): percentiles, or Student's t over few
  clusters (see `interval.Resampling`). Each resample is fitted anew by EM that starts from the
  majority vote; one that lacks an annotator has no value.

  Args:
    judgements: of any number of annotators.
    resamples: number of bootstrap resamples; 0 = no intervals.
    seed: of EM and of the resamples.

  Returns:
    {classes, prior, annotators: {name: {reliability, interval, confusion}, or a string that says
    why there are no numbers}, interval_method, resamples: number of those that were fitted,
    log_likelihood, iterations, converged}. An interval that does not exist is None, with `why`, as
    over fewer than 5 clusters. If the fit would include no annotator, the reason as a string.

  Raises:
    DataError: there is no judgement, or all are of one class.
  """
  used = [k for k in range(len(CLASSES)) if (judgements.labels == k).any()]
  if not used:
    raise DataError("there is no judgement; expected some, of at least two classes")
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
  clusters = [judgements.clusters[row] for row in np.flatnonzero(kept_N)]
  resampling = Resampling(clusters, resamples=max(1, resamples), seed=seed, bootstrap=True)
  count = resampling.replicates if resamples else 0
  drawn_RA = np.full((count, label_NA.shape[1]), np.nan)
  rows = itertools.islice(resampling.rows(), count)
  for r, at in enumerate(tqdm(rows, total=count, desc="reliability", disable=None)):
    if (label_NA[at] >= 0).any(axis=0).all():
      again = dawid_skene(label_NA[at], len(used), starts=1, tolerance=1e-6, seed=seed)
      drawn_RA[r] = again.reliability
  names = [CLASSES[k] for k in used]
  found: dict[str, Any] = dict.fromkeys(named, reason)
  for a, at in enumerate(np.flatnonzero(counted_A).tolist()):
    value = float(fit.reliability[a])
    if resamples:
      interval = resampling.interval(value, drawn_RA[:, a], scale="probability")
    else:
      interval = Interval.none("no resamples were asked for")
    found[named[at]] = {
      "reliability": value,
      **interval.report(),
      "confusion": {names[k]: _named(names, fit.confusion[a, k]) for k in range(len(names))},
    }
  return {
    "classes": names,
    "prior": _named(names, fit.prior),
    "annotators": found,
    "interval_method": "cluster bootstrap, refitted" if count else "none",
    "resamples": int(np.isfinite(drawn_RA).all(axis=1).sum()),
    "log_likelihood": fit.log_likelihood[-1],
    "iterations": len(fit.log_likelihood),
    "converged": fit.converged,
  }


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
  return {name: float(value) for name, value in zip(names, values, strict=True)}


def biases(judgements: Judgements) -> dict[str, dict[str, Any]]:
  """How each annotator's choices relate to position, length and formatting; ties are left out.

  An annotator who mostly chooses longer answers need not be biased: longer answers may be better.
  `beyond_others` therefore subtracts, pair by pair, the mean choice of the other annotators who
  chose in that pair. A preference that all of them share cancels, and what is left is the
  annotator's own bias.

  Returns:
    annotator -> {n: number of pairs in which they chose a response, ties, missing, position,
    length, formatting, logistic}.
    position: share of pairs in which the first response was chosen. length: share of the pairs with
    unequal numbers of words in which the longer response was chosen. formatting: share of the pairs
    with unequal numbers of Markdown marks in which the response with more was chosen. Each is
    what `metrics.annotators.share` returns, with beyond_others: {difference, interval, n}, with
    `why` if its interval is None; it is None itself where no other annotator chose.
    logistic: the fit P(first) = sigmoid(position + length · ln(words₁/words₂) + formatting ·
    (marks₁ − marks₂)); for each of the three coefficients what `metrics.annotators.logistic`
    returns, without `formatting` if no pair has unequal numbers of marks; or a string that says why
    there is no fit.
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
      # For position, length and formatting in turn: credit is 1 where the chosen response is the
      # first one, the longer one, the one with more Markdown marks; else 0.
      credit_NA = np.where(side_N[:, None] > 0, first_NA, 1 - first_NA)
      entry = share(credit_NA[at, a], [judgements.clusters[i] for i in at])
      entry["beyond_others"] = _beyond(credit_NA, chose_NA, at, a, judgements.clusters)
      out[name][what] = entry
    out[name]["logistic"] = _slopes(judgements, first_NA[:, a], mine)
  return out


def _beyond(credit_NA, chose_NA, at, a: int, clusters: list[str]) -> dict[str, Any] | None:
  """Annotator a's credit minus the others' mean, over the pairs `at` in which another one chose."""
  others = np.delete(np.arange(chose_NA.shape[1]), a)
  at = at[chose_NA[at][:, others].any(axis=1)]
  if not len(at):
    return None
  weight = chose_NA[at][:, others]
  mean = (credit_NA[at][:, others] * weight).sum(axis=1) / weight.sum(axis=1)
  # The difference lies in [-1, 1]. It is mapped to [0, 1], the range of a share, because `share`,
  # which knows the bounds, has an interval even where all values are equal.
  found = share((credit_NA[at, a] - mean + 1) / 2, [clusters[i] for i in at])
  interval = found["interval"] and [2 * b - 1 for b in found["interval"]]
  entry = {"difference": 2 * found["share"] - 1, "interval": interval, "n": len(at)}
  return entry if interval else entry | {"why": found["why"]}


def _slopes(judgements: Judgements, first_N: np.ndarray, mine: np.ndarray) -> dict[str, Any] | str:
  """The logistic fit of `biases` for one annotator, over the pairs that `mine` marks."""
  at = np.flatnonzero(mine)
  ratio = np.log(np.maximum(judgements.words[at], 1))  # 0 words count as 1, since ln 0 is -inf
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
  """Krippendorff's alpha at each level of measurement, with intervals over clusters.

  At the levels 'ordinal' and 'interval' a tie lies between the two choices: a judgement for the
  first response has the value 1, a tie 0, and one for the second −1.

  Returns:
    level -> {alpha, interval} with `method` or `why` as in `Interval.report`, or a string that says
    why there is no alpha.
  """
  # The values of FIRST, SECOND, TIE and MISSING. MISSING is -1, which indexes the last one, NaN.
  value = np.array([1.0, -1.0, 0.0, math.nan])
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
  """The whole report on judgements, as plain values.

  Returns:
    {rows: {read, kept, dropped}, prompts, agreement, reliability, biases, dropped: every row that
    was left out}; `agreement`, `reliability` and `biases` are the results of those functions.

  Raises:
    DataError: as `reliability`.
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
  """Formats what `annotator_report` returns as lines to read; intervals are 95 %."""

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
