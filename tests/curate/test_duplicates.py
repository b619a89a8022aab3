"""Duplicates: all near ones are found, every kind told apart; no template or sign makes one."""

import itertools

import numpy as np
import pytest

from rm_jax.curate.duplicates import find_duplicates, similar_sides
from rm_jax.curate.join import Join
from rm_jax.curate.ngrams import Sets, jaccard, ngrams
from rm_jax.curate.tokens import key, tokenise
from rm_jax.types import Example
from tests.curate.planted import reworded

SYSTEM = (
  "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
  "while being safe. Your answers should not include any harmful, unethical, racist, sexist, "
  "toxic, dangerous, or illegal content. If a question does not make any sense, or is not "
  "factually coherent, explain why instead of answering something not correct."
)
ALPACA = (
  "Below is an instruction that describes a task. Write a response that appropriately completes "
  "the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)


def pair(prompt, chosen, rejected):
  return Example(prompt, (chosen, rejected), (1.0, 0.0))


# Words without digits: rows that differ in numbers are no duplicates.
_WORDS = ["".join(w) for w in itertools.product("bdfgklmnprst", "aeiou", "bdfgklmnr")][:500]


def sentence(rng, n=40):
  return " ".join(_WORDS[i] for i in rng.integers(0, 500, n))


def test_the_join_misses_no_similar_row():
  """Against all pairs, on sets that share much and little, with elements of two parts alike."""
  rng = np.random.default_rng(0)
  rows = [np.unique(rng.integers(0, 60, rng.integers(2, 25))).astype(np.uint64) for _ in range(300)]
  for i in range(0, 300, 3):  # near copies
    rows[i + 1] = np.unique(np.append(rows[i][1:], rng.integers(0, 60))).astype(np.uint64)
  scattered = [np.sort(r * np.uint64(0x9E3779B97F4A7C15)) for r in rows]
  sets = Sets(np.concatenate(scattered), np.cumsum([0, *map(len, scattered)]))
  for threshold in (0.3, 0.5, 0.7, 0.95):
    for parts in (1, 2):
      join = Join([(sets, np.arange(300))] * parts, threshold)
      compared = 0
      for i in range(300):
        found = set(join.before(i).tolist())
        near = {j for j in range(i) if jaccard(scattered[i], scattered[j]) >= threshold}
        assert near <= found < set(range(300))
        compared += len(found)
      assert compared < 300 * 299 / 2 * (1 - threshold) + 300


def test_each_kind_is_told_apart():
  rng = np.random.default_rng(2)
  p, c, r = (sentence(rng) for _ in range(3))
  base = [
    pair(p, c, r),
    pair(f" {p}\n", c, r),  # 1: exact
    pair(p + " and", c, r),  # 2: near
    pair(p, r + " ", c),  # 3: reversed
    pair(p, c, sentence(rng)),  # 4: another comparison of the same prompt
    pair(sentence(rng), c, r),  # 5: the same responses to another prompt
    pair(p, r + " and", c),  # 6: reversed, near; but near 3 it is a duplicate
    pair(p, c, c + " and"),  # 7: near itself, reversed or not, and no one else
  ]
  found = find_duplicates(base)
  assert [(m.index, m.of, m.similarity) for m in found.exact] == [(1, 0, 1.0)]
  assert [(m.index, m.of) for m in found.near] == [(2, 0), (6, 3)]
  assert 0.7 <= found.near[0].similarity < 1
  assert [(m.index, m.of) for m in found.reversed] == [(3, 0)]
  equal = find_duplicates(base, threshold=0)
  assert [(m.index, m.of) for m in equal.exact] == [(1, 0)]
  assert not equal.near
  assert [(m.index, m.of) for m in equal.reversed] == [(3, 0)]
  # 2 goes as near 0; that the last is its exact reverse leaves it contradicting 0.
  chained = find_duplicates([base[0], base[2], pair(p + " and", r, c)])
  assert [(m.index, m.of) for m in chained.near] == [(1, 0)]
  assert [(m.index, m.of) for m in chained.reversed] == [(2, 0)]
  only_near = find_duplicates([base[0], base[6]])
  assert [(m.index, m.of, m.differs) for m in only_near.reversed] == [(1, 0, "")]
  assert only_near.reversed[0].similarity < 1
  other = find_duplicates([base[0], pair(p + " and", r, c)])
  assert [(m.index, m.differs) for m in other.reversed] == [(1, "the wording of the prompt")]


def test_roles_keep_apart_what_strings_would_not():
  one = ({"role": "user", "content": "a b"},)
  other = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
  assert key(one) != key(other)
  assert key(one) == key(({"role": "user", "content": " \uff41 b\n"},))  # full width
  assert key("a b") == key(" a b") != key(one)
  assert key("a b") != key("A b")
  assert key("10\u00b2") != key("102")  # ten to the second


def test_near_duplicates_are_those_of_all_pairs():
  """Against brute force over pairs without a template: each response has its own Jaccard, and the
  least of the three decides."""
  rng = np.random.default_rng(3)
  examples = [pair(sentence(rng, 25), sentence(rng, 12), sentence(rng, 12)) for _ in range(150)]
  for e in list(examples):
    p, c, r = e.prompt, *e.responses
    kind = rng.integers(4)
    if kind:
      examples.append(pair(reworded(p, rng), reworded(c, rng) if kind > 1 else c, r))
  threshold = 0.6
  sets = [
    ngrams(tokenise(texts), 3)
    for texts in zip(*((e.prompt, *e.responses) for e in examples), strict=True)
  ]

  def similarity(i, j):
    return min(jaccard(s[i], s[j]) for s in sets)

  near = {}
  for j, i in itertools.combinations(range(len(examples)), 2):
    if i not in near and j not in near and similarity(i, j) >= threshold:
      near[i] = j
  assert len(near) > 30
  found = {m.index: m for m in find_duplicates(examples, threshold=threshold).near}
  assert near == {i: found[i].of for i in near}
  for i in near:
    assert found[i].similarity == pytest.approx(similarity(i, near[i]))
  # Beyond them: a changed word in a prompt whose responses tell what was asked.
  for i in found.keys() - near.keys():
    p, q = (examples[k].prompt.split() for k in (i, found[i].of))
    assert len(set(p) & set(q)) >= threshold * min(len(set(p)), len(set(q)))


def test_a_best_response_against_several_others_is_no_duplicate():
  rng = np.random.default_rng(0)
  p, best = sentence(rng, 20), sentence(rng, 250)
  rows = [pair(p, best, sentence(rng, 45)) for _ in range(4)]
  assert find_duplicates(rows) == find_duplicates([])
  better = sentence(rng, 45)  # better > best > the last: no contradiction
  assert find_duplicates([pair(p, best, sentence(rng, 45)), pair(p, better, best)]).reversed == []


@pytest.mark.parametrize(
  ("one", "other", "differs"),
  [
    ("Is {} 3 < 5 ?", "Is {} 3 > 5 ?", "signs"),
    ("What is {} 7 + 5 ?", "What is {} 7 - 5 ?", "signs"),
    ("What is {} -3 * 4 ?", "What is {} 3 * 4 ?", "signs"),
    ("What is {} 5! ?", "What is {} 5 ?", "signs"),
    ("What is {} 10² ?", "What is {} 102 ?", "numbers"),
    ("Add {} 3.5 to it", "Add {} 35 to it", "numbers"),
    ("Take {} 7 from 5", "Take {} 5 from 7", "numbers"),
    ("Why is {} safe", "Why is {} not safe", "a negation"),
    ("Why is {} safe", "Why isn't {} safe", "a negation"),
    ("Spell {} Polish", "Spell {} polish", "case"),
    ("Mend {}\n    return", "Mend {}\nreturn", "indentation"),
  ],
)
def test_what_changes_the_meaning_is_noted_and_no_reason_to_drop(one, other, differs):
  rng = np.random.default_rng(1)
  text, c, r = (sentence(rng, 30) for _ in range(3))
  one, other = one.format(text), other.format(text)
  same, against = pair(other, c, r), pair(other, r, c)
  found = find_duplicates([pair(one, c, r), same])
  assert [(m.index, m.differs) for m in found.near] == [(1, differs)]
  found = find_duplicates([pair(one, c, r), against])
  assert [(m.index, m.differs) for m in found.reversed] == [(1, differs)]
  for rows in (
    [pair(text, one, r), pair(text, other, r)],
    [pair(text, c, one), pair(text, c, other)],
  ):
    assert [m.differs for m in find_duplicates(rows).near] == [differs]
  assert [m.differs for m in similar_sides([pair(text, one, other)], 0.7)] == [differs]


@pytest.mark.parametrize("template", [SYSTEM + "\n\n{}", ALPACA, "{}\n\n" + SYSTEM])
@pytest.mark.parametrize("rows", [6, 60])
def test_questions_under_one_template_are_none_and_copies_are(template, rows):
  """Yes-or-no questions: nothing but the template is alike, wherever it stands."""
  rng = np.random.default_rng(2)
  texts = [sentence(rng, 12) for _ in range(rows)]
  data = [pair(template.format(t), *(("Yes.", "No.") if i % 2 else ("No.", "Yes.")))
          for i, t in enumerate(texts)]  # fmt: skip
  found = find_duplicates(data)
  assert (found.near, found.reversed) == ([], [])
  copies = [
    pair(template.format(texts[3] + " please"), "Yes.", "No."),  # an added word
    pair(template.format(texts[4]), "Yes.", "No."),  # contradicts
    pair(template.format(texts[5]) + " ", "Yes.", "No."),  # equal
  ]
  found = find_duplicates(data + copies)
  assert [(m.index, m.of, m.differs) for m in found.near] == [(rows, 3, "")]
  assert [(m.index, m.of, m.differs) for m in found.reversed] == [(rows + 1, 4, "")]
  assert [(m.index, m.of) for m in found.exact] == [(rows + 2, 5)]


def test_the_last_of_many_rows_under_one_template_is_compared_with_all():
  rng = np.random.default_rng(5)
  data = [
    pair(f"{SYSTEM} {sentence(rng, 15)}", sentence(rng, 30), sentence(rng, 30)) for _ in range(1500)
  ]
  last = data[-1]
  data.append(pair(f"{last.prompt} please", *(f"{r} yes" for r in last.responses)))
  assert [(m.index, m.of) for m in find_duplicates(data).near] == [(1500, 1499)]


def test_one_row_in_two_templates_is_found_where_its_responses_tell():
  rng = np.random.default_rng(6)
  texts = [sentence(rng, 12) for _ in range(40)]
  answers = [(sentence(rng, 20), sentence(rng, 20)) for _ in texts]
  data = [pair(ALPACA.format(t), *a) for t, a in zip(texts, answers, strict=True)]
  odd = [
    pair(texts[7], *answers[7]),
    pair(f"Please, be so kind and tell us all that can be known: {texts[8]}", *answers[8]),
  ]
  assert [(m.index, m.of, m.differs) for m in find_duplicates(data + odd).near] == [
    (40, 7, ""),
    (41, 8, ""),
  ]
  # 'Yes.' over 'No.' tells nothing.
  data = [pair(ALPACA.format(t), "Yes.", "No.") for t in texts]
  (match,) = find_duplicates([*data, pair(texts[7], "Yes.", "No.")]).near
  assert (match.index, match.of, match.differs) == (40, 7, "the template")
  # Neither do refusals that stand under many prompts, some with words in common.
  refusal = [sentence(rng, 20), sentence(rng, 20)]
  data = [pair(f"Can you please help me {t[:30]}", *refusal) for t in texts]
  assert find_duplicates(data).near == []


def test_a_text_with_many_near_copies_keeps_one():
  """A passage that is there often is no template's: nothing but copies stands beside it."""
  rng = np.random.default_rng(4)
  p, c, r = sentence(rng), sentence(rng), sentence(rng)
  others = [pair(sentence(rng), sentence(rng), sentence(rng)) for _ in range(50)]
  for before in ("", SYSTEM + " "):
    words = p.split()
    copies = [
      pair(before + " ".join([*words[:k], "quite", *words[k + 1 :]]), c, r) for k in range(1, 40)
    ]
    data = [pair(before + e.prompt, *e.responses) for e in others] + copies
    found = find_duplicates(data)
    gone = {m.index for m in found.exact} | {m.index for m in found.near if not m.differs}
    assert gone == set(range(51, 50 + len(copies)))


def test_a_pair_of_near_sides_contradicts_its_reverse_and_does_not_repeat_it():
  rng = np.random.default_rng(7)
  p, c = sentence(rng), sentence(rng)
  found = find_duplicates([pair(p, c, c + " and"), pair(p, c + " and", c)])
  assert found.near == []
  assert [(m.index, m.of) for m in found.reversed] == [(1, 0)]


@pytest.mark.parametrize(("one", "other"), [("x[1:]", "x[:1]"), ("eat, Grandma", "eat Grandma")])
def test_sides_that_differ_in_no_token_contradict_their_reverse(one, other):
  prompt = "Which of the two ways to write it is the right one in such a case?"
  a, b = (f"I would say that you should write it as {x} and in no other way" for x in (one, other))
  found = find_duplicates([pair(prompt, a, b), pair(prompt, b, a)])
  assert found.near == []
  assert [(m.index, m.of, m.similarity) for m in found.reversed] == [(1, 0, 1.0)]


def test_similar_sides():
  text = sentence(np.random.default_rng(5))
  sides = [
    pair("p", "yes", " yes "),
    pair("p", text, text + " and"),
    pair("p", text, text.replace("a", "y")),
    pair("p", "yes", "yes!"),
  ]
  found = similar_sides(sides, 0.9)
  assert [m.index for m in found] == [0, 1, 3]
  assert found[0].similarity == 1.0
  assert 0.9 < found[2].similarity < 1  # equal words, another sign: near and not equal
  assert [m.index for m in similar_sides(sides, 0)] == [0]
  assert similar_sides([], 0.9) == []
  # What a task may be about: capital letters, layout, a sign.
  marked = [("PARIS", "Paris"), ("def f():\n  return 1", "def f():\nreturn 1"), ("-12", "12")]
  assert not [m for m in similar_sides([pair("p", *s) for s in marked], 0.9) if not m.differs]


def test_refuses():
  with pytest.raises(ValueError, match="threshold is 1"):
    find_duplicates([], threshold=1)
  ranking = Example("p", ("a", "b", "c"), (2.0, 1.0, 0.0), origin="f:7")
  with pytest.raises(ValueError, match="f:7: 3 responses; expected a pair"):
    find_duplicates([ranking])
  assert find_duplicates([]).near == []
