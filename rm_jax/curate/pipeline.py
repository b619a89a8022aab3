"""Cleans pairs part by part, in a fixed order and each with its policy, and reports on the rows.

Pairs are the rows that compare two responses (`verdict.compares_two`): also rankings of two. 'The
chosen response' is the one that the label prefers, whichever comes first in the row. Other rows are
noted as 'no_pair' and stay as they are.
"""

import collections
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from rm_jax.curate import denoise, resample
from rm_jax.curate.contamination import PARTS, contaminated
from rm_jax.curate.coverage import coverage, length_bucket, lengths, parts_early
from rm_jax.curate.duplicates import Match, find_duplicates, similar_sides
from rm_jax.curate.ledger import Ledger
from rm_jax.data.report import DataError, shown
from rm_jax.data.verdict import compares_two, described
from rm_jax.types import Example

POLICIES = {
  "early": ("keep", "drop"),
  "sides": ("keep", "drop_equal", "drop_near"),
  "duplicates": ("keep", "drop"),
  "reversed": ("keep_all", "keep_first", "drop_both"),
  "contamination_part": PARTS,
  "denoise": denoise.POLICIES,
  "denoise_by": ("threshold", "count"),
  "resample_how": ("subsample", "weights"),
}


# Reason that a row was dropped for -> the rule that drops such rows, as `LargeDropError` names it.
_RULES = {
  "parts_early": "early (pairs that part before their last turn)",
  "sides_equal_normalised": "sides (equal or near ones)",
  "sides_near": "sides (equal or near ones)",
  "exact_duplicate": "duplicates",
  "near_duplicate": "duplicates",
  "contradictory": "reversed (contradictions)",
  "in_heldout": "contamination",
  "suspected_flip": "denoise",
}


@dataclasses.dataclass(frozen=True)
class Options:
  """What curation looks for, and its policy for what it finds.

  A row that a policy neither drops nor changes although something was found is listed as noted. A
  near match (near sides, a near duplicate, a near contradiction) whose texts differ in a way that
  may change the meaning (`Match.differs`: numbers, signs, case, indentation, a negation ...) is
  noted and drops no row.

  Attributes:
    early: pairs that differ before their last assistant turn, as `coverage.parts_early` finds them:
      'keep' or 'drop'.
    sides: pairs whose own two responses are equal (after `tokens.normal`) or near: 'keep',
      'drop_equal', or 'drop_near', which drops both kinds.
    sides_similarity: smallest similarity of near responses; 0 = look for equal ones only.
    duplicates: 'keep', or 'drop' all but the first.
    near: smallest similarity of near duplicates, see `find_duplicates`; 0 = equal ones only.
    shingle: number of tokens of a shingle, the n-gram that `find_duplicates` and `similar_sides`
      compare.
    reversed: examples that repeat an earlier one with the label reversed: 'keep_all', 'keep_first'
      (drop the later one), or 'drop_both'. Those whose prompts are not equal are only noted.
    contamination_n: number of tokens of an n-gram, for the overlap with held-out text.
    contamination_share: smallest share of the shorter text's n-grams with which a row counts as
      contaminated, see `contaminated`.
    contamination_part: the part of an example that is compared: 'prompt', 'response', 'either' or
      'both'.
    denoise: what is done with suspected flips, if there is a scorer: 'none' (only list them),
      'drop', 'flip' or 'downweight'.
    denoise_by: which labels are suspected: 'threshold' or 'count', see `denoise.apply`.
    denoise_threshold: probability P(chosen > rejected) below which 'threshold' suspects a label.
    denoise_weight: factor that 'downweight' multiplies the rows' weights by.
    folds: number of folds of the out-of-fold scorer.
    resample_by: the key whose proportions are changed: 'source', 'length' (bucket of words of
      chosen − words of rejected) or a column of the rows; '' = no resampling.
    resample_to: the target shares: 'KEY=SHARE,...' or 'equal'.
    resample_how: 'subsample' (drops rows) or 'weights' (multiplies the rows' weights).
    seed: of the folds and of the rows that 'subsample' draws.
    allow_large_drop: whether one rule may drop more than half of the rows that it looks at.
      Resampling always may, because its targets say how much remains.

  Raises:
    DataError: a policy is unknown, a number is out of its range, or `resample_to` cannot be parsed.
  """

  early: str = "keep"
  sides: str = "drop_equal"
  sides_similarity: float = 0.9
  duplicates: str = "drop"
  near: float = 0.7
  shingle: int = 3
  reversed: str = "drop_both"
  contamination_n: int = 8
  contamination_share: float = 0.5
  contamination_part: str = "prompt"
  denoise: str = "none"
  denoise_by: str = "threshold"
  denoise_threshold: float = 0.1
  denoise_weight: float = 0.5
  folds: int = 5
  resample_by: str = ""
  resample_to: str = "equal"
  resample_how: str = "subsample"
  seed: int = 0
  allow_large_drop: bool = False

  def __post_init__(self):
    for name, known in POLICIES.items():
      if getattr(self, name) not in known:
        raise DataError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
    for name, fits, expected in (
      ("near", lambda x: 0 <= x < 1, "[0, 1)"),
      ("sides_similarity", lambda x: 0 <= x <= 1, "[0, 1]"),
      ("contamination_share", lambda x: 0 < x <= 1, "(0, 1]"),
      ("denoise_threshold", lambda x: 0 < x <= 0.5, "(0, 0.5]"),
      ("denoise_weight", lambda x: 0 <= x < 1, "[0, 1)"),
    ):
      if not fits(getattr(self, name)):
        raise DataError(f"{name} is {getattr(self, name)}; expected it in {expected}")
    for name, least in (("shingle", 1), ("contamination_n", 1), ("folds", 2)):
      if getattr(self, name) < least:
        raise DataError(f"{name} is {getattr(self, name)}; expected at least {least}")
    resample.parse_targets(self.resample_to, ())


