"""Benchmarks of whole responses: RM-Bench, JudgeBench, LLMBar, and GSM8K's best of four."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rm_jax.audit.benchmarks.figures import (
  absent,
  by_subset,
  finite,
  one_hot,
  published,
  rate_of,
  response_scores,
)
from rm_jax.audit.benchmarks.items import Benchmark, Item, load_items, make_item, split_name
from rm_jax.audit.scorer import Score
from rm_jax.data import formats
from rm_jax.data.dialogue import choice_of
from rm_jax.data.read import File, Row
from rm_jax.data.report import DataError, Report, RowError, shown
from rm_jax.heldout import pointwise

DOMAINS = ("chat", "math", "code", "safety")
_RM_SUBSETS = ("chat", "code", "math", "safety-refuse", "safety-response")
_STYLES = 3  # concise, detailed in plain text, detailed with Markdown

# JudgeBench's categories -> what the names of their sources begin with.
CATEGORIES = {
  "knowledge": "mmlu-pro",
  "reasoning": "livebench-reasoning",
  "math": "livebench-math",
  "coding": "livecodebench",
}

ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
_LLMBAR = ("Natural", *ADVERSARIAL)


# RM-Bench.


def load_rm_bench(*paths: str | os.PathLike, messages: bool, report: Report) -> list[Item]:
  """RM-Bench (Liu et al. 2025): prompt, chosen [3], rejected [3], domain; see `Benchmark.load`.

  The three responses of each list are concise, detailed, and detailed with Markdown, in this order.
  Files of a single domain have no column `domain`; the domain is the file's name, without an ending
  '_filtered'. If one of the files is total_dataset.json, the others are not read.
  """
  convert = functools.partial(_styles, messages=messages)
  return load_items(paths, report, ("prompt", "chosen", "rejected"), convert, _domains)


def _domains(found: Sequence[File]) -> list[str | None]:
  names = [split_name(file) for file in found]
  if "total_dataset" in names:
    return ["" if name == "total_dataset" else None for name in names]
  return [name.removesuffix("_filtered") for name in names]


def _styles(row: Row, origin: str, name: str, *, messages: bool) -> Iterator[Item]:
  domain = row.get("domain", name)
  if domain not in _RM_SUBSETS:
    found = f"'domain' (or the file's name) is {shown(domain)}"
    raise RowError("out_of_range", f"{found}; expected one of {', '.join(_RM_SUBSETS)}")
  for side in ("chosen", "rejected"):
    if not isinstance(row[side], list) or len(row[side]) != _STYLES:
      raise RowError("lengths_differ", f"{side!r} is {shown(row[side])}; expected a list of three")
  yield make_item(
    row["prompt"],
    (*row["chosen"], *row["rejected"]),
    (1, 1, 1, 0, 0, 0),
    subset=domain,
    origin=origin,
    messages=messages,
  )


def evaluate_rm_bench(
  score: Score, items: Sequence[Item], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
  """RM-Bench's average: the mean of four domains; see `Benchmark.evaluate`.

  Cell (i, j) of a matrix is the rate at which the chosen response in style i scores higher than the
  rejected one in style j; a tie does not count. Hard is the mean of the cells above the diagonal,
  where the rejected response is in the fancier style, normal that of the diagonal, easy that of the
  cells below it. Each of the three has three cells, so a domain's average is the mean of all nine.
  The two parts of safety are pooled, as in the authors' scripts/utils.py. In `subsets` an item
  counts once, with the mean of its nine comparisons.

  Returns:
    what `Benchmark.evaluate` says, with `easy`, `normal`, `hard` and `matrix` (3 x 3), which are
    means over the domains (None if one is missing), and `domains` {name: {easy, normal, hard,
    average}}. If there are both parts of safety, `subsets` has them together, too.
  """
  scores = np.stack(response_scores(score, items))
  wins = (scores[:, :_STYLES, None] > scores[:, None, _STYLES:]).astype(np.float64)
  member = one_hot([item.subset.split("-")[0] for item in items], DOMAINS)
  cells = (member[:, :, None] * wins.reshape(-1, 1, 9)).reshape(len(items), -1)

  def matrices(sums: np.ndarray) -> np.ndarray:
    """Sums of terms [...] -> the cells of each domain's matrix [..., domain, 9]."""
    n = sums[..., -len(DOMAINS) :, None]
    return sums[..., : -len(DOMAINS)].reshape(*sums.shape[:-1], len(DOMAINS), 9) / n

  terms = np.concatenate([cells, member], axis=1)
  figure = published(
    terms,
    [item.example.conversation for item in items],
    lambda sums: matrices(sums).mean((-2, -1)),
    [d for d, n in zip(DOMAINS, member.sum(axis=0), strict=True) if not n],
    resamples=resamples,
    seed=seed,
  )
  with np.errstate(invalid="ignore"):
    by_domain = matrices(terms.sum(axis=0)).reshape(-1, _STYLES, _STYLES)
  mean = by_domain.mean(axis=0)
  subsets = by_subset(items, wins.mean((1, 2)), seed=seed)
  if len({name for name in subsets if name.startswith("safety")}) == 2:
    safety = member[:, DOMAINS.index("safety")] > 0
    subsets["safety"] = rate_of(items, wins.mean((1, 2)), safety, seed=seed)
  return {
    "benchmark": "rm_bench",
    **figure,
    "n": len(items),
    "subsets": subsets,
    **_levels(mean),
    "matrix": [[finite(x) for x in row] for row in mean],
    "domains": {
      name: {**_levels(one), "average": finite(one.mean())}
      for name, one in zip(DOMAINS, by_domain, strict=True)
    },
  }


