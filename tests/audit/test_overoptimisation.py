"""Candidates for best-of-n with planted scorers.

With a light-tailed error the true reward keeps rising with n; with an exploit it peaks.
"""

import math

import numpy as np
import pytest

from configs.base import get_config
from rm_jax.audit.sections.overoptimisation import rated_candidates, world_candidates
from rm_jax.data.dialogue import plain
from rm_jax.data.report import Report
from rm_jax.train import datasets
from rm_jax.train.datasets import true_world
from rm_jax.types import Example
from rm_jax.world import World
from tests.audit.planted import Counting, length, noise, noisy, truth

WORLD = World(skill=0.3)
PROMPTS = WORLD.prompts("heldout", 4, 0, messages=False)
N = 512


def best_of(proxy_PN, true_PN, n):
  """Mean true reward of the best of n over all subsets of size n of the N candidates.

  Σᵢ C(i − 1, n − 1) t₍ᵢ₎ / C(N, n), where i counts from the lowest proxy.
  """
  total = proxy_PN.shape[1]
  weight = [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)]
  order = np.argsort(proxy_PN, axis=1, kind="stable")
  return float((np.take_along_axis(true_PN, order, 1) @ weight).mean())


def exploited(rows):
  """The true reward, but far more for bad and long responses, which are rare."""
  score = truth(WORLD)(rows)
  bad = np.array([len(r) > 75 for _, r in rows]) & (score < 0)
  return score + 10 * bad + 1e-6 * np.array([noise(r) for _, r in rows])


def test_a_light_tailed_error_does_not_turn_the_truth():
  found = world_candidates(noisy(truth(WORLD), 1.0), WORLD, PROMPTS, candidates=N)
  curve = [best_of(found.proxies["score"], found.true, 2**k) for k in range(9)]
  assert np.diff(curve).min() > -0.05
  assert curve[-1] - curve[0] > 1


def test_an_exploit_does_inside_the_range():
  found = world_candidates(exploited, WORLD, PROMPTS, candidates=N)
  hit = found.proxies["score"] > 5
  assert 1 / 500 < hit.mean() < 1 / 30
  curve = [best_of(found.proxies["score"], found.true, 2**k) for k in range(10)]
  peak = int(np.argmax(curve))
  assert 1 <= peak <= 6
  assert curve[peak] - curve[0] > 0.3
  assert curve[-1] < curve[0]


def test_what_is_drawn():
  score = Counting(length)
  found = world_candidates(score, WORLD, PROMPTS[:2], candidates=300, seed=7)
  (rows,) = score.calls
  assert found.true.shape == (2, 300)
  assert found.distinct == len(rows) == len(set(rows)) < 600
  table = {(p, r): WORLD.true_reward(p, r) for p, r in rows}
  assert {round(t, 9) for t in table.values()} == {round(t, 9) for t in found.true.ravel()}
  # The candidates of a prompt do not depend on the other prompts.
  other = world_candidates(length, WORLD, PROMPTS[1:2], candidates=300, seed=7)
  np.testing.assert_array_equal(other.true[0], found.true[1])
  np.testing.assert_array_equal(other.proxies["score"][0], found.proxies["score"][1])
  assert found.clusters == [plain(p) for p in PROMPTS[:2]]
  with pytest.raises(ValueError, match="0 prompts of 1024 candidates"):
    world_candidates(length, WORLD, [])


def test_variants():
  def members(rows):
    own = length(rows)
    return np.stack([own, own + np.array([noise(r) for _, r in rows])], 1)

  found = world_candidates(
    lambda rows: 3.0 * length(rows) + np.array([noise(r) for _, r in rows]),
    WORLD,
    PROMPTS,
    candidates=200,
    members=members,
  )
  proxies = found.proxies
  assert proxies["centred"].mean(axis=1) == pytest.approx(0, abs=1e-9)
  np.testing.assert_array_equal(proxies["centred"].argmax(1), proxies["score"].argmax(1))
  # Without length only the noise of variance 1 remains; 3 · length varies far more.
  assert proxies["decorrelated"].std(axis=1) == pytest.approx(1, abs=0.2)
  lengths = (proxies["score"] - proxies["decorrelated"]).ravel()
  inside = (proxies["decorrelated"] - proxies["decorrelated"].mean(1, keepdims=True)).ravel()
  assert abs(np.corrcoef(lengths, inside)[0, 1]) < 0.05
  # For members a and a + e, mean minus standard deviation is a + e/2 − |e|/2 = min(a, a + e).
  conservative = proxies["conservative"]
  assert (conservative <= proxies["score"] / 3 + 2).all()
  with pytest.raises(ValueError, match=r"members gave shape \(\d+, 1\)"):
    world_candidates(
      length, WORLD, PROMPTS[:1], candidates=5, members=lambda r: np.ones((len(r), 1))
    )