class LargeDropError(DataError):
  """One rule would drop more than half of the rows: then the rule, not the rows, is likely wrong.

  Attributes:
    report: what `curate` returns, as far as it ran, with `stopped`: {rule, dropped, of}, where `of`
      is the number of rows that the rule looked at. What had not run yet is None.
  """

  def __init__(self, message: str, report: dict[str, Any]):
    super().__init__(message)
    self.report = report


def curate(
  ledger: Ledger,
  options: Options,
  *,
  heldout: Sequence[Example] | None = None,
  scorer: denoise.Scorer | None = None,
  progress: bool = False,
) -> dict[str, Any]:
  """Curates a ledger: early divergence, sides, duplicates, contamination, noise, proportions.

  The parts run in this order, and each sees the rows that the ones before it left.

  Args:
    ledger: of `ledger.read`; all actions are recorded in it.
    options: what to look for, and the policies.
    heldout: examples that the training rows must not repeat; None = skip this part.
    scorer: trained on some folds, it returns the margins of another fold, by which labels are
      suspected; None = skip this part.
    progress: show progress bars.

  Returns:
    {options, rows: counts of rows, dropped, changed, noted: {reason: count}, coverage: {before,
    after}, denoise and resample (None where skipped), seconds: {part: seconds since the part before
    it}, listed: every entry, stopped: None}.

  Raises:
    LargeDropError: a rule dropped more than half of the rows that it looked at, and
      `options.allow_large_drop` is false. Resampling is not checked.
    DataError: no example is a pair; the options do not fit these rows, or ask to denoise without a
      scorer; or as `denoise.out_of_fold` and `denoise.suspect`.
  """
  if scorer is None and options.denoise != "none":
    raise DataError(f"denoise is {options.denoise!r} and there is no scorer; give one")
  if ledger.examples and not any(map(compares_two, ledger.examples)):
    first = ledger.examples[0]
    raise DataError(
      f"{first.origin}: {described(first)}; only pairs are curated, and no row is one"
    )
  for i in ledger.kept:
    if not compares_two(example := ledger.examples[i]):
      ledger.note(i, "no_pair", f"{described(example)}; only pairs are curated")
  seconds: dict[str, float] = {}
  clock = _Clock(seconds)
  before = coverage([ledger.examples[i] for i in _pairs(ledger)])
  clock("coverage")
  noise = proportions = None

  def report(after: dict[str, Any] | None, stopped: dict[str, Any] | None) -> dict[str, Any]:
    return {"options": dataclasses.asdict(options)} | ledger.counts() | {
      "denoise": noise,
      "resample": proportions,
      "coverage": {"before": before, "after": after},
      "seconds": seconds,
      "listed": ledger.listed(),
      "stopped": stopped,
    }  # fmt: skip

  def checked(of: int) -> None:
    """Raises LargeDropError if a rule dropped more than half of `of`, the rows that it looked at.

    Only rows that were dropped since the call before are counted.
    """
    gone = collections.Counter(entry.reason for entry in ledger.dropped[seen[0] :])
    seen[0] = len(ledger.dropped)
    by_rule = collections.Counter()
    for reason, count in gone.items():
      by_rule[_RULES[reason]] += count
    for rule, count in by_rule.items():
      if 2 * count > of and not options.allow_large_drop:
        raise LargeDropError(
          f"{rule} would drop {count} of {of} rows, more than half: look at some of them in the "
          "report (is it their template that is alike?), and give --allow_large_drop if they "
          "should go",
          report(None, {"rule": rule, "dropped": count, "of": of}),
        )

  seen = [len(ledger.dropped)]
  rows = len(_pairs(ledger))
  _early(ledger, options)
  checked(rows)
  rows = len(_pairs(ledger))
  _sides(ledger, options)
  clock("sides")
  checked(rows)
  rows = len(_pairs(ledger))
  _duplicates(ledger, options, progress)
  clock("duplicates")
  checked(rows)
  if heldout is not None:
    rows = len(_pairs(ledger))
    _contamination(ledger, options, heldout, progress)
    clock("contamination")
    checked(rows)
  if scorer is not None:
    examples = [ledger.examples[i] for i in _pairs(ledger)]
    margins = denoise.out_of_fold(examples, scorer, count=options.folds, seed=options.seed)
    suspicion = denoise.suspect(examples, margins)
    noise = denoise.apply(
      ledger,
      suspicion,
      options.denoise,
      by=options.denoise_by,
      threshold=options.denoise_threshold,
      weight=options.denoise_weight,
    )
    clock("denoise")
    checked(len(examples))
  if options.resample_by:
    proportions = _resample(ledger, options)
  after = coverage([ledger.examples[i] for i in _pairs(ledger)])
  clock("coverage after")
  return report(after, None)


