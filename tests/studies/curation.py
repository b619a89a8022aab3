"""Measures curation on held-out data: rows lost to templates, and planted faults found in them.

  python -m tests.studies.curation [--data=DIR] [--which=study|development] [--world=50000]

The data are 2,000 pairs with distinct prompts (GSM8K: a right and a wrong solution; PandaLM;
Anthropic's HH-RLHF). It prints three parts:

1. For each of five templates around the prompts: how many rows are kept, of those that curation
   keeps without a template.
2. How many faults are found of 50 planted near duplicates (typo, synonym, added clause, another
   template), 50 contradictions and 50 rows of the held-out file; and how many other rows are
   dropped.
3. The time that curation takes for pairs of the generated world, with and without a prefix of 60
   words.

The data are read from the folder `shared/data` beside the project (--data); without it the command
stops with a message. The rules of `rm_jax.curate` were developed on other data and templates
(`--which=development`: LLMBar and QA-Feedback). Takes about ten minutes.
"""

import argparse
import gzip
import json
import pathlib
import random
import sys
import tempfile
import time
import unicodedata

import numpy as np

from rm_jax.curate import ledger, pipeline
from rm_jax.data import formats
from rm_jax.data.dialogue import parse_dialogue
from rm_jax.data.report import Report, RowError
from rm_jax.world import World

DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
ROWS, PLANTED, HELDOUT = 2000, 50, 200
SYSTEM = (
  "You are the assistant of a public library. Answer every visitor in a friendly and factual way, "
  "in at most three paragraphs, and name your sources where you know them. If a question is about "
  "law, health or money, remind the visitor that a librarian cannot replace a professional. Never "
  "make up a book, and say plainly when you do not know."
)
ALPACA = (
  "Below is an instruction that describes a task. Write a response that appropriately completes "
  "the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)
CHATML = (
  "<|im_start|>system\nYou can call functions. The functions that there are:\n<tools>\n"
  '{{"name": "get_weather", "parameters": {{"city": {{"type": "string"}}}}}}\n'
  '{{"name": "search", "parameters": {{"query": {{"type": "string"}}, "n": 10}}}}\n</tools>\n'
  "Answer without a call where none is needed.<|im_end|>\n"
  "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
FEW_SHOT = (
  "Q: A shop sells pens at 3 dollars. What do 4 pens cost?\nA: 4 * 3 = 12 dollars.\n\n"
  "Q: Rewrite in the past tense: He goes home and sleeps.\nA: He went home and slept.\n\n"
  "Q: Name one thing that one can do against a cold.\nA: Drink something warm and rest.\n\n"
  "Q: {}\nA:"
)
_PASSAGE = (
  "The lighthouse at the northern end of the bay was finished in the spring after the great storm "
  "and has been looked after by the same family ever since. Its lamp burned whale oil at first, "
  "later kerosene, and was changed to electricity when the road over the dunes had been built. "
  "Visitors may climb the stairs on the first Sunday of each month between Easter and October. "
  "From the gallery one sees the old salt works, the mouth of the river and, on clear days, the "
  "hills beyond the border. The museum in the former stable shows how ropes were made, and has a "
  "small collection of charts that sailors left as thanks. In winter the keeper writes letters to "
  "schools that ask about the sea, and answers them all by hand. The café serves soup, bread and "
  "cider from the village; its terrace is open whenever the wind allows it. Dogs are welcome on "
  "the beach but not inside of the tower. Further down the coast a second light, much smaller, "
  "marks the rocks that gave the bay its name."
)
RETRIEVAL = (
  "Use the document below if it helps, and your own knowledge otherwise.\n\nDocument 1:\n"
  + _PASSAGE
  + "\n\nQuestion: {}"
)
TEMPLATES = {
  "system prompt": SYSTEM + "\n\n{}",
  "Alpaca": ALPACA,
  "ChatML, tools": CHATML,
  "few-shot": FEW_SHOT,
  "retrieval": RETRIEVAL,
}
# Templates for development, which the study does not use.
OTHERS = {
  "Vicuna": "A chat between a curious user and an artificial intelligence assistant. The assistant "
  "gives helpful, detailed, and polite answers to the user's questions. USER: {} ASSISTANT:",
  "Mistral": "[INST] You help employees of a shipping company with their letters and sums. {} "
  "[/INST]",
  "XML": "<task>\n<rules>Think first. Be brief. Do not apologise.</rules>\n"
  "<question>{}</question>\n<format>One paragraph of plain text, without headings.</format>\n"
  "</task>",
  "rubric": "Please rate how well the two answers fit the request, from 1 to 5, where 5 is best, "
  "and say in one sentence why you chose that number.\n\nThe request is: {}",
}
SYNONYMS = {
  "make": "create", "write": "compose", "get": "obtain", "show": "display", "help": "assist",
  "buys": "purchases", "give": "provide", "explain": "describe", "find": "locate", "tell": "inform",
  "people": "persons", "big": "large", "small": "little", "children": "kids", "want": "wish",
  "need": "require", "about": "regarding", "each": "every", "total": "overall", "start": "begin",
  "earn": "receive", "following": "subsequent", "best": "finest", "know": "understand",
  "what": "which", "the": "that", "how": "just how", "is": "would be",
}  # fmt: skip
CLAUSES = (
  "Please answer as clearly as you can.",
  "I would like to understand it well.",
  "Thank you for your time.",
  "It is for a friend of mine.",
)


def rows_of(path):
  with gzip.open(path, "rt", encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def plain_form(text):
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def study_pairs(data, rng):
  """(prompt, chosen, rejected) of GSM8K, PandaLM and HH-RLHF, in this order."""
  out = []
  for row in rows_of(data / "gsm8k_model_solutions" / "example_model_solutions.jsonl.gz"):
    solutions = [v for v in row.values() if isinstance(v, dict)]
    right = [s["solution"] for s in solutions if s["is_correct"]]
    wrong = [s["solution"] for s in solutions if not s["is_correct"]]
    if right and wrong:
      out.append((row["question"], rng.choice(right), rng.choice(wrong)))
  rng.shuffle(out)
  out = out[:900]
  for row in rows_of(data / "pandalm" / "testset-v1.jsonl.gz"):
    votes = [row[f"annotator{k}"] for k in (1, 2, 3)]
    sides = [row["response1"], row["response2"]]
    if not all(isinstance(s, str) and s.strip() for s in sides) or votes.count(1) == votes.count(2):
      continue
    if votes.count(2) > votes.count(1):
      sides.reverse()
    prompt = "\n".join(t for t in (row["instruction"], row["input"]) if t)
    out.append((prompt, *sides))
  talks = []
  for path in sorted((data / "hh_rlhf").glob("*.jsonl.gz")):
    for row in rows_of(path):
      try:
        sides = [parse_dialogue(row[k]) for k in ("chosen", "rejected")]
      except RowError:
        continue
      if len(sides[0]) != 2 or len(sides[1]) != 2 or sides[0][0] != sides[1][0]:
        continue  # Dialogues of one turn only: a template is put around a single question.
      talks.append((sides[0][0]["content"], *(s[1]["content"] for s in sides)))
  rng.shuffle(talks)
  return out + talks


def development_pairs(data, rng):
  """(prompt, chosen, rejected) of LLMBar and QA-Feedback."""
  out = []
  for path in sorted((data / "llmbar").glob("*.jsonl.gz")):
    for row in rows_of(path):
      sides = [row["output_1"], row["output_2"]]
      out.append((row["input"], *(sides if row["label"] == 1 else sides[::-1])))
  for row in rows_of(data / "qa_feedback_4way" / "dev_feedback.jsonl.gz"):
    sides = [row[k] for k in ("prediction 1", "prediction 2") if isinstance(row.get(k), str)]
    if len(sides) == 2:
      out.append((row["question"], *sides))
  rng.shuffle(out)
  return out


def distinct(pairs):
  """The pairs without empty texts whose prompts differ in more than case and white space."""
  seen, out = set(), []
  for prompt, chosen, rejected in pairs:
    form = plain_form(prompt)
    if form and form not in seen and chosen.strip() and rejected.strip() and chosen != rejected:
      seen.add(form)
      out.append((prompt, chosen, rejected))
  return out


def typo(text, rng):
  """The text with two neighbouring letters exchanged in a word of five letters or more."""
  words = text.split(" ")
  places = [i for i, w in enumerate(words) if len(w) >= 5 and w.isalpha()]
  if not places:
    return text + "s"
  i = rng.choice(places)
  k = rng.randrange(1, len(words[i]) - 2)
  words[i] = words[i][:k] + words[i][k + 1] + words[i][k] + words[i][k + 2 :]
  return " ".join(words) if words[i] != text.split(" ")[i] else text + "s"


def synonym(text, rng):
  words = text.split(" ")
  places = [i for i, w in enumerate(words) if w in SYNONYMS]
  if not places:
    return text + " now"
  i = rng.choice(places)
  words[i] = SYNONYMS[words[i]]
  return " ".join(words)


def clause(text, rng):
  return f"{text} {rng.choice(CLAUSES)}"


def as_row(pair, template):
  return {"prompt": template.format(pair[0]), "chosen": pair[1], "rejected": pair[2]}


def planted(pairs, held, name, templates, rng):
  """Plants faults: (rows, fault -> list of sets of row numbers).

  A fault counts as found if one row of its set is.
  """
  template = templates[name]
  rows = [as_row(p, template) for p in pairs]
  free = list(range(len(rows)))
  rng.shuffle(free)
  faults = {}
  kinds = [("typo", typo), ("synonym", synonym), ("clause", clause), ("template", None)]
  for k in range(PLANTED):
    i = free.pop()
    kind, edit = kinds[k % len(kinds)]
    if edit:
      row = as_row((edit(pairs[i][0], rng), *pairs[i][1:]), template)
    else:
      other = rng.choice([t for n, t in templates.items() if n != name])
      row = as_row(pairs[i], other)
    faults.setdefault(kind, []).append({i, len(rows)})
    rows.append(row)
  for _ in range(PLANTED):
    i = free.pop()
    prompt = rows[i]["prompt"] + rng.choice(["", " ", "\n"])
    faults.setdefault("contradiction", []).append({i, len(rows)})
    rows.append({"prompt": prompt, "chosen": pairs[i][2], "rejected": pairs[i][1]})
  for k in range(PLANTED):
    # A text shorter than an n-gram is compared as a whole, so an added clause would hide it.
    short = len(held[k][0].split()) < pipeline.Options().contamination_n
    text = held[k][0] if k % 2 or short else clause(held[k][0], rng)
    donor = pairs[free.pop()]
    faults.setdefault("contaminated", []).append({len(rows)})
    # The row has other responses, so that only its prompt shows the contamination.
    rows.append(as_row((text, donor[2] + " (a)", donor[1] + " (b)"), template))
  return rows, faults


def curated(folder, rows, held):
  """Curates rows: (dropped, noted), each as row number -> the row's entries in the report."""
  for name, lines in (("rows", rows), ("held", held)):
    text = "".join(json.dumps(row) + "\n" for row in lines)
    pathlib.Path(folder, f"{name}.jsonl").write_text(text, encoding="utf-8")
  book = ledger.read(pathlib.Path(folder, "rows.jsonl"))
  heldout = formats.load(pathlib.Path(folder, "held.jsonl"), report=Report())
  report = pipeline.curate(book, pipeline.Options(), heldout=heldout)
  dropped, noted = {}, {}
  for entries, where in (
    (report["listed"]["dropped"], dropped),
    (report["listed"]["noted"], noted),
  ):
    for entry in entries:
      where.setdefault(int(entry["origin"].rpartition(":")[2]) - 1, []).append(entry)
  return dropped, noted


REASONS = {
  "contradiction": ("contradictory", "contradicted"),
  "contaminated": ("in_heldout",),
}


def study(pairs, held, templates, seed, show=0):
  bare = {"none": "{}"}
  print(f"{len(pairs)} rows, {len(held)} held out, seed {seed}")
  with tempfile.TemporaryDirectory() as folder:
    print("\nkept of the rows that are kept without a template")
    base = None
    for name, template in {**bare, **templates}.items():
      rows = [as_row(p, template) for p in pairs]
      dropped, noted = curated(folder, rows, [as_row(p, template) for p in held])
      kept = set(range(len(rows))) - dropped.keys()
      base = kept if base is None else base
      print(
        f"  {name:<14} kept {len(kept):>5}  of those {len(kept & base) / len(base):8.4%}"
        f"  noted {len(noted)}"
      )
      for i in list(base - kept)[:show]:
        print("    ", dropped[i], repr(rows[i])[:300])
    print("\nfound of the planted (dropped, or noted), and others touched (dropped)")
    for name in (*bare, *templates):
      rng = random.Random(seed)
      used = {**templates, **(bare if name == "none" else {})}
      rows, faults = planted(pairs, held, name, used, rng)
      dropped, noted = curated(folder, rows, [as_row(p, used[name]) for p in held])
      line, mine, total = [], set(), {}
      for fault, groups in faults.items():
        reasons = REASONS.get(fault, ("near_duplicate", "exact_duplicate"))
        hit = [
          [any(e["reason"] in reasons for i in g for e in where.get(i, ())) for g in groups]
          for where in (dropped, noted)
        ]
        found = [a or b for a, b in zip(*hit, strict=True)]
        line.append(f"{fault} {sum(hit[0])}+{sum(found) - sum(hit[0])}/{len(groups)}")
        of = fault if fault in REASONS else "near duplicate"
        old = total.get(of, (0, 0))
        total[of] = (old[0] + sum(found), old[1] + len(groups))
        mine |= set().union(*groups)
        for g, there in zip(groups, found, strict=True):
          if not there and show:
            print("     MISSED", fault, [repr(rows[i])[:400] for i in sorted(g)])
      others = dropped.keys() - mine - (set(range(len(pairs))) - base)
      print(f"  {name:<14} " + ", ".join(line))
      print(
        f"  {'':<14} "
        + ", ".join(f"{k}: {a / n:.1%}" for k, (a, n) in total.items())
        + f"; others touched {len(others)} = {len(others) / len(base):.2%}"
      )
      for i in list(others)[:show]:
        print("     TOUCHED", dropped[i], repr(rows[i])[:400])


def world_times(count):
  rng = random.Random(0)
  prefix = " ".join(
    "".join(rng.choice("abdefgiklmnoprstu") for _ in range(rng.randint(2, 9))) for _ in range(60)
  )
  pairs = World(judge_temperature=0.1).pairs("train", count, 0, messages=False)
  took = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, before in (("without", ""), ("with", prefix + "\n\n")):
      path = pathlib.Path(folder, f"{name}.jsonl")
      with path.open("w", encoding="utf-8") as file:
        for e in pairs:
          row = as_row((before + e.prompt, *e.responses), "{}")
          file.write(json.dumps(row) + "\n")
      wall, cpu = time.perf_counter(), time.process_time()
      report = pipeline.curate(ledger.read(path), pipeline.Options())
      took[name] = time.process_time() - cpu
      print(
        f"  {count} rows of the world {name} a prefix of 60 words: {took[name]:.1f} s of CPU, "
        f"{time.perf_counter() - wall:.1f} s; {report['rows']}"
      )
  print(f"  with / without: {took['with'] / took['without']:.2f}")


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--data", type=pathlib.Path, default=DATA)
  parser.add_argument("--which", choices=("study", "development"), default="study")
  parser.add_argument("--world", type=int, default=50_000, help="rows to time; 0 = none")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--show", type=int, default=0, help="misses to show of each kind")
  arguments = parser.parse_args()
  if not arguments.data.is_dir():
    sys.exit(f"{arguments.data} is not there: nothing to study; give --data=DIR")
  rng = random.Random(arguments.seed)
  if arguments.which == "study":
    pairs, templates = distinct(study_pairs(arguments.data, rng)), TEMPLATES
  else:
    pairs, templates = distinct(development_pairs(arguments.data, rng)), OTHERS
  held_count = min(HELDOUT, len(pairs) // 5)
  order = np.random.default_rng(arguments.seed).permutation(len(pairs))
  held = [pairs[i] for i in order[:held_count]]
  rest = [pairs[i] for i in sorted(order[held_count : held_count + ROWS].tolist())]
  study(rest, held, templates, arguments.seed, arguments.show)
  if arguments.world:
    world_times(arguments.world)


if __name__ == "__main__":
  main()
