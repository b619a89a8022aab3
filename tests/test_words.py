"""The study that draws comments and docstrings finds each of them once, and no other text."""

import pytest

from tests.studies.words import ROOT, comments, docstrings, occurrences, texts

SOURCE = '''"""Module."""

# One block
# of two lines.
x = "# no comment"  # behind code
# A block of its own.


class A:
  """Class."""

  def f(self):  # noqa: N802
    """Function."""
    # Last.
'''


def test_every_docstring_is_found_with_its_line():
  assert sorted(docstrings(SOURCE)) == [(1, "Module."), (10, "Class."), (13, "Function.")]


def test_consecutive_comment_lines_are_one_text_and_directives_are_none():
  assert list(comments(SOURCE)) == [
    (3, "# One block\n# of two lines."),
    (5, 'x = "# no comment"  # behind code'),
    (6, "# A block of its own."),
    (14, "# Last."),
  ]


def test_a_term_is_counted_across_lines_and_not_inside_another_word():
  texts = [("a.py", 1, "# gradient\n# accumulation; Padding"), ("a.py", 2, "unsharded")]
  found = occurrences(texts)
  assert found["gradient accumulation"] == 1
  assert found["padding"] == 1
  assert found["sharded"] == 0


@pytest.mark.slow
def test_the_population_is_sorted_by_file_and_is_not_empty():
  found = texts(ROOT)
  assert [file for file, _, _ in found] == sorted(file for file, _, _ in found)
  assert len(found) > 1000
