"""Final answers: every mark, equal numbers in every form, and what is no answer."""

import doctest
import time

import pytest

from rm_jax.data import answers
from rm_jax.data.answers import canonical, final_answer


def test_the_examples_of_the_module():
  assert doctest.testmod(answers) == (0, 3)


@pytest.mark.parametrize(
  "solution",
  [
    "#### 1000",
    "####1,000\n",
    "A: 1000.0",
    "A: $1,000.00.",
    "x\n A: 7\nno, wait\nA:\n\n1000",
    "answer: **1000**",
    "So it is 9.\n# Answer\n\n1000",
    "The answer is: $1000$.",
    "the answer is \\boxed{1000}.",
    "\\boxed {\\$1,000}",
    "A: <<20*50=1000>>1000",
    "A: +01000",
    "#### 2000/2",
    "A: \\(\\dfrac{2000}{2}\\)",
    "A: 1000\r\n",
    "1000",
  ],
)
def test_one_number_in_many_forms_is_one_answer(solution):
  assert final_answer(solution) == "1000"


@pytest.mark.parametrize(
  ("solution", "expected"),
  [
    ("A: -3", "-3"),
    ("A: −3", "-3"),
    ("A: -$3", "-3"),
    ("A: $-3.0", "-3"),
    ("A: -0", "0"),
    ("A: .5", "1/2"),
    ("A: 0.50", "1/2"),
    ("A: 5 / 10", "1/2"),
    ("A: 1/0", "1/0"),
    ("A: 1,5", "1,5"),
    ("A: 1,000,00", "1,000,00"),
    ("A: 18 Dollars.", "18 dollars"),
    ("A: 50%", "50%"),
    ("A: -1.8 billion", "-1.8 billion"),
    ("A: 10+John's age", "10+john's age"),
    ("A: 1e999999999", "1e999999999"),
    ("A: ٣", "٣"),
    ("\\boxed{\\frac{1}{x_{2}}}", "\\frac{1}{x_{2}}"),
    ("#### 1 000", "1 000"),
  ],
)
def test_what_else_an_answer_may_be(solution, expected):
  assert final_answer(solution) == expected


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    (r"2\frac{1}{2}", "5/2"),
    (r"-2\frac{1}{2}", "-5/2"),
    (r"$-2 \tfrac{1}{2}$", "-5/2"),
    (r"1,000\dfrac{1}{2}", "2001/2"),
    ("2 1/2", "5/2"),
    (r"-\frac{2}{4}", "-1/2"),
    # No mixed numbers, and never the text of another answer.
    (r"2\frac{5}{3}", r"2\frac{5}{3}"),
    (r"2\frac{1}{0}", r"2\frac{1}{0}"),
    ("1 000/2000", "1 000/2000"),
    (r"2^\frac{1}{2}", r"2^\frac{1}{2}"),
    (r"2^\frac12", r"2^\frac12"),
    (r"x\frac{1}{2}", r"x\frac{1}{2}"),
  ],
)
def test_a_number_before_a_fraction_is_a_mixed_number(answer, expected):
  assert canonical(answer) == expected
  assert final_answer(rf"so \boxed{{{answer}}}") == expected


@pytest.mark.parametrize(
  "solution",
  ["", "It is 18", "A:", "A: 3\nA:", "####", "A: $", "A: ...", "\\boxed{3", "Q&A: 4", "So, +"],
)
def test_no_answer_is_none(solution):
  assert final_answer(solution) is None


def test_a_digit_that_is_repeated_until_the_end_costs_no_time():
  began = time.perf_counter()
  for text in ("0." + "3" * 100_000, "9" * 100_000, "1," * 50_000, "\\boxed" + "{" * 100_000):
    final_answer(f"A: {text}")
    final_answer("A:" * 1000 + text)
  assert time.perf_counter() - began < 2
  assert canonical("9" * 100) == "9" * 100