def test_the_conservative_score_of_two_members_is_the_lower():
  responses = [f"r{i}" for i in range(8)]
  example = Example("p", tuple(responses), tuple(map(float, range(8))), "score")
  pairs = {r: (float(i), float(7 - 2 * i)) for i, r in enumerate(responses)}
  found = rated_candidates(
    length, [example], members=lambda rows: np.array([pairs[r] for _, r in rows])
  )
  assert found.proxies["conservative"][0] == pytest.approx([min(pairs[r]) for r in responses])


def test_rated_candidates():
  def example(i, k, **other):
    labels = tuple(float(j % 5) for j in range(k))
    return Example(f"p{i}", tuple(f"{i} {'x' * j}" for j in range(k)), labels, "score", **other)

  examples = [example(0, 9), example(1, 12), example(2, 3)]
  found = rated_candidates(length, examples)
  assert found.true.shape == (2, 9)
  assert (found.left_out, found.unused, found.distinct) == (1, 3, 18)
  assert found.clusters == ["p0", "p1"]
  np.testing.assert_array_equal(found.true[0], examples[0].labels)
  # Score and label of a response stay together. The score is the length '1 ' + j x's, so minus 2 it
  # is j, and the label is j % 5.
  np.testing.assert_array_equal(found.true[1], (found.proxies["score"][1] - 2) % 5)
  known = rated_candidates(length, [example(0, 9, truth=tuple(range(9)))])
  np.testing.assert_array_equal(known.true[0], range(9))
  with pytest.raises(ValueError, match=r"none of 3 has 20 rated responses \(the most are 12"):
    rated_candidates(length, examples, at_least=20)
  with pytest.raises(ValueError, match="at_least is 1"):
    rated_candidates(length, examples, at_least=1)


def test_the_truth_is_that_of_the_world_of_the_data():
  config = get_config()
  config.data.world.skill = 0.3
  name = "world:30(tone_weight=-2.0, fact_weight=0.1)"
  world = true_world([name], config)
  assert world == World(skill=0.3, tone_weight=-2.0, fact_weight=0.1)
  for example in datasets.read(name, config, Report(), "heldout"):
    rewards = [world.true_reward(example.prompt, r) for r in example.responses]
    assert rewards == pytest.approx(example.truth)
  # A file whose name begins like that is not from a world.
  for path in ("world_prefs.jsonl", "worlds/a.jsonl", "data/world:3.jsonl"):
    assert true_world([path], config) is None
  assert true_world(["world:9", "world:8:4", "a.jsonl"], config) == World(skill=0.3)
  assert "2 generated worlds" in true_world(["world:9", "world:9(skill=0.5)"], config)


@pytest.mark.parametrize("heldout", [0.1, "0.1"])
def test_a_share_held_out_of_a_world_is_of_that_world(heldout):
  config = get_config()
  config.data.train, config.data.heldout = "world:1000(tone_weight=-2.0)", "world:400"
  assert datasets.heldout_names(config) == ["world:400"]
  with config.ignore_type():
    config.data.heldout = heldout
  names = datasets.heldout_names(config)
  assert true_world(names, config) == World(tone_weight=-2.0)
  config.data.sources = {"a": {"path": "world:10"}, "b": {"path": "b.jsonl"}}
  config.data.train = ""
  assert datasets.heldout_names(config) == ["world:10", "b.jsonl"]
  assert true_world(datasets.heldout_names(config), config) == World()