def _levels(matrix: np.ndarray) -> dict[str, float | None]:
  """{easy, normal, hard} of a matrix [3, 3], chosen style by rejected style."""
  i, j = np.indices(matrix.shape)
  return {
    "easy": finite(matrix[i > j].mean()),
    "normal": finite(matrix[i == j].mean()),
    "hard": finite(matrix[i < j].mean()),
  }


# JudgeBench.


def load_judgebench(*paths: str | os.PathLike, messages: bool, report: Report) -> list[Item]:
  """JudgeBench (Tan et al. 2024): pair_id, source, question, response_A, response_B, label.

  The label is 'A>B' or 'B>A'. The published numbers are of one of its two splits, not of both
  together: of 'gpt', with responses by GPT-4o, or of 'claude', with responses by Claude.
  """
  needs = ("pair_id", "source", "question", "response_A", "response_B", "label")
  return load_items(paths, report, needs, functools.partial(_judged, messages=messages))


def _judged(row: Row, origin: str, _: str, *, messages: bool) -> Iterator[Item]:
  labels = choice_of(row["label"], {"A>B": (1, 0), "B>A": (0, 1)}, "label")
  source = row["source"]
  starts = [c for c, start in CATEGORIES.items() if str(source).startswith(start)]
  if not starts:
    known = ", ".join(CATEGORIES.values())
    raise RowError("out_of_range", f"'source' is {shown(source)}; expected one of {known}")
  yield make_item(
    row["question"],
    (row["response_A"], row["response_B"]),
    labels,
    subset=starts[0],
    origin=origin,
    messages=messages,
    id=str(row["pair_id"]),
  )