def _pairs(ledger: Ledger) -> list[int]:
  """Indices of the kept rows that are pairs, in order."""
  return [i for i in ledger.kept if compares_two(ledger.examples[i])]


class _Clock:
  """Records in `seconds`, under the name that it is called with, the time since its last call."""

  def __init__(self, seconds: dict[str, float]):
    self._seconds, self._last = seconds, time.perf_counter()

  def __call__(self, name: str) -> None:
    now = time.perf_counter()
    self._seconds[name], self._last = round(now - self._last, 3), now


def _early(ledger: Ledger, options: Options) -> None:
  """Drops or notes the pairs that `parts_early` finds."""
  for i in _pairs(ledger):
    if parts_early(ledger.examples[i]):
      turns = [1 if isinstance(r, str) else len(r) for r in ledger.examples[i].responses]
      detail = f"the sides differ before the last assistant turn; messages after that: {turns}"
      if options.early == "drop":
        ledger.drop(i, "parts_early", detail)
      else:
        ledger.note(i, "parts_early", detail)


def _sides(ledger: Ledger, options: Options) -> None:
  """Drops or notes pairs whose own two responses are equal or near."""
  kept = _pairs(ledger)
  examples = [ledger.examples[i] for i in kept]
  found = similar_sides(examples, options.sides_similarity, options.shingle)
  for match in found:
    equal = match.similarity == 1.0
    reason = "sides_equal_normalised" if equal else "sides_near"
    detail = (
      "chosen and rejected are equal but for white space at their ends or Unicode form"
      if equal
      else f"Jaccard of chosen and rejected {match.similarity:.3f}{_but(match)}"
    )
    goes = options.sides == "drop_near" or (equal and options.sides == "drop_equal")
    act = ledger.drop if goes and not match.differs else ledger.note
    act(kept[match.index], reason, detail)


