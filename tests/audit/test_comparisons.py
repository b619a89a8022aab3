"""Comparisons, samples, exchanged prompts, forms of texts, scores of distinct rows, figures."""

import dataclasses

import numpy as np
import pytest

from rm_jax.audit import figures
from rm_jax.audit.comparisons import compared, comparisons, elsewhere, sampled
from rm_jax.audit.edits import in_form, last, with_last
from rm_jax.audit.scorer import distinct_rows, scores_of
from rm_jax.data.dialogue import plain
from rm_jax.metrics import agreement
from rm_jax.types import Example
from tests.audit.planted import Counting, length, pair

MESSAGES = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def test_comparisons():
  ranking = Example("p", ("x", "y", "z"), (2.0, 0.0, 2.0), "ranking", truth=(5.0, 6.0, 7.0))
  found = comparisons([ranking, pair(1, "q", "good", "bad")])
  assert [(c.chosen, c.rejected, c.quality) for c in found] == [
    ("x", "y", (5.0, 6.0)),
    ("z", "y", (7.0, 6.0)),
    ("good", "bad", None),
  ]
  assert [c.conversation for c in found] == ["p", "p", "c1"]
  # Observed comparisons take precedence over the order of the labels.
  seen = ((0.0, 1.0, 0.5), (2.0, 0.0, 0.5), (0.5, 0.5, 0.0))
  found = comparisons([dataclasses.replace(ranking, pairs=seen)])
  assert [(c.chosen, c.rejected) for c in found] == [("y", "x")]
  rated = Example("p", ("x", "y"), (0.0, 0.0), "attributes", attributes=({"a": 1}, {}))
  with pytest.raises(ValueError, match=r"no comparison in 1 of kinds \['attributes'\]"):
    comparisons([rated])


def test_a_sample_is_in_order_and_by_its_seed():
  found = sampled(range(100), 10, 0)
  assert found == sorted(set(found))
  assert found == sampled(range(100), 10, 0) != sampled(range(100), 10, 1)
  assert sampled("abc", 3, 0) == ["a", "b", "c"]
  with pytest.raises(ValueError, match="sample is 0"):
    sampled("abc", 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_elsewhere_is_a_derangement_of_conversations(seed):
  conversations = ["a", "b", "a", "c", "a", "d"]
  taken = [conversations[i] for i in elsewhere(conversations, seed)]
  gives = dict(zip(conversations, taken, strict=True))
  assert all(gives[c] == t != c for c, t in zip(conversations, taken, strict=True))
  assert sorted(gives.values()) == ["a", "b", "c", "d"]
  with pytest.raises(ValueError, match=r"1 conversation\(s\)"):
    elsewhere(["a", "a"], seed)


def test_forms():
  assert plain(MESSAGES) == "a\nb"
  assert last(MESSAGES) == "b"
  assert with_last(MESSAGES, "c") == (MESSAGES[0], {"role": "assistant", "content": "c"})
  assert with_last("b", "c") == "c"
  assert in_form(MESSAGES, "like", "user") == "a\nb"
  assert in_form("a", MESSAGES, "user") == ({"role": "user", "content": "a"},)
  assert in_form(MESSAGES, MESSAGES, "user") == MESSAGES


def test_each_distinct_row_is_scored_once():
  score = Counting(length)
  rows = [("p", "abc"), ("q", "abc"), ("p", "abc"), (MESSAGES[:1], MESSAGES[1:]), ("a", "b")]
  assert scores_of(score, rows).tolist() == [3, 3, 3, 1, 1]
  assert score.calls == [[rows[0], rows[1], rows[3], rows[4]]]  # a string is not its message
  assert distinct_rows(rows)[1].tolist() == [0, 1, 0, 2, 3]
  with pytest.raises(ValueError, match=r"score gave shape \(4, 1\); expected \[4\]"):
    scores_of(lambda r: np.zeros((len(r), 1)), rows)
  with pytest.raises(ValueError, match=r"score gave nan for \('p', 'abc'\)"):
    scores_of(lambda r: np.full(len(r), np.nan), rows)


def test_figures():
  values, clusters = [1.0, 0.0, 0.5, 1.0] * 20, [f"{n}{i}" for i in range(20) for n in "aabc"]
  expected = agreement.accuracy(values, clusters)
  found = figures.share(values, clusters)
  assert found == {
    "value": 2.5 / 4,
    "interval": expected["interval"],
    "n": 80,
    "ties": 20,
  }
  found = figures.mean(np.array(values) - 1, clusters)
  difference = agreement.paired_difference(values, [1.0] * 80, clusters)
  assert found == {"value": -1.5 / 4, "interval": difference["interval"], "n": 80}
  alone = figures.share([1.0], ["a"])
  assert alone["value"] == 1
  assert alone["interval"] is None
  assert alone["why"] == "1 conversation: an interval wants 5"
  assert figures.mean([], [])["value"] is None
  assert figures.shown(alone) == "1.00"
  assert figures.shown(figures.none("x")) == "-"


def test_top_weights_share_ties_out():
  assert figures.top_weights([1, 3, 2, 4], 0.5).tolist() == [0, 1, 0, 1]
  # The top half has two places: one is 9's, and the three that tie share the other.
  assert figures.top_weights([5, 9, 5, 5], 0.5) == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])
  assert figures.top_weights([7] * 5, 0.1) == pytest.approx([0.1] * 5)
  assert figures.top_weights(np.arange(15), 0.1).sum() == pytest.approx(1.5)
  assert figures.top_clusters([5, 9, 5, 1], 0.5, ["a", "b", "a", "c"]) == 2
  with pytest.raises(ValueError, match=r"share is 1; expected it in \(0, 1\)"):
    figures.top_weights([1], 1)


def test_comparisons_of_a_long_list_are_linear_and_of_a_short_one_all():
  short = Example("p", tuple("abcdefghijklmnopq"), tuple(range(17)), "ranking")
  assert len(compared(short)) == 17 * 16 // 2
  long = Example("p", tuple(map(str, range(300))), tuple(range(300)), "ranking")
  found = compared(long)
  assert found == compared(long)
  assert len(set(found)) == len(found) == 300 * 8
  assert all(i > j for i, j in found)
  met = np.bincount(np.ravel(found), minlength=300)
  assert set(met.tolist()) == {16}
