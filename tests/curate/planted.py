"""Plants known faults in pairs of the generated world, and measures what curation finds of them.

  python -m tests.curate.planted

prints, for each fault: planted, flagged, recall (share of the planted that was flagged) and
precision (share of the flagged that was planted), each with Wilson's 95 % interval.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from rm_jax.curate import ledger, pipeline
from rm_jax.curate.annotators import Judgements, biases, reliability
from rm_jax.curate.scorers import ContentModel
from rm_jax.data import formats
from rm_jax.data.report import Report
from rm_jax.metrics.interval import wilson
from rm_jax.world import World

SHARES = {"exact": 0.025, "near": 0.025, "reversed": 0.02, "heldout": 0.02, "flip": 0.05}
# Fault -> the reason by which the report lists it.
REASONS = {
  "exact": "exact_duplicate",
  "near": "near_duplicate",
  "reversed": "contradictory",
  "heldout": "in_heldout",
  "flip": "suspected_flip",
}


def respelled(text, rng):
  """The text in full-width letters and digits, with white space at its ends: equal after NFKC."""
  wide = [
    "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in w) if rng.random() < 0.3 else w
    for w in text.split(" ")
  ]
  return " \n" + " ".join(wide) + " \n"


def reworded(text, rng):
  """The text with one word in twenty, and at least one, replaced by another."""
  places = [m.span() for m in re.finditer(r"\w+", text)]
  chosen = rng.choice(len(places), max(1, len(places) // 20), replace=False)
  for at in sorted(chosen, reverse=True):
    a, b = places[at]
    text = text[:a] + "quite" + text[b:]
  return text


def as_row(example):
  return {
    "prompt": example.prompt,
    "chosen": example.responses[0],
    "rejected": example.responses[1],
  }


def plant(n, seed=0):
  """Plants the faults: (rows, fault -> numbers of its rows, held-out rows). A row has at most one.

  Both rows of a reversed pair count, because the pipeline drops both.
  """
  rng = np.random.Generator(np.random.PCG64(seed))
  world = World(judge_temperature=0.1)
  rows = [as_row(e) for e in world.pairs("train", n, seed, messages=False)]
  held = [as_row(e) for e in world.pairs("heldout", n // 5, seed, messages=False)]
  free = list(rng.permutation(n))
  planted = {}

  def take(fault):
    return [int(free.pop()) for _ in range(round(SHARES[fault] * n))]

  tagged = [(row, "") for row in rows]
  for i in take("flip"):
    tagged[i] = ({**rows[i], "chosen": rows[i]["rejected"], "rejected": rows[i]["chosen"]}, "flip")
  for i, j in zip(take("heldout"), rng.permutation(len(held)), strict=False):
    prompt = held[j]["prompt"] if rng.random() < 0.5 else reworded(held[j]["prompt"], rng)
    tagged[i] = ({**rows[i], "prompt": prompt}, "heldout")
  copies = []
  for fault in ("exact", "near", "reversed"):
    for i in take(fault):
      row = dict(rows[i])
      if fault == "exact":
        row = {column: respelled(text, rng) for column, text in row.items()}
      elif fault == "near":
        row["prompt"] = reworded(row["prompt"], rng)
      else:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        tagged[i] = (rows[i], "reversed")
      copies.append((row, fault))
  # A copy is inserted after its original, because the later of two rows is the duplicate.
  tagged += [copies[i] for i in rng.permutation(len(copies))]
  for number, (_, fault) in enumerate(tagged):
    planted.setdefault(fault, set()).add(number)
  planted.pop("")
  return [row for row, _ in tagged], planted, held


def measure(folder, n=4000, seed=0, **options):
  """fault -> {planted, flagged, found}; and the report of `pipeline.curate`."""
  rows, planted, held = plant(n, seed)
  for name, lines in (("rows", rows), ("held", held)):
    Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
  book = ledger.read(Path(folder, "rows.jsonl"))
  heldout = formats.load(Path(folder, "held.jsonl"), report=Report())
  report = pipeline.curate(
    book, pipeline.Options(**options), heldout=heldout, scorer=ContentModel()
  )
  entries = book.dropped + book.noted + book.changed
  out = {}
  for fault, numbers in planted.items():
    flagged = {int(e.origin.rpartition(":")[2]) - 1 for e in entries if e.reason == REASONS[fault]}
    found = len(flagged & numbers)
    out[fault] = {"planted": len(numbers), "flagged": len(flagged), "found": found}
  return {fault: out[fault] for fault in SHARES}, report


def judged(n=1000, seed=0, length=1.5, accuracy=(2.0, 2.0, 2.0, 2.0)):
  """Rows judged by four annotators who see the quality; the last one also prefers longer answers.

  P(first) = sigmoid(skill · quality + length · ln(words₁/words₂)). The quality is standard normal
  and independent of the length, so only the last annotator's choices correlate with length.
  """
  rng = np.random.Generator(np.random.PCG64([seed, 1]))
  quality = rng.standard_normal(n)
  words = np.round(np.exp(rng.normal(4, 0.5, (n, 2)))).astype(np.int64)
  ratio = np.log(words[:, 0] / words[:, 1])
  labels = np.zeros((n, 4), np.int64)
  for a, skill in enumerate(accuracy):
    odds = skill * quality + (length * ratio if a == 3 else 0)
    labels[:, a] = rng.random(n) > 1 / (1 + np.exp(-odds))
  names = ("plain1", "plain2", "plain3", "longer")
  origins = [f"simulated:{i}" for i in range(n)]
  return Judgements(names, labels, words, np.zeros((n, 2), np.int64), origins, origins, [], n)


def _interval(found, of):
  if not of:
    return "   -"
  low, high = wilson(found, of)
  return f"{found / of:.3f} [{low:.3f}, {high:.3f}]"


def main():
  with tempfile.TemporaryDirectory() as folder:
    for threshold in (0.1, 0.2):
      table, report = measure(folder, denoise_threshold=threshold)
      if threshold == 0.1:
        print(f"{'fault':<10}{'planted':>8}{'flagged':>8}   {'recall':<22}   precision")
      for fault, m in table.items():
        if threshold == 0.1 or fault == "flip":
          name = fault if fault != "flip" else f"flip<{threshold:g}"
          recall = _interval(m["found"], m["planted"])
          precision = _interval(m["found"], m["flagged"])
          print(f"{name:<10}{m['planted']:>8}{m['flagged']:>8}   {recall:<22}   {precision}")
  print(
    {k: report["denoise"][k] for k in ("accuracy", "noise_rate", "disagreement_of_surest_tenth")}
  )
  print(report["rows"], report["seconds"])
  judgements = judged()
  reliable = reliability(judgements)
  for name, bias in biases(judgements).items():
    length, beyond = bias["length"], bias["length"]["beyond_others"]
    slope = bias["logistic"]["length"]
    print(
      f"{name}: longer chosen {length['share']:.3f} {np.round(length['interval'], 3)}, beyond the "
      f"others {beyond['difference']:+.3f} {np.round(beyond['interval'], 3)}, slope "
      f"{slope['slope']:+.2f} {np.round(slope['interval'], 2)}, reliability "
      f"{reliable['annotators'][name]['reliability']:.3f}"
    )


if __name__ == "__main__":
  sys.exit(main())