def _but(match: Match) -> str:
  """The words for a row kept because its match differs in meaning; '' if it does not differ."""
  return f"; kept, for they differ in {match.differs}" if match.differs else ""


def _duplicates(ledger: Ledger, options: Options, progress: bool) -> None:
  """Drops or notes duplicates, and pairs that contradict each other."""
  kept = _pairs(ledger)
  examples = [ledger.examples[i] for i in kept]
  found = find_duplicates(examples, threshold=options.near, n=options.shingle, progress=progress)
  for match in [*found.exact, *found.near]:
    reason = "exact_duplicate" if match.similarity == 1 else "near_duplicate"
    detail = f"of {examples[match.of].origin}"
    if match.similarity < 1:
      detail += f", similarity {match.similarity:.3f}{_but(match)}"
    goes = options.duplicates == "drop" and not match.differs
    (ledger.drop if goes else ledger.note)(kept[match.index], reason, detail)
  # What contradicts an example also contradicts its copies. Where these are dropped, they are gone;
  # so may be one of two rows of equal texts, if it is near another row.
  copies: dict[int, list[int]] = {}
  if options.duplicates == "keep":
    for match in [*found.exact, *found.near]:
      if not match.differs:
        copies.setdefault(match.of, []).append(match.index)
  gone: set[int] = set()
  if options.duplicates == "drop":
    gone |= {match.index for match in found.near if not match.differs}
  for match in found.reversed:
    later, earlier = ([i, *copies.get(i, ())] for i in (match.index, match.of))
    sides = [(mine, match.of) for mine in later] + [(mine, match.index) for mine in earlier]
    for mine, other in sides:
      detail = f"{examples[other].origin} has the same prompt and responses, the label reversed"
      if match.similarity < 1:
        detail += f" (similarity {match.similarity:.3f}{_but(match)})"
      # 'keep_first' keeps the earlier of the two. A row may contradict several others, but is to be
      # dropped once.
      goes = options.reversed == "drop_both" or (options.reversed == "keep_first" and mine in later)
      if not goes or match.differs:
        ledger.note(kept[mine], "contradicted", detail)
      elif mine not in gone:
        gone.add(mine)
        ledger.drop(kept[mine], "contradictory", detail)


def _contamination(
  ledger: Ledger, options: Options, heldout: Sequence[Example], progress: bool
) -> None:
  """Drops rows that share much of their text with a held-out example."""
  kept = _pairs(ledger)
  found = contaminated(
    [ledger.examples[i] for i in kept],
    heldout,
    n=options.contamination_n,
    share=options.contamination_share,
    part=options.contamination_part,
    progress=progress,
  )
  for overlap in found:
    detail = (
      f"its {overlap.part} shares {overlap.shared} {options.contamination_n}-grams with "
      f"{heldout[overlap.of].origin}, {overlap.share:.3f} of "
      + ("the words of the shorter one" if overlap.of_words else "the shorter one")
    )
    ledger.drop(kept[overlap.index], "in_heldout", detail)


