"""The world: repeatable, split cleanly, rewarded by its formula, judged at a known error rate."""

import dataclasses
import hashlib
import itertools
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from rm_jax.types import Example
from rm_jax.world import World, best_reachable
from rm_jax.world.grammar import LAYOUTS, Attributes, read_prompt, read_response
from rm_jax.world.words import HELDOUT, SPLITS, TRAIN

PROMPT = (
  "I am Mia.\nThe drill is with Oscar, the saw is with Priya, the tent is with Hugo.\n"
  "Who has the saw? Use bullet points."
)
WORLD = World()
SPLIT_NAMES = ("train", "heldout")


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def generator(seed=0):
  return np.random.Generator(np.random.PCG64(seed))


def content(text):
  return text if isinstance(text, str) else text[-1]["content"]


def digest():
  examples = WORLD.pairs("train", 40, seed=3) + WORLD.rankings("heldout", 20, k=4, seed=3)
  return hashlib.sha256(repr(examples).encode()).hexdigest()


# --- Examples -------------------------------------------------------------------------------------


def test_same_data_in_any_process():
  code = "import test_world; print(test_world.digest())"
  root = pathlib.Path(__file__).parents[2]
  env = os.environ | {
    "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0",
    "PYTHONPATH": os.pathsep.join([str(root), str(pathlib.Path(__file__).parent)]),
  }
  run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
  assert run.stdout.strip() == digest(), run.stderr


def test_same_seed_same_data_and_another_seed_other_data():
  assert WORLD.pairs("train", 30, seed=1) == WORLD.pairs("train", 30, seed=1)
  assert WORLD.pairs("train", 30, seed=1) != WORLD.pairs("train", 30, seed=2)


def test_more_examples_leave_the_first_ones():
  assert WORLD.pairs("train", 50, seed=1)[:20] == WORLD.pairs("train", 20, seed=1)
  assert WORLD.prompts("train", 50, seed=1)[:20] == WORLD.prompts("train", 20, seed=1)
  assert [e.prompt for e in WORLD.pairs("train", 20, seed=1)] == WORLD.prompts("train", 20, seed=1)


def test_pair_is_chosen_first_and_complete():
  (example,) = WORLD.pairs("heldout", 1, seed=0)
  (prompt,) = WORLD.prompts("heldout", 1, seed=0, messages=False)
  assert example.prompt == ({"role": "user", "content": prompt},)
  assert [r[0]["role"] for r in example.responses] == ["assistant"] * 2
  assert example.labels == (1.0, 0.0)
  assert (example.kind, example.source, example.origin) == ("pair", "world", "world:heldout:0")
  assert example.conversation == prompt


@pytest.mark.parametrize("messages", [True, False])
def test_truth_is_the_true_reward_of_the_texts(messages):
  for example in WORLD.pairs("train", 40, 0, messages) + WORLD.rankings(
    "train", 40, 5, 0, messages
  ):
    assert isinstance(example.prompt, str) != messages
    assert example.truth == tuple(WORLD.true_reward(example.prompt, r) for r in example.responses)


def test_ranking_has_k_different_responses_and_a_gain_for_each():
  for example in WORLD.rankings("train", 50, k=4, seed=0):
    assert example.kind == "ranking"
    assert len({content(r) for r in example.responses}) == 4
    assert sorted(example.labels) == [0.0, 1.0, 2.0, 3.0]
  # Where nearly all are good, about two pairs in 40 candidates are equal.
  for example in World(skill=0.9).rankings("train", 10, k=40, seed=0):
    assert len({content(r) for r in example.responses}) == 40


def test_pair_of_the_same_seed_is_the_ranking_of_two():
  for pair, ranking in zip(
    WORLD.pairs("train", 50, seed=5), WORLD.rankings("train", 50, 2, seed=5), strict=True
  ):
    order = (0, 1) if ranking.labels == (1.0, 0.0) else (1, 0)
    assert pair.responses == tuple(ranking.responses[i] for i in order)


# --- Splits ---------------------------------------------------------------------------------------


def test_splits_share_no_prompt_and_no_response():
  rng = generator()
  texts = {split: set() for split in SPLIT_NAMES}
  for split, seen in texts.items():
    for prompt in WORLD.prompts(split, 300, seed=0):
      seen.add(content(prompt))
      seen.update(content(c.response) for c in WORLD.sample(prompt, 5, rng))
  assert len(texts["train"]) > 1500
  assert not texts["train"] & texts["heldout"]


def entries(words):
  """Every string of a vocabulary, by the table that it stands in."""
  tables = {"names": words.names, "intro": words.intro, "fillers": words.fillers}
  tables |= {f"layout {k}": v for k, v in words.layouts.items()}
  tables |= {f"tone {k}": v for k, v in words.tones.items()}
  for i, scene in enumerate(words.scenes):
    tables |= {f"{key} {i}": table for key, table in dataclasses.asdict(scene).items()}
  return tables


