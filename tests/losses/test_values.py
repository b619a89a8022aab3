"""The value of every registered loss on small lists, written as its formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax.losses import LOSSES
from rm_jax.losses.pairwise import logistic
from rm_jax.losses.process import aggregate

nan = math.nan


def nll(x):
  """−log σ(x)."""
  return math.log1p(math.exp(-x))


def log_sum(*x):
  return math.log(sum(math.exp(v) for v in x))


PAIR = ([1.2, 0.5], [1.0, 0.0])  # Δ = 0.7
THREE = ([0.1, 0.9, 0.4], [2.0, 1.0, 1.0])
TIED = ([1.2, 0.5], [1.0, 1.0])
SOFT = {"pairs": [[0.0, 0.8], [0.2, 0.0]]}
MARGIN = {"pair_margin": [[0.0, 0.4], [-0.4, 0.0]]}
ZERO = {"log_tie": math.log(2 * 0.2 / 0.8)}  # a tie in 1 of 5 at equal scores: ν = 1/2, θ = 3/2
E, V = math.exp, math.sqrt(math.exp(0.7))
LOG3 = math.log2(3)

# name -> (scores, labels), fields and options, expected
EXPECTED = {
  "logistic": [
    (PAIR, {}, nll(0.7)),
    (([0.5, 1.2], [0.0, 1.0]), {}, nll(0.7)),
    (TIED, {}, 0.0),
    (PAIR, {"margin": 0.3, "smoothing": 0.1}, 0.9 * nll(0.4) + 0.1 * nll(-0.4)),
    (PAIR, {"margin": 0.1, **MARGIN, "temperature": 0.5}, nll(2 * (0.7 - 0.1 - 0.4))),
    (PAIR, SOFT, 0.8 * nll(0.7) + 0.2 * nll(-0.7)),
    # Each direction has its own margin: 0.4 for 0 over 1, -0.4 for 1 over 0.
    (PAIR, {**SOFT, **MARGIN}, 0.8 * nll(0.3) + 0.2 * nll(-0.3)),
    (PAIR, {"pairs": [[0, 3], [1, 0]]}, (3 * nll(0.7) + nll(-0.7)) / 4),
    (THREE, {}, (nll(-0.8) + nll(-0.3)) / 2),
    # Not transitive: 0 over 1 over 2 over 0, which no order of labels could say.
    (([0.1, 0.9, 0.4], [0, 0, 0]), {"pairs": [[0, 1, 0], [0, 0, 1], [1, 0, 0]]},
     (nll(-0.8) + nll(0.5) + nll(0.3)) / 3),
  ],
  "scaled_logistic": [(PAIR, MARGIN, 0.4 * nll(0.7)), (PAIR, {**MARGIN, **SOFT, "smoothing": 0.1},
    0.4 * (0.8 * (0.9 * nll(0.7) + 0.1 * nll(-0.7)) + 0.2 * (0.9 * nll(-0.7) + 0.1 * nll(0.7))))],
  "hinge": [(PAIR, {}, 1 - 0.7), (PAIR, {"margin": 0.2}, 0.0), (PAIR, SOFT, 0.8 * 0.3 + 0.2 * 1.7),
    (PAIR, {"margin": 0.5, **MARGIN}, 0.9 - 0.7)],
  "squared_hinge": [(PAIR, {}, 0.3**2), (PAIR, SOFT, 0.8 * 0.3**2 + 0.2 * 1.7**2)],
  # (D - 1/2) / tau, squared; of a pair that was preferred 8 to 2, both ways round.
  "ipo": [(PAIR, {}, (0.2 / 0.1) ** 2), (PAIR, {"tau": 0.5, **SOFT},
    0.8 * (0.2 / 0.5) ** 2 + 0.2 * (-1.2 / 0.5) ** 2), (TIED, {}, 0.0)],
  "exponential": [
    (PAIR, {}, E(-0.7)),
    (PAIR, {"pairs": [[0, 0], [1, 0]]}, E(0.7)),
    (PAIR, {"pairs": [[0, 0], [1, 0]], "clamp": 0.5}, E(0.5) * (1 + 0.7 - 0.5)),
    (PAIR, {"margin": 0.1, "temperature": 2.0}, E(-0.3)),
  ],
  "noisy_logistic": [
    (PAIR, {"rate": 0.2}, -math.log(0.8 / (1 + E(-0.7)) + 0.2 / (1 + E(0.7)))),
    (([-50.0, 50.0], [1, 0]), {"rate": 0.2}, -math.log(0.2)),
  ],
  "learned_noise": [
    (PAIR, {"params": {"noise_logit": 0.0}}, -math.log(0.75 / (1 + E(-0.7)) + 0.25 / (1 + E(0.7)))),
  ],
  "unbiased_logistic": [(PAIR, {"rate": 0.2}, (0.8 * nll(0.7) - 0.2 * nll(-0.7)) / 0.6)],
  "rao_kupper": [
    (PAIR, {"params": ZERO}, math.log(1 + 1.5 * E(-0.7))),
    (TIED, {"params": ZERO},
     math.log(1 + 1.5 * E(-0.7)) + math.log(1 + 1.5 * E(0.7)) - math.log(1.5**2 - 1)),
    # A tie is counted once though it stands twice in the matrix.
    (PAIR, {"params": ZERO, "pairs": [[0, 2], [0, 0]], "ties": [[0, 1], [1, 0]]},
     (2 * math.log(1 + 1.5 * E(-0.7)) + math.log(1 + 1.5 * E(-0.7)) + math.log(1 + 1.5 * E(0.7))
      - math.log(1.25)) / 3),
  ],
  "davidson": [
    (PAIR, {"params": ZERO}, -math.log(V / (V + 1 / V + 0.5))),
    (TIED, {"params": ZERO}, -math.log(0.5 / (V + 1 / V + 0.5))),
    (PAIR, {"params": ZERO, "pairs": [[0, 2], [0, 0]], "ties": [[0, 1], [1, 0]]},
     (-2 * math.log(V / (V + 1 / V + 0.5)) - math.log(0.5 / (V + 1 / V + 0.5))) / 3),
    (PAIR, {"params": ZERO, "smoothing": 0.1},
     -0.9 * math.log(V / (V + 1 / V + 0.5)) - 0.1 * math.log(1 / V / (V + 1 / V + 0.5))),
    # Observed pairs and no ties: equal labels are then none.
    (TIED, {"params": ZERO, "pairs": [[0, 1], [0, 0]]}, -math.log(V / (V + 1 / V + 0.5))),
  ],
  "listnet": [
    (PAIR, {"temperature": 2.0},
     (E(0.5) * nll(0.7) + nll(-0.7)) / (E(0.5) + 1)),
    (THREE, {},
     log_sum(0.1, 0.9, 0.4) - (E(2) * 0.1 + E(1) * 0.9 + E(1) * 0.4) / (E(2) + 2 * E(1))),
  ],
  "best_of_k": [
    (PAIR, {}, nll(0.7)),
    (([0.1, 0.9, 0.4], [0, 2, 1]), {}, log_sum(0.1, 0.9, 0.4) - 0.9),
    (([0.1, 0.9, 0.4], [2, 2, 1]), {}, log_sum(0.1, 0.9, 0.4) - (0.1 + 0.9) / 2),
  ],
  "plackett_luce": [
    (PAIR, {}, nll(0.7)),
    (([0.1, 0.9, 0.4], [1, 2, 0]), {}, log_sum(0.1, 0.9, 0.4) - 0.9 + nll(-0.3)),
    (([0.1, 0.9, 0.4], [1, 2, 0]), {"top": 1}, log_sum(0.1, 0.9, 0.4) - 0.9),
    (TIED, {}, 2 * log_sum(1.2, 0.5) - math.log(2) - 1.2 - 0.5),
    # The best, then two tied: at the second of their stages half of each is left.
    (THREE, {}, log_sum(0.1, 0.9, 0.4) - 0.1 + 2 * log_sum(0.9, 0.4) - math.log(2) - 0.9 - 0.4),
    (([0.1, 0.9, 0.4], [1, 1, 1]), {},
     3 * log_sum(0.1, 0.9, 0.4) + math.log(2 / 3) + math.log(1 / 3) - 0.1 - 0.9 - 0.4),
  ],
  "lambda_ndcg": [
    # Ranks 1 and 2; the gain of a swap is the whole of maxDCG.
    (PAIR, {"mu": 0.0}, (1 - 1 / LOG3) * nll(0.7)),
    (PAIR, {"mu": 10.0}, 11 * (1 - 1 / LOG3) * nll(0.7)),
    # Ranks 3, 1, 2 of labels 2, 1, 0: maxDCG = 3 + 1 / log2 3.
    (([0.1, 0.9, 0.4], [2, 1, 0]), {"mu": 0.0},
     ((1 - 1 / 2) * 2 * nll(-0.8) + (1 / LOG3 - 1 / 2) * 3 * nll(-0.3) + (1 - 1 / LOG3) * nll(0.5))
     / (3 + 1 / LOG3)),
    # The same by ranks read as negative gains: 2^y four times as small, and so maxDCG.
    (([0.1, 0.9, 0.4], [-1, -2, -3]), {"mu": 0.0},
     ((1 - 1 / 2) * 2 * nll(-0.8) + (1 / LOG3 - 1 / 2) * 3 * nll(-0.3) + (1 - 1 / LOG3) * nll(0.5))
     / (3 + 1 / LOG3)),
    # Equal scores share rank 3/2 and stand one rank apart.
    (([0.5, 0.5], [1, 0]), {"mu": 2.0}, 2 * (1 - 1 / LOG3) * nll(0)),
    (TIED, {}, 0.0),
    (([1.0, 0.0], [2000, 1999]), {"mu": 0.0}, (1 - 1 / LOG3) * nll(1)),
  ],
  "bce": [
    (PAIR, {}, (nll(1.2) + nll(-0.5)) / 2),
    (([1.2], [0.3]), {}, 0.3 * nll(1.2) + 0.7 * nll(-1.2)),
    (([1.2], [1.5]), {}, nll(1.2)),
  ],
  "kto": [
    (PAIR, {}, (1 / (1 + E(1.2)) + 1 / (1 + E(-0.5))) / 2),
    (PAIR, {"baseline": 0.3, "desirable": 2.0, "undesirable": 0.5},
     (2 / (1 + E(0.9)) + 0.5 / (1 + E(-0.2))) / 2),
    (([1.2], [0.3]), {}, 0.3 / (1 + E(1.2)) + 0.7 / (1 + E(-1.2))),
  ],
  "likelihood": [
    (PAIR, {}, -1.2),
    (([1.2, 0.5], [0, 0]), {}, 0.0),
    (([1.2, 0.5], [0.5, 1.5]), {}, -(0.6 + 0.5) / 1.5),
  ],
  "mse": [(PAIR, {}, (0.2**2 + 0.5**2) / 2)],
  "huber": [(PAIR, {}, (0.2**2 + 0.5**2) / 4), (([3.0], [1.0]), {"delta": 0.5}, 0.5 * (2 - 0.25))],
  "ordinal": [
    # Cut-points -1, 0, 2 of four grades.
    (([0.3, 0.3], [0, 3]),
     {"params": {"first": -1.0, "log_steps": [0.0, math.log(2)]}}, (nll(-1.3) + nll(-1.7)) / 2),
    (([0.3], [1]), {"params": {"first": -1.0, "log_steps": [0.0, math.log(2)]}},
     -math.log(1 / (1 + E(0.3)) - 1 / (1 + E(1.3)))),
    (([0.3], [1]), {"params": {"first": -1.0, "log_steps": []}}, nll(1.3)),
  ],
  "process": [
    (PAIR, {}, (nll(1.2) + nll(-0.5)) / 2),
    (([1.0, 2.0, 3.0], [1.0, 0.3, 0.9]), {"steps": "last", "response": [0, 1, 0]},
     (0.3 * nll(2) + 0.7 * nll(-2) + 0.9 * nll(3) + 0.1 * nll(-3)) / 2),
    # Response 0 is right, wrong, right: its third step is left out. Response 1 has no error.
    (([1.0, 2.0, 3.0, 4.0, 5.0], [1, 0, 1, 1, 0.5]),
     {"steps": "first_error", "response": [0, 0, 1, 0, 1]},
     (nll(1) + nll(-2) + nll(3) + (nll(5) + nll(-5)) / 2) / 4),
  ],
  "attribute_mse": [
    (([[1.2, 0.5], [2.0, 3.0], [7.0, 7.0]], [[1.0, nan], [0.0, 1.0], [nan, nan]]), {},
     (0.2**2 + 2**2 + 2**2) / 3),
  ],
}  # fmt: skip


def test_every_loss_has_an_expected_value():
  assert set(EXPECTED) == set(LOSSES)
  assert all(EXPECTED.values())


@pytest.mark.parametrize(
  ("name", "inputs", "extra", "expected"),
  [(name, *case) for name, cases in EXPECTED.items() for case in cases],
  ids=[f"{name}-{i}" for name, cases in EXPECTED.items() for i in range(len(cases))],
)
def test_value_is_the_formula(name, inputs, extra, expected):
  scores, labels = (jnp.asarray(x, jnp.float32) for x in inputs)
  arrays = {n: jnp.asarray(v) for n, v in extra.items() if isinstance(v, list)}
  extra = {**extra, **arrays}
  if "params" in extra:
    extra["params"] = {n: jnp.asarray(v, jnp.float32) for n, v in extra["params"].items()}
  value = LOSSES[name](scores, labels, where=jnp.ones(scores.shape[-1], bool), **extra)
  assert float(value) == pytest.approx(expected, rel=2e-6, abs=1e-7)


def test_margins_are_a_pairs_own_and_never_broadcast():
  # TRL's formula on the fixture that a [B, 1] - [B] broadcast gets wrong (1.600068).
  chosen, rejected, margin = [1, 2, 3], [0.5, 1.5, 3.5], [0.1, 1, 3]
  scores = jnp.asarray([chosen, rejected], jnp.float32).T
  margins = jnp.broadcast_to(jnp.asarray(margin)[:, None, None], (3, 2, 2))
  labels = jnp.broadcast_to(jnp.asarray([1.0, 0.0]), (3, 2))
  value = logistic(scores, labels, where=labels >= 0, pair_margin=margins)
  assert value.shape == (3,)
  expected = [nll(c - r - m) for c, r, m in zip(chosen, rejected, margin, strict=True)]
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert float(value.mean()) == pytest.approx(1.672281, abs=1e-6)
  with pytest.raises(ValueError, match="pair_margin"):
    logistic(scores, labels, where=labels >= 0, pair_margin=jnp.asarray(margin))


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("logistic", {"temperature": 0.0}),
    ("logistic", {"smoothing": 0.5}),
    ("logistic", {"smoothing": -0.1}),
    ("exponential", {"clamp": -1.0}),
    ("exponential", {"clamp": 88.73}),  # e^88.73 is no float32
    ("noisy_logistic", {"rate": 0.5}),
    ("unbiased_logistic", {"rate": 0.5}),
    ("listnet", {"temperature": -1.0}),
    ("plackett_luce", {"top": 0}),
    ("lambda_ndcg", {"mu": -1.0}),
    ("huber", {"delta": 0.0}),
    ("process", {"steps": "some"}),
    ("process", {"steps": "last"}),
  ],
)
def test_options_out_of_range_are_errors(name, options):
  scores, labels = (jnp.asarray(x) for x in PAIR)
  with pytest.raises(ValueError, match="|".join(options)):
    LOSSES[name](scores, labels, where=jnp.ones(2, bool), **options)


def test_the_largest_clamp_has_a_value():
  scores, labels = (jnp.asarray(x) for x in PAIR)
  loss = LOSSES["exponential"](scores, labels, where=jnp.ones(2, bool), clamp=88.71)
  assert float(loss) == pytest.approx(math.exp(-0.7))


@pytest.mark.parametrize("name", ["logistic", "scaled_logistic", "davidson", "rao_kupper"])
def test_a_weight_that_is_nan_is_a_loss_that_is_nan(name):
  scores, where = jnp.asarray([1.2, 0.5, 0.1]), jnp.ones(3, bool)
  pairs = jnp.zeros((3, 3)).at[0, 1].set(2.0).at[1, 2].set(2.0)
  extra = {"params": {"log_tie": jnp.float32(0.0)}} if name in ("davidson", "rao_kupper") else {}
  if name == "scaled_logistic":
    extra = {"pair_margin": jnp.ones((3, 3))}
  loss = functools.partial(LOSSES[name], scores, jnp.zeros(3), **extra)
  assert math.isfinite(loss(where=where, pairs=pairs))
  damaged = pairs.at[2, 0].set(nan)
  assert math.isnan(loss(where=where, pairs=damaged))
  # Padding's own weight is never read.
  assert math.isfinite(loss(where=where.at[2].set(False), pairs=damaged))


def test_a_strength_that_is_missing_is_an_error():
  scores, labels = (jnp.asarray(x) for x in PAIR)
  with pytest.raises(TypeError, match="pair_margin"):
    LOSSES["scaled_logistic"](scores, labels, where=jnp.ones(2, bool))


STEPS = jnp.asarray([1.0, -2.0, 0.5, nan, 3.0])
WHOSE = {"where": jnp.asarray([True, True, True, False, True]), "num_responses": 4}
RESPONSE = jnp.asarray([0, 2, 0, 0, 2])


@pytest.mark.parametrize(
  ("how", "expected"),
  [
    ("min", [0.5, 0, -2.0, 0]),
    ("product", [-nll(1) - nll(0.5), 0, -nll(-2) - nll(3), 0]),
    ("mean", [(1 + 0.5) / 2, 0, (-2 + 3) / 2, 0]),
    ("last", [0.5, 0, 3.0, 0]),
  ],
)
def test_aggregate(how, expected):
  def total(scores):
    return aggregate(scores, response=RESPONSE, how=how, **WHOSE)

  value, some = total(STEPS)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert some.tolist() == [True, False, True, False]
  slopes = jax.grad(lambda s: total(s)[0].sum())(STEPS)
  assert slopes[3] == 0
  want = {
    "min": [0, 1, 1, 0, 0],
    "product": [1 / (1 + E(x)) for x in (1.0, -2.0, 0.5)] + [0, 1 / (1 + E(3.0))],
    "mean": [0.5, 0.5, 0.5, 0, 0.5],
    "last": [0, 0, 1, 0, 1],
  }[how]
  np.testing.assert_allclose(slopes, want, rtol=1e-6)
  # The same in a batch, and nothing at all.
  batch = [jnp.broadcast_to(x, (2, 3, 5)) for x in (STEPS, WHOSE["where"], RESPONSE)]
  value, some = aggregate(batch[0], where=batch[1], response=batch[2], num_responses=4, how=how)
  np.testing.assert_allclose(value, np.broadcast_to(expected, (2, 3, 4)), rtol=1e-6)
  none = jnp.zeros(5, bool)
  empty = {"where": none, "response": RESPONSE, "num_responses": 4, "how": how}
  assert (jax.grad(lambda s: aggregate(s, **empty)[0].sum())(STEPS) == 0).all()
  assert not aggregate(STEPS, **empty)[1].any()


def test_aggregate_knows_its_ways():
  with pytest.raises(ValueError, match="how"):
    aggregate(STEPS, response=RESPONSE, how="max", **WHOSE)