def _resample(ledger: Ledger, options: Options) -> dict[str, Any]:
  """Drops or reweighs rows to reach the target shares.

  Returns:
    {by, how, keys: {key: {before, after: numbers of rows, weight_after: their sum of weights,
    target: share}}, why: the targets in words}.
  """
  kept = _pairs(ledger)
  keys = [_key(ledger, i, options.resample_by) for i in kept]
  if options.resample_by == "length":
    sizes = lengths([ledger.examples[i] for i in kept])
    keys = [length_bucket(int(c), int(r)) for _, c, r in sizes]
  targets = resample.parse_targets(options.resample_to, keys)
  why = f"{options.resample_by}: target {targets}"
  if options.resample_how == "subsample":
    keep = resample.subsample(keys, targets, options.seed)
    for at, stays in enumerate(keep.tolist()):
      if not stays:
        ledger.drop(kept[at], "resampled", f"{options.resample_by} {keys[at]!r} is over its share")
  else:
    for at, factor in enumerate(resample.weights(keys, targets).tolist()):
      ledger.reweigh(kept[at], "reweighed", f"{options.resample_by} {keys[at]!r}", factor)
  of_key = dict(zip(kept, keys, strict=True))
  counts = collections.Counter(keys)
  left, weight = collections.Counter(), collections.Counter()
  for i in _pairs(ledger):
    left[of_key[i]] += 1
    weight[of_key[i]] += ledger.examples[i].weight
  table = {
    name: {
      "before": counts[name],
      "after": left[name],
      "weight_after": round(weight[name], 6),
      "target": targets[name],
    }
    for name in sorted(counts)
  }
  return {"by": options.resample_by, "how": options.resample_how, "keys": table, "why": why}


def _key(ledger: Ledger, index: int, by: str) -> str:
  """A row's key to resample by: its source, or a column's value; '' for 'length'.

  The caller replaces the keys for 'length' by buckets.

  Raises:
    DataError: the row's value is neither a string nor a whole number.
  """
  if by == "length":
    return ""
  if by == "source":
    return ledger.examples[index].source
  row = ledger.rows[index]
  value = row.get(by)
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise DataError(
      f"{ledger.examples[index].origin}: {by!r} is {shown(value)}; expected a text or whole number "
      f"to resample by. Columns: {sorted(row)}; or 'source', or 'length'"
    )
  return str(value)


def table(report: dict[str, Any]) -> str:
  """Formats the main numbers of the report that `curate` returns as lines to read."""
  rows = report["rows"]
  lines = [
    f"{rows['read']} rows read = {rows['kept']} kept + {rows['dropped']} dropped; "
    f"{rows['changed']} of the kept changed"
  ]
  for what in ("dropped", "changed", "noted"):
    lines += [f"  {what:<8}{count:>7}  {reason}" for reason, count in report[what].items()]
  if noise := report["denoise"]:
    low, high = noise["interval"]
    surest = f"{noise['disagreement_of_surest_tenth']:.3f}"
    if noise["surest_interval"]:
      surest += " [{:.3f}, {:.3f}]".format(*noise["surest_interval"])
    lines += [
      f"denoise: out of fold {noise['accuracy']:.3f} [{low:.3f}, {high:.3f}] agree; of the surest "
      f"tenth ({noise['surest_pairs']} pairs) {surest} disagree; {noise['flagged']} flagged",
      f"  that is the share of wrong labels if {noise['assumes']}; judges who err on close pairs "
      "are wrong more often, and there is no bound",
    ]
  if done := report["resample"]:
    lines.append(f"resampled by {done['by']} ({done['how']})")
    lines += [
      f"  {name}: {k['before']} -> {k['after']} rows, weight {k['weight_after']:g}, target "
      f"{k['target']:.3f}"
      for name, k in done["keys"].items()
    ]
  for source, entry in report["coverage"]["after"]["sources"].items():
    w = entry["words"]
    lines.append(
      f"source {source}: {entry['rows']} rows, words {w['prompt']:g} prompt / {w['chosen']:g} "
      f"chosen / {w['rejected']:g} rejected, longer chosen {entry['longer_chosen']:.3f}"
    )
  languages = report["coverage"]["after"]["languages"]
  lines.append("languages (guessed): " + ", ".join(f"{k} {v}" for k, v in languages.items()))
  took = report["seconds"]
  lines.append(f"seconds: {', '.join(f'{k} {v:.1f}' for k, v in took.items())}")
  return "\n".join(lines)
