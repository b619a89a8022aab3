"""Which rows that are to be scored share a group, so that their prompt is computed once."""

from collections.abc import Sequence
from typing import Any

from rm_jax.batch.group import Group, make_group
from rm_jax.batch.tokens import Tokens
from rm_jax.data.dialogue import key_of
from rm_jax.types import Example, Text

# Rows with the same prompt are scored as one group, so that the prompt runs through the network
# once. Several rows in a group have at most `_GROUP_MARKS` marks (responses, or steps) and at most
# max(_GROUP_COLUMNS, _GROUP_LENGTHS x its longest sequence) columns (tokens, those of the prompt
# counted once). Attention's cost grows with the square of the columns, although responses are
# masked from one another; in a longer group that costs more than sharing the prompt saves.
_GROUP_MARKS = 8
_GROUP_COLUMNS = 1024
_GROUP_LENGTHS = 1.5


def rows_by_prompt(
  prompts: Sequence[Text], tokens: Sequence[Tokens], share: bool, *, cut: bool = False
) -> list[list[int]]:
  """Indices of the rows of each group: rows with the same prompt, up to the limits `_GROUP_...`.

  Args:
    prompts: of N rows.
    tokens: the rows as tokens.
    share: whether rows may share a prompt; if not, each row is a group (encoders).
    cut: whether they may share what is left of one that was cut. It is the same for most rows where
      prompts have a limit of their own, and else for few.
  """
  chunks: list[list[int]] = []
  # prompt -> the last group that was begun with it: (its index in `chunks`, its number of columns,
  # of marks, and the length of its longest sequence).
  open_chunk: dict[Any, tuple[int, int, int, int]] = {}
  for i, (prompt, one) in enumerate(zip(prompts, tokens, strict=True)):
    key = key_of(prompt), one.ids[: one.prompt].tobytes() if one.cut else b""
    at, columns, marks, longest = open_chunk.get(key, (-1, 0, 0, 0))
    columns, marks = columns + len(one.ids) - one.prompt, marks + len(one.marks)
    longest = max(longest, len(one.ids))
    fits = columns <= max(_GROUP_COLUMNS, _GROUP_LENGTHS * longest) and marks <= _GROUP_MARKS
    shares = share and (cut or not one.cut)
    if shares and at >= 0 and fits:
      chunks[at].append(i)
      open_chunk[key] = at, columns, marks, longest
    else:
      chunks.append([i])
      if shares:
        open_chunk[key] = len(chunks) - 1, len(one.ids), len(one.marks), len(one.ids)
  return chunks


def unlabelled_group(tokens: Sequence[Tokens]) -> Group:
  """A group of sequences to score: its prompt's text and its labels are placeholders."""
  marks = sum(len(one.marks) for one in tokens)
  return make_group(tokens, Example("-", ("-",) * len(tokens), (0.0,) * marks))
