"""Duplicates: all near ones are found, kinds are told apart, templates and signs make none."""

import itertools

import numpy as np
import pytest

from rm_jax.curate.duplicates import find_duplicates, similar_sides
from rm_jax.curate.join import Join
from rm_jax.curate.ngrams import Sets, ngrams
from rm_jax.curate.templates import template_tokens
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


# The words have no digits, because rows that differ in numbers would not be duplicates.
_WORDS = ["".join(w) for w in itertools.product("bdfgklmnprst", "aeiou", "bdfgklmnr")][:500]


def sentence(rng, n=40):
  return " ".join(_WORDS[i] for i in rng.integers(0, 500, n))


def jaccard(a, b):
  return len(np.intersect1d(a, b)) / len(np.union1d(a, b)) if len(a) or len(b) else 1.0


@pytest.mark.slow
def test_the_join_misses_no_similar_row():
  """Candidates against a comparison of all pairs, on sets that share much and that share little."""
  rng = np.random.default_rng(0)
  rows = [np.unique(rng.integers(0, 60, rng.integers(2, 25))).astype(np.uint64) for _ in range(300)]
  for i in range(0, 300, 3):  # Near copies.
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
    pair(p, r + " and", c),  # 6: near 3 reversed, but near 3 itself, so a duplicate
    pair(p, c, c + " and"),  # 7: near its own reverse, and no other row
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
  # 2 is dropped as near 0, and the last row is its exact reverse all the same.
  chained = find_duplicates([base[0], base[2], pair(p + " and", r, c)])
  assert [(m.index, m.of) for m in chained.near] == [(1, 0)]
  assert [(m.index, m.of, m.differs) for m in chained.reversed] == [(2, 1, "")]
  only_near = find_duplicates([base[0], base[6]])
  assert [(m.index, m.of, m.differs) for m in only_near.reversed] == [(1, 0, "")]
  assert only_near.reversed[0].similarity < 1
  other = find_duplicates([base[0], pair(p + " and", r, c)])
  assert [(m.index, m.differs) for m in other.reversed] == [(1, "the wording of the prompt")]


def test_roles_keep_apart_what_strings_would_not():
  one = ({"role": "user", "content": "a b"},)
  other = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
  assert key(one) != key(other)
  assert key(one) == key(({"role": "user", "content": " \uff41 b\n"},))  # Full-width letters.
  assert key("a b") == key(" a b") != key(one)
  assert key("a b") != key("A b")
  assert key("10\u00b2") != key("102")  # 10 squared.


def test_a_row_that_shares_elements_only_with_itself_has_no_candidates():
  """The two parts of each row are equal, so every element occurs twice, and in no other row."""
  rows = np.arange(3)
  sets = Sets(np.arange(12, dtype=np.uint64) << np.uint64(52), np.arange(0, 13, 4))
  join = Join([(sets, rows), (sets, rows)], 0.5)
  assert [join.before(i).tolist() for i in range(3)] == [[], [], []]


def test_near_duplicates_are_those_of_all_pairs():
  """Against brute force over pairs without templates: the prompt and each response have a
  similarity, and the smallest of the three decides."""
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
  # A word of a prompt may also change if long responses tell what was asked.
  for i in found.keys() - near.keys():
    p, q = (examples[k].prompt.split() for k in (i, found[i].of))
    assert len(set(p) & set(q)) >= threshold * min(len(set(p)), len(set(q)))


def test_a_best_response_against_several_others_is_no_duplicate():
  rng = np.random.default_rng(0)
  p, best = sentence(rng, 20), sentence(rng, 250)
  rows = [pair(p, best, sentence(rng, 45)) for _ in range(4)]
  assert find_duplicates(rows) == find_duplicates([])
  better = sentence(rng, 45)  # better > best > the last: no contradiction.
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
  """Yes-or-no questions with only a template in common, before, behind or around them."""
  rng = np.random.default_rng(2)
  texts = [sentence(rng, 12) for _ in range(rows)]
  data = [pair(template.format(t), *(("Yes.", "No.") if i % 2 else ("No.", "Yes.")))
          for i, t in enumerate(texts)]  # fmt: skip
  found = find_duplicates(data)
  assert (found.near, found.reversed) == ([], [])
  copies = [
    pair(template.format(texts[3] + " please"), "Yes.", "No."),  # 3 with a word added
    pair(template.format(texts[4]), "Yes.", "No."),  # 4 reversed
    pair(template.format(texts[5]) + " ", "Yes.", "No."),  # equal
  ]
  found = find_duplicates(data + copies)
  assert [(m.index, m.of, m.differs) for m in found.near] == [(rows, 3, "")]
  assert [(m.index, m.of, m.differs) for m in found.reversed] == [(rows + 1, 4, "")]
  assert [(m.index, m.of) for m in found.exact] == [(rows + 2, 5)]


