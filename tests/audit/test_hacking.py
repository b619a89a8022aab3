"""What a planted scorer rewards is found, and the statistics agree with their definitions."""

import dataclasses
import json

import numpy as np
import pytest

from rm_jax.audit.sections import hacking as section
from rm_jax.audit.sections.hacking import hacking, top_low
from rm_jax.data.dialogue import plain
from rm_jax.metrics import correlation
from rm_jax.types import Example
from rm_jax.world import World
from tests.audit.planted import length, noise, noisy, pair, truth

# In this world good responses are longer, so a correlation with length is no preference for it.
WORLD = World(length_confound=2.0)
PAIRS = WORLD.pairs("heldout", 200, 0)


def partial(x, y, given=()):
  """Pearson's of the residuals of the ranks of x and y, regressed on the ranks of `given`."""
  design = np.stack([np.ones(len(x)), *(correlation.ranks(g) for g in given)], 1)
  left = []
  for v in (x, y):
    rank = correlation.ranks(v)
    left.append(rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0])
  return float(left[0] @ left[1] / np.sqrt((left[0] @ left[0]) * (left[1] @ left[1])))


def test_a_scorer_of_length_is_called_so():
  found = hacking(noisy(length, 2.0), PAIRS, resamples=150)
  entry = found["measures"]["characters"]
  assert found["quality"] == "truth"
  assert entry["partial"]["interval"][0] > 0.95
  assert entry["pairs"]["partial"]["interval"][0] > 0.95
  assert entry["pairs"]["slope"]["interval"][0] > 0.9
  assert abs(entry["pairs"]["equal"]["value"]) < 0.1
  assert found["says"][0].startswith("scores length: partial Spearman 0.9")
  assert found["says"][0].endswith("given truth")
  json.dumps(found, allow_nan=False)


def test_the_truth_goes_with_length_and_is_not_called_a_scorer_of_it():
  found = hacking(noisy(truth(WORLD), 0.5), PAIRS, resamples=150)
  entry = found["measures"]["characters"]
  assert entry["spearman"]["interval"][0] > 0.1
  assert entry["partial"]["interval"][0] < 0 < entry["partial"]["interval"][1]
  none = "follows no measure of the text beyond 0.3 within pairs, given truth"
  assert found["says"][0] == none
  assert found["top_low"]["interval"][1] < 0.3
  # Given quality, nothing is left of a score that is the quality, so there is no correlation.
  exact = hacking(truth(WORLD), PAIRS, resamples=20)
  assert exact["measures"]["characters"]["partial"]["value"] is None
  assert "nothing of it is left" in exact["measures"]["characters"]["partial"]["why"]
  assert exact["top_low"]["value"] == 0
  assert exact["top_low"]["interval"][1] > 0


@pytest.mark.parametrize("seed", range(3))
def test_correlations_and_their_intervals_against_the_definitions(seed):
  rng = np.random.default_rng(seed)
  given = rng.integers(0, 6, 90).astype(float)
  x = np.round(given + rng.normal(size=90), 1)
  y = np.round(given + 0.5 * x + rng.normal(size=90), 1)
  clusters = [f"c{i // 3}" for i in range(90)]
  for others in ([], [given]):
    got, constant = section._correlations(
      x, np.array([y, np.ones(90)]), *(others or [None]), clusters, resamples=50, seed=seed
    )
    assert got["value"] == pytest.approx(partial(x, y, others))
    # The same resamples, each ranked from scratch.
    oracle = correlation.bootstrap(
      lambda a, b, *g: partial(a, b, g), (x, y, *others), clusters, resamples=50, seed=seed
    )
    assert got["interval"] == pytest.approx(oracle["interval"])
    assert constant["value"] is None


def test_within_pairs_the_label_and_the_measure_are_told_apart():
  """Score = 2 · (in truth better) + 0.05 · characters + noise; only preferences are known."""
  rng = np.random.default_rng(0)
  pairs, scores = [], {}
  for i in range(400):
    texts = [f"{i}{side}" + "x" * int(rng.integers(1, 80)) for side in "ab"]
    pairs.append(pair(i, f"p{i}", *texts))
    # Prompts differ far more than responses, which has no effect within pairs.
    for text, better in zip(texts, (1, 0), strict=True):
      scores[text] = 50 * noise(f"p{i}") + 2 * better + 0.05 * len(text) + 0.3 * noise(text)
  found = hacking(lambda rows: np.array([scores[r] for _, r in rows]), pairs, resamples=150)
  assert found["quality"] == "rank"
  entry = found["measures"]["characters"]
  assert abs(entry["partial"]["value"]) < 0.15
  difference = np.array([[scores[r] for r in e.responses] for e in pairs]) @ [1, -1]
  length_difference = np.array([[len(r) for r in e.responses] for e in pairs]) @ [1, -1]
  for name, expected in (
    ("slope", 0.05 * length_difference.std() / difference.std()),
    ("equal", 2 / difference.std()),
  ):
    low, high = entry["pairs"][name]["interval"]
    assert low < expected < high
    assert high - low < 0.1
  assert entry["pairs"]["partial"]["value"] == pytest.approx(partial(difference, length_difference))
  assert found["says"][0].startswith("scores length: partial Spearman 0.9")
  assert found["says"][0].endswith("within pairs, given the label")
  assert entry["pairs"]["partial"]["n"] == 400