def test_vocabularies_share_no_entry():
  # Without their own wording too, since the sentences of a response hold the split's own names.
  train, heldout = ({x for t in entries(w).values() for x in t} for w in (TRAIN, HELDOUT))
  assert not train & heldout
  assert TRAIN.layouts.keys() == HELDOUT.layouts.keys() == LAYOUTS.keys()


# --- True reward ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("response", "attributes"),
  [
    ("- Mia, Priya has the saw.\n- Happy to help!", Attributes(1, 1, 1, 1)),
    ("- Mia, Priya has the saw.", Attributes(1, 1, 1, 0)),
    ("- mia, PRIYA has it", Attributes(1, 1, 1, 0)),
    ("- Mia, Oscar has the saw.\n- Happy to help!", Attributes(0, 1, 1, 1)),
    ("- Mia, Nadia has the saw.", Attributes(0, 1, 1, 0)),
    ("- Mia, Priya or Oscar has the saw.", Attributes(0, 1, 1, 0)),
    ("- Mia, somebody has the saw.", Attributes(0, 1, 1, 0)),
    ("- Leo, Priya has the saw.", Attributes(1, 1, 0, 0)),
    ("- Priya has the saw.", Attributes(1, 1, 0, 0)),
    ("1. Mia, Priya has the saw.\n2. Now go away.", Attributes(1, 0, 1, -1)),
    ("- Mia, Priya has the saw.\nHappy to help!", Attributes(1, 0, 1, 1)),
    ("- Happy to help!\n- Now go away.", Attributes(0, 1, 0, 0)),
    ("", Attributes(0, 0, 0, 0)),
  ],
)
def test_true_reward_reads_the_text(response, attributes):
  world = World(fact_weight=8.0, layout_weight=4.0, name_weight=2.0, tone_weight=0.5)
  assert read_response(read_prompt(PROMPT), response) == attributes
  a = attributes
  expected = 8.0 * a.fact + 4.0 * a.layout + 2.0 * a.name + 0.5 * a.tone
  assert world.true_reward(PROMPT, response) == expected
  chat = ({"role": "user", "content": PROMPT},), ({"role": "assistant", "content": response},)
  assert world.true_reward(*chat) == expected


@pytest.mark.parametrize(
  ("layout", "yes", "no"),
  [
    ("list", "- a\n- b", "- a\nb"),
    ("numbers", "1. a\n2. b", "1 a"),
    ("quotes", '"a b."', '"a" b'),
    ("brackets", "(a b.)", "a (b)"),
  ],
)
def test_layout_is_read(layout, yes, no):
  task = dataclasses.replace(read_prompt(PROMPT), layout=layout)
  assert (read_response(task, yes).layout, read_response(task, no).layout) == (1, 0)


@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_what_is_written_is_what_is_read(split):
  rng = generator()
  for prompt in WORLD.prompts(split, 150, seed=0, messages=False):
    task = read_prompt(prompt)
    assert task.words is SPLITS[split]
    assert len(task.facts) == 3
    for candidate in WORLD.sample(prompt, 6, rng):
      assert read_response(task, candidate.response) == candidate.attributes
      assert WORLD.true_reward(prompt, candidate.response) == candidate.reward


# --- Candidates -----------------------------------------------------------------------------------


def test_candidates_are_varied():
  (prompt,) = WORLD.prompts("train", 1, seed=0)
  candidates = WORLD.sample(prompt, 1024, generator())
  assert len({content(c.response) for c in candidates}) > 900
  # Every combination of the attributes occurs: 1024 draws miss one of probability 1/24 with
  # probability (23/24)^1024 < 1e-18.
  assert len({c.attributes for c in candidates}) == 2 * 2 * 2 * 3


@pytest.mark.parametrize("skill", [0.2, 0.5])
def test_skill_is_the_rate_of_each_attribute(skill):
  n = 2000
  candidates = World(skill=skill).sample(PROMPT, n, generator())
  for key in ("fact", "layout", "name"):
    rate = np.mean([getattr(c.attributes, key) for c in candidates])
    assert abs(rate - skill) < 5 * math.sqrt(skill * (1 - skill) / n), key


@pytest.mark.parametrize(("confusion", "expected"), [(0.0, set()), (1.0, {"oscar", "hugo"})])
def test_confusion_is_what_wrong_facts_are(confusion, expected):
  wrong = [
    c.response.lower()
    for c in World(confusion=confusion).sample(PROMPT, 200, generator())
    if not c.attributes.fact
  ]
  assert {v for v in ("oscar", "hugo") for text in wrong if v in text} == expected


