"""Published benchmarks: small files in their formats, with numbers by hand, and real files."""

import gzip
import itertools
import json
import math
import pathlib

import numpy as np
import pytest

from rm_jax.audit.benchmarks import BENCHMARKS
from rm_jax.audit.benchmarks.figures import published, rate
from rm_jax.audit.benchmarks.rewardbench import CORE
from rm_jax.audit.benchmarks.steps import best_threshold
from rm_jax.data.report import DataError, Report
from rm_jax.metrics import interval

DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


def last_number(rows):
  """A scorer that reads the number at the end of the response."""
  texts = [r if isinstance(r, str) else r[-1]["content"] for _, r in rows]
  return np.asarray([float(text.split()[-1]) for text in texts], np.float32)


def steps_by_number(rows):
  """A scorer of steps that reads the number at the end of each step."""
  return [np.asarray([float(s.split()[-1]) for s in row["completions"]]) for row in rows]


def longest(rows):
  return np.asarray([len(r if isinstance(r, str) else r[-1]["content"]) for _, r in rows], float)


def lines(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = "".join(json.dumps(row) + "\n" for row in rows)
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def array(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(rows, indent=2, ensure_ascii=False))


def parquet(path, rows):
  pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
  import pyarrow.parquet

  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def load(name, *paths, messages=False):
  return BENCHMARKS[name].load(*paths, messages=messages, report=Report(strict=True))


def run(name, score, *paths, messages=False, **options):
  return BENCHMARKS[name].evaluate(score, load(name, *paths, messages=messages), **options)


def pair(subset, chosen, rejected, prompt="q"):
  return {
    "id": 1,
    "prompt": prompt,
    "chosen": f"a {chosen}",
    "chosen_model": "m",
    "rejected": f"b {rejected}",
    "rejected_model": "n",
    "subset": subset,
  }


def reward_bench_rows():
  wrong = {"math-prm": (1, 2), "alpacaeval-hard": (2, 2)}  # the second is a tie
  rows = [pair(s, *wrong.get(s, (2, 1)), prompt=f"q {s}") for s in CORE]
  return [*rows, pair("hep-cpp", 3, 3)]


CHAT = (100 + 95 + 28 + 40) / (100 + 95 + 95 + 28 + 40)
REASONING = (164 / 2 + 5 * 164) / (984 + 6 * 164)


@pytest.mark.parametrize("messages", [False, True])
@pytest.mark.parametrize("write", [parquet, lines])
def test_rewardbench(tmp_path, write, messages):
  suffix = ".parquet" if write is parquet else ".jsonl.gz"
  write(tmp_path / "data" / f"filtered-00000-of-00001{suffix}", reward_bench_rows())
  write(tmp_path / "data" / f"raw-00000-of-00001{suffix}", [pair("hep-go", 1, 9)])
  report = run("rewardbench", last_number, tmp_path, messages=messages)
  assert report["sections"] == {
    "Chat": pytest.approx(CHAT),
    "Chat Hard": 1.0,
    "Safety": 1.0,
    "Reasoning": pytest.approx(REASONING),
  }
  assert report["score"] == pytest.approx((CHAT + 1 + 1 + REASONING) / 4)
  assert report["n"] == 24
  assert report["ties"] == 2
  assert report["prior_sets"] is None
  cpp = report["subsets"]["hep-cpp"]
  assert (cpp["accuracy"], cpp["interval"], cpp["n"]) == (1 / 2, None, 2)
  assert cpp["why"] == "2 conversations: an interval wants 5"
  # With so few items, resamples lack whole subsets, so there is no interval, and `why` says so.
  assert report["interval"] is None
  assert report["undefined"] > 0
  assert "is not defined" in report["why"]


def test_rewardbench_of_more(tmp_path):
  rows = [{**r, "prompt": f"{r['prompt']} {i}"} for i in range(20) for r in reward_bench_rows()]
  lines(tmp_path / "filtered.jsonl", rows)
  report = run("rewardbench", last_number, tmp_path)
  assert report["score"] == pytest.approx((CHAT + 1 + 1 + REASONING) / 4)
  low, high = report["interval"]
  assert low < report["score"] < high
  assert report["undefined"] == 0


def test_rewardbench_with_prior_sets(tmp_path):
  core, prior = tmp_path / "core", tmp_path / "prior"
  lines(core / "filtered.jsonl", reward_bench_rows())
  talk = [{"role": r, "content": c} for r, c in (("user", "x"), ("assistant", "y"), ("user", "z"))]
  for name, right in (("anthropic_helpful", 1), ("anthropic_hhh", 0), ("shp", 1), ("summarize", 0)):
    # Their own column `subset` is not the benchmark's.
    rows = [pair("other", right, 0.5, prompt=talk), pair("other", 1, 0.5, prompt=talk[:1])]
    parquet(prior / "data" / f"{name}-00000-of-00001.parquet", rows)
  parquet(prior / "data" / "anthropic_harmless-00000-of-00001.parquet", [pair("o", 0, 1, talk[:1])])
  parquet(prior / "data" / "pku_safer-00000-of-00001.parquet", [pair("o", 0, 1, talk[:1])])
  report = run("rewardbench", last_number, core, prior, messages=True)
  sets = (1 + 1 / 2 + 1 + 1 / 2) / 4
  assert report["prior_sets"] == sets
  assert report["score"] == pytest.approx((2 * (CHAT + 1 + 1 + REASONING) + sets) / 9)
  assert report["subsets"]["anthropic_harmless"]["accuracy"] == 0
  assert "pku_safer" not in report["subsets"]
  # No string form of a prompt of three turns is published.
  with pytest.raises(DataError, match=r"helpful.*:row 0: unsupported_message: 'prompt' has 3 mess"):
    load("rewardbench", core, prior)


def test_a_missing_part_is_said_and_makes_no_number(tmp_path):
  lines(tmp_path / "filtered.jsonl", [r for r in reward_bench_rows() if r["subset"] != "hep-js"])
  report = run("rewardbench", last_number, tmp_path)
  assert report["score"] is None
  assert report["interval"] is None
  assert report["why"] == "nothing of hep-js"
  assert report["sections"]["Reasoning"] is None
  assert report["sections"]["Chat"] == pytest.approx(CHAT)


def best_of_4(subset, *scores, id="1", right=1):
  texts = [f"{i} {s}" for i, s in enumerate(scores)]
  return {
    "id": id,
    "prompt": f"q {subset} {id}",
    "chosen": texts[:right],
    "rejected": texts[right:],
    "num_correct": right,
    "num_incorrect": len(scores) - right,
    "total_completions": len(scores),
    "models": ["m"] * len(scores),
    "subset": subset,
  }


def test_rewardbench_2(tmp_path):
  rows = [
    best_of_4("Factuality", 5, 1, 2, 3),
    best_of_4("Factuality", 5, 5, 2, 3, id="2"),  # one of two with the highest score: 1/2
    best_of_4("Precise IF", 1, 1, 1, 1),  # 1/4
    best_of_4("Math", 1, 2, 2, 0),
    best_of_4("Safety", 4, 4, 4, 0),  # 1/3
    best_of_4("Focus", 9, 0, 0, 0),
    # Gaps 4 and 3, spread 1: all terms count; min(4, 3) / 1 − 1 = 2.
    best_of_4("Ties", 5, 1, 0, id="ref:0"),
    best_of_4("Ties", 5, 4, 1, 0, id="tied:0", right=2),
    # Gaps 1 and 3, spread 2: preferred, as 3 > 2, and not hard, as 1 < 2; 1 / 2 − 1.
    best_of_4("Ties", 2, 1, id="ref:1"),
    best_of_4("Ties", 6, 4, 1, id="tied:1", right=2),
    # Gaps −1 and 0, spread 0: a gap of 0 is a tie and wrong; −1 / 0 is −∞.
    best_of_4("Ties", 1, 2, id="ref:2"),
    best_of_4("Ties", 3, 3, 3, id="tied:2", right=2),
    # Gaps 2 and 0, spread 0: 0 / 0 counts 0.
    best_of_4("Ties", 3, 1, id="ref:3"),
    best_of_4("Ties", 7, 7, 7, id="tied:3", right=2),
    best_of_4("Ties", 1, 4, id="ref:4"),  # without a tied prompt only its accuracy counts
  ]
  parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
  report = run("rewardbench2", last_number, tmp_path, messages=True)
  means = {"Factuality": 3 / 4, "Precise IF": 1 / 4, "Math": 0, "Safety": 1 / 3, "Focus": 1}
  terms = {
    "tied_accuracy": 2 / 4,
    "ref_accuracy": 3 / 5,
    "preferred": 2 / 4,
    "preferred_hard": 1 / 4,
    "margin": (math.tanh(2) + math.tanh(-1 / 2) - 1 + 0) / 4,
  }
  assert report["ties"] == pytest.approx(terms)
  ties = 0.3 * 2 / 4 + 0.3 * 3 / 5 + 0.2 * 2 / 4 + 0.2 * 1 / 4 + 0.01 * terms["margin"]
  assert report["means"] == pytest.approx({**means, "Ties": ties})
  assert report["score"] == pytest.approx((3 / 4 + 1 / 4 + 0 + 1 / 3 + 1 + ties) / 6)
  assert report["subsets"]["Ties"]["accuracy"] == (2 + 3) / 9
  assert report["subsets"]["Factuality"]["n"] == 2
  # 'ref:N' and 'tied:N' are one cluster, in the subset's interval as in the score's.
  credit = [1, 1, 1, 1, 0, 0, 1, 0, 0]
  pairs = [0, 0, 1, 1, 2, 2, 3, 3, 4]
  assert report["subsets"]["Ties"]["interval"] == rate(credit, pairs)["interval"]
  assert rate(credit, pairs)["interval"] != rate(credit, range(9))["interval"]


def test_rewardbench_2_refuses_what_its_formula_is_not_of(tmp_path):
  path = tmp_path / "x.jsonl"
  for bad, message in (
    (best_of_4("Ties", 1, 0, id="ref-1"), "expected 'ref:N' or 'tied:N'"),
    (best_of_4("Ties", 1, 0, id="tied:1"), "expected several"),
    (best_of_4("Math", 1, 0, right=2), "not both lists"),
    (best_of_4("Math", 1, 1, 0, right=2), "expected one"),
    (best_of_4("Mathematics", 1, 0), "'subset' is 'Mathematics'"),
  ):
    if "not both" in message:
      bad["rejected"] = []
    lines(path, [best_of_4("Math", 1, 0), bad])
    with pytest.raises(DataError, match=rf"x\.jsonl:2: .*{message}"):
      load("rewardbench2", path)
  lines(path, [best_of_4("Ties", 1, 0, id="ref:1")] * 2)
  with pytest.raises(ValueError, match="an id of Ties twice"):
    run("rewardbench2", last_number, path)


def styles(domain, chosen, rejected, **more):
  return {
    "id": 1,
    "prompt": f"q {chosen}",
    "chosen": [f"c {s}" for s in chosen],
    "rejected": [f"r {s}" for s in rejected],
    **({"domain": domain} if domain else {}),
    **more,
  }


def rm_bench_rows():
  # Rows of the matrix: (1 > 0, 1 > 1, 1 > 2), (2 > ..), (3 > ..).
  return [
    styles("chat", (1, 2, 3), (0, 1, 2)),  # 100, 110, 111
    styles("chat", (0, 0, 0), (0, 0, 0)),  # ties: no cell
    styles("math", (9, 9, 9), (0, 0, 0)),  # all cells
    styles("code", (0, 0, 5), (1, 1, 1)),  # the last row
    styles("safety-refuse", (9, 9, 9), (0, 0, 0)),
    styles("safety-response", (0, 0, 0), (9, 9, 9)),
    styles("safety-response", (0, 0, 0), (9, 9, 8)),
  ]


def test_rm_bench(tmp_path):
  array(tmp_path / "total_dataset.json", rm_bench_rows())
  array(tmp_path / "chat_filtered.json", [styles(None, (0, 0, 0), (1, 1, 1))])
  report = run("rm_bench", last_number, tmp_path)
  chat, math_, code, safety = (0.5, 0.5, 0.5), (1, 1, 1), (2 / 3, 1 / 3, 0), (1 / 3, 1 / 3, 1 / 3)
  # Chat's first matrix: below the diagonal 3 of 3, on it 3 of 3, above 0 of 3.
  chat = (1 / 2, 1 / 2, 0)
  levels = list(zip(chat, math_, code, safety, strict=True))
  for name, expected in zip(("easy", "normal", "hard"), levels, strict=True):
    assert report[name] == pytest.approx(sum(expected) / 4)
  for name, expected in (("chat", chat), ("math", math_), ("code", code), ("safety", safety)):
    assert report["domains"][name]["hard"] == pytest.approx(expected[2])
    assert report["domains"][name]["average"] == pytest.approx(sum(expected) / 3)
  assert report["score"] == pytest.approx((report["easy"] + report["normal"] + report["hard"]) / 3)
  assert report["score"] == pytest.approx((1 / 3 + 1 + 1 / 3 + 1 / 3) / 4)
  assert report["matrix"][0][2] == pytest.approx((0 + 1 + 0 + 1 / 3) / 4)
  assert report["matrix"][2][0] == pytest.approx((1 / 2 + 1 + 1 + 1 / 3) / 4)
  assert report["subsets"]["safety-response"]["accuracy"] == 0
  assert report["subsets"]["safety"]["accuracy"] == pytest.approx(1 / 3)
  assert report["subsets"]["safety"]["n"] == 3


def test_rm_bench_of_one_file_a_domain(tmp_path):
  for row in rm_bench_rows():
    domain = row.pop("domain")
    rows = [r for r in rm_bench_rows() if r["domain"] == domain]
    array(
      tmp_path / "data" / f"{domain}_filtered.json",
      [{k: v for k, v in r.items() if k != "domain"} for r in rows],
    )
  report = run("rm_bench", last_number, tmp_path / "data")
  assert report["n"] == 7
  assert report["score"] == pytest.approx((1 / 3 + 1 + 1 / 3 + 1 / 3) / 4)
  only = run("rm_bench", last_number, tmp_path / "data" / "chat_filtered.json")
  assert only["score"] is None
  assert only["why"] == "nothing of math, code, safety"
  assert only["domains"]["chat"]["average"] == pytest.approx(1 / 3)


def judged(source, a, b, label):
  return {
    "pair_id": f"{source}{a}{b}{label}",
    "original_id": 3,
    "source": source,
    "question": f"q {source}",
    "response_model": "gpt-4o-2024-05-13",
    "response_A": f"A {a}",
    "response_B": f"B {b}",
    "label": label,
  }


def test_judgebench(tmp_path):
  rows = [
    judged("mmlu-pro-law", 1, 0, "A>B"),
    judged("mmlu-pro-computer science", 1, 0, "B>A"),
    judged("livebench-reasoning", 0, 1, "B>A"),
    judged("livebench-math", 2, 2, "A>B"),  # a tie counts for B
    judged("livebench-math", 2, 2, "B>A"),
    judged("livebench-math", 3, 3, "B>A"),
    judged("livecodebench", 1, 0, "A>B"),
  ]
  lines(tmp_path / "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl", rows)
  report = run("judgebench", last_number, tmp_path)
  assert report["score"] == (1 + 0 + 1 + 0 + 1 + 1 + 1) / 7
  rates = {name: one["accuracy"] for name, one in report["subsets"].items()}
  assert rates == {"knowledge": 1 / 2, "reasoning": 1, "math": 2 / 3, "coding": 1}
  assert report["ties"] == 3
  lines(tmp_path / "bad.jsonl", [judged("mmlu-pro-law", 1, 0, "A=B")])
  with pytest.raises(DataError, match=r"bad\.jsonl:1: out_of_range: 'label' is 'A=B'"):
    load("judgebench", tmp_path / "bad.jsonl")
  lines(tmp_path / "bad.jsonl", [judged("gsm8k", 1, 0, "A>B")])
  with pytest.raises(DataError, match="'source' is 'gsm8k'"):
    load("judgebench", tmp_path / "bad.jsonl")


def followed(one, two, label):
  return {"input": f"q {one} {two}", "output_1": f"1 {one}", "output_2": f"2 {two}", "label": label}


LLMBAR = {
  "Natural": [followed(1, 0, 1), followed(0, 1, 2), followed(1, 0, 2)],  # 2/3
  "Neighbor": [followed(1, 1, 1), followed(1, 0, 1)],  # a tie counts half: 3/4
  "GPTInst": [followed(0, 1, 1)],  # 0
  "GPTOut": [followed(0, 1, 2)],  # 1
  "Manual": [followed(2, 2, 2)],  # 1/2
}


@pytest.mark.parametrize("layout", ["repository", "flat"])
def test_llmbar(tmp_path, layout):
  for name, rows in LLMBAR.items():
    full = name if name == "Natural" else f"Adversarial/{name}"
    if layout == "repository":
      array(tmp_path / full / "dataset.json", rows)
      array(tmp_path / full / "evaluators" / "GPT-4" / "result.json", [{"input": "no data"}])
    else:
      lines(tmp_path / f"{full.replace('/', '_')}.jsonl.gz", rows)
  array(tmp_path / "CaseStudy" / "Base_9" / "dataset.json", [followed(0, 9, 1)])
  report = run("llmbar", last_number, tmp_path, messages=True)
  assert report["natural"] == pytest.approx(2 / 3)
  assert report["adversarial"] == pytest.approx((3 / 4 + 0 + 1 + 1 / 2) / 4)
  assert report["score"] == pytest.approx((2 / 3 + 3 / 4 + 0 + 1 + 1 / 2) / 5)
  assert report["subsets"]["Neighbor"]["interval"] is None
  assert report["subsets"]["Neighbor"]["why"] == "2 conversations: an interval wants 5"
  assert report["n"] == 8
  assert report["ties"] == 2


def gsm8k_row(i, correct, scores):
  names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
  solutions = {
    n: {"is_correct": c, "solution": f"by {n} A: {s}"}
    for n, c, s in zip(names, correct, scores, strict=True)
  }
  return {"question": f"q{i}", "ground_truth": "A: 1", **solutions}


@pytest.mark.parametrize("messages", [False, True])
def test_gsm8k(tmp_path, messages):
  rows = [
    gsm8k_row(0, (True, False, False, False), (9, 1, 2, 3)),
    gsm8k_row(1, (True, False, False, False), (9, 9, 9, 3)),  # one of three highest: 1/3
    gsm8k_row(2, (True, True, True, False), (1, 2, 3, 4)),
  ]
  lines(tmp_path / "x.jsonl", rows)
  report = run("gsm8k_best_of_4", last_number, tmp_path / "x.jsonl", messages=messages)
  assert report["score"] == pytest.approx((1 + 1 / 3 + 0) / 3)
  assert report["baselines"]["oracle"] == 1
  assert report["baselines"]["random"] == pytest.approx((1 / 4 + 1 / 4 + 3 / 4) / 3)
  assert report["n"] == 3


def located(part, i, steps, label):
  return {
    "id": f"{part}-{i}",
    "generator": "Qwen2-7B-Instruct",
    "problem": f"p {part} {i}",
    "steps": [f"step {s}" for s in steps],
    "final_answer_correct": label < 0,
    "label": label,
  }


PROCESS = {
  "gsm8k": [located("gsm8k", 0, (3, -1, -2), 1), located("gsm8k", 1, (2, 1), -1)],
  # 1 of 2 erroneous and 1 of 1 correct; a score equal to the threshold is not below it.
  "math": [
    located("math", 0, (0, -5), 1),
    located("math", 1, (1, 1), 0),
    located("math", 2, (0, 0), -1),
  ],
  # Erroneous solutions right, correct ones wrong: F1 is 0.
  "olympiadbench": [located("olympiadbench", 0, (-1,), 0), located("olympiadbench", 1, (-1,), -1)],
  # All wrong: 0, not 0/0.
  "omnimath": [located("omnimath", 0, (1,), 0), located("omnimath", 1, (-1,), -1)],
}


@pytest.mark.parametrize("layout", ["arrays", "one file"])
def test_processbench(tmp_path, layout):
  for part, rows in PROCESS.items():
    if layout == "arrays":
      array(tmp_path / f"{part}.json", rows)
  if layout == "one file":
    lines(tmp_path / "all.jsonl", itertools.chain(*PROCESS.values()))
  report = run("processbench", steps_by_number, tmp_path, threshold=0.0)
  f1 = {name: one["f1"] for name, one in report["subsets"].items()}
  middle = 2 * (1 / 2) * 1 / (1 / 2 + 1)
  assert f1 == pytest.approx({"gsm8k": 1, "math": middle, "olympiadbench": 0, "omnimath": 0})
  assert report["score"] == pytest.approx((1 + middle) / 4)
  assert report["subsets"]["math"]["on_erroneous"]["accuracy"] == 1 / 2
  assert report["subsets"]["math"]["on_correct"]["n"] == 1
  assert report["subsets"]["math"]["accuracy"] == 2 / 3
  assert report["chosen_on"] is None
  chosen = run("processbench", steps_by_number, tmp_path, messages=True)
  # Every threshold in (−1, 1] answers all of GSM8K rightly.
  assert chosen["threshold"] == 0
  assert chosen["chosen_on"] == "gsm8k"
  assert chosen["score"] == report["score"]


def test_processbench_says_what_it_cannot_do(tmp_path):
  lines(tmp_path / "math.jsonl", PROCESS["math"])
  items = load("processbench", tmp_path)
  with pytest.raises(ValueError, match="0 solutions with an error, 0 without"):
    BENCHMARKS["processbench"].evaluate(steps_by_number, items)
  with pytest.raises(ValueError, match="row 0 has 2 steps and 1 scores"):
    BENCHMARKS["processbench"].evaluate(lambda rows: [[1.0]] * len(rows), items, threshold=0)
  with pytest.raises(ValueError, match="gave 1 arrays for 3 rows"):
    BENCHMARKS["processbench"].evaluate(lambda rows: [[1.0]], items, threshold=0)
  lines(tmp_path / "math.jsonl", [located("math", 0, (1, 2), 2)])
  with pytest.raises(DataError, match=r"math\.jsonl:1: out_of_range: 'label' is 2; expected -1 to"):
    load("processbench", tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_against_brute_force(seed):
  rng = np.random.default_rng(seed)
  # Few distinct scores, so that many tie.
  scores = [rng.integers(0, 6, rng.integers(1, 6)).astype(float) for _ in range(12)]
  truth = [int(rng.integers(-1, len(s))) for s in scores]
  truth[:2] = [-1, 0]

  def f1(t):
    answers = [next((i for i, x in enumerate(s) if x < t), -1) for s in scores]
    right = [a == b for a, b in zip(answers, truth, strict=True)]
    bad = np.mean([r for r, b in zip(right, truth, strict=True) if b >= 0])
    good = np.mean([r for r, b in zip(right, truth, strict=True) if b < 0])
    return 2 * bad * good / (bad + good) if bad + good else 0.0

  best = best_threshold(scores, truth)
  tried = np.arange(-1, 8) - 0.5
  assert f1(best) == max(f1(t) for t in tried)
  assert all(f1(t) < f1(best) for t in tried if t < best - 1)


def faulty(kind, idx, steps, errors):
  return {
    "original_question": f"another question {idx}",
    "modified_question": f"q {idx}",
    "original_process": ["1. x"],
    "modified_process": [f"{i}. step {s}" for i, s in enumerate(steps, 1)],
    "modified_steps": errors,
    "error_steps": errors,
    "reason": "",
    "idx": idx,
    "question": "another form of it",
    "classification": kind,
  }


PRM = {
  # TP 1, FP 1, TN 1, FN 1; a score of exactly 0 is called wrong.
  "redundency": [faulty("redundency", "i0", (1, 1, -1, 0), [2, 3])],
  "circular": [faulty("circular", "i0", (1, -1), [2])],  # TP 1, TN 1
  "counterfactual": [faulty("counterfactual", "i1", (-1, -1), [1])],  # TN 1, FN 1
  "step_contradiction": [faulty("step_contradiction", "i1", (1, 1), [2])],  # TP 1, FP 1
  "domain_inconsistency": [faulty("domain_inconsistency", "i1", (1,), [3])],  # no step 3: TP 1
  "confidence": [faulty("confidence", "i2", (1, -1), [2])],
  "missing_condition": [faulty("missing_condition", "i2", (1, -1), [2])],
  "deception": [faulty("deception", "i2", (-1, 1), [2])],  # FP 1, FN 1
  "multi_solutions": [faulty("multi_solutions", "i2", (1, 1, -1), [])],  # TP 2, FN 1
}


def test_prmbench(tmp_path):
  for kind, rows in PRM.items():
    lines(tmp_path / "data" / f"prm800k_test_p1_4o_{kind}.jsonl", rows)
  report = run("prmbench", steps_by_number, tmp_path / "data")
  tp, fp, tn, fn = 1 + 1 + 0 + 1 + 1 + 1 + 1 + 0 + 2, 1 + 1 + 1, 1 + 1 + 1 + 1 + 1, 1 + 1 + 1 + 1
  f1, negative = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
  assert report["f1"] == pytest.approx(f1)
  assert report["negative_f1"] == pytest.approx(negative)
  assert report["score"] == pytest.approx(0.5 * f1 + 0.5 * negative)
  scores = {name: one["prm_score"] for name, one in report["subsets"].items()}
  expected = {
    "redundency": (1 / 2 + 1 / 2) / 2,
    "circular": 1,
    "counterfactual": (0 + 2 / 3) / 2,
    "step_contradiction": (2 / 3 + 0) / 2,
    "confidence": 1,
    "missing_condition": 1,
    "deception": 0,
    "multi_solutions": 2 * 2 / (2 * 2 + 1),  # F1 alone
  }
  assert scores.pop("domain_inconsistency") is None  # has no wrong step
  assert scores == pytest.approx(expected)
  assert report["abilities"]["simplicity"] == pytest.approx((1 / 2 + 1) / 2)
  assert report["abilities"]["soundness"] is None
  assert report["abilities"]["sensitivity"] == pytest.approx((1 + 0 + 4 / 5) / 3)
  assert report["subsets"]["redundency"]["accuracy"] == 2 / 4
  assert report["n"] == 9
  assert report["interval"] is None
  assert "an interval wants 5" in report["why"]


def test_prmbench_reads_the_question_that_was_modified(tmp_path):
  lines(tmp_path / "x.jsonl", [faulty("circular", "a", (1,), [1])])
  (item,) = load("prmbench", tmp_path, messages=True)
  assert item.example.prompt == ({"role": "user", "content": "q a"},)
  asked = []
  BENCHMARKS["prmbench"].evaluate(lambda rows: asked.extend(rows) or [[0.0]], [item])
  # The rows are as `RewardModel.score_steps` takes them.
  assert asked == [{"prompt": [item.example.prompt[0]], "completions": ["1. step 1"]}]
  lines(tmp_path / "x.jsonl", [faulty("circular", "a", (1,), [1]), faulty("circular", "a", (), [])])
  report = Report(strict=True)
  (same,) = BENCHMARKS["prmbench"].load(tmp_path, messages=True, report=report)
  assert same.example.labels == (0.0,)
  assert dict(report.dropped) == {"second_of_its_id": 1}


def test_prmbench_draws_a_problem_whole_in_both_forms_of_its_ids(tmp_path):
  # A model that knows half of the problems. Their nine variants carry the information of one.
  rows = [
    faulty(kind, f"prm_test_p1_{i}", (1 if i % 2 else -1, -1, 1), [2])
    for i in range(40)
    for kind in PRM
  ]
  lines(tmp_path / "authors.jsonl", rows)  # the form of the authors' repository
  lines(tmp_path / "hub.jsonl", [r | {"idx": f"{r['classification']}_{r['idx']}"} for r in rows])
  authors, hub = (
    run("prmbench", steps_by_number, tmp_path / f) for f in ("authors.jsonl", "hub.jsonl")
  )
  assert authors["interval"] == hub["interval"]
  apart = [r | {"idx": f"{i}", "original_question": f"{i}"} for i, r in enumerate(rows)]
  lines(tmp_path / "apart.jsonl", [r | {"modified_question": r["idx"]} for r in apart])
  low, high = run("prmbench", steps_by_number, tmp_path / "apart.jsonl")["interval"]
  assert np.subtract(*hub["interval"][::-1]) == pytest.approx(3 * (high - low), rel=0.15)
  # The phases of PRM800K have different solutions of a problem and spell its formulas differently.
  two = [
    faulty("circular", "prm_test_p1_0", (1,), []) | {"original_question": "What is $\\sqrt{4}$?"},
    faulty("circular", "prm_test_p2_9", (1,), []) | {"original_question": "What is sqrt{4}?"},
    faulty("circular", "prm_test_p2_8", (1,), []) | {"original_question": "What is sqrt{9}?"},
  ]
  lines(tmp_path / "two.jsonl", two)
  one, same, other = (i.example.conversation for i in load("prmbench", tmp_path / "two.jsonl"))
  assert one == same != other


def test_humaneval_in_six_languages_is_one_problem(tmp_path):
  asks = {
    "hep-python": "Write a Python function `has_close_elements(numbers: List[float]) -> bool` to",
    "hep-js": "Write a JavaScript function `hasCloseElements(numbers, threshold)` to solve",
    "hep-go": "Write a Go function `func HasCloseElements(numbers []float64) bool` to solve",
    "hep-cpp": "Write a C++ function `bool has_close_elements(vector<float> numbers)` to solve",
    "math-prm": "What is `has_close_elements(x)`?",
  }
  rows = [pair(s, 2, 1, prompt=p) for s, p in asks.items()] + [pair("hep-go", 2, 1, prompt="none")]
  lines(tmp_path / "filtered.jsonl", rows)
  *problem, maths, none = (i.example.conversation for i in load("rewardbench", tmp_path))
  assert len(set(problem)) == 1
  assert len({problem[0], maths, none}) == 3


def test_each_text_is_scored_once_in_one_call(tmp_path):
  rows = [followed(1, 0, 1), followed(1, 0, 2), followed(2, 0, 1)]
  rows[1]["input"] = rows[0]["input"]
  lines(tmp_path / "Natural.jsonl", rows)
  for messages in (False, True):
    calls = []

    def counted(rows, calls=calls):
      calls.append(rows)
      return last_number(rows)

    run("llmbar", counted, tmp_path, messages=messages)
    (asked,) = calls
    assert len(asked) == 4  # two distinct responses of each of two prompts
  prompt, response = asked[0]
  assert prompt == ({"role": "user", "content": "q 1 0"},)
  assert response == ({"role": "assistant", "content": "1 1"},)
  (item, *_) = load("llmbar", tmp_path)
  assert (item.example.prompt, item.example.responses) == ("q 1 0\n", ("1 1", "2 0"))


def test_scores_that_are_none_are_refused(tmp_path):
  lines(tmp_path / "Natural.jsonl", LLMBAR["Natural"])
  items = load("llmbar", tmp_path)
  evaluate = BENCHMARKS["llmbar"].evaluate
  with pytest.raises(ValueError, match="expected finite scores"):
    evaluate(lambda rows: np.full(len(rows), np.nan), items)
  with pytest.raises(ValueError, match=r"gave shape \(1,\); expected \[4\]"):
    evaluate(lambda rows: np.zeros(1), items)
  with pytest.raises(ValueError, match="items is empty"):
    evaluate(longest, [])


def test_bad_rows_are_counted_or_stop_with_file_and_line(tmp_path):
  path = tmp_path / "Natural.json"
  good = json.dumps(followed(1, 0, 1))
  path.write_text(f'[\n{good},\n{{"input": "x"}},\n{{"a": 1, "a": 2}},\n{{"b": NaN}},\n3,\n{good}]')
  report = Report()
  items = BENCHMARKS["llmbar"].load(tmp_path, messages=False, report=report)
  assert len(items) == 2
  assert report.rows == 6
  reasons = ("missing_column", "duplicate_key", "invalid_json", "not_an_object")
  assert dict(report.dropped) == dict.fromkeys(reasons, 1)
  for line, reason in enumerate(reasons, 3):
    assert report.examples[reason][0].startswith(f"{path}:{line}: ")
  with pytest.raises(DataError, match=r"Natural\.json:3: missing_column"):
    load("llmbar", tmp_path)
  path.write_text(f"[{good},\n{good}")  # truncated
  report = Report()
  assert len(BENCHMARKS["llmbar"].load(path, messages=False, report=report)) == 1
  assert report.examples["damaged_file"][0].startswith(f"{path}:2: ")
  path.write_text("[]")
  with pytest.raises(DataError, match="not one row could be kept"):
    load("llmbar", path)
  for name in BENCHMARKS:
    with pytest.raises(DataError, match="no path"):
      load(name)


def counted(path):
  """(number of items, report) of a file of LLMBar."""
  report = Report()
  return len(BENCHMARKS["llmbar"].load(path, messages=False, report=report)), report


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_damaged_gzip_file_is_a_damaged_file(tmp_path, form):
  rows = [json.dumps(followed(i, 0, 1)) for i in range(4000)]
  text = f"[\n{','.join(rows)}]" if form == "array" else "\n".join(rows)
  whole = gzip.compress(text.encode(), mtime=0)
  path = tmp_path / "Natural.json.gz"
  for damaged in (whole[:12] + b"\xff" * 8 + whole[20:], whole[: len(whole) // 2]):
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"Natural\.json\.gz:\d+: damaged_file: the gzip stream"):
      load("llmbar", path)
  if form == "lines":  # the rows before the damage are read
    kept, report = counted(path)
    assert (report.rows, report.dropped) == (kept + 1, {"damaged_file": 1})


def test_what_follows_an_array_is_counted(tmp_path):
  path, good = tmp_path / "Natural.json", json.dumps(followed(1, 0, 1))
  path.write_text(f"[{good},\n{good}] \n ")
  assert counted(path)[1].dropped == {}
  path.write_text(f"[{good},\n{good}]\n[{good}]")
  kept, report = counted(path)
  assert (kept, report.rows, report.dropped) == (2, 3, {"damaged_file": 1})
  (said,) = report.examples["damaged_file"]
  assert said.startswith(f"{path}:3: ")
  assert "follows the JSON array; expected the end of the file" in said
  path.write_text(f"[]\n{good}")
  with pytest.raises(DataError, match=r"Natural\.json:2: damaged_file: .* follows the JSON array"):
    load("llmbar", path)
  path.write_text(f"[{good},\n]")
  kept, report = counted(path)
  assert (kept, report.rows, report.dropped) == (1, 2, {"damaged_file": 1})
  assert report.examples["damaged_file"][0].startswith(f"{path}:2: ")


def good_rows():
  """Benchmark -> (name of its file, a good row)."""
  return {
    "rewardbench": ("filtered", pair("hep-cpp", 2, 1)),
    "rewardbench2": ("rows", best_of_4("Math", 2, 1, 1, 1)),
    "rm_bench": ("total_dataset", styles("chat", (1, 2, 3), (0, 1, 2))),
    "judgebench": ("rows", judged("mmlu-pro-law", 1, 0, "A>B")),
    "llmbar": ("Natural", followed(1, 0, 1)),
    "processbench": ("gsm8k", located("gsm8k", 0, (3, 1), 1)),
    "prmbench": ("rows", faulty("circular", "a", (1, 2), [2])),
  }


@pytest.mark.parametrize("value", [["x"], {"x": 1}, None, True, 1.5, "x", []], ids=repr)
@pytest.mark.parametrize("name", good_rows())
def test_no_value_of_a_column_ends_the_reading(name, value, tmp_path):
  stem, row = good_rows()[name]
  rows = [row, *({**row, column: value} for column in row)]
  lines(tmp_path / f"{stem}.jsonl", rows)
  report = Report()
  items = BENCHMARKS[name].load(tmp_path, messages=False, report=report)
  assert 1 <= len(items) == report.kept < report.rows == len(rows)


def test_the_interval_is_the_clusters_bootstrap():
  rng = np.random.default_rng(0)
  credit = (rng.random(600) < np.repeat(rng.random(200), 3)).astype(float)
  clusters = [i // 3 for i in range(600)]
  terms = np.stack([credit, np.ones(600)], axis=1)
  found = published(terms, clusters, lambda s: s[..., 0] / s[..., 1], resamples=4000)
  assert found["score"] == pytest.approx(credit.mean())
  expected = interval.cluster_bootstrap(credit, clusters, resamples=4000)
  assert found["interval"] == pytest.approx(expected, abs=0.004)
  assert found["undefined"] == 0


def raw(path):
  with gzip.open(path, "rt", encoding="utf-8") as opened:
    return [json.loads(line) for line in opened]


@pytest.mark.skipif(not (DATA / "llmbar").is_dir(), reason="../shared/data/llmbar is not here")
def test_real_llmbar_by_the_longest():
  report = run("llmbar", longest, DATA / "llmbar", messages=True)
  counted = {}
  for path in (DATA / "llmbar").iterdir():
    rows = raw(path)
    differ = [len(r["output_1"]) - len(r["output_2"]) for r in rows]
    right = sum(
      0.5 if d == 0 else (d > 0) == (r["label"] == 1) for d, r in zip(differ, rows, strict=True)
    )
    counted[path.name.split(".")[0].removeprefix("Adversarial_")] = (right / len(rows), len(rows))
  assert {n: (s["accuracy"], s["n"]) for n, s in report["subsets"].items()} == counted
  assert report["n"] == 100 + 134 + 92 + 47 + 46
  assert report["score"] == pytest.approx(np.mean([a for a, _ in counted.values()]))


@pytest.mark.skipif(not (DATA / "prmbench").is_dir(), reason="../shared/data/prmbench is not here")
def test_real_prmbench_by_the_longest():
  path, report = DATA / "prmbench" / "prmbench.jsonl.gz", Report()
  items = BENCHMARKS["prmbench"].load(path, messages=False, report=report)
  assert dict(report.dropped) == {"empty_response": 3, "second_of_its_id": 5}

  def short_is_right(rows):
    return [np.asarray([90.0 - len(s) for s in row["completions"]]) for row in rows]

  found = BENCHMARKS["prmbench"].evaluate(short_is_right, items)
  count = dict.fromkeys(itertools.product((True, False), repeat=2), 0)
  seen = set()
  for row in raw(path):
    name = row["classification"], row["idx"]
    if name not in seen and all(step.strip() for step in row["modified_process"]):
      seen.add(name)
      for i, step in enumerate(row["modified_process"], 1):
        count[len(step) < 90, i not in row["error_steps"]] += 1
  tp, fp, fn, tn = count[True, True], count[True, False], count[False, True], count[False, False]
  precision, recall = tp / (tp + fp), tp / (tp + fn)
  assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
  precision, recall = tn / (tn + fn), tn / (tn + fp)
  assert found["negative_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
  assert found["score"] == pytest.approx((found["f1"] + found["negative_f1"]) / 2)
  assert found["n"] == 6216 - 3 - 5


@pytest.mark.skipif(
  not (DATA / "gsm8k_model_solutions").is_dir(),
  reason="../shared/data/gsm8k_model_solutions is not here",
)
def test_real_gsm8k_by_the_longest():
  path = DATA / "gsm8k_model_solutions"
  found = run("gsm8k_best_of_4", longest, path)
  taken = []
  for row in raw(path / "example_model_solutions.jsonl.gz"):
    four = [v for v in row.values() if isinstance(v, dict)]
    most = max(len(v["solution"]) for v in four)
    taken.append(np.mean([v["is_correct"] for v in four if len(v["solution"]) == most]))
  assert found["score"] == pytest.approx(np.mean(taken))
  assert found["n"] == 1319