def test_a_margin_is_of_the_template_inside_the_text():
  """Words at the end of texts whose template stands between two slots."""
  rng = np.random.default_rng(0)
  inside = "please read all of what is above before you answer the question"
  texts = [f"{sentence(rng, 12)} {inside} {sentence(rng, 12)} thank you" for _ in range(8)]
  texts += [f"{sentence(rng, 24)} thank you" for _ in range(8)]  # in no template
  tokens = tokenise(texts)
  masked = template_tokens(tokens, np.arange(len(texts)))
  for i in range(len(texts)):
    part = slice(tokens.starts[i], tokens.starts[i + 1])
    hidden = [tokens.vocabulary[t] for t in tokens.ids[part][masked[part]]]
    assert hidden == ([*inside.split(), "thank", "you"] if i < 8 else []), texts[i]


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
  # 'Yes.' over 'No.' does not tell what was asked.
  data = [pair(ALPACA.format(t), "Yes.", "No.") for t in texts]
  (match,) = find_duplicates([*data, pair(texts[7], "Yes.", "No.")]).near
  assert (match.index, match.of, match.differs) == (40, 7, "the template")
  # Refusals that answer many prompts, some of them with common words, do not either.
  refusal = [sentence(rng, 20), sentence(rng, 20)]
  data = [pair(f"Can you please help me {t[:30]}", *refusal) for t in texts]
  assert find_duplicates(data).near == []


def test_a_text_with_many_near_copies_keeps_one():
  """A passage in many copies of one text is not a template, because the same text surrounds it."""
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


def judged(prompt, sides, p=1.0):
  """A pair whose first response is better with probability p; None = a tie."""
  if p is None:
    return Example(prompt, sides, (0.0, 0.0), ties=((0.0, 1.0), (1.0, 0.0)))
  return Example(prompt, sides, (p, 1 - p), pairs=((0.0, p), (1 - p, 0.0)))


@pytest.mark.parametrize("words", [2, 40])  # equal texts alone are compared, and near ones too
def test_labels_and_not_the_order_of_responses_say_what_agrees(words):
  rng = np.random.default_rng(11)
  p, c, r = (sentence(rng, words) for _ in range(3))
  ab, ba = (c, r), (r, c)
  near = (c, r) if words == 2 else (c + " and", r)

  def found(one, other):
    said = find_duplicates([one, other])
    return [(m.index, m.of) for m in said.exact + said.near], [
      (m.index, m.of) for m in said.reversed
    ]

  agree, contradict, neither = ([(1, 0)], []), ([], [(1, 0)]), ([], [])
  for second in (near, ab):
    turned = second[::-1]
    assert found(judged(p, ab, 0.9), judged(p, second, 0.8)) == agree
    assert found(judged(p, ab, 0.9), judged(p, turned, 0.1)) == agree
    assert found(judged(p, ba, 0.1), judged(p, second, 1.0)) == agree
    assert found(judged(p, ab, 0.9), judged(p, second, 0.1)) == contradict
    assert found(judged(p, ab, 0.4), judged(p, turned, 0.3)) == contradict
    assert found(judged(p, ab, None), judged(p, second, None)) == agree
    assert found(judged(p, ab, None), judged(p, turned, None)) == agree
    assert found(judged(p, ab, None), judged(p, second, 0.9)) == neither
    assert found(judged(p, ab, 0.9), judged(p, turned, None)) == neither
  ranking = Example(p, ab, (1.0, 3.0), kind="ranking")
  assert found(ranking, judged(p, ba)) == agree
  assert found(ranking, judged(p, ab)) == contradict


def test_a_near_tie_among_many_is_found_in_either_order():
  rng = np.random.default_rng(12)
  p, c = sentence(rng), sentence(rng)
  rows = [judged(p, (c, sentence(rng)), None) for _ in range(50)]
  a, b = rows[7].responses
  found = find_duplicates([*rows, judged(p, (b + " and", a), None)])
  assert [(m.index, m.of) for m in found.near] == [(50, 7)]
  assert found.reversed == []


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
  assert 0.9 < found[2].similarity < 1  # Equal words and another sign: near, not equal.
  assert [m.index for m in similar_sides(sides, 0)] == [0]
  assert similar_sides([], 0.9) == []
  # Differences that can be the point of a task: capital letters, layout, a sign.
  marked = [("PARIS", "Paris"), ("def f():\n  return 1", "def f():\nreturn 1"), ("-12", "12")]
  assert not [m for m in similar_sides([pair("p", *s) for s in marked], 0.9) if not m.differs]


@pytest.mark.parametrize(
  ("one", "other"),
  [("C", "C#"), ("at 3:15", "at 3 15"), ("return x[1:]", "return x[:1]"), ("a[:n]", "a[n]")],
)
def test_a_sign_is_a_difference_of_meaning(one, other):
  """Such rows are no duplicates to drop and contradict no other: they are noted for people."""
  same = find_duplicates([pair("Which?", one, "Java"), pair("Which?", other, "Java")])
  assert not same.exact
  assert all(match.differs for match in same.near)
  opposite = find_duplicates([pair("Which?", one, "Java"), pair("Which?", "Java", other)])
  assert all(match.differs for match in opposite.reversed)


@pytest.mark.parametrize("other", ["It is so?", "It is: so", "It is 'so'", "# It is so"])
def test_punctuation_is_none(other):
  (match,) = find_duplicates([pair("Say it", "It is so.", "no"), pair("Say it", other, "no")]).near
  assert (match.similarity < 1, match.differs) == (True, "")


def test_refuses():
  with pytest.raises(ValueError, match="threshold is 1"):
    find_duplicates([], threshold=1)
  ranking = Example("p", ("a", "b", "c"), (2.0, 1.0, 0.0), origin="f:7")
  with pytest.raises(ValueError, match=r"f:7: 3 responses \(pair\); expected a pair"):
    find_duplicates([ranking])
  outcomes = Example("p", ("a", "b"), (1.0, 0.0), kind="outcome", origin="f:8")
  with pytest.raises(ValueError, match=r"f:8: 2 responses \(outcome\); expected a pair"):
    find_duplicates([outcomes])
  assert find_duplicates([]).near == []
