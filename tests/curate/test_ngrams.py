"""Tokens, and the n-grams that are made of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rm_jax.curate.ngrams import all_ngrams, ngrams
from rm_jax.curate.tokens import (
  INDENTATION,
  NEGATION,
  NUMBER,
  SIGN,
  WORD,
  kind_of,
  tokenise,
)
from rm_jax.data.dialogue import plain

ROOT = Path(__file__).parents[2]


def test_plain():
  messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
  assert plain(messages) == "a\nb"
  assert plain("a") == "a"


def test_ngrams_are_those_of_each_text():
  rng = np.random.default_rng(0)
  letters = list("abcdef")
  texts = [" ".join(rng.choice(letters, rng.integers(0, 12))) for _ in range(9000)]
  for n in (1, 3):
    sets = ngrams(tokenise(texts), n)
    assert len(sets) == len(texts)
    known: dict[tuple, int] = {}
    for i in (*range(50), *range(4090, 4100), *range(8990, 9000)):  # Chunks end at 4096 and 8192.
      w = texts[i].split()
      grams = {tuple(w[j : j + n]) for j in range(len(w) - n + 1)} or {("all", *w)}
      assert len(sets[i]) == len(grams), texts[i]
      assert (np.diff(sets[i].astype(object)) > 0).all()
      if len(grams) == 1:
        assert known.setdefault(next(iter(grams)), int(sets[i][0])) == int(sets[i][0])
    assert len(set(known.values())) == len(known)


def test_short_and_wordless_texts_are_one_ngram_of_their_own():
  sets = ngrams(tokenise(["yes", "yes.", "yes no", "?!", "?!?", "", "Yes"]), 3)
  assert [len(sets[i]) for i in range(7)] == [1] * 7
  assert sets[0] == sets[1]
  assert len({int(sets[i][0]) for i in (0, 2, 3, 4, 5, 6)}) == 6
  assert len(ngrams(tokenise([]), 3)) == 0
  with pytest.raises(ValueError, match="n is 0"):
    ngrams(tokenise(["a"]), 0)


def test_a_template_changes_no_ngram_of_what_it_holds():
  texts = ["a b c d e", "x y a b c d e z", "x y a b z", "x y z"]
  tokens = tokenise(texts)
  hidden = np.isin(tokens.ids, [tokens.vocabulary.index(w) for w in "xyz"])
  sets = ngrams(tokens, 3, hidden)
  assert sets[1].tolist() == sets[0].tolist()
  assert len(sets[2]) == 2  # y a b and a b z contain the piece a b; x y a cuts it.
  assert len(sets[3]) == 1  # Only template tokens: the whole text's hash.
  assert sets[3][0] not in ngrams(tokens, 3)[3]
  for i in range(4):
    whole = np.unique(all_ngrams(tokens, i, 3))
    assert whole.tolist() == ngrams(tokens, 3)[i].tolist()


def words_of(text, *, fold=False):
  tokens = tokenise([text], fold=fold)
  return [tokens.vocabulary[i] for i in tokens.of(0)]


def test_tokens():
  assert words_of("Is 3<5? It's 1,000.5 (5!) wow!") == [
    "Is", "3", "<", "5", "It's", "1,000.5", "(", "5", "!", ")", "wow",
  ]  # fmt: skip
  assert words_of("<|im_start|>user\n  x10 10am \u6211\u4eec") == [
    "<|im_start|>", "user", "  ", "x10", "10am", "\u6211", "\u4eec",
  ]  # fmt: skip
  assert words_of("PARIS \uff30aris", fold=True) == ["paris", "paris"]
  assert words_of("हिन्दी-भाषा l'हिन्दी's 5") == ["हिन्दी", "-", "भाषा", "l'हिन्दी's", "5"]
  kinds = [kind_of(t) for t in ("a", "x1", "+", "n't", "No", "\t", "_", "<|im_end|>", "\u20ac")]
  assert kinds == [WORD, NUMBER, SIGN, NEGATION, NEGATION, INDENTATION, WORD, WORD, SIGN]


def test_hashes_are_the_same_in_another_process():
  code = (
    "from rm_jax.curate.ngrams import ngrams; from rm_jax.curate.tokens import tokenise; "
    "print(ngrams(tokenise(['a b c d', 'x']), 3).values.tolist())"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == str(ngrams(tokenise(["a b c d", "x"]), 3).values.tolist())