def evaluate_judgebench(
  score: Score, items: Sequence[Item], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
  """JudgeBench's accuracy over all pairs; see `Benchmark.evaluate`.

  The authors' reward-model judges (utils/judges.py, --single_game) choose A if A scores higher,
  else B. So B is chosen in a tie, whether it is right or not; the report's `ties` is the number of
  tied pairs.
  """
  scores = response_scores(score, items)
  says_a = np.asarray([s[0] > s[1] for s in scores])
  is_a = np.asarray([item.example.labels[0] > 0 for item in items])
  credit = (says_a == is_a).astype(np.float64)
  figure = _mean(items, credit, resamples, seed, absent(items, tuple(CATEGORIES)))
  return {
    "benchmark": "judgebench",
    **figure,
    "n": len(items),
    "subsets": by_subset(items, credit, seed=seed),
    "ties": int(sum(s[0] == s[1] for s in scores)),
  }


def _mean(
  items: Sequence[Item], credit: np.ndarray, resamples: int, seed: int, missing: Sequence[str]
) -> dict[str, Any]:
  terms = np.stack([credit, np.ones(len(items))], axis=1)
  clusters = [item.example.conversation for item in items]
  return published(
    terms, clusters, lambda s: s[..., 0] / s[..., 1], missing, resamples=resamples, seed=seed
  )


# LLMBar.


def load_llmbar(*paths: str | os.PathLike, messages: bool, report: Report) -> list[Item]:
  """LLMBar (Zeng et al. 2024): input, output_1, output_2, label 1 or 2; see `Benchmark.load`.

  The subset is part of the file's name (Adversarial_Neighbor.jsonl) or, for a dataset.json, of its
  folder's. Files of no subset (the repository's case studies and results) are passed over.
  """
  needs = ("input", "output_1", "output_2", "label")
  convert = functools.partial(_followed, messages=messages)
  return load_items(paths, report, needs, convert, lambda found: [_llmbar_subset(f) for f in found])


def _llmbar_subset(file: File) -> str | None:
  name = split_name(file)
  words = re.split(r"[_-]", file.path.parent.name if name == "dataset" else name)
  return next((word for word in words if word in _LLMBAR), None)


def _followed(row: Row, origin: str, subset: str, *, messages: bool) -> Iterator[Item]:
  label = row["label"]
  if isinstance(label, bool) or label not in (1, 2):
    raise RowError("out_of_range", f"'label' is {shown(label)}; expected 1 or 2")
  yield make_item(
    row["input"],
    (row["output_1"], row["output_2"]),
    (label == 1, label == 2),
    subset=subset,
    origin=origin,
    messages=messages,
  )


def evaluate_llmbar(
  score: Score, items: Sequence[Item], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
  """LLMBar's average accuracy, the mean of its five subsets; see `Benchmark.evaluate`.

  A tie counts half: the authors' rating evaluators (LLMEvaluator/evaluate.py) are asked in both
  orders and choose the first response in a tie, so they are right in one of the two orders.

  Returns:
    what `Benchmark.evaluate` says, with `natural`, the accuracy of that subset; `adversarial`, the
    mean of the four adversarial subsets; and `ties`, the number of tied pairs. The averages are
    computed as in the paper's tables; the authors' code computes none.
  """
  scores = response_scores(score, items)
  good = [int(np.argmax(item.example.labels)) for item in items]
  margins = np.asarray([s[g] - s[1 - g] for s, g in zip(scores, good, strict=True)])
  credit = (margins > 0) + 0.5 * (margins == 0)
  member = one_hot([item.subset for item in items], _LLMBAR)
  terms = np.concatenate([member * credit[:, None], member], axis=1)

  def rates(sums: np.ndarray) -> np.ndarray:
    return sums[..., : len(_LLMBAR)] / sums[..., len(_LLMBAR) :]

  figure = published(
    terms,
    [item.example.conversation for item in items],
    lambda sums: rates(sums).mean(-1),
    absent(items, _LLMBAR),
    resamples=resamples,
    seed=seed,
  )
  with np.errstate(invalid="ignore"):
    means = rates(terms.sum(axis=0))
  return {
    "benchmark": "llmbar",
    **figure,
    "n": len(items),
    "subsets": by_subset(items, credit, seed=seed),
    "natural": finite(means[0]),
    "adversarial": finite(means[1:].mean()),
    "ties": int(np.count_nonzero(margins == 0)),
  }


# GSM8K.


def load_gsm8k(*paths: str | os.PathLike, messages: bool, report: Report) -> list[Item]:
  """Four models' solutions to GSM8K's test problems (Cobbe et al. 2021); see `Benchmark.load`.

  The files are read as the training data format 'gsm8k_solutions' (`rm_jax.data.published`).
  """
  if not paths:
    raise DataError("no path; expected a file, a folder, or a data set of the hub")
  items = []
  for path in paths:
    for example in formats.load(path, report=report, format="gsm8k_solutions"):
      item = make_item(
        example.prompt.removesuffix("\n"),
        example.responses,
        example.labels,
        subset="gsm8k",
        origin=example.origin,
        messages=messages,
      )
      whole = dataclasses.replace(
        item.example, kind="outcome", authors=example.authors, answers=example.answers
      )
      items.append(dataclasses.replace(item, example=whole))
  return items


def evaluate_gsm8k(score: Score, items: Sequence[Item], *, seed: int = 0) -> dict[str, Any]:
  """How often the highest-scored of a problem's four solutions is right; see `Benchmark.evaluate`.

  Of tied solutions one would be drawn at random, so the problem counts with the share of them that
  is right. Cobbe et al. (2021) take the best of 100 samples, which are not published; this applies
  their rule to the four solutions that are published.

  Returns:
    what `Benchmark.evaluate` says, with the other figures that
    `rm_jax.heldout.pointwise.best_of_report` returns, such as `baselines` and `paired`.
  """
  scores = response_scores(score, items)
  found = pointwise.best_of_report(
    [(s, item.example) for s, item in zip(scores, items, strict=True)], seed=seed
  )
  return {
    "benchmark": "gsm8k_best_of_4",
    "score": found.pop("accuracy"),
    "interval": found.pop("interval"),
    "undefined": 0,
    "n": found.pop("n"),
    "subsets": {},
    **found,
  }


RM_BENCH = Benchmark("rm_bench", "responses", load_rm_bench, evaluate_rm_bench)
JUDGEBENCH = Benchmark("judgebench", "responses", load_judgebench, evaluate_judgebench)
LLMBAR = Benchmark("llmbar", "responses", load_llmbar, evaluate_llmbar)
GSM8K = Benchmark("gsm8k_best_of_4", "responses", load_gsm8k, evaluate_gsm8k)
