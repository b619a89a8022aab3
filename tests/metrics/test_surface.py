"""Surface features of texts, each against a count by hand."""

import itertools
import random
import re
import unicodedata

import pytest

from rm_jax.metrics.surface import (
  ALONE,
  MEASURES,
  formatting,
  longest_run,
  normalise,
  refusal,
  repetition,
  sycophancy,
  words,
)


def test_normalise():
  assert normalise("Ｈｅｌｌｏ \n\t World ") == "hello world"
  assert normalise("Straße ﬁx") == "strasse fix"
  assert normalise("e\u0301") == "é"  # The composed form.
  assert normalise(normalise("İ ŉ")) == normalise("İ ŉ")


def test_words():
  assert words("Don't stop, 12.5%!") == ["don", "t", "stop", "12", "5"]
  assert words("我是 Mia。") == ["我", "是", "mia"]
  assert words(" ... ") == []


def test_a_mark_belongs_to_the_word_of_its_letter():
  assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
  assert words("தமிழ் மொழி, বাংলা") == ["தமிழ்", "மொழி", "বাংলা"]
  assert words("ශ්\u200dරී ලංකා") == ["ශ්\u200dරී", "ලංකා"]  # A joiner behind a mark.
  assert words("\U00011315\U0001133f\U00011328") == ["\U00011315\U0001133f\U00011328"]  # Grantha.
  assert words("ไม่") == list("ไม่")
  # A glyph's selector is in no word, nor is a mark without a letter.
  assert words("1\ufe0f\u20e3 ok \u2764\ufe0f \u0301") == ["1", "ok"]


def test_words_of_text_without_marks_are_runs_of_letters():
  rng = random.Random(0)
  near = list(map(chr, (*range(32, 0x300), 0x2019, 0x3B1, 0x431, 0x4E00, 0x3042)))
  near = [c for c in near if not any(map(unicodedata.combining, normalise(c)))]
  for _ in range(500):
    text = normalise("".join(rng.choices(near, k=60)))
    assert words(text) == re.findall(rf"[{ALONE}]|[^\W{ALONE}]+", text)


@pytest.mark.parametrize(
  ("text", "marks"),
  [
    ("plain - text, 3 * 4 and snake_case", 0),
    ("# A\n\n- b\n* c\n1. d\n2) e\n> f", 6),
    ("**a** and `b` and [c](d)", 3),
    ("```\nx\n```", 2),
    ("| a | b |\n| - | - |", 2),
    ("", 0),
  ],
)
def test_formatting(text, marks):
  assert formatting(text) == marks


def test_repetition():
  assert repetition("a b c d e") == 0
  assert repetition("a b") == 0
  # The trigrams are a-b-c, b-c-a, c-a-b, a-b-c: one of four occurred before.
  assert repetition("a b c a b c") == 1 / 4
  assert repetition("No, no. NO no!") == 1 / 2


@pytest.mark.parametrize(
  ("text", "run"),
  [
    ("", 0),
    ("...", 0),
    ("one", 1),
    ("one two three", 1),
    ("No, no. NO!", 3),
    ("well go on go on go on now", 3),
    ("a b a", 1),  # a occurs twice, but not back to back
    ("1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8", 2),
    ("1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9", 1),  # a phrase of nine words is too long to be found
  ],
)
def test_longest_run(text, run):
  assert longest_run(text) == run


def test_longest_run_against_a_search():
  random.seed(0)
  for _ in range(300):
    found = random.choices("ab", k=random.randint(1, 20))
    best = 1
    for start, period in itertools.product(range(len(found)), range(1, 9)):
      times = 1
      while found[start + times * period :][:period] == found[start : start + period]:
        times += 1
      best = max(best, times)
    assert longest_run(" ".join(found)) == best


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("The parrot belongs to Marta.", 0),
    ("Great question! You are absolutely right, and I completely agree.", 3),
    ("You\u2019re right. I\u2019m so sorry; my apologies.", 3),
    ("Thank you for asking! I apologise.", 2),
    ("A great many questions remain; they are right; sorry sight.", 0),
  ],
)
def test_sycophancy(text, count):
  assert sycophancy(text) == count


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("I can help you with that.", 0),
    ("As an AI language model, I cannot assist with that.", 2),
    ("I\u2019m sorry, but I can\u2019t really help. I am unable to.", 2),
    ("She cannot help; he is unable to.", 0),
  ],
)
def test_refusal(text, count):
  assert refusal(text) == count


def test_every_measure_takes_any_text():
  for text in ("", " ", "\n\n", "\U0001f600", "我是 Mia。", "a" * 10_000):
    for name, measure in MEASURES.items():
      assert measure(text) >= 0, name
  assert MEASURES["characters"]("ab c") == 4
  assert MEASURES["words"]("ab c") == 2


def test_formatting_of_many_line_breaks_is_one_pass():
  assert formatting("\n" * 100_000 + "# a") == 1  # minutes, if each looked at all that follow
