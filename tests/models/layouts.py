"""Small batches to compare networks on: padded, at far positions, packed, with shared prompts."""

import dataclasses
import functools

import numpy as np

from rm_jax.types import Batch

VOCAB, B, T, G, K = 97, 4, 24, 3, 3
WINDOW = 5  # tokens; shorter than every layout's longest sequence
FAR = 8000  # positions: where 'far' begins, and what lies between the halves of 'apart'
LAYOUTS = ("none", "right", "left", "far", "apart", "packed", "shared")  # a decoder's


@dataclasses.dataclass(frozen=True)
class Sequence:
  """One prompt + response: its columns of a row, and the slot that its score is read into."""

  row: int
  columns: tuple[int, ...]
  slot: tuple[int, int]  # (group, mark), from 0


@dataclasses.dataclass(frozen=True)
class Layout:
  """A batch, and the sequences in its rows.

  `together`: the oracle runs the rows as they stand, with an attention mask; else it runs each
  sequence by itself.
  """

  batch: Batch
  sequences: tuple[Sequence, ...]
  together: bool


def _group(prompt: int, responses: list[int], *, shared: bool) -> list[tuple[int, int, int]]:
  """Columns of one group as (branch, position, token type)."""
  if shared:
    columns = [(0, p, 0) for p in range(prompt)]
    for branch, length in enumerate(responses, 1):
      columns += [(branch, prompt + p, 1) for p in range(length)]
    return columns
  columns = []
  for branch, length in enumerate(responses, 1):
    columns += [(branch, p, int(p >= prompt)) for p in range(prompt + length)]
  return columns


def _rows(
  rows: list, *, arch: str, seed: int, shared: bool, left=False, start=0, gap=0, together=False
) -> Layout:
  """A Layout of `rows`, each a list of groups (prompt length, lengths of responses)."""
  rng = np.random.default_rng(seed)
  # Padding holds random ids and types: nothing may depend on them. Oracles that see
  # padding need its id to find the last token.
  tokens = np.zeros((B, T), np.int32) if together else rng.integers(3, VOCAB, (B, T))
  token_type = rng.integers(0, 2, (B, T))
  group, branch, position = np.zeros((3, B, T), np.int32)
  marks, where = np.zeros((B, G, K), np.int32), np.zeros((B, G, K), bool)
  sequences = []
  for r, groups in enumerate(rows):
    laid = [_group(prompt, responses, shared=shared) for prompt, responses in groups]
    at = T - sum(map(len, laid)) if left else 0
    for g, columns in enumerate(laid):
      span = slice(at, at + len(columns))
      group[r, span] = g + 1
      branch[r, span], position[r, span], token_type[r, span] = np.array(columns).T
      position[r, span] += start + gap * (np.arange(len(columns)) >= len(columns) // 2)
      tokens[r, span] = rng.integers(3, VOCAB, len(columns))
      for k in range(len(groups[g][1])):
        mine = tuple(at + i for i, column in enumerate(columns) if column[0] in (0, k + 1))
        marks[r, g, k] = mine[0] if arch == "bert" else mine[-1]
        where[r, g, k] = True
        sequences.append(Sequence(row=r, columns=mine, slot=(g, k)))
      at += len(columns)
  batch = Batch(
    tokens=np.asarray(tokens, np.int32),
    group=group,
    branch=branch,
    position=position,
    marks=marks,
    where=where,
    labels=np.zeros((B, G, K), np.float32),
    weight=where.any(-1).astype(np.float32),
    token_type=np.asarray(token_type, np.int32) if arch == "bert" else None,
  )
  return Layout(batch, tuple(sequences), together)


_PADDED = [[(4, [20])], [(7, [10])], [(3, [2])], [(8, [13])]]
_PACKED = [
  [(4, [5]), (2, [7]), (3, [3])],
  [(1, [2]), (9, [5])],
  [(3, [3]), (1, [1]), (8, [7])],
  [(6, [9])],
]
_SHARED = [
  [(6, [4, 5, 2]), (3, [2, 2])],
  [(1, [9, 6, 3])],
  [(8, [1, 1]), (2, [2, 3, 1]), (2, [3])],
  [(12, [5, 6])],
]
_COPIES = [
  [(3, [2, 3]), (2, [3, 3])],
  [(1, [6, 5, 2])],
  [(4, [2, 2]), (1, [2, 3, 1])],
  [(8, [3, 1])],
]


@functools.cache
def layout(name: str, arch: str) -> Layout:
  """The layout of that name; all have the same shapes, so that a network compiles once."""
  options = dict(arch=arch, seed=7, shared=arch != "bert")
  if name == "none":
    return _rows([[(4, [T - 4])]] * B, together=True, **options)
  if name in ("right", "left"):
    return _rows(_PADDED, together=True, left=name == "left", **options)
  if name == "far":
    return _rows(_PADDED, together=True, start=FAR, **options)
  if name == "apart":
    return _rows(_PADDED, together=True, gap=FAR, **options)
  return _rows({"packed": _PACKED, "shared": _SHARED, "copies": _COPIES}[name], **options)
