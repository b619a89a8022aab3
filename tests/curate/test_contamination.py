"""Contamination: which n-grams count, of which text the share is, and what a flag names."""

import numpy as np
import pytest

from rm_jax.curate.contamination import contaminated
from rm_jax.types import Example


def pair(prompt, chosen="yes", rejected="no"):
  return Example(prompt, (chosen, rejected), (1.0, 0.0))


def sentence(start, n):
  return " ".join(f"w{i}" for i in range(start, start + n))


def test_shares_are_of_the_shorter_text():
  held = [pair(sentence(1000, 30)), pair(sentence(0, 20))]
  train = [
    pair(sentence(0, 20).upper()),  # 0: shares all its 8-grams
    pair(sentence(500, 100) + " " + sentence(0, 20)),  # 1: contains the held-out text
    pair(sentence(0, 12) + " " + sentence(600, 8)),  # 2: 5 of 13 8-grams
    pair(sentence(0, 14) + " " + sentence(600, 6)),  # 3: 7 of 13
    pair(sentence(0, 7) + " " + sentence(600, 13)),  # 4: 7 common words are no 8-gram
  ]
  found = contaminated(train, held, n=8, share=0.5)
  assert [(o.index, o.of, o.part, o.shared) for o in found] == [
    (0, 1, "prompt", 13),
    (1, 1, "prompt", 13),
    (3, 1, "prompt", 7),
  ]
  assert [o.share for o in found] == [1.0, 1.0, 7 / 13]
  assert [o.index for o in contaminated(train, held, n=8, share=5 / 13)] == [0, 1, 2, 3]
  assert [o.index for o in contaminated(train, held, n=7, share=0.01)] == [0, 1, 2, 3, 4]


def test_short_texts_match_as_a_whole_only():
  held = [pair("How are you?")]
  train = [pair("how are YOU"), pair("how are you today"), pair(sentence(0, 9) + " how are you")]
  assert [o.index for o in contaminated(train, held)] == [0]


def test_parts():
  text = [sentence(i * 100, 20) for i in range(6)]
  held = [pair(text[0], text[1], text[2])]
  train = [
    pair(text[0], text[3], text[4]),
    pair(text[3], text[4], text[2]),
    pair(text[0], text[2], text[4]),
    pair(text[3], text[4], text[5]),
  ]

  def indices(part):
    return [(o.index, o.part) for o in contaminated(train, held, part=part)]

  assert indices("prompt") == [(0, "prompt"), (2, "prompt")]
  assert indices("response") == [(1, "response"), (2, "response")]
  assert indices("either") == [(0, "prompt"), (1, "response"), (2, "prompt")]
  assert [i for i, _ in indices("both")] == [2]
  two = pair(text[3], text[1], " ".join(text[2].split()[:14]) + " " + text[4][:30])
  # The larger of two overlaps.
  assert [o.share for o in contaminated([two], held, part="response")] == [1.0]


def test_many_against_sets_of_words():
  rng = np.random.default_rng(0)
  texts = [" ".join(rng.choice(list("abc"), rng.integers(3, 15))) for _ in range(200)]
  train, held = [pair(t) for t in texts[:100]], [pair(t) for t in texts[100:]]

  def grams(text, n=4):
    w = text.split()
    return {tuple(w[i : i + n]) for i in range(len(w) - n + 1)} or {("all", *w)}

  expected = {}
  for i, t in enumerate(texts[:100]):
    shares = [len(grams(t) & grams(h)) / min(len(grams(t)), len(grams(h))) for h in texts[100:]]
    if max(shares) >= 0.5:
      expected[i] = max(shares)
  found = contaminated(train, held, n=4, share=0.5)
  assert {o.index: o.share for o in found} == expected
  assert 0 < len(expected) < 100


def test_refuses_and_has_no_trouble_with_nothing():
  assert contaminated([], [pair("a")]) == []
  assert contaminated([pair("a")], []) == []
  with pytest.raises(ValueError, match="share is 0"):
    contaminated([], [], share=0)
  with pytest.raises(ValueError, match="part is 'prompts'; expected one of prompt"):
    contaminated([], [], part="prompts")


TEMPLATE = (
  "Below is an instruction that describes a task. Write a response that appropriately completes "
  "the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)


def letters(rng, n):
  return " ".join("".join(rng.choice(list("abcdefghij"), 5)) for _ in range(n))


@pytest.mark.parametrize("size", [5, 9, 30])
def test_a_template_is_no_overlap_and_hides_none(size):
  rng = np.random.default_rng(1)
  held = [letters(rng, size) for _ in range(10)]
  train = [letters(rng, size) for _ in range(100)]
  train[3], train[60] = held[2], held[7].upper()
  # Questions that start alike share the n-grams of the template in front of them, and no others.
  train[8] = " ".join(held[5].split()[: size // 3] + letters(rng, size).split()[size // 3 :])
  wrap = [[pair(TEMPLATE.format(t)) for t in texts] for texts in (train, held)]
  assert [(o.index, o.of, o.share) for o in contaminated(*wrap)] == [(3, 2, 1.0), (60, 7, 1.0)]
  bare = [pair(t) for t in held]
  if size >= 8:  # In another template, and in none.
    assert [(o.index, o.of) for o in contaminated(wrap[0], bare)] == [(3, 2), (60, 7)]


def test_a_leak_in_many_wrappings_is_no_template():
  rng = np.random.default_rng(2)
  leak = letters(rng, 20)
  train = [pair(f"{letters(rng, 30)} {leak} {letters(rng, 30)}") for _ in range(12)]
  train += [pair(letters(rng, 30)) for _ in range(300)]
  held = [pair(leak), *(pair(letters(rng, 20)) for _ in range(20))]
  assert [o.index for o in contaminated(train, held)] == list(range(12))


def test_a_sign_is_a_difference():
  held = [pair("Is 3 < 5?"), pair("What is 7 + 5?")]
  train = [pair("Is 3 > 5?"), pair("What is 7 - 5?"), pair("is 3 < 5")]
  assert [(o.index, o.of) for o in contaminated(train, held)] == [(2, 0)]


def test_a_leak_that_two_held_out_prompts_have_is_no_template():
  rng = np.random.default_rng(3)
  leak = letters(rng, 30)
  held = [pair(f"{leak} {letters(rng, 10)}") for _ in range(2)]
  held += [pair(letters(rng, 40)) for _ in range(20)]
  train = [pair(leak), *(pair(f"{leak} {letters(rng, 10)}") for _ in range(5))]
  train += [pair(letters(rng, 40)) for _ in range(50)]
  assert [o.index for o in contaminated(train, held)] == list(range(6))


def test_a_leak_between_changed_templates_is_of_the_text_that_was_changed_less():
  """Each text has the other's template with words changed, where it counts as content."""
  rng = np.random.default_rng(4)
  first, second, leak = letters(rng, 12), letters(rng, 12), letters(rng, 12)

  def changed(template, every):
    words = template.split()
    return " ".join(letters(rng, 1) if i % every == every // 2 else w for i, w in enumerate(words))

  train = [pair(f"{template} {letters(rng, 30)}") for template in (first, second) * 40]
  train.append(pair(f"{first} {leak} {changed(second, 8)}"))
  held = [pair(f"{second} {leak} {changed(first, 5)}")]
  (found,) = contaminated(train, held, n=4)
  # The leak's 12 words are 9 n-grams. The training text has 7 others: 4 with the one changed word,
  # and 3 over the end of the leak.
  assert (found.index, found.shared, found.share) == (80, 9, 9 / 16)
