"""Held-out splits: by conversation, and the same in any process and for any subset of the rows."""

import collections
import pathlib

import pytest

from rm_jax.data.dialogue import conversation_of
from rm_jax.data.formats import load, split
from rm_jax.data.report import DataError, Report
from rm_jax.types import Example

HH = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "hh_rlhf"


def user(text):
  return {"role": "user", "content": text}


def bot(text):
  return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
  ("prompt", "expected"),
  [
    ("  Why\n so? ", "Why so?"),
    ("\n\nHuman: Why\nso?\n\nAssistant: x\n\nHuman: y\n\nAssistant:", "Why so?"),
    ("Human: Why so?\n\nAssistant:", "Why so?"),
    (({"role": "system", "content": "s"}, user("Why  so?"), user("z")), "Why so?"),
    ((user(" "), bot("x"), user("y")), "y"),
    (({"role": "system", "content": "s t"},), "s t"),
  ],
)
def test_conversation(prompt, expected):
  assert conversation_of(prompt) == expected


def _examples(conversations):
  return [
    Example("p", ("a", "b"), (1.0, 0.0), origin=f"f:{n}", conversation=c)
    for n, c in enumerate(conversations)
  ]


def test_split():
  examples = _examples([str(n % 700) for n in range(2000)])
  train, held = split(examples, 0.25, seed=3)
  place = {e.origin: n for n, e in enumerate(examples)}
  for side in (train, held):
    assert [place[e.origin] for e in side] == sorted(place[e.origin] for e in side)
  assert sorted(place[e.origin] for e in train + held) == list(range(2000))
  assert not {e.conversation for e in train} & {e.conversation for e in held}
  assert len(held) / 2000 == pytest.approx(0.25, abs=0.05)
  assert split(examples, 0.25, seed=3) == (train, held)
  assert split(examples[::-1], 0.25, seed=3) == (train[::-1], held[::-1])
  assert split(examples, 0.25, seed=4) != (train, held)
  fewer = {e.origin for e in split(examples, 0.1, seed=3)[1]}
  assert fewer < {e.origin for e in held}  # A larger fraction holds out these and more.


def test_split_is_the_same_in_every_process():
  """Golden: those of a..j with int(blake2b("0:" + letter, 6 bytes)) / 2**48 < 0.3."""
  train, held = split(_examples("abcdefghij"), 0.3, seed=0)
  assert "".join(e.conversation for e in held) == "bdegh"
  assert "".join(e.conversation for e in train) == "acfij"


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_split_leaves_neither_side_empty(fraction):
  train, held = split(_examples("aab"), fraction)
  assert train
  assert held


def test_split_errors():
  examples = _examples("ab")
  assert split(examples, 0) == (examples, [])
  for fraction in (-0.1, 1, float("nan")):
    with pytest.raises(DataError, match="fraction"):
      split(examples, fraction)
  with pytest.raises(DataError, match=r"1 conversation\(s\) cannot be split"):
    split(_examples("aa"), 0.5)
  with pytest.raises(DataError, match="f:1: no conversation to split by"):
    split(_examples(["a", ""]), 0.5)


@pytest.mark.skipif(not HH.is_dir(), reason=f"needs {HH} (8,552 rows of HH-RLHF)")
def test_hh_split_by_conversation():
  examples = load(HH, report=Report())
  shared = collections.Counter(e.conversation for e in examples)
  assert sum(count for count in shared.values() if count > 1) == 924  # 936 of all 8,552 rows
  train, held = split(examples, 0.1, seed=0)
  assert len(held) / len(examples) == pytest.approx(0.1, abs=0.01)
  assert not {e.conversation for e in train} & {e.conversation for e in held}
  # A cut by `limit` moves no conversation to the other side.
  few_train, few_held = split(examples[:1000], 0.1, seed=0)
  assert set(map(id, few_train)) <= set(map(id, train))
  assert set(map(id, few_held)) <= set(map(id, held))