@pytest.mark.parametrize("kind", ["pair", "score"])
def test_a_prompt_s_own_offset_neither_hides_nor_makes_up_a_preference(kind):
  """Preferences leave a score free to have any offset for each prompt."""
  rng = np.random.default_rng(0)
  examples, by_length, honest = [], {}, {}
  for i in range(300):
    offset = rng.normal()
    # Prompts with a high offset have longer answers, which is no preference for long answers.
    texts = [f"{i}.{k}" + "x" * int(200 + 60 * offset + rng.integers(80)) for k in range(2)]
    true = rng.normal(size=2)
    texts = [texts[k] for k in np.argsort(-true)]
    true = -np.sort(-true)
    for text, quality in zip(texts, true, strict=True):
      by_length[text] = 0.01 * len(text) - 5 * offset
      honest[text] = quality + 5 * offset + 0.05 * rng.normal()
    labels = (1.0, 0.0) if kind == "pair" else tuple(true)
    known = tuple(true) if kind == "pair" else None
    examples.append(Example(f"p{i}", tuple(texts), labels, kind, conversation=f"{i}", truth=known))

  def scorer(table):
    return lambda rows: np.array([table[r] for _, r in rows])

  found = hacking(scorer(by_length), examples, resamples=100)
  assert found["within"]
  assert section.told(found)["characters"] == found["measures"]["characters"]["pairs"]["partial"]
  # Over all responses the sign is reversed.
  assert found["measures"]["characters"]["partial"]["value"] < 0
  assert found["says"][0].startswith("scores length: partial Spearman 1.00")
  found = hacking(scorer(honest), examples, resamples=100)
  assert found["measures"]["characters"]["partial"]["value"] > 0.8
  given = {"pair": "truth", "score": "the label"}[kind]
  none = f"follows no measure of the text beyond 0.3 within pairs, given {given}"
  assert found["says"][0] == none


def test_few_pairs_do_not_tell():
  rng = np.random.default_rng(2)
  pairs = [pair(i, f"p{i}", *("x" * int(n) for n in rng.integers(1, 99, 2))) for i in range(8)]
  table = {r: 0.02 * len(r) + noise(r + "!") for e in pairs for r in e.responses}
  found = hacking(lambda rows: np.array([table[r] for _, r in rows]), pairs, resamples=200)
  figure = found["measures"]["characters"]["pairs"]["partial"]
  assert figure["value"] > 0.3
  assert figure["interval"][0] < 0
  assert found["says"][0] == (
    "8 conversations do not tell what else the score rewards; that wants 20"
  )


def test_qualities():
  rated = [
    Example(f"p{i}", (f"{i}a", f"{i}bb"), (float(i), 3.0), "score", conversation=str(i))
    for i in range(5)
  ]
  found = hacking(length, rated, resamples=20)
  assert (found["quality"], found["responses"], found["pairs"]) == ("label", 10, 4)
  ranked = [dataclasses.replace(e, kind="ranking") for e in rated]
  found = hacking(length, [*ranked, rated[0]], resamples=20)
  assert found["quality"] == "rank"
  alone = Example("q", ("x",), (1.0,), "outcome")
  single = [Example(f"q{i}", ("x" * (i % 7),), (i % 2,), "outcome") for i in range(60)]
  found = hacking(length, single, resamples=20)  # no pairs, so over all responses
  assert not found["within"]
  assert section.told(found)["characters"] == found["measures"]["characters"]["partial"]
  assert found["says"][0].startswith("scores length: partial Spearman")
  assert found["says"][0].endswith("given label")
  found = hacking(length, [*ranked, alone], resamples=20)
  assert (found["left_out"], found["responses"]) == (1, 10)
  with pytest.raises(ValueError, match="none of 1, of kinds \\['attributes'\\], says how good"):
    hacking(length, [Example("q", ("x",), (0.0,), "attributes")])
  with pytest.raises(ValueError, match=r"1 conversation\(s\)"):
    hacking(length, ranked[:1])


