"""Duplicates: MinHash against exact Jaccard, and every kind told apart."""

import itertools
import math

import numpy as np
import pytest

from rm_jax.curate.duplicates import (
  band_keys,
  find_duplicates,
  key,
  minhash,
  rows_of_band,
  similar_sides,
)
from rm_jax.curate.text import Sets, jaccard, ngrams
from rm_jax.data.dialogue import plain
from rm_jax.types import Example
from rm_jax.world import World
from tests.curate.planted import reworded


def pair(prompt, chosen, rejected):
  return Example(prompt, (chosen, rejected), (1.0, 0.0))


def sentence(rng, n=40):
  return " ".join(f"w{i}" for i in rng.integers(0, 500, n))


def test_minhash_estimates_jaccard():
  rng = np.random.default_rng(0)
  pool = rng.integers(0, 2**63, 3000).astype(np.uint64)
  for shared in (0, 300, 800, 1000):
    sets = [np.sort(pool[:1000]), np.sort(pool[1000 - shared : 2000 - shared])]
    joined = Sets(np.concatenate(sets), np.array([0, 1000, 2000]))
    signatures = minhash(joined, 2048)
    true = jaccard(*sets)
    # Five standard errors of a share of 2048.
    assert abs((signatures[0] == signatures[1]).mean() - true) <= 5 * math.sqrt(0.25 / 2048)
    assert signatures.dtype == np.uint32
  assert (minhash(joined, 64, seed=1) != minhash(joined, 64, seed=2)).any()
  assert (minhash(joined, 64, seed=1) == minhash(joined, 64, seed=1)).all()


def test_minhash_in_chunks_is_minhash_of_each():
  rng = np.random.default_rng(1)
  texts = [sentence(rng, 300) for _ in range(500)]  # over one chunk of 2^16 shingles
  sets = ngrams(texts, 2)
  assert len(sets.values) > 2 * 65536
  whole = minhash(sets, 8)
  for i in (0, 1, 217, 218, 219, 499):
    assert (minhash(ngrams([texts[i]], 2), 8)[0] == whole[i]).all()
  with pytest.raises(ValueError, match="set 1 is empty"):
    minhash(Sets(np.zeros(2, np.uint64), np.array([0, 1, 1, 2])), 4)


def test_bands_miss_few_at_the_threshold():
  for threshold in (0.5, 0.7, 0.9):
    rows = rows_of_band(threshold, 128)
    assert (1 - threshold**rows) ** (128 // rows) <= 0.01
    assert (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) > 0.01
  signatures = np.arange(24, dtype=np.uint32).reshape(2, 12)
  keys = band_keys(signatures, 5)
  assert keys.shape == (2, 2)
  changed = signatures.copy()
  changed[0, 10] = 99  # of the remainder
  assert (band_keys(changed, 5) == keys).all()
  changed[0, 9] = 99
  assert ((band_keys(changed, 5) == keys) == [[True, False], [True, True]]).all()


def test_each_kind_is_told_apart():
  rng = np.random.default_rng(2)
  p, c, r = (sentence(rng) for _ in range(3))
  base = [
    pair(p, c, r),
    pair(p.upper() + "  ", c, r),  # 1: exact
    pair(p + " and", c, r),  # 2: near
    pair(p, r, c),  # 3: reversed
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
  assert found.unverified == 0
  equal = find_duplicates(base, threshold=0)
  assert [(m.index, m.of) for m in equal.exact] == [(1, 0)]
  assert not equal.near
  assert [(m.index, m.of) for m in equal.reversed] == [(3, 0)]
  # 2 goes as near 0; that the last is its exact reverse leaves it contradicting 0.
  chained = find_duplicates([base[0], base[2], pair(p + " and", r, c)])
  assert [(m.index, m.of) for m in chained.near] == [(1, 0)]
  assert [(m.index, m.of) for m in chained.reversed] == [(2, 0)]
  only_near = find_duplicates([base[0], base[6]])
  assert [(m.index, m.of) for m in only_near.reversed] == [(1, 0)]
  assert only_near.reversed[0].similarity < 1


def test_roles_keep_apart_what_strings_would_not():
  one = ({"role": "user", "content": "a b"},)
  other = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
  assert key(one) != key(other)
  assert key(one) == key(({"role": "user", "content": " A  B"},))
  assert key("a b") == key(" A  B") != key(one)


def test_near_duplicates_are_those_of_all_pairs():
  """Against brute force; LSH may miss 1 % at the threshold, and far fewer above it."""
  rng = np.random.default_rng(3)
  examples = World().pairs("train", 200, 0, messages=False)
  for e in list(examples):
    p, c, r = e.prompt, *e.responses
    kind = rng.integers(4)
    if kind:
      examples.append(pair(reworded(p, rng), reworded(c, rng) if kind > 1 else c, r))
  threshold = 0.6
  sets = [
    ngrams([plain(t) for t in texts], 3)
    for texts in zip(*((e.prompt, *e.responses) for e in examples), strict=True)
  ]

  def similarity(i, j):
    inter = [len(np.intersect1d(s[i], s[j])) for s in sets]
    union = [len(s[i]) + len(s[j]) - n for s, n in zip(sets, inter, strict=True)]
    return min(inter[0] / union[0], sum(inter[1:]) / sum(union[1:]))

  near = {}
  for j, i in itertools.combinations(range(len(examples)), 2):
    if i not in near and j not in near and similarity(i, j) >= threshold:
      near[i] = j
  assert len(near) > 50
  found = find_duplicates(examples, threshold=threshold)
  got = {m.index: m.of for m in found.near}
  assert got.items() <= near.items()
  assert len(got) >= 0.97 * len(near)
  for m in found.near:
    assert m.similarity == similarity(m.index, m.of)
  again = find_duplicates(examples, threshold=threshold)
  assert again == found


def test_a_text_with_many_near_copies_keeps_one():
  rng = np.random.default_rng(4)
  p, c, r = sentence(rng), sentence(rng), sentence(rng)
  examples = [pair(f"{p} {i}", c, r) for i in range(3000)]
  found = find_duplicates(examples)
  assert [(m.index, m.of) for m in found.near] == [(i, 0) for i in range(1, 3000)]


def test_similar_sides():
  text = sentence(np.random.default_rng(5))
  sides = [
    pair("p", "Yes", " yes "),
    pair("p", text, text + " and"),
    pair("p", text, text.replace("w", "v")),
    pair("p", "yes", "yes!"),
  ]
  found = similar_sides(sides, 0.9)
  assert [m.index for m in found] == [0, 1, 3]
  assert found[0].similarity == 1.0
  assert 0.9 < found[2].similarity < 1  # equal words, another sign: near and not equal
  assert [m.index for m in similar_sides(sides, 0)] == [0]
  assert similar_sides([], 0.9) == []


def test_refuses():
  with pytest.raises(ValueError, match="threshold is 1"):
    find_duplicates([], threshold=1)
  ranking = Example("p", ("a", "b", "c"), (2.0, 1.0, 0.0), origin="f:7")
  with pytest.raises(ValueError, match="f:7: 3 responses; expected a pair"):
    find_duplicates([ranking])
  assert find_duplicates([]).near == []
