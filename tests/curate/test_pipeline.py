"""The whole pipeline: planted faults are found, counts add up, and the output reads back."""

import dataclasses
import itertools
import json

import pytest

from rm_jax.curate import ledger as ledgers
from rm_jax.curate import pipeline
from rm_jax.curate.coverage import coverage, length_bucket, parts_early
from rm_jax.curate.scorers import ContentModel
from rm_jax.data.dialogue import parse_dialogue
from rm_jax.data.formats import load
from rm_jax.data.report import DataError, Report
from rm_jax.types import Example
from tests.curate.planted import measure, plant


@pytest.mark.slow
def test_planted_faults_are_found(tmp_path):
  """The bounds are over 3 standard errors at n = 2000 below the values measured at n = 4000.

  The measured values stand beside them. Copies are found by their text, so only near ones below the
  threshold are missed, as when one word of a short answer changes. Flips are found by a
  logistic regression that is right in 0.74 of the pairs: it finds few, with a high precision.
  """
  table, report = measure(tmp_path, n=2000, denoise_threshold=0.1)
  share = {f: m["found"] / m["planted"] for f, m in table.items()}
  precision = {f: m["found"] / m["flagged"] for f, m in table.items()}
  assert share["exact"] == precision["exact"] == 1.0
  assert share["reversed"] == precision["reversed"] == 1.0
  assert share["heldout"] >= 0.95  # 1.000
  assert precision["heldout"] >= 0.95  # 1.000
  assert share["near"] >= 0.75  # 0.930
  assert precision["near"] >= 0.95  # 1.000
  assert share["flip"] >= 0.05  # 0.170
  assert precision["flip"] >= 0.3  # 0.680; chance is 0.05
  assert 0.02 <= report["denoise"]["disagreement_of_surest_tenth"] <= 0.2  # 0.078, planted 0.05
  rows, noise = report["rows"], report["denoise"]
  # The scorer's own errors are most of the joint's estimate, so the surest tenth sets the count.
  assert noise["noise_rate"] > noise["disagreement_of_surest_tenth"]
  assert noise["estimated_count"] == round(noise["disagreement_of_surest_tenth"] * rows["kept"])
  assert rows["read"] == 2000 + 50 + 50 + 40
  assert sum(report["dropped"].values()) == len(report["listed"]["dropped"]) == rows["dropped"]
  entries = [e for e in report["listed"]["dropped"] if e["reason"] == "in_heldout"]
  assert all(f"with {tmp_path}/held.jsonl:" in e["detail"] for e in entries)
  json.dumps(report, allow_nan=False)
  assert "at most" not in pipeline.table(report)
  assert f"if {noise['assumes']}" in pipeline.table(report)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
  folder = tmp_path_factory.mktemp("faulty")
  rows, _, held = plant(300)
  for i, row in enumerate(rows):
    row["topic"] = "odd" if i % 3 else "even"
  bad = [{"prompt": "p", "chosen": "x", "rejected": "x"}, {"prompt": "", "chosen": "a"}]
  lines = [json.dumps(row) for row in [*rows, *bad]] + ["{oops"]
  (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
  (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
  return folder


PATHS = [
  dict(zip(("duplicates", "reversed", "sides", "early"), values, strict=True))
  for values in itertools.product(
    ("keep", "drop"), ("keep_all", "keep_first", "drop_both"), ("keep", "drop_near"), ("drop",)
  )
] + [
  {"denoise": policy, "denoise_by": by, "denoise_threshold": 0.4}
  for policy in ("none", "drop", "flip", "downweight")
  for by in ("threshold", "count")
] + [
  {"resample_by": by, "resample_how": how}
  for by in ("source", "length", "topic")
  for how in ("subsample", "weights")
] + [
  {"denoise": "flip", "denoise_threshold": 0.4, "resample_by": "topic",
   "resample_to": "odd=0.5,even=0.5"},
  {"denoise": "downweight", "denoise_threshold": 0.4, "resample_by": "topic",
   "resample_how": "weights"},
  {"near": 0.0, "sides_similarity": 0.0, "contamination_part": "either"},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("options", PATHS, ids=lambda o: ",".join(map(str, o.values())))
def test_counts_add_up_on_every_path(faulty, tmp_path, options):
  book = ledgers.read(faulty / "rows.jsonl")
  originals = [dict(row) for row in book.rows]
  origins = [e.origin for e in book.examples]
  heldout = load(faulty / "held.jsonl", report=Report())
  scorer = ContentModel(bits=14) if "denoise" in options else None
  report = pipeline.curate(book, pipeline.Options(**options), heldout=heldout, scorer=scorer)
  rows = report["rows"]
  assert rows["read"] == 300 + 8 + 8 + 6 + 3 == rows["kept"] + rows["dropped"]
  dropped = [entry["origin"] for entry in report["listed"]["dropped"]]
  assert len(set(dropped)) == len(dropped) == rows["dropped"] == sum(report["dropped"].values())
  for name in ("changed", "noted"):
    assert len(report["listed"][name]) == sum(report[name].values())
  kept = [origins[i] for i in book.kept]
  assert set(kept) | set(dropped) == {f"{faulty}/rows.jsonl:{i + 1}" for i in range(rows["read"])}
  changed = {entry["origin"] for entry in report["listed"]["changed"]}
  assert rows["changed"] == len(changed & set(kept))
  ledgers.write(tmp_path / "out.jsonl", book)
  written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
  expected = [(origins[i], originals[i]) for i in book.kept]
  for row, (origin, original) in zip(written, expected, strict=True):
    assert (row == original) == (origin not in changed)
  assert len(load(tmp_path / "out.jsonl", report=Report(strict=True))) == rows["kept"]
  json.dumps(report, allow_nan=False)
  assert f"{rows['read']} rows read" in pipeline.table(report)


@pytest.mark.parametrize("how", ["subsample", "weights"])
def test_the_report_says_what_was_resampled_by(faulty, how):
  options = pipeline.Options(duplicates="keep", resample_by="source", resample_how=how)
  report = pipeline.curate(ledgers.read(faulty / "rows.jsonl"), options)
  assert (report["resample"]["by"], report["resample"]["how"]) == ("source", how)
  assert f"\nresampled by source ({how})\n" in pipeline.table(report)


def test_what_is_written_is_clean_the_next_time(faulty, tmp_path):
  book = ledgers.read(faulty / "rows.jsonl")
  heldout = load(faulty / "held.jsonl", report=Report())
  pipeline.curate(book, pipeline.Options(), heldout=heldout)
  ledgers.write(tmp_path / "out.jsonl", book)
  again = ledgers.read(tmp_path / "out.jsonl")
  report = pipeline.curate(again, pipeline.Options(), heldout=heldout)
  assert report["rows"]["dropped"] == 0


def test_flips_and_weights_are_in_the_rows(faulty):
  for policy in ("flip", "downweight"):
    book = ledgers.read(faulty / "rows.jsonl")
    before = {e.origin: row for e, row in zip(book.examples, book.rows, strict=True)}
    options = pipeline.Options(denoise=policy, denoise_threshold=0.4, denoise_weight=0.25)
    report = pipeline.curate(book, options, scorer=ContentModel(bits=14))
    changed = [entry["origin"] for entry in report["listed"]["changed"]]
    assert len(changed) == report["denoise"]["flagged"] > 0
    after = {e.origin: row for e, row in zip(book.examples, book.rows, strict=True)}
    for origin in changed:
      old, new = before[origin], after[origin]
      if policy == "flip":
        assert (new["chosen"], new["rejected"]) == (old["rejected"], old["chosen"])
      else:
        assert new == {**old, "weight": 0.25}


def test_a_contradiction_names_the_other_row(faulty):
  book = ledgers.read(faulty / "rows.jsonl")
  report = pipeline.curate(book, pipeline.Options(reversed="drop_both"))
  entries = [e for e in report["listed"]["dropped"] if e["reason"] == "contradictory"]
  assert len(entries) == 12
  of = {e["origin"]: e["detail"].split(" has ")[0] for e in entries}
  assert all(of[of[origin]] == origin for origin in of)
  book = ledgers.read(faulty / "rows.jsonl")
  report = pipeline.curate(book, pipeline.Options(reversed="keep_first"))
  entries = [e for e in report["listed"]["dropped"] if e["reason"] == "contradictory"]
  later = [int(e["origin"].rpartition(":")[2]) for e in entries]
  earlier = [int(e["detail"].split(" has ")[0].rpartition(":")[2]) for e in entries]
  assert len(entries) == report["noted"]["contradicted"] == 6
  assert all(a < b for a, b in zip(earlier, later, strict=True))


@pytest.mark.parametrize("policy", ["drop_both", "keep_first"])
def test_a_row_that_contradicts_two_goes_once(policy):
  def edited(text, at):
    w = text.split()
    return " ".join("other" if i in at else word for i, word in enumerate(w))

  letters = "abcdefghij"
  c, r = (" ".join(side + a + b for a in letters[:4] for b in letters) for side in "cr")
  rows = [
    {"prompt": "p", "chosen": c, "rejected": r},
    # Both are near the reverse of the first, at (38 - 6) / (38 + 6), and not near each other.
    {"prompt": "p", "chosen": edited(r, (5, 15)), "rejected": edited(c, (5, 15))},
    {"prompt": "p", "chosen": edited(r, (25, 35)), "rejected": edited(c, (25, 35))},
  ]
  book = ledgers.Ledger(
    rows,
    [
      Example("p", (x["chosen"], x["rejected"]), (1.0, 0.0), origin=f"f:{i}", conversation="p")
      for i, x in enumerate(rows)
    ],
  )
  report = pipeline.curate(book, pipeline.Options(reversed=policy, allow_large_drop=True))
  gone = [e["origin"] for e in report["listed"]["dropped"]]
  assert sorted(gone) == (["f:0", "f:1", "f:2"] if policy == "drop_both" else ["f:1", "f:2"])


@pytest.mark.parametrize(
  ("options", "dropped"),
  [
    ({"reversed": "drop_both"}, {"f:0": "contradictory", "f:1": "exact_duplicate"}),
    (
      {"reversed": "drop_both", "duplicates": "keep"},
      dict.fromkeys(("f:0", "f:1"), "contradictory"),
    ),
    ({"reversed": "keep_first", "duplicates": "keep"}, {}),
  ],
)
def test_what_contradicts_a_row_contradicts_its_copies(options, dropped):
  """Copies that are kept do not escape: they have the label that is contradicted too."""
  sides = [("a", "b"), ("a", "b"), ("b", "a"), ("c", "d")]
  book = ledgers.Ledger(
    [{"prompt": "p", "chosen": x, "rejected": y} for x, y in sides],
    [
      Example("p", pair, (1.0, 0.0), origin=f"f:{i}", conversation="p")
      for i, pair in enumerate(sides)
    ],
  )
  report = pipeline.curate(book, pipeline.Options(allow_large_drop=True, **options))
  found = {e["origin"]: e["reason"] for e in report["listed"]["dropped"]}
  assert found == {**dropped, "f:2": "contradictory"}


def test_early_parting_is_noted_or_dropped(tmp_path):
  hi = "\n\nHuman: hi\n\nAssistant: "
  row = {"chosen": f"{hi}a\n\nHuman: c\n\nAssistant: d", "rejected": f"{hi}b"}
  fine = {"chosen": f"{hi}a", "rejected": f"{hi}b"}
  (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(fine) + "\n")
  for policy, where in (("keep", "noted"), ("drop", "dropped")):
    book = ledgers.read(tmp_path / "in.jsonl")
    report = pipeline.curate(book, pipeline.Options(early=policy))
    assert report[where] == {"parts_early": 1}
    assert report["listed"][where][0]["origin"].endswith("in.jsonl:1")


def test_options_refuse():
  for wrong, message in (
    ({"early": "maybe"}, "early is 'maybe'; expected one of keep, drop"),
    ({"near": 1.0}, r"near is 1.0; expected it in \[0, 1\)"),
    ({"near": -0.1}, r"near is -0.1; expected it in \[0, 1\)"),
    ({"sides_similarity": 1.5}, r"sides_similarity is 1.5; expected it in \[0, 1\]"),
    ({"contamination_share": 0.0}, r"contamination_share is 0.0; expected it in \(0, 1\]"),
    ({"contamination_share": float("nan")}, r"contamination_share is nan; expected it in \(0, 1\]"),
    ({"denoise_threshold": 0.0}, r"denoise_threshold is 0.0; expected it in \(0, 0.5\]"),
    ({"denoise_threshold": 0.6}, r"denoise_threshold is 0.6; expected it in \(0, 0.5\]"),
    ({"denoise_weight": 1.0}, r"denoise_weight is 1.0; expected it in \[0, 1\)"),
    ({"folds": 1}, "folds is 1; expected at least 2"),
    ({"shingle": 0}, "shingle is 0; expected at least 1"),
    ({"contamination_n": 0}, "contamination_n is 0; expected at least 1"),
    ({"resample_to": "a"}, "resampling targets 'a': 'a'; expected 'equal' or KEY=SHARE"),
    ({"resample_to": "a=0.5,b=0.4"}, "sum to 0.9; expected shares, sum 1"),
  ):
    with pytest.raises(DataError, match=message):
      pipeline.Options(**wrong)
  pipeline.Options(near=0, contamination_share=1, denoise_threshold=0.5, denoise_weight=0)


def test_what_is_no_pair_stays_and_is_counted(tmp_path):
  def row(responses, **more):
    return {"prompt": "why so", "responses": responses} | more

  rankings = [
    row(["a b", "c"], scores=[1, 3]),
    row(["c", "a b"], scores=[2, 0]),  # the same judgement
    row(["a b", "c"], scores=[3, 1]),  # contradicts both
    row(["a b", "c", "d"], scores=[3, 1, 2]),
    row(["a b", "c", "d"], scores=[3, 1, 2]),
    {**row(["e", "f g h i"], scores=[1, 2]), "prompt": "how"},
  ]
  (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rankings))
  book = ledgers.read(tmp_path / "in.jsonl")
  report = pipeline.curate(book, pipeline.Options(allow_large_drop=True))
  assert report["dropped"] == {"exact_duplicate": 1, "contradictory": 2}
  assert report["noted"] == {"no_pair": 2}
  assert report["listed"]["noted"][0]["detail"] == "3 responses (ranking); only pairs are curated"
  assert book.kept == [3, 4, 5]
  # 'e' is not the chosen one of ('e', 'f g h i'): 4 words against 1.
  assert report["coverage"]["after"]["length_buckets"] == {"1..10": 1}
  ledgers.write(tmp_path / "out.jsonl", book)
  written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
  assert written == rankings[3:]
  outcomes = [row(["a", "b"], labels=[True, False])]
  (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in outcomes))
  with pytest.raises(DataError, match=r"in.jsonl:1: 2 responses \(outcome\); only pairs .* no row"):
    pipeline.curate(ledgers.read(tmp_path / "in.jsonl"), pipeline.Options())


def test_resampling_leaves_what_is_no_pair(tmp_path):
  rows = [
    {"prompt": f"q {i}", "responses": list("abc"[: 3 - i % 2]), "ranks": [1, 2, 3][: 3 - i % 2],
     "of": "xy"[i % 4 == 1]}
    for i in range(12)
  ]  # fmt: skip
  (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  book = ledgers.read(tmp_path / "in.jsonl")
  report = pipeline.curate(
    book, pipeline.Options(resample_by="of", resample_to="x=0,y=1", near=0, duplicates="keep")
  )
  assert report["dropped"] == {"resampled": 3}
  assert book.kept == [0, 1, 2, 4, 5, 6, 8, 9, 10]


def test_sides_are_compared_by_the_shingle_of_the_options():
  sides = ("one two three four five six", "six five four three two one")
  book = ledgers.Ledger(
    [{"prompt": "p", "chosen": sides[0], "rejected": sides[1]}],
    [Example("p", sides, (1.0, 0.0), origin="f:0")],
  )
  assert pipeline.curate(book, pipeline.Options(shingle=3))["noted"] == {}
  report = pipeline.curate(book, pipeline.Options(shingle=1))
  assert report["noted"] == {"sides_near": 1}
  assert report["listed"]["noted"][0]["detail"].startswith("Jaccard of chosen and rejected 1.000")


def test_a_contamination_says_what_its_share_is_of():
  words = ["".join(p) for p in itertools.permutations("abcdefg", 5)]
  texts = [" ".join(words[at : at + 30]) for at in range(0, 1500, 30)]
  changed = " ".join("other" if i == 15 else w for i, w in enumerate(texts[40].split()))
  template = "Here is a question that you are to answer in one sentence and with no more: {}"

  def examples(texts, name):
    return [
      Example(template.format(t), ("yes", "no"), (1.0, 0.0), origin=f"{name}:{i}")
      for i, t in enumerate(texts)
    ]

  train, held = examples([*texts[:40], texts[41], changed], "f"), examples(texts[40:], "h")
  book = ledgers.Ledger([{}] * len(train), train)
  options = pipeline.Options(near=0, sides_similarity=0, contamination_share=0.8)
  report = pipeline.curate(book, options, heldout=held)
  details = [e["detail"] for e in report["listed"]["dropped"]]
  assert details == [
    "its prompt shares 23 8-grams with h:1, 1.000 of the shorter one",
    "its prompt shares 15 8-grams with h:0, 0.967 of the words of the shorter one",
  ]


def test_curate_refuses(faulty, tmp_path):
  lists = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}
  (tmp_path / "lists.jsonl").write_text(json.dumps(lists) + "\n")
  with pytest.raises(DataError, match=r"lists.jsonl:1: 3 responses \(\w+\); only pairs"):
    pipeline.curate(ledgers.read(tmp_path / "lists.jsonl"), pipeline.Options())
  book = ledgers.read(faulty / "rows.jsonl")
  with pytest.raises(DataError, match="denoise is 'drop' and there is no scorer"):
    pipeline.curate(book, pipeline.Options(denoise="drop"))
  with pytest.raises(DataError, match=r"rows.jsonl:1: 'subject' is None; .* Columns: \['chosen'"):
    pipeline.curate(book, pipeline.Options(resample_by="subject"))


def hh(chosen, rejected):
  sides = [parse_dialogue(f"\n\nHuman: hi\n\nAssistant: {s}") for s in (chosen, rejected)]
  return Example(sides[0][:1], (sides[0][1:], sides[1][1:]), (1.0, 0.0), source="s")


def test_early_parting():
  assert not parts_early(hh("a", "b"))
  assert parts_early(hh("a\n\nHuman: c\n\nAssistant: d", "b"))
  assert parts_early(Example("p", (" a", " b\n\nHuman: c\n\nAssistant: d"), (1.0, 0.0)))
  assert not parts_early(Example("\n\nHuman: p", (" a", " b"), (1.0, 0.0)))


@pytest.mark.parametrize("form", ["messages", "text"])
def test_sides_that_share_their_first_turns_do_not_part_early(form):
  def turns(*contents):
    if form == "text":
      marks = (" ", "\n\nHuman: ", "\n\nAssistant: ")
      return "".join(m + c for m, c in zip(marks, contents, strict=False))
    roles = ("assistant", "user", "assistant")
    return tuple({"role": role, "content": c} for role, c in zip(roles, contents, strict=False))

  def early(one, other):
    return parts_early(Example("p", (turns(*one), turns(*other)), (1.0, 0.0)))

  assert not early(("a", "u", "x"), ("a", "u", "y"))
  assert early(("a", "u", "x"), ("b", "u", "y"))
  assert early(("a", "u", "x"), ("a", "v", "y"))
  assert early(("a", "u", "x"), ("a",))
  assert early(("a", "u"), ("a",))
  assert early(("", "u"), ("b",))


def test_coverage():
  examples = [
    hh("one two three", "the the"),
    hh("the", "one two"),
    dataclasses.replace(hh("a b", "c d"), source="t"),
  ]
  found = coverage(examples)
  assert found["sources"]["s"] == {
    "rows": 2,
    "conversations": 1,
    "words": {"prompt": 1.0, "chosen": 2.0, "rejected": 2.0},
    "longer_chosen": 0.5,
  }
  assert found["sources"]["t"]["longer_chosen"] == 0.5  # Equal lengths count half.
  assert found["length_buckets"] == {"1..10": 1, "-10..-1": 1, "0": 1}
  assert found["words"]["chosen"]["max"] == 3
  assert coverage([])["sources"] == {}


def test_coverage_reads_the_label_of_a_pair():
  long, short = "of three words", "one"
  soft = Example("p", (long, short), (0.2, 0.8), pairs=((0.0, 0.2), (0.8, 0.0)), source="s")
  tie = Example("p", (long, short), (0.0, 0.0), ties=((0.0, 1.0), (1.0, 0.0)), source="t")
  found = coverage([soft, tie])["sources"]
  assert found["s"]["words"] == {"prompt": 1.0, "chosen": 1.0, "rejected": 3.0}
  assert (found["s"]["longer_chosen"], found["t"]["longer_chosen"]) == (0.0, 0.5)


@pytest.mark.parametrize(
  ("other", "differs"), [("42", 0), ("Да 是 ab", 0), ("Это на русском языке", 1)]
)
def test_no_letters_and_mixed_ones_are_no_language(other, differs):
  english = Example("p", (other, "It is what you and I can do in that"), (1.0, 0.0))
  assert coverage([english])["language_differs"] == differs


def test_length_buckets():
  names = [length_bucket(60 + d, 60) for d in (-51, -50, -11, -10, -1, 0, 1, 10, 11, 50, 51)]
  low = ["<-50", "-50..-11", "-50..-11", "-10..-1", "-10..-1"]
  assert names == [*low, "0", "1..10", "1..10", "11..50", "11..50", ">=51"]
  with pytest.raises(ValueError, match="increasing"):
    length_bucket(1, 2, (0, 0))


def test_a_rule_that_drops_more_than_half_stops(tmp_path):
  row = {"prompt": "why", "chosen": "a b", "rejected": "c"}
  rows = [row, row, row, {**row, "prompt": "how"}]
  (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  kept = pipeline.curate(ledgers.read(tmp_path / "in.jsonl"), pipeline.Options())
  assert kept["rows"]["kept"] == 2  # Two of four are not more than half.
  assert kept["stopped"] is None
  rows = [row, row, row]
  (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  book = ledgers.read(tmp_path / "in.jsonl")
  with pytest.raises(
    pipeline.LargeDropError, match=r"^duplicates would drop 2 of 3 rows.*--allow_large_drop"
  ) as caught:
    pipeline.curate(book, pipeline.Options())
  report = caught.value.report
  assert report["stopped"] == {"rule": "duplicates", "dropped": 2, "of": 3}
  assert len(report["listed"]["dropped"]) == 2
  json.dumps(report, allow_nan=False)
  book = ledgers.read(tmp_path / "in.jsonl")
  report = pipeline.curate(book, pipeline.Options(allow_large_drop=True))
  assert report["rows"]["kept"] == 1
  # Each rule is judged by the rows that the ones before it left.
  other = {**row, "chosen": "c", "rejected": "a b"}
  (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
  with pytest.raises(
    pipeline.LargeDropError, match=r"^reversed \(contradictions\) would drop 2 of 2"
  ):
    pipeline.curate(ledgers.read(tmp_path / "in.jsonl"), pipeline.Options())
  held = [Example("why", ("x", "y"), (1.0, 0.0))]
  (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
  with pytest.raises(pipeline.LargeDropError, match=r"^contamination would drop 1 of 1 rows"):
    pipeline.curate(ledgers.read(tmp_path / "in.jsonl"), pipeline.Options(), heldout=held)


@pytest.mark.parametrize("policy", ["drop_both", "keep_first"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_near_duplicate_does_not_hide_an_exact_contradiction(policy, beside):
  """The second row is near the first; the third has its very texts, the label turned round."""
  said = "please tell me how tall the tower in the old town is, for my {} on famous buildings"
  a, b = (
    "It is about three hundred metres tall, they say.",
    "Nobody in this town knows that at all.",
  )
  texts = [("homework", a, b)] * beside + [("essay", a, b), ("essay", b, a)]
  rows = [{"prompt": said.format(x), "chosen": c, "rejected": r} for x, c, r in texts]
  examples = [
    Example(
      r["prompt"], (r["chosen"], r["rejected"]), (1.0, 0.0), origin=f"f:{i}", conversation="p"
    )
    for i, r in enumerate(rows)
  ]
  book = ledgers.Ledger(rows, examples)
  options = pipeline.Options(reversed=policy, allow_large_drop=True)
  report = pipeline.curate(book, options)
  dropped = {e["origin"]: e["reason"] for e in report["listed"]["dropped"]}
  assert dropped[f"f:{len(rows) - 1}"] == "contradictory"
  if beside:
    assert dropped["f:1"] == "near_duplicate"
