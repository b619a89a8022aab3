"""The final answer of a solution, in a form in which equal numbers are equal.

>>> final_answer("18 - 9 = 9, twice\\n#### 1,000.0")
'1000'
>>> final_answer("So the answer is $\\\\frac{2}{4}$.")
'1/2'
>>> final_answer("I do not know.") is None
True
"""

import re
from fractions import Fraction

# What stands before a final answer: GSM8K's own mark, that of its model solutions ('A:' at a line's
# beginning), PRM800K's, Math-Shepherd's words, and LaTeX's box.
_MARK = re.compile(
  r"####|^[ \t]*#[ \t]*Answer[ \t]*$|^[ \t]*A(?:nswer)?:|\banswer is\b:?|\\boxed[ \t]*(?=\{)",
  re.IGNORECASE | re.MULTILINE,
)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K's annotations of a calculator
_AROUND = re.compile(r"^(?:\$\$|\$|\\\(|\\\[|\*\*)|(?:\$\$|\$|\\\)|\\\]|\*\*)$")
_SIGNS = str.maketrans({"−": "-", "–": "-", "\u00a0": " ", "\u202f": " "})
_CURRENCY = re.compile(r"^([+-]?)[ ]?(?:\\?\$|€|£|¥|₹)[ ]?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?")
_FRACTION = re.compile(r"([+-]?)([0-9]+)[ ]?/[ ]?([0-9]+)")
_LATEX_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
# A whole number and a fraction, 2 1/2 or 2\frac{1}{2}: their sum.
_WHOLE = r"([+-]?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_MIXED = re.compile(_WHOLE + r"[ ]([1-9][0-9]*)/([0-9]+)")
_LATEX_MIXED = re.compile(_WHOLE + r"[ ]?\\[dt]?frac\{([1-9][0-9]*)\}\{([0-9]+)\}")
# Numbers with more digits are compared as text: exact arithmetic with them would cost time, and a
# sample that repeats a digit until it is cut off has hundreds.
_DIGITS = 40


def final_answer(solution: str) -> str | None:
  """The final answer of a solution; equal numbers, however written, give the same string.

  It is the first line with text behind the last of these marks: `####`, `A:` or `Answer:` at the
  beginning of a line, a line `# Answer`, `answer is`, or what is in the braces of `\\boxed{...}`.

  Args:
    solution: any text.

  Returns:
    A number as the shortest fraction, such as '1000' (from 1,000 and $1000.00), '1/2' (from 0.5,
    2/4 and \\frac{1}{2}) or '5/2' (from the mixed numbers 2 1/2 and 2\\frac{1}{2}); signs of
    currency and the thousands' commas do not matter. Any other answer as its text in lower case
    without a full stop at the end, such as '18 dollars', '50%', '10 + x' and 'x\\frac{1}{2}': no
    number is guessed from the middle of a text. None where no mark is found (unless the whole
    solution is a number), or nothing is behind the last one, as in one that was cut off.
  """
  found = None
  for found in _MARK.finditer(solution):  # noqa: B007 (the last one is wanted)
    pass
  if found is None:
    return _number(" ".join(solution.split()))
  rest = solution[found.end() :]
  rest = _in_braces(rest) if found[0].startswith("\\") else rest
  lines = (_CALCULATOR.sub("", line).strip() for line in (rest or "").split("\n"))
  line = next((line for line in lines if line), "")
  return canonical(line)


def canonical(answer: str) -> str | None:
  """An answer as `final_answer` returns it; None where it has no letter and no digit."""
  text = " ".join(answer.translate(_SIGNS).split())
  before = None
  while before != text:
    before = text
    text = text.removesuffix(".").strip()
    text = _CURRENCY.sub(r"\1", text) if _CURRENCY.match(text) and text[-1] not in "$" else text
    text = _AROUND.sub("", text).strip()
  return _number(text) or (text.casefold() if any(map(str.isalnum, text)) else None)


def _number(text: str) -> str | None:
  """The number that a whole text is, as the shortest fraction; None where it is none."""
  digits = sum(c.isdigit() for c in text)
  if not 0 < digits <= _DIGITS:
    return None
  if _NUMBER.fullmatch(text):
    return str(Fraction(text.replace(",", "")))
  if found := _FRACTION.fullmatch(text) or _LATEX_FRACTION.fullmatch(text):
    sign, above, below = found[1], int(found[2]), int(found[3])
    return str(Fraction(-above if sign == "-" else above, below)) if below else None
  if found := _MIXED.fullmatch(text) or _LATEX_MIXED.fullmatch(text):
    sign, whole, above, below = (
      found[1],
      int(found[2].replace(",", "")),
      *map(int, found.group(3, 4)),
    )
    # A number before a fraction of 1 or more is a factor rather than a summand.
    if above < below:
      number = whole + Fraction(above, below)
      return str(-number if sign == "-" else number)
  return None


def _in_braces(text: str) -> str | None:
  """What is in the braces that a text begins with; None where they are not closed."""
  depth = 0
  for at, letter in enumerate(text):
    depth += (letter == "{") - (letter == "}")
    if not depth:
      return text[1:at]
  return None