def rate(pairs, rule):
  """How often the rule puts the chosen response above the other, ties half, and 5 sigma of it."""
  gain = [np.sign(rule(content(c)) - rule(content(r))) for c, r in (p.responses for p in pairs)]
  return np.mean(1 + np.array(gain)) / 2, 5 * 0.5 / math.sqrt(len(pairs))


@pytest.mark.parametrize(("confound", "low", "high"), [(1.5, 0.58, 0.8), (-1.5, 0.2, 0.42)])
def test_length_confound_works_both_ways(confound, low, high):
  pairs = World(length_confound=confound).pairs("train", 1500, seed=0)
  longest, _ = rate(pairs, len)
  assert low < longest < high


def test_without_a_confound_length_tells_nothing():
  longest, bound = rate(World(length_confound=0.0).pairs("train", 1500, seed=0), len)
  assert abs(longest - 0.5) < bound


def test_rules_blind_to_the_prompt_stay_low():
  pairs = WORLD.pairs("train", 1500, seed=0)
  longest, bound = rate(pairs, len)
  assert longest < 0.60 + bound

  def tone_then_length(text):
    sign = sum(s * any(x in text for x in TRAIN.tones[s]) for s in (-1, 1))
    return 1000 * sign + len(text)

  assert rate(pairs, tone_then_length)[0] < 0.64 + bound
  # Which layout and which name say nothing without the prompt.
  for rule in (lambda text: text[0], lambda text: text.split(",")[0].split()[-1]):
    for value in {rule(content(r)) for p in pairs for r in p.responses}:
      share, bound = rate(pairs, lambda text, rule=rule, value=value: rule(text) == value)
      assert abs(share - 0.5) < bound, value


# --- Judges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.25, 0.5])
def test_judges_err_as_bradley_terry(temperature):
  pairs = World(judge_temperature=temperature).pairs("train", 1500, seed=0)
  gaps = np.array([abs(a - b) for a, b in (p.truth for p in pairs)])
  for gap in (0.5, 1.0, 2.0):
    right = [p.truth[0] > p.truth[1] for p, g in zip(pairs, gaps, strict=True) if g == gap]
    expected = sigmoid(gap / temperature)
    sd = math.sqrt(expected * (1 - expected) / len(right))
    assert abs(np.mean(right) - expected) < 4 * sd, gap


def test_judges_noise_is_logistic():
  # Gaussian noise of the scale agrees with the truth 2 % more often, 4 sd of this many pairs.
  pairs = World(judge_temperature=1.0).pairs("train", 6000, seed=0, messages=False)
  gaps = np.array([p.truth[0] - p.truth[1] for p in pairs])
  expected = np.array([sigmoid(abs(gap)) for gap in gaps if gap])
  sd = math.sqrt(np.mean(expected * (1 - expected)) / len(expected))
  assert abs(np.mean(gaps[gaps != 0] > 0) - np.mean(expected)) < 3 * sd


def test_any_two_of_a_ranking_are_judged_as_bradley_terry():
  world = World(judge_temperature=1.0)
  outcomes = {}
  for example in world.rankings("train", 500, k=4, seed=0):
    for i, j in itertools.permutations(range(4), 2):
      gap = example.truth[i] - example.truth[j]
      if gap in (0.5, 1.0, 2.0):
        outcomes.setdefault(gap, []).append(example.labels[i] > example.labels[j])
  for gap, right in outcomes.items():
    expected = 1 / (1 + math.exp(-gap))
    # At most 6 pairs a ranking, and no more than 500 rankings that are independent.
    sd = math.sqrt(expected * (1 - expected) / min(len(right) / 6, 500))
    assert abs(np.mean(right) - expected) < 4 * sd, gap


def test_cold_judge_never_errs():
  pairs = World(judge_temperature=0.0).pairs("train", 200, seed=0)
  assert all(p.truth[0] >= p.truth[1] for p in pairs)


def test_the_judge_changes_no_text():
  hot, cold = (World(judge_temperature=t).pairs("train", 100, seed=0) for t in (5.0, 0.0))
  for a, b in zip(hot, cold, strict=True):
    assert {content(r) for r in a.responses} == {content(r) for r in b.responses}


# --- Ceiling --------------------------------------------------------------------------------------


def example(labels, truth):
  return Example("p", ("a", "b", "c")[: len(labels)], labels, truth=truth)


def test_best_reachable_counts_comparisons_and_halves_ties():
  right, wrong, tie = (example((1.0, 0.0), t) for t in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0)))
  assert best_reachable([right, right, wrong, tie]) == (1 + 1 + 0 + 0.5) / 4
  # c > b, c > a right; b > a wrong.
  assert best_reachable([example((0.0, 1.0, 2.0), (1.0, 0.0, 3.0))]) == 2 / 3
  # Equal labels are no comparison.
  assert best_reachable([example((0.0, 1.0, 1.0), (0.0, 1.0, 3.0))]) == 1.0