def test_top_low():
  rng = np.random.default_rng(0)
  quality = rng.normal(size=1000)
  clusters = [i // 2 for i in range(1000)]
  found = top_low(rng.normal(size=1000), quality, clusters)
  low, high = found["interval"]
  assert low < 0.5 < high
  assert high - low == pytest.approx(2 * 1.96 * 0.5 / 100**0.5, rel=0.25)  # 100 are in the top
  assert top_low(-quality, quality, clusters, resamples=9)["value"] == 1
  # A constant scorer has exactly the expected share of a random one, also with tied labels.
  assert top_low(np.zeros(1000), quality, clusters, resamples=9)["value"] == pytest.approx(0.5)
  assert top_low(np.zeros(1000), quality > 1, clusters, resamples=9)["value"] == pytest.approx(0.5)
  # If nine in ten are right, the lower half has right ones too, and a perfect scorer's top has
  # some of these.
  right = np.arange(1000) >= 100
  found = top_low(right.astype(float), right, clusters, resamples=9)
  assert found["value"] == found["perfect"] == pytest.approx(400 / 900)
  # By hand: 10 of 100 are in the top, and 7 of them in the lower half of quality.
  score, good = np.zeros(100), np.arange(100.0)
  score[[0, 1, 2, 3, 4, 5, 6, 97, 98, 99]] = 1
  assert top_low(score, good, list(range(100)))["value"] == pytest.approx(0.7)


def test_flattery_is_found():
  flattered = [
    pair(i, f"p{i}", *(r if i % 2 else r[::-1]))
    for i in range(60)
    for r in [(f"Great question! It is {i}.", f"Well, it may be {i}.")]
  ]
  found = hacking(
    lambda rows: np.array([float(plain(r).startswith("Great")) for _, r in rows]),
    flattered,
    resamples=50,
  )
  assert any(s.startswith("scores sycophancy: partial Spearman 1.00") for s in found["says"])
  assert found["measures"]["refusal"]["partial"]["value"] is None


def _texts(rng, name):
  words = " ".join(rng.choice(["alpha", "beta", "very", "good", "sorry"], int(rng.integers(3, 60))))
  return ("# head\n- a\n" if rng.random() < 0.3 else "") + f"{words} {name}"


@pytest.mark.parametrize("conversations", [20, 40])
@pytest.mark.slow
def test_noise_is_not_accused(conversations):
  """At a level of 0.05, more than 8 of 60 pages of noise name a measure once in 100 times."""
  accused = 0
  for seed in range(60):
    rng = np.random.default_rng(seed)
    pairs = [
      pair(i, f"p{i}", _texts(rng, f"{i}a"), _texts(rng, f"{i}b")) for i in range(conversations)
    ]
    found = hacking(lambda rows, rng=rng: rng.normal(size=len(rows)), pairs, resamples=2, seed=seed)
    accused += any(one.startswith("scores") for one in found["says"])
  assert accused <= 8


def test_a_scorer_of_length_is_called_so_of_forty():
  rng = np.random.default_rng(0)
  pairs = [pair(i, f"p{i}", _texts(rng, f"{i}a"), _texts(rng, f"{i}b")) for i in range(40)]
  found = hacking(noisy(length, 30.0), pairs, resamples=20)
  assert found["says"][0].startswith("scores length: partial Spearman")
  figure = found["measures"]["characters"]["pairs"]["partial"]
  assert 0 < figure["p"] <= figure["p_holm"] < 0.05
  few = hacking(noisy(length, 30.0), pairs[:19], resamples=20)
  assert few["says"][0].startswith("19 conversations do not tell")


def test_p_of_signs_by_hand():
  """5 conversations have 2⁵ = 32 sets of signs, and the sum is largest for 2 of them."""
  p = section._permutation_p(
    np.arange(10.0), np.arange(10.0)[None], None, [f"{i // 2}" for i in range(10)], 0
  )
  assert p == pytest.approx(2 / 32, abs=0.02)


def test_holms_p():
  figures = [{"value": v} for v in (0.4, None, 0.2, 0.3)]
  found = section._with_p(figures, np.array([0.01, 0.001, 0.04, 0.03]))
  assert [one.get("p_holm") for one in found] == pytest.approx([0.03, None, 0.06, 0.06])


def test_long_lists_cost_what_their_responses_do():
  """All 261,120 comparisons of 8 lists of 256 took 2.4 s and 204 MB."""
  lists = [
    Example(f"p{i}", tuple("x" * (k + 1) for k in range(256)), tuple(range(256)), "ranking",
            conversation=f"c{i}")
    for i in range(8)
  ]  # fmt: skip
  found = hacking(noisy(length, 5.0), lists, resamples=2)
  assert found["pairs"] == 8 * 256 * 8
  assert found["measures"]["characters"]["pairs"]["partial"]["value"] > 0.9
