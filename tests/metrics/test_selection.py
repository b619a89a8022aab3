"""Choices among candidates, against every subset by brute force."""

import doctest
import itertools

import numpy as np
import pytest

from rm_jax.metrics import selection
from rm_jax.metrics.selection import exact, highest, step_by_step, subsets, vote


def every(n, k, choose):
  """Means of (right, shared, ..) of a rule over all subsets of k of n candidates."""
  return np.mean([choose(list(s)) for s in itertools.combinations(range(n), k)], axis=0)


def the_highest(scores, right):
  def choose(inside):
    best = max(scores[i] for i in inside)
    alike = [i for i in inside if scores[i] == best]
    return np.mean([right[i] for i in alike]), float(len(alike) > 1)

  return choose


def the_most_votes(answers, right, weights):
  def choose(inside):
    votes = {}
    for i in inside:
      if answers[i] is not None:
        votes[answers[i]] = votes.get(answers[i], 0.0) + weights[i]
    if not votes:
      return np.mean([right[i] for i in inside]), float(len(inside) > 1)
    most = max(votes.values())
    winners = [a for a, v in votes.items() if v == most]
    shares = [np.mean([right[i] for i in inside if answers[i] == a]) for a in winners]
    return np.mean(shares), float(len(winners) > 1)

  return choose


def the_next_step(steps, scores, right):
  def walk(inside, t):
    """(right, shared, choices) of candidates that are alike up to step t."""
    options = {}
    for i in inside:
      options.setdefault(steps[i][t] if t < len(steps[i]) else None, []).append(i)
    if set(options) == {None}:
      return np.asarray([np.mean([right[i] for i in inside]), 0.0, 0.0])
    score = {
      text: np.mean([scores[i][t if text is not None else t - 1] for i in mine])
      for text, mine in options.items()
    }
    best = [text for text in options if score[text] == max(score.values())]
    parts = []
    for text in best:
      stop = np.asarray([np.mean([right[i] for i in options[text]]), 0.0, 0.0])
      parts.append(stop if text is None else walk(options[text], t + 1))
    found = np.mean(parts, axis=0)
    if len(best) > 1:
      found[1] = 1.0
    found[2] += len(options) > 1
    return found

  return lambda inside: walk(inside, 0)


@pytest.mark.parametrize("seed", range(6))
def test_against_every_subset(seed):
  rng = np.random.default_rng(seed)
  n = 7
  right = rng.integers(0, 2, n).astype(float)
  scores = rng.integers(0, 4, n).astype(float) if seed % 2 else rng.normal(size=n)
  answers = [None if a == 3 else str(a) for a in rng.integers(0, 4, n)]
  weights = rng.integers(1, 4, n).astype(float)
  for k in range(1, n + 1):
    assert highest(scores, right, k) == pytest.approx(every(n, k, the_highest(scores, right)))
    got = vote(answers, right, k)
    assert got == pytest.approx(every(n, k, the_most_votes(answers, right, np.ones(n))))
    got = vote(answers, right, k, log_weights=np.log(weights))
    assert got == pytest.approx(every(n, k, the_most_votes(answers, right, weights)))


@pytest.mark.parametrize("seed", range(8))
def test_step_by_step_against_every_subset(seed):
  rng = np.random.default_rng(seed)
  n = 6
  steps = [[str(x) for x in rng.integers(0, 2, rng.integers(1, 5))] for _ in range(n)]
  # A step's score depends on the steps up to it, as a model's does; half of the cases have ties.
  known = {}
  draw = (lambda: float(rng.integers(0, 2))) if seed % 2 else rng.normal
  scores = [
    [known.setdefault(tuple(one[: t + 1]), draw()) for t in range(len(one))] for one in steps
  ]
  right = rng.integers(0, 2, n).astype(float)
  for k in range(1, n + 1):
    got = step_by_step(steps, scores, right, k)
    assert got == pytest.approx(every(n, k, the_next_step(steps, scores, right)))


def test_where_no_two_begin_alike_the_first_step_decides():
  steps = [["a", "x"], ["b", "x"], ["c", "x"]]
  scores = [[0.0, 9.0], [1.0, -9.0], [0.5, 5.0]]
  assert step_by_step(steps, scores, [0, 1, 0], 3) == (1.0, 0.0, 1.0)


def test_a_shared_beginning_is_followed_and_white_space_is_no_difference():
  steps = [["a", "x"], ["a ", "y  z"], ["a", "y z", "w"], ["b"]]
  scores = [[1.0, 0.0], [1.0, 2.0], [1.0, 2.0, 3.0], [0.5]]
  # a (over b), then y z (over x), then w (3) over the end (2).
  assert step_by_step(steps, scores, [0, 0, 1, 0], 4) == (1.0, 0.0, 3.0)
  scores[2][2] = 1.0  # Now the end is better than w.
  assert step_by_step(steps, scores, [0, 0, 1, 0], 4) == (0.0, 0.0, 3.0)


def test_votes_of_tiny_weights_are_counted():
  """At e^-2000 a weight is no float any more; the subset without the heavy one is no tie."""
  found = vote(["a", "b", "b", "c"], [0, 1, 1, 0], 3, log_weights=[0.0, -2000.0, -2000.0, -2000.0])
  # abb, abc and acb: a; bbc: b has two of three.
  assert found == (pytest.approx(1 / 4), 0.0)


def test_equal_sums_that_round_differently_are_a_tie():
  log = np.log([0.1, 0.2, 0.3])
  assert vote(["a", "a", "b"], [1, 1, 0], 3, log_weights=log) == (0.5, 1.0)


def test_draws_of_many_subsets_are_near_the_closed_form():
  rng = np.random.default_rng(0)
  n, k = 40, 8
  assert exact(12, 6)
  assert not exact(n, k)
  assert subsets(n, k).shape == (1000, n)
  assert (subsets(n, k).sum(axis=1) == k).all()
  right, scores = rng.integers(0, 2, n), rng.normal(size=n)
  # The candidate with the largest weight outvotes all others: the highest score.
  drawn = vote([str(i) for i in range(n)], right, k, log_weights=100 * scores)
  assert drawn.right == pytest.approx(highest(scores, right, k).right, abs=0.05)
  path = step_by_step([[str(i)] for i in range(n)], scores[:, None], right, k)
  assert path.right == pytest.approx(drawn.right)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: highest([1.0, np.nan], [0, 1], 1), "scores\\[1\\] is nan"),
    (lambda: highest([1.0, 2.0], [0, 1], 3), "numbers from 1 to the 2 candidates"),
    (lambda: vote(["a"], [0, 1], 1), "1 answers, 2 right"),
    (lambda: vote(["a", "b"], [0, 1], 0), "k is 0; expected 1 to 2"),
    (lambda: vote(["a", "b"], [0, 1], 1, log_weights=[0, -np.inf]), "log_weights\\[1\\] is -inf"),
    (lambda: step_by_step([["a"], []], [[1.0], []], [0, 1], 1), "candidate 1: 0 steps"),
    (lambda: step_by_step([["a"]], [[1.0]], [0.5], 1), "right is \\[0.5\\]; expected 0 and 1"),
    (lambda: step_by_step([["a"]], [[np.inf]], [1], 1), "scores\\[0\\]\\[0\\] is inf"),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_the_examples_of_the_module():
  assert doctest.testmod(selection, optionflags=doctest.ELLIPSIS) == (0, 3)