def test_best_reachable_of_default_pairs():
  pairs = WORLD.pairs("heldout", 1500, seed=0)
  gaps = [abs(a - b) for a, b in (p.truth for p in pairs)]
  expected = np.mean([sigmoid(g / WORLD.judge_temperature) for g in gaps])
  assert abs(best_reachable(pairs) - expected) < 5 * 0.5 / math.sqrt(len(pairs))
  assert 0.85 < best_reachable(pairs) < 0.92


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: World(judge_temperature=-1.0), "judge_temperature: -1.0"),
    (lambda: World(skill=0.0), "skill: 0.0"),
    (lambda: World(confusion=1.5), "confusion: 1.5"),
    (lambda: World(tone_weight=math.nan), "tone_weight: nan"),
    (lambda: WORLD.prompts("test", 1, seed=0), "split: 'test'"),
    (lambda: WORLD.pairs("train", 1, seed=-1), "seed: -1"),
    (lambda: WORLD.rankings("train", 1, k=1, seed=0), "k: 1"),
    (lambda: WORLD.true_reward("Hello", "Hi"), "prompt: 'Hello'"),
    (lambda: WORLD.true_reward("a\nb\nc", "Hi"), "prompt: 'a"),
    (lambda: best_reachable([]), "examples: no comparison"),
    (lambda: best_reachable([example((1.0, 0.0), None)]), "examples: one has no truth"),
  ],
)
def test_errors_name_the_parameter(call, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    call()


# --- Flips and vocabularies -----------------------------------------------------------------------


def test_flips_turn_over_the_share_they_say_and_leave_the_texts():
  n = 2000
  clean, flipped = (World(flips=f).pairs("train", n, seed=0) for f in (0.0, 0.3))
  turned = 0
  for a, b in zip(clean, flipped, strict=True):
    assert a.prompt == b.prompt
    assert b.responses in (a.responses, a.responses[::-1])
    turned += a.responses != b.responses
    assert a.truth == (b.truth if a.responses == b.responses else b.truth[::-1])
  assert abs(turned / n - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
  everything = World(flips=1.0).pairs("train", 50, seed=0)
  assert all(a.responses == b.responses[::-1] for a, b in zip(clean, everything, strict=False))


def test_flips_of_a_ranking_change_neighbours():
  n = 2000
  clean, flipped = (World(flips=f).rankings("train", n, 3, seed=0) for f in (0.0, 0.2))
  assert all(a.responses == b.responses for a, b in zip(clean, flipped, strict=True))
  same = sum(a.labels == b.labels for a, b in zip(clean, flipped, strict=True)) / n
  # Neither of two places changes; two changes never undo one another.
  assert abs(same - 0.8**2) < 4 * math.sqrt(0.64 * 0.36 / n)
  # The best goes down past all only by a change at each place.
  sunk = [a.labels.index(2.0) == b.labels.index(0.0) for a, b in zip(clean, flipped, strict=True)]
  assert abs(sum(sunk) / n - 0.2**2) < 4 * math.sqrt(0.04 * 0.96 / n)


def test_ties_come_at_davidsons_rate_and_leave_the_others():
  n, world = 3000, World(ties=1.5)
  plain, pairs = WORLD.pairs("train", n, seed=0), world.pairs("train", n, seed=0)
  expected, tied = 0.0, 0
  for a, b in zip(plain, pairs, strict=True):
    # Davidson 1970: strengths a and b, and a tie of weight nu sqrt(a b).
    one, two = (math.exp(r / world.judge_temperature) for r in b.truth)
    weight = 1.5 * math.sqrt(one * two)
    expected += weight / (one + two + weight)
    if b.ties is None:
      assert a == b
    else:
      tied += 1
      assert (b.labels, b.ties) == ((0.0, 0.0), ((0.0, 1.0), (1.0, 0.0)))
      assert b.responses in (a.responses, a.responses[::-1])
  assert abs(tied - expected) < 4 * math.sqrt(n / 4)
  assert not any(
    e.ties
    for e in World(ties=1.5, judge_temperature=0).pairs("train", 40, 0)
    if e.truth[0] != e.truth[1]
  )
  with pytest.raises(ValueError, match="ties: -1; expected >= 0"):
    World(ties=-1)


def test_a_split_in_the_words_of_the_other():
  swapped = World(vocabulary="train").pairs("heldout", 20, seed=0)
  assert all(read_prompt(content(e.prompt)).words is TRAIN for e in swapped)
  own = {content(e.prompt) for e in WORLD.pairs("train", 20, seed=0)}
  assert not own & {content(e.prompt) for e in swapped}
  with pytest.raises(ValueError, match="vocabulary: 'test'; expected one of"):
    World(vocabulary="test")
  with pytest.raises(ValueError, match=r"flips: 1\.5; expected a probability"):
    World(flips=1.5)
